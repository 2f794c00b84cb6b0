"""Cloud masks: which pixels a scene classification or a cloud probability takes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader
from rasterio.windows import Window

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.sources import GDAL_ERRORS

MASKS = ("auto", "scl", "probability", "off")
# Sentinel-2's scene classification: no data, saturated or defective, cloud shadow, cloud of medium and of high
# probability, thin cirrus. Snow (11) and unclassified pixels (7) are ground.
SCL_INVALID = (0, 1, 3, 8, 9, 10)

Mask = TypeVar("Mask")


@dataclass(frozen=True)
class Clouds:
    """How clouds become invalid pixels.

    Attributes:
        masks: "auto" uses a scene classification if there is one, else a probability; "scl" or "probability" ask for
            one, which must be there; "off" for none.
        scl_invalid: classes of Sentinel-2's SCL (0 to 11) that are invalid.
        max_probability: of clouds, 0 to 100; what lies above is invalid. Unknown probabilities (NaN, negative) are too.

    Raises:
        InputError: values that make no sense.
    """

    masks: str = "auto"
    scl_invalid: tuple[int, ...] = SCL_INVALID
    max_probability: float = 50.0

    def __post_init__(self) -> None:
        if self.masks not in MASKS:
            raise InputError(f"masks is {self.masks!r}, expected one of {', '.join(MASKS)}")
        wrong = [number for number in self.scl_invalid if number not in range(12)]
        if wrong:
            raise InputError(f"scl_invalid holds {wrong[0]!r}, expected SCL classes, whole numbers from 0 to 11")
        if not 0 <= self.max_probability <= 100:
            raise InputError(f"max_probability is {self.max_probability!r}, expected per cent, 0 to 100")

    def choose(self, there: Mapping[str, Mask], where: str) -> tuple[str, Mask] | None:
        """The kind of mask to use and the mask, of those that are there.

        Raises:
            InputError: the one asked for is missing.
        """
        if self.masks == "off":
            return None
        if self.masks != "auto" and self.masks not in there:
            raise InputError(
                f"{where}: no {'SCL band' if self.masks == 'scl' else 'cloud probability'} found beside the image "
                f"(found: {', '.join(there) or 'none'}); add it, or choose masks 'auto' or 'off'"
            )
        kinds: Iterable[str] = ("scl", "probability") if self.masks == "auto" else (self.masks,)
        return next(((kind, there[kind]) for kind in kinds if kind in there), None)

    def clear(self, kind: str, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where a mask's values, of any shape, say that the ground is seen."""
        if kind == "scl":
            return ~np.isin(stored, self.scl_invalid)
        return (stored >= 0) & (stored <= self.max_probability)

    def note(self, kind: str, label: str) -> str:
        """The rule in words."""
        if kind == "scl":
            return f"invalid by {label}: SCL classes {', '.join(str(number) for number in self.scl_invalid)}"
        return f"invalid by {label}: cloud probability above {self.max_probability:g} %"


@dataclass(frozen=True)
class CloudBand:
    """A cloud mask in a file, on pixels of its own."""

    label: str
    dataset: DatasetReader
    grid: Grid  # of the file
    number: int
    kind: str
    rule: Clouds

    def clear(self, other: DatasetReader, window: Window) -> npt.NDArray[np.bool_]:
        """Whether pixels of another file see the ground, bool (height, width) of the window of that file.

        A pixel's mask is the one at its centre; where the mask does not reach, nothing is known, so it is not clear.

        Raises:
            InputError: the file is corrupt.
        """
        rows, columns = Grid(self.grid.crs, other.transform, other.width, other.height).axes(self.grid)
        row, row_inside = rows.nearest(window.row_off, window.height)
        column, column_inside = columns.nearest(window.col_off, window.width)
        top, left = int(row.min()), int(column.min())
        part = Window(left, top, int(column.max()) - left + 1, int(row.max()) - top + 1)
        try:
            stored = self.dataset.read(self.number, window=part)
        except GDAL_ERRORS as error:
            raise InputError(f"{self.label}: cannot be read ({error}); the file may be corrupt") from error
        clear = self.rule.clear(self.kind, stored)[np.ix_(row - top, column - left)]
        return clear & row_inside[:, None] & column_inside
