"""The ground that several inputs have in common, and where its tiles lie. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import NEAR, Bounds, Grid, coincide, name_of
from eo_zoo.geo.tiles import TileGrid, default_overlap

LOSS = 0.05  # share of the common ground that may be given up so that nothing has to be resampled
PATCHES = 16  # a side of a tile: AnySat was trained with 3 to 32, and attention grows with the square


@dataclass(frozen=True)
class Area:
    """A rectangle on the map, in metres from its top-left corner."""

    crs: CRS
    left: float
    top: float
    height: float
    width: float

    def grid(self, gsd: float) -> Grid:
        """Pixels of ``gsd`` metres, of which height and width are multiples."""
        origin = Affine(gsd, 0, self.left, 0, -gsd, self.top)
        return Grid(self.crs, origin, round(self.width / gsd), round(self.height / gsd))

    def square(self, top: float, left: float, side: float) -> Grid:
        """One pixel, ``top`` and ``left`` metres from the corner."""
        return Grid(self.crs, Affine(side, 0, self.left + left, 0, -side, self.top - top), 1, 1)


def finest_window(grids: Mapping[str, Grid], bbox: Sequence[float], bbox_crs: str | None) -> Bounds:
    """The box in whole pixels of the finest input, as far as that reaches; see ``Grid.window``."""
    return min(grids.values(), key=lambda grid: grid.transform.a).window(bbox, bbox_crs).bounds


def common_area(
    grids: Mapping[str, Grid],
    gsds: Mapping[str, float],
    unit: float,
    notes: list[str],
    box: Bounds | None = None,
) -> Area:
    """What all inputs cover, in whole squares of ``unit`` metres.

    Its corner is one of the pixels' own of the coarsest input for which those of the finer ones lie there too, so that
    none is resampled; where that would give up more than a twentieth of the ground, or there is none, of the finest.

    Args:
        grids: the inputs' own pixels.
        gsds: metres a pixel that the model takes them at; an input that has a place but no corner of its own (a pixel
            for a whole tile) is left out.
        unit: metres.
        notes: gets a sentence where an input reaches further, or names the CRS differently.
        box: a part of the map, if not all is wanted.

    Raises:
        InputError: another CRS than the others', or none in metres; or the inputs do not overlap by ``unit`` metres.
    """
    crs = _metric(grids, notes)
    boxes = {key: grid.bounds for key, grid in grids.items()}
    limits = [*boxes.values(), *([box] if box else [])]
    left, bottom = (max(one[side] for one in limits) for side in (0, 1))
    right, top = (min(one[side] for one in limits) for side in (2, 3))
    if left >= right or bottom >= top:
        listed = "; ".join(f"{key} {', '.join(f'{edge:.10g}' for edge in one)}" for key, one in boxes.items())
        raise InputError(f"the inputs cover no common area (left, bottom, right, top): {listed}")
    x, y = _corner([grids[key] for key in grids if key in gsds], list(gsds.values()), (left, bottom, right, top))
    slack = min(gsds.values()) / 100  # what coordinates may be off by rounding
    height, width = (math.floor((side + slack) / unit) * unit for side in (y - bottom, right - x))
    if min(height, width) < unit:
        raise InputError(
            f"the inputs have {right - left:.10g} x {top - bottom:.10g} m in common, less than one cell of "
            f"{unit:g} x {unit:g} m: give inputs of one larger area"
        )
    far = [key for key, one in boxes.items() if _beyond(one, (x, y - height, x + width, y)) > unit]
    if far and box is None:
        notes.append(
            f"only the common part of the inputs is used, {width:g} x {height:g} m ({', '.join(far)} reach beyond)"
        )
    return Area(crs, x, y, height, width)


def _metric(grids: Mapping[str, Grid], notes: list[str]) -> CRS:
    """The one CRS of all, in metres."""
    first, *others = grids
    crs = grids[first].crs
    for key in others:
        if not coincide(grids[key], crs):
            raise InputError(
                f"the inputs have different CRS: {first} {name_of(crs)}, {key} {name_of(grids[key].crs)}; warp them to "
                "one with gdalwarp -t_srs"
            )
        if grids[key].crs != crs:
            notes.append(
                f"{key}: its CRS, {name_of(grids[key].crs)}, gives the same coordinates here as that of {first}, "
                f"{name_of(crs)}: taken as one"
            )
    if crs.is_geographic or not math.isclose(crs.linear_units_factor[1], 1, rel_tol=1e-6):
        left, bottom, right, top = grids[first].bounds
        (longitude,), (latitude,) = transform(crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
        zone = (32600 if latitude >= 0 else 32700) + min(int((longitude + 180) // 6) + 1, 60)
        unit = "degrees" if crs.is_geographic else crs.linear_units_factor[0]
        raise InputError(
            f"the inputs' CRS, {name_of(crs)}, is in {unit}, but the model measures the ground in metres: warp them "
            f"with gdalwarp -t_srs EPSG:{zone} (UTM)"
        )
    return crs


def _corner(
    grids: Sequence[Grid], gsds: Sequence[float], box: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Left and top: of whole pixels of as many inputs as can be."""
    left, bottom, right, top = box
    pairs = list(zip(grids, gsds, strict=True))
    own = [grid for grid, gsd in pairs if abs(grid.transform.a / gsd - 1) * max(grid.width, grid.height) < 0.01]
    sorted_own = sorted(own or grids, key=lambda grid: -grid.transform.a)  # coarsest first
    for place, grid in enumerate(sorted_own):
        t = grid.transform
        x = t.c + math.ceil((left - t.c) / t.a - NEAR) * t.a
        y = t.f + math.ceil((top - t.f) / t.e - NEAR) * t.e
        kept = max(right - x, 0) * max(y - bottom, 0) / ((right - left) * (top - bottom))
        if kept >= 1 - LOSS and all(_on_edge(other, x, y) for other in sorted_own[place + 1 :]):
            break
    return x, y


def _on_edge(grid: Grid, x: float, y: float) -> bool:
    t = grid.transform
    return all(abs(place - round(place)) < 0.01 for place in ((x - t.c) / t.a, (y - t.f) / t.e))


def _beyond(box: Sequence[float], inner: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(box, inner, strict=True))


def resampled(own: Grid, wanted: Grid) -> str | None:
    """How an input's pixels come to be those wanted, in words; None where they are the same."""
    rows, columns = wanted.axes(own)
    if rows.aligned(wanted.height) and columns.aligned(wanted.width):
        return None
    way = "bilinear" if columns.step <= 1 else "area average"
    return f"pixels of {own.transform.a:g} m resampled to the common ones of {wanted.transform.a:g} m ({way})"


def tile_grid(area: Area, patch: int, cell: float, tile: float | None, overlap: float | None, *, map: bool) -> TileGrid:
    """The tiles of an area, in cells of ``cell`` metres; tiles, and what they share, are whole patches.

    Args:
        area: what to cover; the last patches may reach beyond it.
        patch: metres.
        cell: metres, a part of the patch.
        tile: metres a side; None for the shorter side of the area, or 16 patches if that is less.
        overlap: metres; None for half of the tile in a map, for none in a vector.
        map: whether the tiles are blended into a map.

    Raises:
        InputError: the area is smaller than a patch, or tile or overlap are no multiples of it.
    """
    if min(area.height, area.width) < patch:
        raise InputError(
            f"the inputs have {area.width:g} x {area.height:g} m in common, less than one patch of {patch} m: give a "
            "smaller patch size"
        )
    if tile is None:
        tile = patch * min(math.ceil(min(area.height, area.width) / patch), PATCHES)
    if tile < patch or tile % patch:
        raise InputError(f"a tile of {tile:g} m does not fit: expected a multiple of the patch size, {patch} m")
    if overlap is None:
        overlap = default_overlap(round(tile), patch) if map else 0
    if not 0 <= overlap < tile or overlap % patch:
        raise InputError(
            f"an overlap of {overlap:g} m does not fit: expected a multiple of the patch size, {patch} m, from 0 to "
            f"{tile - patch:g}"
        )
    rows, columns = (math.ceil(side / cell - NEAR) for side in (area.height, area.width))
    return TileGrid(rows, columns, 1, round(tile / cell), round(overlap / cell), unit=round(patch / cell))
