from __future__ import annotations

import numpy as np
import pytest
import torch

import eo_zoo
from eo_zoo import sensors
from eo_zoo.errors import InputError


def test_normalise_then_resize():
    statistics = sensors.get_statistics("smarties/S2-L2A")
    x = np.random.default_rng(0).integers(0, 6000, (2, 12, 64, 64)).astype(np.uint16)
    out = eo_zoo.create_transform("smarties_vit_base")(x)
    assert out.shape == (2, 12, 224, 224) and out.dtype == torch.float32
    normalised = sensors.normalize(torch.as_tensor(x), statistics)
    expected = torch.nn.functional.interpolate(normalised, (224, 224), mode="bicubic", antialias=True)
    torch.testing.assert_close(out, expected)


def test_bands_by_name_and_other_statistics():
    x = torch.full((3, 112, 112), 2000.0)
    transform = eo_zoo.create_transform("smarties_vit_nano", bands=["B04", "B03", "B02"])
    chosen = sensors.get_statistics("nano/S2-L2A").select(["red_2", "green_2", "blue_1"])
    torch.testing.assert_close(transform(x), sensors.normalize(x, chosen))
    x = torch.rand(13, 112, 112) * 3000
    own_order = eo_zoo.create_transform("smarties_vit_nano", "S2-L1C", stats="EuroSAT")(x)
    file_order = sensors.reorder(x, "S2-L1C", "eurosat")
    by_file = eo_zoo.create_transform(
        "smarties_vit_nano", "S2-L1C", stats="EuroSAT", bands=sensors.get_order("eurosat")
    )
    torch.testing.assert_close(sensors.reorder(by_file(file_order), "eurosat", "S2-L1C"), own_order)
    eurosat = eo_zoo.create_transform("smarties_vit_base", "S2-L1C", stats="EuroSAT", size=64)
    assert eurosat(torch.zeros(13, 64, 64)).shape == (13, 64, 64)


def test_images_that_are_not_square_and_other_sensors():
    out = eo_zoo.create_transform("smarties_vit_nano", "S1", bands=["VH", "VV"])(torch.full((2, 112, 224), -12.0))
    chosen = sensors.get_statistics("nano/S1").select(["microwave_2", "microwave_1"])
    assert out.shape == (2, 112, 112)
    expected = sensors.normalize(torch.full((2, 112, 112), -12.0), chosen)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16, torch.uint16])
def test_any_type_in_float32_out(dtype):
    x = torch.full((12, 112, 112), 1000).to(dtype)
    assert eo_zoo.create_transform("smarties_vit_nano")(x).dtype == torch.float32


def test_values_are_checked(caplog):
    transform = eo_zoo.create_transform("smarties_vit_nano")
    x = torch.full((12, 112, 112), 1000.0)
    transform(x)
    assert not caplog.records
    eo_zoo.create_transform("smarties_vit_nano", "S1")(torch.full((2, 112, 112), -5.0))
    transform(torch.zeros(12, 112, 112))
    assert not caplog.records
    transform(transform(x))
    assert "normalised already" in caplog.text
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="NaN or infinite"):
            transform(torch.where(torch.rand(12, 112, 112) < 0.01, value, x))
    graph = torch.export.export(transform, (x,)).module()  # no value check inside a graph
    torch.testing.assert_close(graph(x), transform(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sensor="S3"), "unknown sensor"),
        (dict(sensor="MODIS"), "none for MODIS"),
        (dict(sensor="AERIAL"), "anysat/aerial"),
        (dict(bands=["B10"]), "B10"),
        (dict(sensor="S1", stats="EuroSAT"), "microwave_1"),
        (dict(stats="EuroSat2"), "EuroSAT"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        eo_zoo.create_transform("smarties_vit_base", **arguments)
