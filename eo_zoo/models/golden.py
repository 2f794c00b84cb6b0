"""Golden values: the output of one forward pass on a fixed input, so that a change of meaning shows.

A hash says that a file's bytes are as they were; a golden that the model makes of them what it made before, whatever
became of this package, torch and timm since.
"""

from __future__ import annotations

import contextlib
import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from eo_zoo import weights
from eo_zoo.errors import WeightsError
from eo_zoo.models._build import StrictLoading, Unfilled
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.version import __version__
from eo_zoo.weights import cache

_logger = logging.getLogger(__name__)

RULE = 1  # of the input and of what is kept of the output; values of another rule are not compared
VALUES = 8
TOLERANCE = 1e-3  # of the output's standard deviation: see docs/verify.md for what was measured
SIZE = 256  # pixels a side of an image at most


def uniform(name: str, shape: Iterable[int]) -> Tensor:
    """Zero mean, unit variance, from numpy's Philox raw stream keyed by crc32(name): any program can rebuild it."""
    shape = tuple(shape)
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape, dtype=np.int64)))
    unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return torch.from_numpy(((unit * 2 - 1) * np.float32(3**0.5)).reshape(shape))


def example(model: Any) -> dict[str, Any]:
    """A sample of everything that a model takes, as the arguments of its call.

    Images have the model's size, but at most 256 pixels a side; AnySat gets a tile of 60 m with three dates of each
    series, MultiMAE 7 x 7 patches of each domain. Values are `uniform` ones, by the inputs' names.
    """
    if hasattr(model, "in_domains"):
        return {"x": {name: _domain(name, 7 * model.patch_size) for name in model.in_domains}}
    if hasattr(model, "inputs"):
        data = {key: one for name in model.inputs for key, one in _input(name).items()}
        return {"data": data, "patch_size": 30, "output": "tile" if model.num_classes else "all"}
    channels, size, _ = model.pretrained_cfg["input_size"]
    return {"x": uniform("image", (1, channels, min(size, SIZE), min(size, SIZE)))}


def _domain(name: str, pixels: int) -> Tensor:
    one = DOMAINS[name]
    side = pixels // one.stride
    if one.classes:
        return (torch.arange(side * side) % one.channels).reshape(1, side, side)
    return uniform(name, (1, one.channels, side, side))


def _input(name: str) -> dict[str, Tensor]:
    one = INPUTS[name]
    side = 1 if name == "modis" else round(60 / one.gsd)
    if not one.series:
        return {name: uniform(name, (1, one.channels, side, side))}
    return {name: uniform(name, (1, 3, one.channels, side, side)), f"{name}_dates": torch.tensor([[60, 180, 300]])}


def measure(model: Any) -> dict[str, Any]:
    """The golden of a model that is filled: eight evenly spaced values of its output, its mean and deviation.

    Raises:
        WeightsError: the output is not finite.
    """
    with _plain():
        torch.default_generator.manual_seed(0)  # SMARTIES mixes two sensors' halves at random
        made = model.eval()(**example(model)).double().flatten()
    picked = made[torch.linspace(0, len(made) - 1, VALUES).round().long()]
    if not made.isfinite().all():
        raise WeightsError(f"{type(model).__name__} gives values that are not finite with these weights")
    spread = made.std(correction=0)
    return {
        "rule": RULE,
        "values": [_rounded(value) for value in picked.tolist()],
        "mean": _rounded(made.mean().item()),
        "std": _rounded(spread.item()),
        "made_with": {"eo_zoo": __version__, "torch": torch.__version__, "timm": version("timm")},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def differs(found: Mapping[str, Any], golden: Mapping[str, Any]) -> float | None:
    """By how much of the output's standard deviation two goldens differ, if that is more than the tolerance."""
    now, then = ([*one["values"], one["mean"], one["std"]] for one in (found, golden))
    apart = max(abs(one - other) for one, other in zip(now, then, strict=True))
    share = apart / golden["std"] if golden["std"] else math.inf if apart else 0.0
    return None if share <= TOLERANCE else share


def build(name: str, **kwargs: Any) -> Any:
    """The model of a weight set, its parameters without values; as it is by default, or with other arguments."""
    with _plain(), Unfilled():
        return timm.create_model(name, **kwargs)


def fill(model: StrictLoading, tensors: dict[str, Tensor], what: str) -> None:
    """Give a model these tensors, themselves and not copies, in float32.

    Raises:
        WeightsError: names, shapes or types do not fit; ``what`` begins the message.
    """
    found = model._matched(tensors, what, own_head=True)
    for name, own in model.state_dict().items():
        if own.is_floating_point() != found[name].is_floating_point():
            raise WeightsError(f"{what} does not fit the model: {name} is {found[name].dtype}, expected {own.dtype}")
    model.load_state_dict(
        {name: one.float() if one.is_floating_point() else one for name, one in found.items()}, assign=True
    )


def remember(
    origin: weights.Origin, tensors: dict[str, Tensor], *, layout: str, cache_dir: str | Path | None = None
) -> None:
    """Keep the golden of a published weight set beside its conversion's hash, the first time that it is read.

    What cannot be kept is no failure: `eo-zoo verify` tries again.
    """
    record = weights.RECORDS.get(origin.name or "")
    if record is None:
        return
    root = weights.cache_root(cache_dir)
    path = cache.conversion(root, Path(record.address).stem, origin.sha256, layout)
    try:
        if cache.wants_golden(path, record.name):
            model = build(record.name)
            fill(model, tensors, str(origin))
            cache.add_golden(path, record.name, measure(model))
    except (OSError, RuntimeError, MemoryError, WeightsError) as error:
        _logger.debug("no golden is kept for %s: %s", record.name, error)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """float32 on the processor, whatever the caller has set, and none of its random numbers used up."""
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        cpu, exact = torch.device("cpu"), torch.autocast("cpu", enabled=False)
        with torch.random.fork_rng(devices=[]), cpu, exact, torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
