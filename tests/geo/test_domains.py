"""Sentinel-2, elevation and land cover of one place, through a small MultiMAE with random weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds
from torch import Tensor

from eo_zoo import create_model, mmearth, registry
from eo_zoo.errors import InputError
from eo_zoo.geo.domains import DomainStack, open_domains
from eo_zoo.geo.embed import embed_raster
from eo_zoo.geo.job import Log
from eo_zoo.geo.run import Embedding
from eo_zoo.models.multimae import MultiMae
from eo_zoo.models.multimae_domains import DOMAINS, RASTERS, WORLDCOVER, standardize_depth
from eo_zoo.sensors import Statistics, get_order, get_statistics
from tests.geo import rasters
from tests.models.multimae import TINY

X, Y = rasters.ORIGIN
UTM, LONLAT = CRS.from_epsg(32632), CRS.from_epsg(4326)
BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
SIDE = 100  # pixels of 10 m
ALL = ("s2", "dem", "worldcover")
CODES = [code for code in WORLDCOVER if code != 255]


@pytest.fixture(scope="module")
def model() -> MultiMae:
    torch.manual_seed(0)
    return create_model("multimae_eo_base", pretrained=False, **TINY)


def elevation(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """A plane in longitude and latitude, some 100 m high over the scene."""
    return 500 + 6000 * (lon - 10.27) - 4000 * (lat - 45.14)


def place(second: float, margin: float = 0.003) -> dict[str, Any]:
    """Origin and size of a raster in EPSG:4326 that reaches around the scene."""
    left, bottom, right, top = transform_bounds(UTM, LONLAT, X, Y - 10 * SIDE, X + 10 * SIDE, Y)
    pixel = second / 3600
    left, top = left - margin, top + margin
    shape = (int((top - bottom + margin) / pixel), int((right + margin - left) / pixel))
    return dict(transform=Affine(pixel, 0, left, 0, -pixel, top), crs="EPSG:4326", shape=shape)


def centres(t: Affine, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    return t.c + columns * t.a, t.f + rows * t.e


def write(path: Path, values: np.ndarray, where: Mapping[str, Any], **options: Any) -> Path:
    return rasters.write_raster(path, values, transform=where["transform"], crs=where["crs"], **options)


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Path]:
    """Sentinel-2 in UTM, a DEM of one second and land cover of 0.3 seconds in degrees, as both are published."""
    s2 = np.stack([rasters.smooth(seed, SIDE, SIDE) for seed in range(len(BANDS))])
    s2[BANDS.index("B8A")] = s2[BANDS.index("B8")] + 200  # they see the same light
    dem, cover = place(1), place(0.3)
    codes = np.random.default_rng(5).choice(CODES, cover["shape"]).astype(np.uint8)
    return {
        "s2": rasters.write_raster(tmp_path / "s2.tif", s2, descriptions=BANDS, nodata=0),
        "dem": write(
            tmp_path / "z.tif", elevation(*centres(dem["transform"], dem["shape"])).astype(np.float32), dem,
            nodata=-9999,
        ),
        "worldcover": write(tmp_path / "codes.tif", codes, cover, nodata=0),
    }  # fmt: skip


def embed(sources: Mapping[str, Any], model: Any, out: Path | None, **options: Any) -> Embedding:
    return embed_raster(sources, model, out, overwrite=True, **options)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def box(row: int, col: int, rows: int, cols: int) -> tuple[float, float, float, float]:
    return X + 10 * col, Y - 10 * (row + rows), X + 10 * (col + cols), Y - 10 * row


def by_hand(three: Mapping[str, Path], row: int, col: int) -> dict[str, Tensor]:
    """The 56 x 56 pixels that begin there, as the model takes them, without a line of the package's reading."""
    stored = read(three["s2"])[:, row : row + 56, col : col + 56].astype(np.float32)
    t = Affine(10, 0, X + 10 * col, 0, -10, Y - 10 * row)
    east, north = centres(t, (56, 56))
    lon, lat = (np.reshape(x, (56, 56)) for x in transform(UTM, LONLAT, east.ravel(), north.ravel()))
    with rasterio.open(three["worldcover"]) as file:
        rows = np.floor((lat - file.transform.f) / file.transform.e).astype(int)
        columns = np.floor((lon - file.transform.c) / file.transform.a).astype(int)
        codes = file.read(1)[rows, columns]
    whole, aster = get_statistics("mmearth/s2-l2a"), get_statistics("mmearth/aster")
    made: dict[str, Tensor] = {}
    groups = {"rgb": ("B4", "B3", "B2"), "ired": ("B5", "B6", "B7"), "sired": ("B11", "B12"), "ebands": ("B8A", "B8")}
    for name, bands in groups.items():
        own = whole.select(bands)
        mean, std = (np.array(column, np.float32)[:, None, None] for column in (own.mean, own.std))
        made[name] = torch.from_numpy((stored[[BANDS.index(band) for band in bands]] - mean) / std)[None]
    z = (elevation(lon, lat) - aster.mean[0]) / aster.std[0]
    made["depth"] = standardize_depth(torch.from_numpy(z.astype(np.float32))[None, None])
    made["semseg"] = torch.from_numpy(np.searchsorted(CODES, codes[2::4, 2::4]))[None]
    return made


# ---- what the model is given, and what comes out ----


def test_a_tile_is_what_the_rasters_hold(three: dict[str, Path]) -> None:
    row, col = 31, 17
    with open_domains(three, Log()) as stack:
        found = stack.window(row, col, 56).tiles()
        again = stack.read(0, 0, 7, 12, (7, 12)).tiles([0, 5], 7)
        assert (stack.grid.crs, stack.grid.height, stack.grid.width) == (UTM, 100, 100)
    expected = by_hand(three, row, col)
    assert list(found) == list(DOMAINS)
    for name, x in expected.items():
        assert found[name].dtype == (torch.int64 if name == "semseg" else torch.float32)
        torch.testing.assert_close(found[name], x, atol=1e-3 if name == "depth" else 1e-5, rtol=1e-5)
    # of a row of tiles each is standardised by itself
    for name, x in by_hand(three, 0, 40).items():
        torch.testing.assert_close(again[name][1:], x, atol=1e-3 if name == "depth" else 1e-5, rtol=1e-5)


def test_a_map_is_the_mean_of_the_domains_maps(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    options: dict[str, Any] = dict(bbox=box(31, 17, 56, 56))
    with torch.no_grad():
        data = by_hand(three, 31, 17)
        first, last = model.forward_intermediates(data, norm=False, intermediates_only=True)
        tokens = model.forward_features(data)
    cases = {
        "mean": ({}, torch.stack(list(last.values())).mean(0)),
        "layer": ({"layer": 0}, torch.stack(list(first.values())).mean(0)),
        "one": ({"output_modality": "semseg"}, last["semseg"]),
    }
    for name, (own, expected) in cases.items():
        found = embed(three, model, tmp_path / f"{name}.tif", **options, **own)
        assert found.shape == (64, 7, 7) and found.nodata == 0
        np.testing.assert_allclose(read(tmp_path / f"{name}.tif"), expected[0].numpy(), atol=2e-3)
    with rasterio.open(tmp_path / "one.tif") as file:
        assert file.crs == UTM and file.transform[:6] == (80, 0, X + 170, 0, -80, Y - 310)
        assert file.descriptions[3] == "multimae_eo_base[1 semseg] 3" and file.tags()["OUTPUT_MODALITY"] == "semseg"
        tags = file.tags()
    assert tags["BATCH_SIZE"] == "8"
    assert json.loads(tags["INPUTS"]) == {"s2": "s2.tif", "dem": "z.tif", "worldcover": "codes.tif"}
    assert json.loads(tags["BANDS"])["rgb"] == list(get_order("multimae/rgb"))
    assert json.loads(tags["UNITS"]) | {"rgb": "dn", "depth": "m", "semseg": "class"} == json.loads(tags["UNITS"])
    for pool, expected in {"token": tokens[0, -1], "avg": tokens[0, :-1].mean(0)}.items():
        asked = create_model(
            "multimae_eo_base", pretrained=False, global_pool="global" if pool == "token" else pool, **TINY
        )
        asked.load_state_dict(model.state_dict())
        vector = embed(three, asked, None, pool=pool, **options).vector
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-3)
    with pytest.raises(InputError, match="the model pools by 'global', not 'avg'"):
        embed(three, model, None, pool="avg", **options)


def test_a_planted_change_shows_in_its_own_cell(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    """Of each input, through overlapping tiles: where it lies in its own pixels, there it is in the map's."""
    row, col = 3, 8  # of 13 x 13 cells of 80 m
    left, bottom, right, top = box(8 * row, 8 * col, 8, 8)
    embed(three, model, tmp_path / "before.tif")
    before = read(tmp_path / "before.tif")
    for key in ALL:
        values = read(three[key])
        with rasterio.open(three[key]) as file:
            near = transform_bounds(UTM, file.crs, left, bottom, right, top)
            window = rasterio.windows.from_bounds(*near, transform=file.transform).round()
            profile = dict(transform=file.transform, crs=file.crs, nodata=file.nodata, descriptions=file.descriptions)
        rows, columns = window.toslices()
        values[:, rows, columns] = {"s2": 9000, "dem": 900, "worldcover": 80}[key]
        changed = rasters.write_raster(tmp_path / "changed.tif", values, **profile)
        embed({**three, key: changed}, model, tmp_path / "after.tif")
        with rasterio.open(tmp_path / "after.tif") as file:
            change = np.abs(file.read() - before).sum(axis=0)
            found = np.unravel_index(change.argmax(), change.shape)
            assert file.shape == (13, 13) and found == (row, col), key
            assert file.xy(*found) == pytest.approx(((left + right) / 2, (bottom + top) / 2))


@pytest.mark.parametrize("keys", [("s2",), ("dem",), ("worldcover",), ("worldcover", "dem"), ("dem", "s2")])
def test_any_of_them(tmp_path: Path, three: dict[str, Path], model: MultiMae, keys: tuple[str, ...]) -> None:
    """The pixels are those of s2, else of the first; the order of the domains is always the same."""
    found = embed({key: three[key] for key in keys}, model, tmp_path / "o.tif", preview=tmp_path / "p.png")
    first = "s2" if "s2" in keys else keys[0]
    with rasterio.open(tmp_path / "o.tif") as file, rasterio.open(three[first]) as own:
        assert file.crs == own.crs and file.transform.a == pytest.approx(8 * own.transform.a)
        assert (file.transform.c, file.transform.f) == pytest.approx((own.transform.c, own.transform.f), abs=own.res[0])
        assert list(json.loads(file.tags()["BANDS"])) == [
            name for name in DOMAINS for key in keys if name in RASTERS[key]
        ]
        assert not np.isnan(file.read()).any() or keys == ("worldcover", "dem")
    assert found.preview and Image.open(tmp_path / "p.png").size[0] > 500
    colours = np.asarray(Image.open(tmp_path / "p.png")).astype(int)[:400, :400]
    assert (np.ptp(colours, axis=2).max() > 20) == ("s2" in keys)  # true colour, else one band in grey


def test_resolution_box_and_tile_cuts(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    notes: list[str] = []
    embed(three, model, tmp_path / "o.tif", resolution=20, overlap=0, report=lambda _, text: notes.append(text))
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.transform[:6] == (160, 0, X, 0, -160, Y) and file.shape == (7, 7)
        assert (file.tags()["TILE"], file.tags()["OVERLAP"], file.tags()["PATCH"]) == ("56", "0", "8")
    assert any("pixels are 20 m, the model was trained on 10 to 11.5 m" in text for text in notes)
    corner = transform_bounds(UTM, LONLAT, *box(20, 20, 40, 48))
    embed(three, model, tmp_path / "o.tif", bbox=corner, bbox_crs="EPSG:4326")
    with rasterio.open(tmp_path / "o.tif") as file:
        assert abs(file.transform.c - (X + 200)) <= 20 and abs(file.transform.f - (Y - 200)) <= 20
        assert 40 <= 8 * file.height < 64 and 48 <= 8 * file.width < 72


def test_cells_are_the_models_patches(tmp_path: Path, three: dict[str, Path]) -> None:
    coarse = create_model("multimae_eo_base", pretrained=False, patch_size=16, img_size=48, **TINY)
    found = embed(three, coarse, tmp_path / "o.tif")
    assert found.shape == (64, 7, 7) and found.transform[:6] == (160, 0, X, 0, -160, Y)


# ---- where inputs do not reach, or hold nothing ----


def test_only_the_common_part(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    """A DEM that ends inside the scene, and says nothing else than when the scene is cut to it."""
    where = place(1)
    t = where["transform"]
    lon, _ = transform(UTM, LONLAT, [X + 400.0], [Y - 500.0])
    cut = round((lon[0] - t.c) / t.a)
    short = Affine(t.a, 0, t.c + cut * t.a, 0, t.e, t.f)
    write(tmp_path / "short.tif", read(three["dem"])[:, :, cut:], {**where, "transform": short}, nodata=-9999)
    notes: list[str] = []
    sources = {**three, "dem": tmp_path / "short.tif"}
    embed(sources, model, tmp_path / "o.tif", report=lambda _, text: notes.append(text))
    [told] = [text for text in notes if "only the common part is used" in text]
    with rasterio.open(tmp_path / "o.tif") as file:
        assert file.transform.f == Y and file.height == 13
        start = round((file.transform.c - X) / 10)
        assert 36 <= start <= 42 and f"{100 - start} x 100 pixels" in told
    with open_domains(sources, Log()) as stack:
        valid = stack.window(0, 0, 56).masks()
        assert stack.rasters["rgb"].scene.read(0, 0, 1, 1)[1].all()
        left, bottom, *_ = stack.grid.bounds
    # its edge is not quite upright in UTM
    assert not valid["depth_mask"].all() and valid["depth_mask"][..., 6:].all() and valid["rgb_mask"].all()
    # and of three, where land cover ends on another side
    cover = place(0.3)
    low = {**cover, "transform": cover["transform"] @ Affine.translation(0, 60)}
    sources["worldcover"] = write(tmp_path / "low.tif", read(three["worldcover"])[:, 60:], low, nodata=0)
    for keys in (("s2", "dem", "worldcover"), ("s2", "worldcover", "dem")):
        with open_domains({key: sources[key] for key in keys}, Log()) as stack:
            assert stack.grid.bounds[:2] == (left, bottom) and stack.grid.bounds[2] == X + 10 * SIDE
            assert 60 <= stack.grid.height < 90


@pytest.fixture
def holes(tmp_path: Path, three: dict[str, Path]) -> dict[str, Path]:
    """Nothing is known of the first 40 x 40 pixels by s2, of all north of there by the DEM, and west by the cover."""
    made = {}
    for key, empty in {"s2": 0, "dem": -9999, "worldcover": 255}.items():
        values = read(three[key])
        with rasterio.open(three[key]) as file:
            profile = dict(transform=file.transform, crs=file.crs, descriptions=file.descriptions)
            x, y = centres(file.transform, file.shape)
            if file.crs != UTM:
                x, y = (np.reshape(one, file.shape) for one in transform(file.crs, UTM, x.ravel(), y.ravel()))
        known = {"s2": (x > X + 400) | (y < Y - 400), "dem": y < Y - 400, "worldcover": x > X + 400}[key]
        values[:, ~known] = empty
        # land cover does not say so: 255 is a code of MMEarth's
        nodata = None if key == "worldcover" else empty
        made[key] = rasters.write_raster(tmp_path / f"{key}_.tif", values, nodata=nodata, **profile)
    return made


def test_holes(tmp_path: Path, three: dict[str, Path], holes: dict[str, Path], model: MultiMae) -> None:
    with open_domains(holes, Log()) as stack:
        window = stack.window(0, 0, 56)
        data, masks = window.tiles(), window.masks()
    whole = by_hand(three, 0, 0)
    assert list(masks) == [f"{name}_mask" for name in DOMAINS]
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        f"{name}_mask": (1, 14, 14) if name == "semseg" else (1, domain.channels, 56, 56)
        for name, domain in DOMAINS.items()
    }
    rgb, depth, cover = (masks[f"{name}_mask"][0] for name in ("rgb", "depth", "semseg"))
    assert not rgb[:, :40, :40].any() and rgb[:, 40:].all() and rgb[:, :, 40:].all()
    torch.testing.assert_close(data["rgb"], torch.where(rgb, whole["rgb"], 0))
    edge = 3  # pixels that the DEM's are wide
    assert not depth[:, : 40 - edge].any() and depth[:, 40 + edge :].all()
    assert not data["depth"][0][~depth].any()
    # what is known is standardised by itself: the middle 80 % have mean 0 and variance 1
    known = data["depth"][0][depth].sort().values
    middle = known[len(known) // 10 : len(known) * 9 // 10]
    assert middle.mean().abs() < 1e-4 and 0.98 < middle.var() < 1  # less the 1e-6 of 1e-4
    assert not cover[:, :9].any() and cover[:, 11:].all()
    assert torch.equal(data["semseg"][0], torch.where(cover, whole["semseg"][0], 11))
    # a cell of which nothing at all is known is empty, and what is left counts as a share
    embed(holes, model, tmp_path / "o.tif")
    empty = np.isnan(read(tmp_path / "o.tif")[0])
    assert empty[:4, :4].all() and not empty[5:].any() and not empty[:, 5:].any()
    embed(holes, model, tmp_path / "o.tif", min_valid=0.9)
    empty = np.isnan(read(tmp_path / "o.tif")[0])
    assert empty[:4].all() and empty[:, :4].all() and not empty[6:12, 6:12].any()


@pytest.mark.parametrize("nodata", [None, 0, 7])
def test_land_cover_that_is_not_known(tmp_path: Path, three: dict[str, Path], nodata: float | None) -> None:
    """By WorldCover's 0, whether the file says so or not, or by the file's own."""
    codes = read(three["worldcover"])
    codes[:] = 7 if nodata == 7 else 0
    path = write(tmp_path / "empty.tif", codes, place(0.3), nodata=nodata)
    with open_domains({**three, "worldcover": path}, Log()) as stack:
        window = stack.window(0, 0, 56)
        assert (window.tiles()["semseg"] == 11).all() and not window.masks()["semseg_mask"].any()
        assert stack.read(0, 0, 7, 7, (7, 7)).shares.max() == pytest.approx(5 / 6)
        assert stack.rasters["semseg"].tally.valid.sum() == 0


def test_beyond_the_grid_nothing_is_known(three: dict[str, Path]) -> None:
    with open_domains(three, Log()) as stack:
        masks = stack.window(80, -16, 56).masks()
    for name, mask in masks.items():
        stride = 4 if name == "semseg_mask" else 1
        assert (
            mask[..., : 20 // stride, 16 // stride :].all()
            and mask.sum() == mask[..., : 20 // stride, 16 // stride :].numel()
        )


# ---- bands and statistics ----


def test_bands_that_are_not_there(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    values = read(three["s2"])
    ten = rasters.write_raster(tmp_path / "ten.tif", values[[0, 1, 2, 6]], descriptions=["B2", "B3", "B4", "B8"])
    notes: list[str] = []
    found = embed({"s2": ten}, model, tmp_path / "o.tif", report=lambda _, text: notes.append(text))
    assert any(
        text == "s2: gives rgb only: ired needs B05, B06, B07; sired needs B11, B12; ebands needs B8A beside its bands"
        for text in notes
    )
    with rasterio.open(tmp_path / "o.tif") as file:
        assert list(json.loads(file.tags()["BANDS"])) == ["rgb"]
    assert found.shape == (64, 13, 13)
    two = rasters.write_raster(tmp_path / "two.tif", values[[0, 6]], descriptions=["B2", "B8"])
    with pytest.raises(
        InputError, match=r"s2: its bands .* are all of no domain of the model: rgb needs B04, B03; ired"
    ):
        embed({"s2": two, "dem": three["dem"]}, model, tmp_path / "o.tif")


def test_bands_at_their_own_resolutions_in_a_folder(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    folder = rasters.s2_folder(tmp_path / "s2", size=600)
    notes: list[str] = []
    found = embed({**three, "s2": folder}, model, tmp_path / "o.tif", report=lambda _, text: notes.append(text))
    assert found.shape == (64, 8, 8) and found.transform[:6] == (80, 0, X, 0, -80, Y)
    assert any("s2: left out, as the model does not take them: aerosol" in text for text in notes)
    assert any(text.startswith("dem: warped from EPSG:4326, pixels of 25.9") and "bilinear" in text for text in notes)
    assert any("worldcover: warped from" in text and text.endswith("(nearest)") for text in notes)
    assert sum("normalised with the statistics 'mmearth/s2-l2a'" in text for text in notes) == 1


def test_statistics(tmp_path: Path, three: dict[str, Path]) -> None:
    def tile(**options: Any) -> dict[str, Tensor]:
        with open_domains(three, Log(), **options) as stack:
            return stack.window(0, 0, 56).tiles()

    recorded = tile()
    bands = get_order("multimae/rgb")
    flat = Statistics("flat", "S2", "dn", bands, (1000.0,) * 3, (500.0,) * 3)
    values = read(three["s2"])[[2, 1, 0], :56, :56].astype(np.float32)
    (tmp_path / "flat.json").write_text(json.dumps(flat.to_dict()))
    for stats in (flat, tmp_path / "flat.json", str(tmp_path / "flat.json"), {"rgb": flat}):
        found = tile(stats=stats)
        torch.testing.assert_close(found["rgb"][0], torch.from_numpy((values - 1000) / 500))
        assert torch.equal(found["ired"], recorded["ired"])  # the others are the recorded ones
    # elevation is standardised by itself, so its own statistics count for a hundredth on slopes of some 10 m
    hills = Statistics("hills", "DEM", "m", ("elevation",), (10.0,), (50.0,))
    torch.testing.assert_close(tile(stats={"dem": hills})["depth"], recorded["depth"], atol=2e-2, rtol=0)
    level = tile(sensor="S2-L1C")["rgb"]
    own = get_statistics("mmearth/s2-l1c").select(bands)
    mean, std = (torch.tensor(column)[:, None, None] for column in (own.mean, own.std))
    torch.testing.assert_close(level[0], (torch.from_numpy(values) - mean) / std)
    item = json.loads(rasters.stac_item(tmp_path / "item.json", {"B02": "s2.tif"}).read_text())
    names = {band: band[0] + band[1:].zfill(2) for band in BANDS}  # as the item calls them
    assets = {}
    for i, band in enumerate(BANDS):
        rasters.write_raster(tmp_path / f"{band}.tif", read(three["s2"])[i], nodata=0)
        assets[band] = {"href": str(tmp_path / f"{band}.tif"), "eo:bands": [{"name": names[band]}], "roles": ["data"]}
    (tmp_path / "item.json").write_text(json.dumps({**item, "collection": "sentinel-2-l1c", "assets": assets}))
    with open_domains({"s2": tmp_path / "item.json"}, Log()) as stack:
        assert stack.rasters["rgb"].statistics.name == "mmearth/s2-l1c"
        torch.testing.assert_close(stack.window(0, 0, 56).tiles()["rgb"], level)
    share = Statistics("share", "S2", "reflectance", bands, (0.1,) * 3, (0.05,) * 3)
    with pytest.raises(InputError, match=r"s2: the statistics are in different units \(rgb reflectance, ired dn"):
        tile(stats=share)
    # where only such domains are wanted, values become what the statistics are in
    torch.testing.assert_close(
        tile(stats=share, takes=("rgb", "depth", "semseg"), units={"s2": "dn"})["rgb"], tile(stats=flat)["rgb"]
    )


def test_options_by_input(tmp_path: Path, three: dict[str, Path]) -> None:
    def tile(sources: Mapping[str, Path], **options: Any) -> dict[str, Tensor]:
        with open_domains(sources, Log(), **options) as stack:
            return stack.window(0, 0, 56).tiles()

    recorded = tile(three)
    shifted = rasters.write_raster(tmp_path / "shifted.tif", read(three["s2"]) + 1000, descriptions=BANDS)
    bare = rasters.write_raster(tmp_path / "bare.tif", read(three["s2"]))
    both = np.concatenate([np.zeros_like(read(three["dem"])), read(three["dem"])])
    slope = write(tmp_path / "slope.tif", both, place(1))
    for sources, options in (
        ({**three, "s2": shifted}, {"boa_offset": -1000}),  # of s2, as no other has one
        ({**three, "s2": shifted}, {"boa_offset": {"s2": -1000}}),
        ({**three, "s2": bare}, {"bands": {"s2": BANDS}, "nodata": {"s2": 0}}),
        ({**three, "dem": slope}, {"bands": {"dem": ["-", "elevation"]}}),
    ):
        found = tile(sources, **options)
        assert all(torch.equal(found[name], x) for name, x in recorded.items())


def test_one_crs_under_two_names_is_not_warped(tmp_path: Path, three: dict[str, Path]) -> None:
    """UTM 32 on ETRS89 has the coordinates of that on WGS 84."""
    values = np.arange(2500, dtype=np.float32).reshape(50, 50)
    log = Log()
    dem = rasters.write_raster(tmp_path / "e.tif", values, pixel=20, crs="EPSG:25832", nodata=-1)
    with open_domains({"s2": three["s2"], "dem": dem}, log) as stack:
        made, valid = stack.rasters["depth"].scene.read(1, 1, 97, 97)
    assert valid.all() and made[0, 0, 0] == 0.75 * (0.75 * 0 + 0.25 * 1) + 0.25 * (0.75 * 50 + 0.25 * 51)
    assert "dem: pixels of 20 m resampled to the common ones of 10 m (bilinear)" in log.notes


@pytest.mark.parametrize("pixel", [7, 10, 25])
def test_labels_in_the_scenes_own_crs_are_those_of_the_nearest_pixel(
    tmp_path: Path, three: dict[str, Path], pixel: int
) -> None:
    count = 1100 // pixel
    codes = np.random.default_rng(3).choice(CODES, (count, count)).astype(np.uint8)
    path = rasters.write_raster(tmp_path / "utm.tif", codes, pixel=pixel, origin=(X - 33, Y + 21), nodata=0)
    with open_domains({"s2": three["s2"], "worldcover": path}, Log()) as stack:
        made, valid = stack.rasters["semseg"].scene.read(0, 0, SIDE, SIDE)
    rows, columns = ((10 * np.arange(SIDE) + 5 + shift) // pixel for shift in (21, 33))
    assert valid.all() and np.array_equal(made[0], codes[np.ix_(rows, columns)])


# ---- what cannot be ----


def test_a_void_that_the_samples_miss_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    heights = np.full((1, 4000, 4000), 300, np.int16)
    heights[0, 1001:1040, 1001:1040] = -9999
    path = rasters.write_raster(tmp_path / "z.tif", heights, pixel=10, origin=(X, Y))
    with open_domains({"dem": path}, log := Log()) as stack:
        assert not log.warnings or "elevation" not in str(log.warnings)
        assert stack.window(0, 0, 56).masks()["depth_mask"].all()
        with pytest.raises(InputError, match=r"dem: its elevation is -9999 in places, .* as --nodata dem=-9999"):
            stack.window(980, 980, 56)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"worldcovr": "codes"}, {}, "unknown input 'worldcovr'. Did you mean 'worldcover'"),
        ({"rgb": "s2"}, {}, "unknown input 'rgb'. Known: dem, s2, worldcover"),
        ({"dem": "far"}, {}, r"the inputs cover no common area: s2 600000, .* in EPSG:32632; dem 11, .* in EPSG:4326"),
        ({"worldcover": "far"}, {}, "the inputs cover no common area"),
        ({"worldcover": "wrong"}, {}, r"worldcover: \d+ land-cover values are no ESA WorldCover code \(11\): expected"),
        ({"dem": "s2"}, {}, "dem: s2.tif: its 10 bands carry no names"),
        ({"worldcover": "s2"}, {}, "worldcover: s2.tif: its 10 bands carry no names"),
        ({"s2": "dem"}, {}, "s2: z.tif: neither its band's description nor its file name holds a band of S2"),
        ({"dem": "nowhere"}, {}, "dem: nowhere.tif: has no CRS"),
        ({"dem": "void"}, {}, "dem: its elevation is -32767 in places, expected metres .* as --nodata dem=-9999"),
        ({"dem": "high"}, {}, "dem: its elevation is 32767 in places, expected metres from -1000 to 9000"),
        ({}, {"units": {"dem": "dn"}}, "dem: .*dn cannot be converted to m of DEM"),
        ({}, {"units": {"dm": "m"}}, "units is given for 'dm', but the inputs are s2, dem, worldcover"),
        ({}, {"stats": "mmearth/s2"}, "unknown set of statistics"),
        ({}, {"sensor": "L8"}, "s2: sensor is L8, expected S2"),
        ({}, {"output_modality": "red"}, "output_modality is 'red', expected one of the domains: rgb, ired, sired"),
        ({}, {"layer": 2}, "layer 2 does not exist: the model has 2"),
        ({}, {"overlap": 7}, "an overlap of 7 pixels does not fit"),
        ({}, {"bbox": (0, 0, 1, 1)}, "s2: --bbox 0, 0, 1, 1 .* lies outside the scene"),
        ({}, {"resolution": 500}, "the image is 2 x 2 pixels, smaller than one patch"),
        ({}, {"patch_size": 10}, "patch_size: only for models of inputs at their own resolutions"),
        ({}, {"start": "2020-01-01"}, "start: only for models of inputs at their own resolutions"),
        ({}, {"pool": "token", "output_modality": "rgb"}, "output_modality only apply to maps"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_used(
    tmp_path: Path, three: dict[str, Path], model: MultiMae, change: dict[str, str], options: dict[str, Any], words: str
) -> None:
    codes = read(three["worldcover"])
    codes[0, 60:90, 60:90] = 11
    write(tmp_path / "wrong.tif", codes, place(0.3))
    rasters.write_raster(tmp_path / "far.tif", codes, transform=Affine(0.001, 0, 11, 0, -0.001, 46), crs="EPSG:4326")
    rasters.write_raster(tmp_path / "nowhere.tif", codes, crs=None)
    for name, height in (("void", -32767), ("high", 32767)):
        write(tmp_path / f"{name}.tif", np.full(place(1)["shape"], height, np.int16), place(1))
    paths = {"codes": three["worldcover"], "dem": three["dem"], "s2": three["s2"]}
    named = {key: paths.get(name, tmp_path / f"{name}.tif") for key, name in change.items()}
    with pytest.raises(InputError, match=words) as raised:
        embed({**three, **named}, model, None if "pool" in options else tmp_path / "o.tif", **options)
    assert "\n" not in str(raised.value)


def test_inputs_by_name_only(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    for source in (three["s2"], {}):
        with pytest.raises(
            InputError, match=r"takes its inputs by name: give --input s2=INPUT.* of s2, dem, worldcover"
        ):
            embed_raster(source, model, tmp_path / "o.tif")
    rgb = create_model("multimae_eo_base", pretrained=False, in_domains=("rgb", "depth"), **TINY)
    with pytest.raises(InputError, match="the model was built without semseg, so it has no use for worldcover"):
        embed(three, rgb, tmp_path / "o.tif")
    two = {key: three[key] for key in ("s2", "dem")}
    embed(two, rgb, tmp_path / "o.tif")
    with rasterio.open(tmp_path / "o.tif") as file:
        assert list(json.loads(file.tags()["BANDS"])) == ["rgb", "depth"]


def test_an_input_without_a_valid_value_is_warned_of(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    empty = write(tmp_path / "empty.tif", np.full(place(1)["shape"], -9999, np.int16), place(1), nodata=-9999)
    warnings: list[str] = []
    embed(
        {**three, "dem": empty}, model, tmp_path / "o.tif",
        report=lambda kind, text: warnings.append(text) if kind == "warning" else None,
    )  # fmt: skip
    assert warnings == ["dem: no valid value was found where the inputs overlap: is its nodata value right?"]
    high = write(tmp_path / "high.tif", np.full(place(1)["shape"], 8000, np.int16), place(1))
    told = embed({**three, "dem": high}, model, tmp_path / "o.tif").warnings
    assert len(told) == 1 and told[0].startswith("dem: ") and "elevation" in told[0]
    with pytest.raises(InputError, match="sensor is given for 's2', but the inputs are dem"):
        embed({"dem": empty}, model, tmp_path / "o.tif", sensor="S2-L1C")
    with pytest.raises(InputError, match="the image is all nodata"):
        embed({"dem": empty}, model, tmp_path / "o.tif")


def test_what_is_warned_of_an_input_is_warned_of_once(tmp_path: Path, three: dict[str, Path], model: MultiMae) -> None:
    """Though it fills four domains."""
    folder = rasters.s2_folder(tmp_path / "S2B_MSIL2A_20230101T000000_N0509_R001_T32TPR_20230101T000000")
    found = embed({"s2": folder}, model, tmp_path / "o.tif")
    assert sum("processing baseline 05.09" in text for text in found.warnings) == 1


# ---- by name ----


def test_a_name_is_built_with_the_domains_that_there_are(
    tmp_path: Path, three: dict[str, Path], model: MultiMae, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint of all of them, in the official layout."""
    tensors = {name.replace("blocks.", "encoder.", 1): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": tensors}, tmp_path / "w.pth")
    monkeypatch.setattr(registry, "create_model", functools.partial(registry.create_model, **TINY))
    two = {key: three[key] for key in ("dem", "worldcover")}
    named: dict[str, Any] = dict(model="multimae_eo_base", weights=tmp_path / "w.pth")
    embed(two, out=tmp_path / "named.tif", **named)
    embed(two, model, tmp_path / "given.tif")
    np.testing.assert_allclose(read(tmp_path / "named.tif"), read(tmp_path / "given.tif"), atol=1e-5)
    found, expected = embed(two, out=None, pool="token", **named), embed(two, model, None, pool="token")
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-5)
    asked = create_model("multimae_eo_base", pretrained=False, global_pool="avg", **TINY)
    asked.load_state_dict(model.state_dict())
    found, expected = embed(two, out=None, pool="avg", **named), embed(two, asked, None, pool="avg")
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-5)
    with rasterio.open(tmp_path / "named.tif") as file:
        assert file.tags()["WEIGHTS"].startswith("w.pth sha256") and file.tags()["MODEL"] == "multimae_eo_base"
    # of a file without the others' adapters too
    fewer = {name: tensor for name, tensor in tensors.items() if "semseg" not in name and "rgb" not in name}
    torch.save({"model": fewer}, tmp_path / "w.pth")
    assert embed({"dem": three["dem"]}, out=tmp_path / "o.tif", **named).shape[0] == 64
    with pytest.raises(InputError, match="overlap of 9 pixels"):  # before weights are looked for
        embed(two, "multimae_eo_base", tmp_path / "o.tif", weights=tmp_path / "none.pth", overlap=9)


def test_mmearths_own_file_of_statistics(tmp_path: Path, three: dict[str, Path]) -> None:
    file = tmp_path / "data_band_stats.json"
    whole = {"mean": [100.0 * i for i in range(13)], "std": [10.0] * 13}
    aster = {"mean": [100.0, 5.0], "std": [50.0, 2.0]}
    file.write_text(json.dumps({"sentinel2_l2a": whole, "sentinel2_l1c": whole, "aster": aster}))
    assert mmearth.band_stats(file)["s2"].mean[1:4] == (100, 200, 300)
    with open_domains(three, Log(), stats=file) as stack:
        assert isinstance(stack, DomainStack) and stack.rasters["rgb"].statistics.mean == (300, 200, 100)
        found = stack.window(0, 0, 56).tiles()["rgb"][0]
    values = torch.from_numpy(read(three["s2"])[[2, 1, 0], :56, :56].astype(np.float32))
    torch.testing.assert_close(found, (values - torch.tensor([300.0, 200, 100])[:, None, None]) / 10)
