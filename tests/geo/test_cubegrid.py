"""Where a cube's pixels lie, in the words of the libraries that write them, or on an image beside it."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from eo_zoo.errors import InputError
from eo_zoo.geo.cubegrid import grid_of
from eo_zoo.geo.grid import Grid
from tests.geo.series_data import cube, values

UTM = CRS.from_epsg(32632)
WKT = UTM.to_wkt()
BOUNDS = (600000, 5000040 - 120, 600160, 5000040)


def placed(data, place=None, gsd=None, dims=("y", "x")):
    notes: list[str] = []
    grid, northward = grid_of(data, data["reflectance"], dims, place, gsd, notes)
    return grid, northward, notes


def plain():
    return cube(values(0)[None], crs=None)


def mapped(name, **attrs):
    data = plain().assign_coords({name: ((), 0, attrs)})
    data["reflectance"].encoding["grid_mapping"] = name
    return data


@pytest.mark.parametrize(
    "data",
    [
        mapped("spatial_ref", crs_wkt=WKT),  # rioxarray, odc
        mapped("utm", grid_mapping_name="transverse_mercator", spatial_ref=WKT),  # GDAL
        plain().assign_coords(spatial_ref=((), 0, {"crs_wkt": WKT})),  # without the attribute that points to it
        plain().assign_coords(epsg=32632),  # stackstac
        plain().assign_coords({"proj:code": "EPSG:32632"}),
        plain().assign_attrs(crs="+proj=utm +zone=32 +datum=WGS84"),
        plain().assign_attrs({"proj:epsg": np.int64(32632)}),
        plain().assign_attrs(_CRS={"wkt": WKT}),  # GDAL's Zarr
    ],
)
def test_crs_as_libraries_write_it(data):
    grid, northward, notes = placed(data)
    assert grid.crs == UTM and grid.bounds == BOUNDS and not northward and not notes


def test_rows_from_south_to_north():
    grid, northward, _ = placed(plain().isel(y=slice(None, None, -1)).assign_attrs(crs=32632))
    assert grid.bounds == BOUNDS and northward


def plain_degrees():
    data = plain().rename(y="lat", x="lon")
    rows, columns = 47 - 0.01 * np.arange(12, dtype=np.float32), 11 + 0.01 * np.arange(16, dtype=np.float32)
    return data.assign_coords(
        lat=("lat", rows, {"units": "degrees_north"}), lon=("lon", columns, {"units": "degrees_east"})
    )


def test_latitude_and_longitude_are_wgs84():
    grid, _, _ = placed(plain_degrees(), dims=("lat", "lon"))
    assert grid.crs == CRS.from_epsg(4326)
    assert np.allclose(grid.bounds, (10.995, 46.885, 11.155, 47.005), atol=1e-4)


def test_a_single_pixel_needs_gdals_numbers():
    one = plain().isel(x=[0], y=[0])
    with pytest.raises(InputError, match="has a CRS, but no coordinates along y and x"):
        placed(one.assign_attrs(crs=32632))
    grid, _, _ = placed(one.assign_attrs(crs=32632, GeoTransform="600000 250 0 5000040 0 -250"))
    assert grid == Grid(UTM, Affine(250, 0, 600000, 0, -250, 5000040), 1, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (plain(), "has no CRS, so its place is unknown"),
        (plain().assign_attrs(crs="EPSG:99"), "its CRS 'EPSG:99' .crs. cannot be used"),
        (plain().assign_attrs(crs='LOCAL_CS["here",UNIT["metre",1]]'), "its CRS is local"),
        (plain().assign_attrs(crs=32632).isel(x=[0, 1, 5]), "coordinate x is not evenly spaced"),
        (plain().assign_attrs(crs=32632).isel(x=slice(None, None, -1)), "columns run from east to west"),
        (plain().assign_attrs(crs=32632).assign_coords(x=list("abcdefghijklmnop")), "x does not hold numbers"),
    ],
)
def test_places_that_cannot_be_used(data, words):
    with pytest.raises(InputError, match=f"reflectance: .*{words}"):
        placed(data)


# ---- on an image ----


def image(pixels, pixel=0.2, crs=UTM):
    return Grid(crs, Affine(pixel, 0, 600000, 0, -pixel, 5000040), pixels, pixels)


@pytest.mark.parametrize(("pixels", "left"), [(300, 0), (304, 0.4), (305, 0.4), (320, 2)])
def test_centred_on_whole_pixels_of_an_image(pixels, left):
    data = plain().isel(x=slice(6), y=slice(6))
    grid, northward, notes = placed(data, image(pixels), 10)
    expected = (600000 + left, 5000040 - left - 60, 600060 + left, 5000040 - left)
    assert grid.bounds == pytest.approx(expected, rel=0, abs=1e-6)
    assert grid.crs == UTM and not northward and "centred on the image beside it" in notes[0]


def test_on_an_image_in_feet():
    feet = CRS.from_epsg(2263)
    grid, _, _ = placed(plain().isel(x=slice(6), y=slice(6)), image(197, 1, feet), 10)
    assert grid.crs == feet and grid.gsd == pytest.approx(10)


@pytest.mark.parametrize(
    ("place", "gsd", "words"),
    [
        (image(304), None, "the size of its pixels must be given"),
        (image(400), 10, r"6 x 6 pixels of 10 m are 60 x 60, the image is 80 x 80"),
        (image(304, crs=CRS.from_epsg(4326)), 10, "image in a projected CRS"),
    ],
)
def test_images_that_give_no_place(place, gsd, words):
    with pytest.raises(InputError, match=words):
        placed(plain().isel(x=slice(6), y=slice(6)), place, gsd)


def test_anywhere_is_no_place():
    grid, _, _ = placed(plain(), "anywhere", 10)
    assert not grid.crs and grid.transform.a == 10 and (grid.height, grid.width) == (12, 16)
