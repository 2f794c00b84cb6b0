"""Sources: the package, the Hub, the web and mirrors, what is pinned of them and what is checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from eo_zoo import weights
from eo_zoo.errors import DownloadError, WeightsError
from eo_zoo.weights import download, stored
from eo_zoo.weights.cache import pin_path, workspace
from tests.hub_server import COMMIT, HubServer
from tests.weights.toys import FILE, LAYOUT, REPO, Mapping, check_toy, leftovers, load, record, toy, toy_bytes

# ---------------------------------------------------------------------------------- package and file records


def test_package_and_file_records(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("eo_zoo.weights.sources.DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / FILE
    stored.save(Mapping()(toy()), path, metadata={"eo_zoo.layout": LAYOUT})
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
    stored.save(Mapping()(toy()), tmp_path / "ours", metadata={"eo_zoo.layout": LAYOUT})
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


@pytest.fixture
def origin(request, hub, monkeypatch):
    """The source of a toy record: on the Hub, on the web, or on the Hub but fetched from a mirror."""
    if request.param == "mirror":
        monkeypatch.setenv("EO_ZOO_MIRROR", hub.url)
    return f"{hub.url}/{REPO}/{FILE}?download=1" if request.param == "web" else f"hf://{REPO}/{FILE}"


everywhere = pytest.mark.parametrize("origin", ["hub", "web", "mirror"], indirect=True)


@everywhere
def test_a_cut_connection_is_gone_on_with(tmp_path, hub, cache, monkeypatch, origin):
    monkeypatch.setattr(download, "CHUNK", 10)
    hub.add(REPO, FILE, toy_bytes(tmp_path)).cut_after = 50
    check_toy(load(record(source=origin))[0])
    assert hub.ranges() == [None, "bytes=50-"] and leftovers(cache) == []


@everywhere
def test_what_a_server_glues_together_is_thrown_away(tmp_path, hub, cache, monkeypatch, origin):
    """It says that another file is still the same one, so only the hash can tell."""
    monkeypatch.setattr(download, "CHUNK", 10)
    new = toy_bytes(tmp_path, 2.0)
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    file.tag, file.cut_after = '"always"', len(new) - 20
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match="the connection failed"):
        patch.setattr(download, "TRIES", 1)
        load(record(source=origin))
    assert any(name.endswith(FILE) for name in leftovers(cache))
    file.data, file.etag = new, hashlib.sha256(new).hexdigest()
    known = hashlib.md5(new).hexdigest()
    with pytest.raises(WeightsError, match=r"damaged on the way|another md5"):
        load(record(source=origin, md5=known))
    assert hub.ranges()[0] is None and hub.ranges()[1].startswith("bytes=") and leftovers(cache) == []
    tensors, found = load(record(source=origin, md5=known))
    check_toy(tensors, 2.0)
    assert found.verified and hub.ranges()[2:] == [None]


@everywhere
@pytest.mark.parametrize("html", [True, False])
def test_a_web_page_is_neither_kept_nor_pinned(tmp_path, hub, cache, origin, html):
    file = hub.add(REPO, FILE, toy_bytes(tmp_path), lfs=False)
    file.sent = b"<html>log in</html>"
    file.headers = (("Content-Type", "text/html; charset=utf-8"),) if html else ()
    with pytest.raises(DownloadError if html else WeightsError, match="web page"):
        load(record(source=origin))
    assert leftovers(cache) == [] and not (cache / "pins").exists()
    file.sent, file.headers = None, ()
    check_toy(load(record(source=origin))[0])


@everywhere
def test_passing_faults_are_waited_out(tmp_path, hub, origin, caplog):
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    file.failures = [503, 500, 502]
    check_toy(load(record(source=origin))[0])
    assert caplog.text.count("toy.pretrain: the server answers with an error") == 3


@everywhere
def test_too_long_a_wait_is_said_with_a_way_out(tmp_path, hub, origin):
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    file.status, file.headers = 429, (("Retry-After", "3600"),)
    with pytest.raises(DownloadError, match=r"could not be fetched: .*asks to wait 60 minutes.*weights=PATH"):
        load(record(source=origin))
    # huggingface_hub before 1.0 asks again by itself, within a second or two
    own = origin.startswith("hf") and huggingface_hub.__version__.startswith("0.")
    assert len(hub.requests) == 1 or own


@everywhere
def test_no_room_on_the_disk(tmp_path, hub, cache, monkeypatch, origin):
    data = toy_bytes(tmp_path)
    hub.add(REPO, FILE, data)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=len(data) - 1))
        with pytest.raises(DownloadError, match=r"needs 0.0 MB.*EO_ZOO_CACHE.*by hand"):
            load(record(source=origin))
    check_toy(load(record(source=origin))[0])


@everywhere
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_disk_that_fills_up(tmp_path, hub, cache, origin):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    partial = workspace(cache, record(source=origin)) / FILE
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=rf"the disk of {re.escape(str(cache))} is full: make room"):
        load(record(source=origin))
    assert hub.count("GET") == 1


def test_the_hubs_token_goes_to_the_hub_alone(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    with HubServer() as other:
        other.add("cdn/bucket", "blob", file.data)
        file.redirect = f"{other.url}/cdn/bucket/blob?X-Amz-Signature=SECRET"
        check_toy(load(record())[0])
        assert all(headers["authorization"] == "Bearer hf_SECRET" for headers in hub.headers) and hub.headers
        assert "authorization" not in other.headers[0]
        other.files["cdn/bucket", "blob"].status = 403
        next((tmp_path / "cache").glob("*.safetensors")).unlink()
        with pytest.raises(DownloadError, match=r"access is refused .403.: gated") as caught:
            load(record("other.toy"))
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_two_tags_of_one_file_fetch_it_once(tmp_path, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    for tag in ("student", "teacher"):
        tensors, origin = load(record(f"toy.{tag}"))
        check_toy(tensors)
        assert origin.name == f"toy.{tag}"
    assert hub.count("GET") == 1


def test_an_unreachable_signed_address_is_not_shown(tmp_path, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path)).redirect = "http://127.0.0.1:9/blob?X-Amz-Signature=SECRET"
    with pytest.raises(DownloadError, match="refused") as caught:
        load(record())
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_wrong_bytes_are_thrown_away(tmp_path, hub, cache):
    data = toy_bytes(tmp_path)
    file = hub.add(REPO, FILE, data)
    file.sent = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(WeightsError, match="damaged on the way"):
        load(record())
    assert leftovers(cache) == [] and not (cache / "pins").exists()
    file.sent = None
    check_toy(load(record())[0])


def test_another_size_than_the_hub_states_is_told_before_anything_is_written(tmp_path, hub, cache):
    data = toy_bytes(tmp_path)
    hub.add(REPO, FILE, data).sent = data[:-3]
    with pytest.raises(WeightsError, match=f"has {len(data) - 3} bytes, toy.pretrain has {len(data)}: not used"):
        load(record())
    assert hub.count("GET") == 1 and leftovers(cache) == []


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


def test_without_requests_there_is_one_sentence(tmp_path, hub, monkeypatch):
    hub.add(REPO, FILE, toy_bytes(tmp_path))
    monkeypatch.setitem(sys.modules, "requests", None)
    for source in (f"hf://{REPO}/{FILE}", f"{hub.url}/{REPO}/{FILE}"):
        with pytest.raises(DownloadError, match=r"could not be fetched: .*pip install requests.* by hand"):
            load(record(source=source))


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


# ------------------------------------------------------------------------------------------------- the web


def test_a_file_of_the_web(tmp_path, hub, cache, caplog):
    """As Zenodo publishes them: a query in the address, and an md5."""
    data = toy_bytes(tmp_path)
    hub.add("records/17", "files/my toy.pth", data)
    hub.files["records/17", "files/my%20toy.pth"] = hub.files["records/17", "files/my toy.pth"]
    source = f"{hub.url}/records/17/files/my%20toy.pth?download=1"
    known = record(source=source, md5=hashlib.md5(data).hexdigest(), size=len(data), terms="academic use only")
    tensors, origin = load(known)
    check_toy(tensors)
    assert origin == weights.Origin("toy.pretrain", source, hashlib.sha256(data).hexdigest(), True)
    assert hub.requests == [("GET", "/records/17/files/my%20toy.pth?download=1", None)]
    assert weights.pinned(known)["size"] == len(data) and leftovers(cache) == []
    (kept,) = cache.glob("*.safetensors")
    assert kept.name == f"my_toy-{origin.sha256[:16]}-{LAYOUT}.safetensors"
    assert weights.is_cached(known, layout=LAYOUT) and not weights.is_cached(known, layout="other-1")
    check_toy(load(known)[0])
    assert len(hub.requests) == 1 and caplog.text.count("academic use only") == 1


def test_without_any_hash_a_file_of_the_web_is_pinned_as_it_came(tmp_path, hub, caplog):
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    source = f"{hub.url}/{REPO}/{FILE}"
    assert not load(record(source=source))[1].verified and "nothing confirms" in caplog.text
    assert file.etag == weights.pinned(record(source=source))["sha256"]


def test_the_web_when_offline(hub, monkeypatch):
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"Fetch {hub.url}/{REPO}/{FILE} by hand"):
        load(record(source=f"{hub.url}/{REPO}/{FILE}?token=SECRET"))
    assert hub.requests == []


# ------------------------------------------------------------------------------------- the Hugging Face cache


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


def another_process(tmp_path: Path, source: str) -> subprocess.Popen[str]:
    """Loads the toy in a process of its own, and prints the sum of its bias and whether it is verified."""
    script = textwrap.dedent(
        f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells have it ignored
        from eo_zoo import weights
        record = weights.Record("toy.pretrain", "{source}", layout="{LAYOUT}", licence="")
        rename = lambda tensors: {{name.replace("old.", "new."): value for name, value in tensors.items()}}
        tensors, origin = weights.load(record, rename, layout="{LAYOUT}")
        print(float(tensors["new.bias"].sum()), origin.verified)
        """
    )
    root = str(Path(weights.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "PYTHONPATH": root},
    )


def until(happened, process: subprocess.Popen[str]) -> None:
    """Wait until something happened, or the process ended; importing torch may take long."""
    for _ in range(6000):
        if happened() or process.poll() is not None:
            return
        time.sleep(0.01)


def test_two_processes_at_once_download_once(tmp_path, hub):
    hub.add(REPO, FILE, toy_bytes(tmp_path)).delay = 0.5
    with another_process(tmp_path, f"hf://{REPO}/{FILE}") as other:
        # The other one's HEAD says that it holds the lock; its download takes long enough to run into it.
        until(lambda: hub.requests, other)
        check_toy(load(record())[0])
        assert other.communicate(timeout=60)[0].split() == ["3.0", "True"]
    assert sum(method == "GET" and FILE in path for method, path, _ in hub.requests) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("ending", "value"), [("SIGINT", 1.0), ("SIGKILL", 2.0)])
def test_what_an_interrupted_process_leaves_is_gone_on_with(tmp_path, hub, cache, ending, value):
    """By Ctrl-C, or killed; the second time, the file has changed meanwhile, and is fetched anew."""
    file = hub.add(REPO, FILE, toy_bytes(tmp_path, padding=200_000))
    file.cut_after, file.fault = 100_000, "stall"
    source = f"{hub.url}/{REPO}/{FILE}"
    with another_process(tmp_path, source) as other:
        until(lambda: any(path.stat().st_size for path in cache.rglob(FILE)), other)
        asked = time.monotonic()
        other.send_signal(signal.Signals[ending])
        out, err = other.communicate(timeout=60)
        assert time.monotonic() - asked < 5 and other.returncode and not out
        assert ending == "SIGKILL" or err.rstrip().endswith("KeyboardInterrupt")
    (partial,) = cache.rglob(FILE)
    there = partial.stat().st_size
    assert 0 < there <= 100_000
    assert not list(cache.glob("*.safetensors")) and not (cache / "pins").exists()
    file.data = toy_bytes(tmp_path, value, padding=200_000)
    file.etag = hashlib.sha256(file.data).hexdigest()
    check_toy(load(record(source=source))[0], value)
    assert hub.ranges() == [None, f"bytes={there}-"] and leftovers(cache) == []


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


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_a_mirror_holds_the_files_of_the_web_by_host(tmp_path, hub, monkeypatch, kind):
    data = toy_bytes(tmp_path)
    path = "zenodo.example/records/17/files/my toy.pth"
    hub.files["zenodo.example/records", "17/files/my%20toy.pth"] = hub.add(REPO, FILE, data)
    (tmp_path / "mirror" / path).parent.mkdir(parents=True)
    (tmp_path / "mirror" / path).write_bytes(data)
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror") if kind == "folder" else hub.url)
    source = "https://zenodo.example/records/17/files/my%20toy.pth?download=1"
    check_toy(load(record(source=source, md5=hashlib.md5(data).hexdigest()))[0])
    assert [path for _, path, _ in hub.requests] == (["/" + path.replace(" ", "%20")] if kind == "http" else [])


def test_the_password_of_a_mirror_is_not_shown(hub, monkeypatch):
    monkeypatch.setenv("EO_ZOO_MIRROR", hub.url.replace("//", "//user:SECRET@"))
    with pytest.raises(DownloadError, match=f"404.*Fetch {hub.url}/{REPO}/{FILE} by hand") as caught:
        load(record())
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert hub.headers[0]["authorization"].startswith("Basic ")


def test_faults_of_a_mirror(tmp_path, hub, cache, monkeypatch):
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="there is no file"):
        load(record())
    monkeypatch.setenv("EO_ZOO_MIRROR", hub.url)
    with pytest.raises(DownloadError, match=r"no such file .404"):
        load(record())
    file = hub.add(REPO, FILE, toy_bytes(tmp_path))
    file.cut_after, file.cuts, file.ranges = 50, 99, False
    with pytest.raises(DownloadError, match=r"the connection failed \(IncompleteRead\(50 bytes"):
        load(record())
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline mode"):
        load(record())
    assert list(cache.glob("*.safetensors")) == [] and not (cache / "pins").exists()
