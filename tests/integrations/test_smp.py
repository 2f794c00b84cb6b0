"""segmentation_models_pytorch: its decoders on maps of this package, taken by name."""

from __future__ import annotations

import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import eo_zoo
from eo_zoo.errors import InputError

NANO = "tu-smarties_vit_nano_pyramid"
MAE = dict(embed_dim=64, num_heads=4)
MARS = dict(embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
S2 = dict(in_channels=12, encoder_weights=True)
SMALL_DPT = dict(decoder_intermediate_channels=(16, 16, 16, 16), decoder_fusion_channels=16)


def train(model: torch.nn.Module, channels: int, size: tuple[int, int] = (64, 96), unused: str = "none") -> None:
    """A few steps lower the loss; gradients reach all of the encoder but what is named ``unused``, and the decoder."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():  # residual branches start closed
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    truth = (torch.arange(size[1]) < size[1] // 2).long().expand(2, *size)  # the left half is brighter
    x = torch.randn(2, channels, *size) + truth[:, None]
    losses = []
    for _ in range(4):
        logits = model(x)
        assert logits.shape == (2, 2, *size)
        loss = torch.nn.functional.cross_entropy(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            assert {name.partition(".")[0] for name in reached} == {"encoder", "decoder", "segmentation_head"}
            idle = {
                name for name, _ in model.encoder.model.named_parameters() if f"encoder.model.{name}" not in reached
            }
            assert all(name.startswith(unused) for name in idle), idle
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class TestPyramid:
    @pytest.mark.parametrize("decoder", ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "UPerNet", "Segformer"])
    def test_decoders_train(self, decoder):
        model = getattr(smp, decoder)(NANO, classes=2, **S2)
        assert model.encoder.model.model.weights_origin.verified
        train(model, 12)

    @pytest.mark.parametrize(
        ("name", "options", "ours", "channels"),
        [
            (NANO, {}, {}, 12),
            (NANO, {"sensor": "S1"}, {"sensor": "S1"}, 2),
            (NANO, {"sensor": "RGB"}, {"sensor": "RGB"}, 3),
            (NANO, {"bands": ["B04", "B03", "B02", "B08"]}, {"bands": ["B04", "B03", "B02", "B08"]}, 4),
            ("tu-multimae_eo_base_pyramid", MAE, MAE, 3),
            ("tu-multimae_eo_base_pyramid", {"in_domains": ["sired"], **MAE}, {"in_domains": ["sired"], **MAE}, 2),
            ("tu-mars_base_sar", MARS, MARS, 1),
        ],
    )
    @torch.no_grad()
    def test_maps_are_timms_bit_for_bit(self, name, options, ours, channels):
        pretrained = True if name == NANO else None
        torch.manual_seed(0)
        model = smp.Unet(name, in_channels=channels, encoder_weights=pretrained, **options).eval()
        pyramid = timm.create_model(
            name.removeprefix("tu-"), pretrained=bool(pretrained), features_only=True, in_chans=channels, **ours
        ).eval()
        if not pretrained:
            pyramid.load_state_dict(model.encoder.model.state_dict())
        x = torch.randn(1, channels, 64, 96)
        image, none, *maps = model.encoder(x)
        assert image is x and none.shape == (1, 0, 32, 48)
        assert len(maps) == 4 and all(map(torch.equal, maps, pyramid(x)))

    @pytest.mark.parametrize(("channels", "options"), [(3, {}), (2, {}), (3, {"sensor": "S1"}), (4, {"bands": ["B4"]})])
    def test_a_number_of_channels_is_never_enough(self, channels, options):
        with pytest.raises(InputError, match="give bands="):
            smp.Unet(NANO, in_channels=channels, encoder_weights=None, **options)

    def test_fewer_maps(self):
        model = smp.Unet(NANO, encoder_depth=3, decoder_channels=(32, 16, 8), classes=2, **S2)
        assert len(model.encoder.model.model.blocks) == 2
        train(model, 12)

    @torch.no_grad()
    def test_saved_and_read_again(self, tmp_path):
        model = smp.FPN(NANO, in_channels=2, encoder_weights=True, sensor="S1").eval()
        model.save_pretrained(tmp_path)
        again = smp.from_pretrained(tmp_path).eval()
        x = torch.randn(1, 2, 64, 64)
        assert again.encoder.model.model.sensor == "S1" and torch.equal(again(x), model(x))


class TestDPT:
    @pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 128)])
    def test_smarties_trains_at_any_multiple_of_32(self, size):
        model = smp.DPT("tu-smarties_vit_nano", dynamic_img_size=True, classes=2, **S2, **SMALL_DPT)
        assert model.encoder.model.weights_origin.verified
        train(model, 12, size, unused="norm.")

    @pytest.mark.parametrize("size", [(64, 64), (96, 160)])
    def test_multimae_trains_at_any_multiple_of_32(self, size):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = smp.DPT(
                "tu-multimae_eo_base", in_domains=["rgb"], decoder_readout="ignore", encoder_weights=None, classes=2,
                **MAE, **SMALL_DPT,
            )  # fmt: skip
        train(model, 3, size)

    @torch.no_grad()
    def test_maps_are_the_models(self):
        model = smp.DPT("tu-smarties_vit_nano", sensor="S1", in_channels=2, encoder_weights=True).eval()
        plain = eo_zoo.create_model("smarties_vit_nano", sensor="S1")
        x = torch.randn(1, 2, 112, 112)
        maps, tokens = model.encoder(x)
        own = plain.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
        assert len(own) == 4
        for found, token, (expected, expected_token) in zip(maps, tokens, own, strict=True):
            assert torch.equal(found, expected) and torch.equal(token, expected_token)


class TestMars:
    @pytest.mark.parametrize("size", [(128, 192), (256, 256)])
    def test_it_trains(self, size):
        train(smp.Unet("tu-mars_base_sar", in_channels=1, encoder_weights=None, classes=2, **MARS), 1, size)

    def test_weights_of_a_file(self, tmp_path):
        own = timm.create_model("mars_base_sar", **MARS)
        torch.save(own.state_dict(), file := tmp_path / "own.pth")
        overlay = {"file": str(file)}
        model = smp.Unet(
            "tu-mars_base_sar", in_channels=1, encoder_weights=True, pretrained_cfg_overlay=overlay, **MARS
        )
        found = model.encoder.model.model.state_dict()
        assert found and all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in found.items())

    def test_weights_are_never_silently_random(self, monkeypatch):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        with pytest.raises(Exception, match="offline"):
            smp.Unet("tu-mars_base_sar", in_channels=1, encoder_weights=True, **MARS)

    def test_three_channels_are_refused(self):
        with pytest.raises(InputError, match="in_channels=1"):
            smp.Unet("tu-mars_base_sar", encoder_weights=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "name", "channels", "options", "size"),
    [
        ("Unet", "tu-mars_base_sar", 1, {}, 512),
        ("UPerNet", "tu-smarties_vit_base_pyramid", 12, {}, 256),
        ("Unet", "tu-multimae_eo_base_pyramid", 3, {}, 128),
        ("DPT", "tu-smarties_vit_base", 12, {"dynamic_img_size": True}, 256),
    ],
)
def test_full_size(decoder, name, channels, options, size):
    model = getattr(smp, decoder)(name, in_channels=channels, encoder_weights=None, classes=2, **options)
    train(model, channels, (size, size), "norm." if decoder == "DPT" else "none")
