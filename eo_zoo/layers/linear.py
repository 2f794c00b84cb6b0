"""Matrix products on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below these a convolution's set-up costs more than it gains (measured with two threads).
ROWS, WIDTH = 128, 64
ONEDNN = torch.backends.mkldnn.is_available()  # asked once: graphs cannot
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has not the first


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``; in float32 on a CPU as a convolution of one pixel, which torch gives to oneDNN.

    torch leaves float32 products to MKL, which does not use AVX-512 on every CPU that has it: on AMD's oneDNN is
    more than twice as fast. With one thread torch takes MKL for both. In an exported graph, which may be for
    another machine, it is ``F.linear``.
    """
    if _exporting():
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or rows < ROWS or x.shape[-1] < WIDTH
    if plain or not ONEDNN:
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)  # channels last, so that nothing is moved
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """``nn.Linear`` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., D)."""
        return linear(x, self.weight, self.bias)


def by_onednn(module: nn.Module) -> None:
    """Let every ``nn.Linear`` in a module, timm's blocks included, compute by way of `linear`."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
