from __future__ import annotations

import json

import pytest
import timm
import torch

from tests.converters.test_smarties import run
from tests.models.test_anysat import check_cases, official, save
from tests.procedural import forge, manifest, weight


def test_official_tiny(tmp_path):
    path = save(official("tiny"), tmp_path / "AnySat.pth")
    result = run(path, "-o", tmp_path / "out", "--model", "anysat_tiny", script="anysat")
    assert result.returncode == 0, result.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert check_cases("tiny", model, "spot_s1", "planted") == 12
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "anysat_tiny" and config["pretrained_cfg"]["license"] == "mit"
    assert config["eo_zoo"]["inputs"][0] == "aerial" and len(config["eo_zoo"]["inputs"]) == 11


@pytest.mark.slow
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_one_of_a_whole_state(tmp_path, part):
    encoder = forge(manifest("anysat_base"), {})
    tensors = {f"target_encoder.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"model.encoder.{name}": tensor for name, tensor in encoder.items()}
    tensors["model.encoder.cls_token"] = weight("encoder.cls_token", (1, 1, 768))
    tensors["model.masked_token"] = torch.zeros(1, 1, 768)
    path = save(tensors, tmp_path / "AnySat_full.pth")
    result = run(path, "-o", tmp_path / "out", "--model", f"anysat_base.{part}", script="anysat")
    assert result.returncode == 0, result.stderr
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(model.cls_token, tensors[f"{'model.' if part == 'student' else 'target_'}encoder.cls_token"])
    assert model.part == part
