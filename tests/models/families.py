"""What the contract tests need to know of a family beyond its registry entry: a row a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eo_zoo import sensors, weights


@dataclass(frozen=True)
class Family:
    """What differs between families: see the fields.

    ``smallest`` stands for the family in the quick lane, built with ``small`` there, and all its models in the slow
    lane with ``full``; ``inputs`` makes (x, keyword arguments) from a model, a sensor and a batch size; ``pools`` are
    its own pooling and another one.
    """

    smallest: str
    inputs: Callable[[nn.Module, str, int], tuple[Any, dict[str, Any]]]
    strides: Callable[[str], tuple[int, ...]] | None  # of features_only, if it is promised
    pools: tuple[str, str]
    small: dict[str, Any] = field(default_factory=dict)
    full: dict[str, Any] = field(default_factory=dict)


def images(model: nn.Module, sensor: str, batch: int) -> Tensor:
    size = model.pretrained_cfg["input_size"][-1]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, len(sensors.get_sensor(sensor).bands), size, size, generator=generator)


def images_of_sensor(model: nn.Module, sensor: str, batch: int) -> tuple[Tensor, dict[str, Any]]:
    return images(model, sensor, batch), {"sensor": sensor}


def images_alone(model: nn.Module, sensor: str, batch: int) -> tuple[Tensor, dict[str, Any]]:
    return images(model, sensor, batch), {}


def smarties_strides(name: str) -> tuple[int, ...]:
    return (8, 8, 8) if name == "smarties_vit_nano" else (16, 16, 16)


def mars_strides(name: str) -> tuple[int, ...]:
    return 4, 8, 16, 32


FAMILIES = {
    "smarties": Family("smarties_vit_nano", images_of_sensor, smarties_strides, ("token", "avg")),
    "mars": Family(
        "mars_base_sar", images_alone, mars_strides, ("avg", "max"),
        small=dict(img_size=64, embed_dim=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8), window_size=2),
        full=dict(img_size=64),
    ),
}  # fmt: skip


def family_of(name: str) -> Family:
    return FAMILIES[name.partition("_")[0]]


def test_every_family_has_a_row() -> None:
    assert {name.partition("_")[0] for name in weights.RECORDS} == set(FAMILIES)
