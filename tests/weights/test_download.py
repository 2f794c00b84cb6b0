"""The downloader against every fault that a server, a network or a disk has."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import sys
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from eo_zoo.errors import DownloadError, WeightsError
from eo_zoo.weights import download
from tests.hub_server import HubServer

DATA = bytes(range(100))
PATH = ("some/where", "file.pth")


@pytest.fixture
def file(hub, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 10)
    return hub.add(*PATH, DATA)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "work" / "file.pth"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited, without waiting."""
    seen = []
    monkeypatch.setattr(download.time, "sleep", seen.append)
    return seen


def address(hub: HubServer) -> str:
    return f"{hub.url}/{'/'.join(PATH)}?download=1"


def fetch(hub: HubServer, place: Path, **kwargs) -> bytes:
    download.fetch(address(hub), place, name="toy", **kwargs)
    return place.read_bytes()


def half(hub: HubServer, file, place: Path, monkeypatch) -> None:
    """What a process that was killed halfway leaves."""
    file.cut_after, file.cuts = 50, 1
    with monkeypatch.context() as patch:
        patch.setattr(download, "TRIES", 1)
        with pytest.raises(requests.RequestException):
            fetch(hub, place)
    assert place.read_bytes() == DATA[:50]
    hub.requests.clear()


def changed(file) -> bytes:
    """Another version of the same size under the same name."""
    file.data, file.etag = DATA[::-1], "f" * 64
    return file.data


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("fault", ["close", "reset", "stall"])
def test_a_broken_connection_is_gone_on_with(hub, file, place, monkeypatch, fault):
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.3))
    file.cut_after, file.fault = 50, fault
    assert fetch(hub, place) == DATA
    spans = hub.ranges()
    # what a reset finds on the way is lost, on some systems
    assert spans[0] is None and spans[1:] in (["bytes=50-"], [None])
    assert fault == "reset" or spans[1] == "bytes=50-"


def test_as_long_as_bytes_come_it_is_tried_again(hub, file, place):
    file.cut_after, file.cuts = 10, 99
    assert fetch(hub, place) == DATA
    assert hub.count("GET") == 10 > download.TRIES


def test_a_later_call_goes_on(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    assert fetch(hub, place) == DATA
    assert hub.ranges() == ["bytes=50-"] and hub.headers[-1]["if-range"] == f'"{file.etag}"'


def test_a_whole_file_costs_one_byte(hub, file, place):
    fetch(hub, place)
    assert fetch(hub, place) == DATA
    assert hub.ranges() == [None, "bytes=99-"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_changed_file_is_fetched_anew(hub, file, place, monkeypatch, whole):
    fetch(hub, place) if whole else half(hub, file, place, monkeypatch)
    new = changed(file)
    assert fetch(hub, place) == new


def test_nothing_is_glued_even_if_the_server_ignores_if_range(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    file.careless = True
    new = changed(file)
    assert fetch(hub, place) == new
    assert hub.ranges() == ["bytes=50-", None]


def test_a_file_that_shrank_is_fetched_anew(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    file.careless, file.data = True, DATA[:20]  # so that it answers 416
    assert fetch(hub, place) == DATA[:20]
    assert hub.ranges() == ["bytes=50-", None]


def test_a_server_without_ranges_sends_all_again(hub, file, place):
    file.ranges, file.cut_after = False, 50
    assert fetch(hub, place) == DATA
    assert hub.ranges() == [None, "bytes=50-"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_gone_on_with(hub, file, place, tag):
    file.tag, file.cut_after = tag, 50
    assert fetch(hub, place) == DATA
    assert hub.ranges() == [None, None]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_with_size_and_hash_known_no_tag_is_needed(hub, file, place, tag):
    file.tag, file.cut_after = tag, 50
    assert fetch(hub, place, size=len(DATA), hashed=True) == DATA
    assert hub.ranges() == [None, "bytes=50-"] and "if-range" not in hub.headers[-1]


def test_what_came_from_elsewhere_is_not_gone_on_with(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    hub.add("other/place", PATH[1], DATA)
    download.fetch(f"{hub.url}/other/place/{PATH[1]}", place, name="toy")
    assert place.read_bytes() == DATA and hub.ranges() == [None]


@pytest.mark.parametrize("notes", ["", "[]", "{}"])
def test_damaged_notes_mean_a_new_start(hub, file, place, monkeypatch, notes):
    half(hub, file, place, monkeypatch)
    (place.parent / "file.pth.json").write_text(notes)
    assert fetch(hub, place) == DATA
    assert hub.ranges() == [None]


@pytest.mark.parametrize("same", [True, False])
def test_more_bytes_than_there_should_be_do_not_stay(hub, file, place, same):
    fetch(hub, place)
    place.write_bytes(DATA + b"more")
    expected = DATA if same else changed(file)
    assert fetch(hub, place) == expected
    assert hub.ranges() == [None, None]


def test_a_server_that_does_not_tell_the_length(hub, file, place):
    file.chunked, file.cut_after = True, 50
    assert fetch(hub, place) == DATA
    assert hub.ranges() == [None, "bytes=50-"]
    assert json.loads((place.parent / "file.pth.json").read_text())["size"] is None
    assert fetch(hub, place, size=100) == DATA  # what is there may be all, and then there is nothing to go on with
    assert hub.ranges()[2:] == ["bytes=100-", None]


def test_a_server_that_neither_tells_the_length_nor_sends_all(hub, file, place, waits):
    file.chunked = True
    with pytest.raises(requests.ConnectionError, match="ended after 100 of 200 bytes"):
        fetch(hub, place, size=200)
    assert len(waits) == 4


# ------------------------------------------------------------------------------------------------ sizes and pages


@pytest.mark.parametrize("data", [DATA, b""])
def test_a_wrong_size_is_told_before_anything_is_written(hub, file, place, data):
    file.data = data
    with pytest.raises(WeightsError, match=f"file.pth has {len(data)} bytes, toy has 5: not used"):
        fetch(hub, place, size=5)
    assert not place.exists() and hub.count("GET") == 1


def test_a_stream_without_end_is_left(hub, file, place):
    file.chunked = True
    with pytest.raises(WeightsError, match="sends more than the 35 bytes of toy"):
        fetch(hub, place, size=35)
    assert len(place.read_bytes()) < 60


def test_a_web_page_instead_of_the_file(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    file.ranges, file.sent, file.headers = False, b"<html>Welcome to our hotel</html>", (("Content-Type", "text/html"),)
    with pytest.raises(DownloadError, match="a web page came instead of the file"):
        fetch(hub, place)
    assert hub.count("GET") == 1
    file.ranges, file.sent, file.headers = True, None, ()
    assert fetch(hub, place) == DATA
    assert hub.ranges()[-1] == "bytes=50-"  # in the hotel it went on; what was there is still good


# ----------------------------------------------------------------------------------------------------- patience


def test_passing_faults_are_waited_out(hub, file, place, waits, caplog):
    file.failures = [429, 500, 502, 503]
    assert fetch(hub, place) == DATA
    assert waits == [0.01, 0.02, 0.04, 0.08]
    assert [entry.levelname for entry in caplog.records] == ["WARNING"] * 4
    assert "toy: the server answers with an error (503)" in caplog.text


def test_after_five_tries_it_is_an_error(hub, file, place, waits):
    file.failures = [504] * 99
    with pytest.raises(requests.HTTPError) as caught:
        fetch(hub, place)
    assert "(504)" in download.reason(caught.value)
    assert hub.count("GET") == 5 and len(waits) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_what_will_not_pass_is_not_tried_again(hub, file, place, waits, status):
    file.status = status
    with pytest.raises(requests.HTTPError) as caught:
        fetch(hub, place)
    assert f"({status})" in download.reason(caught.value)
    assert hub.count("GET") == 1 and not waits


def test_a_certificate_that_is_not_trusted_is_not_tried_again(hub, place, waits, monkeypatch):
    asked = []

    def get(url, **_):
        asked.append(url)
        raise requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(requests.exceptions.SSLError):
        fetch(hub, place)
    assert len(asked) == 1 and not waits


def test_nobody_answers(place, waits):
    with pytest.raises(requests.ConnectionError) as caught:
        download.fetch("http://127.0.0.1:9/a/b/c", place, name="toy")
    assert "the connection failed" in download.reason(caught.value) and "refused" in download.reason(caught.value)
    assert len(waits) == 4


@pytest.mark.parametrize(
    ("after", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0.01, 0.01),
        (30, 27, 31),  # a date, so many seconds from now
        (-30, 0.01, 0.01),
        ("soon", 0.01, 0.01),
        ("9" * 5000, 0.01, 0.01),
        ("Mon, 99 Foo 99999999999999 99:99:99 GMT", 0.01, 0.01),
    ],
)
def test_the_server_says_when(hub, file, place, waits, after, low, high):
    file.failures = [503]
    date = after if isinstance(after, str) else formatdate(time.time() + after, usegmt=True)
    file.headers = (("Retry-After", date),)
    assert fetch(hub, place) == DATA
    assert len(waits) == 1 and low <= waits[0] <= high


def test_a_date_is_by_the_clock_of_the_server(hub, file, place, waits, monkeypatch):
    file.failures, file.headers = [503], (("Retry-After", formatdate(time.time() + 30, usegmt=True)),)
    monkeypatch.setattr(download, "time", SimpleNamespace(time=lambda: 0.0, sleep=waits.append))
    assert fetch(hub, place) == DATA
    assert 27 <= waits[0] <= 31


@pytest.mark.parametrize("after", ["7200", 7200])
def test_too_long_a_wait_is_said(hub, file, place, waits, after):
    date = after if isinstance(after, str) else formatdate(time.time() + after, usegmt=True)
    file.failures, file.headers = [429], (("Retry-After", date),)
    with pytest.raises(DownloadError, match=r"asks to wait (119|120) minutes .429.: try again then"):
        fetch(hub, place)
    assert not waits


# -------------------------------------------------------------------------------------------- redirects and secrets


@pytest.fixture
def elsewhere(file, hub):
    """Another host with the same file, to which the first one sends with a signature in the address."""
    with HubServer() as other:
        other.add("cdn/bucket", "blob", DATA)
        file.redirect = f"{other.url}/cdn/bucket/blob?signature=SECRET"
        yield other


def test_tokens_and_cookies_stay_with_the_first_host(hub, file, place, elsewhere, caplog):
    caplog.set_level(logging.DEBUG, "eo_zoo")
    file.headers = (("Set-Cookie", "session=SECRET"),)
    own = {"authorization": "Bearer SECRET", "x-own": "1"}
    assert fetch(hub, place, headers=own) == DATA
    assert hub.headers[0]["authorization"] == "Bearer SECRET" and "identity" in hub.headers[0]["accept-encoding"]
    assert not {"authorization", "cookie", "x-own"} & set(elsewhere.headers[0])
    assert "SECRET" not in caplog.text + (place.parent / "file.pth.json").read_text()


def test_on_one_host_the_token_is_kept(hub, file, place):
    hub.add("new/name", "file.pth", DATA)
    file.redirect = "/new/name/file.pth"
    assert fetch(hub, place, headers={"authorization": "Bearer x"}) == DATA
    assert hub.headers[1]["authorization"] == "Bearer x"


def test_a_token_does_not_come_back(hub, file, place, elsewhere):
    """First host, another, the first again: who sent us there is no longer the first."""
    hub.add("back/again", "file.pth", DATA)
    elsewhere.files["cdn/bucket", "blob"].redirect = f"{hub.url}/back/again/file.pth"
    assert fetch(hub, place, headers={"authorization": "Bearer x"}) == DATA
    assert "authorization" not in hub.headers[1]


@pytest.mark.parametrize("how", ["address", "netrc"])
def test_a_password_is_for_the_first_host(hub, file, place, elsewhere, tmp_path, monkeypatch, how):
    (tmp_path / "netrc").write_text("default login user password SECRET\n" if how == "netrc" else "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    url = address(hub).replace("//", "//user:SECRET@") if how == "address" else address(hub)
    download.fetch(url, place, name="toy")
    password = base64.b64encode(b"user:SECRET").decode()
    assert hub.headers[0]["authorization"] == f"Basic {password}"
    assert "authorization" not in elsewhere.headers[0]
    assert "SECRET" not in download.shown(url) and "SECRET" not in (place.parent / "file.pth.json").read_text()
    # ~/.netrc does not take the place of a token
    fetch(hub, place, headers={"Authorization": "Bearer token"})
    assert hub.headers[-1]["authorization"] == "Bearer token"


@pytest.mark.parametrize("fault", ["gone", "closed", "invalid"])
def test_a_signature_is_in_no_message(hub, file, place, elsewhere, fault, caplog):
    caplog.set_level(logging.DEBUG, "eo_zoo")
    if fault == "gone":
        elsewhere.files.clear()
    else:
        port = {"closed": 9, "invalid": 99999}[fault]
        file.redirect = f"http://user:SECRET@127.0.0.1:{port}/x?signature=SECRET"
    with pytest.raises(requests.RequestException) as caught:
        fetch(hub, place)
    assert "SECRET" not in download.reason(caught.value) + caplog.text


@pytest.mark.parametrize("to", ["{url}/some/where/file.pth", "/some/where/file.pth"])
def test_redirections_have_an_end(hub, file, place, to):
    file.redirect = to.format(url=hub.url)
    with pytest.raises(DownloadError, match="redirected more than 10 times"):
        fetch(hub, place)
    assert hub.count("GET") == 11


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("http://portal.example/login?id=SECRET", "http://portal.example/login, which is not https"),
        ("ftp://files.example/x", "ftp://files.example/x, which is not https"),
        ("file:///etc/passwd", "file:///etc/passwd, which is not https"),
        ("http://[", "an address that is none"),
        ("https://a..b/", "an address that is none"),
    ],
)
def test_a_redirection_never_leaves_https(place, monkeypatch, to, says):
    asked = []

    def get(url, **_):
        asked.append(url)
        answer = requests.Response()
        answer.status_code, answer.headers["Location"], answer.raw = 302, to, io.BytesIO()
        return answer

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(DownloadError, match="redirected to") as caught:
        download.fetch("https://zenodo.example/file.pth", place, name="toy")
    assert says in str(caught.value) and asked == ["https://zenodo.example/file.pth"]
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


# -------------------------------------------------------------------------------------------- disk and screen


def test_room_is_looked_for_before(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    disk = SimpleNamespace(free=49)
    asked = []
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: asked.append(path) or disk)
    with pytest.raises(DownloadError, match=r"needs 0.0 MB, and the disk of .* has 0.0 MB left: make room"):
        fetch(hub, place)
    assert place.read_bytes() == DATA[:50] and asked == [place.parent]
    disk.free = 50
    assert fetch(hub, place) == DATA


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk(hub, file, place, waits):
    place.parent.mkdir()
    place.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        fetch(hub, place)
    assert not waits


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_starts_from_what_is_there(hub, file, place, monkeypatch):
    half(hub, file, place, monkeypatch)
    monkeypatch.setattr(sys, "stderr", Terminal())
    fetch(hub, place)
    seen = sys.stderr.getvalue()
    assert "file.pth:  50%" in seen and "50.0/100" in seen and "file.pth: 100%" in seen


def test_without_a_terminal_or_by_choice_there_is_no_bar(hub, file, place, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    fetch(hub, place)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    disable_progress_bars()
    try:
        fetch(hub, place)
    finally:
        enable_progress_bars()
    assert sys.stderr.getvalue() == ""
