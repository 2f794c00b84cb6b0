"""One scene a date, or several side by side, read as one series."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

import numpy as np
from affine import Affine

from eo_zoo.errors import InputError
from eo_zoo.geo.bands import Valid, Values
from eo_zoo.geo.grid import NEAR, Bounds, Grid, name_of
from eo_zoo.geo.scene import Scene

KEPT_OPEN = 128  # files; some systems allow a process 256, and others are open too
COMMON = 0.5  # of the area: dates that share less are of different places
SHOWN = 3  # dates that a sentence lists
# words that hold a date are names of files: those of other dates may differ in satellite and baseline too
DATED = re.compile(r"\S*(?:\d{4}[-_.]\d\d[-_.]\d\d|\d{6,})\S*")


@dataclass(frozen=True)
class Part:
    """A scene of a date: ``kept`` open, or opened again for each reading where there are too many files."""

    date: date
    label: str
    grid: Grid
    open: Callable[[], Scene]
    kept: Scene | None

    @contextmanager
    def scene(self) -> Iterator[Scene]:
        """The scene, open."""
        if self.kept is not None:
            yield self.kept
        else:
            with self.open() as scene:
                yield scene


class Scenes:
    """What :class:`eo_zoo.geo.series.Series` reads where every date has files of its own.

    Dates may cover different parts of ``grid``; what a date does not cover is invalid. Of several scenes of one date,
    the first one valid at a pixel counts.
    """

    def __init__(self, grid: Grid, bands: Sequence[str], parts: Sequence[Part], warnings: list[str]) -> None:
        self.grid = grid
        self.bands = tuple(bands)
        self.dates = tuple(sorted({part.date for part in parts}))
        self.warnings = warnings
        self._parts = parts

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Values, Valid]:
        """As :meth:`eo_zoo.geo.series.Series.read`, of ``bands``."""
        values = np.zeros((len(self.dates), len(self.bands), height, width), np.float32)
        valid = np.zeros(values.shape, bool)
        for part in self._parts:
            first_row, first_col, grid = self.grid.within(part.grid)
            if 0 in (grid.height, grid.width):
                continue
            with part.scene() as opened:
                scene, told = opened.on(grid, self.bands), len(opened.warnings)  # those were gathered at opening
                found, mask = scene.read(row - first_row, col - first_col, height, width)
            at = self.dates.index(part.date)
            new = mask & ~valid[at]
            values[at][new] = found[new]
            valid[at] |= new
            self.warnings.extend(sentence for sentence in scene.warnings[told:] if sentence not in self.warnings)
        return values, valid

    def on(self, grid: Grid) -> Scenes:
        """The same on other pixels."""
        return Scenes(grid, self.bands, self._parts, self.warnings)


def open_scenes(
    openers: Sequence[tuple[date, str, Callable[[], Scene]]],
    bands: Sequence[str],
    stack: ExitStack,
    notes: list[str],
    warnings: list[str],
) -> Scenes:
    """The scenes of these dates, each with all of ``bands``.

    Args:
        openers: date, label and how to open the scene.
        bands: canonical names.
        stack: gets the scenes that stay open.
        notes: gets the scenes' notes, each once.
        warnings: the same for warnings.

    Raises:
        InputError: what a scene's opening raises, a band or cloud mask missing at a date, different CRS
            or places.
    """
    parts: list[Part] = []
    told: tuple[dict[str, list[date]], dict[str, list[date]]] = {}, {}
    masked: dict[bool, date] = {}
    files = 0
    for day, label, opener in openers:
        with ExitStack() as single:
            try:
                scene = single.enter_context(opener())
            except InputError as error:
                raise InputError(f"{day}: {error}") from error
            missing = [band for band in bands if band not in scene.bands]
            if missing:
                raise InputError(
                    f"{day} ({label}): no {', '.join(missing)} at this date; there are {', '.join(scene.bands)}; add "
                    "what is missing, or leave the date out"
                )
            for sentences, kept in zip((scene.notes, scene.warnings), told, strict=True):
                for sentence in sentences:
                    kept.setdefault(sentence, []).append(day)
            masked.setdefault(scene.masked, day)
            files += scene.files
            keep = files <= KEPT_OPEN
            if keep:
                stack.enter_context(single.pop_all())
            parts.append(Part(day, label, scene.grid, opener, scene if keep else None))
    if len(masked) > 1:
        raise InputError(
            f"{masked[False]} has no cloud mask, other dates do; add it, leave the date out, or choose masks 'off'"
        )
    for kept, sentences in zip(told, (notes, warnings), strict=True):
        sentences.extend(_gathered(kept, len({part.date for part in parts})))
    grid = _common(parts)
    coarse = [part for part in parts if _differs(part.grid, grid)]
    if coarse:
        notes.append(f"resampled to the pixels of the finest date ({grid.transform.a:g}): {_days(coarse)}")
    several = [part for part, following in pairwise(parts) if part.date == following.date]
    if several:
        notes.append(f"several images of one date are mosaicked, the first valid one counts: {_days(several)}")
    partial = [part for part in parts if _smaller(part.grid, grid)]
    if partial:
        notes.append(f"cover only a part of the area, the rest of it is invalid at these dates: {_days(partial)}")
    return Scenes(grid, bands, parts, warnings)


def _gathered(told: dict[str, list[date]], count: int) -> Iterator[str]:
    """Sentences of single dates as sentences of the series: those that differ by a date alone become one."""
    alike: dict[str, list[str]] = {}
    for sentence in told:
        alike.setdefault(DATED.sub("", sentence), []).append(sentence)
    for sentences in alike.values():
        days = sorted({day for sentence in sentences for day in told[sentence]})
        text = sentences[0] + (" (and alike)" if len(sentences) > 1 else "")
        yield text if len(days) == count else f"{_listed(days)}: {text}"


def _listed(days: Sequence[date]) -> str:
    more = len(days) - SHOWN
    return ", ".join(str(day) for day in days[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _days(parts: Sequence[Part]) -> str:
    return _listed(sorted({part.date for part in parts}))


# ---- grids ----


def _area(box: Bounds) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _union(boxes: Sequence[Bounds]) -> Bounds:
    left, bottom, right, top = zip(*boxes, strict=True)
    return min(left), min(bottom), max(right), max(top)


def _overlap(boxes: Sequence[Bounds]) -> Bounds:
    left, bottom, right, top = zip(*boxes, strict=True)
    return max(left), max(bottom), min(right), min(top)


def _smaller(grid: Grid, whole: Grid) -> bool:
    """Whether a date leaves out more than a part of its own pixel."""
    pixel = max(grid.transform.a, -grid.transform.e)
    return any(abs(a - b) > pixel / 2 for a, b in zip(grid.bounds, whole.bounds, strict=True))


def _differs(grid: Grid, common: Grid) -> bool:
    rows, columns = grid.axes(common)
    return not (rows.aligned(grid.height) and columns.aligned(grid.width))


def _common(parts: Sequence[Part]) -> Grid:
    """The finest date's pixels over the area that the dates cover together."""
    first = parts[0]
    for part in parts:
        if part.grid.crs != first.grid.crs:
            raise InputError(
                f"the dates have different CRS: {first.date} ({first.label}) {name_of(first.grid.crs)}, {part.date} "
                f"({part.label}) {name_of(part.grid.crs)}; keep those of one tile, or warp them to one CRS with "
                "gdalwarp -t_srs"
            )
    days = {
        day: _union([part.grid.bounds for part in parts if part.date == day])
        for day in dict.fromkeys(part.date for part in parts)
    }
    whole = _union(list(days.values()))
    if _area(_overlap(list(days.values()))) < COMMON * _area(whole):
        largest = max(days, key=lambda day: _area(days[day]))
        other = min(days, key=lambda day: _area(_overlap([days[day], days[largest]])))
        raise InputError(
            f"the dates are of different places: {largest} covers {_box(days[largest])}, {other} {_box(days[other])}; "
            "keep those of one tile, or cut them to one area with gdalwarp -te"
        )
    finest = min((part.grid for part in parts), key=lambda grid: -grid.transform.a * grid.transform.e)
    t, (left, bottom, right, top) = finest.transform, whole
    first_column, last_column = math.floor((left - t.c) / t.a + NEAR), math.ceil((right - t.c) / t.a - NEAR)
    first_row, last_row = math.floor((top - t.f) / t.e + NEAR), math.ceil((bottom - t.f) / t.e - NEAR)
    origin = Affine(t.a, 0, t.c + first_column * t.a, 0, t.e, t.f + first_row * t.e)
    return Grid(first.grid.crs, origin, last_column - first_column, last_row - first_row)


def _box(box: Bounds) -> str:
    return ", ".join(f"{value:.10g}" for value in box)
