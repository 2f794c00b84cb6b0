"""Classes on a map: colours, names that GIS programs show, and their part of a preview."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from eo_zoo.geo.output import NODATA, Thumbnail, cells_below, stretch, write_page

Colour = tuple[int, int, int]

# As maps have it: parts of class names, and their hue in degrees, saturation and value. The first that fits counts.
LOOKS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("wetland", (180, 0.45, 0.65)),
    ("snow ice cloud", (200, 0.1, 0.97)),
    ("forest woodland", (135, 0.75, 0.42)),
    ("shrub herbaceous heath chaparral", (75, 0.55, 0.62)),
    ("grass pasture meadow golf", (100, 0.5, 0.8)),
    ("crop arable farmland agricult cultivation terrace", (48, 0.6, 0.95)),
    ("industr commercial storage power", (290, 0.5, 0.65)),
    ("urban resident built mobile_home", (0, 0.75, 0.85)),
    ("highway freeway railway runway road overpass", (0, 0.0, 0.35)),
    ("water sea lake river marine ocean", (212, 0.75, 0.75)),
    ("barren desert beach sand bare mountain", (33, 0.45, 0.75)),
)
GOLDEN = 137.508  # degrees: hues in steps of it are never near each other for long
APART = 26.0  # of 442: wanted distance of two colours of a map in red, green and blue


def palette(classes: Sequence[str]) -> list[Colour]:
    """A colour for each class, all different: water is blue and forest green, what no map has gets any hue."""
    found: list[Colour] = []
    for index, name in enumerate(classes):
        other = (index * GOLDEN, 0.45, 0.9)
        hue, saturation, value = next((look for words, look in LOOKS if _holds(name, words)), other)
        for step in itertools.count():
            # Around the hue, lighter and darker in turn, further out each time, and content with less each time.
            sign = 1 if step % 2 else -1
            colour = _rgb(hue + sign * 7 * step, saturation * (1 - 0.06 * (step % 7)), value + sign * 0.06 * step)
            if all(math.dist(colour, taken) > APART * 0.98**step for taken in found):
                break
        found.append(colour)
    return found


def _holds(name: str, words: str) -> bool:
    return any(word in name.lower() for word in words.split())


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    parts = colorsys.hsv_to_rgb(hue % 360 / 360, min(max(saturation, 0), 1), min(max(value, 0.25), 1))
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def write_categories(path: Path, names: Sequence[str], bands: int) -> None:
    """A side file's content: the names of the values 0, 1, ... of every band, for which a GeoTIFF has no place."""
    root = ElementTree.Element("PAMDataset")
    for band in range(1, bands + 1):
        element = ElementTree.SubElement(root, "PAMRasterBand", band=str(band))
        categories = ElementTree.SubElement(element, "CategoryNames")
        for name in names:
            ElementTree.SubElement(categories, "Category").text = name
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


class Mosaic:
    """The class below the middle of each pixel of a thumbnail's canvas, filled strip by strip.

    Args:
        thumbnail: of the whole input.
        cell: side of one cell of the map in pixels of the input.
    """

    def __init__(self, thumbnail: Thumbnail, cell: int) -> None:
        self._rows, self._cols = cells_below(thumbnail, cell)
        self.classes = np.full(thumbnail.shape, NODATA, np.uint8)

    def add(self, top: int, strip: np.ndarray) -> None:
        """Add rows of classes (rows, columns) that begin at row ``top`` of the map."""
        here = np.flatnonzero((self._rows >= top) & (self._rows < top + len(strip)))
        self.classes[here] = strip[self._rows[here] - top][:, self._cols]

    def shares(self) -> np.ndarray:
        """Share of each class in what is not nodata."""
        counts = np.bincount(self.classes.ravel(), minlength=NODATA + 1)[:NODATA]
        return counts / max(counts.sum(), 1)

    def picture(self, colours: Sequence[Colour]) -> np.ndarray:
        """Bytes (rows, columns, 3); nodata is white."""
        table = np.full((256, 3), 255, np.uint8)
        table[: len(colours)] = colours
        return table[self.classes]


def write_class_preview(
    path: Path, thumbnail: Thumbnail, mosaic: Mosaic, classes: Sequence[str], captions: tuple[str, str]
) -> None:
    """PNG: the input's colours, the classes beside them, and a legend of those that occur with their shares.

    Args:
        path: where to write.
        thumbnail: of the whole input.
        mosaic: of the whole map.
        classes: names in the order of the map's values.
        captions: texts below the halves.
    """
    colours, shares = palette(classes), mosaic.shares()
    shown = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    legend = [(colours[i], f"{classes[i]}  {shares[i]:.1%}") for i in shown]
    write_page(path, [stretch(thumbnail.picture()), mosaic.picture(colours)], captions, legend)
