"""Every recorded checkpoint of the public code: converted, read through every door, and written back."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel

import eo_zoo
import eo_zoo.hf
from eo_zoo.convert import convert, export_original
from eo_zoo.weights import sharded
from eo_zoo.weights.checkpoint import unwrapped
from tests.convert.originals import ORIGINALS, Original
from tests.procedural import PARITY

FATES = {"same", "renamed", "stacked", "joined", "reshaped"}


@pytest.fixture(autouse=True)
def _room(tmp_path):
    """All rows together would leave some 30 GB."""
    yield
    shutil.rmtree(tmp_path)


def check_record(folder: Path, tensors: dict[str, Tensor], source: Path, original: Original) -> dict:
    """conversion.json tells the fate of each tensor of the file once, and the truth about what was written."""
    facts = json.loads((folder / "conversion.json").read_text())
    assert facts["eo_zoo"] == eo_zoo.__version__ and facts["name"] == original.name
    assert facts["layout"] == original.layout and facts["part"] == (
        original.part or {"state": "student"}.get(original.layout, "")
    )
    used = [name for one in facts["tensors"] for name in one["official"]]
    left_out = [one["official"] for one in facts["left_out"]]
    assert sorted(used + left_out) == sorted(tensors) and len(left_out) == original.left_out
    assert all(one["why"] for one in facts["left_out"] + facts["added"])
    assert [one["ours"] for one in facts["added"]] == list(original.added)
    assert {one["fate"] for one in facts["tensors"]} <= FATES
    data = source.read_bytes()
    assert facts["source"]["sha256"] == hashlib.sha256(data).hexdigest() and facts["source"]["bytes"] == len(data)
    for name, told in facts["files"].items():
        data = (folder / name).read_bytes()
        assert told == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    stored = {}
    for name in facts["files"]:
        with safe_open(folder / name, "pt") as file:
            stored |= {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118 (it is no dict)
    told = {one["ours"]: (one["shape"], one["dtype"]) for one in facts["tensors"]}
    added = {one["ours"] for one in facts["added"]}
    assert {name: (list(t.shape), str(t.dtype)[6:]) for name, t in stored.items() if name not in added} == told
    assert stored.keys() == told.keys() | added
    for one in facts["tensors"]:  # nothing but what its fate says
        parts, own = [tensors[name] for name in one["official"]], stored[one["ours"]]
        made = {"stacked": torch.stack, "joined": torch.cat}.get(one["fate"], lambda parts: parts[0])(parts)
        assert torch.equal(made.reshape(own.shape), own)
        assert (one["fate"] == "same") == (one["official"] == [one["ours"]] and made.shape == own.shape)
    return facts


def doors(folder: Path, original: Original) -> dict[str, torch.nn.Module]:
    """The model, by everything that reads the folder."""
    kwargs = dict(original.built)
    return {
        "timm": timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
        "transformers": AutoModel.from_pretrained(folder).eval().model,
        "eo_zoo": eo_zoo.create_model(original.name, weights=folder, **kwargs),
    }


def rows():
    return [
        pytest.param(original, id=name, marks=[pytest.mark.slow] * original.slow)
        for name, original in ORIGINALS.items()
    ]


@pytest.mark.parametrize("original", rows())
def test_there_and_back(original, tmp_path):
    tensors = original.tensors()
    source = tmp_path / "of_another_family.pth"
    torch.save({original.wrapper: tensors} if original.wrapper else tensors, source)
    folder = tmp_path / "made"
    made = convert(source, folder, part=original.part, arguments=original.arguments)
    facts = check_record(folder, tensors, source, original)
    assert facts == json.loads(json.dumps(made.facts)) and original.name in made.summary
    states = []
    for model in doors(folder, original).values():
        if original.check:
            assert original.check(model) > 0
        states.append(model.state_dict())
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in state)

    for back in (tmp_path / "back.pth", tmp_path / "back.safetensors"):
        plan = export_original(folder, back)
        assert plan.layout == original.layout
        found = unwrapped(back).tensors
        wanted = tensors.keys() - {one["official"] for one in facts["left_out"]}
        assert found.keys() == wanted
        assert all(found[name].dtype == tensors[name].dtype for name in wanted)
        assert all(torch.equal(found[name], tensors[name]) for name in wanted)
    left = {one.name for one in tmp_path.iterdir()} - {"cache"}
    assert left == {source.name, "made", "back.pth", "back.safetensors"}


def test_every_manifest_is_a_row():
    recorded = set()
    for path in PARITY.glob("*.manifest.json"):
        found = json.loads(path.read_text())
        parts = [part for part, rows in found.items() if rows] if isinstance(found, dict) else [None]
        recorded |= {(path.name.removesuffix(".manifest.json"), part) for part in parts}
    assert recorded == {original.recorded for original in ORIGINALS.values()}


def test_the_official_forms_of_the_same_tensors_agree(tmp_path):
    """What is written back loads where the original does: in the public code's own wrapper."""
    original = ORIGINALS["multimae_tiny_pretraining"]
    torch.save({"model": original.tensors(), "epoch": 1}, tmp_path / "checkpoint-999.pth")
    convert(tmp_path / "checkpoint-999.pth", tmp_path / "made", arguments=original.arguments)
    export_original(tmp_path / "made", tmp_path / "back.pth")
    assert list(torch.load(tmp_path / "back.pth", weights_only=True)) == ["model"]
    export_original(tmp_path / "made", tmp_path / "encoder.safetensors", layout="encoder")
    assert sharded.read(tmp_path / "encoder.safetensors").keys() == ORIGINALS["multimae_tiny_encoder"].tensors().keys()


@pytest.mark.parametrize("name", ["smarties_tiny", "multimae_tiny_encoder"])
def test_converting_twice_is_converting_once(name, tmp_path):
    """A folder of ours, or a file of our names, is a source like any other; and equal input gives equal bytes."""
    original = ORIGINALS[name]
    save_file(original.tensors(), tmp_path / "x.safetensors")
    for output in ("once", "again"):
        convert(tmp_path / "x.safetensors", tmp_path / output, arguments=original.arguments)
    convert(tmp_path / "once", tmp_path / "twice")
    convert(tmp_path / "once" / "model.safetensors", tmp_path / "alone", arguments=original.arguments)
    files = [(tmp_path / output / "model.safetensors").read_bytes() for output in ("once", "again", "twice", "alone")]
    assert all(data == files[0] for data in files)
    configs = [json.loads((tmp_path / output / "config.json").read_text()) for output in ("once", "again", "twice")]
    assert configs[0] == configs[1] and configs[0]["model_args"] == configs[2]["model_args"]
    facts = json.loads((tmp_path / "twice" / "conversion.json").read_text())
    assert facts["layout"] == "eo_zoo" and {one["fate"] for one in facts["tensors"]} == {"same"}
