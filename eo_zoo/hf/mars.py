"""MaRS in transformers; see ``eo_zoo.models.mars``. Its weights may not be pushed to a hub."""

from __future__ import annotations

from eo_zoo.hf.config import MarsConfig
from eo_zoo.hf.modeling import Backbone, EoZooModel, ImageClassifier, ImageFeatures


class _Mars(EoZooModel):
    config_class = MarsConfig
    config: MarsConfig


class MarsModel(_Mars, ImageFeatures):
    """The encoder; ``last_hidden_state`` is (B, H / 32, W / 32, D)."""


class MarsBackbone(_Mars, Backbone):
    """Maps (B, D, h, w) of strides 4, 8, 16 and 32."""


class MarsForImageClassification(_Mars, ImageClassifier):
    """Logits of a linear head."""
