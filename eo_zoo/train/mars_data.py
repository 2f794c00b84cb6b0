"""Pairs of RGB and SAR patches on disk for MaRS pretraining, in the layout and by the rules of the public code."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from eo_zoo.errors import InputError, require
from eo_zoo.sensors import get_statistics, normalize

_logger = logging.getLogger(__name__)
SENSORS = ("Umbra", "Capella")


class PatchPairs(Dataset[tuple[Tensor, Tensor]]):
    """Training crops of ``ROOT/{Umbra,Capella}_patches/{rgb,sar}/NAME.tif``, read when they are asked for.

    An item is RGB (3, size, size) and SAR (1, size, size), float32, normalised by the published statistics of their
    sensor, ready for ``MarsPretraining``. Both are cut by one random resized crop (70 to 100 % of the area) and
    flipped together, from torch's random numbers, which a ``DataLoader`` seeds for each worker.

    Args:
        root: the folder above; one of the two sensors is enough.
        size: pixels a side of the crops.

    Raises:
        InputError: there are no pairs; later, a patch that is not 3 bands of RGB or 1 of SAR, or of another size.
        MissingExtra: rasterio is not installed.
    """

    def __init__(self, root: str | Path, *, size: int = 512) -> None:
        require("rasterio", "geo")
        self.pairs: list[tuple[str, Path, Path]] = []
        for sensor in SENSORS:
            folder = Path(root) / f"{sensor}_patches"
            rgb, sar = ({p.name for p in (folder / kind).glob("*.tif")} for kind in ("rgb", "sar"))
            self.pairs += [(sensor, folder / "rgb" / name, folder / "sar" / name) for name in sorted(rgb & sar)]
            if rgb ^ sar:
                _logger.warning("%s: %d patches without a partner are left out", folder, len(rgb ^ sar))
        if not self.pairs:
            raise InputError(
                f"no pairs in {root}: expected {' or '.join(SENSORS)}_patches with rgb/NAME.tif and sar/NAME.tif"
            )
        self.augment = transforms.Compose(
            [transforms.RandomResizedCrop(size, scale=(0.7, 1.0)), transforms.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sensor, *paths = self.pairs[index]
        with _open(paths[0], 3) as colour, _open(paths[1], 1) as radar:
            if colour.shape != radar.shape:
                raise InputError(f"{paths[0]} has {colour.shape} pixels, its SAR {radar.shape}: expected one grid")
            values = np.concatenate([_values(colour), _values(radar)])
        both = self.augment(torch.from_numpy(values.astype(np.float32)))
        return normalize(both[:3], get_statistics("mars/RGB")), normalize(both[3:], get_statistics(f"mars/{sensor}"))


def cut_patches(sar: str | Path, rgb: str | Path, *, folder: str | Path, size: int = 1024) -> list[str]:
    """Cut a SAR scene and its RGB, on one pixel grid, into ``FOLDER/{rgb,sar}/NAME_000.tif`` (NAME is the SAR's).

    As released: neighbours touch, the last row and column end at the scene's edge, and a patch with less than 70 %
    of SAR pixels other than 0 is left out, its number unused. Unlike there, the SAR keeps its own type and patches
    their place on the map.

    Args:
        sar: one band, uint8 (Umbra) or uint16 (Capella).
        rgb: three bands, uint8.
        folder: such as ``ROOT/Umbra_patches``; made if need be.
        size: pixels a side.

    Returns: the names of the patches written.

    Raises:
        InputError: other types or bands, two sizes, or a scene smaller than a patch.
        MissingExtra: rasterio is not installed.
    """
    windows = require("rasterio.windows", "geo")
    names = []
    with _open(sar, 1) as radar, _open(rgb, 3) as colour:
        if radar.shape != colour.shape or min(radar.shape) < size:
            raise InputError(
                f"the SAR has {radar.shape} pixels, the RGB {colour.shape}: expected equal sizes of at least {size}"
            )
        for scene, types in ((radar, {"uint8", "uint16"}), (colour, {"uint8"})):
            if not types.issuperset(scene.dtypes):
                raise InputError(f"{scene.name} is {scene.dtypes[0]}, expected {' or '.join(sorted(types))}")
        corners = [(top, left) for top in _starts(radar.height, size) for left in _starts(radar.width, size)]
        for number, (top, left) in enumerate(corners):
            window = windows.Window(left, top, size, size)
            values = _values(radar, window)
            if np.count_nonzero(values) < 0.7 * values.size:
                continue
            names.append(f"{Path(sar).stem}_{number:03d}.tif")
            _write(Path(folder) / "sar" / names[-1], values, radar, window)
            _write(Path(folder) / "rgb" / names[-1], _values(colour, window), colour, window)
    return names


def _starts(length: int, size: int) -> list[int]:
    return sorted({*range(0, length - size + 1, size), length - size})


@contextlib.contextmanager
def _placeless() -> Iterator[None]:
    """No warnings of patches without a place on the map: the public script writes such, and training needs none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", require("rasterio.errors", "geo").NotGeoreferencedWarning)
        yield


def _open(path: str | Path, bands: int) -> Any:
    rasterio = require("rasterio", "geo")
    try:
        with _placeless():
            file = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{path} is not a raster that can be read ({error})") from error
    if file.count != bands:
        file.close()
        raise InputError(f"{path} has {file.count} bands, expected {bands}")
    return file


def _values(file: Any, window: Any = None) -> np.ndarray:
    try:
        return file.read(window=window)
    except require("rasterio.errors", "geo").RasterioError as error:
        raise InputError(f"{file.name} is damaged ({error}): make it again") from error


def _write(path: Path, values: np.ndarray, scene: Any, window: Any) -> None:
    rasterio = require("rasterio", "geo")
    path.parent.mkdir(parents=True, exist_ok=True)
    place = dict(crs=scene.crs, transform=scene.window_transform(window))
    shape = dict(zip(("count", "height", "width"), values.shape, strict=True))
    with _placeless(), rasterio.open(path, "w", driver="GTiff", dtype=values.dtype, **shape, **place) as file:
        file.write(values)
