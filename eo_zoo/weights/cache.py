"""The cache folder: which file lies where, whole or absent, one process at a time, and the pinned hashes.

- ``<stem>-<16 of the official file's SHA-256>-<layout>.safetensors``: what models read, the conversions
- ``notes/<name of a conversion>.json``: its SHA-256 as it was written, and what a forward pass gave (its golden)
- ``downloads/<stem>-<16 of its SHA-256>.<ext>``: verified official files that no model has read yet
- ``downloads/<key>.partial/``: a download under way
- ``pins/<key>.json``: the hash of a record's file at its first use
- ``hashes/<path's hash>.json``: the hash of a local file, as long as its status stays as noted
- ``locks/<name>.lock``
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from eo_zoo.errors import WeightsError
from eo_zoo.files import replacing

if TYPE_CHECKING:
    from eo_zoo.weights import Record

logger = logging.getLogger(__name__)

SETTLED = 2_000_000_000  # nanoseconds; FAT keeps times to two seconds


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The cache folder: the argument, $EO_ZOO_CACHE, $XDG_CACHE_HOME/eo_zoo or ~/.cache/eo_zoo."""
    named = cache_dir or os.environ.get("EO_ZOO_CACHE")
    root = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eo_zoo"
    return root.expanduser().absolute()


# ------------------------------------------------------------------------------------------------ places


def conversion(root: Path, stem: str, sha256: str, layout: str) -> Path:
    """Where the converted weights of an official file are kept."""
    stem = re.sub(r"[^\w.-]", "_", stem)[:80]
    return root / f"{stem}-{sha256[:16]}-{layout}.safetensors"


def converted(path: Path, sha256: str, layout: str) -> dict[str, Tensor] | None:
    """The tensors of a conversion, if it is of the file with that full hash; its name has only a part of it."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if (header.get("eo_zoo.sha256"), header.get("eo_zoo.layout")) != (sha256, layout):
                return None
            # an open file is no dict, and gives its names by this call only
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        logger.warning("cached weights are damaged and will be made anew: %s (%s)", path, error)
        return None


def workspace(root: Path, record: Record) -> Path:
    """The folder of a download under way; it survives interruption, so that the next try may resume."""
    return root / "downloads" / f"{record.key}.partial"


def settled(root: Path, record: Record, sha256: str) -> Path:
    """Where a verified download waits for its conversion."""
    file = Path(record.address)
    return root / "downloads" / f"{file.stem}-{sha256[:16]}{file.suffix}"


def settle(root: Path, record: Record, path: Path, sha256: str) -> Path:
    """Move a verified download out of its working folder; a file that is not ours stays where it is."""
    if not path.is_relative_to(workspace(root, record)):
        return path
    place = settled(root, record, sha256)
    os.replace(path, place)
    shutil.rmtree(workspace(root, record), ignore_errors=True)
    return place


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """One process at a time. Where no lock file can be made, nothing can be written and none is needed."""
    import filelock

    lock = filelock.FileLock(root / "locks" / f"{name}.lock")
    try:
        (root / "locks").mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.info("waiting for another process that prepares %s", name)
            lock.acquire()
    # a read-only folder, or a file system without locks, of which filelock says that it is not implemented
    except (OSError, NotImplementedError) as error:
        logger.debug("no lock for %s: %s", name, error)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def trying(root: Path, name: str | None) -> Iterator[bool]:
    """As `locked`, without waiting: False where a living process has the lock."""
    import filelock

    lock = filelock.FileLock(root / "locks" / f"{name}.lock")
    free = True
    if name is not None and Path(lock.lock_file).exists():
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            free = False
        except (OSError, NotImplementedError) as error:
            logger.debug("no lock for %s: %s", name, error)
    try:
        yield free
    finally:
        lock.release()


# -------------------------------------------------------------------------------------------- small notes


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    """Keep facts as JSON with a hash of their own, so that a change of any of them shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps({**facts, "sum": _sum(facts)}, indent=1))


def read_facts(path: Path) -> dict[str, Any]:
    """Facts that `_write` kept, ``sha256`` among them.

    Raises:
        OSError, ValueError, LookupError, TypeError: they cannot be read, or changed since.
    """
    try:
        facts = dict[str, Any](json.loads(path.read_text()))
    except RecursionError as error:
        raise ValueError("lists within lists") from error
    if facts.pop("sum", None) not in (None, _sum(facts)):  # those of earlier releases have none
        raise ValueError("changed since it was written")
    if not is_sha256(facts["sha256"]):
        raise ValueError("no SHA-256")
    return facts


def _sum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def note_of(path: Path) -> Path:
    """Where the note of a conversion is kept."""
    return path.parent / "notes" / f"{path.stem}.json"


def write_note(path: Path, *, sha256: str, size: int) -> None:
    """Note the hash of a conversion; to be done before it takes its place, so that none is ever without."""
    _write(note_of(path), {"sha256": sha256, "bytes": size, "goldens": {}})


def add_golden(path: Path, name: str, golden: Mapping[str, Any]) -> None:
    """Note what a conversion gives as the weight set of that name; several may be read from one.

    Raises:
        OSError: the cache cannot be written.
        WeightsError: as `read_note`.
    """
    with locked(path.parent, path.name):
        note = read_note(path)
        _write(note_of(path), {**note, "goldens": {**note["goldens"], name: dict(golden)}})


def read_note(path: Path) -> dict[str, Any]:
    """What is noted of a conversion: sha256, bytes, and goldens by the names of the weight sets that were read from it.

    Raises:
        WeightsError: there is no note, or it is damaged.
    """
    note = note_of(path)
    if not note.is_file():
        raise WeightsError(f"{path} cannot be verified, for it was made before hashes were kept")
    try:
        facts = read_facts(note)
        if isinstance(facts["bytes"], int) and isinstance(facts["goldens"], dict):
            return facts
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise WeightsError(f"{path} cannot be verified, for the note of its hash, {note}, is damaged")


def wants_golden(path: Path, name: str) -> bool:
    """Whether a conversion has a note without a golden of that name, to which one can be added.

    Raises:
        WeightsError: the note is damaged.
    """
    note = note_of(path)
    return note.is_file() and os.access(note.parent, os.W_OK) and name not in read_note(path)["goldens"]


# ------------------------------------------------------------------------------------------ hashes and pins


def is_sha256(text: str | None) -> bool:
    """Whether the text is a SHA-256: 64 lower-case hex digits."""
    return text is not None and re.fullmatch("[0-9a-f]{64}", text) is not None


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def together(hashes: Sequence[str]) -> str:
    """The hash of one file, or what stands for those of several, in their order."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def differs(path: Path, found: str, expected: str | None, remedy: str) -> str:
    """The sentence for a file whose bytes are not what they were."""
    return f"{path} has the SHA-256 {found}, expected {expected}: damaged, or changed since it was written; {remedy}"


def remembered_digest(root: Path, path: Path) -> str:
    """The SHA-256 of a local file, not computed again while its size, times and inode stay the same.

    As git does, nothing is remembered of a file that changed within the last two seconds: it could change once more
    without its times telling.
    """
    path = path.absolute()
    memo = root / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"
    status = _status(path)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = read_facts(memo)
        if found["path"] == str(path) and found["status"] == status:
            return str(found["sha256"])
    sha256 = digest(path)
    changed = max(status[1:3])
    if status == _status(path) and changed < time.time_ns() - SETTLED:
        with contextlib.suppress(OSError):
            _write(memo, {"path": str(path), "status": status, "sha256": sha256})
    return sha256


def _status(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def pin_path(root: Path, record: Record) -> Path:
    """The file that remembers the hash of a record's file at its first use."""
    return root / "pins" / f"{record.key}.json"


def read_pin(root: Path, record: Record) -> dict[str, Any]:
    """What was pinned of a record's file at first use; empty if nothing was.

    Raises:
        WeightsError: the pin is damaged.
    """
    path = pin_path(root, record)
    if not path.is_file():
        return {}
    try:
        pin = read_facts(path)
        return {**pin, "verified": pin["verified"] is True}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise WeightsError(f"the pinned hash of {record.name} cannot be read: delete {path} to pin it anew")


def known_hash(root: Path, record: Record) -> tuple[str | None, bool]:
    """The SHA-256 that a record's file must have, by record or pin, and whether its origin states it."""
    if record.sha256:
        return record.sha256, True
    pin = read_pin(root, record)
    return pin.get("sha256"), pin.get("verified", False)


def write_pin(root: Path, record: Record, **facts: Any) -> None:
    """Remember a file's hash, and with it what else is known of the file."""
    try:
        _write(pin_path(root, record), {"source": record.source, "revision": record.revision, **facts})
    except OSError as error:
        logger.warning("the hash of %s cannot be pinned, so a change will not show: %s", record.name, error)


def require_same(root: Path, record: Record, found: str, expected: str | None) -> None:
    """Compare a hash with the record's or the pin's.

    Raises:
        WeightsError: it differs; the message says what that means and what to do.
    """
    if expected is None or found == expected:
        return
    if record.sha256:
        raise WeightsError(
            f"{record.source} has the sha256 {found}, but {record.name} is known as {expected}: "
            "damaged or replaced, and not used; try again, and tell its publisher if it stays so"
        )
    raise WeightsError(
        f"{record.source} changed since its first use on this machine: its sha256 was {expected}, now "
        f"it is {found}; ask its publisher, and if it is meant, delete {pin_path(root, record)} and try again"
    )
