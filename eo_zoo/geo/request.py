"""What is asked of a time series, whatever form it comes in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.bands import Values
from eo_zoo.geo.clouds import Clouds
from eo_zoo.geo.scene import NEW_BASELINE
from eo_zoo.values import Conversion, conversion

RATIOS = ("quotient", "difference")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which bands, values and dates are wanted; see :func:`eo_zoo.geo.series.open_series`.

    ``bands`` are canonical names without repeats. ``notes`` and ``warnings`` get what is decided on the way.
    """

    sensor: str
    bands: tuple[str, ...]
    target_units: str
    names: Sequence[str] | None = None
    start: date | None = None
    end: date | None = None
    max_dates: int | None = None
    clouds: Clouds = field(default_factory=Clouds)
    units: str | None = None
    boa_offset: float | None = None
    nodata: float | None = None
    ratio: str = "quotient"
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def choose(self, dates: Sequence[date]) -> list[date]:
        """The days to read, of those there are, in order: from ``start`` to ``end``, thinned evenly to ``max_dates``.

        Raises:
            InputError: none is left.
        """
        there = sorted(set(dates))
        wanted = [day for day in there if (self.start or day) <= day <= (self.end or day)]
        if not wanted:
            raise InputError(
                f"no date from {self.start or 'the first'} to {self.end or 'the last'}; the series has {len(there)}, "
                f"from {there[0]} to {there[-1]}"
            )
        if len(wanted) < len(there):
            self.notes.append(f"{len(wanted)} of {len(there)} dates, from {wanted[0]} to {wanted[-1]}")
        if self.max_dates is not None and len(wanted) > self.max_dates:
            self.notes.append(f"{self.max_dates} of {len(wanted)} dates, evenly thinned")
            places = np.linspace(0, len(wanted) - 1, self.max_dates).round().astype(int)
            wanted = [wanted[place] for place in places]
        return wanted

    def offset(self, baseline: str) -> float | None:
        """``boa_offset``, but None for a date whose Sentinel-2 baseline is known to store dn without one."""
        if self.boa_offset and re.fullmatch(r"\d+(\.\d+)?", baseline) and float(baseline) < NEW_BASELINE:
            sentence = (
                f"boa_offset {self.boa_offset:g} only for dates of Sentinel-2 processing baseline 04.00 and later, or "
                "unknown: earlier ones store dn without it"
            )
            if sentence not in self.notes:
                self.notes.append(sentence)
            return None
        return self.boa_offset

    def combine(self, first: Values, second: Values) -> Values:
        """A radar's third band of its two polarisations."""
        return first - second if self.ratio == "difference" else sensors.ratio(first, second)

    def conversion(self, dtype: np.dtype[Any], scale: Any, offset: Any, units: str | None, baseline: str) -> Conversion:
        """How stored numbers of a date become ``target_units``; see :func:`eo_zoo.values.conversion`."""
        return conversion(
            dtype,
            target_units=self.target_units,
            sensor=self.sensor,
            units=self.units or units,
            scale=scale,
            offset=offset,
            boa_offset=self.offset(baseline),
        )


def as_date(what: str, value: str | date | None) -> date | None:
    """A date of ISO text or of a date or datetime.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, datetime):
        return value.date()
    if value is None or isinstance(value, date):
        return value
    try:
        return datetime.fromisoformat(value).date()
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is {value!r}, expected a date such as 2020-02-19") from error
