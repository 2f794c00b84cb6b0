from __future__ import annotations

import numpy as np
import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm.pictures import open_picture
from tests.geo.rasters import s2_folder, smooth, stac_item, write_raster

RGB = ["red", "green", "blue"]


def bands(count: int) -> np.ndarray:
    """Bytes that tell the bands apart: those of band i are i."""
    return np.arange(1, count + 1, dtype=np.uint8)[:, None, None] * np.ones((1, 20, 30), np.uint8)


def shown(source, **options) -> tuple[list[int], list[str], list[str]]:
    with open_picture(source, **options) as picture:
        pixel = np.asarray(picture.read())[5, 5]
        return pixel.tolist(), picture.notes, picture.warnings


def test_colours_of_the_file_in_any_order(tmp_path):
    path = write_raster(tmp_path / "bgr.tif", bands(4), colours=["blue", "green", "red", "undefined"])
    assert shown(path) == ([3, 2, 1], [], [])


def test_names_go_before_colours_which_gdal_gives_by_place(tmp_path):
    path = write_raster(tmp_path / "a.tif", bands(3), descriptions=["B02", "B03", "B04"], photometric="rgb")
    assert shown(path) == ([3, 2, 1], ["a.tif: bands 3, 2, 1 are shown as red, green, blue, as they are named"], [])


def test_names_of_another_sensor(tmp_path):
    names = ["SR_B2", "SR_B3", "SR_B4", "SR_B5"]
    path = write_raster(tmp_path / "a.tif", bands(4), descriptions=["Blue", "Green", "Red", "NIR"])
    assert shown(path)[0] == shown(path, sensor="L8")[0] == [3, 2, 1]
    path = write_raster(tmp_path / "b.tif", bands(4), descriptions=names, colours=["gray", *["undefined"] * 3])
    assert shown(path, sensor="L8", bands="4,3,2")[0] == [4, 3, 2]


def test_bands_without_names_are_shown_with_a_warning(tmp_path):
    plain = {"colours": ["gray", "undefined", "undefined", "undefined", "undefined"]}
    path = write_raster(tmp_path / "five.tif", bands(5), **plain)
    assert shown(path) == (
        [1, 2, 3],
        [],
        [
            "five.tif: nothing says which of its 5 bands are colours, so the first three are shown as red, green, "
            "blue; give bands"
        ],
    )
    path = write_raster(tmp_path / "two.tif", bands(2), colours=["gray", "undefined"])
    pixel, _, warnings = shown(path)
    assert pixel == [1, 1, 1] and "the first is shown in grey" in warnings[0]
    path = write_raster(tmp_path / "one.tif", bands(1))
    assert shown(path) == ([1, 1, 1], [], [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("4,3,2", [4, 3, 2]),
        ([2, 2, 5], [2, 2, 5]),
        ("3", [3, 3, 3]),
        ("B08,B04,B03", [4, 3, 2]),
        (["nir", "red", "green"], [4, 3, 2]),
        ("B04", [3, 3, 3]),
    ],
)
def test_bands_by_number_or_name(given, expected, tmp_path):
    path = write_raster(tmp_path / "a.tif", bands(5), descriptions=["B02", "B03", "B04", "B08", "other"])
    assert shown(path, bands=given)[0] == expected


def test_wrong_bands_are_refused(tmp_path):
    path = write_raster(tmp_path / "a.tif", bands(4), descriptions=["B02", "B03", "B04", "B08"])
    for given, sentence in {
        "1,2": "give three, to be shown as red, green and blue, or one",
        "": "give three",
        "1,,3": "give three",
        "0,1,2": "numbers start at 1",
        "3,4,5": "has no band 5, only 4",
        "B11,B04,B03": r"none of its 4 bands is called B11 \(names: blue_1, green_2, red_2, .*\); give numbers",
        "purple": "unknown band 'purple'",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_picture(path, bands=given)


def test_alpha_by_place_alone_is_data(tmp_path):
    """Four bands of bytes are written as red, green, blue and alpha, whatever the fourth is."""
    values = np.concatenate([bands(3), smooth(1, 20, 30, 20, 200).astype(np.uint8)[None]])
    path = write_raster(tmp_path / "rgbn.tif", values, photometric="rgb", alpha="yes")
    pixel, _, warnings = shown(path)
    assert pixel == [1, 2, 3]
    assert warnings == [
        "rgbn.tif: band 4 is marked as alpha, but most of its values are neither 0 nor 255: taken as data, not as a "
        "mask"
    ]
    pixel, _, warnings = shown(path, bands="4,1,2")
    assert pixel == [values[3, 5, 5], 1, 2] and not warnings
    named = write_raster(
        tmp_path / "named.tif", bands(4), photometric="rgb", alpha="yes", descriptions=["B04", "B03", "B02", "B08"]
    )
    pixel, _, warnings = shown(named)
    assert pixel == [1, 2, 3] and "but it is named near_infrared" in warnings[0]


def test_folder_and_item_without_colours(tmp_path):
    radar = {name: write_raster(tmp_path / f"{name}.tif", smooth(i, 20, 20)) for i, name in enumerate(("vh", "vv"))}
    with open_picture(stac_item_of_radar(tmp_path, radar)) as picture:
        assert "is shown in grey; give bands" in picture.warnings[0]
        assert len({*np.asarray(picture.read())[3, 3].tolist()}) == 1
    folder = s2_folder(tmp_path / "s2", size=300, without=["B02"])
    with open_picture(folder) as picture:
        assert "no red, green and blue among" in picture.warnings[0]
    with open_picture(folder, bands="B12,B8A,B04") as picture:
        assert picture.size == (30, 30)
        assert any(note.startswith("shown as red, green, blue: B12 (s2/B12.tif), ") for note in picture.notes)
        assert any("resampled to pixels of 10 (bilinear)" in note for note in picture.notes)
    with pytest.raises(InputError, match="bands: blue_1 not found; there are "):
        open_picture(folder, bands="B04,B03,B02")
    with pytest.raises(InputError, match="given by number, but each band is a file of its own"):
        open_picture(folder, bands="3,2,1")


def stac_item_of_radar(folder, paths):
    assets = {
        name: {"href": str(path), "type": "image/tiff", "roles": ["data"]} for name, path in paths.items()
    }  # as many providers write them: no band objects, the key says it
    return stac_item(folder / "s1.json", {}, properties={"platform": "sentinel-1a"}, assets=assets)
