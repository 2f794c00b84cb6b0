"""Pyramids: the plain models' weights and maps, at strides 4, 8, 16 and 32."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

import eo_zoo
from eo_zoo import registry, sensors, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.pyramid import Pyramid, resample
from tests.models.families import multimae_inputs

PLAIN = [name for name in eo_zoo.list_models() if name.startswith(("smarties", "multimae"))]
TINY = dict(embed_dim=64, num_heads=4)


def create(name: str, **kwargs) -> Pyramid:
    torch.manual_seed(0)
    return timm.create_model(f"{name}_pyramid", features_only=True, **kwargs).eval()


class TestResample:
    def test_larger_is_linear_between_the_centres(self):
        ramp = torch.arange(4.0).expand(1, 2, 3, 4)
        found = resample(ramp, 8, 4)
        assert found.shape == (1, 2, 6, 8)
        torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))

    def test_smaller_is_the_mean_of_what_is_there(self):
        x = torch.arange(7.0).expand(1, 1, 2, 7)
        assert resample(x, 8, 16).tolist() == [[[[0.5, 2.5, 4.5, 6.0]]]]
        assert resample(x, 8, 32).tolist() == [[[[1.5, 5.0]]]]

    def test_the_same_stride_is_left_alone(self):
        x = torch.randn(1, 1, 2, 2)
        assert resample(x, 8, 8) is x


class TestNames:
    def test_every_plain_transformer_has_one(self):
        assert {name.removesuffix("_pyramid") for name in timm.list_models("*_pyramid", module="pyramid")} == set(PLAIN)

    @pytest.mark.parametrize("name", PLAIN)
    def test_it_is_no_model_of_its_own(self, name):
        pyramid = f"{name}_pyramid"
        assert pyramid not in eo_zoo.list_models() and pyramid not in timm.list_pretrained()
        assert not any(record.startswith(pyramid) for record in weights.RECORDS)
        with pytest.raises(InputError, match=f"add features_only=True, or take {name} "):
            timm.create_model(pyramid)

    @pytest.mark.parametrize("name", PLAIN)
    def test_on_the_meta_device_as_decoders_look_at_it(self, name):
        with torch.device("meta"):
            pyramid = timm.create_model(f"{name}_pyramid", features_only=True)
        assert all(parameter.is_meta for parameter in pyramid.parameters())
        assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
        assert pyramid.feature_info.channels() == 4 * [pyramid.model.num_features]
        depth = len(pyramid.model.blocks)
        assert [int(n.split(".")[1]) + 1 for n in pyramid.feature_info.module_name()] == [
            depth // 4, depth // 2, 3 * depth // 4, depth,
        ]  # fmt: skip
        assert registry.record_of(pyramid) == registry.get_record(name)


class TestWeights:
    def test_pretrained_gives_those_of_the_plain_name(self):
        pyramid = create("smarties_vit_nano", pretrained=True)
        plain = timm.create_model("smarties_vit_nano", pretrained=True)
        found, expected = pyramid.model.state_dict(), plain.state_dict()
        assert set(expected) - set(found) == {"norm.weight", "norm.bias"}  # behind the last map
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert pyramid.model.weights_origin == plain.weights_origin and pyramid.model.weights_origin.verified
        assert eo_zoo.info(pyramid) == eo_zoo.info(plain)

    def test_a_tag_is_the_plain_names(self, monkeypatch):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        with torch.device("meta"):
            pyramid = timm.create_model("smarties_vit_base_pyramid.eurosat_finetune", features_only=True)
        assert registry.record_of(pyramid).name == "smarties_vit_base.eurosat_finetune" and pyramid.in_chans == 13
        with pytest.raises(RuntimeError, match="nonsense"):
            create("smarties_vit_base", pretrained_cfg="nonsense")

    def test_none_are_made_up(self):
        with pytest.raises(InputError, match="no weights are published for multimae_eo_large"):
            create("multimae_eo_large", pretrained=True)

    def test_a_file_is_checked_strictly(self, tmp_path):
        tensors = timm.create_model("smarties_vit_nano", pretrained=True).state_dict()
        save_file(tensors, whole := tmp_path / "whole.safetensors")
        pyramid = create("smarties_vit_nano", pretrained=True, pretrained_cfg_overlay=dict(file=whole))
        assert torch.equal(pyramid.model.cls_token, tensors["cls_token"])
        save_file({n: t for n, t in tensors.items() if n != "cls_token"}, part := tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match="cls_token"):
            create("smarties_vit_nano", pretrained=True, pretrained_cfg_overlay=dict(file=part))


class TestMaps:
    @torch.no_grad()
    def test_they_are_the_plain_models_resampled(self):
        pyramid = create("smarties_vit_nano", pretrained=True)
        plain = eo_zoo.create_model("smarties_vit_nano", dynamic_img_size=True)
        x = torch.randn(2, 12, 64, 96)
        maps, own = pyramid(x), plain.forward_intermediates(x, intermediates_only=True)
        assert [tuple(made.shape) for made in maps] == [(2, 128, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
        assert torch.equal(maps[1], own[1])
        torch.testing.assert_close(maps[0], torch.nn.functional.interpolate(own[0], scale_factor=2, mode="bilinear"))
        torch.testing.assert_close(maps[2], own[2].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)))
        torch.testing.assert_close(maps[3], own[3].unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).mean((3, 5)))

    @torch.no_grad()
    def test_one_size_if_asked_for(self):
        pyramid = create("smarties_vit_nano", dynamic_img_size=False, img_size=64)
        assert len(pyramid(torch.randn(1, 12, 64, 64))) == 4
        with pytest.raises(InputError, match="built for 64 x 64"):
            pyramid(torch.randn(1, 12, 96, 96))

    @torch.no_grad()
    def test_sizes_that_32_does_not_divide_are_rounded_up(self):
        assert [made.shape[-1] for made in create("smarties_vit_nano")(torch.randn(1, 12, 56, 56))] == [14, 7, 4, 2]

    @torch.no_grad()
    @pytest.mark.parametrize(
        ("indices", "levels"), [((0, 1), [0, 1]), ((2,), [2]), (2, [2, 3]), ((-1, 0), [3, 0]), ((1, 1), [1, 1])]
    )
    def test_some_of_them(self, indices, levels):
        x = torch.randn(1, 12, 64, 64)
        every, some = (
            create("smarties_vit_nano", pretrained=True, **kwargs) for kwargs in ({}, {"out_indices": indices})
        )
        assert some.feature_info.reduction() == [(4, 8, 16, 32)[level] for level in levels]
        maps = every(x)
        torch.testing.assert_close(some(x), [maps[level] for level in levels], atol=0, rtol=0)
        assert len(some.model.blocks) == max(levels) + 1

    @torch.no_grad()
    def test_fewer_blocks_than_maps(self):
        pyramid = create("multimae_eo_base", depth=3, **TINY)
        assert pyramid.feature_info.module_name() == ["blocks.0", "blocks.1", "blocks.2", "blocks.2"]
        assert [made.shape[-1] for made in pyramid(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]

    @torch.no_grad()
    def test_export(self):
        pyramid = create("smarties_vit_nano")
        x = torch.randn(1, 12, 64, 64)
        torch.testing.assert_close(torch.export.export(pyramid, (x,)).module()(x), pyramid(x))


class TestInputs:
    @pytest.mark.parametrize(
        ("options", "channels"),
        [
            ({}, 12),
            ({"sensor": "S1"}, 2),
            ({"sensor": "RGB", "in_chans": 3}, 3),
            ({"sensor": "S2-L1C"}, 13),
            ({"bands": ["B04", "B03", "B02", "B08"], "in_chans": 4}, 4),
        ],
    )
    def test_bands_as_the_plain_model_has_them(self, options, channels):
        pyramid = create("smarties_vit_nano", **options)
        assert pyramid.in_chans == channels and len(pyramid(torch.randn(1, channels, 64, 64))) == 4

    @pytest.mark.parametrize("channels", [2, 3, 13])
    def test_bands_are_never_guessed(self, channels):
        with pytest.raises(
            InputError, match=rf"in_chans={channels}, but .* 12 bands .*: give bands=\[...\] or sensor="
        ):
            create("smarties_vit_nano", in_chans=channels)

    def test_two_sensors_side_by_side(self):
        bands = [*sensors.get_sensor("S1").band_names, *sensors.get_sensor("S2").band_names]
        pyramid = create("smarties_vit_nano", bands=bands, mix="plain")
        assert pyramid.feature_info.channels() == 4 * [256]
        assert {made.shape[1] for made in pyramid(torch.randn(1, 14, 64, 64))} == {256}

    @pytest.mark.parametrize(
        ("domain", "channels"), [("rgb", 3), ("ired", 3), ("sired", 2), ("ebands", 2), ("depth", 1)]
    )
    def test_one_domain_of_multimae(self, domain, channels):
        pyramid = create("multimae_eo_base", in_domains=(domain,), in_chans=channels, **TINY)
        x = multimae_inputs([domain], size=64)[domain]
        assert [made.shape[-1] for made in pyramid(x)] == [16, 8, 4, 2]

    def test_what_multimae_refuses(self):
        assert create("multimae_eo_base", **TINY).model.in_domains == ("rgb",)
        with pytest.raises(InputError, match="features_only is for one domain, got rgb, depth"):
            create("multimae_eo_base", in_domains=("rgb", "depth"), **TINY)
        with pytest.raises(InputError, match="rgb has 3 channels"):
            create("multimae_eo_base", in_chans=12, **TINY)

    def test_patches_that_no_stride_fits(self):
        with pytest.raises(InputError, match="power of two, got 12"):
            create("multimae_eo_base", patch_size=12, img_size=48, **TINY)
