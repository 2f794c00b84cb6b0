"""Clouds are planted, and exactly these pixels become invalid."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.geo.clouds import Clouds
from eo_zoo.geo.names import cloud_kind
from tests.geo.rasters import ORIGIN, stac_item, write_raster
from tests.geo.series_data import DATES, THREE, dated_folder, opened, values


def read(folder, **said):
    with opened(folder, **said) as series:
        return *series.read(0, 0, series.grid.height, series.grid.width), series.notes


@pytest.fixture
def folder(tmp_path):
    """Three dates at 10 m; beside them SCL at 20 m, vegetation but for a cloud (9) and snow (11) at the second date."""
    dated_folder(tmp_path)
    for date in DATES:
        scl = np.full((6, 8), 4, np.uint8)
        if date == DATES[1]:
            scl[1, 2], scl[4, 5] = 9, 11
        write_raster(tmp_path / f"{date}_SCL.tif", scl, pixel=20, nodata=0)
    return tmp_path


def test_classes_mask_their_own_pixels(folder):
    found, valid, notes = read(folder)
    cloud = np.zeros((3, 3, 12, 16), bool)
    cloud[1, :, 2:4, 4:6] = True
    assert np.array_equal(~valid, cloud)
    assert (found[cloud] == 0).all() and (found[~cloud] > 0).all()
    assert any("_SCL.tif: SCL classes 0, 1, 3, 8, 9, 10" in note for note in notes)
    with opened(folder) as series:
        for row, col, height, width in ((1, 3, 4, 9), (3, 5, 1, 1), (2, -2, 20, 7)):
            rows, columns = slice(max(row, 0), row + height), slice(max(col, 0), col + width)
            part = series.read(row, col, height, width)[1][:, :, : 12 - row, max(-col, 0) :]
            assert np.array_equal(part, valid[:, :, rows, columns])


def test_classes_to_mask_are_settable(folder):
    snow = np.zeros((3, 3, 12, 16), bool)
    snow[1, :, 8:10, 10:12] = True
    assert np.array_equal(~read(folder, scl_invalid=[11])[1], snow)
    assert read(folder, masks="off")[1].all()
    assert "cloud masks not used: 20200219_SCL.tif (and alike)" in read(folder, masks="off")[2]


def test_clouds_do_not_leak_into_what_is_resampled(folder):
    """A cloud of 60000 dn: neither bilinear nor averaged neighbours hold any of it, and 2 of 9 pixels mask no cell."""
    bright = np.full((3, 12, 16), 1000, np.uint16)
    bright[:, 2:4, 4:6] = 60000
    write_raster(folder / f"{DATES[1]}.tif", bright, descriptions=THREE)
    with opened(folder) as series:
        for step, shape in ((5, (24, 32)), (30, (4, 5))):
            grid = series.grid.window(series.grid.bounds)
            grid = type(grid)(grid.crs, grid.transform @ grid.transform.scale(step / 10), shape[1], shape[0])
            found, valid = series.on(grid).read(0, 0, *shape)
            assert np.allclose(found[1][valid[1]], 1000) and valid[1].all() == (step == 30)


def test_a_mask_that_does_not_reach_everywhere(folder):
    for date in DATES:
        write_raster(folder / f"{date}_SCL.tif", np.full((6, 4), 4, np.uint8), pixel=20)
    valid = read(folder)[1]
    assert valid[..., :8].all() and not valid[..., 8:].any()


def test_probabilities(tmp_path):
    dated_folder(tmp_path, dates=DATES[:1])
    cloud = np.zeros((12, 16), np.float32)
    cloud[0, :6] = 50, 50.5, 100, 255, -1, np.nan
    write_raster(tmp_path / f"MSK_CLDPRB_{DATES[0]}.tif", cloud)
    expected = np.ones((1, 3, 12, 16), bool)
    expected[:, :, 0, 1:6] = False
    assert np.array_equal(read(tmp_path)[1], expected)
    expected[:, :, 0, 0] = False
    assert np.array_equal(read(tmp_path, max_probability=20)[1], expected)


def test_a_mask_as_a_band_of_the_image(tmp_path):
    stored = np.concatenate([values(0), np.full((1, 12, 16), 4, np.uint16)])
    stored[3, 5, 6] = 8
    for descriptions, said in (((*THREE, "SCL"), {}), ((), {"bands": [*THREE, "SCL"]})):
        write_raster(tmp_path / "20200219.tif", stored, descriptions=descriptions)
        valid = read(tmp_path, **said)[1]
        assert not valid[0, :, 5, 6].any() and valid.sum() == valid.size - 3


def test_masks_of_items(tmp_path):
    for name in (*THREE, "SCL"):
        write_raster(tmp_path / f"{name}.tif", np.full((12, 16), 4, np.uint8 if name == "SCL" else np.uint16))
    scl = {"scl": {"href": "SCL.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}}
    hrefs = {name: f"{name}.tif" for name in THREE}
    item = json.loads(stac_item(tmp_path / "i.json", hrefs, assets=scl).read_text())
    item["links"] = [{"rel": "self", "href": str(tmp_path / "i.json")}]
    assert read({"type": "FeatureCollection", "features": [item]}, masks="scl", scl_invalid=[4])[1].sum() == 0


def test_the_finer_of_two_masks_of_a_product(tmp_path):
    for band in THREE:
        write_raster(tmp_path / "20200219" / "R10m" / f"{band}_10m.tif", np.ones((12, 18), np.uint16))
    for pixel, scl in ((20, 4), (60, 9)):
        stored = np.full((120 // pixel, 180 // pixel), scl, np.uint8)
        write_raster(tmp_path / "20200219" / f"R{pixel}m" / f"SCL_{pixel}m.tif", stored, pixel=pixel)
    assert read(tmp_path)[1].all()


def test_radar_needs_no_mask(tmp_path):
    write_raster(tmp_path / "20200219.tif", np.ones((2, 4, 4), np.float32), descriptions=("VV", "VH"))
    write_raster(tmp_path / "20200219_SCL.tif", np.zeros((4, 4), np.uint8))
    assert read(tmp_path, order=("VV",), sensor="S1", target_units="linear", masks="scl")[1].all()


def test_masks_that_cannot_be_used(folder):
    with pytest.raises(InputError, match=r"2020-02-19: .*no cloud probability found .*found: scl"):
        read(folder, masks="probability")
    (folder / f"{DATES[1]}_SCL.tif").unlink()
    with pytest.raises(InputError, match="2020-02-24 has no cloud mask, other dates do"):
        read(folder)
    write_raster(
        folder / f"{DATES[1]}_SCL.tif", np.full((6, 8), 4, np.uint8), crs="EPSG:32633", origin=ORIGIN, pixel=20
    )
    with pytest.raises(InputError, match="the cloud mask is in EPSG:32633, the bands in EPSG:32632"):
        read(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"masks": "on"},
        {"scl_invalid": (12,)},
        {"scl_invalid": ("9",)},
        {"max_probability": 101},
        {"max_probability": -1},
    ],
)
def test_rules_that_make_no_sense(said):
    with pytest.raises(InputError, match=f"{next(iter(said))} (is|holds)"):
        Clouds(**said)


def test_names_of_masks():
    assert cloud_kind("T29RKH_20200219T112109_SCL_20m") == cloud_kind("scl") == "scl"
    assert cloud_kind("MSK_CLDPRB_20m") == cloud_kind("cloud_probability") == "probability"
    assert [cloud_kind(text) for text in ("B02", "visual", "cloud", None, "sclera")] == [None] * 5
