"""MultiMAE's inputs and official checkpoints, rebuilt from names."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from eo_zoo.models.multimae import MultiMae, position_table
from eo_zoo.models.multimae_domains import DOMAINS
from tests.procedural import PARITY, forge, manifest, uniform

CASES = json.loads((PARITY / "multimae.cases.json").read_text())
TINY = dict(embed_dim=64, depth=2, num_heads=4)
NUMPYS = np.float64(1e-4)  # the public code's schedule of learning rates is an array
SMALL_DECODER = dict(decoder_dim=32, decoder_depth=1)


def given(case: str, name: str, size: int, batch: int = 2) -> Tensor:
    """A domain's input of a case."""
    if name == "semseg":
        return ((uniform(f"{case}/semseg", (batch, size // 4, size // 4)) / 3**0.5 + 1) / 2 * 12).long()
    return uniform(f"{case}/{name}", (batch, DOMAINS[name].channels, size, size))


def official(size: str, part: str = "pretraining") -> dict[str, Tensor]:
    """All tensors of the public code's model, or of its encoder alone."""
    rows = manifest(f"multimae_{size}", part)
    return forge(rows, {key: position_table(shape[1], 8) for key, shape, _ in rows if key.endswith("pos_emb")})


def save(tensors: dict[str, Tensor], path: Path, *, lr: float = NUMPYS, zipped: bool = True, **other: object) -> Path:
    """A checkpoint as the public code writes it, with all that lies beside the model; ``other`` takes its place."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr_scale": 1.0}], lr=1e-4, betas=(0.9, 0.95))
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    beside = dict(
        optimizer=optimizer.state_dict(),
        loss_balancer={"log_vars": torch.zeros(6)},
        epoch=999,
        scaler={"scale": 65536.0, "growth_factor": 2.0},
        args=argparse.Namespace(in_domains=list(DOMAINS), patch_size=8, data_path=None, alphas=1.0),
    )
    torch.save({"model": OrderedDict(tensors), **beside, **other}, path, _use_new_zipfile_serialization=zipped)
    return path


@torch.no_grad()
def check_cases(size: str, model: MultiMae) -> int:
    """Compare with all expected tokens of a size."""
    expected = load_file(PARITY / f"multimae_{size}.safetensors")
    rows = [row for row in CASES["cases"] if row["size"] == size]
    for row in rows:
        tokens = model.forward_features({name: given(row["case"], name, row["image_size"]) for name in row["domains"]})
        assert list(tokens.shape) == row["shape"]
        wanted = expected[row["key"]]
        error = (tokens[..., :: row["last_dim_stride"]] - wanted).abs().max() / wanted.abs().max()
        assert error <= 1e-5, row["key"]
    return len(rows)
