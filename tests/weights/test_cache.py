"""Records, and local files: what is kept in the cache, and when it is believed."""

from __future__ import annotations

import hashlib
import json
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
from eo_zoo.weights import cache as places
from eo_zoo.weights import inventory, stored
from tests.weights.toys import FILE, LAYOUT, REPO, Mapping, check_toy, leftovers, load, record, toy, toy_bytes


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


def test_what_a_killed_process_fetched_goes_once_it_is_converted(tmp_path, cache, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    _, origin = load(record())
    downloads = [places.settled(cache, record(), origin.sha256), places.workspace(cache, record()) / "toy.json"]
    for path in downloads:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    check_toy(load(record())[0])
    assert leftovers(cache) == [] and not downloads[1].parent.exists()


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
    (cache / f".w-{sha256[:16]}-{LAYOUT}.safetensors.{dead_process()}-0.part").write_bytes(b"half")
    load(tmp_path / "w.pth")
    assert leftovers(cache) == []


# ------------------------------------------------------------------------- what is kept, listed and cleared


def test_a_conversion_is_never_without_its_note(tmp_path, cache, monkeypatch):
    torch.save(toy(), tmp_path / "w.pth")

    def killed(part, path, replace=os.replace):
        if Path(path).suffix == ".safetensors":
            raise KeyboardInterrupt
        replace(part, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eo_zoo.files.os.replace", killed)
        load(tmp_path / "w.pth")
    (note,) = (cache / "notes").iterdir()
    assert not list(cache.glob("*.safetensors")) and inventory.entries(cache) == []
    load(tmp_path / "w.pth")
    (kept,) = cache.glob("*.safetensors")
    facts = weights.cache.read_note(kept)
    assert weights.cache.note_of(kept) == note
    assert facts == {"sha256": weights.cache.digest(kept), "bytes": kept.stat().st_size, "goldens": {}}


@pytest.mark.parametrize("content", ["", "[]", "{}", "7", '"text"', '{"sha256": "short"}', "\xff", '{"bytes": 1}'])
def test_a_damaged_note_cannot_be_read(tmp_path, cache, content):
    torch.save(toy(), tmp_path / "w.pth")
    load(tmp_path / "w.pth")
    (kept,) = cache.glob("*.safetensors")
    weights.cache.note_of(kept).write_bytes(content.encode("latin-1"))
    with pytest.raises(WeightsError, match="is damaged"):
        weights.cache.read_note(kept)
    check_toy(load(tmp_path / "w.pth")[0])  # who loads does not ask it


FOREIGN = (
    "mine.safetensors", "notes.txt", "a-0123456789abcdef-toy-1.safetensors.bak", "downloads/README", "mine/a.pth",
    "other-0123456789abcdef-x.safetensors", ".mine.part", "pins/readme.txt", "downloads/mine.pth",
)  # fmt: skip


@pytest.fixture
def full(tmp_path, cache, hub):
    """A cache with one of each: a published file's conversion and a local one's, a whole and a partial download, what a
    killed process left, remembered hashes, a pin, and files that are not eo_zoo's."""
    hub.add("owner/repo", FILE, toy_bytes(tmp_path))
    load(record())
    torch.save(toy(2.0), tmp_path / "w.pth")
    load(tmp_path / "w.pth")
    downloads = cache / "downloads"
    (downloads / "toy-01234567.partial").mkdir(parents=True)
    (downloads / "toy-01234567.partial" / "toy.pth").write_bytes(b"half")
    (downloads / f"other-{'0' * 16}.pth").write_bytes(b"whole")
    (cache / f".w-{'0' * 16}-{LAYOUT}.safetensors.{dead_process()}-0123abcd.part").write_bytes(b"half")
    (cache / "hashes").mkdir(exist_ok=True)
    (cache / "hashes" / "0123.json").write_text("{}")
    for name in FOREIGN:
        (cache / name).parent.mkdir(exist_ok=True)
        if name.startswith("other-"):
            save_file({"x": torch.ones(1)}, cache / name)
        else:
            (cache / name).write_text("mine")
    return cache


def dead_process() -> int:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return dead.pid


def files(cache: Path) -> set[str]:
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}


def test_what_the_cache_holds_is_listed(full, run):
    kinds = [(entry.kind, entry.title, entry.verified) for entry in inventory.entries(full)]
    kept = {path.name.partition("-")[0]: path.name for path in full.glob("*.safetensors")}
    assert kinds == [
        ("weights", kept["toy"], True),
        ("weights", kept["w"], False),
        ("download", f"other-{'0' * 16}.pth", True),
        ("partial", "toy-01234567.partial", None),
        ("leftover", next(full.glob(".w-*")).name, None),
    ]
    code, out, _ = run("cache", "list", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["kind"] for row in rows] == [kind for kind, *_ in kinds]
    assert rows[0]["names"] == ["toy.pretrain"] and rows[1]["names"] == ["w.pth"]
    assert rows[3]["size"] == 4
    code, out, _ = run("cache", "list")
    assert code == 0 and f"{sum(row['size'] for row in rows) / 1e6:,.1f} MB in" in " ".join(out.split())


def test_all_is_cleared_but_pins_and_what_is_not_ours(full, run):
    load(record())
    before = files(full)
    code, out, _ = run("cache", "clear", "--all")
    assert code == 0 and out.startswith("removed 5 of 5")
    stay = {name for name in before if name.startswith(("pins/", "locks/"))} | set(FOREIGN)
    assert files(full) == stay and any(name.endswith(".json") for name in stay)
    assert run("cache", "clear", "--all", "--pins")[0] == 0
    assert {name for name in files(full) if not name.startswith("locks/")} == set(FOREIGN)
    assert run("cache", "list")[1].startswith("0.0 MB")


@pytest.mark.parametrize("name", ["toy", "toy.pretrain"])
def test_one_is_cleared_with_its_note(full, run, name):
    (kept,) = full.glob("toy-*.safetensors")
    before = files(full)
    code, out, _ = run("cache", "clear", name)
    assert code == 0 and out.startswith("removed 1 of 5")
    assert before - files(full) == {kept.name, f"notes/{kept.stem}.json"}


def test_a_local_files_conversion_is_cleared_by_either_name(full, run):
    (kept,) = full.glob("w-*.safetensors")
    assert run("cache", "clear", kept.name)[0] == 0 and not kept.exists()
    load(full.parent / "w.pth")
    assert run("cache", "clear", "w.pth")[0] == 0 and not kept.exists()


def test_what_was_not_used_for_long_is_cleared(full, run):
    (kept,) = full.glob("w-*.safetensors")
    long_ago = time.time() - 40 * 86400
    half = full / "downloads" / "toy-01234567.partial" / "toy.pth"
    for path in (kept, half):
        os.utime(path, (long_ago, long_ago))
    assert run("cache", "clear", "toy", "--older-than", 30)[1].startswith("removed 0 of 5")
    assert run("cache", "clear", "--older-than", 30)[1].startswith("removed 2 of 5")
    assert not kept.exists() and not half.parent.exists() and (full / "hashes" / "0123.json").exists()


def test_damaged_weights_are_listed_and_cleared(full, run):
    (kept,) = full.glob("w-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:20])
    assert run("cache", "clear", kept.name)[0] == 0 and not kept.exists()


@pytest.mark.parametrize("lock", ["weights", "partial"])
def test_what_another_process_writes_stays(full, run, lock):
    """flock counts by open file, so a lock of this process's is as good as another's."""
    entry = next(entry for entry in inventory.entries(full) if entry.kind == lock)
    with weights.cache.locked(full, entry.lock):
        code, out, err = run("cache", "clear", "--all")
    assert code == 1 and out.startswith("removed 4 of 5")
    assert f"{entry.path} is in use by another process" in err and entry.path.exists()
    assert lock != "weights" or weights.cache.note_of(entry.path).exists()
    assert run("cache", "clear", "--all")[0] == 0 and not entry.path.exists()


def test_the_part_of_a_living_process_stays(full, run):
    part = full / f".w-{'1' * 16}-{LAYOUT}.safetensors.{os.getpid()}-0123abcd.part"
    part.write_bytes(b"half")
    code, _, err = run("cache", "clear", "--all")
    assert code == 1 and f"{part} is in use" in err and part.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what is to be removed"),
        (("toy", "--all"), "give one of them"),
        (("--pins",), "say what is to be removed"),
        (("toy", "--pins"), "--pins goes with --all"),
        (("--older-than", "-1"), "expected days, 0 or more"),
        (("toy.pretrai",), "Did you mean 'toy.pretrain'"),
    ],
)
def test_clear_asks_for_what(full, run, arguments, says):
    before = files(full)
    code, out, err = run("cache", "clear", *arguments)
    assert code == 2 and says in err and out == "" and files(full) == before


def test_an_empty_cache(run, cache):
    assert run("cache", "list")[:2] == (0, f"0.0 MB in {cache}\n")
    assert run("cache", "clear", "toy")[0] == 2
    assert run("cache", "clear", "--all")[0] == 0 and not cache.exists()
