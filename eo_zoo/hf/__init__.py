"""The models in transformers, registered with its Auto classes on import.

>>> import eo_zoo.hf
>>> from transformers import AutoConfig
>>> AutoConfig.for_model("smarties").architecture
'smarties_vit_base'

Importing it also provides ``transformers.AutoModelForVision2Seq`` where transformers no longer has it; see
``eo_zoo.hf.vision2seq``.
"""

import inspect
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from eo_zoo.hf import vision2seq
from eo_zoo.hf.anysat import AnySatForImageClassification, AnySatModel
from eo_zoo.hf.config import AnySatConfig, EoZooConfig, MarsConfig, MultiMaeEoConfig, SmartiesConfig
from eo_zoo.hf.folder import export, wrap
from eo_zoo.hf.mars import MarsBackbone, MarsForImageClassification, MarsModel
from eo_zoo.hf.modeling import EoZooModel
from eo_zoo.hf.multimae import (
    MultiMaeEoBackbone,
    MultiMaeEoForImageClassification,
    MultiMaeEoForPreTraining,
    MultiMaeEoModel,
)
from eo_zoo.hf.processing import (
    AnySatImageProcessor,
    MarsImageProcessor,
    MultiMaeEoImageProcessor,
    SmartiesImageProcessor,
)
from eo_zoo.hf.smarties import (
    SmartiesBackbone,
    SmartiesForImageClassification,
    SmartiesForPreTraining,
    SmartiesForSemanticSegmentation,
    SmartiesModel,
)

__all__ = [
    "AnySatConfig", "AnySatForImageClassification", "AnySatImageProcessor", "AnySatModel", "EoZooConfig", "EoZooModel",
    "MarsBackbone", "MarsConfig", "MarsForImageClassification", "MarsImageProcessor", "MarsModel", "MultiMaeEoBackbone",
    "MultiMaeEoConfig", "MultiMaeEoForImageClassification", "MultiMaeEoForPreTraining", "MultiMaeEoImageProcessor",
    "MultiMaeEoModel", "SmartiesBackbone", "SmartiesConfig", "SmartiesForImageClassification", "SmartiesForPreTraining",
    "SmartiesForSemanticSegmentation", "SmartiesImageProcessor", "SmartiesModel", "export", "wrap",
]  # fmt: skip

_AUTO: dict[type[EoZooConfig], dict[Any, type[EoZooModel]]] = {
    SmartiesConfig: {
        AutoModel: SmartiesModel,
        AutoBackbone: SmartiesBackbone,
        AutoModelForImageClassification: SmartiesForImageClassification,
        AutoModelForSemanticSegmentation: SmartiesForSemanticSegmentation,
        AutoModelForPreTraining: SmartiesForPreTraining,
    },
    MarsConfig: {
        AutoModel: MarsModel,
        AutoBackbone: MarsBackbone,
        AutoModelForImageClassification: MarsForImageClassification,
    },
    AnySatConfig: {AutoModel: AnySatModel, AutoModelForImageClassification: AnySatForImageClassification},
    MultiMaeEoConfig: {
        AutoModel: MultiMaeEoModel,
        AutoBackbone: MultiMaeEoBackbone,
        AutoModelForImageClassification: MultiMaeEoForImageClassification,
        AutoModelForPreTraining: MultiMaeEoForPreTraining,
    },
}
_PROCESSORS = {
    SmartiesConfig: SmartiesImageProcessor,
    MarsConfig: MarsImageProcessor,
    AnySatConfig: AnySatImageProcessor,
    MultiMaeEoConfig: MultiMaeEoImageProcessor,
}


def _kinds(processor: type) -> dict[str, Any]:
    """One processor, whatever backend is asked for, as this release of transformers has it."""
    if "image_processor_classes" in inspect.signature(AutoImageProcessor.register).parameters:
        return {"image_processor_classes": {"pil": processor, "torchvision": processor}}
    return {"slow_image_processor_class": processor}


for _config, _models in _AUTO.items():
    AutoConfig.register(_config.model_type, _config)
    AutoImageProcessor.register(_config, **_kinds(_PROCESSORS[_config]))
    for _auto, _model in _models.items():
        _auto.register(_config, _model)

vision2seq.provide()
