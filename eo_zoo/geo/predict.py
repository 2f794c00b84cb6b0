"""A tuned model's classes: of one image, or as a map over a scene."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import rasterio
import torch
from torch import nn

from eo_zoo import registry, transforms
from eo_zoo.errors import InputError
from eo_zoo.geo import job
from eo_zoo.geo.checks import check_weights, find_device, one_of, writable
from eo_zoo.geo.classify import Classifier, Prediction, PredictOptions, Run, classify_image
from eo_zoo.geo.classmap import class_grid, classify_map
from eo_zoo.geo.job import Job, Log, Report
from eo_zoo.geo.opening import Reading, Source, check_bands, is_several, opened, record_for, source_name
from eo_zoo.geo.output import TIFF
from eo_zoo.geo.pair import by_sensor, opened_pair
from eo_zoo.geo.scene import GDAL_OPTIONS, Scene
from eo_zoo.geo.stream import Raster, Tally
from eo_zoo.models.smarties_tasks import MIXES
from eo_zoo.sensors import Statistics, get_sensor
from eo_zoo.weights import RECORDS, Record, Task

THRESHOLD = 0.5
LARGER = 2  # times the data set's images: from there on one image is probably a scene
LARGEST = 2048  # pixels a side of one image, as it is read whole


def predict_raster(
    source: Source | Mapping[str, Source],
    model: str | nn.Module,
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
    window: int | None = None,
    stride: int | None = None,
    threshold: float | None = None,
    min_valid: float = 0.0,
    mix: str | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    scores: str | Path | None = None,
    preview: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    report: Report | None = None,
) -> Prediction:
    """Classify a raster with a tuned weight set: all of it as one image, or, if ``out`` is a .tif, as a map.

    An image is normalised, resized to the model's input and classified; nodata is 0 after normalisation.

    A map of scene or multi-label classes has a cell for every ``stride`` pixels, counted from the raster's top-left
    pixel, which gets the answer for the window of ``window`` pixels around it; at the raster's ends windows are moved
    inside. A map of segmentation has the scene's pixels; its windows overlap, and their logits are blended with
    weights that fall towards the window's edge. A cell without a valid value is nodata.

    The map is uint8, 255 is nodata. Scene and segmentation: one band of class numbers in the order of the task's
    classes, with a colour table, and the names in OUT.tif.aux.xml and the tag CLASSES. Multi-label: one band for each
    class, 1 where its score reaches the threshold, else 0. ``scores`` has the scores as float32, a band for each
    class.

    Args:
        source: GeoTIFF, folder of band files, or STAC item (path, URL or dict); see ``open_scene``, also for
            ``sensor``, ``bands``, ``units``, ``boa_offset``, ``nodata``, ``bbox``, ``bbox_crs``, ``resolution``. For
            a model that takes two sensors together, a dict of sensor to source: the first one's pixels are the map's,
            the other's are resampled to them.
        model: a registered name of a weight set with a task, or its module, made for the bands of the scene.
        out: .json for the classes of an image, which may also only be returned; .tif or .tiff for a map.
        weights: a local checkpoint instead of the published one.
        cache_dir: where weights are kept.
        stats: recorded statistics by name, a JSON file, or an object; by default the model's for the sensor.
        window: of a map, in pixels; by default the size of the data set's images.
        stride: of a map, in pixels, at most the window; by default the window, for segmentation half of it.
        threshold: score from which on a label is given, 0.5 if not said; multi-label only.
        min_valid: of a map: share of a cell's values, 0 to 1, that must be valid.
        mix: for two sensors together: "random", two complementary half-mixes of the patches as the weights were
            trained and released, or "plain", a run for each sensor; random if not said.
        seed: of the random mix; 0 if not said. Another batch size draws other mixes.
        batch_size: windows at a time.
        device: as torch names them; by default a GPU if there is one (a module stays where it is).
        dtype: "float32", "bfloat16" or "float16" inside the model; "auto": bfloat16 where the device is fast in it.
        scores: a .tif for a map's scores.
        preview: a .png: true colour beside the map's classes, with a legend.
        overwrite: replace existing output.
        progress: show a bar on stderr; by default if that is a terminal.
        report: see ``embed_raster``.

    Raises:
        InputError: input, options or values that cannot be used, or a model without classes.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights or the scene cannot be fetched.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    record, task = _tuned(model)
    inputs = list(source.values()) if is_several(source) else [source]
    options = PredictOptions(
        out=writable("out", out, (".json", *TIFF), overwrite, *inputs),
        window=task.size if window is None else window,
        stride=_stride(task, window, stride),
        threshold=THRESHOLD if threshold is None else threshold,
        min_valid=min_valid,
        batch_size=batch_size,
        device=find_device(device, model),
        dtype=dtype,
        scores=writable("scores", scores, TIFF, overwrite, *inputs),
        preview=writable("preview", preview, (".png",), overwrite, *inputs),
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    _check(record, task, options, window=window, stride=stride, threshold=threshold, mix=mix, seed=seed)
    check_weights(weights, model)
    log = Log(report)
    reading = Reading(
        sensor=sensor, bands=bands, stats=stats, units=units, boa_offset=boa_offset, nodata=nodata,
        bbox=bbox, bbox_crs=bbox_crs, resolution=resolution,
    )  # fmt: skip
    with _opened(source, model, record, reading, log) as (scene, statistics):
        _tell(scene, record, task, options, log)
        if sensor is None and scene.sensor == "S2-L1C":
            log.warn(f"taken as Sentinel-2 L1C, as {task.data_set}; L2A has other values. --sensor S2-L1C confirms it")
        if isinstance(model, str):
            module = registry.create_model(model, weights=weights, cache_dir=cache_dir, bands=scene.bands)
        else:
            module = model
            check_bands(model, scene.bands)
        classifier = Classifier(task, _resizing(record, module, scene.bands), **_call(record, mix, seed))
        tally = Tally(statistics, job.true_colour(scene) if options.preview else None)
        raster = Raster(scene, statistics, tally)
        work = Job(raster, module, options, log, job.name_of(module), source_name(source))
        result = _classified(work, raster, options, classifier)
    return replace(result, seconds=time.perf_counter() - started)


def _classified(work: Job, raster: Raster, options: PredictOptions, classifier: Classifier) -> Prediction:
    forward = classifier.logits(work.model, options.window)
    with job.evaluating(work.model, forward, options) as encode, rasterio.Env(**GDAL_OPTIONS):
        run = Run(work, raster, options, classifier, encode)
        return classify_map(run, options.out) if options.out and options.is_map else classify_image(run)


def _tuned(model: str | nn.Module) -> tuple[Record, Task]:
    """The record and its task; InputError for a model that gives features only."""
    record = record_for(model)
    if record is None or record.task is None:
        tuned = ", ".join(name for name, known in RECORDS.items() if known.task)
        what = type(model).__name__ if record is None else record.name
        raise InputError(f"{what} gives features, not classes (eo-zoo embed writes them); classes give {tuned}")
    return record, record.task


def _stride(task: Task, window: int | None, stride: int | None) -> int:
    if stride is not None:
        return stride
    side = task.size if window is None else window
    # Halves, as the tiles of an embedding: every pixel is then a smooth blend of four.
    return max(side // 2, 1) if task.kind == "segmentation" else side


def _check(record: Record, task: Task, options: PredictOptions, **given: Any) -> None:
    """Raise InputError for options that do not belong to the task or the output."""
    several = {"threshold": given.pop("threshold")}
    together = {"mix": given.pop("mix"), "seed": given.pop("seed")}
    maps = given | {"min_valid": options.min_valid or None, "scores": options.scores, "preview": options.preview}
    for options_of, belongs, whom in (
        (several, task.kind == "multi-label", "multi-label weight sets"),
        (together, record.together, "weight sets of two sensors together"),
        (maps, options.is_map, "maps: give out, the path of a .tif, or leave them out"),
    ):
        wrong = [name for name, value in options_of.items() if value is not None]
        if wrong and not belongs:
            raise InputError(f"{', '.join(wrong)}: only for {whom}")
    one_of("mix", together["mix"], (None, *MIXES))
    if not 0 <= (together["seed"] or 0) < 2**63:
        raise InputError(f"seed is {together['seed']}, expected a whole number from 0 to 2**63 - 1")
    if together["seed"] is not None and together["mix"] == "plain":
        raise InputError("seed is for the random mix: leave it out with mix 'plain'")
    if task.kind == "segmentation" and not options.is_map:
        raise InputError(f"{record.name} gives every pixel a class: give out, the path of a .tif")
    if options.scores and options.scores == options.out:
        raise InputError(f"scores: {options.scores} is out itself; choose another name")


def _opened(
    source: Source | Mapping[str, Source], model: str | nn.Module, record: Record, reading: Reading, log: Log
) -> contextlib.AbstractContextManager[tuple[Scene, Statistics]]:
    wanted = ", ".join(record.sensors)
    if not is_several(source):
        if record.together:
            raise InputError(f"{record.name} takes {wanted} together: give one input of each, --input SENSOR=PATH")
        return opened(cast(Source, source), model, reading, log)
    if not record.together:
        raise InputError(f"{record.name} takes one input ({wanted}), not several: give it without --input")
    return opened_pair(by_sensor(source, record), model, reading, log)


def _tell(scene: Scene, record: Record, task: Task, options: PredictOptions, log: Log) -> None:
    """What the user should know before weights are fetched; InputError for a size that cannot be."""
    height, width = scene.grid.height, scene.grid.width
    titles = " and ".join(get_sensor(name).title for name in record.sensors)
    log.note(f"tuned on {task.data_set}: {titles}, {task.size} x {task.size} pixels")
    missing = [band for band in record.accepts if band not in scene.bands]
    if missing:
        log.warn(f"the weights were tuned with {', '.join(missing)} too, which the input lacks")
    if options.is_map:
        class_grid(scene, options, task.kind == "segmentation")
        return
    if max(height, width) > LARGEST:
        raise InputError(
            f"the input is {width} x {height} pixels, more than the {LARGEST} that one image may have: give out, the "
            "path of a .tif, for a map, or a part of it with bbox"
        )
    if max(height, width) > LARGER * task.size:
        log.warn(
            f"the input is {width} x {height} pixels, images of {task.data_set} {task.size} x {task.size}: all of it "
            "is taken as one image and made smaller; -o OUT.tif gives a map"
        )


def _resizing(record: Record, model: nn.Module, bands: tuple[str, ...]) -> nn.Module:
    """What the weight set's transform does after normalising, which comes first, so that nodata can be masked."""
    size = int(cast(Any, model).pretrained_cfg["input_size"][-1])
    made = transforms.create_transform(record.name, bands=bands, size=size)
    if isinstance(made, transforms.Together):
        parts = zip(made.indices, made.transforms, strict=True)
        return transforms.Together([(indices, cast(nn.Sequential, one)[1:]) for indices, one in parts])
    return cast(nn.Sequential, made)[1:]


def _call(record: Record, mix: str | None, seed: int | None) -> dict[str, dict[str, Any]]:
    """Further arguments of the model, and what tags say of them."""
    if not record.together:
        return {}
    if mix == "plain":
        return {"call": {"mix": mix}, "told": {"mix": mix}}
    generator = torch.Generator().manual_seed(seed or 0)
    return {"call": {"mix": "random", "generator": generator}, "told": {"mix": "random", "seed": str(seed or 0)}}
