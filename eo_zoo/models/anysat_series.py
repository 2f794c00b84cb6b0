"""AnySat's encoder of time series: an L-TAE (lightweight temporal attention) over the dates of each pixel.

Written to be computed in pieces that stay in the cache: equal to the public code up to rounding, in a fraction of its
memory. What is folded together is said beside it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eo_zoo.models.anysat_inputs import Input

HEADS = 16
KEY_WIDTH = 8
GROUPS = 4
SPARSE = 0.95  # where fewer (pixel, date) rows than this share are valid, masked ones are computed once


def _once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a graph hold the function once however often it is called; torch before 2.8 repeats it."""
    region = getattr(torch.compiler, "nested_compile_region", None)
    return region(function) if region else function


def pieces(count: int, rows: int, limit: int) -> list[int]:
    """``count`` items of ``rows`` rows each in runs of about ``limit`` rows, as even as can be: equal shapes
    compile once.
    """
    most = max(1, limit // max(rows, 1))
    runs = -(-count // most)
    even = next((n for n in range(runs, 2 * runs) if count % n == 0), runs)
    size = -(-count // even)
    return [min(size, count - start) for start in range(0, count, size)]


class Rows(nn.Module):
    """Linear, GroupNorm(4), ReLU, dropout: (..., C) to (..., D), every row by itself."""

    def __init__(self, wide: int, narrow: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(wide, narrow)
        self.norm = nn.GroupNorm(GROUPS, narrow)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C) to (R, D)."""
        x = self.linear(x)
        # The same norm, but layer_norm's kernel is twice as fast on rows that are short.
        normed = F.layer_norm(x.unflatten(1, (GROUPS, -1)), (x.shape[1] // GROUPS,), eps=self.norm.eps).flatten(1)
        return self.drop(torch.addcmul(self.norm.bias, normed, self.norm.weight).relu_())


class SeriesProjector(nn.Module):
    """(B, T, C, H, W) and days (B, T) to one vector for each pixel (B, H * W, D).

    Every (pixel, date) goes through five layers; each of 16 heads then takes a mean of its slice of the channels over
    the dates, weighted by a learned query.

    Args:
        one: which input it is for.
        dim: D, a multiple of 64.
    """

    def __init__(self, one: Input, dim: int) -> None:
        super().__init__()
        self.name, self.period, self.dim = one.name, one.period, dim
        widths = (one.channels, dim // 8, dim // 2, dim, 2 * dim, dim)
        self.layers = nn.Sequential(*(Rows(a, b, one.dropout) for a, b in itertools.pairwise(widths)))
        self.in_norm = nn.GroupNorm(HEADS, dim) if one.normed else None
        self.query = nn.Parameter(torch.empty(HEADS, KEY_WIDTH))
        # No layer: it is never called, so that an adapter around one would do nothing.
        self.key = nn.ParameterDict({"weight": torch.empty(HEADS * KEY_WIDTH, dim)})
        # Adding the same number to the scores of all dates changes no weight: it is kept for the way back only.
        self.key_bias: Tensor
        self.register_buffer("key_bias", torch.zeros(HEADS * KEY_WIDTH))
        self.attn_drop = nn.Dropout(0.1)
        self.out = Rows(dim, dim)
        self.out_drop = nn.Dropout(one.dropout)
        self.out_norm = nn.GroupNorm(HEADS, dim)
        self.pad = nn.Parameter(torch.zeros(()))  # what masked values become

    def init_weights(self) -> None:
        """Initial (random) weights as in the public code, where they are not torch's."""
        for tensor in (self.query, self.key["weight"]):
            nn.init.normal_(tensor, std=math.sqrt(2 / KEY_WIDTH))
        nn.init.zeros_(self.key_bias)
        nn.init.zeros_(self.pad)

    def forward(
        self, x: Tensor, days: Tensor, mask: Tensor | None = None, *, memory: int, checkpointing: bool = False
    ) -> Tensor:
        """(B, T, C, H, W), (B, T), bool as x or with one channel, to (B, H * W, D).

        Args:
            x: normalised values.
            days: of the year.
            mask: True where valid; what is not becomes the learned ``pad``.
            memory: bytes that the features of one piece may take.
            checkpointing: compute features again in the backward pass, piece by piece.
        """
        batch, dates, _, height, width = x.shape
        code = self._date_code(days)
        rows = x.permute(0, 3, 4, 1, 2).flatten(1, 2)  # B, pixels, T, C
        valid = None
        if mask is not None:
            mask = mask.permute(0, 3, 4, 1, 2).flatten(1, 2)
            rows = torch.where(mask, rows, self.pad.to(rows.dtype))
            valid = mask.any(-1)
            valid = valid if self._worthwhile(valid) else None
        share = 1.0 if valid is None else float(valid.float().mean())
        limit = max(1, int(memory / (3 * self.dim * x.element_size() * max(share, 0.1))))
        step: Callable[..., Tensor] = self._piece
        if checkpointing and torch.is_grad_enabled():
            step = functools.partial(checkpoint, self._piece, use_reentrant=False)
        made = []
        pixels = height * width
        if pixels * dates > limit:  # the pixels of one sample after another
            sizes = pieces(pixels, dates, limit)
            for i in range(batch):
                flags = [None] * len(sizes) if valid is None else valid[i : i + 1].split(sizes, dim=1)
                parts = rows[i : i + 1].split(sizes, dim=1)
                made.append(torch.cat([step(p, code[i : i + 1], f) for p, f in zip(parts, flags, strict=True)], dim=1))
        else:  # whole samples together
            sizes = pieces(batch, pixels * dates, limit)
            flags = [None] * len(sizes) if valid is None else valid.split(sizes)
            made = [step(*args) for args in zip(rows.split(sizes), code.split(sizes), flags, strict=True)]
        return torch.cat(made) if len(made) > 1 else made[0]

    def _worthwhile(self, valid: Tensor) -> bool:
        """Whether masked rows are left out: that depends on values, so not in a graph, and not with dropout."""
        if torch.compiler.is_compiling() or self.training or valid.is_meta:
            return False
        return float(valid.float().mean()) < SPARSE

    def _date_code(self, days: Tensor) -> Tensor:
        """(B, T) to (B, T, D / 16): sine and cosine in turn; the same for all heads."""
        width = self.dim // HEADS
        place = torch.arange(width, device=days.device)
        angle = days[..., None] / torch.pow(float(self.period), 2 * (place // 2) / width)
        return torch.where(place % 2 == 0, angle.sin(), angle.cos())

    def _features(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        """(b, p, T, C) to (b, p, T, D); rows that are masked as a whole are all alike, and computed once."""
        if valid is None:
            return self.layers(rows.flatten(0, -2)).unflatten(0, rows.shape[:-1])
        flags = valid.flatten()
        kept = torch.cat([rows.flatten(0, -2)[flags], self.pad.to(rows.dtype).expand(1, rows.shape[-1])])
        place = torch.where(flags, flags.cumsum(0) - 1, len(kept) - 1)
        return self.layers(kept)[place].unflatten(0, rows.shape[:-1])

    @_once
    def _piece(self, rows: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """Pixels (b, p, T, C), date codes (b, T, D / 16) and valid rows (b, p, T) to vectors (b, p, D)."""
        features = self._features(rows, valid)
        # At least float32: scores of some tens would have no digits left in bfloat16.
        wide, device = torch.promote_types(features.dtype, torch.float32), rows.device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with exact:
            pooled = self._pool(features.to(wide), code.to(wide)).to(features.dtype)
        vectors = self.out_drop(self.out(pooled.flatten(0, 1).flatten(1)))
        return self.out_norm(vectors).unflatten(0, rows.shape[:2])

    def _pool(self, features: Tensor, code: Tensor) -> Tensor:
        """Features (b, p, T, D) and date codes (b, T, D / 16) to each head's mean over the dates (b, p, 16, D / 16)."""
        query, key = self.query.to(features.dtype), self.key["weight"].to(features.dtype)
        # The query is folded into the keys: 16 scores instead of 16 keys of 8.
        weight = torch.einsum("hk,hkd->hd", query, key.unflatten(0, (HEADS, KEY_WIDTH))) / math.sqrt(KEY_WIDTH)
        by_slice = weight.unflatten(1, (HEADS, -1))  # head, slice, D / 16
        added = torch.einsum("btc,hc->bth", code, by_slice.sum(1)).unsqueeze(1)  # the code's share of the scores
        if self.in_norm is not None:
            # Norm over the dates and a slice. Its scale and shift go to what becomes of the features; two plain sums
            # are many times as fast as var_mean over such strides.
            sliced = features.unflatten(-1, (HEADS, -1))
            count = sliced.shape[2] * sliced.shape[4]
            mean = sliced.sum(dim=2, keepdim=True).sum(dim=-1, keepdim=True) / count
            features = (sliced - mean).flatten(-2)
            squares = features.square().sum(dim=2).unflatten(-1, (HEADS, -1)).sum(-1)  # b, p, slice
            scale = torch.rsqrt(squares / count + self.in_norm.eps)[..., None]
            affine = self.in_norm.weight, self.in_norm.bias
            gain, shift = (t.to(features.dtype).unflatten(0, (HEADS, -1)) for t in affine)
            scaled = (by_slice * gain * scale.unsqueeze(2)).flatten(-2)  # b, p, head, D
            scores = features @ scaled.transpose(-1, -2) + added
        else:
            scores = F.linear(features, weight) + added
        attention = self.attn_drop(scores.softmax(dim=2))  # b, p, T, head
        pooled = (features.unflatten(-1, (HEADS, -1)) * attention.unsqueeze(-1)).sum(dim=2)  # b, p, head, D / 16
        if self.in_norm is not None:
            pooled = pooled * scale * gain + shift * attention.sum(2).unsqueeze(-1)  # a sum of 1 but for dropout
        return pooled + torch.einsum("bpth,btc->bphc", attention, code)
