"""MaRS pretraining: hidden patches of RGB and SAR pairs are reconstructed, and both sensors' tokens brought together.

Source: Yang et al., AAAI 2026 (doi 10.1609/aaai.v40i14.38153) and the public code at 7ce79ae. Kept as released:

- the meta-attention adds MLP(attention(norm(tokens))): no residual goes around the attention alone;
- the cosine to the teacher runs along the tokens, so there is one for each channel;
- the contrastive terms skip the first token, though there is no class token;
- the labels of the patch-to-image term name columns of the wrong image, see ``cross_contrast``.

Not copied: masks are boolean here. As released they are integers, so that ``~mask`` is -1 or -2: visible patches are
negated, and hidden ones stay, negated and doubled, under the mask token. The released run also puts the frozen teacher
into training mode, with stochastic depth; here it stays in evaluation mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from timm.layers import Mlp
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.nn import functional as F

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError

CONTRASTS = ("none", "clip", "cross")
ROUNDS = 2  # of the meta-attention
HEADS = 8


class PretrainingOutput(NamedTuple):
    """One step: N tokens of C channels an image, at the stride of the encoders' last stage."""

    loss: Tensor  # scalar, the sum of the parts
    parts: dict[str, Tensor]  # "reconstruction"; "alignment" with a teacher; "contrast" unless that is "none"
    rgb_tokens: Tensor  # (B, N, C), after the meta-attention
    sar_tokens: Tensor  # (B, N, C)
    rgb: Tensor  # reconstruction, (B, 3, H, W)
    sar: Tensor  # reconstruction, (B, 1, H, W)
    mask: Tensor  # (B, rows, columns) of patches, True = hidden


class MarsPretraining(nn.Module):
    """Two encoders with all that pretraining adds; afterwards the encoders are used without it.

    The published run: all three encoders from ImageNet weights, 512 x 512 pixels, ``contrast="cross"``, AdamW
    (0.9, 0.95) with weight decay 0.05 except on vectors, learning rate 1e-4 x batch / 256, 12 epochs of which 1 warms
    up, half a cosine, 8 processes of 16 pairs (base; 12 for large), 16-bit autocast. Contrast sees the pairs of its
    own process only.

    Args:
        rgb, sar: SwinV2 models of timm, such as ``mars_base_rgb`` and ``mars_base_sar``, without a classifier and of
            one width, patch size, depth and image size. They are trained in place.
        teacher: a third one, for RGB, with ImageNet weights; it is frozen and sees the same hidden patches. Without
            it the loss has no alignment part.
        contrast: "cross" (published), "clip" or "none".

    Raises:
        InputError: models that do not fit together, or an unknown contrast.
    """

    contrast_temp: nn.Parameter

    def __init__(
        self,
        rgb: SwinTransformerV2,
        sar: SwinTransformerV2,
        *,
        teacher: SwinTransformerV2 | None = None,
        contrast: str = "cross",
    ) -> None:
        super().__init__()
        if contrast not in CONTRASTS:
            raise InputError(f"contrast is {contrast!r}, expected one of {', '.join(CONTRASTS)}")
        _check_encoders({"rgb": rgb, "sar": sar} | ({} if teacher is None else {"teacher": teacher}))
        self.contrast = contrast
        self.encoder_rgb, self.encoder_sar = MaskedEncoder(rgb), MaskedEncoder(sar)
        self.teacher_encoder = None if teacher is None else MaskedEncoder(teacher).requires_grad_(False).eval()
        width = rgb.num_features
        self.patch: int = rgb.patch_embed.patch_size[0]
        self.stride: int = self.patch * 2 ** (rgb.num_layers - 1)
        self.within = nn.ModuleList(MetaBlock(width) for _ in range(ROUNDS))
        self.across = nn.ModuleList(MetaBlock(width) for _ in range(ROUNDS))
        self.decoder_rgb, self.decoder_sar = (
            nn.Sequential(nn.Conv2d(width, encoder.bands * self.stride**2, 1), nn.PixelShuffle(self.stride))
            for encoder in (self.encoder_rgb, self.encoder_sar)
        )
        # only where it is used, so that every parameter gets a gradient
        self.register_parameter("contrast_temp", nn.Parameter(torch.tensor(1.0)) if contrast == "clip" else None)

    def train(self, mode: bool = True) -> MarsPretraining:
        """As torch's, but the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher_encoder is not None:
            self.teacher_encoder.eval()
        return self

    def forward(
        self, rgb: Tensor, sar: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> PretrainingOutput:
        """Loss of one step on a batch of pairs.

        Args:
            rgb, sar: normalised images (B, 3, H, W) and (B, 1, H, W) of the same ground.
            mask: (B, rows, columns), True = hidden in both; a grid that divides the patches evenly, so either
                patches or cells of several. By default 60 % of cells as large as the stride (32 pixels).
            generator: for that default mask.

        Raises:
            InputError: images or a mask of another shape or type.
        """
        self._check_images(rgb, sar)
        height, width = rgb.shape[-2:]
        if mask is None:
            mask = random_mask(len(rgb), (height // self.stride, width // self.stride), generator=generator)
        mask = _to_grid(mask.to(rgb.device), (len(rgb), height // self.patch, width // self.patch))

        tokens = torch.cat([self.encoder_rgb(rgb, mask), self.encoder_sar(sar, mask)], dim=1)  # B, 2 N, C
        count = tokens.shape[1] // 2
        for within, across in zip(self.within, self.across, strict=True):
            tokens = across(within(tokens, count), 2 * count)
        rgb_tokens, sar_tokens = tokens.chunk(2, dim=1)

        rgb_again = self.decoder_rgb(self._to_map(rgb_tokens, height))
        sar_again = self.decoder_sar(self._to_map(sar_tokens, height))
        pixels = _to_grid(mask, (len(rgb), height, width))
        parts = {"reconstruction": masked_l1(rgb_again, rgb, pixels) + masked_l1(sar_again, sar, pixels)}
        if self.teacher_encoder is not None:
            with torch.no_grad():
                target = self.teacher_encoder(rgb, mask)
            parts["alignment"] = -channel_similarity(rgb_tokens, target)
        if self.contrast == "clip":
            parts["contrast"] = clip_contrast(rgb_tokens, sar_tokens, self.contrast_temp)
        elif self.contrast == "cross":
            parts["contrast"] = cross_contrast(rgb_tokens, sar_tokens)
        loss = torch.stack(list(parts.values())).sum()
        return PretrainingOutput(loss, parts, rgb_tokens, sar_tokens, rgb_again, sar_again, mask)

    def _to_map(self, tokens: Tensor, height: int) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (height // self.stride, -1))

    def _check_images(self, rgb: Tensor, sar: Tensor) -> None:
        for name, x, encoder in (("rgb", rgb, self.encoder_rgb), ("sar", sar, self.encoder_sar)):
            if x.ndim != 4 or x.shape[1] != encoder.bands or not x.is_floating_point():
                raise InputError(
                    f"{name} is {x.dtype} of shape {tuple(x.shape)}, expected normalised images "
                    f"(batch, {encoder.bands}, height, width)"
                )
        if len(rgb) != len(sar) or rgb.shape[2:] != sar.shape[2:]:
            raise InputError(f"the pair differs in batch or size: {tuple(rgb.shape)} and {tuple(sar.shape)}")
        size, fixed = tuple(rgb.shape[2:]), _image_size(self.encoder_rgb.encoder)
        if fixed not in (None, size):
            raise InputError(f"got images of {size}, the encoders are set to {fixed}: call set_input_size on each")
        if size[0] % self.stride or size[1] % self.stride:
            raise InputError(f"got images of {size}, expected multiples of the stride {self.stride}")

    def load_official(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill all of it from a pretraining checkpoint's tensors (see ``eo_zoo.weights.read``).

        Left out by name: the encoders' ImageNet classifiers, which pretraining does not use; the teacher where this
        was built without one; the learned temperature unless ``contrast`` is "clip".

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        if not any(name.startswith("decoder_rgb.") for name in tensors):
            raise WeightsError("this file holds no pretraining model; load an encoder's file into the encoder itself")
        unused = [CLASSIFIER]
        unused += [r"teacher_encoder\..+"] if self.teacher_encoder is None else []
        unused += ["contrast_temp"] if self.contrast != "clip" else []
        ours = {_our_name(n): t for n, t in tensors.items() if not re.fullmatch("|".join(unused), n)}
        weights.check_fit(ours, self.state_dict(), what="the pretraining checkpoint")
        self.load_state_dict(ours)


class MaskedEncoder(nn.Module):
    """A SwinV2 whose hidden patches are replaced by a learned token, behind the patch embedding and its norm."""

    def __init__(self, encoder: SwinTransformerV2) -> None:
        super().__init__()
        self.encoder = encoder
        self.bands: int = encoder.patch_embed.proj.in_channels
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Images (B, bands, H, W) and a mask (B, rows, columns) of patches to normed tokens (B, N, C), row-major."""
        order = getattr(self.encoder, "order", None)  # of an encoder made for other band orders
        x = self.encoder.patch_embed(x if order is None else x[:, order])  # B, rows, columns, C
        x = torch.where(mask[..., None], self.mask_token, x)
        return self.encoder.norm(self.encoder.layers(x)).flatten(1, 2)


class MetaBlock(nn.Module):
    """Attention and MLP in one residual: tokens + MLP(attention(norm(tokens)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor, length: int) -> Tensor:
        """Tokens (B, M, C) to the same; each attends to the ``length`` tokens of its own section."""
        x = self.norm(tokens).reshape(-1, length, tokens.shape[-1])
        x, _ = self.attn(x, x, x, need_weights=False)
        return tokens + self.mlp(x.reshape(tokens.shape))


# ---- losses ----


def random_mask(
    batch: int, cells: tuple[int, int], *, share: float = 0.6, generator: torch.Generator | None = None
) -> Tensor:
    """A mask (B, rows, columns) with the same number of hidden (True) cells in each image, rounded up.

    Args:
        batch: number of images.
        cells: rows and columns; the published ones are of 32 x 32 pixels.
        share: of hidden cells.
        generator: its device is the mask's; without it torch's own, on the CPU.

    Raises:
        InputError: a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}, expected a number between 0 and 1")
    count = math.prod(cells)
    noise = torch.rand(batch, count, generator=generator, device=generator.device if generator else None)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return (rank < math.ceil(share * count)).unflatten(1, cells)


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over hidden pixels and bands: images (B, bands, H, W), mask (B, H, W), True = hidden."""
    hidden = mask[:, None]
    return ((prediction - target).abs() * hidden).sum() / (hidden.sum() + 1e-5) / target.shape[1]


def channel_similarity(tokens: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of each channel over the tokens, both (B, N, C), as released; 1 where they are proportional."""
    return F.cosine_similarity(tokens, target, dim=1).mean()


def clip_contrast(rgb: Tensor, sar: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric cross-entropy between all patches of a batch.

    Args:
        rgb, sar: tokens (B, N, C); the first of each image is left out.
        temperature: scalar; cosines are multiplied by its exponential.
    """
    a, b = _directions(rgb, sar)
    return _symmetric(a.flatten(0, 1) @ b.flatten(0, 1).T * temperature.exp())


def cross_contrast(rgb: Tensor, sar: Tensor) -> Tensor:
    """Contrast of patches, of images, and of patches with images, weighted 0.5, 0.3 and 0.2.

    An image's vector is the mean of its normalised patches. In the last term each image stands in N columns, one for
    each patch, but the label is the image's index, as released: unless a batch has more images than patches, it
    is the first image of the batch that all patches are drawn to.

    Args:
        rgb, sar: tokens (B, N, C); the first of each image is left out.
    """
    a, b = _directions(rgb, sar)
    patches_a, patches_b = a.flatten(0, 1), b.flatten(0, 1)  # B N, C
    images_a, images_b = a.mean(dim=1), b.mean(dim=1)  # B, C
    count = a.shape[1]
    labels = torch.arange(len(a), device=a.device).repeat_interleave(count)
    across = [
        F.cross_entropy((patches @ images.T / 0.07).repeat_interleave(count, dim=1), labels)
        for patches, images in ((patches_a, images_b), (patches_b, images_a))
    ]
    patches, images = _symmetric(patches_a @ patches_b.T / 0.1), _symmetric(images_a @ images_b.T / 0.05)
    return 0.5 * patches + 0.3 * images + 0.2 * (across[0] + across[1]) / 2


def _directions(rgb: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
    """Both sensors' tokens at length 1, without the first."""
    if rgb.shape != sar.shape or rgb.ndim != 3 or rgb.shape[1] < 2:
        raise InputError(
            f"got tokens of shape {tuple(rgb.shape)} and {tuple(sar.shape)}, expected (batch, tokens, channels) twice "
            "with at least 2 tokens, of which the first is left out"
        )
    return F.normalize(rgb[:, 1:], dim=-1), F.normalize(sar[:, 1:], dim=-1)


def _symmetric(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


# ---- checks and names ----

CLASSIFIER = r"(encoder_rgb|encoder_sar|teacher_encoder)\.encoder\.head\.fc\.(weight|bias)"
# The released blocks are plain lists: norm, attention, nothing, MLP.
BLOCK = re.compile(r"alternating_attn\.(modality|global)_blocks\.(\d+)\.([013])\.")
LISTS = {"modality": "within", "global": "across"}
PARTS = {"0": "norm", "1": "attn", "3": "mlp"}


def _our_name(official: str) -> str:
    return BLOCK.sub(lambda m: f"{LISTS[m[1]]}.{m[2]}.{PARTS[m[3]]}.", official)


def _image_size(encoder: SwinTransformerV2) -> tuple[int, int] | None:
    """The only size that the model takes; None if it takes others too."""
    return encoder.patch_embed.img_size if encoder.patch_embed.strict_img_size else None


def _check_encoders(models: Mapping[str, SwinTransformerV2]) -> None:
    if len(set(map(id, models.values()))) < len(models):
        raise InputError("one model is given twice: the rgb encoder, the sar encoder and the teacher are three models")
    seen: dict[str, object] = {}
    for name, model in models.items():
        if not isinstance(model, SwinTransformerV2):
            raise InputError(
                f"the {name} encoder is {type(model).__name__}, expected a SwinV2 of timm, without features_only"
            )
        if model.num_classes:
            raise InputError(f"the {name} encoder has a classifier, which is not trained here: give it num_classes=0")
        facts = {
            "channels": model.num_features, "stages": model.num_layers,
            "patch size": model.patch_embed.patch_size, "image size": _image_size(model),
        }  # fmt: skip
        for fact, value in facts.items():
            if seen.setdefault(fact, value) != value:
                raise InputError(
                    f"the {name} encoder has {fact} {value}, the rgb encoder {seen[fact]}: make them equal"
                )


def _to_grid(mask: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A mask (B, rows, columns) repeated onto a finer grid."""
    batch, rows, columns = shape
    if mask.dtype != torch.bool:
        raise InputError(f"the mask is {mask.dtype}, expected torch.bool with True where patches are hidden")
    if mask.ndim != 3 or len(mask) != batch or rows % mask.shape[1] or columns % mask.shape[2]:
        raise InputError(
            f"the mask has the shape {tuple(mask.shape)}, expected ({batch}, rows, columns) that divide the "
            f"{rows} x {columns} patches evenly"
        )
    return mask.repeat_interleave(rows // mask.shape[1], dim=1).repeat_interleave(columns // mask.shape[2], dim=2)
