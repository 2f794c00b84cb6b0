"""Fixed sine-cosine position tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(dim: int, height: int, width: int, *, step: float = 1.0, prefix: int = 1) -> Tensor:
    """Table (1, prefix + height * width, dim), float32: sin x w, cos x w, sin y w, cos y w, row by row.

    Args:
        dim: of the tokens, a multiple of 4; w is 10000^(-i / (dim / 4)).
        height: rows of tokens.
        width: columns of tokens.
        step: distance of neighbouring tokens, in what positions are counted in.
        prefix: rows of zeros in front, for tokens without a place.
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * step * omega for axis in (column, row)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, 0, prefix, 0)).float().unsqueeze(0)
