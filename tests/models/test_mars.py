from __future__ import annotations

import argparse
import json
import logging

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import eo_zoo
from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.mars import MarsRgb, MarsSar
from tests.procedural import PARITY, forge, manifest, uniform, weight

TINY = dict(window_size=8, img_size=256, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
CASES = json.loads((PARITY / "mars.cases.json").read_text())["cases"]
CHANNELS = {"rgb": 3, "sar": 1}


def official(size: str, sensor: str) -> dict[str, torch.Tensor]:
    """A forged encoder as released: the names of the published conversion, the values of the names in training."""
    return {
        key: weight(f"encoder_{sensor}.encoder.{key.replace('_', '.', 1) if key.startswith('layers_') else key}", shape)
        for key, shape, _ in manifest("mars", f"{size}_{sensor}_encoder_only")
    }


@torch.no_grad()
def check_cases(case: str, model: torch.nn.Module) -> int:
    sensor = case.partition("_")[2]
    expected = load_file(PARITY / f"mars_{case}.safetensors")
    rows = [row for row in CASES if row["case"] == case]
    size = rows[0]["image_size"]
    x = uniform(f"{case}/image", (1, CHANNELS[sensor], size, size))
    maps = model(x) if hasattr(model, "out_indices") else model.forward_intermediates(x, intermediates_only=True)
    for row in rows:
        found = maps[row["stage"]].permute(0, 2, 3, 1)
        assert list(found.shape) == row["shape"]
        found = found[:, :: row["row_col_stride"], :: row["row_col_stride"], :: row["channel_stride"]]
        assert (found - expected[row["key"]]).abs().max() <= 1e-4 * expected[row["key"]].abs().max()
    return len(rows)


def tiny(sensor: str, path=None, **kwargs):
    overlay = dict(file=str(path)) if path else None
    return timm.create_model(
        f"mars_base_{sensor}", pretrained=path is not None, pretrained_cfg_overlay=overlay, **{**TINY, **kwargs}
    ).eval()


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for sensor in CHANNELS:
        torch.save(official("tiny", sensor), folder / f"{sensor}.pth")
    return folder


class TestParity:
    @pytest.mark.parametrize("sensor", CHANNELS)
    def test_tiny_cases_agree(self, tiny_files, sensor, caplog):
        caplog.set_level(logging.INFO)
        model = tiny(sensor, tiny_files / f"{sensor}.pth")
        assert check_cases(f"tiny_{sensor}", model) == 4
        assert "norm.weight" in caplog.text and "not released, stays at 1 and 0" in caplog.text
        assert model.norm.weight.eq(1).all() and model.norm.bias.eq(0).all()
        assert check_cases(f"tiny_{sensor}", tiny(sensor, tiny_files / f"{sensor}.pth", features_only=True)) == 4

    @pytest.mark.parametrize("sensor", CHANNELS)
    def test_a_pretraining_checkpoint_loads_by_sensor(self, tmp_path, sensor):
        """The encoder of each sensor, its trained norm included, from one file with argparse and an optimizer."""
        checkpoint = {
            "model": forge(manifest("mars", "tiny_pretraining"), {}),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
            "scaler": {"scale": 65536.0},
            "epoch": 11,
            "args": argparse.Namespace(model="mars_base", lr=1e-4),
        }
        torch.save(checkpoint, tmp_path / "checkpoint-11.pth")
        model = tiny(sensor, tmp_path / "checkpoint-11.pth")
        assert check_cases(f"tiny_{sensor}", model) == 4
        assert torch.equal(model.norm.weight, weight(f"encoder_{sensor}.encoder.norm.weight", (768,)))

    @pytest.mark.slow
    @pytest.mark.parametrize("sensor", CHANNELS)
    def test_base_cases_agree_through_timm_and_hub(self, tmp_path, sensor):
        path = tmp_path / f"mars_base_{sensor}_encoder_only.pth"
        torch.save(official("base", sensor), path)
        by_timm = timm.create_model(f"mars_base_{sensor}", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
        assert check_cases(f"base_{sensor}", by_timm.eval()) == 4
        repo = str(PARITY.parents[2])
        by_hub = torch.hub.load(repo, f"mars_base_{sensor}", source="local", weights=path, features_only=True)
        assert check_cases(f"base_{sensor}", by_hub) == 4
        # the published way: the file through timm's checkpoint_path
        loaded = timm.create_model(f"mars_base_{sensor}", checkpoint_path=str(path)).eval()
        assert check_cases(f"base_{sensor}", loaded) == 4

    @pytest.mark.slow
    @pytest.mark.parametrize("sensor", CHANNELS)
    def test_large_fits_its_manifest(self, tmp_path, sensor):
        path = tmp_path / "large.pth"
        rows = manifest("mars", f"large_{sensor}_encoder_only")
        torch.save({key: torch.full(shape, 0.5) for key, shape, _ in rows}, path)
        model = eo_zoo.create_model(f"mars_large_{sensor}", weights=path)
        assert len(rows) == 421 and len(model.state_dict()) == 423
        assert all(tensor.eq(0.5).all() for name, tensor in model.state_dict().items() if not name.startswith("norm."))

    @pytest.mark.slow
    def test_a_truncated_large_file_says_what_is_missing_and_that_the_size_cannot_be(self, tmp_path, monkeypatch):
        """As published the large files are smaller than their tensors: cut at the published size."""
        record = weights.RECORDS["mars_large_rgb.pretrain"]
        path = tmp_path / "mars_large_rgb_encoder_only.pth"
        rows = manifest("mars", "large_rgb_encoder_only")
        torch.save({key: torch.zeros(shape) for key, shape, _ in rows}, path)
        with path.open("r+b") as file:
            file.truncate(record.size)
        kept, total = 0, 0
        for _, shape, _ in rows:
            total += 4 * torch.Size(shape).numel()
            kept += total + 200 * kept < record.size  # an entry of the archive takes 65 to 200 bytes more
        for weights_ in (path, str(path)):
            with pytest.raises(WeightsError) as caught:
                eo_zoo.create_model("mars_large_rgb", weights=weights_)
            says = str(caught.value)
            assert "it has 634,126,336 bytes" in says
            assert f"{len(rows) - kept} of its 421 tensors lie beyond (layers_" in says
            assert "cannot hold this architecture's 195,20" in says


class TestLoading:
    def test_missing_and_unknown_tensors_are_listed(self, tmp_path):
        tensors = official("tiny", "sar")
        del tensors["layers_3.blocks.1.norm2.bias"]
        torch.save(tensors, tmp_path / "missing.pth")
        with pytest.raises(WeightsError, match=r"1 missing \(layers\.3\.blocks\.1\.norm2\.bias\)"):
            tiny("sar", tmp_path / "missing.pth")
        torch.save({**official("tiny", "sar"), "layers_0.extra": torch.zeros(1)}, tmp_path / "extra.pth")
        with pytest.raises(WeightsError, match=r"1 tensors are not of a checkpoint of MaRS: layers_0\.extra"):
            tiny("sar", tmp_path / "extra.pth")

    def test_another_sensors_file_does_not_fit(self, tiny_files):
        with pytest.raises(
            WeightsError, match=r"patch_embed\.proj\.weight is \(96, 3, 4, 4\), expected \(96, 1, 4, 4\)"
        ):
            tiny("sar", tiny_files / "rgb.pth")

    def test_the_other_encoders_half_of_a_pretraining_checkpoint_is_told(self, tmp_path):
        rows = [row for row in manifest("mars", "tiny_pretraining") if not row[0].startswith("encoder_rgb.encoder.")]
        torch.save({"model": {key: torch.zeros(shape) for key, shape, _ in rows}}, tmp_path / "half.pth")
        with pytest.raises(WeightsError, match=r"nothing in it is a tensor of MaRS: all are .*the SAR encoder"):
            tiny("rgb", tmp_path / "half.pth")

    def test_weights_that_are_made_anew_have_no_origin(self, tiny_files):
        model = tiny("sar", tiny_files / "sar.pth")
        assert model.weights_origin is not None
        model.init_weights()
        assert model.weights_origin is None

    def test_a_home_folder_is_found(self, tmp_path, monkeypatch):
        torch.save({"patch_embed.proj.bias": torch.zeros(96)}, tmp_path / "part.pth")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(WeightsError, match="cannot hold this architecture"):
            tiny("sar", "~/part.pth")

    def test_only_missing_tensors_are_a_matter_of_size(self, tmp_path):
        """A page, or another model's file, is small too, but not for that."""
        (tmp_path / "page.pth").write_text("<html>")
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
        for name in ("page", "other"):
            with pytest.raises(WeightsError) as caught:
                tiny("rgb", tmp_path / f"{name}.pth")
            assert "cannot hold" not in str(caught.value)
        torch.save({"patch_embed.proj.bias": torch.zeros(96)}, tmp_path / "part.pth")
        with pytest.raises(WeightsError, match=r"216 missing .* bytes cannot hold this architecture's 27,578,154"):
            tiny("rgb", tmp_path / "part.pth")

    def test_what_is_dropped_of_a_pretraining_checkpoint_and_what_is_not(self):
        part = {"encoder_rgb.encoder.norm.weight": torch.ones(2), "encoder_rgb.encoder.head.fc.bias": torch.ones(2)}
        assert list(MarsRgb.from_official({**part, "contrast_temp": torch.ones(1)})) == ["norm.weight"]
        for name in ("surprise", "encoder_rgb.extra"):
            with pytest.raises(WeightsError, match=f"1 tensors are not of a checkpoint of MaRS: {name}"):
                MarsRgb.from_official({**part, name: torch.ones(2)})

    def test_half_a_norm_is_an_error(self, tmp_path):
        torch.save({**official("tiny", "sar"), "norm.weight": torch.ones(768)}, tmp_path / "half.pth")
        with pytest.raises(WeightsError, match=r"1 missing \(norm\.bias\)"):
            tiny("sar", tmp_path / "half.pth")

    def test_a_head_is_new_and_called_random(self, tiny_files, caplog):
        model = tiny("rgb", tiny_files / "rgb.pth", num_classes=4)
        assert "head.fc.weight" in caplog.text and "random" in caplog.text
        assert model(torch.zeros(1, 3, 256, 256)).shape == (1, 4)

    def test_no_random_number_is_drawn_where_the_file_fills_everything(self, tiny_files):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        tiny("rgb", tiny_files / "rgb.pth")
        assert torch.equal(torch.get_rng_state(), before)
        head = tiny("rgb", tiny_files / "rgb.pth", num_classes=4).head.fc.weight
        assert not torch.equal(torch.get_rng_state(), before) and 0 < head.std() < 0.1

    def test_published_files_that_are_too_small_are_warned_about_before_the_download(self, monkeypatch, caplog):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        with pytest.raises(Exception, match="offline"):
            eo_zoo.create_model("mars_large_sar")
        assert "the published 639,631,360 bytes cannot hold this architecture's 195,19" in caplog.text
        caplog.clear()
        with pytest.raises(Exception, match="offline"):
            eo_zoo.create_model("mars_base_sar", num_classes=1000)
        assert "cannot hold" not in caplog.text

    def test_large_keeps_the_windows_that_its_initial_weights_had(self):
        with torch.device("meta"):
            model = timm.create_model("mars_large_rgb")
        assert [stage.blocks[0].attn.pretrained_window_size for stage in model.layers] == [(12, 12)] * 3 + [(6, 6)]

    def test_an_overlay_goes_before_the_records_own(self):
        model = small("rgb", pretrained_cfg_overlay=dict(mean=(1.0, 2.0, 3.0)))
        assert model.pretrained_cfg["mean"] == (1.0, 2.0, 3.0)

    def test_records_have_the_published_sums(self):
        found = {name: (record.size, record.md5) for name, record in weights.RECORDS.items() if name.startswith("mars")}
        assert found == {
            "mars_base_rgb.pretrain": (347_703_439, "5ab1b978f783cbded01427c50b0c0dbb"),
            "mars_base_sar.pretrain": (347_687_055, "8789da9bc9a44853d50d92371a1b4a6c"),
            "mars_large_rgb.pretrain": (634_126_336, "60574c1b87a7fb9006521fb5c031ee2c"),
            "mars_large_sar.pretrain": (639_631_360, "6f04c3b8120f0331f22059961b9db6e7"),
        }


SMALL = dict(img_size=64, embed_dim=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8), window_size=4)


def small(kind: str, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(f"mars_base_{kind}", **{**SMALL, **kwargs}).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


class TestInput:
    @pytest.fixture(autouse=True)
    def _no_grad(self):
        with torch.no_grad():
            yield

    def test_another_size_gives_what_a_model_built_for_it_gives(self):
        model, x = small("rgb"), torch.randn(1, 3, 96, 32)
        built = small("rgb", img_size=(96, 32))
        built.load_state_dict(model.state_dict())
        for size in (64, 32):  # from another size, there and back
            model(torch.randn(1, 3, size, size))
            assert torch.equal(model(x), built(x))
        model.set_input_size((96, 32))
        assert torch.equal(model(x), built(x))

    def test_a_strict_size_computes_the_same(self):
        model, x = small("rgb"), torch.randn(1, 3, 96, 32)
        strict = small("rgb", img_size=(96, 32), strict_img_size=True)
        strict.load_state_dict(model.state_dict())
        assert torch.equal(model(x), strict(x))

    def test_windows_keep_their_size(self):
        model = small("rgb")
        model.set_input_size(256)
        assert [stage.blocks[0].window_size for stage in model.layers] == [(4, 4)] * 4
        model.set_input_size(256, window_size=8)
        assert [stage.blocks[0].window_size for stage in model.layers] == [(8, 8)] * 4
        model.set_input_size(512, window_ratio=16)
        assert [stage.blocks[0].window_size for stage in model.layers] == [(8, 8)] * 4
        model.set_input_size(512, window_ratio=8)
        assert [stage.blocks[0].window_size for stage in model.layers] == [(16, 16)] * 4

    @pytest.mark.parametrize("option", [dict(strict_img_size=True), dict(dynamic_img_size=False)])
    def test_strict_size(self, option):
        says = r"32 x 32 pixels, the model is set to 64 x 64: resize them, create it with img_size=, or call set_input"
        with pytest.raises(InputError, match=says):
            small("rgb", **option)(torch.zeros(1, 3, 32, 32))

    def test_a_compiled_model_keeps_its_size(self):
        torch._dynamo.reset()
        compiled = torch.compile(small("rgb"), fullgraph=True, backend="aot_eager")
        assert compiled(torch.zeros(1, 3, 64, 64)).shape == (1, 256)
        with pytest.raises(Exception, match="set_input_size"):
            compiled(torch.zeros(1, 3, 32, 32))

    @pytest.mark.parametrize("bands", [["B02", "B03", "B04"], ["blue", "green", "red"]])
    def test_bands_in_another_order(self, bands):
        model, x = small("rgb"), torch.randn(1, 3, 64, 64)
        reversed_ = small("rgb", bands=["blue", "green", "red"])
        assert torch.equal(reversed_(x.flip(1)), model(x))
        assert torch.equal(
            reversed_.forward_intermediates(x.flip(1), intermediates_only=True)[3],
            model.forward_intermediates(x, intermediates_only=True)[3],
        )
        turned = small("rgb", bands=["green", "blue", "red"])  # not its own inverse
        assert torch.equal(turned(x[:, [1, 2, 0]]), model(x))
        pyramid = small("rgb", bands=["blue", "green", "red"], features_only=True)
        assert [made.shape[-1] for made in pyramid(x)] == [16, 8, 4, 2]

    @pytest.mark.parametrize(
        ("sensor", "kwargs", "says"),
        [
            ("sar", dict(in_chans=3), r"takes 1 channel, got in_chans=3: give in_chans=1"),
            ("rgb", dict(in_chans=1), r"takes 3 channels, got in_chans=1"),
            ("sar", dict(bands=["VV", "VH"]), "takes one band of SAR backscatter"),
            ("sar", dict(sensor="S1"), "got microwave_1, microwave_2"),
            ("sar", dict(bands=["red"]), "red"),
            ("sar", dict(global_pool="token"), "has no pooling 'token': it has avg, max, avgmax"),
            ("sar", dict(bands=[]), "got none"),
            ("rgb", dict(bands=["red", "green"]), "takes red, green and blue, got the bands red_1, green_1"),
            ("rgb", dict(bands=["red", "red", "blue"]), "takes red, green and blue"),
            ("rgb", dict(bands=["VV", "VH", "red"]), "VV"),
        ],
    )
    def test_bands_that_do_not_fit(self, sensor, kwargs, says):
        with pytest.raises(InputError, match=says):
            timm.create_model(f"mars_base_{sensor}", **SMALL, **kwargs)

    def test_one_band_of_any_radar(self):
        for kwargs, band in [
            ({}, "umbra_amplitude"),
            (dict(sensor="Capella"), "capella_amplitude"),
            (dict(bands=["VV"]), "microwave_1"),
            (dict(bands=["VH"], sensor="S1"), "microwave_2"),
        ]:
            assert timm.create_model("mars_base_sar", **SMALL, **kwargs).bands == (band,)

    @pytest.mark.parametrize(
        ("x", "says"),
        [
            (
                torch.zeros(1, 1, 64, 64),
                r"expected an image batch \(B, 3, H, W\) with the bands red_1, g",
            ),
            (torch.zeros(3, 64, 64), "expected an image batch"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "normalise first"),
            (torch.zeros(1, 3, 62, 64), "62 x 64 is not a multiple of the patch size 4"),
        ],
    )
    def test_images_that_do_not_fit(self, x, says):
        with pytest.raises(InputError, match=says):
            small("rgb")(x)

    def test_both_encoders_are_timms(self):
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        assert issubclass(MarsRgb, SwinTransformerV2) and issubclass(MarsSar, SwinTransformerV2)


class TestTransforms:
    """Raw digital numbers by sensor, as the originals normalise them: no division by 255 before."""

    @pytest.mark.parametrize(
        ("name", "sensor", "value", "mean", "std"),
        [
            ("mars_base_rgb", None, [87.0, 100.0, 255.0], [87.01, 91.52, 83.51], [62.66, 54.58, 53.11]),
            ("mars_base_sar", None, [200.0], [36.42], [33.89]),
            ("mars_large_sar", "Umbra", [0.0], [36.42], [33.89]),
            ("mars_base_sar", "Capella", [65535.0], [2353.35], [4327.07]),
        ],
    )
    def test_values(self, name, sensor, value, mean, std):
        x = torch.tensor(value).view(1, -1, 1, 1).expand(1, -1, 512, 512)
        x = x.to(torch.uint16 if sensor == "Capella" else torch.uint8)
        found = eo_zoo.create_transform(name, sensor)(x)[0, :, 7, 300]
        expected = (torch.tensor(value) - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert eo_zoo.create_transform(name, sensor)(x[..., :100, :90]).shape == (1, len(value), 512, 512)

    def test_timms_own_transform_gives_the_same_numbers(self):
        model = timm.create_model("mars_base_rgb", **{**SMALL, "img_size": 512})
        config = timm.data.resolve_data_config({}, model=model)
        assert config["input_size"] == (3, 512, 512)
        pixels = torch.randint(0, 256, (512, 512, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        by_timm = timm.data.create_transform(**config)(Image.fromarray(pixels.numpy()))
        ours = eo_zoo.create_transform("mars_base_rgb")(pixels.permute(2, 0, 1)[None])[0]
        torch.testing.assert_close(by_timm, ours, atol=1e-5, rtol=1e-5)
