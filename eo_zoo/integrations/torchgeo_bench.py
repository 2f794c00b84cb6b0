"""torchgeo-bench: every model of this package as one of its BenchModels, its bands found by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchgeo_bench.datasets import BandSpec
from torchgeo_bench.models import BenchModel, InputUnit, NormalizationStrategy
from torchgeo_bench.models._input_units import convert_unit, detect_input_unit

from eo_zoo import dates, registry, sensors
from eo_zoo.errors import InputError
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.models.multimae_domains import resized, standardize_depth
from eo_zoo.transforms import Resize
from eo_zoo.values import plausibility

_logger = logging.getLogger(__name__)
#: Which of our sensors the benchmark's words mean: the first that the model knows.
SENSORS = {
    "s2": ("S2", "S2-L1C"),
    "s1": ("S1",),
    "s1_asc": ("S1",),
    "s1_desc": ("S1",),
    "sar": ("S1",),
    "aerial": ("AERIAL", "RGB"),
    "planet": ("RGB",),
    "worldview": ("RGB",),
    "landsat": ("L8",),
    "dem": ("DEM",),
    "elevation": ("DEM",),
}
UNITS = {"dn": InputUnit.S2_DN, "uint8": InputUnit.UINT8}


class EoZooBench(BenchModel):
    """A weight set's pooled features (B, K) of images (B, bands, H, W) in the data set's own values.

    Bands are found by the names that the data set gives them; those that the model does not take are left out, which is
    told. With ``normalization="model_native"`` values are brought to the weight set's units and normalised as its own
    transform does it; the other strategies are the benchmark's own: by the data set's statistics, or "identity", not
    at all. What is not finite is 0 afterwards.

    Args:
        bands: the data set's; the benchmark gives them.
        model: architecture or architecture.tag.
        normalization: one of the benchmark's strategies.
        pretrained: False gives random weights.
        sensor_of: by the benchmark's word for a sensor ours, where the usual one is not meant: ``{"s2": "S2-L1C"}``.
        band_of: by the data set's name of a band what it is, None to leave it out: ``{"vv_desc": None}``.
        size: pixels a side that images are resized to: the weight set's own if not given, but AnySat, which counts in
            metres, takes them as they are.
        patch_size: AnySat's, in metres; it has to divide the image's side.
        date: AnySat's, of images in its time series, as the benchmark has none.
        name: the benchmark's, for its table; the model knows nothing of it.
        eval: the benchmark's, which it gives with the rest of a model's configuration.
        **kwargs: for the model, see ``eo_zoo.create_model``.

    Raises:
        InputError: bands of which the model takes none, or for which "model_native" has no statistics or units.
    """

    def __init__(
        self,
        bands: list[BandSpec],
        *,
        model: str,
        normalization: str = "model_native",
        pretrained: bool = True,
        sensor_of: Mapping[str, str] | None = None,
        band_of: Mapping[str, str | None] | None = None,
        size: int | None = None,
        patch_size: int = 40,
        date: str = "2020-07-01",
        name: str = "",
        eval: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.native = NormalizationStrategy(normalization) is NormalizationStrategy.MODEL_NATIVE
        super().__init__(bands, NormalizationStrategy.IDENTITY if self.native else normalization)
        self.normalization = NormalizationStrategy(normalization)
        self.record = registry.get_record(model)
        self.found = self._find(sensor_of or {}, band_of or {})
        self.channels = self._channels()
        self.statistics = self._statistics()
        units = {UNITS.get(one.units) for _, one in self.statistics.values()}
        self.expected_input_unit = units.pop() if len(units) == 1 else None
        self.patch_size, self.day = patch_size, dates.day_of_year(date)
        self.size = size or (0 if self._in_metres else registry.input_size(self.record.name))
        if not self._in_metres:
            kwargs = {"img_size": self.size, **kwargs}
        if not self.record.inputs:
            taken = [self.found[i] for i in self.channels[""]]
            radar = {sensor == "S1" for sensor, _ in taken}
            mix = {"mix": "plain"} if len(radar) == 2 else {}  # of SMARTIES: a run for each
            kwargs = {"bands": [band for _, band in taken], **mix, **kwargs}
        self.backbone = registry.create_model(self.record.name, pretrained, num_classes=0, **kwargs)

    @property
    def _in_metres(self) -> bool:
        return bool(self.record.inputs) and self.record.inputs.keys() <= INPUTS.keys()

    # ---- bands ----

    def _find(self, sensor_of: Mapping[str, str], band_of: Mapping[str, str | None]) -> dict[int, tuple[str, str]]:
        """By channel the sensor and the canonical name of those bands that the model takes."""
        found: dict[int, tuple[str, str]] = {}
        for channel, one in enumerate(self.bands):
            options = [sensor_of[one.sensor]] if one.sensor in sensor_of else SENSORS.get(one.sensor, ())
            known = [option for option in options if option in self.record.sensors]
            sensor, name = next(iter([*known, *options]), None), band_of.get(one.name, one.name)
            if sensor is None or name is None:
                continue
            try:
                band = sensors.resolve(name, sensor)
            except InputError:
                continue  # told with the others
            if band in self.record.accepts:
                found[channel] = (sensors.get_sensor(sensor).name, band)
        if left := [one.name for channel, one in enumerate(self.bands) if channel not in found]:
            _logger.warning("%s: left out %s; band_of= gives bands their names", self.record.name, ", ".join(left))
        bands = [band for _, band in found.values()]
        if twice := sorted({band for band in bands if bands.count(band) > 1}):
            raise InputError(f"several bands are {', '.join(twice)}: leave out all but one, band_of={{'NAME': None}}")
        return found

    def _channels(self) -> dict[str, list[int]]:
        """The channels of each input that the bands fill; "" is the one of a model that takes an image."""
        where = {band: channel for channel, (_, band) in self.found.items()}
        if not self.record.inputs:
            fit = {"": list(self.found)} if self.found else {}
        else:
            orders = {name: sensors.get_order(order) for name, order in self.record.inputs.items()}
            fit = {
                name: [where[band] for band in order]
                for name, order in orders.items()
                if set(order) <= set(where) and name not in ("modis", "semseg")  # not for a map of pixels
            }
            fit = {name: own for name, own in fit.items() if not any(set(own) < set(other) for other in fit.values())}
        if not fit:
            wanted = [f"{name} {', '.join(sensors.get_order(order))}" for name, order in self.record.inputs.items()]
            raise InputError(
                f"{self.record.name} takes {'; '.join(wanted) or ', '.join(self.record.accepts)}, and the data set's "
                f"bands, {', '.join(one.name for one in self.bands)}, hold none of it whole: choose others by "
                "dataset.bands, or say by band_of= or sensor_of= what they are"
            )
        return fit

    # ---- values ----

    def _statistics(self) -> dict[str, tuple[list[int], sensors.Statistics]]:
        """By sensor its channels that are used, and the weight set's statistics of them."""
        used = sorted({channel for own in self.channels.values() for channel in own})
        made = {}
        for sensor in dict.fromkeys(self.found[channel][0] for channel in used):
            own = [channel for channel in used if self.found[channel][0] == sensor]
            if sensor not in self.record.statistics:
                if self.native:
                    raise InputError(
                        f"{self.record.name} has statistics of {', '.join(self.record.statistics)}, none of {sensor}: "
                        "dataset.normalization=bandspec_zscore takes the data set's"
                    )
                continue
            recorded = sensors.get_statistics(self.record.statistics[sensor])
            made[sensor] = own, recorded.select([self.found[channel][1] for channel in own])
            self._check_means(*made[sensor])
        return made

    def _check_means(self, channels: list[int], statistics: sensors.Statistics) -> None:
        """Warn where a band's mean is another band's."""
        means = torch.tensor([self.bands[channel].mean for channel in channels])
        if statistics.units == "db" and means.max() > -1:
            if self.native:
                shown = ", ".join(f"{self.bands[channel].name} {self.bands[channel].mean:g}" for channel in channels)
                raise InputError(f"the means {shown} are not those of dB: dataset.normalization=bandspec_zscore")
            return
        values = self._converted(means, channels, statistics).numpy()
        samples = {band: np.asarray([value]) for band, value in zip(statistics.bands, values, strict=True)}
        for text in plausibility(samples, statistics):
            _logger.warning("%s", text.replace("median", "mean"))

    def _converted(self, x: Tensor, channels: list[int], statistics: sensors.Statistics) -> Tensor:
        if statistics.units not in UNITS:
            return x
        return convert_unit(x, detect_input_unit([self.bands[i] for i in channels]), UNITS[statistics.units])

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """The data set's values (B, bands, H, W) to what the model takes; see the class."""
        if not self.native:
            return super().normalize_inputs(images).nan_to_num(0, 0, 0)
        out = torch.zeros_like(images)
        for channels, statistics in self.statistics.values():
            out[:, channels] = sensors.normalize(self._converted(images[:, channels], channels, statistics), statistics)
        return out.nan_to_num(0, 0, 0)

    # ---- features ----

    def _forward_patch_features(self, images: Tensor) -> Tensor:
        parts = {name: images[:, channels] for name, channels in self.channels.items()}
        if not self.record.inputs:
            return self.backbone(Resize(self.size)(parts[""]))
        if self._in_metres:
            return self.backbone(self._over_ground(parts), patch_size=self.patch_size)
        domains = {name: resized(name, x, self.size) for name, x in parts.items()}
        return self.backbone({n: standardize_depth(x) if n == "depth" else x for n, x in domains.items()})

    def _over_ground(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """AnySat's inputs over one square, whose pixels are those of the finest; series of one date."""
        side = self.size or next(iter(parts.values())).shape[-1]
        extent = side * min(INPUTS[name].gsd for name in parts)
        data = {}
        for name, x in parts.items():
            pixels = round(extent / INPUTS[name].gsd)
            if x.shape[-2:] != (pixels, pixels):
                x = F.interpolate(x, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)
            data[name] = x
            if INPUTS[name].series:
                data[name] = x[:, None]
                data[f"{name}_dates"] = torch.full((len(x), 1), self.day, device=x.device)
        return data
