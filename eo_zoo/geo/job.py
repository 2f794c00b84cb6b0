"""What every run over a scene shares: what is told, the model at work, the bar, the tags, the result."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from affine import Affine
from rasterio.crs import CRS
from torch import Tensor, nn

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo.checks import fast_dtype, one_of
from eo_zoo.geo.output import Thumbnail
from eo_zoo.geo.scene import Grid, Scene
from eo_zoo.geo.series import Series
from eo_zoo.geo.stream import Encode, Opened, Raster
from eo_zoo.version import __version__
from eo_zoo.weights.sharded import FLOATS

_logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
MOSTLY = 0.5  # share of clipped values in a band from which on the user is warned

Report = Callable[[str, str], None]


@dataclass
class Log:
    """Notes and warnings, told as they come and kept for the output's tags."""

    report: Report | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A choice or conversion that was made."""
        self._tell("note", text, self.notes)

    def warn(self, text: str) -> None:
        """Something that is probably not as the user wants it."""
        self._tell("warning", text, self.warnings)

    def _tell(self, kind: str, text: str, kept: list[str]) -> None:
        kept.append(text)
        if self.report is not None:
            self.report(kind, text)
        else:
            _logger.log(logging.WARNING if kind == "warning" else logging.INFO, "%s", text)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How to run; see ``embed_raster`` for the meaning of each.

    Raises:
        InputError: a value is out of range.
    """

    out: Path | None = None
    min_valid: float = 0.0
    batch_size: int = 8
    device: torch.device = CPU
    dtype: str = "float32"
    preview: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the values, before anything is opened."""
        if one_of("dtype", self.dtype, ("auto", *FLOATS)) == "auto":
            object.__setattr__(self, "dtype", fast_dtype(self.device))
        if not 0 <= self.min_valid <= 1:
            raise InputError(f"min_valid is {self.min_valid}, expected a share from 0 to 1")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run produced.

    ``transform`` and ``crs`` are the map's (without a map, the input's); ``nodata`` is the share of cells
    without a value (without a map, of values that are invalid); ``clipped`` the share of each band's valid
    values that normalisation clipped.
    """

    path: Path | None
    crs: CRS
    transform: Affine
    nodata: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    clipped: dict[str, float]
    seconds: float
    preview: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``transform`` is GDAL's six numbers."""
        return {
            "path": None if self.path is None else str(self.path),
            "preview": None if self.preview is None else str(self.preview),
            "crs": self.crs.to_string(),
            "transform": list(self.transform.to_gdal()),
            "nodata": self.nodata,
            "clipped": self.clipped,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }

    def told(self, what: str) -> list[str]:
        """Lines of a summary: the shares that were clipped, then what was written and where."""
        shares = ", ".join(f"{band} {share:.1%}" for band, share in self.clipped.items())
        lines = [f"clipped by normalisation: {shares}"] * bool(shares) + [f"{what}, {self.seconds:.1f} s"]
        return lines + ([f"{self.preview}: preview"] if self.preview is not None else [])


@contextlib.contextmanager
def evaluating(model: nn.Module, forward: Callable[[Any], Tensor], options: JobOptions) -> Iterator[Encode]:
    """``forward``, which calls the model, from a tensor or a dict of them to arrays: in eval mode, on the device."""
    training, dtype = model.training, FLOATS[options.dtype]

    def encode(x: Any) -> Any:
        there = x.to(options.device) if isinstance(x, Tensor) else {key: x[key].to(options.device) for key in x}
        half = dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(options.device.type, dtype if half else None, enabled=half),
        ):
            result = forward(there)
        return result.float().cpu().numpy()

    model.to(options.device).eval()
    try:
        yield encode
    finally:
        model.train(training)


def true_colour(scene: Scene | Series) -> Thumbnail:
    """True colour where the scene has red, green and blue by common names, else its first band in grey."""
    known = [sensors.get_sensor(name) for name in scene.sensor.split(", ")]
    common = {band.name: band.common_name for sensor in known for band in sensor.bands}
    names = [common.get(band) for band in scene.bands]
    colours = ("red", "green", "blue")
    bands = [names.index(colour) for colour in colours] if set(colours) <= set(names) else [0]
    return Thumbnail((scene.grid.height, scene.grid.width), bands)


def coarser(transform: Affine, factor: float) -> Affine:
    """The same corner, pixels ``factor`` times as large."""
    # Written out because affine 3 renames the product of transforms.
    return Affine(
        transform.a * factor, transform.b * factor, transform.c,
        transform.d * factor, transform.e * factor, transform.f,
    )  # fmt: skip


def warn_space(path: Path, needed: int, log: Log, hint: str) -> None:
    """Warn if the folder of ``path`` has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        log.warn(
            f"the output may take {needed / 1e9:.1f} GB and its folder has {free / 1e9:.1f} GB free: "
            f"choose another folder{hint}"
        )


@dataclass(frozen=True)
class Job:
    """A model at work on a scene, or on several inputs by their keys; ``name`` and ``source`` are for the tags."""

    inputs: Raster | Mapping[str, Opened]
    model: nn.Module
    options: JobOptions
    log: Log
    name: str  # of the model
    source: str  # of the input
    started: float = field(default_factory=time.perf_counter)

    @property
    def opened(self) -> Mapping[str, Opened]:
        """All inputs by their keys; the key of the only one is empty."""
        return {"": self.inputs} if isinstance(self.inputs, Raster) else self.inputs

    def tags(self, own: Mapping[str, str]) -> dict[str, str]:
        """How the output came about, for the end of the run; ``own`` is what only this kind of output has."""
        self._warn_late()
        return {
            "EO_ZOO_VERSION": __version__,
            "MODEL": self.name,
            "WEIGHTS": weights_of(self.model),
            "BANDS": self._said(lambda one: list(one.scene.bands)),
            "SENSOR": self._said(lambda one: one.scene.sensor),
            "UNITS": self._said(lambda one: one.scene.units),
            "STATISTICS": self._said(lambda one: one.statistics.to_dict()),
            "CLIPPED": json.dumps(self._clipped()),
            "BATCH_SIZE": str(self.options.batch_size),
            "DEVICE": self.options.device.type,
            "DTYPE": self.options.dtype,
            "MIN_VALID": str(self.options.min_valid),
            "SOURCE": self.source,
            **own,
            "NOTES": json.dumps(self.log.notes),
            "WARNINGS": json.dumps(self.log.warnings),
        }

    def _said(self, of: Callable[[Opened], Any]) -> str:
        """A fact as text; of several inputs JSON by their keys."""
        if isinstance(self.inputs, Raster):
            fact = of(self.inputs)
            return fact if isinstance(fact, str) else json.dumps(fact)
        return json.dumps({key: of(one) for key, one in self.inputs.items()})

    def _clipped(self) -> dict[str, float]:
        """Clipped share of each band's valid values; of several inputs under "KEY BAND"."""
        return {
            f"{key} {band}".lstrip(): share
            for key, one in self.opened.items()
            for band, share in one.tally.shares(one.scene.bands).items()
        }

    def _warn_late(self) -> None:
        """What only the end of a run can tell: values that could not be converted, or were mostly clipped."""
        for key, one in self.opened.items():
            for text in one.scene.warnings:
                told = f"{key}: {text}" if key else text
                if told not in self.log.warnings:
                    self.log.warn(told)
            for band, share in one.tally.shares(one.scene.bands).items():
                if share > MOSTLY:
                    self.log.warn(
                        f"{share:.0%} of the values of {f'{key} {band}'.lstrip()} lie outside the range of statistics "
                        f"'{one.statistics.name}' and were clipped: give others with stats, or check the units"
                    )

    def raise_empty(self, verb: str) -> NoReturn:
        """Say why no cell of the output holds anything."""
        if any(one.tally.valid.any() for one in self.opened.values()):
            raise InputError(
                f"no cell of the output has the share of valid pixels that min_valid asks for, {self.options.min_valid}"
            )
        raise InputError(f"the image is all nodata: there is nothing to {verb}; check the extent and the nodata value")

    def missing(self) -> float:
        """Share of all inputs' values that are invalid."""
        inputs = self.opened.values()
        return 1 - sum(int(one.tally.valid.sum()) for one in inputs) / sum(one.total for one in inputs)

    @property
    def grid(self) -> Grid:
        """Of the only input, or the first: all have its corner."""
        return next(iter(self.opened.values())).scene.grid

    def facts(self, cell: float, nodata: float) -> dict[str, Any]:
        """What every ``Result`` holds; ``cell`` is the side of one of the output's cells in (the first's) pixels."""
        return {
            "path": self.options.out,
            "crs": self.grid.crs,
            "transform": coarser(self.grid.transform, cell),
            "nodata": nodata,
            "notes": tuple(self.log.notes),
            "warnings": tuple(self.log.warnings),
            "clipped": self._clipped(),
            "seconds": time.perf_counter() - self.started,
            "preview": self.options.preview,
        }


def name_of(model: nn.Module) -> str:
    """The record's name where it is what the model holds, else its architecture: WEIGHTS tells the rest."""
    origin = getattr(model, "weights_origin", None)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return (origin.name if origin else None) or str(config.get("architecture") or type(model).__name__)


def weights_of(model: nn.Module) -> str:
    """Name, hash and trust of the weights that a model holds."""
    origin: Any = getattr(model, "weights_origin", None)
    if origin is None:
        return "unknown: the module was given"
    # A local file's folder is nobody's business who gets the output.
    name = origin.name or Path(origin.source).name
    return f"{name} sha256 {origin.sha256} {'verified' if origin.verified else 'unverified'}"
