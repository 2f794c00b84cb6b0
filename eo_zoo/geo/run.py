"""One run: an open scene and a model in, a map or a vector written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import rasterio
from torch import Tensor, nn

from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo import job, output
from eo_zoo.geo.job import Job, Log, coarser
from eo_zoo.geo.scene import GDAL_OPTIONS, Scene
from eo_zoo.geo.stream import Encode, Tally, map_strips, pooled_vector
from eo_zoo.geo.tiles import TileGrid, default_overlap
from eo_zoo.sensors import Statistics

OUT_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Embedding(job.Result):
    """What a run produced, as ``Result`` has it.

    ``shape`` is (channels, rows, columns) of a map or (channels,) of a vector; ``vector`` the pooled vector,
    float32.
    """

    shape: tuple[int, ...]
    vector: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``transform`` is GDAL's six numbers."""
        embedding = {} if self.vector is None else {"embedding": self.vector.tolist()}
        return super().to_dict() | {"shape": list(self.shape)} | embedding

    def summary(self) -> str:
        """What was written and where, in a few lines."""
        if self.vector is not None:
            what = f"one vector of {self.shape[0]} values"
        else:
            what = f"{self.shape[1]} x {self.shape[2]} cells of {self.shape[0]} values, {self.nodata:.1%} nodata"
        return "\n".join(self.told(f"{self.path or 'embedding'}: {what}"))


@dataclass(frozen=True, kw_only=True)
class Options(job.JobOptions):
    """How to embed, checked before anything is opened; see ``embed_raster`` for the meaning of each."""

    layer: int | None = None
    pool: str | None = None
    overlap: int | None = None
    out_dtype: str = "float32"


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
    layer, patch, channels = model_layer(model, options.layer)
    grid = tile_grid(scene, model, patch, options)
    tally = Tally(statistics, job.true_colour(scene) if options.preview else None)
    work = Job(scene, model, statistics, options, tally, log or Log(), name, source)
    with contextlib.ExitStack() as stack:
        encode = stack.enter_context(job.evaluating(model, _features(model, layer, options), options))
        tick = stack.enter_context(job.progress_bar("embedding", len(grid), options.progress))
        stack.enter_context(rasterio.Env(**GDAL_OPTIONS))
        run = _Run(work, grid, options, encode, tick, layer)
        shape, nodata, vector = _write_vector(run) if options.pool else _write_map(run, channels)
    return Embedding(shape=shape, vector=vector, **work.facts(1 if options.pool else patch, nodata))


@dataclass(frozen=True)
class _Run:
    work: Job
    grid: TileGrid
    options: Options
    encode: Encode
    tick: Callable[[int], None]
    layer: int

    def tags(self) -> dict[str, str]:
        pool, grid, layers = self.options.pool, self.grid, len(cast(Any, self.work.model).feature_info)
        return self.work.tags(
            {
                "LAYER": f"pool {pool}" if pool else f"{self.layer} (0 to {layers - 1})",
                "PATCH": str(grid.patch),
                "TILE": str(grid.tile),
                "OVERLAP": str(grid.overlap),
            }
        )


def _write_map(run: _Run, channels: int) -> tuple[tuple[int, ...], float, None]:
    work, grid, options, preview = run.work, run.grid, run.options, run.options.preview
    if options.out is None:
        raise InputError("a map has to be written somewhere: give out, the path of a .tif, or pool for one vector")
    shape = (channels, *grid.shape)
    size = int(np.prod(shape, dtype=np.int64)) * (2 if options.out_dtype == "float16" else 4)
    job.warn_space(options.out, size, work.log, ", or out_dtype float16")
    components = output.Components(channels)
    empty = 0
    with contextlib.ExitStack() as stack:
        # OUT takes its name last: whoever sees it can rely on all of it, the preview included.
        path = stack.enter_context(output.replacing_raster(options.out))
        picture = stack.enter_context(replacing(preview)) if preview else None
        writer = stack.enter_context(
            output.MapWriter(
                path,
                shape,
                crs=work.scene.grid.crs,
                transform=coarser(work.scene.grid.transform, grid.patch),
                out_dtype=options.out_dtype,
                descriptions=[f"{work.name}[{run.layer}] {channel}" for channel in range(channels)],
            )
        )
        for strip in map_strips(
            work.scene, grid, work.statistics, run.encode, channels, batch_size=options.batch_size,
            min_valid=options.min_valid, tally=work.tally, tick=run.tick,
        ):  # fmt: skip
            empty += int(np.isnan(strip[0]).sum())
            writer.write(strip)
            if picture:
                components.add(strip)
        if empty == grid.shape[0] * grid.shape[1]:
            work.raise_empty("embed")
        writer.finish(run.tags())
        thumbnail = work.tally.thumbnail
        if picture and thumbnail:
            captions = (thumbnail.caption(work.scene.bands), f"{work.name}: principal components 1, 2, 3")
            output.write_preview(picture, thumbnail, components, path, patch=grid.patch, captions=captions)
    return shape, empty / (grid.shape[0] * grid.shape[1]), None


def _write_vector(run: _Run) -> tuple[tuple[int, ...], float, np.ndarray]:
    work = run.work
    vector = pooled_vector(
        work.scene, run.grid, work.statistics, run.encode,
        batch_size=run.options.batch_size, tally=work.tally, tick=run.tick,
    )  # fmt: skip
    if vector is None:
        work.raise_empty("embed")
    if not np.isfinite(vector).all():
        raise InputError("the model gave infinite or undefined features: use dtype bfloat16 or float32")
    written = run.tags()
    if run.options.out is not None:
        output.write_vector(run.options.out, vector, written)
    pixels = run.grid.height * run.grid.width * len(work.scene.bands)
    return vector.shape, 1 - int(work.tally.valid.sum()) / pixels, vector


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


def _features(model: Any, layer: int, options: Options) -> Callable[[Tensor], Tensor]:
    """The model as a function from normalised tiles to features: a layer's map, or the pooled vector."""
    if options.pool and getattr(model, "global_pool", None) != options.pool:
        raise InputError(
            f"the model pools by '{getattr(model, 'global_pool', None)}', not '{options.pool}': "
            f"create it with global_pool='{options.pool}'"
        )

    def forward(x: Tensor) -> Tensor:
        if options.pool:
            return model.forward_head(model.forward_features(x), pre_logits=True)
        [features] = model.forward_intermediates(x, indices=[layer], norm=False, intermediates_only=True)
        return features

    return forward
