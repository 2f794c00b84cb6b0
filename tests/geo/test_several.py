"""Several inputs of one place, through a small AnySat with random weights: what does not depend on its training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import nn

from eo_zoo import create_model, sensors
from eo_zoo.dates import days_of_year
from eo_zoo.errors import InputError
from eo_zoo.geo.embed import embed_raster
from eo_zoo.geo.run import Embedding
from eo_zoo.sensors import Statistics, get_order, get_sensor, get_statistics, normalize, sensor_of
from tests.geo import rasters

X, Y = rasters.ORIGIN  # a corner of whole 10 m
SIDE = 60  # metres
DAYS = ("2020-01-09", "2020-06-30", "2020-12-31")
TREES = Path(__file__).parents[1] / "data" / "treesatai"
GSD = {"aerial": 0.2, "spot": 1.0, "naip": 1.25, "l7": 30, "alos": 30}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("anysat_nano", pretrained=False)


def noise(seed: int, *shape: int, low: float = 100, high: float = 3000, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def bands_of(key: str) -> list[str]:
    """Names that files give their bands; ratios are made of them."""
    known = get_sensor(sensor_of(f"anysat/{key}")).bands
    named = {band.name: band for band in known}
    return [
        named[name].sensor_name for name in get_order(f"anysat/{key}") if name in named and not named[name].ratio_of
    ]


def image(
    path: Path, key: str = "aerial", *, side: float = SIDE, values: np.ndarray | None = None, **options: Any
) -> Path:
    names, pixels = bands_of(key), round(side / GSD[key])
    if values is None:
        values = noise(len(key), len(names), pixels, pixels, low=1, high=255, dtype="uint8")
    return rasters.write_raster(path, values, pixel=GSD[key], descriptions=names, **options)


def series(
    folder: Path,
    key: str = "s2",
    *,
    side: float = SIDE,
    pixel: float = 10,
    days: tuple[str, ...] = DAYS,
    values: np.ndarray | None = None,
    scl: np.ndarray | None = None,
    dtype: str = "uint16",
    **options: Any,
) -> Path:
    """A folder of dated files of all bands; ``values`` (dates, bands, rows, columns), ``scl`` without bands."""
    names, pixels = bands_of(key), round(side / pixel)
    if values is None:
        values = noise(5 + len(key), len(days), len(names), pixels, pixels, dtype=dtype)
    for i, day in enumerate(days):
        bands = [*names, "SCL"] if scl is not None else names
        stored = np.concatenate([values[i], scl[i][None].astype(values.dtype)]) if scl is not None else values[i]
        rasters.write_raster(
            folder / f"{key}_{day}.tif", stored, pixel=pixel, descriptions=bands, **{"nodata": 0, **options}
        )
    return folder


def made_up(key: str, units: str) -> Statistics:
    order = get_order(f"anysat/{key}")
    sensor = sensor_of(f"anysat/{key}")
    mean, std = (0.1, 0.05) if units == "linear" else (1500.0, 800.0)
    return Statistics("made up", sensor, units, order, (mean,) * len(order), (std,) * len(order))


def embed(sources: Mapping[str, Any], model: nn.Module | str, out: Path | None, **options: Any) -> Embedding:
    return embed_raster(sources, model, out, overwrite=True, **options)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.fixture
def both(tmp_path: Path) -> dict[str, Path]:
    """Aerial image and Sentinel-2 series over the same 60 x 60 m."""
    return {"aerial": image(tmp_path / "aerial.tif"), "s2": series(tmp_path / "s2")}


# ---- where things land ----


@pytest.mark.parametrize("patch", [10, 20, 60])
def test_a_planted_change_shows_in_its_own_cell(
    tmp_path: Path, model: nn.Module, both: dict[str, Path], patch: int
) -> None:
    values = read(both["aerial"])
    row, col = 13, 8  # of 30 x 30 sub-patches of 2 m, in no symmetric place
    values[:, 10 * row : 10 * row + 10, 10 * col : 10 * col + 10] = 250
    for name, source in {"before": both["aerial"], "after": image(tmp_path / "b.tif", values=values)}.items():
        embed({**both, "aerial": source}, model, tmp_path / f"{name}.tif", patch_size=patch, output="dense")
    with rasterio.open(tmp_path / "after.tif") as file, rasterio.open(both["aerial"]) as picture:
        change = np.abs(file.read() - read(tmp_path / "before.tif")).sum(axis=0)
        assert file.bounds == picture.bounds and file.crs == picture.crs and file.res == (2, 2)
        assert file.shape == (30, 30) and file.count == 2 * 128
        found = np.unravel_index(change.argmax(), change.shape)
        assert file.xy(*found) == pytest.approx((X + 2 * col + 1, Y - 2 * row - 1))
    # nowhere else is it nearly as large: the next largest change is that of the patch, which its cells share
    assert np.sort(change, axis=None)[-2] < 0.9 * change.max()


@pytest.mark.parametrize(
    ("keys", "shown", "cell", "patch"),
    [
        (("aerial", "s2"), "s2", 10, 20), (("spot", "s2"), "spot", 10, 20), (("naip",), "naip", 10, 30),
        (("s2", "l7"), "l7", 30, 30),
    ],
)  # fmt: skip
def test_cells_of_every_input_lie_on_the_ground_they_are_of(
    tmp_path: Path, model: nn.Module, keys: tuple[str, ...], shown: str, cell: int, patch: int
) -> None:
    """A change of one cell's ground in the shown input changes that cell the most."""
    maps = []
    for name in ("before", "after"):
        sources = {}
        for key in keys:
            pixels = round(60 / GSD.get(key, 10))
            if key in ("s2", "l7"):
                values = noise(3, 3, len(bands_of(key)), pixels, pixels)
            else:
                values = noise(3, len(bands_of(key)), pixels, pixels, low=1, high=255, dtype="uint8")
            if name == "after" and shown == key:
                size = pixels * cell // 60
                values[..., :size, size : 2 * size] = 200 if values.dtype == np.uint8 else 5000
            path = tmp_path / f"{key}_{name}"
            made = series if key in ("s2", "l7") else image
            more: dict[str, Any] = {"pixel": GSD.get(key, 10)} if made is series else {}
            sources[key] = made(path if made is series else path.with_suffix(".tif"), key, values=values, **more)
        stats = {key: made_up(key, "uint8" if key in GSD and key != "l7" else "dn") for key in keys}
        embed(
            sources, model, tmp_path / f"{name}.tif", patch_size=patch, stats=stats, output="dense",
            output_modality=shown,
        )  # fmt: skip
        maps.append(read(tmp_path / f"{name}.tif"))
    change = np.abs(maps[1] - maps[0]).sum(axis=0)
    assert change.shape == (60 // cell, 60 // cell)
    assert np.unravel_index(change.argmax(), change.shape) == (0, 1)
    with rasterio.open(tmp_path / "after.tif") as file:
        assert (file.transform.c, file.transform.f, file.transform.a) == (X, Y, cell)


def test_the_corner_keeps_all_pixels_as_they_are_stored(tmp_path: Path, model: nn.Module) -> None:
    """An aerial image that begins inside of a pixel of Sentinel-2: the corner is the next one that both have."""
    notes: list[str] = []
    sources = {
        "aerial": image(tmp_path / "a.tif", side=230, origin=(X + 3.4, Y - 7.8)),
        "s2": series(tmp_path / "s2", side=300),
    }
    found = embed(sources, model, tmp_path / "o.tif", patch_size=40, report=lambda _, text: notes.append(text))
    assert found.transform[:6] == pytest.approx((40, 0, X + 10, 0, -40, Y - 10))
    assert found.shape == (128, 6, 6)  # 220 m: the last patches reach beyond
    assert not any("resampled" in text for text in notes)
    assert any("only the common part of the inputs is used, 220 x 220 m" in text for text in notes)
    # of a small image that would be too much: Sentinel-2 is resampled to its corner instead
    sources["aerial"] = image(tmp_path / "b.tif", origin=(X + 3.4, Y - 7.8))
    found = embed(sources, model, tmp_path / "o.tif", patch_size=20, report=lambda _, text: notes.append(text))
    assert found.transform[:6] == pytest.approx((20, 0, X + 3.4, 0, -20, Y - 7.8)) and found.shape == (128, 3, 3)
    assert "s2: pixels of 10 m resampled to the common ones of 10 m (bilinear)" in notes


def test_other_pixel_sizes_are_resampled_and_told(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    told: list[tuple[str, str]] = []
    values = noise(1, 4, 60, 60, low=1, high=255, dtype="uint8")
    coarse = rasters.write_raster(tmp_path / "c.tif", values, pixel=1, descriptions=bands_of("aerial"))
    found = embed(
        {**both, "aerial": coarse}, model, tmp_path / "o.tif", patch_size=20, output="dense",
        report=lambda *what: told.append(what),
    )  # fmt: skip
    assert found.shape == (256, 30, 30)
    assert ("note", "aerial: pixels of 1 m resampled to the common ones of 0.2 m (bilinear)") in told
    assert any(kind == "warning" and text.startswith("aerial: its pixels are 1 m") for kind, text in told)


def test_a_series_without_a_place_takes_that_of_the_image(tmp_path: Path, model: nn.Module) -> None:
    """TreeSatAI's files: 104 pixels of 0.2 m are 20.8 m, the series' two of 10 m lie in their middle."""
    found = embed(
        {"aerial": TREES / "aerial.tif", "s2": TREES / "series.h5"}, model, tmp_path / "o.tif",
        preset="TreeSatAI-TS", patch_size=10, output="dense", preview=tmp_path / "p.png",
    )  # fmt: skip
    with rasterio.open(tmp_path / "o.tif") as file, rasterio.open(TREES / "aerial.tif") as picture:
        assert (file.bounds.left, file.bounds.top) == pytest.approx(picture.xy(2, 2, offset="ul"))
        assert file.shape == (10, 10) and file.res == pytest.approx((2, 2))
        tags = file.tags()
    assert not any("resampled" in text for text in found.notes)
    dates = json.loads(tags["DATES"])
    assert list(dates) == ["s2"] and len(dates["s2"]) == 12 and dates["s2"][0] == "2020-01-02"
    assert (tags["PATCH_SIZE"], tags["TILE"], tags["OUTPUT"], tags["OUTPUT_MODALITY"]) == (
        "10 m", "20 m", "dense", "aerial",
    )  # fmt: skip
    assert json.loads(tags["INPUTS"]) == {"aerial": "aerial.tif", "s2": "series.h5"}
    assert tags["SOURCE"] == "aerial: aerial.tif, s2: series.h5"
    assert json.loads(tags["BANDS"])["aerial"] == list(get_order("anysat/aerial"))
    assert json.loads(tags["STATISTICS"])["s2"]["mean"] == list(get_statistics("anysat/s2").mean)
    assert Image.open(tmp_path / "p.png").size[0] > 2 * 400


# ---- what the model is given ----


class Listening(nn.Module):
    """Keeps what AnySat is called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, list[dict[str, Any]]()
        self.inputs, self.num_features = model.inputs, model.num_features
        self.eval()

    def forward(self, data: Mapping[str, Any], **how: Any) -> torch.Tensor:
        self.seen.append({**data, **how})
        return self.model(data, **how)


def test_the_model_gets_normalised_pixels_with_dates(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    listening = Listening(model)
    embed(both, listening, tmp_path / "o.tif", patch_size=20, output="dense", output_modality="s2")
    [seen] = listening.seen
    assert {key: seen[key] for key in ("patch_size", "output", "output_modality")} == {
        "patch_size": 20, "output": "dense", "output_modality": "s2",
    }  # fmt: skip
    expected = normalize(read(both["aerial"]).astype(np.float32), get_statistics("anysat/aerial"))
    np.testing.assert_allclose(seen["aerial"][0], expected, atol=1e-5)
    for i, day in enumerate(DAYS):
        stored = read(both["s2"] / f"s2_{day}.tif").astype(np.float32)
        np.testing.assert_allclose(seen["s2"][0, i], normalize(stored, get_statistics("anysat/s2")), atol=1e-5)
    np.testing.assert_array_equal(seen["s2_dates"], days_of_year(DAYS)[None])
    assert "s2_mask" not in seen


def test_bands_are_known_by_name_not_by_place(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    embed(both, model, tmp_path / "a.tif", patch_size=20)
    values, names = read(both["aerial"]), bands_of("aerial")
    turned = rasters.write_raster(tmp_path / "t.tif", values[::-1], pixel=0.2, descriptions=names[::-1])
    embed({**both, "aerial": turned}, model, tmp_path / "b.tif", patch_size=20)
    plain = rasters.write_raster(tmp_path / "n.tif", values[::-1], pixel=0.2)
    embed({**both, "aerial": plain}, model, tmp_path / "c.tif", patch_size=20, bands={"aerial": names[::-1]})
    for name in "bc":
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif"), read(tmp_path / "a.tif"))


def test_radar_is_brought_to_the_statistics_units_and_its_ratio_made(tmp_path: Path, model: nn.Module) -> None:
    listening, power = Listening(model), np.random.default_rng(0).uniform(0.01, 0.3, (2, 2, 6, 6)).astype(np.float32)
    days = DAYS[:2]
    s1 = series(tmp_path / "s1", "s1", values=10 * np.log10(power), days=days, nodata=-99)
    embed(
        {"s1": s1, "s2": series(tmp_path / "s2")}, listening, None, stats={"s1": made_up("s1", "linear")},
        units={"s1": "db"}, patch_size=30,
    )  # fmt: skip
    ratio = power[:, 0] / (power[:, 1] + 1e-10)
    expected = (np.stack([power[:, 0], power[:, 1], ratio], axis=1) - 0.1) / 0.05
    np.testing.assert_allclose(listening.seen[0]["s1"][0], expected, atol=1e-3)


def test_a_presets_third_radar_band_may_be_a_difference(tmp_path: Path, model: nn.Module) -> None:
    listening, stored = Listening(model), -noise(4, 1, 2, 6, 6, low=5, high=20, dtype="float32")
    s1 = series(tmp_path / "s1", "s1", values=stored, days=DAYS[:1], nodata=-99)
    embed({"s1": s1}, listening, None, patch_size=30, preset="PASTIS-HD")
    expected = normalize(np.stack([*stored[0], stored[0, 0] - stored[0, 1]]), get_statistics("pastis/s1"))
    np.testing.assert_allclose(listening.seen[0]["s1"][0, 0], expected, atol=1e-4)


def test_modis_is_one_pixel_of_the_tile(tmp_path: Path, model: nn.Module) -> None:
    """Tiles of 60 m over 500 m pixels that change from one to the next: the mean over each tile's own ground."""
    listening, values = Listening(model), noise(9, 1, 7, 2, 2)
    place: dict[str, Any] = dict(pixel=60, days=DAYS[:1], origin=(X, Y))
    modis = series(tmp_path / "modis", "modis", values=values, side=120, **place)
    sources = {"modis": modis, "s2": series(tmp_path / "s2", side=120)}
    embed(sources, listening, None, stats={"modis": made_up("modis", "dn")}, patch_size=30, tile=60, output="tile")
    seen = [call["modis"] for call in listening.seen]
    assert len(seen) == 4 and all(x.shape == (1, 1, 7, 1, 1) for x in seen)
    expected = (values[0].reshape(7, 4).T.astype(np.float32) - 1500) / 800
    np.testing.assert_allclose(torch.cat(seen).flatten(1), expected, atol=1e-3)
    stats = {"modis": made_up("modis", "dn")}
    found = embed(sources, model, tmp_path / "o.tif", stats=stats, patch_size=30, tile=60)
    assert found.transform[:6] == (30, 0, X, 0, -30, Y) and found.shape == (128, 4, 4)
    with pytest.raises(InputError, match="modis goes with others only"):
        embed({"modis": modis}, model, None)


# ---- missing values ----


def test_what_lies_under_clouds_changes_nothing(tmp_path: Path, model: nn.Module) -> None:
    scl = np.full((3, 6, 6), 4)
    scl[1, 2:4, 1:5] = 9  # in the middle one of three dates
    scl[:, 0, 0] = 8  # at all dates
    maps, values = {}, noise(2, 3, 10, 6, 6)
    for name, fill in (("dark", 1), ("bright", 20000), ("clear", None)):
        planted = np.where((scl[:, None] > 7) & (fill is not None), fill or 0, values).astype(np.uint16)
        folder = series(tmp_path / name, values=planted, scl=scl)
        sources = {"aerial": image(tmp_path / "a.tif"), "s2": folder}
        for masks in ("auto", "off"):
            out = tmp_path / f"{name}_{masks}.tif"
            embed(sources, model, out, patch_size=20, output="dense", output_modality="s2", masks=masks)
            maps[name, masks] = read(out)
    np.testing.assert_array_equal(maps["dark", "auto"], maps["bright", "auto"])
    np.testing.assert_array_equal(maps["dark", "auto"], maps["clear", "auto"])
    assert np.isnan(maps["clear", "auto"][:, 0, 0]).all() and np.isnan(maps["clear", "auto"]).sum() == 256
    assert not np.isnan(maps["clear", "off"]).any()
    assert np.abs(maps["dark", "off"] - maps["bright", "off"]).max() > 1e-3
    # the mask itself tells the model something, most where it lies
    change = np.abs(maps["clear", "auto"] - maps["clear", "off"]).sum(axis=0)
    row, col = np.unravel_index(np.nanargmax(change), change.shape)
    assert 2 <= row < 4 and 1 <= col < 5


def test_a_cell_is_missing_where_its_input_is_and_a_patch_where_all_are(tmp_path: Path, model: nn.Module) -> None:
    values = read(image(tmp_path / "full.tif"))
    values[:, :100, :100] = 0  # 20 x 20 m
    stored = noise(2, 3, 10, 6, 6)
    stored[:, :, :2, :2] = 0  # the same
    stored[1:, :, 4, 4] = 0  # but for one date
    stored[:, :, 5, 5] = 0
    sources = {
        "aerial": image(tmp_path / "a.tif", values=values, nodata=0),
        "s2": series(tmp_path / "s2", values=stored),
    }
    dense = {}
    for shown in ("aerial", "s2"):
        embed(sources, model, tmp_path / "o.tif", patch_size=20, output="dense", output_modality=shown)
        dense[shown] = np.isnan(read(tmp_path / "o.tif")).all(axis=0)
    assert dense["aerial"][:10, :10].all() and dense["aerial"].sum() == 100
    assert dense["s2"][:2, :2].all() and dense["s2"][5, 5] and dense["s2"].sum() == 5
    found = {}
    for least in (0, 0.9, 1):
        result = embed(sources, model, tmp_path / "o.tif", patch_size=20, min_valid=least)
        found[least] = np.isnan(read(tmp_path / "o.tif")).all(axis=0)
        assert result.nodata == pytest.approx(found[least].mean())
    assert found[0][0, 0] and found[0].sum() == 1
    assert found[0.9].sum() == 2 and found[0.9][2, 2]  # a quarter of one of two inputs is an eighth
    assert found[1].sum() == 2


def test_all_missing_is_an_error(tmp_path: Path, model: nn.Module) -> None:
    folder = series(tmp_path / "s2", values=np.zeros((3, 10, 6, 6), np.uint16))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="all nodata"):
        embed({"s2": folder}, model, tmp_path / "o.tif")
    assert sorted(tmp_path.iterdir()) == before


# ---- tiles ----


@pytest.fixture
def wide(tmp_path: Path) -> dict[str, Path]:
    """140 x 140 m: with tiles of 60 m, of which the last patches reach beyond."""
    return {"spot": image(tmp_path / "w.tif", "spot", side=140), "s2": series(tmp_path / "w2", side=140)}


STATS = {"spot": made_up("spot", "uint8")}


@pytest.mark.parametrize(("output", "cell", "channels"), [("dense", 10, 256), ("patch", 20, 128)])
def test_a_map_is_the_weighted_mean_of_its_tiles(
    tmp_path: Path, model: nn.Module, wide: dict[str, Path], output: str, cell: int, channels: int
) -> None:
    """Written down plainly: every tile by itself, the weighted mean at the end."""
    shown = "s2" if output == "dense" else None
    options: dict[str, Any] = dict(
        stats=STATS, patch_size=20, tile=60, overlap=20, output=output, output_modality=shown
    )  # fmt: skip
    size, side = 60 // cell, 140 // cell
    embed(wide, model, tmp_path / "o.tif", **options)
    picture = normalize(read(wide["spot"]).astype(np.float32), STATS["spot"])
    stored = np.stack([read(wide["s2"] / f"s2_{day}.tif") for day in DAYS]).astype(np.float32)
    dates = normalize(stored, get_statistics("anysat/s2"))
    bell = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total, weight = np.zeros((channels, side, side)), np.zeros((side, side))
    for top in (0, 40, 80):
        for left in (0, 40, 80):
            data = {
                "spot": torch.from_numpy(picture[None, :, top : top + 60, left : left + 60]),
                "s2": torch.from_numpy(dates[None, :, :, top // 10 : top // 10 + 6, left // 10 : left // 10 + 6]),
                "s2_dates": days_of_year(DAYS)[None],
            }
            with torch.no_grad():
                made = model(data, patch_size=20, output=output, output_modality=shown)[0].permute(2, 0, 1).numpy()
            here = np.s_[..., top // cell : top // cell + size, left // cell : left // cell + size]
            total[here] += made * np.outer(bell, bell)
            weight[here] += np.outer(bell, bell)
    np.testing.assert_allclose(read(tmp_path / "o.tif"), total / weight, atol=1e-5)
    embed(wide, model, tmp_path / "p.tif", **options, batch_size=3)
    np.testing.assert_allclose(read(tmp_path / "p.tif"), read(tmp_path / "o.tif"), atol=1e-5)


def test_a_crop_keeps_the_numbers_where_its_tiles_do(tmp_path: Path, model: nn.Module, wide: dict[str, Path]) -> None:
    options: dict[str, Any] = dict(stats=STATS, patch_size=20, tile=60, overlap=20)
    embed(wide, model, tmp_path / "o.tif", **options)
    embed(wide, model, tmp_path / "c.tif", **options, bbox=(X + 40, Y - 140, X + 140, Y - 40))
    whole, crop = read(tmp_path / "o.tif"), read(tmp_path / "c.tif")
    assert whole.shape == (128, 7, 7) and crop.shape == (128, 5, 5)
    np.testing.assert_array_equal(crop[:, 1:, 1:], whole[:, 3:, 3:])
    assert not np.array_equal(crop[:, 0], whole[:, 2, 2:])  # which a tile of the whole alone covers too


def test_the_last_patches_reach_beyond_the_area(tmp_path: Path, model: nn.Module) -> None:
    listening = Listening(model)
    sources = {"s2": series(tmp_path / "s2", side=50)}
    found = embed(sources, listening, tmp_path / "o.tif", patch_size=20, output="dense")
    assert found.shape == (256, 5, 5) and listening.seen[0]["s2"].shape[-2:] == (6, 6)
    assert not np.isnan(read(tmp_path / "o.tif")).any()
    mask = listening.seen[0]["s2_mask"]
    assert mask[..., :5, :5].all() and not mask[..., 5:, :].any() and not mask[..., :, 5:].any()


def test_one_tile_gives_the_models_own_vector(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    found = embed(both, model, tmp_path / "v.json", patch_size=20)
    data = {
        "aerial": torch.from_numpy(normalize(read(both["aerial"]).astype(np.float32), get_statistics("anysat/aerial"))),
        "s2": torch.from_numpy(
            normalize(
                np.stack([read(both["s2"] / f"s2_{day}.tif") for day in DAYS]).astype(np.float32),
                get_statistics("anysat/s2"),
            )
        ),
        "s2_dates": days_of_year(DAYS),
    }
    with torch.no_grad():
        expected = model({key: x[None] for key, x in data.items()}, patch_size=20, output="tile")[0].numpy()
    assert found.vector is not None and found.nodata == 0
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)
    written = json.loads((tmp_path / "v.json").read_text())
    np.testing.assert_allclose(written["embedding"], expected, atol=1e-6)
    assert written["output"] == "tile" and written["dates"] == {"s2": list(DAYS)}


def test_tiles_are_weighted_by_what_is_valid_in_them(tmp_path: Path, model: nn.Module) -> None:
    stored = noise(2, 3, 10, 12, 12)
    stored[:, :, :, :3] = 0
    whole = {"s2": series(tmp_path / "s2", side=120, values=stored)}
    options: dict[str, Any] = dict(patch_size=20, tile=60, output="tile")
    parts = [
        embed(whole, model, None, **options, bbox=(X + left, Y - top - 60, X + left + 60, Y - top)).vector
        for top in (0, 60)
        for left in (0, 60)
    ]
    expected = np.average(np.stack(parts), axis=0, weights=[0.5, 1, 0.5, 1])  # type: ignore[arg-type]
    np.testing.assert_allclose(embed(whole, model, None, **options).vector, expected, atol=1e-6)  # type: ignore[arg-type]


def test_memory_holds_a_row_of_tiles(
    tmp_path: Path, model: nn.Module, wide: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eo_zoo.geo.stack import Layer

    reads, read_of = [], Layer.read

    def noted(layer: Layer, top: float, left: float, height: float, width: float) -> Any:
        reads.append((layer.one.name, top, left, height, width))
        return read_of(layer, top, left, height, width)

    monkeypatch.setattr(Layer, "read", noted)
    embed(wide, model, tmp_path / "o.tif", stats=STATS, patch_size=20, tile=60, overlap=20, batch_size=2)
    assert {height for *_, height, _ in reads} == {60} and {width for *_, width in reads} == {100, 60}
    assert len(reads) == 2 * 3 * 2


# ---- options and messages ----


def test_the_preview_shows_the_median_of_a_series(tmp_path: Path, model: nn.Module) -> None:
    stored = np.full((3, 10, 6, 6), 1000, np.uint16)
    stored[:, :, :, 3:] = 2000
    stored[1, :, :, :3] = 15000  # a cloud that no mask shows
    embed(
        {"s2": series(tmp_path / "s2", values=stored)}, model, tmp_path / "o.tif", patch_size=10,
        preview=tmp_path / "p.png",
    )  # fmt: skip
    page = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    side = 6 * (512 // 6)
    assert (page[:side, : side // 2] == 0).all() and (page[:side, side // 2 : side] == 255).all()


def test_a_preset_tells_order_and_statistics(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    plain = rasters.write_raster(tmp_path / "n.tif", read(both["aerial"]), pixel=0.2)  # in TreeSatAI's order
    embed(both, model, tmp_path / "a.tif", patch_size=20)
    embed({**both, "aerial": plain}, model, tmp_path / "b.tif", patch_size=20, preset="treesatai-ts")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))
    with pytest.raises(
        InputError, match=r"^aerial: .*carry no names: give --bands aerial=NAMES .* NIR, R, G, B and - .*--preset"
    ):
        embed({**both, "aerial": plain}, model, tmp_path / "c.tif", patch_size=20)
    with pytest.raises(InputError, match="preset FLAIR has no aerial, only aerial-flair, s2"):
        embed(both, model, tmp_path / "c.tif", preset="FLAIR")


def test_statistics_of_several_inputs_in_one_file(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    own = {key: made_up(key, units) for key, units in (("aerial", "uint8"), ("s2", "dn"))}
    (tmp_path / "stats.json").write_text(json.dumps({key: one.to_dict() for key, one in own.items()}))
    embed(both, model, tmp_path / "a.tif", patch_size=20, stats=own)
    embed(both, model, tmp_path / "b.tif", patch_size=20, stats=tmp_path / "stats.json")
    embed(both, model, tmp_path / "c.tif", patch_size=20)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))
    assert not np.array_equal(read(tmp_path / "a.tif"), read(tmp_path / "c.tif"))


def test_dates_can_be_chosen(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    for name, choice in (("a", {"start": "2020-06-01"}), ("b", {"max_dates": 1})):
        embed(both, model, tmp_path / f"{name}.tif", patch_size=20, **choice)
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert len(json.loads(file.tags()["DATES"])["s2"]) == (2 if name == "a" else 1)


def test_smallest_patch_is_taken_and_told(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    found = embed(both, model, tmp_path / "o.tif")
    assert found.shape == (128, 6, 6) and "patches of 10 m" in found.notes[0]


def test_lower_precision_is_near(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    exact, near = (
        (embed(both, model, tmp_path / f"{dtype}.tif", patch_size=20, dtype=dtype), read(tmp_path / f"{dtype}.tif"))[1]
        for dtype in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, rtol=0.1, atol=0.1)


def test_a_model_of_some_inputs_is_asked_for_these(tmp_path: Path, both: dict[str, Path]) -> None:
    small = create_model("anysat_nano", pretrained=False, inputs=["s2", "spot"])
    with pytest.raises(InputError, match="the model was built without aerial: it takes spot, s2"):
        embed(both, small, tmp_path / "o.tif")


@pytest.mark.parametrize("crs", ["EPSG:25832", "+proj=utm +zone=32 +ellps=GRS80 +units=m", "+proj=utm +zone=32"])
def test_a_crs_of_the_same_coordinates_is_the_same(
    tmp_path: Path, model: nn.Module, both: dict[str, Path], crs: str
) -> None:
    """An orthophoto in ETRS89, or in a WKT without a name, beside Sentinel-2 in WGS 84: same map, not resampled."""
    expected, found = tmp_path / "32632.tif", tmp_path / "found.tif"
    embed(both, model, expected, output="dense")
    other = {**both, "aerial": image(tmp_path / "other.tif", crs=crs)}
    made = embed(other, model, found, output="dense")
    assert np.array_equal(read(found), read(expected))
    same = rasterio.crs.CRS.from_user_input(crs) == rasterio.crs.CRS.from_epsg(32632)
    assert any("gives the same coordinates here" in note for note in made.notes) != same
    assert not any("resampled" in note for note in made.notes)


def test_a_file_of_statistics_may_hold_other_inputs(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    """Computed once for all, used for some."""
    sets = {"s2": get_statistics("anysat/s2").to_dict(), "naip": made_up("naip", "uint8").to_dict()}
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(sets))
    made = embed(both, model, None, stats=file)
    assert any(note.startswith("s2: normalised with") for note in made.notes)
    file.write_text(json.dumps({**sets, "areal": sets["naip"]}))
    with pytest.raises(InputError, match="given for 'areal', which is no input"):
        embed(both, model, None, stats=file)


def wrong_inputs(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any], str]]:
    """Name -> sources, options, and what the error must say."""
    aerial, s2 = image(folder / "a.tif"), series(folder / "s2")
    pair = {"aerial": aerial, "s2": s2}
    l7 = series(folder / "l7", "l7", pixel=30)
    small = {"s2": series(folder / "small", side=20)}
    degrees = rasters.write_raster(
        folder / "d.tif", read(aerial), crs="EPSG:4326", origin=(9.5, 47.2), pixel=2e-6, descriptions=bands_of("aerial")
    )
    feet = image(folder / "f.tif", crs="EPSG:2263")
    zone = image(folder / "z.tif", crs="EPSG:32633")
    far = image(folder / "far.tif", origin=(X + 5000, Y))
    edge = image(folder / "edge.tif", origin=(X + 55, Y))
    three = rasters.write_raster(folder / "3.tif", read(aerial)[:3], pixel=0.2, descriptions=bands_of("aerial")[:3])
    return {
        "unknown key": ({"arial": aerial}, {}, "unknown input 'arial'. Did you mean 'aerial'"),
        "patch of 15": (pair, {"patch_size": 15}, "15 m does not fit: expected a multiple of 10 m"),
        "patch of 0": (pair, {"patch_size": 0}, "0 m does not fit"),
        "30 m grid": ({**small, "l7": l7}, {"patch_size": 20}, "expected a multiple of 30 m with l7"),
        "patch too large": (pair, {"patch_size": 70}, "60 x 60 m in common, less than one patch of 70 m"),
        "no cell in common": ({**pair, "aerial": edge}, {}, "5 x 60 m in common, less than one cell of 10 x 10 m"),
        "nothing in common": ({**pair, "aerial": far}, {}, "the inputs cover no common area"),
        "other CRS": ({**pair, "aerial": zone}, {}, "different CRS: aerial EPSG:32633, s2 EPSG:32632; warp them"),
        "degrees": ({"aerial": degrees}, {}, "is in degrees, .* gdalwarp -t_srs EPSG:32632"),
        "feet": ({"aerial": feet}, {}, "is in US survey foot, .* gdalwarp -t_srs EPSG:326"),
        "tile": (pair, {"patch_size": 20, "tile": 30}, "a tile of 30 m does not fit: expected a multiple of the patch"),
        "overlap": (pair, {"patch_size": 20, "overlap": 10}, "an overlap of 10 m does not fit"),
        "overlap of a tile": (pair, {"patch_size": 20, "overlap": 60}, "from 0 to 40 m|from 0 to 40"),
        "modality": (pair, {"output": "dense", "output_modality": "s1"}, "expected one of the inputs that have a map"),
        "modality of patches": (pair, {"output_modality": "s2"}, "output_modality is for output 'dense'"),
        "kind": (pair, {"output": "all"}, "output is 'all', expected tile or patch or dense"),
        "layer": (pair, {"layer": 1}, "layer: only for models of one image, and anysat_nano"),
        "pool and sensor": (pair, {"pool": "avg", "sensor": "S2"}, "sensor, pool: only for models of one image"),
        "no statistics": ({"s2": s2, "l7": l7}, {}, "no statistics to normalise l7 by were published: .*eo-zoo stats"),
        "statistics of another": (pair, {"stats": {"s1": made_up("s1", "db")}}, "given for 's1', which is no input"),
        "bands missing": ({**pair, "aerial": three}, {}, "aerial: its bands .*blue.* are not there"),
        "units of another": (pair, {"units": {"s1": "db"}}, "units is given for 's1', but the inputs are aerial, s2"),
        "units": (pair, {"units": {"s2": "db"}}, "^s2: .*db cannot be converted to dn"),
        "no such file": ({**pair, "aerial": folder / "no.tif"}, {}, "^aerial: .*no such file"),
        "no such series": ({**pair, "s2": folder / "no"}, {}, "^s2: .*no such file or folder"),
        "dates of images": ({"aerial": aerial}, {"max_dates": 2}, "max_dates: only for time series"),
        "preset": (pair, {"preset": "TreeSat"}, "unknown preset 'TreeSat'"),
        "bbox": (pair, {"bbox": (0, 0, 1, 1)}, "lies outside the scene"),
        "vector and min_valid": (pair, {"output": "tile", "out": "v.npy", "min_valid": 0.5}, "only apply to maps"),
        "vector as map": (pair, {"output": "tile"}, "out is o.tif, expected a name that ends in .npy or .json"),
        "map as vector": (pair, {"output": "dense", "out": "v.npy"}, "ends in .tif or .tiff"),
        "no map": (pair, {"output": "dense", "out": None}, "a map has to be written somewhere"),
        "one input": ({}, {"source": aerial}, "anysat_nano.* takes its inputs by name: give --input s2=INPUT"),
        "no input": ({}, {"source": {}}, "takes its inputs by name"),
        "not published": (pair, {"model": "anysat_nano"}, "no weights"),
    }  # fmt: skip


CASES = (
    "unknown key", "patch of 15", "patch of 0", "30 m grid", "patch too large", "no cell in common",
    "nothing in common", "other CRS", "degrees", "feet", "tile", "overlap", "overlap of a tile", "modality",
    "modality of patches", "kind", "layer", "pool and sensor", "no statistics", "statistics of another",
    "bands missing", "units of another", "units", "no such file", "no such series", "dates of images", "preset",
    "bbox", "vector and min_valid", "vector as map", "map as vector", "no map", "one input",
    "no input", "not published",
)  # fmt: skip


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any], str]]:
    cases = wrong_inputs(tmp_path_factory.mktemp("wrong"))
    assert tuple(cases) == CASES
    return cases


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, model: nn.Module, wrong: dict[str, tuple[dict[str, Any], dict[str, Any], str]], name: str
) -> None:
    sources, options, words = wrong[name]
    out = options.get("out", "o.tif")
    rest = {key: value for key, value in options.items() if key not in ("out", "source", "model")}
    with pytest.raises(InputError, match=words) as caught:
        embed(options.get("source", sources), options.get("model", model), out and tmp_path / out, **rest)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["patch_size", "output", "tile", "preset", "masks", "date_pattern"])
def test_options_of_several_inputs_are_not_for_one_image(tmp_path: Path, option: str) -> None:
    value: Any = 40 if option in ("patch_size", "tile") else "patch"
    with pytest.raises(InputError, match=f"{option}: only for models of several inputs, and smarties_vit_nano.demo"):
        embed_raster(tmp_path / "x.tif", out=tmp_path / "o.tif", **{option: value})
    with pytest.raises(InputError, match="takes one image, not several inputs: give it without --input"):
        embed_raster({"s2": tmp_path / "x.tif"}, out=tmp_path / "o.tif")


# ---- the command ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(model.state_dict(), path)
    return path


def test_the_command_writes_a_dense_map_over_the_aerial_image(
    run: Any, tmp_path: Path, model: nn.Module, weights: Path
) -> None:
    """As the documentation has it, on a crop of TreeSatAI."""
    out, shown = tmp_path / "out.tif", tmp_path / "p.png"
    words = [
        "embed", "--input", f"aerial={TREES / 'aerial.tif'}", "--input", f"s2={TREES / 'series.h5'}",
        "-m", "anysat_nano", "--weights", weights, "--patch-size", "20", "--output", "dense", "-o", out,
        "--preset", "TreeSatAI-TS", "--preview", shown,
    ]  # fmt: skip
    code, printed, err = run(*words)
    assert code == 0, err
    assert "10 x 10 cells of 256 values" in printed and shown.stat().st_size > 1000
    embed(
        {"aerial": TREES / "aerial.tif", "s2": TREES / "series.h5"}, model, tmp_path / "p.tif",
        patch_size=20, output="dense", output_modality="aerial", preset="TreeSatAI-TS",
    )  # fmt: skip
    np.testing.assert_array_equal(read(out), read(tmp_path / "p.tif"))
    before = sorted(tmp_path.iterdir())
    code, _, err = run(*words)
    assert code == 2 and "exists" in err and sorted(tmp_path.iterdir()) == before


def test_the_command_takes_values_by_input(run: Any, tmp_path: Path, weights: Path, both: dict[str, Path]) -> None:
    sources = [word for key, path in both.items() for word in ("--input", f"{key}={path}")]
    base = ["embed", *sources, "-m", "anysat_nano", "--weights", weights, "--output", "v.npy"]
    (tmp_path / "s.json").write_text(json.dumps(made_up("s2", "reflectance").to_dict()))
    code, _, err = run(
        *base[:-1], tmp_path / "v.npy", "--output", "tile", "--units", "s2=dn", "--units", "aerial=uint8",
        "--nodata", "s2=7", "--stats", f"s2={tmp_path / 's.json'}", "--scl-invalid", "3,8,9", "--max-dates", "2",
    )  # fmt: skip
    assert code == 0, err
    assert np.load(tmp_path / "v.npy").shape == (128,)
    assert "values are dn (reflectance x 10000), as said" in err
    for more, words in (
        (["--units", "s2=dn", "--units", "dn"], "--units is given more than once"),
        (["--nodata", "s2=x"], "--nodata is s2=x, expected a number"),
        (["--scl-invalid", "a"], "--scl-invalid is a, expected numbers of classes"),
        (["--output", "patch", "--output", "dense"], "expected one file's name"),
        (["--units", "db"], "db cannot be converted"),
    ):
        code, _, err = run(*base[:-1], tmp_path / "no.tif", *more)
        assert code == 2 and words in err and err.count("\n") == 0, err
    assert not (tmp_path / "no.tif").exists()


def test_files_beside_are_left_alone(tmp_path: Path, model: nn.Module, both: dict[str, Path]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(both["s2"], copy)
    embed({**both, "s2": copy}, model, tmp_path / "o.tif", patch_size=20)
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in both["s2"].iterdir())
    assert sensors.sensor_of("anysat/s2") == "S2"
