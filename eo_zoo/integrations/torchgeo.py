"""TorchGeo: weight enums in its style, with its four functions to find them, and models that take them.

An enum an architecture, a member a weight set: ``SmartiesVitBase_Weights.PRETRAIN`` is ``smarties_vit_base.pretrain``.
Of images of just one of several sensors the others have members too: ``PRETRAIN_S1``, ``PRETRAIN_RGB``. All are made
from ``eo_zoo.weights.RECORDS`` and need torchvision alone, which timm brings, not TorchGeo.

>>> from eo_zoo.integrations.torchgeo import SmartiesVitNano_Weights, smarties_vit_nano
>>> SmartiesVitNano_Weights.DEMO.meta["bands"][:3]
['B1', 'B2', 'B3']
>>> smarties_vit_nano(weights=SmartiesVitNano_Weights.DEMO_S1, num_classes=3).bands
('microwave_1', 'microwave_2')
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models import Weights, WeightsEnum

from eo_zoo import registry, sensors
from eo_zoo.errors import InputError, nearest
from eo_zoo.transforms import create_transform
from eo_zoo.weights import RECORDS, Record, github

__all__ = ["ModelWeights", "SampleTransform", "get_model", "get_model_weights", "get_weight", "list_models"]


class ModelWeights(WeightsEnum):
    """Base of the enums: torchvision's, loading by eo_zoo.

    ``url`` is where the file comes from; ``transforms`` turns raw values into what the model takes, see
    `SampleTransform`; ``meta`` has model, name (of the weight set), title, dataset, license, publication, repo,
    citation, sensor, bands and in_chans (of a model of several inputs dicts by input, and no sensor), units and
    img_size of an image, and num_classes, classes and task of a tuned weight set.
    """

    # A member is unpickled by its name: no two transforms are equal, as torchvision's lookup by value wants it. (The
    # standard library states another type for it than for what it replaces.)
    __reduce_ex__ = enum.pickle_by_enum_name  # type: ignore[assignment]

    def get_state_dict(
        self,
        model_dir: str | Path | None = None,
        *,
        progress: bool = True,
        check_hash: bool = True,
        weights_only: bool = True,
    ) -> dict[str, Tensor]:
        """Verified tensors under the model's names, on the CPU.

        Args:
            model_dir: where downloads and converted weights are kept, ``~/.cache/eo_zoo`` if not given.
            progress: torchvision's; what is downloaded is logged.
            check_hash: torchvision's; the hash is checked in any case.
            weights_only: torch.hub's; no pickle is executed in any case.

        Raises:
            WeightsError: the file is damaged or another than at first use.
            DownloadError: it cannot be fetched.
        """
        return registry.create_model(self.meta["name"], cache_dir=model_dir).state_dict()


class SampleTransform(nn.Module):
    """A weight set's transform for images (..., bands, H, W) in its units, or for TorchGeo's samples and batches.

    Of a sample the image is transformed, and a mask (..., H, W) brought to its new size, pixel by nearest pixel; the
    rest stays as it is.

    Args:
        transform: from ``eo_zoo.create_transform``.
        cropped: it cuts off the images' edges, so that masks would not fit any more.
    """

    def __init__(self, transform: nn.Module, *, cropped: bool = False) -> None:
        super().__init__()
        self.transform, self.cropped = transform, cropped

    def forward(self, x: Any) -> Any:
        """Normalise and resize an image, or a sample's.

        Raises:
            InputError: a sample without image, a mask where edges are cut off, or values that are not finite.
        """
        if not isinstance(x, Mapping):
            return self.transform(x)
        if "image" not in x:
            raise InputError(f"the sample has no 'image', only {', '.join(map(str, x)) or 'nothing'}")
        out = {**x, "image": self.transform(x["image"])}
        if "mask" in x:
            if self.cropped:
                raise InputError("this weight set's transform cuts off edges, for classification: it takes no mask")
            height, width = out["image"].shape[-2:]
            mask = torch.as_tensor(x["mask"])
            rows, columns = (_nearest(*sides) for sides in zip(mask.shape[-2:], (height, width), strict=True))
            out["mask"] = mask[..., rows, :][..., columns]
        return out


def _nearest(old: int, new: int) -> Tensor:
    return ((torch.arange(new) + 0.5) * (old / new)).long()


# ---- from records to members ----


def _url(record: Record) -> str:
    if record.scheme == "hf":
        owner, name, file = record.address.split("/", 2)
        return f"https://huggingface.co/{owner}/{name}/resolve/{record.revision}/{file}"
    return github.parse(record.source).page if record.scheme == "github" else record.source


def _written(bands: tuple[str, ...]) -> list[str]:
    """Bands as TorchGeo's own weights write them: B1, B8a."""
    names = [sensors.get_band(band).sensor_name for band in bands]
    return [re.sub(r"^B0(?=\d)", "B", name).replace("B8A", "B8a") for name in names]


def _meta(record: Record, sensor: str | None) -> dict[str, Any]:
    meta: dict[str, Any] = dict(
        model=record.name.partition(".")[0],
        name=record.name,
        title=record.title,
        dataset=record.task.data_set if record.task else record.trained_on,
        license=record.licence,
        publication=re.sub("^arXiv:", "https://arxiv.org/abs/", record.paper),
        repo=record.repository,
        citation=record.citation,
    )
    if record.terms:
        meta["terms"] = record.terms
    if record.inputs:
        meta["bands"] = {name: _written(sensors.get_order(order)) for name, order in record.inputs.items()}
        meta["in_chans"] = {name: len(bands) for name, bands in meta["bands"].items()}
    else:
        bands = record.bands if sensor is None else sensors.get_sensor(sensor).band_names
        used = record.sensors if sensor is None else (sensor,)
        units = [sensors.get_statistics(record.statistics[one]).units for one in used]
        meta |= dict(
            sensor=" and ".join(used),
            bands=_written(bands),
            in_chans=len(bands),
            units=" and ".join(dict.fromkeys(units)),
            img_size=registry.input_size(record.name),
        )
    if record.task:
        meta |= dict(num_classes=len(record.task.classes), classes=list(record.task.classes), task=record.task.kind)
    return meta


def _members(record: Record) -> Iterator[tuple[str, Weights]]:
    tag = record.name.partition(".")[2].upper()
    if record.inputs:
        yield tag, Weights(_url(record), create_transform(record.name), _meta(record, None))
        return
    for sensor in (None,) if record.together else record.sensors:
        transform = SampleTransform(create_transform(record.name, sensor), cropped=record.crop != 1)
        own = tag if sensor in (None, record.sensors[0]) else f"{tag}_{sensor}".upper().replace("-", "_")
        yield own, Weights(_url(record), transform, _meta(record, sensor))


@functools.cache
def _enums() -> dict[str, type[ModelWeights]]:
    """By architecture, of those with published weights."""
    enums = {}
    for name in registry.list_models():
        records = [RECORDS[full] for full in registry.list_tags(name)]
        members = [member for record in records if record.source for member in _members(record)]
        if members:
            title = "".join(part.capitalize() for part in name.split("_"))
            enums[name] = ModelWeights(f"{title}_Weights", members, module=__name__)
    # by Enum's functional form, which gives classes; mypy takes them for members
    return enums  # type: ignore[return-value]


# ---- TorchGeo's functions ----


def list_models() -> list[str]:
    """Names of the architectures with published weights."""
    return list(_enums())


def get_model_weights(name: str) -> type[ModelWeights]:
    """The weight enum of an architecture.

    Raises:
        InputError: there is none of this name.
    """
    if name not in _enums():
        raise InputError(f"unknown model '{name}'. {nearest(name, _enums())}")
    return _enums()[name]


def get_weight(name: str) -> ModelWeights:
    """A member by its full name, "SmartiesVitNano_Weights.DEMO".

    Raises:
        InputError: there is none of this name.
    """
    known = {str(member): member for one in _enums().values() for member in one.__members__.values()}
    if name not in known:
        raise InputError(f"unknown weights '{name}'. {nearest(name, known)}")
    return known[name]


def get_model(name: str, weights: ModelWeights | str | None = None, **kwargs: Any) -> nn.Module:
    """A model in train mode, as timm makes it, with the weights of a member or random; of its sensor's bands.

    ``smarties_vit_nano(weights=...)``, a function of this module for every architecture, does the same.

    Args:
        name: architecture.
        weights: a member of its enum, or the member's name.
        **kwargs: for the model: ``num_classes``, ``bands``, ``sensor``, ``img_size``, ``features_only``, ...

    Raises:
        InputError: unknown name, or weights of another architecture.
        WeightsError, DownloadError: see `ModelWeights.get_state_dict`.
    """
    own = get_model_weights(name)
    if weights is None:
        return timm.create_model(name, **kwargs)
    member = get_weight(weights) if isinstance(weights, str) else weights
    if not isinstance(member, own):
        raise InputError(
            f"{member} holds no weights of {name}: expected one of {', '.join(map(str, own.__members__.values()))}"
        )
    meta = member.meta
    if meta.get("sensor") in sensors.list_sensors():
        kwargs.setdefault("sensor", meta["sensor"])
    return timm.create_model(meta["name"], pretrained=True, **kwargs)


def __getattr__(name: str) -> Any:
    """The enums, and a function for each architecture."""
    if name in _enums():
        return functools.partial(get_model, name)
    for one in _enums().values():
        if one.__name__ == name:
            return one
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_enums(), *(one.__name__ for one in _enums().values())]
