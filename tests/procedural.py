"""Weights and inputs that any program can rebuild from names alone.

The expected numbers in tests/data/parity were made by running the original public code on these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eo_zoo.models.golden import uniform as uniform

PARITY = Path(__file__).parent / "data" / "parity"
# Fixed sine-cosine tables: left as the model builds them, so they are tested too.
TABLES = ("pos_embed", "pos_emb")


def days(name: str, shape: Iterable[int]) -> Tensor:
    """Days of the year (batch, dates), ascending."""
    unit = (uniform(name, shape) / 3**0.5 + 1) / 2
    return (unit * 365).long().sort(dim=1).values


def weight(key: str, shape: Iterable[int]) -> Tensor:
    """The value of a tensor of the original checkpoint, from its name there."""
    shape = tuple(shape)
    u = uniform(key, shape)
    if len(shape) >= 2:
        return u * (float(np.prod(shape[1:])) ** -0.5 if shape[0] > 1 else 0.5)
    return 1 + 0.1 * u if key.endswith("weight") else 0.1 * u


def manifest(name: str, part: str | None = None) -> list[tuple[str, list[int], str]]:
    """(key, shape, dtype) of each tensor of an original checkpoint."""
    rows = json.loads((PARITY / f"{name}.manifest.json").read_text())
    return rows[part] if part else rows


def forge(rows: Iterable[tuple[str, list[int], str]], tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint in the official layout: every tensor by the rule, position tables as given by name."""
    return {
        key: tables[key].clone() if key.endswith(TABLES) else weight(key, shape).to(getattr(torch, dtype))
        for key, shape, dtype in rows
    }
