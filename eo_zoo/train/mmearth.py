"""MMEarth on disk for MultiMAE's pretraining: one HDF5 file of all tiles, and three JSON files beside it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eo_zoo import sensors
from eo_zoo.domains import HEIGHTS, prepared
from eo_zoo.errors import InputError, nearest, require
from eo_zoo.mmearth import ARRAYS, domain_statistics
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS, known_domains

#: The data set's editions and the names of their folders and files: 128, 64 and 128 pixels a side.
SUBSETS = {"MMEarth": "data_1M_v001", "MMEarth64": "data_1M_v001_64", "MMEarth100k": "data_100k_v001"}
_SHORT = {"1M": "MMEarth", "64": "MMEarth64", "100k": "MMEarth100k"}
_LEVELS = {"l2a": "S2", "l1c": "S2-L1C"}
_CHANNELS = {  # of the array that holds the domain
    name: [bands.index(band) for band in sensors.get_order(DOMAINS[name].order)]
    for raster, (_, bands) in ARRAYS.items()
    for name in RASTERS[raster]
}


class MMEarth(Dataset[dict[str, Tensor]]):
    """Tiles of MMEarth as MultiMAE's domains, with masks, read when they are asked for.

    An item has for each domain float32 (C, size, size), of "semseg" class ids int64 (size / 4, size / 4), and
    ``<domain>_mask``, bool of the same shape: ready for ``MultiMaePretraining`` after the default collation. Where the
    mask is False a value is missing in the file, or one that it was resized from, and it is 0: digital number 0 of
    Sentinel-2, heights outside -1000..9000 m, NaN and infinities. Land cover 0 and 255 are the class "no data", which
    is masked too; the public code has 0 as tree cover and learns to predict both.

    Sentinel-2 is standardised by the statistics of the tile's processing level; the public code takes L2A's for L1C
    too. Each item is mirrored left to right by torch's random numbers, which a ``DataLoader`` seeds for each worker.
    The file is opened by each process for itself, so that workers may be forked or spawned.

    Args:
        path: the .h5 file, the folder that it is in with ``*_splits.json``, ``*_band_stats.json`` and
            ``*_tile_info.json`` (about all tiles' processing levels), or the folder of that folder.
        split: "train", "val" or "test"; the published files have all tiles in "train".
        subset: "MMEarth", "MMEarth64" or "MMEarth100k", or short "1M", "64" or "100k", where a folder has several.
        domains: which, in their own order; all by default.
        size: pixels a side, a multiple of 4.
        hflip: how probable mirroring is.

    Raises:
        InputError: a file, an array, a split or a domain is missing, or they do not fit together; later, a tile that
            cannot be read or has an unknown land cover.
        MissingExtra: h5py is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        subset: str | None = None,
        domains: str | Sequence[str] | None = None,
        size: int = 56,
        hflip: float = 0.5,
    ) -> None:
        require("h5py", "train")
        if size < 4 or size % 4 or not 0 <= hflip <= 1:
            raise InputError(f"size is {size}, hflip {hflip}; expected a multiple of 4 pixels, and from 0 to 1")
        self.path, self.domains = _located(Path(path), subset), known_domains(domains, "domains")
        self.size, self.hflip = size, hflip
        self.rows = _rows(self._beside("splits"), split)
        self.levels = _levels(self._beside("tile_info"))
        stats = self._beside("band_stats")
        self.statistics = {own: domain_statistics({}, stats, sensor=own) for own in set(self.levels.values())}
        self._file: Any = None
        self._process = 0
        self._check()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = int(self.rows[index])
        tile, arrays = self._read(row)
        if tile not in self.levels:
            raise InputError(f"{self._beside('tile_info')} has no tile '{tile}', which {self.path} has in place {row}")
        item: dict[str, Tensor] = {}
        for raster, values in arrays.items():
            for name in self._wanted(raster):
                x, valid = _values(name, values)
                try:
                    x, valid = prepared(name, x, valid, self.statistics[self.levels[tile]].get(name), self.size)
                except InputError as error:
                    raise InputError(f"{self.path}, tile {tile}: {error}") from error
                item |= {name: x, f"{name}_mask": valid}
        if torch.rand(()) < self.hflip:
            item = {key: x.flip(-1) for key, x in item.items()}
        return item

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.stem}_{what}.json")

    def _wanted(self, raster: str) -> list[str]:
        return [name for name in RASTERS[raster] if name in self.domains]

    def _opened(self) -> Any:
        """The file, opened by this process: what a fork brings along shares its place in the file with the parent."""
        if self._file is not None and self._process != os.getpid():
            self._file.close()
            self._file = None
        if self._file is None:
            self._file, self._process = require("h5py", "train").File(self.path, "r"), os.getpid()
        return self._file

    def _read(self, row: int) -> tuple[str, dict[str, np.ndarray]]:
        with _readable(self.path):
            file = self._opened()
            tile = file["metadata"][row]["tile_id"].decode()
            return tile, {raster: file[name][row] for raster, (name, _) in ARRAYS.items() if self._wanted(raster)}

    def _check(self) -> None:
        with _readable(self.path), require("h5py", "train").File(self.path, "r") as file:
            if "metadata" not in file or "tile_id" not in (file["metadata"].dtype.names or ()):
                raise InputError(f"{self.path} has no array 'metadata' with a tile_id: is it a file of MMEarth?")
            count = len(file["metadata"])
            for raster, (name, channels) in ARRAYS.items():
                if not (wanted := self._wanted(raster)):
                    continue
                if name not in file:
                    raise InputError(
                        f"{self.path} has no array '{name}', which {', '.join(wanted)} need; it has {', '.join(file)}"
                    )
                shape = file[name].shape
                if len(shape) != 4 or shape[:2] != (count, len(channels)):
                    raise InputError(
                        f"{self.path}: {name} is {shape}, expected ({count} tiles, {len(channels)} bands, H, W)"
                    )
        if self.rows.min() < 0 or self.rows.max() >= count:
            strange = self.rows.min() if self.rows.min() < 0 else self.rows.max()
            raise InputError(f"{self._beside('splits')} names place {strange}, but {self.path} has {count} tiles")


def _values(name: str, values: np.ndarray) -> tuple[Tensor, Tensor]:
    """A domain's raw values of an array, and where they are not missing."""
    x = torch.from_numpy(values[_CHANNELS[name]].astype(np.float32))
    if name == "depth":
        return x, (x >= HEIGHTS[0]) & (x <= HEIGHTS[1])
    return x, x.isfinite() if DOMAINS[name].classes else x.isfinite() & (x != 0)


# ---- files ----


def _located(path: Path, subset: str | None) -> Path:
    subset = _SHORT.get(subset or "", subset)
    if subset is not None and subset not in SUBSETS:
        raise InputError(f"unknown subset '{subset}'. {nearest(subset, SUBSETS)}")
    if path.is_file():
        found = [path]
    else:
        names = [SUBSETS[subset]] if subset else list(SUBSETS.values())
        found = sorted(path.glob("*.h5")) or [file for name in names if (file := path / name / f"{name}.h5").is_file()]
    if subset:
        found = [file for file in found if file.stem == SUBSETS[subset]]
    if not found:
        expected = f"{SUBSETS[subset]}.h5" if subset else " or ".join(f"{name}.h5" for name in SUBSETS.values())
        raise InputError(f"{path} has no {expected}: give MMEarth's folder or its .h5 file")
    if len(found) > 1:
        raise InputError(f"{path} has several files, {', '.join(file.name for file in found)}: give one of them")
    return found[0]


def _json(path: Path, **options: Any) -> Any:
    try:
        return json.loads(path.read_bytes(), **options)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: download it with the data, it lies beside the .h5 file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): download it again") from error


def _rows(path: Path, split: str) -> np.ndarray:
    splits = _json(path)
    if not isinstance(splits, dict) or not all(isinstance(rows, list) for rows in splits.values()):
        raise InputError(f"{path}: expected lists of places by split, train, val and test")
    if split not in splits:
        raise InputError(f"{path} has no split '{split}'. {nearest(split, splits)}")
    rows = splits[split]
    if not rows or not all(type(row) is int for row in rows):
        sizes = ", ".join(f"{name} {len(own)}" for name, own in splits.items())
        what = "holds other than whole numbers" if rows else "is empty"
        raise InputError(f"{path}: the split '{split}' {what} (tiles: {sizes})")
    return np.array(rows, np.int64)


def _levels(path: Path) -> dict[str, str]:
    """Tile to "S2" or "S2-L1C"; what else the file says of a tile is dropped while it is read, which is most of it."""

    def kept(pairs: list[tuple[str, Any]]) -> Any:
        own = dict(pairs)
        return own.get("S2_type", own)

    tiles = _json(path, object_pairs_hook=kept)
    if not isinstance(tiles, dict) or not tiles:
        raise InputError(f"{path}: expected facts by tile, each with its S2_type")
    for tile, level in tiles.items():
        if not isinstance(level, str) or level not in _LEVELS:
            raise InputError(f"{path}: tile '{tile}' has no S2_type that is l2a or l1c")
    return {tile: _LEVELS[level] for tile, level in tiles.items()}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py has both for what HDF5 cannot make out
        raise InputError(f"{path} cannot be read as HDF5 ({error}): download it again") from error
