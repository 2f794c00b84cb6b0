from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.geo import scenes
from tests.geo.rasters import ORIGIN, write_raster
from tests.geo.series_data import DATES, THREE, band_folder, dated_folder, opened, values


def whole(folder, **said):
    with opened(folder, **said) as series:
        return *series.read(0, 0, series.grid.height, series.grid.width), series


def put(folder, date, bands, **options):
    return write_raster(folder / f"{date}.tif", bands, descriptions=THREE, **options)


@pytest.mark.parametrize("kept", [0, 3, 100])
def test_files_beyond_the_limit_are_opened_again(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(scenes, "KEPT_OPEN", kept)
    stored = band_folder(tmp_path)
    with opened(tmp_path) as series:
        found, valid = series.read(0, 0, 12, 16)
        part, _ = series.on(series.grid).read(3, 4, 5, 6)
    assert np.array_equal(found, stored) and valid.all()
    assert np.array_equal(part, stored[:, :, 3:8, 4:10])


def test_a_date_may_cover_a_part(tmp_path):
    stored = dated_folder(tmp_path)
    put(tmp_path, DATES[1], stored[1, :, 2:, 3:], origin=(ORIGIN[0] + 30, ORIGIN[1] - 20))
    found, valid, series = whole(tmp_path)
    expected = np.ones(found.shape, bool)
    expected[1, :, :2], expected[1, :, :, :3] = False, False
    assert np.array_equal(valid, expected)
    assert np.array_equal(found, np.where(expected, stored, 0))
    assert any(note.startswith("cover only a part") and note.endswith("2020-02-24") for note in series.notes)


def test_dates_on_other_pixels_are_resampled(tmp_path):
    stored = dated_folder(tmp_path)
    put(tmp_path, DATES[1], stored[1, :, ::2, ::2], pixel=20)
    found, valid, series = whole(tmp_path)
    assert found.shape == stored.shape and valid.all()
    assert np.array_equal(found[[0, 2]], stored[[0, 2]])
    mean = found[1].reshape(3, 6, 2, 8, 2).mean(axis=(2, 4))[:, 1:-1, 1:-1]
    assert np.abs(mean - stored[1, :, ::2, ::2][:, 1:-1, 1:-1]).mean() < 1500  # smoothed, but the same image
    assert "resampled to the pixels of the finest date (10): 2020-02-24" in series.notes


def test_images_of_one_date_are_mosaicked(tmp_path):
    stored = values(0)
    put(tmp_path / "20200219_west", "a", stored[:, :, :10])
    put(tmp_path / "20200219_east", "a", stored[:, :, 8:] + 1, origin=(ORIGIN[0] + 80, ORIGIN[1]))
    found, valid, series = whole(tmp_path)
    assert len(series.dates) == 1 and valid.all()
    assert np.array_equal(found[0, :, :, :8], stored[:, :, :8])
    assert np.array_equal(found[0, :, :, 8:], stored[:, :, 8:] + 1)  # the first by name where both are
    assert any("mosaicked" in note for note in series.notes)


def test_other_places_and_projections(tmp_path):
    dated_folder(tmp_path)
    put(tmp_path, DATES[1], values(1), origin=(ORIGIN[0] + 100, ORIGIN[1]))
    with pytest.raises(InputError, match=r"2020-02-19 covers 600000, .* 2020-02-24 600100, .*gdalwarp -te"):
        opened(tmp_path)
    put(tmp_path, DATES[1], values(1), crs="EPSG:32633")
    with pytest.raises(InputError, match=r"2020-02-19 \(20200219.tif\) EPSG:32632, 2020-02-24 .* EPSG:32633"):
        opened(tmp_path)


def test_a_band_missing_at_one_date(tmp_path):
    band_folder(tmp_path)
    (tmp_path / DATES[2] / "B03.tif").unlink()
    with pytest.raises(InputError, match=r"2020-03-05 \(20200305\): no green_2 at this date; there are blue_1, red_2"):
        opened(tmp_path)


def test_other_bands_at_one_date(tmp_path):
    dated_folder(tmp_path, descriptions=())
    write_raster(tmp_path / f"{DATES[1]}.tif", values(1, count=4))
    with pytest.raises(InputError, match=r"2020-02-24: 20200224.tif has 4 bands, but --bands names 3"):
        opened(tmp_path, bands=THREE)


def test_sentences_of_dates_become_one(tmp_path):
    dated_folder(tmp_path)
    put(tmp_path, DATES[1], values(1), scale=0.0001)
    _, _, series = whole(tmp_path)
    assert sum("dn = stored" in note for note in series.notes) == 2
    assert any(note.startswith("2020-02-19, 2020-03-05: all bands: no units") for note in series.notes)
    assert any(note.startswith("2020-02-24: all bands: scale 0.0001") for note in series.notes)


def test_sentences_that_differ_by_names_of_products_become_one(tmp_path):
    """Satellite and baseline differ too, not the date alone."""
    names = [f"S2{'AB'[at % 2]}_MSIL2A_{day}T112111_N0{at}00" for at, day in enumerate(DATES)]
    for name in names:
        write_raster(tmp_path / f"{name}.tif", values(1), descriptions=THREE)
        write_raster(tmp_path / f"{name}_SCL.tif", np.full((12, 16), 4, np.uint8))
    _, _, series = whole(tmp_path)
    assert [note for note in series.notes if "SCL" in note] == [
        f"invalid by {names[0]}_SCL.tif: SCL classes 0, 1, 3, 8, 9, 10 (and alike)"
    ]


def test_what_opening_warned_of_is_said_once(tmp_path):
    for day, baseline in zip(DATES, ("0214", "0400", "0509"), strict=True):
        write_raster(tmp_path / f"S2A_MSIL2A_{day}T112111_N{baseline}_R037.tif", values(1), descriptions=THREE)
    _, _, series = whole(tmp_path)
    assert [text.split(": ")[0] for text in series.warnings] == ["2020-02-24", "2020-03-05"]
