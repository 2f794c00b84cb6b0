from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eo_zoo import create_model, create_transform
from eo_zoo.errors import InputError
from eo_zoo.geo.classes import APART, NODATA, palette
from eo_zoo.geo.predict import predict_raster
from eo_zoo.geo.stream import Raster, Tally, window_strips
from eo_zoo.geo.tiles import WindowGrid
from eo_zoo.sensors import get_sensor
from eo_zoo.weights import RECORDS
from tests.geo import rasters
from tests.geo.fakes import BANDS, FakeScene, noise, statistics
from tests.geo.tuned import CLASSES, INPUT, SIZE, FakeTuned, X, Y, logits, raster, read, run
from tests.geo.tuned import records as _records  # noqa: F401  a fixture


def starts(size: int, window: int, stride: int) -> list[int]:
    """First pixel of the window of each cell, written down plainly."""
    found = []
    for cell in range(-(-size // stride)):
        centre = cell * stride + stride / 2
        found.append(int(min(max(np.floor(centre - window / 2), 0), size - window)))
    return found


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [((48, 64), 16, 16), ((40, 50), 16, 16), ((40, 37), 16, 8), ((33, 40), 16, 5), ((16, 16), 16, 3), ((30, 20), 7, 7)],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_cell_has_the_class_of_the_window_around_it(
    tmp_path: Path, shape: tuple[int, int], window: int, stride: int, batch_size: int
) -> None:
    values = noise(*shape)
    found = run(
        raster(tmp_path / "a.tif", values), tmp_path / "o.tif", window=window, stride=stride, batch_size=batch_size,
        scores=tmp_path / "s.tif",
    )  # fmt: skip
    expected = np.stack([
        np.stack([
            logits(values[:, top : top + window, left : left + window]).softmax(0).numpy()
            for left in starts(shape[1], window, stride)
        ])
        for top in starts(shape[0], window, stride)
    ])  # fmt: skip
    np.testing.assert_allclose(read(tmp_path / "s.tif").transpose(1, 2, 0), expected, atol=1e-5)
    np.testing.assert_array_equal(read(tmp_path / "o.tif")[0], expected.argmax(axis=2))
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.transform[:6] == (10 * stride, 0, X, 0, -10 * stride, Y) == found.transform[:6]
        assert file.crs.to_epsg() == 32632 and found.shape == (1, *file.shape)
    shares = {name: (expected.argmax(axis=2) == i).mean() for i, name in enumerate(CLASSES)}
    assert found.shares == pytest.approx({name: share for name, share in shares.items() if share}, abs=1e-6)


def test_window_and_stride_are_those_of_the_data_set(tmp_path: Path) -> None:
    model = FakeTuned()
    found = run(raster(tmp_path / "a.tif", noise(48, 32)), tmp_path / "o.tif", model=model)
    assert found.shape == (1, 3, 2) and sum(shape[0] for shape, _ in model.calls) == 6
    assert {shape[1:] for shape, _ in model.calls} == {(3, INPUT, INPUT)}


def test_windows_at_the_ends_are_classified_once(tmp_path: Path) -> None:
    model = FakeTuned()
    run(raster(tmp_path / "a.tif", noise(SIZE, 32)), tmp_path / "o.tif", model=model, stride=4)
    assert len(starts(32, SIZE, 4)) == 8 and len(set(starts(32, SIZE, 4))) == 6
    assert sum(shape[0] for shape, _ in model.calls) == 6


def test_a_bright_square_lands_in_its_cell(tmp_path: Path) -> None:
    values = np.full((3, 80, 96), 100, np.uint16)
    values[1, 44:52, 60:68] = 1000  # centred at pixel 64, 48: x = 640, y = -480 from the corner
    values[0] += 20  # water elsewhere
    run(raster(tmp_path / "a.tif", values), tmp_path / "o.tif", window=8, stride=4)
    with rasterio.open(tmp_path / "o.tif") as file:
        rows, cols = np.nonzero(file.read(1) == CLASSES.index("forest"))
        x, y = file.xy(rows, cols)
        assert (np.mean(x), np.mean(y)) == (X + 640, Y - 480)
        assert [value[0] for value in file.sample([(X + 635, Y - 475), (X + 100, Y - 100)])] == [1, 0]


def holes(shape: tuple[int, ...]) -> np.ndarray:
    valid = np.ones(shape, bool)
    valid[:, 16:32, 16:40] = False  # a whole cell and half of its neighbour
    valid[0, 32:, 32:] = False  # one band of three
    return valid


def test_nodata_stays_nodata(tmp_path: Path) -> None:
    values = noise(48, 48).round() + 1
    valid = holes(values.shape)
    path = raster(tmp_path / "a.tif", np.where(valid, values, 0).astype(np.uint16), nodata=0)
    found = run(path, tmp_path / "o.tif", scores=tmp_path / "s.tif")
    labels, scores = read(tmp_path / "o.tif")[0], read(tmp_path / "s.tif")
    expected = np.zeros((3, 3), bool)
    expected[1, 1] = True
    np.testing.assert_array_equal(labels == NODATA, expected)
    np.testing.assert_array_equal(np.isnan(scores), np.broadcast_to(expected, scores.shape))
    assert found.nodata == pytest.approx(1 / 9) and sum(found.shares.values()) == pytest.approx(1, abs=1e-5)  # type: ignore[union-attr]
    part = np.s_[:, 16:32, 32:48]
    assert labels[1, 2] == logits(values[part], valid[part]).argmax()
    part = np.s_[:, 32:, 32:]
    np.testing.assert_allclose(scores[:, 2, 2], logits(values[part], valid[part]).softmax(0), atol=1e-5)
    for least, missing in ((0.5, 1), (0.51, 2), (0.7, 3)):
        run(path, tmp_path / "v.tif", min_valid=least, overwrite=True)
        assert (read(tmp_path / "v.tif") == NODATA).sum() == missing


@pytest.mark.parametrize("kind", ["scene", "segmentation"])
def test_a_map_of_nodata_is_an_error_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    source = raster(tmp_path / "in" / "a.tif", np.zeros((3, 40, 40), np.uint16), nodata=0)
    (tmp_path / "out").mkdir()
    out = {name: tmp_path / "out" / f"{name}.{ending}" for name, ending in (("scores", "tif"), ("preview", "png"))}
    with pytest.raises(InputError, match="nothing to classify"):
        run(source, tmp_path / "out" / "o.tif", kind, **out)
    assert not list((tmp_path / "out").iterdir())


def test_gis_programs_find_colours_names_and_tags(tmp_path: Path) -> None:
    run(raster(tmp_path / "a.tif", noise(48, 48)), tmp_path / "o.tif")
    with rasterio.open(tmp_path / "o.tif") as file:
        assert (file.count, file.dtypes, file.nodata, file.descriptions) == (1, ("uint8",), 255, ("class",))
        colours, tags = file.colormap(1), file.tags()
    assert [colours[i][:3] for i in range(3)] == palette(CLASSES)
    expected = {
        "TASK": "scene", "CLASSES": json.dumps(CLASSES), "DATA_SET": "FakeSet", "METRIC": "accuracy", "WINDOW": "16",
        "PAPER_RESULT": "98.5", "STRIDE": "16", "MODEL": "fake_net.scene", "SOURCE": "a.tif", "BATCH_SIZE": "8",
    }  # fmt: skip
    assert {name: tags[name] for name in expected} == expected and "THRESHOLD" not in tags
    # A copy as VRT is written by GDAL from what it knows of the file.
    rasterio.shutil.copy(tmp_path / "o.tif", tmp_path / "o.vrt", driver="VRT")
    text = (tmp_path / "o.vrt").read_text()
    assert [text.index(f"<Category>{name}</Category>") for name in CLASSES] == sorted(
        text.index(f"<Category>{name}</Category>") for name in CLASSES
    )


def test_labels_have_a_band_each(tmp_path: Path) -> None:
    values = noise(48, 48)
    path = raster(tmp_path / "a.tif", values)
    run(path, tmp_path / "half.tif", "multi-label", scores=tmp_path / "s.tif")
    scores = read(tmp_path / "s.tif")
    np.testing.assert_array_equal(read(tmp_path / "half.tif"), scores >= 0.5)
    level = float(np.median(scores)) + 1e-4
    found = run(path, tmp_path / "o.tif", "multi-label", threshold=level)
    labels = read(tmp_path / "o.tif")
    expected = logits(values[:, :16, :16], kind="multi-label").sigmoid().numpy()
    np.testing.assert_allclose(scores[:, 0, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(labels, scores >= level)
    assert 0 < labels.mean() < 1
    shares = {name: float(share) for name, share in zip(CLASSES, labels.mean(axis=(1, 2)), strict=True) if share}
    assert found.shares == pytest.approx(shares, abs=1e-6)
    assert sorted(found.shares.values(), reverse=True) == list(found.shares.values())  # type: ignore[union-attr]
    for name, threshold in (("o", str(level)), ("s", "0.5")):
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert file.descriptions == CLASSES and file.tags()["THRESHOLD"] == threshold


def test_memory_holds_a_row_of_windows() -> None:
    scene, rows = FakeScene(noise(40 * SIZE + 3, 40)), []
    grid = WindowGrid(scene.grid.height, 40, 1, SIZE, 0)
    for strip in window_strips(
        Raster(scene, statistics(), Tally(statistics())), grid, lambda x: np.zeros((len(x), 2), np.float32), 2,
        batch_size=2, min_valid=0, tick=lambda count: None,
    ):  # fmt: skip
        rows.append(strip.shape[1])
        assert len(scene.reads) == len(rows) * 2
    assert rows == [1] * 41
    assert {read[2] for read in scene.reads} == {SIZE}


def test_every_pixel_is_counted_once(tmp_path: Path) -> None:
    values = noise(37, 50)
    path = raster(tmp_path / "a.tif", values)
    expected = {band: (part > 1000).mean() for band, part in zip(BANDS, values, strict=True)}
    for kind, stride in (("scene", 16), ("scene", 5), ("segmentation", 8)):
        found = run(path, tmp_path / f"{kind}{stride}.tif", kind, stride=stride, batch_size=3)
        assert found.clipped == pytest.approx(expected, abs=1e-6)
    assert run(path).clipped == pytest.approx(expected, abs=1e-6)


# ---- segmentation ----


def blended(values: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Logits of the pixels, written down plainly: every window by itself, the weighted mean at the end."""
    bell = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    total, weight = np.zeros(values.shape), np.zeros(values.shape[1:])

    def firsts(size: int) -> list[int]:
        return sorted({*range(0, size - window, stride), size - window})

    for top in firsts(values.shape[1]):
        for left in firsts(values.shape[2]):
            here = np.s_[..., top : top + window, left : left + window]
            made = logits(values[here], kind="segmentation")
            if window != SIZE:
                made = F.interpolate(made[None], (window, window), mode="bilinear", align_corners=False)[0]
            total[here] += made.numpy() * np.outer(bell, bell)
            weight[here] += np.outer(bell, bell)
    return total / weight


@pytest.mark.parametrize(
    ("shape", "options", "window", "stride"),
    [
        ((40, 50), {}, SIZE, 8),
        ((33, 16), {"stride": 16}, SIZE, 16),
        ((48, 41), {"window": 24}, 24, 12),
        ((30, 30), {"window": 12, "stride": 5}, 12, 5),
    ],
)
def test_pixels_have_the_class_of_the_blended_windows(
    tmp_path: Path, shape: tuple[int, int], options: dict[str, int], window: int, stride: int
) -> None:
    values = noise(*shape)
    found = run(
        raster(tmp_path / "a.tif", values), tmp_path / "o.tif", "segmentation", scores=tmp_path / "s.tif",
        batch_size=2, **options,
    )  # fmt: skip
    expected = torch.from_numpy(blended(values, window, stride)).softmax(0).numpy()
    np.testing.assert_allclose(read(tmp_path / "s.tif"), expected, atol=1e-4)
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.shape == shape and file.transform[:6] == (10, 0, X, 0, -10, Y)
        sure = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 1e-3
        np.testing.assert_array_equal(file.read(1)[sure], expected.argmax(axis=0)[sure])
        assert file.tags()["WINDOW"] == str(window) and file.tags()["STRIDE"] == str(stride)
    assert found.shape == (1, *shape)


def test_nodata_of_pixels(tmp_path: Path) -> None:
    values = noise(40, 48).round() + 1
    valid = holes(values.shape)
    path = raster(tmp_path / "a.tif", np.where(valid, values, 0).astype(np.uint16), nodata=0)
    run(path, tmp_path / "o.tif", "segmentation")
    np.testing.assert_array_equal(read(tmp_path / "o.tif")[0] == NODATA, ~valid.any(axis=0))
    run(path, tmp_path / "all.tif", "segmentation", min_valid=1)
    np.testing.assert_array_equal(read(tmp_path / "all.tif")[0] == NODATA, ~valid.all(axis=0))


@pytest.mark.slow
def test_the_tuned_tag_labels_pixels_as_its_transform_and_model_do(tmp_path: Path) -> None:
    """Forged weights of full size on one window, by the public door, against the two parts by hand."""
    name = "smarties_vit_base.dfc2020_linprobe"
    bands = get_sensor("S2").bands
    values = np.stack([rasters.smooth(seed, 96, 96, 0, 255) for seed in range(12)]).astype(np.uint8)
    names = [band.sensor_name for band in bands]
    path = rasters.write_raster(tmp_path / "a.tif", values, descriptions=names)
    model = create_model(name, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    predict_raster(path, name, tmp_path / "o.tif", weights=tmp_path / "w.pth", scores=tmp_path / "s.tif")
    with torch.no_grad():
        made = model(create_transform(name)(values)[None])[0].softmax(0).numpy()
    np.testing.assert_allclose(read(tmp_path / "s.tif"), made, atol=1e-4)
    assert (read(tmp_path / "o.tif")[0] == made.argmax(axis=0)).mean() > 0.999


# ---- files ----


@pytest.mark.parametrize("kind", ["scene", "multi-label", "segmentation"])
def test_two_runs_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    path = raster(tmp_path / "a.tif", noise(70, 60))
    for name in "pq":
        folder = tmp_path / name
        folder.mkdir()
        run(path, folder / "o.tif", kind, scores=folder / "s.tif", preview=folder / "v.png")
        assert sorted(file.name for file in folder.iterdir()) == ["o.tif", "o.tif.aux.xml", "s.tif", "v.png"]
    for file in (tmp_path / "p").iterdir():
        assert file.read_bytes() == (tmp_path / "q" / file.name).read_bytes()


class Interrupted(FakeTuned):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if len(self.calls) == 2:
            raise KeyboardInterrupt
        return super().forward(x, **options)


def test_an_exception_in_the_middle_keeps_the_old_output(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", noise(200, 40))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.tif").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        run(
            path, tmp_path / "out" / "o.tif", model=Interrupted(), overwrite=True,
            scores=tmp_path / "out" / "s.tif", preview=tmp_path / "out" / "v.png",
        )  # fmt: skip
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["old"]


def test_preview_shows_the_input_the_classes_and_a_legend(tmp_path: Path) -> None:
    values = np.full((3, 128, 192), 100, np.uint16)
    values[2, :, :64] = 900  # urban
    values[0, :, 64:] = 900  # water
    values[:, 48:80, 96:128] = 0
    path = raster(tmp_path / "a.tif", values, nodata=0)
    found = run(path, tmp_path / "o.tif", preview=tmp_path / "v.png")
    assert found.preview == tmp_path / "v.png"
    page = np.asarray(Image.open(tmp_path / "v.png"))
    zoom, left = 2, 192 * 2 + 8  # 192 pixels are enlarged to 384
    water, _, urban = palette(CLASSES)
    assert tuple(page[20 * zoom, left + 30 * zoom]) == urban and tuple(page[20 * zoom, left + 150 * zoom]) == water
    assert tuple(page[60 * zoom, left + 110 * zoom]) == (255, 255, 255)
    legend = page[:, 2 * left :]
    assert [tuple(legend[18 * row + 8, 6]) for row in (0, 1)] == [water, urban]  # the larger share first
    assert (legend[:36, 18:] < 128).any() and (legend[40:] == 255).all()
    shown = page[20 * zoom, 30 * zoom].astype(int)
    assert shown[0] > 200 and shown[2] < 50  # red where red_2 is bright


def test_colours_differ_and_water_is_blue() -> None:
    tuned = {record.task.classes for record in RECORDS.values() if record.task}
    assert max(map(len, tuned)) == 45
    for classes in tuned:
        colours = np.array(palette(classes), float)
        assert len(colours) == len(classes)
        distance = np.linalg.norm(colours[:, None] - colours, axis=2)
        assert (distance + 1e6 * np.eye(len(colours))).min() > APART / 2
        for name, (red, green, blue) in zip(classes, colours, strict=True):
            if name.lower() in ("river", "water", "lake", "marine waters", "sealake"):
                assert blue > red and blue > green, name
            if name.lower() in ("forest", "coniferous forest", "pasture", "grassland"):
                assert green > red and green > blue, name
    assert len(set(palette([f"forest {i}" for i in range(100)]))) == 100


def test_what_lies_beside_a_raster_goes_with_it(tmp_path: Path) -> None:
    """A map's category names must not stay beside what replaces it, and nobody's file is lost without being asked."""
    out, side = tmp_path / "o.tif", tmp_path / "o.tif.aux.xml"
    source = raster(tmp_path / "a.tif", noise(32, 32))
    run(source, out)
    assert "Category" in side.read_text()
    for name in ("o.tif", "fresh.tif"):
        (tmp_path / f"{name}.aux.xml").write_text("<PAMDataset>mine</PAMDataset>")
        with pytest.raises(InputError, match=rf"{name}(\.aux\.xml)? exists; choose another name"):
            run(source, tmp_path / name)
        assert "mine" in (tmp_path / f"{name}.aux.xml").read_text()
    run(source, tmp_path / "p.tif", scores=out, overwrite=True)
    assert not side.exists() and (tmp_path / "p.tif.aux.xml").exists()


@pytest.mark.parametrize(("least", "rows"), [(0.5, []), (0.6, [2])])
def test_the_least_share_of_valid_values_is_of_the_cells_own(tmp_path: Path, least: float, rows: list[int]) -> None:
    values = np.ones((3, 48, 48), np.uint16)
    values[:, 20:24] = 0
    source = raster(tmp_path / "a.tif", values, nodata=0)
    run(source, tmp_path / "o.tif", window=16, stride=8, min_valid=least)
    assert np.unique(np.argwhere(read(tmp_path / "o.tif")[0] == NODATA)[:, 0]).tolist() == rows
