"""A weight record to a verified local file to tensors: the one place that downloads or unpickles.

A file is fetched once, checked against the best hash that is known, mapped to our names, and kept as
safetensors under a name that carries its SHA-256; from then on its pages are mapped from the cache, without
network. What is in the cache was verified when it came and is not hashed again; of a local file, the hash is
remembered as long as its size, times and place on the disk stay the same.

Environment: EO_ZOO_CACHE (folder), EO_ZOO_OFFLINE, EO_ZOO_MIRROR (folder or http(s) address), of huggingface_hub
HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME, and for releases on GitHub GITHUB_TOKEN, GH_TOKEN and GITHUB_API_URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from torch import Tensor

from eo_zoo import sensors
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.files import replacing
from eo_zoo.weights import cache, download, github, sharded, sources, stored
from eo_zoo.weights.cache import cache_root
from eo_zoo.weights.checkpoint import check_fit
from eo_zoo.weights.sharded import read
from eo_zoo.weights.sound import require_sound

__all__ = [
    "RECORDS", "UNPUBLISHED", "Origin", "Record", "Task", "cache_root", "check_fit", "given", "hosted", "is_cached",
    "load", "pinned", "published", "read", "register", "require_published",
]  # fmt: skip

logger = logging.getLogger(__name__)

UNPUBLISHED = "unpublished"  # the tag of an architecture of which nobody has given out weights
Mapper = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """What the head of a tuned weight set answers, and how well by its paper."""

    kind: str  # "scene" (one class an image), "multi-label" or "segmentation"
    classes: tuple[str, ...]  # in the order of the logits
    data_set: str
    method: str  # "fine-tuned" or "linear probe"
    metric: str  # of the paper's result
    result: float | None  # per cent, as third parties quote the paper's tables; None where nobody does
    size: int  # pixels a side of the data set's images


@dataclass(frozen=True)
class Record:
    """One published weight set, as the family's file describes it."""

    name: str  # architecture.tag
    # hf://owner/repo/path, github://owner/repo/tag[/asset], https://host/path?query, package://file (in eo_zoo/data),
    # file:///path; "" if unpublished
    source: str
    layout: str  # family and version of its key table; "" for whatever the model reads
    licence: str
    title: str = ""
    sensors: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()  # canonical names of the bands it takes
    statistics: Mapping[str, str] = field(default_factory=dict, hash=False)  # sensor: recorded statistics
    # sensor: metres per pixel seen in training, lowest and highest
    gsd: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    trained_on: str = ""
    task: Task | None = None  # None: features only
    together: bool = False  # an image holds the bands of all its sensors, not of one of them
    # of a model that takes a dict: its keys, each with the named order of its bands (see sensors.get_order)
    inputs: Mapping[str, str] = field(default_factory=dict, hash=False)
    # how images come to the model's size: "bicubic" (torch's, antialiased) or "spline" (scikit-image's, of order 3)
    resize: str = "bicubic"
    crop: float = 1.0  # share of the resized shorter side that a centre crop keeps; 1: squeezed to a square instead
    paper: str = ""
    citation: str = ""
    repository: str = ""
    terms: str | None = None  # conditions, told once, at the first download
    redistributable: bool = True  # False: the licence forbids to host the weights elsewhere
    size: int | None = None  # bytes
    sha256: str | None = None
    md5: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse what would make a bad file name or never match."""
        published = not self.name.endswith(f".{UNPUBLISHED}")
        if not re.fullmatch(r"[\w.-]+", self.name) or published != ("://" in self.source):
            raise ValueError(f"not a weight record: name {self.name!r}, source {self.source!r}")
        if self.scheme == "http" and not download.protected(self.source):
            raise ValueError(f"{self.name}: weights come over https://, got {self.source!r}")
        if self.scheme == "github":
            github.parse(self.source)
        if self.sha256 is not None and not cache.is_sha256(self.sha256):
            raise ValueError(f"{self.name}: sha256 must be 64 lower-case hex digits, got {self.sha256!r}")

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical names of an image's bands in order, where nobody names any; of several inputs the first one's."""
        if self.inputs:
            return sensors.get_order(next(iter(self.inputs.values())))
        names = self.sensors if self.together else self.sensors[:1]
        return tuple(band for name in names for band in sensors.get_sensor(name).band_names)

    @property
    def scheme(self) -> str:
        """What comes before ``://`` in the source."""
        return self.source.partition("://")[0]

    @property
    def address(self) -> str:
        """What comes after ``://`` in the source: for the web host and path as a file's, without the query.

        Of a GitHub release this is where the asset lies on the web; see `github.Release.path` for one without a name.
        """
        if self.scheme == "github":
            return github.parse(self.source).path
        address = self.source.partition("://")[2]
        return unquote(address.partition("?")[0]) if self.scheme in ("https", "http") else address

    @property
    def key(self) -> str:
        """The architecture with a mark of where the file comes from: records of one file share its pin and its lock,
        those of two never do.
        """
        return (
            f"{self.name.partition('.')[0]}-{hashlib.sha256(f'{self.source}@{self.revision}'.encode()).hexdigest()[:8]}"
        )


@dataclass(frozen=True)
class Origin:
    """Where a model's weights came from; models carry it as ``weights_origin``."""

    name: str | None  # the record's; None for a local file
    source: str
    sha256: str  # of the official file, not of our conversion; empty for tensors given in memory
    verified: bool  # the hash is one that the publisher or the Hub states

    def __str__(self) -> str:
        """For logs and messages, in one line."""
        if not self.sha256:
            return f"{self.source} (unverified)"
        what = self.name or f"local file {self.source}"
        return f"{what} (sha256 {self.sha256[:8]}…, {'verified' if self.verified else 'unverified'})"


RECORDS: dict[str, Record] = {}


def register(*records: Record) -> None:
    """Make weight sets known by name.

    Raises:
        ValueError: a name is taken already.
    """
    for record in records:
        if record.name in RECORDS:
            raise ValueError(f"weights '{record.name}' are registered twice")
        RECORDS[record.name] = record


def pinned(record: Record, *, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """What this machine pinned at first use (sha256, size, commit, verified), or an empty dict."""
    return cache.read_pin(cache_root(cache_dir), record)


def given(source: str | Path, architecture: str) -> Record | Path:
    """What a user names as weights: a local file, or ``github://OWNER/REPO/TAG[/ASSET]``, an asset of a release there.

    Raises:
        InputError: the address names no release.
    """
    if str(source).startswith(github.SCHEME):
        return Record(f"{architecture}.github", str(source), layout="", licence="")
    return Path(source)


def hosted(
    architecture: str,
    repository: str,
    path: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    licence: str = "",
) -> Record:
    """The weights of a repository on the Hub, at the commit whose config.json was read: a branch may move on, and
    configuration and weights of two commits are not to be mixed.

    Args:
        architecture: what they are for.
        repository: OWNER/NAME.
        path: of the file; config.json lies beside it.
        revision: branch, tag or commit, "main" if not given.
        cache_dir: of huggingface_hub, where that is not its usual place.
        licence: of the weights.
    """
    from huggingface_hub import try_to_load_from_cache

    beside = str(PurePosixPath(path).with_name("config.json"))
    revision = getattr(revision, "resolved", revision)  # transformers 5 knows the commit already
    found = try_to_load_from_cache(repository, beside, cache_dir=cache_dir, revision=revision)
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", Path(found).as_posix()) if isinstance(found, str) else None
    return Record(
        f"{architecture}.hub",
        f"hf://{repository}/{path}",
        layout="",
        licence=licence,
        revision=commit[1] if commit else revision or "main",
    )


def published(path: Path, sha256: str, *, cache_dir: str | Path | None = None) -> dict[str, bool]:
    """The weight sets whose official file this is, and whether a publisher states it: by its SHA-256, of a record or
    pinned here, or by an md5 that is stated alone.
    """
    root, size, found = cache_root(cache_dir), path.stat().st_size, {}
    for name, record in RECORDS.items():
        if record.md5 and record.size == size and cache.digest(path, "md5") == record.md5:
            found[name] = True
            continue
        try:
            known, stated = cache.known_hash(root, record)
        except WeightsError:  # a damaged pin
            continue
        if known == sha256:
            found[name] = stated
    return found


def require_published(record: Record) -> None:
    """Raise InputError where nobody has given out weights of the record's architecture."""
    if not record.source:
        raise InputError(
            f"no weights are published for {record.name.partition('.')[0]}: pretrained=False gives random ones, and "
            "weights=PATH loads your own"
        )


def is_cached(record: Record, *, layout: str, cache_dir: str | Path | None = None) -> bool:
    """Whether `load` finds the record's tensors in the cache, with nothing to fetch or to convert."""
    return _cached(cache_root(cache_dir), record, layout) is not None


# ----------------------------------------------------------------------------- from record to file to tensors


def load(
    source: Record | str | Path, mapping: Mapper, *, layout: str, cache_dir: str | Path | None = None
) -> tuple[dict[str, Tensor], Origin]:
    """Tensors under our names, memory-mapped, and where they came from.

    The first time a file is seen it is read, mapped and kept as safetensors in the cache; then ``mapping``
    is not called for it again. A file that is ours already (its header names ``layout``) is used as it is. A
    local file is mapped as strictly, and called unverified.

    Args:
        source: a record, or the path of a checkpoint in the official layout or in ours: a file, or a folder or an index
            of shards.
        mapping: the family's strict table, official names to ours; raises WeightsError for an unknown name.
        layout: name and version of that table.
        cache_dir: see `cache_root`.

    Raises:
        InputError: no such file, or weights that nobody has published.
        WeightsError: the file is hostile, damaged, changed, or another family's.
        DownloadError: it has to be fetched and cannot be.
    """
    root = cache_root(cache_dir)
    if not isinstance(source, Record):
        return _load_file(root, Path(source).expanduser(), mapping, layout)
    require_published(source)
    if source.layout not in ("", layout):
        raise WeightsError(f"{source.name} has the layout '{source.layout}', this model reads '{layout}'")
    found = _cached(root, source, layout)
    if not found:
        with _lock_of(root, source):  # another process may have finished it while this one waited
            found = _cached(root, source, layout) or _first(root, replace(source, layout=layout), mapping)
    _tidy(root, source, found[1].sha256, layout)
    return found


def _first(root: Path, record: Record, mapping: Mapper) -> tuple[dict[str, Tensor], Origin]:
    path, origin = _obtain(root, record)
    if record.scheme in sources.LOCAL and _layout_of(path) == record.layout:
        return read(path) if origin.verified else _sound(path), origin
    target = cache.conversion(root, Path(record.address).stem, origin.sha256, record.layout)
    return _convert(root, path, target, mapping, record.layout, origin), origin


def _tidy(root: Path, record: Record, sha256: str, layout: str) -> None:
    """Remove what was fetched, once there is a conversion: it holds the same numbers and is what will be read from now
    on. Each call tries it, for one may have been killed before, and on Windows a mapped file cannot go.
    """
    if cache.conversion(root, Path(record.address).stem, sha256, layout).is_file():
        with contextlib.suppress(OSError):
            cache.settled(root, record, sha256).unlink(missing_ok=True)
        shutil.rmtree(cache.workspace(root, record), ignore_errors=True)


def _load_file(root: Path, path: Path, mapping: Mapper, layout: str) -> tuple[dict[str, Tensor], Origin]:
    if not path.exists():
        raise InputError(f"weights file {path} is not there")
    files = list(sharded.files_of(path))
    header = stored.metadata(files[0])
    ours = all(_layout_of(file) == layout for file in files)
    if ours and path.absolute().parent == root:
        # Only inside the cache: anybody can write "verified" into the header of a file elsewhere.
        name, where, sha256 = (header.get(f"eo_zoo.{key}", "") for key in ("name", "source", "sha256"))
        return read(path), Origin(name or None, where, sha256, header.get("eo_zoo.verified") == "true")
    sha256 = cache.together([cache.remembered_digest(root, file) for file in files])
    origin = Origin(None, str(path), sha256, verified=False)
    logger.warning("%s: there is nothing to check it against", origin)
    if ours:
        return _sound(path), origin
    target = cache.conversion(root, path.stem, origin.sha256, layout)
    tensors = cache.converted(target, origin.sha256, layout)
    return tensors or _convert(root, path, target, mapping, layout, origin), origin


def _convert(root: Path, path: Path, target: Path, mapping: Mapper, layout: str, origin: Origin) -> dict[str, Tensor]:
    """Map a file's tensors, keep them as ``target``, and give them from there (from memory if that fails)."""
    with cache.locked(root, target.name):
        if kept := cache.converted(target, origin.sha256, layout):
            return kept
        found = _layout_of(next(iter(sharded.files_of(path))))
        if found not in (None, layout):
            raise WeightsError(f"{path} has the layout '{found}', this model reads '{layout}'")
        tensors = read(path) if found == layout else mapping(read(path))
        require_sound(tensors, str(path))
        header = {
            "format": "pt",
            "eo_zoo.layout": layout,
            "eo_zoo.name": origin.name or "",
            "eo_zoo.source": origin.source,
            "eo_zoo.sha256": origin.sha256,
            "eo_zoo.verified": str(origin.verified).lower(),
        }
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as part:
                sha256 = stored.save(tensors, part, metadata=header)
                cache.write_note(target, sha256=sha256, size=part.stat().st_size)
        except OSError as error:
            logger.warning("cannot keep converted weights in %s (%s): used from memory", root, error)
            return tensors
    return read(target)


def _sound(path: Path) -> dict[str, Tensor]:
    tensors = read(path)
    require_sound(tensors, str(path))
    return tensors


def _layout_of(path: Path) -> str | None:
    return stored.metadata(path).get("eo_zoo.layout")


def _lock_of(root: Path, record: Record) -> contextlib.AbstractContextManager[None]:
    local = record.scheme in sources.LOCAL
    return contextlib.nullcontext() if local else cache.locked(root, record.key)


def _cached(root: Path, record: Record, layout: str) -> tuple[dict[str, Tensor], Origin] | None:
    """The record's converted tensors: neither network, nor lock, nor a writable cache is needed for it."""
    sha256, verified = cache.known_hash(root, record)
    if sha256 is None:
        return None
    path = cache.conversion(root, Path(record.address).stem, sha256, layout)
    tensors = cache.converted(path, sha256, layout)
    return (tensors, Origin(record.name, record.source, sha256, verified)) if tensors else None


def _obtain(root: Path, record: Record) -> tuple[Path, Origin]:
    """The official file, fetched if need be, and checked. Runs under the record's lock."""
    expected, verified = cache.known_hash(root, record)
    if expected:
        path = cache.settled(root, record, expected)
        if path.is_file() and cache.digest(path) == expected:
            return path, Origin(record.name, record.source, expected, verified)
    try:
        fetched = sources.fetch(root, record, expected)
        sha256 = _check(root, record, fetched, expected)
        verified = verified or record.md5 is not None or fetched.sha256 is not None
        if not verified:
            read(fetched.path)  # whatever is no checkpoint must not be pinned as one
    except WeightsError:
        shutil.rmtree(cache.workspace(root, record), ignore_errors=True)
        raise
    if record.scheme not in sources.LOCAL:
        if record.terms:
            logger.warning("%s: %s", record.name, record.terms)
        if not verified:
            logger.warning("%s: nothing confirms its sha256 %s; it is pinned as it came", record.name, sha256)
        if not record.sha256:
            size = fetched.size or fetched.path.stat().st_size
            cache.write_pin(root, record, sha256=sha256, size=size, commit=fetched.commit, verified=verified)
    path = cache.settle(root, record, fetched.path, sha256)
    return path, Origin(record.name, record.source, sha256, verified)


def _check(root: Path, record: Record, fetched: sources.Fetched, expected: str | None) -> str:
    """The file's SHA-256, once size and hashes agree with all that is known."""
    if fetched.sha256 and fetched.size:
        return fetched.sha256  # the conversion of a file that was checked when it came
    size = fetched.path.stat().st_size
    if record.size not in (None, size):
        raise WeightsError(f"{fetched.path} has {size} bytes, {record.name} has {record.size}: cut short?")
    sha256 = cache.digest(fetched.path)
    if fetched.sha256 not in (None, sha256):
        raise WeightsError(
            f"{fetched.path} has the sha256 {sha256}, but {record.source} is stated as {fetched.sha256}: "
            "damaged on the way, and not used; try again"
        )
    cache.require_same(root, record, sha256, expected)
    if record.md5 and (md5 := cache.digest(fetched.path, "md5")) != record.md5:
        raise WeightsError(
            f"{record.source} has another md5 ({md5}) than {record.name} ({record.md5}): damaged or replaced, and not "
            "used; try again, and tell its publisher if it stays so"
        )
    return sha256
