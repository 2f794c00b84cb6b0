"""TerraTorch: every model as a backbone of its registry, with bands named as its data modules name them.

>>> from eo_zoo.integrations import terratorch
>>> backbone = terratorch.create_backbone("smarties_vit_nano", bands=["RED", "NIR_NARROW", "SWIR_1"])
>>> backbone.out_channels
[128, 128, 128, 128]

``register`` puts them all into the registry; docs/terratorch.md shows them with decoders, necks and tasks.
Interfaces as in github.com/torchgeo/terratorch 1.2.13: a backbone's ``out_channels`` and its list of maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from eo_zoo import sensors, weights
from eo_zoo.errors import InputError, require
from eo_zoo.registry import create_model, get_record, list_models
from eo_zoo.transforms import create_transform

PREFIX = "eo_zoo_"
IMAGE = "image"  # the key of a single tensor
ORBITS = ("ASC_", "DSC_")  # TerraTorch's SARBands name the orbit too, which no model here is told
Bands = Sequence[Any] | Mapping[str, Sequence[Any]]


def register() -> list[str]:
    """Register every architecture and weight set in TerraTorch's backbone registry; doing it again changes nothing.

    Returns:
        The names: ``eo_zoo_`` before what ``eo_zoo.list_models`` and ``eo_zoo.registry.list_tags`` give.

    Raises:
        MissingExtra: TerraTorch is not installed.
    """
    registry = require("terratorch.registry", "terratorch").TERRATORCH_BACKBONE_REGISTRY
    return [registry.register(_constructor(name)).__name__ for name in (*list_models(), *weights.RECORDS)]


def _constructor(name: str) -> Any:
    def build(**kwargs: Any) -> Backbone:
        return create_backbone(name, **kwargs)

    build.__name__ = f"{PREFIX}{name}"  # the registry's key
    build.__doc__ = f"{get_record(name).title}: see eo_zoo.integrations.terratorch.create_backbone."
    return build


class Backbone(nn.Module):
    """A model's maps as TerraTorch's necks and decoders take them; ``create_backbone`` makes it.

    Args:
        model: of this package.
        indices: of the maps wanted, as ``out_indices`` of timm; all if None.
        parts: of a model of several inputs, by key of the data: the names of the data's bands, and of each input that
            is made of them the bands.
        transform: from raw values to what the model takes.
    """

    def __init__(
        self,
        model: Any,
        indices: Sequence[int] | None = None,
        *,
        parts: Mapping[str, tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]] | None = None,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.indices, _ = feature_take_indices(len(model.feature_info), None if indices is None else list(indices))
        if hasattr(model, "prune_intermediate_layers"):  # a layer that has no part in the loss stops DDP
            model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.model, self.parts, self.transform = model, dict(parts or {}), transform
        self.out_channels: list[int] = [model.feature_info[i]["num_chs"] for i in self.indices]
        steps = {info["reduction"] for info in model.feature_info}
        # TerraTorch reads it, and pads images to a multiple of twice as much: what its necks halve, or the last stage
        # of a pyramid. AnySat's cells are no pixels, and a padded tile is none of its.
        self.patch_size = None if hasattr(model, "inputs") else max(steps) // min(len(steps), 2)

    def forward(self, x: Tensor | Mapping[str, Tensor], **_: Any) -> list[Tensor]:
        """Images (B, bands, H, W), or a dict of them by input, to maps (B, D, h, w), one a block or stage.

        Series are (B, bands, T, H, W), as TerraTorch's data sets have them. What else a batch holds, TerraTorch hands
        over too, and it is left alone.

        Raises:
            InputError: what the model, or the transform, refuses.
        """
        if self.parts and isinstance(x, Tensor):
            x = {IMAGE: x}
        data = x if isinstance(x, Tensor) else dict(self._arranged(x))
        if self.transform is not None:
            data = self.transform(data)
        made = self.model.forward_intermediates(data, self.indices, intermediates_only=True)
        return [torch.stack(list(one.values())).mean(0) if isinstance(one, dict) else one for one in made]

    def _arranged(self, data: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        """The model's inputs, with their bands, and masks of them, in its order."""
        for key, x in data.items():
            own = key.removesuffix("_mask")
            if isinstance(x, Tensor) and x.ndim == 5:
                x = x.transpose(1, 2)
            if own not in self.parts or (own != key and x.shape[-3] == 1):
                yield key, x
                continue
            bands, orders = self.parts[own]
            for name, order in orders.items():
                yield name + key[len(own) :], sensors.reorder(x, bands, order)


def create_backbone(
    name: str,
    pretrained: bool = False,
    *,
    bands: Bands | None = None,
    sensor: str | None = None,
    out_indices: Sequence[int] | None = None,
    normalize: bool = False,
    scale: int | None = None,
    **kwargs: Any,
) -> Backbone:
    """A model as a backbone, in train mode, as TerraTorch makes its own.

    Args:
        name: architecture, or architecture.tag.
        pretrained: the published, verified weights; random ones otherwise.
        bands: names of the images' bands in order: TerraTorch's ``HLSBands``, ``OpticalBands`` and ``SARBands``, or any
            name that ``eo_zoo.sensors`` knows; the model's own if not given. For MultiMAE and AnySat by key of the
            dict of images; a key that is no input of the model is split into those whose bands it has, and a list of
            bands is that of a single tensor.
        sensor: whose names they are, "S2" where it is not told; "L8" of HLSL30 that is not to be taken for Sentinel-2.
        out_indices: of the maps, as timm has them; those of all blocks or stages if not given.
        normalize: the images come in their sensor's units (Sentinel-2: digital numbers; Sentinel-1: dB), and are
            clipped and standardised here as the model expects, by ``eo_zoo.create_transform``. Give means of 0 and
            standard deviations of 1 to TerraTorch's data module then. MultiMAE's images are resized to ``img_size``.
        scale: of AnySat, the patch size in units of 10 m; by default the smallest that the inputs allow.
        **kwargs: as ``eo_zoo.create_model`` takes them: ``weights``, ``img_size``, ``dynamic_img_size``, ...

    Raises:
        InputError: unknown name or bands, or arguments that do not fit.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights cannot be fetched.
    """
    record = get_record(name)
    if scale is not None:
        kwargs["patch_size"] = 10 * scale
    if not record.inputs:
        model: Any = create_model(name, pretrained, bands=_names(bands), sensor=sensor, **kwargs)
        transform = _without_resizing(create_transform(name, sensor, bands=model.bands)) if normalize else None
        return Backbone(model.train(), out_indices, transform=transform)
    given = bands if isinstance(bands, Mapping) or bands is None else {IMAGE: bands}
    parts = {key: _parts(record, key, _names(own), sensor) for key, own in (given or {}).items()}
    domains = "rgb" in record.inputs  # MultiMAE's
    if domains and list(parts) == [IMAGE]:
        kwargs.setdefault("in_domains", tuple(parts[IMAGE][1]))
    model = create_model(name, pretrained, **kwargs)
    transform = None
    if normalize:
        transform = create_transform(name, sensor, size=model.img_size[0]) if domains else create_transform(name)
    return Backbone(model.train(), out_indices, parts=parts, transform=transform)


def _names(bands: Any) -> Any:
    """Members of TerraTorch's enumerations as the text they are; what is no list is left to be refused."""
    if bands is None or isinstance(bands, str):
        return bands
    names = [getattr(band, "value", band) for band in bands]
    return [name[4:] if isinstance(name, str) and name.startswith(ORBITS) else name for name in names]


def _parts(
    record: weights.Record, key: str, names: Any, sensor: str | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The data's bands under a key, and the inputs that are made of them."""
    orders = {name: sensors.get_order(order) for name, order in record.inputs.items()}
    if key in orders:
        orders = {key: orders[key]}
        sensor = sensors.sensor_of(record.inputs[key])
    bands = sensors.resolve_bands(names, sensor or "S2-L1C")  # L1C has all bands of L2A
    held = {name: order for name, order in orders.items() if set(order) <= set(bands)}
    if not held:
        wanted = "; ".join(f"{name} takes {', '.join(order)}" for name, order in orders.items())
        raise InputError(f"the bands of {key} ({', '.join(bands)}) hold no input of {record.name} whole: {wanted}")
    return bands, held


def _without_resizing(transform: nn.Module) -> nn.Module:
    # the data module chose the size
    for part in transform.modules():
        if isinstance(part, nn.Sequential):
            part[1] = nn.Identity()
    return transform
