"""A stand-in that sees: it finds planted colours in what it is shown, and answers in any grammar of Qwen's models.

It is asked through the same images, windows and sizes as a model, and knows nothing of the raster or its windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import rasterio
import shapely
from PIL import Image
from rasterio.enums import ColorInterp

from eo_zoo.vlm.engine import Answer, Generation, Question, prepared, seen
from eo_zoo.vlm.tasks import Asker

Corners = list[tuple[float, float]]
COLOURS = {
    "ship": (255, 0, 255), "harbour": (0, 255, 255), "plane": (255, 255, 0), "tank": (255, 0, 0), "roof": (0, 255, 0),
}  # fmt: skip
# Sizes, places and masks of two real rasters: an aerial photograph of Colorado, and a drone's of Lombok.
GRIDS = {
    "aerial": dict(
        size=(383, 232),
        crs="EPSG:26913",
        transform=rasterio.Affine(
            0.14981552941953233, 0, 519467.4957275815, 0, -0.1499978958645129, 4311669.7657353515
        ),
    ),
    "drone": dict(
        size=(686, 758),
        crs="EPSG:32750",
        transform=rasterio.Affine(0.35272, 0, 297463.30262, 0, -0.35272, 9050677.06135),
    ),
}


def raster(path, name: str, planted: dict[str, list[Corners]]):
    """A raster of that grid, of dull noise, with the planted shapes; the drone's has an oblique border of no data."""
    grid = GRIDS[name]
    width, height = grid["size"]
    pixels = np.random.default_rng(1).integers(40, 110, (height, width, 3), np.uint8)
    pixels = paint(pixels, planted)
    profile = dict(driver="GTiff", width=width, height=height, dtype="uint8", count=3)
    bands, colours = np.moveaxis(pixels, -1, 0), [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if name == "drone":
        rows, columns = np.mgrid[:height, :width]
        alpha = np.where((rows + columns > 150) & (rows + columns < width + height - 200), 255, 0).astype(np.uint8)
        bands = np.concatenate([bands * (alpha > 0), alpha[None]])
        profile["count"], colours = 4, [*colours, ColorInterp.alpha]
    with rasterio.open(path, "w", crs=grid["crs"], transform=grid["transform"], **profile) as file:
        file.colorinterp = colours
        file.write(bands)
    return path


def paint(pixels: np.ndarray, planted: dict[str, list[Corners]]) -> np.ndarray:
    """The shapes, whose corners count from the outer edge, on an image (H, W, 3)."""
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    for label, shapes in planted.items():
        for corners in shapes:
            inside = shapely.contains_xy(shapely.Polygon(corners), columns + 0.5, rows + 0.5)
            pixels[inside] = COLOURS[label]
    return pixels


def square(x: float, y: float, width: float, height: float) -> Corners:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def turned(x: float, y: float, length: float, width: float, degrees: float) -> Corners:
    """A rectangle around a middle."""
    along = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    across = np.array([-along[1], along[0]])
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [tuple(np.array([x, y]) + a * length / 2 * along + b * width / 2 * across) for a, b in signs]


# ---- grammars: labels and corners in the model's numbers to text ----

Found = Sequence[tuple[str, Corners]]


def _bounds(corners: Corners) -> list[float]:
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _flat(corners: Corners) -> list[float]:
    return [x for corner in corners for x in corner]


def _json(found: Found, oriented: bool) -> str:
    numbers = _flat if oriented else _bounds
    return json.dumps([{"bbox_2d": numbers(corners), "label": label} for label, corners in found])


def _tokens(found: Found, oriented: bool, marks: bool = True) -> str:
    parts = []
    for label, corners in found:
        x1, y1, x2, y2 = _bounds(corners)
        kind, points = ("quad", corners) if oriented else ("box", [(x1, y1), (x2, y2)])
        body = ",".join(f"({x},{y})" for x, y in points)
        plain = f"{label}{body}"
        marked = f"<|object_ref_start|>{label}<|object_ref_end|><|{kind}_start|>{body}<|{kind}_end|>"
        parts.append(marked if marks else plain)
    return "".join(parts) or "There are none."


def _lists(found: Found, oriented: bool) -> str:
    numbers = _flat if oriented else _bounds
    return "\n".join(f"{label}: {json.dumps(numbers(corners))}" for label, corners in found) or "none"


def _pairs(found: Found, oriented: bool) -> str:
    return json.dumps([{"label": label, "polygon": corners} for label, corners in found])


GRAMMARS: dict[str, Callable[[Found, bool], str]] = {
    "json": _json,
    "fenced": lambda found, oriented: f"Here they are:\n```json\n{_json(found, oriented)}\n```",
    "cut off": lambda found, oriented: _json(found, oriented)[:-1] + ', {"bbox_2d": [1, 2' if found else "[]",
    "tokens": _tokens,
    "stripped": lambda found, oriented: _tokens(found, oriented, marks=False),
    "lists": _lists,
    "pairs": _pairs,
}


class Oracle(Asker):
    """Answers with what it sees; ``at_once`` notes how many questions came together."""

    def __init__(self, model_type="qwen3_vl", grammar="json", *, oriented=False, fractions=False):
        self.name, self.model_type, self.revision, self.at_a_time = "oracle", model_type, "abc123", 3
        self.grammar, self.oriented, self.fractions = grammar, oriented, fractions
        self.questions: list[Question] = []

    def answer(self, questions: Sequence[Question], generation: Generation) -> list[Answer]:
        self.questions += questions
        return [self._one(question, generation) for question in questions]

    def pieces(self, question: Question, generation: Generation) -> Iterator[str]:
        yield from self._one(question, generation).text

    def _one(self, question: Question, generation: Generation) -> Answer:
        shown = [self._as_seen(image, generation) for image in question.images]
        found = self._find(shown[-1])
        if len(shown) == 2:
            before = self._find(shown[0])
            found = [one for one in found if one not in before]
        return Answer(GRAMMARS[self.grammar](found, self.oriented), (), tuple(image.size for image in shown))

    def _as_seen(self, image: Image.Image, generation: Generation) -> Image.Image:
        ready = prepared(image)
        return ready.resize(seen(ready.size, self.model_type, generation), Image.Resampling.BICUBIC)

    def _find(self, image: Image.Image) -> list[tuple[str, Corners]]:
        pixels = np.asarray(image, float)
        found = []
        for label, colour in COLOURS.items():
            mask = np.abs(pixels - colour).max(axis=-1) < 90
            for shape in _shapes(mask):
                points = _along(shape, mask) if self.oriented else shape.envelope
                found.append((label, [self._number(x, y, image.size) for x, y in points.exterior.coords[:4]]))
        return found

    def _number(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        width, height = size
        if self.fractions:
            return round(x / width, 4), round(y / height, 4)
        if self.model_type == "qwen2_5_vl":
            return round(x), round(y)
        return round(x / width * 1000), round(y / height * 1000)


def _along(shape: shapely.Polygon, mask: np.ndarray) -> shapely.Polygon:
    """The rectangle around the middles of a patch's pixels: a turned edge passes these, not the pixels' corners."""
    left, top, right, bottom = (int(edge) for edge in shape.bounds)
    rows, columns = np.nonzero(mask[top:bottom, left:right])
    places = shapely.points(columns + left + 0.5, rows + top + 0.5)
    return shapely.multipoints(places[shapely.contains(shape, places)]).minimum_rotated_rectangle


def _shapes(mask: np.ndarray) -> list[shapely.Polygon]:
    """The hull of every connected patch of some size, in pixels from the outer edge."""
    from rasterio.features import shapes

    patches = [shapely.geometry.shape(shape) for shape, value in shapes(mask.astype(np.uint8), mask) if value]
    return [patch.convex_hull for patch in patches if patch.area >= 12]
