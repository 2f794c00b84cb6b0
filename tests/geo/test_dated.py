from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from eo_zoo.errors import InputError
from eo_zoo.geo.dated import date_by, dated_files, dated_items, dates_in
from tests.geo.rasters import write_raster

DAY = date(2020, 2, 19)


def raster(path: Path, bands: int = 2, **tags: str) -> Path:
    write_raster(path, np.ones((bands, 2, 2), np.uint8))
    if tags:
        with rasterio.open(path, "r+") as file:
            file.update_tags(**tags)
    return path


def days(folder: Path, pattern: str | None = None) -> list[date]:
    return [image.date for image in dated_files(folder, pattern, [])]


def refused(folder: Path, words: str, pattern: str | None = None) -> None:
    with pytest.raises(InputError, match=words) as caught:
        dated_files(folder, pattern, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["20200219", "S2_2020-02-19_B02", "tile_12_2020_02_19_x", "20200219T112109", "2020.02.19", "x20200219112109y"],
)
def test_dates_in_names(name):
    assert dates_in(name) == [DAY]


@pytest.mark.parametrize("name", ["2020050", "20201319", "20200230", "12020021900", "2020-0219", "20200219123", "B04"])
def test_numbers_that_are_no_date(name):
    assert dates_in(name) == []


def test_a_pattern_is_a_strptime_form():
    assert date_by("%Y%j", "MOD09GA.A2020050.h18v04.061") == DAY
    assert date_by("%d-%m-%y", "scene 19-02-20 a") == DAY
    assert date_by("%Y", "ALOS_2020_mosaic") == date(2020, 1, 1)
    assert date_by("A%Y%j.", "x2020001 A2020050.tif") == DAY
    assert date_by("%Y%j", "20200219T112109") is None  # part of a longer number
    assert date_by("%Y%m%d", "20209999_20200219") == DAY


@pytest.mark.parametrize("pattern", ["%Y%b", "%m%d", "*.tif", "%Y%"])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(InputError, match="expected a strptime form with a year"):
        date_by(pattern, "20200219")


def test_files_side_by_side_and_subfolders(tmp_path):
    raster(tmp_path / "flat" / "b_20200305.tif")
    raster(tmp_path / "flat" / "a_20200219.tif")
    (tmp_path / "flat" / "20190101").mkdir()
    raster(tmp_path / "deep" / "2020-02-19" / "B02.tif", 1)
    raster(tmp_path / "deep" / "other" / "x_20200305_B02.tif", 1)
    (tmp_path / "deep" / "notes").mkdir()
    assert sorted(days(tmp_path / "flat")) == sorted(days(tmp_path / "deep")) == [DAY, date(2020, 3, 5)]


def test_bands_of_a_date_are_one_image(tmp_path):
    for band in ("B02", "B03", "SCL"):
        raster(tmp_path / f"T29RKH_20200219T112111_{band}.tif", 1)
    (image,) = dated_files(tmp_path, None, [])
    assert image.date == DAY and len(image.source) == 3


def test_a_products_name_holds_the_baseline_and_two_dates(tmp_path):
    name = "S2A_MSIL2A_20200219T112111_N0500_R037_T29RKH_20230310T123947"
    raster(tmp_path / f"{name}.SAFE" / "GRANULE" / "L2A" / "IMG_DATA" / "R10m" / "T_B02_10m.tif", 1)
    notes: list[str] = []
    (image,) = dated_files(tmp_path, None, notes)
    assert (image.date, image.baseline) == (DAY, "05.00")
    assert notes == ["names hold several dates: the first counts"]


def test_dates_from_metadata(tmp_path):
    raster(tmp_path / "a.tif", ACQUISITION_DATE="2020-02-19T10:00:00Z", TIFFTAG_DATETIME="2023:01:01 00:00:00")
    raster(tmp_path / "b.tif", TIFFTAG_DATETIME="2020:03:05 01:02:03")
    with rasterio.open(raster(tmp_path / "c.tif"), "r+") as file:
        file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2020-04-01 10:00:00")
    notes: list[str] = []
    found = [image.date for image in dated_files(tmp_path, None, notes)]
    assert found == [DAY, date(2020, 3, 5), date(2020, 4, 1)]
    assert notes == ["dates taken from TIFFTAG_DATETIME, which may be when the files were written"]


def test_name_and_metadata_must_agree(tmp_path):
    raster(tmp_path / "20200219.tif", DATETIME="2020-02-20", TIFFTAG_DATETIME="2023:01:01 00:00:00")
    refused(tmp_path, "20200219.tif: its name says 2020-02-19, but its metadata 2020-02-20 .datetime.")
    assert days(tmp_path, "%Y%m%d") == [DAY]
    raster(tmp_path / "20200219.tif", TIFFTAG_DATETIME="2023:01:01 00:00:00")
    assert days(tmp_path) == [DAY]


def test_folders_that_are_no_series(tmp_path):
    refused(tmp_path / "missing", "cannot be read: No such file")
    refused(tmp_path, "no dated rasters in this folder")
    raster(tmp_path / "preview.tif")
    refused(tmp_path, "preview.tif: no date in its name")
    refused(tmp_path, "preview.tif: date_pattern '%Y%j' does not match", "%Y%j")
    raster(tmp_path / "twice" / "20200219_a.tif")
    raster(tmp_path / "twice" / "20200219_b.tif")
    refused(tmp_path / "twice", "2020-02-19: 2 images of one date .*gdalwarp")
    raster(tmp_path / "mask" / "20200219_SCL.tif", 1)
    refused(tmp_path / "mask", "2020-02-19: only a cloud mask")


# ---- STAC ----


def item(**said):
    return {"type": "Feature", "id": "one", "properties": {"datetime": "2020-02-19T11:34:25Z"}, "links": [], **said}


def test_items_know_their_day_and_where_they_came_from():
    warnings: list[str] = []
    spans = {"datetime": None, "start_datetime": "2020-03-05T00:00:00Z", "s2:processing_baseline": "05.09"}
    own = [{"rel": "self", "href": "https://there/item.json"}]
    features = [item(), item(properties=spans, links=own)]
    collection = {"type": "FeatureCollection", "features": features, "links": [{"rel": "next"}]}
    first, second = dated_items(collection, "https://here/list.json", warnings)
    assert (first.date, second.date, second.baseline) == (DAY, date(2020, 3, 5), "05.09")
    assert first.source["links"] == [{"rel": "self", "href": "https://here/list.json"}]
    assert second.source["links"] == own
    assert warnings == ["https://here/list.json: only the first page of a longer list (2 items); ask for more at once"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "found a list"),
        (item(), "found a Feature"),
        ({"type": "FeatureCollection", "features": []}, "found one without items"),
        ({"type": "FeatureCollection", "features": [3]}, "something that is not a STAC item"),
        ({"type": "FeatureCollection", "features": [item(properties={})]}, "item 'one' has no datetime"),
    ],
)
def test_collections_that_are_none(given, words):
    with pytest.raises(InputError, match=words):
        dated_items(given, "list.json", [])
