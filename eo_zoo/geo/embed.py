"""The main job: a scene in, a georeferenced embedding out."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eo_zoo import registry, sensors
from eo_zoo import weights as weight_records
from eo_zoo.errors import InputError
from eo_zoo.files import sweep
from eo_zoo.geo.run import (
    DTYPES,
    OUT_DTYPES,
    Embedding,
    Log,
    Options,
    Report,
    embed_scene,
    model_layer,
    tile_grid,
)
from eo_zoo.geo.scene import Scene, open_scene
from eo_zoo.geo.values import gsd_warning, plausibility
from eo_zoo.sensors import Statistics


def embed_raster(
    source: str | Path | Mapping[str, Any],
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
        layer: block whose patch tokens, before any norm, are the features; negative counts from the end, and
            the last is the default.
        pool: "token" or "avg": the model's pooled vector, over the tiles weighted by their valid values.
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
        out=_writable("out", out, (".npy", ".json") if pool else (".tif", ".tiff"), overwrite, source),
        layer=layer,
        pool=_one_of("pool", pool, (None, "token", "avg")),
        overlap=overlap,
        min_valid=min_valid,
        batch_size=batch_size,
        device=_device(device, model),
        dtype=_one_of("dtype", dtype, tuple(DTYPES)),
        out_dtype=_one_of("out_dtype", out_dtype, OUT_DTYPES),
        preview=_writable("preview", preview, (".png",), overwrite, source),
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    _check(options)
    if weights is not None and not isinstance(model, str):
        raise InputError("weights belong to a model's name, but a module was given, which has its own")
    for path in filter(None, (options.out, options.preview)):
        sweep(path)  # what a killed run left
    log = Log(report)
    record = _record(model)
    statistics = _statistics(record, sensor, stats)
    accepts = record.accepts if record else getattr(model, "bands", statistics.bands)
    with open_scene(
        source,
        default_sensor=statistics.sensor,
        accepts=[band for band in accepts if band in statistics.bands],
        target_units=statistics.units,
        sensor=sensor,
        bands=bands,
        bbox=bbox,
        bbox_crs=bbox_crs,
        resolution=resolution,
        units=units,
        boa_offset=boa_offset,
        nodata=nodata,
    ) as scene:
        if record and stats is None:
            statistics = _of_scene(record, statistics, scene)
        statistics = statistics.select(scene.bands)
        _tell_before(scene, statistics, record, log)
        if isinstance(model, str):
            _check_before_loading(model, scene, options)
            module = registry.create_model(
                model, weights=weights, cache_dir=cache_dir, bands=scene.bands, **_pooling(options)
            )
        else:
            module = model
            _check_bands(model, scene.bands)
        result = embed_scene(scene, module, statistics, options, name=_name(module), source=_file_name(source), log=log)
    return replace(result, seconds=time.perf_counter() - started)


def _tell_before(scene: Scene, statistics: Statistics, record: weight_records.Record | None, log: Log) -> None:
    """What the user should know before the long part begins."""
    for text in scene.notes:
        log.note(text)
    log.note(f"normalised with the statistics '{statistics.name}'")
    samples = scene.sample()  # before the scene's own warnings: reading adds to them
    for text in [*scene.warnings, *plausibility(samples, statistics)]:
        log.warn(text)
    seen = record.gsd.get(scene.sensor) if record else None
    far = gsd_warning(scene.grid.gsd, seen) if seen else None
    if far:
        log.warn(far)


def _one_of(what: str, value: Any, options: tuple[Any, ...]) -> Any:
    if value not in options:
        raise InputError(f"{what} is {value!r}, expected {' or '.join(str(option) for option in options)}")
    return value


def _writable(
    what: str, path: str | Path | None, suffixes: tuple[str, ...], overwrite: bool, source: object
) -> Path | None:
    if path is None:
        return None
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{what} is {path.name}, expected a name that ends in {' or '.join(suffixes)}")
    path = path.resolve()  # a link stays, and what it points to is replaced
    folder = path.parent
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{what}: {path} is {kind}, expected the name of a file")
    if not folder.is_dir():
        raise InputError(f"{what}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{what}: the folder {folder} cannot be written to; choose another")
    if path.exists() and isinstance(source, str | Path) and os.path.exists(source) and path.samefile(source):
        raise InputError(f"{what}: {path} is the input itself; choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"{what}: {path} exists; choose another name, or pass --overwrite (overwrite=True)")
    return path


def _device(device: str | torch.device | None, model: str | nn.Module) -> torch.device:
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        if parameter is not None:
            return parameter.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
        if found.type == "meta" or (found.type == "cpu" and found.index):
            raise RuntimeError("it cannot compute" if found.type == "meta" else "there is one cpu device")
    # torch says so in three ways: no such name, not compiled in, no such card.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise InputError(f"device '{device}' is not there ({reason}); on this machine: {_devices()}") from error
    return found


def _devices() -> str:
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return ", ".join(names + ["mps"] * torch.backends.mps.is_available())


def _check(options: Options) -> None:
    if not 0 <= options.min_valid <= 1:
        raise InputError(f"min_valid is {options.min_valid}, expected a share from 0 to 1")
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}, expected 1 or more")
    if options.pool:
        given = [name for name in ("layer", "overlap", "preview") if getattr(options, name) is not None]
        given += ["min_valid"] * (options.min_valid > 0) + ["out_dtype"] * (options.out_dtype != "float32")
        if given:
            raise InputError(f"{', '.join(given)} only apply to maps: leave them out, or leave out pool")
    elif options.out is None:
        raise InputError("a map has to be written somewhere: give out, the path of a .tif, or pool for one vector")


def _record(model: str | nn.Module) -> weight_records.Record | None:
    if isinstance(model, str):
        return registry.get_record(model)
    return registry.record_of(model)


def _statistics(
    record: weight_records.Record | None, sensor: str | None, stats: str | Path | Statistics | None
) -> Statistics:
    if isinstance(stats, Statistics):
        return stats
    if stats is not None:
        return sensors.get_statistics(stats)
    if record is None:
        raise InputError("the module's weights have no record, so its statistics are not known: give stats")
    return _recorded(record, sensors.get_sensor(sensor).name if sensor else record.sensors[0])


def _recorded(record: weight_records.Record, sensor: str) -> Statistics:
    if sensor not in record.statistics:
        known, others = ", ".join(record.statistics), ", ".join(sensors.get_sensor(sensor).statistics)
        raise InputError(
            f"{record.name} has no statistics for sensor {sensor}, only for {known}: give stats, a JSON file or a "
            f"recorded set (for {sensor}: {others or 'none'})"
        )
    return sensors.get_statistics(record.statistics[sensor])


def _of_scene(record: weight_records.Record, statistics: Statistics, scene: Scene) -> Statistics:
    """The record's statistics for the scene's sensor, where it says that it is not the assumed one."""
    if scene.sensor == statistics.sensor:
        return statistics
    found = _recorded(record, scene.sensor)
    if found.units != scene.units:
        raise InputError(f"the scene is of sensor {scene.sensor}: give sensor '{scene.sensor}'")
    return found


def _pooling(options: Options) -> dict[str, Any]:
    return {"num_classes": 0} | ({"global_pool": options.pool} if options.pool else {})


def _check_before_loading(name: str, scene: Scene, options: Options) -> None:
    """Find out on a model without memory whether layer, overlap and size fit, before weights are fetched."""
    with torch.device("meta"):
        empty = registry.create_model(name, pretrained=False, bands=scene.bands, **_pooling(options))
    _, patch, _ = model_layer(empty, options.layer)
    tile_grid(scene, empty, patch, options)


def _name(model: nn.Module) -> str:
    """The record's name where it is what the model holds, else its architecture: WEIGHTS tells the rest."""
    origin = getattr(model, "weights_origin", None)
    config = getattr(model, "pretrained_cfg", {})
    return (origin.name if origin else None) or str(config.get("architecture") or type(model).__name__)


def _file_name(source: str | Path | Mapping[str, Any]) -> str:
    if isinstance(source, Mapping):
        return str(source.get("id", "STAC item"))
    # Without the query, which may hold a signature, and without folders.
    return str(source).partition("?")[0].rstrip("/").rpartition("/")[2]


def _check_bands(model: Any, bands: tuple[str, ...]) -> None:
    own = getattr(model, "bands", None)
    if own is not None and tuple(own) != bands:
        raise InputError(
            f"the model was made for the bands {', '.join(own)}, the scene gives {', '.join(bands)}: "
            "create the model with bands= these, or choose bands of the scene"
        )
