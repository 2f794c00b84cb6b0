from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of random models by model type; not to be written to."""
    from tests.vlm import tiny

    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny.build(root / name, name) for name in tiny.TYPES}


@pytest.fixture(scope="session")
def tiny_folder(tiny_models):
    return tiny_models["qwen2_5_vl"]


@pytest.fixture
def noise():
    """An image of any size that no two pixels of are alike."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

    return make
