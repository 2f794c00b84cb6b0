"""torch.hub entrypoints, one for each registered model, made from the registry so that the lists cannot differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from eo_zoo import registry


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    record = registry.get_record(name)
    tags = ", ".join(full.partition(".")[2] for full in registry.list_tags(name))

    def entrypoint(pretrained: bool = True, *, tag: str | None = None, **kwargs: Any) -> nn.Module:
        return registry.create_model(f"{name}.{tag}" if tag else name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"""{registry.info(name)["description"]}

    Returns the model in eval mode.

    Args:
        pretrained: verified weights ({record.source}, {record.licence}); False gives random ones.
        tag: weight set: {tags}.
        weights: a local checkpoint instead, official layout or ours.
        bands, sensor: what the images hold: {", ".join(record.sensors)}, or band names.
        num_classes, features_only, img_size, ...: as in timm.create_model.

    Input is normalised: see eo_zoo.create_transform("{name}"). Paper: {record.paper}.
    """
    return entrypoint


__all__ = registry.list_models()
globals().update({name: _entrypoint(name) for name in __all__})
