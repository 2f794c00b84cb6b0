"""What lies in the cache folder, and how it is removed: files of the known kinds, and no others."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eo_zoo import weights
from eo_zoo.errors import WeightsError
from eo_zoo.files import sweep
from eo_zoo.weights import cache, stored

_CONVERSION = re.compile(r"(.+)-[0-9a-f]{16}-[\w.-]+\.safetensors")
_DOWNLOAD = re.compile(r"(.+)-[0-9a-f]{16}(\.\w+)?")
_PART = re.compile(r"\.(.+)\.\d+-[0-9a-f]{1,8}\.part")
_SMALL = ("notes", "hashes", "pins")  # folders of small files, each of which is made anew, but for pins


@dataclass(frozen=True)
class Entry:
    """One file of the cache, or the folder of a download under way."""

    kind: str  # "weights" (converted), "download" (whole), "partial" (of a download), "leftover" (of a killed process)
    path: Path
    names: tuple[str, ...]  # of the weight sets; else of the file that it was made from
    size: int  # bytes
    used: float  # seconds since 1970, as the file system tells: many note the first use of a day only
    verified: bool | None = None  # None: not known yet
    lock: str | None = None  # held by who writes it

    @property
    def title(self) -> str:
        """The weight sets, or else the file."""
        return ", ".join(self.names) if self.names[0] in weights.RECORDS else self.path.name

    def called(self, name: str) -> bool:
        """Whether it is meant by a weight set's name, an architecture's or a file's."""
        return name in (self.path.name, *self.names, *(one.partition(".")[0] for one in self.names))


def entries(root: Path) -> list[Entry]:
    """What the cache holds, by kind and name; pins, notes and locks are not listed."""
    found = [*_conversions(root), *_downloads(root), *_leftovers(root)]
    kinds = ("weights", "download", "partial", "leftover")
    return sorted(found, key=lambda entry: (kinds.index(entry.kind), entry.names, entry.path))


def _conversions(root: Path) -> Iterator[Entry]:
    places = _places(root)
    for path in root.glob("*.safetensors"):
        match = _CONVERSION.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        header = _header(path)
        if header is not None and "eo_zoo.layout" not in header and not cache.note_of(path).is_file():
            continue  # somebody else's
        header = header or {}
        own = header.get("eo_zoo.name") or Path(header.get("eo_zoo.source", "")).name or match[1]
        verified = header["eo_zoo.verified"] == "true" if "eo_zoo.verified" in header else None
        yield _entry("weights", path, places.get(path) or (own,), lock=path.name, verified=verified)


def _header(path: Path) -> dict[str, str] | None:
    """The free text of a header; None where that is damaged. A look at it is no use of the file."""
    status = path.stat()
    try:
        return stored.metadata(path)
    except WeightsError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _downloads(root: Path) -> Iterator[Entry]:
    places, keys = _places(root), _keys()
    for path in (root / "downloads").glob("*"):
        key = path.name.removesuffix(".partial")
        if path.is_dir() and key != path.name:
            yield _entry("partial", path, keys.get(key) or (key,), lock=key)
        elif path.is_file() and (match := _DOWNLOAD.fullmatch(path.name)):
            names = places.get(path)
            lock = weights.RECORDS[names[0]].key if names else None
            yield _entry("download", path, names or (match[1],), lock=lock, verified=True)


def _leftovers(root: Path) -> Iterator[Entry]:
    for folder in (root, *(root / name for name in _SMALL)):
        for path in folder.glob(".*.part"):
            if match := _PART.fullmatch(path.name):
                yield _entry("leftover", path, (match[1],))


def _entry(
    kind: str, path: Path, names: tuple[str, ...], *, lock: str | None = None, verified: bool | None = None
) -> Entry:
    # a folder's own time of access is that of this look at it
    status = [file.stat() for file in ([one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path])]
    used = max((max(one.st_atime, one.st_mtime) for one in status), default=path.stat().st_mtime)
    size = sum(one.st_size for one in status)
    return Entry(kind, path, names, size, used, verified, lock)


def _places(root: Path) -> dict[Path, tuple[str, ...]]:
    """Where the files of published weight sets lie, if they are there, and whose they are: several may share one."""
    found: dict[Path, tuple[str, ...]] = {}
    for record in weights.RECORDS.values():
        try:
            sha256, _ = cache.known_hash(root, record)
        except WeightsError:
            continue  # a damaged pin
        if sha256 is not None:
            stem = Path(record.address).stem
            for path in (cache.conversion(root, stem, sha256, record.layout), cache.settled(root, record, sha256)):
                found[path] = (*found.get(path, ()), record.name)
    return found


def _keys() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for record in weights.RECORDS.values():
        found[record.key] = (*found.get(record.key, ()), record.name)
    return found


def remove(root: Path, entry: Entry) -> bool:
    """Remove an entry with its note, unless a living process is writing it; whether it is gone."""
    if entry.kind == "leftover":
        match = _PART.fullmatch(entry.path.name)
        sweep(entry.path.with_name(match[1] if match else entry.path.name))
        return not entry.path.exists()
    with cache.trying(root, entry.lock) as free:
        if not free:
            return False
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)
        if entry.kind == "weights":
            cache.note_of(entry.path).unlink(missing_ok=True)
    return True


def remove_small(root: Path, *, pins: bool) -> None:
    """Remove notes that stand alone and remembered hashes of local files; pins only if they are meant."""
    for note in (root / "notes").glob("*.json"):
        path = root / f"{note.stem}.safetensors"
        with cache.trying(root, path.name) as free:  # a note is written before what it is of
            if free and not path.exists():
                note.unlink(missing_ok=True)
    for folder in ("hashes", *(["pins"] if pins else [])):
        for path in (root / folder).glob("*.json"):
            path.unlink(missing_ok=True)
