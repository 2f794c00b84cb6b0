from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch

import eo_zoo
from tests.converters.test_smarties import run
from tests.models.multimae import check_cases, given, official, save


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--vit", "rgp"], "unknown domain 'rgp'. Did you mean 'rgb'?"),
        (["--img-size", "224"], "No such option"),
    ],
)
def test_what_cannot_be_converted(tmp_path, arguments, says):
    result = run("x.pth", "-o", tmp_path / "out", *arguments, script="multimae")
    assert result.returncode == 2 and says in " ".join(result.stderr.split()) and not list(tmp_path.glob("*out*"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save(official("base"), tmp_path_factory.mktemp("official") / "checkpoint-999.pth")


@pytest.mark.slow
def test_official_base(tmp_path, published):
    result = run(published, "-o", tmp_path / "out", script="multimae")
    assert result.returncode == 0, result.stderr
    assert check_cases("base", timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()) == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "unknown" and config["eo_zoo"]["in_domains"][0] == "rgb"
    again = run(published, "-o", tmp_path / "out", script="multimae")
    assert again.returncode == 2 and "exists" in again.stderr


ALONE = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert "eo_zoo" not in sys.modules
with torch.inference_mode():
    torch.save(model.forward_features(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "size"), [("rgb", None), ("depth", 112)])
def test_a_vit_of_one_domain_needs_timm_alone(tmp_path, published, domain, size):
    asked = ["--img-size", size] if size else []
    result = run(published, "-o", tmp_path / "vit", "--vit", domain, *asked, script="multimae")
    assert result.returncode == 0, result.stderr
    x = given("vit", domain, size or 56)
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", ALONE, tmp_path / "vit", tmp_path / "x.pt", tmp_path / "y.pt"]
    subprocess.run(command, check=True, capture_output=True)
    model = eo_zoo.create_model("multimae_eo_base", weights=published)
    with torch.inference_mode():
        tokens = model.forward_features({domain: x})
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), tokens.roll(1, dims=1), rtol=0, atol=1e-5)
