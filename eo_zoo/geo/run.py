"""One run: an open scene and a model in, a map or a vector written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
import torch
from torch import Tensor, nn

from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo import job, output
from eo_zoo.geo.grid import Grid
from eo_zoo.geo.job import Job, Log, coarser
from eo_zoo.geo.scene import GDAL_OPTIONS, Scene
from eo_zoo.geo.stream import Encode, Raster, Source, Tally, map_strips, pooled_vector
from eo_zoo.geo.tiles import TileGrid, default_overlap
from eo_zoo.progress import progress_bar
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
    patch_size: int | None = None
    output: str | None = None
    output_modality: str | None = None
    tile: float | None = None


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
    _, patch, _ = model_layer(model, options.layer)
    raster = Raster(scene, statistics, Tally(statistics, job.true_colour(scene) if options.preview else None), patch)
    return embed_tiles(Job(raster, model, options, log or Log(), name, source), raster)


def embed_tiles(work: Job, source: Source, tags: Mapping[str, str] | None = None) -> Embedding:
    """Embed tiles of the model's input size with a model that gives one map a layer, or one a domain.

    Args:
        work: its options are ``Options``; its inputs have one grid.
        source: gives the tiles as the model takes them; its cells are the model's patches.
        tags: what only this kind of input has to tell.

    Raises:
        InputError: as ``embed_scene``.
        OSError: the output cannot be written.
    """
    model, options = cast(Any, work.model), cast(Options, work.options)
    layer, patch, channels = model_layer(model, options.layer)
    grid = tile_grid(work.grid, model, patch, options)
    pool, layers = options.pool, len(model.feature_info)
    run = Run(
        work,
        source,
        grid,
        channels=channels,
        cell=patch,
        layer=" ".join(filter(None, (str(layer), options.output_modality))),
        tags={
            **(tags or {}),
            "LAYER": f"pool {pool}" if pool else f"{layer} (0 to {layers - 1})",
            "PATCH": str(patch),
            "TILE": str(grid.tile),
            "OVERLAP": str(grid.overlap),
        },
    )
    return run.write(_features(model, layer, options), vector=pool is not None)


@dataclass(frozen=True)
class Run:
    """A job, and the tiles it goes over.

    Args:
        work: its options are ``Options``.
        source: what the tiles are cut from.
        grid: the tiles of ``source``.
        channels: values of a cell.
        cell: side of a cell of the output in pixels of the job's first input.
        layer: of what kind the values are, for the descriptions of the map's bands.
        tags: what only this kind of run has to tell.
    """

    work: Job
    source: Source
    grid: TileGrid
    channels: int
    cell: float
    layer: str
    tags: Mapping[str, str]

    def write(self, forward: Callable[[Any], Tensor], *, vector: bool) -> Embedding:
        """Write a map, or one vector.

        Args:
            forward: calls the model: normalised tiles to features (n, channels, rows, columns), or vectors.
            vector: of the second kind.

        Raises:
            InputError: there is nothing to embed, or the features are not finite.
            OSError: the output cannot be written.
        """
        options = self.options
        with (
            job.evaluating(self.work.model, forward, options) as encode,
            progress_bar("embedding", len(self.grid), options.progress) as tick,
            rasterio.Env(**GDAL_OPTIONS),
        ):
            return self._write_vector(encode, tick) if vector else self._write_map(encode, tick)

    @property
    def options(self) -> Options:
        """How to embed."""
        return cast(Options, self.work.options)

    def _write_map(self, encode: Encode, tick: Callable[[int], None]) -> Embedding:
        work, options, preview, rows_cols = self.work, self.options, self.options.preview, self.grid.shape
        if options.out is None:
            raise InputError("a map has to be written somewhere: give out, the path of a .tif, or pool for one vector")
        shape = (self.channels, *rows_cols)
        size = int(np.prod(shape, dtype=np.int64)) * (2 if options.out_dtype == "float16" else 4)
        job.warn_space(options.out, size, work.log, ", or out_dtype float16")
        components = output.Components(self.channels)
        empty = 0
        with contextlib.ExitStack() as stack:
            # OUT takes its name last: whoever sees it can rely on all of it, the preview included.
            path = stack.enter_context(output.replacing_raster(options.out))
            picture = stack.enter_context(replacing(preview)) if preview else None
            writer = stack.enter_context(
                output.MapWriter(
                    path,
                    shape,
                    crs=work.grid.crs,
                    transform=coarser(work.grid.transform, self.cell),
                    out_dtype=options.out_dtype,
                    descriptions=[f"{work.name}[{self.layer}] {channel}" for channel in range(self.channels)],
                )
            )
            for strip in map_strips(
                self.source, self.grid, encode, self.channels,
                batch_size=options.batch_size, min_valid=options.min_valid, tick=tick,
            ):  # fmt: skip
                empty += int(np.isnan(strip[0]).sum())
                writer.write(strip)
                if picture:
                    components.add(strip)
            if empty == rows_cols[0] * rows_cols[1]:
                work.raise_empty("embed")
            writer.finish(work.tags(self.tags))
            if picture:
                self._write_preview(picture, components, path)
        nodata = empty / (rows_cols[0] * rows_cols[1])
        return Embedding(shape=shape, **work.facts(self.cell, nodata))

    def _write_preview(self, picture: Path, components: output.Components, path: Path) -> None:
        """The input that has a thumbnail beside the map."""
        [one] = [one for one in self.work.opened.values() if one.tally.thumbnail]
        if one.tally.thumbnail:
            shown = one.tally.thumbnail.caption(one.scene.bands)
            cell = round(self.cell * self.work.grid.transform.a / one.scene.grid.transform.a)
            captions = shown, f"{self.work.name}: principal components 1, 2, 3"
            output.write_preview(picture, one.tally.thumbnail, components, path, patch=cell, captions=captions)

    def _write_vector(self, encode: Encode, tick: Callable[[int], None]) -> Embedding:
        work, options = self.work, self.options
        vector = pooled_vector(self.source, self.grid, encode, batch_size=options.batch_size, tick=tick)
        if vector is None:
            work.raise_empty("embed")
        if not np.isfinite(vector).all():
            raise InputError("the model gave infinite or undefined features: use dtype bfloat16 or float32")
        if options.out is not None:
            output.write_vector(options.out, vector, work.tags(self.tags))
        return Embedding(shape=vector.shape, vector=vector, **work.facts(1, work.missing()))


def tile_grid(grid: Grid, model: Any, patch: int, options: Options) -> TileGrid:
    """Tiles of the model's input size; those for a pooled vector count every pixel in one tile only."""
    tile = int(model.pretrained_cfg["input_size"][-1])
    overlap = options.overlap
    if overlap is None:
        overlap = 0 if options.pool else default_overlap(tile, patch)
    return TileGrid(grid.height, grid.width, patch, tile, overlap)


def model_layer(model: Any, layer: int | None) -> tuple[int, int, int]:
    """Index, patch in pixels and channels of a layer, by timm's feature_info."""
    count = len(model.feature_info)
    index = -1 if layer is None else layer
    if not -count <= index < count:
        raise InputError(f"layer {layer} does not exist: the model has {count}, so 0 to {count - 1} or -{count} to -1")
    info = model.feature_info[index % count]
    return index % count, int(info["reduction"]), int(info["num_chs"])


def global_pool(model: Any, pool: str | None) -> str | None:
    """The model's own word for a pooling: MultiMAE's token is called global."""
    return "global" if pool == "token" and hasattr(model, "global_tokens") else pool


def _features(model: Any, layer: int, options: Options) -> Callable[[Tensor], Tensor]:
    """The model as a function from normalised tiles to features: a layer's map, or the pooled vector.

    Of a map for each domain it is the mean, or that of ``output_modality``.
    """
    own, pool = getattr(model, "global_pool", None), global_pool(model, options.pool)
    if pool and own != pool:
        raise InputError(f"the model pools by '{own}', not '{pool}': create it with global_pool='{pool}'")

    def forward(x: Any) -> Tensor:
        if pool:
            return model.forward_head(model.forward_features(x), pre_logits=True)
        [features] = model.forward_intermediates(x, indices=[layer], norm=False, intermediates_only=True)
        if isinstance(features, Tensor):
            return features
        if options.output_modality:
            return features[options.output_modality]
        return torch.stack(list(features.values())).mean(dim=0)

    return forward
