"""A map of classes over a scene, written strip by strip: memory does not depend on the scene's height."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo import classes, job, output
from eo_zoo.geo.classify import Prediction, PredictOptions, Run
from eo_zoo.geo.job import coarser
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.stream import map_strips, window_strips
from eo_zoo.geo.tiles import TileGrid, WindowGrid
from eo_zoo.progress import progress_bar


def class_grid(scene: Scene, options: PredictOptions, dense: bool) -> TileGrid:
    """The windows over a scene: overlapping tiles of pixels for a dense task, else one around each cell.

    Raises:
        InputError: window or stride do not fit the scene or each other.
    """
    height, width, window, stride = scene.grid.height, scene.grid.width, options.window, options.stride
    if window < 1:
        raise InputError(f"window is {window}, expected pixels, 1 or more")
    if window > min(height, width):
        raise InputError(
            f"a window of {window} pixels does not fit into the scene, {width} x {height}: give a smaller window, a "
            "finer resolution, or no .tif as output, which takes all as one image"
        )
    if not 1 <= stride <= window:
        raise InputError(
            f"stride is {stride}, expected 1 to {window}, the window: with more, no window would see what lies between"
        )
    return (TileGrid if dense else WindowGrid)(height, width, 1, window, window - stride)


def classify_map(run: Run, out: Path) -> Prediction:
    """Write the map, and if wanted the scores and a preview.

    Raises:
        InputError: window or stride do not fit the scene, or no cell has a value.
        OSError: an output cannot be written.
    """
    work, options, names, several = run.work, run.options, run.classifier.task.classes, run.classifier.several
    scene, thumbnail = run.raster.scene, run.raster.tally.thumbnail
    grid = class_grid(scene, options, run.classifier.dense)
    cell = 1 if run.classifier.dense else options.stride
    mosaic = classes.Mosaic(thumbnail, cell) if thumbnail else None
    counts, empty, row = np.zeros(len(names), np.int64), 0, 0
    with contextlib.ExitStack() as stack:
        files = _Files(run, grid.shape, cell, stack, out)
        tick = stack.enter_context(progress_bar("predicting", len(grid), options.progress))
        for scores in _strips(run, grid, tick):
            missing = np.isnan(scores[0])
            best = np.where(missing, output.NODATA, scores.argmax(axis=0)).astype(np.uint8)
            labels = np.where(missing, output.NODATA, scores >= options.threshold) if several else best[None]
            files.write(labels.astype(np.uint8), scores)
            if mosaic:
                mosaic.add(row, best)
            counts += (labels == 1).sum(axis=(1, 2)) if several else np.bincount(best[~missing], minlength=len(names))
            empty, row = empty + int(missing.sum()), row + len(best)
        total = grid.shape[0] * grid.shape[1]
        if empty == total:
            work.raise_empty("classify")
        files.finish()
        if mosaic and thumbnail:
            captions = (thumbnail.caption(scene.bands), f"{work.name}: class of the highest score")
            classes.write_class_preview(files.preview, thumbnail, mosaic, names, captions)
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    shares = {names[i]: round(float(counts[i] / (total - empty)), 6) for i in order}
    return run.prediction(cell, empty / total, shape=files.shape, shares=shares, scores_path=options.scores)


def _strips(run: Run, grid: TileGrid, tick: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Scores (classes, rows, columns) from top to bottom, NaN where nodata."""
    options = run.options
    how: dict[str, Any] = dict(batch_size=options.batch_size, min_valid=options.min_valid, tick=tick)
    count = len(run.classifier.task.classes)
    if isinstance(grid, WindowGrid):
        made = window_strips(run.raster, grid, run.encode, count, **how)
    else:
        made = map_strips(run.raster, grid, run.encode, count, **how)
    return map(run.classifier.scores, made)


class _Files:
    """What a map goes to: all take their names when ``stack`` closes without an error, OUT as the last."""

    def __init__(self, run: Run, shape: tuple[int, int], cell: int, stack: contextlib.ExitStack, out: Path) -> None:
        options, names, several = run.options, run.classifier.task.classes, run.classifier.several
        self._run = run
        self.shape = (len(names) if several else 1, *shape)
        bytes_of_scores = 4 * len(names) * shape[0] * shape[1] if options.scores else 0
        job.warn_space(out, self.shape[0] * shape[0] * shape[1] + bytes_of_scores, run.work.log, "")

        def writer(path: Path, count: int, dtype: str, descriptions: Sequence[str], **more: Any) -> output.MapWriter:
            scene = run.raster.scene.grid
            made = output.MapWriter(
                path, (count, *shape), crs=scene.crs, transform=coarser(scene.transform, cell), out_dtype=dtype,
                descriptions=descriptions, **more,
            )  # fmt: skip
            return stack.enter_context(made)

        path = stack.enter_context(replacing(out))
        side = stack.enter_context(replacing(output.side_file(out)))
        classes.write_categories(side, ("no", "yes") if several else names, self.shape[0])
        colours = () if several else classes.palette(names)
        self._labels = writer(path, self.shape[0], "uint8", names if several else ("class",), colours=colours)
        self._scores: output.MapWriter | None = None
        if options.scores:
            path = stack.enter_context(output.replacing_raster(options.scores))
            self._scores = writer(path, len(names), "float32", names)
        if options.preview:
            self.preview = stack.enter_context(replacing(options.preview))

    def write(self, labels: np.ndarray, scores: np.ndarray) -> None:
        """Add rows: uint8 (bands, rows, columns), and the scores (classes, rows, columns) they were made of."""
        self._labels.write(labels)
        if self._scores:
            self._scores.write(scores)

    def finish(self) -> None:
        """Write the tags, and look whether the files can be read."""
        tags = self._run.tags()
        for writer in filter(None, (self._scores, self._labels)):
            writer.finish(tags)
