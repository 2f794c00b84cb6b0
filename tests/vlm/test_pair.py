from __future__ import annotations

import itertools

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.warp import transform as project
from rasterio.warp import transform_bounds

from eo_zoo.errors import InputError
from eo_zoo.vlm.boxes import Window
from eo_zoo.vlm.layers import mapped
from eo_zoo.vlm.pictures import open_pair, open_picture
from tests.geo.rasters import write_raster

# a place that lies in two zones of the southern hemisphere, beside 24 degrees east: Botswana
CENTRE = (24.0, -21.0)
SPOTS = [(x, y) for x, y in itertools.product((-700, -250, 200, 650), (-600, 0, 500))]  # metres from there


def centre(crs: str) -> tuple[float, float]:
    (x,), (y,) = project("EPSG:4326", crs, [CENTRE[0]], [CENTRE[1]])
    return x, y


def spots(crs: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the planted features lie, in any CRS."""
    x, y = centre("EPSG:32734")
    places = project("EPSG:32734", crs, [x + east for east, _ in SPOTS], [y + north for _, north in SPOTS])
    return np.array(places[0]), np.array(places[1])


def planted(path, crs: str, transform: Affine, width: int, height: int, metres: float, **options) -> str:
    """A raster with a round bright spot at each of the features; pixels of about so many metres."""
    columns, rows = mapped(~transform, *spots(crs))
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    values = np.full((height, width), 20.0)
    for column, row in zip(columns, rows, strict=True):
        values += 200 * np.exp(-(((x - column) ** 2 + (y - row) ** 2) / (2 * (30 / metres) ** 2)))
    return str(write_raster(path, np.stack([values.astype(np.uint8)] * 3), crs=crs, transform=transform, **options))


def around(crs: str, pixel: float, side: int) -> tuple[Affine, int, int]:
    x, y = centre(crs)
    return Affine(pixel, 0, x - pixel * side / 2, 0, -pixel, y + pixel * side / 2), side, side


def offsets(picture) -> np.ndarray:
    """How far each spot is, in pixels, from where its place on the map says; those that are cut are left out."""
    shown = np.asarray(picture.read().convert("L"), float)
    columns, rows = mapped(~picture.transform, *spots(picture.crs))
    found = []
    for column, row in zip(columns, rows, strict=True):
        left, top = int(column) - 10, int(row) - 10
        part = shown[max(top, 0) : top + 21, max(left, 0) : left + 21]
        if left < 0 or top < 0 or part.shape != (21, 21) or part.max() == 255:
            continue
        weight = np.clip(part - 40, 0, None)
        y, x = np.mgrid[0:21, 0:21] + 0.5
        found.append(((weight * x).sum() / weight.sum() + left - column, (weight * y).sum() / weight.sum() + top - row))
    return np.array(found)


TURNED = Affine(8, 5, 0, 4, -8.5, 0)


def turned(crs: str, side: int) -> tuple[Affine, int, int]:
    x, y = centre(crs)
    east, north = mapped(TURNED, side / 2, side / 2)
    return Affine(TURNED.a, TURNED.b, x - east, TURNED.d, TURNED.e, y - north), side, side


def geographic(side: int) -> tuple[Affine, int, int]:
    box = transform_bounds("EPSG:32734", "EPSG:4326", *(value + d for value, d in zip(
        (*centre("EPSG:32734"), *centre("EPSG:32734")), (-1000, -1000, 1000, 1000), strict=True
    )))  # fmt: skip
    left, bottom, right, top = box
    return Affine((right - left) / side, 0, left, 0, (bottom - top) / side, top), side, side


GRIDS = {
    "utm34s": ("EPSG:32734", lambda: around("EPSG:32734", 10, 200), 10),
    "shifted": ("EPSG:32734", lambda: around("EPSG:32734", 10, 185), 10),
    "fine": ("EPSG:32734", lambda: around("EPSG:32734", 7, 285), 7),
    "utm35s": ("EPSG:32735", lambda: around("EPSG:32735", 10, 200), 10),
    "lonlat": ("EPSG:4326", lambda: geographic(220), 2000 / 220),
    "turned": ("EPSG:32734", lambda: turned("EPSG:32734", 200), 9.5),
    "mercator": ("EPSG:3857", lambda: around("EPSG:3857", 10, 220), 9.3),
}


@pytest.mark.parametrize("pair", list(itertools.permutations(GRIDS, 2)), ids="-".join)
def test_features_keep_their_place_on_any_grid(pair, tmp_path):
    paths = []
    for name in pair:
        crs, grid, metres = GRIDS[name]
        paths.append(planted(tmp_path / f"{name}.tif", crs, *grid(), metres))
    before, after = open_pair(*paths)
    with before, after:
        assert before.size == after.size
        assert before.crs == GRIDS[pair[0]][0] and before.transform.almost_equals(after.transform, 1e-6)
        for picture in (before, after):
            found = offsets(picture)
            assert len(found) >= 6
            assert np.abs(found).max() < 0.5, picture.source
        assert any("brought from" in note for note in after.notes)


def test_the_same_grid_is_not_resampled(tmp_path):
    one, other = (np.random.default_rng(i).integers(0, 256, (3, 40, 50), dtype=np.uint8) for i in (0, 1))
    before, after = open_pair(write_raster(tmp_path / "a.tif", one), write_raster(tmp_path / "b.tif", other))
    with before, after:
        assert (np.asarray(after.read()) == np.moveaxis(other, 0, -1)).all()
        assert before.size == after.size == (50, 40) and not before.notes and not after.notes


def test_whole_pixels_apart_are_cut_not_resampled(tmp_path):
    one, other = (np.random.default_rng(i).integers(0, 256, (3, 40, 50), dtype=np.uint8) for i in (0, 1))
    paths = (
        write_raster(tmp_path / "a.tif", one),
        write_raster(tmp_path / "b.tif", other, origin=(600000 - 70, 5000040 - 110)),
    )
    before, after = open_pair(*paths)
    with before, after:
        assert before.size == after.size == (43, 29)
        assert (np.asarray(before.read()) == np.moveaxis(one[:, 11:, :43], 0, -1)).all()
        assert (np.asarray(after.read()) == np.moveaxis(other[:, :29, 7:], 0, -1)).all()
        assert before.transform == after.transform == Affine(10, 0, 600000, 0, -10, 5000040 - 110)
        assert before.notes == ["a.tif: cut to the 43 x 29 of its 50 x 40 pixels that b.tif covers"]
        part = Window(3, 4, 10, 12)
        assert (np.asarray(after.read(part)) == np.moveaxis(other[:, 3:13, 11:23], 0, -1)).all()
    before, after = open_pair(*paths, bbox=(600100, 5000040 - 300, 600200, 5000040 - 200))
    with before, after:
        assert (np.asarray(after.read()) == np.moveaxis(other[:, 9:19, 17:27], 0, -1)).all()


def test_what_is_missing_stays_missing(tmp_path):
    """Nodata, NaN and alpha do not leak into their neighbours, and what the second does not cover is white."""
    values = np.full((3, 60, 60), 90, np.uint8)
    before = write_raster(tmp_path / "before.tif", values)
    hole = np.s_[..., 20:40, 20:40]
    cases = {}
    nodata = values.copy()
    nodata[hole] = 0
    cases["nodata"] = write_raster(tmp_path / "nodata.tif", nodata, origin=(600003, 5000036), nodata=0)
    cases["said"] = write_raster(tmp_path / "said.tif", nodata, origin=(600003, 5000036))
    alpha = np.concatenate([nodata, np.full((1, 60, 60), 255, np.uint8)])
    alpha[3][hole] = 0
    cases["alpha"] = write_raster(
        tmp_path / "alpha.tif", alpha, origin=(600003, 5000036), photometric="rgb", alpha="yes"
    )
    numbers = np.where(nodata == 0, np.nan, nodata).astype(np.float32)
    cases["nan"] = write_raster(tmp_path / "nan.tif", numbers, origin=(600003, 5000036))
    cases["mask"] = write_raster(
        tmp_path / "mask.tif", values, origin=(600003, 5000036), mask=np.where(nodata[0] == 0, 0, 255).astype(np.uint8)
    )
    for name, path in cases.items():
        first, second = open_pair(before, path, stretch="none", **({"nodata": 0} if name == "said" else {}))
        with first, second:
            shown = np.asarray(second.read())
            assert second.size == (60, 60), name
            assert (shown[22:38, 22:38] == 255).all(), name
            colours = shown[1:, 1:].reshape(-1, 3)
            mixed = ((colours > 95) & (colours < 250)).any(axis=1).mean()
            assert (colours > 85).all() and mixed < 0.05, name
            assert 0.8 < second.valid() < 0.93, name


def test_a_palette_is_not_mixed(tmp_path):
    values = np.random.default_rng(0).integers(0, 3, (1, 40, 40), dtype=np.uint8)
    path = write_raster(tmp_path / "classes.tif", values, origin=(600004, 5000037), colours=["palette"])
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (200, 0, 0, 255), 2: (0, 0, 250, 255)})
        assert file.colorinterp == (ColorInterp.palette,)
    before, after = open_pair(write_raster(tmp_path / "a.tif", np.repeat(values, 3, axis=0)), path)
    with before, after:
        colours = {tuple(colour) for colour in np.asarray(after.read()).reshape(-1, 3)}
        assert colours <= {(10, 20, 30), (200, 0, 0), (0, 0, 250), (255, 255, 255)}
        assert "(nearest)" in after.notes[-1]


def test_a_large_one_covers_a_small_one(tmp_path):
    """A map of the world, most of which has no place in the small one's zone."""
    world = np.repeat(np.linspace(0, 250, 360, dtype=np.uint8)[None, None], 180, axis=1).repeat(3, axis=0)
    path = write_raster(tmp_path / "world.tif", world, crs="EPSG:4326", transform=Affine(1, 0, -180, 0, -1, 90))
    small = write_raster(
        tmp_path / "small.tif",
        np.zeros((3, 50, 50), np.uint8),
        crs="EPSG:32734",
        transform=around("EPSG:32734", 10, 50)[0],
    )
    before, after = open_pair(small, path)
    with before, after:
        assert after.size == (50, 50) and after.valid() == 1
        assert np.abs(np.asarray(after.read(), int) - (180 + 24 - 0.5) / 359 * 250).max() < 2


def test_without_a_place_sizes_must_agree(tmp_path):
    pictures = [Image.new("RGB", (30, 20), (i, i, i)) for i in (10, 20)]
    before, after = open_pair(*pictures)
    with before, after:
        assert before.size == after.size and not before.warnings
    with pytest.raises(InputError, match=r"has 30 x 20 pixels and the image 30 x 21, and .* not georeferenced"):
        open_pair(pictures[0], Image.new("RGB", (30, 21)))
    placed = write_raster(tmp_path / "a.tif", np.zeros((3, 20, 30), np.uint8))
    for pair in ((placed, pictures[1]), (pictures[0], placed)):
        before, after = open_pair(*pair)
        with before, after:
            assert before.crs == after.crs == "EPSG:32632" and before.transform == after.transform
            warned = [*before.warnings, *after.warnings]
            assert warned == ["the image is not georeferenced: taken to lie as a.tif does, which was not checked"]


def test_places_apart_are_refused(tmp_path):
    before = write_raster(tmp_path / "a.tif", np.zeros((3, 20, 20), np.uint8))
    for name, options in {
        "beside": {"origin": (600000 + 200, 5000040)},
        "far": {"crs": "EPSG:32755", "origin": (600000, 5000040)},
        "lonlat": {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 100, 0, -0.1, 10)},
    }.items():
        after = write_raster(tmp_path / f"{name}.tif", np.full((3, 20, 20), 9, np.uint8), **options)
        with pytest.raises(InputError, match=r"no common area: a\.tif around 600100, 4999940 in EPSG:32632"):
            open_pair(before, after)


def test_opened_pictures_stay_open(tmp_path):
    values = np.full((3, 40, 50), 7, np.uint8)
    one = open_picture(write_raster(tmp_path / "a.tif", values))
    two = open_picture(write_raster(tmp_path / "b.tif", values, origin=(600003, 5000036)))
    with one, two:
        before, after = open_pair(one, two)
        with before, after:
            assert before.size == after.size
        assert (np.asarray(one.read()) == 7).all() and (np.asarray(two.read()) == 7).all()
        assert not one.notes and not two.notes  # those of the pair are its own
