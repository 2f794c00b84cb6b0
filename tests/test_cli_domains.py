"""``eo-zoo embed`` with MultiMAE: Sentinel-2, a DEM and a land-cover map in, a map or a vector out."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.warp import transform_bounds

from eo_zoo import create_model, registry
from tests.geo.rasters import stac_item, write_raster
from tests.models.multimae import TINY

SAHARA = Path(__file__).parent.parent / "examples" / "sahara"
BOX = ("--bbox", 210000, 2700000, 217000, 2707000)  # 70 x 70 pixels of 100 m


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models by name are small ones."""
    monkeypatch.setattr(registry, "create_model", functools.partial(registry.create_model, **TINY))


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """A checkpoint in the official layout, and a DEM and land cover in degrees around the scene."""
    torch.manual_seed(0)
    tensors = create_model("multimae_eo_base", pretrained=False, **TINY).state_dict()
    torch.save(
        {"model": {name.replace("blocks.", "encoder.", 1): one for name, one in tensors.items()}}, tmp_path / "w.pth"
    )
    left, bottom, right, top = transform_bounds("EPSG:32629", "EPSG:4326", *BOX[1:])
    made = {"weights": tmp_path / "w.pth"}
    for name, second, options in (("dem", 3, {"nodata": -32768}), ("worldcover", 1, {"nodata": 0})):
        pixel = second / 3600
        shape = int((top - bottom) / pixel) + 20, int((right - left) / pixel) + 20
        rng = np.random.default_rng(second)
        values = rng.integers(300, 400, shape) if name == "dem" else rng.choice([30, 60], shape)
        place = Affine(pixel, 0, left - 10 * pixel, 0, -pixel, top + 10 * pixel)
        made[name] = write_raster(
            tmp_path / f"{name}_tile.tif", values.astype("int16"), transform=place, crs="EPSG:4326", **options
        )
    return made


def test_all_three(tmp_path: Path, given: dict[str, Path], run: Any) -> None:
    arguments = ["embed", "-m", "multimae_eo_base", "--weights", given["weights"], *BOX]
    for name in ("dem", "worldcover"):
        arguments += ["--input", f"{name}={given[name]}"]
    three = [*arguments, "--input", f"s2={SAHARA}"]
    code, out, err = run(*three, "-o", tmp_path / "o.tif", "--preview", tmp_path / "p.png")
    assert code == 0 and "9 x 9 cells of 64 values, 0.0% nodata" in out and (tmp_path / "p.png").exists()
    assert "dem: warped from EPSG:4326" in err and "s2: normalised with the statistics 'mmearth/s2-l2a'" in err
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.crs.to_epsg() == 32629 and file.transform.a == 800
        assert json.loads(file.tags()["SENSOR"])["depth"] == "DEM"
        whole = file.read()
    bands = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    item = stac_item(tmp_path / "item.json", {band: str(SAHARA / f"{band}.tif") for band in bands})
    code, *_ = run(*arguments, "--input", f"s2={item}", "-o", tmp_path / "item.tif", "-q")
    with rasterio.open(tmp_path / "item.tif") as file:
        np.testing.assert_array_equal(file.read(), whole)
    code, out, _ = run(*three, "--pool", "avg", "-o", tmp_path / "v.json", "--json")
    vector = json.loads((tmp_path / "v.json").read_text())["embedding"]
    assert code == 0 and json.loads(out)["embedding"] == vector and len(vector) == 64
    code, *_ = run(*three, "--output-modality", "depth", "--layer", 0, "--overlap", 8, "-o", tmp_path / "d.tif", "-q")
    with rasterio.open(tmp_path / "d.tif") as file:
        assert code == 0 and file.tags()["LAYER"] == "0 (0 to 1)" and file.tags()["OUTPUT_MODALITY"] == "depth"


def test_statistics_and_options_by_input(tmp_path: Path, given: dict[str, Path], run: Any) -> None:
    values = {"sensor": "S2", "units": "dn", "bands": ["B4", "B3", "B2"], "mean": [1, 2, 3], "std": [4, 5, 6]}
    (tmp_path / "s2.json").write_text(json.dumps(values))
    arguments = ["embed", "-m", "multimae_eo_base", "--weights", given["weights"], *BOX, "--input", f"s2={SAHARA}"]
    arguments += ["--input", f"dem={given['dem']}", "-o", tmp_path / "o.tif"]
    code, _, err = run(*arguments, "--stats", tmp_path / "s2.json", "--boa-offset", -1, "--nodata", "dem=350")
    assert code == 0 and "dem: all bands: nodata 350, as the file does not say" in err
    with rasterio.open(tmp_path / "o.tif") as file:
        found = json.loads(file.tags()["STATISTICS"])
        assert found["rgb"]["mean"] == [1, 2, 3] and found["ired"]["name"] == "mmearth/s2-l2a"
    code, _, err = run(*arguments[:-1], tmp_path / "n.tif", "--tile", 70)
    assert code == 2 and "tile: only for models of inputs at their own resolutions" in err


def test_what_it_takes(run: Any) -> None:
    code, _, err = run("embed", SAHARA, "-m", "multimae_eo_base", "-o", "o.tif")
    assert code == 2 and "give --input s2=INPUT, once for each of those there are" in err and "worldcover" in err
    code, _, err = run("embed", "--input", f"s1={SAHARA}", "-m", "multimae_eo_base", "-o", "o.tif")
    assert code == 2 and "unknown input 's1'. Known: dem, s2, worldcover" in err
    text = " ".join(run("info", "multimae_eo_base")[1].split())
    assert "depth: elevation" in text and "semseg: Map" in text and "DEM: mmearth/aster" in text and "units dn" in text
