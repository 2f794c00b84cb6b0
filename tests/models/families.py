"""What the contract tests need to know of a family beyond its registry entry: a row a family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS


@dataclass(frozen=True)
class Family:
    """What differs between families: see the fields.

    ``smallest`` stands for the family in the quick lane, built with ``small`` there, and all its models in the slow
    lane with ``full``; ``inputs`` makes (x, keyword arguments) from a model, a sensor and a batch size, x being an
    image batch or a dict of tensors; ``pools`` are its own pooling and another one.
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


def anysat_inputs(
    names: Iterable[str], batch: int = 2, extent: float = 60.0, dates: int = 3, masks: bool = True
) -> dict[str, Tensor]:
    """Random inputs of these names over a tile of ``extent`` metres a side."""
    generator = torch.Generator().manual_seed(1)
    data: dict[str, Tensor] = {}
    for name in names:
        one = INPUTS[name]
        side = 1 if name == "modis" else round(extent / one.gsd)
        time = (dates,) if one.series else ()
        data[name] = torch.randn(batch, *time, one.channels, side, side, generator=generator)
        if one.series:
            data[f"{name}_dates"] = torch.randint(1, 366, (batch, dates), generator=generator)
        if one.series and masks:
            data[f"{name}_mask"] = torch.rand(batch, dates, 1, side, side, generator=generator) > 0.3
    return data


def anysat_of_sensor(model: nn.Module, sensor: str, batch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = [name for name, one in INPUTS.items() if sensors.sensor_of(one.order) == sensor]
    return anysat_inputs(["s2", *names] if sensor == "MODIS" else names, batch), {}


def multimae_inputs(names: Iterable[str], batch: int = 2, size: int | tuple[int, int] = 56) -> dict[str, Tensor]:
    """Random images and labels of these domains, of ``size`` pixels."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = (size, size) if isinstance(size, int) else size
    data: dict[str, Tensor] = {}
    for name in names:
        one = DOMAINS[name]
        place = (batch, rows // one.stride, columns // one.stride)
        if one.classes:
            data[name] = torch.randint(one.channels, place, generator=generator)
        else:
            data[name] = torch.randn(place[0], one.channels, *place[1:], generator=generator)
    return data


def multimae_of_sensor(model: nn.Module, sensor: str, batch: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    raster = {"S2": "s2", "S2-L1C": "s2", "DEM": "dem", "WorldCover": "worldcover"}[sensor]
    return multimae_inputs([name for name in RASTERS[raster] if name in model.in_domains], batch), {}


def multimae_strides(name: str) -> tuple[int, ...]:
    return 8, 8, 8


def anysat_strides(name: str) -> tuple[int, ...]:
    return 1, 1, 1


def smarties_strides(name: str) -> tuple[int, ...]:
    return (8, 8, 8) if name == "smarties_vit_nano" else (16, 16, 16)


def mars_strides(name: str) -> tuple[int, ...]:
    return 4, 8, 16, 32


FAMILIES = {
    "anysat": Family("anysat_nano", anysat_of_sensor, anysat_strides, ("token", "avg")),
    "multimae": Family(
        "multimae_eo_base", multimae_of_sensor, multimae_strides, ("global", "avg"),
        small=dict(embed_dim=64, depth=3, num_heads=4),
    ),
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
