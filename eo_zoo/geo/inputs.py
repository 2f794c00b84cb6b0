"""Inputs of a model that takes several: options that are given by input, and one input opened as the model takes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from eo_zoo import sensors
from eo_zoo.errors import InputError, nearest
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.opening import Source
from eo_zoo.geo.scene import Scene, open_scene
from eo_zoo.geo.series import Series, open_series
from eo_zoo.geo.sources import SUFFIXES, Files, described
from eo_zoo.models.anysat_inputs import INPUTS
from eo_zoo.presets import Channels, Preset, get_preset, list_presets

READING = ("bands", "units", "boa_offset", "nodata")  # options that may differ from input to input


def check_keys(keys: Sequence[str], series: Mapping[str, Any]) -> None:
    """Raise InputError for an input that is unknown, or options of time series where none is among them."""
    for key in keys:
        if key not in INPUTS:
            raise InputError(f"unknown input '{key}'. {nearest(str(key), INPUTS)}")
    if series and not any(INPUTS[key].series for key in keys):
        raise InputError(f"{', '.join(series)}: only for time series, and there is none among the inputs")


def by_key(options: Mapping[str, Any], keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of each input: of values that are a mapping its own, of others the same for all.

    Raises:
        InputError: a mapping names another input.
    """
    own: dict[str, dict[str, Any]] = {key: {} for key in keys}
    for name, value in options.items():
        if value is None:
            continue
        for key, one in (value if isinstance(value, Mapping) else dict.fromkeys(keys, value)).items():
            if key not in own:
                raise InputError(f"{name} is given for '{key}', but the inputs are {', '.join(keys)}")
            own[key][name] = one
    return own


def orders_of(keys: Sequence[str], preset: Preset | None) -> dict[str, tuple[str, ...]]:
    """The bands that the model is given of each input, in order: the preset's, else the model's own.

    Raises:
        InputError: the preset has no such input.
    """
    if preset is None:
        return {key: sensors.get_order(INPUTS[key].order) for key in keys}
    unknown = next((key for key in keys if key not in preset.inputs), None)
    if unknown:
        raise InputError(f"preset {preset.name} has no {unknown}, only {', '.join(preset.inputs)}")
    return {key: preset.inputs[key].order for key in keys}


@contextlib.contextmanager
def open_input(
    key: str,
    source: Source,
    order: Sequence[str],
    *,
    target_units: str,
    preset: Preset | None = None,
    place: Grid | str | None = None,
    series: Mapping[str, Any] | None = None,
    **how: Any,
) -> Iterator[Scene | Series]:
    """One input on its own pixels, its bands in ``order``, its values in ``target_units``.

    Args:
        key: the model's name for it.
        source: see ``open_scene`` and ``open_series``.
        order: canonical names of all bands that the model takes.
        target_units: those of the statistics that it is normalised by.
        preset: says what a data set's files hold, where ``how`` and they do not.
        place: of a series without georeference.
        series: what ``open_series`` alone takes.
        **how: ``bands``, ``units``, ``boa_offset`` and ``nodata``.

    Raises:
        InputError: as they raise it, with the key before it; or bands are missing.
    """
    channels = preset.inputs.get(key) if preset else None
    if channels and channels.units:
        how.setdefault("units", channels.units)
    how |= dict(sensor=sensors.sensor_of(INPUTS[key].order), target_units=target_units)
    with contextlib.ExitStack() as stack:
        try:
            if INPUTS[key].series:
                ratio = channels.ratio if channels else "quotient"
                how |= dict(order=order, place=place, gsd=INPUTS[key].gsd, ratio=ratio, **(series or {}))
                opened: Scene | Series = stack.enter_context(open_series(cast(Any, source), **how))
            else:
                if "bands" not in how and _nameless(source, how["sensor"]):
                    how["bands"] = _order_of(channels, key)
                scene = stack.enter_context(open_scene(source, default_sensor=how["sensor"], accepts=order, **how))
                opened = _ordered(scene, order)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        yield opened


def _ordered(scene: Scene, order: Sequence[str]) -> Scene:
    missing = [band for band in order if band not in scene.bands]
    if missing:
        raise InputError(f"its bands {', '.join(missing)} are not there: the model takes all of {', '.join(order)}")
    made = scene.on(scene.grid, order)
    made.notes = scene.notes
    return made


def _nameless(source: Source, sensor: str) -> bool:
    """Whether it is one file whose bands have no names, so that only their order tells them."""
    if isinstance(source, Mapping) or not Path(source).is_file() or Path(source).suffix.lower() not in SUFFIXES:
        return False
    with contextlib.ExitStack() as stack, contextlib.suppress(InputError):  # opening tells what it is
        file = Files(stack).open(source)
        return not any(described(file, index, sensor) for index in file.indexes)
    return False


def _order_of(channels: Channels | None, key: str) -> tuple[str, ...]:
    """The order that a data set's files have without saying so."""
    if channels is not None:
        return channels.order
    names = ", ".join(sensors.get_band(band).sensor_name for band in sensors.get_order(INPUTS[key].order))
    known = ", ".join(name for name in list_presets() if key in get_preset(name).inputs)
    raise InputError(
        f"its bands carry no names: give --bands {key}=NAMES in the file's order, {names} and - for one that is not "
        f"used; or, if the file is of that data set, --preset NAME ({known})"
    )
