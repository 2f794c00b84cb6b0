"""Images of any kind as the RGB pictures that a vision-language model looks at, read whole or in windows.

What PIL reads as bytes keeps PIL's bytes, with white behind transparency as ``qwen_vl_utils`` puts it, so that the
model's tokens are those of the published snippet. Everything else is stretched to bytes, once for the whole image.
"""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from eo_zoo.errors import InputError
from eo_zoo.geo.scene import GDAL_OPTIONS, Opened
from eo_zoo.geo.sources import Found
from eo_zoo.vlm import kinds
from eo_zoo.vlm.boxes import Window
from eo_zoo.vlm.choice import SAMPLE, Choice, split
from eo_zoo.vlm.layers import Layer, Part, Place
from eo_zoo.vlm.pair import aligned
from eo_zoo.vlm.tones import Bytes, Stored, Stretch, Tones, stretched

__all__ = ["Picture", "open_pair", "open_picture"]

Source: TypeAlias = "str | Path | Mapping[str, Any] | Image.Image | npt.NDArray[np.uint8] | Picture"

DEFAULT = Stretch(percentiles=(2, 98))


class Picture(Opened):
    """An opened image; a context manager that closes its files.

    Attributes:
        size: width and height in pixels.
        crs: of ``transform``, or None.
        transform: from (column, row), counted from the outer corner of the first pixel, to the map; it may be rotated.
            None where the image has no place.
        source: what it was opened from, without folders.
        notes: every choice made, a sentence each.
        warnings: what may be wrong, a sentence each.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        tones: Tones,
        place: Place,
        source: str,
        found: Found,
        stack: ExitStack | None = None,
    ) -> None:
        self.place = place
        self.source = source
        self.notes = found.notes
        self.warnings = found.warnings
        self.layers = tuple(layers)
        self.tones = tones
        self._stack = stack or ExitStack()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.place.width, self.place.height

    @property
    def crs(self) -> CRS | None:
        """Of the map, or None."""
        return self.place.crs

    @property
    def transform(self) -> Affine | None:
        """From pixels to the map, or None."""
        return self.place.transform

    def read(self, window: Window | None = None) -> Image.Image:
        """A window, or the whole image: RGB, white where there are no data. A pixel is the same in every window.

        Raises:
            InputError: the window is not inside the image, or a file is corrupt.
        """
        part = self._part(window)
        return self._shown(part, (part[3], part[2]))

    def valid(self, window: Window | None = None) -> float:
        """Share of the pixels of a window, or of the whole image, that hold data; of a large one, of a sample."""
        if not any(layer.masked for layer in self.layers):
            return 1.0
        part = self._part(window)
        _, opaque = read_all(self.layers, part, _within((part[3], part[2]), SAMPLE))
        return float((opaque.max(axis=0) > 0).mean())

    def thumbnail(self, side: int) -> Image.Image:
        """The whole image, reduced so that its longer side is no more than that."""
        return self._shown(self._part(None), _within(self.size, side))

    def cut(self, part: Part) -> Picture:
        """A part of the image; closing it closes the whole."""
        layers = [layer.cut(*part[:2]) for layer in self.layers]
        return self.made_of(layers, self.place.cut(part))

    def on(self, place: Place) -> Picture:
        """The image in other pixels on the map; closing it closes this one."""
        stack = ExitStack()
        nearest = self.tones.palette is not None
        layers = [layer.on(self.place, place, stack, nearest=nearest) for layer in self.layers]
        return self.made_of(layers, place, stack)

    def made_of(self, layers: Sequence[Layer], place: Place, stack: ExitStack | None = None) -> Picture:
        """The same with other layers and another place; closing it closes this one."""
        stack = stack or ExitStack()
        stack.callback(self.close)
        found = Found("", notes=list(self.notes), warnings=list(self.warnings))
        return Picture(layers, self.tones, place, self.source, found, stack)

    def _part(self, window: Window | None) -> Part:
        width, height = self.size
        if window is None:
            return 0, 0, height, width
        row, col = window.row, window.col
        inside = 0 <= row < row + window.height <= height and 0 <= col < col + window.width <= width
        if not inside:
            raise InputError(f"{self.source}: {window} is not inside its {width} x {height} pixels")
        return row, col, window.height, window.width

    def _shown(self, part: Part, size: tuple[int, int]) -> Image.Image:
        values, opaque = read_all(self.layers, part, size, smooth=self.tones.palette is None)
        image = Image.fromarray(self.tones.apply(values))
        mask = opaque.max(axis=0)
        if mask.min() == 255:
            return image
        white = Image.new("RGB", size, (255, 255, 255))
        white.paste(image, mask=Image.fromarray(mask))
        return white


def read_all(
    layers: Sequence[Layer], part: Part, size: tuple[int, int], *, smooth: bool = False
) -> tuple[Stored, Bytes]:
    """Bands of all layers, see :meth:`Layer.read`."""
    with rasterio.Env(**GDAL_OPTIONS):
        values, opaque = zip(*(layer.read(part, size, smooth=smooth) for layer in layers), strict=True)
    if len(layers) == 1:
        return values[0], opaque[0]
    return np.concatenate(values), np.concatenate(opaque)


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of a picture, reduced so that none is longer than ``side``."""
    by = min(1.0, side / max(size))
    width, height = (max(1, round(length * by)) for length in size)
    return width, height


# ---- opening ----


def open_picture(
    source: Source,
    *,
    bands: str | Sequence[str | int] | None = None,
    sensor: str | None = None,
    stretch: object = None,
    nodata: float | None = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | None = None,
) -> Picture:
    """Open an image.

    Args:
        source: a path or http(s) address of any raster that GDAL reads, of a PNG, JPEG or WebP, or of a STAC item; a
            folder of band files; an item as a dict; a PIL image; an array (H, W, 3) of bytes; or a picture, which is
            taken as it is.
        bands: three names ("red,green,blue", "B11,B8A,B04"), or for one file numbers from 1 ("4,3,2"), to be shown as
            red, green and blue; one is shown in grey. By default what the file calls red, green and blue; an item's
            asset "visual", else its red, green and blue.
        sensor: whose band names are meant, Sentinel-2's where nothing says.
        stretch: how values become bytes. By default bytes stay as they are, and other values are stretched from the
            2nd to the 98th percentile of each band, of a sample of the whole image. "none": as they are, cut to 0..255;
            "1,99" or (1, 99): other percentiles; "0:3000" or "0:3000,0:2500,0:2000", or pairs of numbers: the values
            that are shown as 0 and 255, the way to make several images comparable.
        nodata: stored value that means missing, instead of what the files say.
        bbox: minx, miny, maxx, maxy; the image is cut to the pixels that touch it.
        bbox_crs: of ``bbox``, e.g. "EPSG:4326"; None for the image's own.

    Raises:
        InputError: the source, or what is asked of it, cannot be used; the message says why and what to do.
        DownloadError: it is on the web and cannot be fetched.
    """
    if isinstance(source, Picture):  # its files stay with it
        return Picture(
            source.layers, source.tones, source.place, source.source, Found("", [], source.notes, source.warnings)
        )
    wanted = Stretch.of(stretch)
    choice = Choice(split(bands), sensor, nodata, bbox, bbox_crs)
    found, label = Found(""), kinds.label_of(source)
    with ExitStack() as stack, rasterio.Env(**GDAL_OPTIONS), python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture need not be
        layers, place, names = kinds.find(source, label, choice, found, stack)
        tones = _tones(layers, place, label, wanted, names, found)
        return Picture(layers, tones, place, label, found, stack.pop_all())


def open_pair(before: Source, after: Source, **how: Any) -> tuple[Picture, Picture]:
    """Open two images of one place, pixel on pixel, for their changes.

    Where both are georeferenced, the second is brought to the first one's pixels, over the area that they have in
    common; its CRS and its pixels may be others. Where one is not, they must be equally large.

    Args:
        before: see :func:`open_picture`.
        after: the same.
        **how: as there, for both; ``bbox`` is of the first, and the second is cut to it.

    Raises:
        InputError: as there; or the two have no common area, or are not equally large.
        DownloadError: as there.
    """
    rest = {name: value for name, value in how.items() if name not in ("bbox", "bbox_crs")}
    with ExitStack() as stack:
        first = stack.enter_context(open_picture(before, **how))
        second = stack.enter_context(open_picture(after, **rest))
        pair = aligned(first, second)
        stack.pop_all()  # closed with the pair
        return pair


def _tones(
    layers: Sequence[Layer], place: Place, label: str, stretch: Stretch | None, names: Sequence[str], found: Found
) -> Tones:
    """How values become bytes; looks at a sample of the image where that, or whether there is any, depends on it."""
    first, band = layers[0].dataset, layers[0].bands[0]
    bytes_only = all(layer.dtype == np.uint8 for layer in layers)
    palette = first.colorinterp[band - 1] == ColorInterp.palette and len(names) == 1 and stretch is None
    bits = int(first.tags(band, ns="IMAGE_STRUCTURE").get("NBITS", 8)) if bytes_only else 8
    percentiles = stretch.percentiles if stretch else None if bytes_only or palette else DEFAULT.percentiles
    values, opaque = np.empty((len(names), 0, 0)), np.empty((len(names), 0, 0), np.uint8)
    if percentiles or any(layer.masked for layer in layers):
        values, opaque = read_all(
            layers, (0, 0, place.height, place.width), _within((place.width, place.height), SAMPLE)
        )
        if not opaque.any():
            raise InputError(f"{label}: no pixel with data was found, all is nodata or transparent; is nodata right?")
    if palette:
        colours = first.colormap(band)
        table = np.zeros((max(colours) + 1, 3), np.uint8)
        for value, colour in colours.items():
            table[value] = colour[:3]
        found.notes.append(f"{label}: shown in the colours of its palette")
        return Tones(palette=table)
    if stretch is None and bytes_only:
        return Tones(((0, 2**bits - 1),) * len(names) if bits < 8 else ())
    try:
        tones, note = stretched(stretch or DEFAULT, values, opaque > 0, names)
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    found.notes.append(f"{label}: {note}")
    return tones
