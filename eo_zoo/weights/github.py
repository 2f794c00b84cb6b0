"""Assets of GitHub releases: how one is addressed, and what GitHub's REST API says of it.

    github://OWNER/REPO/TAG          the one .pth, .pt or .safetensors asset of the release
    github://OWNER/REPO/TAG/ASSET    the asset of this name; a slash in a tag is written %2F

The API is asked without an account, which GitHub allows 60 times an hour from one network address. A token in
GITHUB_TOKEN or GH_TOKEN raises that; it is sent to the API alone, not to where the assets are. GITHUB_API_URL names
another API than https://api.github.com, as GitHub's own actions do.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.weights import download

if TYPE_CHECKING:
    import requests

SCHEME = "github://"
ENDINGS = (".pth", ".pt", ".safetensors")
HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


@dataclass(frozen=True)
class Release:
    """What an address names."""

    owner: str
    repo: str
    tag: str
    asset: str | None  # None: the only one that holds weights

    def __str__(self) -> str:
        """For messages."""
        return f"release {self.tag} of {self.owner}/{self.repo}"

    @property
    def page(self) -> str:
        """Where a person finds it."""
        return f"https://github.com/{self.owner}/{self.repo}/releases/tag/{quote(self.tag)}"

    @property
    def path(self) -> str:
        """Host and path of the asset, as a mirror holds it: one that is not named lies there as REPO-TAG.pth.

        Its real name would have to be asked for, and is the server's choice, which no file here should depend on.
        """
        name = self.asset or f"{self.repo}-{self.tag.replace('/', '-')}.pth"
        return f"github.com/{self.owner}/{self.repo}/releases/download/{self.tag}/{name}"


@dataclass(frozen=True)
class Asset:
    """A file of a release."""

    name: str
    url: str
    size: int  # bytes
    sha256: str | None  # GitHub states none for what was uploaded before June 2025
    state: str  # "uploaded", or that of an upload which has failed or is under way


def parse(source: str) -> Release:
    """The parts of a ``github://`` address.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"github://([\w.-]+)/([\w.-]+)/([^/]+)(?:/([\w+-][\w.+-]*))?", source)
    if found is None:
        raise InputError(
            f"{source} names no release: expected github://OWNER/REPO/TAG or github://OWNER/REPO/TAG/ASSET"
        )
    owner, repo, tag, asset = found.groups()
    return Release(owner, repo, unquote(tag), asset)


def find(release: Release, *, name: str) -> Asset:
    """Ask the API for the asset that is meant.

    Args:
        release: what to look for.
        name: for whose weights, for messages.

    Raises:
        DownloadError: no such release, none or several assets that fit, an unfinished upload, the limit of requests.
        OSError: the network failed for good (then it is one of requests').
    """
    base = os.environ.get("GITHUB_API_URL", "").rstrip("/") or "https://api.github.com"
    if not download.protected(base):
        raise DownloadError(f"GITHUB_API_URL is {download.shown(base)}, expected an address with https://")
    url = f"{base}/repos/{release.owner}/{release.repo}/releases/tags/{quote(release.tag, safe='')}"
    answer = download.patiently(name, lambda: _ask(release, url))
    try:
        assets = [_asset(entry) for entry in answer["assets"]]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise DownloadError(f"{download.shown(url)} answers, but not with a release") from None
    chosen = _choose(release, assets)
    return replace(chosen, url=download.redirected(url, chosen.url))


def _ask(release: Release, url: str) -> Any:
    import requests

    token = _token()
    own = {"Authorization": f"Bearer {token}"} if token else {}
    with download.opened(url, HEADERS, own) as response:
        if refusal := _refusal(release, response, token is not None):
            raise DownloadError(refusal)
        if response.status_code != 200:
            raise requests.HTTPError(response=response)
        try:
            return response.json()
        except requests.JSONDecodeError:
            raise DownloadError(
                f"{download.shown(url)} answers with a page instead of JSON: a login on the way to the network?"
            ) from None


def _token() -> str | None:
    token = (os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or "").strip()
    # requests would quote a header that cannot be sent, and so the token, in its error
    if not re.fullmatch("[!-~]*", token):
        raise DownloadError("GITHUB_TOKEN or GH_TOKEN holds no token: there are spaces or foreign letters in it")
    return token or None


def _refusal(release: Release, response: requests.Response, token: bool) -> str | None:
    """Why it is of no use to ask again, or None."""
    status, headers = response.status_code, response.headers
    if status == 404:
        return f"there is no public {release}: {download.shown(response.url)} answers 404"
    if status == 401 and token:
        return "the token in GITHUB_TOKEN or GH_TOKEN is refused (401): renew it, or ask without one"
    if status in (403, 429) and headers.get("X-RateLimit-Remaining") == "0":
        more = "" if token else ", or at once with a token in GITHUB_TOKEN, which raises the limit"
        return f"GitHub's limit of requests is reached ({status}): try again {_when(headers)}{more}"
    if status == 403:
        return "GitHub refuses to answer (403): after many requests try again in some minutes"
    return None


def _when(headers: Any) -> str:
    # of a moment beyond the calendar each platform says something else
    with contextlib.suppress(OverflowError, ValueError, OSError):
        if seconds := download.number(headers.get("X-RateLimit-Reset")):
            return f"after {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    return "in an hour"


def _asset(entry: Mapping[str, Any]) -> Asset:
    stated = re.fullmatch("sha256:([0-9a-f]{64})", entry.get("digest") or "")
    return Asset(
        name=str(entry["name"]),
        url=str(entry["browser_download_url"]),
        size=int(entry["size"]),
        sha256=stated[1] if stated else None,
        state=str(entry["state"]),
    )


def _choose(release: Release, assets: Sequence[Asset]) -> Asset:
    if release.asset:
        fitting = [one for one in assets if one.name == release.asset]
    else:
        fitting = [one for one in assets if one.name.lower().endswith(ENDINGS)]
    whole = [one for one in fitting if one.state == "uploaded"]
    if len(whole) == 1:
        return whole[0]
    names = ", ".join(one.name for one in whole or fitting or assets)
    if whole:
        example = f"{SCHEME}{release.owner}/{release.repo}/{quote(release.tag, safe='')}/{whole[0].name}"
        raise DownloadError(
            f'{release} holds {len(whole)} files of weights, {names}: name one, weights="{example}" (--weights)'
        )
    if fitting:
        raise DownloadError(f"the upload of {names} to {release} is not finished ({fitting[0].state}): try again later")
    wanted = f"asset {release.asset}" if release.asset else f"{', '.join(ENDINGS[:2])} or {ENDINGS[2]} asset"
    raise DownloadError(f"{release} holds no {wanted}, only {names or 'the source code'}")
