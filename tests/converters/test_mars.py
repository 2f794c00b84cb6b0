from __future__ import annotations

import json

import pytest
import timm
import torch

from tests.converters.test_smarties import BUNDLED, run
from tests.models.test_mars import check_cases, official


def test_another_familys_file_is_refused(tmp_path):
    result = run(BUNDLED, "-o", tmp_path / "out", script="mars")
    assert result.returncode == 2 and "of MaRS, the nearest" in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
def test_official_base(tmp_path):
    torch.save(official("base", "sar"), tmp_path / "mars.pth")
    result = run(tmp_path / "mars.pth", "-o", tmp_path / "out", script="mars")
    assert result.returncode == 0, result.stderr
    assert check_cases("base_sar", timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()) == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "academic-research-only"
