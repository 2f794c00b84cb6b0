"""Time series made on the spot: folders of dated rasters, cubes, TreeSatAI's HDF5, STAC collections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from eo_zoo.geo.series import Series, open_series
from tests.geo.rasters import ORIGIN, stac_item, write_raster

DATES = ("20200219", "20200224", "20200305")
THREE = ("B02", "B03", "B04")
PRODUCT = "S2A_MSIL2A_{}T102421_N{}_R065_T32UNC_{}T115419"


def opened(source: Any, **said: Any) -> Series:
    return open_series(source, **{"order": THREE, "sensor": "S2", "target_units": "dn", **said})


def values(seed: int, count: int = 3, height: int = 12, width: int = 16) -> np.ndarray:
    """Different in each pixel, uint16, (count, height, width)."""
    return np.random.default_rng(seed).integers(1, 9000, (count, height, width)).astype(np.uint16)


def dated_folder(folder: Path, name: str = "{date}.tif", dates: Sequence[str] = DATES, **options: Any) -> np.ndarray:
    """A multi-band file a date; their values (T, C, H, W)."""
    series = np.stack([values(seed) for seed in range(len(dates))])
    for date, bands in zip(dates, series, strict=True):
        write_raster(folder / name.format(date=date), bands, **{"descriptions": THREE, **options})
    return series


def band_folder(folder: Path, name: str = "{date}/{band}.tif", dates: Sequence[str] = DATES) -> np.ndarray:
    """A file a date and band; their values (T, C, H, W)."""
    series = np.stack([values(seed) for seed in range(len(dates))])
    for date, bands in zip(dates, series, strict=True):
        for band, stored in zip(THREE, bands, strict=True):
            write_raster(folder / name.format(date=date, band=band), stored)
    return series


def treesatai(
    path: Path, *, dates: Sequence[str] = DATES, size: int = 6, baseline: str = "0213"
) -> dict[str, np.ndarray]:
    """TreeSatAI-TS's layout: dimensions without names, products as text, masks of 10 channels of which 2 are used."""
    rng = np.random.default_rng(0)
    t = len(dates)
    arrays = {
        "sen-2-data": rng.integers(1, 9000, (t, 10, size, size)).astype(np.float32),
        "sen-2-masks": np.zeros((t, 10, size, size), np.float32),
        "sen-1-asc-data": rng.uniform(0.01, 0.4, (t, 2, size, size)).astype(np.float32),
        "sen-1-des-data": rng.uniform(0.01, 0.4, (t + 1, 2, size, size)).astype(np.float32),
    }
    s1 = [f"S1A_IW_GRDH_1SDV_{date}T170841_{date}T170906_030639_0382D5_360A" for date in dates]
    texts = {
        "sen-2-products": [PRODUCT.format(date, baseline, date) for date in dates],
        "sen-1-asc-products": s1,
        "sen-1-des-products": [s1[0], *s1],
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, lines in texts.items():
            file.create_dataset(name, data=np.array(lines, object), dtype=h5py.string_dtype())
    return arrays


def cube(
    stored: np.ndarray,
    *,
    dims: Sequence[str] = ("time", "band", "y", "x"),
    dates: Sequence[str] = DATES,
    crs: Any = 32632,
) -> xr.Dataset:
    """One variable "reflectance" (T, C, H, W) with coordinates of pixel centres and an EPSG code as its attribute."""
    t, _, height, width = stored.shape
    coords = {
        dims[0]: np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}T10:24:21" for d in dates[:t]], "datetime64[ns]"),
        dims[1]: list(THREE),
        dims[2]: ORIGIN[1] - 10 * (np.arange(height) + 0.5),
        dims[3]: ORIGIN[0] + 10 * (np.arange(width) + 0.5),
    }
    attrs = {} if crs is None else {"crs": crs}
    return xr.Dataset({"reflectance": (tuple(dims), stored)}, coords=coords, attrs=attrs)


def collection(folder: Path, items: Mapping[str, Mapping[str, Any]]) -> tuple[Path, np.ndarray]:
    """A STAC item collection of one item a date with three bands; ``items``: date -> what `stac_item` takes more."""
    series, features = [], []
    for seed, (date, said) in enumerate(items.items()):
        series.append(values(seed))
        for band, stored in zip(THREE, series[-1], strict=True):
            write_raster(folder / date / f"{band}.tif", stored)
        properties = {"datetime": f"{date}T11:34:25Z", **said.get("properties", {})}
        hrefs = {band: f"{date}/{band}.tif" for band in THREE}
        path = stac_item(folder / "item.json", hrefs, **{**said, "properties": properties})
        features.append({**json.loads(path.read_text()), "id": f"item of {date}"})
    path = folder / "collection.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path, np.stack(series)
