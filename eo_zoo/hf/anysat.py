"""AnySat in transformers; see ``eo_zoo.models.anysat``.

It has no backbone: transformers' decoders call one with a tensor of images, and AnySat takes a dict, and dates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from eo_zoo.hf.config import AnySatConfig
from eo_zoo.hf.modeling import Classifier, EoZooModel, Features
from eo_zoo.models.anysat_inputs import INPUTS


def _gathered(data: Mapping[str, Any] | None, call: dict[str, Any]) -> Mapping[str, Any]:
    """The inputs of a call, which may be given as a dict or, as processors and Trainer do, each by its name."""
    own = {key: call.pop(key) for key in list(call) if key.removesuffix("_dates").removesuffix("_mask") in INPUTS}
    return own if data is None else {**data, **own}


class _AnySat(EoZooModel):
    config_class = AnySatConfig
    config: AnySatConfig
    main_input_name = "data"
    _no_split_modules: ClassVar[list[str]] = ["Block", "PatchEncoder", "PoolingBlock"]

    def _hidden(self, x: Any, call: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        """After each block the patches' tokens (B, n * n, D), the mean over the inputs; last the pooled ones."""
        last, states = self.model.forward_intermediates(x, output_fmt="NLC", **call)
        return last, states


class AnySatModel(_AnySat, Features):
    """The encoder; ``last_hidden_state`` is (B, 1 + n * n, D), the tile's vector first.

    >>> import torch
    >>> from eo_zoo.hf import AnySatConfig, AnySatModel
    >>> model = AnySatModel(AnySatConfig("anysat_nano"))  # random weights
    >>> model({"aerial": torch.zeros(1, 4, 300, 300)}, patch_size=20).pooler_output.shape
    torch.Size([1, 128])
    """

    def forward(
        self,
        data: Mapping[str, Any] | None = None,
        patch_size: int | None = None,
        output: str | None = None,
        **call: Any,
    ) -> Any:
        """Features of a dict of inputs, or of inputs each by its name; see ``eo_zoo.models.anysat.AnySat.forward``.

        The public code's own calls give what they give there, a tensor: ``model(data, patch_size=10, output="patch")``,
        with "tile", "patch", "all" or "dense" and ``output_modality``. Without ``output`` it is a ModelOutput.

        Raises:
            InputError: anything is missing, unknown, or does not fit together.
        """
        data = _gathered(data, call)
        if patch_size is not None:
            call["patch_size"] = patch_size
        if output is None:
            return self._features(data, **call)
        return self.model(self._cast(data), output=output, **call)


class AnySatForImageClassification(_AnySat, Classifier):
    """Logits of a linear head on the tile's vector."""

    def forward(self, data: Mapping[str, Any] | None = None, labels: Tensor | None = None, **call: Any) -> Any:
        """Logits (B, num_labels) of inputs as ``AnySatModel`` takes them; see ``Classifier._logits``."""
        return self._logits(_gathered(data, call), labels, **call)
