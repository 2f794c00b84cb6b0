"""Sensors, their bands, and the numbers that scale them: the one place that knows what a band is called.

A band has one canonical name: SMARTIES' spectrum name where it has one (B8A is ``near_infrared_3``),
a name with the instrument in it otherwise (``oli_green``). Everything else that people call it is an alias.
The facts are data, in ``eo_zoo/data/sensors.json`` and ``statistics.json``; this module looks them up, never
guesses, and does not import torch.

Sources of the band tables: ESA (Sentinel-1, Sentinel-2A: central wavelength +- half the full width at half
maximum), USGS (Landsat), NASA (MODIS), JAXA (PALSAR-2), Airbus (SPOT 6/7). SMARTIES trained with wider ranges
of its own, so a projection is never chosen by ``Band.wavelength``, always by the canonical name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy

from eo_zoo.errors import InputError, nearest

UNITS = ("dn", "reflectance", "db", "linear", "uint8", "m", "class")

Array = TypeVar("Array")  # a torch.Tensor or a numpy.ndarray; in and out are the same kind


@dataclass(frozen=True)
class Band:
    """One band: ``wavelength`` in nm (the agency's range), ``gsd`` in metres per pixel.

    ``gsd`` is that of the measurement (Landsat's thermal band: 100, though delivered at 30), or, for a sensor
    whose title names a data set, that of its files. Either is None where there is no single value (``red_1``
    of just any RGB image).
    ``common_name`` is STAC's; ``aliases`` are further names, among them NASA HLS's.
    ``ratio_of`` names the two bands that this one is made of, by :func:`ratio`.
    """

    name: str
    sensor_name: str
    wavelength: tuple[float, float] | None = None
    gsd: float | None = None
    common_name: str | None = None
    aliases: tuple[str, ...] = ()
    ratio_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sensor:
    """A sensor's product: its bands in file order, and the units (of ``UNITS``) it usually comes in."""

    name: str
    title: str
    bands: tuple[Band, ...]
    units: str

    @property
    def band_names(self) -> tuple[str, ...]:
        """Canonical names in order."""
        return tuple(band.name for band in self.bands)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that are recorded for it; ``get_statistics`` gives them."""
        return tuple(name for name in list_statistics() if get_statistics(name).sensor == self.name)


@dataclass(frozen=True)
class Statistics:
    """Per-band normalisation values, in the order of ``bands`` (canonical names).

    ``p1`` and ``p99`` are in ``units``. Where they are given, ``mean`` and ``std`` belong to the values after
    ``clip((x - p1) / (p99 - p1), 0, 1)``; where they are None, to the raw values.

    Raises:
        InputError: unequal lengths, numbers that are not finite, std <= 0, p99 <= p1, or unknown units.
    """

    name: str
    sensor: str
    units: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    p1: tuple[float, ...] | None = None
    p99: tuple[float, ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise InputError(f"statistics: units are {self.units!r}, expected one of {', '.join(UNITS)}")
        if (self.p1 is None) != (self.p99 is None):
            raise InputError("statistics: p1 and p99 come together: give both or neither")
        for key, values in self._columns().items():
            if len(values) != len(self.bands) or not values:
                raise InputError(f"statistics: {len(values)} values in {key} for {len(self.bands)} bands")
            if not all(_is_finite(value) for value in values):
                raise InputError(f"statistics: {key} holds something that is not a finite number")
        if len(set(zip(self.bands, *self._columns().values(), strict=True))) > len(set(self.bands)):
            raise InputError("statistics: a band is listed twice with different values")
        for i, band in enumerate(self.bands):
            if self.std[i] <= 0:
                raise InputError(f"statistics: std of {band} is {self.std[i]}, expected a number above 0")
            if self.p1 is not None and self.p99 is not None and self.p99[i] <= self.p1[i]:
                raise InputError(f"statistics: p99 of {band} is {self.p99[i]}, not above its p1, {self.p1[i]}")

    def _columns(self) -> dict[str, tuple[float, ...]]:
        columns = {key: getattr(self, key) for key in ("mean", "std", "p1", "p99")}
        return {key: values for key, values in columns.items() if values is not None}

    def select(self, bands: Sequence[str]) -> Statistics:
        """The same statistics for other bands: any order, any subset, repeats allowed.

        Raises:
            InputError: a band is unknown, or has no statistics here.
        """
        wanted = resolve_bands(bands, self.sensor)
        missing = sorted(set(wanted) - set(self.bands))
        if missing:
            raise InputError(f"statistics '{self.name}' have no {_list(missing)}; they hold {', '.join(self.bands)}")
        index = [self.bands.index(band) for band in wanted]
        columns: dict[str, Any] = {k: tuple(v[i] for i in index) for k, v in self._columns().items()}
        return replace(self, bands=wanted, **columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` reads them back. Absent p1 and p99 are left out."""
        columns = {key: list(values) for key, values in self._columns().items()}
        text = {"name": self.name, "sensor": self.sensor, "units": self.units, "source": self.source}
        return {**text, "bands": list(self.bands), **columns}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Statistics:
        """Statistics from plain values: sensor, units, bands, mean, std; optionally p1 and p99, name, source.

        ``bands`` is a list of names (any alias), or the name of a sensor or an order.

        Raises:
            InputError: what is missing, unknown, or of the wrong type, length or range, in one sentence.
        """
        needed, optional = ("sensor", "units", "bands", "mean", "std"), ("p1", "p99", "name", "source")
        if not isinstance(values, Mapping):
            raise InputError(f"statistics: expected an object with {', '.join(needed)}, not {_kind(values)}")
        missing = [key for key in needed if key not in values]
        if missing:
            raise InputError(f"statistics: {', '.join(missing)} missing; expected {', '.join(needed)}")
        facts = {"name": "custom", **values}
        for key, value in facts.items():
            if key not in needed + optional:
                raise InputError(f"statistics: unknown key {key!r}. {nearest(str(key), needed + optional)}")
            if key in ("mean", "std", "p1", "p99"):
                if not isinstance(value, (list, tuple)):
                    raise InputError(f"statistics: {key} is {_kind(value)}, expected a list of numbers")
                facts[key] = tuple(value)
            elif key != "bands" and not isinstance(value, str):
                raise InputError(f"statistics: {key} is {_kind(value)}, expected text")
        facts["sensor"] = get_sensor(facts["sensor"]).name
        facts["bands"] = _order(facts["bands"], facts["sensor"])[0]
        return Statistics(**facts)


def _is_finite(value: object) -> bool:
    real = isinstance(value, (int, float, numpy.floating)) and not isinstance(value, bool)
    # the comparison is false for NaN too, and takes an integer of any size; mypy does not see what real says of value
    return real and bool(abs(value) <= sys.float_info.max)  # type: ignore[arg-type]


def _kind(value: object) -> str:
    return type(value).__name__


# ---- tables ----


@cache
def _data(file: str) -> dict[str, Any]:
    return json.loads((resources.files("eo_zoo") / "data" / file).read_text(encoding="utf-8"))


@cache
def _bands() -> dict[str, Band]:
    """Canonical name -> Band. A band means the same wherever it occurs, so sensors only name it."""
    bands = {}
    for name, facts in _data("sensors.json")["bands"].items():
        lists = {key: tuple(facts[key]) for key in ("wavelength", "aliases", "ratio_of") if key in facts}
        bands[name] = Band(name, **{**facts, **lists})
    return bands


@cache
def _sensors() -> dict[str, Sensor]:
    bands = _bands()
    return {
        name: Sensor(name, facts["title"], tuple(bands[band] for band in facts["bands"]), facts["units"])
        for name, facts in _data("sensors.json")["sensors"].items()
    }


def _key(name: str) -> str:
    """A name without the differences that carry no meaning: case, separators, padding of band numbers.

    >>> _key("B08A"), _key("Band 1"), _key("NIR_NARROW"), _key("Sentinel-2")
    ('b8a', 'b1', 'nirnarrow', 'sentinel2')
    """
    return re.sub(r"^b(?:and)?0*(?=\d)", "b", re.sub(r"[\s_-]", "", name.lower()))


def _find(name: object, names: Mapping[str, str], what: str) -> str:
    if not isinstance(name, str):
        raise InputError(f"a {what} is named by text, got {_kind(name)}")
    found = names.get(_key(name))
    if found is None:
        raise InputError(f"unknown {what} '{name}'. {nearest(name, sorted(set(names.values())))}")
    return found


@cache
def _sensor_keys() -> dict[str, str]:
    sensors = _data("sensors.json")["sensors"]
    return {_key(alias): name for name, facts in sensors.items() for alias in (name, *facts["aliases"])}


@cache
def _order_keys() -> dict[str, str]:
    return {_key(name): name for name in _data("sensors.json")["orders"]} | _sensor_keys()


@cache
def _band_keys(sensor: str | None) -> dict[str, tuple[str, ...]]:
    """Every spelling -> the canonical bands it can mean, in one sensor or in all of them."""
    keys: dict[str, tuple[str, ...]] = {}
    for band in _bands().values() if sensor is None else _sensors()[sensor].bands:
        names = {band.name, band.sensor_name, band.common_name or band.name, *band.aliases}
        for key in {_key(name) for name in names}:
            keys[key] = (*keys.get(key, ()), band.name)
    return keys


def list_sensors() -> list[str]:
    """Names of all sensors."""
    return list(_sensors())


def get_sensor(name: str) -> Sensor:
    """A sensor by its name or an alias ("S2", "sentinel-2", "landsat-9"), in any case.

    Raises:
        InputError: there is none; the message holds the nearest names.
    """
    return _sensors()[_find(name, _sensor_keys(), "sensor")]


def _recorded() -> dict[str, Any]:
    # the bundled model's own are written by its training script, so they have a file of their own
    return _data("statistics.json") | _data("statistics_nano.json")


def list_statistics() -> list[str]:
    """Names of all recorded statistics."""
    return list(_recorded())


def get_statistics(name_or_path: str | Path) -> Statistics:
    """Recorded statistics by name ("EuroSAT", "smarties/S2-L2A"), else those of a .json file.

    Raises:
        InputError: no such name or file, or the file does not hold what :meth:`Statistics.from_dict` takes.
    """
    table = _recorded()
    if not isinstance(name_or_path, Path) and not str(name_or_path).endswith(".json"):
        keys = {_key(name): name for name in table}
        name = _find(name_or_path, keys, "set of statistics (or .json file)")
        # "same_as" names the entry whose values hold unless this one replaces them
        values = {"name": name, **table.get(table[name].get("same_as"), {}), **table[name]}
        values.pop("same_as", None)
        return Statistics.from_dict(values)
    path = Path(name_or_path)
    values = read_json(path)
    if _is_several(values):
        raise InputError(f"{path} holds statistics of several inputs, {', '.join(values)}: expected those of one")
    return _of_file(values, path)


def statistics_for(
    stats: str | Path | Statistics | Mapping[str, Any],
    inputs: Mapping[str, Sequence[str]],
    *,
    others: Collection[str] = (),
) -> dict[str, Statistics]:
    """Statistics for a model of several inputs, in the order of each input's bands.

    Args:
        stats: one set (a recorded name, a .json file, or an object), which holds for every input whose bands it has;
            or one a named input: a mapping, or a .json file that holds such an object, as ``eo-zoo stats`` writes it.
        inputs: canonical band names of each input.
        others: inputs that a file may hold too, and that are not wanted now.

    Returns:
        The inputs that ``stats`` speaks of, in the order of ``inputs``.

    Raises:
        InputError: an input of ``stats`` is unknown, bands of it are missing, or one set fits no input.
    """
    if (
        isinstance(stats, (str, Path))
        and str(stats).endswith(".json")
        and _is_several(values := read_json(Path(stats)))
    ):
        path, unwanted = Path(stats), set(others) - set(inputs) if inputs.keys() & values.keys() else set()
        stats = {name: _of_file(own, path, name) for name, own in values.items() if name not in unwanted}
    if not isinstance(stats, Mapping):
        own = stats if isinstance(stats, Statistics) else get_statistics(stats)
        found = {name: own.select(bands) for name, bands in inputs.items() if set(bands) <= set(own.bands)}
        if not found:
            raise InputError(
                f"statistics '{own.name}' hold {', '.join(own.bands)}, which are all bands of none of the inputs "
                f"{', '.join(inputs)}"
            )
        return found
    unknown = next((name for name in stats if name not in inputs), None)
    if unknown is not None:
        raise InputError(f"statistics are given for '{unknown}', which is no input. {nearest(str(unknown), inputs)}")
    given = {name: own if isinstance(own, Statistics) else get_statistics(own) for name, own in stats.items()}
    return {name: given[name].select(bands) for name, bands in inputs.items() if name in given}


def _is_several(values: Any) -> bool:
    return isinstance(values, dict) and bool(values) and all(isinstance(own, dict) for own in values.values())


def read_json(path: Path) -> Any:
    """What a .json file of statistics holds.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as statistics: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error


def _of_file(values: Any, path: Path, name: str = "") -> Statistics:
    try:
        statistics = Statistics.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {name and name + ': '}{error}") from error
    return statistics if "name" in values else replace(statistics, name=name or path.stem)


# ---- names and orders ----


def resolve(name: str, sensor: str | None = None) -> str:
    """The canonical name of a band.

    A canonical name is itself, whatever the sensor. Else it is looked up among the aliases of ``sensor``, or
    of all sensors: the sensor's own names ("B8A", "b1", "B01", "vv"), STAC's common names ("nir08"), HLS's
    ("NIR_NARROW"). Case, spaces, "-" and "_" make no difference.

    Raises:
        InputError: unknown, or several bands are called so; the message holds the nearest or all candidates.
    """
    if not isinstance(name, str):
        raise InputError(f"a band is named by text, got {_kind(name)} {name!r}")
    scope = None if sensor is None else get_sensor(sensor)
    key = _key(name)
    found = _band_keys(scope.name if scope else None).get(key, ())
    everywhere = _band_keys(None).get(key, ())
    canonical = [band for band in everywhere if _key(band) == key] or found
    if len(canonical) == 1:
        return canonical[0]
    if found and scope:
        raise InputError(f"band '{name}' of {scope.name} is ambiguous, near: {_list(found)}; give one of these")
    if found:
        raise InputError(f"band '{name}' is ambiguous, near: {_list(found, True)}; give one or sensor=")
    if scope is None:
        raise InputError(f"unknown band '{name}'. {nearest(name, _bands())}")
    names = [band.name for band in scope.bands] + [band.sensor_name for band in scope.bands]
    elsewhere = f" Elsewhere: {_list(everywhere, True)}." if everywhere else ""
    raise InputError(f"unknown band '{name}' of {scope.name}. {nearest(name, names)}{elsewhere}")


def _list(names: Iterable[str], sensors: bool = False) -> str:
    """Bands for a message: "red_2 (B04)", with their sensors "red_2 (B04 of S2, S2-L1C)"."""
    shown = []
    for name in names:
        label = _bands()[name].sensor_name
        owners = [sensor.name for sensor in _sensors().values() if name in sensor.band_names]
        shown.append(f"{name} ({label} of {', '.join(owners)})" if sensors and owners else f"{name} ({label})")
    return ", ".join(shown)


def get_band(name: str, sensor: str | None = None) -> Band:
    """The band that :func:`resolve` finds."""
    return _bands()[resolve(name, sensor)]


def resolve_bands(names: Sequence[str], sensor: str | None = None) -> tuple[str, ...]:
    """Canonical names of a list of bands, in its order; repeats are allowed. See :func:`resolve`."""
    # a set has no order, so it would be a guess
    if isinstance(names, (str, Set)) or not isinstance(names, Iterable):
        raise InputError(f"bands are a list of names, got {_kind(names)} {names!r}")
    return tuple(resolve(name, sensor) for name in names)


def list_orders() -> list[str]:
    """Names of all band orders; every sensor's name is one."""
    return [*_data("sensors.json")["orders"], *_sensors()]


def get_order(name: str) -> tuple[str, ...]:
    """Canonical names of a named order: a data set's file order ("eurosat"), a model's input, or a sensor.

    Raises:
        InputError: there is none; the message holds the nearest names.
    """
    return _order(name)[0]


def sensor_of(order: str) -> str:
    """The sensor whose bands a named order holds: "AERIAL" for "anysat/aerial-flair".

    Raises:
        InputError: there is no such order; the message holds the nearest names.
    """
    return _order(order)[1] or ""


def _order(names: str | Sequence[str], sensor: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Canonical names of a list or of a named order, and the sensor: a named order knows its own."""
    if not isinstance(names, str):
        return resolve_bands(names, sensor), sensor
    name = _find(names, _order_keys(), "band order")
    order = _data("sensors.json")["orders"].get(name)
    if order is None:
        return _sensors()[name].band_names, name
    return resolve_bands(order["bands"], order["sensor"]), order["sensor"]


# ---- arrays ----


def reorder(
    x: Array, from_: str | Sequence[str], to: str | Sequence[str], *, sensor: str | None = None, dim: int = -3
) -> Array:
    """Bring the bands of ``x`` from one order into another, by name.

    Args:
        x: torch tensor or numpy array, any dtype, with len(from_) channels along ``dim``.
        from_: the order of the data: band names, or the name of a sensor or an order ("eurosat").
        to: the order wanted, in the same form; a subset is fine, and so are repeats.
        sensor: whose aliases the names are; by default that of a named ``from_`` or ``to``.

    Returns:
        x itself where the orders are equal, else a new array of the same kind and dtype.

    Raises:
        InputError: a name is unknown, twice in ``from_`` or not in it, or ``x`` has other channels.
    """
    named = next((_order(order)[1] for order in (from_, to) if isinstance(order, str)), None)
    source, target = _order(from_, sensor or named)[0], _order(to, sensor or named)[0]
    axis = _channel_axis(x, len(source), dim)
    twice = sorted({name for name in source if source.count(name) > 1})
    if twice:
        raise InputError(f"from_ holds {_list(twice)} more than once, so which one is meant is unclear")
    missing = sorted(set(target) - set(source))
    if missing:
        raise InputError(f"from_ has no {_list(missing)}, which to asks for; it holds {_list(source)}")
    if source == target:
        return x
    index = [source.index(name) for name in target]
    if isinstance(x, numpy.ndarray):
        # a TypeVar without bounds, so that torch need not be imported, tells mypy neither of the two types
        return x.take(index, axis=axis)  # type: ignore[return-value]
    return x[(slice(None),) * axis + (index,)]  # type: ignore[index]


def _channel_axis(x: Any, channels: int, dim: int) -> int:
    """``dim`` as an index from the front, after checking that ``x`` has that many channels there."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise InputError(f"expected a torch tensor or numpy array, got {_kind(x)}")
    shape = tuple(x.shape)
    if not -len(shape) <= dim < len(shape):
        raise InputError(f"bands are expected along dim {dim}, but the array's shape is {shape}")
    if shape[dim] != channels:
        raise InputError(
            f"found {shape[dim]} channels along dim {dim} of shape {shape}, expected {channels}, one per band"
        )
    return dim % len(shape)


def ratio(first: Array, second: Array) -> Array:
    """A radar's ratio band from its two polarisations, torch or numpy, as AnySat was trained on: within +-10,000."""
    # a TypeVar without bounds does not say that both kinds of array calculate alike
    quotient: Any = first / (second + 1e-10)  # type: ignore[operator]
    return quotient.clip(-1e4, 1e4)


def normalize(x: Array, statistics: Statistics, *, dim: int = -3) -> Array:
    """Scale raw values for a model: clip((x - p1) / (p99 - p1), 0, 1) if p1 is given, then (v - mean) / std.

    Args:
        x: torch tensor or numpy array in ``statistics.units``, its bands along ``dim`` being exactly
            ``statistics.bands`` in that order (see :meth:`Statistics.select` and :func:`reorder`).

    Returns:
        a new array on the same device: x's own floating dtype, float32 for integers. NaN stays NaN.

    Raises:
        InputError: another number of channels, or values that are not real numbers.
    """
    axis = _channel_axis(x, len(statistics.bands), dim)
    values = _floating(x)
    shape = [-1] + [1] * (len(values.shape) - axis - 1)

    def constant(numbers: Sequence[float]) -> Any:
        if isinstance(values, numpy.ndarray):
            return numpy.asarray(numbers, dtype=values.dtype).reshape(shape)
        return values.new_tensor(numbers).reshape(shape)

    if statistics.p1 is not None and statistics.p99 is not None:
        spread = [high - low for low, high in zip(statistics.p1, statistics.p99, strict=True)]
        values = ((values - constant(statistics.p1)) / constant(spread)).clip(0, 1)
    return (values - constant(statistics.mean)) / constant(statistics.std)


def _floating(x: Any) -> Any:
    if isinstance(x, numpy.ndarray):
        kind = x.dtype.kind
        if kind not in "fiub":
            raise InputError(f"expected real numbers, got {x.dtype}")
        return x if kind == "f" else x.astype(numpy.float32)
    if x.is_complex():
        raise InputError(f"expected real numbers, got {x.dtype}")
    return x if x.is_floating_point() else x.float()
