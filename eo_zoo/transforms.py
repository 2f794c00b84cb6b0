"""From stored values to what a model takes: units are the caller's, statistics and size the model's."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_zoo import registry, sensors, weights
from eo_zoo.errors import InputError

_logger = logging.getLogger(__name__)
DOUBTFUL = 10.0  # dn; the darkest water has more, reflectance and normalised values have less


class Normalize(nn.Module):
    """Images in the statistics' units to normalised float32: clip to the 1st..99th percentile, then standardise.

    Args:
        statistics: recorded values, one set a band; (..., bands, H, W) images in that order.
    """

    def __init__(self, statistics: sensors.Statistics) -> None:
        super().__init__()
        self.statistics = statistics

    def forward(self, x: Any) -> Tensor:
        """Normalise a tensor or array (..., bands, H, W) of any real type.

        Raises:
            InputError: values that are NaN or infinite. Set them to 0 after normalising instead.
        """
        x = torch.as_tensor(x).float()
        if not torch.compiler.is_compiling():
            self._check(x)
        return sensors.normalize(x, self.statistics)

    def _check(self, x: Tensor) -> None:
        if not x.numel():
            raise InputError(f"the images are empty: got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise InputError(
                "the images hold NaN or infinite values: replace them, and set them to 0 after normalising"
            )
        # radars have digital numbers too, but no reflectance that they could be mistaken for
        optical = sensors.get_sensor(self.statistics.sensor).bands[0].wavelength is not None
        if self.statistics.units == "dn" and optical and 0 < (highest := x.abs().amax()) <= DOUBTFUL:
            _logger.warning(
                "no value above %g, but '%s' expects dn (reflectance x 10000): reflectance, or normalised already?",
                highest,
                self.statistics.name,
            )

    def extra_repr(self) -> str:
        """What is shown inside the parentheses."""
        return f"{self.statistics.name}, units={self.statistics.units}"


class Resize(nn.Module):
    """Bicubic, antialiased resizing of (..., H, W) to a square of ``size`` pixels, after normalisation as published."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Resize; an image that has the size already is returned as it is."""
        if x.shape[-2:] == (self.size, self.size):
            return x
        flat = x.reshape(-1, 1, *x.shape[-2:])
        out = F.interpolate(flat, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return out.reshape(*x.shape[:-2], self.size, self.size)

    def extra_repr(self) -> str:
        """What is shown inside the parentheses."""
        return f"{self.size}, bicubic, antialias=True"


class SplineResize(nn.Module):
    """Resizing of (..., bands, H, W) by cubic splines, as ``skimage.transform.resize(order=3, anti_aliasing=True)``.

    Where an image shrinks it is blurred first, and values beyond an image's own lowest and highest are clipped to them.

    Args:
        size: pixels a side of the result.
        crop: 1 squeezes the image to the square; less resizes its shorter side to size / crop and cuts out the centre.
        counted: indices of the bands whose lowest and highest value clip all; every band's if not given.
    """

    def __init__(self, size: int, *, crop: float = 1.0, counted: Sequence[int] | None = None) -> None:
        super().__init__()
        self.size, self.crop, self.counted = size, crop, counted

    def forward(self, x: Tensor) -> Tensor:
        """Resize; a side that has its length already is left as it is."""
        height, width = x.shape[-2:]
        if self.crop == 1:
            new = (self.size, self.size)
        else:
            scale = self.size / self.crop / min(height, width)
            new = (round(height * scale), round(width * scale))
        counted = x if self.counted is None else x[..., list(self.counted), :, :]
        low, high = (bound(counted, dim=(-3, -2, -1), keepdim=True) for bound in (torch.amin, torch.amax))
        rows, columns = spline_matrix(height, new[0]).to(x), spline_matrix(width, new[1]).to(x)
        out = (rows @ x @ columns.T).clamp(low, high)
        top, left = ((length // 2) - self.size // 2 for length in new)
        return out[..., top : top + self.size, left : left + self.size]

    def extra_repr(self) -> str:
        """What is shown inside the parentheses."""
        return f"{self.size}, cubic spline" + (f", crop={self.crop}" if self.crop != 1 else "")


# A constant in a graph.
@torch.compiler.assume_constant_result
def spline_matrix(old: int, new: int) -> Tensor:
    """The (new, old) matrix that resizes one axis: blur where it shrinks, spline coefficients, their evaluation.

    All three mirror the image at the centre of its last pixel. A blur has the standard deviation
    (old / new - 1) / 2 pixels and reaches four of them.
    """
    return torch.from_numpy(_spline_matrix(old, new))


@functools.lru_cache(maxsize=64)
def _spline_matrix(old: int, new: int) -> np.ndarray:
    # kept as an array: a tensor that is made while a graph is exported must not outlive that
    if old == new:
        return np.eye(old, dtype=np.float32)

    def mirrored(first: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Rows that give each pixel of ``first`` + 0, 1, ... its weight, with those outside folded back."""
        period = max(2 * (old - 1), 1)
        index = (first[:, None] + np.arange(weights.shape[1])) % period
        matrix = np.zeros((len(first), old))
        np.add.at(matrix, (np.arange(len(first))[:, None], np.minimum(index, period - index)), weights)
        return matrix

    sigma = max(0.0, (old / new - 1) / 2)
    reach = int(4 * sigma + 0.5)
    blur = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2) if reach else np.ones(1)
    pixels = np.arange(old)
    blurred = mirrored(pixels - reach, np.tile(blur / blur.sum(), (old, 1)))
    # the cubic B-spline is 2/3 at its centre and 1/6 a pixel away
    coefficients = np.linalg.inv(mirrored(pixels - 1, np.tile([1 / 6, 2 / 3, 1 / 6], (old, 1))))
    place = (np.arange(new) + 0.5) * old / new - 0.5
    t = place - np.floor(place)
    cubes = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1) / 6
    evaluated = mirrored(np.floor(place).astype(int) - 1, cubes)
    return (evaluated @ coefficients @ blurred).astype(np.float32)


class Together(nn.Module):
    """Images of several sensors in one tensor: each sensor's bands go through its own transform.

    Args:
        parts: for each sensor the indices of its bands, and its transform.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[int], nn.Module]]) -> None:
        super().__init__()
        self.indices = [list(indices) for indices, _ in parts]
        self.transforms = nn.ModuleList(transform for _, transform in parts)

    def forward(self, x: Any) -> Tensor:
        """(..., bands, H, W), tensor or array, to normalised float32 of the model's size, the bands where they were."""
        x = torch.as_tensor(x).float()
        bands = sum(map(len, self.indices))
        if x.ndim < 3 or x.shape[-3] != bands:
            raise InputError(f"expected images (..., {bands} bands, H, W), got {tuple(x.shape)}")
        parts = zip(self.indices, self.transforms, strict=True)
        made = torch.cat([transform(x[..., indices, :, :]) for indices, transform in parts], dim=-3)
        order = [index for indices in self.indices for index in indices]
        return made[..., [order.index(band) for band in range(bands)], :, :]


def create_transform(
    name: str,
    sensor: str | None = None,
    *,
    bands: Sequence[str] | None = None,
    stats: str | Path | None = None,
    size: int | None = None,
) -> nn.Module:
    """The transform a weight set expects: normalise, then resize, as its public evaluation does.

    Args:
        name: model, with or without tag.
        sensor: what the images come from; the model's first sensor if not given, or all of them where a weight set
            takes several together.
        bands: names of the images' bands in order; the sensor's own order if not given.
        stats: other statistics: a recorded set's name or a JSON file.
        size: pixels a side; the model's input size if not given.

    Returns:
        A module from images (..., bands, H, W), tensor or array, in the statistics' units (Sentinel-2: digital
        numbers, reflectance x 10000; Sentinel-1: dB; RGB and Umbra: 0..255; Capella: its digital numbers) to normalised
        float32.

    Raises:
        InputError: unknown model, sensor, band or statistics.
    """
    record = registry.get_record(name)
    size = registry.input_size(record.name) if size is None else size
    if size < 1:
        raise InputError(f"size is {size}, expected 1 pixel or more")
    if not record.together or sensor is not None or stats is not None:
        return _for_sensor(record, sensors.get_sensor(sensor or record.sensors[0]).name, bands, stats, size)
    names = record.bands if bands is None else tuple(_resolve(band, record.sensors) for band in bands)
    parts = []
    for one in record.sensors:
        indices = [i for i, band in enumerate(names) if band in sensors.get_sensor(one).band_names]
        if indices:
            parts.append((indices, _for_sensor(record, one, [names[i] for i in indices], None, size)))
    return Together(parts)


def _resolve(band: str, names: Sequence[str]) -> str:
    """The band of the first of these sensors that has one called so."""
    for name in names:
        with contextlib.suppress(InputError):
            found = sensors.resolve(band, name)
            if found in sensors.get_sensor(name).band_names:
                return found
    raise InputError(f"no band of {' or '.join(names)} is called '{band}'")


def _for_sensor(
    record: weights.Record, sensor: str, bands: Sequence[str] | None, stats: str | Path | None, size: int
) -> nn.Sequential:
    if stats is None and sensor not in record.statistics:
        others = ", ".join(sensors.get_sensor(sensor).statistics) or "none; a JSON file will do"
        raise InputError(
            f"{record.name} has statistics for {', '.join(record.statistics)}, none for {sensor}: "
            f"give stats= (recorded for it: {others})"
        )
    statistics = sensors.get_statistics(stats if stats is not None else record.statistics[sensor])
    # by name: a set of statistics may be in a file's order, as EuroSAT's, which is not its sensor's
    names = sensors.get_sensor(sensor).band_names if bands is None else sensors.resolve_bands(bands, sensor)
    normalize = Normalize(statistics.select(names))
    if record.resize == "bicubic":
        return nn.Sequential(normalize, Resize(size))
    # B10 is in the images, but the model does not read it and the public evaluation leaves it out first
    counted = [i for i, band in enumerate(names) if band in record.accepts]
    return nn.Sequential(normalize, SplineResize(size, crop=record.crop, counted=counted or None))
