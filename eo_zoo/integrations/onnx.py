"""ONNX files of models, each compared with its model in onnxruntime before it is kept.

``torch.onnx.export`` alone takes no dict of inputs, names nothing, and does not know what the numbers mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eo_zoo import registry, sensors
from eo_zoo.errors import InputError, require
from eo_zoo.files import replacing
from eo_zoo.models.smarties import mixing
from eo_zoo.version import __version__

TOLERANCE = 1e-3  # of the largest output, or absolute if that is below 1


def export(model: nn.Module, example: Tensor | Mapping[str, Tensor], path: str | Path, **kwargs: Any) -> Path:
    """Write a model as one ONNX file with fixed shapes, those of the example, and what its numbers mean.

    The file's inputs are called as the dict's keys, or "image"; its output "output", or "output_0", "output_1" and so
    on where there are several. Values are normalised, as the model takes them. Its metadata (strings, what is more than
    one value as JSON): model, weights, licence, inputs (by key: sensor, and the bands' canonical names in order),
    units and statistics (before normalising), arguments, classes (of a published head) and eo_zoo.

    Args:
        model: any model of this package, in eval mode and float32; other modules get a file without metadata.
        example: what the model is called with: images or a dict of tensors. Only the shapes and types stay.
        path: of the file; one that is there is replaced.
        **kwargs: further arguments of the call, constants in the file: ``sensor``, ``bands``, ``patch_size``, ...

    Returns:
        The path.

    Raises:
        InputError: the model cannot take the example, is in training mode or not in float32.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: onnxruntime's output differs from the model's by more than 1e-3; there is no file then.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "onnx")
    path, data = Path(path), _inputs(example)
    _check(model, data)
    with torch.no_grad():
        outputs = len(tree_leaves(model(example, **kwargs)))  # what does not fit is told here, not by a tracer
        graph = torch.export.export(model, (example,), kwargs)
        program: Any = torch.onnx.export(
            graph,
            dynamo=True,
            verbose=False,
            input_names=list(data),
            output_names=["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)],
        )
        program.model.metadata_props.update(_metadata(model, data, kwargs))
        with replacing(path) as part:
            program.save(part, external_data=False)
            _compare(part, model, example, kwargs)
    return path


def _inputs(example: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    data = dict(example) if isinstance(example, Mapping) else {"image": example}
    for name, one in data.items():
        if not isinstance(one, Tensor):
            more = ": eo_zoo.dates.days_of_year makes one of dates" if name.endswith("_dates") else ""
            raise InputError(f"{name} is {type(one).__name__}, expected a tensor{more}")
    return data


def _check(model: nn.Module, data: Mapping[str, Tensor]) -> None:
    if model.training:
        raise InputError("the model is in training mode: call model.eval() first")
    types = {one.dtype for one in (*model.parameters(), *data.values()) if one.is_floating_point()}
    if types - {torch.float32}:
        raise InputError(f"got {' and '.join(sorted(map(str, types)))}, expected float32: convert by .float() first")


def _compare(file: Path, model: nn.Module, example: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise RuntimeError unless onnxruntime gives what the model gives, of the example and of its mirror image."""
    session = require("onnxruntime", "onnx").InferenceSession(file, providers=["CPUExecutionProvider"])
    changes: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x, lambda x: x.flip(-1))
    for change in changes:
        mapped = isinstance(example, Mapping)
        given = {name: change(one) for name, one in example.items()} if mapped else change(example)
        expected = tree_leaves(model(given, **kwargs))
        made = session.run(None, {name: one.cpu().numpy() for name, one in _inputs(given).items()})
        for one, other in zip(expected, made, strict=True):
            apart = float((one.cpu() - torch.from_numpy(other)).abs().max() / one.abs().max().clamp(min=1).cpu())
            if not apart <= TOLERANCE:
                raise RuntimeError(
                    f"onnxruntime's output is {apart:.2g} from the model's, expected at most {TOLERANCE:g}: no file is "
                    "kept. A model that draws random numbers (SMARTIES with mix='random') has no ONNX file"
                )


def _metadata(model: nn.Module, data: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> dict[str, str]:
    record = registry.record_of(model)
    if record is None:
        return {}
    facts = registry.info(model)
    orders = {name: order for name, order in record.inputs.items() if name in data}
    inputs = {name: _named(sensors.sensor_of(order), sensors.get_order(order)) for name, order in orders.items()}
    values = {
        "inputs": inputs or {"image": _image(model, facts, **kwargs)},
        "statistics": facts["statistics"],
        "arguments": kwargs,
    }
    if record.task and getattr(model, "num_classes", 0) == len(record.task.classes):
        values["classes"] = record.task.classes
    text = {"model": record.name, "weights": facts["weights"], "licence": record.licence, "units": facts["units"]}
    return text | {name: json.dumps(one) for name, one in values.items()} | {"eo_zoo": __version__}


def _named(sensor: str | None, bands: Sequence[str]) -> dict[str, Any]:
    return {"sensor": sensor, "bands": list(bands)}


def _image(
    model: Any, facts: Mapping[str, Any], *, bands: Sequence[str] | None = None, sensor: str | None = None, **_: Any
) -> dict[str, Any]:
    """The sensor and the bands of the images of a call."""
    inner = getattr(model, "model", model)  # what features_only gives is around it
    words = sensor or getattr(inner, "sensor", None)
    names = inner.bands if bands is None and sensor is None else mixing(bands, words)[0]
    own = (name for name in facts["sensors"] if {*names} <= {*sensors.get_sensor(name).band_names})
    return _named(words or next(own, facts["sensor"]), names)
