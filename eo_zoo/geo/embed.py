"""The main job: a scene in, a georeferenced embedding out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eo_zoo import registry
from eo_zoo.errors import InputError
from eo_zoo.files import sweep
from eo_zoo.geo.checks import check_weights, find_device, one_of, writable
from eo_zoo.geo.job import Log, Report, name_of
from eo_zoo.geo.opening import Reading, Source, check_bands, opened, record_for, source_name
from eo_zoo.geo.run import OUT_DTYPES, Embedding, Options, embed_scene, model_layer, tile_grid
from eo_zoo.geo.scene import Scene
from eo_zoo.sensors import Statistics


def embed_raster(
    source: Source,
    model: str | nn.Module = "smarties_vit_nano",
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    stats: str | Path | Statistics | None = None,
    units: str | None = None,
    boa_offset: float | None = None,
    nodata: float | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    bbox_crs: str | None = None,
    resolution: float | None = None,
    layer: int | None = None,
    pool: str | None = None,
    overlap: int | None = None,
    min_valid: float = 0.0,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    out_dtype: str = "float32",
    preview: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    report: Report | None = None,
) -> Embedding:
    """Embed a scene: a map of features with the scene's georeference, or one vector.

    The map's cells are the model's patches, counted from the raster's top-left pixel. Tiles of the model's
    input size overlap and are blended with weights that fall towards the tile's edge. Nodata is masked: a
    cell without a valid pixel is NaN, and pixels missing elsewhere are filled with 0 after normalisation.

    Args:
        source: GeoTIFF, folder of band files, or STAC item (path, URL or dict); see ``open_scene``, also for
            ``sensor``, ``bands``, ``units``, ``boa_offset``, ``nodata``, ``bbox``, ``bbox_crs``, ``resolution``.
        model: a registered name, or a module with timm's methods, made for the bands of the scene.
        out: .tif or .tiff for a map; .npy or .json for a vector, which may also only be returned.
        weights: a local checkpoint instead of the published one.
        cache_dir: where weights are kept.
        stats: recorded statistics by name, a JSON file, or an object; by default the model's for the sensor.
        layer: block, or stage of a pyramid as MaRS', whose map before any norm is written; negative counts from the
            end, and the last is the default.
        pool: "token" (where the model has a class token) or "avg": the model's pooled vector, over the tiles
            weighted by their valid values.
        overlap: pixels, a multiple of the patch; by default half of a tile. Less is faster, and steps show.
        min_valid: share of a cell's values, 0 to 1, that must be valid; pixels beyond the raster are not.
        batch_size: tiles encoded together; other sizes agree within 1e-5.
        device: as torch names them; by default a GPU if there is one (a module stays where it is).
        dtype: "float32", "bfloat16" or "float16" inside the model.
        out_dtype: "float32" or "float16" in the map.
        preview: a .png: true colour beside the first three principal components.
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
    options = Options(
        out=writable("out", out, (".npy", ".json") if pool else (".tif", ".tiff"), overwrite, source),
        layer=layer,
        pool=one_of("pool", pool, (None, "token", "avg")),
        overlap=overlap,
        min_valid=min_valid,
        batch_size=batch_size,
        device=find_device(device, model),
        dtype=dtype,
        out_dtype=one_of("out_dtype", out_dtype, OUT_DTYPES),
        preview=writable("preview", preview, (".png",), overwrite, source),
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    _check(options)
    check_weights(weights, model)
    for path in filter(None, (options.out, options.preview)):
        sweep(path)  # what a killed run left
    record = record_for(model)
    if record is not None and record.together:
        raise InputError(
            f"{record.name} takes {', '.join(record.sensors)} together, and an embedding is of one input: take another "
            "weight set of the architecture"
        )
    log = Log(report)
    reading = Reading(
        sensor=sensor, bands=bands, stats=stats, units=units, boa_offset=boa_offset, nodata=nodata,
        bbox=bbox, bbox_crs=bbox_crs, resolution=resolution,
    )  # fmt: skip
    with opened(source, model, reading, log) as (scene, statistics):
        if isinstance(model, str):
            _check_before_loading(model, scene, options)
            module = registry.create_model(
                model, weights=weights, cache_dir=cache_dir, bands=scene.bands, **_pooling(options)
            )
        else:
            module = model
            check_bands(model, scene.bands)
        result = embed_scene(
            scene, module, statistics, options, name=name_of(module), source=source_name(source), log=log
        )
    return replace(result, seconds=time.perf_counter() - started)


def _check(options: Options) -> None:
    if options.pool:
        given = [name for name in ("layer", "overlap", "preview") if getattr(options, name) is not None]
        given += ["min_valid"] * (options.min_valid > 0) + ["out_dtype"] * (options.out_dtype != "float32")
        if given:
            raise InputError(f"{', '.join(given)} only apply to maps: leave them out, or leave out pool")
    elif options.out is None:
        raise InputError("a map has to be written somewhere: give out, the path of a .tif, or pool for one vector")


def _pooling(options: Options) -> dict[str, Any]:
    return {"num_classes": 0} | ({"global_pool": options.pool} if options.pool else {})


def _check_before_loading(name: str, scene: Scene, options: Options) -> None:
    """Find out on a model without memory whether layer, overlap and size fit, before weights are fetched."""
    with torch.device("meta"):
        empty = registry.create_model(name, pretrained=False, bands=scene.bands, **_pooling(options))
    _, patch, _ = model_layer(empty, options.layer)
    tile_grid(scene, empty, patch, options)
