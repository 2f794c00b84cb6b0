"""AnySat's parts: tables of positions and distances, projectors of images, and transformer blocks.

Series have a projector of their own, in ``anysat_series``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import checkpoint
from torch import Tensor, nn

from eo_zoo.layers.linear import linear
from eo_zoo.layers.positions import kept, sincos_positions
from eo_zoo.models.anysat_inputs import CELL, Input

BUCKETS = 8  # of which the three for negative distances were never used
OUTSIDE = 7  # the bucket of tokens without a place: class and modis


@kept
def position_table(dim: int, side: int, step: float, prefix: int) -> Tensor:
    """(1, prefix + side^2, dim), see ``sincos_positions``; then device and dtype, as of ``bucket_table``."""
    return sincos_positions(dim, side, side, step=step, prefix=prefix)


@kept
def bucket_table(side: int, prefix: int, repeats: int) -> Tensor:
    """Which bias the tokens of a square have by their distance: (prefix + side^2, prefix + repeats * side^2).

    Rounded distances 0, 1, 2 to 3 and more have the buckets 3, 4, 5 and 6. For keys the square comes ``repeats`` times.
    """
    place = np.moveaxis(np.mgrid[:side, :side], 0, -1).reshape(-1, 2)
    distance = np.sqrt(np.square(place[:, None] - place[None]).sum(-1, dtype=np.float64)).round()
    bucket = 3 + sum((distance >= limit).astype(np.int64) for limit in (1, 2, 4))
    rows = np.pad(np.tile(bucket, (1, repeats)), ((prefix, 0), (prefix, 0)), constant_values=OUTSIDE)
    return torch.from_numpy(rows)


class ImageProjector(nn.Module):
    """(B, C, H, W) to the vectors of its sub-patches, patch by patch: (B * n * n, s, D).

    The order within a patch is the one that the weights were trained with: 10 m cells row by row, and in a cell
    sub-patches row by row.
    """

    def __init__(self, one: Input, dim: int) -> None:
        super().__init__()
        self.pixels, self.across = one.pixels, round(CELL / one.cell)  # sub-patches a side of a 10 m cell
        self.embed = nn.Conv2d(one.channels, dim, one.pixels, stride=one.pixels, bias=False)
        self.fc1, self.norm1 = nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim)
        self.fc2, self.norm2 = nn.Linear(2 * dim, dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, patches: int) -> Tensor:
        """Images of ``patches`` patches a side."""
        batch, channels, side, _ = x.shape
        cells = side // (self.pixels * self.across * patches)  # 10 m cells a side of a patch
        x = x.view(batch, channels, *(patches, cells, self.across, self.pixels) * 2)
        x = x.permute(0, 2, 6, 3, 7, 4, 8, 1, 5, 9).reshape(-1, cells**2 * self.across**2, self.embed.weight[0].numel())
        x = linear(x, self.embed.weight.flatten(1))  # a convolution whose windows do not overlap
        x = F.relu(self.norm1(self.fc1(x)), inplace=True)
        return F.relu(self.norm2(self.fc2(x)), inplace=True)


class BiasedAttention(nn.Module):
    """Attention with a bias by the distance of query and key.

    The bias is the query's product with a learned vector for the distance. As released, the first head's query makes
    that of all heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.distance = nn.Parameter(torch.empty(self.head_dim, BUCKETS))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, buckets: Tensor, first: bool = False) -> Tensor:
        """(N, L, D) and buckets (L, L) to (N, L, D), or to (N, 1, D): the first token alone."""
        asked = 1 if first else x.shape[1]
        if first and isinstance(self.qkv, nn.Linear):  # and no adapter around it, which is called as a whole
            dim = x.shape[2]
            q = linear(x[:, :1], self.qkv.weight[:dim], self.qkv.bias[:dim])
            k, v = linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q[:, :asked], k, v))
        bias = distance_bias(q[:, :1] * self.head_dim**-0.5, self.distance, buckets[:asked])
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))


def distance_bias(query: Tensor, distance: Tensor, buckets: Tensor) -> Tensor:
    """Queries (N, 1, Lq, d), vectors (d, 8) and buckets (Lq, Lk) to what is added to the scores: (N, 1, Lq, Lk)."""
    return torch.gather(query @ distance, -1, buckets.expand(*query.shape[:2], -1, -1))


class PatchBlock(nn.Module):
    """Pre-norm transformer block of the patch encoder."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = BiasedAttention(dim, heads)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, buckets: Tensor, first: bool = False) -> Tensor:
        """(N, L, D) to the same, or to (N, 1, D)."""
        attended = self.attn(self.norm1(x), buckets, first)
        x = (x[:, :1] if first else x) + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_residual(module: nn.Module, blocks: Iterable[Any]) -> None:
    """Initial (random) linear layers as in the public code; those that end a branch of a later block are smaller."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)  # the public code truncates it at 100 times that
            nn.init.zeros_(part.bias)
    for i, block in enumerate(blocks, 1):
        for last in (block.attn.proj, block.mlp.fc2):
            with torch.no_grad():
                last.weight.div_(math.sqrt(2 * i))


class PatchEncoder(nn.Module):
    """The vectors of a patch's sub-patches to one vector for the patch, and to what they are in its light."""

    def __init__(self, dim: int, depth: int, heads: int, drop_path_rate: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks: Any = nn.ModuleList(PatchBlock(dim, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        """Initial (random) weights as in the public code, where they are not torch's."""
        nn.init.zeros_(self.cls_token)
        init_residual(self, self.blocks)
        for block in self.blocks:
            nn.init.normal_(block.attn.distance, std=0.02)

    def forward(
        self, x: Tensor, positions: Tensor, buckets: Tensor, *, whole: bool, checkpointing: bool = False
    ) -> Tensor:
        """(N, L, D) to (N, 1, D), the patch; with ``whole`` to (N, 1 + L, D), its sub-patches after it."""
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1) + positions
        for block in self.blocks:
            first = not whole and block is self.blocks[-1]  # nobody asks for the others behind the last block
            x = checkpoint(block, x, buckets, first) if checkpointing else block(x, buckets, first)
        return self.norm(x)


class PoolingBlock(nn.Module):
    """One learned question with a position each for the tile and for every patch, to all tokens.

    As released there is no residual around the attention, the question is not projected, and the bias is made of the
    unscaled question.
    """

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.kv = nn.Linear(dim, 2 * dim)
        self.distance = nn.Parameter(torch.empty(self.head_dim, BUCKETS))
        self.proj = nn.Linear(dim, dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def init_weights(self) -> None:
        """Initial (random) weights as in the public code, where they are not torch's."""
        nn.init.zeros_(self.query)
        nn.init.normal_(self.distance, std=0.02)

    def forward(self, x: Tensor, positions: Tensor, buckets: Tensor) -> Tensor:
        """Tokens (B, L, D), positions (1 or B, Q, D) and buckets (Q, L), or (B, Q, L), to (B, Q, D)."""
        q = (self.query + positions).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.kv(self.norm1(x)).chunk(2, dim=-1))
        if buckets.ndim == 3:
            buckets = buckets.unsqueeze(1)
        bias = distance_bias(q[:, :1], self.distance, buckets)
        shape = (len(x), -1, -1, -1)
        attended = F.scaled_dot_product_attention(q.expand(shape), k, v, attn_mask=bias.expand(shape))
        x = self.drop_path(self.proj(attended.transpose(1, 2).flatten(2)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
