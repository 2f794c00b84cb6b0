"""What AnySat takes: its eleven inputs, and one clear sentence for whatever does not fit.

Source: the hub configuration of github.com/gastruc/AnySat at e03e72e, and for l7, alos and modis the training's.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eo_zoo import dates, sensors
from eo_zoo.errors import InputError, nearest

CELL = 10.0  # metres; patch sizes are multiples of it
OUTPUTS = ("tile", "patch", "dense", "all")
MANY_PATCHES = 1024  # the public documentation's advice; attention grows with the square


@dataclass(frozen=True, kw_only=True)
class Input:
    """One entry of the model's input.

    A series is (B, T, channels, H, W) with ``<name>_dates`` (B, T) and, if wanted, ``<name>_mask``; else an image is
    (B, channels, H, W). ``gsd`` is in metres per pixel, ``pixels`` a sub-patch's side, ``period`` that of the date
    code in days, ``dropout`` the share of its training, ``normed`` whether features are normed across the dates.
    """

    name: str
    channels: int
    gsd: float
    pixels: int = 1
    series: bool = True
    period: int = 367
    dropout: float = 0.2
    normed: bool = False

    @property
    def cell(self) -> float:
        """Metres a side of a sub-patch."""
        return self.gsd * self.pixels

    @property
    def order(self) -> str:
        """The named order of its bands, see ``eo_zoo.sensors.get_order``."""
        return f"anysat/{self.name}"

    @property
    def shape(self) -> str:
        """What it looks like, for messages."""
        return f"(B, T, {self.channels}, H, W)" if self.series else f"(B, {self.channels}, H, W)"


INPUTS: dict[str, Input] = {
    one.name: one
    for one in (
        Input(name="aerial", channels=4, gsd=0.2, pixels=10, series=False),
        Input(name="aerial-flair", channels=5, gsd=0.2, pixels=10, series=False),
        Input(name="spot", channels=3, gsd=1.0, pixels=10, series=False),
        Input(name="naip", channels=4, gsd=1.25, pixels=8, series=False),
        Input(name="s2", channels=10, gsd=10.0, dropout=0.0, normed=True),
        Input(name="s1-asc", channels=2, gsd=10.0),
        Input(name="s1", channels=3, gsd=10.0),
        Input(name="alos", channels=3, gsd=30.0),
        Input(name="l7", channels=6, gsd=30.0),
        Input(name="l8", channels=11, gsd=10.0, period=366),
        Input(name="modis", channels=7, gsd=250.0),
    )
}


def step_of(names: Sequence[str]) -> int:
    """Metres of which a patch size has to be a multiple for these inputs: 10, or 30 with a sensor of 30 m."""
    return round(max(CELL, *(INPUTS[name].cell for name in names if name != "modis")))


def fitting(extent: float, step: int) -> list[int]:
    """Patch sizes in metres that divide a square of ``extent`` metres a side."""
    return [size for size in range(step, round(extent) + 1, step) if math.isclose(extent % size, 0, abs_tol=1e-6)]


def check(data: Mapping[str, Any], patch_size: int | None, known: Sequence[str]) -> tuple[list[str], int, int]:
    """The inputs' names in their order, the patch size in metres, and patches a side.

    Args:
        data: as ``AnySat.forward`` takes it.
        patch_size: in metres; None for the smallest that the inputs allow, 10 or 30.
        known: inputs that the model was built for.

    Raises:
        InputError: anything is missing, unknown, or does not fit together.
    """
    names = _names(data, known)
    for name in names:
        _check_one(name, data)
    sizes = {name: len(data[name]) for name in names}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"the inputs hold different numbers of samples: {_listed(sizes)}; give the same tiles in each of them"
        )
    extents = {name: round(data[name].shape[-1] * INPUTS[name].gsd, 6) for name in names if name != "modis"}
    if not extents:
        raise InputError("modis goes with others only (one pixel covers the tile): give at least one more input")
    if max(extents.values()) - min(extents.values()) > 1e-6:
        metres = ", ".join(
            f"{name} {extent:g} m ({data[name].shape[-1]} pixels of {INPUTS[name].gsd:g} m)"
            for name, extent in extents.items()
        )
        raise InputError(f"the inputs cover different extents: {metres}; crop or resample them to one")
    extent, step = next(iter(extents.values())), step_of(names)
    if patch_size is None:
        patch_size = step
    return names, patch_size, _patches(patch_size, extent, step, names)


def _names(data: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    if not isinstance(data, Mapping):
        raise InputError(
            f"AnySat takes a dict of inputs by name, got {type(data).__name__}: "
            "{'s2': (B, T, 10, H, W), 's2_dates': (B, T), ...}; names are " + ", ".join(known)
        )
    names = [key for key in data if key in known]
    for key in data:
        name, _, companion = str(key).rpartition("_")
        if companion not in ("dates", "mask"):
            name = key
        if name not in known:
            companions = [f"{one}_{what}" for one in known if INPUTS[one].series for what in ("dates", "mask")]
            raise InputError(f"unknown input {key!r}. {nearest(str(key), [*known, *companions])}")
        if key != name and not INPUTS[name].series:
            raise InputError(f"{key}: {name} is a single image and has none; leave it out")
        if name not in names:
            raise InputError(f"{key} is given without {name}: give both or none of them")
    if not names:
        raise InputError(f"the dict is empty: give at least one of {', '.join(known)}")
    return names


def _check_one(name: str, data: Mapping[str, Any]) -> None:
    one, x = INPUTS[name], data[name]
    if not isinstance(x, Tensor):
        raise InputError(f"{name} is {type(x).__name__}, expected a tensor {one.shape}")
    found = tuple(x.shape)
    if x.ndim != (5 if one.series else 4):
        raise InputError(f"{name} has the shape {found}, expected {one.shape}")
    if found[-3] != one.channels:
        bands = ", ".join(sensors.get_band(band).sensor_name for band in sensors.get_order(one.order))
        raise InputError(f"{name} has {found[-3]} channels, expected {one.channels}: {bands}, as {one.shape}")
    if found[-1] != found[-2]:
        least = min(found[-2:])
        raise InputError(
            f"{name} is {found[-2]} x {found[-1]} pixels, expected a square image: crop it, for example to {least} x "
            f"{least}"
        )
    if 0 in found:
        raise InputError(f"{name} is empty: its shape is {found}; leave it out where there is nothing")
    if not x.is_floating_point():
        raise InputError(f"{name} holds {x.dtype}, expected floats: normalise first, as eo_zoo.create_transform does")
    if name == "modis" and found[-1] != 1:
        raise InputError(f"modis is {found[-2]} x {found[-1]} pixels, expected 1 x 1: one pixel covers the tile")
    if one.series:
        _check_companions(name, data)


def _check_companions(name: str, data: Mapping[str, Any]) -> None:
    x, day, mask = data[name], data.get(f"{name}_dates"), data.get(f"{name}_mask")
    if day is None:
        raise InputError(f"{name} is a time series: give {name}_dates too, {tuple(x.shape[:2])} days of the year")
    if isinstance(day, Tensor) and day.shape != x.shape[:2]:
        raise InputError(
            f"{name}_dates has the shape {tuple(day.shape)}, expected {tuple(x.shape[:2])}: a day for each date of "
            "each sample"
        )
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"{name}_mask holds {kind}, expected a bool tensor that is True where a value is valid")
    if mask.device != x.device:
        raise InputError(f"{name}_mask is on {mask.device}, {name} on {x.device}: move it there")
    if mask.shape not in (x.shape, x[:, :, :1].shape):
        raise InputError(
            f"{name}_mask has the shape {tuple(mask.shape)}, expected that of {name}, {tuple(x.shape)}, or with one "
            "channel"
        )


def _patches(patch_size: int, extent: float, step: int, names: Sequence[str]) -> int:
    if not isinstance(patch_size, numbers.Real):
        raise InputError(f"patch_size is {patch_size!r}, expected a number of metres")
    sizes = fitting(extent, step)
    if not sizes:  # images alone: series always cover a multiple of their pixels
        whole = extent // step * step
        advice = f"crop them to {whole:g} m" if whole else f"give at least {step} m"
        raise InputError(f"the inputs cover {extent:g} m, expected a multiple of {step} m: {advice}")
    if patch_size not in sizes:
        coarse = [name for name in names if name != "modis" and INPUTS[name].cell == step > CELL]
        reason = f" (with {' and '.join(coarse)}, whose pixels are {step} m)" if coarse else ""
        raise InputError(
            f"a patch size of {patch_size} m does not fit: expected a multiple of {step} m{reason} that divides the "
            f"extent of {extent:g} m: {', '.join(map(str, sizes))}"
        )
    return round(extent / patch_size)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def days(name: str, data: Mapping[str, Any]) -> Tensor:
    """Days of the year (B, T), float32, on the device of the series.

    Raises:
        InputError: dates that cannot be read, or another number than the series has.
    """
    x, given = data[name], data[f"{name}_dates"]
    if not isinstance(given, Tensor):
        given = dates.days_of_year(given)
        _check_companions(name, {**data, f"{name}_dates": given})
    elif not torch.compiler.is_compiling():
        dates.check_range(given)
    return given.to(x.device, torch.float32)


def check_values(name: str, x: Tensor, mask: Tensor | None) -> None:
    """Raise InputError where valid values are not finite. Not in a compiled graph, which it would break."""
    if torch.compiler.is_compiling() or x.is_meta:
        return
    bad = ~torch.isfinite(x)
    if mask is not None:
        bad &= mask
    if bad.any():
        kind = f"{name}_mask with False there" if INPUTS[name].series else "0 there"
        raise InputError(
            f"{name} holds {int(bad.sum())} values that are not finite (NaN or infinite) out of {bad.numel()}: "
            f"give {kind}"
        )
