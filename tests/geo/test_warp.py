"""Reading a grid from a raster of another CRS: against analytic values, and against GDAL's warper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject, transform

from eo_zoo.errors import InputError
from eo_zoo.geo import warp
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.warp import Warped, common_box

UTM = CRS.from_epsg(32632)
LONLAT = CRS.from_epsg(4326)
SECOND = 1 / 3600


def metres(pixel: float = 10, size: int = 60, *, origin: tuple[float, float] = (600_000, 5_000_040)) -> Grid:
    return Grid(UTM, Affine(pixel, 0, origin[0], 0, -pixel, origin[1]), size, size)


def degrees(pixel: float, box: tuple[float, float, float, float]) -> Grid:
    left, bottom, right, top = box
    return Grid(
        LONLAT, Affine(pixel, 0, left, 0, -pixel, top), round((right - left) / pixel), round((top - bottom) / pixel)
    )


def centres(grid: Grid, crs: CRS) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a grid's pixels in a CRS, (height, width)."""
    t = grid.transform
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = transform(grid.crs, crs, (t.c + columns * t.a).ravel(), (t.f + rows * t.e).ravel())
    return np.reshape(x, rows.shape), np.reshape(y, rows.shape)


def reader(values: np.ndarray, valid: np.ndarray | None = None) -> Any:
    """Of a raster in memory, one band; what it is asked for has to lie inside."""
    known = np.ones(values.shape, bool) if valid is None else valid

    def read(row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        part = np.s_[row : row + height, col : col + width]
        assert min(row, col) >= 0 and values[part].shape == (height, width)
        return np.where(known, values, 0).astype(np.float32)[None][:, *part], known[None][:, *part]

    return read


AROUND = (10.26, 45.13, 10.30, 45.16)  # the 600 x 600 m of `metres()`, and more


@pytest.mark.parametrize(("pixel", "second"), [(10, 1.0), (10, 0.3), (30, 0.3), (60, 0.25), (10, 3.0)])
def test_a_plane_keeps_its_analytic_values(pixel: float, second: float) -> None:
    """In longitude and latitude; a pixel's value is that at its centre, whether it is finer or coarser."""
    grid, own = metres(pixel, 600 // pixel), degrees(second * SECOND, AROUND)
    plane = lambda x, y: 4e4 * (x - 10.28) - 9e4 * (y - 45.145)  # noqa: E731
    values, valid = Warped(grid, own, False).read((0, 0, grid.height, grid.width), reader(plane(*centres(own, LONLAT))))
    expected = plane(*centres(grid, LONLAT))
    assert valid.all() and values.shape == (1, grid.height, grid.width)
    # of some 1000 m; the pixel's ground is not quite a parallelogram in degrees
    np.testing.assert_allclose(values[0], expected, atol=2e-3)
    assert Warped(grid, own, False).way == ("bilinear" if (pixel, second) in ((10, 1.0), (10, 3.0)) else "area average")


def test_pixels_need_not_be_square() -> None:
    """In degrees they are not on the ground; in the north, elevation is published in ones wider than high."""
    grid, own = metres(30, 20), degrees(0.3 * SECOND, AROUND)
    assert Warped(grid, own, False).points == (4, 5)  # of 9.3 m by 6.5 m
    wide = Grid(LONLAT, own.transform @ Affine.scale(2, 1), own.width // 2, own.height)
    assert Warped(grid, wide, False).points == (4, 3)
    lon, lat = centres(wide, LONLAT)
    for one, other in ((grid, wide), (metres(), wide)):
        values, valid = Warped(one, other, False).read((0, 0, one.height, one.width), reader(4e4 * lon - 9e4 * lat))
        x, y = centres(one, LONLAT)
        assert valid.all()
        np.testing.assert_allclose(values[0], 4e4 * x - 9e4 * y, rtol=0, atol=0.3)  # float32 of some 4e6


def test_labels_are_those_of_the_nearest_pixel() -> None:
    grid, own = metres(), degrees(0.3 * SECOND, AROUND)
    codes = np.random.default_rng(0).choice([10, 20, 95, 100, 255], (own.height, own.width)).astype(np.float32)
    values, valid = Warped(grid, own, True).read((0, 0, 60, 60), reader(codes))
    lon, lat = centres(grid, LONLAT)
    rows = np.floor((own.transform.f - lat) / -own.transform.e).astype(int)
    columns = np.floor((lon - own.transform.c) / own.transform.a).astype(int)
    assert valid.all() and np.array_equal(values[0], codes[rows, columns]) and Warped(grid, own, True).way == "nearest"


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("pixel", [10, 60])
def test_a_pixel_is_the_same_through_any_window(pixel: float, nearest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, own = metres(pixel, 600 // pixel * 6), degrees(SECOND, (10.26, 45.12, 10.31, 45.16))
    rng = np.random.default_rng(1)
    values = rng.normal(500, 100, (own.height, own.width))
    read, warped = reader(values, rng.random(values.shape) > 0.2), Warped(grid, own, nearest)
    whole = warped.read((0, 0, 60, 60), read)
    for row, col, height, width in ((0, 0, 7, 9), (13, 20, 40, 1), (30, 31, 29, 29), (59, 0, 1, 60)):
        part = warped.read((row, col, height, width), read)
        for one, all_ in zip(part, whole, strict=True):
            assert np.array_equal(one, all_[:, row : row + height, col : col + width])
    # and through a grid that begins elsewhere
    t = grid.transform
    cut = Grid(UTM, Affine(t.a, 0, t.c + 13 * t.a, 0, t.e, t.f + 5 * t.e), 40, 50)
    part = Warped(cut, own, nearest).read((0, 0, 50, 40), read)
    np.testing.assert_allclose(part[0], whole[0][:, 5:55, 13:53], rtol=1e-6)
    # and in strips of some rows, as of a large window
    for points in (7 * 60 * np.prod(warped.points), 1):
        monkeypatch.setattr(warp, "AT_A_TIME", points)
        for part, all_ in zip(warped.read((0, 0, 60, 60), read), whole, strict=True):
            assert np.array_equal(part, all_)


def test_it_agrees_with_gdal() -> None:
    """Whose warper does the same arithmetic where nothing is missing, at places that it interpolates."""
    grid, own = metres(), degrees(SECOND, AROUND)
    values = np.random.default_rng(2).normal(500, 100, (own.height, own.width)).astype(np.float32)
    for nearest, rule in ((False, Resampling.bilinear), (True, Resampling.nearest)):
        expected = np.zeros((60, 60), np.float32)
        reproject(
            values, expected, src_transform=own.transform, src_crs=LONLAT, dst_transform=grid.transform, dst_crs=UTM,
            resampling=rule,
        )  # fmt: skip
        made, _ = Warped(grid, own, nearest).read((0, 0, 60, 60), reader(values))
        assert np.mean(np.abs(made[0] - expected) < 0.1) > 0.995  # of values that differ by 100 from pixel to pixel


def test_holes_and_edges() -> None:
    grid, own = metres(), degrees(SECOND, (10.2733, 45.13, 10.30, 45.16))  # begins inside the grid
    lon, _ = centres(grid, LONLAT)
    values = np.full((own.height, own.width), 7.0)
    hole = np.ones(values.shape, bool)
    hole[:, 12:15] = False
    for nearest in (False, True):
        made, valid = Warped(grid, own, nearest).read((0, 0, 60, 60), reader(values, hole))
        column = (lon - own.transform.c) / own.transform.a
        # half of the weight is what a pixel needs, so the hole is as wide as it was
        assert np.array_equal(valid[0], (column >= 0) & ((column < 12) | (column >= 15)))
        assert 0 < valid.sum() < valid.size and np.array_equal(made[0], np.where(valid[0], 7, 0))  # none leaks in
    inside = degrees(SECOND, (10.2733, 45.1433, 10.2766, 45.1455))  # ends inside it on all sides
    x, y = centres(grid, LONLAT)
    left, bottom, right, top = inside.bounds
    _, valid = Warped(grid, inside, False).read((0, 0, 60, 60), reader(np.ones((inside.height, inside.width))))
    assert np.array_equal(valid[0], (x >= left) & (x < right) & (y > bottom) & (y <= top)) and valid.any()
    far = degrees(SECOND, (11, 45, 11.01, 45.01))
    made, valid = Warped(grid, far, False).read((0, 0, 60, 60), reader(np.ones((36, 36))))
    assert not valid.any() and not made.any()


def test_coarser_pixels_are_means_of_all_that_lie_in_them() -> None:
    """Of stripes a pixel wide, of which single points would take the one or the other."""
    grid, own = metres(100, 6), degrees(0.3 * SECOND, AROUND)
    stripes = np.zeros((own.height, own.width))
    stripes[:, ::2] = 100
    made, _ = Warped(grid, own, False).read((0, 0, 6, 6), reader(stripes))
    np.testing.assert_allclose(made, 50, atol=5)


@pytest.mark.parametrize("origin", [(179.9, "beyond 180"), (-180.1, "before -180")])
def test_over_the_antimeridian(origin: tuple[float, str]) -> None:
    """A raster may count on beyond 180, or be the part on either side."""
    zone = CRS.from_epsg(32760)
    x, y = transform(LONLAT, zone, [180.0], [-17.0])
    grid = Grid(zone, Affine(10, 0, round(x[0]) - 300, 0, -10, round(y[0]) + 300), 60, 60)
    own = degrees(SECOND, (origin[0], -17.05, origin[0] + 0.2, -16.95))
    lon, lat = centres(grid, LONLAT)
    assert lon.max() > 179 and lon.min() < -179
    own_lon, own_lat = centres(own, LONLAT)
    plane = lambda x, y: 4e4 * (x % 360 - 180) - 9e4 * (y + 17)  # noqa: E731
    values, valid = Warped(grid, own, False).read((0, 0, 60, 60), reader(plane(own_lon, own_lat)))
    assert valid.all()
    np.testing.assert_allclose(values[0], plane(lon, lat), atol=2e-3)
    assert common_box(grid, own) == pytest.approx(grid.bounds)
    half = degrees(SECOND, (179.9, -17.05, 180.0, -16.95))
    box = common_box(grid, half)
    assert box is not None and box[0] == grid.bounds[0] and box[2] == pytest.approx(x[0], abs=5)


def test_a_raster_of_the_whole_earth() -> None:
    world = degrees(1, (-180, -90, 180, 90))
    values, valid = Warped(metres(), world, True).read((0, 0, 60, 60), reader(centres(world, LONLAT)[0]))
    assert valid.all() and (values == 10.5).all()


class TestCommonBox:
    def test_of_one_crs(self) -> None:
        assert common_box(metres(), metres(10, 60, origin=(600_100, 5_000_540))) == (
            600_100, 4_999_940, 600_600, 5_000_040,
        )  # fmt: skip
        assert common_box(metres(), metres(10, 60, origin=(600_600, 5_000_040))) is None  # they only touch

    def test_of_two(self) -> None:
        assert common_box(metres(), degrees(SECOND, AROUND)) == pytest.approx(metres().bounds)
        assert common_box(metres(), degrees(0.1, (-180, -90, 180, 90))) == pytest.approx(metres().bounds)
        assert common_box(metres(), degrees(SECOND, (11, 45, 11.01, 45.01))) is None
        part = common_box(metres(), degrees(SECOND, (10.2733, 45.13, 10.30, 45.16)))
        x, _ = transform(LONLAT, UTM, [10.2733], [45.148])
        assert part is not None and part[0] == pytest.approx(x[0], abs=10) and part[1:] == metres().bounds[1:]


def test_where_a_crs_has_no_coordinates() -> None:
    world = degrees(1, (-180, -90, 180, 90))
    with pytest.raises(InputError, match=r"coordinates in both EPSG:4326 and EPSG:32632 .*gdalwarp -t_srs"):
        Warped(world, metres(), True).read((0, 0, 180, 360), reader(np.zeros((60, 60))))
