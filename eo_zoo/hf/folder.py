"""One folder for transformers, timm and ``eo_zoo``: written beside, read back, compared, and only then renamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from eo_zoo import registry
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.files import making, replacing, require_new
from eo_zoo.hf.anysat import AnySatForImageClassification, AnySatModel
from eo_zoo.hf.config import AnySatConfig, EoZooConfig, MarsConfig, MultiMaeEoConfig, SmartiesConfig
from eo_zoo.hf.mars import MarsForImageClassification, MarsModel
from eo_zoo.hf.modeling import EoZooModel
from eo_zoo.hf.multimae import MultiMaeEoForImageClassification, MultiMaeEoModel
from eo_zoo.hf.processing import processor_for
from eo_zoo.hf.smarties import SmartiesForImageClassification, SmartiesForSemanticSegmentation, SmartiesModel

_CLASSES: tuple[tuple[type[EoZooConfig], type[EoZooModel], type[EoZooModel]], ...] = (
    (SmartiesConfig, SmartiesModel, SmartiesForImageClassification),
    (MarsConfig, MarsModel, MarsForImageClassification),
    (AnySatConfig, AnySatModel, AnySatForImageClassification),
    (MultiMaeEoConfig, MultiMaeEoModel, MultiMaeEoForImageClassification),
)


def wrap(model: Any) -> EoZooModel:
    """A model of ``eo_zoo`` or timm in its transformers class: the same module, not a copy.

    Args:
        model: features give the family's ``Model``, classes ``ForImageClassification``, a segmentation head
            ``ForSemanticSegmentation``.

    Raises:
        InputError: none of ours.
    """
    if isinstance(model, EoZooModel):
        return model
    record = registry.record_of(model)
    for config_class, features, classifier in _CLASSES:
        if record is None or not record.name.startswith(config_class.family) or not hasattr(model, "model_args"):
            continue
        config = config_class(record.name)
        config.describe(model)
        kind = classifier if model.num_classes else features
        if model.num_classes and getattr(model, "head_kind", "") == "segmentation":
            kind = SmartiesForSemanticSegmentation
        return kind(config, model).train(model.training)
    raise InputError(f"{type(model).__name__} is not a model of eo_zoo: expected one of {registry.list_models()}")


def save(model: nn.Module, folder: Path, card: str | None = None) -> None:
    """Write a model with its image processor into a folder, and a card if one is given."""
    wrapped = wrap(model)
    wrapped.save_pretrained(folder)
    describe_in(folder, wrapped, card)


def describe_in(folder: Path, model: EoZooModel, card: str | None = None) -> None:
    """Write a model's image processor, and a card if one is given, beside its weights."""
    processor_for(model).save_pretrained(folder)
    if card is not None:
        with replacing(folder / "README.md") as text:
            text.write_text(card, encoding="utf-8")


def export(name: str, folder: str | Path, **kwargs: Any) -> None:
    """A model with its weights, configuration, image processor and card to a new folder that transformers, timm
    (``local-dir:FOLDER``) and ``eo_zoo`` read.

    Args:
        name: architecture, or architecture.tag.
        folder: made; its parents too.
        **kwargs: as of ``eo_zoo.create_model``: ``weights=PATH``, ``pretrained=False`` for random ones, ``bands=``, ...

    Raises:
        InputError: unknown name, arguments that do not fit, or a folder that exists.
        WeightsError: the weights are damaged or another model's, or what was read back differs.
        DownloadError: they cannot be fetched.

    >>> import tempfile
    >>> export("smarties_vit_nano", tempfile.mkdtemp() + "/nano")
    """
    folder = Path(folder)
    require_new(folder)
    model = registry.create_model(name, **kwargs)
    place(folder, model, lambda beside: save(model, beside))


def place(folder: Path, model: nn.Module, write: Callable[[Path], None]) -> None:
    """Let ``write`` write a model beside ``folder``, compare what timm reads there, and only then rename it.

    Raises:
        WeightsError: what was read back differs.
    """
    with making(folder) as beside:
        write(beside)
        tensors, again = model.state_dict(), timm.create_model(f"local-dir:{beside}", pretrained=True).state_dict()
        if set(again) != set(tensors) or not all(torch.equal(again[name], tensors[name]) for name in tensors):
            raise WeightsError(f"{folder}: what was read back differs from what was written")
