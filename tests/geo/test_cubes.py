"""Cubes in HDF5, NetCDF and Zarr: the same numbers whatever the file, and only the window is read."""

from __future__ import annotations

import sys
from datetime import date, datetime

import h5py
import numpy as np
import pytest

from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.geo import cubes
from eo_zoo.geo.grid import Grid
from tests.geo.series_data import DATES, THREE, cube, opened, treesatai, values

pytestmark = pytest.mark.filterwarnings("ignore:The data type:Warning")  # Zarr 3 has no text of fixed length

DAYS = tuple(datetime.strptime(text, "%Y%m%d").date() for text in DATES)
STORED = np.stack([values(seed) for seed in range(3)])
SAVE = {
    ".nc": lambda data, path: data.to_netcdf(path, engine="h5netcdf"),
    ".zarr": lambda data, path: data.to_zarr(path, consolidated=False),
}


def saved(data, folder, suffix=".nc"):
    path = folder / f"cube{suffix}"
    SAVE[suffix](data, path)
    return path


def whole(source, **said):
    with opened(source, **said) as series:
        return *series.read(0, 0, series.grid.height, series.grid.width), series


def refused(source, words, **said):
    with pytest.raises(InputError, match=words) as caught:
        opened(source, **said)
    assert "\n" not in str(caught.value)


def test_what_is_stored_is_read(tmp_path):
    for suffix in SAVE:
        found, valid, series = whole(saved(cube(STORED), tmp_path, suffix))
        assert np.array_equal(found, STORED) and found.dtype == np.float32 and valid.all()
        assert series.dates == DAYS and series.bands == ("blue_1", "green_2", "red_2")
        assert series.grid.bounds == (600000, 5000040 - 120, 600160, 5000040) and series.grid.crs.to_epsg() == 32632


def test_order_of_dimensions_rows_bands_and_dates(tmp_path):
    """Rows from south to north, dates and bands not in order, dimensions in another one and with other names."""
    data = (
        cube(STORED).isel(time=[2, 0, 1], band=[1, 2, 0], y=slice(None, None, -1)).transpose("x", "band", "time", "y")
    )
    data = data.rename(x="easting", y="northing", band="channel", time="date")
    found, valid, series = whole(saved(data, tmp_path), order=("B04", "B02", "B04"))
    assert np.array_equal(found, STORED[:, [2, 0, 2]]) and valid.all()
    assert series.dates == DAYS and series.bands == ("red_2", "blue_1", "red_2")
    with opened(tmp_path / "cube.nc", order=("B04", "B02", "B04")) as series:
        assert np.array_equal(series.sample()["red_2"], STORED[:, 2].ravel())


def test_variables_as_bands(tmp_path):
    data = cube(STORED)["reflectance"].to_dataset("band").assign_attrs(crs="EPSG:32632")
    data["SCL"] = (("time", "y", "x"), np.where(np.arange(16) < 3, 9, 4) + np.zeros((3, 12, 1), np.uint8))
    data["elevation_model"] = (("y", "x"), np.zeros((12, 16)))
    found, valid, series = whole(saved(data, tmp_path))
    assert np.array_equal(found[..., 3:], STORED[..., 3:]) and valid[..., 3:].all() and not valid[..., :3].any()
    assert "invalid by SCL: SCL classes 0, 1, 3, 8, 9, 10" in series.notes
    refused(tmp_path / "cube.nc", "no near_infrared_1; there are blue_1, green_2, red_2", order=["B08"])


def test_a_mask_along_the_bands(tmp_path):
    stored = np.concatenate([STORED, np.zeros((3, 1, 12, 16), np.uint16)], axis=1)
    stored[1, 3, 4, 5] = 51
    data = cube(STORED).drop_vars(["reflectance", "band"])
    data["values"] = (("time", "band", "y", "x"), stored)
    names = [*THREE, "cloud_probability"]
    for said, labelled in (({}, data.assign_coords(band=names)), ({"bands": names}, data)):
        valid = whole(saved(labelled, tmp_path), **said)[1]
        assert not valid[1, :, 4, 5].any() and valid.sum() == valid.size - 3


def test_clouds_do_not_leak_into_what_is_resampled(tmp_path):
    stored, scl = np.full((1, 3, 12, 16), 1000, np.uint16), np.full((1, 12, 16), 4, np.uint8)
    stored[..., 3, 4], scl[0, 3, 4] = 60000, 9
    data = cube(stored).assign(SCL=(("time", "y", "x"), scl))
    with opened(saved(data, tmp_path)) as series:
        t = series.grid.transform
        for factor, shape in ((0.5, (24, 32)), (3, (4, 5))):
            grid = Grid(series.grid.crs, t @ t.scale(factor), shape[1], shape[0])
            found, valid = series.on(grid).read(0, 0, *shape)
            assert np.allclose(found[valid], 1000) and valid.all() == (factor == 3)


def test_names_beside_a_numbered_dimension(tmp_path):
    data = cube(STORED).assign_coords(band=[1, 2, 3])
    refused(saved(data, tmp_path), "the 3 bands of reflectance carry no names; give bands")
    refused(tmp_path / "cube.nc", "reflectance has 3 bands, but 2 names", bands=["B02", "B03"])
    refused(tmp_path / "cube.nc", "band given twice: red_2", bands=["B04", "B03", "B04"])
    refused(tmp_path / "cube.nc", "none of VV, VH, - is a band of S2", bands=["VV", "VH", "-"])
    (tmp_path / "b").mkdir()
    for named in (data.assign_coords(common_name=("band", ["blue", "green", "red"])), data.copy()):
        named["reflectance"].attrs["long_name"] = list(THREE)
        assert np.array_equal(whole(saved(named, tmp_path / "b"))[0], STORED)


def test_scale_offset_and_missing_values(tmp_path):
    """CF's attributes are what `open_scene` makes of a GeoTIFF's: reflectance, offset and all, to dn."""
    data = cube(STORED.astype(np.int16))
    data["reflectance"].attrs.update(scale_factor=0.0001, add_offset=-0.1, missing_value=np.int16(STORED[0, 0, 0, 0]))
    found, valid, series = whole(saved(data, tmp_path))
    missing = np.equal(STORED, STORED[0, 0, 0, 0])
    assert np.array_equal(valid, ~missing) and missing.any()
    assert np.array_equal(found, np.where(missing, 0, STORED.astype(np.float32) - 1000))
    assert any("scale 0.0001 and offset -0.1 of the metadata applied; dn = stored - 1000" in n for n in series.notes)
    missing = np.equal(STORED, STORED[1, 1, 1, 1])
    assert np.array_equal(whole(tmp_path / "cube.nc", nodata=int(STORED[1, 1, 1, 1]))[1], ~missing)


def test_nan_is_invalid_and_infinite_is_refused(tmp_path):
    stored = STORED.astype(np.float64)
    stored[0, 1, 2, 3] = np.nan
    found, valid, _ = whole(saved(cube(stored), tmp_path), units="dn")
    assert not valid[0, 1, 2, 3] and valid.sum() == valid.size - 1 and found[0, 1, 2, 3] == 0
    refused(tmp_path / "cube.nc", "cube.nc, band blue_1: the values are float64 without scale")
    stored[0, 1, 2, 3] = np.inf
    with pytest.raises(InputError, match="infinite values near row 0, column 0"):
        whole(saved(cube(stored), tmp_path), units="dn")


def test_power_without_db(tmp_path):
    power = np.full((2, 2, 4, 4), 0.1, np.float32)
    power[1, 1, 2, 3] = 0
    data = cube(np.zeros((2, 3, 4, 4))).drop_vars(["reflectance", "band"])
    data["sigma0"] = (("time", "band", "y", "x"), power)
    path = saved(data.assign_coords(band=["VV", "VH"]), tmp_path)
    said = {"sensor": "S1", "order": ("VH", "VV"), "target_units": "db", "units": "linear"}
    found, valid, series = whole(path, **said)
    assert not valid[1, 0, 2, 3] and valid.sum() == valid.size - 1
    assert np.allclose(found[valid], -10)
    assert series.warnings == ["microwave_2: some values have no value in db (zero or negative power): taken as nodata"]


@pytest.mark.parametrize(
    "times",
    [
        ["2020-02-19", "2020-02-24T10:00", "2020-03-05"],
        [20200219, 20200224, 20200305],
        [f"S2A_MSIL2A_{day}T102421_N0213_R065_T32UNC_{day}T115419" for day in DATES],
    ],
)
def test_dates_as_text_and_numbers(tmp_path, times):
    assert whole(saved(cube(STORED).assign_coords(time=times), tmp_path))[2].dates == DAYS


def test_dates_of_other_calendars(tmp_path):
    pytest.importorskip("cftime")
    data = cube(STORED).assign_coords(
        time=("time", [49, 54, 64], {"units": "days since 2020-01-01", "calendar": "noleap"})
    )
    assert whole(saved(data, tmp_path, ".zarr"))[2].dates == (DAYS[0], DAYS[1], date(2020, 3, 6))


def test_dates_beside_the_dimension(tmp_path):
    data = cube(STORED).drop_vars("time").assign(products=("time", list(DATES)), orbit=("time", [1, 2, 3]))
    assert whole(saved(data, tmp_path))[2].dates == DAYS
    refused(saved(data.assign(other=("time", list(DATES))), tmp_path), "several variables hold dates along time")
    refused(saved(data.drop_vars("products"), tmp_path), "no variable holds dates along time")
    refused(saved(cube(STORED).assign_coords(time=[1, 2, 3]), tmp_path), "time does not hold 3 dates .the first is 1")


def test_one_of_several_variables(tmp_path):
    data = cube(STORED)
    data["other"] = data["reflectance"] + 1
    path = saved(data, tmp_path)
    refused(path, r"several variables could be meant \(reflectance, other\); choose one, as in cube.nc::reflectance")
    assert np.array_equal(whole(f"{path}::other")[0], STORED + 1)
    assert np.array_equal(whole(path, variable="reflectance")[0], STORED)
    refused(path, "no variable 'reflectanse'. Did you mean 'reflectance'", variable="reflectanse")
    refused(path, "time has the dimensions time, expected time, band, y and x", variable="time")


def test_files_that_hold_no_series(tmp_path):
    refused(tmp_path / "missing.nc", "no such file")
    (tmp_path / "text.h5").write_text("no HDF5")
    refused(tmp_path / "text.h5", "text.h5: cannot be read with h5netcdf")
    (tmp_path / "old.nc").write_bytes(b"CDF\x01" + bytes(40))
    refused(tmp_path / "old.nc", "NetCDF 3.*nccopy")
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "cannot be read with zarr")
    refused(
        saved(cube(STORED).isel(time=0), tmp_path), r"no variable has .* time, y and x \(found: reflectance \(band, y"
    )
    refused(saved(cube(STORED).isel(band=0), tmp_path), r"no variable is a band of S2 \(found: reflectance\)")


# ---- laziness ----


def test_only_the_chunks_of_the_window_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cubes, "LOADED", 0)
    path = tmp_path / "cube.zarr"
    cube(STORED).to_zarr(path, zarr_format=2, encoding={"reflectance": {"chunks": (1, 3, 6, 8)}})
    for spoiled in ("2.0.1.1", "2.0.1.0"):
        (path / "reflectance" / spoiled).write_bytes(b"spoiled")
    with opened(path) as series:
        assert np.array_equal(series.read(0, 2, 6, 10)[0], STORED[:, :, :6, 2:12])
        with pytest.raises(InputError, match="reflectance: cannot be read at row 0, column 0"):
            series.read(0, 0, 12, 16)
    with opened(path, end="2020-03-01") as series:
        assert np.array_equal(series.read(0, 0, 12, 16)[0], STORED[:2])


@pytest.mark.parametrize("loaded", [0, 2**30])
def test_a_pixel_is_the_same_through_every_window(tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(cubes, "LOADED", loaded)
    stored = STORED.astype(np.float32)
    stored[1, :, 3, 4] = np.nan
    with opened(
        saved(cube(stored).isel(y=slice(None, None, -1)), tmp_path), units="dn", order=("B04", "B02")
    ) as native:
        t = native.grid.transform
        for grid in (native.grid, Grid(native.grid.crs, t @ t.translation(-3, 2.4) @ t.scale(0.7), 30, 20)):
            series = native.on(grid)
            values_, valid = series.read(-2, -3, grid.height + 4, grid.width + 5)
            assert not valid[:, :, :2].any() and not valid[..., -2:].any()
            for row, col, height, width in ((0, 0, 5, 7), (3, 2, 9, 9), (7, 11, 1, 1), (-1, -3, 4, 6)):
                part, known = series.read(row, col, height, width)
                inside = np.s_[..., row + 2 : row + 2 + height, col + 3 : col + 3 + width]
                assert np.array_equal(part, values_[inside]) and np.array_equal(known, valid[inside])


# ---- TreeSatAI ----


def test_treesatai_by_sensor(tmp_path):
    arrays = treesatai(tmp_path / "series.h5")
    path = tmp_path / "series.h5"
    found, valid, series = whole(path, place="anywhere", gsd=10, order=("B8A", "B02"))
    assert np.array_equal(found, arrays["sen-2-data"][:, [7, 0]]) and valid.all() and series.dates == DAYS
    assert not series.grid.crs
    radar = {"sensor": "S1", "order": ("VV", "VH"), "target_units": "linear", "place": "anywhere"}
    found, valid, series = whole(path, **radar)
    assert np.array_equal(found, arrays["sen-1-asc-data"]) and series.dates == DAYS
    assert any("sen-1-asc-data as in TreeSatAI-TS: VV, VH, linear, not sen-1-des-data" in note for note in series.notes)
    found, valid, series = whole(f"{path}::sen-1-des-data", **radar)
    assert np.array_equal(found, arrays["sen-1-des-data"]) and series.dates == (DAYS[0], *DAYS)
    decibel = whole(path, **{**radar, "target_units": "db"})[0]
    assert np.allclose(decibel, 10 * np.log10(arrays["sen-1-asc-data"]), atol=1e-5)


def test_treesatais_cloud_probability_masks_and_snow_does_not(tmp_path):
    path = tmp_path / "series.h5"
    treesatai(path)
    with h5py.File(path, "r+") as file:
        file["sen-2-masks"][1, 0] = 100
        file["sen-2-masks"][1, 1, 2, 3] = 60
    _, valid, series = whole(path, place="anywhere")
    assert not valid[1, :, 2, 3].any() and valid.sum() == valid.size - 3
    assert "invalid by sen-2-masks: cloud probability above 50 %" in series.notes
    assert whole(path, place="anywhere", max_probability=60)[1].all()
    assert whole(path, place="anywhere", masks="off")[1].all()


def test_offsets_follow_the_products_baseline(tmp_path):
    path = tmp_path / "series.h5"
    stored = treesatai(path, baseline="0500")["sen-2-data"][:, :3]
    found, _, series = whole(path, place="anywhere")
    assert np.array_equal(found, stored) and series.warnings[0].startswith("Sentinel-2 processing baseline 05.00")
    with h5py.File(path, "r+") as file:
        file["sen-2-products"][0] = f"S2A_MSIL2A_{DATES[0]}T102421_N0214_R065_T32UNC_{DATES[0]}T115419"
    found, _, series = whole(path, place="anywhere", boa_offset=-1000)
    assert np.array_equal(found, stored - np.array([0, 1000, 1000], np.float32).reshape(3, 1, 1, 1))
    assert not series.warnings and any("boa_offset -1000 only for dates" in note for note in series.notes)


def test_without_xarray_the_pip_line_is_named(tmp_path, monkeypatch):
    treesatai(tmp_path / "series.h5")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingExtra, match=r'pip install "eo-zoo\[cubes\]"'):
        opened(tmp_path / "series.h5")
