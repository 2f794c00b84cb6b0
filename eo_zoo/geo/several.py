"""Several inputs of one place to one embedding: images and time series, each as AnySat wants it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from eo_zoo import registry, sensors
from eo_zoo.errors import InputError
from eo_zoo.geo import job
from eo_zoo.geo.area import Area, common_area, finest_window, resampled, tile_grid
from eo_zoo.geo.inputs import READING, by_key, check_keys, open_input, orders_of
from eo_zoo.geo.job import Job, Log, name_of
from eo_zoo.geo.opening import Source, source_name
from eo_zoo.geo.run import Embedding, Options, Run
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.series import Series
from eo_zoo.geo.stack import WHOLE, Layer, Stack
from eo_zoo.geo.stream import Tally
from eo_zoo.models.anysat_inputs import INPUTS, Input, step_of
from eo_zoo.presets import Preset
from eo_zoo.sensors import Statistics
from eo_zoo.values import plausibility

KINDS = ("tile", "patch", "dense")
COARSER = 1.5  # times the pixel size that the model takes: from here on detail is made up


@dataclass(frozen=True, kw_only=True)
class Readings:
    """How the inputs are read; see ``embed_raster``. Where a value is not one for all inputs, it is given by key."""

    preset: Preset | None = None
    stats: Any = None
    bands: Any = None
    units: Any = None
    boa_offset: Any = None
    nodata: Any = None
    bbox: tuple[float, float, float, float] | None = None
    bbox_crs: str | None = None
    series: Mapping[str, Any] = field(default_factory=dict)  # what `open_series` alone takes


@dataclass(frozen=True)
class Wanted:
    """What comes out, checked before anything is opened."""

    keys: tuple[str, ...]
    patch: int  # metres
    kind: str
    shown: str | None  # the input whose sub-patches a dense map has
    cell: float  # metres of the map's cells


def wanted(sources: Mapping[str, Source], options: Options) -> Wanted:
    """What the options ask for.

    Raises:
        InputError: an unknown input, or options that do not fit the inputs or each other.
    """
    check_keys(tuple(sources), {})
    keys = tuple(sorted(sources, key=lambda key: key == WHOLE))  # all else has the area's corner
    if keys == (WHOLE,):
        raise InputError(f"{WHOLE} goes with others only (one pixel covers the tile): give at least one more input")
    step = step_of(keys)
    patch = step if options.patch_size is None else options.patch_size
    if patch < step or patch % step:
        coarse = [key for key in keys if key != WHOLE and INPUTS[key].cell == step > 10]
        reason = f" with {' and '.join(coarse)}" * bool(coarse)
        raise InputError(f"a patch size of {patch:g} m does not fit: expected a multiple of {step} m{reason}")
    kind, dense = options.output or "tile", options.output == "dense"
    if options.output_modality is not None and not dense:
        raise InputError(f"output_modality is for output 'dense', but '{kind}' is asked for: leave it out")
    shown = (options.output_modality or keys[0]) if dense else None
    if shown is not None and (shown not in keys or shown == WHOLE):
        mapped = ", ".join(key for key in keys if key != WHOLE)
        raise InputError(f"output_modality is '{shown}', expected one of the inputs that have a map: {mapped}")
    return Wanted(keys, int(patch), kind, shown, INPUTS[shown].cell if shown else patch)


def embed_several(
    sources: Mapping[str, Source],
    model: str | nn.Module,
    options: Options,
    readings: Readings,
    log: Log,
    **loading: Any,
) -> Embedding:
    """Embed inputs by key, and write the result.

    Args:
        sources: by the model's names for its inputs.
        model: an ``AnySat``, or a registered name of one.
        options: already checked.
        readings: how to read the inputs.
        log: receives notes and warnings.
        **loading: for ``create_model``.

    Raises:
        InputError: inputs, options or values that cannot be used.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights or an input cannot be fetched.
        OSError: the output cannot be written.
    """
    asked = wanted(sources, options)
    takes = INPUTS if isinstance(model, str) else cast(Any, model).inputs
    strange = next((key for key in asked.keys if key not in takes), None)
    if strange:
        raise InputError(f"the model was built without {strange}: it takes {', '.join(takes)}")
    if options.patch_size is None:
        log.note(f"patches of {asked.patch} m, the smallest for these inputs, as no patch size was given")
    with _opened(sources, asked, readings, log) as found:
        notes: list[str] = []
        grids = {key: scene.grid for key, (scene, _) in found.items()}
        gsds = {key: INPUTS[key].gsd for key in asked.keys if key != WHOLE}
        box = finest_window(grids, readings.bbox, readings.bbox_crs) if readings.bbox is not None else None
        area = common_area(grids, gsds, step_of(asked.keys), notes, box)
        grid = tile_grid(area, asked.patch, asked.cell, options.tile, options.overlap, map=asked.kind != "tile")
        for text in notes:
            log.note(text)
        layers = {key: _layer(INPUTS[key], *found[key], area, log) for key in asked.keys}
        if options.preview:
            layers |= _shown(layers, asked)
        module = registry.create_model(model, **loading, num_classes=0) if isinstance(model, str) else model
        run = Run(
            Job(layers, module, options, log, name_of(module), source_name(sources)),
            Stack(area, layers, asked.cell, asked.shown),
            grid,
            channels=cast(Any, module).num_features * (2 if asked.shown else 1),
            cell=asked.cell / INPUTS[asked.keys[0]].gsd,
            layer=" ".join(filter(None, (asked.kind, asked.shown))),
            tags=_tags(sources, layers, asked, grid.tile * asked.cell, grid.overlap * asked.cell),
        )
        return run.write(_forward(module, asked), vector=asked.kind == "tile")


def _forward(model: nn.Module, asked: Wanted) -> Any:
    def forward(data: Mapping[str, Tensor]) -> Tensor:
        made = model(data, patch_size=asked.patch, output=asked.kind, output_modality=asked.shown)
        return made if asked.kind == "tile" else made.permute(0, 3, 1, 2)

    return forward


def _tags(
    sources: Mapping[str, Source], layers: Mapping[str, Layer], asked: Wanted, tile: float, overlap: float
) -> dict[str, str]:
    dates = {key: [str(day) for day in one.scene.dates] for key, one in layers.items() if isinstance(one.scene, Series)}
    return {
        "INPUTS": json.dumps({key: source_name(sources[key]) for key in asked.keys}),
        "DATES": json.dumps(dates),
        "OUTPUT": asked.kind,
        **({"OUTPUT_MODALITY": asked.shown} if asked.shown else {}),
        "PATCH_SIZE": f"{asked.patch} m",
        "TILE": f"{tile:g} m",
        "OVERLAP": f"{overlap:g} m",
    }


# ---- opening ----


@contextlib.contextmanager
def _opened(
    sources: Mapping[str, Source], asked: Wanted, readings: Readings, log: Log
) -> Iterator[dict[str, tuple[Scene | Series, Statistics]]]:
    """Every input on its own pixels, its bands in the model's order, with its statistics."""
    check_keys(asked.keys, readings.series)
    orders = orders_of(asked.keys, readings.preset)
    statistics = _statistics(orders, readings)
    own = by_key({name: getattr(readings, name) for name in READING}, asked.keys)
    found: dict[str, tuple[Scene | Series, Statistics]] = {}
    with contextlib.ExitStack() as stack:
        for key in sorted(asked.keys, key=lambda key: INPUTS[key].series):  # an image may have to place a series
            scene = stack.enter_context(
                open_input(
                    key,
                    sources[key],
                    orders[key],
                    target_units=statistics[key].units,
                    preset=readings.preset,
                    place=next((scene.grid for scene, _ in found.values()), None),
                    series=readings.series,
                    **own[key],
                )
            )
            found[key] = scene, statistics[key]
            _tell(key, scene, statistics[key], log)
        yield found


def _statistics(orders: Mapping[str, Sequence[str]], readings: Readings) -> dict[str, Statistics]:
    """What the user gives, else the preset's, else those recorded for the model's own order."""
    given = sensors.statistics_for(readings.stats, orders, others=INPUTS) if readings.stats is not None else {}
    made = {}
    for key, order in orders.items():
        recorded: str | None = INPUTS[key].order if INPUTS[key].order in sensors.list_statistics() else None
        if readings.preset is not None:
            recorded = readings.preset.inputs[key].statistics
        if key not in given and recorded is None:
            data_set = f" for {readings.preset.name}" if readings.preset else ""
            raise InputError(
                f"no statistics to normalise {key} by were published{data_set}: compute some with eo-zoo stats, and "
                "give the file with stats (--stats FILE)"
            )
        made[key] = given.get(key) or sensors.get_statistics(cast(str, recorded)).select(order)
    return made


# ---- on common pixels ----


def _tell(key: str, scene: Scene | Series, statistics: Statistics, log: Log) -> None:
    """What the user should know of an input before the long part begins."""
    for text in scene.notes:
        log.note(f"{key}: {text}")
    log.note(f"{key}: normalised with the statistics '{statistics.name}'")
    samples = scene.sample()  # before the input's own warnings: reading adds to them
    for text in [*scene.warnings, *plausibility(samples, statistics)]:
        log.warn(f"{key}: {text}")


def _layer(one: Input, scene: Scene | Series, statistics: Statistics, area: Area, log: Log) -> Layer:
    """An input on the area's pixels of its size."""
    if one.name != WHOLE:
        own, grid = scene.grid, area.grid(one.gsd)
        way = resampled(own, grid)
        if way:
            log.note(f"{one.name}: {way}")
        if own.gsd > COARSER * one.gsd:
            log.warn(
                f"{one.name}: its pixels are {own.gsd:.4g} m, the model takes {one.gsd:g} m: what lies between is made "
                "up, and the results may mean little"
            )
        scene = scene.on(grid)
    return Layer(scene, statistics, Tally(statistics), one)


def _shown(layers: Mapping[str, Layer], asked: Wanted) -> dict[str, Layer]:
    """The input that the preview shows, with a place for its picture: no coarser than a cell, in colour, an image."""
    pictures = {key: job.true_colour(one.scene) for key, one in layers.items() if one.one.gsd <= asked.cell}
    best = max(pictures, key=lambda key: (len(pictures[key].bands), key == asked.shown, not INPUTS[key].series))
    one = layers[best]
    return {best: Layer(one.scene, one.statistics, Tally(one.statistics, pictures[best]), one.one)}
