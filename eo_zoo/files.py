"""Writing files so that they are whole or absent."""

from __future__ import annotations

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path`` to write to: it takes that name at the end, or goes if there is an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
