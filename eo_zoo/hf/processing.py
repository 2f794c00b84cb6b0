"""Image processors: from what users hold to what the models take, by the statistics that lie with them.

They do what ``eo_zoo.create_transform`` does, bit for bit, after finding out which band is which and in which units.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from eo_zoo import registry, sensors, weights
from eo_zoo.errors import InputError, nearest
from eo_zoo.hf.config import (
    AnySatConfig,
    EoZooConfig,
    MarsConfig,
    MultiMaeEoConfig,
    SmartiesConfig,
    read_facts,
    resolve,
)
from eo_zoo.hf.images import Image, Reading
from eo_zoo.mmearth import domain_statistics
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS
from eo_zoo.presets import get_preset
from eo_zoo.sensors import Statistics
from eo_zoo.transforms import Inputs, Normalize, create_transform
from eo_zoo.values import plausibility

if TYPE_CHECKING:
    from eo_zoo.hf.modeling import EoZooModel

_logger = logging.getLogger(__name__)
_SAMPLED = 2**16  # values of a band that the checks look at
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies", "use_fast",
        "trust_remote_code", "_from_auto", "_from_pipeline")  # fmt: skip

Units = str | Mapping[str, str]
Stats = str | Path | Statistics | Mapping[str, Any]


class EoZooImageProcessor(BaseImageProcessor):
    """Base of the families' processors.

    A processor is what its constructor takes, all of it plain JSON values once made; ``save_pretrained`` writes them,
    the numbers of the statistics included, so that a folder stays what it was.
    """

    config_class: ClassVar[type[EoZooConfig]] = EoZooConfig
    facts: ClassVar[tuple[str, ...]] = ("name", "statistics", "units", "nodata")  # the constructor's arguments
    bound: ClassVar[Mapping[str, Sequence[str]]] = {}  # by one of them, those that it gives another meaning
    statistics: dict[str, dict[str, Any]]

    def __init__(self, name: str | None, units: Units | None, nodata: float | Mapping[str, float] | None) -> None:
        super().__init__()
        record = registry.get_record(name or self.config_class.default)
        if not record.name.startswith(self.config_class.family):
            known = ", ".join(registry.list_models(f"{self.config_class.family}*"))
            raise InputError(f"{type(self).__name__} is for {known}; got '{name}'")
        self.name = record.name
        self.units, self.nodata = copy.copy(units), copy.copy(nodata)
        self._told: set[str] = set()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As transformers', of a folder or a repository; also of a model of ``eo_zoo`` or an official repository, for
        which nothing is fetched.

        Args:
            pretrained_model_name_or_path: what to load.
            **kwargs: arguments of the class, instead of the stored ones; and transformers'.

        Raises:
            InputError: a model of another family, or arguments that do not fit.
        """
        record = resolve(pretrained_model_name_or_path)
        if record is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict({"name": record.name}, **{key: own for key, own in kwargs.items() if key not in _HUB})

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What preprocessor_config.json of a folder or repository holds, and the arguments not of fetching it."""
        found = read_facts(pretrained_model_name_or_path, "preprocessor_config.json", kwargs)
        return found, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A processor of what ``to_dict`` gave; ``kwargs`` that are arguments of the class come first."""
        unused = kwargs.pop("return_unused_kwargs", False)
        own = {key: kwargs.pop(key) for key in cls.facts if key in kwargs}
        for key in cls.bound.keys() & own.keys():
            own = {**dict.fromkeys(cls.bound[key]), **own}
        stored = {key: value for key, value in image_processor_dict.items() if key in cls.facts}
        processor = cls(**(stored | own))
        return (processor, kwargs) if unused else processor

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments, and the class's name."""
        made = {key: copy.deepcopy(getattr(self, key)) for key in self.facts}
        return {**made, "image_processor_type": type(self).__name__}

    @property
    def _record(self) -> weights.Record:
        return registry.get_record(self.name)

    def _tell(self, warnings: Sequence[str]) -> None:
        """Warn of each kind of thing once, not for each image of a training set."""
        for text in warnings:
            kind = re.sub(r"[\d.]+", "", text.partition(":")[0])
            if kind not in self._told:
                self._told.add(kind)
                _logger.warning("%s", text)

    def _check(self, image: Image, statistics: Sequence[Statistics]) -> None:
        """Warn of values that bands of these names should not have, as the raster pipeline does."""
        self._tell(image.warnings)
        samples = {}
        for place, band in enumerate(image.bands):
            values = image.values[..., place, :, :].flatten()
            values = values[:: max(1, values.numel() // _SAMPLED)]
            samples[band] = values[~values.isnan()].numpy()
        for own in statistics:
            self._tell(plausibility(samples, own))


# ---- images ----


class _Images(EoZooImageProcessor):
    facts = ("name", "sensor", "bands", "size", "statistics", "units", "nodata", "do_normalize", "do_resize")
    bound: ClassVar[Mapping[str, Sequence[str]]] = {"sensor": ("bands",)}
    model_input_names = ["pixel_values"]  # noqa: RUF012 - as transformers has it
    any_bands: ClassVar[bool] = False  # the models can be built for any bands that they know

    def __init__(
        self,
        name: str | None = None,
        *,
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        size: int | Mapping[str, int] | None = None,
        statistics: Stats | None = None,
        units: Units | None = None,
        nodata: float | None = None,
        do_normalize: bool = True,
        do_resize: bool = True,
    ) -> None:
        super().__init__(name, units, nodata)
        record = self._record
        self.statistics = {key: own.to_dict() for key, own in self._statistics_by_sensor(statistics).items()}
        # None: an image holds the bands of several
        self.sensor = self._sensor_of(bands) if sensor is None else sensors.get_sensor(sensor).name
        targets = self._targets(self.sensor, record.sensors)
        default = record.bands if sensor is None else sensors.get_sensor(sensor).band_names
        self.bands = list(Reading(targets=targets, orders=[default], bands=bands).named() or default)
        for band in self.bands:
            self._statistics(_owner(band, list(targets))).select([band])
        pixels = registry.input_size(record.name) if size is None else _pixels(size)
        self.size = {"height": pixels, "width": pixels}
        self.do_normalize, self.do_resize = do_normalize, do_resize

    def preprocess(
        self,
        images: Any,
        *,
        sensor: str | None = None,
        bands: str | Sequence[str] | None = None,
        units: Units | None = None,
        nodata: float | None = None,
        do_normalize: bool | None = None,
        do_resize: bool | None = None,
        size: int | Mapping[str, int] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Images to what the model takes; the same by calling the processor.

        Args:
            images: one, or a list of them: numpy arrays and torch tensors (bands, H, W) or (B, bands, H, W), pictures
                of PIL, open rasterio datasets, paths of rasters, xarray's DataArrays (band, y, x).
            sensor: what they come from, if not from the processor's own sensor; the model has to be told too.
            bands: names of the images' bands in their order, "-" for one that is not used; or a named order
                ("eurosat"). By default what the images
                say themselves, else the processor's own bands or the sensor's, where there are as many.
            units: of their values, "dn", "reflectance", "db", "linear" or "uint8"; by sensor, if there are several. By
                default what metadata say, else those of the statistics.
            nodata: the stored number that means missing; NaN does too, and what metadata say.
            do_normalize: bring values to the model's range; as the processor says by default.
            do_resize: bring images to ``size``; as the processor says by default.
            size: pixels a side.
            return_tensors: "pt", or "np".

        Returns:
            ``pixel_values``, float32 (B, bands, size, size), 0 where values are missing: the processor's bands, or
            where the images lack some of them and the model can do without, those that they have.

        Raises:
            InputError: images, names or units that do not fit.
        """
        name = self.sensor if sensor is None else sensors.get_sensor(sensor).name
        whole = () if name is None else sensors.get_sensor(name).band_names
        own = tuple(self.bands) if name == self.sensor else whole
        reading = Reading(
            targets=self._targets(name, self._owners() if name is None else ()),
            orders=[own, whole] if whole else [own],
            bands=bands,
            units=self.units if units is None else units,
            nodata=cast(float | None, self.nodata) if nodata is None else nodata,
        )
        read = [reading.read(image) for image in _listed(images)]
        for image in read:
            self._check(image, [self._statistics(one) for one in reading.targets])
        if len(found := {image.bands for image in read}) > 1:
            raise InputError(f"the images have different bands: {' and '.join(map(', '.join, sorted(found)))}")
        wanted = self._wanted(read[0].bands, own, list(reading.targets))
        stacks = [sensors.reorder(image.values, image.bands, wanted) for image in read]
        stacks = [stack.reshape(-1, *stack.shape[-3:]) for stack in stacks]
        resized = self.do_resize if do_resize is None else do_resize
        if len(sizes := {tuple(stack.shape[-2:]) for stack in stacks}) > 1 and not resized:
            raise InputError(f"the images are of different sizes, {sorted(sizes)}, and do_resize is False")
        if len(sizes) == 1:
            stacks = [torch.cat(stacks)]
        normalized = self.do_normalize if do_normalize is None else do_normalize
        pixels = (self.size["height"] if size is None else _pixels(size)) if resized else None
        parts = [self._made(stack, wanted, list(reading.targets), normalized, pixels) for stack in stacks]
        return _feature({"pixel_values": torch.cat(parts)}, return_tensors)

    def _made(
        self, x: Tensor, bands: Sequence[str], scope: Sequence[str], normalized: bool, pixels: int | None
    ) -> Tensor:
        """Each sensor's bands through the transform of the weight set, the bands where they were."""
        parts, order = [], []
        owners = [_owner(band, scope) for band in bands]
        for sensor in dict.fromkeys(owners):
            places = [i for i, one in enumerate(owners) if one == sensor]
            names = [bands[i] for i in places]
            made = create_transform(self.name, sensor, bands=names, stats=self._statistics(sensor), size=pixels)
            normalize, resize = cast(nn.Sequential, made)
            part = x[:, places]
            valid = ~part.isnan()
            part = part.where(valid, 0)
            if normalized:
                part = normalize(part).where(valid, 0)
            parts.append(part if pixels is None else resize(part))
            order += places
        return torch.cat(parts, dim=1)[:, [order.index(place) for place in range(len(bands))]]

    def _wanted(self, found: tuple[str, ...], own: tuple[str, ...], scope: Sequence[str]) -> tuple[str, ...]:
        """The processor's bands, or those of the images that the model can be told of instead."""
        if set(own) <= set(found):
            return own
        missing = [band for band in own if band not in found]
        if not self.any_bands:
            raise InputError(
                f"the images lack {', '.join(missing)}: the model takes {', '.join(own)}, and they hold "
                f"{', '.join(found)}"
            )
        known = {band for sensor in scope for band in self._statistics(sensor).bands}
        taken = tuple(band for band in found if band in known and band in self._record.accepts)
        if not taken:
            raise InputError(
                f"the model takes none of the images' bands {', '.join(found)}; it takes {', '.join(own)}: is sensor "
                "right?"
            )
        self._tell(
            [
                f"the images lack {', '.join(missing)}: pixel_values hold {', '.join(taken)}, which the model has to "
                f"be told: from_pretrained(..., bands={list(taken)}), of the processor too"
            ]
        )
        return taken

    def _statistics_by_sensor(self, given: Stats | None) -> dict[str, Statistics]:
        if given is None:
            return {key: sensors.get_statistics(own) for key, own in self._record.statistics.items()}
        if isinstance(given, Mapping) and "mean" not in given:
            return {sensors.get_sensor(key).name: _statistics(own) for key, own in given.items()}
        own = _statistics(given)
        return {own.sensor: own}

    def _statistics(self, sensor: str) -> Statistics:
        if sensor not in self.statistics:
            others = ", ".join(sensors.get_sensor(sensor).statistics) or "none"
            raise InputError(
                f"{self.name} has statistics for {', '.join(self.statistics)}, none for {sensor}: build the processor "
                f"with statistics= (recorded for it: {others})"
            )
        return Statistics.from_dict(self.statistics[sensor])

    def _targets(self, sensor: str | None, several: Sequence[str]) -> dict[str, str]:
        return {name: self._statistics(name).units for name in ([sensor] if sensor else several)}

    def _sensor_of(self, bands: Sequence[str] | None) -> str | None:
        """The first of the weight set's sensors that has all of these bands; None where several are needed."""
        if self._record.together:
            return None
        if bands is None:
            return self._record.sensors[0]
        for name in self._record.sensors:
            with contextlib.suppress(InputError):
                if all(_is_of(band, name) for band in sensors.resolve_bands(bands, name)):
                    return name
        return None

    def _owners(self) -> list[str]:
        """The sensors that the processor's bands are of."""
        return list(dict.fromkeys(_owner(band, self._record.sensors) for band in self.bands))


class SmartiesImageProcessor(_Images):
    """Of SMARTIES, for any of its bands.

    Args:
        name: weight set, "smarties_vit_base" or "smarties_vit_base.eurosat_finetune"; smarties_vit_base by default.
        sensor: what images come from, "S2", "S2-L1C", "S1" or "RGB"; the weight set's first by default, or all of those
            that it takes together.
        bands: what the model is built for; all of the sensor by default.
        size: pixels a side, of height and width; the weight set's own by default.
        statistics: by sensor, or one set: its numbers (``eo_zoo.sensors.Statistics.to_dict``), a recorded name, or a
            .json file; the weight set's own by default.
        units: of images by default, see ``preprocess``.
        nodata: of images by default.
        do_normalize: bring values to the model's range.
        do_resize: bring images to ``size``.

    Raises:
        InputError: unknown names, or statistics that do not fit.

    >>> processor = SmartiesImageProcessor.from_pretrained("smarties_vit_nano", sensor="S1")
    >>> processor(torch.full((2, 64, 64), -12.0)).pixel_values.shape
    torch.Size([1, 2, 112, 112])
    """

    config_class = SmartiesConfig
    any_bands = True

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | Tensor | None = None
    ) -> list[Tensor]:
        """Class maps of what ``SmartiesForSemanticSegmentation`` gives.

        Args:
            outputs: with ``logits`` (B, classes, h, w).
            target_sizes: height and width of each map; as the logits by default.

        Returns:
            For each image int64 (H, W), the place of the highest logit; these are resized bilinearly before.

        Raises:
            InputError: another number of sizes than images.
        """
        logits: Tensor = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise InputError(f"got {len(target_sizes)} target_sizes for {len(logits)} images: give one for each")
        return [
            F.interpolate(one[None], (int(size[0]), int(size[1])), mode="bilinear", align_corners=False)[0].argmax(0)
            for one, size in zip(logits, target_sizes, strict=True)
        ]


class MarsImageProcessor(_Images):
    """Of MaRS, red, green and blue, or one radar amplitude; arguments as of ``SmartiesImageProcessor``.

    ``sensor`` is "RGB", of the radar's weight sets "Umbra" (by default) or "Capella".

    >>> processor = MarsImageProcessor("mars_base_rgb", size=256)
    >>> processor(torch.zeros(3, 64, 64, dtype=torch.uint8)).pixel_values.shape
    torch.Size([1, 3, 256, 256])
    """

    config_class = MarsConfig


# ---- dicts of inputs ----


class _Inputs(EoZooImageProcessor):
    def preprocess(
        self,
        images: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        bands: Mapping[str, str | Sequence[str]] | None = None,
        units: Units | None = None,
        nodata: float | Mapping[str, float] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """A dict of inputs, or a list of them, to the arguments of the model, ``model(**processor(data))``.

        Args:
            images: by name an array, tensor, rasterio dataset, path of a raster, or xarray DataArray, (bands, H, W) or
                (B, bands, H, W); of a series (T, bands, H, W) or (B, T, bands, H, W), with its dates and mask as
                ``eo_zoo.create_transform`` takes them. A list holds one dict for each sample.
            bands: by name, the bands' names in their order, or a named order ("mmearth"); by default what the data say
                themselves, else the model's own or the sensor's, where there are as many.
            units: of their values, for all or by name; by default what metadata say, else those of the statistics.
            nodata: the stored number that means missing, for all or by name; NaN does too, and what metadata say.
            return_tensors: "pt", or "np".

        Returns:
            Tensors by the model's own names, each with a batch dimension.

        Raises:
            InputError: unknown names, inputs without statistics, or data that do not fit.
        """
        samples = _listed(images)
        options = dict(
            bands=getattr(self, "bands", None) if bands is None else bands,
            units=self.units if units is None else units,
            nodata=self.nodata if nodata is None else nodata,
        )
        for sample in samples:
            if not isinstance(sample, Mapping):
                raise InputError(
                    f"{self.name} takes a dict of inputs by name ({', '.join(self._names())}), got "
                    f"{type(sample).__name__}: call model(**processor({{...}})); image pipelines of transformers give "
                    "pictures, which this model does not take"
                )
        return _feature(_stacked([self._sample(sample, **options) for sample in samples]), return_tensors)

    def _names(self) -> Sequence[str]:
        # each family has its own inputs
        raise NotImplementedError

    def _sample(self, data: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        # dates and masks, or domains: each family's own
        raise NotImplementedError

    def _read(
        self,
        key: str,
        value: Any,
        targets: Mapping[str, str],
        orders: Sequence[tuple[str, ...]],
        statistics: Sequence[Statistics],
        *,
        bands: Mapping[str, Any] | None,
        units: Any,
        nodata: Any,
    ) -> Image:
        """One input, as ``Reading`` reads images."""
        own = {"units": units, "nodata": nodata}
        own = {name: one.get(key) if isinstance(one, Mapping) else one for name, one in own.items()}
        try:
            image = Reading(targets=targets, orders=orders, bands=(bands or {}).get(key), **own).read(value)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        self._check(image, statistics)
        return image


class AnySatImageProcessor(_Inputs):
    """Of AnySat: see ``eo_zoo.create_transform`` for its inputs; nothing is resized.

    Args:
        name: weight set, anysat_base by default.
        preset: the data set that the data are as, see ``eo_zoo.presets``.
        bands: by input, what the data's bands are by default, see ``preprocess``.
        statistics: by input: numbers (``eo_zoo.sensors.Statistics.to_dict``), a recorded name, or a .json file, which
            may hold several; by default the preset's and the weight set's own, which not every input has.
        units: of the data by default.
        nodata: of the data by default.

    Raises:
        InputError: unknown names, or statistics that do not fit.

    >>> processor = AnySatImageProcessor()
    >>> processor({"aerial": torch.zeros(4, 300, 300, dtype=torch.uint8)})["aerial"].shape
    torch.Size([1, 4, 300, 300])
    """

    config_class = AnySatConfig
    facts = ("name", "preset", "bands", "statistics", "units", "nodata")
    bound: ClassVar[Mapping[str, Sequence[str]]] = {"preset": ("bands", "statistics")}
    model_input_names = list(INPUTS)  # noqa: RUF012 - as transformers has it

    def __init__(
        self,
        name: str | None = None,
        *,
        preset: str | None = None,
        bands: Mapping[str, str | Sequence[str]] | None = None,
        statistics: Stats | None = None,
        units: Units | None = None,
        nodata: float | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(name, units, nodata)
        self.preset = None if preset is None else get_preset(preset).name
        self.bands = None if bands is None else {key: _plain(own) for key, own in bands.items()}
        made = create_transform(self.name, stats=_given(statistics), preset=self.preset, bands=self.bands)
        self._orders = cast(Inputs, made).orders
        normalize = cast(Mapping[str, Normalize], cast(Inputs, made).normalize)
        self.statistics = {key: own.statistics.to_dict() for key, own in normalize.items()}

    def _names(self) -> Sequence[str]:
        return list(self._orders)

    def _sample(self, data: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        given, bands = dict(data), {}
        for key, value in data.items():
            name, _, companion = key.rpartition("_")
            if companion in ("dates", "mask") and name in data:
                continue
            if key not in self._orders:
                raise InputError(f"unknown input '{key}'. {nearest(str(key), self._orders)}")
            image = self._input(key, value, **options)
            given[key], bands[key] = image.values, image.bands
            if INPUTS[key].series and hasattr(value, "coords") and "time" in value.coords:
                given.setdefault(f"{key}_dates", value.coords["time"].values)
        statistics = {key: Statistics.from_dict(own) for key, own in self.statistics.items()}
        made = create_transform(self.name, bands=bands, stats=statistics, preset=self.preset)(given)
        for key in bands:
            if given[key].ndim == 3 + INPUTS[key].series:  # one sample
                made |= {name: made[name][None] for name in (key, f"{key}_mask", f"{key}_dates") if name in made}
        return made

    def _input(self, key: str, value: Any, **options: Any) -> Image:
        if key not in self.statistics:
            raise InputError(
                f"no statistics of {key} were published with these weights: compute them, eo-zoo stats --input "
                f"{key}=YOUR_RASTERS -o stats.json, and build the processor with statistics='stats.json'"
            )
        own, order = Statistics.from_dict(self.statistics[key]), self._orders[key]
        plain = tuple(band for band in order if not sensors.get_band(band).ratio_of)
        orders = [plain, order, sensors.get_sensor(own.sensor).band_names]
        image = self._read(key, value, {own.sensor: own.units}, orders, [own], **options)
        if image.values.ndim - INPUTS[key].series not in (3, 4):
            times = "T, " * INPUTS[key].series
            found = tuple(image.values.shape)
            raise InputError(f"{key} is {found}, expected ({times}bands, H, W) or (B, {times}bands, H, W)")
        return image


class MultiMaeEoImageProcessor(_Inputs):
    """Of MultiMAE meets EO: rasters "s2", "dem" and "worldcover", or domains, see ``eo_zoo.create_transform``.

    Args:
        name: weight set, multimae_eo_base by default.
        sensor: level of "s2", "S2" (L2A) or "S2-L1C", which decides the statistics.
        bands: by raster or domain, what the data's bands are by default, see ``preprocess``.
        size: pixels a side; the weight set's own by default.
        statistics: by domain or raster: numbers (``eo_zoo.sensors.Statistics.to_dict``), a recorded name, or a .json
            file, also MMEarth's ``*_band_stats.json``; the weight set's own by default.
        units: of the data by default.
        nodata: of the data by default.

    Raises:
        InputError: unknown names, or statistics that do not fit.

    >>> processor = MultiMaeEoImageProcessor(size=56)
    >>> sorted(processor({"s2": torch.full((12, 64, 64), 900), "dem": torch.full((1, 64, 64), 430.0)}))
    ['depth', 'ebands', 'ired', 'rgb', 'sired']
    """

    config_class = MultiMaeEoConfig
    facts = ("name", "sensor", "bands", "size", "statistics", "units", "nodata")
    bound: ClassVar[Mapping[str, Sequence[str]]] = {"sensor": ("bands", "statistics")}
    model_input_names = list(DOMAINS)  # noqa: RUF012 - as transformers has it

    def __init__(
        self,
        name: str | None = None,
        *,
        sensor: str = "S2",
        bands: Mapping[str, str | Sequence[str]] | None = None,
        size: int | Mapping[str, int] | None = None,
        statistics: Stats | None = None,
        units: Units | None = None,
        nodata: float | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(name, units, nodata)
        self.sensor = sensors.get_sensor(sensor).name
        self.bands = None if bands is None else {key: _plain(own) for key, own in bands.items()}
        pixels = registry.input_size(self.name) if size is None else _pixels(size)
        self.size = {"height": pixels, "width": pixels}
        found = domain_statistics(self._record.statistics, _given(statistics), sensor=self.sensor)
        self.statistics = {key: own.to_dict() for key, own in found.items()}

    def _names(self) -> Sequence[str]:
        return [*RASTERS, *DOMAINS]

    def _sample(self, data: Mapping[str, Any], **options: Any) -> dict[str, Tensor]:
        statistics = {key: Statistics.from_dict(own) for key, own in self.statistics.items()}
        given, bands = dict(data), {}
        for key, value in data.items():
            if key not in RASTERS and key not in DOMAINS:
                raise InputError(f"unknown raster or domain '{key}'. {nearest(str(key), self._names())}")
            if key in DOMAINS and DOMAINS[key].classes:
                continue  # codes without bands
            names = [name for name in RASTERS.get(key, (key,)) if name in statistics]
            owner = {"s2": self.sensor, "worldcover": "WorldCover"}.get(key) or statistics[names[0]].sensor
            target = statistics[names[0]].units if names else "class"
            orders = [sensors.get_order(DOMAINS[key].order if key in DOMAINS else owner)]
            # L1C has all bands of L2A, and MMEarth's files hold B10 for both
            targets = {owner: target} | ({"S2-L1C": target} if owner == "S2" else {})
            image = self._read(key, value, targets, orders, [statistics[name] for name in names], **options)
            given[key], bands[key] = image.values, image.bands
        pixels = self.size["height"]
        made = create_transform(self.name, self.sensor, bands=bands, stats=statistics, size=pixels)(given)
        return {key: x[None] if x.ndim == 3 - DOMAINS[key].classes else x for key, x in made.items()}


# ---- helpers ----


def processor_for(model: EoZooModel) -> EoZooImageProcessor:
    """The processor of a model: for its weight set, its bands and its size."""
    config, module = model.config, getattr(model.model, "encoder", model.model)
    if isinstance(config, AnySatConfig):
        return AnySatImageProcessor(config.name)
    if isinstance(config, MultiMaeEoConfig):
        return MultiMaeEoImageProcessor(config.name, size=config.image_size)
    kind = SmartiesImageProcessor if isinstance(config, SmartiesConfig) else MarsImageProcessor
    sensor = getattr(module, "sensor", None)
    return kind(config.name, sensor=sensor, bands=module.bands, size=config.image_size)


def _listed(images: Any) -> list[Any]:
    made = list(images) if isinstance(images, (list, tuple)) else [images]
    if not made:
        raise InputError("there are no images: the list is empty")
    return made


def _pixels(size: int | Mapping[str, int]) -> int:
    if isinstance(size, Mapping):
        if set(size) != {"height", "width"} or size["height"] != size["width"]:
            raise InputError(f"size is {dict(size)}, expected pixels a side, or height and width that are equal")
        size = size["height"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size is {size!r}, expected 1 pixel or more")
    return size


def _is_of(band: str, sensor: str) -> bool:
    return band in sensors.get_sensor(sensor).band_names


def _owner(band: str, scope: Sequence[str]) -> str:
    return next((sensor for sensor in scope if _is_of(band, sensor)), scope[0])


def _plain(bands: str | Sequence[str]) -> str | list[str]:
    return bands if isinstance(bands, str) else list(bands)


def _statistics(given: Any) -> Statistics:
    if isinstance(given, Statistics):
        return given
    return Statistics.from_dict(given) if isinstance(given, Mapping) else sensors.get_statistics(given)


def _given(stats: Stats | None) -> Any:
    """Statistics as ``create_transform`` takes them, those written out as objects."""
    if not isinstance(stats, Mapping):
        return stats
    if "mean" in stats:
        return Statistics.from_dict(stats)
    return {key: _statistics(own) for key, own in stats.items()}


def _stacked(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    first = samples[0]
    for sample in samples[1:]:
        if sample.keys() != first.keys():
            raise InputError(f"the samples have different inputs: {', '.join(first)} and {', '.join(sample)}")
        for key in first:
            if sample[key].shape[1:] != first[key].shape[1:]:
                raise InputError(
                    f"{key} is {tuple(first[key].shape[1:])} in one sample and {tuple(sample[key].shape[1:])} in "
                    "another: cut them to one size, and fill up series, with a mask that is False there"
                )
    return {key: torch.cat([sample[key] for sample in samples]) for key in first}


def _feature(tensors: dict[str, Tensor], return_tensors: str | None) -> BatchFeature:
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in ("pt", "np", None):
        raise InputError(f"return_tensors is {return_tensors!r}, expected 'pt' or 'np'")
    return BatchFeature({key: x.numpy() if kind == "np" else x for key, x in tensors.items()})
