"""MultiMAE meets EO in transformers; see ``eo_zoo.models.multimae``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eo_zoo.hf.config import EoZooConfig, MultiMaeEoConfig
from eo_zoo.hf.modeling import Backbone, Classifier, EoZooModel, Features
from eo_zoo.hf.pretraining import PretrainingModel
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS

_KEYS = {*DOMAINS, *(f"{name}_mask" for name in DOMAINS)}


def _gathered(data: Any, call: dict[str, Any]) -> Any:
    """The domains of a call, which may be given as a dict or, as processors and Trainer do, each by its name."""
    own = {key: call.pop(key) for key in list(call) if key in _KEYS}
    data = call.pop("pixel_values", data)
    if data is None:
        return own
    return {**data, **own} if own else data


class _MultiMae(EoZooModel):
    config_class = MultiMaeEoConfig
    config: MultiMaeEoConfig
    main_input_name = "data"

    def _hidden(self, x: Any, call: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        """After each block all tokens (B, n + 1, D), domain by domain, the global one last."""
        tokens, _ = self.model.embed(x)
        states = list(self.model.run_blocks(torch.cat(list(tokens.values()), dim=1)))
        return states[-1], states


class MultiMaeEoModel(_MultiMae, Features):
    """The encoder; ``last_hidden_state`` is (B, n + 1, D), the global token last.

    >>> import torch
    >>> from eo_zoo.hf import MultiMaeEoConfig, MultiMaeEoModel
    >>> config = MultiMaeEoConfig(model_args=dict(embed_dim=64, depth=2, num_heads=4))
    >>> model = MultiMaeEoModel(config)  # random weights
    >>> model({"depth": torch.zeros(1, 1, 56, 56)}).last_hidden_state.shape
    torch.Size([1, 50, 64])
    """

    def forward(self, data: Mapping[str, Tensor] | Tensor | None = None, **call: Any) -> Any:
        """Features of a dict of domains, of domains each by its name, or of images; see ``MultiMae.forward``."""
        return self._features(_gathered(data, call), **call)


class MultiMaeEoBackbone(_MultiMae, Backbone):
    """Maps (B, D, h, w) of chosen blocks, all of one stride, of an image tensor: the model's only domain, else rgb."""

    main_input_name = "pixel_values"


class MultiMaeEoForImageClassification(_MultiMae, Classifier):
    """Logits of a norm and a linear layer on the pooled vector."""

    def forward(
        self, data: Mapping[str, Tensor] | Tensor | None = None, labels: Tensor | None = None, **call: Any
    ) -> Any:
        """Logits (B, num_labels) of domains as ``MultiMaeEoModel`` takes them; see ``Classifier._logits``."""
        return self._logits(_gathered(data, call), labels, **call)


class MultiMaeEoForPreTraining(_MultiMae, PretrainingModel):
    """The encoder with its output adapters: reconstruction of every domain from a few visible patches."""

    layout = MultiMae.layout

    @classmethod
    def module_for(cls, config: EoZooConfig) -> nn.Module:
        """The encoder and new output adapters."""
        from eo_zoo.train.multimae import MultiMaePretraining

        encoder: Any = config.build(0)
        return MultiMaePretraining(encoder, **(config.pretraining or {}))

    @classmethod
    def names_in(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official or our names of a file to those that are kept."""
        return MultiMae.from_official(tensors)

    @classmethod
    def in_module(cls, module: Any, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """Kept names to the module's."""
        made: dict[str, Tensor] = module.fitted(tensors, what)
        return made

    def forward(self, data: Mapping[str, Tensor] | None = None, **call: Any) -> Any:
        """Loss of reconstructing what is hidden; see ``eo_zoo.train.multimae.MultiMaePretraining.forward``."""
        return self._answer(
            (_gathered(data, call),),
            call,
            predictions=lambda made: made.predictions,
            losses=lambda made: made.losses,
            visible=lambda made: made.visible,
        )
