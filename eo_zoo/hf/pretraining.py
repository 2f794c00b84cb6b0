"""Pretraining models of ``eo_zoo.train`` in transformers: the file holds the encoder under its own names, so that every
other class, timm and ``eo_zoo`` read it too, and the decoder beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.utils import ModelOutput

from eo_zoo import weights
from eo_zoo.errors import InputError
from eo_zoo.hf.config import EoZooConfig
from eo_zoo.hf.modeling import EoZooModel


@dataclasses.dataclass
class PretrainingOutput(ModelOutput):
    """Of one step: see the family's module in ``eo_zoo.train`` for shapes."""

    loss: Tensor | None = None
    predictions: Any = None
    losses: dict[str, Tensor] | None = None
    visible: Any = None


class PretrainingModel(EoZooModel):
    """Base of the families' pretraining models; ``model.encoder`` is what the others wrap."""

    layout: ClassVar[str]  # of a file's tensors once they have our names

    @classmethod
    def names_in(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names of a whole file, or ours, to those that are kept."""
        # each family has its own table
        raise NotImplementedError

    @classmethod
    def in_module(cls, module: Any, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """Kept names to the module's; raises WeightsError unless all of it is there."""
        # each family has its own decoder
        raise NotImplementedError

    @classmethod
    def _load(
        cls, config: EoZooConfig, source: weights.Record | Path, cache_dir: str | Path | None
    ) -> tuple[nn.Module, weights.Origin | None]:
        module = cls.module_for(config)
        if isinstance(source, weights.Record):
            source = dataclasses.replace(source, layout=cls.layout)
        tensors, origin = weights.load(source, cls.names_in, layout=cls.layout, cache_dir=cache_dir)
        module.load_state_dict(cls.in_module(module, tensors, str(origin)))
        return module, origin

    def _answer(self, inputs: tuple[Any, ...], call: dict[str, Any], **named: Any) -> Any:
        """A call of the module, and what ``named`` makes of its result, as a ModelOutput or a tuple."""
        asked = [call.pop(name, None) for name in ("output_hidden_states", "output_attentions", "return_dict")]
        hidden, as_dict = self._asked(*asked)
        if hidden:
            raise InputError("pretraining sees the visible tokens alone, and gives no hidden states")
        made = self.model(*map(self._cast, inputs), **call)
        output = PretrainingOutput(loss=made.loss, **{name: of(made) for name, of in named.items()})
        return output if as_dict else output.to_tuple()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; names as they are in the files are taken too, as Trainer gives them when it goes on."""
        if not any(name.startswith("model.") for name in state_dict):
            made = self.in_module(self.model, self.names_in(dict(state_dict)), "the state dict")
            state_dict = {f"model.{name}": tensor for name, tensor in made.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _name_in_file(self, name: str) -> str:
        return name.removeprefix("encoder.")

    def _header(self) -> dict[str, str]:
        return {"format": "pt", "eo_zoo.layout": self.layout}
