"""torch.hub entrypoints, one for each registered model, made from the registry so that the lists cannot differ.

``anysat`` and ``AnySat`` beside them are the names that AnySat's own documentation calls; ``terrasense_base`` answers
questions and is no module of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from eo_zoo import registry
from eo_zoo.errors import InputError


def _load(
    name: str, pretrained: bool, *, tag: str | None = None, device: str | torch.device | None = None, **kwargs: Any
) -> nn.Module:
    return registry.create_model(f"{name}.{tag}" if tag else name, pretrained, **kwargs).to(device)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    record = registry.get_record(name)
    tags = ", ".join(full.partition(".")[2] for full in registry.list_tags(name))
    published = f"verified weights ({record.source}, {record.licence})" if record.source else "none are published"
    if record.inputs:
        takes = f"inputs (of MultiMAE in_domains): what a dict may hold, all by default: {', '.join(record.inputs)}."
    else:
        takes = f"bands, sensor: what the images hold: {', '.join(record.sensors)}, or band names."

    def entrypoint(pretrained: bool = True, **kwargs: Any) -> nn.Module:
        return _load(name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"""{registry.info(name)["description"]}

    Returns the model in eval mode.

    Args:
        pretrained: {published}; False gives random ones.
        tag: weight set: {tags}.
        weights: a local checkpoint instead, official layout or ours.
        device: where to put the model.
        {takes}
        num_classes, features_only, ...: as in timm.create_model.

    Input is normalised: see eo_zoo.create_transform("{name}"). Paper: {record.paper}.
    """
    return entrypoint


def anysat(pretrained: bool = True, *, model_size: str = "base", **kwargs: Any) -> nn.Module:
    """AnySat as its public code's entrypoint of this name: a call gives vectors of patches, output="patch".

    The models anysat_base, anysat_small and anysat_tiny are the same, but for output="tile". Returns the model in eval
    mode. Input is normalised: see eo_zoo.create_transform("anysat_base"). Paper: arXiv:2412.14123.

    Args:
        pretrained: verified weights, published for "base" only; False gives random ones.
        model_size: "base", "small" or "tiny".
        **kwargs: as of anysat_base: device, weights, tag, ...; flash_attn is accepted and ignored.
    """
    return _load(f"anysat_{model_size}", pretrained, **{"output": "patch", **kwargs})


class AnySat:
    """``from hubconf import AnySat; AnySat.from_pretrained("base")``, as in AnySat's documentation.

    Called itself it gives random weights. Everything is as of ``anysat``, output="patch" too.
    """

    # on purpose: what its documentation calls as a class is a way to the model
    def __new__(cls, model_size: str = "base", **kwargs: Any) -> nn.Module:  # type: ignore[misc]
        """The model with random weights."""
        return anysat(False, model_size=model_size, **kwargs)

    @staticmethod
    def from_pretrained(model_size: str = "base", **kwargs: Any) -> nn.Module:
        """The model with its published weights."""
        return anysat(model_size=model_size, **kwargs)


def terrasense_base(pretrained: bool = True, **kwargs: Any) -> Any:
    """TerraSense-Base, a Qwen-VL of 8 B parameters that answers questions about images: see eo_zoo.vlm.TerraSense.

    It needs the extra "vlm" and is no torch module: its ``ask``, ``detect``, ``change`` ... take images and words, and
    its ``model`` is transformers' own.

    Args:
        pretrained: must be True: there is no use for a random one.
        **kwargs: as of eo_zoo.vlm.TerraSense.from_pretrained: path_or_id, revision, dtype, device_map, quantization.
    """
    if not pretrained:
        raise InputError("terrasense_base answers with its published weights only: leave pretrained=False out")
    from eo_zoo.vlm import TerraSense

    return TerraSense.from_pretrained(**kwargs)


__all__ = [*registry.list_models(), "anysat", "AnySat", "terrasense_base"]
globals().update({name: _entrypoint(name) for name in registry.list_models()})
