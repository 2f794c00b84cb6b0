"""Small georeferenced rasters, folders of bands and STAC items, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

ORIGIN = (600000.0, 5000040.0)  # top left, EPSG:32632
S2_PIXELS = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 20),
    **dict.fromkeys(("B01", "B09"), 60),
}
S2_COMMON = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge", "B06": "rededge",
    "B07": "rededge", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22",
}  # fmt: skip


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    pixel: float = 10,
    origin: tuple[float, float] = ORIGIN,
    crs: str | None = "EPSG:32632",
    transform: Affine | None = None,
    nodata: float | None = None,
    descriptions: Sequence[str | None] = (),
    colours: Sequence[str] = (),
    mask: np.ndarray | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    **options: Any,
) -> Path:
    """A GeoTIFF of (C, H, W) or (H, W) values, north-up unless a transform is given."""
    values = values[None] if values.ndim == 2 else values
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
        "dtype": values.dtype, "crs": crs, "nodata": nodata,
        "transform": transform or Affine(pixel, 0, origin[0], 0, -pixel, origin[1]),
    }  # fmt: skip
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **{**profile, **options}) as file,
    ):
        file.write(values)
        for band, text in enumerate(descriptions, start=1):
            if text:
                file.set_band_description(band, text)
        if colours:
            file.colorinterp = [ColorInterp[colour] for colour in colours]
        if mask is not None:
            file.write_mask(mask)
        if (scale, offset) != (1.0, 0.0):
            file.scales, file.offsets = (scale,) * len(values), (offset,) * len(values)
    return path


def smooth(seed: int, height: int, width: int, low: float = 300, high: float = 3000) -> np.ndarray:
    """A surface without jumps, uint16, different for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    phase, waves = rng.uniform(0, 6, 2), rng.uniform(1, 3, 2)
    down, across = (rows + 0.5) / height, (columns + 0.5) / width  # pixel centres: alike at every pixel size
    wave = np.sin(phase[0] + waves[0] * down) + np.cos(phase[1] + waves[1] * across)
    return (low + (high - low) * (wave + 2) / 4).astype(np.uint16)


def s2_folder(
    folder: Path, *, size: int = 600, name: str = "{band}.tif", without: Sequence[str] = (), **options: Any
) -> Path:
    """Sentinel-2's 12 bands as single files at 10, 20 and 60 m over ``size`` metres, nodata 0."""
    for seed, (band, pixel) in enumerate(S2_PIXELS.items()):
        if band not in without:
            values = smooth(seed, size // pixel, size // pixel)
            path = folder / name.format(band=band, pixel=pixel)
            write_raster(path, values, pixel=pixel, **{"nodata": 0, **options})
    return folder


def stac_item(
    path: Path,
    hrefs: Mapping[str, str],
    *,
    version: str = "1.1.0",
    scale: float | None = 0.0001,
    offset: float | None = 0.0,
    nodata: float | None = 0,
    media: str = "image/tiff; application=geotiff; profile=cloud-optimized",
    properties: Mapping[str, Any] | None = None,
    assets: Mapping[str, Any] | None = None,
) -> Path:
    """A STAC item of Sentinel-2 bands (``B02`` -> href) in the words of STAC 1.1 or 1.0, then ``assets``."""
    made: dict[str, Any] = {}
    for band, href in hrefs.items():
        values = {"scale": scale, "offset": offset}
        asset: dict[str, Any] = {"href": href, "type": media, "roles": ["data"]}
        if version.startswith("1.1"):
            known = {f"raster:{key}": value for key, value in values.items() if value is not None}
            asset["bands"] = [{"name": band, "eo:common_name": S2_COMMON[band], **known}]
            asset["nodata"] = nodata
        else:
            asset["eo:bands"] = [{"name": band, "common_name": S2_COMMON[band]}]
            asset["raster:bands"] = [{**values, "nodata": nodata}]
        made[S2_COMMON[band] + band[1:]] = asset
    item = {
        "type": "Feature", "stac_version": version, "id": "scene", "geometry": None, "links": [],
        "properties": {"platform": "sentinel-2a", "datetime": "2020-02-19T00:00:00Z", **(properties or {})},
        "assets": {**made, **(assets or {})},
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(item))
    return path
