"""What the tests of transformers' classes need to know of a family: a row a family, as in tests/models/families.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from eo_zoo import hf, registry
from tests.models.families import FAMILIES, multimae_inputs


@dataclass(frozen=True)
class Case:
    """``config`` is of the family's smallest model, ``stages`` how many hidden states it has."""

    family: str
    config: type[hf.EoZooConfig]
    features: type[hf.EoZooModel]
    classifier: type[hf.EoZooModel]
    stages: int
    backbone: type[hf.EoZooModel] | None = None
    others: tuple[tuple[type[hf.EoZooModel], Mapping[str, Any]], ...] = field(default=())

    def configured(self, **kwargs: Any) -> hf.EoZooConfig:
        row = FAMILIES[self.family]
        return self.config(row.smallest, model_args=row.small, **kwargs)

    def inputs(self, model: hf.EoZooModel, batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a processor gives, and how the wrapped module is called."""
        row = FAMILIES[self.family]
        module = getattr(model.model, "encoder", model.model)
        if self.backbone and type(model) is self.backbone:  # decoders give it a tensor of images
            x = torch.randn(batch, model.config.num_channels, *[model.config.image_size] * 2)
            return {"pixel_values": x}, {"x": x, "call": {}}
        if type(model) is hf.MultiMaeEoForPreTraining:
            x = multimae_inputs(module.in_domains, batch)
            return x, {"x": x, "call": {}}
        x, call = row.inputs(module, registry.get_record(row.smallest).sensors[0], batch)
        return dict(x) if isinstance(x, dict) else {"pixel_values": x}, {"x": x, "call": call}

    def build(self, kind: type[hf.EoZooModel], **kwargs: Any) -> hf.EoZooModel:
        """Random weights, none of them zero, in eval mode."""
        torch.manual_seed(0)
        model = kind(self.configured(**kwargs)).eval()
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return model


DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)
CASES = (
    Case(
        "smarties", hf.SmartiesConfig, hf.SmartiesModel, hf.SmartiesForImageClassification, 4, hf.SmartiesBackbone,
        (
            (hf.SmartiesForSemanticSegmentation, dict(num_labels=3)),
            (hf.SmartiesForPreTraining, dict(pretraining=DECODER)),
        ),
    ),
    Case("mars", hf.MarsConfig, hf.MarsModel, hf.MarsForImageClassification, 4, hf.MarsBackbone),
    Case("anysat", hf.AnySatConfig, hf.AnySatModel, hf.AnySatForImageClassification, 3),
    Case(
        "multimae", hf.MultiMaeEoConfig, hf.MultiMaeEoModel, hf.MultiMaeEoForImageClassification, 3,
        hf.MultiMaeEoBackbone,
        ((hf.MultiMaeEoForPreTraining, dict(pretraining=dict(DECODER, weighting="uncertainty"))),),
    ),
)  # fmt: skip
CLASSES = [
    (case, kind, kwargs)
    for case in CASES
    for kind, kwargs in (
        (case.features, {}),
        (case.classifier, dict(num_labels=3)),
        *([(case.backbone, dict(out_indices=[0, -1]))] if case.backbone else []),
        *case.others,
    )
]
