"""Inputs under the names that pages give them, small but of the kind that the line beside them needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eo_zoo import sensors

ORIGIN = (500000.0, 5220000.0)  # top left, EPSG:32632
SIZE = 80  # pixels a side of what one model takes with another


def write(path: Path, values: Sequence[np.ndarray], *, names: Sequence[str] = (), **options: Any) -> None:
    # here, for pages without rasters run where there is no rasterio
    from tests.geo.rasters import write_raster

    write_raster(path, np.stack(values), descriptions=names, **{"origin": ORIGIN, **options})


def surfaces(count: int, size: int = SIZE, low: float = 300, high: float = 3000, first: int = 0) -> list[np.ndarray]:
    from tests.geo.rasters import smooth

    return [smooth(first + seed, size, size, low, high) for seed in range(count)]


def names_of(sensor: str) -> list[str]:
    return [band.sensor_name for band in sensors.get_sensor(sensor).bands]


def folder(path: Path) -> None:
    """Sentinel-2's 12 bands of L2A in single files, pixels of 100 m."""
    names = names_of("S2")
    for name, values in zip(names, surfaces(len(names)), strict=True):
        write(path / f"{name}.tif", [values], pixel=100, nodata=0)


def item(path: Path) -> None:
    """The same as a STAC item."""
    from tests.geo.rasters import stac_item

    beside = path.with_name("item_bands")
    folder(beside)
    stac_item(path, {name: f"{beside.name}/{name}.tif" for name in names_of("S2")})


def level1c(path: Path, size: int) -> None:
    """One file of L1C's 13 bands."""
    names = names_of("S2-L1C")
    write(path, surfaces(len(names), size), names=names)


def radar(path: Path) -> None:
    """VV and VH in decibels."""
    values = [(one - 2000) / 100 for one in surfaces(2, low=0, high=1000)]
    write(path, [one.astype(np.float32) for one in values], pixel=100, names=["VV", "VH"])


def aerial(path: Path, column: int = 0) -> None:
    """80 x 80 m in near infrared, red, green and blue."""
    values = [one.astype(np.uint8) for one in surfaces(4, 400, 20, 200, first=column)]
    write(path, values, pixel=0.2, origin=(ORIGIN[0] + 80 * column, ORIGIN[1]), names=["nir", "red", "green", "blue"])


def images(path: Path) -> None:
    """Two aerial images."""
    for column in range(2):
        aerial(path / f"{column}.tif", column)


def series(path: Path) -> None:
    """80 x 80 m on three dates, in Sentinel-2's ten bands of 10 and 20 m."""
    names = [name for name in names_of("S2") if name not in ("B01", "B09")]
    for month in (4, 6, 9):
        write(path / f"2020-{month:02}-15.tif", surfaces(len(names), 8, first=month), names=names)


def elevation(path: Path) -> None:
    """Metres."""
    write(path, [surfaces(1, low=100, high=900)[0].astype(np.float32)], pixel=100, nodata=-9999)


def land_cover(path: Path) -> None:
    """ESA's codes: forest beside water."""
    codes = np.full((SIZE, SIZE), 10, np.uint8)
    codes[:, SIZE // 2 :] = 80
    write(path, [codes], pixel=100)


def port(path: Path) -> None:
    """A made-up port, in bytes."""
    from tests.vlm import port

    port.write(path)


def dated(path: Path, column: int) -> None:
    """120 x 120 m in red, green and blue; the second of two lies 20 m east of the first."""
    values = [one.astype(np.uint8) for one in surfaces(3, 120, 20, 200, first=column)]
    write(path, values, pixel=1, origin=(ORIGIN[0] + 20 * column, ORIGIN[1]), names=["red", "green", "blue"])


def photo(path: Path) -> None:
    """Without a map."""
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(values).save(path)


def objects(path: Path) -> None:
    """DOTA, of four images."""
    from tests.vlm.sft import published

    published.dota(path)


def trained(path: Path) -> None:
    """A random TerraSense whose weights are pickled."""
    import torch
    from safetensors.torch import load_file

    from tests.vlm import tiny

    tiny.build(path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def public(path: Path, name: str) -> None:
    """A small model in the layout of its public code, with random values where none are in the package."""
    import tempfile

    from eo_zoo import registry
    from eo_zoo.convert import export_original
    from eo_zoo.hf import export

    with tempfile.TemporaryDirectory() as place:
        export(name, f"{place}/model", pretrained=registry.get_record(name).scheme == "package")
        export_original(f"{place}/model", path)


FILES: dict[str, Callable[[Path], None]] = {
    "smarties-v1-vitb.safetensors": lambda path: public(path, "smarties_vit_nano"),
    "AnySat.pth": lambda path: public(path, "anysat_nano"),
    "S2_folder": folder,
    "item.json": item,
    "scene.tif": lambda path: level1c(path, 128),
    "patch.tif": lambda path: level1c(path, 64),
    "S1.tif": radar,
    "tile.tif": aerial,
    "tiles": images,
    "series": series,
    "dem.tif": elevation,
    "map.tif": land_cover,
    "port.tif": port,
    "before.tif": lambda path: dated(path, 0),
    "after.tif": lambda path: dated(path, 1),
    "photo.jpg": photo,
    "DOTA": objects,
    "trained": trained,
}
