"""`eo-zoo verify` of a folder of TerraSense: hashes, names, shapes and values, no forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eo_zoo import verify as module
from eo_zoo.errors import MissingExtra
from eo_zoo.verify import verify
from eo_zoo.weights import cache, sharded
from tests.vlm import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.build(tmp_path / "model")


def test_a_folder_of_terrasense(folder, run):
    (finding,) = verify(folder)
    assert (finding.error, finding.tensors, finding.values, finding.golden) == (None, "qwen2_5_vl", "finite", None)
    assert finding.notes == ["no forward pass is made of a model of this size"]
    file = folder / "model.safetensors"
    (folder / sharded.MANIFEST).write_text(json.dumps({"files": {file.name: {"sha256": cache.digest(file)}}}))
    assert verify(folder)[0].hash == "as converted"
    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    code, _, err = run("verify", folder)
    assert code == 1 and f"{file} has the SHA-256 {cache.digest(file)}" in err
    (folder / sharded.MANIFEST).unlink()
    assert "lm_head.weight" in verify(folder)[0].error
    save_file({**tensors, "lm_head.weight": torch.ones(2, 2)}, file, {"format": "pt"})
    assert "lm_head.weight is (2, 2), expected" in verify(folder)[0].error


def test_without_the_extra_values_are_checked_alone(folder, monkeypatch):
    def missing(*_):
        raise MissingExtra("this needs the package 'rasterio'")

    monkeypatch.setattr(module, "_fits_config", missing)
    (finding,) = verify(folder)
    assert (finding.error, finding.tensors, finding.values) == (None, None, "finite")
    assert "rasterio" in finding.notes[0]
