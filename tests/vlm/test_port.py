"""The picture of the docs is what its code draws, and shows what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eo_zoo.vlm.boxes import Box, iou
from tests.vlm import port

PICTURE = Path(__file__).parents[2] / "docs" / "terrasense_overlay.png"


@pytest.mark.parametrize("windows", [{}, {"window": 320, "overlap": 160}])
def test_every_planted_object_is_found_once(tmp_path, windows):
    port.write(tmp_path / "port.tif")
    found = port.Lookout().detect(tmp_path / "port.tif", list(port.COLOURS), oriented=True, **windows)
    planted = port.planted()
    assert found.counts() == {label: len(shapes) for label, shapes in planted.items()}
    for label, shapes in planted.items():
        boxes = [box for box in found if box.label == label]
        for shape in shapes:
            assert max(iou(Box(tuple(shape), oriented=True), box) for box in boxes) > 0.75, (label, shape)


def test_the_picture_of_the_docs(tmp_path):
    """But for the letters of its legend, whose font is this machine's."""
    port.draw(tmp_path / "again.png")
    again, kept = (np.asarray(Image.open(path).convert("RGB"), int) for path in (tmp_path / "again.png", PICTURE))
    height = min(port.SIZE[1], len(again), len(kept))
    differ = np.abs(again[:height] - kept[:height]).max(axis=-1) > 8
    assert again.shape[1] == kept.shape[1] and differ.mean() < 0.05
    assert PICTURE.stat().st_size < 300_000
