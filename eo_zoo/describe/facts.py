"""All facts of a weight set as plain values: what `eo_zoo.registry.info` tells, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch

from eo_zoo import registry, sensors, terrasense
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.sensors import Statistics
from eo_zoo.transforms import Normalize, create_transform
from eo_zoo.weights import Record, Task

#: By the beginning of a name: what the literature calls the architecture.
ARCHITECTURES = {
    "anysat": "Vision Transformer",
    "mars": "Swin Transformer V2",
    "multimae": "Vision Transformer",
    "smarties": "Vision Transformer",
    "terrasense": "Qwen-VL",
}
Shape = dict[str, int]  # size by dimension, in order; -1 where it is free


def record_of(name: str) -> Record:
    """The record of a weight set, TerraSense's among them.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    return terrasense.RECORD if name == terrasense.RECORD.name else registry.get_record(name)


def facts(name: str) -> dict[str, Any]:
    """Everything that is known of a weight set, as plain JSON-able values.

    Args:
        name: architecture or architecture.tag, or "terrasense_base".

    Returns:
        what `eo_zoo.registry.info` gives, and architecture (as the literature calls it), redistributable,
        input_size (pixels a side; None where any will do), crop (share of the resized shorter side that is kept),
        total_parameters (with the head), strides and widths (pixels a cell and channels of the maps of features; of
        AnySat a cell is of the metres that the call says, so strides is empty), taken ("one at a time", or
        "together" where a call may hold any of the inputs), takes and gives.

        ``takes`` holds one entry for each input, in a model of single images for each sensor it may come from: name,
        key (of the model's dict, else None), sensors, title, shape (sizes by dimension, -1 where free), dtype, resize
        ("bicubic", "bilinear", "nearest", "spline" or None), statistics and sources (names, and where they are from),
        note, and bands: of each name, sensor_name, sensor, wavelength_nm, gsd (metres per pixel), common_name (STAC's),
        units, read (False: in the images but not in the model), ratio_of (names of the two it is made of), mean, std,
        p1 and p99. Where p1 is given, mean and std belong to the values after ``clip((x - p1) / (p99 - p1), 0, 1)``,
        else to values in ``units``.

        ``gives`` holds one entry for each output: name, shape, what.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    record = record_of(name)
    architecture = {"architecture": ARCHITECTURES[record.name.partition("_")[0]]}
    if record is terrasense.RECORD:
        told = registry.recorded(record, "A Qwen-VL, fine-tuned on remote sensing images, that answers in words.")
        return told | {"parameters": None, "weights": "not loaded"} | architecture | _of_terrasense(record)
    with torch.device("meta"):
        model = timm.create_model(record.name)
    return registry.info(record.name) | architecture | _of_model(record, model)


def _of_model(record: Record, model: Any) -> dict[str, Any]:
    anysat, size = record.inputs.keys() == INPUTS.keys(), registry.input_size(record.name)
    maps = list(dict.fromkeys((stage["reduction"], stage["num_chs"]) for stage in model.feature_info))
    if anysat:
        takes, gives = _of_anysat(record), _from_anysat(model.num_features)
    else:
        takes = _of_domains(record, size) if record.inputs else _of_images(record, size)
        gives = _answers(record.task) if record.task else _features(model.num_features, maps, size)
    return {
        "redistributable": record.redistributable,
        "input_size": None if anysat else size,
        "crop": record.crop,
        "total_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "strides": [] if anysat else [stride for stride, _ in maps],
        "widths": [width for _, width in maps],
        "taken": "together" if record.inputs else "one at a time",
        "takes": takes,
        "gives": gives,
    }


# ---- what goes in ----


def _of_images(record: Record, size: int) -> list[dict[str, Any]]:
    groups = [record.sensors] if record.together else [(name,) for name in record.sensors if name in record.statistics]
    return [_image(record, names, size) for names in groups]


def _image(record: Record, names: Sequence[str], size: int) -> dict[str, Any]:
    transform = create_transform(record.name, None if len(names) > 1 else names[0])
    applied = [module.statistics for module in transform.modules() if isinstance(module, Normalize)]
    bands = [row for own in applied for row in _rows(own, own.bands, own.sensor)]
    for row in bands:
        row["read"] = row["name"] in record.accepts
    shape = {"batch": -1, "bands": len(bands), "height": size, "width": size}
    return _entry(" and ".join(names), names, shape, bands, applied) | {"resize": record.resize}


def _of_anysat(record: Record) -> list[dict[str, Any]]:
    transform: Any = create_transform(record.name)
    entries = []
    for key, order in record.inputs.items():
        one = INPUTS[key]
        own = transform.normalize[key].statistics if key in transform.normalize else None
        sensor, names = sensors.sensor_of(order), sensors.get_order(order)
        side = 1 if key == "modis" else -1  # one pixel covers the tile
        shape = {"batch": -1} | ({"time": -1} if one.series else {})
        shape |= {"bands": one.channels, "height": side, "width": side}
        notes = [f"{one.gsd:g} m per pixel"]
        if one.series:
            notes.append(
                f"with {key}_dates (B, T), days of the year from 1 on, and, if wanted, {key}_mask, True: valid"
            )
        if own is None:
            notes.append("no statistics were published: take those of a data set, or compute them with eo-zoo stats")
        entry = _entry(key, [sensor], shape, _rows(own, names, sensor), [own] if own else [])
        entries.append(entry | {"key": key, "note": "; ".join(notes)})
    return entries


def _of_domains(record: Record, size: int) -> list[dict[str, Any]]:
    entries = []
    for level in (name for name in record.sensors if name in ("S2", "S2-L1C")):
        transform: Any = create_transform(record.name, level)
        for key, order in record.inputs.items():
            one, own = DOMAINS[key], transform.statistics.get(key)
            sensor = level if own and own.sensor == level else sensors.sensor_of(order)
            if level != "S2" and sensor != level:
                continue
            names, side = sensors.get_order(order), size // one.stride
            shape = {"batch": -1} | ({} if one.classes else {"bands": one.channels}) | {"height": side, "width": side}
            label = key if level == "S2" else f"{key}, {level}"
            entry = _entry(label, [sensor], shape, _rows(own, names, sensor), [own] if own else [])
            entry |= {"key": key, "resize": "bilinear"}
            if one.classes:
                entry |= {"dtype": "int64", "resize": "nearest", "note": "ids 0 to 11 of WorldCover's classes"}
            elif key == "depth":
                entry["note"] = "standardised once more, image by image, by the mean and variance of its middle 80 %"
            elif level != "S2":
                entry["note"] = f"instead of {key} of L2A"
            entries.append(entry)
    return entries


def _entry(
    name: str, names: Sequence[str], shape: Shape, bands: list[dict[str, Any]], applied: list[Statistics]
) -> dict[str, Any]:
    return {
        "name": name,
        "key": None,
        "sensors": list(names),
        "title": "; ".join(sensors.get_sensor(one).title for one in names),
        "shape": shape,
        "dtype": "float32",
        "resize": None,
        "statistics": [own.name for own in applied],
        "sources": [own.source for own in applied],
        "note": "",
        "bands": bands,
    }


def _rows(statistics: Statistics | None, names: Iterable[str], sensor: str) -> list[dict[str, Any]]:
    """The bands with the values that scale them; without statistics the units are whatever one's own are in."""
    own = statistics.select(list(names)) if statistics else None
    only = sensors.get_sensor(sensor)
    rows = []
    for i, band in enumerate(map(sensors.get_band, names)):
        columns = {key: getattr(own, key, None) for key in ("mean", "std", "p1", "p99")}
        rows.append(
            {
                "name": band.name,
                "sensor_name": band.sensor_name,
                "sensor": sensor,
                "wavelength_nm": band.wavelength,
                "gsd": band.gsd,
                "common_name": band.common_name,
                "units": own.units if own else only.units if only.units == "class" else None,
                "read": True,
                "ratio_of": list(band.ratio_of),
                **{key: values[i] if values else None for key, values in columns.items()},
            }
        )
    return rows


# ---- what comes out ----


def _features(width: int, maps: list[tuple[int, int]], size: int) -> list[dict[str, Any]]:
    vector = {"name": "embedding", "shape": {"batch": -1, "embedding": width}, "what": "one vector an image: model(x)"}
    gives = [vector]
    for stride, channels in maps:
        shape = {"batch": -1, "embedding": channels, "height": size // stride, "width": size // stride}
        gives.append(
            {"name": f"map_{stride}", "shape": shape, "what": f"a map of features, a cell {stride} x {stride} pixels"}
        )
    return gives


def _answers(task: Task) -> list[dict[str, Any]]:
    shape = {"batch": -1, "class": len(task.classes)}
    if task.kind == "segmentation":
        shape |= {"height": task.size, "width": task.size}
    scores = "the sigmoid gives each class's own score" if task.kind == "multi-label" else "softmax gives the scores"
    return [{"name": task.kind, "shape": shape, "what": f"logits: {scores}"}]


def _from_anysat(width: int) -> list[dict[str, Any]]:
    def one(name: str, what: str, **shape: int) -> dict[str, Any]:
        return {"name": name, "shape": {"batch": -1, **shape}, "what": what}

    return [
        one("tile", 'output="tile": one vector a tile', embedding=width),
        one("patch", 'output="patch": one a patch', height=-1, width=-1, embedding=width),
        one("all", "output=\"all\": the tile's vector, then the patches'", token=-1, embedding=width),
        one(
            "dense",
            'output="dense": for each sub-patch of one input its patch\'s vector and its own',
            height=-1,
            width=-1,
            embedding=2 * width,
        ),
    ]


# ---- TerraSense ----


def _of_terrasense(record: Record) -> dict[str, Any]:
    shape = {"batch": -1, "bands": 3, "height": -1, "width": -1}
    image = _entry("image", record.sensors, shape, _rows(None, record.accepts, "RGB"), [])
    for row in image["bands"]:
        row["units"] = "uint8"
    image |= {"dtype": "uint8", "resize": "bicubic", "note": "one image, or two to compare"}
    question = _entry("question", (), {"batch": -1, "token": -1}, [], [])
    question |= {"dtype": "int64", "title": "What is asked, in words"}
    answer = {"name": "answer", "shape": {"batch": -1, "token": -1}, "what": "words; boxes are read out of them"}
    return {
        "redistributable": record.redistributable,
        "input_size": None,
        "crop": 1.0,
        "total_parameters": None,
        "strides": [],
        "widths": [],
        "taken": "together",
        "takes": [image, question],
        "gives": [answer],
    }
