"""From stored values to the bytes that are shown: as they are, by a palette, or stretched between two values a band."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from eo_zoo.errors import InputError

Limits = tuple[float, float]
Stored = npt.NDArray[Any]  # (bands, height, width), of a file's own type
Bytes = npt.NDArray[np.uint8]

EXPECTED = (
    'expected "none", two percentiles as (2, 98), or the values to show as 0 and 255, as "0:3000" or ((0, 3000),)'
)


@dataclass(frozen=True)
class Stretch:
    """What a user asks for; without either, values are shown as they are.

    Args:
        percentiles: of each band's valid pixels, shown as 0 and 255.
        ranges: values shown as 0 and 255, one pair for all bands or one for each.
    """

    percentiles: Limits | None = None
    ranges: tuple[Limits, ...] = ()

    @classmethod
    def of(cls, stretch: object) -> Self | None:
        """From ``"none"``, ``"2,98"`` or ``(2, 98)``, ``"0:3000,0:2500,0:2000"`` or pairs of numbers; None stays.

        Raises:
            InputError: it is none of these.
        """
        if stretch is None:
            return None
        if isinstance(stretch, str):
            if stretch.strip().lower() == "none":
                return cls()
            parts = [part.split(":") for part in re.split(r"\s*,\s*", stretch.strip())]
            stretch = [part[0] if len(part) == 1 else part for part in parts]
        if isinstance(stretch, Sequence) and stretch:
            pairs = [value for value in stretch if isinstance(value, Sequence) and not isinstance(value, str)]
            if not pairs and len(stretch) == 2:
                low, high = _pair(stretch)
                if not 0 <= low < high <= 100:
                    raise InputError(f"stretch: the percentiles are {low:g} and {high:g}, expected 0 to 100, rising")
                return cls(percentiles=(low, high))
            if len(pairs) == len(stretch) and all(len(pair) == 2 for pair in pairs):
                return cls(ranges=tuple(_pair(pair) for pair in pairs))
        raise InputError(f"stretch is {stretch!r}, {EXPECTED}")


def _pair(values: Sequence[Any]) -> Limits:
    try:
        low, high = float(values[0]), float(values[1])
    except (TypeError, ValueError) as error:
        raise InputError(f"stretch holds {values!r}, {EXPECTED}") from error
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise InputError(f"stretch holds {low:g} and {high:g}, expected two different finite numbers")
    return low, high


@dataclass(frozen=True)
class Tones:
    """How stored values become bytes, the same for every pixel of a picture.

    Args:
        ranges: values shown as 0 and 255, one pair a band; without any, values are shown as they are, within 0..255.
        palette: (n, 3), the colour of each value of the only band.
    """

    ranges: tuple[Limits, ...] = ()
    palette: Bytes | None = None

    def apply(self, values: Stored) -> Bytes:
        """(bands, height, width) of one or three bands to (height, width, 3); NaN counts as 0."""
        if self.palette is not None:
            return self.palette[np.clip(values[0], 0, len(self.palette) - 1)]
        shown = np.empty((*values.shape[1:], 3), np.uint8)
        ranges = self.ranges or [None] * len(values)
        for i, (band, limits) in enumerate(zip(values, ranges, strict=True)):
            shown[..., i] = _bytes(band, limits)
        if len(values) == 1:
            shown[..., 1:] = shown[..., :1]
        return shown


def _bytes(band: Stored, limits: Limits | None) -> Bytes:
    if limits is None and band.dtype == np.uint8:
        return band
    wide = band.dtype.itemsize > 2 and band.dtype != np.float32
    values = np.nan_to_num(band.astype(np.float64 if wide else np.float32), copy=False)
    if limits is not None:
        low, high = limits
        values -= low
        values *= 255 / (high - low)
    values += 0.5
    return np.clip(values, 0, 255.5, out=values).astype(np.uint8)


def stretched(
    stretch: Stretch, values: Stored, valid: npt.NDArray[np.bool_], names: Sequence[str]
) -> tuple[Tones, str]:
    """The tones for a picture, and what was decided in words.

    Args:
        stretch: what is asked for.
        values: (bands, height, width), a sample of the whole picture.
        valid: the same shape.
        names: of the bands.

    Raises:
        InputError: no pixel of the sample is valid, all are equal, or there are not as many ranges as bands.
    """
    if stretch.ranges:
        ranges = stretch.ranges * (len(names) if len(stretch.ranges) == 1 else 1)
        if len(ranges) != len(names):
            raise InputError(f"stretch has {len(ranges)} ranges for {len(names)} bands; give one, or one for each")
        return Tones(ranges), f"shown from {_listed(ranges, names)}, as given"
    if stretch.percentiles is None:
        return Tones(), "values shown as they are, 0 to 255"
    known = [band[mask] for band, mask in zip(values, valid, strict=True)]
    if not any(band.size for band in known):
        raise InputError("no valid pixel was found, all is nodata: is nodata right?")
    if all(band.size == 0 or band.min() == band.max() for band in known):
        raise InputError(
            f"all valid pixels have the value {next(band[0] for band in known if band.size):g}: nothing to stretch; "
            'give stretch="none", or the values to show as 0 and 255'
        )
    ranges = tuple(_between(band, stretch.percentiles) for band in known)
    low, high = stretch.percentiles
    return Tones(ranges), f"stretched from percentile {low:g} to {high:g}: {_listed(ranges, names)}"


def _between(band: npt.NDArray[Any], percentiles: Limits) -> Limits:
    """Values at two percentiles; the least and the greatest where these are equal, as of a mask."""
    if not band.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(band, percentiles))
    if low == high:
        low, high = float(band.min()), float(band.max())
    return low, high if high > low else low + 1


def _listed(ranges: Sequence[Limits], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {low:.5g} to {high:.5g}" for name, (low, high) in zip(names, ranges, strict=True))
