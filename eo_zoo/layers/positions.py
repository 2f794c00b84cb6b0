"""Fixed sine-cosine position tables, and a cache for what depends on shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 64  # tables of one kind that are kept


def sincos_positions(dim: int, height: int, width: int, *, step: float = 1.0, prefix: int = 1) -> Tensor:
    """Table (1, prefix + height * width, dim), float32: sin x w, cos x w, sin y w, cos y w, row by row.

    Args:
        dim: of the tokens, a multiple of 4; w is 10000^(-i / (dim / 4)).
        height: rows of tokens.
        width: columns of tokens.
        step: distance of neighbouring tokens, in what positions are counted in.
        prefix: rows of zeros in front, for tokens without a place.
    """
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    row, column = np.mgrid[:height, :width]
    angles = [axis.reshape(-1, 1) * step * omega for axis in (column, row)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(np.pad(table, ((prefix, 0), (0, 0)))[None].astype(np.float32))


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a table be made once for each shape, device and type, and be a constant in graphs.

    Args:
        make: from numbers to a table on the CPU, by numpy: what a tracer makes of torch's own functions must not stay.

    Returns:
        ``table(*numbers, device, dtype)``.
    """
    tables: dict[tuple[Any, ...], Tensor] = {}

    @torch.compiler.assume_constant_result
    @functools.wraps(make)
    def table(*numbers: Any) -> Tensor:
        if (found := tables.get(numbers)) is not None:
            return found
        *shape, device, dtype = numbers
        # outside of inference mode: a table made there could not serve a later backward pass
        with torch.inference_mode(False):
            made = make(*shape)
            if (made.device, made.dtype) != (device, dtype):
                made = made.to(device, dtype)
        if type(made) is Tensor:  # and not a tracer's stand-in
            if len(tables) >= MOST:
                tables.clear()
            tables[numbers] = made
        return made

    return table
