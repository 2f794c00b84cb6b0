"""What is written, beside the values: types, shards, cards, and what goes to a hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import eo_zoo
from eo_zoo import hf
from eo_zoo.convert import convert
from eo_zoo.errors import InputError
from eo_zoo.models.anysat_inputs import INPUTS
from tests.convert.originals import SMALL, public_of, said
from tests.hub_server import HubServer
from tests.models.families import FAMILIES


def put(family, folder):
    torch.save({"model": public_of(family)}, folder / "x.pth")
    return folder / "x.pth", dict(arguments=said(family))


def outputs(family, folder):
    """By every door that reads the folder, in float32."""
    name, built, _ = SMALL[family]
    models = (
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval().model,
        eo_zoo.create_model(name, weights=folder, **built),
    )
    x, call = FAMILIES[family].inputs(models[0], eo_zoo.registry.get_record(name).sensors[0], 2)
    with torch.no_grad():
        return [model(x, **call) for model in models]


@pytest.mark.parametrize("family", SMALL)
def test_shards_load_and_compute_the_same(family, tmp_path):
    path, asked = put(family, tmp_path)
    convert(path, tmp_path / "whole", **asked)
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size // 3
    facts = convert(path, tmp_path / "shards", shard_size=f"{size // 1000}KB", **asked).facts
    files = sorted(one.name for one in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) >= 3 and files == sorted(facts["files"])
    assert files[0] == f"model-00001-of-0000{len(files)}.safetensors"
    assert json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    wanted, *others = outputs(family, tmp_path / "whole") + outputs(family, tmp_path / "shards")
    assert all(torch.equal(one, wanted) for one in others)
    again = convert(tmp_path / "shards", tmp_path / "again").facts
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
    assert again["source"]["wrappings"][0] == f"{len(files)} shards"


@pytest.mark.parametrize(("family", "dtype"), [*((family, "bfloat16") for family in SMALL), ("multimae", "float16")])
def test_smaller_types(family, dtype, tmp_path):
    path, asked = put(family, tmp_path)
    made = convert(path, tmp_path / "made", dtype=dtype, **asked)
    found, kind = load_file(tmp_path / "made" / "model.safetensors"), getattr(torch, dtype)
    public = public_of(family)
    for one in made.facts["tensors"]:
        if one["fate"] in ("same", "renamed"):
            assert torch.equal(found[one["ours"]], public[one["official"][0]].to(kind)) and one["dtype"] == dtype
    assert all(tensor.dtype == kind for tensor in found.values())
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == dtype
    first, *others = outputs(family, tmp_path / "made")
    assert all(torch.equal(one, first) for one in others) and first.isfinite().all()


def test_counters_keep_their_type(tmp_path):
    """Of whole numbers, which a smaller type would spoil."""
    tensors = public_of("smarties") | {
        "head.0.running_mean": torch.ones(32), "head.0.running_var": torch.ones(32),
        "head.0.num_batches_tracked": torch.tensor(70_001), "head.1.weight": torch.ones(3, 32),
        "head.1.bias": torch.ones(3),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "made", dtype="bfloat16", arguments=said("smarties"))
    found = load_file(tmp_path / "made" / "model.safetensors")["head.0.num_batches_tracked"]
    assert found.dtype == torch.int64 and found == 70_001


def test_a_folder_is_whole(tmp_path):
    path, asked = put("smarties", tmp_path)
    convert(path, tmp_path / "made", **asked)
    names = {"config.json", "conversion.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {one.name for one in (tmp_path / "made").iterdir()} == names
    card = (tmp_path / "made" / "README.md").read_text()
    assert card.startswith("---\n") and "license: apache-2.0" in card and str(tmp_path) not in card
    told = (tmp_path / "made" / "conversion.json").read_text()
    assert str(tmp_path) not in told and "x.pth" not in told
    assert AutoImageProcessor.from_pretrained(tmp_path / "made") is not None


def test_a_published_file_is_known_by_its_hash(tmp_path):
    """Under any name; one bit less, and it is one's own."""
    source = Path(eo_zoo.__file__).parent / "data" / "smarties_vit_nano.demo.safetensors"
    path = tmp_path / "mars.pth"
    path.write_bytes(source.read_bytes())
    made = convert(path, tmp_path / "made")
    assert made.facts["source"]["record"] == "smarties_vit_nano.demo" and "by its hash" in made.summary
    data = bytearray(source.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    made = convert(path, None)
    assert made.facts["source"]["record"] is None and "its hash is of no published file" in made.summary


# ---------------------------------------------------------------------------------------------- to a hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as server:
        yield server.stand_in(monkeypatch)


@pytest.mark.parametrize("family", ["mars", "multimae"])
def test_what_may_not_be_hosted_elsewhere_is_not_pushed(family, hub, tmp_path):
    path, asked = put(family, tmp_path)
    with pytest.raises(InputError, match=r"may not be pushed to a hub: .*give own_weights=True"):
        convert(path, tmp_path / "made", push_to_hub="me/x", **asked)
    assert not hub.requests and not (tmp_path / "made").exists()
    convert(path, tmp_path / "made", push_to_hub="me/x", own_weights=True, **asked)  # trained from random ones
    assert ("me/x", "model.safetensors") in hub.files and (tmp_path / "made").is_dir()


@pytest.mark.parametrize("family", ["smarties", "anysat"])
def test_what_is_pushed_is_the_folder(family, hub, tmp_path):
    path, asked = put(family, tmp_path)
    name = f"me/{family}"
    convert(path, tmp_path / "made", push_to_hub=name, **asked)
    files = {name: file.data for (_, name), file in hub.files.items()}
    here = {one.name: one.read_bytes() for one in (tmp_path / "made").iterdir()}
    assert files.keys() == here.keys()
    assert all(files[name] == data for name, data in here.items() if name != "README.md")
    card = files["README.md"].decode()
    assert "license: " in card and f'from_pretrained("{name}")' in card and "of its own" in card
    again = AutoModel.from_pretrained(name).eval().model
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.state_dict().items())
    assert family != "anysat" or set(again.inputs) == set(INPUTS)


def test_a_model_of_ours_is_pushed(hub, tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", push_to_hub="me/nano", dtype="bfloat16")
    sent = hub.files["me/nano", "model.safetensors"].data
    assert sent == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert timm.create_model("hf-hub:me/nano", pretrained=True).state_dict()["norm.weight"].numel() == 128


def test_a_hub_that_refuses_leaves_the_folder(hub, tmp_path):
    """What was converted is whole, and can be pushed again."""
    path, asked = put("smarties", tmp_path)
    hub.add("me/x", "README.md", b"mine").status = 403
    with pytest.raises(Exception, match="403"):
        convert(path, tmp_path / "made", push_to_hub="me/x", **asked)
    assert (tmp_path / "made" / "conversion.json").is_file()
