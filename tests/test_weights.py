"""Weights: what is read, what is refused, what is cached, and what happens on a bad network."""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import pickle
import re
import subprocess
import sys
import textwrap
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from eo_zoo import weights
from eo_zoo.errors import DownloadError, InputError, WeightsError
from eo_zoo.weights import checkpoint
from eo_zoo.weights.cache import pin_path
from tests.hub_server import COMMIT, HubServer

LAYOUT = "toy-1"
FILE = "toy.safetensors"
REPO = "owner/repo"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No Hub, and nothing of the user's: huggingface_hub reads its environment once, at import."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with contextlib.suppress(ImportError):  # before 2.0 it does not ask its Hub who is calling
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def toy(value: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "old.weight": torch.rand(3, 4, generator=generator) + value,
        "old.bias": torch.full((3,), value),
        "old.steps": torch.tensor(7),
        "old.half": torch.ones(5, dtype=torch.bfloat16),
    }


def toy_bytes(tmp_path: Path, value: float = 1.0) -> bytes:
    path = tmp_path / "made.safetensors"
    save_file(toy(value), path)
    return path.read_bytes()


class Mapping:
    """Old names to new ones, counting its calls."""

    calls = 0

    def __call__(self, tensors):
        self.calls += 1
        unknown = [name for name in tensors if not name.startswith("old.")]
        if unknown:
            raise WeightsError(f"unknown tensors: {unknown}")
        return {name.replace("old.", "new."): tensor for name, tensor in tensors.items()}


def record(name="toy.pretrain", source=f"hf://{REPO}/{FILE}", **kwargs) -> weights.Record:
    return weights.Record(name, source, layout=LAYOUT, licence="Apache-2.0", **kwargs)


def load(source, mapping=None, **kwargs):
    return weights.load(source, mapping or Mapping(), layout=LAYOUT, **kwargs)


def check_toy(tensors, value=1.0):
    expected = Mapping()(toy(value))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


def leftovers(cache: Path) -> list[str]:
    """Whatever is in the cache beside conversions, pins and locks."""
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "pins")
        and not (path.parent == cache and path.name.endswith(f"-{LAYOUT}.safetensors"))
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- records


def test_records_are_registered_once(monkeypatch):
    monkeypatch.setattr(weights, "RECORDS", {})
    weights.register(record("toy_base.pretrain"))
    with pytest.raises(ValueError, match="twice"):
        weights.register(record("toy_base.pretrain"))


@pytest.mark.parametrize("bad", [{"name": "a/b"}, {"source": "no-scheme"}, {"sha256": "ABC"}])
def test_a_record_that_cannot_work_is_refused(bad):
    with pytest.raises(ValueError):
        record(**bad)


def test_cache_root(monkeypatch, tmp_path):
    assert weights.cache_root() == tmp_path / "cache"
    assert weights.cache_root(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("EO_ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_root() == tmp_path / "xdg" / "eo_zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_root() == Path.home() / ".cache" / "eo_zoo"


def test_origin_says_where_from():
    known = weights.Origin("toy.pretrain", "hf://a/b/c", "0123abcd" * 8, True)
    assert str(known) == "toy.pretrain (sha256 0123abcd…, verified)"
    local = weights.Origin(None, "x.pth", "0123abcd" * 8, False)
    assert str(local) == "local file x.pth (sha256 0123abcd…, unverified)"


# ------------------------------------------------------------------------------------------ reading files


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])  # the content counts, not the name
def test_every_format_is_read_under_any_name(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(toy(), path)
    else:
        torch.save(toy(), path, _use_new_zipfile_serialization=kind == "zip")
    same(weights.read(path), toy())


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_mapped_tensors_never_write_to_the_file(tmp_path, kind):
    path = tmp_path / "w"
    save_file(toy(), path) if kind == "safetensors" else torch.save(toy(), path)
    before = path.read_bytes()
    weights.read(path)["old.weight"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, "scaler": None},
        lambda t: {"state_dict": t, "lr": 0.1},
        lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}},
        lambda t: {f"module._orig_mod.{k}": v for k, v in t.items()},
        lambda t: {f"_orig_mod.{k}": torch.nn.Parameter(v, requires_grad=False) for k, v in t.items()},
        lambda t: {**t, "epoch": 3},
    ],
)
def test_wrappers_and_prefixes_are_removed(tmp_path, wrap):
    torch.save(wrap(toy()), tmp_path / "w.pth")
    same(weights.read(tmp_path / "w.pth"), toy())


def test_a_prefix_of_some_names_only_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert weights.read(tmp_path / "w.pth").keys() == {"module.a", "b"}


def test_without_tensors_the_keys_are_listed(tmp_path):
    torch.save({"epoch": 3, "net": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="its keys are epoch, net"):
        weights.read(tmp_path / "w.pth")


def stub(monkeypatch, module: str, name: str) -> type:
    """A class that pickles as ``module.name``, whether or not that package is installed."""
    created = type(name, (), {"__module__": module, "__qualname__": name})
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module], name, created)
    return created


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_leave_behind_is_inert(tmp_path, monkeypatch, zipped):
    config = stub(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    config._metadata = stub(monkeypatch, "omegaconf.base", "ContainerMetadata")()
    config._metadata.object_type, config._metadata.resolver_cache = dict, collections.defaultdict(dict, a={})
    config._content = {"lr": stub(monkeypatch, "omegaconf.nodes", "AnyNode")(), "parent": config}
    kept = {
        "args": argparse.Namespace(out=pathlib.PurePosixPath("/out"), best=np.float64(0.5), n=np.int64(3)),
        "config": config,
        "rng": np.random.RandomState(0).get_state(),
        "dtype": np.dtype("float32"),
        "history": [np.float32(1)],
    }
    torch.save({"model": toy(), **kept}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    same(weights.read(tmp_path / "w.pth"), toy())


class Hostile:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, f"{os.name}.system"), (eval, "builtins.eval"), (os.makedirs, "os.makedirs")],
)
def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path, function, named, zipped):
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    argument = {os.system: f"touch {canary}", eval: f"open({str(canary)!r}, 'w')", os.makedirs: str(canary)}
    attack = Hostile(function, argument[function])
    torch.save({"model": toy(), "args": attack}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"it asks to run `{re.escape(named)}`; nothing was"):
        load(path)
    assert not canary.exists()


def test_plain_pickles_and_other_protocols_are_refused(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(os.system, f"touch {canary}")))
    with pytest.raises(WeightsError, match=r"plain pickle.*refused"):
        weights.read(tmp_path / "plain.pth")
    torch.save(Hostile(os.system, f"touch {canary}"), tmp_path / "four.pth", pickle_protocol=4)
    with pytest.warns(UserWarning, match="protocol 4"), pytest.raises(WeightsError, match="is refused"):
        weights.read(tmp_path / "four.pth")
    assert not canary.exists()


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    torch.save(toy(), tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in good.namelist():
                bomb.writestr(name, good.read(name))
        with zipfile.ZipFile(tmp_path / "other.pth", "w") as other:
            other.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="compressed"):
        weights.read(tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        weights.read(tmp_path / "other.pth")


def test_tensors_larger_than_their_storage_are_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**12)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="stores less"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_anywhere_is_an_error(tmp_path, kind):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if kind == "safetensors":
        save_file(toy(), whole)
    else:
        torch.save(toy(), whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    for length in {*range(0, len(data), 97), 3, 9, len(data) - 1}:
        cut.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=str(cut)):
            weights.read(cut)


def test_truncated_safetensors_says_by_how_much(tmp_path):
    data = toy_bytes(tmp_path)
    (tmp_path / "cut").write_bytes(data[:-5])
    with pytest.raises(WeightsError, match=f"ends after {len(data) - 5} bytes, of {len(data)} promised"):
        weights.read(tmp_path / "cut")


def as_safetensors(header: str, data: bytes = b"\0" * 64) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + data


def entry(dtype: str, start: int, end: int) -> str:
    return f'{{"dtype":"{dtype}","shape":[4],"data_offsets":[{start},{end}]}}'


@pytest.mark.parametrize(
    "content",
    [
        as_safetensors(f'{{"a":{entry("F32", 0, 16)},"b":{entry("F32", 8, 24)}}}', b"\0" * 24),  # overlap
        as_safetensors(f'{{"a":{entry("F32", 0, 16)},"a":{entry("F32", 0, 16)}}}', b"\0" * 16),  # twice
        as_safetensors(f'{{"a":{entry("F32", 0, 8)}}}', b"\0" * 8),
        as_safetensors(f'{{"a":{entry("F99", 0, 16)}}}', b"\0" * 16),
        as_safetensors('{"a":[1]}'),
        as_safetensors('{"a":{}}'),
        as_safetensors("{"),
        as_safetensors("{" * 5000),
        b"\xff" * 8 + b"{}",
        b"<html>log in</html>",
        b"version https://git-lfs.github.com/spec/v1",
        b"noise" * 9,
    ],
)
def test_damaged_and_foreign_files_are_errors(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(WeightsError, match="bad"):
        weights.read(tmp_path / "bad")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(InputError, match=r"absent|folder"):
            weights.read(path)
        with pytest.raises(InputError, match=r"absent|folder"):
            load(path)


def test_what_is_saved_is_what_safetensors_reads(tmp_path):
    odd = {"view": torch.arange(12.0).reshape(3, 4).T, "none": torch.empty(0, 3), "on": torch.ones(3) > 0}
    tensors = {**toy(), **odd}
    metadata = {"b": "2", "a": "1", "format": "pt"}
    paths = tmp_path / "a", tmp_path / "b"
    checkpoint.save(tensors, paths[0], metadata=metadata)
    checkpoint.save(dict(reversed(tensors.items())), paths[1], metadata=dict(reversed(metadata.items())))
    same(load_file(paths[0]), tensors)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert checkpoint.metadata(paths[0]) == {"a": "1", "b": "2", "format": "pt"}


# ------------------------------------------------------------------------------------------------ fitting


def test_check_fit_lists_everything_in_one_message():
    wanted = {f"w{i}": torch.empty(2) for i in range(15)}
    wanted |= {"shape": torch.empty(3, 4), "free": torch.empty(1)}
    found = {"shape": torch.empty(4, 3), "extra": torch.empty(1)}
    with pytest.raises(WeightsError) as caught:
        weights.check_fit(found, wanted, optional=("free",), what="toy")
    assert str(caught.value) == (
        "toy does not fit the model: 15 missing (w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 5 more); "
        "1 unexpected (extra); 1 of another shape (shape is (4, 3), expected (3, 4))"
    )
    weights.check_fit(wanted, wanted, what="toy")


# -------------------------------------------------------------------------------------------- local files


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_a_local_file_is_converted_once_and_called_unverified(tmp_path, cache, caplog, kind):
    path, mapping = tmp_path / "official.pth", Mapping()
    save_file(toy(), path) if kind == "safetensors" else torch.save({"model": toy()}, path)
    caplog.set_level(logging.INFO)
    first, origin = load(path, mapping)
    check_toy(first)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert origin == weights.Origin(None, str(path), sha256, False)
    assert "unverified" in caplog.text
    (kept,) = cache.glob("*.safetensors")
    assert kept.name == f"official-{sha256[:16]}-{LAYOUT}.safetensors"
    before = kept.read_bytes()
    second, again = load(str(path), mapping)
    check_toy(second)
    assert again == origin and mapping.calls == 1 and kept.read_bytes() == before
    assert leftovers(cache) == []


def test_same_name_other_bytes_never_share_a_cache_file(tmp_path, cache):
    for value in (1.0, 2.0):
        folder = tmp_path / str(value)
        folder.mkdir()
        save_file(toy(value), folder / FILE)
    for value in (1.0, 2.0, 1.0):
        check_toy(load(tmp_path / str(value) / FILE)[0], value)
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_a_cache_file_of_another_hash_is_not_believed(tmp_path, cache):
    save_file(toy(), tmp_path / FILE)
    load(tmp_path / FILE)
    (kept,) = cache.glob("*.safetensors")
    header = {"eo_zoo.layout": LAYOUT, "eo_zoo.sha256": "0" * 64}
    checkpoint.save({"new.a": torch.ones(1)}, kept, metadata=header)
    check_toy(load(tmp_path / FILE)[0])


def test_a_damaged_cache_file_is_made_anew(tmp_path, cache, caplog):
    save_file(toy(), tmp_path / FILE)
    load(tmp_path / FILE)
    (kept,) = cache.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-7])
    check_toy(load(tmp_path / FILE)[0])
    assert "damaged" in caplog.text
    check_toy(load(kept)[0])


def test_our_own_files_are_taken_as_they_are(tmp_path, cache):
    save_file(toy(), tmp_path / FILE)
    _, origin = load(tmp_path / FILE)
    (kept,) = cache.glob("*.safetensors")
    mapping = Mapping()
    tensors, again = load(kept, mapping)
    check_toy(tensors)
    assert again == origin and mapping.calls == 0
    with pytest.raises(WeightsError, match=rf"layout '{LAYOUT}'.*reads 'other-1'"):
        weights.load(kept, mapping, layout="other-1")


def test_a_header_outside_the_cache_cannot_claim_to_be_verified(tmp_path):
    path = tmp_path / "forged.safetensors"
    claims = {"layout": LAYOUT, "name": "toy.pretrain", "source": "hf://x/y/z", "sha256": "0" * 64}
    header = {f"eo_zoo.{key}": value for key, value in claims.items()} | {"eo_zoo.verified": "true"}
    checkpoint.save(Mapping()(toy()), path, metadata=header)
    tensors, origin = load(path)
    check_toy(tensors)
    assert origin == weights.Origin(None, str(path), hashlib.sha256(path.read_bytes()).hexdigest(), False)


def test_an_unknown_key_leaves_nothing_behind(tmp_path, cache):
    save_file({"strange": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(WeightsError, match="strange"):
        load(tmp_path / FILE)
    assert list(cache.glob("*.safetensors")) == [] and leftovers(cache) == []


def test_an_unwritable_cache_still_gives_tensors(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be: not even root can write in it")
    torch.save(toy(), tmp_path / "w.pth")
    check_toy(load(tmp_path / "w.pth")[0])
    assert "used from memory" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(tmp_path, cache, monkeypatch, caplog):
    torch.save(toy(), tmp_path / "w.pth")

    def full(tensors, path, *, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    check_toy(load(tmp_path / "w.pth")[0])
    assert "No space left" in caplog.text
    assert leftovers(cache) == [] and list(cache.glob("*.safetensors")) == []


def test_the_remains_of_a_killed_process_are_swept(tmp_path, cache):
    torch.save(toy(), tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    cache.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (cache / f".w-{sha256[:16]}-{LAYOUT}.safetensors.{dead.pid}-0.part").write_bytes(b"half")
    load(tmp_path / "w.pth")
    assert leftovers(cache) == []


# ---------------------------------------------------------------------------------- package and file records


def test_package_and_file_records(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("eo_zoo.weights.sources.DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / FILE
    checkpoint.save(Mapping()(toy()), path, metadata={"eo_zoo.layout": LAYOUT})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "nowhere"))
    for source in (f"package://{FILE}", f"file://{path}"):
        mapping = Mapping()
        tensors, origin = load(record(source=source, sha256=sha256), mapping)
        check_toy(tensors)
        assert origin.verified and origin.name == "toy.pretrain" and mapping.calls == 0
        with pytest.raises(WeightsError, match="damaged or replaced"):
            load(record(source=source, sha256="0" * 64))
        assert path.is_file()
    assert not cache.exists()
    with pytest.raises(DownloadError, match="there is no file"):
        load(record(source="package://absent"))
    with pytest.raises(DownloadError, match="cannot fetch ftp://x"):
        monkeypatch.delenv("EO_ZOO_MIRROR")
        load(record(source="ftp://x"))


# ------------------------------------------------------------------------------------------------- the Hub


def test_first_use_downloads_checks_and_pins_then_the_network_is_not_needed(tmp_path, hub, cache):
    data = toy_bytes(tmp_path)
    hub.add(REPO, FILE, data)
    mapping = Mapping()
    tensors, origin = load(record(), mapping)
    check_toy(tensors)
    sha256 = hashlib.sha256(data).hexdigest()
    assert origin == weights.Origin("toy.pretrain", f"hf://{REPO}/{FILE}", sha256, True)
    (pin,) = (cache / "pins").iterdir()
    facts = json.loads(pin.read_text())
    assert (facts["sha256"], facts["size"], facts["commit"]) == (sha256, len(data), COMMIT)
    assert leftovers(cache) == []  # the official file went, its conversion stays
    assert hub.count("GET") == 1
    asked = len(hub.requests)
    again, same_origin = load(record(), mapping)
    check_toy(again)
    assert same_origin == origin and mapping.calls == 1 and len(hub.requests) == asked
    assert load(next(cache.glob("*.safetensors")))[1] == origin


def test_a_download_in_our_own_layout_is_kept_like_any_other(tmp_path, hub):
    checkpoint.save(Mapping()(toy()), tmp_path / "ours", metadata={"eo_zoo.layout": LAYOUT})
    hub.add(REPO, FILE, (tmp_path / "ours").read_bytes())
    for _ in range(2):
        mapping = Mapping()
        check_toy(load(record(), mapping)[0])
        assert mapping.calls == 0
    assert hub.count("GET") == 1


def test_a_change_after_first_use_is_an_error(tmp_path, hub, cache):
    old, new = toy_bytes(tmp_path), toy_bytes(tmp_path, 2.0)
    hub.add(REPO, FILE, old)
    load(record())
    (pin,) = (cache / "pins").iterdir()
    next(cache.glob("*.safetensors")).unlink()
    hub.add(REPO, FILE, new)
    with pytest.raises(WeightsError, match="changed since its first use") as caught:
        load(record())
    for part in (hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest(), str(pin)):
        assert part in str(caught.value)
    assert hub.count("GET") == 1  # told from the Hub's hash, before the download
    pin.unlink()
    check_toy(load(record())[0], 2.0)


def test_another_revision_or_origin_has_its_own_pin(tmp_path, hub, cache):
    for number, value in enumerate((1.0, 2.0)):
        hub.add(f"owner/repo{number}", FILE, toy_bytes(tmp_path, value))
    for number, value in enumerate((1.0, 2.0)):
        check_toy(load(record(source=f"hf://owner/repo{number}/{FILE}"))[0], value)
    assert len(list((cache / "pins").iterdir())) == 2


@pytest.mark.parametrize("pin", ["", "[]", '{"sha256": "short", "verified": true}'])
def test_an_unreadable_pin_says_which_file_to_delete(hub, cache, pin):
    path = pin_path(cache, record())
    path.parent.mkdir(parents=True)
    path.write_text(pin)
    with pytest.raises(WeightsError, match=f"delete {path}"):
        load(record())


def test_wrong_bytes_are_thrown_away(tmp_path, hub, cache):
    data = toy_bytes(tmp_path)
    file = hub.add(REPO, FILE, data)
    file.sent = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(WeightsError, match="damaged on the way"):
        load(record())
    assert leftovers(cache) == [] and not (cache / "pins").exists()
    file.sent = None
    check_toy(load(record())[0])


def test_recorded_hash_size_and_md5_are_checked(tmp_path, hub, cache):
    data = toy_bytes(tmp_path)
    hub.add(REPO, FILE, data)
    with pytest.raises(WeightsError, match=r"is known as 0000.*damaged or replaced"):
        load(record(sha256="0" * 64))
    assert hub.count("GET") == 0
    with pytest.raises(WeightsError, match=f"has {len(data)} bytes, toy.pretrain has 5"):
        load(record(size=5))
    with pytest.raises(WeightsError, match="another md5"):
        load(record(md5="0" * 32))
    assert leftovers(cache) == []
    sha256, md5 = hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    assert load(record(sha256=sha256, md5=md5, size=len(data)))[1].verified
    assert not (cache / "pins").exists()


def test_a_file_without_lfs_hash_is_pinned_and_called_unconfirmed(tmp_path, hub, caplog):
    hub.add(REPO, FILE, toy_bytes(tmp_path), lfs=False)
    assert not load(record())[1].verified
    assert "nothing confirms" in caplog.text
    assert not load(record())[1].verified


def test_a_cut_connection_is_resumed(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10)
    hub.add(REPO, FILE, toy_bytes(tmp_path)).cut_after = 50
    # huggingface_hub 2 goes on by itself, older ones when they are called again
    with contextlib.suppress(DownloadError):
        load(record())
    check_toy(load(record())[0])
    assert [span for method, _, span in hub.requests if method == "GET"] == [None, "bytes=50-"]


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "refused"), (403, "refused"), (404, "no such file"), (429, "too many"), (500, "error")],
)
def test_refusals_are_one_sentence_with_a_way_out(tmp_path, hub, cache, status, says):
    hub.add(REPO, FILE, b"").status = status
    with pytest.raises(DownloadError, match=f"toy.pretrain could not be fetched.*{says}.*{status}") as caught:
        load(record())
    for part in (f"{hub.url}/{REPO}/resolve/main/{FILE}", "weights=PATH"):
        assert part in str(caught.value)
    assert list(cache.glob("*.safetensors")) == []


def test_no_server_at_all():
    with pytest.raises(DownloadError, match="the connection failed"):
        load(record())


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "EO_ZOO_OFFLINE"])
def test_offline_mode(tmp_path, hub, monkeypatch, variable):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"offline mode is on .{variable}") as caught:
        load(record())
    for part in ("toy.pretrain", f"{hub.url}/{REPO}", "weights=PATH", "pretrained_cfg_overlay", "--weights"):
        assert part in str(caught.value)
    assert hub.requests == []
    monkeypatch.delenv(variable)
    load(record())
    asked = len(hub.requests)
    monkeypatch.setenv(variable, "1")
    check_toy(load(record())[0])
    assert len(hub.requests) == asked


def in_hf_cache(tmp_path: Path, data: bytes, *, name: str | None = None, commit: str = COMMIT) -> None:
    folder = tmp_path / "hf" / "models--owner--repo"
    for path in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / path).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    blob = folder / "blobs" / (name or hashlib.sha256(data).hexdigest())
    blob.write_bytes(data)
    (folder / "snapshots" / commit / FILE).symlink_to(blob)


def test_a_file_in_the_hugging_face_cache_is_used_without_network(tmp_path, hub):
    in_hf_cache(tmp_path, toy_bytes(tmp_path))
    tensors, origin = load(record())
    check_toy(tensors)
    assert origin.verified and hub.requests == []
    assert (tmp_path / "hf" / "models--owner--repo" / "snapshots" / COMMIT / FILE).exists()


def test_a_changed_file_in_the_hugging_face_cache_is_refused(tmp_path, hub):
    data = toy_bytes(tmp_path)
    in_hf_cache(tmp_path, data[:-1] + b"x", name=hashlib.sha256(data).hexdigest())
    with pytest.raises(WeightsError, match="damaged on the way"):
        load(record())


def test_an_older_file_in_the_hugging_face_cache_is_passed_over(tmp_path, hub):
    new = toy_bytes(tmp_path, 2.0)
    in_hf_cache(tmp_path, toy_bytes(tmp_path), commit="f" * 40)
    hub.add(REPO, FILE, new)
    check_toy(load(record(sha256=hashlib.sha256(new).hexdigest()))[0], 2.0)


def test_terms_are_told_at_the_first_download_only(tmp_path, hub, caplog):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    for _ in range(2):
        load(record(terms="academic use only"))
    told = [entry for entry in caplog.records if "academic use only" in entry.getMessage()]
    assert [entry.levelname for entry in told] == ["WARNING"]


def test_a_record_of_another_layout_is_refused_before_any_download(hub):
    with pytest.raises(WeightsError, match=rf"'{LAYOUT}'.*reads 'other-1'"):
        weights.load(record(), Mapping(), layout="other-1")
    assert hub.requests == []


def test_an_unwritable_cache_cannot_take_a_download(tmp_path, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    (tmp_path / "cache").write_text("")
    with pytest.raises(DownloadError, match="cannot be written: set EO_ZOO_CACHE"):
        load(record())


def test_two_processes_at_once_download_once(tmp_path, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path)).delay = 0.5
    script = textwrap.dedent(
        f"""
        from eo_zoo import weights
        record = weights.Record("toy.pretrain", "hf://{REPO}/{FILE}", layout="{LAYOUT}", licence="")
        rename = lambda tensors: {{name.replace("old.", "new."): value for name, value in tensors.items()}}
        tensors, origin = weights.load(record, rename, layout="{LAYOUT}")
        print(float(tensors["new.bias"].sum()), origin.verified)
        """
    )
    root = str(Path(weights.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "PYTHONPATH": root},
    ) as other:
        # The other one's HEAD says that it holds the lock; its download takes long enough to run into it.
        for _ in range(6000):
            if hub.requests or other.poll() is not None:
                break
            time.sleep(0.01)
        check_toy(load(record())[0])
        assert other.communicate(timeout=60)[0].split() == ["3.0", "True"]
    assert sum(method == "GET" and FILE in path for method, path, _ in hub.requests) == 1


# ------------------------------------------------------------------------------------------------- mirrors


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_a_mirror_replaces_the_hub(tmp_path, hub, monkeypatch, kind, caplog):
    data = toy_bytes(tmp_path)
    hub.add(REPO, FILE, data)
    folder = tmp_path / "mirror" / REPO
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(data)
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror") if kind == "folder" else hub.url + "/")
    tensors, origin = load(record())
    check_toy(tensors)
    assert not origin.verified and "nothing confirms" in caplog.text
    assert hub.count("HEAD") == 0 and hub.count("GET") == (kind == "http")
    known = record("toy.known", sha256=hashlib.sha256(data).hexdigest())
    assert load(known)[1].verified
    assert (folder / FILE).is_file()


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_a_mirror_cannot_change_a_pinned_file(tmp_path, hub, cache, monkeypatch, kind):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    load(record())
    next(cache.glob("*.safetensors")).unlink()
    other = toy_bytes(tmp_path, 2.0)
    hub.add(REPO, FILE, other)
    folder = tmp_path / "mirror" / REPO
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(other)
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror") if kind == "folder" else hub.url)
    with pytest.raises(WeightsError, match="changed since its first use"):
        load(record())
    assert (folder / FILE).is_file() and leftovers(cache) == []


def test_faults_of_a_mirror(tmp_path, hub, cache, monkeypatch):
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="there is no file"):
        load(record())
    monkeypatch.setenv("EO_ZOO_MIRROR", hub.url)
    with pytest.raises(DownloadError, match=r"no such file .404"):
        load(record())
    hub.add(REPO, FILE, toy_bytes(tmp_path)).cut_after = 50
    with pytest.raises(DownloadError, match="the connection failed"):
        load(record())
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline mode"):
        load(record())
    assert list(cache.glob("*.safetensors")) == [] and not (cache / "pins").exists()
