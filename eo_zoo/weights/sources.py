"""How a record's file is fetched, one function for each scheme, and what a failure is called.

A source finds or downloads the file and reports what its origin says of it; `eo_zoo.weights` checks it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.weights import cache, download, github

if TYPE_CHECKING:
    from eo_zoo.weights import Record

#: Files that come with the package.
DATA = Path(__file__).parents[1] / "data"
#: Schemes of files that are on this machine already: no download, no pin, no mirror.
LOCAL = ("package", "file")


@dataclass(frozen=True)
class Fetched:
    """What a source gives: a local file, or what was made of it before, and what its origin states about it."""

    path: Path
    sha256: str | None = None
    commit: str | None = None
    size: int | None = None  # bytes, where the path is of a conversion


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


@dataclass(frozen=True)
class Access:
    """How the network may be reached; see `access`."""

    token: str | bool | None = None
    offline: bool = False


_EVERYBODY = Access()
_ACCESS: ContextVar[Access] = ContextVar("access", default=_EVERYBODY)


@contextlib.contextmanager
def access(*, token: str | bool | None = None, offline: bool = False) -> Iterator[None]:
    """While it holds, the Hub gets this token (False: none; None: that of ``hf auth login``), or nothing is asked."""
    before = _ACCESS.set(Access(token, offline))
    try:
        yield
    finally:
        _ACCESS.reset(before)


def offline() -> str | None:
    """What turns the network off, an environment variable or an argument, if anything does."""
    if _ACCESS.get().offline:
        return "local_files_only"
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
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers

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
        token = _ACCESS.get().token
        try:
            facts = download.patiently(record.name, lambda: hub.get_hf_file_metadata(url, token=token))
        except EntryNotFoundError:
            user = record.name.endswith(".hub")
            pickles = "; a pickle, as pytorch_model.bin, is not read in its place" if user else ""
            raise DownloadError(f"{repo} holds no {filename} at {record.revision} (404){pickles}") from None
        stated = facts.etag if cache.is_sha256(facts.etag) else None
        if stated:  # compared here already, to save the download
            cache.require_same(root, record, stated, expected)
            kept = cache.conversion(root, Path(record.address).stem, stated, record.layout)
            if cache.converted(kept, stated, record.layout):  # of another commit that holds the same file
                return Fetched(kept, stated, facts.commit_hash, facts.size)
        # of a file without a hash, old releases of huggingface_hub give the size of the redirection
        size = facts.size if stated else None
        path = _download(root, record, url, size=size, headers=build_hf_headers(token=token))
    return Fetched(path, stated, facts.commit_hash)


def fresh(
    repository: str,
    path: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force: bool = False,
) -> Path:
    """A small file of a repository on the Hub, in huggingface_hub's own cache.

    It is as it is there now, or, where the network is off or fails, as it was when it was last fetched.

    Raises:
        InputError: the repository's name cannot be one.
        DownloadError: it cannot be fetched, or is not there.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    what, off = f"{path} of {repository}", offline()
    place = Path(cache_dir or hub.constants.HF_HUB_CACHE)

    def attempt() -> Path:
        try:
            found = hub.hf_hub_download(
                repository,
                path,
                revision=revision,
                cache_dir=place,
                force_download=force and not off,
                local_files_only=off is not None,
                token=_ACCESS.get().token,
                endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            )
            return Path(str(found))
        except LocalEntryNotFoundError as error:
            # so it calls whatever went wrong
            raise error.__cause__ if isinstance(error.__cause__, (OSError, download.http_error())) else error from None

    try:
        return download.patiently(what, attempt)
    except HFValidationError as error:
        raise InputError(f"'{repository}' cannot be OWNER/NAME of a repository on the Hub: {error}") from None
    except (OSError, DownloadError, download.http_error()) as error:
        why = f"offline mode is on ({off})" if off else _reason(place, error, "HF_HOME")
        raise DownloadError(
            f"{what} is not in {place} and could not be fetched: {why}. Give OWNER/NAME of a repository that "
            "push_to_hub wrote, or the path of such a folder"
        ) from None


def from_web(root: Path, record: Record, expected: str | None) -> Fetched:
    """https://HOST/PATH?QUERY: Zenodo, any server."""
    _require_online(root, record, record.source)
    with told(root, record, record.source):
        return Fetched(_download(root, record, record.source))


def from_github(root: Path, record: Record, expected: str | None) -> Fetched:
    """github://OWNER/REPO/TAG[/ASSET]: an asset of a release, found by GitHub's API."""
    release = github.parse(record.source)
    _require_online(root, record, release.page)
    with told(root, record, release.page):
        asset = github.find(release, name=record.name)
        if asset.sha256:  # compared here already, to save the download
            cache.require_same(root, record, asset.sha256, expected)
        path = _download(root, record, asset.url, size=asset.size)
    return Fetched(path, asset.sha256)


def from_mirror(root: Path, record: Record, expected: str | None) -> Fetched:
    """$EO_ZOO_MIRROR, a folder or an http(s) address, followed by the record's address.

    That is OWNER/REPO/PATH for the Hub and, so that two servers' files never meet, HOST/PATH for the web and for
    GitHub: github.com/OWNER/REPO/releases/download/TAG/ASSET, an asset that is not named as REPO-TAG.pth.
    """
    mirror = os.environ["EO_ZOO_MIRROR"]
    if not mirror.startswith(("http://", "https://")):
        return _existing(record, Path(mirror).expanduser() / record.address)
    url = f"{mirror.rstrip('/')}/{quote(record.address)}"
    _require_online(root, record, url)
    with told(root, record, url):
        return Fetched(_download(root, record, url))


def _download(
    root: Path, record: Record, url: str, *, size: int | None = None, headers: Mapping[str, str] | None = None
) -> Path:
    path = cache.workspace(root, record) / Path(record.address).name
    hashed = bool(record.sha256 or record.md5)
    download.fetch(url, path, name=record.name, size=record.size or size, hashed=hashed, headers=headers)
    return path


#: By what comes before ``://``; given the cache folder, the record and the expected SHA-256.
SOURCES: dict[str, Callable[[Path, Record, str | None], Fetched]] = {
    "hf": from_hub,
    "github": from_github,
    "https": from_web,
    "http": from_web,
    "package": from_package,
    "file": from_file,
}


# ---------------------------------------------------------------------------------------- what went wrong


def _by_hand(url: str) -> str:
    ways = "weights=PATH, pretrained_cfg_overlay=dict(file=PATH) or --weights PATH"
    return f"Fetch {download.shown(url)} by hand and pass it as {ways}"


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
    try:
        yield
    except (OSError, DownloadError, download.http_error()) as error:
        # from None: a traceback through requests would show the queries of redirections, which may be secret
        raise DownloadError(f"{record.name} could not be fetched: {_reason(root, error)}. {_by_hand(url)}") from None


def _reason(root: Path, error: BaseException, variable: str = "EO_ZOO_CACHE") -> str:
    # requests wraps what the system says of the network, so a number is of the disk
    if not isinstance(error, OSError) or error.errno is None:
        return download.reason(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {root} is full: make room, or set {variable} to another folder"
    return f"the cache folder {root} cannot be written: set {variable} to another ({error.strerror})"
