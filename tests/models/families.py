"""What the contract tests need to know of a family beyond its registry entry: a row a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eo_zoo import registry, sensors, weights


@dataclass(frozen=True)
class Family:
    """``smallest`` stands for the family in the quick lane; ``inputs`` makes (x, keyword arguments) for a sensor."""

    smallest: str
    inputs: Callable[[str, str, int], tuple[Any, dict[str, Any]]]
    strides: Callable[[str], tuple[int, ...]] | None  # of features_only, if it is promised


def images(name: str, sensor: str, batch: int) -> tuple[Tensor, dict[str, Any]]:
    size = registry.input_size(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, len(sensors.get_sensor(sensor).bands), size, size, generator=generator)
    return x, {"sensor": sensor}


def smarties_strides(name: str) -> tuple[int, ...]:
    return (8, 8, 8) if name == "smarties_vit_nano" else (16, 16, 16)


FAMILIES = {"smarties": Family("smarties_vit_nano", images, smarties_strides)}


def family_of(name: str) -> Family:
    return FAMILIES[name.partition("_")[0]]


def test_every_family_has_a_row() -> None:
    assert {name.partition("_")[0] for name in weights.RECORDS} == set(FAMILIES)
