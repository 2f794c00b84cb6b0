"""From stored values to what a model takes: units are the caller's, statistics and size the model's."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_zoo import dates, registry, sensors, weights
from eo_zoo.domains import DOUBTFUL, Domains
from eo_zoo.errors import InputError, nearest
from eo_zoo.mmearth import domain_statistics
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.presets import Preset, get_preset
from eo_zoo.sensors import Statistics

Bands = Sequence[str] | Mapping[str, str | Sequence[str]]
Stats = str | Path | Statistics | Mapping[str, str | Path | Statistics]

_logger = logging.getLogger(__name__)


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
        low, high = (bound.item() for bound in x.aminmax())
        if doubt := _doubt(self.statistics, low, high):
            _logger.warning("values from %g to %g, but '%s' expects %s", low, high, self.statistics.name, doubt)

    def extra_repr(self) -> str:
        """What is shown inside the parentheses."""
        return f"{self.statistics.name}, units={self.statistics.units}"


def _doubt(statistics: Statistics, low: float, high: float) -> str:
    """What is expected instead of such values, where no image holds them; an image of zeros is none to doubt."""
    # radars have digital numbers too, but no reflectance that they could be mistaken for
    optical = sensors.get_sensor(statistics.sensor).bands[0].wavelength is not None
    if statistics.units == "dn" and optical and 0 < max(-low, high) <= DOUBTFUL:
        return "dn (reflectance x 10000): reflectance, or normalised already?"
    # resizing may overshoot a little
    if statistics.units == "uint8" and (low < -1 or 0 < high <= 1 or high > 2 * 255):
        return "0 to 255: other units, or normalised already?"
    if statistics.units == "db" and 0 <= low < high:
        return "dB, which of radar are mostly negative: linear power?"
    return ""


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


class Inputs(nn.Module):
    """Inputs by name, as a model of several takes them: bands in its order, normalised, with masks and days.

    An input is (..., bands, H, W), tensor or array of any real type; a series, (..., T, bands, H, W), is one with
    ``<name>_dates`` (datetimes, text or days of the year) and may have ``<name>_mask`` (bool, True: valid; 1 or all
    bands). NaN and nodata are 0 afterwards, which of a series the mask tells.

    Args:
        orders: by input, canonical names of the bands that the model takes, in its order.
        statistics: by input, of these bands; inputs without cannot be given.
        bands: by input, canonical names of the data's bands in order; the model's order if not given, with or without
            the ratio band, which is made where it is not there.
        nodata: the number that means missing, of all inputs or by input.
        differences: inputs whose ratio band is the difference of the two others, as they are in dB.
    """

    def __init__(
        self,
        orders: Mapping[str, tuple[str, ...]],
        statistics: Mapping[str, Statistics],
        *,
        bands: Mapping[str, tuple[str, ...]] | None = None,
        nodata: float | Mapping[str, float] | None = None,
        differences: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.orders, self.bands, self.differences = dict(orders), dict(bands or {}), frozenset(differences)
        self.nodata = dict(nodata) if isinstance(nodata, Mapping) else dict.fromkeys(orders, nodata)
        self.normalize = nn.ModuleDict({name: Normalize(own) for name, own in statistics.items()})

    def forward(self, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """The same inputs in float32; of each series the mask of all values and the days of the year.

        Raises:
            InputError: an input that is unknown or has no statistics, other bands than expected, a mask or dates that
                do not fit, or infinite values.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"expected a dict of inputs by name, {', '.join(self.orders)}; got {type(data).__name__}")
        out: dict[str, Tensor] = {}
        for key in data:
            name, _, companion = str(key).rpartition("_")
            if companion in ("dates", "mask") and name in data:
                continue
            if key not in self.orders:
                raise InputError(f"unknown input '{key}'. {nearest(str(key), self.orders)}")
            x = torch.as_tensor(data[key]).float()
            bands = self._bands(key, x)
            valid = self._valid(key, x, data.get(f"{key}_mask"))
            x, valid = self._ordered(key, x.where(valid, 0), valid, bands)
            out[key] = self._normalized(key, x).where(valid, 0)
            if f"{key}_dates" in data:
                out[f"{key}_mask"], out[f"{key}_dates"] = valid, dates.days_of_year(data[f"{key}_dates"])
        return out

    def _bands(self, name: str, x: Tensor) -> tuple[str, ...]:
        """The data's bands: as given, or the model's, with or without the ratio."""
        order = self.orders[name]
        plain = tuple(band for band in order if not sensors.get_band(band).ratio_of)
        channels = x.shape[-3] if x.ndim > 2 else 0
        bands = self.bands.get(name, plain if channels == len(plain) else order)
        if channels != len(bands):
            raise InputError(f"{name} is {tuple(x.shape)}, expected (..., {len(bands)}, H, W): {', '.join(bands)}")
        return bands

    def _valid(self, name: str, x: Tensor, mask: Any) -> Tensor:
        """Where values are not NaN, not nodata, and not masked."""
        valid = ~x.isnan()
        if (nodata := self.nodata.get(name)) is not None:
            valid &= x != nodata
        if mask is not None:
            mask = torch.as_tensor(mask)
            if mask.dtype != torch.bool or mask.shape not in (x.shape, x[..., :1, :, :].shape):
                raise InputError(
                    f"{name}_mask is {mask.dtype} {tuple(mask.shape)}, expected bool, True where valid, of the shape "
                    f"of {name}, {tuple(x.shape)}, or with 1 for its bands"
                )
            valid &= mask
        return valid

    def _ordered(self, name: str, x: Tensor, valid: Tensor, bands: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Values and validity of the bands that the model takes, a ratio made where it is not among the data's."""
        for band in self.orders[name]:
            if band not in bands:
                first, second = (bands.index(one) for one in sensors.get_band(band).ratio_of)
                a, b = x[..., [first], :, :], x[..., [second], :, :]
                x = torch.cat([x, a - b if name in self.differences else sensors.ratio(a, b)], dim=-3)
                valid = torch.cat([valid, valid[..., [first], :, :] & valid[..., [second], :, :]], dim=-3)
                bands = (*bands, band)
        return sensors.reorder(x, bands, self.orders[name]), sensors.reorder(valid, bands, self.orders[name])

    def _normalized(self, name: str, x: Tensor) -> Tensor:
        if name not in self.normalize:
            raise InputError(
                f"no statistics of {name} were published with these weights: compute them, eo-zoo stats --input "
                f"{name}=YOUR_RASTERS -o stats.json, and give stats='stats.json'"
            )
        return self.normalize[name](x)


def create_transform(
    name: str,
    sensor: str | None = None,
    *,
    bands: Bands | None = None,
    stats: Stats | None = None,
    size: int | None = None,
    preset: str | Preset | None = None,
    nodata: float | Mapping[str, float] | None = None,
) -> nn.Module:
    """The transform a weight set expects: normalise, then resize, as its public evaluation does.

    Args:
        name: model, with or without tag.
        sensor: what the images come from; the model's first sensor if not given, or all of them where a weight set
            takes several together. For MultiMAE the level of "s2", "S2" (L2A) or "S2-L1C".
        bands: names of the images' bands in order; the sensor's own order if not given. For a model of several inputs
            by name, as AnySat, by input: ``{"aerial": ["R", "G", "B", "NIR"]}``, or the name of an order; of MultiMAE
            ``{"s2": ["B4", "B3", "B2"]}``, or ``{"s2": "mmearth"}``.
        stats: other statistics: a recorded set's name, a JSON file, or ``Statistics``. For a model of several inputs
            also by input, as ``eo-zoo stats`` writes them; of MultiMAE also MMEarth's ``*_band_stats.json``.
        size: pixels a side; the model's input size if not given.
        preset: of a model of several inputs, the data set that the data are as: see ``eo_zoo.presets``.
        nodata: of a model of several inputs, the number that means missing, for all or by input; NaN always does.

    Returns:
        A module from images (..., bands, H, W), tensor or array, in the statistics' units (Sentinel-2: digital
        numbers, reflectance x 10000; Sentinel-1: dB; RGB and Umbra: 0..255; Capella: its digital numbers) to normalised
        float32. For a model of several inputs ``Inputs``, from a dict to a dict; nothing is resized. For MultiMAE
        ``Domains``, from a dict of rasters ("s2", "dem", "worldcover") to one of domains.

    Raises:
        InputError: unknown model, sensor, band, statistics or preset, or an option that the model has not.
    """
    record = registry.get_record(name)
    if record.inputs and record.inputs.keys() <= DOMAINS.keys():
        if preset is not None or not isinstance(bands, Mapping | None):
            raise InputError(f"{record.name} has no preset, and bands are given by raster, {{'s2': ['B4', 'B3']}}")
        return _for_domains(record, sensor or "S2", bands or {}, stats, size, nodata)
    if record.inputs:
        if sensor is not None or size is not None or not isinstance(bands, Mapping | None):
            raise InputError(
                f"{record.name} takes inputs by name ({', '.join(record.inputs)}): it has no sensor and no size, and "
                "bands are given by input, {'aerial': ['R', 'G', 'B', 'NIR']}"
            )
        return _for_inputs(record, bands or {}, stats, preset, nodata)
    if preset is not None or nodata is not None or isinstance(bands, Mapping) or isinstance(stats, Mapping):
        raise InputError(
            f"{record.name} takes one image: it has no preset and no nodata, and no bands or stats by input"
        )
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


def _for_inputs(
    record: weights.Record,
    bands: Mapping[str, str | Sequence[str]],
    stats: Stats | None,
    preset: str | Preset | None,
    nodata: float | Mapping[str, float] | None,
) -> Inputs:
    orders = {name: sensors.get_order(order) for name, order in record.inputs.items()}
    recorded: dict[str, Statistics] = {}
    differences: list[str] = []
    if preset is None:
        for own in record.statistics.values():
            recorded |= sensors.statistics_for(own, orders)
    else:
        preset = get_preset(preset) if isinstance(preset, str) else preset
        orders |= {name: channels.order for name, channels in preset.inputs.items()}
        published = {name: own.statistics for name, own in preset.inputs.items() if own.statistics}
        recorded = sensors.statistics_for(published, orders)
        differences = [name for name, channels in preset.inputs.items() if channels.ratio == "difference"]
    if stats is not None:
        recorded |= sensors.statistics_for(stats, orders)
    for name in [*bands, *(nodata if isinstance(nodata, Mapping) else ())]:
        if name not in orders:
            raise InputError(f"unknown input '{name}'. {nearest(str(name), orders)}")
    given = {name: _given(name, own, record.inputs[name], orders[name]) for name, own in bands.items()}
    return Inputs(orders, recorded, bands=given, nodata=nodata, differences=differences)


def _for_domains(
    record: weights.Record,
    sensor: str,
    bands: Mapping[str, str | Sequence[str]],
    stats: Stats | None,
    size: int | None,
    nodata: float | Mapping[str, float] | None,
) -> Domains:
    statistics = domain_statistics(record.statistics, stats, sensor=sensor)
    size = registry.input_size(record.name) if size is None else size
    step = max(domain.stride for domain in DOMAINS.values())
    if size < step or size % step:
        raise InputError(f"size is {size}, expected a multiple of {step} pixels, as labels are {step} pixels wide")
    # L1C has all bands of L2A, and MMEarth's files hold B10 for both
    owners = {"s2": "S2-L1C", "dem": "DEM", "worldcover": "WorldCover"}
    owners |= {name: sensors.sensor_of(order) for name, order in record.inputs.items()}
    for name in [*bands, *(nodata if isinstance(nodata, Mapping) else ())]:
        if name not in owners:
            raise InputError(f"unknown raster or domain '{name}'. {nearest(str(name), owners)}")
    given = {
        name: sensors.get_order(own) if isinstance(own, str) else sensors.resolve_bands(own, owners[name])
        for name, own in {"s2": sensor, **bands}.items()
    }
    missing = dict(nodata) if isinstance(nodata, Mapping) else dict.fromkeys(owners, nodata)
    return Domains(statistics, bands=given, nodata=missing, size=size)


def _given(name: str, bands: str | Sequence[str], own: str, order: tuple[str, ...]) -> tuple[str, ...]:
    """The data's bands, after a check that they are all that the model takes."""
    found = sensors.get_order(bands) if isinstance(bands, str) else sensors.resolve_bands(bands, sensors.sensor_of(own))
    made = {band for band in order if (parts := sensors.get_band(band).ratio_of) and set(parts) <= set(found)}
    missing = [band for band in order if band not in made and band not in found]
    if missing or len(set(found)) < len(found):
        what = f"lack {', '.join(missing)}" if missing else "hold a band twice"
        raise InputError(f"bands of {name}: {', '.join(found)} {what}; the model takes {', '.join(order)}")
    return found


def _resolve(band: str, names: Sequence[str]) -> str:
    """The band of the first of these sensors that has one called so."""
    for name in names:
        with contextlib.suppress(InputError):
            found = sensors.resolve(band, name)
            if found in sensors.get_sensor(name).band_names:
                return found
    raise InputError(f"no band of {' or '.join(names)} is called '{band}'")


def _for_sensor(
    record: weights.Record, sensor: str, bands: Sequence[str] | None, stats: str | Path | Statistics | None, size: int
) -> nn.Sequential:
    if stats is None and sensor not in record.statistics:
        others = ", ".join(sensors.get_sensor(sensor).statistics) or "none; a JSON file will do"
        raise InputError(
            f"{record.name} has statistics for {', '.join(record.statistics)}, none for {sensor}: "
            f"give stats= (recorded for it: {others})"
        )
    stats = record.statistics[sensor] if stats is None else stats
    statistics = stats if isinstance(stats, Statistics) else sensors.get_statistics(stats)
    # by name: a set of statistics may be in a file's order, as EuroSAT's, which is not its sensor's
    names = sensors.get_sensor(sensor).band_names if bands is None else sensors.resolve_bands(bands, sensor)
    normalize = Normalize(statistics.select(names))
    if record.resize == "bicubic":
        return nn.Sequential(normalize, Resize(size))
    # B10 is in the images, but the model does not read it and the public evaluation leaves it out first
    counted = [i for i, band in enumerate(names) if band in record.accepts]
    return nn.Sequential(normalize, SplineResize(size, crop=record.crop, counted=counted or None))
