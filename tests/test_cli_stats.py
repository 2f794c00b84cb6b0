from __future__ import annotations

import json

import numpy as np
import pytest

from eo_zoo import sensors
from tests.geo.rasters import write_raster


@pytest.fixture
def stats(run):
    """Run ``eo-zoo stats``: (exit code, stdout as one line, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, out, err = run("stats", *arguments)
        return code, " ".join(out.split()), err

    return call


@pytest.fixture
def tiles(tmp_path):
    """Two aerial tiles and a series of two dates."""
    rng = np.random.default_rng(0)
    aerial = rng.integers(0, 250, (2, 4, 20, 20)).astype(np.uint8)
    s2 = rng.integers(1, 4000, (2, 10, 6, 6)).astype(np.uint16)
    for name, image in zip("ab", aerial, strict=True):
        write_raster(tmp_path / "tiles" / f"{name}.tif", image, pixel=0.2, photometric="minisblack")
    for day, image in zip(("20200101", "20200201"), s2, strict=True):
        write_raster(tmp_path / "s2" / f"{day}.tif", image, descriptions=sensors.get_order("anysat/s2"))
    return aerial, s2


def test_images_of_one_sensor(stats, tiles, tmp_path):
    files, out = sorted((tmp_path / "tiles").iterdir()), tmp_path / "aerial.json"
    code, said, notes = stats(*files, "--sensor", "AERIAL", "--bands", "NIR,R,G,B", "-o", out)
    found = sensors.get_statistics(out)
    assert code == 0 and found.bands == sensors.get_order("anysat/aerial")
    assert found.mean == pytest.approx(tiles[0].mean(axis=(0, 2, 3)), rel=1e-12)
    assert found.std == pytest.approx(tiles[0].std(axis=(0, 2, 3)), rel=1e-12)
    assert f"AERIAL aerial_red: mean {found.mean[1]:.6g}, std {found.std[1]:.6g}" in said
    assert "statistics of AERIAL" in said and "AERIAL: all bands: no units in the metadata" in notes
    code, _, error = stats(*files, "--sensor", "AERIAL", "--bands", "NIR,R,G,B", "-o", out)
    assert code == 2 and "--overwrite" in error
    code, said, notes = stats(*files, "--sensor", "AERIAL", "--bands", "B,G,R,NIR", "-o", out, "--overwrite", "--quiet")
    assert (code, said, notes) == (0, "", "") and sensors.get_statistics(out).bands[0] == "aerial_blue"


def test_several_inputs(stats, tiles, tmp_path):
    out, folder = tmp_path / "stats.json", tmp_path / "tiles"
    inputs = ["--input", f"aerial={folder / 'a.tif'}", "--input", f"s2={tmp_path / 's2'}", "-o", out, "--json"]
    code, said, _ = stats(*inputs, "--input", f"aerial={folder / 'b.tif'}", "--bands", "aerial=R,G,B,NIR")
    assert code == 0 and json.loads(said) == json.loads(out.read_text())
    found = sensors.statistics_for(out, {key: sensors.get_order(f"anysat/{key}") for key in ("aerial", "s2", "s1")})
    assert list(found) == ["aerial", "s2"]
    assert found["aerial"].mean == pytest.approx(tiles[0].mean(axis=(0, 2, 3))[[3, 0, 1, 2]], rel=1e-12)
    assert found["s2"].mean == pytest.approx(tiles[1].mean(axis=(0, 2, 3)), rel=1e-12)
    assert found["s2"].p1 is None
    preset = ["--input", f"aerial={folder}", "--input", f"s2={tmp_path / 's2'}", "-o", out, "--overwrite"]
    code, _, _ = stats(*preset, "--preset", "TreeSatAI-TS", "--clip", "--end", "2020-01-15")
    made = sensors.statistics_for(
        out, {"aerial": sensors.get_order("anysat/aerial"), "s2": sensors.get_order("anysat/s2")}
    )
    assert code == 0 and made["aerial"].p99 is not None
    assert f"valid values: {6 * 6}" in made["s2"].source and f"{2 * 20 * 20}" in made["aerial"].source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give images of one sensor"),
        (["a.tif", "--input", "s2=b"], "give images of one sensor"),
        (["--input", "s2"], "--input is 's2', expected KEY=INPUT"),
        (["--input", "s3=a.tif"], "unknown input 's3'"),
        (["a.tif"], "the images' sensor is not known"),
        (["a.tif", "--sensor", "S2", "-o", "out.txt"], "expected a name that ends in .json"),
        (["a.tif", "--sensor", "S2", "--nodata", "none"], "--nodata is none, expected a number"),
    ],
)
def test_wrong_use(stats, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = stats(*(["-o", "out.json"] * ("-o" not in arguments)), *arguments)
    assert code == 2 and message in error and not list(tmp_path.iterdir())
