"""Which bands of a file are meant: places that are left out, and files whose sensor has one band."""

from __future__ import annotations

import numpy as np

from tests.geo.rasters import smooth, write_raster
from tests.geo.test_scene import opened, refused, three


def test_a_place_that_is_left_out(tmp_path):
    path, values = three(tmp_path)
    with opened(path, bands=["B04", "-", "B02"]) as scene:
        assert scene.bands == ("red_2", "blue_1")
        assert np.array_equal(scene.read(0, 0, 40, 50)[0], values[[0, 2]])
    refused(path, "has 3 bands, but --bands names 2", bands=["B04", "-"])
    refused(path, "expected a list of band names", bands=["-", "-", "-"])


def test_what_a_file_says_of_a_place_that_is_left_out_does_not_matter(tmp_path):
    path, _ = three(tmp_path, descriptions=["B02", "B03", "B04"])
    with opened(path, bands=["B02", "-", "B04"]) as scene:
        assert not scene.warnings
    refused(three(tmp_path)[0], "or - for one that is not to be used")


def test_the_only_band_of_a_stated_sensor_needs_no_name(tmp_path):
    path = write_raster(tmp_path / "scene.tif", smooth(0, 40, 50).astype("uint8"), pixel=0.5)
    radar = dict(accepts={"umbra_amplitude"}, default_sensor="Umbra", target_units="uint8")
    with opened(path, sensor="umbra", **radar) as scene:
        assert scene.bands == ("umbra_amplitude",)
    refused(path, "carries no name; give --sensor Umbra if it is from there", **radar)
    two = write_raster(tmp_path / "two.tif", np.ones((2, 40, 50), "uint8"))
    refused(two, "2 bands carry no names", sensor="Umbra", **radar)
    one = write_raster(tmp_path / "one.tif", np.ones((1, 40, 50), "uint16"))
    refused(one, "holds a band of S2", sensor="S2")
