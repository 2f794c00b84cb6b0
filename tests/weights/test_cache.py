"""Records, and local files: what is kept in the cache, and when it is believed."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eo_zoo import weights
from eo_zoo.errors import WeightsError
from eo_zoo.weights import stored
from tests.weights.toys import FILE, LAYOUT, Mapping, check_toy, leftovers, load, record, toy


def test_records_are_registered_once(monkeypatch):
    monkeypatch.setattr(weights, "RECORDS", {})
    weights.register(record("toy_base.pretrain"))
    with pytest.raises(ValueError, match="twice"):
        weights.register(record("toy_base.pretrain"))


@pytest.mark.parametrize(
    "bad",
    [{"name": "a/b"}, {"source": "no-scheme"}, {"sha256": "ABC"}, {"source": "http://example.org/weights.pth"}],
)
def test_a_record_that_cannot_work_is_refused(bad):
    with pytest.raises(ValueError):
        record(**bad)


def test_an_address_is_a_files():
    made = record(source="https://zenodo.org/records/1/files/my%20toy.pth?download=1")
    assert (made.scheme, made.address) == ("https", "zenodo.org/records/1/files/my toy.pth")
    assert record(source="file:///data/50%25?.pth").address == "/data/50%25?.pth"
    assert record(source="http://127.0.0.1:80/toy.pth").address == "127.0.0.1:80/toy.pth"


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
    stored.save({"new.a": torch.ones(1)}, kept, metadata=header)
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
    stored.save(Mapping()(toy()), path, metadata=header)
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

    monkeypatch.setattr(stored, "save", full)
    check_toy(load(tmp_path / "w.pth")[0])
    assert "No space left" in caplog.text
    assert leftovers(cache) == [] and list(cache.glob("*.safetensors")) == []


@pytest.fixture
def hashed(monkeypatch):
    """Which files were read to compute their hash."""
    seen, digest = [], weights.cache.digest
    monkeypatch.setattr(weights.cache, "digest", lambda path, *rest: seen.append(path.name) or digest(path, *rest))
    return seen


def aged(path: Path) -> Path:
    """As if nobody had written to it for an hour: what changed just now is not remembered."""
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    return path


def test_an_unchanged_local_file_is_hashed_once(tmp_path, hashed, monkeypatch):
    torch.save(toy(), tmp_path / "w.pth")
    monkeypatch.setattr(weights.cache, "SETTLED", 0)
    origins = [load(aged(tmp_path / "w.pth") if first else tmp_path / "w.pth")[1] for first in (True, False)]
    assert origins[0] == origins[1] and hashed == ["w.pth"]


def test_a_file_that_changed_just_now_is_hashed_again(tmp_path, hashed):
    torch.save(toy(), tmp_path / "w.pth")
    for _ in range(2):
        load(aged(tmp_path / "w.pth"))  # the status change is of now, whatever its times were set to
    assert hashed == ["w.pth"] * 2


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_changed_local_file_is_never_taken_for_the_old_one(tmp_path, monkeypatch, how):
    """The same size and the same time of change, as a restored backup or a clock without seconds would give."""
    path = tmp_path / "w.pth"
    monkeypatch.setattr(weights.cache, "SETTLED", 0)
    torch.save(toy(1.0), path)
    check_toy(load(aged(path))[0], 1.0)
    before = path.stat()
    target = path if how == "written" else tmp_path / "new" / path.name
    target.parent.mkdir(exist_ok=True)
    time.sleep(0.05)  # some kernels count time in hundredths of a second
    torch.save(toy(2.0), target)
    target.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    tensors, origin = load(path)
    check_toy(tensors, 2.0)
    assert origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, cache, monkeypatch):
    torch.save(toy(), tmp_path / "w.pth")
    digest = weights.cache.digest
    monkeypatch.setattr(weights.cache, "SETTLED", 0)
    monkeypatch.setattr(weights.cache, "digest", lambda path: digest(aged(path)))
    load(tmp_path / "w.pth")
    assert not (cache / "hashes").exists()


@pytest.mark.parametrize("note", ["", "[]", '{"sha256": "short"}'])
def test_a_damaged_note_of_a_hash_is_passed_over(tmp_path, cache, hashed, monkeypatch, note):
    torch.save(toy(), tmp_path / "w.pth")
    monkeypatch.setattr(weights.cache, "SETTLED", 0)
    load(aged(tmp_path / "w.pth"))
    (memo,) = (cache / "hashes").iterdir()
    memo.write_text(note)
    check_toy(load(tmp_path / "w.pth")[0])
    assert hashed == ["w.pth"] * 2


def test_the_remains_of_a_killed_process_are_swept(tmp_path, cache):
    torch.save(toy(), tmp_path / "w.pth")
    sha256 = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    cache.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (cache / f".w-{sha256[:16]}-{LAYOUT}.safetensors.{dead.pid}-0.part").write_bytes(b"half")
    load(tmp_path / "w.pth")
    assert leftovers(cache) == []
