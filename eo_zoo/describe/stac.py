"""A weight set as a STAC Item of the Machine Learning Model extension (MLM), for catalogues of models.

Specification: github.com/stac-extensions/mlm, v1.5.2. Values are what the code does: scaling is of values in the
statistics' units (of Sentinel-2 digital numbers, not reflectance), so the bands here have no ``raster:scale``.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal

import torch

from eo_zoo.describe.card import address, resizing, units_text
from eo_zoo.describe.facts import facts, record_of
from eo_zoo.terrasense import RECORD as TERRASENSE
from eo_zoo.weights import Record

_SCHEMA = "https://stac-extensions.github.io/{}/schema.json"
MLM = _SCHEMA.format("mlm/v1.5.2")
EO, FILE, SCIENTIFIC = map(_SCHEMA.format, ("eo/v2.0.0", "file/v2.1.0", "scientific/v1.0.0"))
WORLD = (-180, -90, 180, 90)
# The specification knows no task for features: comparing them is the nearest.
_TASKS = {
    "": ["similarity-search"],
    "scene": ["scene-classification"],
    "multi-label": ["classification"],
    "segmentation": ["semantic-segmentation"],
}
_WORDS = ["image-captioning", "object-detection", "scene-classification"]
_RESIZE = {"bicubic": "interpolation-cubic", "bilinear": "interpolation-linear", "nearest": "interpolation-nearest"}
_RELEASE = re.compile(r"^\d+\.\d+\.\d+")  # of a torch of any build
_LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT"}  # as SPDX writes them


def mlm(name: str, *, kind: Literal["item", "asset"] = "item") -> dict[str, Any]:
    """A weight set in the terms of the MLM extension, JSON-able.

    Args:
        name: architecture or architecture.tag, or "terrasense_base".
        kind: "item" gives a whole STAC 1.1 Item, "asset" the asset of the weights alone, with the fields of the
            extension that an asset may have, for an item or collection of one's own.

    Returns:
        Of an item, place and time are the whole world and all time: no record says where a model holds.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    record, told = record_of(name), facts(name)
    model = _model(record, told)
    weights = _asset(record, told)
    bands = _bands(told)
    if kind == "asset":
        return weights | {"bands": bands} | model
    west, south, east, north = WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    uses = {
        MLM: True,
        EO: any(key.startswith("eo:") for band in bands for key in band),
        FILE: any(key.startswith("file:") for key in weights),
        SCIENTIFIC: bool(record.citation),
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [schema for schema, used in uses.items() if used],
        "id": record.name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(WORLD),
        "properties": {
            "title": record.title,
            "description": _description(record, told),
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "license": _LICENCES.get(record.licence, "other"),
            "bands": bands,
            **({"sci:citation": record.citation} if record.citation else {}),
            "mlm:name": record.name,
            **model,
            "mlm:input": [_input(entry, told) for entry in told["takes"]],
            "mlm:output": [_output(one, record) for one in told["gives"]],
        },
        "links": _links(record),
        # STAC allows bands in properties only where an asset has some too
        "assets": {"model": weights | {"bands": [{"name": band["name"]} for band in bands]}} | _code(record),
    }


def _description(record: Record, told: dict[str, Any]) -> str:
    taken = {"together": "any of its inputs together", "one at a time": "one of its inputs at a time"}[told["taken"]]
    made = (
        "eo_zoo.vlm.TerraSense.from_pretrained()" if record is TERRASENSE else f"eo_zoo.create_model('{record.name}')"
    )
    return f"{told['description']} Takes {taken}. Made by {made}. {record.terms or ''}".strip()


def _model(record: Record, told: dict[str, Any]) -> dict[str, Any]:
    """What items and assets may both say."""
    total = {} if told["total_parameters"] is None else {"mlm:total_parameters": told["total_parameters"]}
    return {
        "mlm:architecture": told["architecture"],
        "mlm:tasks": _tasks(record),
        "mlm:framework": "PyTorch",
        "mlm:framework_version": _RELEASE.findall(torch.__version__)[0],  # such as it runs with here
        **total,
        "mlm:pretrained": bool(record.source),
        "mlm:pretrained_source": record.trained_on if record.source else None,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
    }


def _tasks(record: Record) -> list[str]:
    return _WORDS if record is TERRASENSE else _TASKS[record.task.kind if record.task else ""]


# ---- what goes in and comes out ----


def _bands(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Every band once, in the order of first use, under the name that it has here: those of sensors are not unique."""
    owners: dict[str, dict[str, list[str]]] = {}
    rows = [band for entry in told["takes"] for band in entry["bands"]]
    for band in rows:
        owners.setdefault(band["name"], {}).setdefault(band["sensor_name"], []).append(band["sensor"])
    first = {band["name"]: band for band in reversed(rows)}
    return [_band(first[name], names) for name, names in owners.items()]


def _band(band: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    of = "; ".join(f"{name} of {', '.join(dict.fromkeys(sensors))}" for name, sensors in names.items())
    known = {"name": band["name"], "description": of}
    if band["gsd"] is not None:
        known["gsd"] = band["gsd"]
    if band["common_name"]:
        known["eo:common_name"] = band["common_name"]
    if band["wavelength_nm"] and band["wavelength_nm"][1] < 1e6:  # of radars a wavelength is no colour
        low, high = band["wavelength_nm"]
        known["eo:center_wavelength"] = round((low + high) / 2000, 6)  # micrometres
        known["eo:full_width_half_max"] = round((high - low) / 1000, 6)
    return known


def _structure(shape: dict[str, int], dtype: str) -> dict[str, Any]:
    return {"shape": list(shape.values()), "dim_order": list(shape), "data_type": dtype}


def _input(entry: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    bands = entry["bands"] if "bands" in entry["shape"] else []
    units = " and ".join(dict.fromkeys(units_text(band) for band in bands if band["units"]))
    clipped = "clipped first, as bands say" if any(band["p1"] is not None for band in bands) else ""
    parts = [entry["title"], units and f"values are {units}", clipped, entry["note"]]
    made: dict[str, Any] = {
        "name": entry["name"],
        "description": "; ".join(filter(None, parts)),
        "bands": [_prepared(band) for band in bands],
        "input": _structure(entry["shape"], entry["dtype"]),
        "resize_type": _RESIZE.get(entry["resize"]),
    }
    if entry["statistics"]:
        made["value_scaling"] = [_scaling(band) for band in bands]
    if function := _function(entry, told):
        made["pre_processing_function"] = function
    elif not entry["statistics"]:
        made["value_scaling"] = None
    return made


def _prepared(band: dict[str, Any]) -> str | dict[str, Any]:
    """A band's name, and what is done to it before it is scaled: A is the band, of a ratio A and B its two."""
    if band["ratio_of"]:
        return _calculated(band, "clip(A / (B + 1e-10), -1e4, 1e4)")
    if band["p1"] is not None:
        return _calculated(band, f"clip(A, {band['p1']}, {band['p99']})")
    return str(band["name"])


def _calculated(band: dict[str, Any], expression: str) -> dict[str, Any]:
    return {"name": band["name"], "format": "gdal-calc", "expression": expression}


def _scaling(band: dict[str, Any]) -> dict[str, Any]:
    """Of values in the statistics' units, also where the recorded mean and std are of clipped values in 0..1."""
    low = 0.0 if band["p1"] is None else band["p1"]
    spread = 1.0 if band["p99"] is None else band["p99"] - low
    return {"type": "z-score", "mean": low + band["mean"] * spread, "stddev": band["std"] * spread}


def _function(entry: dict[str, Any], told: dict[str, Any]) -> dict[str, Any] | None:
    """What neither `value_scaling` nor `resize_type` can say."""
    if told["name"] == TERRASENSE.name:
        if not entry["bands"]:
            return None
        return _python("eo_zoo.vlm.engine:prepared", "sides to multiples of 28 pixels, then the model's own processor")
    if entry["resize"] == "spline":
        return _python("eo_zoo.transforms:SplineResize", resizing(told))
    if entry["key"] == "depth":
        function = "eo_zoo.models.multimae_domains:standardize_depth"
        return _python(function, "image by image, after value_scaling and resizing")
    if entry["key"] == "semseg":
        return _python("eo_zoo.models.multimae_domains:classes_of", "before resizing: WorldCover's codes to class ids")
    if not entry["statistics"]:
        return _python(
            "eo_zoo:create_transform", "none were published: standardised by statistics of one's own, stats="
        )
    return None


def _python(expression: str, description: str) -> dict[str, Any]:
    return {"format": "python", "expression": expression, "description": description}


def _output(one: dict[str, Any], record: Record) -> dict[str, Any]:
    vectors = {"embedding", "tile"}  # what scenes are compared by; maps have no task in the specification
    made: dict[str, Any] = {
        "name": one["name"],
        "description": one["what"],
        "tasks": _tasks(record) if record.task or record is TERRASENSE or one["name"] in vectors else [],
        "result": _structure(one["shape"], "int64" if record is TERRASENSE else "float32"),
    }
    if record.task:
        labels = enumerate(record.task.classes)
        made["classification:classes"] = [{"value": i, "name": name, "description": name} for i, name in labels]
        each = record.task.kind == "multi-label"
        function = ("torch:sigmoid", "of each logit") if each else ("torch:softmax", "over the classes")
        made["post_processing_function"] = _python(*function)
    return made


# ---- where it is ----


def _asset(record: Record, told: dict[str, Any]) -> dict[str, Any]:
    if not record.source:
        return {
            "href": record.repository or f"package://eo_zoo/models/{record.name.partition('_')[0]}.py",
            "title": f"{record.title}: random only",
            "type": "text/html" if record.repository else "text/x-python",
            "roles": ["mlm:model", "model"],
            "mlm:artifact_type": "torch.nn.Module",
        }
    page = record is TERRASENSE or record.scheme == "github"
    kind = "safetensors.torch.save_file" if PurePosixPath(record.address).suffix == ".safetensors" else "torch.save"
    made = {
        "href": address(record).replace("/blob/", "/resolve/") or record.source,
        "title": f"Weights of {record.title}",
        "type": "text/html" if page else "application/octet-stream; framework=pytorch",
        "roles": ["mlm:model", "mlm:weights", "weights"],
        "mlm:artifact_type": "transformers.PreTrainedModel.save_pretrained" if record is TERRASENSE else kind,
    }
    if told["size"]:
        made["file:size"] = told["size"]
    # multihashes: the code of the function, the length in bytes, the digest
    if told["sha256"]:
        made["file:checksum"] = f"1220{told['sha256']}"
    elif told["md5"]:
        made["file:checksum"] = f"d50110{told['md5']}"
    return made


def _code(record: Record) -> dict[str, Any]:
    if not record.repository:
        return {}
    code = {"href": record.repository, "title": "The authors' code", "type": "text/html"}
    return {"source_code": code | {"roles": ["mlm:source_code", "code"]}}


def _links(record: Record) -> list[dict[str, str]]:
    links = []
    if record.licence not in _LICENCES:
        links.append({"rel": "license", "href": record.repository, "title": record.terms or record.licence})
    if record.paper.startswith("arXiv:"):
        links.append({"rel": "cite-as", "href": f"https://arxiv.org/abs/{record.paper.removeprefix('arXiv:')}"})
    return links
