"""The pixel grid that all bands of a scene are brought to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform, transform_bounds

from eo_zoo.errors import InputError
from eo_zoo.geo.resample import PixelAxis

Bounds = tuple[float, float, float, float]  # left, bottom, right, top

NEAR = 1e-3  # of a pixel: what coordinates may be off by rounding
EARTH = 6371008.8  # metres, mean radius


@dataclass(frozen=True)
class Grid:
    """North-up pixels: ``transform`` maps (column, row) to coordinates in ``crs``; row 0 is northernmost."""

    crs: CRS
    transform: Affine
    width: int
    height: int

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top in ``crs``."""
        t = self.transform
        return t.c, t.f + self.height * t.e, t.c + self.width * t.a, t.f

    @property
    def gsd(self) -> float:
        """Metres per pixel, the geometric mean of both directions; of degrees, at the centre's latitude."""
        across, down = self.transform.a, -self.transform.e
        if not self.crs.is_geographic:
            return math.sqrt(across * down) * self.crs.linear_units_factor[1]
        left, bottom, right, top = self.bounds
        metres = self.crs.units_factor[1] * EARTH
        _, (latitude,) = transform(self.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
        return math.sqrt(across * down * math.cos(math.radians(latitude))) * metres

    def axes(self, dataset: DatasetReader | Grid) -> tuple[PixelAxis, PixelAxis]:
        """Where this grid's rows and columns lie in a file, or another grid, of the same CRS."""
        t = dataset.transform
        return (
            PixelAxis((t.f - self.transform.f) / -t.e, self.transform.e / t.e, dataset.height),
            PixelAxis((self.transform.c - t.c) / t.a, self.transform.a / t.a, dataset.width),
        )

    def clip(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[tuple[int, int, int, int], tuple[slice, slice]]:
        """The part of a window that lies in the grid: as such a window, and as its rows and columns in the given one.

        Height or width are 0 where there is none.
        """
        top, left = min(max(row, 0), self.height), min(max(col, 0), self.width)
        bottom, right = max(min(row + height, self.height), top), max(min(col + width, self.width), left)
        inside = slice(top - row, bottom - row), slice(left - col, right - col)
        return (top, left, bottom - top, right - left), inside

    def within(self, other: Grid) -> tuple[int, int, Grid]:
        """The pixels whose centres lie in another grid of the same CRS: the first row and column, and their grid.

        Its width or height is 0 where there are none.
        """
        t, (left, bottom, right, top) = self.transform, other.bounds
        rows = [round((edge - t.f) / t.e + shift) for edge, shift in ((top, -NEAR), (bottom, NEAR))]
        columns = [round((edge - t.c) / t.a + shift) for edge, shift in ((left, -NEAR), (right, NEAR))]
        (row, column, height, width), _ = self.clip(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
        origin = Affine(t.a, 0, t.c + column * t.a, 0, t.e, t.f + row * t.e)
        return row, column, Grid(self.crs, origin, width, height)

    def window(self, bbox: Sequence[float], bbox_crs: str | None = None) -> Grid:
        """The part that covers a box, whole pixels.

        Args:
            bbox: minx, miny, maxx, maxy.
            bbox_crs: e.g. "EPSG:4326"; None for the grid's own.

        Raises:
            InputError: no box, an unknown CRS, or no overlap.
        """
        if len(bbox) != 4 or not all(math.isfinite(value) for value in bbox):
            raise InputError(f"--bbox is {_listed(bbox)}, expected four numbers: minx, miny, maxx, maxy")
        left, bottom, right, top = bbox
        if left >= right or bottom >= top:
            raise InputError(
                f"--bbox is {_listed(bbox)}, expected minx, miny, maxx, maxy with minx < maxx and miny < maxy"
            )
        if bbox_crs is not None:
            try:
                crs = CRS.from_user_input(bbox_crs)
                left, bottom, right, top = transform_bounds(crs, self.crs, left, bottom, right, top, densify_pts=21)
            except (RasterioError, CPLE_BaseError, ValueError) as error:
                raise InputError(f"--bbox {_listed(bbox)} in '{bbox_crs}' cannot be used ({error})") from error
        if not all(math.isfinite(value) for value in (left, bottom, right, top)):
            raise InputError(self._outside(bbox, bbox_crs))
        t = self.transform
        first_column = max(math.floor((left - t.c) / t.a + NEAR), 0)
        last_column = min(math.ceil((right - t.c) / t.a - NEAR), self.width)
        first_row = max(math.floor((top - t.f) / t.e + NEAR), 0)
        last_row = min(math.ceil((bottom - t.f) / t.e - NEAR), self.height)
        if first_column >= last_column or first_row >= last_row:
            raise InputError(self._outside(bbox, bbox_crs))
        origin = Affine(t.a, 0, t.c + first_column * t.a, 0, t.e, t.f + first_row * t.e)
        return Grid(self.crs, origin, last_column - first_column, last_row - first_row)

    def _outside(self, bbox: Sequence[float], bbox_crs: str | None) -> str:
        own = f"{_listed(self.bounds)} in {name_of(self.crs)}"
        geographic = _listed(transform_bounds(self.crs, "EPSG:4326", *self.bounds))
        other = "" if name_of(self.crs) == "EPSG:4326" else f", which is {geographic} in EPSG:4326"
        asked = f"{_listed(bbox)} ({bbox_crs or name_of(self.crs)})"
        return f"--bbox {asked} lies outside the scene, which covers {own}{other}"


def own_grid(dataset: DatasetReader) -> Grid:
    """A file's own pixels."""
    return Grid(dataset.crs, dataset.transform, dataset.width, dataset.height)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in values)


def coincide(grid: Grid, crs: CRS) -> bool:
    """Whether a grid's corners have the same coordinates in another CRS, to a hundredth of a pixel.

    They have where it is the same under another name or none, and in UTM on ETRS89 or NAD83 and on WGS 84, between
    which PROJ too makes no difference.
    """
    if grid.crs == crs:
        return True
    left, bottom, right, top = grid.bounds
    try:
        x, y = transform(grid.crs, crs, [left, right], [bottom, top])
    except (RasterioError, CPLE_BaseError):  # one of them is no place on the Earth
        return False
    near = min(grid.transform.a, -grid.transform.e) / 100
    return all(abs(a - b) < near for a, b in zip((*x, *y), (left, right, bottom, top), strict=True))


def name_of(crs: CRS) -> str:
    """EPSG code where there is one, else the WKT's name."""
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_dict(projjson=True).get("name", crs.to_wkt()))


FINER = 64  # times finer than any band: no such request makes sense, and its output fills the disk


def common_grid(datasets: Mapping[str, DatasetReader], resolution: float | None, notes: list[str]) -> Grid:
    """The finest band's pixels over the area that all files cover.

    Args:
        datasets: the open files, by the names that messages use.
        resolution: pixel side in units of the CRS; None for that of the finest file.
        notes: gets a sentence where the files do not cover the same area.

    Raises:
        InputError: a file is not georeferenced, is rotated, has another CRS, or they do not overlap.
    """
    for label, dataset in datasets.items():
        _check(label, dataset)
    first, *others = datasets
    crs = datasets[first].crs
    for label in others:
        if datasets[label].crs != crs:
            raise InputError(
                f"the bands have different CRS: {first} {name_of(crs)}, {label} "
                f"{name_of(datasets[label].crs)}; warp them to one with gdalwarp -t_srs"
            )
    finest = min(datasets.values(), key=lambda dataset: dataset.transform.a * -dataset.transform.e)
    left, bottom, right, top = _intersection(datasets, notes)
    t = finest.transform
    # on the finest band's own pixel edges, inside the common area, so that this band is never resampled
    left = t.c + math.ceil((left - t.c) / t.a - NEAR) * t.a
    top = t.f + math.ceil((top - t.f) / t.e - NEAR) * t.e
    across, down = (t.a, -t.e) if resolution is None else (_positive(resolution), _positive(resolution))
    if across * FINER < t.a:
        raise InputError(f"--resolution {across:g} is far finer than the finest band's {t.a:g}: wrong unit?")
    # a pixel belongs to the grid if its centre is inside
    width = math.floor((right - left) / across + 0.5 + NEAR)
    height = math.floor((top - bottom) / down + 0.5 + NEAR)
    if width < 1 or height < 1:
        raise InputError(f"--resolution {across:g} is more than the whole scene ({right - left:g} x {top - bottom:g})")
    return Grid(crs, Affine(across, 0, left, 0, -down, top), width, height)


def _positive(resolution: float) -> float:
    if not (math.isfinite(resolution) and resolution > 0):
        raise InputError(f"--resolution is {resolution}, expected a pixel size above 0 in units of the CRS")
    return float(resolution)


def _check(label: str, dataset: DatasetReader) -> None:
    t = dataset.transform
    if dataset.crs is None and (dataset.gcps[0] or dataset.rpcs):
        raise InputError(f"{label}: placed by ground control points or RPCs only, not by a grid; run gdalwarp on it")
    if dataset.crs is None:
        raise InputError(f"{label}: has no CRS, so its place is unknown; set it with gdal_edit.py -a_srs EPSG:CODE")
    if not (dataset.crs.is_projected or dataset.crs.is_geographic):
        raise InputError(f"{label}: its CRS is local, not of the Earth ({name_of(dataset.crs)}); run gdalwarp on it")
    # warping leaves rotations of 1e-16; what shifts no corner by a visible part of a pixel is none
    if abs(t.b) * dataset.height > NEAR * abs(t.a) or abs(t.d) * dataset.width > NEAR * abs(t.e):
        raise InputError(f"{label}: its pixels are rotated or sheared against the map; make it north-up with gdalwarp")
    if t.a <= 0 or t.e >= 0:
        if t == Affine.identity():
            raise InputError(f"{label}: has a CRS but no pixel grid; set it with gdal_edit.py -a_ullr")
        raise InputError(f"{label}: is not stored north-up (pixel size {t.a:g}, {t.e:g}); run gdalwarp on it")


def _intersection(datasets: Mapping[str, DatasetReader], notes: list[str]) -> Bounds:
    boxes = {label: tuple(dataset.bounds) for label, dataset in datasets.items()}
    left, bottom = (max(box[side] for box in boxes.values()) for side in (0, 1))
    right, top = (min(box[side] for box in boxes.values()) for side in (2, 3))
    if left >= right or bottom >= top:
        listed = "; ".join(f"{label} {_listed(box)}" for label, box in boxes.items())
        raise InputError(f"the bands cover no common area: {listed}")
    coarse = max(max(dataset.res) for dataset in datasets.values())
    common = (left, bottom, right, top)
    larger = [
        label for label, box in boxes.items() if max(abs(a - b) for a, b in zip(box, common, strict=True)) > coarse / 2
    ]
    if larger:
        notes.append(f"bands cover different areas: only the common part is used ({', '.join(larger)} reach beyond)")
    return left, bottom, right, top
