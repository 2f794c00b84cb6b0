"""Two pictures of one place, brought to the same pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import name_of
from eo_zoo.vlm.layers import Part, Place, mapped, moved

if TYPE_CHECKING:
    from eo_zoo.vlm.pictures import Picture

NEAR = 0.01  # of a pixel: corners that differ by less are the same
POINTS = 33  # along each side of an image, to find where it lies in another CRS


def aligned(before: Picture, after: Picture) -> tuple[Picture, Picture]:
    """Both in the first one's pixels, over what they have in common; each closes the one that it is made of.

    Raises:
        InputError: there is no common area; or one is not georeferenced, and they are not equally large.
    """
    if before.crs is None or after.crs is None:
        return _by_size(before, after)
    found = _common(before.place, after.place)
    if found is None:
        raise InputError(_elsewhere(before, after))
    part, shift = found
    whole = part == (0, 0, before.size[1], before.size[0])
    if not whole:
        width, height = before.size
        before = before.cut(part)
        before.notes.append(
            f"{before.source}: cut to the {part[3]} x {part[2]} of its {width} x {height} pixels that {after.source} "
            "covers"
        )
    if shift is not None:
        own = (shift[0], shift[1], *part[2:])
        return before, after if own == (0, 0, *reversed(after.size)) else after.cut(own)
    size, crs = after.size, name_of(after.crs)
    after = after.on(before.place)
    if not after.valid():
        raise InputError(_elsewhere(before, after))
    way = "nearest" if after.tones.palette is not None else "bilinear"
    after.notes.append(
        f"{after.source}: brought from {size[0]} x {size[1]} pixels in {crs} to those of {before.source} in "
        f"{name_of(before.crs)} ({way})"
    )
    return before, after


def _by_size(before: Picture, after: Picture) -> tuple[Picture, Picture]:
    """For pictures of which at least one has no place."""
    if before.size != after.size:
        (width, height), (other_width, other_height) = before.size, after.size
        lacking = [picture.source for picture in (before, after) if picture.crs is None]
        raise InputError(
            f"{before.source} has {width} x {height} pixels and {after.source} {other_width} x {other_height}, and "
            f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not georeferenced: expected equal sizes; "
            "georeference both, or bring them to one size"
        )
    placed = next((picture for picture in (before, after) if picture.crs is not None), None)
    if placed is not None:
        other = after if placed is before else before
        placed.warnings.append(
            f"{other.source} is not georeferenced: taken to lie as {placed.source} does, which was not checked"
        )
        made = other.made_of(other.layers, placed.place)
        return (before, made) if placed is before else (made, after)
    one, two = before.transform, after.transform
    if one and two and not _same(one, two, before.size):
        before.warnings.append(
            f"{before.source} and {after.source} lie apart by their pixel grids; not brought together"
        )
    return before, after


def _same(one: Affine, other: Affine, size: tuple[int, int]) -> bool:
    """Whether pixels are the same at all corners, but for an invisible part of one."""
    columns, rows = np.array([0, size[0], 0, size[0]]), np.array([0, 0, size[1], size[1]])
    x, y = mapped(~one, *mapped(other, columns, rows))
    return bool(max(np.abs(x - columns).max(), np.abs(y - rows).max()) < NEAR)


def _common(before: Place, after: Place) -> tuple[Part, tuple[int, int] | None] | None:
    """What of the first one's pixels the second covers, and where it has the same, their first row and column there.

    None where there are no such pixels.
    """
    assert before.transform is not None and after.transform is not None  # as they have a CRS
    columns, rows = _inside(after, before)
    everywhere = columns.size == POINTS**2 and _between(columns, after.width) and _between(rows, after.height)
    limits = [(0, before.height), (0, before.width)]
    if not everywhere:  # the second's edges, which may lie where the first one's CRS has no coordinates
        columns, rows = _inside(before, after)
        if not columns.size:
            return None
        limits = [
            (max(0, round(float(edges.min()))), min(length, round(float(edges.max()))))
            for edges, (_, length) in zip((rows, columns), limits, strict=True)
        ]
    (top, bottom), (left, right) = limits
    if top >= bottom or left >= right:
        return None
    part = top, left, bottom - top, right - left
    if before.crs == after.crs:
        col, row = (round(value) for value in mapped(~after.transform, *mapped(before.transform, left, top)))
        there = moved(before.transform, top, left), moved(after.transform, row, col)
        if _same(*there, (right - left, bottom - top)):
            return part, (row, col)
    return part, None


def _between(places: npt.NDArray[np.float64], length: int) -> bool:
    return bool(places.min() >= -NEAR and places.max() <= length + NEAR)


def _inside(one: Place, other: Place) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Columns and rows in the first of points all over the second, as far as they have any."""
    assert one.transform is not None and other.transform is not None  # as they have a CRS
    along = np.linspace(0, 1, POINTS)
    columns, rows = np.meshgrid(along * other.width, along * other.height)
    x, y = mapped(other.transform, columns.ravel(), rows.ravel())
    try:
        if one.crs != other.crs:
            x, y = transform(other.crs, one.crs, x, y)
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(
            f"the images cannot be brought from {name_of(other.crs)} to {name_of(one.crs)} ({error}); warp one of them "
            "with gdalwarp -t_srs"
        ) from error
    columns, rows = mapped(~one.transform, np.asarray(x), np.asarray(y))
    known = np.isfinite(columns) & np.isfinite(rows)
    return columns[known], rows[known]


def _elsewhere(before: Picture, after: Picture) -> str:
    places = []
    for picture in (before, after):
        assert picture.transform is not None  # as it has a CRS
        x, y = mapped(picture.transform, picture.size[0] / 2, picture.size[1] / 2)
        places.append(f"{picture.source} around {x:.8g}, {y:.8g} in {name_of(picture.crs)}")
    return f"the two images have no common area: {' and '.join(places)}; give two of one place"
