from __future__ import annotations

import math

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eo_zoo
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.train.multimae import MultiMaePretraining, pretraining_model, sample_visible
from tests.models.families import multimae_inputs
from tests.models.multimae import CASES, SMALL_DECODER, TINY, given, official, save
from tests.procedural import PARITY, uniform

NAMES = tuple(DOMAINS)
COUNTS = dict.fromkeys(NAMES, 49)


def pretraining(in_domains=None, **kwargs) -> MultiMaePretraining:
    torch.manual_seed(0)
    encoder = timm.create_model("multimae_eo_base", in_domains=in_domains, **TINY)
    return MultiMaePretraining(encoder, **{**SMALL_DECODER, **kwargs}).eval()


@pytest.fixture(scope="module")
def model() -> MultiMaePretraining:
    return pretraining()


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return save(official("tiny"), tmp_path_factory.mktemp("tiny") / "checkpoint-999.pth")


def first_visible(names=NAMES, batch: int = 2, each: int = 8) -> dict[str, Tensor]:
    """The first ``each`` tokens of every domain."""
    return {name: torch.arange(49).lt(each).expand(batch, -1) for name in names}


# ---- parity ----


@torch.no_grad()
def check_reconstruction(size: str, model: MultiMaePretraining) -> None:
    case, expected = CASES["pretraining"][size], load_file(PARITY / f"multimae_{size}.safetensors")
    order = uniform("recon/mask", (2, 294)).argsort(dim=1)[:, :49]
    every = torch.zeros(2, 294, dtype=torch.bool).scatter(1, order, True)
    data = {name: given("recon", name, 56) for name in case["domains"]}
    whole = dict(zip(case["domains"], every.split(49, dim=1), strict=True))
    together = model(data, visible=whole)
    for i, losses in enumerate(case["losses_per_sample"]):
        visible = {name: one[i : i + 1] for name, one in whole.items()}
        output = model({name: x[i : i + 1] for name, x in data.items()}, visible=visible)
        assert set(output.losses) == set(losses)
        for name, loss in losses.items():
            assert output.losses[name].item() == pytest.approx(loss, rel=1e-5)
            wanted = expected[f"recon/{i}/pred_{name}"]
            for found in (output.predictions[name], together.predictions[name][i : i + 1]):
                error = (found[..., :: case["last_dim_stride"]] - wanted).abs().max() / wanted.abs().max()
                assert error <= 1e-5, name
    for name, loss in together.losses.items():
        mean = sum(losses[name] for losses in case["losses_per_sample"]) / 2
        assert loss.item() == pytest.approx(mean, rel=1e-5)
    assert together.loss.item() == pytest.approx(sum(loss.item() for loss in together.losses.values()), rel=1e-6)


def test_tiny_reconstruction_and_losses_through_a_forged_checkpoint(tiny_file):
    model = pretraining_model(weights=tiny_file, **TINY)
    assert not model.training and f"{tiny_file} (" in str(model.encoder.weights_origin)
    assert list(model.output_adapters) == [*NAMES, "norm_rgb"]
    check_reconstruction("tiny", model)


@pytest.mark.slow
def test_base_reconstruction_and_losses_through_a_forged_checkpoint(tmp_path):
    check_reconstruction("base", pretraining_model(weights=save(official("base"), tmp_path / "checkpoint-999.pth")))


# ---- what is visible ----


def test_exactly_as_many_tokens_are_visible_as_asked_for():
    for visible in (1, 49, 98, 294):
        kept = sample_visible(COUNTS, 64, visible, generator=torch.Generator().manual_seed(visible))
        assert list(kept) == list(NAMES)
        assert (torch.cat(list(kept.values()), dim=1).sum(1) == visible).all()


def test_shares_follow_a_dirichlet_distribution():
    """Of six shares drawn with alpha 1, each has the mean 1/6 and the variance 5 / 252."""
    kept = sample_visible(COUNTS, 4000, 49, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([one.sum(1) for one in kept.values()], dim=1) / 49
    assert shares.mean(0).tolist() == pytest.approx([1 / 6] * 6, abs=0.01)
    assert shares.var(0).tolist() == pytest.approx([5 / 252] * 6, rel=0.1)
    # which tokens of a domain are kept is uniform
    assert kept["depth"].float().mean(0).tolist() == pytest.approx([1 / 6] * 49, abs=0.04)
    even = sample_visible(COUNTS, 200, 48, alphas=1e6, generator=torch.Generator().manual_seed(0))
    assert all((one.sum(1) == 8).all() for one in even.values())
    most = sample_visible(COUNTS, 200, 40, alphas=[1e6, *[1e-3] * 5], generator=torch.Generator().manual_seed(0))
    assert most["rgb"].sum(1).float().mean() > 39
    # of six equal shares, rounded to 8, one token is filled up or dropped: of any domain
    for visible, sign in ((49, 1), (47, -1)):
        kept = sample_visible(COUNTS, 600, visible, alphas=1e6, generator=torch.Generator().manual_seed(0))
        assert [sign * (one.sum(1) - 8).float().mean().item() for one in kept.values()] == pytest.approx(
            [1 / 6] * 6, abs=0.06
        )


def test_what_is_drawn_depends_on_the_generator_alone():
    one, same, other = (
        torch.cat(list(sample_visible(COUNTS, 4, 49, generator=torch.Generator().manual_seed(seed)).values()), dim=1)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(torch.cat(list(sample_visible(COUNTS, 4, 49).values()), dim=1), one)


def test_the_model_draws_as_it_is_told(model):
    data, how = multimae_inputs(NAMES), dict(visible=30, alphas=[1e6, *[1e-3] * 5])
    one, two, three = (torch.Generator().manual_seed(3) for _ in range(3))
    output, made = model(data, generator=one, **how), model.reconstruct(data, generator=two, **how)
    wanted = sample_visible(COUNTS, 2, generator=three, **how)
    again = model.reconstruct(data, visible=dict(reversed(wanted.items())))
    for name in NAMES:
        assert torch.equal(output.visible[name], wanted[name])
        assert torch.equal(made[name], output.predictions[name]) and torch.equal(again[name], made[name])
        assert not made[name].requires_grad


@torch.no_grad()
def test_a_domain_that_is_not_given_is_one_that_is_all_hidden(tiny_file):
    model, data = pretraining_model(weights=tiny_file, **TINY), multimae_inputs(["rgb", "depth"])
    assert all(adapter.mask_token.any() for adapter in model.output_adapters.values())
    rgb = first_visible()["rgb"]
    hidden = model.reconstruct(data, visible={"rgb": rgb, "depth": torch.zeros_like(rgb)})
    absent = model.reconstruct({"rgb": data["rgb"]}, visible={"rgb": rgb})
    for name, made in absent.items():
        torch.testing.assert_close(made, hidden[name], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_nothing_hidden_reaches_a_prediction(model):
    data, visible = multimae_inputs(NAMES), first_visible()
    before = model.reconstruct(data, visible=visible)
    changed = {name: x.clone() for name, x in data.items()}
    for name, x in changed.items():  # the last row of patches
        x[..., -2:, :] = 3 if name == "semseg" else 3.0
    after = model.reconstruct(changed, visible=visible)
    assert set(after) == {*NAMES, "norm_rgb"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    changed["depth"][..., :8, :8] += 1.0
    seen = model.reconstruct(changed, visible=visible)
    assert not any(torch.equal(seen[name], before[name]) for name in before)


@torch.no_grad()
def test_every_domain_is_made_from_any(model):
    for given_names in (["depth"], ["semseg", "rgb"]):
        made = model.reconstruct(multimae_inputs(given_names))
        assert {name: x.shape[1:] for name, x in made.items()} == {
            **{name: (one.channels, 56 // one.stride, 56 // one.stride) for name, one in DOMAINS.items()},
            "norm_rgb": (3, 56, 56),
        }
    wide = model.reconstruct(multimae_inputs(["rgb"], size=(24, 64)), visible=5)
    assert wide["ired"].shape == (2, 3, 24, 64) and wide["semseg"].shape == (2, 12, 6, 16)


# ---- losses ----


def test_each_loss_by_its_definition(model):
    data, visible = multimae_inputs(NAMES, batch=2), first_visible(each=7)  # the first row of patches
    visible["rgb"] = torch.stack([torch.ones(49, dtype=torch.bool), torch.arange(49) < 7])
    visible["ired"] = torch.stack([torch.zeros(49, dtype=torch.bool), torch.arange(49) < 42])
    with torch.no_grad():
        losses, made = (output := model(data, visible=visible)).losses, output.predictions
    below = {name: made[name][..., 8:, :] - data[name][..., 8:, :] for name in ("sired", "ebands", "depth")}
    assert losses["sired"].item() == pytest.approx(below["sired"].square().mean().item(), rel=1e-5)
    assert losses["depth"].item() == pytest.approx(below["depth"].abs().mean().item(), rel=1e-5)
    entropy = nn.functional.cross_entropy(made["semseg"][..., 2:, :], data["semseg"][..., 2:, :])
    assert losses["semseg"].item() == pytest.approx(entropy.item(), rel=1e-5)
    # the first image has nothing of rgb to predict, so the mean is the second's
    second = (made["rgb"] - data["rgb"])[1, :, 8:].square().mean()
    assert losses["rgb"].item() == pytest.approx(second.item(), rel=1e-5)
    both = [(made["ired"] - data["ired"])[i, :, first:].square().mean().item() for i, first in ((0, 0), (1, 48))]
    assert losses["ired"].item() == pytest.approx(sum(both) / 2, rel=1e-5)


def test_normalised_patches(model):
    data = {"rgb": multimae_inputs(["rgb"])["rgb"]}
    with torch.no_grad():
        output = model(
            data, visible={"rgb": first_visible()["rgb"]}, targets=multimae_inputs([n for n in NAMES if n != "rgb"])
        )
    patch = data["rgb"][0, :, 48:56, 16:24]
    wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    error = (output.predictions["norm_rgb"][0, :, 48:56, 16:24] - wanted).square().mean()
    use = torch.zeros(1, 3, 56, 56, dtype=torch.bool)
    use[..., 48:56, 16:24] = True
    with torch.no_grad():
        alone = model(
            {"rgb": data["rgb"][:1], "rgb_mask": use[:, :1]},
            visible={"rgb": first_visible(batch=1)["rgb"]},
            targets={name: x[:1] for name, x in multimae_inputs([n for n in NAMES if n != "rgb"]).items()},
        )
    assert alone.losses["norm_rgb"].item() == pytest.approx(error.item(), rel=1e-4)


def test_invalid_values_count_nowhere(model):
    data, visible = multimae_inputs(NAMES, batch=1), first_visible(batch=1)
    masks = {}
    for name, x in data.items():
        mask = torch.ones_like(x, dtype=torch.bool)
        mask[..., -3:] = False
        masks[f"{name}_mask"] = mask if name == "sired" else mask if x.ndim == 3 else mask[:, :1]
    with torch.no_grad():
        before = model({**data, **masks}, visible=visible)
        changed = {name: x.clone() for name, x in data.items()}
        for name, x in changed.items():
            x[..., -3:] = 5 if name == "semseg" else 1e4
        targets = model({**data, **masks}, visible=visible, targets={**changed, **masks})
    for name, loss in before.losses.items():
        assert targets.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
        assert loss.isfinite()
    none = model({**data, **{name: torch.zeros_like(mask) for name, mask in masks.items()}}, visible=visible)
    gradients = torch.autograd.grad(none.loss, list(model.parameters()), allow_unused=True)
    assert none.loss == 0 and not any(one.any() for one in gradients if one is not None)
    single = torch.zeros_like(data["rgb"], dtype=torch.bool)
    single[0, 0, 20, 20] = True
    assert model({**data, "rgb_mask": single}, visible=visible).losses["norm_rgb"].isfinite()


def test_nan_under_a_mask_reaches_no_gradient():
    model, data = pretraining().train(), multimae_inputs(NAMES)
    holes = {name: x.clone() for name, x in data.items()}
    for name in ("rgb", "depth"):
        holes[name][..., 20:40, :] = torch.nan
    masks = {f"{name}_mask": holes[name].isfinite() for name in ("rgb", "depth")}
    output = model(data, visible=first_visible(), targets={**holes, **masks})
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        filled = model(data, visible=first_visible(), targets={**data, **masks})
    for name, loss in filled.losses.items():
        assert output.losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name


def test_a_share_of_the_tokens():
    model = pretraining(in_domains=["rgb", "depth"], out_domains=["rgb"])
    data = multimae_inputs(["rgb", "depth"])
    for kwargs, count in (({}, 16), (dict(visible=0.5), 49), (dict(visible=1e-9), 1), (dict(visible=7), 7)):
        assert sum(one.sum() for one in model(data, **kwargs).visible.values()) == 2 * count
    with pytest.raises(InputError, match=r"visible is 1\.5, expected a share above 0\.0, to 1\.0, or a whole number"):
        model(data, visible=1.5)


def test_everything_of_an_output_that_is_no_input_is_predicted():
    model = pretraining(in_domains=["rgb"], out_domains=["depth"])
    assert list(model.output_adapters) == ["depth"]
    data, depth = multimae_inputs(["rgb"]), multimae_inputs(["depth"])
    with torch.no_grad():
        output = model(data, visible=10, targets=depth)
    error = (output.predictions["depth"] - depth["depth"]).abs().mean()
    assert output.losses["depth"].item() == pytest.approx(error.item(), rel=1e-5)
    valid = torch.zeros(2, 1, 56, 56, dtype=torch.bool)
    valid[..., :9] = True
    with torch.no_grad():
        output = model(data, visible=10, targets={**depth, "depth_mask": valid})
    error = (output.predictions["depth"] - depth["depth"])[..., :9].abs().mean()
    assert output.losses["depth"].item() == pytest.approx(error.item(), rel=1e-5)
    with pytest.raises(InputError, match="nothing to compare depth with: give it in targets"):
        model(data, visible=10)


def test_uncertainty_weighting_has_a_variance_for_each_loss():
    model = pretraining(weighting="uncertainty")
    with torch.no_grad():
        model.log_vars.copy_(torch.linspace(-0.3, 0.4, 7))
    visible = first_visible(each=6) | {"depth": torch.ones(2, 49, dtype=torch.bool)}
    output = model(multimae_inputs(NAMES), visible=visible)
    assert output.losses["depth"] == 0
    wanted = sum(
        math.exp(-s) * loss.item() + s
        for (name, loss), s in zip(output.losses.items(), model.log_vars.tolist(), strict=True)
        if name != "depth"
    )
    assert output.loss.item() == pytest.approx(wanted, rel=1e-5)
    output.loss.backward()
    zero = list(output.losses).index("depth")
    assert [index for index, g in enumerate(model.log_vars.grad.tolist()) if g == 0] == [zero]


def test_land_cover_is_decoded_in_float32():
    model = pretraining()
    seen = {}
    for name, adapter in model.output_adapters.items():
        adapter.out_proj.register_forward_hook(lambda _, __, made, name=name: seen.update({name: made.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(multimae_inputs(NAMES), generator=torch.Generator().manual_seed(0))
    assert seen == {name: torch.float32 if name == "semseg" else torch.bfloat16 for name in (*NAMES, "norm_rgb")}
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    low = {name: x.bfloat16() if x.is_floating_point() else x for name, x in multimae_inputs(NAMES).items()}
    assert {loss.dtype for loss in model.bfloat16()(low).losses.values()} == {torch.float32}


# ---- training ----


def test_every_parameter_learns_but_the_tables():
    model = pretraining(weighting="uncertainty").train()
    assert not any(name.endswith("pos_emb") for name, _ in model.named_parameters())
    # keys and values are drawn as a layer of their own each
    for part in model.output_adapters["rgb"].decoder.kv.weight.chunk(2):
        assert part.std().item() == pytest.approx(math.sqrt(2 / (2 * 32)), rel=0.1)
    model(multimae_inputs(NAMES), generator=torch.Generator().manual_seed(0)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()
    assert "output_adapters.rgb.task_embeddings.depth" in model.no_weight_decay()


def test_a_few_steps_lower_the_loss():
    model = pretraining().train()
    data, generator = multimae_inputs(NAMES, batch=4), torch.Generator().manual_seed(0)
    data["semseg"] = (data["rgb"][:, 0, ::4, ::4] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    visible = sample_visible(COUNTS, 4, 49, generator=generator)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        output = model(data, visible=visible)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for enable in (False, True):
        model = pretraining().train()
        model.encoder.set_grad_checkpointing(enable)
        model(multimae_inputs(NAMES), visible=first_visible()).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


# ---- weights ----


def test_the_encoder_of_a_pretraining_goes_on_alone(tiny_file, tmp_path):
    model = pretraining_model(weights=tiny_file, weighting="uncertainty", **TINY)
    assert model.log_vars is not None and not model.log_vars.any()
    torch.save({"model": model.encoder.state_dict()}, tmp_path / "own.pth")
    again = eo_zoo.create_model("multimae_eo_base", weights=tmp_path / "own.pth", **TINY)
    x = given("w", "rgb", 56)
    assert torch.equal(again(x), model.encoder(x))


def test_what_the_file_holds_decides(tmp_path):
    names = ("rgb", "depth")
    part = pretraining(in_domains=names, out_domains=["depth"], decoder_dim=16, decoder_depth=3, decoder_heads=4)
    tensors = {name.removeprefix("encoder."): tensor for name, tensor in part.state_dict().items()}
    model = pretraining_model(weights=save(tensors, tmp_path / "part.pth"), decoder_heads=4, **TINY)
    assert model.encoder.in_domains == names and list(model.output_adapters) == ["depth"]
    adapter = model.output_adapters["depth"]
    assert adapter.mask_token.shape == (1, 1, 16) and len(adapter.decoder_transformer) == 3
    data = multimae_inputs(names)
    assert torch.equal(model.reconstruct(data)["depth"], part.reconstruct(data)["depth"])
    assert adapter.decoder.num_heads == adapter.decoder_transformer[0].attn.num_heads == 4
    with pytest.raises(InputError, match="were trained beside rgb, depth: leave in_domains out"):
        pretraining_model(weights=tmp_path / "part.pth", in_domains=["rgb"], **TINY)
    with pytest.raises(WeightsError, match=r"output_adapters\.rgb\."):
        pretraining_model(weights=tmp_path / "part.pth", out_domains=["rgb"], decoder_heads=4, **TINY)


def test_a_whole_pretraining_is_read_back(tmp_path):
    """By its own names, as torch saves it: for more pretraining, for pictures, and as an encoder."""
    part = pretraining(weighting="uncertainty")
    with torch.no_grad():
        part.log_vars.fill_(0.5)
    torch.save(part.state_dict(), tmp_path / "own.pth")
    again = pretraining_model(weights=tmp_path / "own.pth", **TINY)
    data = multimae_inputs(NAMES)
    found, wanted = again.reconstruct(data, visible=first_visible()), part.reconstruct(data, visible=first_visible())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    encoder = eo_zoo.create_model("multimae_eo_base", weights=tmp_path / "own.pth", **TINY)
    assert torch.equal(encoder(data), part.encoder(data))
    fewer = pretraining_model(weights=tmp_path / "own.pth", out_domains=["semseg", "ired"], **TINY)
    assert list(fewer.output_adapters) == ["ired", "semseg"]
    assert torch.equal(fewer.reconstruct(data)["semseg"], part.reconstruct(data)["semseg"])


def test_files_that_do_not_do(tmp_path):
    with pytest.raises(WeightsError, match="holds an encoder only"):
        pretraining_model(weights=save(official("tiny", "encoder"), tmp_path / "encoder.pth"), **TINY)
    tensors = official("tiny")
    del tensors["output_adapters.ired.out_proj.bias"]
    with pytest.raises(WeightsError, match=r"output_adapters\.ired\.out_proj\.bias"):
        pretraining_model(weights=save(tensors, tmp_path / "cut.pth"), **TINY)
    del tensors["output_adapters.rgb.mask_token"]
    with pytest.raises(WeightsError, match=r"holds no output_adapters\.rgb\.mask_token: its output adapters are not"):
        pretraining_model(weights=save(tensors, tmp_path / "cut.pth"), **TINY)
    with pytest.raises(WeightsError, match="not of a checkpoint of MultiMAE"):
        pretraining().load_tensors({"cls_token": torch.zeros(1)})
    with pytest.raises(InputError, match="smarties_vit_nano has no output adapters: expected one of multimae_eo_base"):
        pretraining_model("smarties_vit_nano", False)
    random = pretraining_model(pretrained=False, norm_rgb=False, **TINY, **SMALL_DECODER)
    assert random.encoder.weights_origin is None and not random.training
    assert list(random.output_adapters) == list(NAMES)


# ---- bad input ----


@pytest.mark.parametrize(
    ("data", "kwargs", "message"),
    [
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(visible=50), "visible is 50, expected 1 to 49"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(visible=0), "visible is 0"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(alphas=0.0), "alphas are 0.0, expected a number above 0"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(alphas=[1.0, 1.0]), "one for each of rgb"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(visible=first_visible()), "the inputs are rgb"),
        (
            {"rgb": torch.zeros(1, 3, 56, 56)},
            dict(visible={"rgb": torch.ones(1, 49)}),
            r"torch.float32 \(1, 49\), expected bool",
        ),
        (
            {"rgb": torch.zeros(2, 3, 56, 56)},
            dict(visible={"rgb": torch.arange(49) < torch.tensor([[3], [5]])}),
            "3 to 5 tokens are visible: expected as many",
        ),
        ({"depth_mask": torch.ones(1)}, {}, "depth_mask is given without depth"),
        (
            {"rgb": torch.zeros(1, 3, 56, 56), "rgb_mask": torch.ones(1, 1, 56, 56)},
            {},
            r"rgb_mask is torch.float32 \(1, 1, 56, 56\), expected bool",
        ),
        (
            {"rgb": torch.zeros(1, 3, 56, 56)},
            dict(targets={"rgb": torch.zeros(1, 3, 28, 28)}),
            r"rgb to compare with is \(1, 3, 28, 28\), the output \(1, 3, 56, 56\)",
        ),
        (torch.zeros(1, 3, 56, 56), {}, "expected a dict of domains"),
        (
            {"rgb": torch.zeros(1, 3, 56, 56), "rgb_mask": torch.ones(1, 1, 28, 28, dtype=torch.bool)},
            {},
            r"rgb_mask is torch.bool \(1, 1, 28, 28\), expected bool \(1, 3, 56, 56\)",
        ),
        ({"rgb": torch.zeros(1, 3, 56, 56), "rgb_mask": [True]}, {}, "rgb_mask is list, expected bool"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(visible={"rgb": [True]}), "visible rgb is list, expected bool"),
        (
            {"rgb": torch.zeros(1, 3, 56, 56)},
            dict(targets={"rgb": torch.full((1, 3, 56, 56), torch.nan)}),
            "rgb holds NaN or infinite values",
        ),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(targets={"rgb": [0.0]}), "rgb is of type list"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(targets={"foo": torch.zeros(1)}), "unknown domain 'foo'"),
        ({"rgb": torch.zeros(1, 3, 56, 56)}, dict(alphas=math.nan), "alphas are nan, expected a number above 0"),
        ({"rbg": torch.zeros(1, 3, 56, 56)}, {}, "unknown domain 'rbg'"),
    ],
)
def test_bad_input_is_one_sentence(data, kwargs, message):
    model = pretraining(out_domains=["rgb"])
    with pytest.raises(InputError, match=message):
        model(data, **{"visible": 20, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(out_domains=["rbg"]), "unknown domain 'rbg'"),
        (dict(out_domains=[]), "out_domains is empty"),
        (dict(decoder_dim=30), "decoder_dim is 30, expected a multiple of 4 and of the 8 decoder_heads"),
        (dict(weighting="gradnorm"), "weighting is 'gradnorm', expected 'sum' or 'uncertainty'"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(InputError, match=message):
        pretraining(**kwargs)


def test_labels_are_checked_as_targets():
    model, data = pretraining(in_domains=["rgb"], out_domains=["semseg"]), multimae_inputs(["rgb"])
    with pytest.raises(InputError, match="class ids from 42 to 42, expected 0 to 11"):
        model(data, targets={"semseg": torch.full((2, 14, 14), 42)})
    with pytest.raises(InputError, match=r"semseg_mask is torch.bool \(2, 1, 14\), expected bool \(2, 14, 14\)"):
        mask = torch.ones(2, 1, 14, dtype=torch.bool)
        model(data, targets={"semseg": torch.zeros(2, 14, 14, dtype=torch.long), "semseg_mask": mask})


def test_land_cover_needs_patches_of_whole_labels():
    encoder = timm.create_model("multimae_eo_base", in_domains=["rgb"], patch_size=14, img_size=56, **TINY)
    with pytest.raises(InputError, match="patch_size is 14, expected a multiple of 4: semseg has one value for 4 x 4"):
        MultiMaePretraining(encoder, out_domains=["semseg"], **SMALL_DECODER)


def test_no_classifier():
    with pytest.raises(InputError, match="the encoder is a VisionTransformer, expected a MultiMae"):
        MultiMaePretraining(timm.create_model("vit_tiny_patch16_224"))
    with pytest.raises(InputError, match="the encoder has a classifier"):
        MultiMaePretraining(timm.create_model("multimae_eo_base", num_classes=3, **TINY))
