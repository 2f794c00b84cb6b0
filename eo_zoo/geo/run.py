"""One run: an open scene and a model in, a map or a vector written."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from torch import Tensor, nn

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo import output
from eo_zoo.geo.scene import GDAL_OPTIONS, Scene
from eo_zoo.geo.stream import Encode, Tally, map_strips, pooled_vector
from eo_zoo.geo.tiles import TileGrid, default_overlap
from eo_zoo.sensors import Statistics
from eo_zoo.version import __version__

_logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")
OUT_DTYPES = ("float32", "float16")
MOSTLY = 0.5  # share of clipped values in a band from which on the user is warned

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Embedding:
    """What a run produced.

    ``shape`` is (channels, rows, columns) of a map or (channels,) of a vector; ``transform`` and ``crs`` are
    the map's (for a vector, the input's); ``nodata`` is the share of cells that are NaN (for a vector, of
    values that are invalid); ``clipped`` the share of each band's valid values that normalisation clipped;
    ``vector`` the pooled vector, float32.
    """

    path: Path | None
    shape: tuple[int, ...]
    crs: CRS
    transform: Affine
    nodata: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    clipped: dict[str, float]
    seconds: float
    preview: Path | None = None
    vector: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``transform`` is GDAL's six numbers."""
        return {
            "path": None if self.path is None else str(self.path),
            "preview": None if self.preview is None else str(self.preview),
            "shape": list(self.shape),
            "crs": self.crs.to_string(),
            "transform": list(self.transform.to_gdal()),
            "nodata": self.nodata,
            "clipped": self.clipped,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        } | ({} if self.vector is None else {"embedding": self.vector.tolist()})

    def summary(self) -> str:
        """What was written and where, in a few lines."""
        if self.vector is not None:
            what = f"one vector of {self.shape[0]} values"
        else:
            what = f"{self.shape[1]} x {self.shape[2]} cells of {self.shape[0]} values, {self.nodata:.1%} nodata"
        shares = ", ".join(f"{band} {share:.1%}" for band, share in self.clipped.items())
        lines = [f"clipped by normalisation: {shares}", f"{self.path or 'embedding'}: {what}, {self.seconds:.1f} s"]
        if self.preview is not None:
            lines.append(f"{self.preview}: preview")
        return "\n".join(lines)


@dataclass(frozen=True)
class Options:
    """How to embed, checked before anything is opened; see ``embed_raster`` for the meaning of each."""

    out: Path | None = None
    layer: int | None = None
    pool: str | None = None
    overlap: int | None = None
    min_valid: float = 0.0
    batch_size: int = 8
    device: torch.device = CPU
    dtype: str = "float32"
    out_dtype: str = "float32"
    preview: Path | None = None
    progress: bool = False


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


def embed_scene(
    scene: Scene,
    model: nn.Module,
    statistics: Statistics,
    options: Options,
    *,
    name: str,
    source: str = "",
    log: Log | None = None,
) -> Embedding:
    """Embed an open scene with a model made for its bands, and write the result.

    Args:
        scene: pixels in the statistics' units.
        model: takes normalised (n, bands, tile, tile); see ``embed_raster`` for what it must offer.
        statistics: in the order of the scene's bands.
        options: already checked.
        name: of the model, for tags and descriptions.
        source: name of the input, for the tags.
        log: receives notes and warnings.

    Raises:
        InputError: the image is too small or all nodata, or an option does not fit the model.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    log = log or Log()
    layer, patch, channels = model_layer(model, options.layer)
    grid = tile_grid(scene, model, patch, options)
    tally = Tally(statistics, _thumbnail(scene) if options.preview else None)
    with contextlib.ExitStack() as stack:
        encode = stack.enter_context(_encoder(model, layer, options))
        tick = stack.enter_context(_progress(len(grid), options.progress))
        stack.enter_context(rasterio.Env(**GDAL_OPTIONS))
        run = _Run(scene, grid, statistics, encode, options, tally, tick, log)

        def tags() -> dict[str, str]:
            for text in scene.warnings:
                if text not in log.warnings:
                    log.warn(text)
            clipped = tally.shares(scene.bands)
            for band, share in clipped.items():
                if share > MOSTLY:
                    log.warn(
                        f"{share:.0%} of the values of {band} lie outside the range of statistics "
                        f"'{statistics.name}' and were clipped: give others with stats, or check the units"
                    )
            return _tags(run, model, name, source, layer, clipped)

        shape, nodata, vector = (
            _write_vector(run, tags) if options.pool else _write_map(run, tags, name, layer, channels)
        )
    return Embedding(
        path=options.out,
        shape=shape,
        crs=scene.grid.crs,
        transform=coarser(scene.grid.transform, 1 if options.pool else patch),
        nodata=nodata,
        notes=tuple(log.notes),
        warnings=tuple(log.warnings),
        clipped=tally.shares(scene.bands),
        seconds=time.perf_counter() - started,
        preview=options.preview,
        vector=vector,
    )


@dataclass(frozen=True)
class _Run:
    scene: Scene
    grid: TileGrid
    statistics: Statistics
    encode: Encode
    options: Options
    tally: Tally
    tick: Callable[[int], None]
    log: Log


def _write_map(
    run: _Run, tags: Callable[[], dict[str, str]], name: str, layer: int, channels: int
) -> tuple[tuple[int, ...], float, None]:
    grid, options, preview = run.grid, run.options, run.options.preview
    if options.out is None:
        raise InputError("a map has to be written somewhere: give out, the path of a .tif, or pool for one vector")
    shape = (channels, *grid.shape)
    _warn_space(shape, options, run.log)
    components = output.Components(channels)
    empty = 0
    with contextlib.ExitStack() as stack:
        # OUT takes its name last: whoever sees it can rely on all of it, the preview included.
        path = stack.enter_context(replacing(options.out))
        picture = stack.enter_context(replacing(preview)) if preview else None
        writer = stack.enter_context(
            output.MapWriter(
                path,
                shape,
                crs=run.scene.grid.crs,
                transform=coarser(run.scene.grid.transform, grid.patch),
                out_dtype=options.out_dtype,
                descriptions=[f"{name}[{layer}] {channel}" for channel in range(channels)],
            )
        )
        for strip in map_strips(
            run.scene, grid, run.statistics, run.encode, channels, batch_size=options.batch_size,
            min_valid=options.min_valid, tally=run.tally, tick=run.tick,
        ):  # fmt: skip
            empty += int(np.isnan(strip[0]).sum())
            writer.write(strip)
            if picture:
                components.add(strip)
        if empty == grid.shape[0] * grid.shape[1]:
            _raise_empty(run.tally, options.min_valid)
        writer.finish(tags())
        if picture and run.tally.thumbnail:
            colours = ", ".join(run.scene.bands[i] for i in run.tally.thumbnail.bands)
            captions = (f"input: {colours}", f"{name}: principal components 1, 2, 3")
            output.write_preview(picture, run.tally.thumbnail, components, path, patch=grid.patch, captions=captions)
    return shape, empty / (grid.shape[0] * grid.shape[1]), None


def _write_vector(run: _Run, tags: Callable[[], dict[str, str]]) -> tuple[tuple[int, ...], float, np.ndarray]:
    vector = pooled_vector(
        run.scene, run.grid, run.statistics, run.encode,
        batch_size=run.options.batch_size, tally=run.tally, tick=run.tick,
    )  # fmt: skip
    if vector is None:
        _raise_empty(run.tally, 0)
    if not np.isfinite(vector).all():
        raise InputError("the model gave infinite or undefined features: use dtype bfloat16 or float32")
    written = tags()
    if run.options.out is not None:
        output.write_vector(run.options.out, vector, written)
    pixels = run.grid.height * run.grid.width * len(run.scene.bands)
    return vector.shape, 1 - int(run.tally.valid.sum()) / pixels, vector


def _raise_empty(tally: Tally, min_valid: float) -> NoReturn:
    if tally.valid.any():
        raise InputError(f"no cell of the output has the share of valid pixels that min_valid asks for, {min_valid}")
    raise InputError("the image is all nodata: there is nothing to embed; check the extent and the nodata value")


def coarser(transform: Affine, factor: int) -> Affine:
    """The same corner, pixels ``factor`` times as large."""
    # Written out because affine 3 renames the product of transforms.
    return Affine(
        transform.a * factor, transform.b * factor, transform.c,
        transform.d * factor, transform.e * factor, transform.f,
    )  # fmt: skip


def tile_grid(scene: Scene, model: Any, patch: int, options: Options) -> TileGrid:
    """Tiles of the model's input size; those for a pooled vector count every pixel in one tile only."""
    tile = int(model.pretrained_cfg["input_size"][-1])
    overlap = options.overlap
    if overlap is None:
        overlap = 0 if options.pool else default_overlap(tile, patch)
    return TileGrid(scene.grid.height, scene.grid.width, patch, tile, overlap)


def model_layer(model: Any, layer: int | None) -> tuple[int, int, int]:
    """Index, patch in pixels and channels of a layer, by timm's feature_info."""
    count = len(model.feature_info)
    index = -1 if layer is None else layer
    if not -count <= index < count:
        raise InputError(f"layer {layer} does not exist: the model has {count}, so 0 to {count - 1} or -{count} to -1")
    info = model.feature_info[index % count]
    return index % count, int(info["reduction"]), int(info["num_chs"])


@contextlib.contextmanager
def _encoder(model: Any, layer: int, options: Options) -> Iterator[Encode]:
    """The model as a function from normalised tiles to features, in eval mode on the device."""
    training, dtype = model.training, DTYPES[options.dtype]
    if options.pool and getattr(model, "global_pool", None) != options.pool:
        raise InputError(
            f"the model pools by '{getattr(model, 'global_pool', None)}', not '{options.pool}': "
            f"create it with global_pool='{options.pool}'"
        )

    def encode(x: Tensor) -> np.ndarray:
        half = dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(options.device.type, dtype if half else None, enabled=half),
        ):
            x = x.to(options.device)
            if options.pool:
                features = model.forward_head(model.forward_features(x), pre_logits=True)
            else:
                [features] = model.forward_intermediates(x, indices=[layer], norm=False, intermediates_only=True)
        return features.float().cpu().numpy()

    model.to(options.device).eval()
    try:
        yield encode
    finally:
        model.train(training)


@contextlib.contextmanager
def _progress(tiles: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda count: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("embedding"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TextColumn("tiles"), progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=tiles)
        yield lambda count: bar.advance(task, count)


def _thumbnail(scene: Scene) -> output.Thumbnail:
    """True colour where the scene has red, green and blue by common names, else its first band in grey."""
    common = {band.name: band.common_name for band in sensors.get_sensor(scene.sensor).bands}
    names = [common.get(band) for band in scene.bands]
    colours = ("red", "green", "blue")
    bands = [names.index(colour) for colour in colours] if set(colours) <= set(names) else [0]
    return output.Thumbnail((scene.grid.height, scene.grid.width), bands)


def _warn_space(shape: tuple[int, int, int], options: Options, log: Log) -> None:
    needed = int(np.prod(shape, dtype=np.int64)) * (2 if options.out_dtype == "float16" else 4)
    free = shutil.disk_usage(options.out.parent).free if options.out else needed
    if needed > free:
        log.warn(
            f"the output may take {needed / 1e9:.1f} GB and its folder has {free / 1e9:.1f} GB free: "
            "choose another folder, or out_dtype float16"
        )


def _tags(run: _Run, model: Any, name: str, source: str, layer: int, clipped: dict[str, float]) -> dict[str, str]:
    grid, options = run.grid, run.options
    return {
        "EO_ZOO_VERSION": __version__,
        "MODEL": name,
        "WEIGHTS": _weights(model),
        "LAYER": f"pool {options.pool}" if options.pool else f"{layer} (0 to {len(model.feature_info) - 1})",
        "BANDS": json.dumps(list(run.scene.bands)),
        "SENSOR": run.scene.sensor,
        "UNITS": run.scene.units,
        "STATISTICS": json.dumps(run.statistics.to_dict()),
        "CLIPPED": json.dumps(clipped),
        "PATCH": str(grid.patch),
        "TILE": str(grid.tile),
        "OVERLAP": str(grid.overlap),
        "BATCH_SIZE": str(options.batch_size),
        "DEVICE": options.device.type,
        "DTYPE": options.dtype,
        "MIN_VALID": str(options.min_valid),
        "SOURCE": source,
        "NOTES": json.dumps(run.log.notes),
        "WARNINGS": json.dumps(run.log.warnings),
    }


def _weights(model: Any) -> str:
    origin = getattr(model, "weights_origin", None)
    if origin is None:
        return "unknown: the module was given"
    # A local file's folder is nobody's business who gets the output.
    name = origin.name or Path(origin.source).name
    return f"{name} sha256 {origin.sha256} {'verified' if origin.verified else 'unverified'}"
