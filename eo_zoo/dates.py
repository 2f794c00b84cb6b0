"""Dates to days of the year, the numbers that a model of time series is told: 1 January is 1.

AnySat's README says 1 January = 0, but its training (TreeSatAI, FLAIR, PLANTED, S2NAIP) and its demo took Python's
``tm_yday``, which counts from 1. Only for PASTIS it took days since 1 September 2018.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from eo_zoo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LAST = 366  # 31 December of a leap year

_logger = logging.getLogger(__name__)


def day_of_year(value: Any) -> float:
    """The day of the year of one date: 1 January is 1, 31 December 365, or 366 in a leap year.

    Args:
        value: a ``datetime.date`` or ``datetime`` (with a time zone: its day in UTC; without: as it is), a
            ``numpy.datetime64`` (of a month: its first day), ISO text ("2020-02-29", "20200229T103021Z"), or a number,
            which is taken as it is.

    Raises:
        InputError: NaT, NaN, text that is no date, or something else.

    >>> day_of_year("2020-12-31"), day_of_year("2020-01-01T01:00+02:00"), day_of_year(71)
    (366.0, 365.0, 71.0)
    """
    days = _days(value)
    if days.ndim:
        raise InputError(f"expected one date, got {days.shape} of them: days_of_year takes several")
    return float(days)


def days_of_year(values: Any) -> Tensor:
    """The days of the year of many dates: see :func:`day_of_year`.

    Args:
        values: (B, T) of dates, or any other shape: nested lists, an array, or a tensor. The shape stays as it is, so
            that the dates of a batch of one are ``[dates]``.

    Returns:
        float32 on the CPU; a tensor is returned as it is.

    Raises:
        InputError: there are none, their lists are of unequal length, or one is no date.

    Warns:
        Of numbers beyond 0 to 366, by ``logging``: they may be years or whole dates.
    """
    import torch

    days = values if isinstance(values, torch.Tensor) else torch.from_numpy(_days(values).astype(np.float32))
    if not torch.compiler.is_compiling():
        check_range(days)
    return days


def check_range(days: Tensor) -> None:
    """Warn of days beyond a year, which are probably something else; InputError for NaN and none at all."""
    if days.is_meta:
        return
    if not days.numel():
        raise InputError("there are no dates: give a date for each image of the series")
    low, high = (float(day) for day in days.aminmax())
    if low != low:
        raise InputError("the dates hold NaN: give a date for each image, and hide images with a mask instead")
    if low < 0 or high > LAST:
        _logger.warning(
            "dates run from %.10g to %.10g, beyond the days of a year, 0 to %d: give dates as text ('2020-02-29') or "
            "datetimes, or the day of the year, 1 January = 1",
            low,
            high,
            LAST,
        )


def _days(values: Any) -> np.ndarray:
    """Float64, of the shape that the values are nested in."""
    if isinstance(values, (list, tuple)):
        parts = [_days(value) for value in values]
        shapes = sorted({part.shape for part in parts})
        if len(shapes) > 1:
            raise InputError(
                f"the dates are lists of unequal length, {' and '.join(map(str, shapes))}: fill the shorter ones up "
                "with 0, and give a mask that is False there"
            )
        return np.stack(parts) if parts else np.empty(0)
    if isinstance(values, str):
        return _of_dates(np.datetime64(_parsed(values), "D"))
    if isinstance(values, date):
        return _of_dates(np.datetime64(_in_utc(values), "D"))
    array = np.asarray(values)
    if array.dtype.kind == "M":
        return _of_dates(array)
    if array.dtype.kind in "iuf":
        if np.isnan(array).any():
            raise InputError("the dates hold NaN: give a date for each image, and hide images with a mask instead")
        return array.astype(np.float64)
    if array.ndim:  # of texts or objects
        return _days(array.tolist())
    raise InputError(
        f"{values!r} is no date: expected a datetime, numpy.datetime64, ISO text ('2020-02-29') or day of the year"
    )


def _of_dates(dates: Any) -> np.ndarray:
    days = np.asarray(dates).astype("datetime64[D]")
    if np.isnat(days).any():
        raise InputError("the dates hold NaT: give a date for each image, and hide images with a mask instead")
    return np.asarray((days - days.astype("datetime64[Y]")).astype(np.float64) + 1)


def _in_utc(value: date) -> date | None:
    if value != value:  # pandas' NaT calls itself a datetime
        return None
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    return value


def _parsed(text: str) -> date | None:
    try:
        return _in_utc(datetime.fromisoformat(text.strip()))
    except ValueError:
        raise InputError(f"'{text}' is no date in ISO form: write {_nearest_form(text)}") from None


def _nearest_form(text: str) -> str:
    """What a text that begins with a year may be meant to be; else an example."""
    found = re.match(r"\s*(\d{4})\D?(\d{1,2})\D(\d{1,2})(?!\d)", text)
    try:
        return f"'{date(*map(int, found.groups()))}'" if found else "the year first, as '2020-02-29'"
    except ValueError:
        return "a day that exists, as '2020-02-29'"
