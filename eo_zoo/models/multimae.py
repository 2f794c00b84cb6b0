"""MultiMAE meets Earth observation: one transformer over the patches of any of six domains of one place.

Paper: Sosa et al., "MultiMAE Meets Earth Observation: Pre-training Multi-modal Multi-task Masked Autoencoders for Earth
Observation Tasks", ICIP 2025, arXiv:2505.14951; after Bachmann et al., "MultiMAE", ECCV 2022, arXiv:2204.01678. Public
code: github.com/josesosajs/multimae-meets-eo at 0d9756e, which has no licence file.

Each domain (Sentinel-2's bands in four groups, elevation, land cover) is cut into patches with a vector each, by an
input adapter of its own; the vectors of all domains and one global token, the last, go through the blocks of a plain
vision transformer without a norm at its end. What pretraining adds is in ``eo_zoo.train.multimae``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple, trunc_normal_
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.linear import by_onednn
from eo_zoo.layers.positions import sincos_positions
from eo_zoo.models._build import StrictLoading, build, cfgs_for, count, input_cfg, record_of
from eo_zoo.models.multimae_domains import DOMAINS, Domain, check, known_domains
from eo_zoo.weights.plan import Layout, Rule, same

TABLE = 224  # pixels of the image that a stored position table is for
CLASS_DIM = 64  # of a land-cover class, before the patches
POOLS = ("global", "avg")


# ---------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------


def position_table(dim: int, patch_size: int) -> Tensor:
    """Fixed sine-cosine table (1, dim, rows, columns); its first half follows the row, as MoCo v3's does."""
    side = TABLE // patch_size
    # ours has the column first
    return sincos_positions(dim, side, side, prefix=0).view(1, side, side, dim).permute(0, 3, 2, 1).contiguous()


def resized_table(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Table (1, D, rows, columns) to (1, tokens, D) for a grid of patches, without antialiasing, as the public code."""
    if table.shape[2:] != grid:
        table = F.interpolate(table.float(), grid, mode=mode, align_corners=False).to(table.dtype)
    return table.flatten(2).transpose(1, 2)


class InputAdapter(nn.Module):
    """One domain's images or labels to patch vectors with their positions.

    Args:
        domain: which one.
        embed_dim: D.
        patch_size: in pixels of the image.
    """

    pos_emb: Tensor

    def __init__(self, domain: Domain, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.domain = domain
        self.class_emb = nn.Embedding(domain.channels, CLASS_DIM) if domain.classes else None
        patch = domain.patch(patch_size)
        self.proj = nn.Conv2d(CLASS_DIM if domain.classes else domain.channels, embed_dim, patch, patch)
        self.register_buffer("pos_emb", position_table(embed_dim, patch_size).to(self.proj.weight.device))

    def init_weights(self) -> None:
        """Random weights as in the public code."""
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.get_parameter("bias"))
        if self.class_emb is not None:
            trunc_normal_(self.class_emb.weight, std=0.02)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, tokens, D) for a grid of patches."""
        return resized_table(self.pos_emb, grid, "bilinear" if self.domain.classes else "bicubic")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), or labels (B, h, w), to (B, tokens, D)."""
        if self.class_emb is not None:
            x = self.class_emb(x.long()).permute(0, 3, 1, 2)
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2) + self.positions((x.shape[-2], x.shape[-1]))


class MultiMae(StrictLoading):
    """MultiMAE encoder: a dict of domains over one square or rectangle of ground to tokens, or one vector.

    Args:
        embed_dim: D.
        depth: number of blocks.
        num_heads: attention heads.
        in_domains: names of the domains to build input adapters for, all six by default; see ``DOMAINS``.
        img_size: pixels, for the configuration alone: images of any size that the patches divide are taken, and the
            tables of positions are resized to them.
        patch_size: in pixels; with semseg a multiple of 4. The weights are for 8.
        num_classes: 0 for features; else a norm and a linear layer on the pooled vector, as in the public code.
        global_pool: "global" (the global token) or "avg" (the mean of all patches' tokens).
        drop_rate: before the classifier.
        drop_path_rate: stochastic depth of the last block, falling to 0 at the first.

    Raises:
        InputError: an unknown domain or pooling, or sizes that do not fit.
    """

    family = "MultiMAE"
    unseen = "num_heads"
    layout = "multimae-1"
    spare: ClassVar[Mapping[str, str]] = {
        r"output_adapters\..+": "an output adapter of pretraining",
        r"log_vars": "what weighs pretraining's losses",
        r"input_adapters\..+": "of a domain that was not asked for",
    }

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        in_domains: Sequence[str] | None = None,
        img_size: int | tuple[int, int] = 56,
        patch_size: int = 8,
        num_classes: int = 0,
        global_pool: str = "global",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_domains = known_domains(in_domains, "in_domains")
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.patch_size = patch_size
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.grad_checkpointing = False

        self.input_adapters = nn.ModuleDict(
            {name: InputAdapter(DOMAINS[name], embed_dim, patch_size) for name in self.in_domains}
        )
        if any(side % patch_size for side in self.img_size):
            raise InputError(f"img_size {self.img_size} is not a multiple of the patch size {patch_size}")
        self.global_tokens = nn.Parameter(torch.zeros(1, 1, embed_dim))
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.feature_info = [dict(num_chs=embed_dim, reduction=patch_size, module=f"blocks.{i}") for i in range(depth)]
        by_onednn(self)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    # ---- timm's conventions ----

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initial (random) weights as in the public code."""
        self.weights_origin = None
        for adapter in self.input_adapters.values():
            # each is an InputAdapter
            adapter.init_weights()  # type: ignore[operator]
        init_blocks(self.blocks)
        trunc_normal_(self.global_tokens, std=0.02)

    def get_classifier(self) -> nn.Module:
        """Norm and linear layer, or Identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, random head for ``num_classes``; 0 takes it away."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise InputError(f"global_pool is {global_pool!r}, expected one of {', '.join(POOLS)}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            linear = nn.Linear(self.embed_dim, num_classes)
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.head = nn.Sequential(nn.LayerNorm(self.embed_dim, eps=1e-6), linear).to(self.global_tokens)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' features again in the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the global token and of the classes' vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith(("global_tokens", "class_emb.weight"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the input on, for layer-wise learning rates."""
        last = (99999,)  # timm's word for the group before
        return {
            "stem": r"^global_tokens|^input_adapters",
            "blocks": r"^blocks|^head" if coarse else [(r"^blocks\.(\d+)", None), (r"^head", last)],
        }

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take away the blocks behind the last that is asked for, as timm's models do."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_head:
            self.reset_classifier(0)
        return list(taken)

    # ---- calls ----

    def embed(self, x: Mapping[str, Tensor] | Tensor) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """Tokens (B, rows * columns, D) of each domain in the dict's order, and the rows and columns of patches.

        Raises:
            InputError: see ``forward``.
        """
        data, grid = check(x, self.in_domains, self.patch_size)
        held = self.global_tokens.dtype
        for name, one in data.items():
            if one.is_floating_point() and one.dtype != held and not torch.is_autocast_enabled(one.device.type):
                raise InputError(f"{name} holds {one.dtype}, the model {held}: convert one of them, as by .to({held})")
        return {name: self.input_adapters[name](one) for name, one in data.items()}, grid

    def run_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """Tokens (B, n, D), of any number and choice, with the global one behind them after each block in turn."""
        tokens = torch.cat([tokens, self.global_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)
        for block in self.blocks:
            tokens = checkpoint(block, tokens) if self.grad_checkpointing and self.training else block(tokens)
            yield tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, D) to (B, n + 1, D) through all blocks, the global one last."""
        for made in self.run_blocks(tokens):
            tokens = made
        return tokens

    def forward_features(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Domains as ``forward`` takes them to (B, n + 1, D): patch by patch, domain by domain in the dict's order,
        the global token last.
        """
        tokens, _ = self.embed(x)
        return self.encode(torch.cat(list(tokens.values()), dim=1))

    def forward_intermediates(
        self,
        x: Mapping[str, Tensor] | Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps (B, D, rows, columns) after each block: of an image tensor one, of a dict a dict of them by domain.

        Args:
            x: as ``forward`` takes it.
            indices: of the maps wanted, as timm has them; all by default.
            return_prefix_tokens: give pairs of a map, or dict, and the global token (B, 1, D).
            norm: timm's; there is no norm behind the blocks.
            stop_early: leave out the blocks behind the last that is asked for.
            output_fmt: "NCHW", or "NLC" for tokens (B, rows * columns, D).
            intermediates_only: leave out what ``forward_features`` gives, which comes first otherwise.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt is {output_fmt!r}, expected NCHW or NLC")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        parts, grid = self.embed(x)
        made, final = [], None
        for i, tokens in enumerate(self.run_blocks(torch.cat(list(parts.values()), dim=1))):
            final = tokens
            if i in wanted:
                maps = dict(zip(parts, tokens[:, :-1].split(grid[0] * grid[1], dim=1), strict=True))
                if output_fmt == "NCHW":
                    maps = {name: one.transpose(1, 2).unflatten(2, grid) for name, one in maps.items()}
                one = next(iter(maps.values())) if isinstance(x, Tensor) else maps
                made.append((one, tokens[:, -1:]) if return_prefix_tokens else one)
            if i == last and stop_early:
                break
        return made if intermediates_only else (final, made)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gives to the pooled vector (B, D), or to logits (B, num_classes).

        The public code's mean counts the global token too; "avg" here is that of the patches, as timm's.
        """
        x = self.head_drop(x[:, -1] if self.global_pool == "global" else x[:, :-1].mean(dim=1))
        return x if pre_logits else self.head(x)

    def forward(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Pooled features (B, D), or logits (B, num_classes).

        Args:
            x: a dict of any of the model's domains, in any order and all of the same extent: "rgb" (B, 3, H, W: B4, B3,
                B2), "ired" (B, 3, H, W: B5, B6, B7), "sired" (B, 2, H, W: B11, B12), "ebands" (B, 2, H, W: B8A, B8) and
                "depth" (B, 1, H, W), normalised floats, see ``eo_zoo.create_transform``; "semseg" (B, H / 4, W / 4),
                whole class ids 0..11, see ``multimae_domains.classes_of``. Or an image tensor: the model's only domain,
                else rgb. H and W are multiples of the patch size.

        Raises:
            InputError: an unknown domain, shapes or types that do not fit, values that are not finite.
        """
        return self.forward_head(self.forward_features(x))

    # ---- weights ----

    @classmethod
    def implied(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``StrictLoading.implied``."""
        held = [name for name in DOMAINS if f"input_adapters.{name}.proj.weight" in tensors]
        sizes = {tensors[f"input_adapters.{name}.proj.weight"].shape[-1] * DOMAINS[name].stride for name in held}
        if len(sizes) != 1:
            raise KeyError("input_adapters of one patch size")
        made: dict[str, Any] = dict(embed_dim=tensors["global_tokens"].shape[-1], depth=count(tensors, "blocks."))
        made |= dict(patch_size=sizes.pop())
        if len(held) < len(DOMAINS):
            made["in_domains"] = tuple(held)
        return made | ({"num_classes": len(tensors["head.1.bias"])} if "head.1.bias" in tensors else {})

    @classmethod
    def layouts(cls, names: Collection[str]) -> tuple[Layout, ...]:
        """The public code's encoder and whole pretraining model, and ours."""
        return ENCODER, PRETRAINING, OURS

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Take the encoder, with this model's domains, out of a pretraining file; see ``StrictLoading.adapt``."""
        held = {name.split(".")[1] for name in tensors if name.startswith("input_adapters.")}
        missing = [name for name in self.in_domains if name not in held]
        if held and missing:
            raise WeightsError(
                f"the file holds no {', '.join(missing)}, only {', '.join(name for name in DOMAINS if name in held)}: "
                "create the model with in_domains= of these"
            )
        for name, adapter in self.input_adapters.items():
            given, own = tensors.get(f"input_adapters.{name}.proj.weight"), adapter.get_parameter("proj.weight")
            if given is not None and given.shape[-1] != own.shape[-1]:
                size = given.shape[-1] * DOMAINS[name].stride
                raise WeightsError(
                    f"these weights are for patches of {size} pixels, the model for {self.patch_size}: create it with "
                    f"patch_size={size}"
                )
        unused = tuple(f"input_adapters.{name}." for name in DOMAINS if name not in self.in_domains)
        pretraining = ("output_adapters.", VARIANCES)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith((*pretraining, *unused))}, {}


def init_blocks(module: nn.Module) -> None:
    """Random weights of linear layers and norms as in the public code; query, key and value each as one layer."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            parts = {"qkv": 3, "kv": 2}.get(name.rpartition(".")[2], 1)
            for one in part.weight.chunk(parts):
                nn.init.xavier_uniform_(one)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()


# ---------------------------------------------------------------------------------------------------------------
# Key table: official checkpoint -> ours
# ---------------------------------------------------------------------------------------------------------------

_DOMAIN = "|".join(DOMAINS)
_BLOCK = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
_SAME = (
    rf"global_tokens|input_adapters\.({_DOMAIN})\.(pos_emb|proj\.(weight|bias))|input_adapters\.semseg\.class_emb\.weight"
    r"|head\.[01]\.(weight|bias)"
)
VARIANCES = "log_vars"  # of the losses of ``MultiMaePretraining``, which are no part of the model
_OUTPUT = (  # what pretraining needs too
    rf"output_adapters\.({_DOMAIN}|norm_rgb)\.(mask_token|pos_emb|task_embeddings\.({_DOMAIN})"
    rf"|(decoder\.(q|kv|proj)|context_norm|query_norm|out_norm|mlp\.fc[12]|out_proj|proj_context)\.(weight|bias)"
    rf"|decoder_transformer\.\d+\.{_BLOCK})"
)
_RULES = (Rule(f"encoder.{{n}}.{{x:{_BLOCK}}}", "blocks.{n}.{x}"), same(_SAME))
ENCODER = Layout("encoder", _RULES, wrapper="model")
# Output adapters are kept under their own names, for ``eo_zoo.train.multimae``.
PRETRAINING = Layout("pretraining", (*_RULES, same(_OUTPUT)), wrapper="model")
_OWN = same(rf"{_SAME}|blocks\.\d+\.{_BLOCK}")
# Of an encoder, by itself or in ``MultiMaePretraining``.
OURS = Layout("eo_zoo", (_OWN, _OWN.behind("encoder.", ""), same(f"{_OUTPUT}|{VARIANCES}")))


# ---------------------------------------------------------------------------------------------------------------
# Weight records
# ---------------------------------------------------------------------------------------------------------------

_PAPER: dict[str, Any] = dict(
    layout=MultiMae.layout,
    licence="unknown",
    paper="arXiv:2505.14951",
    citation="Sosa, Rukhovich, Kacem, Aouada: MultiMAE Meets Earth Observation: Pre-training Multi-modal Multi-task "
    "Masked Autoencoders for Earth Observation Tasks, ICIP 2025",
    repository="https://github.com/josesosajs/multimae-meets-eo",
    sensors=("S2", "DEM", "WorldCover", "S2-L1C"),
    statistics={"S2": "mmearth/s2-l2a", "S2-L1C": "mmearth/s2-l1c", "DEM": "mmearth/aster"},
    inputs={name: domain.order for name, domain in DOMAINS.items()},
    accepts=tuple(band for domain in DOMAINS.values() for band in sensors.get_order(domain.order)),
)

weights.register(
    weights.Record(
        name="multimae_eo_base.pretrain",
        title="MultiMAE meets EO base, pretrained",
        source="github://josesosajs/multimae-meets-eo/v1.0.0",
        # 64 x 64 pixels of 10 m, shrunk to 56 x 56
        gsd={"S2": (10.0, 11.5), "S2-L1C": (10.0, 11.5)},
        trained_on="MMEarth: Sentinel-2, ASTER elevation and ESA WorldCover, masked autoencoding of all domains",
        terms="its repository states no licence: ask the authors before you use it beyond your own research",
        redistributable=False,
        **_PAPER,
    ),
    weights.Record(
        name=f"multimae_eo_large.{weights.UNPUBLISHED}",
        title="MultiMAE meets EO large, no weights published",
        source="",
        trained_on="not trained: these weights are random",
        **_PAPER,
    ),
)
default_cfgs = generate_default_cfgs(
    {name: cfg for size in ("base", "large") for name, cfg in cfgs_for(f"multimae_eo_{size}", img_size=56).items()}
)


# ---------------------------------------------------------------------------------------------------------------
# Entrypoints
# ---------------------------------------------------------------------------------------------------------------


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MultiMae:
    domains = kwargs.get("in_domains")
    if kwargs.get("features_only"):
        # a pyramid is called with one image
        domains = kwargs["in_domains"] = known_domains("rgb" if domains is None else domains, "in_domains")
        if len(domains) > 1:
            raise InputError(f"features_only is for one domain, got {', '.join(domains)}: give in_domains=('rgb',)")
    domains = known_domains(domains, "in_domains")
    first = DOMAINS[domains[0] if len(domains) == 1 else "rgb"]
    channels = 1 if first.classes else first.channels
    if kwargs.pop("in_chans", None) not in (None, channels):
        raise InputError(f"{first.name} has {channels} channels: leave in_chans out, or choose another of in_domains")
    record = record_of(variant, kwargs.get("pretrained_cfg"))
    bands = sensors.get_order(first.order)
    own = input_cfg(record, sensors.sensor_of(first.order), bands)
    own["input_size"] = (channels, *to_2tuple(kwargs.get("img_size", 56)))
    overlay = own | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    return build(
        MultiMae,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        kwargs_filter=("in_chans",),  # what timm would fill in means nothing for a dict
        feature_cfg=dict(out_indices=3, feature_cls="getter"),
        **kwargs,
    )


@register_model
def multimae_eo_base(pretrained: bool = False, **kwargs: Any) -> MultiMae:
    """MultiMAE meets EO base, patch 8: 86 M parameters, 56 x 56 pixels; any of six domains of one place."""
    return _create("multimae_eo_base", pretrained, **dict(dict(embed_dim=768, depth=12, num_heads=12), **kwargs))


@register_model
def multimae_eo_large(pretrained: bool = False, **kwargs: Any) -> MultiMae:
    """MultiMAE meets EO large, patch 8: 303 M parameters; no weights are published."""
    return _create("multimae_eo_large", pretrained, **dict(dict(embed_dim=1024, depth=24, num_heads=16), **kwargs))
