"""``eo-zoo convert``: what is said, what is written, and TerraSense's folders through the same door."""

from __future__ import annotations

import hashlib
import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from eo_zoo import hf
from eo_zoo.vlm import convert as vlm
from tests.convert.originals import public_of, said
from tests.vlm import tiny


@pytest.fixture
def source(tmp_path):
    torch.save({"model": public_of("mars"), "epoch": 3}, tmp_path / "smarties.pth")
    return tmp_path / "smarties.pth"


ARGUMENTS = [option for name, value in said("mars").items() for option in ("--arg", f"{name}={value}")]


def test_there_and_back(run, source, tmp_path):
    code, out, err = run("convert", source, "-o", tmp_path / "made", *ARGUMENTS)
    assert code == 0, err
    assert "mars_base_sar from the layout 'encoder'; its hash is of no published file" in out
    assert "around them: under 'model'" in out and "not read: epoch" in out and out.endswith("read back and equal\n")
    code, out, err = run("convert", tmp_path / "made", "--export", tmp_path / "back.pth")
    assert code == 0 and "in 'encoder'" in out and "back.pth: every tensor read back and equal" in out, err
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == public_of("mars").keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in public_of("mars").items())
    code, _, err = run("convert", tmp_path / "made", "--export", tmp_path / "back.pth")
    assert code == 2 and "exists: give another name, or overwrite it (--overwrite)" in err
    assert run("convert", tmp_path / "made", "--export", tmp_path / "back.pth", "--overwrite")[0] == 0


def test_check_writes_nothing(run, source, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, err = run("convert", source, "--check", *ARGUMENTS)
    assert code == 0 and "mars_base_sar" in out and "read back" not in out, err
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {path: when for path, when in after.items() if "cache" not in path.parts} == before


def test_json(run, source, tmp_path):
    code, out, _ = run("convert", source, "-o", tmp_path / "made", "--json", "--dtype", "bfloat16", *ARGUMENTS)
    told = json.loads(out)
    assert code == 0 and told == json.loads((tmp_path / "made" / "conversion.json").read_text())
    data = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert told["files"]["model.safetensors"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert json.loads(run("convert", tmp_path / "made", "--check", "--json")[1])["files"] == {}
    code, out, _ = run("convert", tmp_path / "made", "--export", tmp_path / "x.safetensors", "--json")
    assert code == 0 and json.loads(out)["layout"] == "encoder"
    assert json.loads(out)["tensors"].keys() == load_file(tmp_path / "made" / "model.safetensors").keys() - {
        one["ours"] for one in told["added"]
    }


def test_shards_and_model(run, source, tmp_path):
    model = ("--model", "mars_base_sar", "--shard-size", "100KB")
    code, _, err = run("convert", source, "-o", tmp_path / "made", *model, *ARGUMENTS)
    assert code == 0 and len(list((tmp_path / "made").glob("model-*.safetensors"))) > 2, err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give one of --output FOLDER, --export FILE and --check"),
        (["-o", "a", "--check"], "give one of --output FOLDER, --export FILE and --check"),
        (["-o", "a", "--layout", "encoder"], "--layout means nothing without --export"),
        (["-o", "a", "--overwrite"], "--overwrite means nothing without --export"),
        (["--export", "a", "--dtype", "float16", "--push-to-hub", "me/x"], "--dtype, --push-to-hub means nothing with"),
        (["-o", "a", "--arg", "num_heads"], "--arg is 'num_heads', expected NAME=VALUE"),
        (["-o", "a", "--arg", "x=1", "--arg", "x=2"], "each name once"),
        (
            ["-o", "a"],
            "its window_size cannot be told from the tensors: give it as an argument (--arg window_size=...)",
        ),
        (["--check", "--push-to-hub", "me/x"], "has to be written first: give a folder (--output FOLDER)"),
        (["-o", "a", "--ema"], "holds no moving average"),
        (["-o", "a", "--part", "teacher"], "holds encoder, no teacher"),
        (["-o", "a", "--base", "b"], "a base is of TerraSense's adapters"),
    ],
)
def test_refusals(run, source, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("convert", source, *options)
    assert (code, out) == (2, "") and says in err and not (tmp_path / "a").exists()


def test_arguments_of_several_values(run, tmp_path):
    torch.save(public_of("multimae"), tmp_path / "x.pth")
    options = ("--arg", "num_heads=2", "--arg", "in_domains=rgb,depth")
    code, out, err = run("convert", tmp_path / "x.pth", "--check", "--json", *options)
    assert code == 0 and set(json.loads(out)["arguments"]["in_domains"]) == {"rgb", "depth"}, err


# ---------------------------------------------------------------------------------------------- TerraSense


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl")


def test_terrasense(run, qwen, tmp_path):
    code, out, err = run("convert", qwen, "-o", tmp_path / "made", "--dtype", "bfloat16", "--shard-size", "100KB")
    assert code == 0 and "read back and equal" in out, err
    told = json.loads((tmp_path / "made" / "conversion.json").read_text())
    for name, one in told["files"].items():
        data = (tmp_path / "made" / name).read_bytes()
        assert one["bytes"] == len(data) and one["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(told["files"]) > 2
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "made", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert run("convert", qwen, "--check", "--family", "terrasense")[0] == 0


def test_an_adapter_of_it(run, qwen, tmp_path):
    model = transformers.AutoModelForImageTextToText.from_pretrained(qwen)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    code, _, err = run("convert", tmp_path / "adapter", "-o", tmp_path / "made", "--base", qwen)
    assert code == 0, err
    found = vlm.check(tmp_path / "made").tensors
    read, merged = found.reader(), tuned.merge_and_unload().state_dict()
    key = next(name for name in found.shapes if name.endswith("0.self_attn.q_proj.weight"))
    wanted = next(
        tensor for name, tensor in merged.items() if name.endswith("language_model.layers.0.self_attn.q_proj.weight")
    )
    torch.testing.assert_close(read(key), wanted)
    assert (tmp_path / "made" / "conversion.json").is_file()


@pytest.mark.parametrize("option", [("--part", "student"), ("--ema",), ("--model", "mars_base_sar"), ("--arg", "x=1")])
def test_what_terrasense_does_not_have(run, qwen, tmp_path, option):
    code, _, err = run("convert", qwen, "-o", tmp_path / "made", *option)
    assert code == 2 and "Qwen-VL" in err and not (tmp_path / "made").exists()


def test_a_folder_of_ours_is_no_terrasense(run, tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "in")
    code, _, err = run("convert", tmp_path / "in", "-o", tmp_path / "made", "--family", "terrasense")
    assert code == 2 and err and not (tmp_path / "made").exists()
    shutil.rmtree(tmp_path / "in")
    code, _, err = run("convert", tmp_path / "in", "--check")
    assert code == 2 and "is not there: give a checkpoint, a file or a folder" in err
