"""MultiMAE's path of one image domain as timm's plain ViT, and back."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import eo_zoo
from eo_zoo.errors import InputError
from eo_zoo.models import multimae_vit
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.models.multimae_vit import from_vit, save_vit, to_vit

IMAGES = [name for name, one in DOMAINS.items() if not one.classes]
SIZE = dict(embed_dim=64, depth=2, num_heads=4)
PLAIN = dict(SIZE, img_size=56, patch_size=8, num_classes=0, final_norm=False)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, zeros and ones of fresh models too."""
    generator = torch.Generator().manual_seed(seed)
    for name, one in module.named_parameters():
        noise = torch.randn(one.shape, generator=generator) * 0.1
        one.data = noise + 1 if name.endswith(("norm1.weight", "norm2.weight")) else noise
    return module.eval()


@pytest.fixture
def model():
    return randomise(MultiMae(**SIZE))


def image(vit):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size, generator=generator)


@torch.no_grad()
def assert_same_tokens(model, vit, domain):
    """In float64, where another order of the tokens is all but nothing."""
    model, vit = model.double(), vit.double()
    x = image(vit).double()
    tokens = model.forward_features({domain: x})
    torch.testing.assert_close(vit.forward_features(x), tokens.roll(1, dims=1), atol=1e-12, rtol=0)
    assert tokens.std() > 0.1


def mapped(model, domain):
    """The tensors that a domain's path is made of."""
    held = ("blocks.", "global_tokens", f"input_adapters.{domain}.")
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(held)}


# ---- there and back ----


@pytest.mark.parametrize("size", [None, 224, (40, 96)])
@pytest.mark.parametrize("domain", IMAGES)
def test_there_and_back(model, domain, size):
    vit = to_vit(model, domain, img_size=size)
    back = from_vit(vit, domain)
    assert (back.in_domains, back.patch_size) == ((domain,), 8)
    assert (
        back.img_size
        == vit.patch_embed.img_size
        == vit.pretrained_cfg["input_size"][1:]
        == {None: (56, 56), 224: (224, 224)}.get(size, size)
    )
    given = mapped(model, domain)
    assert set(given) == set(back.state_dict())
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in given.items())
    again = to_vit(back, domain).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in vit.state_dict().items())
    assert_same_tokens(model, vit, domain)


def test_every_tensor_has_its_place(model):
    vit = to_vit(model, "ired", img_size=224).state_dict()
    own = mapped(model, "ired")
    assert torch.equal(vit.pop("cls_token"), own.pop("global_tokens"))
    positions = vit.pop("pos_embed")
    assert not positions[:, 0].any()
    assert torch.equal(positions[:, 1:].mT.unflatten(2, (28, 28)), own.pop("input_adapters.ired.pos_emb"))
    renamed = {name.replace("input_adapters.ired.proj", "patch_embed.proj"): tensor for name, tensor in own.items()}
    assert set(renamed) == set(vit)
    assert all(torch.equal(vit[name], tensor) for name, tensor in renamed.items())


@pytest.mark.parametrize("pool", ["global", "avg"])
def test_pooled_vectors_are_equal_too(pool):
    model = randomise(MultiMae(**SIZE, global_pool=pool))
    vit = to_vit(model)
    with torch.no_grad():
        torch.testing.assert_close(vit(image(vit)), model(image(vit)), atol=1e-5, rtol=1e-5)


def test_it_is_a_plain_vit_of_its_own(model):
    state = torch.random.get_rng_state()
    vit = to_vit(model.train())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(vit) is VisionTransformer and isinstance(vit.norm, nn.Identity) and vit.training
    assert from_vit(vit).training and not to_vit(model.eval()).training and not from_vit(vit.eval()).training
    assert vit.pretrained_cfg["input_size"] == (3, 56, 56) and not vit.pretrained_cfg.get("hf_hub_id")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in vit.parameters():
        assert parameter.requires_grad and parameter.device.type == "cpu"
        parameter.data.zero_()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_in_bfloat16(model):
    vit = to_vit(model.bfloat16())
    back = from_vit(vit)
    assert {one.dtype for one in (*vit.parameters(), *back.parameters(), *back.buffers())} == {torch.bfloat16}
    assert all(
        torch.equal(back.state_dict()[name], one) for name, one in mapped(model, "rgb").items() if "pos" not in name
    )


# ---- into a model, and from other ViTs ----


def test_into_a_model_changes_the_domain_and_the_blocks_alone(model):
    vit = to_vit(model, "sired")
    other = randomise(MultiMae(**SIZE), seed=7)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert from_vit(vit, "sired", into=other) is other
    given = mapped(model, "sired")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, given.get(name, before[name])), name
    assert str(other.weights_origin) == "a state dict (unverified)"


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize("options", [
    dict(img_size=224, patch_size=16), dict(img_size=224, in_chans=2), dict(img_size=224, dynamic_img_size=True),
    dict(img_size=224, num_classes=5, global_pool="avg", fc_norm=True),
    dict(img_size=224, drop_path_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, pos_drop_rate=0.1),
    dict(img_size=224, patch_drop_rate=0.1),
    dict(img_size=224, norm_layer=functools.partial(nn.LayerNorm, eps=1e-6)),
])  # fmt: skip
def test_from_a_vit_of_other_training(options, no_embed_class):
    vit = randomise(VisionTransformer(**{**PLAIN, **options, "no_embed_class": no_embed_class})).double()
    domain = "ebands" if options.get("in_chans") == 2 else "rgb"
    made = from_vit(vit, domain)
    places = vit.pos_embed[:, -vit.patch_embed.num_patches :]
    assert torch.equal(made.input_adapters[domain].pos_emb.flatten(2).mT, places)
    assert_same_tokens(made, vit, domain)


def test_one_into_a_model_of_all_domains():
    vit = randomise(VisionTransformer(**{**PLAIN, "img_size": 224})).double()
    model = from_vit(vit, into=randomise(MultiMae(**SIZE), seed=3).double())
    assert model.in_domains == tuple(DOMAINS)
    assert_same_tokens(model, vit, "rgb")


def test_changed_positions_of_another_grid(model):
    vit = to_vit(model)
    vit.pos_embed.data[:, 5] += 1e-3
    with pytest.raises(InputError, match="positions, for 7 x 7 patches, are not MultiMAE's table of 28 x 28"):
        from_vit(vit)
    vit.set_input_size(img_size=(224, 224))
    back = from_vit(vit)
    assert torch.equal(back.input_adapters["rgb"].pos_emb.flatten(2).mT, vit.pos_embed[:, 1:])


# ---- what cannot be mapped ----


class OtherWay(VisionTransformer):
    def forward_features(self, x, **kwargs):
        return super().forward_features(x, **kwargs).square()


@pytest.mark.parametrize(("options", "said"), [
    (dict(final_norm=True), r"ends with LayerNorm.*vit\.norm = torch\.nn\.Identity"),
    (dict(reg_tokens=4), "has reg_token, which MultiMAE has no place for"),
    (dict(class_token=False, global_pool="avg"), "has no cls_token, which MultiMAE needs"),
    (dict(pos_embed="none"), "has no pos_embed, which MultiMAE needs"),
    (dict(init_values=1e-5), r"has blocks\.0\.ls1\.gamma and 3 more, which"),
    (dict(qk_norm=True), r"has blocks\.0\.attn\.k_norm\.bias and 7 more, which"),
    (dict(pre_norm=True), r"has norm_pre\.bias and 1 more, which"),
    (dict(qkv_bias=False), r"has no blocks\.0\.attn\.qkv\.bias and 1 more, which"),
    (dict(norm_layer=functools.partial(nn.LayerNorm, eps=1e-5)), r"blocks\.0\.norm1 is LayerNorm\(\(64,\), eps=1e-05"),
    (dict(act_layer=nn.ReLU), r"blocks\.0\.mlp\.act is ReLU\(\), MultiMAE's GELU"),
    (dict(mlp_ratio=2), r"blocks\.0\.mlp\.fc1 is Linear\(.*out_features=128.*MultiMAE's Linear\(.*out_features=256"),
    (dict(in_chans=4), "has in_chans 4, expected 3"),
    (dict(patch_size=(8, 4)), r"patches are \(8, 4\) pixels, MultiMAE's are square"),
    (dict(img_size=60), r"img_size \(60, 60\) is not a multiple of the patch size 8"),
    (dict(block_fn=timm.models.vision_transformer.ResPostBlock), "made of ResPostBlock, MultiMAE of timm's plain"),
    (dict(attn_layer=timm.layers.DiffAttention), "made of DiffAttention, MultiMAE of timm's plain"),
])  # fmt: skip
def test_vits_that_are_not_multimae(options, said):
    vit = VisionTransformer(**{**PLAIN, **options})
    with pytest.raises(InputError, match=said) as error:
        from_vit(vit)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "said"), [
    (dict(embed_dim=32), "embed_dim 32, expected 64"), (dict(depth=3), "depth 3, expected 2"),
    (dict(num_heads=2), "num_heads 2, expected 4"), (dict(patch_size=4), "patch_size 4, expected 8"),
])  # fmt: skip
def test_a_vit_of_another_size_than_the_model_leaves_it_alone(model, options, said):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=said):
        from_vit(VisionTransformer(**{**PLAIN, **options}), into=model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_is_no_vit(model):
    distilled = timm.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(InputError, match="has dist_token and 2 more"):
        from_vit(distilled)
    with pytest.raises(InputError, match="expected a VisionTransformer of timm, got MultiMae"):
        from_vit(model)
    with pytest.raises(InputError, match="OtherWay computes tokens in its own way"):
        from_vit(OtherWay(**PLAIN))
    with pytest.raises(InputError, match="OtherPlaces computes tokens in its own way"):
        from_vit(type("OtherPlaces", (VisionTransformer,), {"_pos_embed": lambda self, x: x})(**PLAIN))
    with pytest.raises(InputError, match="expected a MultiMae, got VisionTransformer"):
        to_vit(to_vit(model))


def test_domains_and_sizes_that_do_not_fit(model):
    with pytest.raises(InputError, match="semseg holds class ids, a ViT takes images: expected one of rgb, ired"):
        to_vit(model, "semseg")
    with pytest.raises(InputError, match="semseg holds class ids"):
        from_vit(to_vit(model), "semseg")
    with pytest.raises(InputError, match=r"unknown domain 'irde'.*'ired'"):
        to_vit(model, "irde")
    with pytest.raises(InputError, match="built without depth: it has rgb, ired"):
        to_vit(MultiMae(**SIZE, in_domains=("rgb", "ired")), "depth")
    with pytest.raises(InputError, match="img_size 60 x 56 is not a multiple of the patch size 8"):
        to_vit(model, img_size=(60, 56))
    with pytest.raises(InputError, match="img_size 56 x 60"):
        to_vit(model, img_size=(56, 60))
    with pytest.raises(InputError, match="img_size 0 x 0"):
        to_vit(model, img_size=(0, 0))


# ---- files ----

READ = """
import sys, timm, torch
for folder in sys.argv[1:]:
    vit = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    x = torch.load(folder + "/x.pt")
    with torch.inference_mode():
        torch.save((vit.forward_features(x), vit(x)), folder + "/y.pt")
assert "eo_zoo" not in sys.modules
"""


def test_timm_alone_reads_what_is_saved(model, tmp_path):
    vits = {name: to_vit(model, name, img_size=(40, 96) if name == "depth" else None) for name in IMAGES}
    vits["tuned"] = to_vit(model)
    vits["tuned"].reset_classifier(3, "avg")
    for name, vit in vits.items():
        save_vit(vit, tmp_path / "made" / name)
        torch.save(image(vit), tmp_path / "made" / name / "x.pt")
    folders = [str(tmp_path / "made" / name) for name in vits]
    subprocess.run([sys.executable, "-c", READ, *folders], check=True, cwd=tmp_path, timeout=300)
    for folder, vit in zip(folders, vits.values(), strict=True):
        with torch.inference_mode():
            expected = vit.forward_features(image(vit)), vit(image(vit))
        for made, wanted in zip(torch.load(f"{folder}/y.pt"), expected, strict=True):
            assert torch.equal(made, wanted)


def test_a_saved_vit_says_what_it_is(model, tmp_path):
    named = timm.create_model("multimae_eo_base", in_domains=("rgb", "depth"), **SIZE)
    save_vit(to_vit(named, "depth"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert config["input_size"] == [1, 56, 56] and len(config["mean"]) == len(config["std"]) == 1
    assert config["license"] == "unknown"
    assert "depth: random weights" in config["description"] and config["crop_pct"] == 1
    assert config["fixed_input_size"]
    named.load_state_dict(named.state_dict())
    assert to_vit(named).pretrained_cfg["description"].endswith("rgb: a state dict (unverified)")
    save_vit(to_vit(model, img_size=112), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["img_size"] == [112, 112]
    assert load_file(tmp_path / "model.safetensors")["pos_embed"].shape == (1, 1 + 14 * 14, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_vit_made_by_its_class_is_saved_too(tmp_path):
    vit = randomise(VisionTransformer(**PLAIN)).to(memory_format=torch.channels_last)
    save_vit(vit, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(image(vit)), vit(image(vit)))
    assert "license" not in again.pretrained_cfg  # not that of timm's model of the name
    tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
    assert tuned.head.weight.shape == (7, 64)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    assert torch.allclose(grey.patch_embed.proj.weight, vit.patch_embed.proj.weight.sum(1, keepdim=True))
    assert torch.equal(tuned.forward_features(image(vit)), vit.forward_features(image(vit)))


def test_a_failed_save_leaves_what_was_there(model, tmp_path, monkeypatch):
    save_vit(to_vit(model), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(multimae_vit, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_vit(to_vit(model, "depth"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_timm_could_not_build_again_is_not_saved(model, tmp_path):
    with pytest.raises(InputError, match="has reg_token"):
        save_vit(VisionTransformer(**PLAIN, reg_tokens=2), tmp_path / "a")
    tuned = to_vit(model)
    tuned.fc_norm = nn.LayerNorm(64)
    with pytest.raises(InputError, match=r"not build this ViT again: fc_norm\.bias and 1 more"):
        save_vit(tuned, tmp_path / "a")
    with pytest.raises(InputError, match="not build this ViT again: pos_embed would have another shape"):
        save_vit(VisionTransformer(**PLAIN, no_embed_class=True), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ---- full size ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multimae_eo_base", "multimae_eo_large"])
def test_full_size(name, tmp_path):
    model = eo_zoo.create_model(name, pretrained=False)
    for domain in IMAGES:
        vit = to_vit(model, domain)
        with torch.no_grad():
            tokens = model.forward_features({domain: image(vit)}).roll(1, dims=1)
            torch.testing.assert_close(vit.forward_features(image(vit)), tokens, atol=1e-5, rtol=1e-5)
        back = from_vit(vit, domain).state_dict()
        assert all(torch.equal(back[key], tensor) for key, tensor in mapped(model, domain).items())
    save_vit(vit, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in vit.state_dict().items())
