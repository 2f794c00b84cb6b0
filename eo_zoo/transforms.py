"""From stored values to what a model takes: units are the caller's, statistics and size the model's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_zoo import registry, sensors
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
        if not x.isfinite().all():
            raise InputError(
                "the images hold NaN or infinite values: replace them, and set them to 0 after normalising"
            )
        if self.statistics.units == "dn" and 0 < x.abs().amax() <= DOUBTFUL:
            _logger.warning(
                "no value above %g, but '%s' expects dn (reflectance x 10000): reflectance, or normalised already?",
                x.abs().amax(),
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


def create_transform(
    name: str,
    sensor: str | None = None,
    *,
    bands: Sequence[str] | None = None,
    stats: str | Path | None = None,
    size: int | None = None,
) -> nn.Sequential:
    """The transform a weight set expects: normalise, then resize, as its public evaluation does.

    Args:
        name: model, with or without tag.
        sensor: what the images come from; the model's first sensor if not given.
        bands: names of the images' bands in order; the sensor's own order if not given.
        stats: other statistics: a recorded set's name or a JSON file.
        size: pixels a side; the model's input size if not given.

    Returns:
        A module from images (..., bands, H, W), tensor or array, in the statistics' units (Sentinel-2: digital
        numbers, reflectance x 10000; Sentinel-1: dB; RGB: 0..255) to normalised float32.

    Raises:
        InputError: unknown model, sensor, band or statistics.
    """
    record = registry.get_record(name)
    sensor = sensors.get_sensor(sensor or record.sensors[0]).name
    if stats is None and sensor not in record.statistics:
        others = ", ".join(sensors.get_sensor(sensor).statistics) or "none; a JSON file will do"
        raise InputError(
            f"{record.name} has statistics for {', '.join(record.statistics)}, none for {sensor}: "
            f"give stats= (recorded for it: {others})"
        )
    statistics = sensors.get_statistics(stats if stats is not None else record.statistics[sensor])
    # by name: a set of statistics may be in a file's order, as EuroSAT's, which is not its sensor's
    names = sensors.get_sensor(sensor).band_names if bands is None else sensors.resolve_bands(bands, sensor)
    statistics = statistics.select(names)
    return nn.Sequential(Normalize(statistics), Resize(size or registry.input_size(record.name)))
