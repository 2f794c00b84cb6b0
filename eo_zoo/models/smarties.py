"""SMARTIES: a vision transformer with one input projection for each part of the spectrum.

Paper: Sumbul et al., "SMARTIES: Spectrum-Aware Multi-Sensor Auto-Encoder for Remote Sensing Images",
ICCV 2025, arXiv:2506.19585. Public code: github.com/gsumbul/SMARTIES at fc0df04, Apache-2.0, as are the weights.

Each band of a patch goes through the projection of its part of the spectrum; the band vectors are averaged and
multiplied by 12. That is one convolution whose kernel is put together from the projections' weights, and it is
computed so here. Everything after it is timm's VisionTransformer, and the heads of the tuned weight sets.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.layers.linear import by_onednn
from eo_zoo.layers.positions import sincos_positions
from eo_zoo.models._build import StrictLoading, build, cfgs_for, count, input_cfg, record_of
from eo_zoo.models.smarties_keys import PROJECTIONS, layouts
from eo_zoo.models.smarties_tasks import (
    HEADS,
    half_mix,
    head_names,
    head_options,
    tuned_records,
    two_kinds,
)
from eo_zoo.weights.plan import Layout

# Options of timm's VisionTransformer that SMARTIES does not have, with the only value there is here.
FOREIGN = {
    "reg_tokens": 0,
    "class_token": True,
    "no_embed_class": False,
    "pre_norm": False,
    "dynamic_img_pad": False,
    "weight_init": "",
}
Rows = tuple[tuple[float, ...], ...]  # one a band, over the projections
BANDS_SCALE = 12  # the public code multiplies the mean over the bands by 12, however many bands there are


# ---------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------


@functools.cache
def spectrum() -> dict[str, dict[str, Any]]:
    """The trained spectrum table: name -> range in nm and projection, or the two projections it averages.

    The ranges are the paper's (plus and minus the full bandwidth) and disagree with the agencies' tables: a band
    is matched to a projection by its name in this table, never by wavelength.
    """
    return json.loads(importlib.resources.files("eo_zoo").joinpath("data/smarties_spectrum.json").read_text())


def projected_bands() -> tuple[str, ...]:
    """Every band name that has a projection (all but B10, ``short_wave_infrared_2``)."""
    return tuple(name for name, row in spectrum().items() if row.get("projection", 0) is not None)


def _projection_row(name: str) -> list[float] | None:
    """Weights over the 17 projections for one band; None for the band that is not projected."""
    row = [0.0] * PROJECTIONS
    entry = spectrum()[name]
    if "average_of" in entry:
        centre = sum(entry["range"])
        by_projection = {other["projection"]: other for other in spectrum().values() if "projection" in other}
        distance = {i: abs(centre - sum(by_projection[i]["range"])) for i in entry["average_of"]}
        # Weighted by distance, as released: the projection that is farther away counts more.
        for i, value in distance.items():
            row[i] = value / sum(distance.values())
    elif entry["projection"] is None:
        return None
    else:
        row[entry["projection"]] = 1.0
    return row


@functools.cache
def _mixing(bands: tuple[str, ...] | None, sensor: str | None) -> tuple[tuple[str, ...], Rows]:
    if bands is None:
        names = sensors.get_sensor(sensor or "S2").band_names
    elif not bands:
        raise InputError("bands is empty: give at least one band name, or leave it out for the sensor's own")
    else:
        names = tuple(_resolve(name, sensor) for name in bands)
    unknown = [name for name in names if name not in spectrum()]
    if unknown:
        raise InputError(
            f"SMARTIES has no projection for {', '.join(unknown)}; it has {', '.join(projected_bands())}. "
            "To send a band through another one's projection, give that one's name"
        )
    rows = [_projection_row(name) for name in names]
    if bands is not None and None in rows:
        raise InputError(
            f"SMARTIES does not project {names[rows.index(None)]} (B10): leave it out, "
            "or give sensor='S2-L1C', which takes 13 bands and skips it"
        )
    scale = BANDS_SCALE / sum(row is not None for row in rows)
    return names, tuple(tuple(scale * value for value in row or [0.0] * PROJECTIONS) for row in rows)


def _resolve(name: str, sensor: str | None) -> str:
    """A band of the sensor; without one, Sentinel-2's first, and then whatever only one sensor calls so."""
    try:
        return sensors.resolve(name, sensor or "S2")
    except InputError as error:
        if sensor is not None:
            raise
        try:
            return sensors.resolve(name)
        except InputError:
            raise error from None


# Names are looked up once, when a graph is made, and are constants in it.
@torch.compiler.assume_constant_result
def mixing(bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], Rows]:
    """Band names and the (bands, 17) matrix that puts their kernels together, 12 / bands included.

    Args:
        bands: names in any vocabulary ``eo_zoo.sensors`` knows, repeats allowed, or None for the sensor's own.
        sensor: sensor whose vocabulary and default order is meant; with neither, the 12 bands of Sentinel-2 L2A.

    Raises:
        InputError: a name that no projection exists for.
    """
    if isinstance(bands, str):
        raise InputError(f"bands is the text '{bands}', expected a list of names: ['{bands}']")
    return _mixing(None if bands is None else tuple(bands), sensor)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling of a (1, 1 + h * w, D) table without antialiasing, as the public fine-tuning does it.

    timm's own resampling antialiases and differs by 0.05 to 0.17 here.
    """
    if tuple(old) == tuple(new):
        return table
    grid = table[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=tuple(new), mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class SpectrumEmbed(nn.Module):
    """Image to patch vectors: one projection for each part of the spectrum, averaged over the bands.

    ``project`` does the work; ``forward`` only brings its result into timm's token layout, so that
    VisionTransformer's own methods go on from there.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        *,
        strict_img_size: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.patch_size: tuple[int, int] = to_2tuple(patch_size)
        self.strict_img_size = strict_img_size
        self.weight = nn.Parameter(torch.empty(PROJECTIONS, embed_dim, patch_size**2, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(PROJECTIONS, embed_dim, device=device, dtype=dtype))
        self.set_input_size(img_size)

    img_size: tuple[int, int]
    grid_size: tuple[int, int]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Set the image size in pixels; the patch size is fixed by the weights."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise InputError(f"the patch size is fixed at {self.patch_size[0]} by the weights, got {patch_size}")
        height, width = to_2tuple(img_size or self.img_size)
        patch = self.patch_size[0]
        if height % patch or width % patch:
            raise InputError(f"img_size {height} x {width} is not a multiple of the patch size {patch}")
        self.img_size = (height, width)
        self.grid_size = (height // patch, width // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    @property
    def in_channels(self) -> int:
        """The weight's second axis, which is what TorchGeo compares it with before it takes a checkpoint's first layer.

        It says nothing of the images' bands, which projections are mixed for.
        """
        return self.weight.shape[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Tokens per side; VisionTransformer asks with the size of ``project``'s result, which has them already."""
        return img_size

    def check(self, x: Tensor, names: Sequence[str]) -> None:
        """Raise InputError unless x is a float image batch of these bands and of a size the model takes."""
        if x.ndim != 4:
            raise InputError(f"expected an image batch (B, bands, H, W), got {x.ndim} dimensions: {tuple(x.shape)}")
        if x.shape[1] != len(names):
            raise InputError(
                f"got {x.shape[1]} channels but {len(names)} bands ({', '.join(names)}): "
                "give bands=[...] or sensor='S2'|'S1'|'RGB' for what is in the image"
            )
        if not x.is_floating_point():
            raise InputError(f"got {x.dtype} values: normalise first, for example with eo_zoo.create_transform")
        size, patch = tuple(x.shape[-2:]), self.patch_size[0]
        if self.strict_img_size and size != self.img_size:
            raise InputError(
                f"got images of {size[0]} x {size[1]} pixels, the model is built for "
                f"{self.img_size[0]} x {self.img_size[1]}: resize them, or create it with img_size= or "
                "dynamic_img_size=True"
            )
        if size[0] % patch or size[1] % patch:
            raise InputError(f"image size {size[0]} x {size[1]} is not a multiple of the patch size {patch}")

    def project(self, x: Tensor, names: Sequence[str], mix: Rows) -> Tensor:
        """(B, bands, H, W) to (B, D, H / patch, W / patch) by the matrix that ``mixing`` gave for these bands."""
        self.check(x, names)
        matrix = torch.tensor(mix, dtype=self.weight.dtype, device=self.weight.device)  # bands, 17
        kernel = (matrix @ self.weight.flatten(1)).view(len(names), -1, *self.patch_size)  # bands, D, p, p
        bias = matrix.sum(0) @ self.bias
        return F.conv2d(x, kernel.transpose(0, 1), bias, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, h, w, D)."""
        return x.permute(0, 2, 3, 1)


class SmartiesVisionTransformer(StrictLoading, VisionTransformer):
    """SMARTIES encoder, an ordinary timm VisionTransformer from the second layer on.

    Args:
        bands: band names of the images, in order, in any vocabulary of ``eo_zoo.sensors``; repeats allowed.
        sensor: "S2" (12 bands, the default), "S2-L1C" (13, B10 is skipped), "S1" (VV, VH) or "RGB".
        img_size: pixels a side; the 14 x 14 position table is resampled bicubically without antialiasing.
        dynamic_img_size: accept any size that is a multiple of the patch, resampling the table at each call.
        global_pool: "token" (class token after ``norm``, as published), "avg" (mean of the patch tokens, then
            ``fc_norm``) or "" (all tokens).
        num_classes: 0 for features.
        head: what makes logits of features: "linear", "probe" (BatchNorm, then linear) or "segmentation" (a 1 x 1
            convolution on the patch tokens, before any norm, and upsampling by 96 / 14).
        mix: for images of Sentinel-1 and other bands together, which are encoded in two runs whose features stand
            side by side (width 2 D, Sentinel-1 first): "plain" gives each run one sensor; "random" gives the two runs
            complementary halves of either's patches, drawn anew for each image at each call, as published.

    Raises:
        InputError: unknown bands, ``in_chans`` that differs from the number of bands, or an option of timm's
            VisionTransformer that SMARTIES does not have.
    """

    family = "SMARTIES"
    unseen = "num_heads"
    layout = "smarties-1"
    patch_embed: SpectrumEmbed
    blocks: nn.Sequential
    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    pos_drop: nn.Dropout
    norm: nn.Module
    fc_norm: nn.Module
    embed_dim: int
    num_classes: int
    feature_info: list[dict[str, Any]]
    pool: Callable[[Tensor], Tensor]
    head_drop: nn.Module

    def __init__(
        self,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        in_chans: int | None = None,
        num_classes: int = 0,
        head: str = "linear",
        mix: str | None = None,
        **kwargs: Any,
    ) -> None:
        if head not in HEADS:
            raise InputError(f"head is {head!r}, expected one of {', '.join(HEADS)}")
        foreign = [name for name, value in kwargs.items() if name in FOREIGN and value != FOREIGN[name]]
        if foreign:
            raise InputError(f"SMARTIES has no {', '.join(foreign)}: leave it out")
        names, rows = mixing(bands, sensor)
        if in_chans is not None and in_chans != len(names):
            raise InputError(
                f"in_chans={in_chans}, but the model is built for {len(names)} bands "
                f"({', '.join(names)}): give bands=[...] or sensor='S2'|'S1'|'RGB' instead"
            )
        super().__init__(
            embed_layer=SpectrumEmbed,
            in_chans=len(names),
            num_classes=0,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            **kwargs,
        )
        by_onednn(self)
        self.bands, self.sensor, self._rows = names, sensor, rows
        self.mix, self.head_kind = mix, head
        if mix is not None:
            two_kinds(names, mix)
            self.num_features = self.head_hidden_size = 2 * self.embed_dim
            for info in self.feature_info:
                info["num_chs"] = self.num_features
        if num_classes:
            self.reset_classifier(num_classes)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initial (random) weights as in the public pretraining; positions are the fixed sine-cosine table."""
        self.weights_origin = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.Conv2d):
                module.reset_parameters()
        for projection in self.patch_embed.weight:
            nn.init.xavier_uniform_(projection)
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_positions(self.embed_dim, *self.patch_embed.grid_size))

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size after construction; the position table is resampled."""
        old = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size, patch_size)
        table = resample_positions(self.pos_embed.detach(), old, self.patch_embed.grid_size)
        self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of the kind that the model was made with; 0 for features."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            head = HEADS[self.head_kind](self.num_features, num_classes)
            self.head = head.to(self.cls_token).train(self.training)

    @property
    def _segments(self) -> bool:
        # not asked of the head itself, which an adapter may have wrapped
        return self.head_kind == "segmentation" and self.num_classes > 0

    def _project(
        self,
        x: Tensor,
        bands: Sequence[str] | None,
        sensor: str | None,
        mix: str | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(B, D, h, w), or with ``mix`` (2 B, D, h, w): all that the first run encodes, then the second's."""
        named = bands is not None or sensor is not None
        names, rows = mixing(bands, sensor or self.sensor) if named else (self.bands, self._rows)
        if self.mix is None:
            if mix is not None or generator is not None:
                raise InputError(
                    "mix and generator are for a model of two sensors together: create it with mix='random' or "
                    "'plain', or leave them out"
                )
            return self.patch_embed.project(x, names, rows)
        self.patch_embed.check(x, names)
        mix = self.mix if mix is None else mix
        parts = two_kinds(names, mix)
        first, second = (
            self.patch_embed.project(x[:, part], *mixing([names[i] for i in part], None)) for part in parts
        )
        return torch.cat(half_mix(first, second, generator) if mix == "random" else (first, second))

    def _side_by_side(self, made: Any) -> Any:
        """The two runs' halves of a batch next to each other in the channels, in whatever timm put them."""
        if self.mix is None:
            return made
        if isinstance(made, Tensor):  # maps are NCHW, tokens NLC
            return torch.cat(made.chunk(2), dim=1 if made.ndim == 4 else -1)
        if isinstance(made, dict):
            return {key: self._side_by_side(value) for key, value in made.items()}
        return type(made)(map(self._side_by_side, made))

    def _pos_embed(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        table = resample_positions(self.pos_embed, self.patch_embed.grid_size, (height, width))
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        return self.pos_drop(tokens + table)

    def forward_features(
        self,
        x: Tensor,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        mix: str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Normalised images (B, bands, H, W) to tokens (B, 1 + h * w, D), class token first.

        They are after ``norm``, but before it in a model with a segmentation head, which was trained on them so.
        """
        projected = self._project(x, bands, sensor, mix, generator)
        if not self._segments:
            return self._side_by_side(super().forward_features(projected, **kwargs))
        [(patches, prefix)] = super().forward_intermediates(
            projected, 1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True, **kwargs
        )
        return self._side_by_side(torch.cat([prefix, patches], dim=1))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        mix: str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Any:
        """As timm's; with ``norm=False`` (the default) the last block's map is the original's dense output."""
        projected = self._project(x, bands, sensor, mix, generator)
        return self._side_by_side(super().forward_intermediates(projected, indices, **kwargs))

    def forward_head(self, x: Tensor, pre_logits: bool = False, *, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens (B, 1 + h * w, D) to pooled features (B, D), logits (B, num_classes), or a map of logits.

        Args:
            x: what ``forward_features`` gives.
            pre_logits: features, with a segmentation head as a map (B, D, h, w).
            grid: for segmentation of images that are not of the model's own size: rows and columns of patches.
        """
        if self._segments:
            height, width = grid or self.patch_embed.grid_size
            if x.shape[1] != 1 + height * width:
                raise InputError(f"got {x.shape[1] - 1} patch tokens for {height} x {width} patches: give grid")
            x = x[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        else:
            # the norm is as wide as one run
            x = self.fc_norm(self.pool(x).unflatten(-1, (-1, self.embed_dim))).flatten(-2)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(
        self, x: Tensor, *, bands: Sequence[str] | None = None, sensor: str | None = None, **kwargs: Any
    ) -> Tensor:
        """Pooled features (B, D), logits (B, num_classes), or logits of pixels (B, num_classes, 96 h / 14, 96 w / 14).

        Args:
            x: normalised images (B, bands, H, W), float; see ``eo_zoo.create_transform``.
            bands: names of x's bands in order, for this call only.
            sensor: "S2", "S2-L1C", "S1" or "RGB", for this call only; with bands, the vocabulary of their names.
            **kwargs: in a model made with ``mix``: ``mix`` for this call only, and ``generator``, a torch.Generator
                for its random halves (torch's global one if not given). On a generator of the CPU they are the same
                on every device.

        Raises:
            InputError: unknown bands, or a number of channels, a size or a type that does not fit.
        """
        tokens = self.forward_features(x, bands=bands, sensor=sensor, **kwargs)
        height, width = (side // patch for side, patch in zip(x.shape[-2:], self.patch_embed.patch_size, strict=True))
        return self.forward_head(tokens, grid=(height, width))

    @classmethod
    def implied(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``StrictLoading.implied``."""
        patch = math.isqrt(tensors["patch_embed.weight"].shape[2])
        side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
        made: dict[str, Any] = dict(embed_dim=tensors["cls_token"].shape[-1], depth=count(tensors, "blocks."))
        made |= dict(patch_size=patch, img_size=patch * side)
        if "fc_norm.weight" in tensors:
            made["global_pool"] = "avg"
        given = {name for name in tensors if name.startswith("head.")}
        kind = next((kind for kind in HEADS if head_names(kind) == given), None)
        if given and kind is None:
            raise KeyError(f"head of {', '.join(HEADS)}, only {', '.join(sorted(given))}")
        if kind is not None:
            bias = max(name for name in given if name.endswith("bias"))
            made |= dict(head=kind, num_classes=len(tensors[bias]))
        return made

    @classmethod
    def layouts(cls, names: Collection[str]) -> tuple[Layout, ...]:
        """See ``eo_zoo.models.smarties_keys``."""
        return layouts(names)

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Fit mapped tensors to this model's head, pooling and image size; see ``StrictLoading.adapt``."""
        self._check_head(tensors)
        fresh: dict[str, str] = {}
        averaged = isinstance(self.norm, nn.Identity) and not isinstance(self.fc_norm, nn.Identity)
        has_fc_norm = any(name.startswith("fc_norm.") for name in tensors)
        if averaged and not has_fc_norm:
            # Pretraining has no fc_norm; the public fine-tuning starts it at 1 and 0 and drops norm.
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
            fresh = dict.fromkeys(("fc_norm.weight", "fc_norm.bias"), "starts at 1 and 0, as in the public code")
        elif not averaged and has_fc_norm:
            raise WeightsError(
                "these weights were trained with average pooling: create the model with global_pool='avg'"
            )
        if "pos_embed" in tensors:
            count, grid = tensors["pos_embed"].shape[1] - 1, self.patch_embed.grid_size
            side = round(count**0.5)
            if side * side == count == grid[0] * grid[1] and grid != (side, side):
                raise WeightsError(
                    f"the {count} positions may be those of {side} x {side} or of {grid[0]} x {grid[1]} patches: build "
                    "the model at another size, or give the tensors to load_state_dict, which takes them as they are"
                )
            if side * side == count:
                table = resample_positions(tensors["pos_embed"], (side, side), self.patch_embed.grid_size)
                tensors = {**tensors, "pos_embed": table}
        return tensors, fresh

    def _check_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise WeightsError where the tensors hold a whole head of another kind than this model's."""
        given = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
        kind = next((kind for kind in HEADS if head_names(kind) == set(given)), None)
        if not self.num_classes or kind in (None, self.head_kind):
            return
        classes = next(len(tensor) for name, tensor in given.items() if name.endswith("bias"))
        tags = dict.fromkeys(
            record.name.partition(".")[2]
            for record in weights.RECORDS.values()
            if record.layout == self.layout
            and record.task
            and head_options(record)["head"] == kind
            and len(record.task.classes) == classes
        )
        raise WeightsError(
            f"these weights hold a {kind} head for {classes} classes, the model is made with a {self.head_kind} one: "
            f"create the model by its tag ({', '.join(tags) or 'none is published'}) or with head='{kind}', or with "
            "num_classes=0 for features"
        )


# ---------------------------------------------------------------------------------------------------------------
# Weight records
# ---------------------------------------------------------------------------------------------------------------

_PAPER: dict[str, Any] = dict(
    layout=SmartiesVisionTransformer.layout,
    licence="apache-2.0",
    paper="arXiv:2506.19585",
    citation="Sumbul, Xu, Dalsasso, Tuia: SMARTIES: Spectrum-Aware Multi-Sensor Auto-Encoder for Remote Sensing "
    "Images, ICCV 2025",
    repository="https://github.com/gsumbul/SMARTIES",
)
_PRETRAIN: dict[str, Any] = dict(
    **_PAPER,
    sensors=("S2", "S1", "RGB", "S2-L1C"),
    statistics={
        "S2": "smarties/S2-L2A",
        "S2-L1C": "smarties/S2-L1C",
        "S1": "smarties/S1",
        "RGB": "smarties/RGB",
    },
    gsd={"S2": (10.0, 10.0), "S2-L1C": (10.0, 10.0), "S1": (10.0, 10.0), "RGB": (0.3, 1.0)},
    trained_on="masked autoencoding of fMoW (RGB and Sentinel-2) and BigEarthNet-MM (Sentinel-1 and Sentinel-2) pairs",
)

weights.register(
    weights.Record(
        name="smarties_vit_base.pretrain",
        title="SMARTIES ViT-B, pretrained encoder",
        source="hf://gsumbul/SMARTIES-v1-ViT-B/smarties-v1-vitb.safetensors",
        accepts=projected_bands(),
        **_PRETRAIN,
    ),
    weights.Record(
        name="smarties_vit_large.pretrain",
        title="SMARTIES ViT-L, pretrained encoder",
        source="hf://gsumbul/SMARTIES-v1-ViT-L/smarties-v1-vitl.safetensors",
        accepts=projected_bands(),
        **_PRETRAIN,
    ),
    *tuned_records(projected_bands(), **_PAPER),
)
weights.register(
    weights.Record(
        name="smarties_vit_nano.demo",
        title="SMARTIES nano, for demonstration",
        source="package://smarties_vit_nano.demo.safetensors",
        size=3_845_288,
        sha256="dca7440b22a1cfec395bb8233f647c9689f9665ba1440b7d0c12fe2a79fed125",
        accepts=projected_bands(),
        **{**_PAPER, "repository": ""},
        statistics={"S2": "nano/S2-L2A", "S1": "nano/S1", "RGB": "nano/RGB"},
        sensors=("S2", "S1", "RGB"),
        gsd={"S2": (50.0, 200.0), "S1": (10.0, 40.0), "RGB": (0.1, 0.4)},
        trained_on="one Sentinel-2 scene of the western Sahara, one Sentinel-1 scene and one TreeSatAI tile",
    )
)
default_cfgs = generate_default_cfgs(
    {
        **cfgs_for("smarties_vit_base", img_size=224),
        **cfgs_for("smarties_vit_large", img_size=224),
        **cfgs_for("smarties_vit_nano", img_size=112),
    }
)


# ---------------------------------------------------------------------------------------------------------------
# Entrypoints
# ---------------------------------------------------------------------------------------------------------------


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SmartiesVisionTransformer:
    record = record_of(variant, kwargs.get("pretrained_cfg"))
    if record and record.task:
        kwargs = {**head_options(record), **kwargs}
        if kwargs.get("bands") is None and kwargs.get("sensor") is None:
            kwargs |= {"bands": record.bands} if record.together else {"sensor": record.sensors[0]}
    names, _ = mixing(kwargs.get("bands"), kwargs.get("sensor"))
    # timm would fill in_chans from the configuration; what the bands say comes first
    kwargs.setdefault("in_chans", len(names))
    own = input_cfg(record, kwargs.get("sensor"), names)
    own["input_size"] = (len(names), *to_2tuple(kwargs["img_size"]))
    overlay = own | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    feature_cfg = dict(out_indices=3, feature_cls="getter")
    return build(
        SmartiesVisionTransformer,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        feature_cfg=feature_cfg,
        **kwargs,
    )


@register_model
def smarties_vit_base(pretrained: bool = False, **kwargs: Any) -> SmartiesVisionTransformer:
    """SMARTIES ViT-B/16: 89 M parameters, 224 x 224 pixels, any of 19 bands (optical, thermal, radar)."""
    return _create(
        "smarties_vit_base", pretrained, **dict(dict(embed_dim=768, depth=12, num_heads=12, img_size=224), **kwargs)
    )


@register_model
def smarties_vit_large(pretrained: bool = False, **kwargs: Any) -> SmartiesVisionTransformer:
    """SMARTIES ViT-L/16: 307 M parameters, 224 x 224 pixels, any of 19 bands (optical, thermal, radar)."""
    return _create(
        "smarties_vit_large", pretrained, **dict(dict(embed_dim=1024, depth=24, num_heads=16, img_size=224), **kwargs)
    )


@register_model
def smarties_vit_nano(pretrained: bool = False, **kwargs: Any) -> SmartiesVisionTransformer:
    """SMARTIES nano, patch 8: 1 M parameters, 112 x 112 pixels; bundled, to try things with."""
    size = dict(embed_dim=128, depth=4, num_heads=4, patch_size=8, img_size=112)
    return _create("smarties_vit_nano", pretrained, **dict(size, **kwargs))
