from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, linear

import eo_zoo
from eo_zoo import registry, sensors, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.positions import sincos_positions
from eo_zoo.models.smarties_tasks import half_mix
from tests.procedural import forge, manifest, uniform, weight

ROOT = Path(__file__).parents[2]
TINY = dict(embed_dim=64, depth=2, num_heads=4)
# As published: set, sizes, kind of head, classes, bands' projections in the order the tag takes them.
S2 = {
    "aerosol": 0, "blue_1": 1, "green_2": 4, "red_2": 6, "red_edge_1": 7, "red_edge_2": 8, "near_infrared_2": 10,
    "near_infrared_1": 9, "near_infrared_3": 11, "short_wave_infrared_1": 12, "short_wave_infrared_3": 13,
    "short_wave_infrared_4": 14,
}  # fmt: skip
L1C = {**dict(list(S2.items())[:10]), "short_wave_infrared_2": None, **dict(list(S2.items())[10:])}
S1, RGB = {"microwave_1": 15, "microwave_2": 16}, {"red_1": 5, "green_1": 3, "blue_3": 2}
SETS = {
    "bigearthnets2_finetune": (("base", "large"), "linear", 19, S2),
    "bigearthnets1_linprobe": (("base", "large"), "probe", 19, S1),
    "bigearthnetmm_linprobe": (("base", "large"), "probe", 19, {**S2, **S1}),
    "eurosat_finetune": (("base", "large"), "linear", 10, L1C),
    "eurosat_linprobe": (("base", "large"), "probe", 10, L1C),
    "resisc45_finetune": (("large",), "linear", 45, RGB),
    "dfc2020_linprobe": (("base",), "segmentation", 8, S2),
}
TAGS = [f"smarties_vit_{size}.{tag}" for tag, (sizes, *_) in SETS.items() for size in sizes]
MM = "smarties_vit_base.bigearthnetmm_linprobe"


def official(tag: str, size: str = "tiny", *, fc_norm: bool = False) -> dict[str, Tensor]:
    """A forged checkpoint as the public code saves it after fine-tuning or probing."""
    _, kind, classes, _ = SETS[tag]
    rows = manifest(f"smarties_{size}", "encoder")
    if fc_norm:
        rows = [[key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key, *rest] for key, *rest in rows]
    dim = next(shape for key, shape, _ in rows if key == "cls_token")[-1]
    tensors = forge(rows, {"pos_embed": sincos_positions(dim, 14, 14)})
    width = 2 * dim if "mm" in tag else dim
    if kind == "linear":
        return tensors | {"head.weight": weight("head.weight", (classes, width)), "head.bias": weight("b", (classes,))}
    if kind == "segmentation":
        last = {"head.0.weight": weight("head.0.weight", (classes, width, 1, 1))}
        return tensors | last | {"head.0.bias": weight("head.0.bias", (classes,))}
    return tensors | {
        "head.0.running_mean": weight("head.0.running_mean", (width,)),
        "head.0.running_var": 1 + 0.4 * uniform("head.0.running_var", (width,)),
        "head.0.num_batches_tracked": torch.tensor(3100),
        "head.1.weight": weight("head.1.weight", (classes, width)),
        "head.1.bias": weight("head.1.bias", (classes,)),
    }


# ------------------------------------------------------------------ the same numbers, written down step by step


def patches_of(image: Tensor) -> Tensor:
    """(bands, 224, 224) to (14, 14, bands, 256), pixels row-major."""
    made = torch.empty(14, 14, len(image), 256)
    for row in range(14):
        for column in range(14):
            made[row, column] = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten(1)
    return made


def embed(tensors: dict[str, Tensor], patches: Tensor, projections: list[int]) -> Tensor:
    """One patch position after another: 12 times the mean over the bands of each band's own projection."""
    name = "spectrum_projection.spectrum_embeds.{}.proj.{}"
    total = torch.zeros(*patches.shape[:2], len(tensors["cls_token"][0, 0]))
    for band, i in enumerate(projections):
        total += linear(patches[:, :, band], tensors[name.format(i, "weight")], tensors[name.format(i, "bias")])
    return 12 * total / len(projections)


def encode(tensors: dict[str, Tensor], embedded: Tensor, heads: int) -> Tensor:
    """(14, 14, D) to the tokens after the last block, (197, D), class token first."""
    dim = embedded.shape[-1]
    x = torch.cat([tensors["cls_token"][0], embedded.reshape(196, dim)]) + tensors["pos_embed"][0]
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    for i in range(depth):
        block = {n.removeprefix(f"blocks.{i}."): t for n, t in tensors.items() if n.startswith(f"blocks.{i}.")}
        y = layer_norm(x, (dim,), block["norm1.weight"], block["norm1.bias"], eps=1e-6)
        qkv = linear(y, block["attn.qkv.weight"], block["attn.qkv.bias"]).reshape(197, 3, heads, dim // heads)
        q, k, v = qkv.permute(1, 2, 0, 3)
        attention = (q @ k.transpose(1, 2) / (dim // heads) ** 0.5).softmax(-1)
        joined = (attention @ v).permute(1, 0, 2).reshape(197, dim)
        x = x + linear(joined, block["attn.proj.weight"], block["attn.proj.bias"])
        y = layer_norm(x, (dim,), block["norm2.weight"], block["norm2.bias"], eps=1e-6)
        y = gelu(linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x


def pooled(tensors: dict[str, Tensor], tokens: Tensor) -> Tensor:
    dim = (tokens.shape[-1],)
    if "fc_norm.weight" in tensors:
        mean = tokens[1:].mean(0)
        return layer_norm(mean, dim, tensors["fc_norm.weight"], tensors["fc_norm.bias"], eps=1e-6)
    return layer_norm(tokens, dim, tensors["norm.weight"], tensors["norm.bias"], eps=1e-6)[0]


def halves(image: Tensor, noise: Tensor) -> list[tuple[Tensor, list[list[int]]]]:
    """As the public loader makes them of Sentinel-2 and -1: both repeated to 12 bands, half of the places swapped."""
    both = [(patches_of(image[12:]).repeat(1, 1, 6, 1), 6 * [15, 16]), (patches_of(image[:12]), list(S2.values()))]
    kept = noise.argsort()[:98].tolist()
    runs = []
    for run in range(2):
        patches, projections = torch.empty(196, 12, 256), []
        for place in range(196):
            chosen, own = both[run if place in kept else 1 - run]
            patches[place] = chosen.reshape(196, 12, 256)[place]
            projections.append(own)
        runs.append((patches, projections))
    return runs


def features(tensors: dict[str, Tensor], image: Tensor, bands: dict[str, int | None], heads: int) -> Tensor:
    read = [i for i, projection in enumerate(bands.values()) if projection is not None]
    projections = [projection for projection in bands.values() if projection is not None]
    return encode(tensors, embed(tensors, patches_of(image)[:, :, read], projections), heads)


def logits(tag: str, tensors: dict[str, Tensor], image: Tensor, heads: int, noise: Tensor | None = None) -> Tensor:
    _, kind, _, bands = SETS[tag]
    if noise is not None:
        runs = []
        for patches, projections in halves(image, noise):
            places = [embed(tensors, patches[i].view(1, 1, 12, 256), projections[i]) for i in range(196)]
            runs.append(pooled(tensors, encode(tensors, torch.cat(places).view(14, 14, -1), heads)))
        found = torch.cat(runs)
    elif "mm" in tag:
        runs = [(image[12:], S1), (image[:12], S2)]
        found = torch.cat([pooled(tensors, features(tensors, part, names, heads)) for part, names in runs])
    elif kind == "segmentation":
        grid = features(tensors, image, bands, heads)[1:].T.reshape(-1, 14, 14)
        scores = torch.einsum("cd,dhw->chw", tensors["head.0.weight"][:, :, 0, 0], grid)
        scores = scores + tensors["head.0.bias"].view(-1, 1, 1)
        return interpolate(scores[None], size=(96, 96), mode="bilinear", align_corners=False)[0]
    else:
        found = pooled(tensors, features(tensors, image, bands, heads))
    if kind == "linear":
        return tensors["head.weight"] @ found + tensors["head.bias"]
    normal = (found - tensors["head.0.running_mean"]) / (tensors["head.0.running_var"] + 1e-6).sqrt()
    return tensors["head.1.weight"] @ normal + tensors["head.1.bias"]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def images(tag: str, batch: int = 2) -> Tensor:
    return uniform(f"{tag}/image", (batch, len(SETS[tag][3]), 224, 224))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    for tag in SETS:
        save_file(official(tag), folder / f"{tag}.safetensors")
    save_file(
        {n: t for n, t in official("eurosat_finetune").items() if "head" not in n}, folder / "pretrain.safetensors"
    )
    return folder


def tuned(name: str, file: Path, **kwargs):
    overlay = dict(file=str(file))
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**TINY, **kwargs}).eval()


# ------------------------------------------------------------------ every tag


def test_every_published_set_is_a_tag_and_pretrain_stays_the_default():
    found = {name for name, record in weights.RECORDS.items() if record.task and name.startswith("smarties")}
    assert found == set(TAGS) and len(TAGS) == 12
    for size in ("base", "large"):
        assert registry.list_tags(f"smarties_vit_{size}")[0] == f"smarties_vit_{size}.pretrain"
        assert timm.create_model(f"smarties_vit_{size}", depth=1).num_classes == 0


@pytest.mark.parametrize("name", TAGS)
@torch.no_grad()
def test_a_tag_loads_its_head_and_computes_as_published(name, files):
    tag = name.partition(".")[2]
    model = tuned(name, files / f"{tag}.safetensors")
    tensors, x = official(tag), images(tag)
    noise = torch.rand(2, 196, generator=torch.Generator().manual_seed(5)) if "mm" in tag else [None, None]
    options = dict(generator=torch.Generator().manual_seed(5)) if "mm" in tag else {}
    expected = torch.stack([logits(tag, tensors, x[i], 4, noise[i]) for i in range(2)])
    close(model(x, **options), expected)
    assert model.bands == tuple(SETS[tag][3]) and model.num_classes == SETS[tag][2]
    assert not model.weights_origin.verified and "unverified" in eo_zoo.info(model)["weights"]


# per cent, as quoted from the tables of arXiv:2506.19585
RESULTS = {
    "bigearthnets2_finetune": {"base": 86.9, "large": 87.7},
    "bigearthnets1_linprobe": {"base": 78.9, "large": 80.5},
    "bigearthnetmm_linprobe": {"base": 85.4, "large": 86.7},
    "eurosat_finetune": {"base": 99.4, "large": 99.6},
    "eurosat_linprobe": {"base": 98.4, "large": 98.9},
}


@pytest.mark.parametrize("name", TAGS)
def test_a_tags_record_and_configuration(name):
    tag = name.partition(".")[2]
    record, config = weights.RECORDS[name], timm.get_pretrained_cfg(name)
    size = "vitl" if "large" in name else "vitb"
    assert record.source == (
        f"hf://gsumbul/SMARTIES-v1-finetuned-models/smarties-v1-{size}-{tag.replace('_', '-')}.safetensors"
    )
    _, kind, classes, bands = SETS[tag]
    assert len(set(record.task.classes)) == classes == config.num_classes
    assert tuple(config.label_names) == record.task.classes
    assert record.bands == tuple(bands) and config.input_size == (len(bands), 224, 224)
    assert record.accepts == tuple(band for band, projection in bands.items() if projection is not None)
    assert config.crop_pct == (0.875 if "resisc" in tag else 1)
    assert record.task.kind == {"segmentation": "segmentation"}.get(
        kind, "multi-label" if "bigearthnet" in tag else "scene"
    )
    for sensor, statistics in record.statistics.items():
        known = sensors.get_statistics(statistics)
        assert known.sensor == sensor
        assert set(sensors.get_sensor(sensor).band_names) <= set(known.bands)
    mean = [
        value
        for sensor, own in record.statistics.items()
        for value in sensors.get_statistics(own).select(sensors.get_sensor(sensor).band_names).mean
    ]
    assert list(config.mean) == mean
    facts = eo_zoo.info(name)
    assert facts["task"]["classes"] == list(record.task.classes) and len(facts["bands"]) == len(record.accepts)
    size, tag = name.removeprefix("smarties_vit_").split(".")
    assert facts["task"]["result"] == RESULTS.get(tag, {}).get(size)
    assert facts["task"]["size"] in (64, 96, 120, 256) and facts["task"]["metric"]


def test_class_names_in_the_order_of_the_logits():
    classes = {name.partition(".")[2]: weights.RECORDS[name].task.classes for name in TAGS}
    assert classes["eurosat_finetune"] == classes["eurosat_linprobe"] == (
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
        "Residential", "River", "SeaLake",
    )  # fmt: skip
    # folders, sorted
    assert classes["resisc45_finetune"] == tuple(sorted(classes["resisc45_finetune"]))
    assert classes["resisc45_finetune"][0] == "airplane" and classes["resisc45_finetune"][44] == "wetland"
    assert classes["bigearthnets2_finetune"][6].startswith("Land principally occupied by agriculture, with")
    assert classes["bigearthnets2_finetune"][:2] == ("Urban fabric", "Industrial or commercial units")
    assert classes["bigearthnetmm_linprobe"][-1] == "Marine waters"
    assert classes["dfc2020_linprobe"][3:5] == ("Wetlands", "Croplands")


# ------------------------------------------------------------------ doors and heads


@torch.no_grad()
def test_every_door_gives_the_same(files):
    name, file, x = (
        "smarties_vit_base.eurosat_linprobe",
        files / "eurosat_linprobe.safetensors",
        images("eurosat_linprobe"),
    )
    expected = tuned(name, file)(x)
    by_zoo = eo_zoo.create_model(name, weights=file, **TINY)
    by_hub = torch.hub.load(
        str(ROOT), "smarties_vit_base", source="local", tag="eurosat_linprobe", weights=file, **TINY
    )
    by_dict = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=dict(state_dict=official("eurosat_linprobe")), **TINY
    )
    by_checkpoint = timm.create_model(name, checkpoint_path=str(file), **TINY)
    save_file(by_zoo.state_dict(), files / "ours.safetensors")
    for model in (by_zoo, by_hub, by_dict.eval(), by_checkpoint.eval(), tuned(name, files / "ours.safetensors")):
        assert torch.equal(model(x), expected)
    named = by_zoo(x[:, [i for i in range(13) if i != 10]], sensor="S2")
    torch.testing.assert_close(named, expected)


@pytest.mark.parametrize("name", TAGS)
@torch.no_grad()
def test_features_new_heads_and_resets(name, files, caplog):
    tag = name.partition(".")[2]
    file, x = files / f"{tag}.safetensors", images(tag, 1)
    options = dict(mix="plain") if "mm" in tag else {}
    width = 128 if "mm" in tag else 64
    vectors = tuned(name, file, num_classes=0, **options)
    assert vectors(x).shape == (1, width) and vectors.num_features == vectors.head_hidden_size == width
    if "mm" not in tag:
        _, _, _, bands = SETS[tag]
        close(vectors(x)[0], pooled(official(tag), features(official(tag), x[0], bands, 4)))
    assert "random" not in caplog.text
    with caplog.at_level(logging.WARNING, "eo_zoo"):
        other = tuned(name, file, num_classes=5, **options)
    assert "a new head is random" in caplog.text
    assert other(x).shape[1] == 5 and type(other.head) is type(tuned(name, file, **options).head)
    model = tuned(name, file, **options)
    before = model(x)
    assert model.get_classifier() is model.head and isinstance(model.head, nn.Module)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), before)
    model.reset_classifier(3)
    assert model(x).shape[1] == 3 and model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), vectors(x))
    maps = tuned(name, file, features_only=True, out_indices=2, **options)
    assert maps.feature_info.channels() == [width] * 2 and maps(x)[-1].shape == (1, width, 14, 14)
    assert timm.create_model(name, **TINY).eval()(x).shape == before.shape


@pytest.mark.parametrize("name", ["smarties_vit_base.dfc2020_linprobe", MM, "smarties_vit_base.eurosat_linprobe"])
@torch.no_grad()
def test_export_compile_and_low_precision(name, files):
    tag = name.partition(".")[2]
    options = dict(mix="plain") if "mm" in tag else {}
    model, x = tuned(name, files / f"{tag}.safetensors", **options), images(tag, 2)
    expected = model(x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    low = model.bfloat16()(x.bfloat16()).float().flatten(1)
    assert nn.functional.cosine_similarity(low, expected.flatten(1)).min() > 0.99
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in timm.create_model(name, **TINY).parameters())


@torch.no_grad()
def test_average_pooling_is_taken_where_a_file_was_trained_so(tmp_path):
    tag, name = "eurosat_finetune", "smarties_vit_base.eurosat_finetune"
    tensors, x = official(tag, fc_norm=True), images(tag)
    save_file(tensors, tmp_path / "avg.safetensors")
    with pytest.raises(WeightsError, match="global_pool='avg'"):
        tuned(name, tmp_path / "avg.safetensors")
    close(tuned(name, tmp_path / "avg.safetensors", global_pool="avg")(x)[0], logits(tag, tensors, x[0], 4))


@torch.no_grad()
def test_segmentation_of_other_sizes(files):
    model = tuned("smarties_vit_base.dfc2020_linprobe", files / "dfc2020_linprobe.safetensors", dynamic_img_size=True)
    x = torch.randn(1, 12, 112, 224)
    [grid] = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert model(x).shape == (1, 8, 48, 96)
    torch.testing.assert_close(model(x), model.head(grid))
    torch.testing.assert_close(model.forward_head(model.forward_features(x), grid=(7, 14)), model(x))
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True, grid=(7, 14)), grid)
    with pytest.raises(InputError, match="98 patch tokens for 14 x 14"):
        model.forward_head(model.forward_features(x))


def test_a_reinitialised_probe_forgets_its_statistics(files):
    model = tuned("smarties_vit_base.eurosat_linprobe", files / "eurosat_linprobe.safetensors")
    assert model.head[0].running_mean.any()
    model.init_weights()
    assert not model.head[0].running_mean.any() and torch.equal(model.head[0].running_var, torch.ones(64))
    assert model.weights_origin is None


# ------------------------------------------------------------------ both sensors at once


@pytest.fixture(scope="module")
def model(files):
    """The first that takes both sensors; no test may change it."""
    return tuned(MM, files / "bigearthnetmm_linprobe.safetensors")


class TestMix:
    def test_halves_are_complementary_and_each_images_own(self):
        first, second = torch.zeros(3, 2, 14, 14), torch.ones(3, 2, 14, 14)
        one, other = half_mix(first, second, torch.Generator().manual_seed(0))
        assert torch.equal(one + other, torch.ones(3, 2, 14, 14))
        assert torch.equal(one[:, 0], one[:, 1])
        assert one[:, 0].sum((1, 2)).tolist() == [98, 98, 98]
        assert not torch.equal(one[0], one[1])
        assert half_mix(first[:, :, :3, :3], second[:, :, :3, :3])[0][:, 0].sum((1, 2)).tolist() == [5, 5, 5]

    @torch.no_grad()
    def test_a_seed_repeats_it_and_nothing_else_does(self, model):
        x = images("bigearthnetmm_linprobe", 1)
        seeded = [model(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        assert torch.equal(seeded[0], seeded[1]) and not torch.allclose(seeded[0], seeded[2])
        torch.manual_seed(0)
        drawn = model(x)
        assert not torch.allclose(drawn, model(x))
        torch.manual_seed(0)
        assert torch.equal(drawn, model(x))

    @torch.no_grad()
    def test_plain_is_a_run_for_each_sensor(self, model, files):
        x = images("bigearthnetmm_linprobe")
        found = model(x, mix="plain")
        tensors = official("bigearthnetmm_linprobe")
        close(found, torch.stack([logits("bigearthnetmm_linprobe", tensors, image, 4) for image in x]))
        assert torch.equal(found, tuned(MM, files / "bigearthnetmm_linprobe.safetensors", mix="plain")(x))
        encoder = tuned("smarties_vit_base", files / "pretrain.safetensors")
        vectors = model.forward_head(model.forward_features(x, mix="plain"), pre_logits=True)
        torch.testing.assert_close(vectors, torch.cat([encoder(x[:, 12:], sensor="S1"), encoder(x[:, :12])], 1))

    @torch.no_grad()
    def test_bands_by_name_in_any_order(self, model):
        x = images("bigearthnetmm_linprobe")
        order = torch.randperm(14, generator=torch.Generator().manual_seed(0)).tolist()
        names = [model.bands[i] for i in order]
        found = model(x[:, order], bands=names, mix="plain")
        torch.testing.assert_close(found, model(x, mix="plain"), atol=1e-4, rtol=1e-4)
        few = model(x[:, [12, 3]], bands=["VV", "B04"], generator=torch.Generator().manual_seed(0))
        assert few.shape == (2, 19)

    @torch.no_grad()
    def test_maps_stand_side_by_side(self, model):
        x = images("bigearthnetmm_linprobe", 1)
        final, maps = model.forward_intermediates(x, mix="plain", return_prefix_tokens=True)
        radar = timm.create_model("smarties_vit_base", sensor="S1", **TINY).eval()
        radar.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
        own, [_, (grid, prefix)] = radar.forward_intermediates(x[:, 12:], return_prefix_tokens=True)
        assert final.shape == (1, 197, 128) and maps[1][0].shape == (1, 128, 14, 14) and maps[1][1].shape == (1, 1, 128)
        torch.testing.assert_close(maps[1][0][:, :64], grid)
        torch.testing.assert_close(maps[1][1][..., :64], prefix)
        torch.testing.assert_close(final[..., :64], own)
        named = model.forward_intermediates(x, mix="plain", output_dict=True, output_fmt="NLC")
        torch.testing.assert_close(named["image_intermediates"][1], maps[1][0].flatten(2).transpose(1, 2))

    @torch.no_grad()
    def test_average_pooling(self, tmp_path):
        tag = "bigearthnetmm_linprobe"
        tensors, x = official(tag, fc_norm=True), images(tag, 1)
        save_file(tensors, tmp_path / "avg.safetensors")
        close(
            tuned(MM, tmp_path / "avg.safetensors", global_pool="avg", mix="plain")(x)[0], logits(tag, tensors, x[0], 4)
        )

    def test_every_parameter_that_is_used_gets_a_gradient(self, files):
        model = tuned(MM, files / "bigearthnetmm_linprobe.safetensors").train()
        model(images("bigearthnetmm_linprobe")).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("kwargs", "call", "message"),
        [
            (dict(mix="half"), {}, "mix is 'half', expected random or plain"),
            ({}, dict(mix="both"), "mix is 'both'"),
            (dict(sensor="S2"), {}, "those of Sentinel-1 and of Sentinel-2 in one image"),
            ({}, dict(sensor="S1"), "got 14 channels but 2 bands"),
            ({}, dict(bands=["B02"] * 14), "those of Sentinel-1 and of Sentinel-2"),
        ],
    )
    def test_wrong_calls(self, kwargs, call, message):
        with pytest.raises(InputError, match=message):
            timm.create_model(MM, **TINY, **kwargs)(images("bigearthnetmm_linprobe", 1), **call)

    def test_other_models_have_no_mix(self):
        model = timm.create_model("smarties_vit_nano", sensor="S1")
        for option in (dict(mix="plain"), dict(generator=torch.Generator())):
            with pytest.raises(InputError, match="mix and generator are for"):
                model(torch.zeros(1, 2, 112, 112), **option)


# ------------------------------------------------------------------ files that do not belong


class TestWrongFiles:
    def test_a_probe_in_a_plain_architecture(self, files):
        file = files / "eurosat_linprobe.safetensors"
        with pytest.raises(WeightsError, match=r"probe head for 10 classes.*eurosat_linprobe.*num_classes=0") as error:
            tuned("smarties_vit_base", file, num_classes=10)
        assert len(str(error.value).splitlines()) == 1
        assert isinstance(tuned("smarties_vit_base", file).head, nn.Identity)
        assert tuned("smarties_vit_base", file, num_classes=10, head="probe").head[1].out_features == 10

    @pytest.mark.parametrize(
        ("name", "file", "message"),
        [
            ("eurosat_linprobe", "eurosat_finetune", r"linear head for 10 classes.*\(eurosat_finetune\)"),
            ("eurosat_finetune", "dfc2020_linprobe", r"segmentation head for 8 classes.*\(dfc2020_linprobe\)"),
            (
                "bigearthnets1_linprobe",
                "bigearthnetmm_linprobe",
                r"head\.1\.weight is \(19, 128\), expected \(19, 64\)",
            ),
            ("eurosat_linprobe", "bigearthnets1_linprobe", r"head\.1\.weight is \(19, 64\), expected \(10, 64\)"),
            ("eurosat_linprobe", "pretrain", r"5 missing \(head\.0\.running_mean"),
        ],
    )
    def test_another_sets_file(self, name, file, message, files):
        with pytest.raises(WeightsError, match=message):
            tuned(f"smarties_vit_base.{name}", files / f"{file}.safetensors")

    def test_a_head_of_another_width_is_not_one_for_other_classes(self, files):
        with pytest.raises(WeightsError, match=r"\(19, 128\), expected \(5, 64\)"):
            tuned(
                "smarties_vit_base.bigearthnets1_linprobe", files / "bigearthnetmm_linprobe.safetensors", num_classes=5
            )

    @pytest.mark.parametrize("lost", ["head.0.running_var", "head.1.bias", "head.0.num_batches_tracked", "norm.weight"])
    def test_half_a_head(self, lost, tmp_path):
        tensors = official("eurosat_linprobe")
        del tensors[lost]
        save_file(tensors, tmp_path / "half.safetensors")
        for classes in (None, 7):
            with pytest.raises(WeightsError, match=lost.replace(".", r"\.")):
                tuned("smarties_vit_base.eurosat_linprobe", tmp_path / "half.safetensors", num_classes=classes)

    def test_a_head_with_something_unknown_in_it(self, tmp_path):
        save_file(official("eurosat_linprobe") | {"head.2.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
        with pytest.raises(WeightsError, match=r"head\.2\.weight"):
            tuned("smarties_vit_base.eurosat_linprobe", tmp_path / "more.safetensors")

    def test_a_kind_of_head_that_there_is_not(self):
        with pytest.raises(InputError, match="head is 'mlp', expected one of linear, probe, segmentation"):
            timm.create_model("smarties_vit_nano", head="mlp")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "smarties_vit_base.bigearthnets2_finetune",
        "smarties_vit_base.eurosat_linprobe",
        MM,
        "smarties_vit_base.dfc2020_linprobe",
        "smarties_vit_large.resisc45_finetune",
    ],
)
@torch.no_grad()
def test_published_sizes(name, tmp_path):
    size, tag = name.removeprefix("smarties_vit_").split(".")
    tensors, x = official(tag, size), images(tag, 1)
    save_file(tensors, tmp_path / "tuned.safetensors")
    model = eo_zoo.create_model(name, weights=tmp_path / "tuned.safetensors")
    noise = torch.rand(1, 196, generator=torch.Generator().manual_seed(5))[0] if "mm" in tag else None
    options = dict(generator=torch.Generator().manual_seed(5)) if "mm" in tag else {}
    close(model(x, **options)[0], logits(tag, tensors, x[0], 12 if size == "base" else 16, noise))


def test_a_state_dict_has_to_bring_the_head_too():
    tensors = {name: tensor for name, tensor in official("eurosat_finetune").items() if "head" not in name}
    overlay = dict(state_dict=tensors)
    with pytest.raises(WeightsError, match="head"):
        timm.create_model("smarties_vit_base.eurosat_finetune", True, pretrained_cfg_overlay=overlay, **TINY)
