"""The domains of MultiMAE from rasters of one place: Sentinel-2, elevation and land cover on one grid."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eo_zoo import mmearth, registry, sensors
from eo_zoo.domains import HEIGHTS, prepared
from eo_zoo.errors import InputError, nearest
from eo_zoo.geo import job
from eo_zoo.geo.grid import Grid, coincide, name_of
from eo_zoo.geo.inputs import by_key
from eo_zoo.geo.job import Job, Log
from eo_zoo.geo.opening import Source, record_for, source_name
from eo_zoo.geo.run import Embedding, Options, embed_tiles, global_pool, model_layer, tile_grid
from eo_zoo.geo.scene import Scene, open_scene
from eo_zoo.geo.stream import Pixels, Raster, Tally
from eo_zoo.geo.warp import common_box
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS, classes_of
from eo_zoo.sensors import Statistics
from eo_zoo.values import gsd_warning, plausibility
from eo_zoo.weights import Record

EMPTY = (0, 255)  # codes of WorldCover, and of MMEarth's copy of it, for what is not known
CODES = Statistics("none: codes of classes", "WorldCover", "class", ("land_cover",), (0.0,), (1.0,))


class Labels(Raster):
    """A raster of WorldCover's codes."""

    def window(self, row: int, col: int, height: int, width: int) -> Pixels:
        """See ``Raster``; a code that means nothing is known is not valid."""
        pixels = super().window(row, col, height, width)
        return replace(pixels, valid=pixels.valid & ~np.isin(pixels.values, EMPTY))


class Heights(Raster):
    """A raster of elevation in metres."""

    def window(self, row: int, col: int, height: int, width: int) -> Pixels:
        """See ``Raster``; raises InputError for a height that no place has."""
        pixels = super().window(row, col, height, width)
        with _named("dem"):
            _check_heights(pixels.values[pixels.valid])
        return pixels


KINDS = {"depth": Heights, "semseg": Labels}


@dataclass(frozen=True)
class DomainStack:
    """Rasters of a domain each on one grid, in the order of ``DOMAINS``; see ``Source``."""

    rasters: Mapping[str, Raster]

    @property
    def grid(self) -> Grid:
        """The common pixels."""
        return next(iter(self.rasters.values())).scene.grid

    def read(self, top: int, left: int, height: int, width: int, own: tuple[int, int]) -> DomainPixels:
        """See ``Source``."""
        return DomainPixels({name: one.read(top, left, height, width, own) for name, one in self.rasters.items()})

    def window(self, row: int, col: int, size: int) -> DomainPixels:
        """A square of ``size`` pixels, which may reach beyond the grid; it is counted nowhere."""
        return DomainPixels({name: one.window(row, col, size, size) for name, one in self.rasters.items()})


@dataclass(frozen=True)
class DomainPixels:
    """One window of all domains; see ``Cells``. Tiles are given in cells; by default it is the whole window."""

    pixels: Mapping[str, Pixels]

    @cached_property
    def shares(self) -> np.ndarray:
        """See ``Cells``: the mean of the domains' shares."""
        return np.mean([one.shares for one in self.pixels.values()], axis=0)

    def tiles(self, starts: Sequence[int] = (0,), size: int | None = None) -> dict[str, Tensor]:
        """What ``MultiMae`` takes, see ``eo_zoo.domains.prepared``; elevation is standardised over each tile.

        Raises:
            InputError: a code that WorldCover does not have.
        """
        return {name: self._prepared(name, starts, size)[0] for name in self.pixels}

    def masks(self, starts: Sequence[int] = (0,), size: int | None = None) -> dict[str, Tensor]:
        """What of them is known, bool of their shapes, under the domain's name and "_mask"."""
        return {f"{name}_mask": self._prepared(name, starts, size)[1] for name in self.pixels}

    def _prepared(self, name: str, starts: Sequence[int], size: int | None) -> tuple[Tensor, Tensor]:
        one = self.pixels[name]
        side = (size or len(one.shares)) * one.patch
        values, valid = (
            torch.stack([torch.from_numpy(x[..., at * one.patch : at * one.patch + side]) for at in starts])
            for x in (one.values, one.valid)
        )
        return prepared(name, values, valid, None if DOMAINS[name].classes else one.statistics, side)


# ---- opening ----


@contextlib.contextmanager
def open_domains(
    sources: Mapping[str, Source],
    log: Log,
    *,
    takes: Collection[str] = tuple(DOMAINS),
    record: Record | None = None,
    patch: int = 8,
    sensor: str | None = None,
    stats: Any = None,
    bands: Any = None,
    units: Any = None,
    boa_offset: Any = None,
    nodata: Any = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | None = None,
    resolution: float | None = None,
) -> Iterator[DomainStack]:
    """Rasters of one place as MultiMAE's domains, on the pixels of "s2", else of the first, as far as all reach.

    The others are warped to its CRS where theirs is another; classes are those of the nearest pixel, and values are
    resampled as bands of a scene are.

    Args:
        sources: any of "s2" (what ``open_scene`` takes), "dem" (metres) and "worldcover" (codes); of the latter two
            rasters of one band, which needs no name.
        log: receives notes and warnings.
        takes: the domains that the model has.
        record: of its weights, which tells the statistics and the pixel size; by default the pretrained ones'.
        patch: pixels a cell.
        sensor: "S2-L1C" if ``sources["s2"]`` is of that level and does not say so.
        stats: as ``eo_zoo.mmearth.domain_statistics`` takes them.
        bands: as of ``open_scene``, of several inputs by input; so are the next three. A single ``boa_offset`` is s2's.
        units: what stored numbers are.
        boa_offset: dn, added to those of Sentinel-2.
        nodata: stored value that means missing.
        bbox: of the input that gives the pixels; see ``open_scene``, also for the next two.
        bbox_crs: of it.
        resolution: pixel side in units of the CRS.

    Raises:
        InputError: an input is unknown, cannot be used, fills no domain, or does not lie over the others.
        DownloadError: an item on the web cannot be fetched.
    """
    record = record or registry.get_record("multimae_eo_base")
    _check_keys(sources, takes)
    first = "s2" if "s2" in sources else next(iter(sources))
    of_s2 = {
        name: {"s2": value} if isinstance(value, str | float | int) else value
        for name, value in dict(sensor=sensor, boa_offset=boa_offset).items()
    }
    how = by_key(dict(bands=bands, units=units, nodata=nodata, **of_s2), list(sources))
    how[first] |= dict(bbox=bbox, bbox_crs=bbox_crs, resolution=resolution)
    with contextlib.ExitStack() as stack:
        opened = {}
        for key, source in sources.items():
            names = [name for name in RASTERS[key] if name in takes]
            with _named(key):
                opened[key] = _open(stack, source, names, record, stats, **how[key])
        grid = _common_grid(first, {key: scene.grid for key, (scene, _) in opened.items()}, log)
        if far := gsd_warning(grid.gsd, record.gsd["S2"]) if "S2" in record.gsd else None:
            log.warn(far)
        rasters = {}
        for key, (scene, statistics) in opened.items():
            with _named(key):
                placed = scene.on(grid)
                _tell(key, scene, placed, statistics, log)
                for name in statistics:
                    part, kind = placed.on(grid, _order(name)), KINDS.get(name, Raster)
                    part.warnings = []  # those of the input are told
                    rasters[name] = kind(part, statistics[name], Tally(statistics[name]), patch)
        yield DomainStack({name: rasters[name] for name in DOMAINS if name in rasters})


def _order(name: str) -> tuple[str, ...]:
    return sensors.get_order(DOMAINS[name].order)


def _check_keys(sources: Mapping[str, Source], takes: Collection[str]) -> None:
    if not sources:
        raise InputError(f"there are no inputs: give at least one of {', '.join(RASTERS)}")
    for key in sources:
        if key not in RASTERS:
            raise InputError(f"unknown input '{key}'. {nearest(str(key), RASTERS)}")
        if not set(RASTERS[key]) & set(takes):
            raise InputError(
                f"the model was built without {', '.join(RASTERS[key])}, so it has no use for {key}: it takes "
                f"{', '.join(takes)}"
            )


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """An error says which input it is of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{key}: {error}") from error


def _open(
    stack: contextlib.ExitStack,
    source: Source,
    names: Sequence[str],
    record: Record,
    stats: Any,
    *,
    sensor: str | None = None,
    **how: Any,
) -> tuple[Scene, dict[str, Statistics]]:
    """An input on its own pixels, and the statistics of each of the domains that it fills."""
    known = {**mmearth.domain_statistics(record.statistics, stats, sensor=sensor or "S2"), "semseg": CODES}
    units = {known[name].units for name in names}
    if len(units) > 1:
        each = ", ".join(f"{name} {known[name].units}" for name in names)
        raise InputError(f"the statistics are in different units ({each}): give some for all of them")
    own = sensors.sensor_of(DOMAINS[names[0]].order)
    # a file of one band needs no name where it is said to be of a sensor that has one band alone
    said = sensor if len(sensors.get_sensor(own).bands) > 1 else own
    accepts = [band for name in names for band in _order(name)]
    scene = stack.enter_context(
        open_scene(source, default_sensor=own, accepts=accepts, target_units=units.pop(), sensor=said, **how)
    )
    filled = _filled(names, scene)
    if scene.sensor not in (own, sensor):
        known |= mmearth.domain_statistics(record.statistics, stats, sensor=scene.sensor)
    return scene, {name: known[name] for name in filled}


def _filled(names: Sequence[str], scene: Scene) -> list[str]:
    """The domains of which all bands are there."""
    lacking = {name: [band for band in _order(name) if band not in scene.bands] for name in names}
    needed = "; ".join(
        f"{name} needs {', '.join(sensors.get_band(band).sensor_name for band in bands)}"
        for name, bands in lacking.items()
        if bands
    )
    filled = [name for name, bands in lacking.items() if not bands]
    if not filled:
        raise InputError(f"its bands {', '.join(scene.bands)} are all of no domain of the model: {needed} beside them")
    if needed:
        scene.notes.append(f"gives {', '.join(filled)} only: {needed} beside its bands")
    return filled


def _common_grid(first: str, grids: Mapping[str, Grid], log: Log) -> Grid:
    """The first one's pixels, as far as all inputs reach."""
    grid = grids[first]
    for key, other in grids.items():
        with _named(key):
            box = common_box(grid, other)
        if box is None:
            raise InputError(
                f"the inputs cover no common area: {first} {_extent(grids[first])}; {key} {_extent(other)}"
            )
        grid = grid.window(box)
    if grid != grids[first]:
        log.note(f"the inputs cover different areas: only the common part is used, {grid.width} x {grid.height} pixels")
    return grid


def _extent(grid: Grid) -> str:
    return f"{', '.join(f'{edge:.10g}' for edge in grid.bounds)} in {name_of(grid.crs)}"


def _tell(key: str, scene: Scene, placed: Scene, statistics: Mapping[str, Statistics], log: Log) -> None:
    """What the user should know of an input before the long part begins; ``placed`` is on the common pixels."""
    notes = list(scene.notes)
    if key != "s2" and placed.ways:  # of s2 its own notes tell
        own, grid = scene.grid, placed.grid
        warped = "" if coincide(own, grid.crs) else f"warped from {name_of(own.crs)}, "
        notes.append(
            f"{warped}pixels of {own.gsd:.4g} m resampled to the common ones of {grid.gsd:.4g} m "
            f"({', '.join(placed.ways)})"
        )
    names = dict.fromkeys(own.name for own in statistics.values() if own != CODES)
    notes += [f"normalised with the statistics '{name}'" for name in names]
    for text in notes:
        log.note(f"{key}: {text}")
    samples = placed.sample()  # before the input's own warnings: reading adds to them
    if "land_cover" in samples:  # before the long part
        classes_of(torch.from_numpy(samples["land_cover"]))
    if "elevation" in samples:
        _check_heights(samples["elevation"])
    told = [text for one in statistics.values() if one != CODES for text in plausibility(samples, one)]
    if not any(values.size for values in samples.values()):
        told.append("no valid value was found where the inputs overlap: is its nodata value right?")
    for text in dict.fromkeys([*scene.warnings, *told]):
        log.warn(f"{key}: {text}")


def _check_heights(values: np.ndarray) -> None:
    strange = values[(values < HEIGHTS[0]) | (values > HEIGHTS[1])]
    if strange.size:
        raise InputError(
            f"its elevation is {strange[0]:g} in places, expected metres from {HEIGHTS[0]:g} to {HEIGHTS[1]:g}: if a "
            "number means missing, give it as the file has it, as --nodata dem=-9999"
        )


# ---- embedding ----


def embed_domains(
    sources: Mapping[str, Source],
    model: str | nn.Module,
    options: Options,
    reading: Mapping[str, Any],
    log: Log,
    **loading: Any,
) -> Embedding:
    """Embed rasters of one place with MultiMAE, and write the result.

    Args:
        sources: as ``open_domains`` takes them.
        model: a ``MultiMae``, or a registered name of one.
        options: already checked.
        reading: for ``open_domains``.
        log: receives notes and warnings.
        **loading: for ``create_model``.

    Raises:
        InputError: inputs, options or values that cannot be used.
        WeightsError: the weights are damaged or another model's.
        DownloadError: the weights or an input cannot be fetched.
        OSError: the output cannot be written.
    """
    module: Any = model
    if isinstance(model, str):
        with torch.device("meta"):  # what does not fit is found out before weights are fetched
            module = registry.create_model(model, pretrained=False)
    _, patch, _ = model_layer(module, options.layer)
    with open_domains(sources, log, takes=module.in_domains, record=record_for(model), patch=patch, **reading) as stack:
        shown = options.output_modality
        if shown is not None and shown not in stack.rasters:
            raise InputError(f"output_modality is '{shown}', expected one of the domains: {', '.join(stack.rasters)}")
        tile_grid(stack.grid, module, patch, options)
        rasters = dict(stack.rasters)
        if options.preview:
            best = next(iter(rasters))
            pictured = rasters[best]
            thumbnail = job.true_colour(pictured.scene)
            rasters[best] = replace(pictured, tally=Tally(pictured.statistics, thumbnail))
        if isinstance(model, str):
            own: Any = dict(global_pool=global_pool(module, options.pool)) if options.pool else {}
            module = registry.create_model(model, **loading, num_classes=0, in_domains=tuple(rasters), **own)
        work = Job(rasters, module, options, log, job.name_of(module), source_name(sources))
        said = {"INPUTS": json.dumps({key: source_name(source) for key, source in sources.items()})}
        return embed_tiles(work, DomainStack(rasters), said | ({"OUTPUT_MODALITY": shown} if shown else {}))
