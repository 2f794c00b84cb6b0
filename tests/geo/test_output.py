from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.windows import Window

from eo_zoo import __version__
from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.geo.output import (
    Components,
    MapWriter,
    Thumbnail,
    write_preview,
    write_vector,
)
from eo_zoo.geo.run import Options, embed_scene
from tests.geo.fakes import BANDS, CHANNELS, FakeModel, FakeScene, noise, statistics

CRS_UTM = CRS.from_epsg(32629)
TRANSFORM = Affine(160, 0, 500_000, 0, -160, 3_000_000)


def write(path: Path, data: np.ndarray, strips: int, out_dtype: str = "float32", tags: dict | None = None) -> None:
    with MapWriter(
        path, data.shape, crs=CRS_UTM, transform=TRANSFORM, out_dtype=out_dtype,
        descriptions=[f"m[11] {i}" for i in range(len(data))],
    ) as writer:  # fmt: skip
        for top in range(0, data.shape[1], strips):
            writer.write(data[:, top : top + strips])
        writer.finish(tags or {"A": "1"})


def some_map(rows: int, cols: int, channels: int = 4) -> np.ndarray:
    data = np.random.default_rng(1).normal(size=(channels, rows, cols)).astype(np.float32)
    data[:, rows // 2, cols // 3] = np.nan
    return data


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 64), (65, 130), (200, 20)])
@pytest.mark.parametrize("strips", [1, 10, 64, 1000])
def test_map_reads_back_whatever_strips_it_came_in(tmp_path: Path, shape: tuple[int, int], strips: int) -> None:
    data = some_map(*shape)
    write(tmp_path / "map.tif", data, strips)
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(), data)
        assert (file.crs, file.transform) == (CRS_UTM, TRANSFORM)
        assert file.dtypes == ("float32",) * 4 and all(map(np.isnan, file.nodatavals))
        assert file.descriptions == ("m[11] 0", "m[11] 1", "m[11] 2", "m[11] 3")
        assert file.profile["compress"] == "deflate" and file.profile["interleave"] == "band"
        side = min(64, -(-max(shape) // 16) * 16)
        assert set(file.block_shapes) == {(side, side)}


def test_strips_and_tags_leave_no_dead_space(tmp_path: Path) -> None:
    data = some_map(300, 200)
    write(tmp_path / "a.tif", data, 10)
    write(tmp_path / "b.tif", data, 300)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    # Every block's size as GDAL reports it, against the file's.
    with rasterio.open(tmp_path / "a.tif") as file:
        blocks = sum(
            int(file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band))
            for band in file.indexes for x in range(4) for y in range(5)
        )  # fmt: skip
    assert (tmp_path / "a.tif").stat().st_size < blocks + 6000


def test_float16_is_rounded_and_half_the_size(tmp_path: Path) -> None:
    data = some_map(100, 130)
    write(tmp_path / "16.tif", data, 30, "float16")
    write(tmp_path / "32.tif", data, 30)
    with rasterio.open(tmp_path / "16.tif") as file:
        np.testing.assert_array_equal(file.read(), data.astype(np.float16).astype(np.float32))
        assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"
        assert np.isnan(file.nodata)
    assert (tmp_path / "16.tif").stat().st_size < 0.65 * (tmp_path / "32.tif").stat().st_size


def test_float16_overflow_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="70000, more than float16"):
        write(tmp_path / "x.tif", np.full((1, 4, 4), 70_000, np.float32), 4, "float16")


def test_tags_say_how_the_map_was_made(tmp_path: Path) -> None:
    embed_scene(
        FakeScene(noise(50, 60)), FakeModel(), statistics(),
        Options(out=tmp_path / "out.tif", batch_size=3, min_valid=0.25), name="fake_net.demo",
        source="scene.tif",
    )  # fmt: skip
    with rasterio.open(tmp_path / "out.tif") as file:
        tags, descriptions = file.tags(), file.descriptions
    assert descriptions == tuple(f"fake_net.demo[2] {i}" for i in range(CHANNELS))
    expected = {
        "EO_ZOO_VERSION": __version__, "MODEL": "fake_net.demo", "SENSOR": "S2", "UNITS": "dn", "PATCH": "4",
        "TILE": "24", "OVERLAP": "12", "BATCH_SIZE": "3", "DTYPE": "float32", "DEVICE": "cpu",
        "MIN_VALID": "0.25",
        "SOURCE": "scene.tif", "LAYER": "2 (0 to 2)", "NOTES": "[]", "WARNINGS": "[]",
        "WEIGHTS": f"fake_net.demo sha256 {'ab' * 32} verified",
    }  # fmt: skip
    assert {name: tags[name] for name in expected} == expected
    assert json.loads(tags["BANDS"]) == list(BANDS)
    assert json.loads(tags["STATISTICS"]) == statistics().to_dict()
    assert list(json.loads(tags["CLIPPED"])) == list(BANDS)
    assert not re.search(r"/somewhere|/tmp|20\d\d-", json.dumps(tags))  # no folders, no times


@pytest.mark.parametrize("name", ["v.npy", "v.json"])
def test_vector_reads_back(tmp_path: Path, name: str) -> None:
    vector = np.random.default_rng(0).normal(size=7).astype(np.float32)
    write_vector(tmp_path / name, vector, {"MODEL": "m", "BANDS": '["a"]', "CLIPPED": '{"a": 0.5}'})
    if name == "v.npy":
        found = np.load(tmp_path / name)
    else:
        content = json.loads((tmp_path / name).read_text())
        found = np.array(content.pop("embedding"), np.float32)
        assert content == {"model": "m", "bands": ["a"], "clipped": {"a": 0.5}}
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vector)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("missing", [500_000, 50])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, missing: int) -> None:
    # Missing 50 bytes, only the directory at the file's end is cut, which GDAL does not report on closing.
    data = some_map(256, 256)
    write(tmp_path / "whole.tif", data, 64)
    size = (tmp_path / "whole.tif").stat().st_size
    (tmp_path / "whole.tif").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=r"failed .*is the disk full"),
            replacing(tmp_path / "out.tif") as path,
        ):
            write(path, data, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


# ---- preview ----


@pytest.mark.parametrize("shape", [(30, 41), (2048, 100), (1500, 3001)])
def test_thumbnail_is_the_mean_of_its_pixels_however_they_come(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).uniform(0, 100, (2, *shape))
    valid = np.random.default_rng(4).uniform(size=values.shape) > 0.2
    thumbnail = Thumbnail(shape, [1])
    for row in range(0, shape[0], 700):
        for col in range(0, shape[1], 37):
            part = np.s_[:, row : row + 700, col : col + 37]
            thumbnail.add(row, col, values[part], valid[part])
    factor = -(-max(shape) // 1024)
    assert thumbnail.shape == (-(-shape[0] // factor), -(-shape[1] // factor))
    assert max(thumbnail.shape) <= 1024
    for row, col in ((0, 0), (3, 5), (thumbnail.shape[0] - 1, thumbnail.shape[1] - 1)):
        part = np.s_[1, row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
        known = values[part][valid[part]]
        expected = known.mean() if known.size else np.nan
        np.testing.assert_allclose(thumbnail.picture()[:, row, col], expected)


def test_components_are_those_of_all_cells_in_a_fixed_sign() -> None:
    generator = np.random.default_rng(0)
    data = (generator.normal(size=(900, 6)) @ generator.normal(size=(6, 6)) + 1000).T.reshape(6, 30, 30)
    data[:, 3, 3:9] = np.nan
    components = Components(6)
    for top in range(0, 30, 7):
        components.add(data[:, top : top + 7].astype(np.float32))
    mean, directions = components.basis()
    cells = data[:, ~np.isnan(data[0])].T
    _, _, expected = np.linalg.svd(cells - cells.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, cells.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.abs(directions), np.abs(expected[:3]), atol=1e-3)
    assert (directions[range(3), np.abs(directions).argmax(axis=1)] > 0).all()


def test_preview_shows_the_input_and_the_embedding(tmp_path: Path) -> None:
    """Left quarter red, the rest blue, a hole; the map tells the two apart at the same place."""
    values = np.random.default_rng(0).uniform(0, 50, (3, 96, 128))
    values[2, :, :32] += 700  # red_2
    values[0, :, 32:] += 700  # blue_1
    valid = np.ones(values.shape, bool)
    valid[:, 40:64, 80:104] = False
    result = embed_scene(
        FakeScene(values, valid), FakeModel(mixing=0.001), statistics(),
        Options(out=tmp_path / "out.tif", preview=tmp_path / "out.png"), name="fake_net",
    )  # fmt: skip
    assert result.preview == tmp_path / "out.png"
    page = np.asarray(Image.open(tmp_path / "out.png"))
    zoom = 4  # 128 pixels are enlarged to 512
    assert page.shape == (96 * zoom + 24, 2 * 128 * zoom + 8, 3)
    left, right = page[: 96 * zoom, : 128 * zoom], page[: 96 * zoom, 128 * zoom + 8 :]
    red, _, blue = left[10 * zoom, 5 * zoom].astype(int), None, left[10 * zoom, 60 * zoom].astype(int)
    assert red[0] > 150 and red[2] < 100 and blue[2] > 150 and blue[0] < 100
    for half in (left, right):
        assert (half[52 * zoom, 92 * zoom] == 255).all()  # the hole
        assert not (half[30 * zoom, 92 * zoom] == 255).all()
    inside = right.astype(int)[: 36 * zoom]
    one, other = inside[:, : 31 * zoom].mean(axis=(0, 1)), inside[:, 33 * zoom :].mean(axis=(0, 1))
    assert np.abs(one - other).max() > 100
    assert (page[96 * zoom :] < 128).any()  # the captions


def test_preview_of_few_channels_and_one_band(tmp_path: Path) -> None:
    thumbnail, components = Thumbnail((64, 64), [0]), Components(2)
    thumbnail.add(0, 0, np.arange(4096.0).reshape(1, 64, 64), np.ones((1, 64, 64), bool))
    data = some_map(16, 16, 2)
    components.add(data)
    write(tmp_path / "map.tif", data, 16)
    write_preview(tmp_path / "p.png", thumbnail, components, tmp_path / "map.tif", patch=4, captions=("a" * 500, "b"))
    page = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert np.ptp(page[:512, :512], axis=2).max() == 0  # grey
    assert (page[:512, 520:, 2] == 128).any()  # the third component does not exist


def test_preview_of_a_large_map_reads_rows_of_blocks(tmp_path: Path) -> None:
    """A step at cell 90 of 150 shows at the same share of the picture, over several rows of blocks."""
    data = np.random.default_rng(0).normal(size=(3, 150, 20)).astype(np.float32)
    data[:, 90:] += 50
    thumbnail, components = Thumbnail((150 * 16 - 5, 20 * 16), [0]), Components(3)
    thumbnail.add(0, 0, np.ones((1, *thumbnail.extent)), np.ones((1, *thumbnail.extent), bool))
    components.add(data)
    write(tmp_path / "map.tif", data, 64)
    write_preview(tmp_path / "p.png", thumbnail, components, tmp_path / "map.tif", patch=16, captions=("", ""))
    page = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    assert thumbnail.factor == 3 and thumbnail.shape == (799, 107)
    first = page[:799, 107 + 8 + 50, 0]
    step = np.abs(np.diff(first)).argmax() + 1
    assert step == 90 * 16 // 3
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.read(1, window=Window(0, 90, 1, 1))[0, 0] > 30
