"""Writing files and folders so that they are whole or absent, whenever a process is killed or the power fails."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from eo_zoo.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path`` to write to: it takes that name at the end, or goes if there is an error.

    What a killed process left of an earlier try goes too.
    """
    sweep(path)
    part = _beside(path)
    try:
        yield part
        _settle(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_all(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """As `replacing`, several files, the last of which says how the others are to be read.

    They are renamed one by one, with the old last one gone before and the new one last: so a process that is killed
    between leaves no files that would be read by what was said of others.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(replacing(path)) for path in reversed(paths)]
        yield tuple(reversed(parts))
        paths[-1].unlink(missing_ok=True)


def require_new(folder: Path) -> None:
    """Raise InputError for a folder that exists."""
    if folder.exists():
        raise InputError(f"{folder} exists: remove it, or give another folder")


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` to fill: it takes that name at the end, or goes if there is an error.

    What a killed process left of an earlier try goes too.

    Raises:
        InputError: another process made ``folder`` in the meantime.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    beside = _beside(folder)
    beside.mkdir()
    try:
        yield beside
        for file in beside.rglob("*"):
            _settle(file)
        try:
            beside.rename(folder)
        except OSError:
            require_new(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed processes of this machine left while writing ``path``, a file or a folder."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*-*.part"):
        process = part.name.removeprefix(f".{path.name}.").partition("-")[0]
        with contextlib.suppress(OSError, OverflowError):
            if process.isdigit() and not _lives(int(process)):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _settle(path: Path) -> None:
    """Wait until a file's bytes are on the disk: else, after a power failure, its name may be that of an empty one."""
    if path.is_file():
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _lives(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is a real one
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
