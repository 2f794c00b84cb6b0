from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from qwen_vl_utils.vision_process import to_rgb
from rasterio.windows import Window as RasterioWindow

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.vlm.boxes import Window
from eo_zoo.vlm.layers import mapped
from eo_zoo.vlm.pictures import open_picture
from tests.geo.rasters import S2_COMMON, s2_folder, smooth, stac_item, write_raster
from tests.hub_server import HubServer

SAHARA = Path(__file__).parents[2] / "examples" / "sahara"
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def array_of(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def palette_image() -> Image.Image:
    return Image.fromarray(noise(20, 30, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)


def transparent_palette(path: Path) -> None:
    palette_image().save(path, transparency=bytes([0, 128, 255]))


PICTURES = {
    "rgb.png": lambda path: Image.fromarray(noise(20, 30, 3)).save(path),
    "rgba.png": lambda path: Image.fromarray(noise(20, 30, 4)).save(path),
    "grey.png": lambda path: Image.fromarray(noise(20, 30)).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(noise(20, 30, 2), mode="LA").save(path),
    "palette.png": lambda path: palette_image().save(path),
    "transparent_palette.png": transparent_palette,
    "one_bit.png": lambda path: Image.fromarray(noise(20, 30)).convert("1").save(path),
    "rgb.jpg": lambda path: Image.fromarray(noise(20, 30, 3)).save(path),
    "cmyk.jpg": lambda path: Image.fromarray(noise(20, 30, 3)).convert("CMYK").save(path),
    "rgb.webp": lambda path: Image.fromarray(noise(20, 30, 3)).save(path),
    "rgba.webp": lambda path: Image.fromarray(noise(20, 30, 4)).save(path, lossless=True),
    "rgb.tif": lambda path: Image.fromarray(noise(20, 30, 3)).save(path),
    "rgba.tif": lambda path: Image.fromarray(noise(20, 30, 4)).save(path),
    "palette.tif": lambda path: palette_image().save(path),
    "one_bit.tif": lambda path: Image.fromarray(noise(20, 30)).convert("1").save(path),
}


@pytest.mark.filterwarnings("ignore:.*'mode' parameter:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", PICTURES)
def test_bytes_are_those_of_the_published_pipeline(name, tmp_path):
    path = tmp_path / name
    PICTURES[name](path)
    with Image.open(path) as image:
        expected = np.asarray(to_rgb(image))
    with open_picture(path) as picture:
        assert picture.size == (30, 20) and picture.source == name
        assert (array_of(picture.read()) == expected).all()
        assert (array_of(picture.read(Window(3, 5, 10, 20))) == expected[3:13, 5:25]).all()
        assert picture.crs is picture.transform is None
        assert not picture.warnings


def test_sixteen_bit_greys_are_stretched_not_cut_off(tmp_path):
    values = np.linspace(1000, 9000, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    with open_picture(tmp_path / "grey.png") as picture:
        shown = array_of(picture.read())
        assert "stretched from percentile 2 to 98" in picture.notes[0]
    assert shown.min() == 0 and shown.max() == 255 and len(np.unique(shown)) > 200
    assert (shown[..., 0] == shown[..., 2]).all()


def test_pil_images_and_arrays():
    values = noise(20, 30, 4)
    with open_picture(Image.fromarray(values)) as picture:
        assert (array_of(picture.read()) == np.asarray(to_rgb(Image.fromarray(values)))).all()
        assert picture.source == "the image"
    with open_picture(values[..., :3]) as picture:
        assert (array_of(picture.read()) == values[..., :3]).all()
        with open_picture(picture) as same:
            assert (array_of(same.read()) == values[..., :3]).all()
        assert (array_of(picture.read()) == values[..., :3]).all()  # still open
    for wrong in (values, values[..., 0], values[..., :3] / 255.0, np.zeros((0, 3, 3), np.uint8)):
        with pytest.raises(
            InputError, match=r"the array is .*, expected bytes \(uint8\) of shape \(height, width, 3\)"
        ):
            open_picture(wrong)


# ---- rasters ----


def test_alpha_nodata_masks_and_nan_are_white(tmp_path):
    rgb, hole = noise(3, 40, 50) // 2 + 1, np.zeros((40, 50), bool)
    hole[5:20, 10:30] = True
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    colours = ["red", "green", "blue", "alpha"]
    files = {
        "alpha": write_raster(tmp_path / "alpha.tif", np.stack([*rgb, alpha]), photometric="rgb", alpha="yes"),
        "nodata": write_raster(tmp_path / "nodata.tif", np.where(hole, 0, rgb).astype(np.uint8), nodata=0),
        "mask": write_raster(tmp_path / "mask.tif", rgb, mask=alpha),
        "said": write_raster(tmp_path / "said.tif", np.where(hole, 0, rgb).astype(np.uint8)),
        "nan": write_raster(
            tmp_path / "nan.tif", np.where(hole, np.nan, rgb).astype(np.float32), colours=colours[:3], photometric="rgb"
        ),
    }
    for name, path in files.items():
        options = {"nodata": 0} if name == "said" else {"stretch": "none"} if name == "nan" else {}
        with open_picture(path, **options) as picture:
            shown = array_of(picture.read())
            assert (shown[hole] == 255).all(), name
            assert (shown[~hole] == np.moveaxis(rgb, 0, -1)[~hole]).all(), name
            assert picture.valid() == pytest.approx(1 - hole.mean())
            assert picture.valid(Window(5, 10, 15, 20)) == 0 and picture.valid(Window(20, 0, 10, 10)) == 1


def test_a_byte_of_nodata_in_one_band_is_a_colour(tmp_path):
    values = np.zeros((3, 4, 4), np.uint8)
    values[0, :2] = 200
    with open_picture(write_raster(tmp_path / "red.tif", values, nodata=0)) as picture:
        shown = array_of(picture.read())
    assert (shown[:2] == (200, 0, 0)).all() and (shown[2:] == 255).all()


def test_partly_transparent_pixels_are_mixed_with_white(tmp_path):
    values = np.stack([np.full((8, 8), 100, np.uint8)] * 3 + [np.full((8, 8), 51, np.uint8)])
    values[3, 1:] = 255
    with open_picture(write_raster(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")) as picture:
        shown = array_of(picture.read())
    assert (shown[0] == 224).all() and (shown[1:] == 100).all()


def test_decibels_with_nodata_in_grey(tmp_path):
    values = np.tile(np.linspace(-25, 0, 100, dtype=np.float32), (50, 1))
    values[:5] = -99
    path = write_raster(tmp_path / "vv.tif", values, nodata=-99)
    with open_picture(path) as picture:
        shown = array_of(picture.read())
        assert picture.notes == ["vv.tif: stretched from percentile 2 to 98: band 1 -24.5 to -0.5"]
    assert (shown[:5] == 255).all() and shown[5, 0, 0] == 0 and (np.diff(shown[5, :, 0].astype(int)) >= 0).all()


def test_infinite_values_count_as_missing(tmp_path):
    values = smooth(1, 20, 20).astype(np.float32)
    values[0] = -np.inf
    with open_picture(write_raster(tmp_path / "log.tif", values)) as picture:
        assert picture.valid() == pytest.approx(0.95) and (array_of(picture.read())[0] == 255).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float32", "float64"])
def test_all_types_of_numbers(dtype, tmp_path):
    values = np.linspace(-100 if dtype[0] != "u" else 0, 100, 400).reshape(20, 20).astype(dtype)
    with open_picture(write_raster(tmp_path / "a.tif", values)) as picture:
        shown = array_of(picture.read())[..., 0]
    expected = np.interp(values, np.percentile(values, (2, 98)), (0, 255))
    assert np.abs(shown - expected).max() <= 1


def test_a_pixel_is_the_same_in_every_window(tmp_path):
    s2_folder(tmp_path / "s2", size=1200)
    with open_picture(tmp_path / "s2", bands="B11,B08,B04") as picture:  # 20 m beside 10 m
        whole = array_of(picture.read())
        assert whole.shape == (120, 120, 3)
        for window in (Window(0, 0, 1, 1), Window(17, 31, 40, 50), Window(80, 90, 40, 30)):
            rows, columns = slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)
            assert (array_of(picture.read(window)) == whole[rows, columns]).all()
        for window in (Window(0, 0, 121, 1), Window(-1, 0, 4, 4), Window(3, 3, 0, 4)):
            with pytest.raises(InputError, match="is not inside its 120 x 120 pixels"):
                picture.read(window)


def test_stac_item_in_true_colour_else_by_bands(tmp_path):
    bands = {f"B{i:02}": str(write_raster(tmp_path / f"b{i}.tif", smooth(i, 60, 60), nodata=0)) for i in (2, 3, 4)}
    picture_of_item = noise(3, 60, 60)
    write_raster(tmp_path / "TCI.tif", picture_of_item)
    assert S2_COMMON["B04"] == "red"
    plain = stac_item(tmp_path / "plain.json", bands)
    visual = stac_item(
        tmp_path / "visual.json",
        bands,
        assets={"visual": {"href": "TCI.tif", "type": "image/tiff", "roles": ["visual"]}},
    )
    with open_picture(visual) as picture:
        assert (array_of(picture.read()) == np.moveaxis(picture_of_item, 0, -1)).all()
        assert picture.notes == ["the item's picture in true colour, TCI.tif, is shown"]
    for item, how in ((plain, {}), (visual, {"bands": ["red", "green", "blue"]})):
        with open_picture(item, stretch="0:4000", **how) as picture:
            shown = array_of(picture.read())
            assert picture.crs == "EPSG:32632" and picture.transform == Affine(10, 0, 600000, 0, -10, 5000040)
            assert any(note.startswith("shown as red, green, blue: B04 (red04)") for note in picture.notes)
        for i, band in enumerate((4, 3, 2)):
            assert np.abs(shown[..., i] - smooth(band, 60, 60) / 4000 * 255).max() <= 0.51


def test_the_item_in_the_repository():
    with open_picture(SAHARA / "item.json") as picture:
        assert picture.size == (504, 504) and picture.crs == "EPSG:32629"
        assert "shown as red, green, blue: B04 (red), B03 (green), B02 (blue)" in picture.notes
        shown = array_of(picture.read())
        assert 0.01 < (shown == 0).mean() < 0.03 and 0.01 < (shown == 255).mean() < 0.03
    with open_picture(SAHARA / "item.json", bbox=(-11.8, 24.4, -11.6, 24.6), bbox_crs="EPSG:4326") as part:
        assert part.size == (208, 227)
        column, row = mapped(~picture.transform, part.transform.c, part.transform.f)
    assert (column, row) == pytest.approx((round(column), round(row)))


def test_bbox_cuts_one_file(tmp_path):
    values = noise(3, 40, 50)
    path = write_raster(tmp_path / "a.tif", values)
    with open_picture(path, bbox=(600050, 5000040 - 300, 600250, 5000040 - 100)) as picture:
        assert (array_of(picture.read()) == np.moveaxis(values[:, 10:30, 5:25], 0, -1)).all()
        assert picture.transform == Affine(10, 0, 600050, 0, -10, 4999940)
    with pytest.raises(InputError, match="lies outside the scene"):
        open_picture(path, bbox=(0, 0, 1, 1))
    PICTURES["rgb.png"](tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: has no CRS, so its place is unknown"):
        open_picture(tmp_path / "a.png", bbox=(0, 0, 1, 1))


def test_rotated_pixels_keep_their_place(tmp_path):
    turned = Affine(1.73, 1.5, 500000, 1, -2.6, 4000000)
    path = write_raster(tmp_path / "a.tif", noise(3, 20, 30), transform=turned)
    with open_picture(path) as picture:
        assert picture.transform.almost_equals(turned, 1e-6) and picture.crs == "EPSG:32632"
    with pytest.raises(InputError, match="rotated or sheared"):
        open_picture(path, bbox=(0, 0, 1, 1))


def test_world_file_without_crs_is_said(tmp_path):
    PICTURES["rgb.png"](tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text("2\n0\n0\n-2\n1001\n1999\n")
    with open_picture(tmp_path / "a.png") as picture:
        assert picture.crs is None and picture.transform == Affine(2, 0, 1000, 0, -2, 2000)
        assert picture.notes == ["a.png: has a pixel grid but no CRS; set it with gdal_edit.py -a_srs EPSG:CODE"]


def test_ground_control_points_alone_are_no_place(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, 10 + c, 50 - r) for r, c in ((0, 0), (0, 9), (9, 0))]
    path = tmp_path / "gcp.tif"
    with rasterio.open(path, "w", driver="GTiff", count=3, height=10, width=10, dtype="uint8") as file:
        file.write(noise(3, 10, 10))
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    with open_picture(path) as picture:
        assert picture.crs is picture.transform is None
        assert "ground control points or RPCs only" in picture.notes[0]


def test_exif_orientation_and_frames_are_said(tmp_path):
    image = Image.fromarray(noise(20, 30, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "a.webp", save_all=True, append_images=[Image.fromarray(noise(20, 30, 3))])
    with open_picture(tmp_path / "a.jpg") as picture:
        assert picture.size == (30, 20) and "EXIF orientation" in picture.warnings[0]
    with open_picture(tmp_path / "a.webp") as picture:
        assert picture.warnings == ["a.webp: the first of its 2 frames is shown"]


# ---- bad input ----


def test_what_is_no_image_is_said_in_a_sentence(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image at all")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    whole = io.BytesIO()
    Image.fromarray(noise(99, 99, 3)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    for name, sentence in {
        "none.tif": "no such file",
        "none.png": "no such file",
        "text.tif": "not a raster that can be read",
        "empty.tif": "not a raster that can be read",
        "broken.png": "not an image that can be read",
        "cut.jpg": "not an image that can be read",
        "folder": "no rasters in this folder",
    }.items():
        with pytest.raises(InputError, match=f"{name}: {sentence}"):
            open_picture(tmp_path / name)
    with pytest.raises(InputError, match="the image is NoneType, expected a path"):
        open_picture(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the image: is 0 x 5 pixels, expected at least one"):
        open_picture(Image.new("RGB", (0, 5)))


def test_values_that_cannot_be_shown(tmp_path):
    for name, values, options, sentence in (
        ("constant", np.full((3, 9, 9), 7, np.uint16), {}, "all valid pixels have the value 7: nothing to stretch"),
        ("nodata", np.zeros((3, 9, 9), np.uint16), {"nodata": 0}, "no pixel with data was found"),
        ("nan", np.full((9, 9), np.nan, np.float32), {}, "no pixel with data was found"),
        ("complex", np.ones((9, 9), np.complex64), {}, "holds complex numbers"),
    ):
        with pytest.raises(InputError, match=sentence):
            open_picture(write_raster(tmp_path / f"{name}.tif", values, **options))
    with pytest.raises(InputError, match="no pixel with data was found"):
        open_picture(Image.new("RGBA", (5, 5)))


def test_a_large_png_is_not_decoded(tmp_path, monkeypatch):
    PICTURES["rgb.png"](tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(InputError, match=r"a\.png: has more pixels than are decoded.*gdal_translate -co TILED=YES"):
        open_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # PIL warns from one time to two times the limit
    open_picture(tmp_path / "a.png").close()


def test_a_corrupt_block_is_told_when_it_is_read(tmp_path):
    path = write_raster(
        tmp_path / "a.tif", noise(3, 64, 64), compress="deflate", tiled=True, blockxsize=16, blockysize=16
    )
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(data)
    with open_picture(path) as picture, pytest.raises(InputError, match=r"cannot be read .* may be corrupt"):
        picture.read()


# ---- the web ----


def test_addresses(tmp_path):
    values = noise(3, 40, 50)
    tiff = write_raster(tmp_path / "a.tif", values).read_bytes()
    rgba = io.BytesIO()
    Image.fromarray(noise(20, 30, 4)).save(rgba, "PNG")
    bands = {f"B{i:02}": write_raster(tmp_path / f"b{i}.tif", smooth(i, 60, 60)) for i in (2, 3, 4)}
    item = stac_item(tmp_path / "item.json", {band: path.name for band, path in bands.items()}).read_bytes()
    with HubServer() as hub:
        hub.add("o/r", "a.tif", tiff)
        hub.add("o/r", "image", rgba.getvalue())
        for path in bands.values():
            hub.add("o/r", path.name, path.read_bytes())
        hub.add("o/r", "items/scene", item)
        hub.add("o/r", "item.json", item)
        hub.add("o/r", "down", b"").status = 503
        with open_picture(f"{hub.url}/o/r/a.tif?key=secret") as picture:
            assert (array_of(picture.read()) == np.moveaxis(values, 0, -1)).all() and picture.source == "a.tif"
        with open_picture(f"{hub.url}/o/r/image") as picture:
            assert (array_of(picture.read()) == np.asarray(to_rgb(Image.open(rgba)))).all()
        with open_picture(f"{hub.url}/o/r/item.json") as picture:
            assert picture.size == (60, 60)
        with pytest.raises(InputError, match=r"none\.tif"):
            open_picture(f"{hub.url}/o/r/none.tif")
        with pytest.raises(InputError, match="the server answers 404"):
            open_picture(f"{hub.url}/o/r/none.png")
        with pytest.raises(DownloadError, match="the server answers 503"):
            open_picture(f"{hub.url}/o/r/down")


# ---- large ones ----


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """40,000 x 40,000 pixels, most of its tiles not stored; a bright square in the lower right."""
    path = tmp_path_factory.mktemp("large") / "large.tif"
    profile = dict(driver="GTiff", count=1, height=40000, width=40000, dtype="uint16", nodata=0, sparse_ok=True)
    place = Affine(1, 0, 500000, 0, -1, 4500000)
    with rasterio.open(
        path, "w", tiled=True, blockxsize=512, blockysize=512, crs="EPSG:32632", transform=place, **profile
    ) as file:
        for i in range(8):
            corner = 512 * 10 * i
            values = np.linspace(100, 1000, 512 * 512).reshape(1, 512, 512).astype("uint16")
            file.write(values, window=RasterioWindow(corner, corner, 512, 512))
    return path


def peak() -> int:
    """Most memory that this process ever had, in MB; starts anew."""
    most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(most.split()[1]) // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is asked of Linux")
def test_large_rasters_need_little_memory(large):
    peak()
    before = peak()
    with open_picture(large) as picture:
        assert picture.thumbnail(600).size == (600, 600)
        stored = Window(5120, 5120, 512, 512)
        shown = array_of(picture.read(stored))
        assert shown.min() == 0 and shown.max() == 255 and picture.valid(stored) == 1
        assert 0 < picture.valid() < 0.01
    assert peak() - before < 350


def test_reduced_pictures_are_means_and_small_ones_stay(tmp_path):
    values = noise(3, 40, 60)
    with open_picture(write_raster(tmp_path / "a.tif", values)) as picture:
        assert picture.thumbnail(30).size == (30, 20)
        means = values.reshape(3, 20, 2, 30, 2).mean(axis=(2, 4))
        assert np.abs(array_of(picture.thumbnail(30)) - np.moveaxis(means, 0, -1)).max() <= 1
        for same in (picture.thumbnail(60), picture.thumbnail(2000)):
            assert (array_of(same) == np.moveaxis(values, 0, -1)).all()
