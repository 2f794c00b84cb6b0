"""MaRS in transformers; see ``eo_zoo.models.mars``. Its weights may not be pushed to a hub."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from eo_zoo.hf.config import MarsConfig
from eo_zoo.hf.modeling import Backbone, EoZooModel, ImageClassifier, ImageFeatures


class _Mars(EoZooModel):
    config_class = MarsConfig
    config: MarsConfig

    def _hidden(self, x: Any, call: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        """The four stages' maps (B, D, h, w), as they are before the final norm."""
        last, states = self.model.forward_intermediates(x, **call)
        # timm gives the last one as a map here, and as NHWC from forward_features
        return (last.permute(0, 2, 3, 1) if last.shape[1] == self.model.num_features else last), states


class MarsModel(_Mars, ImageFeatures):
    """The encoder; ``last_hidden_state`` is (B, H / 32, W / 32, D)."""


class MarsBackbone(_Mars, Backbone):
    """Maps (B, D, h, w) of strides 4, 8, 16 and 32."""


class MarsForImageClassification(_Mars, ImageClassifier):
    """Logits of a linear head."""
