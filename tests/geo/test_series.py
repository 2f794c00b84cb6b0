"""What a series promises whatever it is made of."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from eo_zoo.errors import InputError
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.scene import open_scene
from eo_zoo.sensors import get_order
from tests.geo.rasters import ORIGIN, s2_folder, write_raster
from tests.geo.series_data import DATES, band_folder, collection, cube, dated_folder, opened, treesatai

DAYS = tuple(datetime.strptime(text, "%Y%m%d").date() for text in DATES)
CROP = Path(__file__).parents[1] / "data" / "treesatai"
ITEMS = {f"{text[:4]}-{text[4:6]}-{text[6:]}": {} for text in DATES}


def refused(source, words, **said):
    with pytest.raises(InputError, match=words) as caught:
        opened(source, **said)
    assert "\n" not in str(caught.value)


def as_folder(path):
    return path, dated_folder(path)


def as_bands(path):
    return path, band_folder(path)


def as_bands_side_by_side(path):
    return path, band_folder(path, "T29_{date}T112109_{band}_10m.tif")


def as_items(path):
    return collection(path, ITEMS)


def as_cube(path):
    stored = dated_folder(path)
    cube(stored).to_netcdf(path / "cube.nc", engine="h5netcdf")
    return path / "cube.nc", stored


FORMS = [as_folder, as_bands, as_bands_side_by_side, as_items, as_cube]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(tmp_path, form):
    source, stored = form(tmp_path)
    with opened(source, order=("B04", "B02")) as series:
        assert series.dates == DAYS and series.bands == ("red_2", "blue_1")
        assert (series.sensor, series.units) == ("S2", "dn")
        assert series.grid.bounds == (600000, 5000040 - 120, 600160, 5000040)
        found, valid = series.read(-1, 2, 9, 16)
        samples = series.sample()
    assert found.dtype == np.float32 and found.shape == (3, 2, 9, 16)
    inside = np.s_[:, :, 1:, :14]
    assert np.array_equal(found[inside], stored[:, [2, 0], :8, 2:]) and valid[inside].all()
    assert valid.sum() == valid[inside].size and not found[~valid].any()
    assert np.array_equal(np.sort(samples["red_2"]), np.sort(stored[:, 2].ravel()))


@pytest.mark.parametrize("form", FORMS)
def test_a_pixel_is_the_same_through_every_window(tmp_path, form):
    source, _ = form(tmp_path)
    with opened(source) as native:
        t = native.grid.transform
        finer = Grid(native.grid.crs, t @ t.translation(-3, 2.4) @ t.scale(0.7), 30, 20)
        coarser = Grid(native.grid.crs, t @ t.translation(1, 1) @ t.scale(3), 6, 5)
        for grid in (native.grid, finer, coarser):
            series = native.on(grid)
            assert series.grid == grid
            found, valid = series.read(0, 0, grid.height, grid.width)
            for row, col, height, width in ((0, 0, 4, 6), (3, 2, 2, 3), (2, 4, 1, 1)):
                part, known = series.read(row, col, height, width)
                window = np.s_[..., row : row + height, col : col + width]
                assert np.array_equal(part, found[window]) and np.array_equal(known, valid[window])


@pytest.mark.parametrize("form", FORMS)
def test_resampled_to_30_metres_is_the_mean(tmp_path, form):
    source, stored = form(tmp_path)
    with opened(source) as native:
        t = native.grid.transform
        found, valid = native.on(Grid(native.grid.crs, t @ t.scale(3), 7, 4)).read(0, 0, 4, 7)
    assert np.allclose(found[..., :5], stored[..., :15].reshape(3, 3, 4, 3, 5, 3).mean(axis=(3, 5)), rtol=1e-5)
    assert valid[..., :5].all() and not valid[..., 5:].any()  # the last pixel's centre lies beyond


def test_what_a_scene_of_the_date_would_give(tmp_path):
    """Bands of 10, 20 and 60 m and the clouds' own pixels: a series adds nothing of its own."""
    for text in DATES[:2]:
        s2_folder(tmp_path / text, size=240)
    bands = get_order("anysat/s2")
    with (
        opened(tmp_path, order=bands) as series,
        open_scene(tmp_path / DATES[1], default_sensor="S2", accepts=bands, target_units="dn") as scene,
    ):
        found, valid = series.read(0, 0, 24, 24)
        image, known = scene.on(scene.grid, bands).read(0, 0, 24, 24)
    assert series.bands == bands and np.array_equal(found[1], image) and np.array_equal(valid[1], known)


# ---- dates ----


@pytest.mark.parametrize("form", FORMS)
def test_some_of_the_dates(tmp_path, form):
    source, stored = form(tmp_path)
    for said, places in (
        ({"start": "2020-02-20"}, [1, 2]),
        ({"end": date(2020, 2, 24)}, [0, 1]),
        ({"start": datetime(2020, 2, 24, 10), "end": "2020-02-24"}, [1]),
        ({"max_dates": 2}, [0, 2]),
        ({"max_dates": 5}, [0, 1, 2]),
    ):
        with opened(source, **said) as series:
            assert series.dates == tuple(DAYS[place] for place in places)
            assert np.array_equal(series.read(0, 0, 12, 16)[0], stored[places])
            assert any("of 3 dates" in note for note in series.notes) == (len(places) < 3)


def test_dates_that_cannot_be_had(tmp_path):
    dated_folder(tmp_path)
    refused(tmp_path, "no date from 2021-01-01 to the last; the series has 3, from 2020-02-19 to", start="2021-01-01")
    refused(tmp_path, "start is 'spring', expected a date", start="spring")
    refused(tmp_path, "max_dates is 0", max_dates=0)


def test_a_date_pattern(tmp_path):
    dated_folder(tmp_path, "A2020{date}_30000101.tif", dates=("050", "055", "065"))
    refused(tmp_path, "A2020050_30000101.tif: no date in its name")
    with opened(tmp_path, date_pattern="A%Y%j_") as series:
        assert series.dates == DAYS


# ---- values ----


def test_baselines_and_offsets_differ_between_items(tmp_path):
    """The old item has none, the new one holds -0.1 in its metadata, the third had it taken off already."""
    applied = {"offset": -0.1, "properties": {"earthsearch:boa_offset_applied": True}}
    said = [{}, {"offset": -0.1, "properties": {"s2:processing_baseline": "05.09"}}, applied]
    path, stored = collection(tmp_path, dict(zip(ITEMS, said, strict=True)))
    with opened(path) as series:
        found, valid = series.read(0, 0, 12, 16)
        assert not series.warnings
    assert valid.all()
    assert np.array_equal(found, stored - np.array([0, 1000, 0], np.float32).reshape(3, 1, 1, 1))


def test_an_offset_is_for_new_baselines_only(tmp_path):
    old = {"properties": {"s2:processing_baseline": "02.14"}, "scale": None, "offset": None}
    new = {"properties": {"s2:processing_baseline": "05.00"}, "scale": None, "offset": None}
    path, stored = collection(tmp_path, dict(zip(ITEMS, (old, new, new), strict=True)))
    with opened(path) as series:
        assert series.warnings[0].startswith("2020-02-24, 2020-03-05: Sentinel-2 processing baseline 05.00")
    with opened(path, boa_offset=-1000) as series:
        found, _ = series.read(0, 0, 12, 16)
        assert any("boa_offset -1000 only for dates" in note for note in series.notes) and not series.warnings
    assert np.array_equal(found, stored - np.array([0, 1000, 1000], np.float32).reshape(3, 1, 1, 1))


def test_nodata_and_units_are_as_of_a_scene(tmp_path):
    stored = dated_folder(tmp_path)
    missing = np.equal(stored, stored[1, 1, 1, 1])
    with opened(tmp_path, nodata=int(stored[1, 1, 1, 1]), target_units="reflectance", units="dn") as series:
        found, valid = series.read(0, 0, 12, 16)
    assert np.array_equal(valid, ~missing)
    assert np.allclose(found, np.where(missing, 0, stored / 10000))


def test_ratios_are_made_in_the_units_of_the_model(tmp_path):
    power = np.random.default_rng(0).uniform(0.01, 0.4, (2, 4, 4)).astype(np.float32)
    power[1, 0, 0], power[0, 1, 1], power[1, 2, 2] = 0, np.nan, 1e-12
    write_raster(tmp_path / "20200219.tif", power, descriptions=("VV", "VH"))
    said = {"order": get_order("anysat/s1"), "sensor": "S1", "units": "linear"}
    with opened(tmp_path, target_units="linear", **said) as series:
        assert series.bands == ("microwave_1", "microwave_2", "microwave_ratio")
        found, valid = (array[0] for array in series.read(0, 0, 4, 4))
        assert "microwave_ratio: made as microwave_1 / microwave_2 in linear" in series.notes
    assert not valid[2, 1, 1] and valid[2].sum() == 15 and found[2, 1, 1] == 0
    assert found[2, 0, 0] == 1e4  # clamped
    ordinary = valid[2] & (power[1] > 0.001)
    assert np.allclose(found[2][ordinary], power[0][ordinary] / power[1][ordinary], rtol=1e-5)
    with opened(tmp_path, target_units="db", **said) as series:
        found, valid = (array[0] for array in series.read(0, 0, 4, 4))
        assert series.warnings == [
            "microwave_2: some values have no value in db (zero or negative power): taken as nodata"
        ]
    assert not valid[2, 0, 0]  # no dB of 0
    assert np.allclose(found[2][valid[2]], found[0][valid[2]] / found[1][valid[2]], rtol=1e-5)
    with opened(tmp_path, target_units="db", ratio="difference", **said) as series:
        found, valid = (array[0] for array in series.read(0, 0, 4, 4))
    assert np.array_equal(found[2][valid[2]], (found[0] - found[1])[valid[2]])
    refused(tmp_path, "ratio is 'product', expected quotient or difference", ratio="product")


# ---- places ----


def test_treesatai_lies_on_its_aerial_image(tmp_path):
    arrays = treesatai(tmp_path / "series.h5")
    image = write_raster(tmp_path / "aerial.tif", np.ones((304, 304), np.uint8), pixel=0.2)
    refused(tmp_path / "series.h5", "has no CRS, so its place is unknown")
    with open_scene(image, default_sensor="RGB", accepts={"red_1"}, bands=["R"], target_units="uint8") as scene:
        place = scene.grid
    with opened(tmp_path / "series.h5", place=place, gsd=10, order=get_order("anysat/s2")) as series:
        expected = (ORIGIN[0] + 0.4, ORIGIN[1] - 60.4, ORIGIN[0] + 60.4, ORIGIN[1] - 0.4)
        assert series.grid.bounds == pytest.approx(expected, rel=0, abs=1e-6)
        assert np.array_equal(series.read(0, 0, 6, 6)[0], arrays["sen-2-data"])
        part, valid = series.on(series.grid.window((600020.4, 4999979.6, 600050.4, 5000039.6))).read(0, 0, 6, 3)
        assert np.array_equal(part, arrays["sen-2-data"][..., 2:5]) and valid.all()


def test_a_real_crop():
    """TreeSatAI's own file: every fact that the made-up one has in common with it is read from it."""
    said = {"place": "anywhere", "gsd": 10}
    with h5py.File(CROP / "series.h5") as file:
        raw, cloud = file["sen-2-data"][:], file["sen-2-masks"][:, 1:2]
        names = [name.decode() for name in file["sen-2-products"][:]]
    with opened(CROP / "series.h5", order=get_order("anysat/s2"), **said) as series:
        found, valid = series.read(0, 0, 2, 2)
        assert series.dates == tuple(datetime.strptime(name[11:19], "%Y%m%d").date() for name in names)
    assert np.array_equal(valid, np.broadcast_to(cloud <= 50, raw.shape)) and valid.any() and not valid.all()
    assert np.array_equal(found, np.where(valid, raw, 0))


def test_other_projections_and_no_place(tmp_path):
    dated_folder(tmp_path)
    treesatai(tmp_path / "series.h5")
    elsewhere = Grid(CRS.from_epsg(32633), Affine(10, 0, 600000, 0, -10, 5000040), 4, 4)
    with pytest.raises(InputError, match="the series is in EPSG:32632, the pixels wanted are in EPSG:32633"):
        opened(tmp_path).on(elsewhere)
    with pytest.raises(InputError, match="the series is without a place, the pixels wanted are in EPSG:32633"):
        opened(tmp_path / "series.h5", place="anywhere").on(elsewhere)


# ---- what is asked ----


def test_sources_and_orders_that_cannot_be_read(tmp_path):
    dated_folder(tmp_path)
    refused(tmp_path / "nowhere", "nowhere: no such file or folder; expected a folder of dated rasters")
    refused(tmp_path / "20200219.tif", "20200219.tif: one file, not a series")
    refused(f"{tmp_path}::B02", "has no variables to choose from")
    refused({"type": "Feature"}, "expected a STAC item collection .*, found a Feature")
    refused(tmp_path, "order names no band", order=())
    refused(tmp_path, "unknown band 'B99' of S2", order=("B99",))
    refused(tmp_path, "2020-02-19: the model takes none of the bands found", order=("B08",))
    refused(tmp_path, r"2020-02-19 \(20200219.tif\): no near_infrared_1 at this date", order=("B02", "B08"))


def test_descriptions_are_not_guessed(tmp_path):
    stored = dated_folder(tmp_path, descriptions=())
    refused(tmp_path, "2020-02-19: 20200219.tif: its 3 bands carry no names; give --bands with 3 names")
    with opened(tmp_path, bands=["B04", "-", "B02"], order=("B02", "B04")) as series:
        assert np.array_equal(series.read(0, 0, 12, 16)[0], stored[:, [2, 0]])


def test_files_are_closed(tmp_path):
    dated_folder(tmp_path)
    series = opened(tmp_path)
    series.close()
    with pytest.raises(InputError, match="cannot be read"):
        series.read(0, 0, 2, 2)
