"""The main job: a scene in, a georeferenced embedding out."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eo_zoo import registry
from eo_zoo.errors import InputError
from eo_zoo.geo.checks import check_weights, find_device, one_of, writable
from eo_zoo.geo.domains import embed_domains
from eo_zoo.geo.job import Log, Report, name_of
from eo_zoo.geo.opening import Reading, Source, check_bands, is_several, opened, record_for, source_name
from eo_zoo.geo.output import TIFF, VECTOR
from eo_zoo.geo.run import OUT_DTYPES, Embedding, Options, embed_scene, model_layer, tile_grid
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.several import KINDS, Readings, embed_several
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS
from eo_zoo.presets import get_preset
from eo_zoo.sensors import Statistics
from eo_zoo.weights import Record


def embed_raster(
    source: Source | Mapping[str, Source],
    model: str | nn.Module = "smarties_vit_nano",
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    stats: str | Path | Statistics | Mapping[str, str | Path | Statistics] | None = None,
    units: str | Mapping[str, str] | None = None,
    boa_offset: float | Mapping[str, float] | None = None,
    nodata: float | Mapping[str, float] | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    bbox_crs: str | None = None,
    resolution: float | None = None,
    layer: int | None = None,
    pool: str | None = None,
    patch_size: int | None = None,
    output: str | None = None,
    output_modality: str | None = None,
    tile: float | None = None,
    overlap: int | None = None,
    preset: str | None = None,
    date_pattern: str | None = None,
    start: str | date | None = None,
    end: str | date | None = None,
    max_dates: int | None = None,
    masks: str | None = None,
    scl_invalid: Collection[int] | None = None,
    max_probability: float | None = None,
    min_valid: float = 0.0,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    out_dtype: str = "float32",
    preview: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    report: Report | None = None,
) -> Embedding:
    """Embed a scene, or several inputs of one place: a map of features with its georeference, or one vector.

    The map's cells are the model's patches, counted from the raster's top-left pixel. Tiles of the model's
    input size overlap and are blended with weights that fall towards the tile's edge. Nodata is masked: a
    cell without a valid pixel is NaN, and pixels missing elsewhere are filled with 0 after normalisation.

    A model of several inputs (AnySat) takes them by key, ``{"aerial": "tile.tif", "s2": "FOLDER"}``; each is read by
    its own statistics and brought to its own pixels (0.2, 1, 1.25, 10 or 30 m) on one common grid in metres, over the
    ground that all cover, in whole squares of 10 m (30 m). A series keeps all its dates, its missing values masked;
    a cell of a dense map is NaN where its input has no valid value at any date, a patch where no input has one.

    MultiMAE takes any of ``{"s2": ..., "dem": ..., "worldcover": ...}``: Sentinel-2, elevation in metres and ESA
    WorldCover's codes, brought to the pixels of s2 (else of the first), over the ground that all cover, from any CRS;
    codes are those of the nearest pixel. They fill its domains as far as their bands go, and the map is the mean of
    the domains' maps. See ``eo_zoo.geo.domains.open_domains``.

    Args:
        source: GeoTIFF, folder of band files, or STAC item (path, URL or dict); see ``open_scene``, also for
            ``sensor``, ``bands``, ``units``, ``boa_offset``, ``nodata``, ``bbox``, ``bbox_crs``, ``resolution``.
            For a model of several inputs a dict of them; a series is what ``open_series`` takes, see there also for
            ``date_pattern``, ``start``, ``end``, ``max_dates``, ``masks``, ``scl_invalid``, ``max_probability``.
            Of several inputs, ``bands``, ``units``, ``boa_offset`` and ``nodata`` are by key too.
        model: a registered name, or a module with timm's methods, made for the bands of the scene.
        out: .tif or .tiff for a map; .npy or .json for a vector, which may also only be returned.
        weights: a local checkpoint instead of the published one.
        cache_dir: where weights are kept.
        stats: recorded statistics by name, a JSON file, or an object; by default the model's for the sensor. For
            several inputs also a dict by key, or a file as ``eo-zoo stats`` writes it; for MultiMAE also MMEarth's
            ``band_stats.json``, and keys may be domains.
        layer: block, or stage of a pyramid as MaRS', whose map before any norm is written; negative counts from the
            end, and the last is the default.
        pool: "token" (where the model has a class token, or a global one) or "avg": the model's pooled vector, over
            the tiles weighted by their valid values.
        patch_size: AnySat: metres, a multiple of 10 (30 with l7 or alos); by default the smallest.
        output: AnySat: "patch" for a map of patches (the default for a .tif), "dense" for one of the
            sub-patches of ``output_modality`` (2 m for aerial, 10 m for s2), "tile" for one vector.
        output_modality: AnySat: input whose sub-patches a dense map has; the first by default. MultiMAE: domain whose
            map is written, as "rgb"; by default it is the mean over all.
        tile: AnySat: metres a side of what the model sees at once, a multiple of the patch size. By default the
            shorter side of the area, or 16 patches if that is less: AnySat was trained with 3 to 32 a side, and its
            attention grows with the square of their number.
        overlap: pixels (AnySat: metres), a multiple of the patch; by default half of a tile. Less is faster,
            and steps show.
        preset: AnySat: the training data set whose band orders, units and statistics hold, see
            ``eo_zoo.presets``.
        min_valid: share of a cell's values, 0 to 1, that must be valid; pixels beyond the raster are not. Of a patch
            of several inputs, or domains, it is the mean of theirs.
        batch_size: tiles encoded together, by default 8, of AnySat 1; other sizes agree within 1e-5.
        device: as torch names them; by default a GPU if there is one (a module stays where it is).
        dtype: "float32", "bfloat16" or "float16" inside the model; "auto": bfloat16 where the device is fast in it.
        out_dtype: "float32" or "float16" in the map.
        preview: a .png: true colour (of a series the median over the dates) beside the first three principal
            components.
        overwrite: replace existing output.
        progress: show a bar on stderr; by default if that is a terminal.
        report: called as ``report("note" or "warning", text)`` before the long part begins, and for warnings
            that only its end can tell; by default both are logged.

    Raises:
        InputError: input, options or values that cannot be used.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights or the scene cannot be fetched.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    record = record_for(model)
    sources = _inputs(source, model, record)
    of_series = dict(
        date_pattern=date_pattern, start=start, end=end, max_dates=max_dates, masks=masks, scl_invalid=scl_invalid,
        max_probability=max_probability,
    )  # fmt: skip
    of_several = dict(patch_size=patch_size, output=output, output_modality=output_modality, tile=tile, preset=preset)
    of_image = dict(sensor=sensor, resolution=resolution, layer=layer, pool=pool)
    name, domains = _called(model, record), _takes_domains(model, record)
    if sources is None:
        _refuse(of_several | of_series, f"models of several inputs, and {name} takes one image")
    elif domains:
        del of_several["output_modality"]
        _refuse(of_several | of_series, f"models of inputs at their own resolutions, and {name} takes all on one grid")
    else:
        _refuse(of_image, f"models of one image, and {name} takes several inputs, each at its own resolution")
        output = one_of("output", output, (None, *KINDS)) or ("patch" if _is_map(out) else "tile")
    vector = pool is not None or output == "tile"
    inputs = [source] if sources is None else list(sources.values())
    options = Options(
        out=writable("out", out, VECTOR if vector else TIFF, overwrite, *inputs),
        layer=layer,
        pool=one_of("pool", pool, (None, "token", "avg")),
        patch_size=patch_size,
        output=output,
        output_modality=output_modality,
        tile=tile,
        overlap=overlap,
        min_valid=min_valid,
        batch_size=(8 if sources is None or domains else 1) if batch_size is None else batch_size,
        device=find_device(device, model),
        dtype=dtype,
        out_dtype=one_of("out_dtype", out_dtype, OUT_DTYPES),
        preview=writable("preview", preview, (".png",), overwrite, *inputs),
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    _check(options, vector)
    check_weights(weights, model)
    log, loading = Log(report), dict(weights=weights, cache_dir=cache_dir)
    place: Any = dict(bbox=bbox, bbox_crs=bbox_crs)
    values: Any = dict(bands=bands, stats=stats, units=units, boa_offset=boa_offset, nodata=nodata)
    if sources is not None and domains:
        place |= dict(sensor=sensor, resolution=resolution)
        result = embed_domains(sources, model, options, {**place, **values}, log, **loading)
    elif sources is None:
        reading = Reading(sensor=sensor, resolution=resolution, **place, **values)
        result = _embed_image(cast(Source, source), model, options, reading, log, loading)
    else:
        given = {name: value for name, value in of_series.items() if value is not None}
        known = get_preset(preset) if preset is not None else None
        readings = Readings(preset=known, series=given, **place, **values)
        result = embed_several(sources, model, options, readings, log, **loading)
    return replace(result, seconds=time.perf_counter() - started)


def _embed_image(
    source: Source, model: str | nn.Module, options: Options, reading: Reading, log: Log, loading: Mapping[str, Any]
) -> Embedding:
    record = record_for(model)
    if record is not None and record.together:
        raise InputError(
            f"{record.name} takes {', '.join(record.sensors)} together, and an embedding is of one input: take another "
            "weight set of the architecture"
        )
    with opened(source, model, reading, log) as (scene, statistics):
        if isinstance(model, str):
            _check_before_loading(model, scene, options)
            module = registry.create_model(model, **loading, bands=scene.bands, **_pooling(options))
        else:
            module = model
            check_bands(model, scene.bands)
        return embed_scene(
            scene, module, statistics, options, name=name_of(module), source=source_name(source), log=log
        )


def _inputs(
    source: Source | Mapping[str, Source], model: str | nn.Module, record: Record | None
) -> Mapping[str, Source] | None:
    """The inputs by key of a model that takes several; None for a model of one image."""
    keys = list(record.inputs) if record else list(getattr(model, "inputs", ()))
    if _takes_domains(model, record):
        keys = list(RASTERS)
    if keys and not (is_several(source) and source):
        raise InputError(
            f"{_called(model, record)} takes its inputs by name: give --input {keys[0]}=INPUT, once for each of those "
            f'there are ({{"{keys[0]}": ...}} in Python), of {", ".join(keys)}'
        )
    if not keys and is_several(source):
        raise InputError(f"{_called(model, record)} takes one image, not several inputs: give it without --input")
    return cast(Mapping[str, Source], source) if keys else None


def _takes_domains(model: str | nn.Module, record: Record | None) -> bool:
    """Whether it is a MultiMAE, whose inputs are the rasters that hold its domains."""
    return isinstance(model, MultiMae) or (record is not None and record.inputs.keys() == DOMAINS.keys())


def _called(model: str | nn.Module, record: Record | None) -> str:
    return record.name if record else type(model).__name__


def _refuse(options: Mapping[str, Any], whose: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)}: only for {whose}; leave {'it' if len(given) == 1 else 'them'} out")


def _is_map(out: str | Path | None) -> bool:
    return out is not None and Path(out).suffix.lower() in TIFF


def _check(options: Options, vector: bool) -> None:
    way = "pool" if options.output is None else "output 'tile'"
    if vector:
        given = [
            name for name in ("layer", "overlap", "preview", "output_modality") if getattr(options, name) is not None
        ]
        given += ["min_valid"] * (options.min_valid > 0) + ["out_dtype"] * (options.out_dtype != "float32")
        if given:
            raise InputError(f"{', '.join(given)} only apply to maps: leave them out, or leave out {way}")
    elif options.out is None:
        raise InputError(f"a map has to be written somewhere: give out, the path of a .tif, or {way} for one vector")


def _pooling(options: Options) -> dict[str, Any]:
    return {"num_classes": 0} | ({"global_pool": options.pool} if options.pool else {})


def _check_before_loading(name: str, scene: Scene, options: Options) -> None:
    """Find out on a model without memory whether layer, overlap and size fit, before weights are fetched."""
    with torch.device("meta"):
        empty = registry.create_model(name, pretrained=False, bands=scene.bands, **_pooling(options))
    _, patch, _ = model_layer(empty, options.layer)
    tile_grid(scene.grid, empty, patch, options)
