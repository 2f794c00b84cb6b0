"""AnySat: one encoder for eleven inputs of any resolution and scale, single images and time series together.

Paper: Astruc et al., "AnySat: One Earth Observation Model for Many Resolutions, Scales, and Modalities", CVPR 2025,
arXiv:2412.14123. Public code: github.com/gastruc/AnySat at e03e72e, MIT, as are the weights.

Every input is cut into sub-patches (10 x 10 pixels of aerial images, one pixel of a series) with a vector each; the
patch encoder makes one vector of those of a patch, input by input; the blocks let all patches of all inputs see each
other; and the pooling block asks them one question for the tile and one for each patch.

Names differ from the public code's: ``projectors`` make the sub-patches' vectors, ``patch_encoder`` is its
``spatial_encoder``, ``pool`` its last block.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, WeightsError, nearest
from eo_zoo.layers.positions import sincos_positions
from eo_zoo.models._build import StrictLoading, build, cfgs_for, record_of
from eo_zoo.models.anysat_inputs import (
    CELL,
    INPUTS,
    MANY_PATCHES,
    OUTPUTS,
    Input,
    check,
    check_values,
    days,
)
from eo_zoo.models.anysat_series import SeriesProjector, pieces

_logger = logging.getLogger(__name__)
ORDERS = ("image", "released")
BUCKETS = 8  # of which the three for negative distances were never used
OUTSIDE = 7  # the bucket of tokens without a place: class and modis
ON_CPU, ELSEWHERE = 32 * 2**20, 2**30  # bytes of features at a time: what stays in a CPU's cache, or keeps a GPU busy


# ---------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _bucket_rows(side: int, prefix: int) -> Tensor:
    """Which bias two tokens of a square of side x side have, (prefix + side^2) squared, by their distance in cells.

    Rounded distances 0, 1, 2 to 3 and more have the buckets 3, 4, 5 and 6.
    """
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    distance = (place[:, None] - place[None]).square().sum(-1).float().sqrt().round()
    bucket = 3 + (distance >= 1).long() + (distance >= 2).long() + (distance >= 4).long()
    return F.pad(bucket, (prefix, 0, prefix, 0), value=OUTSIDE)


class Tables:
    """Position tables and bias buckets by shape: made once for a device and type, and kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def positions(self, dim: int, side: int, step: float, prefix: int, like: Tensor) -> Tensor:
        """(1, prefix + side^2, dim), see ``sincos_positions``."""
        key = ("positions", dim, side, step, prefix, like.device, like.dtype)
        return self._get(key, lambda: sincos_positions(dim, side, side, step=step, prefix=prefix).to(like))

    def buckets(self, side: int, prefix: int, repeats: int, like: Tensor) -> Tensor:
        """(prefix + side^2, prefix + repeats * side^2): for keys, the square comes ``repeats`` times."""
        key = ("buckets", side, prefix, repeats, like.device)

        def make() -> Tensor:
            rows = _bucket_rows(side, prefix)
            return torch.cat([rows[:, :prefix], rows[:, prefix:].repeat(1, repeats)], dim=1).to(like.device)

        return self._get(key, make)

    def _get(self, key: tuple[Any, ...], make: Any) -> Tensor:
        kept = self._kept.get(key)
        if kept is None:
            # outside of inference mode: a table made there could not serve a later backward pass
            with torch.inference_mode(False), torch.no_grad():
                kept = make()
            if type(kept) is Tensor and not torch.compiler.is_compiling():  # no tracer's stand-in may stay
                self._kept[key] = kept
        return kept

    def __deepcopy__(self, memo: dict[int, Any]) -> Tables:
        return Tables()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tables, ()


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

    def init_weights(self) -> None:
        """Initial (random) weights: torch's."""
        for module in self.children():
            module.reset_parameters()

    def forward(self, x: Tensor, patches: int) -> Tensor:
        """Images of ``patches`` patches a side."""
        batch, channels, side, _ = x.shape
        cells = side // (self.pixels * self.across * patches)  # 10 m cells a side of a patch
        x = x.view(batch, channels, *(patches, cells, self.across, self.pixels) * 2)
        x = x.permute(0, 2, 6, 3, 7, 4, 8, 1, 5, 9).reshape(-1, cells**2 * self.across**2, self.embed.weight[0].numel())
        x = F.linear(x, self.embed.weight.flatten(1))  # a convolution whose windows do not overlap
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
        length, dim = x.shape[1:]
        asked = 1 if first else length
        if first:
            q = F.linear(x[:, :1], self.qkv.weight[:dim], self.qkv.bias[:dim])
            k, v = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
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


class PatchEncoder(nn.Module):
    """The vectors of a patch's sub-patches to one vector for the patch, and to what they are in its light."""

    def __init__(self, dim: int, depth: int, heads: int, drop_path_rate: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(PatchBlock(dim, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        """Initial (random) weights as in the public code."""
        nn.init.zeros_(self.cls_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for i, block in enumerate(self.blocks, 1):
            nn.init.trunc_normal_(block.attn.distance, std=0.02)
            for linear in (block.attn.proj, block.mlp.fc2):
                with torch.no_grad():
                    linear.weight.div_(math.sqrt(2 * i))

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


class AnySat(StrictLoading):
    """AnySat encoder: a dict of inputs over one square tile to vectors of the tile, its patches or its sub-patches.

    Args:
        embed_dim: D.
        depth: blocks of the patch encoder, and of the transformer over all patches.
        num_heads: of both.
        inputs: names of the inputs to build for, all eleven by default; see ``INPUTS``.
        part: of a file that holds more than one encoder: "student" or "teacher".
        num_classes: 0 for features; else a linear layer on the pooled vector.
        global_pool: "token" (the tile's own vector, as published) or "avg" (the mean of the patches').
        patch_size: in metres, for calls that give none; by default the smallest that the inputs allow, 10 or 30.
        output: for calls that give none.
        output_modality: for calls that give none.
        memory: bytes that the features of a piece of work may take; by default what stays in a CPU's cache, 1 GiB
            elsewhere. The results do not depend on it.
        drop_rate: before the classifier.
        drop_path_rate: stochastic depth of the last block, falling to 0 at the first.

    Raises:
        InputError: an unknown input, pooling or output.
    """

    layout = "anysat-1"

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 6,
        num_heads: int = 12,
        inputs: Sequence[str] | None = None,
        part: str | None = None,
        num_classes: int = 0,
        global_pool: str = "token",
        patch_size: int | None = None,
        output: str = "tile",
        output_modality: str | None = None,
        memory: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        unknown = [name for name in inputs or () if name not in INPUTS]
        if unknown:
            raise InputError(f"unknown input {unknown[0]!r}. {nearest(unknown[0], INPUTS)}")
        _one_of("output", output, OUTPUTS)
        _one_of("part", part, (None, "student", "teacher"))
        self.inputs = tuple(name for name in INPUTS if inputs is None or name in inputs)
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.part, self.memory = part, memory
        self.patch_size, self.output, self.output_modality = patch_size, output, output_modality
        self.grad_checkpointing = False
        self.tables = Tables()

        self.projectors = nn.ModuleDict()
        for name in self.inputs:
            one = INPUTS[name]
            self.projectors[_module_name(name)] = (SeriesProjector if one.series else ImageProjector)(one, embed_dim)
        self.patch_encoder = PatchEncoder(embed_dim, depth, num_heads, drop_path_rate)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        *rates, last = torch.linspace(0, drop_path_rate, depth + 1, device="cpu").tolist()
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        self.pool = PoolingBlock(embed_dim, num_heads, last)
        # A patch of 10 m is one pixel of Sentinel-2.
        reduction = round((patch_size or CELL) / CELL)
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=reduction, module=f"blocks.{i}") for i in range(depth)
        ] + [dict(num_chs=embed_dim, reduction=reduction, module="pool")]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    # ---- timm's conventions ----

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initial (random) weights as in the public code."""
        self.weights_origin = None
        for projector in self.projectors.values():
            projector.init_weights()
        self.patch_encoder.init_weights()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.zeros_(self.pool.query)
        nn.init.trunc_normal_(self.pool.distance, std=0.02)
        for module in [*self.blocks.modules(), *self.pool.modules()]:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def get_classifier(self) -> nn.Module:
        """The linear layer, or Identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, random head for ``num_classes``; 0 takes it away."""
        if global_pool is not None:
            self.global_pool = _one_of("global_pool", global_pool, ("token", "avg"))
        self.num_classes = num_classes
        place = next(self.parameters())
        self.head = (
            nn.Linear(self.num_features, num_classes, device=place.device, dtype=place.dtype)
            if num_classes
            else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute features again in the backward pass, block by block and piece by piece of the series."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the learned tokens and questions."""
        single = {"cls_token", "patch_encoder.cls_token", "pool.query"}
        return single | {name for name, _ in self.named_parameters() if name.endswith((".pad", "distance"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the input on, for layer-wise learning rates."""
        depth = len(self.blocks)
        return {
            "stem": r"^projectors",
            "blocks": [
                (r"^patch_encoder" if coarse else r"^patch_encoder\.blocks\.(\d+)", None if coarse else (0,)),
                (r"^patch_encoder\.(cls_token|norm)", (0,) if coarse else (depth - 1,)),
                (r"^blocks\.(\d+)", None),
                (r"^cls_token", (depth,)),
                (r"^pool", (99998,)),
                (r"^head", (99999,)),
            ],
        }

    # ---- from inputs to tokens ----

    def _pieces_of(self, like: Tensor) -> int:
        return self.memory or (ON_CPU if like.device.type == "cpu" else ELSEWHERE)

    def _sub_patches(self, name: str, data: Mapping[str, Any], patch_size: int, patches: int) -> Tensor:
        """The vectors of an input's sub-patches, patch by patch: (B * n * n, s, D)."""
        one, x = INPUTS[name], data[name]
        projector = self.projectors[_module_name(name)]
        mask = data.get(f"{name}_mask")
        check_values(name, x, mask)
        if not one.series:
            return projector(x, patches)
        made = projector(
            x, days(name, data), mask, memory=self._pieces_of(x), checkpointing=self.grad_checkpointing and self.training
        )
        if name == "modis":
            return made
        side = round(patch_size / one.cell)
        made = made.view(len(x), patches, side, patches, side, -1)
        return made.transpose(2, 3).reshape(-1, side * side, self.embed_dim)

    def encode_patches(
        self, name: str, data: Mapping[str, Any], patch_size: int, patches: int, *, whole: bool = False
    ) -> Tensor:
        """One input by itself: its patches' vectors (B * n * n, 1, D), with ``whole`` its sub-patches' after them.

        modis has one patch, the tile.
        """
        x = self._sub_patches(name, data, patch_size, patches)
        side = math.isqrt(x.shape[1])
        positions = self.tables.positions(self.embed_dim, side, INPUTS[name].cell, 1, x)
        buckets = self.tables.buckets(side, 1, 1, x)
        limit = self._pieces_of(x) // (3 * self.embed_dim * x.element_size())
        made = [
            self.patch_encoder(
                part, positions, buckets, whole=whole, checkpointing=self.grad_checkpointing and self.training
            )
            for part in x.split(pieces(len(x), x.shape[1] + 1, limit))
        ]
        return torch.cat(made) if len(made) > 1 else made[0]

    def _tokens(
        self, data: Mapping[str, Any], patch_size: int | None, scale: int | None, keep: str | None = None
    ) -> tuple[list[Tensor], Tensor | None, int, int]:
        """Class, modis and each input's patches with their positions; sub-patches of ``keep``; patch size, patches."""
        if scale is not None:
            if patch_size is not None and patch_size != 10 * scale:
                raise InputError(f"scale {scale} means a patch size of {10 * scale} m, but {patch_size} m is given too")
            patch_size = 10 * scale
        names, patch_size, patches = check(data, patch_size or self.patch_size, self.inputs)
        if patches**2 > MANY_PATCHES:
            _warn_many(patches, patch_size)
        batch = len(data[names[0]])
        tokens, modis, kept = [], [], None
        for name in names:
            made = self.encode_patches(name, data, patch_size, patches, whole=name == keep)
            if name == keep:
                kept = made[:, 1:].unflatten(0, (batch, patches, patches))
            vectors = made[:, 0].view(batch, -1, self.embed_dim)
            if name == "modis":
                modis = [vectors]
            else:
                positions = self.tables.positions(self.embed_dim, patches, patch_size / CELL, 0, vectors)
                tokens.append(vectors + positions)
        first = self.cls_token.to(tokens[0].dtype).expand(batch, -1, -1)
        return [first, *modis, *tokens], kept, patch_size, patches

    def _blocks(self, tokens: Tensor) -> Any:
        """The tokens after each block in turn."""
        for block in self.blocks:
            remember = self.grad_checkpointing and self.training
            tokens = checkpoint(block, tokens) if remember else block(tokens)
            yield tokens

    def _ask(self, tokens: Tensor, patch_size: int, patches: int, *, prefix: int, inputs: int, tile: bool) -> Tensor:
        """The pooling block: (B, 1 + n * n, D), or with ``tile`` (B, 1, D)."""
        positions = self.tables.positions(self.embed_dim, patches, patch_size / CELL, prefix, tokens)
        buckets = self.tables.buckets(patches, prefix, inputs, tokens)
        if tile:
            return self.pool(tokens, positions[:, :1], buckets[:1])
        if prefix > 1:  # nothing is asked in modis' place
            positions = torch.cat([positions[:, :1], positions[:, prefix:]], dim=1)
            buckets = torch.cat([buckets[:1], buckets[prefix:]])
        return self.pool(tokens, positions, buckets)

    def _encode(
        self, data: Any, patch_size: int | None, scale: int | None, *, tile: bool = False, keep: str | None = None
    ) -> tuple[Tensor, Tensor | None, int]:
        parts, kept, patch_size, patches = self._tokens(data, patch_size, scale, keep)
        prefix = sum(part.shape[1] == 1 for part in parts[:2]) if "modis" in data else 1
        tokens = torch.cat(parts, dim=1)
        for tokens in self._blocks(tokens):  # noqa: B020 - the last is what counts
            pass
        asked = self._ask(tokens, patch_size, patches, prefix=prefix, inputs=len(parts) - prefix, tile=tile)
        return asked, kept, patches

    # ---- calls ----

    def forward_features(
        self, data: Mapping[str, Any], *, patch_size: int | None = None, scale: int | None = None
    ) -> Tensor:
        """Inputs as ``forward`` takes them to (B, 1 + n * n, D): the tile's vector, then its patches' row by row."""
        return self._encode(data, patch_size, scale)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gives to the pooled vector (B, D), or to logits (B, num_classes)."""
        x = self.head_drop(x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(dim=1))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        data: Mapping[str, Any],
        indices: int | Sequence[int] | None = None,
        *,
        patch_size: int | None = None,
        scale: int | None = None,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **unused: Any,
    ) -> Any:
        """Maps (B, D, n, n) after each block: the mean over the inputs' tokens of a patch; the last is the pooled one.

        Args:
            data: as ``forward`` takes it.
            indices: of the maps wanted, as timm has them; all by default.
            patch_size: in metres.
            scale: patch size in units of 10 m.
            output_fmt: "NCHW", or "NLC" for tokens (B, n * n, D).
            intermediates_only: leave out what ``forward_features`` gives, which comes first otherwise.
            **unused: timm's ``norm`` and ``stop_early``; there is no norm behind the blocks.
        """
        _one_of("output_fmt", output_fmt, ("NCHW", "NLC"))
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        parts, _, size, patches = self._tokens(data, patch_size, scale)
        prefix = 2 if "modis" in data else 1
        made = []
        tokens = torch.cat(parts, dim=1)
        for tokens in self._blocks(tokens):  # noqa: B020 - each in turn
            made.append(tokens[:, prefix:].unflatten(1, (-1, patches**2)).mean(dim=1))
        final = self._ask(tokens, size, patches, prefix=prefix, inputs=len(parts) - prefix, tile=False)
        made.append(final[:, 1:])
        if output_fmt == "NCHW":
            made = [tokens.transpose(1, 2).unflatten(2, (patches, patches)) for tokens in made]
        chosen = [made[i] for i in wanted]
        return chosen if intermediates_only else (final, chosen)

    def forward(
        self,
        data: Mapping[str, Any],
        patch_size: int | None = None,
        output: str | None = None,
        output_modality: str | None = None,
        *,
        scale: int | None = None,
        order: str = "image",
    ) -> Tensor:
        """Features of a square tile, D of them: 768 for base.

        Args:
            data: a dict of one or more of the inputs, normalised floats (see ``eo_zoo.create_transform``), all over the
                same square of ground: "aerial" (B, 4, H, W) and "aerial-flair" (B, 5, H, W) at 0.2 m per pixel, "spot"
                (B, 3, H, W) at 1 m, "naip" (B, 4, H, W) at 1.25 m; and time series "s2" (B, T, 10, H, W), "s1-asc" (2
                channels), "s1" (3) and "l8" (11) at 10 m, "l7" (6) and "alos" (3) at 30 m, "modis" (B, T, 7, 1, 1) for
                the whole tile, never alone. With each series ``<name>_dates`` (B, T): days of the year from 1 on (1
                January), or dates, see ``eo_zoo.dates``; and, if wanted, ``<name>_mask``: bool, True where valid, as
                the series or with one channel.
            patch_size: in metres: a multiple of 10 (30 with l7 or alos) that divides the tile's side.
            output: "tile" gives (B, D), or logits (B, num_classes) in a model made for classes; "patch" (B, n, n, D);
                "all" (B, 1 + n * n, D), the tile's vector first; "dense" (B, h, w, 2 D), for each sub-patch of
                ``output_modality`` its patch's vector and its own.
            output_modality: of "dense": by default the first input of the dict.
            scale: patch size in units of 10 m, the older way to give it.
            order: of "dense": rows and columns as in the image, or "released", as the public code returns them, which
                shuffles sub-patches of aerial images inside each patch.

        Raises:
            InputError: anything is missing, unknown, or does not fit together; values that are not finite.
        """
        output = _one_of("output", output or self.output, OUTPUTS)
        _one_of("order", order, ORDERS)
        keep = self._dense_of(data, output_modality or self.output_modality) if output == "dense" else None
        if output == "tile":
            tokens, _, _ = self._encode(data, patch_size, scale, tile=self.global_pool == "token")
            return self.forward_head(tokens)
        tokens, kept, patches = self._encode(data, patch_size, scale, keep=keep)
        if output == "all":
            return tokens
        maps = tokens[:, 1:].unflatten(1, (patches, patches))
        return maps if kept is None or keep is None else _dense(maps, kept, INPUTS[keep], order)

    def _dense_of(self, data: Mapping[str, Any], wanted: str | None) -> str:
        names = [name for name in data if name in self.inputs and name != "modis"]
        if wanted is None and names:
            return names[0]
        if wanted not in names:
            raise InputError(
                f"output_modality is {wanted!r}, expected one of the inputs that have a map: {', '.join(names)}"
            )
        return wanted

    # ---- weights ----

    @classmethod
    def from_official(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours; see ``from_official`` of this module."""
        return from_official(tensors)

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Take this model's part of the file, and of that this model's inputs; see ``StrictLoading.adapt``."""
        parts = sorted({name.partition(".")[0] for name in tensors if name.startswith(PARTS)})
        if parts and self.part is None:
            raise WeightsError(
                f"the file holds more than one encoder ({', '.join(parts)}): create the model by a tag, "
                "anysat_base.student or anysat_base.teacher, or with part='student' or 'teacher'"
            )
        if parts:
            start = f"{self.part}."
            tensors = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        elif self.part is not None:
            _logger.info("the file holds one encoder only: it is taken for the %s", self.part)
        left_out = tuple(f"projectors.{_module_name(name)}." for name in INPUTS if name not in self.inputs)
        return {name: t for name, t in tensors.items() if not name.startswith(left_out or ("\0",))}, {}


def _module_name(name: str) -> str:
    return name.replace("-", "_")  # graphs name their parts by it


def _one_of(what: str, value: Any, known: Sequence[Any]) -> Any:
    if value not in known:
        raise InputError(f"{what} is {value!r}, expected one of {', '.join(str(one) for one in known)}")
    return value


@functools.cache
def _warn_many(patches: int, patch_size: int) -> None:
    _logger.warning(
        "%d x %d patches of %d m: attention grows with the square of their number; more than %d are better cut into "
        "several tiles, or into larger patches",
        patches, patches, patch_size, MANY_PATCHES,
    )  # fmt: skip


def _dense(maps: Tensor, subs: Tensor, one: Input, order: str) -> Tensor:
    """Patches (B, n, n, D) and their sub-patches (B, n, n, s, D) to the map of sub-patches (B, h, w, 2 D)."""
    side = math.isqrt(subs.shape[3])
    across = max(round(CELL / one.cell), 1) if order == "image" else side  # sub-patches a side of a cell
    whole = torch.cat([maps.unsqueeze(3).expand_as(subs), subs], dim=-1)
    cells = whole.unflatten(3, (side // across, side // across, across, across))  # B n n, cells, in a cell, 2 D
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(1, 3).flatten(2, 4)


# ---------------------------------------------------------------------------------------------------------------
# Key table: official checkpoint -> ours
# ---------------------------------------------------------------------------------------------------------------

PARTS = ("student.", "teacher.")
# The whole pretraining state: what comes before the names of an encoder. Its predictor is not needed for features.
STATE = {"model.encoder.": "student.", "encoder.": "student.", "target_encoder.": "teacher."}
PREDICTOR = re.compile(r"(model\.)?(predictor\..+|masked_token)")
PROJECTOR = re.compile(r"projector_([\w-]+)\.(.+)")
IN_IMAGE = {
    "patch_embed.": "embed.", "mlp.0.": "fc1.", "mlp.1.": "norm1.", "mlp.3.": "fc2.", "mlp.4.": "norm2.",
}  # fmt: skip
IN_SERIES = {
    **{f"patch_embed.inconv.{4 * i}.": f"layers.{i}.linear." for i in range(5)},
    **{f"patch_embed.inconv.{4 * i + 1}.": f"layers.{i}.norm." for i in range(5)},
    "patch_embed.in_norm.": "in_norm.",
    "patch_embed.attention_heads.Q": "query",
    "patch_embed.attention_heads.fc1_k.weight": "key.weight",
    "patch_embed.attention_heads.fc1_k.bias": "key_bias",
    "patch_embed.mlp.0.": "out.linear.",
    "patch_embed.mlp.1.": "out.norm.",
    "patch_embed.out_norm.": "out_norm.",
    "pad_parameter": "pad",
}  # fmt: skip
IN_BLOCK = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
PATCH_BLOCK = re.compile(rf"spatial_encoder\.predictor_blocks\.(\d+)\.({IN_BLOCK})")
PATCH_DISTANCE = re.compile(r"spatial_encoder\.predictor_blocks\.(\d+)\.attn\.rpe_k\.lookup_table_weight")
BLOCK = re.compile(rf"blocks\.\d+\.{IN_BLOCK}")
POOL = re.compile(r"blocks\.(\d+)\.(?:attn\.(q_learned|wk|wv|proj|rpe_k)\.?|(norm1|norm2|mlp\.fc1|mlp\.fc2)\.)(.*)")
SINGLE = {
    "cls_token": "cls_token",
    "spatial_encoder.cls_token": "patch_encoder.cls_token",
    "spatial_encoder.predictor_norm.weight": "patch_encoder.norm.weight",
    "spatial_encoder.predictor_norm.bias": "patch_encoder.norm.bias",
}


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The public code's encoder, or the whole state of its pretraining, to our names; our own names are kept.

    Of a whole state come "student." and "teacher." with an encoder behind each.

    Raises:
        WeightsError: a name that is neither in the table nor one of the predictor's.
    """
    if any(name.startswith(("projectors.", *(f"{part}projectors." for part in PARTS))) for name in tensors):
        return dict(tensors)  # ours: what does not fit is found when the model is filled
    ours: dict[str, Tensor] = {}
    unknown = []
    encoders: dict[str, dict[str, Tensor]] = {}
    for official, tensor in tensors.items():
        start = next((start for start in STATE if official.startswith(start)), "")
        if start:
            encoders.setdefault(STATE[start], {})[official.removeprefix(start)] = tensor
        elif PREDICTOR.fullmatch(official) and any(name.startswith(tuple(STATE)) for name in tensors):
            continue
        else:
            encoders.setdefault("", {})[official] = tensor
    for part, encoder in encoders.items():
        mapped, strange = _encoder_from_official(encoder)
        ours |= {f"{part}{name}": tensor for name, tensor in mapped.items()}
        unknown += strange
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors are not of an AnySat checkpoint: {', '.join(sorted(unknown)[:10])}"
        )
    return ours


def _encoder_from_official(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    ours: dict[str, Tensor] = {}
    unknown = []
    # the pooling block is the last one, whatever the depth
    last = next((m[1] for name in tensors if (m := POOL.fullmatch(name)) and m[2] == "q_learned"), "")
    keys: dict[str, Tensor] = {}
    for official, tensor in tensors.items():
        name = _our_name(official, last)
        if name is None:
            unknown.append(official)
        elif name.startswith("pool.w"):
            keys[name] = tensor
        else:
            ours[name] = tensor.squeeze(0) if name.endswith("distance") else tensor
    for kind in ("weight", "bias"):
        pair = [keys[name] for name in (f"pool.wk.{kind}", f"pool.wv.{kind}") if name in keys]
        if len(pair) == 2:
            ours[f"pool.kv.{kind}"] = torch.cat(pair)
        elif pair:
            unknown += [name for name in keys if name.endswith(kind)]
    return ours, unknown


def _our_name(official: str, last: str) -> str | None:
    if official in SINGLE:
        return SINGLE[official]
    if match := PROJECTOR.fullmatch(official):
        if match[1] not in INPUTS:
            return None
        table = IN_SERIES if INPUTS[match[1]].series else IN_IMAGE
        start = next((start for start in table if match[2].startswith(start)), None)
        return start and f"projectors.{_module_name(match[1])}.{table[start]}{match[2].removeprefix(start)}"
    if match := PATCH_BLOCK.fullmatch(official):
        return f"patch_encoder.blocks.{match[1]}.{match[2]}"
    if match := PATCH_DISTANCE.fullmatch(official):
        return f"patch_encoder.blocks.{match[1]}.attn.distance"
    if last and (match := POOL.fullmatch(official)) and match[1] == last:
        single = {"q_learned": "query", "rpe_k": "distance"}.get(match[2])
        return f"pool.{single}" if single else f"pool.{match[2] or match[3]}.{match[4]}"
    return official if BLOCK.fullmatch(official) else None


# ---------------------------------------------------------------------------------------------------------------
# Weight records
# ---------------------------------------------------------------------------------------------------------------

_PAPER: dict[str, Any] = dict(
    layout=AnySat.layout,
    licence="mit",
    paper="arXiv:2412.14123",
    citation="Astruc, Gonthier, Mallet, Landrieu: AnySat: One Earth Observation Model for Many Resolutions, Scales, and "
    "Modalities, CVPR 2025",
    sensors=("S2", "AERIAL", "SPOT", "NAIP", "S1", "ALOS", "L7", "L8", "MODIS"),
    # s2 first: what is shown where there is room for one
    inputs={name: INPUTS[name].order for name in ("s2", *(name for name in INPUTS if name != "s2"))},
    accepts=tuple(dict.fromkeys(band for one in INPUTS.values() for band in sensors.get_order(one.order))),
    statistics={"S2": "anysat/s2", "AERIAL": "anysat/aerial"},
)
_GEOPLEX: dict[str, Any] = dict(
    gsd={
        "S2": (10.0, 10.0), "AERIAL": (0.2, 0.2), "SPOT": (1.0, 1.0), "NAIP": (1.25, 1.25), "S1": (10.0, 10.0),
        "ALOS": (30.0, 30.0), "L7": (30.0, 30.0), "L8": (10.0, 10.0), "MODIS": (250.0, 250.0),
    },
    trained_on="GeoPlex (TreeSatAI-TS, PASTIS-HD, FLAIR, PLANTED, S2NAIP-URBAN), joint-embedding prediction",
)  # fmt: skip
_REPOSITORY = "https://github.com/gastruc/AnySat"

weights.register(
    weights.Record(
        name="anysat_base.pretrain",
        title="AnySat base, pretrained encoder",
        source="hf://g-astruc/AnySat/models/AnySat.pth",
        repository=_REPOSITORY,
        **_PAPER,
        **_GEOPLEX,
    ),
    *(
        weights.Record(
            name=f"anysat_base.{part}",
            title=f"AnySat base, {part} of the pretraining state",
            source="hf://g-astruc/AnySat/models/AnySat_full.pth",
            repository=_REPOSITORY,
            **_PAPER,
            **_GEOPLEX,
        )
        for part in ("student", "teacher")
    ),
    *(
        weights.Record(
            name=f"anysat_{size}.{weights.UNPUBLISHED}",
            title=f"AnySat {size}, no weights published",
            source="",
            repository=_REPOSITORY if size != "nano" else "",
            trained_on="not trained: these weights are random",
            **_PAPER,
        )
        for size in ("small", "tiny", "nano")
    ),
)
SIDE = 6  # pixels of 10 m: the smallest tiles of the training, TreeSatAI's
default_cfgs = generate_default_cfgs(
    {
        name: cfg
        for size in ("base", "small", "tiny", "nano")
        for name, cfg in cfgs_for(f"anysat_{size}", img_size=SIDE).items()
    }
)


# ---------------------------------------------------------------------------------------------------------------
# Entrypoints
# ---------------------------------------------------------------------------------------------------------------


def _create(variant: str, pretrained: bool, **kwargs: Any) -> AnySat:
    record = record_of(variant, kwargs.get("pretrained_cfg"))
    tag = record.name.partition(".")[2] if record else ""
    if f"{tag}." in PARTS:
        kwargs = {"part": tag, **kwargs}
    return build(
        AnySat,
        variant,
        pretrained,
        kwargs_filter=("in_chans", "img_size"),  # what timm would fill in means nothing for a dict
        feature_cfg=dict(out_indices=3, feature_cls="getter"),
        **kwargs,
    )


@register_model
def anysat_base(pretrained: bool = False, **kwargs: Any) -> AnySat:
    """AnySat base: 126 M parameters, 768 wide; eleven inputs of any resolution, single images and time series."""
    return _create("anysat_base", pretrained, **dict(dict(embed_dim=768, depth=6, num_heads=12), **kwargs))


@register_model
def anysat_small(pretrained: bool = False, **kwargs: Any) -> AnySat:
    """AnySat small: 512 wide, 4 blocks; announced, but no weights are published."""
    return _create("anysat_small", pretrained, **dict(dict(embed_dim=512, depth=4, num_heads=8), **kwargs))


@register_model
def anysat_tiny(pretrained: bool = False, **kwargs: Any) -> AnySat:
    """AnySat tiny: 256 wide, 2 blocks; announced, but no weights are published."""
    return _create("anysat_tiny", pretrained, **dict(dict(embed_dim=256, depth=2, num_heads=4), **kwargs))


@register_model
def anysat_nano(pretrained: bool = False, **kwargs: Any) -> AnySat:
    """AnySat nano: 128 wide, 2 blocks; a size of eo_zoo's own to try code with, random until it is trained."""
    return _create("anysat_nano", pretrained, **dict(dict(embed_dim=128, depth=2, num_heads=4), **kwargs))
