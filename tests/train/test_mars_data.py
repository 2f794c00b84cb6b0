from __future__ import annotations

import logging
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.sensors import get_statistics
from eo_zoo.train.mars_data import PatchPairs, cut_patches
from tests.geo.rasters import write_raster

rasterio = pytest.importorskip("rasterio")


def scene(shape, bands=1, dtype="uint8", low=1, seed=0):
    high = 255 if dtype == "uint8" else 60000
    return np.random.default_rng(seed).integers(low, high, (bands, *shape)).astype(dtype)


def write_pair(root, sensor, name, rgb, sar):
    for kind, values in (("rgb", rgb), ("sar", sar)):
        write_raster(root / f"{sensor}_patches" / kind / name, values, crs=None)


@pytest.fixture
def root(tmp_path):
    write_pair(tmp_path, "Umbra", "a_000.tif", scene((48, 48), 3), scene((48, 48)))
    write_pair(tmp_path, "Umbra", "a_001.tif", scene((48, 48), 3, seed=1), scene((48, 48), seed=1))
    write_pair(tmp_path, "Capella", "b_000.tif", scene((48, 48), 3, seed=2), scene((48, 48), dtype="uint16", seed=2))
    return tmp_path


# ---- pairs ----


def test_pairs_of_both_sensors(root):
    pairs = PatchPairs(root, size=32)
    assert len(pairs) == 3
    assert [(sensor, rgb.name, sar.name) for sensor, rgb, sar in pairs.pairs] == [
        ("Umbra", "a_000.tif", "a_000.tif"), ("Umbra", "a_001.tif", "a_001.tif"), ("Capella", "b_000.tif", "b_000.tif"),
    ]  # fmt: skip
    rgb, sar = pairs[2]
    assert rgb.shape == (3, 32, 32) and sar.shape == (1, 32, 32) and rgb.dtype == sar.dtype == torch.float32


def test_normalised_by_sensor(tmp_path):
    """A constant image stays constant through crop and flip, so the numbers can be written down."""
    for sensor, dtype, value in (("Umbra", "uint8", 70), ("Capella", "uint16", 6680)):
        rgb = np.array([100, 110, 120], "uint8")[:, None, None].repeat(48, 1).repeat(48, 2)
        write_pair(tmp_path, sensor, "a_000.tif", rgb, np.full((1, 48, 48), value, dtype))
    (rgb, umbra), (_, capella) = PatchPairs(tmp_path, size=32)
    expected = [(100 - 87.01) / 62.66, (110 - 91.52) / 54.58, (120 - 83.51) / 53.11]
    torch.testing.assert_close(rgb.mean((1, 2)), torch.tensor(expected))
    assert umbra.mean().item() == pytest.approx((70 - 36.42) / 33.89, rel=1e-4)
    assert capella.mean().item() == pytest.approx((6680 - 2353.35) / 4327.07, rel=1e-4)


def test_both_sensors_are_cropped_and_flipped_together(tmp_path):
    ramp = np.tile(np.arange(48, dtype="uint8") * 5, (48, 1))
    write_pair(tmp_path, "Umbra", "a_000.tif", np.stack([ramp] * 3), ramp)
    pairs = PatchPairs(tmp_path, size=32)
    red, radar = get_statistics("mars/RGB"), get_statistics("mars/Umbra")
    slopes = []
    for seed in range(12):
        torch.manual_seed(seed)
        rgb, sar = pairs[0]
        raw = rgb[0] * red.std[0] + red.mean[0]
        torch.testing.assert_close(raw, sar[0] * radar.std[0] + radar.mean[0], rtol=0, atol=1e-3)
        slopes.append((raw[16, 31] - raw[16, 0]).item())
    assert min(slopes) < 0 < max(slopes)  # flipped and not
    # of a square, a crop of 70 % and sides up to 4:3 has at least sqrt(0.7 * 3 / 4) of its width
    assert min(map(abs, slopes)) > 0.7 * 0.7 * 47 * 5
    assert len({round(abs(slope)) for slope in slopes}) > 3


def test_seeded(root):
    pairs = PatchPairs(root, size=32)
    torch.manual_seed(5)
    one = pairs[0]
    torch.manual_seed(5)
    two = pairs[0]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], pairs[0][0])


def test_workers(root):
    def batches(seed):
        loader = DataLoader(
            PatchPairs(root, size=32), batch_size=3, num_workers=2, generator=torch.Generator().manual_seed(seed)
        )
        return next(iter(loader))

    rgb, sar = batches(1)
    assert rgb.shape == (3, 3, 32, 32) and sar.shape == (3, 1, 32, 32)
    assert torch.equal(rgb, batches(1)[0]) and not torch.equal(rgb, batches(2)[0])


def test_patches_without_a_partner(root, caplog):
    (root / "Umbra_patches/sar/a_001.tif").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(PatchPairs(root)) == 2
    assert "1 patches without a partner" in caplog.text


def test_wrong_folders_and_patches(root, tmp_path):
    with pytest.raises(InputError, match="expected Umbra or Capella_patches"):
        PatchPairs(tmp_path / "elsewhere")
    write_pair(root, "Umbra", "a_000.tif", scene((48, 48), 4), scene((48, 48)))
    write_pair(root, "Umbra", "a_001.tif", scene((48, 48), 3), scene((48, 40)))
    (root / "Capella_patches/sar/b_000.tif").write_bytes(b"nothing")
    pairs = PatchPairs(root)
    for index, message in ((0, "has 4 bands, expected 3"), (1, "expected one grid"), (2, "not a raster")):
        with pytest.raises(InputError, match=message):
            pairs[index]


def test_damaged_patch(root):
    path = root / "Umbra_patches/rgb/a_000.tif"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"a_000\.tif is damaged"):
        PatchPairs(root)[0]


def test_rasterio_is_asked_for(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtra, match=r"eo-zoo\[geo\]"):
        PatchPairs(root)


# ---- cutting ----


def cut(tmp_path, sar, rgb=None, size=32):
    rgb = scene(sar.shape[1:], 3) if rgb is None else rgb
    paths = [write_raster(tmp_path / name, values) for name, values in (("s1.tif", sar), ("r1.tif", rgb))]
    return cut_patches(*paths, folder=tmp_path / "Umbra_patches", size=size)


def read(tmp_path, kind, name):
    with rasterio.open(tmp_path / "Umbra_patches" / kind / name) as file:
        return file.read(), file.profile


def test_cut_with_the_last_row_and_column_at_the_edge(tmp_path):
    sar, rgb = scene((70, 64), dtype="uint16"), scene((70, 64), 3)
    names = cut(tmp_path, sar, rgb)
    assert names == [f"s1_00{i}.tif" for i in range(6)]
    for name, (top, left) in zip(names, [(0, 0), (0, 32), (32, 0), (32, 32), (38, 0), (38, 32)], strict=True):
        for kind, whole, dtype in (("sar", sar, "uint16"), ("rgb", rgb, "uint8")):
            values, profile = read(tmp_path, kind, name)
            assert np.array_equal(values, whole[:, top : top + 32, left : left + 32]) and profile["dtype"] == dtype
    _, profile = read(tmp_path, "rgb", "s1_003.tif")
    assert profile["crs"].to_epsg() == 32632
    assert profile["transform"].c == 600000 + 32 * 10 and profile["transform"].f == 5000040 - 32 * 10


def test_empty_patches_are_left_out_and_keep_their_number(tmp_path):
    sar = scene((20, 100))
    sar[:, :6, 20:60] = 0  # 70 % are left: the second patch loses one pixel more
    sar[:, 10, 30] = 0
    sar[:, :, 60:80] = 0
    names = cut(tmp_path, sar, size=20)
    assert names == ["s1_000.tif", "s1_002.tif", "s1_004.tif"]
    assert sorted(p.name for p in (tmp_path / "Umbra_patches/rgb").iterdir()) == names
    assert len(PatchPairs(tmp_path, size=32)) == 3


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_scenes_without_a_place_on_the_map(tmp_path):
    for name, count in (("s1.tif", 1), ("r1.tif", 3)):
        shape = dict(count=count, height=40, width=40, dtype="uint8")
        with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / name, "w", **shape) as file:
            file.write(scene((40, 40), count))
    names = cut_patches(tmp_path / "s1.tif", tmp_path / "r1.tif", folder=tmp_path / "Umbra_patches", size=32)
    assert len(names) == 4
    assert len(PatchPairs(tmp_path, size=32)[0]) == 2


def test_scenes_that_cannot_be_cut(tmp_path):
    for sar, rgb, message in (
        (scene((31, 64)), None, "at least 32"),
        (scene((64, 64)), scene((64, 70), 3), r"\(64, 64\) pixels, the RGB \(64, 70\)"),
        (scene((64, 64)).astype("float32"), None, "is float32, expected uint16 or uint8"),
        (scene((64, 64)), scene((64, 64), 3, "uint16"), "is uint16, expected uint8"),
        (scene((64, 64), 2), None, "has 2 bands, expected 1"),
    ):
        with pytest.raises(InputError, match=message):
            cut(tmp_path, sar, rgb)
    assert not (tmp_path / "Umbra_patches").exists()
