"""Writing files and folders so that they are whole or absent."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from eo_zoo.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path`` to write to: it takes that name at the end, or goes if there is an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def require_new(folder: Path) -> None:
    """Raise InputError for a folder that exists."""
    if folder.exists():
        raise InputError(f"{folder} exists: remove it, or give another folder")


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` to fill: it takes that name at the end, or goes if there is an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed processes of this machine left while writing ``path``."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*-*.part"):
        process = part.name.removeprefix(f".{path.name}.").partition("-")[0]
        with contextlib.suppress(OSError):
            if process.isdigit() and not _lives(int(process)):
                part.unlink()


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
