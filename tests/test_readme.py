from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def test_its_python_runs(monkeypatch):
    """Every block, one after another, with torch.hub reading this checkout."""
    load = torch.hub.load
    monkeypatch.setattr(torch.hub, "load", lambda repo, name: load(str(ROOT), name, source="local"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own
    assert names["vector"].shape == (1, 128)  # as the comment beside it says
    assert [tuple(names[name].shape) for name in ("tile", "patches", "dense")] == [
        (1, 128), (1, 3, 3, 128), (1, 30, 30, 256)
    ]  # fmt: skip
    assert [made.shape[-1] for made in names["maps"]] == [128, 64, 32, 16]
