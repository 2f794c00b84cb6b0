from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import eo_zoo
from eo_zoo import registry
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.multimae import MultiMae, position_table
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS, WORLDCOVER, classes_of, resized, standardize_depth
from tests.models.families import multimae_inputs
from tests.models.multimae import TINY, check_cases, given, official, save
from tests.procedural import manifest

NAMES = tuple(DOMAINS)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return save(official("tiny"), tmp_path_factory.mktemp("tiny") / "checkpoint-999.pth")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return timm.create_model("multimae_eo_base", **TINY).eval()


# ---- parity ----


def test_tiny_cases_through_a_forged_checkpoint(tiny_file):
    model = eo_zoo.create_model("multimae_eo_base", weights=tiny_file, **TINY)
    assert check_cases("tiny", model) == 4
    assert not model.weights_origin.verified and str(tiny_file) in str(model.weights_origin)


@pytest.mark.slow
def test_base_cases_through_a_forged_checkpoint(tmp_path):
    file = save(official("base"), tmp_path / "checkpoint-999.pth")
    model = timm.create_model(
        "multimae_eo_base", pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), cache_dir=tmp_path
    ).eval()
    assert check_cases("base", model) == 4


def test_an_encoder_alone_is_enough(tiny_file, tmp_path):
    whole = eo_zoo.create_model("multimae_eo_base", weights=tiny_file, **TINY)
    alone = eo_zoo.create_model(
        "multimae_eo_base", weights=save(official("tiny", "encoder"), tmp_path / "encoder.pth"), **TINY
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name])


@torch.no_grad()
def test_only_the_domains_wanted(tiny_file, tmp_path):
    whole = eo_zoo.create_model("multimae_eo_base", weights=tiny_file, **TINY)
    few = eo_zoo.create_model("multimae_eo_base", weights=tiny_file, in_domains=["depth", "rgb"], **TINY)
    assert few.in_domains == tuple(few.input_adapters) == ("rgb", "depth")
    data = {"depth": given("x", "depth", 56), "rgb": given("x", "rgb", 56)}
    assert torch.equal(few(data), whole(data))
    with pytest.raises(InputError, match="built without ired: it has rgb, depth"):
        few({"ired": given("x", "ired", 56)})
    tensors = {name: t for name, t in official("tiny").items() if ".ired." not in name}
    with pytest.raises(WeightsError, match=r"holds no ired, only rgb, sired, .*in_domains"):
        eo_zoo.create_model("multimae_eo_base", weights=save(tensors, tmp_path / "five.pth"), **TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.1.mlp.fc1.bias"), r"missing.*blocks\.1\.mlp\.fc1\.bias"),
        (lambda t: t.update({"encoder.2.norm1.bias": torch.zeros(64)}), r"blocks\.2\.norm1\.bias"),
        (
            lambda t: t.update({"input_adapters.lidar.proj.bias": torch.zeros(64)}),
            "not of a checkpoint of MultiMAE.*lidar",
        ),
        (lambda t: t.update({"global_tokens": torch.zeros(1, 2, 64)}), "global_tokens"),
        (lambda t: t.update({"encoder_norm.weight": torch.zeros(64)}), "encoder_norm"),
        (lambda t: t.update({"encoder.1.norm1.weight_v": torch.zeros(64)}), r"encoder\.1\.norm1\.weight_v"),
    ],
)
def test_strict(tmp_path, change, message):
    tensors = official("tiny", "encoder")
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        eo_zoo.create_model("multimae_eo_base", weights=save(tensors, tmp_path / "bad.pth"), **TINY)


@pytest.mark.parametrize(("size", "kwargs"), [("tiny", TINY), ("base", {})])
def test_the_manifests_hold_the_model_and_its_output_adapters(size, kwargs):
    with torch.device("meta"):
        model = timm.create_model("multimae_eo_base", **kwargs)
    whole, encoder = (
        MultiMae.from_official({name: torch.empty(shape) for name, shape, _ in manifest(f"multimae_{size}", kind)})
        for kind in ("pretraining", "encoder")
    )
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in encoder.items()} == own
    assert {name for name in whole if not name.startswith("output_adapters.")} == set(own)


# ---- tokens ----


@torch.no_grad()
def test_tokens_come_in_the_order_of_the_dict_and_the_global_one_last(tiny):
    data = multimae_inputs(NAMES)
    tokens = tiny.forward_features(data)
    assert tokens.shape == (2, 6 * 49 + 1, 64)
    turned = tiny.forward_features(dict(reversed(data.items())))
    parts = [*tokens[:, :-1].split(49, dim=1)]
    torch.testing.assert_close(torch.cat([*reversed(parts), tokens[:, -1:]], dim=1), turned, atol=2e-5, rtol=1e-4)
    assert torch.equal(tiny.forward_head(tokens), tokens[:, -1])
    tiny_avg = copy.deepcopy(tiny)
    tiny_avg.reset_classifier(0, "avg")
    assert torch.equal(tiny_avg(data), tokens[:, :-1].mean(dim=1))


@torch.no_grad()
def test_a_tensor_is_rgb_or_the_only_domain(tiny):
    rgb, ired = given("t", "rgb", 56), given("t", "ired", 56)
    assert torch.equal(tiny(rgb), tiny({"rgb": rgb}))
    only = timm.create_model("multimae_eo_base", in_domains="ired", **TINY).eval()
    assert torch.equal(only(ired), only({"ired": ired}))
    other = timm.create_model("multimae_eo_base", in_domains=("ired", "depth"), **TINY)
    with pytest.raises(InputError, match=r"one tensor, but the model has no rgb.*dict of ired, depth"):
        other(ired)


@torch.no_grad()
def test_maps_lie_where_the_image_has_them(tiny):
    """A change of one patch of one domain shows most in that patch of that domain's map, right after its adapter."""
    data = multimae_inputs(["rgb", "semseg"], size=(24, 40))
    changed = {name: x.clone() for name, x in data.items()}
    changed["rgb"][:, :, 8:16, 24:32] += 5.0
    [before, *_] = tiny.forward_intermediates(data, indices=[0], intermediates_only=True)
    [after, *_] = tiny.forward_intermediates(changed, indices=[0], intermediates_only=True)
    assert {name: x.shape for name, x in after.items()} == {"rgb": (2, 64, 3, 5), "semseg": (2, 64, 3, 5)}
    difference = (after["rgb"] - before["rgb"]).square().sum(1)
    for one in difference:
        assert np.unravel_index(int(one.argmax()), one.shape) == (1, 3)


@torch.no_grad()
def test_intermediates(tiny):
    data = multimae_inputs(["depth", "rgb"])
    final, maps = tiny.forward_intermediates(data)
    assert torch.equal(final, tiny.forward_features(data))
    assert list(maps[0]) == ["depth", "rgb"]
    assert torch.equal(maps[-1]["rgb"].flatten(2).transpose(1, 2), final[:, 49:98])
    [(last, prefix)] = tiny.forward_intermediates(data, 1, return_prefix_tokens=True, intermediates_only=True)
    assert torch.equal(prefix, final[:, -1:]) and torch.equal(last["depth"], maps[-1]["depth"])
    nlc = tiny.forward_intermediates(data, output_fmt="NLC", intermediates_only=True, stop_early=True)
    assert nlc[0]["depth"].shape == (2, 49, 64)
    early, _ = tiny.forward_intermediates(data, [0], stop_early=True)
    assert torch.equal(early[:, 49:98], nlc[0]["rgb"])
    with pytest.raises(InputError, match="output_fmt is 'NHWC'"):
        tiny.forward_intermediates(data, output_fmt="NHWC")


@torch.no_grad()
def test_features_only_is_for_one_domain(tiny_file):
    kwargs = dict(pretrained=True, features_only=True, pretrained_cfg_overlay=dict(file=str(tiny_file)), **TINY)
    rgb = timm.create_model("multimae_eo_base", out_indices=(0, 1), **kwargs).eval()
    whole = eo_zoo.create_model("multimae_eo_base", weights=tiny_file, **TINY)
    x = given("f", "rgb", 56)
    wanted = whole.forward_intermediates(x, intermediates_only=True)
    for found, one in zip(rgb(x), wanted, strict=True):
        assert torch.equal(found, one)
    assert list(rgb.model.input_adapters) == ["rgb"]
    first = timm.create_model("multimae_eo_base", in_domains=["ebands"], out_indices=[0], **kwargs).eval()
    assert len(first.model.blocks) == 1 and first(given("f", "ebands", 24))[0].shape == (2, 64, 3, 3)
    with pytest.raises(InputError, match="features_only is for one domain, got rgb, depth"):
        timm.create_model("multimae_eo_base", in_domains=("rgb", "depth"), features_only=True)
    with pytest.raises(InputError, match="rgb has 3 channels: leave in_chans out"):
        timm.create_model("multimae_eo_base", features_only=True, in_chans=4)
    assert timm.create_model("multimae_eo_base", in_domains=["depth"], in_chans=1, **TINY).in_domains == ("depth",)


def test_configuration():
    model = timm.create_model("multimae_eo_base", in_domains=["sired"], img_size=(48, 64), **TINY)
    assert model.pretrained_cfg["input_size"] == (2, 48, 64)
    statistics = eo_zoo.sensors.get_statistics("mmearth/s2-l2a").select(eo_zoo.sensors.get_order("multimae/sired"))
    assert tuple(model.pretrained_cfg["mean"]) == statistics.mean
    assert timm.get_pretrained_cfg("multimae_eo_base").input_size == (3, 56, 56)
    facts = registry.info("multimae_eo_base")
    assert facts["inputs"]["ebands"] == {"sensor": "S2", "bands": ["B8A", "B08"]}
    assert facts["licence"] == "unknown" and "licence" in facts["terms"]
    assert facts["statistics"]["DEM"]["units"] == "m"
    assert facts["statistics"]["S2-L1C"]["name"] == "mmearth/s2-l1c"


def test_what_large_is_built_of():
    with torch.device("meta"):
        model = timm.create_model("multimae_eo_large", num_classes=3, drop_rate=0.1, drop_path_rate=0.2)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (1024, 24, 16)
    assert {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)} == {1e-6}
    assert model.head_drop.p == 0.1 and model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.no_weight_decay() == {"global_tokens", "input_adapters.semseg.class_emb.weight"}
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {name.split(".")[0] for name in groups[0]} == {"global_tokens", "input_adapters"}
    assert model.prune_intermediate_layers([0, 1]) == [0, 1] and len(model.blocks) == 2 and model.num_classes == 0


def test_random_weights_are_drawn_as_in_the_public_code():
    torch.manual_seed(0)
    model = timm.create_model("multimae_eo_base", depth=2)
    # each of query, key and value is drawn as a layer of its own
    bound = math.sqrt(6 / (2 * 768))
    for part in model.blocks[1].attn.qkv.weight.chunk(3):
        assert part.abs().max() <= bound and part.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    proj = model.input_adapters["rgb"].proj.weight
    assert proj.std().item() == pytest.approx(math.sqrt(2 / (768 + 3 * 64)), rel=0.02)
    assert not model.blocks[0].mlp.fc1.bias.any() and not model.input_adapters["rgb"].proj.bias.any()
    assert model.global_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.input_adapters["semseg"].class_emb.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.weights_origin is None


# ---- positions ----


def test_position_table_by_its_formula():
    table = position_table(16, 8)
    assert table.shape == (1, 16, 28, 28)
    for row, column in ((0, 0), (3, 5), (27, 1)):
        angles = [[where / 10000 ** (i / 4) for i in range(4)] for where in (row, column)]
        wanted = [f(a) for where in angles for f in (math.sin, math.cos) for a in where]
        assert table[0, :, row, column].tolist() == pytest.approx(wanted, abs=1e-6)


@torch.no_grad()
def test_tables_are_resized_without_antialiasing():
    adapter = timm.create_model("multimae_eo_base", **TINY).input_adapters["rgb"]
    made = adapter.positions((7, 7)).transpose(1, 2).unflatten(2, (7, 7))
    wanted = nn.functional.interpolate(adapter.pos_emb, size=(7, 7), mode="bicubic", align_corners=False)
    assert torch.equal(made, wanted)
    assert torch.equal(adapter.positions((28, 28)).transpose(1, 2).unflatten(2, (28, 28)), adapter.pos_emb)
    # of an oblong image, whose patches count row by row; in bfloat16 they are interpolated in float32 too
    for dtype in (torch.float32, torch.bfloat16):
        made = adapter.to(dtype)(torch.zeros(1, 3, 24, 40, dtype=dtype)).transpose(1, 2).unflatten(2, (3, 5))
        wanted = nn.functional.interpolate(adapter.pos_emb.float(), size=(3, 5), mode="bicubic").to(dtype)
        assert torch.equal(made, wanted)


@torch.no_grad()
def test_other_patch_sizes():
    model = timm.create_model("multimae_eo_base", patch_size=16, img_size=64, **TINY).eval()
    assert model.input_adapters["rgb"].pos_emb.shape == (1, 64, 14, 14)
    assert model.input_adapters["semseg"].proj.kernel_size == (4, 4)
    assert model.forward_features(multimae_inputs(NAMES, size=64)).shape == (2, 6 * 16 + 1, 64)
    assert model.feature_info[0]["reduction"] == 16
    with pytest.raises(WeightsError, match=r"patches of 8 pixels, the model for 16: create it with patch_size=8"):
        model.load_state_dict(official("tiny"))
    with pytest.raises(WeightsError, match="patches of 8 pixels, the model for 16"):
        timm.create_model("multimae_eo_base", patch_size=16, img_size=64, in_domains="semseg", **TINY).load_state_dict(
            official("tiny")
        )


# ---- domains ----


def test_classes_of_worldcover_codes():
    codes = torch.tensor([[10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100, 255, 0]])
    assert classes_of(codes).tolist() == [[*range(12), 11]]
    assert classes_of(codes.float()).dtype == torch.int64 and classes_of(codes.to(torch.uint8)).tolist()[0][:3] == [
        0,
        1,
        2,
    ]
    assert list(WORLDCOVER.values())[9] == "mangroves"
    with pytest.raises(InputError, match=r"3 land-cover values are no ESA WorldCover code \(11, 96\)"):
        classes_of(torch.tensor([11, 11, 96, 10]))


def test_depth_is_standardised_by_its_middle():
    x = uniform_heights()
    middle = x.flatten(1).sort(1).values[:, 313:2822]
    mean, variance = middle.mean(1), middle.var(1)
    wanted = (x - mean[:, None, None, None]) / (variance[:, None, None, None] + 1e-6).sqrt()
    torch.testing.assert_close(standardize_depth(x), wanted)
    spike = x.clone()
    spike[0, 0, 0, 0] = -32768.0
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    made = standardize_depth(spike, valid)
    assert made[0, 0, 0, 0] == 0 and (made - wanted)[0].abs().max() < 0.01 + wanted[0, 0, 0, 0].abs()
    assert torch.equal(made[1], standardize_depth(x)[1])
    assert not standardize_depth(x, torch.zeros_like(valid)).any()
    assert standardize_depth(torch.full((1, 1, 8, 8), 700.0)).abs().max() == 0
    flat = torch.linspace(0, 1e-3, 64).view(1, 1, 8, 8)
    middle = flat.flatten()[6:57]
    torch.testing.assert_close(standardize_depth(flat), (flat - middle.mean()) / (middle.var() + 1e-6).sqrt())


def uniform_heights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, 56, 56, generator=generator) * 120 + 640


def test_resizing():
    x = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    small = resized("depth", x, 56)
    assert small.shape == (1, 1, 56, 56)
    # half-pixel centres, no antialiasing
    assert small[0, 0, 0, 10].item() == pytest.approx((10.5 * 64 / 56) - 0.5, abs=1e-4)
    labels = torch.randint(12, (2, 64, 64), dtype=torch.uint8)
    made = resized("semseg", labels, 56)
    assert made.shape == (2, 14, 14) and made.dtype == labels.dtype
    centre = [int((i + 0.5) * 64 / 14) for i in range(14)]
    assert torch.equal(made, labels[:, centre][:, :, centre])
    assert resized("rgb", x.expand(1, 3, 64, 64), (64, 64)).shape == (1, 3, 64, 64)
    assert resized("semseg", labels, (24, 40)).shape == (2, 6, 10)


def test_rasters_hold_every_domain_once():
    assert [name for names in RASTERS.values() for name in names] == list(NAMES)


# ---- bad input ----

RGB = torch.zeros(2, 3, 56, 56)
BAD = {
    "unknown domain": ({"rbg": RGB}, "unknown domain 'rbg'.*rgb"),
    "mask": ({"rgb": RGB, "rgb_mask": RGB.bool()}, "unknown domain 'rgb_mask'. Masks are for pretraining"),
    "empty": ({}, "the dict is empty: give at least one of rgb, ired"),
    "a list": ([RGB], "expected a dict of domains.*got list"),
    "an array": ({"rgb": RGB.numpy()}, "rgb is of type ndarray, expected a tensor"),
    "batch": ({"rgb": RGB, "depth": torch.zeros(1, 1, 56, 56)}, "depth holds 1 images, rgb 2"),
    "extent": ({"rgb": RGB, "depth": torch.zeros(2, 1, 48, 56)}, "depth covers 48 x 56 pixels, rgb 56 x 56"),
    "columns": ({"rgb": RGB, "depth": torch.zeros(2, 1, 56, 48)}, "depth covers 56 x 48 pixels, rgb 56 x 56"),
    "labels at full size": (
        {"rgb": RGB, "semseg": torch.zeros(2, 56, 56, dtype=torch.long)},
        "semseg covers 224 x 224 pixels, rgb 56 x 56.*one label for 4 x 4",
    ),
    "channels": ({"ired": torch.zeros(2, 2, 56, 56)}, r"ired is \(2, 2, 56, 56\), expected images \(B, 3, H, W\)"),
    "no batch": ({"rgb": torch.zeros(3, 56, 56)}, r"expected images \(B, 3, H, W\)"),
    "ids": ({"semseg": torch.full((2, 14, 14), 12)}, "class ids from 12 to 12, expected 0 to 11"),
    "codes": ({"semseg": torch.full((2, 14, 14), 100)}, "classes_of makes them of WorldCover's codes"),
    "negative": ({"semseg": torch.full((2, 14, 14), -1)}, "from -1 to -1"),
    "float ids": ({"semseg": torch.zeros(2, 14, 14)}, "semseg holds torch.float32, expected whole class ids"),
    "bool": ({"semseg": torch.zeros(2, 14, 14, dtype=torch.bool)}, "semseg holds torch.bool, expected whole class ids"),
    "one-hot": ({"semseg": torch.zeros(2, 12, 14, 14, dtype=torch.long)}, r"expected class ids \(B, H / 4, W / 4\)"),
    "integers": ({"rgb": RGB.short()}, "rgb holds torch.int16, expected normalised floats.*create_transform"),
    "patches": ({"rgb": torch.zeros(2, 3, 60, 56)}, "60 x 56 pixels, expected multiples of the patch size 8"),
    "patch columns": ({"rgb": torch.zeros(2, 3, 56, 60)}, "56 x 60 pixels, expected multiples of the patch size 8"),
    "nothing": ({"rgb": torch.zeros(2, 3, 0, 56)}, "expected multiples of the patch size 8"),
    "NaN": ({"depth": torch.full((2, 1, 56, 56), torch.nan)}, "depth holds NaN or infinite values"),
    "infinity": ({"rgb": torch.full((2, 3, 56, 56), torch.inf)}, "rgb holds NaN or infinite values"),
    "type": ({"rgb": RGB.double()}, r"rgb holds torch.float64, the model torch.float32.*\.to\(torch.float32\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_sentence(tiny, what):
    x, message = BAD[what]
    with pytest.raises(InputError, match=message) as raised:
        tiny(x)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(in_domains=["rgb", "dept"]), "unknown domain 'dept'.*depth"),
        (dict(in_domains=[]), "in_domains is empty"),
        (dict(patch_size=14), "patch_size is 14, expected a multiple of 4: semseg has one value for 4 x 4 pixels"),
        (dict(patch_size=0), "patch_size is 0, expected a multiple of 1"),
        (dict(img_size=60), r"img_size \(60, 60\) is not a multiple of the patch size 8"),
        (dict(global_pool="token"), "global_pool is 'token', expected one of global, avg"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("multimae_eo_base", **TINY, **kwargs)


@torch.no_grad()
def test_labels_of_any_whole_type_and_autocast(tiny):
    data = multimae_inputs(NAMES)
    wanted = tiny(data)
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        assert torch.equal(tiny({**data, "semseg": data["semseg"].to(dtype)}), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        low = tiny({name: x.bfloat16() if x.is_floating_point() else x for name, x in data.items()})
    assert nn.functional.cosine_similarity(low.float(), wanted).min() > 0.999


@torch.no_grad()
def test_all_domains_are_compiled_and_exported_in_one_graph(tiny):
    data = multimae_inputs(NAMES)
    torch._dynamo.reset()
    compiled = torch.compile(tiny, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(data), tiny(data), atol=1e-5, rtol=1e-5)
    graph = torch.export.export(tiny, (data,)).module()
    torch.testing.assert_close(graph(data), tiny(data), atol=1e-5, rtol=1e-5)


def test_a_classifier_is_a_norm_and_a_linear_layer(tmp_path):
    model = timm.create_model("multimae_eo_base", num_classes=5, **TINY)
    assert isinstance(model, MultiMae) and [type(part) for part in model.head] == [nn.LayerNorm, nn.Linear]
    assert model.head[1].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model(multimae_inputs(["rgb"])).shape == (2, 5)
    assert model.forward_head(model.forward_features(multimae_inputs(["rgb"])), pre_logits=True).shape == (2, 64)
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    again = eo_zoo.create_model("multimae_eo_base", weights=tmp_path / "tuned.pth", num_classes=5, **TINY)
    assert torch.equal(again.head[1].weight, model.head[1].weight)
    model.bfloat16().reset_classifier(2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
