"""One http(s) file onto the disk: continued where it was left, redirected and repeated with care.

What is there already, of this call or of a process that was killed, is continued by a Range request, if the entity
tag says that the server still has the same version, or if the caller knows size and hash, which would show a mixed
file; else it is fetched anew. Whether the bytes are the right ones is for the caller to check.
"""

from __future__ import annotations

import calendar
import contextlib
import importlib.util
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from eo_zoo.errors import DownloadError, WeightsError
from eo_zoo.version import __version__

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Answers that may be another one in a moment.
PASSING = (429, 500, 502, 503, 504)
TRIES = 5  # in a row without a single new byte
FIRST_WAIT = 1.0  # seconds; doubled each time
LONGEST_WAIT = 120.0  # seconds that a server may ask for
REDIRECTS = 10
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
CHUNK = 1 << 16  # bytes; so many are lost when a connection breaks


def fetch(
    url: str,
    path: Path,
    *,
    name: str,
    size: int | None = None,
    hashed: bool = False,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Make ``path`` the whole file at ``url``, going on from what is there of it already.

    Args:
        url: http(s); the caller decides which hosts may do without the s.
        path: in a folder of its own, where notes on the download are kept beside it.
        name: whose file it is, for messages.
        size: bytes that it must have, where that is known.
        hashed: the caller has a hash to check it by.
        headers: for the first host alone, since they may hold a token.

    Raises:
        DownloadError: a web page came instead, a redirection is unsafe, there is no room, or the wait is too long.
        WeightsError: the file has another size.
        OSError: the network failed for good (then it is one of requests'), or the disk did.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("fetching %s", shown(url))
    patiently(name, lambda: _attempt(url, path, name, size, hashed, headers or {}), lambda: _length(path))


def shown(url: str) -> str:
    """An address for messages: without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def protected(url: str) -> bool:
    """Whether nobody on the way can read or change what is sent: https, or an address of this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))


# ------------------------------------------------------------------------------------------------ patience


def patiently(name: str, attempt: Callable[[], T], progress: Callable[[], int] = int) -> T:
    """What ``attempt`` gives in the end: passing faults of the network are waited out, any other is raised.

    Args:
        name: whose file it is, for messages.
        attempt: calls requests or huggingface_hub.
        progress: bytes so far; as long as they grow, it is tried again.

    Raises:
        DownloadError: the server asks to wait for too long, or requests is not installed.
    """
    # torch.hub asks for four packages only, and of these huggingface_hub brings requests no more
    if importlib.util.find_spec("requests") is None:
        raise DownloadError("downloads need the package 'requests', which is not installed: pip install requests")
    tries, reached = 0, progress()
    while True:
        try:
            return attempt()
        except (OSError, http_error()) as error:
            now = progress()
            tries, reached = (1, now) if now > reached else (tries + 1, reached)
            if tries == TRIES or not _passes(error):
                raise
            wait = max(FIRST_WAIT * 2 ** (tries - 1), _asked_wait(error))
            logger.warning("%s: %s; trying again in %.3g s", name, reason(error), wait)
        time.sleep(wait)


def http_error() -> type[Exception]:
    """The root of the errors of huggingface_hub's HTTP library: requests, httpx or httpx2."""
    from huggingface_hub import errors

    found: type[Exception] = errors.HTTPError  # type: ignore[attr-defined, unused-ignore]
    return found


def _passes(error: Exception) -> bool:
    """Whether a fault may be gone the next time."""
    import requests

    status = _status(error)
    if status is not None:
        return status in PASSING
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    # any other OSError is of the disk or of a wrong address; what is not one is huggingface_hub's network
    return isinstance(error, passing) or not isinstance(error, OSError)


def _asked_wait(error: Exception) -> float:
    """Seconds that the server asks to wait, by Retry-After: a number or a date."""
    response: Any = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    seconds = float(number(asked) or 0)
    if until := _moment(asked):
        # by the server's own clock, where it tells the time
        seconds = until - (_moment(response.headers.get("Date", "")) or time.time())
    if seconds > LONGEST_WAIT:
        raise DownloadError(f"the server asks to wait {seconds / 60:,.0f} minutes ({_status(error)}): try again then")
    return seconds


def _moment(date: str) -> float | None:
    parsed = parsedate(date)
    with contextlib.suppress(ValueError, OverflowError):
        return calendar.timegm(parsed) if parsed else None
    return None


def number(text: str | None) -> int | None:
    """The number that a header holds; None if it is not there or none."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: BaseException) -> str:
    """What went wrong, without the queries of addresses, which may be secret."""
    status, response = _status(error), getattr(error, "response", None)
    if status in (404, 410) and response is not None:
        code = response.headers.get("X-Error-Code")  # of the Hub
        what = {"RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(code, "file")
        return f"there is no such {what} ({status})"
    if status in (401, 403):
        return f"access is refused ({status}): gated, private or gone; for the Hugging Face Hub, try `hf auth login`"
    if status == 429:
        return "too many requests (429): wait some minutes and try again"
    if status is not None:
        return f"the server answers with an error ({status}): try again later"
    if isinstance(error, DownloadError):
        return str(error)
    # requests wraps what happened in up to three others, whose words hold whole addresses
    while inner := next((e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)), None):
        error = inner
    first = (str(error).strip().splitlines() or [""])[0]
    first = re.sub(r"""[?][^\s"')>]+|(?<=//)[^/\s]+@""", "", first)
    return f"the connection failed ({first or type(error).__name__})"


# ------------------------------------------------------------------------------------------------- one attempt


def _attempt(url: str, path: Path, name: str, size: int | None, hashed: bool, headers: Mapping[str, str]) -> None:
    import requests

    notes = _notes(path, url, hashed and size is not None)
    start = _start(path, notes)
    asked = {"Range": f"bytes={start}-"} if start else {}
    if start and notes["etag"].startswith('"'):
        asked["If-Range"] = notes["etag"]
    with opened(url, asked, headers) as response:
        if start and response.status_code in (206, 416):
            if not _goes_on(response, start, notes):
                path.unlink()
                raise requests.ConnectionError("the file changed while it was fetched")
        elif response.status_code == 200:
            start = 0
        else:
            raise requests.HTTPError(response=response)
        total = _total(response)
        total = size if total is None else total
        _require_the_file(response, total, name, size)
        if not start:
            path.write_bytes(b"")  # first, so that old bytes never stand beside the new tag
            notes = {"url": shown(url), "etag": response.headers.get("ETag", ""), "size": total}
            _notes_of(path).write_text(json.dumps(notes))
        _require_room(path, (total or 0) - start)
        _write(response, path, start, total)
    if total is not None and _length(path) > total:
        raise WeightsError(f"{shown(url)} sends more than the {total} bytes of {name}: not used")
    if total is not None and _length(path) < total:
        raise requests.ConnectionError(f"it ended after {_length(path)} of {total} bytes")


def _write(response: requests.Response, path: Path, start: int, total: int | None) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    bar = tqdm(
        desc=path.name,
        initial=start,
        total=total,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=are_progress_bars_disabled() or None,  # None: where stderr is no terminal
    )
    with bar, path.open("r+b") as file:
        file.seek(start)
        for chunk in response.iter_content(CHUNK):
            bar.update(file.write(chunk))
            if total is not None and file.tell() > total:
                return
        bar.leave = True


def opened(url: str, headers: Mapping[str, str], own: Mapping[str, str]) -> requests.Response:
    """The last answer of a chain of redirections; ``own`` headers, cookies and passwords stay with the first host."""
    import requests

    # identity: with compression on the way, lengths and ranges would not be the file's
    common = {"User-Agent": f"eo_zoo/{__version__}", "Accept-Encoding": "identity", **headers}
    # without a token requests looks for a password, in the address and in ~/.netrc
    auth = _no_password if "authorization" in map(str.lower, own) else None
    for _ in range(REDIRECTS + 1):
        response = requests.get(
            url, headers={**common, **own}, auth=auth, stream=True, allow_redirects=False, timeout=TIMEOUT
        )
        if not response.is_redirect:
            return response
        response.close()
        target = redirected(url, response.headers["Location"])
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            own, auth = {}, _no_password
        url = target
    raise DownloadError(f"it is redirected more than {REDIRECTS} times")


def _no_password(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def redirected(url: str, location: str) -> str:
    """The address that ``url`` refers to, as a redirection or in what it answers.

    Raises:
        DownloadError: it is none, or leaves https.
    """
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
        (urlsplit(target).hostname or "").encode("idna")  # requests raises urllib3's own error for some names
    except ValueError as error:
        raise DownloadError(f"it is redirected to an address that is none ({error})") from None
    if scheme != "https" and (scheme, urlsplit(url).scheme) != ("http", "http"):
        raise DownloadError(f"it is redirected to {shown(target)}, which is not https: a login page on the way?")
    return target


def _require_the_file(response: requests.Response, total: int | None, name: str, size: int | None) -> None:
    if "html" in response.headers.get("Content-Type", "").lower():
        raise DownloadError("a web page came instead of the file: a login on the way to the network, or an error page")
    if size is not None and total != size:
        raise WeightsError(f"{shown(response.url)} has {total} bytes, {name} has {size}: not used; is it another file?")


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DownloadError(
            f"it needs {needed / 1e6:,.1f} MB, and the disk of {path.parent} has {free / 1e6:,.1f} MB left: "
            "make room, or set EO_ZOO_CACHE to another folder"
        )


# ------------------------------------------------------------------------------------------- what is there already


def _notes_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _notes(path: Path, url: str, hashed: bool) -> dict[str, Any]:
    """Entity tag and size of the version that ``path`` is a part of; empty if nothing can be gone on with."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        notes = json.loads(_notes_of(path).read_text())
        # no tag, or a weak one, W/"...", does not promise the same bytes
        if notes["url"] == shown(url) and (hashed or notes["etag"].startswith('"')):
            return dict(notes)
    return {}


def _start(path: Path, notes: Mapping[str, Any]) -> int:
    """Where to go on: of a whole file the last byte is asked for again, to hear whether it is still the version."""
    length, total = _length(path), notes.get("size")
    if not notes or (total is not None and length > total):
        return 0
    return length if total is None else max(0, min(length, total - 1))


def _goes_on(response: requests.Response, start: int, notes: Mapping[str, Any]) -> bool:
    """Whether an answer is the rest of the version that is there already."""
    return (
        response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        and response.headers.get("ETag", "") == notes["etag"]
        and notes["size"] in (None, _total(response))
    )


def _total(response: requests.Response) -> int | None:
    """Bytes of the whole file, as far as the server says."""
    if response.status_code == 206:
        return number(response.headers.get("Content-Range", "").rpartition("/")[2])
    return number(response.headers.get("Content-Length"))


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
