"""The data set MMEarth: its arrays, its statistics, and which statistics MultiMAE's domains are standardised by.

Nedungadi et al., ECCV 2024, arXiv 2405.02771, github.com/vishalned/MMEarth-data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS
from eo_zoo.sensors import Statistics

#: By raster the array that holds it, and its bands in order: canonical names but for the slope, which nothing takes.
ARRAYS = {
    "s2": ("sentinel2", sensors.get_order("mmearth")),
    "dem": ("aster", ("elevation", "slope")),
    "worldcover": ("esa_worldcover", ("land_cover",)),
}
_SETS = {  # ours: the file's, the sensor, and the raster
    "s2": ("sentinel2_l2a", "S2", "s2"),
    "s2-l1c": ("sentinel2_l1c", "S2-L1C", "s2"),
    "dem": ("aster", "DEM", "dem"),
}
_LEVELS = {"S2": "s2", "S2-L1C": "s2-l1c"}


def band_stats(path: str | Path) -> dict[str, Statistics]:
    """Statistics of a ``*_band_stats.json`` of MMEarth: "s2" (L2A), "s2-l1c" and "dem" (elevation).

    Bands without usable numbers are left out, and B10 of L2A, which has none: it is NaN there. A set without any band
    is left out too, as that of L1C where no tile is L1C.

    Raises:
        InputError: the file cannot be read, lacks one of the three, or has not a number for each band.
    """
    values, found = sensors.read_json(Path(path)), {}
    for name, (key, sensor, raster) in _SETS.items():
        own = values.get(key) if isinstance(values, dict) else None
        bands, known = ARRAYS[raster][1], sensors.get_sensor(sensor)
        mean, std = (_column(own, column, len(bands)) for column in ("mean", "std"))
        if not mean or not std:
            raise InputError(
                f"{path} has no {key} with {len(bands)} numbers each in mean and std: expected MMEarth's "
                "*_band_stats.json, which has sentinel2_l2a, sentinel2_l1c and aster"
            )
        usable = [
            i
            for i, band in enumerate(bands)
            if band in known.band_names and math.isfinite(mean[i]) and math.isfinite(std[i]) and std[i] > 0
        ]
        if usable:
            means, stds = (tuple(column[i] for i in usable) for column in (mean, std))
            names = tuple(bands[i] for i in usable)
            found[name] = Statistics(f"{Path(path).stem}/{key}", sensor, known.units, names, means, stds)
    return found


def _column(values: Any, name: str, length: int) -> list[float]:
    """One list of an entry; empty if it is not so many numbers."""
    column = values.get(name) if isinstance(values, dict) else None
    fits = isinstance(column, list) and len(column) == length and all(type(one) in (int, float) for one in column)
    # what fits is such a list, which mypy cannot see
    return column if fits else []  # type: ignore[return-value]


def domain_statistics(
    recorded: Mapping[str, str],
    stats: str | Path | Statistics | Mapping[str, str | Path | Statistics] | None = None,
    *,
    sensor: str = "S2",
) -> dict[str, Statistics]:
    """Statistics of MultiMAE's domains but the labels, each in the order of its bands.

    Args:
        recorded: names of recorded statistics by sensor, as a weight record has them.
        stats: others instead. One set (a recorded name, a .json file or an object) holds for every domain whose bands
            it has; a mapping, or a .json file of one, has sets by raster ("s2", "dem") or by domain; MMEarth's
            ``*_band_stats.json`` has all.
        sensor: "S2" (L2A) or "S2-L1C": which of the recorded or of MMEarth's sets is meant.

    Raises:
        InputError: another sensor, or statistics that cannot be read or that lack bands.
    """
    level = sensors.get_sensor(sensor).name
    if level not in _LEVELS:
        raise InputError(f"sensor is {level}, expected S2 (L2A) or S2-L1C: the level of the Sentinel-2 values")
    orders = {name: sensors.get_order(domain.order) for name, domain in DOMAINS.items() if not domain.classes}
    found: dict[str, Statistics] = {}
    for name in (level, "DEM"):
        found |= sensors.statistics_for(recorded[name], orders) if name in recorded else {}
    if stats is None:
        return found
    if isinstance(stats, str | Path) and str(stats).endswith(".json") and _is_band_stats(Path(stats)):
        own = band_stats(stats)
        if missing := [_SETS[name][0] for name in (_LEVELS[level], "dem") if name not in own]:
            raise InputError(f"{stats} has no usable mean and std of {' and '.join(missing)}")
        stats = {"s2": own[_LEVELS[level]], "dem": own["dem"]}
    rasters = {
        raster: tuple(band for name in names for band in orders[name])
        for raster, names in RASTERS.items()
        if orders.keys() >= set(names)
    }
    given = sensors.statistics_for(stats, rasters | orders)
    for raster in rasters.keys() & given.keys():
        found |= {name: given[raster].select(orders[name]) for name in RASTERS[raster]}
    return found | {name: own for name, own in given.items() if name in orders}


def _is_band_stats(path: Path) -> bool:
    values = sensors.read_json(path)
    return isinstance(values, dict) and any(key in values for key, *_ in _SETS.values())
