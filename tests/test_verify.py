"""`eo-zoo verify`: whatever changed in the cache, a file or a folder is found and named."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import eo_zoo
from eo_zoo import hf, registry, weights
from eo_zoo.convert import convert
from eo_zoo.errors import InputError
from eo_zoo.models import golden
from eo_zoo.models.smarties import SmartiesVisionTransformer
from eo_zoo.verify import GOLDENS, Finding, verify
from eo_zoo.weights import cache, sources
from tests.hub_server import HubServer

NAME = "smarties_vit_nano.demo"
BUNDLED = sources.DATA / f"{NAME}.safetensors"
SOURCE = ("owner/repo", "nano.safetensors")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def published(monkeypatch):
    """The bundled weights as if they came from the Hub, with the hash that it states."""
    with HubServer() as hub:
        hub.stand_in(monkeypatch)
        hub.add(*SOURCE, BUNDLED.read_bytes())
        record = replace(weights.RECORDS[NAME], source=f"hf://{'/'.join(SOURCE)}", sha256=None)
        monkeypatch.setitem(weights.RECORDS, NAME, record)
        yield record


@pytest.fixture
def kept(published, root):
    """Its conversion in the cache, from a first load."""
    eo_zoo.create_model(NAME)
    (path,) = root.glob("*.safetensors")
    return path


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def fault(what: str | Path | None) -> str:
    (error,) = [finding.error for finding in verify(what) if finding.error]
    return error


# ------------------------------------------------------------------------------------------ what is well


def test_a_first_load_leaves_hash_and_golden(kept, run):
    note = cache.read_note(kept)
    assert (note["sha256"], note["bytes"]) == (cache.digest(kept), kept.stat().st_size)
    assert golden.differs(note["goldens"][NAME], json.loads(GOLDENS.read_text())[NAME]) is None
    finding = only(verify(NAME))
    assert finding.error is None and finding.sha256 == note["sha256"] and finding.path == kept
    said = (finding.hash, finding.tensors, finding.values, finding.golden)
    assert said == ("as written", "smarties_vit_nano", "finite", "as recorded")
    code, out, err = run("verify")
    assert code == 0 and err == "" and f"{NAME}  as written  fit" in out
    code, out, _ = run("verify", NAME, "--json")
    assert code == 0 and json.loads(out)[0]["path"] == str(kept)


def test_a_download_leaves_a_golden_too(published, root):
    registry.download(NAME)
    (path,) = root.glob("*.safetensors")
    assert NAME in cache.read_note(path)["goldens"]


def test_the_goldens_of_the_package_are_those_of_its_weights(run):
    bundled = {name for name, record in weights.RECORDS.items() if record.scheme == "package"}
    assert bundled == set(json.loads(GOLDENS.read_text()))
    findings = verify()
    assert {finding.name for finding in findings} == bundled
    assert all(finding.golden == "as recorded" and finding.hash == "as published" for finding in findings)
    assert run("verify", NAME, "--quiet") == (0, "", "")


@pytest.mark.parametrize("threads", [1, 2])
def test_goldens_hold_with_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert only(verify(NAME)).golden == "as recorded"
    finally:
        torch.set_num_threads(before)


def test_settings_of_the_caller_neither_change_a_golden_nor_are_changed(kept, monkeypatch):
    recorded = cache.read_note(kept)["goldens"][NAME]
    cache.note_of(kept).unlink()
    kept.unlink()
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            eo_zoo.models.smarties.smarties_vit_nano(pretrained=True)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert cache.read_note(kept)["goldens"][NAME] == recorded
    assert torch.equal(torch.get_rng_state(), before)


def test_a_golden_that_cannot_be_kept_is_no_failure(published, root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        eo_zoo.create_model(NAME)
    (path,) = root.glob("*.safetensors")
    assert cache.read_note(path)["goldens"] == {}
    assert [only(verify(NAME)).golden for _ in range(2)] == ["recorded now", "as recorded"]


def test_a_download_that_waits_for_its_conversion(published, root):
    sha256 = cache.digest(BUNDLED)
    cache.write_pin(root, published, sha256=sha256, size=1, commit=None, verified=True)
    place = cache.settled(root, published, sha256)
    place.parent.mkdir(parents=True)
    shutil.copyfile(BUNDLED, place)
    finding = only(verify(NAME))
    assert finding.error is None and finding.hash == "as it came" and "not converted yet" in finding.notes[0]
    flip(place, 1000)
    assert f"{place} has the SHA-256" in fault(NAME) and f"expected {sha256}" in fault(None)


# ------------------------------------------------------------------------------------------ what is not


def _length(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


PLACES = {
    "the header's length": lambda path: 0,
    "the header's first character": lambda path: 8,
    "the key of its layout": lambda path: path.read_bytes().index(b"eo_zoo.layout"),
    "a tensor's name": lambda path: path.read_bytes().index(b"cls_token"),
    "where a tensor lies": lambda path: path.read_bytes().index(b"data_offsets") + 15,
    "what it was made from": lambda path: path.read_bytes().index(b"eo_zoo.sha256") + 20,
    "the padding or end of the header": lambda path: 8 + _length(path) - 1,
    "the first value": lambda path: 8 + _length(path),
    "the middle": lambda path: path.stat().st_size // 2,
    "the last value": lambda path: path.stat().st_size - 1,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_cached_weights_is_found(kept, run, place):
    expected = cache.digest(kept)
    flip(kept, PLACES[place](kept))
    code, out, err = run("verify")
    assert code == 1 and "failed" in out
    assert f"error: {kept} has the SHA-256 {cache.digest(kept)}, expected {expected}" in err
    assert "`eo-zoo cache clear" in err and "load it again" in err
    code, out, err = run("verify", NAME, "--json")
    assert code == 1 and json.loads(out)[0]["error"] in err


def test_what_is_said_to_do_helps(kept, run):
    flip(kept, -1)
    assert run("verify", NAME)[0] == 1
    code, out, _ = run("cache", "clear", NAME)
    assert code == 0 and out.startswith("removed 1 of 1")
    eo_zoo.create_model(NAME)
    assert run("verify", NAME)[0] == 0


def test_weights_that_were_cut_short_are_found(kept):
    size = kept.stat().st_size
    kept.write_bytes(kept.read_bytes()[:-100])
    assert f"{kept} has {size - 100:,} bytes, expected {size:,}: cut short" in fault(NAME)


def test_every_change_of_the_note_is_found(kept):
    note = cache.note_of(kept)
    before = note.read_bytes()
    facts = json.loads(before)
    for value in (facts["sha256"], facts["sum"], str(facts["bytes"]), str(facts["goldens"][NAME]["mean"])):
        flip(note, before.index(value.encode()) + 2)
        assert "load it again" in fault(NAME)
        note.write_bytes(before)
    flip(note, 0)
    assert f"the note of its hash, {note}, is damaged" in fault(NAME)


def test_a_flipped_bit_in_a_pin_is_found(kept, published, root):
    pin = cache.pin_path(root, published)
    before = pin.read_bytes()
    for value in (b'"sha256": "', b'"size": ', b'"commit": "', b'"verified": '):
        flip(pin, before.index(value) + len(value))
        assert fault(None) == fault(NAME)
        assert f"the pinned hash {pin} is damaged: delete it" in fault(None)
        pin.write_bytes(before)
    assert all(finding.error is None for finding in verify())


def test_a_conversion_of_another_file_than_the_pinned_one_is_told(kept, published, root):
    cache.write_pin(root, published, sha256="0" * 64, size=1, commit=None, verified=True)
    assert "an earlier one" in only(verify(NAME)).notes[0]


def test_conversions_from_before_hashes_were_kept(kept, run):
    cache.note_of(kept).unlink()
    code, _, err = run("verify")
    assert code == 1 and f"{kept} cannot be verified, for it was made before hashes were kept; remove it by" in err


def test_damaged_weights_of_the_package(tmp_path, monkeypatch, run):
    monkeypatch.setattr(sources, "DATA", tmp_path)
    code, _, err = run("verify", "smarties_vit_nano")
    assert code == 1 and "is missing: install eo-zoo again" in err
    shutil.copy(BUNDLED, tmp_path)
    assert run("verify", "smarties_vit_nano")[0] == 0
    flip(tmp_path / BUNDLED.name, 12345)
    code, _, err = run("verify", "smarties_vit_nano")
    assert code == 1 and "install eo-zoo again" in err


@pytest.mark.parametrize("bundled", [True, False])
def test_a_model_that_computes_something_else_is_told(bundled, request, monkeypatch):
    if not bundled:
        request.getfixturevalue("kept")
    forward = SmartiesVisionTransformer.forward_features
    monkeypatch.setattr(SmartiesVisionTransformer, "forward_features", lambda *a, **k: 1.01 * forward(*a, **k))
    text = fault(NAME)
    assert "no longer gives what it gave" in text and f"torch {torch.__version__}" in text
    assert "what reads it changed" in text


# ------------------------------------------------------------------------------------------ files


def test_a_local_files_conversion(tmp_path, root):
    tensors = load_file(BUNDLED)
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "mine.safetensors")
    eo_zoo.create_model(NAME, weights=tmp_path / "mine.safetensors")
    (path,) = root.glob("*.safetensors")
    found = [only(one for one in verify() if one.name == path.name) for _ in range(2)]
    assert [one.golden for one in found] == ["recorded now", "as recorded"]
    assert found[0].error is None and found[0].tensors == "smarties_vit_nano"
    flip(path, -1)
    assert f"eo-zoo cache clear {path.name}" in fault(None) and fault(path) == fault(None)


def test_a_published_file_is_known_by_its_hash(kept, tmp_path, run):
    shutil.copyfile(BUNDLED, tmp_path / "copy.bin")
    finding = only(verify(tmp_path / "copy.bin"))
    assert (finding.hash, finding.error) == (f"of {NAME}", None)
    assert golden.differs(finding.output, json.loads(GOLDENS.read_text())[NAME]) is None
    code, _, err = run("verify", tmp_path / "copy.bin")
    assert code == 0 and "a forward pass gives" in err


def test_a_published_file_is_known_by_its_md5(tmp_path, monkeypatch):
    record = replace(weights.RECORDS[NAME], source="https://example.org/nano", sha256=None)
    md5, size = cache.digest(BUNDLED, "md5"), BUNDLED.stat().st_size
    shutil.copyfile(BUNDLED, tmp_path / "copy")
    for stated, says in ((md5, f"of {NAME}"), ("0" * 32, "nothing to compare it with")):
        monkeypatch.setitem(weights.RECORDS, NAME, replace(record, md5=stated, size=size))
        assert only(verify(tmp_path / "copy")).hash == says


def test_a_file_of_unknown_origin(tmp_path, root, run):
    path = tmp_path / "mine.pt"
    tensors = load_file(BUNDLED)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    finding = only(verify(path))
    assert (finding.error, finding.hash) == (None, "nothing to compare it with")
    assert finding.tensors == "smarties_vit_nano" and finding.output["std"] > 0
    assert not list(root.glob("*.safetensors"))  # nothing is kept of a file that is only looked at
    tensors["norm.weight"][3] = float("nan")
    torch.save(tensors, path)
    code, out, err = run("verify", path)
    assert code == 1 and "norm.weight" in err and "failed" in out
    del tensors["norm.weight"]
    torch.save(tensors, path)
    assert "norm.weight" in fault(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in fault(path)
    torch.save({"strange": torch.ones(2, 2)}, path)
    assert "none of eo_zoo's models" in fault(path)


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_of_save_pretrained(tmp_path, run):
    hf.export(NAME, tmp_path / "nano")
    finding = only(verify(tmp_path / "nano"))
    assert (finding.error, finding.tensors, finding.values) == (None, "smarties_vit_nano", "finite")
    assert golden.differs(finding.output, json.loads(GOLDENS.read_text())[NAME]) is None
    file = tmp_path / "nano" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"more": torch.ones(1)}, file, {"eo_zoo.layout": "smarties-1"})
    assert "more" in fault(tmp_path / "nano")
    file.write_bytes(file.read_bytes()[:-1])
    assert run("verify", tmp_path / "nano")[0] == 1
    config = tmp_path / "nano" / "config.json"
    facts = json.loads(config.read_text())
    hf.export(NAME, tmp_path / "again")
    shutil.copy(tmp_path / "again" / "model.safetensors", file)
    config.write_text(json.dumps(facts | {"model_args": {"depth": "many"}}))
    assert f"{config} describes no model" in fault(tmp_path / "nano")
    config.write_text(json.dumps(facts | {"architecture": "resnet50"}))
    code, _, err = run("verify", tmp_path / "nano")
    assert code == 2 and "'resnet50', which is none of eo_zoo's" in err
    config.write_text("{")
    assert run("verify", tmp_path / "nano")[0] == 2


def test_a_converted_folder(tmp_path):
    folder = tmp_path / "nano"
    convert(BUNDLED, folder)
    finding = only(verify(folder))
    assert (finding.error, finding.hash) == (None, "as converted")
    file = folder / "model.safetensors"
    flip(file, -5)
    text = fault(folder)
    assert f"{file} has the SHA-256 {cache.digest(file)}" in text and text.endswith("convert again")
    file.unlink()
    assert f"{file} is missing" in fault(folder)
    (folder / "conversion.json").write_text('{"files": []}')
    assert "lists no files" in fault(folder)


def test_a_converted_folder_in_shards(tmp_path):
    convert(BUNDLED, tmp_path / "nano", shard_size="2MB", dtype="bfloat16")
    finding = only(verify(tmp_path / "nano"))
    assert (finding.error, finding.hash, finding.golden) == (None, "as converted", "computed")


# ------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("smarties_vit_nan", "Did you mean 'smarties_vit_nano'"),
        ("smarties_vit_base", "`eo-zoo download smarties_vit_base` fetches"),
        ("anysat_nano", "no weights are published for anysat_nano"),
        ("folder/file.pth", "is not there"),
        (".", "no config.json"),
    ],
)
def test_wrong_use(what, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("verify", what)
    assert code == 2 and says in err and out == ""


def test_a_models_name_is_the_model_and_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smarties_vit_nano").mkdir()
    assert only(verify("smarties_vit_nano")).name == NAME
    with pytest.raises(InputError, match=r"no config\.json"):
        verify(Path("smarties_vit_nano"))


def test_every_architecture_has_an_example():
    """Each kind of model takes what is made for it; the small ones are run, random weights and all."""
    for name in ("smarties_vit_nano", "anysat_nano"):
        model = eo_zoo.create_model(name, pretrained=False)
        assert golden.measure(model) == golden.measure(model)
    small = dict(embed_dim=64, depth=2, num_heads=4)
    assert golden.measure(eo_zoo.create_model("multimae_eo_base", pretrained=False, **small))["std"] > 0
    small = dict(img_size=64, embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
    assert golden.measure(eo_zoo.create_model("mars_base_sar", pretrained=False, **small))["std"] > 0
