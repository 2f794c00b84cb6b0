"""SMARTIES in transformers; see ``eo_zoo.models.smarties``."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from eo_zoo import weights
from eo_zoo.errors import InputError
from eo_zoo.hf.config import EoZooConfig, SmartiesConfig
from eo_zoo.hf.modeling import Backbone, EoZooModel, Features, ImageClassifier, require_labels
from eo_zoo.hf.pretraining import PretrainingModel


class _Smarties(EoZooModel):
    config_class = SmartiesConfig
    config: SmartiesConfig

    def _hidden(self, x: Any, call: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        """After each block the tokens (B, 1 + h * w, D), class token first."""
        last, states = self.model.forward_intermediates(x, return_prefix_tokens=True, output_fmt="NLC", **call)
        return last, [torch.cat([prefix, patches], dim=1) for patches, prefix in states]


class SmartiesModel(_Smarties, Features):
    """The encoder.

    >>> from eo_zoo.hf import SmartiesModel
    >>> model = SmartiesModel.from_pretrained("smarties_vit_nano", sensor="S1")
    >>> model(torch.zeros(1, 2, 112, 112)).pooler_output.shape
    torch.Size([1, 128])
    """

    def forward(
        self,
        pixel_values: Tensor,
        sensor_type: str | None = None,
        bands: Sequence[str] | None = None,
        all_tokens: bool = False,
        *,
        return_dict: bool | None = None,
        **call: Any,
    ) -> Any:
        """Features of normalised images; see ``Features._features``.

        The public class's own calls give what they give there, a tensor: ``model(image, sensor_type="S2")`` and
        ``model(image, bands=[...])`` the class token (B, D), ``all_tokens=True`` the class and patch tokens
        (B, 1 + h * w, D), as they are before the final norm. ``return_dict=True`` gives a ModelOutput there too.

        Args:
            pixel_values: (B, bands, H, W).
            sensor_type: "S2", "S2-L1C", "S1" or "RGB".
            bands: names of the images' bands in their order.
            all_tokens: all tokens instead of the pooled ones.
            return_dict: False for a tuple.
            **call: ``sensor``, which with ``bands`` is the vocabulary of their names; ``output_hidden_states``; ...

        Raises:
            InputError: unknown bands, or images that do not fit.
        """
        theirs = (sensor_type is not None or bands is not None or all_tokens) and return_dict is None
        if sensor_type is not None:
            if call.get("sensor") not in (None, sensor_type):
                raise InputError(f"sensor_type is {sensor_type} and sensor {call['sensor']}: give one of them")
            call["sensor"] = sensor_type
        if bands is not None:
            call["bands"] = bands
        if all_tokens and theirs:
            x = self._cast(pixel_values)
            [(patches, prefix)] = self.model.forward_intermediates(
                x, 1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True, **call
            )
            return torch.cat([prefix, patches], dim=1)
        made = self._features(pixel_values, return_dict=True if theirs else return_dict, **call)
        return made.pooler_output if theirs else made


class SmartiesBackbone(_Smarties, Backbone):
    """Maps (B, D, h, w) of chosen blocks, all of one stride."""


class SmartiesForImageClassification(_Smarties, ImageClassifier):
    """Logits of a linear head; with the tag of a tuned weight set, of its own."""

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The module with a head for the configuration's classes, of images and not of pixels."""
        module: Any = super().module_for(config)
        if module.head_kind == "segmentation":
            raise InputError(
                f"{config.name} with these arguments has a head for pixels: load it by SmartiesForSemanticSegmentation"
            )
        return module


class SmartiesForSemanticSegmentation(_Smarties, ImageClassifier):
    """Logits of pixels by DFC2020's head: a 1 x 1 convolution on the patch tokens, upsampled by 96 / 14.

    They are (B, num_labels, 96 h / 14, 96 w / 14) for h x w patches; 96 x 96 for 224 x 224 pixels. Labels (B, H', W')
    are whole numbers of classes, of any size: logits are brought to it, bilinearly, for the loss, in which
    ``config.semantic_loss_ignore_index`` (255) does not count.
    """

    output = SemanticSegmenterOutput

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The module with a segmentation head for the configuration's classes."""
        require_labels(config)
        config = copy.copy(config)  # the caller's may make other models
        config.model_args = {**config.model_args, "head": "segmentation"}
        return config.build()

    def _head(self, last: Tensor, states: Any, x: Any) -> Tensor:
        patch = self.model.patch_embed.patch_size[0]
        logits: Tensor = self.model.forward_head(states[-1], grid=(x.shape[-2] // patch, x.shape[-1] // patch))
        return logits  # of tokens before the norm

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        sized = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(sized.float(), labels.long(), ignore_index=self.config.semantic_loss_ignore_index)


class SmartiesForPreTraining(_Smarties, PretrainingModel):
    """The encoder with its decoder: masked autoencoding of pairs of images of two sensors."""

    layout = "smarties-pretraining-1"

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The encoder and a new decoder."""
        from eo_zoo.train.smarties import SmartiesMaskedAutoencoder

        encoder: Any = config.build(0)
        return SmartiesMaskedAutoencoder(encoder, **(config.pretraining or {}))

    @classmethod
    def names_in(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official or our names of a file to the module's."""
        from eo_zoo.train.smarties import from_pretraining

        return from_pretraining(tensors)

    @classmethod
    def in_module(cls, module: Any, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """The same, once all of it is there."""
        weights.check_fit(tensors, module.state_dict(), what=what)
        return dict(tensors)

    def _header(self) -> dict[str, str]:
        return {"format": "pt"}  # the encoder's names are not as this class keeps them

    def forward(self, pixel_values: Tensor, pair_values: Tensor | None = None, **call: Any) -> Any:
        """Loss of a pair of images; see ``eo_zoo.train.smarties.SmartiesMaskedAutoencoder.forward``.

        Args:
            pixel_values: the first images (B, bands, H, W).
            pair_values: the second, of the same ground and as many bands; the first again if not given.
            **call: ``first_bands`` and ``second_bands``, the model's own by default, ``mask_ratio``, ...
        """
        pair = pixel_values if pair_values is None else pair_values
        bands = self._encoder().bands
        call = {"first_bands": bands, "second_bands": bands, **call}
        return self._answer(
            (pixel_values, pair),
            call,
            predictions=lambda made: (made.first, made.second),
            visible=lambda made: made.mask == 0,
        )
