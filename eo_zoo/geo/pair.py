"""Two inputs in one image, for models that take two sensors together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.job import Log
from eo_zoo.geo.opening import Reading, Source, opened
from eo_zoo.geo.scene import Scene
from eo_zoo.sensors import Statistics
from eo_zoo.weights import Record

ALIKE = ({"dn", "reflectance"}, {"db", "linear"})  # units that are converted into each other


@contextlib.contextmanager
def opened_pair(
    sources: Mapping[str, Source], model: str | nn.Module, reading: Reading, log: Log
) -> Iterator[tuple[Scene, Statistics]]:
    """As ``opened``: the bands of both inputs on the pixels of the first, as far as both reach.

    Args:
        sources: by sensor, as ``by_sensor`` gives them.
        model: takes the bands of both.
        reading: ``bbox`` and ``resolution`` are the first input's; ``units`` and ``boa_offset`` go to the input
            that they fit.
        log: receives notes and warnings.

    Raises:
        InputError: an input cannot be used, lacks bands, or does not lie over the other; or an option fits none.
        DownloadError: an item on the web cannot be fetched.
    """
    with contextlib.ExitStack() as stack:
        parts = []
        for sensor, own in zip(sources, _readings(reading, list(sources)), strict=True):
            scene, statistics = stack.enter_context(opened(sources[sensor], model, own, log))
            missing = [band for band in sensors.get_sensor(sensor).band_names if band not in scene.bands]
            if missing:
                raise InputError(f"the input of {sensor} has no {', '.join(missing)}: the model takes all its bands")
            parts.append((scene, statistics))
        (first, of_first), (second, of_second) = parts
        scene = first.beside(second)
        for text in scene.notes:
            log.note(text)
        yield scene, _beside(of_first, of_second)


def by_sensor(sources: Mapping[str, Source], record: Record) -> dict[str, Source]:
    """Inputs under their sensors' own names, in the order given.

    Raises:
        InputError: a sensor is unknown, given twice, not the record's, or missing.
    """
    found = {sensors.get_sensor(name).name: source for name, source in sources.items()}
    if len(found) < len(sources) or sorted(found) != sorted(record.sensors):
        raise InputError(
            f"got inputs of {', '.join(sources)}; {record.name} takes one of each of {', '.join(record.sensors)}"
        )
    return found


def _readings(reading: Reading, names: list[str]) -> list[Reading]:
    """What of the options is meant for which input."""
    given = [name for name in ("sensor", "bands", "stats", "nodata") if getattr(reading, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)} cannot be told for two inputs at once: leave out, the files have to say")
    kinds = [next((kind for kind in ALIKE if sensors.get_sensor(name).units in kind), set()) for name in names]
    if reading.units is not None and not any(reading.units in kind for kind in kinds):
        wanted = ", ".join(f"{name} {' or '.join(sorted(kind))}" for name, kind in zip(names, kinds, strict=True))
        raise InputError(f"units '{reading.units}' fit none of the inputs: expected for {wanted}")
    own = [
        Reading(
            sensor=name,
            units=reading.units if reading.units in kind else None,
            boa_offset=reading.boa_offset if "dn" in kind else None,
        )
        for name, kind in zip(names, kinds, strict=True)
    ]
    own[0] = replace(own[0], bbox=reading.bbox, bbox_crs=reading.bbox_crs, resolution=reading.resolution)
    return own


def _beside(first: Statistics, second: Statistics) -> Statistics:
    """The numbers of both for arithmetic; units are each part's own, so its name says them."""
    return Statistics(
        name=f"{first.name} ({first.units}), {second.name} ({second.units})",
        sensor=first.sensor,
        units=first.units,
        bands=(*first.bands, *second.bands),
        mean=(*first.mean, *second.mean),
        std=(*first.std, *second.std),
        p1=(*(first.p1 or ()), *(second.p1 or ())) or None,
        p99=(*(first.p99 or ()), *(second.p99 or ())) or None,
    )
