"""What needs no TerraTorch; the rest is on docs/terratorch.md, which its own environment runs."""

from __future__ import annotations

import enum
import sys

import pytest
import timm
import torch

from eo_zoo import create_transform, sensors
from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.integrations.terratorch import create_backbone, register

HLS = {
    "COASTAL_AEROSOL": "B01", "BLUE": "B02", "GREEN": "B03", "RED": "B04", "RED_EDGE_1": "B05", "RED_EDGE_2": "B06",
    "RED_EDGE_3": "B07", "NIR_BROAD": "B08", "NIR_NARROW": "B8A", "WATER_VAPOR": "B09", "SWIR_1": "B11",
    "SWIR_2": "B12",
}  # fmt: skip
HLSBands = enum.Enum("HLSBands", {name: name for name in HLS})  # as TerraTorch's
SARBands = enum.Enum("SARBands", {name: name for name in ("VV", "VH", "ASC_VV", "DSC_VH")})
S2 = ["B12", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11"]


def test_without_terratorch_the_pip_line_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtra, match=r'"eo-zoo\[terratorch\]"'):
        register()


def test_hls_bands_are_sentinel_2s():
    backbone = create_backbone("smarties_vit_nano", bands=list(HLSBands))
    assert backbone.model.bands == sensors.resolve_bands(list(HLS.values()), "S2")
    assert create_backbone("smarties_vit_nano", bands=["THERMAL_INFRARED_1", "VV"]).model.bands == (
        "thermal_infrared_1",
        "microwave_1",
    )


def test_the_orbit_in_a_radar_bands_name_is_left_out():
    backbone = create_backbone("smarties_vit_nano", bands=[SARBands.ASC_VV, SARBands.DSC_VH, SARBands.VV])
    assert backbone.model.bands == ("microwave_1", "microwave_2", "microwave_1")


@pytest.mark.parametrize("bands", ["RED", [4], ["PANCHROMATIC"]])
def test_bad_bands_are_refused(bands):
    with pytest.raises(InputError, match="band"):
        create_backbone("smarties_vit_nano", bands=bands)


def test_maps_are_those_of_timm():
    bands, x = ["RED", "NIR_NARROW"], torch.randn(2, 2, 112, 112)
    backbone = create_backbone("smarties_vit_nano", True, bands=bands, out_indices=[1, -1])
    plain = timm.create_model("smarties_vit_nano", True, bands=bands, features_only=True, out_indices=(1, 3))
    assert backbone.model.training and backbone.out_channels == [128, 128] and backbone.patch_size == 8
    with torch.inference_mode():
        made = backbone(x, filename=["a", "b"])
        assert all(torch.equal(one, other) for one, other in zip(made, plain.eval()(x), strict=True))


def test_every_parameter_has_a_part_in_the_maps():
    backbone = create_backbone("smarties_vit_nano", out_indices=[1])
    backbone(torch.randn(1, 12, 112, 112))[0].square().mean().backward()
    assert [name for name, one in backbone.named_parameters() if one.grad is None] == []


def test_raw_values_are_scaled_as_the_transform_does():
    x, bands = torch.rand(1, 2, 112, 112) * 5000, ["SWIR_1", "BLUE"]
    raw = create_backbone("smarties_vit_nano", True, bands=bands, normalize=True)
    plain = create_backbone("smarties_vit_nano", True, bands=bands)
    scaled = create_transform("smarties_vit_nano", bands=bands)(x)
    with torch.inference_mode():
        torch.testing.assert_close(raw(x), plain(scaled))
        raw.model.set_input_size((48, 80))
        assert raw(x[..., :48, :80])[0].shape == (1, 128, 6, 10)  # not resized


def test_a_pyramid_is_padded_to_its_last_stage():
    with torch.device("meta"):
        backbone = create_backbone("mars_base_sar", bands=[SARBands.VV])
    assert backbone.out_channels == [128, 256, 512, 1024]
    assert backbone.patch_size == 16  # of which TerraTorch takes twice as much


SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def test_an_image_is_split_into_multimaes_domains():
    x = torch.randn(1, 10, 16, 24)
    backbone = create_backbone("multimae_eo_base", bands=S2, **SMALL)
    assert backbone.model.in_domains == ("rgb", "ired", "sired", "ebands") and backbone.model.training
    with_cirrus = create_backbone("multimae_eo_base", bands=[*S2, "B10"], out_indices=[1], **SMALL)
    assert with_cirrus.model.in_domains == backbone.model.in_domains and len(with_cirrus.out_channels) == 1
    domains = {"rgb": [3, 2, 1], "ired": [4, 5, 6], "sired": [9, 0], "ebands": [8, 7]}
    with torch.inference_mode():
        made = backbone(x)
        maps = backbone.model.forward_intermediates({k: x[:, i] for k, i in domains.items()}, intermediates_only=True)
    for one, other in zip(made, maps, strict=True):
        torch.testing.assert_close(one, torch.stack([other[name] for name in domains]).mean(0))


def test_multimaes_raw_values_are_scaled_by_domain():
    raw = {"S2L2A": torch.rand(1, 10, 16, 16) * 5000, "depth": torch.rand(1, 1, 16, 16) * 500}
    backbone = create_backbone("multimae_eo_base", bands={"S2L2A": S2}, normalize=True, img_size=16, **SMALL)
    scaled = create_transform("multimae_eo_base", bands={"s2": S2}, size=16)({"s2": raw["S2L2A"], "dem": raw["depth"]})
    with torch.inference_mode():
        [*_, made] = backbone(raw)
        [*_, maps] = backbone.model.forward_intermediates(scaled, intermediates_only=True)
    torch.testing.assert_close(made, torch.stack(list(maps.values())).mean(0))


def test_bands_that_hold_no_input_whole_are_refused():
    with pytest.raises(InputError, match=r"hold no input of .* whole: rgb takes"):
        create_backbone("multimae_eo_base", bands=["RED", "GREEN"])
    with pytest.raises(InputError, match="s2 takes"):
        create_backbone("anysat_nano", bands={"s2": ["RED"]})


def test_anysats_series_have_their_bands_before_the_dates():
    x, mask = torch.randn(2, 10, 3, 4, 4), torch.rand(2, 10, 3, 4, 4) < 0.8
    days = torch.tensor([[10, 150, 300]] * 2)
    backbone = create_backbone("anysat_nano", bands={"s2": S2}, inputs=["s2"], scale=2).eval()
    own = [*range(1, 10), 0]  # B12 last
    data = {"s2": x[:, own].transpose(1, 2), "s2_mask": mask[:, own].transpose(1, 2), "s2_dates": days}
    with torch.inference_mode():
        made = backbone({"s2": x, "s2_mask": mask, "s2_dates": days})
        expected = backbone.model.forward_intermediates(data, patch_size=20, intermediates_only=True)
    assert made[-1].shape == (2, 128, 2, 2) and backbone.patch_size is None
    torch.testing.assert_close(made, expected)
    with torch.inference_mode():
        single = backbone({"s2": x, "s2_mask": mask[:, :1], "s2_dates": days})
        data["s2_mask"] = mask[:, :1].transpose(1, 2)
        expected = backbone.model.forward_intermediates(data, patch_size=20, intermediates_only=True)
    torch.testing.assert_close(single, expected)
