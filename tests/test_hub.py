from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eo_zoo
from eo_zoo.errors import InputError

ROOT = Path(__file__).parent.parent
# what AnySat's own documentation calls, and the model that answers in words
NAMED_ALIASES = {"anysat", "AnySat", "terrasense_base"}


@pytest.fixture(scope="module")
def hub_dir(tmp_path_factory):
    """A hub cache as torch.hub leaves it after a download: the repository, extracted."""
    folder = tmp_path_factory.mktemp("hub")
    repo = folder / "org_eo_zoo_main"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "eo_zoo", repo / "eo_zoo", ignore=ignore)
    shutil.copy(ROOT / "hubconf.py", repo)
    return folder


def run(code: str, hub_dir: Path) -> str:
    """What a user's own process prints, far from the checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", f"import torch, json; torch.hub.set_dir({str(hub_dir)!r})\n{code}"],
        cwd=hub_dir, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_list_help_and_load_from_the_cache(hub_dir):
    out = run(
        "repo = 'org/eo_zoo:main'\n"
        "import sys, timm, huggingface_hub; before = set(sys.modules)\n"
        "names = torch.hub.list(repo, trust_repo=True)\n"
        "help = torch.hub.help(repo, 'smarties_vit_nano', trust_repo=True)\n"
        "model = torch.hub.load(repo, 'smarties_vit_nano', trust_repo=True, sensor='S1')\n"
        "import eo_zoo, sys\n"
        "print(json.dumps([names, help, list(model(torch.zeros(1, 2, 112, 112)).shape), model.training,\n"
        "                  eo_zoo.__file__, [m for m in ('transformers', 'rasterio', 'requests', 'rich', 'typer')\n"
        "                                    if m in sys.modules and m not in before]]))",
        hub_dir,
    )
    names, text, shape, training, file, heavy = json.loads(out)
    assert set(names) == set(eo_zoo.list_models()) | NAMED_ALIASES
    assert "pretrained" in text and "sensor" in text and "Paper: arXiv" in text
    assert shape == [1, 128] and not training
    assert file.startswith(str(hub_dir))
    assert not heavy


def test_local_checkout():
    model = torch.hub.load(str(ROOT), "smarties_vit_nano", source="local", pretrained=False, num_classes=3)
    assert model(torch.zeros(1, 12, 112, 112)).shape == (1, 3)
    assert model.weights_origin is None
    assert torch.hub.load(str(ROOT), "smarties_vit_nano", source="local", tag="demo").weights_origin.verified
    with pytest.raises(InputError, match=r"smarties_vit_nano\.other"):
        torch.hub.load(str(ROOT), "smarties_vit_nano", source="local", tag="other")


def test_dependencies_are_the_four_that_are_needed():
    import hubconf

    assert hubconf.dependencies == ["torch", "timm", "safetensors", "huggingface_hub"]
    public = {name for name in vars(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    assert public == set(eo_zoo.list_models()) | NAMED_ALIASES


def test_terrasense(tmp_path):
    from tests.vlm import tiny

    folder = str(tiny.build(tmp_path / "tiny"))
    model = torch.hub.load(str(ROOT), "terrasense_base", source="local", path_or_id=folder)
    assert model.model_type == "qwen2_5_vl" and model.name == folder
    with pytest.raises(InputError, match="published weights only"):
        torch.hub.load(str(ROOT), "terrasense_base", source="local", pretrained=False)
