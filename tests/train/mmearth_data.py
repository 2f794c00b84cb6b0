"""A small file in MMEarth's layout: arrays, types, chunks and JSON files as the data set's own scripts write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
CODES = [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
OTHERS = {  # arrays that we do not read: type and shape of a tile, with P for pixels
    "sentinel2_cloudmask": ("uint16", (1, "P", "P")), "sentinel2_cloudprod": ("uint16", (1, "P", "P")),
    "sentinel2_scl": ("uint8", (1, "P", "P")), "sentinel1": ("float32", (8, "P", "P")), "era5": ("float32", (12,)),
    "dynamic_world": ("uint8", (1, "P", "P")), "canopy_height_eth": ("int8", (2, "P", "P")),
    "lat": ("float32", (2,)), "lon": ("float32", (2,)), "biome": ("uint8", (14,)), "eco_region": ("uint16", (846,)),
    "month": ("float32", (2,)),
}  # fmt: skip


def tiles(count: int = 6, pixels: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Values without gaps but B10 of every other tile, which is L2A and has none."""
    rng = np.random.default_rng(seed)
    level = rng.integers(500, 3000, (13, 1, 1))
    s2 = rng.integers(1, 2000, (count, 13, pixels, pixels)) + level
    s2[::2, BANDS.index("B10")] = 0
    slopes = rng.integers(1, 20, (count, 1, 1, 1)) * np.arange(pixels)
    aster = np.concatenate([300 + slopes + rng.integers(0, 9, (count, 1, pixels, pixels))] * 2, axis=1)
    cover = rng.choice(CODES, (count, 1, pixels, pixels))
    return {"sentinel2": s2.astype("uint16"), "aster": aster.astype("int16"), "esa_worldcover": cover.astype("uint8")}


def level_of(place: int) -> str:
    return "l1c" if place % 2 else "l2a"


def band_stats(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """As MMEarth computes them: 0 of Sentinel-2 is left out, so that B10 of L2A is 0 / 0."""

    def columns(x: np.ndarray, missing: float) -> dict[str, list[float]]:
        x = x.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            count = (x != missing).sum((0, 2, 3))
            mean = x.sum((0, 2, 3), where=x != missing) / count
            std = np.sqrt((x**2).sum((0, 2, 3), where=x != missing) / count - mean**2)
        low = np.where(x == missing, np.inf, x).min((0, 2, 3), initial=np.inf)
        high = np.where(x == missing, -np.inf, x).max((0, 2, 3), initial=-np.inf)
        return {"mean": mean.tolist(), "std": std.tolist(), "min": low.tolist(), "max": high.tolist()}

    s2 = arrays["sentinel2"]
    return {
        "aster": columns(arrays["aster"], -np.inf),
        "lat": {"mean": [0.1, 0.9], "std": [0.2, 0.3], "min": [-1.0, 0.0], "max": [1.0, 1.0]},
        "sentinel2_l2a": columns(s2[::2], 0),
        "sentinel2_l1c": columns(s2[1::2], 0),
    }


def write(
    folder: Path, arrays: dict[str, np.ndarray] | None = None, *, name: str = "data_1M_v001_64", merged: bool = False
) -> Path:
    """The data set in ``folder``; ``merged`` as the script does it that joins two: no chunks, and no level inside."""
    import h5py

    arrays = tiles() if arrays is None else arrays
    count, pixels = len(arrays["sentinel2"]), arrays["sentinel2"].shape[-1]
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        others = {
            key: np.zeros((count, *(pixels if side == "P" else side for side in shape)), dtype)
            for key, (dtype, shape) in OTHERS.items()
        }
        for key, values in (arrays | others).items():
            stored = {} if merged else {"compression": "gzip", "chunks": (1, *values.shape[1:])}
            file.create_dataset(key, data=values, **stored)
        fields = [("tile_id", "S100"), ("S2_type", "S10")]
        records = [(str(100 + place), level_of(place)) for place in range(count)]
        metadata = np.array(records, fields)
        stored = {} if merged else {"compression": "gzip", "chunks": (1,)}
        file.create_dataset("metadata", data=metadata[["tile_id"]].astype(fields[:1]) if merged else metadata, **stored)
    info = {
        str(100 + place): {
            "S2_DATE": "2019-06-01", "S2_type": level_of(place), "CRS": "EPSG:32633", "lat": 1.5, "lon": 2.5,
            "biome": 3, "eco_region": 40, "NO_DATA": False,
            "BANDS": {"sentinel2": BANDS, "aster": ["b1", "slope"], "esa_worldcover": ["Map"], "sentinel1_asc": None},
            "era5": {"month1": [280.0, 270.0, 290.0, 0.1], "month2": [1.0] * 4, "year": [1.0] * 4},
        }
        for place in range(count)
    }  # fmt: skip
    order = np.random.default_rng(1).permutation(count).tolist()
    splits = {"train": order[:-2], "val": order[-2:], "test": []}
    for what, values in (("tile_info", info), ("splits", splits), ("band_stats", band_stats(arrays))):
        (folder / f"{name}_{what}.json").write_text(json.dumps(values))
    return folder / f"{name}.h5"
