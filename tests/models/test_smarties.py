from __future__ import annotations

import json
import logging

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import eo_zoo
from eo_zoo import sensors
from eo_zoo.errors import DownloadError, InputError, WeightsError
from eo_zoo.models.smarties import (
    SmartiesVisionTransformer,
    mixing,
    projected_bands,
    resample_positions,
    sincos_positions,
    spectrum,
)
from tests.procedural import PARITY, forge, manifest, uniform, weight

TINY = dict(patch_size=16, img_size=224, embed_dim=64, depth=2, num_heads=4)
CASES = json.loads((PARITY / "smarties.cases.json").read_text())["cases"]
S2 = sensors.get_sensor("S2").band_names


def official(size: str, dim: int, *, fc_norm: bool = False, part: str = "encoder") -> dict[str, torch.Tensor]:
    """A forged official checkpoint; with ``fc_norm`` in the layout of fine-tuning with average pooling."""
    rows = manifest(f"smarties_{size}", part)
    if fc_norm:
        rows = [[key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key, *rest] for key, *rest in rows]
    tables = {"pos_embed": sincos_positions(dim, 14, 14), "decoder_pos_embed": sincos_positions(512, 14, 14)}
    return forge(rows, tables)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def check_cases(size: str, token_model: nn.Module | None, avg_model: nn.Module | None) -> int:
    """Compare with all expected results of the models that are given."""
    expected = load_file(PARITY / f"smarties_{size}.safetensors")
    checked = 0
    for case in CASES:
        model = avg_model if case["mode"] == "global_pool" else token_model
        if case["size"] != size or model is None:
            continue
        bands = case["bands"]
        x = uniform(f"{case['case']}/image", (2, len(bands), 224, 224))
        if case["mode"] == "all_tokens":
            found = model.forward_intermediates(x, indices=1, bands=bands, intermediates_only=True)[0]
        else:
            found = model(x, bands=bands)
        assert list(found.shape) == case["shape"]
        close(found[:, :: case["channel_stride"]], expected[case["key"]])
        checked += 1
    return checked


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_file(official("tiny", 64), folder / "token.safetensors")
    save_file(official("tiny", 64, fc_norm=True), folder / "avg.safetensors")
    return folder


def tiny(path=None, **kwargs):
    overlay = dict(file=str(path)) if path else None
    return timm.create_model(
        "smarties_vit_nano", pretrained=path is not None, pretrained_cfg_overlay=overlay, **{**TINY, **kwargs}
    ).eval()


def test_tiny_cases_agree(tiny_files):
    count = check_cases(
        "tiny",
        tiny(tiny_files / "token.safetensors"),
        tiny(tiny_files / "avg.safetensors", global_pool="avg"),
    )
    assert count == 15


@pytest.mark.slow
def test_base_cases_agree_through_timm_and_hub(tmp_path, monkeypatch):
    token, avg = tmp_path / "smarties-v1-vitb.safetensors", tmp_path / "avg.pth"
    save_file(official("base", 768, part="pretraining"), token)
    torch.save({"model": official("base", 768, fc_norm=True)}, avg)
    by_timm = timm.create_model("smarties_vit_base", pretrained=True, pretrained_cfg_overlay=dict(file=str(token)))
    averaged = eo_zoo.create_model("smarties_vit_base", weights=avg, global_pool="avg")
    assert check_cases("base", by_timm.eval(), averaged) == 15
    repo = PARITY.parents[2]
    by_hub = torch.hub.load(str(repo), "smarties_vit_base", source="local", weights=token)
    assert not by_hub.training and not by_hub.weights_origin.verified
    x = uniform("s1/image", (2, 2, 224, 224))
    with torch.no_grad():
        assert torch.equal(by_hub(x, sensor="S1"), by_timm(x, sensor="S1"))


@pytest.mark.slow
def test_large_fits_its_manifest(tmp_path):
    save_file(official("large", 1024), tmp_path / "large.safetensors")
    model = eo_zoo.create_model("smarties_vit_large", weights=tmp_path / "large.safetensors")
    key = "blocks.23.attn.qkv.weight"
    assert torch.equal(model.state_dict()[key], weight(key, (3072, 1024)))


class TestBands:
    def test_mixing_averages_and_scales_by_twelve(self):
        names, rows = mixing(("VV", "VH"), "S1")
        assert names == ("microwave_1", "microwave_2")
        assert rows[0][15] == rows[1][16] == 6.0 and sum(map(sum, rows)) == 12.0

    def test_the_farther_projection_counts_more(self):
        rows = mixing(("blue_2",), None)[1][0]
        distance = [abs(482.0 - 442.5), abs(482.0 - 492.5)]
        assert rows[0] == pytest.approx(12 * distance[0] / sum(distance))
        assert rows[1] == pytest.approx(12 * distance[1] / sum(distance))

    @torch.no_grad()
    def test_a_repeated_band_weighs_twice(self):
        model, x = tiny(), torch.randn(1, 1, 224, 224)
        once = model(x, bands=["B02"])
        torch.testing.assert_close(model(x.expand(-1, 2, -1, -1), bands=["B02", "B02"]), once, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_construction_and_call_agree(self):
        torch.manual_seed(0)
        at_construction = tiny(sensor="S1")
        at_call = tiny()
        at_call.load_state_dict(at_construction.state_dict())
        x = torch.randn(1, 2, 224, 224)
        assert torch.equal(at_construction(x), at_call(x, sensor="S1"))
        assert torch.equal(at_construction(x), at_call(x, bands=["vv", "VH"], sensor="S1"))
        assert at_construction.in_chans == 2 and at_construction.bands == ("microwave_1", "microwave_2")

    @torch.no_grad()
    def test_names_of_other_sensors_that_are_unambiguous(self):
        model, x = tiny(), torch.randn(1, 2, 224, 224)
        assert torch.equal(model(x, bands=["VV", "VH"]), model(x, sensor="S1"))
        assert model(x, bands=["B04", "VV"]).shape == (1, 64)
        # the sensor of construction is the vocabulary of later calls: blue of RGB is not blue of Sentinel-2
        rgb = tiny(sensor="RGB")
        assert torch.equal(rgb(x, bands=["blue", "red"]), rgb(x, bands=["blue_3", "red_1"]))
        assert torch.equal(model(x, bands=["blue", "red"]), model(x, bands=["blue_1", "red_2"]))

    @torch.no_grad()
    def test_l1c_skips_b10(self):
        model, x = tiny(), torch.randn(1, 13, 224, 224)
        keep = [i for i in range(13) if i != 10]
        torch.testing.assert_close(model(x, sensor="S2-L1C"), model(x[:, keep]), atol=1e-5, rtol=1e-5)

    def test_spectrum_table_is_whole(self):
        table = spectrum()
        assert len(table) == 20 and len(projected_bands()) == 19
        assert sorted(r["projection"] for r in table.values() if r.get("projection") is not None) == list(range(17))

    @pytest.mark.parametrize(
        ("kwargs", "channels", "message"),
        [
            (dict(sensor="S2"), 3, "got 3 channels but 12 bands"),
            (dict(bands=["B02", "B99"]), 2, "B99"),
            (dict(bands=["short_wave_infrared_2"]), 1, "leave it out"),
            (dict(bands=["rededge"]), 1, "red_edge_1"),
            (dict(bands=["B03"], sensor="L8"), 1, "no projection"),
            (dict(bands=[]), 1, "bands is empty"),
            (dict(bands="B04"), 1, "expected a list"),
            (dict(bands=["nonsense"]), 1, "nonsense"),
        ],
    )
    def test_wrong_bands(self, kwargs, channels, message):
        with pytest.raises(InputError, match=message):
            tiny()(torch.randn(1, channels, 224, 224), **kwargs)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.zeros(12, 224, 224), "expected an image batch"),
            (torch.zeros(1, 12, 224, 224, dtype=torch.int16), "normalise first"),
            (torch.zeros(1, 12, 192, 192), "img_size="),
            (torch.zeros(1, 12, 224, 208), "224 x 208"),
        ],
    )
    def test_wrong_images(self, x, message):
        with pytest.raises(InputError, match=message):
            tiny()(x)

    def test_in_chans_is_not_guessed(self):
        with pytest.raises(InputError, match="in_chans=3"):
            tiny(in_chans=3)
        assert tiny(sensor="RGB", in_chans=3).in_chans == 3


@pytest.mark.parametrize(
    "option", [dict(reg_tokens=4), dict(class_token=False), dict(pre_norm=True), dict(weight_init="skip")]
)
def test_options_that_smarties_does_not_have(option):
    with pytest.raises(InputError, match=f"has no {next(iter(option))}"):
        tiny(**option)


def test_positions_by_their_formula():
    table = sincos_positions(64, 3, 5)
    assert table.shape == (1, 16, 64) and not table[0, 0].any()
    grid = table[0, 1:].reshape(3, 5, 64)
    angle = 4 * 10000 ** (-torch.arange(16, dtype=torch.float64) / 16)
    # column 4 in row 2: the first half is the column's, sines before cosines, the second half the row's
    torch.testing.assert_close(grid[2, 4, :32], torch.cat([angle.sin(), angle.cos()]).float())
    torch.testing.assert_close(grid[2, 4, 32:48], (angle / 2).sin().float())
    assert torch.equal(grid[0, 4, :32], grid[2, 4, :32]) and torch.equal(grid[2, 0, 32:], grid[2, 4, 32:])


def test_norms_have_the_published_eps():
    assert {module.eps for module in tiny(global_pool="avg").modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


class TestSizes:
    @torch.no_grad()
    def test_images_that_are_not_square(self):
        """A wide image through a model built for it, through a dynamic one, and a tall one, all by the same table."""
        wide, dynamic = tiny(img_size=(128, 192)), tiny(dynamic_img_size=True)
        table = resample_positions(dynamic.pos_embed, (14, 14), (8, 12))
        wide.load_state_dict({**dynamic.state_dict(), "pos_embed": table})
        x = torch.randn(1, 12, 128, 192)
        torch.testing.assert_close(wide(x), dynamic(x))
        assert wide.patch_embed.grid_size == (8, 12)
        [grid] = wide.forward_intermediates(x, indices=1, intermediates_only=True)
        assert grid.shape == (1, 64, 8, 12)
        assert not torch.equal(table, resample_positions(dynamic.pos_embed, (14, 14), (12, 8)))
        later = tiny(img_size=(192, 128))
        later.pos_embed.requires_grad_(False)
        later.set_input_size((128, 192))
        assert later.pos_embed.shape == (1, 97, 64) and not later.pos_embed.requires_grad
        with pytest.raises(InputError, match="multiple"):
            later.set_input_size(115)
        assert later.patch_embed.img_size == (128, 192)
        with pytest.raises(InputError, match="fixed at 16"):
            later.set_input_size(patch_size=8)

    def test_positions_are_resampled_without_antialiasing(self):
        model = tiny(img_size=320)
        model.load_state_dict(official("tiny", 64))
        grid = sincos_positions(64, 14, 14)[:, 1:].reshape(1, 14, 14, 64).permute(0, 3, 1, 2)
        expected = nn.functional.interpolate(grid, size=(20, 20), mode="bicubic", align_corners=False)
        torch.testing.assert_close(model.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))

    @torch.no_grad()
    def test_dynamic_fixed_and_set_agree(self):
        dynamic = tiny(dynamic_img_size=True)
        fixed, later = tiny(img_size=160), tiny()
        fixed.load_state_dict({**dynamic.state_dict(), "pos_embed": fixed.pos_embed})
        later.load_state_dict(dynamic.state_dict())
        later.set_input_size(160)
        x = torch.randn(1, 12, 160, 160)
        torch.testing.assert_close(dynamic(x), later(x))
        assert dynamic.forward_intermediates(x, indices=1, intermediates_only=True)[0].shape == (
            1,
            64,
            10,
            10,
        )
        assert fixed(x).shape == (1, 64)

    def test_size_that_no_patch_divides(self):
        with pytest.raises(InputError, match="multiple of the patch size 16"):
            tiny(img_size=230)
        with pytest.raises(InputError, match="multiple of the patch size 16"):
            tiny(dynamic_img_size=True)(torch.zeros(1, 12, 230, 230))


class TestLoading:
    def test_official_names_by_every_door(self, tiny_files, tmp_path):
        file = tiny_files / "token.safetensors"
        reference = tiny(file).state_dict()
        by_checkpoint = timm.create_model("smarties_vit_nano", checkpoint_path=str(file), **TINY)
        overlay = dict(state_dict=load_file(file))
        by_dict = timm.create_model("smarties_vit_nano", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
        prefixed = tmp_path / "remote_code.safetensors"
        save_file({f"smarties.{k}": v for k, v in load_file(file).items()}, prefixed)
        ours = tmp_path / "ours.safetensors"
        save_file({k: v.contiguous() for k, v in reference.items()}, ours)
        for model in (by_checkpoint, by_dict, tiny(prefixed), tiny(ours)):
            assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())
        features = tiny(file, features_only=True, out_indices=2)
        assert torch.equal(features.model.blocks[0].attn.qkv.weight, reference["blocks.0.attn.qkv.weight"])
        # a state dict of ours, saved by anyone
        again = tiny()
        again.load_state_dict(load_file(ours))
        assert all(torch.equal(value, reference[key]) for key, value in again.state_dict().items())

    def test_pretraining_file_gives_its_encoder(self, tmp_path):
        rows = manifest("smarties_tiny_pretraining")
        tables = {
            "pos_embed": sincos_positions(64, 14, 14),
            "decoder_pos_embed": sincos_positions(64, 14, 14),
        }
        save_file(forge(rows, tables), tmp_path / "p.safetensors")
        model = tiny(tmp_path / "p.safetensors")
        assert torch.equal(model.norm.weight, weight("norm.weight", (64,)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("blocks.1.mlp.fc2.bias"), "blocks.1.mlp.fc2.bias"),
            (lambda t: t.update({"extra.weight": torch.zeros(1)}), "extra.weight"),
            (lambda t: t.update({"blocks.2.norm1.weight": torch.zeros(64)}), "blocks.2.norm1.weight"),
            (lambda t: t.pop("spectrum_projection.spectrum_embeds.16.proj.bias"), "16"),
            (lambda t: t.update({"norm.weight": torch.zeros(65)}), "norm.weight"),
        ],
    )
    def test_strict(self, change, message, tmp_path):
        tensors = official("tiny", 64)
        change(tensors)
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(WeightsError, match=message):
            tiny(tmp_path / "x.safetensors")

    def test_weights_say_where_they_are_from(self, tiny_files):
        file = tiny_files / "token.safetensors"
        assert tiny().weights_origin is None
        assert not tiny(file).weights_origin.verified
        model = eo_zoo.create_model("smarties_vit_nano")
        assert model.weights_origin.verified
        model.load_state_dict(model.state_dict())
        assert eo_zoo.info(model)["weights"] == "a state dict (unverified)"
        model = eo_zoo.create_model("smarties_vit_nano")
        whole = nn.ModuleDict({"encoder": model})
        whole.load_state_dict(whole.state_dict())
        assert eo_zoo.info(model)["weights"] == "a state dict (unverified)"
        model.init_weights()
        assert eo_zoo.info(model)["weights"] == "random"
        by_checkpoint = timm.create_model("smarties_vit_nano", checkpoint_path=str(file), **TINY)
        assert "unverified" in eo_zoo.info(by_checkpoint)["weights"]

    def test_meta_device_and_pretrained(self):
        with torch.device("meta"), pytest.raises(InputError, match="meta device"):
            timm.create_model("smarties_vit_nano", pretrained=True)

    def test_configuration_follows_the_bands(self):
        for sensor, name, count in (("RGB", "smarties/RGB", 3), ("S1", "smarties/S1", 2)):
            model = timm.create_model("smarties_vit_base", sensor=sensor, depth=1, img_size=160)
            config = timm.data.resolve_data_config({}, model=model)
            assert config["input_size"] == (count, 160, 160)
            statistics = sensors.get_statistics(name)
            assert config["mean"] == statistics.mean and config["std"] == statistics.std
        mixed = timm.create_model("smarties_vit_base", bands=["B04", "B02"], depth=1)
        assert (
            mixed.pretrained_cfg["mean"] == sensors.get_statistics("smarties/S2-L2A").select(["red_2", "blue_1"]).mean
        )

    def test_configuration_where_nothing_is_recorded(self):
        unrecorded = timm.create_model("smarties_vit_base", bands=["B04", "VV"], depth=1)
        assert unrecorded.pretrained_cfg["mean"] == (0, 0) and unrecorded.pretrained_cfg["std"] == (1, 1)

    def test_a_new_head_is_called_random(self, tiny_files, caplog):
        with caplog.at_level(logging.WARNING, "eo_zoo"):
            model = tiny(tiny_files / "token.safetensors", num_classes=10)
        assert "head.weight" in caplog.text and "random" in caplog.text
        assert model(torch.zeros(1, 12, 224, 224)).shape == (1, 10)

    def test_a_head_of_the_right_size_is_loaded(self, tmp_path):
        tensors = official("tiny", 64) | {"head.weight": torch.ones(10, 64), "head.bias": torch.zeros(10)}
        save_file(tensors, tmp_path / "x.safetensors")
        assert torch.equal(tiny(tmp_path / "x.safetensors", num_classes=10).head.weight, torch.ones(10, 64))
        assert isinstance(tiny(tmp_path / "x.safetensors").head, nn.Identity)

    def test_a_head_of_another_size_is_random(self, tmp_path, caplog):
        tensors = official("tiny", 64) | {"head.weight": torch.ones(19, 64), "head.bias": torch.zeros(19)}
        save_file(tensors, tmp_path / "x.safetensors")
        with caplog.at_level(logging.WARNING, "eo_zoo"):
            model = tiny(tmp_path / "x.safetensors", num_classes=10)
        assert "head.weight" in caplog.text and model.head.weight.shape == (10, 64)
        del tensors["norm.bias"]
        save_file(tensors, tmp_path / "y.safetensors")
        with pytest.raises(WeightsError, match=r"norm\.bias"):
            tiny(tmp_path / "y.safetensors", num_classes=10)

    def test_half_a_head_or_half_a_norm_is_an_error(self, tmp_path):
        save_file(official("tiny", 64) | {"head.weight": torch.ones(10, 64)}, tmp_path / "head.safetensors")
        with pytest.raises(WeightsError, match=r"head\.bias"):
            tiny(tmp_path / "head.safetensors", num_classes=10)
        tensors = official("tiny", 64, fc_norm=True)
        del tensors["fc_norm.weight"]
        save_file(tensors, tmp_path / "norm.safetensors")
        with pytest.raises(WeightsError, match=r"fc_norm\.weight"):
            tiny(tmp_path / "norm.safetensors", global_pool="avg")

    def test_positions_of_unclear_shape(self, tmp_path):
        """36 positions may be 6 x 6 or 4 x 9: nothing is guessed."""
        model = tiny(img_size=(64, 144))
        save_file(model.state_dict(), tmp_path / "wide.safetensors")
        with pytest.raises(WeightsError, match="6 x 6 or of 4 x 9"):
            tiny(tmp_path / "wide.safetensors", img_size=(64, 144))
        again = tiny(img_size=(64, 144))
        again.load_state_dict(load_file(tmp_path / "wide.safetensors"))
        assert torch.equal(again.pos_embed, model.pos_embed)

    def test_other_places_are_taken_or_refused_but_not_ignored(self, monkeypatch):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        for overlay, words in (
            (dict(hf_hub_id="owner/repo"), "owner/repo"),
            (dict(url="https://example.org/x.pth"), "just any address"),
        ):
            with pytest.raises((InputError, DownloadError), match=words):
                timm.create_model("smarties_vit_base", pretrained=True, pretrained_cfg_overlay=overlay, depth=1)
        with pytest.raises(InputError, match="folder"):
            eo_zoo.create_model("smarties_vit_nano", weights="")

    def test_torchs_own_strictness_stays(self):
        model = tiny()
        state = model.state_dict()
        del state["norm.bias"]
        with pytest.raises(RuntimeError, match=r"norm\.bias"):
            model.load_state_dict(state)
        result = model.load_state_dict({**state, "more": torch.zeros(1)}, strict=False)
        assert result.missing_keys == ["norm.bias"] and result.unexpected_keys == ["more"]

    def test_pooling_and_norms(self, tiny_files, caplog):
        with caplog.at_level(logging.INFO, "eo_zoo"):
            model = tiny(tiny_files / "token.safetensors", global_pool="avg")
        assert "fc_norm.weight" in caplog.text and torch.equal(model.fc_norm.weight, torch.ones(64))
        by_checkpoint = timm.create_model(
            "smarties_vit_nano", checkpoint_path=str(tiny_files / "token.safetensors"), global_pool="avg", **TINY
        ).eval()
        x = torch.randn(1, 12, 224, 224)
        assert torch.equal(by_checkpoint(x), model(x))
        with pytest.raises(WeightsError, match="global_pool='avg'"):
            tiny(tiny_files / "avg.safetensors")

    def test_no_weights_published(self):
        with pytest.raises(InputError, match="random"):
            timm.create_model("smarties_vit_nano", pretrained=True, pretrained_cfg=dict(tag="nothing"), **TINY)

    def test_names_that_do_not_belong_together(self):
        prefixed = {f"smarties.{key}": tensor for key, tensor in official("tiny", 64).items()}
        with pytest.raises(WeightsError, match="mask_token"):
            SmartiesVisionTransformer.from_official({**prefixed, "mask_token": torch.zeros(1)})
        both = {**tiny().state_dict(), "spectrum_projection.spectrum_embeds.0.proj.weight": torch.zeros(1)}
        with pytest.raises(WeightsError, match="missing"):
            SmartiesVisionTransformer.from_official(both)

    def test_from_official_keeps_every_value(self):
        tensors = official("tiny", 64)
        ours = SmartiesVisionTransformer.from_official(tensors)
        assert ours["patch_embed.weight"].shape == (17, 64, 256)
        assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in tensors.values())
        assert set(ours) == set(SmartiesVisionTransformer(**TINY).state_dict())


def test_another_sensors_numbers_are_not_taken():
    model = timm.create_model("smarties_vit_nano", bands=["B02", "B03"], sensor="S2-L1C")
    assert model.pretrained_cfg["mean"] == (0.0, 0.0)  # none are recorded for it


def test_another_file_of_the_same_repository_is_that_file(monkeypatch):
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"other\.safetensors"):
        timm.create_model(
            "smarties_vit_base", pretrained=True, pretrained_cfg_overlay=dict(hf_hub_filename="other.safetensors")
        )
