"""Boxes in pixels of an image, and what windows of one image found, counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eo_zoo.errors import InputError, require

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Point = tuple[float, float]
Indices = npt.NDArray[np.intp]
Geometries = npt.NDArray[Any]  # of shapely geometries; their dtype is object

REACH = 0.02  # of a window's side: a box that ends so near to the window's edge may go on beyond it
GRAIN = 1000  # models write places to one pixel or a thousandth of the window's side, whichever is coarser


@dataclass(frozen=True)
class Box:
    """One object's place in an image.

    Attributes:
        corners: four points (x to the right, y down) in order around the box, in pixels of the whole image from its
            outer top-left edge: centres of pixels are at .5, the image's right edge is at its width.
        label: the object's class, as the model wrote it.
        score: 0..1 where the model states one.
        oriented: given as four corners rather than as x1, y1, x2, y2.
    """

    corners: tuple[Point, ...]
    label: str = ""
    score: float | None = None
    oriented: bool = False

    @classmethod
    def upright(cls, x1: float, y1: float, x2: float, y2: float, *, label: str = "", score: float | None = None) -> Box:
        """A box by two opposite corners, clockwise from its top left as it is seen.

        >>> Box.upright(30, 20, 10, 40).bounds
        (10, 20, 30, 40)
        """
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        return cls(((left, top), (right, top), (right, bottom), (left, bottom)), label, score)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        x, y = zip(*self.corners, strict=True)
        return min(x), min(y), max(x), max(y)

    @property
    def area(self) -> float:
        """In square pixels; of corners in no order around the box, less than what they enclose."""
        x, y = zip(*self.corners, strict=True)
        return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2

    @property
    def polygon(self) -> BaseGeometry:
        """As a shapely geometry; of corners that cross each other, their convex hull."""
        shape = _shapely().Polygon(self.corners)
        return shape if shape.is_valid else shape.convex_hull

    def shifted(self, dx: float, dy: float) -> Box:
        """The box in an image whose origin is (-dx, -dy) in this one."""
        return replace(self, corners=tuple((x + dx, y + dy) for x, y in self.corners))

    def scaled(self, sx: float, sy: float) -> Box:
        """The box in an image of sx times the width and sy times the height."""
        return replace(self, corners=tuple((x * sx, y * sy) for x, y in self.corners))


@dataclass(frozen=True)
class Window:
    """A part of an image, in its pixels."""

    row: int
    col: int
    height: int
    width: int


def windows(width: int, height: int, side: int, overlap: int) -> list[Window]:
    """Windows of ``side`` pixels that cover an image, row by row; neighbours share at least ``overlap`` pixels.

    The last of a row or column is shifted back inside, so that it shares more; an image no larger than ``side`` along
    an axis is one window there.

    Raises:
        InputError: the image or the window has no pixels, or the overlap is not in 0..side - 1.

    >>> [(w.col, w.width) for w in windows(100, 40, side=64, overlap=16)]
    [(0, 64), (36, 64)]
    """
    if width < 1 or height < 1 or side < 1:
        raise InputError(f"windows of {side} pixels over an image of {width} x {height}: all must be at least 1")
    if not 0 <= overlap < side:
        raise InputError(f"windows of {side} pixels cannot overlap by {overlap}: choose 0 to {side - 1}")

    def starts(length: int) -> list[int]:
        last = max(length - side, 0)
        return [*range(0, last, side - overlap), last]

    tall, wide = min(side, height), min(side, width)
    return [Window(row, col, tall, wide) for row in starts(height) for col in starts(width)]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of the two polygons, 0..1; 0 where neither has an area."""
    return float(_iou(_polygons([a]), _polygons([b]))[0])


def class_of(label: str) -> str:
    """A label as classes are compared: "Storage_Tank 2" and "storage-tank" are one.

    >>> class_of("Storage_Tank 2")
    'storage tank'
    """
    words = label.casefold().replace("-", " ").replace("_", " ").split()
    while len(words) > 1 and words[-1].strip("#.:").isdigit():  # "ship 1", "ship 2": numbered, not classes
        words.pop()
    return " ".join(words)


def non_maximum_suppression(boxes: Sequence[Box], threshold: float = 0.5, *, by_label: bool = True) -> list[Box]:
    """Boxes without those that overlap a better one of the same label by an IoU above ``threshold``.

    Exact for oriented boxes. Better is the higher score, a stated one before none, then the larger area. Labels are
    compared by ``class_of``, or with ``by_label=False`` not at all. The order of ``boxes`` is kept.
    """
    if not boxes:
        return []
    polygons = _polygons(boxes)
    tree = _shapely().STRtree(polygons)
    labels = _labels(boxes, by_label)
    kept = np.ones(len(boxes), dtype=bool)
    for index in _best_first(boxes):
        if not kept[index]:
            continue
        near = tree.query(polygons[index])
        near = near[(near != index) & kept[near] & (labels[near] == labels[index])]
        kept[near[_iou(polygons[near], polygons[[index]]) > threshold]] = False
    return [box for box, keep in zip(boxes, kept, strict=True) if keep]


def merge(
    found: Sequence[tuple[Window, Sequence[Box]]],
    size: tuple[int, int],
    threshold: float = 0.5,
    *,
    by_label: bool = True,
) -> list[Box]:
    """What windows of one image found, each object once.

    Two boxes of one label from two windows are the same object if they agree (IoU above ``threshold``) over the part
    of the image that both windows saw, or if one is whole and has more than that share of the other, a part cut off
    by its window's edge; and if each leaves the other's window only where the other ends at that window's edge. Of
    such boxes one that is cut at no inner edge is kept; where all are cut (the object is longer than the overlap)
    their hull is, so that an object may span any number of windows. Two boxes of one window stay two objects, and one
    that a single window found is kept as it is. Then ``non_maximum_suppression``.

    Args:
        found: windows, each with its boxes in pixels of the whole image.
        size: width and height of the image.
        threshold: the IoU or share above which two boxes are one object.

    Returns:
        The boxes in the order in which they were first found.
    """

    def suppressed(boxes: Sequence[Box]) -> list[Box]:
        return non_maximum_suppression(boxes, threshold, by_label=by_label)

    seen = [(window, box) for window, boxes in found for box in suppressed(boxes)]
    if not seen:
        return []
    boxes = [box for _, box in seen]
    views = _Views([window for window, _ in seen], boxes, size, _labels(boxes, by_label))
    objects = [_one([boxes[i] for i in group], views.cut[group]) for group in _groups(views, threshold)]
    return suppressed(objects)


class _Views:
    """Boxes beside the windows that saw them, as arrays; a row is (left, top, right, bottom)."""

    def __init__(
        self, windows: Sequence[Window], boxes: Sequence[Box], size: tuple[int, int], labels: npt.NDArray[np.str_]
    ) -> None:
        self.frame = np.array([(w.col, w.row, w.col + w.width, w.row + w.height) for w in windows], dtype=float)
        self.bounds = np.array([box.bounds for box in boxes], dtype=float)
        side = (self.frame[:, 2:] - self.frame[:, :2]).max(1, keepdims=True)
        reach = np.maximum(REACH * side, 2)
        outward = np.array([-1, -1, 1, 1])
        self.ends = (self.frame - self.bounds) * outward <= reach  # the box ends at (or beyond) that edge
        self.cut = (self.ends & (self.frame != (0, 0, *size))).any(1)
        self.reach, self.outward = reach, outward
        self.grain = np.maximum(side[:, 0] / GRAIN, 1)
        self.exact = _polygons(boxes)
        self.polygons = _shapely().buffer(self.exact, self.grain, join_style="mitre")
        self.labels = labels
        self.windows = windows

    def pairs(self) -> tuple[Indices, Indices]:
        """Indices of boxes that may be one object: near each other, of one label."""
        a, b = _shapely().STRtree(self.polygons).query(self.polygons)
        maybe = (a < b) & (self.labels[a] == self.labels[b])
        a, b = a[maybe], b[maybe]
        maybe = self._stays(a, b) & self._stays(b, a)
        return a[maybe], b[maybe]

    def _stays(self, a: Indices, b: Indices) -> npt.NDArray[np.bool_]:
        """Whether ``a`` leaves the window of ``b`` only where ``b`` ends at its edge."""
        leaves = (self.bounds[a] - self.frame[b]) * self.outward > self.reach[b]
        return ~(leaves & ~self.ends[b]).any(1)

    def agreement(self, a: Indices, b: Indices) -> npt.NDArray[np.float64]:
        """IoU of two boxes over what both their windows saw.

        The boxes were made larger by a grain before, and so is that part: thin slivers can then be compared although
        places are rounded, and windows that only touch each other have a part in common.
        """
        low, high = self.frame[:, :2] - self.grain[:, None], self.frame[:, 2:] + self.grain[:, None]
        low, high = np.maximum(low[a], low[b]), np.minimum(high[a], high[b])
        common = _shapely().box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
        common[(low > high).any(1)] = None
        first, second = (_shapely().intersection(self.polygons[index], common) for index in (a, b))
        return _iou(first, second)

    def cover(self, a: Indices, b: Indices) -> npt.NDArray[np.float64]:
        """How much of a part cut off by its window's edge lies in a box that is whole, where one is and one is not.

        A model boxes the corner of a turned object anew, so that the part's shape says little.
        """
        part, whole = np.where(self.cut[a], a, b), np.where(self.cut[a], b, a)
        inside = _shapely().area(_shapely().intersection(self.exact[part], self.polygons[whole]))
        return np.where(self.cut[a] != self.cut[b], _share(inside, _shapely().area(self.exact[part])), 0)


def _groups(views: _Views, threshold: float) -> list[list[int]]:
    """Indices of boxes, those of one object together; an object is in a window at most once."""
    a, b = views.pairs()
    group = [[index] for index in range(len(views.windows))]
    inside = [{window} for window in views.windows]
    for likeness in (views.agreement(a, b), views.cover(a, b)):
        for pair in np.argsort(-likeness, kind="stable")[: np.count_nonzero(likeness > threshold)]:
            first, second = group[a[pair]], group[b[pair]]
            if first is second or inside[first[0]] & inside[second[0]]:
                continue
            inside[first[0]] |= inside[second[0]]
            first.extend(second)
            for index in second:
                group[index] = first
    return [sorted(members) for index, members in enumerate(group) if members[0] == index]


def _one(boxes: Sequence[Box], cut: npt.NDArray[np.bool_]) -> Box:
    """The one object that several boxes show: the best of those that are whole, else the hull of all."""
    whole = [box for box, part in zip(boxes, cut, strict=True) if not part]
    best = (whole or boxes)[_best_first(whole or boxes)[0]]
    if whole or len(boxes) == 1:
        return best
    score = max((box.score for box in boxes if box.score is not None), default=None)
    if not any(box.oriented for box in boxes):
        bounds = np.array([box.bounds for box in boxes])
        low, high = bounds[:, :2].min(0).tolist(), bounds[:, 2:].max(0).tolist()
        return Box.upright(*low, *high, label=best.label, score=score)
    shapely = _shapely()
    hull = shapely.oriented_envelope(shapely.multipoints([point for box in boxes for point in box.corners]))
    corners = tuple((float(x), float(y)) for x, y in hull.exterior.coords[:4])
    return replace(best, corners=corners, score=score, oriented=True)


def _labels(boxes: Sequence[Box], by_label: bool) -> npt.NDArray[np.str_]:
    return np.array([class_of(box.label) if by_label else "" for box in boxes])


def _best_first(boxes: Sequence[Box]) -> list[int]:
    """Indices by score, then by area."""
    return sorted(range(len(boxes)), key=lambda i: (1 if (s := boxes[i].score) is None else -s, -boxes[i].area))


def _iou(a: Geometries, b: Geometries) -> npt.NDArray[np.float64]:
    shapely = _shapely()
    common = shapely.area(shapely.intersection(a, b))
    return _share(common, shapely.area(a) + shapely.area(b) - common)


def _share(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0 where there is no whole, which NaN says of a geometry that is none."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _polygons(boxes: Iterable[Box]) -> Geometries:
    return np.array([box.polygon for box in boxes], dtype=object)


def _shapely() -> ModuleType:
    return require("shapely", "vlm")
