"""The data sets that AnySat was trained on: which bands in which order and units, normalised by what, how large.

The facts are data, in ``eo_zoo/data/anysat_presets.json``, with their sources. Training normalised each data set by
files of its own (``NORM_<input>_patch.json``, the mean over images of each image's mean and standard deviation), most
of which were not published: ``eo-zoo stats`` computes statistics of rasters at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from eo_zoo import sensors
from eo_zoo.errors import InputError, nearest


@dataclass(frozen=True)
class Channels:
    """One input of a data set.

    ``order`` holds the canonical names of its bands, of ``sensor``, as the model was given them. ``units`` are one of
    ``eo_zoo.sensors.UNITS``, None where no source states them. ``statistics`` are recorded ones, None where none were
    published. ``ratio`` is what a ratio band in ``order`` is made of the two others by: "quotient", or in dB
    "difference".
    """

    sensor: str
    order: tuple[str, ...]
    units: str | None = None
    statistics: str | None = None
    ratio: str = "quotient"
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """A data set as the model was trained on it.

    ``extent`` is the side of a tile, ``patch_sizes`` those trained with, in metres; ``dates`` says which numbers the
    dates of its series were.
    """

    name: str
    title: str
    extent: float
    patch_sizes: tuple[int, ...]
    dates: str
    inputs: Mapping[str, Channels]
    source: str
    note: str = ""


def list_presets() -> list[str]:
    """Names of the data sets."""
    return list(_presets())


def get_preset(name: str, *, orders: Mapping[str, str | Sequence[str]] | None = None) -> Preset:
    """A data set's preset by its name, in any case.

    Args:
        name: "TreeSatAI-TS", "PASTIS-HD", "FLAIR", "PLANTED" or "S2NAIP".
        orders: other band orders of inputs, names of orders or of bands: ``{"aerial": "anysat/aerial-readme"}`` gives
            the model R, G, B, NIR, as AnySat's README has it, instead of the files' NIR, R, G, B.

    Raises:
        InputError: no such preset, input or order; the message holds the nearest.
    """
    found = {known.lower(): preset for known, preset in _presets().items()}.get(str(name).lower())
    if found is None:
        raise InputError(f"unknown preset '{name}'. {nearest(str(name), list_presets())}")
    inputs = dict(found.inputs)
    for key, order in (orders or {}).items():
        if key not in inputs:
            raise InputError(f"preset {found.name} has no input '{key}'. {nearest(str(key), inputs)}")
        bands = sensors.get_order(order) if isinstance(order, str) else order
        inputs[key] = replace(inputs[key], order=sensors.resolve_bands(bands, inputs[key].sensor))
    return replace(found, inputs=inputs)


@cache
def _presets() -> dict[str, Preset]:
    text = (resources.files("eo_zoo") / "data" / "anysat_presets.json").read_text(encoding="utf-8")
    return {name: _preset(name, facts) for name, facts in json.loads(text).items()}


def _preset(name: str, facts: dict[str, Any]) -> Preset:
    inputs = {
        key: Channels(sensors.sensor_of(own["order"]), **{**own, "order": sensors.get_order(own["order"])})
        for key, own in facts["inputs"].items()
    }
    return Preset(name, **{**facts, "patch_sizes": tuple(facts["patch_sizes"]), "inputs": inputs})
