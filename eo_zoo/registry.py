"""What the package holds: names, records, and models ready for use."""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import nn

# models is imported for what it does: it fills the records
from eo_zoo import models, sensors, weights  # noqa: F401
from eo_zoo.errors import DownloadError, InputError, nearest


def list_models(filter: str = "*") -> list[str]:
    """Names of the architectures, sorted.

    Args:
        filter: a shell pattern ("smarties*"), or a part of the architecture's name; case does not matter.
    """
    return sorted({name.partition(".")[0] for name in weights.RECORDS if _matches(name.partition(".")[0], filter)})


def _matches(name: str, filter: str) -> bool:
    pattern = filter if any(c in filter for c in "*?[") else f"*{filter}*"
    return fnmatch.fnmatchcase(name, pattern.lower())


def list_tags(name: str) -> list[str]:
    """Full names (architecture.tag) of the weight sets of one architecture, the default first."""
    return [full for full in weights.RECORDS if full.partition(".")[0] == name]


def input_size(name: str) -> int:
    """Pixels a side of the square images a weight set was made for."""
    return int(timm.get_pretrained_cfg(get_record(name).name, allow_unregistered=False).input_size[-1])


def parameter_count(name: str) -> int:
    """Number of parameters of an architecture, without its head."""
    with torch.device("meta"):
        model = timm.create_model(get_record(name).name, num_classes=0)
    return sum(parameter.numel() for parameter in model.parameters())


def get_record(name: str) -> weights.Record:
    """The weight record of "architecture.tag", or of an architecture's default tag.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    if name in weights.RECORDS:
        return weights.RECORDS[name]
    tags = list_tags(name)
    if tags:
        return weights.RECORDS[tags[0]]
    architecture = name.partition(".")[0]
    if architecture.startswith("terrasense"):
        raise InputError(
            f"'{name}' answers in words: eo_zoo.vlm.TerraSense, eo-zoo ask, detect ...; see docs/terrasense.md"
        )
    known = list_tags(architecture) or list_models()
    raise InputError(f"unknown model '{name}'. {nearest(name, known)}")


def record_of(model: nn.Module) -> weights.Record | None:
    """The weight record that a model was configured by, whatever weights it holds; None if it is not one of ours."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return weights.RECORDS.get(f"{config.get('architecture')}.{config.get('tag')}")


def create_model(
    name: str,
    pretrained: bool = True,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A model in eval mode, by default with its verified weights.

    ``timm.create_model`` makes the same module, but random unless ``pretrained=True`` is given and in train mode.

    Args:
        name: architecture, or architecture.tag.
        pretrained: False gives random weights.
        weights: a local checkpoint instead of the published one; as strictly checked, but called unverified. Or
            ``github://OWNER/REPO/TAG/ASSET``, an asset of a release there, checked by what GitHub states of it.
        cache_dir: where downloads and converted weights are kept.
        **kwargs: for the model: ``bands``, ``sensor``, ``num_classes``, ``features_only``, ``img_size``, ...

    Raises:
        InputError: unknown name, or arguments that do not fit.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights cannot be fetched.

    >>> create_model("smarties_vit_nano", sensor="S1").num_features
    128
    """
    record = get_record(name)
    if weights is not None and not pretrained:
        raise InputError(f"pretrained=False asks for random weights, but weights={weights} was given: leave one out")
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    if weights is not None:
        overlay = {**overlay, "file": str(weights) or "."}  # an empty path must not mean the published weights
    model = timm.create_model(
        record.name, pretrained=pretrained, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **kwargs
    )
    return model.eval()


def download(name: str, *, cache_dir: str | Path | None = None) -> weights.Origin:
    """Fetch and verify a weight set and keep it, converted, in the cache, without building the model.

    Raises:
        InputError: unknown name.
        WeightsError: what came is damaged, not what it was at first use, or does not fit the architecture.
        DownloadError: it cannot be fetched.
    """
    record = get_record(name)
    with torch.device("meta"):
        model = timm.create_model(record.name)
    return model.obtain(record, cache_dir=cache_dir, own_head=record.task is not None)[1]


def download_all(name: str, *, cache_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """`download` of every weight set of one architecture, one after another; a failure does not stop the others.

    Returns:
        For each, in the order of `list_tags`: name, size (bytes of the official file), sha256 and verified (None where
        it failed), from ("fetched", "cache" or "package"), and error (None, or the sentence).

    Raises:
        InputError: unknown name, one of a single weight set, or of an architecture without published weights.
    """
    weights.require_published(get_record(name))
    if name not in list_models():
        raise InputError(f"'{name}' is one weight set: for all, give the architecture alone, {name.partition('.')[0]}")
    rows = []
    for full in list_tags(name):
        record = weights.RECORDS[full]
        row = {"name": full, "size": record.size, "sha256": None, "verified": None, "from": None, "error": None}
        rows.append(row)
        try:
            cached = weights.is_cached(record, layout=record.layout, cache_dir=cache_dir)
            origin = download(full, cache_dir=cache_dir)
            size = record.size or weights.pinned(record, cache_dir=cache_dir).get("size")
        except (InputError, DownloadError, OSError) as error:
            row["error"] = str(error)
        else:
            place = "cache" if cached else "package" if record.scheme == "package" else "fetched"
            row |= {"size": size, "sha256": origin.sha256, "verified": origin.verified, "from": place}
    return rows


def table(filter: str = "*") -> list[dict[str, Any]]:
    """One row for each weight set whose full name, or architecture's, matches as in ``list_models``.

    Returns:
        name, title, task, sensors, licence and parameters (without a head) of each.
    """
    rows = []
    for name in list_models():
        matching = [full for full in list_tags(name) if _matches(full, filter) or _matches(name, filter)]
        parameters = parameter_count(name) if matching else 0
        for full in matching:
            record = weights.RECORDS[full]
            rows.append(
                {
                    "name": full,
                    "title": record.title,
                    "task": record.task.kind if record.task else None,
                    "sensors": list(record.sensors),
                    "licence": record.licence,
                    "parameters": parameters,
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of ``table`` as the README shows them."""
    lines = ["| model.tag | what | parameters | sensors | licence |", "|---|---|---:|---|---|"]
    for row in rows:
        size = f"{row['parameters'] / 1e6:.0f} M"
        lines.append(f"| `{row['name']}` | {row['title']} | {size} | {', '.join(row['sensors'])} | {row['licence']} |")
    return "\n".join(lines)


def _input(order: str) -> dict[str, Any]:
    bands = [sensors.get_band(name).sensor_name for name in sensors.get_order(order)]
    return {"sensor": sensors.sensor_of(order), "bands": bands}


def info(model: str | nn.Module) -> dict[str, Any]:
    """Everything a user should know before using a weight set, as plain JSON-able values.

    Args:
        model: architecture or architecture.tag, or a model, for which ``weights`` says what it really holds:
            verified, unverified (a local file) or random.

    Returns:
        name, title, description, sensor (the default one, or all that are taken together), bands of it (name, the
        sensor's own name, wavelength in nm, metres per pixel), sensors, accepts (all bands it can take), units,
        statistics (by sensor), inputs (of a model that takes a dict, by key: the sensor, and its names of the bands in
        order), gsd (by sensor: metres per pixel seen in training, lowest and highest), task (None for features; else
        kind, classes in the order of the logits, data_set, method, metric, the paper's result in per cent or None, and
        size, the pixels a side of the data set's images), licence, terms, citation, paper, repository, trained_on,
        source (empty where no weights are published), size (bytes), sha256, md5, parameters, weights. Size and hash are
        None where the publisher's are not known and this machine has not pinned one at first use.

    Raises:
        InputError: unknown name; the message gives the nearest.
    """
    if isinstance(model, str):
        record, held = get_record(model), "not loaded"
    else:
        found = record_of(model)
        if found is None:
            raise InputError(f"{type(model).__name__} is not a model of eo_zoo: expected one of {list_models()}")
        record, held = found, str(getattr(getattr(model, "model", model), "weights_origin", None) or "random")
    description = (model_entrypoint(record.name.partition(".")[0]).__doc__ or "").partition("\n")[0]
    return recorded(record, description) | {"parameters": parameter_count(record.name), "weights": held}


def recorded(record: weights.Record, description: str) -> dict[str, Any]:
    """What a record says, and this machine's pin of its file: `info` without parameters and weights."""
    pin = weights.pinned(record)
    used = record.sensors if record.together else record.sensors[:1]
    accepts = [band for name in used for band in sensors.get_sensor(name).bands if band.name in record.accepts]
    units = [sensors.get_statistics(record.statistics[name]).units for name in used if name in record.statistics]
    return {
        "name": record.name,
        "title": record.title,
        "description": description,
        "sensor": " and ".join(used),
        "bands": [
            {"name": b.name, "sensor_name": b.sensor_name, "wavelength_nm": b.wavelength, "gsd": b.gsd} for b in accepts
        ],
        "sensors": list(record.sensors),
        "accepts": list(record.accepts),
        "units": " and ".join(units),
        "statistics": {name: sensors.get_statistics(own).to_dict() for name, own in record.statistics.items()},
        "inputs": {key: _input(order) for key, order in record.inputs.items()},
        "gsd": dict(record.gsd),
        "task": dataclasses.asdict(record.task) | {"classes": list(record.task.classes)} if record.task else None,
        "licence": record.licence,
        "terms": record.terms,
        "citation": record.citation,
        "paper": record.paper,
        "repository": record.repository,
        "trained_on": record.trained_on,
        "source": record.source,
        "size": record.size or pin.get("size"),
        "sha256": record.sha256 or pin.get("sha256"),
        "md5": record.md5,
    }
