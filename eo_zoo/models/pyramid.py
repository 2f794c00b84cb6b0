"""Maps at strides 4, 8, 16 and 32 from vision transformers, whose own maps all have the stride of their patches.

Decoders made for convolutional backbones (U-Net, FPN, UPerNet) ask for such maps by a name of timm's alone. So each
plain model has a second name here, as ``smarties_vit_base_pyramid`` for ``smarties_vit_base``: the same module with the
same weights, for ``features_only=True``.

There are no new parameters: four blocks, evenly spaced with the last among them, give a map each, the shallowest the
finest; bilinear interpolation enlarges a map to its stride, average pooling shrinks it. The learned form, transposed
convolutions on the last map alone, is the simple feature pyramid of ViTDet: Li et al., "Exploring Plain Vision
Transformer Backbones for Object Detection", ECCV 2022, arXiv:2203.16527.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from timm.models._features import FeatureGetterNet, FeatureInfo, feature_take_indices
from torch import Tensor, nn

from eo_zoo.errors import InputError
from eo_zoo.models.multimae import multimae_eo_base, multimae_eo_large
from eo_zoo.models.smarties import smarties_vit_base, smarties_vit_large, smarties_vit_nano

STRIDES = (4, 8, 16, 32)


def resample(x: Tensor, stride: int, new: int) -> Tensor:
    """A map (B, D, h, w) of one stride to another, one of which divides the other; the last cells may be partial."""
    if new < stride:
        return F.interpolate(x, scale_factor=float(stride // new), mode="bilinear", align_corners=False)
    return x if new == stride else F.avg_pool2d(x, new // stride, ceil_mode=True)


class Pyramid(FeatureGetterNet):
    """Images as the model takes them to a list of maps (B, D, ceil(H / stride), ceil(W / stride)), before a last norm.

    Args:
        model: a vision transformer of timm's kind, with maps of one stride. Blocks behind the last in use are removed.
        out_indices: of ``STRIDES``: which maps, or how many of the last.

    Raises:
        InputError: patches of a size that is no power of two.
    """

    def __init__(self, model: nn.Module, out_indices: int | Sequence[int] = (0, 1, 2, 3)) -> None:
        levels, _ = feature_take_indices(len(STRIDES), out_indices)
        own: Any = model.feature_info
        patch = own[0]["reduction"]
        if any(stride % patch and patch % stride for stride in STRIDES):
            raise InputError(
                f"a pyramid needs a patch size that is a power of two, got {patch}: give another patch_size"
            )
        blocks = [-(-len(own) * (i + 1) // len(STRIDES)) - 1 for i in range(len(STRIDES))]
        info = [dict(own[block], reduction=stride) for block, stride in zip(blocks, STRIDES, strict=True)]
        used = [blocks[level] for level in levels]
        super().__init__(model, sorted(set(used)))
        self._blocks, self._patch = used, patch
        self.feature_info = FeatureInfo(info, levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        made = dict(zip(self.out_indices, super().forward(x), strict=True))
        return [
            resample(made[block], self._patch, stride)
            for block, stride in zip(self._blocks, self.feature_info.reduction(), strict=True)
        ]


def _register(plain: Callable[..., nn.Module], **options: Any) -> None:
    """Register a plain model's pyramid with timm; ``options`` are its defaults."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if not kwargs.get("features_only"):
            raise InputError(
                f"{plain.__name__}_pyramid gives maps alone: add features_only=True, or take {plain.__name__} for the "
                "model itself"
            )
        return plain(pretrained, **{"feature_cls": Pyramid, "out_indices": (0, 1, 2, 3), **options, **kwargs})

    create.__name__ = create.__qualname__ = f"{plain.__name__}_pyramid"
    create.__doc__ = f"``{plain.__name__}``, its weights and options, with maps at strides 4, 8, 16 and 32."
    register_model(create)


for _plain in (smarties_vit_nano, smarties_vit_base, smarties_vit_large):
    _register(_plain, dynamic_img_size=True)  # decoders are used at any size
for _plain in (multimae_eo_base, multimae_eo_large):
    _register(_plain)  # takes any size as it is
