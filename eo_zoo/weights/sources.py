"""How a record's file is fetched, one function for each scheme, and what a failure is called.

A source finds or downloads the file and reports what its origin says of it; `eo_zoo.weights` checks it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from eo_zoo.errors import DownloadError
from eo_zoo.weights import cache

if TYPE_CHECKING:
    from eo_zoo.weights import Record

logger = logging.getLogger(__name__)

#: Files that come with the package.
DATA = Path(__file__).parents[1] / "data"
#: Schemes of files that are on this machine already: no download, no pin, no mirror.
LOCAL = ("package", "file")


@dataclass(frozen=True)
class Fetched:
    """What a source gives: a local file, and what its origin states about it."""

    path: Path
    sha256: str | None = None
    commit: str | None = None


def fetch(root: Path, record: Record, expected: str | None) -> Fetched:
    """Find or download a record's file. ``expected`` is its SHA-256, where one is known.

    Raises:
        DownloadError: it is nowhere, or cannot be fetched.
        WeightsError: the origin states another SHA-256 than the expected one.
    """
    if os.environ.get("EO_ZOO_MIRROR") and record.scheme not in LOCAL:
        return from_mirror(root, record, expected)
    if record.scheme not in SOURCES:
        raise DownloadError(f"{record.name}: cannot fetch {record.source}; schemes: {', '.join(SOURCES)}")
    return SOURCES[record.scheme](root, record, expected)


def offline() -> str | None:
    """The environment variable that turns the network off, if one does."""
    for name in ("EO_ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            return name
    return None


def from_package(root: Path, record: Record, expected: str | None) -> Fetched:
    """package://FILE, in the package's data folder."""
    return _existing(record, DATA / record.address)


def from_file(root: Path, record: Record, expected: str | None) -> Fetched:
    """file:///PATH."""
    return _existing(record, Path(record.address))


def _existing(record: Record, path: Path) -> Fetched:
    if not path.is_file():
        raise DownloadError(f"{record.name}: there is no file {path}")
    return Fetched(path)


def from_hub(root: Path, record: Record, expected: str | None) -> Fetched:
    """hf://OWNER/REPO/PATH: from the user's Hugging Face cache, else from the Hub."""
    import huggingface_hub as hub

    owner, name, filename = record.address.split("/", 2)
    repo, endpoint = f"{owner}/{name}", os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hub.hf_hub_url(repo, filename, revision=record.revision, endpoint=endpoint)
    cached = hub.try_to_load_from_cache(repo, filename, revision=record.revision)
    if isinstance(cached, str):
        # huggingface_hub stores a file under the hash that the Hub stated for it, and links to it.
        blob = Path(cached).resolve().name
        if cache.is_sha256(blob) and blob == (expected or blob):
            return Fetched(Path(cached), blob)
    _require_online(root, record, url)
    with told(root, record, url):
        facts = hub.get_hf_file_metadata(url)
        stated = facts.etag if cache.is_sha256(facts.etag) else None
        if stated:  # compared here already, to save the download
            cache.require_same(root, record, stated, expected)
        logger.info("fetching %s", url)
        path = hub.hf_hub_download(
            repo,
            filename,
            revision=record.revision,
            endpoint=endpoint,
            local_dir=cache.workspace(root, record),
        )
    return Fetched(Path(path), stated, facts.commit_hash)


def from_mirror(root: Path, record: Record, expected: str | None) -> Fetched:
    """$EO_ZOO_MIRROR, a folder or an http(s) address, followed by the source's own path."""
    mirror = os.environ["EO_ZOO_MIRROR"]
    if not mirror.startswith(("http://", "https://")):
        return _existing(record, Path(mirror).expanduser() / record.address)
    url = f"{mirror.rstrip('/')}/{quote(record.address)}"
    _require_online(root, record, url)
    path = cache.workspace(root, record) / Path(record.address).name
    with told(root, record, url):
        path.parent.mkdir(parents=True, exist_ok=True)
        _stream(url, path)
    return Fetched(path)


def _stream(url: str, path: Path) -> None:
    import requests
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    # identity: with compression on the way, Content-Length would not be the file's
    with (
        requests.get(url, stream=True, timeout=(10, 60), headers={"Accept-Encoding": "identity"}) as response,
        path.open("wb") as file,
    ):
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
            for chunk in response.iter_content(1 << 20):
                bar.update(file.write(chunk))
    if size is not None and path.stat().st_size != size:
        raise OSError(f"the connection ended after {path.stat().st_size} of {size} bytes")


#: By what comes before ``://``; given the cache folder, the record and the expected SHA-256.
SOURCES: dict[str, Callable[[Path, Record, str | None], Fetched]] = {
    "hf": from_hub,
    "package": from_package,
    "file": from_file,
}


# ---------------------------------------------------------------------------------------- what went wrong


def _by_hand(url: str) -> str:
    ways = "weights=PATH, pretrained_cfg_overlay=dict(file=PATH) or --weights PATH"
    return f"Fetch {url} by hand and pass it as {ways}"


def _require_online(root: Path, record: Record, url: str) -> None:
    variable = offline()
    if variable:
        raise DownloadError(f"{record.name} is not in {root}, and offline mode is on ({variable}). {_by_hand(url)}")


@contextlib.contextmanager
def told(root: Path, record: Record, url: str) -> Iterator[None]:
    """Turn any failure of the network or the disk into one sentence.

    Raises:
        DownloadError: with the reason, and what to do instead.
    """
    from huggingface_hub import errors

    # HTTPError is that of the HTTP library below huggingface_hub (requests, httpx, httpx2), and the root of
    # its network errors where those are not OSErrors. hf_xet raises RuntimeError.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined, unused-ignore]
    try:
        yield
    except (OSError, RuntimeError, http_error) as error:
        raise DownloadError(f"{record.name} could not be fetched: {_reason(root, error)}. {_by_hand(url)}") from error


def _reason(root: Path, error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and error.__cause__ is not None:
        return _reason(root, error.__cause__)
    if status == 404:
        return "there is no such file (404)"
    if status in (401, 403):
        return f"access is refused ({status}): the repository is gated, private or gone; try `hf auth login`"
    if status == 429:
        return "too many requests (429): wait some minutes and try again"
    if status is not None:
        return f"the server answers with an error ({status}): try again later"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {root} is full"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"the cache folder {root} cannot be written: set EO_ZOO_CACHE to another"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"the connection failed ({type(error).__name__}: {first})"
