"""What is told of a model is what it does, and is valid where it says to be."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac
import pytest
import timm
import torch
import yaml
from pystac.extensions.mlm import MLMExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

import eo_zoo
from eo_zoo import describe, publish, registry, sensors, terrasense, weights
from eo_zoo.describe.facts import record_of
from eo_zoo.errors import InputError
from tests.models.families import anysat_inputs

NAMES = [*weights.RECORDS, "terrasense_base"]
# large ones have the values of base ones, and take a second each to be built
FEWER = [name for name in NAMES if "_large" not in name or "resisc45" in name]
IMAGES = [name for name in FEWER[:-1] if not weights.RECORDS[name].inputs]
SCHEMAS = {
    "mlm": "v1.5.2",
    "eo": "v2.0.0",
    "file": "v2.1.0",
    "scientific": "v1.0.0",
    "classification": "v1.1.0",
    "processing": "v1.1.0",
    "raster": "v1.1.0",
}
SHALLOW = {"mars": dict(depths=(1, 1, 1, 1)), "": dict(depth=1)}


def model_of(name, **options):
    """As wide as it is and as deep as need be; random."""
    shallow = SHALLOW.get(name.partition("_")[0], SHALLOW[""])
    return timm.create_model(name, **shallow, **options).eval()


@pytest.fixture
def validate(monkeypatch):
    """Raises where an item is not valid: against STAC's schemas and those of each extension that it names."""

    def offline(self, *_, **__):
        raise AssertionError("a schema was asked for that is not kept")

    monkeypatch.setattr(pystac.stac_io.DefaultStacIO, "read_text_from_href", offline)
    validator = JsonSchemaSTACValidator()
    for name, version in SCHEMAS.items():
        schema = json.loads((Path(__file__).parent / "data" / "mlm" / f"{name}.json").read_text())
        validator.schema_cache[f"https://stac-extensions.github.io/{name}/{version}/schema.json"] = schema

    def check(item):
        pystac.validation.validate_dict(item, validator=validator)
        return pystac.Item.from_dict(item).validate(validator=validator)

    return check


# ---- STAC MLM ----


@pytest.mark.parametrize("name", NAMES)
def test_items_are_valid(name, validate):
    item = json.loads(json.dumps(describe.mlm(name)))
    assert len(validate(item)) == 1 + len(item["stac_extensions"])
    properties = item["properties"]
    known = {band["name"] for band in properties["bands"]}
    for one in properties["mlm:input"]:
        named = [band if isinstance(band, str) else band["name"] for band in one["bands"]]
        shape = dict(zip(one["input"]["dim_order"], one["input"]["shape"], strict=True))
        assert set(named) <= known and shape.get("bands", 0) == len(named)
        assert len(one.get("value_scaling") or named) == len(named)
    # an asset by itself is valid in an item of another's
    item["assets"] = {"mine": json.loads(json.dumps(describe.mlm(name, kind="asset")))}
    validate(item)


def test_what_is_not_valid_is_found(validate):
    item = describe.mlm("smarties_vit_nano")
    for change in (
        lambda broken: broken["properties"].pop("mlm:input"),
        lambda broken: broken["properties"].update({"mlm:tasks": ["guessing"]}),
        lambda broken: broken["properties"]["mlm:output"][0]["result"].update(data_type="float"),
        lambda broken: broken["assets"]["model"].pop("mlm:artifact_type"),
        lambda broken: broken["assets"]["model"].pop("bands"),
        lambda broken: broken["properties"]["bands"][0].update({"eo:common_name": "azure"}),
        lambda broken: broken["assets"]["model"].update({"file:checksum": "sha256:12"}),
    ):
        broken = copy.deepcopy(item)
        change(broken)
        with pytest.raises(pystac.STACValidationError):
            validate(broken)


def test_pystac_reads_it():
    item = describe.mlm("smarties_vit_base.bigearthnetmm_linprobe")
    # the newest that pystac 1.15 knows, with the same fields
    older = [one.replace("mlm/v1.5.2", "mlm/v1.4.0") for one in item["stac_extensions"]]
    read = MLMExtension.ext(pystac.Item.from_dict(item | {"stac_extensions": older}))
    assert read.mlm_name == item["id"] and read.pretrained and read.tasks == ["classification"]
    (only,) = read.input
    assert only.input.shape == [-1, 14, 224, 224] and only.input.dim_order[1] == "bands"
    assert [band.name for band in only.bands][-2:] == ["microwave_1", "microwave_2"]
    assert read.output[0].result.shape == [-1, 19]


def scaled(one, raw):
    """What a reader of the item does to raw values (bands, H, W), by nothing but the item."""
    made = []
    for x, band, scaling in zip(raw, one["bands"], one["value_scaling"], strict=True):
        if not isinstance(band, str):
            assert band["format"] == "gdal-calc"
            x = eval(band["expression"], {"clip": np.clip, "A": x})
        assert scaling["type"] == "z-score"
        made.append((x - scaling["mean"]) / scaling["stddev"])
    return torch.from_numpy(np.stack(made)).float()


def raw_values(one, told, size):
    """Of the range that the statistics' units have."""
    random = np.random.default_rng(0)
    ranges = {"dn": (0, 8000), "db": (-40, 5), "uint8": (0, 255), "m": (0, 3000)}
    entry = next(entry for entry in told["takes"] if entry["name"] == one["name"])
    spans = [ranges[band["units"]] for band in entry["bands"]]
    return entry, np.stack([random.uniform(low, high, (size, size)) for low, high in spans])


@pytest.mark.parametrize("name", IMAGES)
def test_scaling_is_that_of_the_transform(name):
    told = describe.facts(name)
    for one in describe.mlm(name)["properties"]["mlm:input"]:
        # a size that is not resized, which cropping would
        entry, raw = raw_values(one, told, told["input_size"])
        sensor = None if len(entry["sensors"]) > 1 else entry["sensors"][0]
        transform = eo_zoo.create_transform(name, sensor)
        if told["crop"] != 1:
            transform = transform[0]
        read = [band["read"] for band in entry["bands"]]  # what is not is clipped to the others' range
        found = transform(raw.astype("float32"))
        torch.testing.assert_close(scaled(one, raw)[read], found[read], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["anysat_base", "multimae_eo_base"])
def test_scaling_of_inputs_by_name(name):
    told, seen = describe.facts(name), 0
    for one in describe.mlm(name)["properties"]["mlm:input"]:
        if one.get("value_scaling"):
            entry, raw = raw_values(one, told, told["input_size"] or 6)
            level = "S2-L1C" if entry["sensors"] == ["S2-L1C"] else None
            transform = eo_zoo.create_transform(name, level)
            found = transform({entry["key"]: raw.astype("float32")})[entry["key"]]
            expected = scaled(one, raw)
            if entry["key"] == "depth":  # which its own function follows
                assert one["pre_processing_function"]["expression"].endswith(":standardize_depth")
                expected = (expected - expected.mean()) / expected.std()
                found = (found - found.mean()) / found.std()
            torch.testing.assert_close(expected, found, rtol=1e-3, atol=1e-3)
            seen += 1
    assert seen == {"anysat_base": 2, "multimae_eo_base": 9}[name]


def test_scaling_is_of_digital_numbers():
    """Published numbers by hand: of clipped values 0..1 in SMARTIES, of raw ones in AnySat and MaRS."""
    smarties = describe.mlm("smarties_vit_base")["properties"]["mlm:input"][0]
    assert smarties["bands"][1] == {
        "name": "blue_1", "format": "gdal-calc", "expression": "clip(A, 27.01892781481322, 2604.7705241174135)"
    }  # fmt: skip
    spread = 2604.7705241174135 - 27.01892781481322
    assert smarties["value_scaling"][1]["mean"] == pytest.approx(27.01892781481322 + 0.1482059806585312 * spread)
    assert smarties["value_scaling"][1]["stddev"] == pytest.approx(0.14939884841442108 * spread)
    anysat = describe.mlm("anysat_base")["properties"]["mlm:input"][0]
    assert anysat["name"] == "s2" and anysat["value_scaling"][0] == {
        "type": "z-score",
        "mean": 4304.33,
        "stddev": 3538.0,
    }
    assert "digital numbers (reflectance x 10000)" in anysat["description"]
    (umbra, capella) = describe.mlm("mars_base_sar")["properties"]["mlm:input"]
    assert umbra["value_scaling"][0]["mean"] == 36.42 and "0..255" in umbra["description"]
    assert capella["value_scaling"][0]["mean"] == 2353.35 and "reflectance" not in capella["description"]


def test_ratio_bands_are_made_of_two():
    inputs = {one["name"]: one for one in describe.mlm("anysat_base")["properties"]["mlm:input"]}
    ratio = inputs["s1"]["bands"][2]
    first, second = np.array([0.2, 3.0, 1e5]), np.array([0.1, -2.0, 1e-6])
    found = eval(ratio["expression"], {"clip": np.clip, "A": first, "B": second})
    np.testing.assert_allclose(found, sensors.ratio(first, second))
    assert "value_scaling" not in inputs["s1"] and "stats=" in inputs["s1"]["pre_processing_function"]["description"]


def test_weights_assets(monkeypatch):
    bundled = describe.mlm("smarties_vit_nano", kind="asset")
    data = (weights.sources.DATA / "smarties_vit_nano.demo.safetensors").read_bytes()
    assert bundled["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    assert bundled["file:size"] == len(data)
    mars = describe.mlm("mars_base_sar")
    # multicodec: md5 is 0xd5, as a variable-length integer d5 01, and 16 bytes long
    assert mars["assets"]["model"]["file:checksum"] == "d501" + "10" + "8789da9bc9a44853d50d92371a1b4a6c"
    assert mars["assets"]["model"]["mlm:artifact_type"] == "torch.save"
    assert mars["properties"]["license"] == "other" and mars["links"][0]["rel"] == "license"
    hosted = describe.mlm("smarties_vit_base", kind="asset")
    assert hosted["href"].startswith("https://huggingface.co/gsumbul/SMARTIES-v1-ViT-B/resolve/main/")
    assert "file:checksum" not in hosted
    block = describe.markdown("smarties_vit_base")
    monkeypatch.setattr(weights, "pinned", lambda record: {"sha256": "ab" * 32, "size": 7})
    pinned = describe.mlm("smarties_vit_base", kind="asset")
    assert pinned["file:checksum"] == "1220" + "ab" * 32 and pinned["file:size"] == 7
    assert describe.markdown("smarties_vit_base") == block  # which is the same on every machine


# ---- shapes ----


def sizes(shape, **free):
    return tuple(free[name] if size < 0 else size for name, size in shape.items())


@pytest.mark.parametrize("name", [name for name, record in weights.RECORDS.items() if not record.inputs])
@torch.no_grad()
def test_shapes_of_image_models(name):
    told = describe.facts(name)
    entry = told["takes"][-1]
    sensor = {} if len(entry["sensors"]) > 1 else {"sensor": entry["sensors"][0]}
    with torch.device("meta"):
        model = model_of(name, **sensor)
        x = torch.zeros(sizes(entry["shape"], batch=2))
    first, *maps = told["gives"]
    assert model(x).shape == sizes(first["shape"], batch=2)
    if maps:
        _, found = model.forward_intermediates(x)
        known = {tuple(one.shape) for one in found}
        assert known == {sizes(one["shape"], batch=2) for one in maps}
    strides = {stage["reduction"] for stage in model.feature_info}
    assert set(told["strides"]) == strides


@pytest.mark.parametrize("name", ["multimae_eo_base", "multimae_eo_large"])
@torch.no_grad()
def test_shapes_of_domains(name):
    told = describe.facts(name)
    data = {}
    for entry in told["takes"]:
        x = torch.zeros(sizes(entry["shape"], batch=2))
        data[entry["key"]] = x.to(getattr(torch, entry["dtype"]))
    assert len(data) == 6 and len(told["takes"]) == 10  # four of them also from L1C
    model = model_of(name)
    vector, cells = told["gives"]
    assert model(data).shape == sizes(vector["shape"], batch=2)
    _, found = model.forward_intermediates(data)
    assert {tuple(one.shape) for one in found[-1].values()} == {sizes(cells["shape"], batch=2)}


@pytest.mark.parametrize("name", ["anysat_base", "anysat_nano", "anysat_small", "anysat_tiny"])
@torch.no_grad()
def test_shapes_of_anysat(name):
    told = describe.facts(name)
    assert told["input_size"] is None and not told["strides"]
    data = anysat_inputs(["s2", "spot", "modis"])
    free = dict(batch=len(data["s2"]), time=data["s2"].shape[1])
    for entry in told["takes"]:
        if entry["key"] in ("s2", "spot"):
            side = data[entry["key"]].shape[-1]
            assert data[entry["key"]].shape == sizes(entry["shape"], **free, height=side, width=side)
    assert next(one for one in told["takes"] if one["key"] == "modis")["shape"]["height"] == 1
    model = model_of(name)
    gives = {one["name"]: one["shape"] for one in told["gives"]}
    side = data["s2"].shape[-1]  # a patch of 10 m is a pixel of Sentinel-2, and a cell of "dense" too
    free |= dict(height=side, width=side, token=1 + side * side)
    for output, shape in gives.items():
        assert model(data, patch_size=10, output=output, output_modality="s2").shape == sizes(shape, **free)


@pytest.mark.parametrize("name", ["smarties_vit_nano", "smarties_vit_base.bigearthnetmm_linprobe"])
def test_parameters_are_counted(name):
    told, model = describe.facts(name), timm.create_model(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for key, parameter in model.named_parameters() if key.startswith("head"))
    assert told["total_parameters"] == whole and told["parameters"] == whole - head


# ---- facts and cards ----


@pytest.mark.parametrize("name", FEWER)
def test_facts_and_cards(name):
    record, told = record_of(name), describe.facts(name)
    json.dumps(told)
    if record is not terrasense.RECORD:
        info = registry.info(name)
        assert {key: told[key] for key in info} == info
    text = describe.document(name)
    head, front, body = text.split("---\n", 2)
    assert head == "" and yaml.safe_load(front) == describe.front_matter(name)
    assert record.citation in body and record.trained_on in body and (record.repository or "eo_zoo") in body
    for entry in told["takes"]:
        if entry["bands"]:
            table = body.partition(f"**`{entry['name']}`**")[2].split("\n\n")[1]
            rows = [line.split(" | ")[1:3] for line in table.splitlines()[2:]]
            bands = [(band["sensor_name"], f"`{band['name']}`", band["read"]) for band in entry["bands"]]
            assert rows == [[own + " (not read)" * (not read), name] for own, name, read in bands]
    for known in filter(None, (record.md5, record.sha256, record.terms)):
        assert known in body
    if record.task:
        assert all(f"{i} {label}" in body for i, label in enumerate(record.task.classes))


def test_front_matter():
    tuned = describe.front_matter("smarties_vit_large.eurosat_linprobe")
    assert tuned["license"] == "apache-2.0" and tuned["base_model"] == "gsumbul/SMARTIES-v1-ViT-L"
    assert tuned["pipeline_tag"] == "image-classification" and tuned["library_name"] == "eo_zoo"
    mars = describe.front_matter("mars_base_rgb")
    assert mars["license"] == "other" and mars["license_name"] == "academic-research-only"
    assert mars["license_link"] == "https://github.com/WanderRainy/MaRS"
    words = describe.front_matter("terrasense_base")
    assert words["pipeline_tag"] == "image-text-to-text" and words["library_name"] == "transformers"


def test_bands_that_are_not_read():
    (entry,) = describe.facts("smarties_vit_base.eurosat_finetune")["takes"]
    assert [band["sensor_name"] for band in entry["bands"] if not band["read"]] == ["B10"]
    assert [band["sensor_name"] for band in entry["bands"]][7:9] == ["B08", "B8A"]
    assert "| 10 | B10 (not read) |" in describe.markdown("smarties_vit_base.eurosat_finetune")


def test_a_pushed_card_says_the_same(monkeypatch):
    model = eo_zoo.create_model("smarties_vit_nano")
    front, body = publish.card(model, "me/mine").split("---\n")[1:]
    assert yaml.safe_load(front) == describe.front_matter("smarties_vit_nano", library="transformers")
    assert all(
        f"- **{what}:** {text}" in body for what, text in describe.terms(record_of("smarties_vit_nano")).items() if text
    )
    random = timm.create_model("mars_base_sar", img_size=64, depths=(1, 1, 1, 1), embed_dim=32, num_heads=(1, 1, 2, 2))
    front, body = publish.card(random).split("---\n")[1:]
    assert "license_name" not in front and "research purposes" not in body and "Trained on" not in body
    record = replace(weights.RECORDS["smarties_vit_nano.demo"], trained_on="something else")
    monkeypatch.setitem(weights.RECORDS, record.name, record)
    assert "something else" in publish.card(model) and "something else" in describe.markdown(record.name)


def test_unknown_names():
    for call in (describe.facts, describe.markdown, describe.front_matter, describe.mlm):
        with pytest.raises(InputError, match="Did you mean 'smarties_vit_nano'"):
            call("smarties_vit_nan")


def test_the_readme_quotes_it():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    quoted = readme.partition("Of the card,")[2].partition("\n## ")[0]
    table = [line for line in quoted.splitlines() if line.startswith("|")]
    assert len(table) == 5 and set(table) <= set(describe.markdown("smarties_vit_base.eurosat_finetune").splitlines())
    first = describe.mlm("mars_base_sar")["properties"]["mlm:input"][0]
    assert f'print(umbra["value_scaling"])  # {first["value_scaling"]}\n' in quoted


# ---- command line ----


def test_command_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "smarties_vit_nano"
    assert run("describe", name, "--format", "md")[1] == describe.document(name)
    assert json.loads(run("describe", name, "--format", "json")[1]) == json.loads(json.dumps(describe.facts(name)))
    code, out, _ = run("describe", name, "--format", "mlm", "-o", "item.json")
    assert code == 0 and not out and json.loads(Path("item.json").read_text()) == describe.mlm(name)
    assert [path.name for path in tmp_path.iterdir()] == ["item.json"]
    code, out, _ = run("describe", name, "--format", "mlm", "--asset")
    assert code == 0 and json.loads(out) == describe.mlm(name, kind="asset")
    code, _, err = run("describe", name, "--format", "md", "-o", "item.json")
    assert code == 2 and "item.json exists: give --overwrite" in err
    assert run("describe", name, "--format", "md", "-o", "item.json", "--overwrite")[0] == 0
    assert Path("item.json").read_text() == describe.document(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smarties_vit_nan", "--format", "md"], "Did you mean 'smarties_vit_nano'"),
        (["smarties_vit_nano"], "smarties_vit_nano is a model: say --format md, json or mlm, or give an image"),
        (["terrasense_base"], "terrasense_base is a model"),
        (["smarties_vit_nano", "--asset"], "expected --format mlm for a document about smarties_vit_nano"),
        (["smarties_vit_nano", "--format", "yaml"], "expected --format md or json or mlm .*, got yaml"),
        (["smarties_vit_nano", "--format", "md", "--json"], "leave all others out"),
        (["smarties_vit_nano", "--format", "md", "--seed", "1"], "leave all others out"),
    ],
)
def test_wrong_use(run, arguments, message):
    code, _, err = run("describe", *arguments)
    assert code == 2 and re.search(message, " ".join(err.split()))
