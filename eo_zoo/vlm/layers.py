"""Bands of raster files in the pixels of a picture, read whole, reduced or in windows."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.dtypes import in_dtype_range
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from eo_zoo.errors import InputError
from eo_zoo.geo.sources import GDAL_ERRORS
from eo_zoo.vlm.tones import Bytes, Stored

Part = tuple[int, int, int, int]  # of a picture: first row and column, height, width
MANY = 2**28  # pixels; of more than these, where there are no overviews, not all are read for a reduced picture


def moved(transform: Affine, row: int, col: int) -> Affine:
    """The transform of pixels that begin there."""
    x, y = mapped(transform, col, row)  # affine 3.1 multiplies by another sign than 3.0
    return Affine(transform.a, transform.b, x, transform.d, transform.e, y)


def mapped(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Points, numbers or arrays, through a transform."""
    t = transform
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


@dataclass(frozen=True)
class Place:
    """A picture's pixels: ``transform`` maps (column, row) to coordinates in ``crs``, and may be rotated.

    Both are None where they are not known; the CRS may be unknown alone.
    """

    width: int
    height: int
    crs: CRS | None = None
    transform: Affine | None = None

    def cut(self, part: Part) -> Place:
        """The place of a part."""
        row, col, height, width = part
        return Place(width, height, self.crs, self.transform and moved(self.transform, row, col))


@dataclass(frozen=True)
class Layer:
    """Bands of one file that a picture is made of.

    Args:
        dataset: the file.
        bands: their numbers, from 1.
        alpha: number of the band that says how opaque a pixel is.
        nodata: stored value that means missing, where the file does not say so.
        row: of the picture's first pixel in the file.
        col: its column.
    """

    dataset: DatasetReader | WarpedVRT
    bands: tuple[int, ...]
    alpha: int | None = None
    nodata: float | None = None
    row: int = 0
    col: int = 0

    @staticmethod
    def of(
        dataset: DatasetReader, bands: tuple[int, ...], alpha: int | None, nodata: float | None, label: str
    ) -> Layer:
        """Bands of a file, of which ``nodata`` is said where it may know otherwise.

        Raises:
            InputError: values of a kind that cannot be shown.
        """
        kinds = [dataset.dtypes[band - 1] for band in bands]
        if any("complex" in kind for kind in kinds):
            raise InputError(f"{label}: holds complex numbers, which cannot be shown; give their amplitude")
        said = all(dataset.nodatavals[band - 1] == nodata for band in bands)
        if nodata is not None and (said or not in_dtype_range(nodata, kinds[0])):
            nodata = None
        return Layer(dataset, bands, alpha, nodata)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return np.result_type(*(self.dataset.dtypes[band - 1] for band in self.bands))

    @property
    def masked(self) -> bool:
        """Whether pixels may be missing."""
        return bool(self.alpha or self._flags) or self.nodata is not None or self.dtype.kind == "f"

    @property
    def _flags(self) -> set[MaskFlags]:
        """What GDAL masks its bands by."""
        flags = {flag for band in self.bands for flag in self.dataset.mask_flag_enums[band - 1]}
        return flags - {MaskFlags.all_valid}

    def read(self, part: Part, size: tuple[int, int], *, smooth: bool = False) -> tuple[Stored, Bytes]:
        """A part of the picture in ``size`` (width, height) pixels.

        Args:
            part: what to read.
            size: how many pixels to make of it; overviews are used where these are fewer.
            smooth: their mean, where these are fewer, not the value of one of them.

        Returns:
            stored values, and how opaque they are, 0 to 255; both (bands, height, width).

        Raises:
            InputError: the file is corrupt or incomplete.
        """
        row, col, height, width = part
        # a mean takes every pixel, and values that only this package knows to be missing
        few = height * width <= MANY or self.dataset.overviews(self.bands[0])
        way = Resampling.average if smooth and few and self.nodata is None else Resampling.nearest
        how = {"window": Window(col + self.col, row + self.row, width, height), "resampling": way}
        shape = (len(self.bands), size[1], size[0])
        flags = self._flags - ({MaskFlags.nodata} if self.nodata is not None else set())
        try:
            values = self.dataset.read(list(self.bands), out_shape=shape, **how)
            opaque = np.broadcast_to(np.uint8(255), shape)
            if flags and MaskFlags.alpha not in flags:
                opaque = self.dataset.read_masks(list(self.bands), out_shape=shape, **how)
            if self.alpha:
                alpha = self.dataset.read(self.alpha, out_shape=shape[1:], **how)
                opaque = np.minimum(opaque, alpha if alpha.dtype == np.uint8 else np.uint8(255) * (alpha > 0))
        except GDAL_ERRORS as error:
            raise InputError(
                f"{self.dataset.name}: cannot be read at row {row}, column {col} ({error}); the file may be corrupt or "
                "incomplete"
            ) from error
        if self.nodata is not None:
            opaque = np.where(values == self.nodata, np.uint8(0), opaque)
        if values.dtype.kind == "f":
            opaque = np.where(np.isfinite(values), opaque, np.uint8(0))
        return values, opaque

    def cut(self, row: int, col: int) -> Layer:
        """The same for a picture that begins there."""
        return replace(self, row=self.row + row, col=self.col + col)

    def on(self, own: Place, place: Place, stack: ExitStack, *, nearest: bool = False) -> Layer:
        """The same in other pixels, anywhere on the map.

        Args:
            own: the pixels it is in.
            place: those wanted.
            stack: closes what is opened.
            nearest: the nearest pixel's value, as of a palette; else bilinear, or where pixels get coarser, their mean.
        """
        nodata = self.nodata
        if nodata is None and self.dtype.kind == "f" and self.dataset.nodata is None:
            nodata = math.nan
        warped = stack.enter_context(
            WarpedVRT(
                self.dataset,
                src_crs=own.crs,
                src_transform=own.transform and moved(own.transform, -self.row, -self.col),
                crs=place.crs,
                transform=place.transform,
                width=place.width,
                height=place.height,
                resampling=Resampling.nearest if nearest else Resampling.bilinear,
                add_alpha=self.alpha is None,
                UNIFIED_SRC_NODATA="YES",  # missing where all bands are
                **({} if nodata is None else {"src_nodata": nodata}),
            )
        )
        return Layer(warped, self.bands, self.alpha or warped.count)


def without_alpha(dataset: DatasetReader, stack: ExitStack) -> DatasetReader:
    """The same file where no band is a mask to GDAL, which would use it in every read otherwise."""
    memory = stack.enter_context(MemoryFile(ext=".vrt"))
    rasterio.shutil.copy(dataset, memory.name, driver="VRT")
    with rasterio.open(memory.name, "r+") as file:
        file.colorinterp = [
            ColorInterp.undefined if colour == ColorInterp.alpha else colour for colour in dataset.colorinterp
        ]
    return stack.enter_context(rasterio.open(memory.name))


def memory_file(values: npt.NDArray[Any], place: Place, stack: ExitStack) -> DatasetReader:
    """Values (height, width), or (height, width, 3 or 4) of red, green, blue and alpha, as a file in memory."""
    values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    colours = {} if len(values) == 1 else {"photometric": "rgb", "alpha": "yes" if len(values) == 4 else "no"}
    memory = stack.enter_context(MemoryFile())
    with memory.open(
        driver="GTiff", count=len(values), height=place.height, width=place.width, dtype=values.dtype,
        crs=place.crs, transform=place.transform, interleave="pixel", **colours,
    ) as file:  # fmt: skip
        file.write(values)
    return stack.enter_context(memory.open())
