from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import eo_zoo
from eo_zoo.models.smarties import sincos_positions
from tests.procedural import forge, manifest

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "eo_zoo" / "data" / "smarties_vit_nano.demo.safetensors"


def run(*arguments: object, script: str = "smarties") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "converters" / f"{script}.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_folder_reads_back_equal(tmp_path):
    result = run(BUNDLED, "-o", tmp_path / "out", "--model", "smarties_vit_nano")
    assert result.returncode == 0, result.stderr
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(1, 12, 112, 112)
    with torch.no_grad():
        assert torch.equal(by_folder(x), eo_zoo.create_model("smarties_vit_nano")(x))
    assert "unverified" in eo_zoo.info(by_folder)["weights"]
    assert by_folder.pretrained_cfg["mean"] == eo_zoo.create_model("smarties_vit_nano").pretrained_cfg["mean"]
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"out"}
    again = run(BUNDLED, "-o", tmp_path / "out", "--model", "smarties_vit_nano")
    assert again.returncode == 2 and "exists" in again.stderr


def test_wrong_checkpoint_leaves_nothing(tmp_path):
    save_file({"cls_token": torch.zeros(1, 1, 128)}, tmp_path / "x.safetensors")
    result = run(tmp_path / "x.safetensors", "-o", tmp_path / "out", "--model", "smarties_vit_nano")
    assert result.returncode == 2 and "does not hold all tensors of SMARTIES" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_official_base(tmp_path):
    rows = manifest("smarties_base", "encoder")
    save_file(forge(rows, {"pos_embed": sincos_positions(768, 14, 14)}), tmp_path / "b.safetensors")
    result = run(tmp_path / "b.safetensors", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_tag_keeps_its_head(tmp_path):
    name = "smarties_vit_base.eurosat_finetune"
    head = {"head.weight": torch.randn(10, 768), "head.bias": torch.randn(10)}
    tensors = forge(manifest("smarties_base", "encoder"), {"pos_embed": sincos_positions(768, 14, 14)}) | head
    save_file(tensors, tmp_path / "tuned.safetensors")
    result = run(tmp_path / "tuned.safetensors", "-o", tmp_path / "out", "--model", name)
    assert result.returncode == 0, result.stderr
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(by_folder.head.weight, head["head.weight"]) and by_folder.bands[10] == "short_wave_infrared_2"
    assert by_folder.pretrained_cfg["label_names"][9] == "SeaLake"
