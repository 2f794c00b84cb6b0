from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from eo_zoo import create_model
from eo_zoo.errors import InputError
from eo_zoo.files import sweep
from eo_zoo.geo import opening
from eo_zoo.geo.embed import embed_raster
from eo_zoo.geo.run import Embedding, Log, Options, embed_scene
from eo_zoo.geo.scene import open_scene
from eo_zoo.geo.stream import Raster, Tally, map_strips, pooled_vector
from eo_zoo.geo.tiles import TileGrid
from eo_zoo.sensors import Statistics, get_sensor, get_statistics, normalize
from eo_zoo.weights import Record
from tests.geo import rasters
from tests.geo.fakes import BANDS, CHANNELS, PATCH, TILE, FakeModel, FakeScene, noise, statistics

OVERLAP = 8  # pixels, two cells: little, so that a cell's tiles can be counted by hand
STEP = TILE - OVERLAP


def run(scene: FakeScene, out: Path | None, model: FakeModel | None = None, **options: Any) -> Embedding:
    log = options.pop("log", None)
    options.setdefault("overlap", None if options.get("pool") else OVERLAP)
    return embed_scene(
        scene,
        model or FakeModel(),
        statistics(scene.bands),
        Options(out=out, **options),
        name="fake_net",
        source="x.tif",
        log=log,
    )


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def embedded(tmp_path: Path, scene: FakeScene, name: str = "out.tif", **options: Any) -> np.ndarray:
    run(scene, tmp_path / name, **options)
    return read(tmp_path / name)


def reference(scene: FakeScene, model: FakeModel, overlap: int = 8) -> np.ndarray:
    """The blended map written down plainly: every tile by itself, the weighted mean at the end."""
    height, width = (-(-side // PATCH) * PATCH for side in scene.values.shape[1:])
    step, cells = TILE - overlap, TILE // PATCH

    def starts(size: int) -> list[int]:
        last = max(size - TILE, 0)
        return sorted({*range(0, last, step), last})

    bell = np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2
    shape = (max(height, TILE) // PATCH, max(width, TILE) // PATCH)
    total, weight = np.zeros((CHANNELS, *shape)), np.zeros(shape)
    for top in starts(height):
        for left in starts(width):
            values, valid = scene.read(top, left, TILE, TILE)
            x = np.where(valid, normalize(values, statistics(scene.bands)), 0).astype(np.float32)
            with torch.no_grad():
                [features] = model.forward_intermediates(torch.from_numpy(x)[None], [2])
            here = np.s_[..., top // PATCH :, left // PATCH :]
            area = np.s_[..., :cells, :cells]
            total[here][area] += features[0].numpy() * np.outer(bell, bell)
            weight[here][area] += np.outer(bell, bell)
    return (total / weight)[:, : height // PATCH, : width // PATCH]


@pytest.mark.parametrize("shape", [(56, 72), (61, 47), (24, 24), (10, 90), (4, 4), (25, 24)])
def test_map_is_the_weighted_mean_of_the_tiles(tmp_path: Path, shape: tuple[int, int]) -> None:
    scene, model = FakeScene(noise(*shape)), FakeModel()
    found = embedded(tmp_path, scene, model=model)
    assert found.shape == (CHANNELS, -(-shape[0] // PATCH), -(-shape[1] // PATCH))
    np.testing.assert_allclose(found, reference(scene, model), rtol=1e-4, atol=1e-4)


def test_without_overlap_the_tiles_stand_side_by_side(tmp_path: Path) -> None:
    scene, model = FakeScene(noise(48, 48)), FakeModel()
    found = embedded(tmp_path, scene, model=model, overlap=0)
    np.testing.assert_allclose(found, reference(scene, model, overlap=0), rtol=1e-4, atol=1e-4)
    assert sum(model.batches) == 4 + 4


def test_results_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    scene = FakeScene(noise(70, 150))
    maps = [embedded(tmp_path, scene, f"{size}.tif", batch_size=size) for size in (1, 2, 5, 64)]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-5, rtol=0)


def test_batches_are_at_most_the_batch_size_and_read_once(tmp_path: Path) -> None:
    scene, model = FakeScene(noise(24, 8 + 7 * STEP)), FakeModel()
    run(scene, tmp_path / "out.tif", model, batch_size=3)
    assert model.batches == [3, 3, 1]
    assert [width for *_, width in scene.reads] == [2 * STEP + TILE, 2 * STEP + TILE, TILE]


def test_a_crop_on_the_tile_grid_gives_the_same_numbers(tmp_path: Path) -> None:
    values = noise(24 + 5 * STEP, 24 + 6 * STEP)
    whole = embedded(tmp_path, FakeScene(values), "whole.tif", batch_size=1)
    top, left, rows, cols = 2 * STEP, STEP, 24 + 2 * STEP, 24 + 3 * STEP
    part = FakeScene(values[:, top : top + rows, left : left + cols])
    crop = embedded(tmp_path, part, "crop.tif", batch_size=1)
    # Cells within the overlap at the crop's edge blend with tiles that only the whole raster has.
    inner = np.s_[:, 2 : rows // PATCH - 2, 2 : cols // PATCH - 2]
    same = whole[:, top // PATCH : (top + rows) // PATCH, left // PATCH : (left + cols) // PATCH]
    assert np.array_equal(crop[inner], same[inner])
    assert not np.array_equal(crop, same)


def test_a_bright_square_lands_at_its_coordinates(tmp_path: Path) -> None:
    values = np.full((3, 90, 120), 100.0)
    values[:, 52:56, 88:92] = 900  # one patch, 10 m pixels, origin (300000, 4000000)
    result = run(FakeScene(values), tmp_path / "out.tif", FakeModel(mixing=0.001))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.to_epsg() == 32629 == result.crs.to_epsg()
        assert file.res == (40, 40) and file.transform == result.transform
        assert file.bounds == (300_000, 4_000_000 - 23 * 40, 300_000 + 30 * 40, 4_000_000)
        data = file.read()
        distance = np.abs(data - np.median(data, axis=(1, 2), keepdims=True)).sum(axis=0)
        row, col = np.unravel_index(distance.argmax(), distance.shape)
        assert file.xy(row, col) == (300_000 + 900, 4_000_000 - 540)
        [square] = file.sample([(300_000 + 895, 4_000_000 - 535)])
        assert np.array_equal(square, data[:, 13, 22])


def holes(shape: tuple[int, int, int]) -> np.ndarray:
    valid = np.ones(shape, bool)
    valid[:, 8:16, 12:20] = False  # four whole cells
    valid[:, 20:22, 20:24] = False  # half a cell
    valid[0, 28:32, 28:32] = False  # a third of a cell: one band of three
    return valid


def test_what_lies_under_nodata_changes_no_byte(tmp_path: Path) -> None:
    values = noise(60, 60)
    valid = holes(values.shape)
    runs = []
    for name, fill in (("a", 0.0), ("b", 1e30), ("c", np.nan)):
        scene = FakeScene(np.where(valid, values, fill), valid)
        run(scene, tmp_path / f"{name}.tif", preview=tmp_path / f"{name}.png")
        runs.append((tmp_path / f"{name}.tif").read_bytes() + (tmp_path / f"{name}.png").read_bytes())
    assert runs[0] == runs[1] == runs[2]


def test_cells_without_valid_pixels_are_nan_and_others_are_computed(tmp_path: Path) -> None:
    values = noise(60, 60)
    result = run(FakeScene(values, holes(values.shape)), tmp_path / "out.tif")
    data = read(tmp_path / "out.tif")
    expected = np.zeros((15, 15), bool)
    expected[2:4, 3:5] = True
    assert np.array_equal(np.isnan(data), np.broadcast_to(expected, data.shape))
    assert result.nodata == pytest.approx(4 / 225)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert all(np.isnan(value) for value in file.nodatavals)
        assert np.array_equal(file.dataset_mask() == 0, expected)


def test_missing_pixels_are_the_mean_after_normalisation(tmp_path: Path) -> None:
    values, mean = noise(24, 24), 400.0  # (400 - 0) / 1000 is the statistics' mean, 0.4
    valid = holes(values.shape)
    found = embedded(tmp_path, FakeScene(values, valid), "a.tif")
    filled = embedded(tmp_path, FakeScene(np.where(valid, values, mean)), "b.tif")
    shown = ~np.isnan(found)
    np.testing.assert_allclose(found[shown], filled[shown], atol=1e-5)


@pytest.mark.parametrize(
    ("least", "kept"), [(0.0, (1, 1)), (0.5, (1, 1)), (0.51, (0, 1)), (2 / 3, (0, 1)), (0.67, (0, 0))]
)
def test_min_valid_counts_pixels_and_bands(tmp_path: Path, least: float, kept: tuple[int, int]) -> None:
    values = noise(60, 60)
    data = embedded(tmp_path, FakeScene(values, holes(values.shape)), min_valid=least)
    assert (not np.isnan(data[0, 5, 5]), not np.isnan(data[0, 7, 7])) == kept
    assert not np.isnan(data[:, 10, 10]).any()


def test_pixels_beyond_the_raster_count_as_missing(tmp_path: Path) -> None:
    scene = FakeScene(noise(42, 41))
    assert not np.isnan(embedded(tmp_path, scene, "all.tif")).any()
    half = embedded(tmp_path, scene, "half.tif", min_valid=0.5)
    assert not np.isnan(half[:, :, :10]).any() and np.isnan(half[:, :, 10]).all()
    full = embedded(tmp_path, scene, "full.tif", min_valid=1.0)
    assert not np.isnan(full[:, :10, :10]).any() and np.isnan(full[:, 10]).all()


def test_tiles_without_valid_pixels_are_not_computed(tmp_path: Path) -> None:
    values = noise(24, 24 + 9 * STEP)
    valid = np.ones(values.shape, bool)
    valid[:, :, 24 + STEP : 8 + 8 * STEP] = False
    model = FakeModel()
    run(FakeScene(values, valid), tmp_path / "out.tif", model, batch_size=4)
    assert sum(model.batches) == 3 + 2


def test_all_nodata_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    values = noise(60, 60)
    scene = FakeScene(values, np.zeros(values.shape, bool))
    with pytest.raises(InputError, match="all nodata"):
        run(scene, tmp_path / "out.tif", preview=tmp_path / "out.png")
    with pytest.raises(InputError, match="all nodata"):
        run(scene, None, pool="token")
    every_cell_holed = np.broadcast_to(np.arange(60) % PATCH != 0, values.shape)
    with pytest.raises(InputError, match="min_valid"):
        run(FakeScene(values, every_cell_holed), tmp_path / "out.tif", min_valid=1.0)
    assert not list(tmp_path.iterdir())


def test_counts_do_not_depend_on_overlap_or_batches(tmp_path: Path) -> None:
    values = noise(61, 75)
    valid = holes(values.shape)
    expected = {b: ((v > 1000) & m).sum() / m.sum() for b, v, m in zip(BANDS, values, valid, strict=True)}
    for size, overlap in ((1, 0), (3, 8), (8, 20)):
        result = run(FakeScene(values, valid), tmp_path / f"{size}.tif", batch_size=size, overlap=overlap)
        assert result.clipped == pytest.approx(expected, abs=1e-6)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        run(FakeScene(noise(70, 90)), tmp_path / f"{name}.tif", preview=tmp_path / f"{name}.png")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tif", "b.png", "b.tif"]


def test_memory_holds_a_row_of_tiles(tmp_path: Path) -> None:
    scene, rows = FakeScene(noise(24 + 20 * STEP, 40)), []
    grid = TileGrid(scene.grid.height, 40, PATCH, TILE, 8)
    for strip in map_strips(
        Raster(scene, statistics(), Tally(statistics()), PATCH), grid,
        lambda x: np.zeros((len(x), 1, 6, 6), np.float32), 1, batch_size=2, min_valid=0, tick=lambda count: None,
    ):  # fmt: skip
        rows.append(strip.shape[1])
        assert len(scene.reads) == len(rows) * 1
    assert rows == [4] * 20 + [6]


# ---- layers and pooling ----


def test_layer_chooses_the_block(tmp_path: Path) -> None:
    scene = FakeScene(noise(30, 30))
    last = embedded(tmp_path, scene, "last.tif")
    np.testing.assert_allclose(embedded(tmp_path, scene, "0.tif", layer=0), last / 3, rtol=1e-5)
    np.testing.assert_allclose(embedded(tmp_path, scene, "m2.tif", layer=-2), last * 2 / 3, rtol=1e-5)
    with pytest.raises(InputError, match=r"layer 3 does not exist: the model has 3, so 0 to 2"):
        run(scene, tmp_path / "x.tif", layer=3)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_one_tile_pools_to_the_models_own_vector(tmp_path: Path, pool: str) -> None:
    values, model = noise(TILE, TILE), FakeModel(global_pool=pool)
    result = run(FakeScene(values), tmp_path / "out.npy", model, pool=pool)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalize(values, statistics())).float()[None])[0].numpy()
    assert result.vector is not None and result.shape == (CHANNELS,)
    np.testing.assert_array_equal(result.vector, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_pooling_weighs_tiles_by_their_own_valid_values() -> None:
    values = noise(TILE, 2 * TILE + 4)
    valid = np.ones(values.shape, bool)
    valid[:, :, :6] = False
    scene, model = FakeScene(values, valid), FakeModel()
    result = run(scene, None, model, pool="token")
    vectors = []
    for left in (0, TILE, TILE + 4):  # the last tile is shifted back, and its neighbour counts 4 columns
        x = torch.from_numpy(np.where(valid, normalize(values, statistics()), 0)).float()
        vectors.append(model(x[None, :, :, left : left + TILE])[0].detach().numpy())
    expected = np.average(vectors, axis=0, weights=[TILE - 6, 4, TILE])
    np.testing.assert_allclose(result.vector, expected, atol=1e-5)


def test_pool_has_to_be_the_models() -> None:
    with pytest.raises(InputError, match="global_pool='avg'"):
        run(FakeScene(noise(24, 24)), None, FakeModel(global_pool="token"), pool="avg")


def test_pooling_nothing_is_none() -> None:
    scene = FakeScene(noise(24, 24), np.zeros((3, 24, 24), bool))
    grid = TileGrid(24, 24, PATCH, TILE, 0)
    assert pooled_vector(
        Raster(scene, statistics(), Tally(statistics()), PATCH), grid, lambda x: np.zeros((len(x), 2)),
        batch_size=1, tick=lambda count: None,
    ) is None  # fmt: skip


# ---- precision and modes ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_near(tmp_path: Path, dtype: str) -> None:
    scene = FakeScene(noise(40, 40))
    exact, near = (embedded(tmp_path, scene, f"{d}.tif", dtype=d) for d in ("float32", dtype))
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, rtol=0.05, atol=0.05)


def test_overflow_is_an_error_not_nodata(tmp_path: Path) -> None:
    model = FakeModel()
    with torch.no_grad():
        model.project.weight.mul_(1e7)
    with pytest.raises(InputError, match=r"infinite or undefined.*bfloat16 or float32"):
        run(FakeScene(noise(24, 24)), tmp_path / "out.tif", model, dtype="float16")
    with pytest.raises(InputError, match="more than float16"):
        run(FakeScene(noise(24, 24)), tmp_path / "out.tif", model, out_dtype="float16")
    assert not list(tmp_path.iterdir())


# ---- messages ----


def test_clipping_is_told_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = noise(40, 40)
    values[1] = 5000
    values[2, :10] = -3
    told: list[tuple[str, str]] = []
    log = Log(lambda kind, text: told.append((kind, text)))
    result = run(FakeScene(values), tmp_path / "out.tif", log=log)
    [(kind, text)] = told
    assert kind == "warning" and text == result.warnings[0]
    assert "100% of the values of green_2" in text and "'fake'" in text
    with rasterio.open(tmp_path / "out.tif") as file:
        tags = file.tags()
    assert json.loads(tags["WARNINGS"]) == [text]
    assert json.loads(tags["CLIPPED"]) == result.clipped and result.clipped["green_2"] == 1
    assert 0.25 < result.clipped["red_2"] < 0.5
    with caplog.at_level(logging.INFO, logger="eo_zoo"):
        run(FakeScene(values), tmp_path / "again.tif")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", text)]


# ---- interruptions ----


class Interrupting(FakeScene):
    error: type[BaseException] = KeyboardInterrupt

    def read(self, *window: int) -> tuple[np.ndarray, np.ndarray]:
        if len(self.reads) == 3:
            raise self.error
        return super().read(*window)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, MemoryError])
def test_an_exception_in_the_middle_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    scene = Interrupting(noise(200, 24))
    scene.error = error
    with pytest.raises(error):
        run(scene, tmp_path / "out.tif", preview=tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_an_exception_keeps_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "out.tif").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupting(noise(200, 24)), tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_text() == "old"


KILLED = """
import sys, time
from pathlib import Path
from eo_zoo.geo.run import Options, embed_scene
from tests.geo import rasters
from tests.geo.fakes import FakeModel, FakeScene, noise, statistics

class Slow(FakeScene):
    def read(self, *window):
        print(len(self.reads), flush=True)
        time.sleep(0.05)
        return super().read(*window)

embed_scene(Slow(noise(2000, 24)), FakeModel(), statistics(), Options(out=Path(sys.argv[1])), name="fake")
"""


def test_a_killed_run_leaves_no_output(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out.tif")],
        stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 5:
            break
    assert list(tmp_path.glob(".out.tif.*.part"))
    sweep(tmp_path / "out.tif")  # of another run at the same time, which leaves this one's alone
    assert list(tmp_path.glob(".out.tif.*.part"))
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait(timeout=30) == -signal.SIGKILL
    assert not (tmp_path / "out.tif").exists()
    sweep(tmp_path / "out.tif")
    assert not list(tmp_path.iterdir())


# ---- the public call ----


@pytest.fixture
def fake_route(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """embed_raster with a fake scene and model behind it; what happened is kept in "events"."""
    state: dict[str, Any] = {"scene": FakeScene(noise(50, 60)), "events": [], "opened": [], "created": []}
    record = Record(
        name="fake_net.demo", source="package://none", layout="", licence="none", sensors=("S2", "S1"),
        accepts=(*BANDS, "near_infrared_1"), statistics={"S2": "fake", "S1": "fake-S1"}, gsd={"S2": (5.0, 20.0)},
    )  # fmt: skip

    @contextlib.contextmanager
    def open_scene(source: object, **options: Any) -> Iterator[FakeScene]:
        state["opened"].append((source, options))
        state["events"].append("open")
        yield state["scene"]

    def create_model(name: str, pretrained: bool = True, **kwargs: Any) -> FakeModel:
        if pretrained:
            state["created"].append(kwargs)
            state["events"].append("weights")
        return FakeModel(bands=len(kwargs["bands"]), global_pool=kwargs.get("global_pool", "token"))

    def get_statistics(name: object) -> Statistics:
        return replace(statistics(BANDS), name=str(name), sensor="S1" if name == "fake-S1" else "S2")

    monkeypatch.setattr(opening, "open_scene", open_scene)
    monkeypatch.setattr(opening.registry, "get_record", lambda name: record)
    monkeypatch.setattr(opening.registry, "create_model", create_model)
    monkeypatch.setattr(opening.sensors, "get_statistics", get_statistics)
    return state


def test_embed_raster_puts_the_parts_together(tmp_path: Path, fake_route: dict[str, Any]) -> None:
    scene = fake_route["scene"]
    scene.notes, scene.warnings = ["dn as they are"], ["beware"]
    told: list[str] = fake_route["events"]
    result = embed_raster(
        "https://host/folder/scene.tif?token=secret", "fake_net", str(tmp_path / "out.tif"),
        bands=["B02", "B03", "B04"], resolution=10, bbox=(0, 0, 1, 1), units="dn", boa_offset=-1000,
        weights="w.pt", cache_dir="cache", report=lambda kind, text: told.append(f"{kind}: {text}"),
    )  # fmt: skip
    [(_, options)] = fake_route["opened"]
    assert options == {
        "default_sensor": "S2", "accepts": list(BANDS), "target_units": "dn",
        "sensor": None,
        "bands": ["B02", "B03", "B04"], "bbox": (0, 0, 1, 1), "bbox_crs": None, "resolution": 10, "units": "dn",
        "boa_offset": -1000, "nodata": None,
    }  # fmt: skip
    assert fake_route["created"] == [{"weights": "w.pt", "cache_dir": "cache", "bands": BANDS, "num_classes": 0}]
    assert told == [
        "open", "note: dn as they are", "note: normalised with the statistics 'fake'", "warning: beware",
        "weights",
    ]  # fmt: skip
    with rasterio.open(tmp_path / "out.tif") as file:
        tags = file.tags()
    assert tags["SOURCE"] == "scene.tif" and json.loads(tags["WARNINGS"]) == ["beware"]
    assert result.path == tmp_path / "out.tif" and result.seconds > 0
    assert str(tmp_path / "out.tif") in result.summary() and "13 x 15 cells" in result.summary()
    assert json.loads(json.dumps(result.to_dict()))["shape"] == [CHANNELS, 13, 15]


def test_warnings_come_before_the_weights(tmp_path: Path, fake_route: dict[str, Any]) -> None:
    fake_route["scene"] = FakeScene(noise(50, 60) + 5000, gsd=100)
    told = fake_route["events"]
    embed_raster("x", "fake_net", tmp_path / "o.tif", report=lambda kind, text: told.append(text))
    before = told[: told.index("weights")]
    assert any("median" in text for text in before) and any("100 m" in text for text in before)
    assert "clipped" in told[-1]


def test_sensor_and_stats_choose_the_statistics(fake_route: dict[str, Any]) -> None:
    for given, expected in (
        ({}, "fake"), ({"sensor": "sentinel-2"}, "fake"), ({"stats": "mine.json"}, "mine.json"),
        ({"stats": statistics()}, "fake"),
    ):  # fmt: skip
        notes: list[str] = []
        embed_raster("x", "fake_net", pool="token", report=lambda _, text: notes.append(text), **given)  # noqa: B023
        assert f"normalised with the statistics '{expected}'" in notes
    with pytest.raises(InputError, match=r"no statistics for sensor RGB, only for S2, S1"):
        embed_raster("x", "fake_net", pool="token", sensor="RGB")


def test_a_scene_of_another_sensor_brings_its_own_statistics(fake_route: dict[str, Any]) -> None:
    fake_route["scene"].sensor = "S2-L1C"
    with pytest.raises(InputError, match="no statistics for sensor S2-L1C"):
        embed_raster("x", "fake_net", pool="token")
    fake_route["scene"].sensor = "S1"
    embed_raster("x", "fake_net", pool="token", report=lambda _, text: fake_route["events"].append(text))
    assert "normalised with the statistics 'fake-S1'" in fake_route["events"]


def test_a_module_of_the_users_own(tmp_path: Path, fake_route: dict[str, Any]) -> None:
    model = FakeModel()
    with pytest.raises(InputError, match="give stats"):
        embed_raster("x", model, tmp_path / "o.tif")
    with pytest.raises(InputError, match="a module was given"):
        embed_raster("x", model, tmp_path / "o.tif", weights="w.pt")
    result = embed_raster("x", model, tmp_path / "o.tif", stats=statistics())
    assert result.shape == (CHANNELS, 13, 15) and not fake_route["created"]
    model.bands = ("red_2", "green_2", "blue_1")
    with pytest.raises(InputError, match="made for the bands red_2, green_2, blue_1, the scene gives blue_1"):
        embed_raster("x", model, tmp_path / "p.tif", stats=statistics())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 9}, "layer 9 does not exist"),
        ({"overlap": 5}, "overlap of 5"),
        ({"overlap": 24}, "from 0 to 20"),
    ],
)
def test_what_the_model_decides_is_checked_before_its_weights(
    tmp_path: Path, fake_route: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        embed_raster("x", "fake_net", tmp_path / "o.tif", **options)
    assert not fake_route["created"] and not list(tmp_path.iterdir())


def test_an_image_smaller_than_a_patch(tmp_path: Path, fake_route: dict[str, Any]) -> None:
    fake_route["scene"] = FakeScene(noise(3, 60))
    with pytest.raises(InputError, match="60 x 3 pixels, smaller than one patch"):
        embed_raster("x", "fake_net", tmp_path / "o.tif")
    assert not fake_route["created"]


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("o.png", {}, r"out is o.png, expected a name that ends in .tif or .tiff"),
        ("o.tif", {"pool": "avg"}, r"ends in .npy or .json"),
        ("no/o.tif", {}, "does not exist; create it first"),
        ("old.tif", {}, "exists; choose another name, or pass --overwrite"),
        ("folder.tif", {"overwrite": True}, "is a folder"),
        ("scene.tif", {"overwrite": True}, "is the input itself"),
        (None, {}, "has to be written somewhere"),
        ("o.tif", {"preview": "p.jpg"}, r"preview is p.jpg, expected a name that ends in .png"),
        ("o.tif", {"preview": "no/p.png"}, "preview: the folder .* does not exist"),
        ("o.tif", {"min_valid": 1.5}, "min_valid is 1.5, expected a share from 0 to 1"),
        ("o.tif", {"min_valid": float("nan")}, "min_valid is nan"),
        ("o.tif", {"batch_size": 0}, "batch_size is 0, expected 1 or more"),
        ("o.tif", {"dtype": "float64"}, "dtype is 'float64', expected auto or float32 or bfloat16 or float16"),
        ("o.tif", {"out_dtype": "int8"}, "out_dtype is 'int8', expected float32 or float16"),
        ("o.npy", {"pool": "max"}, "pool is 'max', expected token or avg"),
        ("o.npy", {"pool": "avg", "layer": 1, "min_valid": 0.5}, "layer, min_valid only apply to maps"),
        ("o.tif", {"device": "gpu"}, "device 'gpu' is not there"),
        ("o.tif", {"device": "cuda:77"}, "device 'cuda:77' is not there .* on this machine: cpu"),
    ],
)
def test_cheap_checks_come_first(
    tmp_path: Path, fake_route: dict[str, Any], out: str | None, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "old.tif").touch()
    (tmp_path / "scene.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    before = sorted(tmp_path.iterdir())
    if "preview" in options:
        options = {**options, "preview": tmp_path / options["preview"]}
    with pytest.raises(InputError, match=words):
        embed_raster(tmp_path / "scene.tif", "fake_net", out and tmp_path / out, **options)
    assert sorted(tmp_path.iterdir()) == before and not fake_route["events"]


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, fake_route: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match="cannot be written to"):
        embed_raster("x", "fake_net", tmp_path / "o.tif")


def test_overwrite_replaces(tmp_path: Path, fake_route: dict[str, Any]) -> None:
    (tmp_path / "o.tif").write_text("old")
    embed_raster("x", "fake_net", tmp_path / "o.tif", overwrite=True)
    assert read(tmp_path / "o.tif").shape == (CHANNELS, 13, 15)


def test_progress_goes_to_stderr(
    tmp_path: Path, fake_route: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    embed_raster("x", "fake_net", tmp_path / "a.tif", progress=True)
    shown = capsys.readouterr()
    assert "16/16" in shown.err and not shown.out
    embed_raster("x", "fake_net", tmp_path / "b.tif")
    assert not capsys.readouterr().err


# ---- real files, real model ----


def test_folder_item_and_crop_give_the_same_numbers(tmp_path: Path) -> None:
    folder = rasters.s2_folder(tmp_path / "bands", size=2400)
    item = rasters.stac_item(tmp_path / "item.json", {b: f"bands/{b}.tif" for b in rasters.S2_PIXELS})
    x, y = rasters.ORIGIN
    whole = embed_raster(folder, out=tmp_path / "whole.tif", preview=tmp_path / "whole.png")
    embed_raster(item, out=tmp_path / "item.tif")
    # 56 pixels in, where a tile starts.
    embed_raster(folder, out=tmp_path / "crop.tif", bbox=(x + 560, y - 2400, x + 2400, y - 560))
    assert whole.shape == (128, 30, 30) and whole.transform[:6] == (80, 0, x, 0, -80, y)
    assert set(whole.clipped) == set(get_sensor("S2").band_names)
    assert not list(tmp_path.glob(".*"))
    data = read(tmp_path / "whole.tif")
    assert not np.isnan(data).any() and data.std(axis=(1, 2)).min() > 0
    np.testing.assert_array_equal(read(tmp_path / "item.tif"), data)
    with rasterio.open(tmp_path / "crop.tif") as file:
        assert (file.bounds.left, file.bounds.top) == (x + 560, y - 560) and file.crs.to_epsg() == 32632
        np.testing.assert_allclose(file.read()[:, 7:, 7:], data[:, 14:, 14:], atol=1e-5)


@pytest.fixture
def one_tile(tmp_path: Path) -> tuple[Path, tuple[str, ...], torch.Tensor]:
    """A folder of bands that fits one tile of the nano model, its bands, and its normalised pixels."""
    folder = rasters.s2_folder(tmp_path / "bands", size=1120)  # 112 pixels; the 60 m bands end after 108
    stats = get_statistics("nano/S2-L2A")
    with open_scene(folder, default_sensor="S2", accepts=stats.bands, target_units="dn") as scene:
        values, valid = scene.read(0, 0, 112, 112)
        x = np.where(valid, normalize(values, stats.select(scene.bands)), 0)
        return folder, scene.bands, torch.from_numpy(x).float()[None]


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_one_real_tile_pools_to_the_models_own_vector(
    tmp_path: Path, one_tile: tuple[Path, tuple[str, ...], torch.Tensor], pool: str
) -> None:
    folder, bands, x = one_tile
    found = embed_raster(folder, out=tmp_path / "v.json", pool=pool).vector
    model = create_model("smarties_vit_nano", bands=bands, global_pool=pool)
    with torch.no_grad():
        expected = model(x)[0].numpy()
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert json.loads((tmp_path / "v.json").read_text())["layer"] == f"pool {pool}"


@pytest.mark.parametrize("layer", [None, 0])
def test_one_real_tile_gives_the_tokens_before_the_norm(
    tmp_path: Path, one_tile: tuple[Path, tuple[str, ...], torch.Tensor], layer: int | None
) -> None:
    folder, bands, x = one_tile
    result = embed_raster(folder, out=tmp_path / "map.tif", layer=layer)
    model = create_model("smarties_vit_nano", bands=bands)
    with torch.no_grad():
        *_, tokens = model.forward_intermediates(
            x, indices=None if layer is None else [layer], norm=False, intermediates_only=True
        )
    found = read(tmp_path / "map.tif")
    rows, cols = result.shape[1:]
    np.testing.assert_allclose(found, tokens[0, :, :rows, :cols].numpy(), atol=1e-5)


def test_units_of_another_sensor_are_not_taken(fake_route):
    fake_route["scene"].sensor, fake_route["scene"].units = "S1", "db"
    with pytest.raises(InputError, match="the scene is of sensor S1: give sensor 'S1'"):
        embed_raster("x", "fake_net", pool="token")


def test_what_sampling_warns_of_is_told_before_the_long_part(fake_route):
    scene, told = fake_route["scene"], []
    sample = scene.sample
    scene.sample = lambda: scene.warnings.append("no dB") or sample()
    with opening.opened("x", "fake_net", opening.Reading(), opening.Log(lambda *what: told.append(what))):
        assert ("warning", "no dB") in told


def test_statistics_that_are_given_go_before_the_records(fake_route):
    fake_route["scene"].sensor, told = "S1", []
    embed_raster("x", "fake_net", pool="token", stats=statistics(), report=lambda _, text: told.append(text))
    assert "normalised with the statistics 'fake'" in told
