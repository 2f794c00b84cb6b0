from __future__ import annotations

import json

import pytest
import timm
import torch

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.positions import sincos_positions
from eo_zoo.train.smarties import SmartiesMaskedAutoencoder, repeat_bands
from tests.procedural import PARITY, forge, manifest, uniform

CASES = json.loads((PARITY / "smarties.cases.json").read_text())["pretraining"]


def forged() -> dict[str, torch.Tensor]:
    tables = {"pos_embed": sincos_positions(64, 14, 14), "decoder_pos_embed": sincos_positions(64, 14, 14)}
    return forge(manifest("smarties_tiny_pretraining"), tables)


def autoencoder(norm_pix_loss: bool = False) -> SmartiesMaskedAutoencoder:
    encoder = timm.create_model("smarties_vit_nano", patch_size=16, img_size=224, embed_dim=64, depth=2, num_heads=4)
    return SmartiesMaskedAutoencoder(
        encoder, decoder_dim=64, decoder_depth=1, decoder_heads=4, norm_pix_loss=norm_pix_loss
    )


def pair(name: str) -> dict[str, object]:
    case = CASES[name]
    arguments: dict[str, object] = {}
    for image in ("first", "second"):
        bands = case[f"{image}_bands"]
        own = list(dict.fromkeys(bands))
        x, repeated = repeat_bands(uniform(f"pre/{name}/{image}", (2, len(own), 224, 224)), own)
        assert list(repeated) == bands
        arguments |= {image: x, f"{image}_bands": bands}
    for noise in ("mixup_noise", "mask_noise"):
        arguments[noise] = uniform(f"pre/{name}/{noise}", (2, 196))
    return arguments


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("norm_pix_loss", [False, True])
@torch.no_grad()
def test_losses_agree(name, norm_pix_loss):
    model = autoencoder(norm_pix_loss).eval()
    model.load_official(forged())
    output = model(**pair(name))
    expected = CASES[name]
    assert output.loss.item() == pytest.approx(expected["loss_norm_pix" if norm_pix_loss else "loss"], rel=1e-5)
    assert output.first.abs().mean().item() == pytest.approx(expected["pred1_mean_abs"], rel=1e-4)
    assert output.second.abs().mean().item() == pytest.approx(expected["pred2_mean_abs"], rel=1e-4)
    assert output.mask.sum().item() == expected["mask_sum"]


def test_defaults_are_the_published_sizes():
    with torch.device("meta"):
        model = SmartiesMaskedAutoencoder(timm.create_model("smarties_vit_base"))
    assert model.norm_pix_loss
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    rows = manifest("smarties_base", "pretraining")
    assert found == {key: shape for key, shape, _ in rows if key.startswith(("decoder", "mask_token"))}


def test_mask_ratio():
    arguments = pair("s2_s1") | {"mask_ratio": 0.5}
    assert autoencoder()(**arguments).mask.sum(1).tolist() == [98, 98]


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = autoencoder(norm_pix_loss=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    arguments = pair("rgb_s2")
    losses = []
    for _ in range(8):
        loss = model(**arguments).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    # positions are fixed, and nothing here is radar
    fixed = {"encoder.pos_embed"} | {f"decoder_preds.{i}.{kind}" for i in (15, 16) for kind in ("weight", "bias")}
    assert {n for n, p in model.named_parameters() if p.grad is None} == fixed


def test_randomness_is_drawn_when_not_given():
    model = autoencoder().eval()
    arguments = pair("s2_s1")
    arguments.pop("mixup_noise"), arguments.pop("mask_noise")
    torch.manual_seed(1)
    first = model(**arguments).loss
    torch.manual_seed(1)
    assert torch.equal(first, model(**arguments).loss)
    assert not torch.equal(first, model(**arguments).loss)


def test_wrong_pairs():
    model, arguments = autoencoder(), pair("s2_s1")
    with pytest.raises(InputError, match="repeat_bands"):
        model(**{**arguments, "second": arguments["second"][:, :2]})
    with pytest.raises(InputError, match=r"expected \(2, 196\)"):
        model(**{**arguments, "mask_noise": torch.rand(2, 49)})
    with pytest.raises(InputError, match="blue_2"):
        model(**{**arguments, "first_bands": ["blue_2"] * 12})
    for other in (arguments["second"][:1], arguments["second"][..., :208]):
        with pytest.raises(InputError, match="differs in shape"):
            model(**{**arguments, "second": other})
    for ratio in (0, 1, 1.5):
        with pytest.raises(InputError, match="mask_ratio"):
            model(**{**arguments, "mask_ratio": ratio})
    with pytest.raises(InputError, match="cannot be repeated"):
        repeat_bands(torch.zeros(1, 0, 8, 8), [])
    with pytest.raises(InputError, match="cannot be repeated"):
        repeat_bands(torch.zeros(1, 5, 8, 8), ["B02"] * 5)


def test_noise_differs_between_images_and_steps():
    arguments = pair("s2_s1")
    del arguments["mask_noise"]
    one, two = (autoencoder()(**arguments).mask for _ in range(2))
    assert not torch.equal(one[0], one[1]) and not torch.equal(one, two)


def test_encoder_without_its_norm():
    with pytest.raises(InputError, match="global_pool='token'"):
        SmartiesMaskedAutoencoder(timm.create_model("smarties_vit_nano", global_pool="avg"))


def test_pretraining_checkpoint_is_strict():
    encoder_only = {k: v for k, v in forged().items() if not k.startswith(("decoder", "mask_token"))}
    with pytest.raises(WeightsError, match="encoder only"):
        autoencoder().load_official(encoder_only)
    short = forged()
    del short["decoder_preds.3.bias"]
    with pytest.raises(WeightsError, match=r"decoder_preds\.3\.bias"):
        autoencoder().load_official(short)
