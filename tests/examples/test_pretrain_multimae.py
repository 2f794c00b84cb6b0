from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eo_zoo.geo.panels import SIDE

SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_multimae.py"
OUTPUTS = ["rgb", "ired", "sired", "ebands", "depth", "semseg", "norm_rgb"]


def run(out: Path, *arguments: object) -> tuple[int, dict[str, tuple[float, float]], str]:
    """Exit code, every loss at the beginning and at the end, and the last line on stderr."""
    command = [sys.executable, SCRIPT, "--out", out, *arguments]
    threads = os.environ.get("EO_ZOO_TEST_THREADS", "1")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": threads}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    found = re.findall(r"^ *(\w+): ([\d.]+) to ([\d.]+)$", done.stdout, re.MULTILINE)
    return done.returncode, {name: (float(a), float(b)) for name, a, b in found}, done.stderr.splitlines()[-1]


def test_a_few_steps_give_both_pictures(tmp_path):
    code, losses, told = run(tmp_path, "--steps", 12, "--batch", 4, "--weighting", "uncertainty")
    assert code == 0, told
    assert list(losses) == OUTPUTS
    with Image.open(tmp_path / "multimae_losses.png") as curves:
        assert len(curves.getcolors(10_000)) > len(OUTPUTS)
    with Image.open(tmp_path / "multimae_reconstruction.png") as rows:
        assert rows.height > 6 * SIDE


def test_losses_that_do_not_fall_are_an_error(tmp_path):
    code, losses, told = run(tmp_path, "--steps", 4, "--batch", 2, "--rate", 0)
    assert code == 1 and all(first == last for first, last in losses.values())
    assert told == f"the loss of {', '.join(OUTPUTS)} did not fall in 4 steps: give --steps more"


@pytest.mark.slow
def test_200_steps_lower_every_loss(tmp_path):
    code, losses, told = run(tmp_path)
    assert code == 0, told
    assert list(losses) == OUTPUTS
    assert all(last < 0.8 * first for name, (first, last) in losses.items() if name != "norm_rgb"), losses
    assert losses["norm_rgb"][1] < losses["norm_rgb"][0]  # the detail inside patches, which comes last
