from __future__ import annotations

import json

import pytest
import timm
import torch

from tests.converters.test_smarties import run
from tests.models.test_mars import check_cases, official


def test_another_familys_name_is_refused(tmp_path):
    result = run("x.pth", "-o", tmp_path / "out", "--model", "smarties_vit_base", script="mars")
    assert result.returncode == 2 and "invalid choice" in result.stderr


@pytest.mark.slow
def test_official_base(tmp_path):
    torch.save(official("base", "sar"), tmp_path / "mars.pth")
    result = run(tmp_path / "mars.pth", "-o", tmp_path / "out", "--model", "mars_base_sar", script="mars")
    assert result.returncode == 0, result.stderr
    assert check_cases("base_sar", timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()) == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "academic-research-only"
