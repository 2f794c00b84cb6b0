"""Several inputs of one area as the one thing that tiles are cut from: images and series, each at its own pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eo_zoo import dates
from eo_zoo.geo.area import Area
from eo_zoo.geo.series import Series
from eo_zoo.geo.stream import Opened, cell_shares, normalised
from eo_zoo.models.anysat_inputs import Input

WHOLE = "modis"  # the input of which one pixel covers the tile


@dataclass(frozen=True)
class Layer(Opened):
    """An input on the area's grid of its pixels; ``one`` says what the model takes it as."""

    one: Input

    @property
    def total(self) -> int:
        """Values of the whole input; those that are one pixel for a whole tile are not counted."""
        return 0 if self.one.name == WHOLE else super().total

    def pixels(self, metres: float) -> int:
        """Pixels that so many metres hold."""
        return round(metres / self.one.gsd)

    def read(self, top: float, left: float, height: float, width: float) -> Window:
        """A window in metres from the area's corner."""
        return Window(self, *self.scene.read(*(self.pixels(metres) for metres in (top, left, height, width))))


@dataclass(frozen=True)
class Window:
    """Pixels of a layer: float32 and bool (C, H, W), or of a series (T, C, H, W)."""

    layer: Layer
    values: np.ndarray
    valid: np.ndarray

    def count(self, top: float, left: float, height: float, width: float) -> None:
        """Add the first ``height`` and ``width`` metres, which lie at ``top`` and ``left``, to the counts."""
        tally, pixels = self.layer.tally, self.layer.pixels
        part = np.s_[..., : pixels(height), : pixels(width)]
        values, valid = self.values[part], self.valid[part]
        if not self.layer.one.series:
            tally.add(pixels(top), pixels(left), values, valid)
            return
        bands, columns = values.shape[1], values.shape[3]
        tally.count(*(x.swapaxes(0, 1).reshape(bands, -1, columns) for x in (values, valid)))
        if tally.thumbnail is not None:
            tally.thumbnail.add(pixels(top), pixels(left), *_median(values, valid, tally.thumbnail.bands))

    def shares(self, cell: float) -> np.ndarray:
        """Valid share of each cell's values; of a series a value is valid if it is at any date."""
        known = np.asarray(self.valid.any(axis=0)) if self.layer.one.series else self.valid
        return cell_shares(known, self.layer.pixels(cell))

    def tiles(self, starts: Sequence[float], size: float) -> dict[str, Tensor]:
        """The squares of ``size`` metres that begin at these metres, as the model takes them."""
        pixels = self.layer.pixels
        x = normalised(self.values, self.valid, self.layer.statistics)
        spans = [slice(pixels(start), pixels(start) + pixels(size)) for start in starts]
        return tensors(
            self.layer,
            torch.stack([x[..., span] for span in spans]),
            torch.stack([torch.from_numpy(self.valid[..., span]) for span in spans]),
        )


def tensors(layer: Layer, x: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """A batch of one input under the model's keys: with its dates, and a mask where anything is missing."""
    name = layer.one.name
    if not isinstance(layer.scene, Series):
        return {name: x}
    made = {name: x, f"{name}_dates": dates.days_of_year(layer.scene.dates).expand(len(x), -1)}
    return made if valid.all() else made | {f"{name}_mask": valid}


def _median(values: np.ndarray, valid: np.ndarray, bands: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Median over the valid dates of some bands, the others 0: (C, H, W), clear of the clouds that no mask shows."""
    made, known = np.zeros(values.shape[1:], np.float32), np.asarray(valid.any(axis=0))
    chosen = list(bands)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's for pixels without a date, which are masked below
        made[chosen] = np.nanmedian(np.where(valid[:, chosen], values[:, chosen], np.nan), axis=0)
    return np.where(known, made, 0), known


@dataclass(frozen=True)
class Stack:
    """The inputs over an area, read in cells of ``cell`` metres; see ``Source``.

    ``shown`` is the input whose validity is the output's; without it a cell is as valid as its inputs are in the mean.
    """

    area: Area
    layers: Mapping[str, Layer]
    cell: float
    shown: str | None = None

    def read(self, top: int, left: int, height: int, width: int, own: tuple[int, int]) -> StackCells:
        """See ``Source``."""
        window = tuple(side * self.cell for side in (top, left, height, width))
        windows = {key: layer.read(*window) for key, layer in self.layers.items() if key != WHOLE}
        for one in windows.values():
            one.count(window[0], window[1], own[0] * self.cell, own[1] * self.cell)
        return StackCells(self, top, left, windows)


@dataclass(frozen=True)
class StackCells:
    """Windows of all inputs that begin in the cell ``top``, ``left``; see ``Cells``."""

    stack: Stack
    top: int
    left: int
    windows: Mapping[str, Window]

    @cached_property
    def shares(self) -> np.ndarray:
        """See ``Cells``."""
        shown = [self.windows[self.stack.shown]] if self.stack.shown else list(self.windows.values())
        return np.mean([one.shares(self.stack.cell) for one in shown], axis=0)

    def tiles(self, starts: Sequence[int], size: int) -> dict[str, Tensor]:
        """See ``Cells``: what ``AnySat`` takes."""
        cell = self.stack.cell
        made: dict[str, Tensor] = {}
        for key, layer in self.stack.layers.items():
            if key == WHOLE:
                made |= self._whole(layer, [(self.left + start) * cell for start in starts], size * cell)
            else:
                made |= self.windows[key].tiles([start * cell for start in starts], size * cell)
        return made

    def _whole(self, layer: Layer, lefts: Sequence[float], side: float) -> dict[str, Tensor]:
        """The mean over each tile as its one pixel."""
        parts = []
        for left in lefts:
            values, valid = layer.scene.on(self.stack.area.square(self.top * self.stack.cell, left, side)).read(
                0, 0, 1, 1
            )
            parts.append((normalised(values, valid, layer.statistics), torch.from_numpy(valid)))
        return tensors(layer, torch.stack([x for x, _ in parts]), torch.stack([valid for _, valid in parts]))
