from __future__ import annotations

import argparse
import json
import math

import pytest
import timm
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch.nn import functional as F

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.train import mars
from eo_zoo.train.mars import MarsPretraining, channel_similarity, clip_contrast, cross_contrast, masked_l1, random_mask
from tests.procedural import PARITY, forge, manifest, uniform, weight

EXPECTED = json.loads((PARITY / "mars.cases.json").read_text())["pretraining"]["losses"]
ROWS = manifest("mars", "tiny_pretraining")


def swin(bands: int, **kwargs: object) -> SwinTransformerV2:
    """A small one, with as many blocks as the manifest's: stride 16, 64 channels at the end."""
    sizes = dict(img_size=64, patch_size=2, embed_dim=8, depths=(2, 2, 6, 2), num_heads=(1, 1, 2, 2), window_size=4)
    return SwinTransformerV2(in_chans=bands, **{"num_classes": 0, **sizes, **kwargs})


def small(contrast: str = "cross", *, teacher: bool = True) -> MarsPretraining:
    torch.manual_seed(0)
    return MarsPretraining(swin(3), swin(1), teacher=swin(3) if teacher else None, contrast=contrast)


def pair(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return uniform("pair/rgb", (batch, 3, 64, 64)), uniform("pair/sar", (batch, 1, 64, 64))


def official(model: MarsPretraining) -> dict[str, torch.Tensor]:
    """A checkpoint with the official names and the small model's shapes."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    head = {"weight": (1000, 64), "bias": (1000,)}
    return {
        key: weight(key, head[key.rpartition(".")[2]] if ".head.fc." in key else shapes[mars._our_name(key)])
        for key, _, _ in ROWS
    }


# ---- the original's numbers ----


@pytest.fixture(scope="module")
def published() -> MarsPretraining:
    def create(bands: int) -> SwinTransformerV2:
        return timm.create_model("swinv2_tiny_window8_256", img_size=256, in_chans=bands, num_classes=0)

    model = MarsPretraining(create(3), create(1), teacher=create(3), contrast="clip").eval()
    model.load_official(forge(ROWS, {}))
    return model


@pytest.mark.parametrize("contrast", EXPECTED)
@torch.no_grad()
def test_losses_agree(published, contrast, monkeypatch):
    monkeypatch.setattr(published, "contrast", contrast)
    hidden = uniform("pre/mask", (2, 64)).argsort(dim=1)[:, :39]
    mask = torch.zeros(2, 64, dtype=torch.bool).scatter(1, hidden, True).view(2, 8, 8)
    output = published(uniform("pre/rgb", (2, 3, 256, 256)), uniform("pre/sar", (2, 1, 256, 256)), mask)
    expected = EXPECTED[contrast]
    assert output.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert output.rgb_tokens.abs().mean().item() == pytest.approx(expected["rgb_token_mean_abs"], rel=1e-5)
    assert output.sar_tokens.abs().mean().item() == pytest.approx(expected["sar_token_mean_abs"], rel=1e-5)


# ---- losses ----


def test_cross_contrast_by_hand():
    """Every sum written out; the label of the patch-to-image term is a column of the first image, as released."""
    rgb, sar = uniform("cross/rgb", (2, 4, 5)), uniform("cross/sar", (2, 4, 5))
    a, b = (F.normalize(x, dim=-1)[:, 1:] for x in (rgb, sar))

    def chosen(similarities: list[torch.Tensor], index: int) -> torch.Tensor:
        return torch.logsumexp(torch.stack(similarities), 0) - similarities[index]

    images, patches, across = [], [], []
    for one, two in ((a, b), (b, a)):
        for i in range(2):
            images.append(chosen([one[i].mean(0) @ two[j].mean(0) / 0.05 for j in range(2)], i))
            for n in range(3):
                every = [one[i, n] @ two[j, m] / 0.1 for j in range(2) for m in range(3)]
                patches.append(chosen(every, 3 * i + n))
                columns = [one[i, n] @ two[j].mean(0) / 0.07 for j in range(2) for _ in range(3)]
                across.append(chosen(columns, i))
    means = [torch.stack(terms).mean() for terms in (patches, images, across)]
    torch.testing.assert_close(cross_contrast(rgb, sar), 0.5 * means[0] + 0.3 * means[1] + 0.2 * means[2])


def test_clip_contrast_of_equal_and_orthogonal_tokens():
    rgb = torch.eye(6).view(2, 3, 6)
    # 4 patches are left, each like itself and unlike the others
    expected = math.log(math.exp(math.e) + 3) - math.e
    assert clip_contrast(rgb, 5 * rgb, torch.tensor(1.0)).item() == pytest.approx(expected, rel=1e-6)
    first = torch.rand(2, 1, 6)
    changed = torch.cat([first, rgb[:, 1:]], dim=1)
    assert torch.equal(clip_contrast(changed, rgb, torch.tensor(1.0)), clip_contrast(rgb, rgb, torch.tensor(1.0)))


def test_similarity_is_of_channels():
    tokens = uniform("tokens", (2, 7, 3))
    assert channel_similarity(tokens, tokens * torch.tensor([1.0, 20.0, 3.0])).item() == pytest.approx(1)
    assert channel_similarity(tokens, -tokens).item() == pytest.approx(-1)


def test_masked_l1_counts_hidden_pixels_only():
    target = torch.zeros(1, 3, 4, 4)
    prediction = torch.full_like(target, 9.0)
    prediction[..., :2, :] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    assert masked_l1(prediction, target, mask).item() == pytest.approx(2, rel=1e-5)


def test_random_mask():
    mask = random_mask(3, (4, 8), generator=torch.Generator().manual_seed(1))
    assert mask.shape == (3, 4, 8) and mask.dtype == torch.bool
    assert mask.sum((1, 2)).tolist() == [20, 20, 20]  # 0.6 of 32 is 19.2, rounded up
    assert torch.equal(mask, random_mask(3, (4, 8), generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(mask[0], mask[1])
    assert random_mask(1, (4, 4), share=0.25).sum() == 4
    for share in (0, 1, -0.5):
        with pytest.raises(InputError, match="share"):
            random_mask(1, (4, 4), share=share)


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 4, 8, 8), (3, 4, 8)])
def test_contrast_refuses_tokens(shape):
    with pytest.raises(InputError, match="at least 2 tokens"):
        cross_contrast(torch.rand(shape), torch.rand(2, *shape[1:]))


# ---- one step ----


def test_output():
    model, (rgb, sar) = small().eval(), pair()
    output = model(rgb, sar, generator=torch.Generator().manual_seed(3))
    assert output.rgb_tokens.shape == output.sar_tokens.shape == (2, 16, 64)
    assert output.rgb.shape == rgb.shape and output.sar.shape == sar.shape
    # 10 of the 4 x 4 cells as large as the stride, of 8 x 8 patches each
    assert output.mask.shape == (2, 32, 32) and output.mask.sum((1, 2)).tolist() == [640, 640]
    cells = random_mask(2, (4, 4), generator=torch.Generator().manual_seed(3))
    again = model(rgb, sar, cells)
    assert torch.equal(again.mask, output.mask) and torch.equal(again.loss, output.loss)
    assert list(output.parts) == ["reconstruction", "alignment", "contrast"]
    torch.testing.assert_close(output.loss, sum(output.parts.values()))
    assert not torch.equal(model(rgb, sar).mask, model(rgb, sar).mask)


def test_hidden_pixels_are_not_seen():
    model, (rgb, sar) = small(), pair()
    model.eval()
    mask = random_mask(2, (32, 32), generator=torch.Generator().manual_seed(0))
    pixels = mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, None]
    one = model(rgb, sar, mask)
    two = model(torch.where(pixels, 7.0, rgb), torch.where(pixels, -7.0, sar), mask)
    assert torch.equal(one.rgb_tokens, two.rgb_tokens) and torch.equal(one.sar_tokens, two.sar_tokens)
    assert torch.equal(one.parts["alignment"], two.parts["alignment"])
    assert not torch.equal(one.parts["reconstruction"], two.parts["reconstruction"])
    three = model(torch.where(pixels, rgb, 7.0), sar, mask)
    assert not torch.allclose(one.rgb_tokens, three.rgb_tokens)


def test_meta_attention():
    """The block within sees its own sensor alone, the block across sees both."""
    block = mars.MetaBlock(8).eval()
    tokens = uniform("meta", (2, 6, 8))
    changed = torch.cat([tokens[:, :3], tokens[:, 3:] + 1 + uniform("meta/change", (2, 3, 8))], dim=1)
    assert torch.equal(block(tokens, 3)[:, :3], block(changed, 3)[:, :3])
    assert not torch.allclose(block(tokens, 6)[:, :3], block(changed, 6)[:, :3])
    block.mlp.fc2.weight.data.zero_(), block.mlp.fc2.bias.data.zero_()
    assert torch.equal(block(tokens, 3), tokens)  # no residual but the one around both


def test_mask_token_starts_small_and_random():
    token = mars.MaskedEncoder(swin(3, embed_dim=256)).mask_token
    assert token.shape == (1, 1, 256) and 0.015 < token.std().item() < 0.025


def test_band_order_of_the_encoder():
    model, (rgb, sar) = small().eval(), pair()
    mask = random_mask(2, (4, 4), generator=torch.Generator().manual_seed(0))
    expected = model(rgb, sar, mask).rgb_tokens
    model.encoder_rgb.encoder.order = [2, 1, 0]
    torch.testing.assert_close(model(rgb.flip(1), sar, mask).rgb_tokens, expected)


@pytest.mark.parametrize("contrast", mars.CONTRASTS)
@pytest.mark.parametrize("teacher", [True, False])
def test_every_trained_parameter_gets_a_gradient(contrast, teacher):
    model = small(contrast, teacher=teacher)
    output = model(*pair())
    output.loss.backward()
    assert ("alignment" in output.parts) == teacher
    assert ("contrast" in output.parts) == (contrast != "none")
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith("teacher_encoder.")}


def test_a_few_steps_lower_the_loss():
    model, (rgb, sar) = small(), pair(4)
    mask = random_mask(4, (4, 4), generator=torch.Generator().manual_seed(0))
    frozen = {name: tensor.clone() for name, tensor in model.teacher_encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(12):
        loss = model(rgb, sar, mask).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, tensor in model.teacher_encoder.state_dict().items():
        assert torch.equal(tensor, frozen[name])


def test_the_teacher_stays_in_evaluation_mode():
    model = small()
    assert not model.train().teacher_encoder.training and model.encoder_rgb.training
    assert not model.eval().encoder_rgb.training


@pytest.mark.parametrize("contrast", mars.CONTRASTS)
def test_bfloat16_autocast(contrast):
    model, images = small(contrast).eval(), pair()
    mask = random_mask(2, (4, 4), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*images, mask)
    output.loss.backward()
    assert output.rgb.dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(model(*images, mask).loss.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# ---- the official checkpoint ----


def test_pretraining_checkpoint_from_a_file(tmp_path):
    model = small("clip")
    tensors = official(model)
    arguments = argparse.Namespace(model="mars_base", mask_ratio=0.75)
    extras = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 65536.0}, "epoch": 11}
    torch.save({"model": tensors, **extras, "args": arguments}, tmp_path / "checkpoint-11.pth")
    model.load_official(weights.read(tmp_path / "checkpoint-11.pth"))
    for key, expected in tensors.items():
        if ".head.fc." not in key:
            assert torch.equal(model.state_dict()[mars._our_name(key)], expected), key
    assert model.contrast_temp.item() == tensors["contrast_temp"].item()

    # what a model does not have is left out by name
    part = small("cross", teacher=False)
    part.load_official(tensors)
    whole = model.state_dict()
    assert set(whole) - set(part.state_dict()) == {n for n in whole if n.startswith(("teacher", "contrast_temp"))}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.state_dict().items())


def test_pretraining_checkpoint_is_strict():
    model = small()
    tensors = official(small("clip"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    short = {key: tensor for key, tensor in tensors.items() if key != "alternating_attn.global_blocks.1.3.fc2.bias"}
    for wrong, message in (
        (short, r"1 missing \(across\.1\.mlp\.fc2\.bias\)"),
        (tensors | {"decoder_rgb.2.weight": torch.zeros(1)}, r"1 unexpected \(decoder_rgb\.2\.weight\)"),
        (tensors | {"decoder_sar.0.bias": torch.zeros(3)}, r"decoder_sar\.0\.bias is \(3,\), expected \(256,\)"),
        ({k: t for k, t in tensors.items() if not k.startswith("teacher")}, "missing .teacher_encoder"),
        ({k: t for k, t in tensors.items() if k.startswith("encoder_rgb")}, "into the encoder itself"),
    ):
        with pytest.raises(WeightsError, match=message):
            model.load_official(wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- bad input ----


def test_encoders_that_do_not_fit():
    for models, message in (
        ((swin(3), swin(1, embed_dim=16)), "sar encoder has channels 128, the rgb encoder 64"),
        ((swin(3), swin(1, patch_size=4)), "patch size"),
        ((swin(3), swin(1, img_size=128)), r"image size \(128, 128\)"),
        ((swin(3), swin(1, depths=(1, 1), num_heads=(1, 1), embed_dim=32)), "stages 2"),
        ((swin(3, num_classes=10), swin(1)), "num_classes=0"),
        ((swin(3), torch.nn.Linear(1, 1)), "sar encoder is Linear"),
    ):
        with pytest.raises(InputError, match=message):
            MarsPretraining(*models)
    with pytest.raises(InputError, match="teacher encoder has channels"):
        MarsPretraining(swin(3), swin(1), teacher=swin(3, embed_dim=16))
    with pytest.raises(InputError, match="'simclr', expected one of none, clip, cross"):
        MarsPretraining(swin(3), swin(1), contrast="simclr")
    both = swin(3)
    with pytest.raises(InputError, match="given twice"):
        MarsPretraining(both, swin(1), teacher=both)


def test_wrong_images_and_masks():
    model, (rgb, sar) = small(), pair()
    for images, message in (
        ((sar, rgb), r"rgb is torch.float32 of shape \(2, 1, 64, 64\)"),
        ((rgb, rgb), "sar is"),
        ((rgb[0], sar[0]), r"expected normalised images \(batch, 3"),
        ((rgb.to(torch.uint8), sar), "torch.uint8"),
        ((rgb, sar[:1]), "differs in batch or size"),
        ((rgb, sar[..., :32]), "differs in batch or size"),
        ((rgb[..., :32], sar[..., :32]), r"\(64, 32\), the encoders are set to \(64, 64\): call set_input_size"),
    ):
        with pytest.raises(InputError, match=message):
            model(*images)
    for mask, message in (
        (torch.ones(2, 4, 4, dtype=torch.long), r"torch\.int64, expected torch\.bool"),
        (torch.ones(1, 4, 4, dtype=torch.bool), r"\(1, 4, 4\), expected \(2, rows, columns\)"),
        (torch.ones(2, 4, 5, dtype=torch.bool), "32 x 32 patches evenly"),
        (torch.ones(2, 5, 4, dtype=torch.bool), "evenly"),
        (torch.ones(2, 16, dtype=torch.bool), r"\(2, 16\)"),
        (torch.ones(2, 64, 64, dtype=torch.bool), "evenly"),
    ):
        with pytest.raises(InputError, match=message):
            model(rgb, sar, mask)


def test_other_sizes():
    model = MarsPretraining(swin(3, strict_img_size=False), swin(1, strict_img_size=False))
    output = model(torch.rand(2, 3, 32, 96), torch.rand(2, 1, 32, 96))
    assert output.rgb_tokens.shape == (2, 12, 64) and output.rgb.shape == (2, 3, 32, 96)
    assert output.mask.shape == (2, 16, 48)
    with pytest.raises(InputError, match="multiples of the stride 16"):
        model(torch.rand(2, 3, 40, 96), torch.rand(2, 1, 40, 96))
