"""MaRS: SwinV2 encoders for very-high-resolution RGB and SAR images.

Paper: Yang et al., "MaRS: A Multi-Modality Very-High-Resolution Remote Sensing Foundation Model with
Cross-Granularity Meta-Modality Learning", AAAI 2026. Public code: github.com/WanderRainy/MaRS at 7ce79ae.
The weights are released for academic research only and may not be hosted elsewhere.

The encoders are timm's SwinTransformerV2; here are their names, checks, key table and records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import PatchEmbed, to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError
from eo_zoo.layers.linear import by_onednn
from eo_zoo.models._build import StrictLoading, build, cfgs_for, count, input_cfg, record_of
from eo_zoo.weights.plan import Layout, Plan, Rule, same

RGB = ("red_1", "green_1", "blue_3")
RADAR = ("umbra_amplitude", "capella_amplitude", "microwave_1", "microwave_2")
POOLS = ("avg", "max", "avgmax", "")  # those of timm's that keep the number of features
SIZE = 512  # pixels a side in pretraining
GSD = (0.35, 0.35)  # metres, "about 0.35 m" by the public README at 4a1eb57


# ---------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------


class MarsSwin(StrictLoading, SwinTransformerV2):
    """A MaRS encoder: timm's SwinTransformerV2 for the bands of one kind of sensor.

    Feature maps have strides 4, 8, 16 and 32. They come as NCHW from ``features_only`` and
    ``forward_intermediates``; ``forward_features`` gives NHWC, as timm's SwinV2 does.

    Args:
        bands: names of the images' bands, in their order.
        sensor: sensor whose band names are meant.
        img_size: pixels a side; attention windows keep the size they were trained with.
        strict_img_size: refuse images of another size. Otherwise the model sets itself to the size of what it gets,
            which costs some milliseconds at each change and gives what a model built for that size would.
        num_classes: 0 for features.

    Raises:
        InputError: bands, or a number of channels, that the encoder was not trained on.
    """

    family = "MaRS"
    unseen = "window_size"
    alike = "timm's SwinV2"
    channels: ClassVar[int]
    part: ClassVar[str]  # its prefix in a pretraining checkpoint
    patch_embed: PatchEmbed
    norm: nn.Module

    def __init__(
        self,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        in_chans: int | None = None,
        num_classes: int = 0,
        strict_img_size: bool = False,
        dynamic_img_size: bool = True,
        **kwargs: Any,
    ) -> None:
        if in_chans not in (None, self.channels):
            raise InputError(
                f"this MaRS encoder takes {self.channels} channel{'s' * (self.channels > 1)}, got in_chans={in_chans}: "
                f"give in_chans={self.channels} (in segmentation_models_pytorch in_channels={self.channels})"
            )
        pool = kwargs.get("global_pool", "avg")
        if pool not in POOLS:
            raise InputError(f"MaRS has no pooling '{pool}': it has {', '.join(filter(None, POOLS))}")
        own_bands, order = self.arrange(bands, sensor)
        # Other sizes are set in `_images`: windows fit them then, and masks are made once.
        super().__init__(in_chans=self.channels, num_classes=num_classes, strict_img_size=True, **kwargs)
        by_onednn(self)
        for part in self.modules():
            if isinstance(part, WindowAttention):
                part.qkv_bias_separate = True  # so that it calls the layer, and whatever adapter is around it
        self.bands, self.order = own_bands, order
        self.strict_img_size = strict_img_size or not dynamic_img_size

    @classmethod
    def arrange(cls, bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], list[int] | None]:
        """Canonical names of the images' bands, and where the trained order finds them (None: it is the same)."""
        # each kind of encoder has its own bands
        raise NotImplementedError

    def set_input_size(
        self, img_size: Any = None, patch_size: Any = None, window_size: Any = None, window_ratio: Any = None,
        always_partition: bool | None = None,
    ) -> None:  # fmt: skip
        """Set the image size in pixels; unlike timm's, windows keep their size unless one is given."""
        if window_size is None and window_ratio is None:
            window_size = self._ref_window_sizes
        super().set_input_size(img_size, patch_size, window_size, window_ratio, always_partition)

    def _images(self, x: Tensor) -> Tensor:
        """Check a batch, set the model to its size, and bring its bands into the trained order."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"expected an image batch (B, {self.channels}, H, W) with the bands {', '.join(self.bands)}, "
                f"got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise InputError(f"got {x.dtype} values: normalise first, for example with eo_zoo.create_transform")
        size, own = tuple(x.shape[-2:]), self.patch_embed.img_size
        if size != own:
            if self.strict_img_size or torch.compiler.is_compiling():
                raise InputError(
                    f"got images of {size[0]} x {size[1]} pixels, the model is set to {own[0]} x {own[1]}: resize "
                    "them, create it with img_size=, or call set_input_size()"
                )
            patch = self.patch_embed.patch_size[0]
            if size[0] % patch or size[1] % patch:
                raise InputError(f"image size {size[0]} x {size[1]} is not a multiple of the patch size {patch}")
            self.set_input_size(size)
        return x if self.order is None else x[:, self.order]

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised images (B, channels, H, W) to the last stage after ``norm``, (B, H / 32, W / 32, D).

        Raises:
            InputError: a number of channels, a size or a type that does not fit.
        """
        return super().forward_features(self._images(x))

    def forward_intermediates(self, x: Tensor, indices: int | Sequence[int] | None = None, **kwargs: Any) -> Any:
        """As timm's: maps of the stages, (B, D, h, w), before ``norm`` unless ``norm=True``."""
        return super().forward_intermediates(self._images(x), indices, **kwargs)

    @classmethod
    def implied(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``StrictLoading.implied``."""
        stages = range(count(tensors, "layers."))
        heads = [len(tensors[f"layers.{i}.blocks.0.attn.logit_scale"]) for i in stages]
        made: dict[str, Any] = dict(embed_dim=len(tensors["patch_embed.proj.weight"]), num_heads=tuple(heads))
        made["depths"] = tuple(count(tensors, f"layers.{i}.blocks.") for i in stages)
        if (channels := tensors["patch_embed.proj.weight"].shape[1]) != cls.channels:
            raise ValueError(f"patch_embed.proj.weight is for {channels} channels, expected {cls.channels}")
        return made | ({"num_classes": len(tensors["head.fc.bias"])} if "head.fc.bias" in tensors else {})

    @classmethod
    def held(cls, plan: Plan, mapped: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """See ``StrictLoading.held``: a pretraining checkpoint has two encoders."""
        return {f"encoder_{cls.part}" if plan.layout == "pretraining" else "": mapped}

    @classmethod
    def layouts(cls, names: Collection[str]) -> tuple[Layout, ...]:
        """The released encoder, this encoder's part of a pretraining checkpoint, and ours."""
        return RELEASED, PRETRAINING[cls.part], OURS

    def adapt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The released files have no final norm; see ``StrictLoading.adapt``."""
        if any(name.startswith("norm.") for name in tensors):
            return tensors, {}
        names = [f"norm.{name}" for name, _ in self.norm.named_parameters()]
        return tensors, dict.fromkeys(names, "not released, stays at 1 and 0")


class MarsRgb(MarsSwin):
    """The encoder for red, green and blue, in any order that ``bands`` tells."""

    layout = "mars-rgb-1"
    channels = 3
    part = "rgb"

    @classmethod
    def arrange(cls, bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], list[int] | None]:
        """See ``MarsSwin.arrange``."""
        names = RGB if bands is None else sensors.resolve_bands(bands, sensor or "RGB")
        if sorted(names) != sorted(RGB):
            raise InputError(f"MaRS RGB takes red, green and blue, got the bands {', '.join(names) or 'none'}")
        return names, None if names == RGB else [names.index(name) for name in RGB]


class MarsSar(MarsSwin):
    """The encoder for one band of SAR backscatter."""

    layout = "mars-sar-1"
    channels = 1
    part = "sar"

    @classmethod
    def arrange(cls, bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], list[int] | None]:
        """See ``MarsSwin.arrange``."""
        if bands is None:
            names = sensors.get_sensor(sensor or "Umbra").band_names
        else:
            names = sensors.resolve_bands(bands, sensor)
        if len(names) != 1 or names[0] not in RADAR:
            raise InputError(
                f"MaRS SAR takes one band of SAR backscatter ({', '.join(RADAR)}), got {', '.join(names) or 'none'}: "
                "choose one with bands=[...]; eo-zoo embed leaves a file's others out by --bands VV,-"
            )
        return names, None


# ---------------------------------------------------------------------------------------------------------------
# Key table: official checkpoint -> timm's names
# ---------------------------------------------------------------------------------------------------------------

_BODY = r"patch_embed\.(proj|norm)\.(weight|bias)|norm\.(weight|bias)|head\.fc\..+"
_STAGE = r"(blocks\.\d+|downsample)\..+"
_WHOLE = rf"{_BODY}|layers\.\d+\.{_STAGE}"
OURS = Layout("eo_zoo", (same(_WHOLE),))
# The released files have the names of timm's features_only wrapper.
RELEASED = Layout("encoder", (Rule(f"layers_{{n}}.{{x:{_STAGE}}}", "layers.{n}.{x}"), same(_BODY)))
# The rest of a pretraining checkpoint: the other encoder, the teacher, ImageNet heads and what only training needs.
PRETRAINING = {
    part: Layout(
        "pretraining",
        (same(_WHOLE.replace(r"|head\.fc\..+", "")).behind(f"encoder_{part}.encoder.", ""),),
        {
            rf"encoder_{other}\.encoder\..+": f"the {other.upper()} encoder, which --part encoder_{other} takes",
            rf"encoder_{part}\.encoder\.head\..+": "a head for ImageNet's classes",
            r"encoder_(rgb|sar)\.mask_token": "a mask token, for pretraining only",
            r"teacher_encoder\..+": "the frozen teacher of pretraining",
            r"decoder_(rgb|sar)\..+": "a decoder of pretraining",
            r"(alternating_attn|within|across)\..+": "the meta-attention of pretraining",  # the public code's and ours
            "contrast_temp": "the temperature of pretraining's loss",
        },
        wrapper="model",
    )
    for part, other in (("rgb", "sar"), ("sar", "rgb"))
}


# ---------------------------------------------------------------------------------------------------------------
# Weight records
# ---------------------------------------------------------------------------------------------------------------

_ZENODO = "https://zenodo.org/records/17800805/files"
_PAPER: dict[str, Any] = dict(
    licence="academic-research-only",
    redistributable=False,
    terms="MaRS is released strictly for academic research purposes; these weights may not be hosted elsewhere",
    paper="AAAI 2026",
    citation="Yang, Liu, Yan, Zhou, Fu, Luo, Zhong: MaRS: A Multi-Modality Very-High-Resolution Remote Sensing "
    "Foundation Model with Cross-Granularity Meta-Modality Learning, AAAI 2026",
    repository="https://github.com/WanderRainy/MaRS",
    trained_on="masked and contrastive learning on MaRS-16M, 16 million pairs of RGB and SAR (Umbra, Capella) patches",
)
_RGB: dict[str, Any] = dict(
    layout=MarsRgb.layout, sensors=("RGB",), accepts=RGB, statistics={"RGB": "mars/RGB"}, gsd={"RGB": GSD}, **_PAPER
)
_SAR: dict[str, Any] = dict(
    layout=MarsSar.layout,
    sensors=("Umbra", "Capella"),
    accepts=RADAR,
    statistics={"Umbra": "mars/Umbra", "Capella": "mars/Capella"},
    gsd={"Umbra": GSD, "Capella": GSD},
    **_PAPER,
)

# Bytes and md5 as Zenodo states them. Both large files are smaller than their tensors: see the cards.
_FILES = {
    ("base", "rgb"): (347_703_439, "5ab1b978f783cbded01427c50b0c0dbb"),
    ("base", "sar"): (347_687_055, "8789da9bc9a44853d50d92371a1b4a6c"),
    ("large", "rgb"): (634_126_336, "60574c1b87a7fb9006521fb5c031ee2c"),
    ("large", "sar"): (639_631_360, "6f04c3b8120f0331f22059961b9db6e7"),
}
weights.register(
    *(
        weights.Record(
            name=f"mars_{size}_{part}.pretrain",
            title=f"MaRS {size}, {part.upper()} encoder",
            source=f"{_ZENODO}/mars_{size}_{part}_encoder_only.pth?download=1",
            size=length,
            md5=md5,
            **(_RGB if part == "rgb" else _SAR),
        )
        for (size, part), (length, md5) in _FILES.items()
    )
)
default_cfgs = generate_default_cfgs(
    {name: cfg for size, part in _FILES for name, cfg in cfgs_for(f"mars_{size}_{part}", SIZE).items()}
)


# ---------------------------------------------------------------------------------------------------------------
# Entrypoints
# ---------------------------------------------------------------------------------------------------------------

_BASE = dict(window_size=8, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_LARGE = dict(
    window_size=16, embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48),
    pretrained_window_sizes=(12, 12, 12, 6),
)  # fmt: skip


def _create(cls: type[MarsSwin], variant: str, pretrained: bool, **kwargs: Any) -> MarsSwin:
    kwargs = dict(dict(img_size=SIZE, in_chans=cls.channels), **kwargs)
    bands, _ = cls.arrange(kwargs.get("bands"), kwargs.get("sensor"))
    own = input_cfg(record_of(variant, kwargs.get("pretrained_cfg")), kwargs.get("sensor"), bands)
    own["input_size"] = (cls.channels, *to_2tuple(kwargs["img_size"]))
    overlay = own | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    # as smp and timm's other pyramids give them: all four stages
    feature_cfg = dict(out_indices=(0, 1, 2, 3), feature_cls="getter")
    return build(cls, variant, pretrained, pretrained_cfg_overlay=overlay, feature_cfg=feature_cfg, **kwargs)


@register_model
def mars_base_rgb(pretrained: bool = False, **kwargs: Any) -> MarsRgb:
    """MaRS base for RGB: SwinV2-B, window 8, 87 M parameters, 512 x 512 pixels by default."""
    return _create(MarsRgb, "mars_base_rgb", pretrained, **dict(_BASE, **kwargs))


@register_model
def mars_base_sar(pretrained: bool = False, **kwargs: Any) -> MarsSar:
    """MaRS base for SAR, one channel: SwinV2-B, window 8, 87 M parameters, 512 x 512 pixels by default."""
    return _create(MarsSar, "mars_base_sar", pretrained, **dict(_BASE, **kwargs))


@register_model
def mars_large_rgb(pretrained: bool = False, **kwargs: Any) -> MarsRgb:
    """MaRS large for RGB: SwinV2-L, window 16, 195 M parameters, 512 x 512 pixels by default."""
    return _create(MarsRgb, "mars_large_rgb", pretrained, **dict(_LARGE, **kwargs))


@register_model
def mars_large_sar(pretrained: bool = False, **kwargs: Any) -> MarsSar:
    """MaRS large for SAR, one channel: SwinV2-L, window 16, 195 M parameters, 512 x 512 pixels by default."""
    return _create(MarsSar, "mars_large_sar", pretrained, **dict(_LARGE, **kwargs))
