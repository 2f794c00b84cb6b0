"""A small weight set under two tables of names, and what tests of weights ask about the cache."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from eo_zoo import weights
from eo_zoo.errors import WeightsError

LAYOUT = "toy-1"
FILE = "toy.safetensors"
REPO = "owner/repo"


def toy(value: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "old.weight": torch.rand(3, 4, generator=generator) + value,
        "old.bias": torch.full((3,), value),
        "old.steps": torch.tensor(7),
        "old.half": torch.ones(5, dtype=torch.bfloat16),
    }


def toy_bytes(tmp_path: Path, value: float = 1.0, *, padding: int = 0) -> bytes:
    path = tmp_path / "made.safetensors"
    save_file(toy(value), path, {"padding": "x" * padding})
    return path.read_bytes()


class Mapping:
    """Old names to new ones, counting its calls."""

    calls = 0

    def __call__(self, tensors):
        self.calls += 1
        unknown = [name for name in tensors if not name.startswith("old.")]
        if unknown:
            raise WeightsError(f"unknown tensors: {unknown}")
        return {name.replace("old.", "new."): tensor for name, tensor in tensors.items()}


def record(name="toy.pretrain", source=f"hf://{REPO}/{FILE}", **kwargs) -> weights.Record:
    return weights.Record(name, source, layout=LAYOUT, licence="Apache-2.0", **kwargs)


def load(source, mapping=None, **kwargs):
    return weights.load(source, mapping or Mapping(), layout=LAYOUT, **kwargs)


def check_toy(tensors, value=1.0):
    expected = Mapping()(toy(value))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


def leftovers(cache: Path) -> list[str]:
    """Whatever is in the cache beside conversions, their notes, pins, hashes and locks."""
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "pins", "hashes", "notes")
        and not (path.parent == cache and path.name.endswith(f"-{LAYOUT}.safetensors"))
    ]  # fmt: skip
