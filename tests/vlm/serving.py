"""A real server with a model of this machine: what ``eo-zoo serve`` becomes, until the end of the block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from eo_zoo.vlm.serve import serve_command

PATIENCE = 120.0  # seconds: importing transformers takes ten, on a busy machine more


@contextlib.contextmanager
def serving(folder: Path, port: int | None = None) -> Iterator[str]:
    """The address of a server of the model in ``folder``, on the loopback interface.

    It is on a free port if none is given, alone in its group of processes, and that group is gone in the end.
    """
    port = port or free_port()
    words = serve_command(str(folder), backend="transformers", port=port)
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(folder).parent / "hf"), "OMP_NUM_THREADS": "1"}
    # transformers 4 leaves every image in the folder for temporary files
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            words,
            env={**os.environ, **own, "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _is_up(process, url):
                log.seek(0)
                raise RuntimeError(f"the server did not start: {log.read()[-3000:]}")
            yield url
        finally:
            _stop(process)


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_up(process: subprocess.Popen[str], url: str) -> bool:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
