"""From rasters to MultiMAE's domains: chosen by band names, standardised, at the model's size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eo_zoo import sensors
from eo_zoo.errors import InputError, nearest
from eo_zoo.models.multimae_domains import DOMAINS, NO_DATA, RASTERS, classes_of, resized, standardize_depth
from eo_zoo.sensors import Statistics

_logger = logging.getLogger(__name__)
DOUBTFUL = 10.0  # dn; the darkest water has more, reflectance and normalised values have less
ALIKE = 1.1  # times: rasters of one place, each in whole pixels of its own, may differ so much in height by width
HEIGHTS = (-1000.0, 9000.0)  # metres; all land lies between, and no value that files fill gaps with


class Domains(nn.Module):
    """Rasters, or domains in raw values, to the dict of domains that MultiMAE takes.

    Takes a dict with any of "s2" (..., bands, H, W), digital numbers; "dem" (..., 1, H, W), metres above the sea;
    "worldcover" (..., 1, H, W), ESA WorldCover's codes; or domains by their own names, of the same units, the codes of
    "semseg" as (..., H, W). Tensors or arrays of any real type, which cover the same ground, each at its own size.

    Args:
        statistics: by domain, of its bands in its order; domains without cannot be given, but "semseg", which has none.
        bands: by raster or domain, canonical names of the data's bands in order; "s2" must be there.
        nodata: by raster or domain, the number that means missing; NaN always does.
        size: pixels a side.
    """

    def __init__(
        self,
        statistics: Mapping[str, Statistics],
        *,
        bands: Mapping[str, tuple[str, ...]],
        nodata: Mapping[str, float | None],
        size: int,
    ) -> None:
        super().__init__()
        self.orders = {name: sensors.get_order(domain.order) for name, domain in DOMAINS.items()}
        rasters = {"s2": (), "dem": self.orders["depth"], "worldcover": self.orders["semseg"]}
        self.bands = {**rasters, **self.orders, **bands}
        self.statistics, self.nodata, self.size = dict(statistics), dict(nodata), size
        self.parts = {key: self._parts(key) for key in self.bands}

    def forward(self, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """Float32 (..., C, size, size), labels int64 (..., size / 4, size / 4); what is missing is 0 or "no data".

        Raises:
            InputError: an unknown or doubled domain, other bands or batches than expected, or values that are infinite
                or of other units.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"expected a dict with any of {', '.join(self.bands)}; got {type(data).__name__}")
        if not data:
            raise InputError(f"the dict is empty: give at least one of {', '.join(self.bands)}")
        out: dict[str, Tensor] = {}
        batches, shapes = {}, {}
        for key, values in data.items():
            if key not in self.bands:
                raise InputError(f"unknown raster or domain '{key}'. {nearest(str(key), self.bands)}")
            x, valid = self._checked(key, torch.as_tensor(values))
            batches[key], shapes[key] = x.shape[:-3], x.shape[-2] / x.shape[-1]
            for name in self.parts[key]:
                if name in out:
                    raise InputError(f"{name} is given twice, by itself and in a raster: leave one of them out")
                out[name] = self._prepared(name, key, x, valid)
        if len(set(batches.values())) > 1:
            shown = ", ".join(f"{key} {tuple(batch)}" for key, batch in batches.items())
            raise InputError(f"batches differ: {shown}; expected the same of all, before bands, H, W")
        if max(shapes.values()) > ALIKE * min(shapes.values()):
            shown = ", ".join(f"{key} {shape:.3g}" for key, shape in shapes.items())
            raise InputError(f"height by width differs: {shown}; expected the same ground in all")
        return out

    def _parts(self, key: str) -> tuple[str, ...]:
        """The domains that a raster holds whole, by its band names."""
        names = RASTERS.get(key, (key,))
        held = tuple(name for name in names if set(self.orders[name]) <= set(self.bands[key]))
        if not held:
            wanted = "; ".join(f"{name} takes {', '.join(self.orders[name])}" for name in names)
            raise InputError(f"the bands of {key} ({', '.join(self.bands[key])}) hold no domain whole: {wanted}")
        if missing := [name for name in names if name not in held]:
            _logger.warning("%s has not all bands of %s, which are left out", key, ", ".join(missing))
        return held

    def _checked(self, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 (..., bands, H, W), with 1 for the band of labels, and where they are not missing."""
        if key in DOMAINS and DOMAINS[key].classes and x.ndim > 1:
            x = x.unsqueeze(-3)
        bands = self.bands[key]
        if x.ndim < 3 or x.shape[-3] != len(bands) or not x.numel():
            raise InputError(
                f"{key} is {tuple(x.shape)}, expected (..., {len(bands)}, H, W), its bands being {', '.join(bands)}: "
                f"name those of the data, bands={{'{key}': [...]}}"
            )
        eight, x = x.dtype == torch.uint8, x.float()
        valid = ~x.isnan()
        if (nodata := self.nodata.get(key)) is not None:
            valid &= x != nodata
        self._check_units(key, x[valid], eight)
        return x, valid

    def _check_units(self, key: str, values: Tensor, eight: bool) -> None:
        if not values.numel():
            return
        low, high = (bound.item() for bound in values.aminmax())
        if sensors.get_band(self.bands[key][0]).wavelength is not None:
            if eight or 0 < max(-low, high) <= DOUBTFUL or math.inf in (-low, high):
                raise InputError(
                    f"{key} holds {'uint8' if eight else f'values from {low:g} to {high:g}'}, expected digital numbers "
                    "(reflectance x 10000), neither scaled nor normalised"
                )
        elif "elevation" in self.bands[key] and (low < HEIGHTS[0] or high > HEIGHTS[1]):
            strange = low if low < HEIGHTS[0] else high
            raise InputError(
                f"{key} holds {strange:g}, expected heights in metres from {HEIGHTS[0]:g} to {HEIGHTS[1]:g}: give the "
                f"number that means missing, nodata={{'{key}': {strange:g}}}"
            )

    def _prepared(self, name: str, key: str, x: Tensor, valid: Tensor) -> Tensor:
        if name not in self.statistics and not DOMAINS[name].classes:
            raise InputError(f"there are no statistics of {name}: give stats=, such as MMEarth's *_band_stats.json")
        x, valid = (sensors.reorder(own, self.bands[key], self.orders[name]) for own in (x, valid))
        return prepared(name, x, valid, self.statistics.get(name), self.size)[0]

    def extra_repr(self) -> str:
        """What is shown inside the parentheses."""
        return f"size={self.size}"


def prepared(name: str, x: Tensor, valid: Tensor, statistics: Statistics | None, size: int) -> tuple[Tensor, Tensor]:
    """One domain's raw values as the model takes them, and which of these are real.

    What is missing is 0 after standardising, and so is after resizing every value that a missing one had a part in; of
    labels it is the class "no data". Elevation is standardised a second time, each image by itself, as in pretraining.

    Args:
        name: of the domain.
        x: floats (..., C, H, W), of labels WorldCover's codes (..., 1, H, W).
        valid: bool, of x's shape.
        statistics: of the raw values; None for labels.
        size: pixels a side.

    Returns:
        Float32 (..., C, size, size), of labels int64 (..., size / 4, size / 4); bool of the same shape.

    Raises:
        InputError: a code that WorldCover does not have.
    """
    batch, flat = x.shape[:-3], (-1, *x.shape[-3:])
    x, valid = x.reshape(flat), valid.reshape(flat)
    if statistics is None:
        x = resized(name, classes_of(x.where(valid, 255))[:, 0], size)
        valid = x != NO_DATA
    else:
        x = resized(name, sensors.normalize(x.where(valid, 0), statistics), size)
        valid = resized(name, valid.float(), size) > 1 - 1e-5  # the weights sum to 1 but for rounding
        x = (standardize_depth(x, valid) if name == "depth" else x).where(valid, 0)
    return x.reshape(*batch, *x.shape[1:]), valid.reshape(*batch, *valid.shape[1:])
