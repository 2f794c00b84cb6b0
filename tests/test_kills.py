"""Killed at any moment, a process leaves cache and output whole or absent, and the next one gets all done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
ROOT = Path(__file__).parents[1]


def kill(tmp_path: Path, record_property, count: int, *options: str) -> list[dict]:
    environment = {
        **os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",  # no threads when it forks, not even idle ones
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.kills", str(count), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert "is multi-threaded" not in ran.stderr  # what Python 3.12 says where a process with threads forks
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    killed, left = Counter(), Counter()
    for work in found:
        killed.update(work["killed"])
        left.update(work["left"])
        record_property("figures", f"kills of {work['work']} ({work['seconds']} s): {work['killed']}, {work['left']}")
    good = left.total()
    record_property("figures", f"kills: {good} of {killed.total()} left a good state: {dict(killed)}, {dict(left)}")
    assert good == killed.total() > 0
    return found


def test_some_kills(tmp_path, record_property):
    found = kill(tmp_path, record_property, 10, "--few", "--model", "anysat_nano")
    assert sum(sum(work["left"].values()) for work in found) == 10


@pytest.mark.slow
def test_a_hundred_kills(tmp_path, record_property):
    found = kill(tmp_path, record_property, 100)
    assert len(found) == 10 and sum(sum(work["left"].values()) for work in found) == 100
    stages = {stage for work in found for stage in work["killed"]}
    assert {"before the first byte", "during the download", "while converting"} <= stages


@pytest.mark.slow
def test_a_kill_before_every_step(tmp_path, record_property):
    found = kill(tmp_path, record_property, 1000, "--steps", "--model", "anysat_nano")
    assert len(found) == 10 and all(work["over before"] == 1 for work in found)
