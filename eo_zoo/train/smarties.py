"""SMARTIES pretraining: masked autoencoding of image pairs from two sensors, with their tokens mixed.

Source: arXiv:2506.19585 and the public code at fc0df04. As released, only the first image is mixed: the second one
is put together from the already mixed first, which gives it back its own tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.models.smarties import (
    SmartiesVisionTransformer,
    mixing,
    sincos_positions,
    spectrum,
)
from eo_zoo.models.smarties_keys import DECODER, PROJECTIONS


class MaskedAutoencoderOutput(NamedTuple):
    """Loss (scalar), predictions for both images (B, tokens, bands, pixels), and the mask (B, tokens), 1 = hidden."""

    loss: Tensor
    first: Tensor
    second: Tensor
    mask: Tensor


class SmartiesMaskedAutoencoder(nn.Module):
    """The encoder with the pretraining decoder.

    Args:
        encoder: the model to pretrain; its positions are fixed from here on, as in the public pretraining.
        decoder_dim: width of the decoder.
        decoder_depth: number of its blocks.
        decoder_heads: its attention heads.
        norm_pix_loss: targets normalised patch by patch, jointly over its bands' pixels (the published run).
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder: SmartiesVisionTransformer,
        *,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(encoder.norm, nn.Identity):
            raise InputError("pretraining needs the encoder's final norm: create it with global_pool='token'")
        self.encoder: SmartiesVisionTransformer = encoder
        self.encoder.pos_embed.requires_grad_(False)
        self.norm_pix_loss = norm_pix_loss
        pixels = encoder.patch_embed.patch_size[0] ** 2
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim).normal_(std=0.02))
        self.register_buffer("decoder_pos_embed", sincos_positions(decoder_dim, *encoder.patch_embed.grid_size))
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *[Block(decoder_dim, decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)]
        )
        self.decoder_norm = norm(decoder_dim)
        # One head for each projection; pixels row-major.
        self.decoder_preds = nn.ModuleList(nn.Linear(decoder_dim, pixels) for _ in range(PROJECTIONS))
        for module in [self.decoder_embed, *self.decoder_blocks.modules(), *self.decoder_preds]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        *,
        first_bands: Sequence[str],
        second_bands: Sequence[str],
        mask_ratio: float = 0.75,
        mixup_noise: Tensor | None = None,
        mask_noise: Tensor | None = None,
    ) -> MaskedAutoencoderOutput:
        """Loss of one step on a batch of pairs.

        Args:
            first, second: normalised images (B, bands, H, W) of the same ground, with the same number of bands
                (``repeat_bands`` brings a sensor with fewer to 12).
            first_bands, second_bands: their band names in order.
            mask_ratio: share of the tokens that is hidden, the same ones in both images.
            mixup_noise, mask_noise: (B, tokens); the half of the tokens with the smaller mixup noise keeps the
                first image, those with the smallest mask noise stay visible. Drawn uniformly when not given.

        Raises:
            InputError: unequal shapes, or a band without a head of its own (the averaged and unprojected ones).
        """
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio is {mask_ratio}, expected a share between 0 and 1")
        if first.shape != second.shape:
            raise InputError(
                f"the pair differs in shape: {tuple(first.shape)} and {tuple(second.shape)}; "
                "repeat_bands gives both the same number of bands"
            )
        embed = self.encoder.patch_embed
        count = embed.num_patches
        mixup_noise = self._noise(mixup_noise, first, count)
        mask_noise = self._noise(mask_noise, first, count)

        kept = _smallest(mixup_noise, count - int(count * 0.5))[..., None]  # B, N, 1
        tokens = [
            embed.project(x, *mixing(bands, None)).flatten(2).transpose(1, 2)  # B, N, D
            for x, bands in ((first, first_bands), (second, second_bands))
        ]
        tokens[0] = torch.where(kept, tokens[0], tokens[1])
        targets = [_patches(x, embed.patch_size[0]) for x in (first, second)]  # B, N, bands, pixels
        targets[0] = torch.where(kept[..., None], targets[0], targets[1])

        visible = torch.argsort(mask_noise, dim=1)[:, : int(count * (1 - mask_ratio))]
        mask = torch.ones_like(mask_noise).scatter(1, visible, 0.0)
        decoded = [self._decode(self._encode(x, visible), visible) for x in tokens]

        predictions = [self._predict(x, bands) for x, bands in zip(decoded, (first_bands, second_bands), strict=True)]
        # A token that came from the second image is read by the second image's heads.
        predictions[0] = torch.where(kept[..., None], predictions[0], self._predict(decoded[0], second_bands))
        losses = [self._loss(p, t, mask) for p, t in zip(predictions, targets, strict=True)]
        return MaskedAutoencoderOutput((losses[0] + losses[1]) / 2, predictions[0], predictions[1], mask)

    @staticmethod
    def _noise(noise: Tensor | None, image: Tensor, count: int) -> Tensor:
        shape = (image.shape[0], count)
        if noise is None:
            return torch.rand(shape, device=image.device)
        if tuple(noise.shape) != shape:
            raise InputError(f"noise of shape {tuple(noise.shape)}, expected {shape}: one value for each token")
        return noise

    def _encode(self, tokens: Tensor, visible: Tensor) -> Tensor:
        positions = self.encoder.pos_embed
        x = _gather(tokens + positions[:, 1:], visible)
        class_token = (self.encoder.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        return self.encoder.norm(self.encoder.blocks(torch.cat([class_token, x], dim=1)))

    def _decode(self, latent: Tensor, visible: Tensor) -> Tensor:
        latent = self.decoder_embed(latent)
        count = self.encoder.patch_embed.num_patches
        x = self.mask_token.to(latent.dtype).expand(len(latent), count, -1)
        x = x.scatter(1, visible[..., None].expand(-1, -1, latent.shape[-1]), latent[:, 1:])
        x = torch.cat([latent[:, :1], x], dim=1) + self.decoder_pos_embed
        return self.decoder_norm(self.decoder_blocks(x))[:, 1:]

    def _predict(self, decoded: Tensor, bands: Sequence[str]) -> Tensor:
        heads: list[int] = []
        for name in mixing(bands, None)[0]:
            projection = spectrum()[name].get("projection")
            if projection is None:
                raise InputError(f"{name} has no projection of its own, so it cannot be reconstructed")
            heads.append(projection)
        unique = {head: self.decoder_preds[head](decoded) for head in dict.fromkeys(heads)}
        return torch.stack([unique[head] for head in heads], dim=2)  # B, N, bands, pixels

    def _loss(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if self.norm_pix_loss:
            mean = target.mean(dim=(-2, -1), keepdim=True)
            variance = target.var(dim=(-2, -1), keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (prediction - target).square().mean(dim=(-2, -1))  # B, N
        return (error * mask).sum() / (mask.sum() + 1e-6)

    def load_official(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill encoder and decoder from a pretraining checkpoint's tensors (see ``eo_zoo.weights.read``).

        Raises:
            WeightsError: a tensor is missing, unknown or of another shape.
        """
        made = from_pretraining(tensors)
        weights.check_fit(made, self.state_dict(), what="the pretraining checkpoint")
        self.load_state_dict(made)


def from_pretraining(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole pretraining checkpoint's names, official or ours, to ``SmartiesMaskedAutoencoder``'s.

    Raises:
        WeightsError: an unknown name, or no decoder.
    """
    decoder = {name: tensor for name, tensor in tensors.items() if DECODER.fullmatch(name)}
    if not decoder:
        raise WeightsError("this file holds an encoder only; pretraining needs the decoder's tensors too")
    return {
        f"encoder.{name}": tensor for name, tensor in SmartiesVisionTransformer.from_official(tensors).items()
    } | decoder


def repeat_bands(x: Tensor, bands: Sequence[str], count: int = 12) -> tuple[Tensor, tuple[str, ...]]:
    """Repeat whole sets of bands up to ``count``, as pretraining does: VV VH becomes VV VH VV VH ..."""
    if not bands or x.shape[1] != len(bands) or count % len(bands):
        raise InputError(f"{len(bands)} bands of {x.shape[1]} channels cannot be repeated to {count}")
    times = count // len(bands)
    return x.repeat(1, times, 1, 1), tuple(bands) * times


def _patches(x: Tensor, size: int) -> Tensor:
    batch, bands, height, width = x.shape
    x = x.reshape(batch, bands, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, bands, size * size)


def _smallest(noise: Tensor, count: int) -> Tensor:
    """True where the noise is among the row's ``count`` smallest."""
    order = torch.argsort(noise, dim=1)[:, :count]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, order, True)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
