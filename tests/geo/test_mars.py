"""MaRS over rasters: a pyramid whose last stage has cells of 32 pixels, RGB in any order, and radars of one band."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import eo_zoo
from eo_zoo.errors import InputError
from eo_zoo.geo import embed_raster
from tests.geo.rasters import ORIGIN, write_raster
from tests.models.test_mars import small

PIXEL = 0.5


def image(bands: int, dtype: str, high: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(1, high, (bands, side, side)).astype(dtype)


@pytest.mark.parametrize(("layer", "stride"), [(None, 32), (0, 4), (1, 8), (-2, 16)])
def test_a_stage_is_the_models_own_and_lies_where_the_image_lies(tmp_path, layer, stride):
    values = image(3, "uint8", 255)
    path = write_raster(tmp_path / "scene.tif", values, pixel=PIXEL, colours=["red", "green", "blue"])
    model = small("rgb")
    result = embed_raster(path, model, tmp_path / "out.tif", layer=layer, overlap=0)
    with rasterio.open(tmp_path / "out.tif") as file:
        found, transform = file.read(), file.transform
        assert file.crs.to_epsg() == 32632
    assert transform == Affine(PIXEL * stride, 0, ORIGIN[0], 0, -PIXEL * stride, ORIGIN[1])
    x = eo_zoo.create_transform("mars_base_rgb", size=64)(values[None])
    index = -1 if layer is None else layer
    expected = model.forward_intermediates(x, intermediates_only=True)[index][0].detach().numpy()
    assert result.shape == found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_bands_of_a_file_in_another_order(tmp_path):
    values = image(4, "uint8", 255)
    red_first = write_raster(tmp_path / "rgb.tif", values[:3], pixel=PIXEL, colours=["red", "green", "blue"])
    blue_first = write_raster(tmp_path / "bgrn.tif", values[[2, 1, 0, 3]], pixel=PIXEL)
    maps = []
    for path, bands in ((red_first, None), (blue_first, ["blue", "green", "red", "-"])):
        names = ["red", "green", "blue"] if bands is None else bands[:3]
        result = embed_raster(path, small("rgb", bands=names), tmp_path / f"{path.stem}.out.tif", bands=bands)
        with rasterio.open(result.path) as file:
            maps.append(file.read())
    assert np.array_equal(*maps)


@pytest.mark.parametrize(
    ("sensor", "dtype", "high", "statistics"),
    [("Umbra", "uint8", 255, "mars/Umbra"), ("Capella", "uint16", 20000, "mars/Capella")],
)
def test_radars(tmp_path, sensor, dtype, high, statistics):
    values = image(1, dtype, high)
    path = write_raster(tmp_path / "scene.tif", values, pixel=PIXEL)
    model = small("sar", sensor=sensor)
    result = embed_raster(path, model, tmp_path / "out.tif", sensor=sensor, overlap=0)
    x = eo_zoo.create_transform("mars_base_sar", sensor, size=64)(values[None])
    expected = model.forward_intermediates(x, intermediates_only=True)[3][0].detach().numpy()
    with rasterio.open(result.path) as file:
        np.testing.assert_allclose(file.read(), expected, atol=1e-4 * np.abs(expected).max())
        assert json.loads(file.tags()["STATISTICS"])["name"] == statistics
    # both normalise by mean and standard deviation alone
    assert result.clipped == {} and "clipped" not in result.summary()


def test_a_radar_that_it_was_not_trained_on_needs_statistics_and_is_told(tmp_path, caplog):
    decibels = np.random.default_rng(0).normal(-10, 3, (1, 64, 64)).astype("float32")
    path = write_raster(tmp_path / "vv.tif", decibels, pixel=20)
    with pytest.raises(InputError, match="no statistics for sensor S1, only for Umbra, Capella: give stats"):
        embed_raster(path, "mars_base_sar", tmp_path / "out.tif", sensor="S1")
    result = embed_raster(
        path, small("sar", bands=["VV"]), tmp_path / "out.tif", sensor="S1", stats="smarties/S1", overlap=0
    )
    assert result.shape == (256, 2, 2)
    assert any("was not trained on S1" in warning for warning in result.warnings)


def test_pooling_is_by_average(tmp_path):
    path = write_raster(tmp_path / "scene.tif", image(1, "uint8", 255), pixel=PIXEL)
    vector = embed_raster(path, small("sar"), sensor="Umbra", pool="avg").vector
    assert vector is not None and vector.shape == (256,)
    with pytest.raises(InputError, match="pools by 'avg', not 'token'"):
        embed_raster(path, small("sar"), sensor="Umbra", pool="token")


def test_names_are_checked_before_weights_are_fetched(tmp_path):
    path = write_raster(tmp_path / "scene.tif", image(1, "uint8", 255, 600), pixel=PIXEL)
    with pytest.raises(InputError, match="layer 4 does not exist: the model has 4, so 0 to 3"):
        embed_raster(path, "mars_base_sar", tmp_path / "out.tif", sensor="Umbra", layer=4)
    with torch.inference_mode(), pytest.raises(InputError, match="has no pooling 'token': it has avg, max"):
        embed_raster(path, "mars_base_sar", sensor="Umbra", pool="token")


def test_an_embedding_in_place_of_a_class_map_has_no_class_names(tmp_path):
    path = write_raster(tmp_path / "scene.tif", image(1, "uint8", 255), pixel=PIXEL)
    (tmp_path / "out.tif.aux.xml").write_text("<PAMDataset><Category>Forest</Category></PAMDataset>")
    with pytest.raises(InputError, match=r"out\.tif\.aux\.xml exists"):
        embed_raster(path, small("sar"), tmp_path / "out.tif", sensor="Umbra")
    embed_raster(path, small("sar"), tmp_path / "out.tif", sensor="Umbra", overwrite=True)
    assert not (tmp_path / "out.tif.aux.xml").exists()


def test_weight_sets_of_two_sensors_together_are_not_for_embeddings(tmp_path):
    path = write_raster(tmp_path / "scene.tif", image(1, "uint8", 255), pixel=PIXEL)
    with pytest.raises(InputError, match="takes S2, S1 together, and an embedding is of one input"):
        embed_raster(path, "smarties_vit_base.bigearthnetmm_linprobe", tmp_path / "out.tif")


def test_statistics_recorded_elsewhere_are_named(tmp_path):
    path = write_raster(tmp_path / "vv.tif", image(1, "uint8", 255), pixel=20)
    with pytest.raises(InputError, match=r"give stats, a JSON file or a recorded set \(for S1: .*smarties/S1"):
        embed_raster(path, "mars_base_sar", pool="avg", sensor="S1")
