"""AnySat: one encoder for eleven inputs of any resolution and scale, single images and time series together.

Paper: Astruc et al., "AnySat: One Earth Observation Model for Many Resolutions, Scales, and Modalities", CVPR 2025,
arXiv:2412.14123. Public code: github.com/gastruc/AnySat at e03e72e, MIT, as are the weights.

Every input is cut into sub-patches (10 x 10 pixels of aerial images, one pixel of a series) with a vector each; the
patch encoder makes one vector of those of a patch, input by input; the blocks let all patches of all inputs see each
other; and the pooling block asks them one question for the tile and one for each patch.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, WeightsError, nearest
from eo_zoo.layers.linear import by_onednn
from eo_zoo.models._build import StrictLoading, build, cfgs_for, count, record_of
from eo_zoo.models.anysat_blocks import ImageProjector, PatchEncoder, PoolingBlock, bucket_table, position_table
from eo_zoo.models.anysat_inputs import CELL, INPUTS, MANY_PATCHES, OUTPUTS, Input, check, check_values, days
from eo_zoo.models.anysat_keys import PARTS, STATES, layouts, module_name
from eo_zoo.models.anysat_series import SeriesProjector, pieces
from eo_zoo.weights.plan import Layout, Plan

_logger = logging.getLogger(__name__)
ORDERS = ("image", "released")
ON_CPU, ELSEWHERE = 24 * 2**20, 2**30  # bytes of features at a time: what stays in a CPU's cache, or keeps a GPU busy


# ---------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------


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
        InputError: an unknown input, pooling or output, or no input that has a map.
    """

    family = "AnySat"
    unseen = "num_heads"
    layout = "anysat-1"
    spare: ClassVar[Mapping[str, str]] = {
        r"(student|teacher)\..+": "the other encoder, or an input that was not asked for",
        r"projectors\..+": "of an input that was not asked for",
    }

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
        if set(self.inputs) <= {"modis"}:
            others = ", ".join(name for name in INPUTS if name != "modis")
            raise InputError(f"inputs are {list(self.inputs)}, expected one or more of {others}")
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.part, self.memory = part, memory
        self.patch_size, self.output, self.output_modality = patch_size, output, output_modality
        self.grad_checkpointing = False

        self.projectors = nn.ModuleDict()
        for name in self.inputs:
            one = INPUTS[name]
            self.projectors[module_name(name)] = (SeriesProjector if one.series else ImageProjector)(one, embed_dim)
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
        by_onednn(self)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    # ---- timm's conventions ----

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initial (random) weights as in the public code."""
        self.weights_origin = None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
                module.reset_parameters()
        for part in self.modules():
            if isinstance(part, SeriesProjector | PatchEncoder | PoolingBlock):
                part.init_weights()
        nn.init.normal_(self.cls_token, std=0.02)

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
        """Names of the learned tokens, questions, distances and what masked values become."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "query", "pad", "distance"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the input on, for layer-wise learning rates."""
        join = (99999,)  # timm's word for the group before
        return {
            "stem": r"^projectors|^patch_encoder\.cls_token",
            "patch_encoder": [
                (r"^patch_encoder\.blocks" if coarse else r"^patch_encoder\.blocks\.(\d+)", None),
                (r"^patch_encoder\.norm|^cls_token", join),
            ],
            "blocks": r"^blocks" if coarse else r"^blocks\.(\d+)",
            "pool": [(r"^pool", None), (r"^head", join)],
        }

    # ---- from inputs to tokens ----

    def _memory_of(self, like: Tensor) -> int:
        return self.memory or (ON_CPU if like.device.type == "cpu" else ELSEWHERE)

    def _sub_patches(self, name: str, data: Mapping[str, Any], patch_size: int, patches: int) -> Tensor:
        """The vectors of an input's sub-patches, patch by patch: (B * n * n, s, D)."""
        one, x = INPUTS[name], data[name]
        projector = self.projectors[module_name(name)]
        held = self.cls_token.dtype
        if x.dtype != held and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} holds {x.dtype}, the model {held}: convert one of them, as by .to({held})")
        mask = data.get(f"{name}_mask")
        check_values(name, x, mask)
        if not one.series:
            return projector(x, patches)
        made = projector(
            x,
            days(name, data),
            mask,
            memory=self._memory_of(x),
            checkpointing=self.grad_checkpointing and self.training,
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
        positions = position_table(self.embed_dim, side, INPUTS[name].cell, 1, x.device, x.dtype)
        buckets = bucket_table(side, 1, 1, x.device, torch.int64)
        limit = self._memory_of(x) // (3 * self.embed_dim * x.element_size())
        remember = self.grad_checkpointing and self.training
        made = [
            self.patch_encoder(part, positions, buckets, whole=whole, checkpointing=remember)
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
        if patch_size is None:
            patch_size = self.patch_size
        names, patch_size, patches = check(data, patch_size, self.inputs)
        if patches**2 > MANY_PATCHES and not torch.compiler.is_compiling():
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
                place = (self.embed_dim, patches, patch_size / CELL, 0)
                tokens.append(vectors + position_table(*place, vectors.device, vectors.dtype))
        first = self.cls_token.to(tokens[0].dtype).expand(batch, -1, -1)
        return [first, *modis, *tokens], kept, patch_size, patches

    def run_blocks(self, tokens: Tensor) -> Any:
        """The tokens after each block in turn."""
        for block in self.blocks:
            remember = self.grad_checkpointing and self.training
            tokens = checkpoint(block, tokens) if remember else block(tokens)
            yield tokens

    def _ask(self, tokens: Tensor, patch_size: int, patches: int, *, prefix: int, inputs: int, tile: bool) -> Tensor:
        """The pooling block: (B, 1 + n * n, D), or with ``tile`` (B, 1, D)."""
        place = (self.embed_dim, patches, patch_size / CELL, prefix)
        positions = position_table(*place, tokens.device, tokens.dtype)
        buckets = bucket_table(patches, prefix, inputs, tokens.device, torch.int64)
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
        prefix = 2 if "modis" in data else 1
        made = torch.cat(parts, dim=1)
        for tokens in self.run_blocks(made):
            made = tokens  # the last is what counts
        asked = self._ask(made, patch_size, patches, prefix=prefix, inputs=len(parts) - prefix, tile=tile)
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
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps (B, D, n, n) after each block: the mean over the inputs' tokens of a patch; the last is the pooled one.

        Args:
            data: as ``forward`` takes it.
            indices: of the maps wanted, as timm has them; all by default.
            patch_size: in metres.
            scale: patch size in units of 10 m.
            norm: timm's; there is no norm behind the blocks.
            stop_early: timm's; all blocks are computed.
            output_fmt: "NCHW", or "NLC" for tokens (B, n * n, D).
            intermediates_only: leave out what ``forward_features`` gives, which comes first otherwise.
        """
        _one_of("output_fmt", output_fmt, ("NCHW", "NLC"))
        wanted, _ = feature_take_indices(len(self.feature_info), indices)
        parts, _, size, patches = self._tokens(data, patch_size, scale)
        prefix = 2 if "modis" in data else 1
        made = []
        for tokens in self.run_blocks(torch.cat(parts, dim=1)):
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
        names = [name for name in data if name in self.inputs and name != "modis"] if isinstance(data, Mapping) else []
        if not names:  # what is missing is told with the other inputs' faults
            return wanted or ""
        if wanted is None:
            return names[0]
        if wanted not in names:
            raise InputError(
                f"output_modality is {wanted!r}, expected one of the inputs that have a map: {', '.join(names)}"
            )
        return wanted

    # ---- weights ----

    @classmethod
    def implied(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``StrictLoading.implied``."""
        held = [name for name in INPUTS if any(key.startswith(f"projectors.{module_name(name)}.") for key in tensors)]
        dim, head = tensors["cls_token"].shape[-1], tensors["pool.distance"].shape[0]
        made: dict[str, Any] = dict(embed_dim=dim, depth=count(tensors, "blocks."), num_heads=dim // max(head, 1))
        if len(held) < len(INPUTS):
            made["inputs"] = tuple(held)
        return made | ({"num_classes": len(tensors["head.bias"])} if "head.bias" in tensors else {})

    @classmethod
    def held(cls, plan: Plan, mapped: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """See ``StrictLoading.held``: a whole state has student and teacher."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in mapped.items():
            part = name.partition(".")[0] if name.startswith(PARTS) else ""
            found.setdefault(part, {})[name.removeprefix(f"{part}.") if part else name] = tensor
        return dict(found)

    @classmethod
    def behind(cls, layout: str, part: str, name: str) -> str:
        """See ``StrictLoading.behind``."""
        whole = layout in STATES or (layout == "eo_zoo" and part)
        return f"{part or 'student'}.{name}" if whole else name

    @classmethod
    def layouts(cls, names: Collection[str]) -> tuple[Layout, ...]:
        """See ``eo_zoo.models.anysat_keys``."""
        return layouts(names)

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Take this model's part of the file, and of that this model's inputs; see ``StrictLoading.adapt``."""
        parts = sorted({name.partition(".")[0] for name in tensors if name.startswith(PARTS)})
        part = parts[0] if len(parts) == 1 and self.part is None else self.part
        if parts and part is None:
            raise WeightsError(
                f"the file holds more than one encoder ({', '.join(parts)}): create the model by a tag, "
                "anysat_base.student or anysat_base.teacher, or with part='student' or 'teacher'"
            )
        if parts and part not in parts:
            raise WeightsError(f"the file holds no {part}, only a {parts[0]}: create the model with part='{parts[0]}'")
        if parts:
            start = f"{part}."
            tensors = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        elif self.part is not None:
            _logger.info("the file holds one encoder only: it is taken for the %s", self.part)
        left_out = tuple(f"projectors.{module_name(name)}." for name in INPUTS if name not in self.inputs)
        return {name: t for name, t in tensors.items() if not name.startswith(left_out or ("\0",))}, {}


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
# Weight records
# ---------------------------------------------------------------------------------------------------------------

_PAPER: dict[str, Any] = dict(
    layout=AnySat.layout,
    licence="mit",
    paper="arXiv:2412.14123",
    citation="Astruc, Gonthier, Mallet, Landrieu: AnySat: One Earth Observation Model for Many Resolutions, Scales, "
    "and Modalities, CVPR 2025",
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


@functools.cache
def _say_flash() -> None:
    _logger.info("flash_attn is ignored: torch's scaled_dot_product_attention takes the fastest way there is")


def _create(variant: str, pretrained: bool, flash_attn: bool | None = None, **kwargs: Any) -> AnySat:
    if flash_attn is not None:  # in the calls of the public code's documentation
        _say_flash()
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
