from __future__ import annotations

import json
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.geo.scene import open_scene
from eo_zoo.sensors import get_sensor
from tests.geo.rasters import ORIGIN, S2_PIXELS, s2_folder, smooth, stac_item, write_raster

S2 = get_sensor("S2").band_names


def opened(source, **said):
    return open_scene(
        source,
        **{
            "default_sensor": "S2",
            "accepts": {*S2, "red_1", "green_1", "blue_3"},
            "target_units": "dn",
            **said,
        },
    )


def whole(source, **said):
    with opened(source, **said) as scene:
        return scene.read(0, 0, scene.grid.height, scene.grid.width)


def refused(source, words, **said):
    with pytest.raises(InputError, match=words) as caught:
        opened(source, **said)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return s2_folder(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def hrefs():
    return {band: f"{band}.tif" for band in S2_PIXELS}


def three(tmp_path, dtype="uint16", **options):
    values = np.stack([smooth(seed, 40, 50) for seed in range(3)]).astype(dtype)
    return write_raster(tmp_path / "three.tif", values, **options), values


# ---- names ----


def test_bands_by_description_in_the_sensors_order(tmp_path):
    path, values = three(tmp_path, descriptions=["B04", "B03", "B02"])
    with opened(path) as scene:
        assert scene.bands == ("blue_1", "green_2", "red_2")
        assert scene.units == "dn" and scene.sensor == "S2"
        found, valid = scene.read(0, 0, 40, 50)
    assert np.array_equal(found, values[::-1]) and found.dtype == np.float32 and valid.all()


@pytest.mark.parametrize(
    "names",
    [
        ["02 - Blue", "08A - Vegetation Red Edge", "12 - SWIR"],
        [
            "B2, central wavelength 490 nm",
            "B8A, central wavelength 865 nm",
            "B12, central wavelength 2190 nm",
        ],
        ["blue", "nir08", "swir22"],
        ["BLUE", "NIR_NARROW", "SWIR_2"],
    ],
)
def test_descriptions_of_many_kinds(tmp_path, names):
    path, _ = three(tmp_path, descriptions=names)
    with opened(path) as scene:
        assert scene.bands == ("blue_1", "near_infrared_3", "short_wave_infrared_4")


def test_bands_given_by_name(tmp_path):
    path, values = three(tmp_path)
    with opened(path, bands=["B8A", "b4", "blue"]) as scene:
        assert scene.bands == ("near_infrared_3", "red_2", "blue_1")
        assert np.array_equal(scene.read(0, 0, 40, 50)[0], values)


def test_never_by_position(tmp_path):
    path, _ = three(tmp_path)
    refused(path, "3 bands carry no names.*--bands")
    path, _ = three(tmp_path, descriptions=["Band 1", "Band 2", "Band 3"])
    refused(path, "3 bands carry no names.*found: Band 1")


def test_number_and_words_must_agree(tmp_path):
    path, _ = three(tmp_path, descriptions=["02 - Blue", "05 - NIR", "03 - Green"])  # Landsat 8's numbers
    refused(path, "'05 - NIR' is red_edge_1 .* near_infrared_1")
    with opened(path, bands=["B02", "B08", "B03"]) as scene:  # what the user says is not held up by it
        assert scene.bands[1] == "near_infrared_1"


def test_ambiguous_description(tmp_path):
    path, _ = three(tmp_path, descriptions=["blue", "rededge", "red"])
    refused(path, "ambiguous.*red_edge_1.*red_edge_2")


def test_count_of_bands(tmp_path):
    path, _ = three(tmp_path)
    refused(path, "has 3 bands, but --bands names 2", bands=["B02", "B03"])
    refused(path, "given twice: red_2", bands=["B02", "B4", "B04"])
    refused(path, "unknown band 'B99'", bands=["B02", "B03", "B99"])
    path, _ = three(tmp_path, descriptions=["B02", "B04", "B4"])
    refused(path, "given twice: red_2")


def test_given_names_against_descriptions(tmp_path):
    path, _ = three(tmp_path, descriptions=["B02", "B03", "B04"])
    with opened(path, bands=["B04", "B03", "B02"]) as scene:
        assert scene.bands == ("red_2", "green_2", "blue_1")
        assert "descriptions" in scene.warnings[0]


def test_bands_the_model_does_not_take(tmp_path):
    path, values = three(tmp_path, descriptions=["B09", "B10", "B11"])
    with opened(path) as scene:
        assert scene.bands == ("short_wave_infrared_1", "short_wave_infrared_3")
        assert any("left out" in note and "short_wave_infrared_2" in note for note in scene.notes)
        assert np.array_equal(scene.read(0, 0, 40, 50)[0], values[[0, 2]])
    refused(path, "takes none of the bands", accepts={"blue_1"})
    path, _ = three(tmp_path, descriptions=["B09", "quality", "B11"])
    with opened(path) as scene:
        assert any("quality" in note for note in scene.notes)


def test_single_band_by_file_name(tmp_path):
    path = write_raster(tmp_path / "S1A_IW_GRDH_20200219_vv.tif", np.full((20, 20), -12, np.float32))
    with opened(path, sensor="S1", target_units="db", accepts={"microwave_1"}) as scene:
        assert scene.bands == ("microwave_1",)
    refused(path, "file name.*--bands")


def test_rgb_by_colour_only_for_rgb(tmp_path):
    path, _ = three(tmp_path, dtype="uint8", colours=["red", "green", "blue"])
    refused(path, "carry no names")
    with opened(path, sensor="RGB", target_units="uint8") as scene:
        assert scene.bands == ("red_1", "green_1", "blue_3")
        assert any("colour interpretation" in note for note in scene.notes)


# ---- folders ----


def test_folder(folder):
    with opened(folder) as scene:
        assert scene.bands == S2
        assert (scene.grid.width, scene.grid.height) == (60, 60)
        assert scene.grid.crs == CRS.from_epsg(32632)
        assert scene.grid.transform == Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1])
        assert scene.warnings == []
        found, valid = scene.read(0, 0, 60, 60)
    assert valid.all()
    assert np.array_equal(found[S2.index("red_2")], smooth(2, 60, 60))
    fine = smooth(4, 600, 600)[5::10, 5::10]  # the same wave, sampled finely: interpolation must follow it
    assert np.abs(found[S2.index("red_edge_1")] - fine)[1:-1, 1:-1].max() < 5


def test_folder_with_other_files(tmp_path):
    folder = s2_folder(tmp_path, name="T29RKH_20200219T112111_{band}_{pixel}m.tif")
    write_raster(folder / "T29RKH_20200219T112111_SCL_20m.tif", np.zeros((30, 30), np.uint8), pixel=20)
    write_raster(folder / "T29RKH_20200219T112111_TCI_10m.tif", np.zeros((3, 60, 60), np.uint8))
    (folder / "item.json").write_text("{}")
    with opened(folder) as scene:
        assert scene.bands == S2
        assert any(note.startswith("not used") and "TCI_10m.tif" in note for note in scene.notes)
        assert any(note.startswith("cloud masks not used") and "SCL_20m.tif" in note for note in scene.notes)


def test_finest_file_wins(tmp_path):
    coarse, fine = smooth(1, 30, 30), smooth(2, 60, 60)
    write_raster(tmp_path / "R20m" / "x_B04_20m.tif", coarse, pixel=20)
    write_raster(tmp_path / "R10m" / "x_B04_10m.tif", fine, pixel=10)
    with opened(tmp_path) as scene:
        assert np.array_equal(scene.read(0, 0, 60, 60)[0][0], fine)
        assert any("finer" in note for note in scene.notes)
    write_raster(tmp_path / "R10m" / "y_B04.tif", fine, pixel=10)
    refused(tmp_path, "band given twice: red_2.*x_B04_10m.tif and y_B04.tif")


def test_chosen_bands_of_a_folder(folder):
    with opened(folder, bands=["B11", "red"]) as scene:
        assert scene.bands == ("short_wave_infrared_3", "red_2")
        assert scene.grid.transform.a == 10
    with opened(folder, bands=["B11", "B09"]) as scene:
        assert scene.grid.transform.a == 20 and scene.grid.width == 30
    refused(folder, "short_wave_infrared_2 not found; there are .*red_2", bands=["B04", "B10"])


def test_two_bands_in_a_file_name(tmp_path):
    write_raster(tmp_path / "B04_B08.tif", smooth(0, 9, 9))
    refused(tmp_path, "several bands .*'B04' is red_2, 'B08' is near_infrared_1")


def test_description_against_file_name(tmp_path):
    write_raster(tmp_path / "B04.tif", smooth(0, 9, 9), descriptions=["B08"])
    with opened(tmp_path) as scene:
        assert scene.bands == ("near_infrared_1",) and "B04.tif" in scene.warnings[0]


# ---- STAC items ----


@pytest.mark.parametrize("version", ["1.1.0", "1.0.0"])
def test_item_equals_folder(folder, hrefs, tmp_path, version):
    there = {band: str(folder / href) for band, href in hrefs.items()}
    item = stac_item(tmp_path / "item.json", there, version=version)
    with opened(item) as scene:
        assert scene.bands == S2 and scene.sensor == "S2"
        assert any("scale 0.0001" in note for note in scene.notes)
    for ours, theirs in zip(whole(item), whole(folder), strict=True):
        assert np.array_equal(ours, theirs)
    from_dict = whole(json.loads(item.read_text()))
    assert np.array_equal(from_dict[0], whole(folder)[0])


def test_relative_and_file_hrefs(tmp_path, hrefs):
    s2_folder(tmp_path / "bands of a scene")
    written = {band: f"./bands of a scene/{href}" for band, href in hrefs.items()}
    written["B04"] = (tmp_path / "bands of a scene" / "B04.tif").as_uri()
    item = stac_item(tmp_path / "item.json", written)
    assert np.array_equal(whole(item)[0], whole(tmp_path / "bands of a scene")[0])
    alone = json.loads(item.read_text())
    refused(alone, "relative")
    alone["links"] = [{"rel": "self", "href": str(item)}]
    assert np.array_equal(whole(alone)[0], whole(item)[0])


@pytest.mark.parametrize("version", ["1.1.0", "1.0.0"])
def test_scale_offset_and_nodata_of_the_item(folder, hrefs, tmp_path, version):
    bare = write_raster(tmp_path / "B04.tif", np.array([[0, 1500], [2000, 900]], np.uint16))
    item = stac_item(tmp_path / "item.json", {"B04": bare.name}, version=version, offset=-0.1, nodata=0)
    with opened(item) as scene:
        values, valid = scene.read(0, 0, 2, 2)
        assert any("nodata 0" in note for note in scene.notes)
    assert values.tolist() == [[[0, 500], [1000, -100]]]
    assert valid.tolist() == [[[False, True], [True, True]]]
    refused(item, "twice", boa_offset=-1000)
    assert whole(item, boa_offset=0)[0].tolist() == [[[0, 1500], [2000, 900]]]


def test_files_own_scale_comes_first(tmp_path):
    write_raster(tmp_path / "B04.tif", np.full((2, 2), 2000, np.uint16), scale=0.0001, offset=-0.05)
    item = stac_item(tmp_path / "item.json", {"B04": "B04.tif"}, offset=-0.1)
    assert (whole(item)[0] == 1500).all()
    assert (whole(tmp_path / "B04.tif")[0] == 1500).all()


def test_offset_that_was_taken_off_already(tmp_path):
    write_raster(tmp_path / "B04.tif", np.full((2, 2), 2000, np.uint16))
    applied = {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.10"}
    item = stac_item(tmp_path / "item.json", {"B04": "B04.tif"}, offset=-0.1, properties=applied)
    with opened(item) as scene:
        assert (scene.read(0, 0, 2, 2)[0] == 2000).all()
        assert scene.warnings == [] and any("boa_offset_applied" in note for note in scene.notes)


@pytest.mark.parametrize(("baseline", "warned"), [("02.14", False), ("04.00", True), ("05.11", True)])
def test_baseline_without_offset_warns(tmp_path, baseline, warned):
    write_raster(tmp_path / "B04.tif", np.full((2, 2), 2000, np.uint16))
    item = stac_item(tmp_path / "i.json", {"B04": "B04.tif"}, properties={"s2:processing_baseline": baseline})
    with opened(item) as scene:
        assert any("--boa-offset -1000" in text for text in scene.warnings) == warned
    with opened(item, boa_offset=-1000) as scene:
        assert scene.warnings == [] and (scene.read(0, 0, 1, 1)[0] == 1000).all()
    product = tmp_path / f"S2A_MSIL2A_20240101T112111_N{baseline.replace('.', '')}_R037_T29RKH_20240101T.SAFE"
    write_raster(product / "GRANULE" / "L2A" / "IMG_DATA" / "R10m" / "T29RKH_B04_10m.tif", smooth(0, 6, 6))
    with opened(product) as scene:
        assert any("--boa-offset -1000" in text for text in scene.warnings) == warned


def test_twins(tmp_path):
    for number, name in enumerate(("cog", "plain", "first", "jp2")):
        write_raster(tmp_path / f"{name}.tif", np.full((6, 6), 1000 + number, np.uint16))
    types = {"jp2": "image/jp2", "plain": "image/tiff; application=geotiff", "other": "image/vnd.tiff-like"}
    twin = {key: {"href": f"{key}.tif", "type": media, "bands": [{"name": "B04"}]} for key, media in types.items()}
    item = stac_item(tmp_path / "i.json", {}, assets={"jp2": twin["jp2"], "plain": twin["plain"]})
    assert (whole(item)[0] == 1001).all()
    cog = {**twin["plain"], "href": "cog.tif", "type": twin["plain"]["type"] + "; profile=cloud-optimized"}
    item = stac_item(tmp_path / "i.json", {}, assets={**twin, "cog": cog, "again": {**cog, "href": "first.tif"}})
    with opened(item) as scene:
        assert (scene.read(0, 0, 6, 6)[0] == 1000).all()
        assert sum("same band" in note and "cog (not " in note for note in scene.notes) == 1
    # an address that cannot be read here loses, whatever its type
    item = stac_item(tmp_path / "i.json", {}, assets={"s3": {**cog, "href": "s3://x/y.tif"}, "jp2": twin["jp2"]})
    assert (whole(item)[0] == 1003).all()


def test_assets_that_are_no_bands(tmp_path):
    write_raster(tmp_path / "B04.tif", smooth(0, 6, 6))
    media = {"type": "image/tiff; application=geotiff", "href": "missing.tif"}
    rgb = [{"name": name} for name in ("red", "green", "blue")]
    more = {
        "visual": {**media, "bands": rgb},  # by key, as some catalogues call its role "data"
        "picture": {**media, "roles": ["visual"], "bands": rgb},
        "thumbnail": {"href": "x.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "granule": {"href": "x.xml", "type": "application/xml", "roles": ["metadata"]},
        "scl": {**media, "roles": ["data"]},
    }
    with opened(stac_item(tmp_path / "i.json", {"B04": "B04.tif"}, assets=more)) as scene:
        assert scene.bands == ("red_2",)
        assert any("scl" in note and "visual" not in note for note in scene.notes)


def test_asset_key_is_the_last_resort(tmp_path):
    write_raster(tmp_path / "x.tif", np.full((6, 6), 0.1, np.float32))
    assets = {"vv": {"href": "x.tif", "type": "image/tiff", "roles": ["data"]}}
    item = stac_item(tmp_path / "i.json", {}, assets=assets, properties={"platform": "SENTINEL-1A"})
    with opened(item, accepts={"microwave_1"}, target_units="db", units="linear") as scene:
        assert scene.sensor == "S1" and scene.bands == ("microwave_1",)
        assert scene.read(0, 0, 6, 6)[0] == pytest.approx(-10)


def test_multi_band_asset(tmp_path):
    values = np.stack([smooth(seed, 6, 6) for seed in range(3)])
    write_raster(tmp_path / "stack.tif", values)
    names = [{"name": "B04"}, {"name": "QA"}, {"name": "B02"}]
    assets = {"stack": {"href": "stack.tif", "type": "image/tiff", "bands": names}}
    with opened(stac_item(tmp_path / "i.json", {}, assets=assets)) as scene:
        assert scene.bands == ("blue_1", "red_2")
        assert np.array_equal(scene.read(0, 0, 6, 6)[0], values[[2, 0]])
    assets["stack"]["bands"] = names[:2]
    refused(stac_item(tmp_path / "i.json", {}, assets=assets), "has 2 bands, but .* are 3")


def test_name_before_common_name(tmp_path):
    write_raster(tmp_path / "x.tif", smooth(0, 6, 6))
    band = {"name": "rededge1", "eo:common_name": "rededge"}
    assets = {"x": {"href": "x.tif", "type": "image/tiff", "bands": [band]}}
    with opened(stac_item(tmp_path / "i.json", {}, assets=assets)) as scene:
        assert scene.bands == ("red_edge_1",)
    band["name"] = "something"
    refused(stac_item(tmp_path / "i.json", {}, assets=assets), "asset 'x'.*ambiguous.*red_edge_1")


def test_platform_decides_the_sensor(tmp_path):
    write_raster(tmp_path / "x.tif", smooth(0, 6, 6))
    assets = {"nir": {"href": "x.tif", "type": "image/tiff", "bands": [{"name": "B5"}]}}
    landsat = stac_item(tmp_path / "i.json", {}, assets=assets, properties={"platform": "landsat-8"})
    with opened(landsat, accepts={"oli_near_infrared"}) as scene:
        assert scene.sensor == "L8" and scene.bands == ("oli_near_infrared",)
    refused(landsat, "platform is landsat-8, but --sensor says S2", sensor="S2")
    old = stac_item(tmp_path / "i.json", {}, assets=assets, properties={"platform": "landsat-5"})
    refused(old, "'landsat-5' is no sensor known")
    refused(old, "platform is landsat-5, but --sensor says S2", sensor="S2")
    both = stac_item(tmp_path / "i.json", {}, assets=assets)
    with opened(both, sensor="S2-L1C") as scene:
        assert scene.sensor == "S2-L1C" and scene.bands == ("red_edge_1",)


def test_hrefs_that_cannot_be_read(tmp_path, hrefs):
    refused(stac_item(tmp_path / "i.json", {"B04": "s3://bucket/B04.tif"}), "s3://bucket/B04.tif.*https")
    refused(stac_item(tmp_path / "i.json", {"B04": "B04.tif"}), "B04.tif: no such file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected a STAC Item with assets, found a list"),
        ('{"type": "FeatureCollection", "features": [1, 2]}', "FeatureCollection of 2 items"),
        ('{"type": "Feature", "geometry": null}', "Feature without assets"),
        ('{"type": "Feature", "assets": {}}', "none of its assets"),
    ],
)
def test_not_an_item(tmp_path, text, words):
    (tmp_path / "item.json").write_text(text)
    refused(tmp_path / "item.json", words)
    refused(tmp_path / "missing.json", "cannot be read")


class Quiet(SimpleHTTPRequestHandler):
    """Static files; the path of an item of an API has no suffix."""

    def translate_path(self, path):
        return super().translate_path(path.replace("/items/scene", "/item.json").partition("?")[0])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    httpd = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_item_and_hrefs_over_http(tmp_path, hrefs, server):
    local = whole(s2_folder(tmp_path))
    some = {band: f"{href}?token=a" for band, href in hrefs.items() if band in ("B04", "B05")}
    stac_item(tmp_path / "item.json", {**hrefs, **some})
    for address in (f"{server}/item.json", f"{server}/items/scene"):
        if address.endswith("scene"):  # relative hrefs start at the item's own address
            stac_item(tmp_path / "item.json", {band: f"../{href}" for band, href in hrefs.items()})
        assert np.array_equal(whole(address)[0], local[0])
    with opened(f"{server}/B04.tif") as scene:
        assert scene.bands == ("red_2",)
    refused(f"{server}/B03x.tif", "B03x.tif")
    refused(f"{server}/missing.json", "404")


def test_server_down(server):
    port = int(server.rpartition(":")[2])
    with pytest.raises(DownloadError, match="cannot be fetched"):
        opened(f"http://127.0.0.1:{port + 1 if port < 65535 else port - 1}/item.json")


# ---- the grid ----


def test_no_crs(tmp_path):
    refused(write_raster(tmp_path / "B04.tif", smooth(0, 6, 6), crs=None), "B04.tif: has no CRS")


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (Affine(9, 4, ORIGIN[0], 4, -9, ORIGIN[1]), "rotated.*gdalwarp"),
        (Affine(10, 2, ORIGIN[0], 0, -10, ORIGIN[1]), "rotated or sheared"),
        (Affine(10, 0, ORIGIN[0], 0, 10, ORIGIN[1]), "not stored north-up"),
    ],
)
def test_transforms_that_are_refused(tmp_path, transform, words):
    refused(write_raster(tmp_path / "B04.tif", smooth(0, 6, 6), transform=transform), words)


def test_different_crs_and_no_overlap(tmp_path):
    write_raster(tmp_path / "B04.tif", smooth(0, 6, 6))
    write_raster(tmp_path / "B03.tif", smooth(0, 6, 6), crs="EPSG:32633")
    refused(tmp_path, "different CRS.*EPSG:3263.*EPSG:3263")
    write_raster(tmp_path / "B03.tif", smooth(0, 6, 6), origin=(0, 0))
    refused(tmp_path, "no common area")
    with opened(tmp_path, bands=["B04"]) as scene:  # what is not used is not looked at
        assert scene.bands == ("red_2",)


def test_common_area(tmp_path):
    values = smooth(0, 60, 60)
    write_raster(tmp_path / "B04.tif", values)
    write_raster(tmp_path / "B05.tif", smooth(1, 20, 20), pixel=20, origin=(ORIGIN[0] + 95, ORIGIN[1] - 100))
    with opened(tmp_path) as scene:
        assert any("common part" in note for note in scene.notes)
        # the finest band's own pixel edges: 95 m in, its 10th pixel is the first that lies inside
        assert (scene.grid.transform.c, scene.grid.transform.f) == (ORIGIN[0] + 100, ORIGIN[1] - 100)
        assert (scene.grid.width, scene.grid.height) == (40, 40)
        assert np.array_equal(scene.read(0, 0, 40, 40)[0][0], values[10:50, 10:50])


def test_bbox(folder):
    x, y = ORIGIN
    box = (x + 101, y - 299, x + 200, y - 150)
    with opened(folder, bbox=box) as scene:
        assert scene.grid.bounds == (x + 100, y - 300, x + 200, y - 150)
        part, _ = scene.read(0, 0, 15, 10)
    everything, _ = whole(folder)
    assert np.array_equal(part, everything[:, 15:30, 10:20])
    with opened(folder, bbox=(x - 1e6, y - 1e6, x + 1e6, y + 1e6)) as scene:
        assert (scene.grid.width, scene.grid.height) == (60, 60)
    degrees = (10.2735, 45.1425, 10.2760, 45.1450)
    with opened(folder, bbox=degrees, bbox_crs="EPSG:4326") as scene:
        assert 19 <= scene.grid.width <= 22 and 27 <= scene.grid.height <= 31
    refused(folder, "outside the scene.*EPSG:32632.*EPSG:4326", bbox=(0, 0, 1, 1), bbox_crs="EPSG:4326")
    refused(folder, "outside the scene", bbox=(0, 0, 1, 1))
    refused(folder, "minx < maxx", bbox=(x + 10, y, x, y + 10))
    refused(folder, "expected four numbers", bbox=(x, y, x))
    refused(folder, "'EPSG:0' cannot be used", bbox=degrees, bbox_crs="EPSG:0")


def test_resolution(folder):
    with opened(folder, resolution=30, bands=["B04", "B05"]) as scene:
        assert (scene.grid.width, scene.grid.transform.a) == (20, 30)
        values, _ = scene.read(0, 0, 20, 20)
    red = smooth(2, 60, 60).astype(float)
    assert values[0] == pytest.approx(red.reshape(20, 3, 20, 3).mean((1, 3)), abs=0.01)
    # 30 m over 20 m pixels: one whole and half of the next, in both directions
    weights = np.zeros((20, 30))
    for i in range(20):
        for j in range(30):
            weights[i, j] = max(0, min(1.5 * i + 1.5, j + 1) - max(1.5 * i, j)) / 1.5
    assert values[1] == pytest.approx(weights @ smooth(4, 30, 30) @ weights.T, abs=0.01)
    refused(folder, "--resolution is -3", resolution=-3)
    refused(folder, "more than the whole scene", resolution=5000)


def test_bilinear(tmp_path):
    write_raster(tmp_path / "B05.tif", np.array([[0, 100], [200, 300]], np.uint16), pixel=20)
    write_raster(tmp_path / "B04.tif", np.zeros((4, 4), np.uint16))
    expected = np.array([0, 25, 75, 100]) + 2 * np.array([0, 25, 75, 100])[:, None]
    assert np.array_equal(whole(tmp_path)[0][1], expected)


def test_gsd(folder, tmp_path):
    with opened(folder) as scene:
        assert scene.grid.gsd == pytest.approx(10)
    degrees = write_raster(tmp_path / "B04.tif", smooth(0, 9, 9), crs="EPSG:4326", pixel=0.001, origin=(10, 60.0))
    with opened(degrees) as scene:
        assert scene.grid.gsd == pytest.approx(111.19 * np.sqrt(0.5), rel=1e-3)


# ---- pixels ----


def test_windows_do_not_change_pixels(tmp_path):
    rng = np.random.default_rng(3)
    folder = s2_folder(tmp_path, size=1200)
    holes = smooth(7, 60, 60)
    holes[:25][rng.random((25, 60)) < 0.2] = 0  # windows with holes and without must agree
    write_raster(folder / "B05.tif", holes, pixel=20, nodata=0)
    noise = rng.normal(1000, 300, (119, 117)).astype(np.float32)
    noise[:40][rng.random((40, 117)) < 0.1] = np.nan
    write_raster(folder / "B06.tif", noise, pixel=10.2, origin=(ORIGIN[0] - 3.3, ORIGIN[1] + 1.7))
    for said in ({}, {"resolution": 23.7}, {"resolution": 7}):
        with opened(folder, units="dn", **said) as scene:
            height, width = scene.grid.height, scene.grid.width
            values, valid = scene.read(0, 0, height, width)
            assert not valid.all() and valid.any()
            for _ in range(12):
                row, column = rng.integers(-9, height), rng.integers(-9, width)
                h, w = rng.integers(1, 60, 2)
                part, mask = scene.read(row, column, h, w)
                top, left, bottom, right = (
                    max(row, 0),
                    max(column, 0),
                    min(row + h, height),
                    min(column + w, width),
                )
                inside = (slice(None), slice(top - row, bottom - row), slice(left - column, right - column))
                assert np.array_equal(part[inside], values[:, top:bottom, left:right])
                assert np.array_equal(mask[inside], valid[:, top:bottom, left:right])
                mask[inside] = False
                assert not mask.any()
            assert (values[~valid] == 0).all()


def test_windows_beyond_the_grid(folder):
    with opened(folder) as scene:
        for place in ((-20, 0), (60, 0), (0, 999)):
            values, valid = scene.read(*place, 20, 20)
            assert values.shape == (12, 20, 20) and not valid.any() and not values.any()


def test_nodata_does_not_leak(tmp_path):
    write_raster(tmp_path / "B04.tif", smooth(0, 60, 60))
    results = []
    for under in (0, 40000):
        values = smooth(5, 30, 30)
        values[10:14, 3:9] = values[20, 20] = under
        write_raster(tmp_path / "B05.tif", values, pixel=20, nodata=under)
        with opened(tmp_path) as scene:
            found, valid = scene.read(0, 0, 60, 60)
        results.append((found, valid))
        assert found[1][valid[1]].max() <= 3001 and found[1][valid[1]].min() >= 299
        # half the weight decides: exactly the fine pixels inside the hole are lost
        lost = np.zeros((60, 60), bool)
        lost[20:28, 6:18] = lost[40:42, 40:42] = True
        assert np.array_equal(~valid[1], lost)
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_alpha_mask_nan_and_declared_nodata(tmp_path):
    colour = np.full((4, 5, 6), 200, np.uint8)
    colour[3], colour[3, :2] = 255, 0
    path = write_raster(tmp_path / "a.tif", colour, colours=["red", "green", "blue", "alpha"])
    for bands in (["R", "G", "B"], ["R", "G", "B", "-"]):
        with opened(path, sensor="RGB", target_units="uint8", bands=bands) as scene:
            assert any("used as mask" in note for note in scene.notes) and len(scene.bands) == 3
            _, valid = scene.read(0, 0, 5, 6)
        assert not valid[:, :2].any() and valid[:, 2:].all()
    aerial = dict(sensor="AERIAL", accepts=get_sensor("AERIAL").band_names, bands=["R", "G", "B", "NIR"])
    with opened(path, target_units="uint8", **aerial) as scene:
        assert any("taken as aerial_near_infrared" in note for note in scene.notes)
        assert scene.read(0, 0, 5, 6)[1].all()

    mask = np.full((5, 6), 255, np.uint8)
    mask[0] = 0
    path = write_raster(tmp_path / "B04.tif", smooth(0, 5, 6), mask=mask)
    assert not whole(path)[1][0, 0].any() and whole(path)[1][0, 1:].all()

    holes = np.full((5, 6), 0.2, np.float32)
    holes[1, 1], holes[2, 2] = np.nan, -9999
    path = write_raster(tmp_path / "B03.tif", holes, nodata=-9999)
    values, valid = whole(path, units="reflectance")
    assert (~valid).sum() == 2 and not valid[0, 1, 1] and not valid[0, 2, 2]
    assert values[valid] == pytest.approx(2000) and (values[~valid] == 0).all()

    path = write_raster(tmp_path / "B02.tif", holes, nodata=np.nan)
    assert whole(path, units="reflectance")[1].sum() == 29


def test_missing_nodata_is_noted(tmp_path):
    path = write_raster(tmp_path / "B04.tif", np.zeros((5, 6), np.uint16))
    with opened(path) as scene:
        assert scene.read(0, 0, 5, 6)[1].all()
        assert any("no nodata declared" in note for note in scene.notes)


def test_infinity(tmp_path):
    values = np.full((9, 9), 0.2, np.float32)
    values[4, 7] = np.inf
    with opened(write_raster(tmp_path / "B04.tif", values), units="reflectance") as scene:
        assert scene.read(0, 0, 4, 9)[1].all()
        with pytest.raises(InputError, match="red_2 is infinite at row 4, column 7"):
            scene.read(2, 2, 6, 6)
    path = write_raster(tmp_path / "B04.tif", values, nodata=np.inf)
    assert whole(path, units="reflectance")[1].sum() == 80


def test_values_without_db(tmp_path):
    values = np.full((10, 10), 0.01, np.float32)
    values[0, :5] = 0
    path = write_raster(tmp_path / "vv.tif", values)
    said = {"sensor": "S1", "target_units": "db", "units": "linear", "accepts": {"microwave_1"}}
    with opened(path, **said) as scene:
        for _ in range(2):
            found, valid = scene.read(0, 0, 10, 10)
        assert not valid[0, 0, :5].any() and found[valid] == pytest.approx(-20, abs=1e-4)
        (text,) = scene.warnings
        assert "microwave_1: some values have no value in db" in text


def test_sample(folder, tmp_path):
    with opened(folder) as scene:
        found = scene.sample()
        assert list(found) == list(S2) and all(len(values) == 3600 for values in found.values())
        assert len(scene.sample(windows=4, size=8)["red_2"]) == 4 * 64
    path = write_raster(tmp_path / "B04.tif", np.zeros((20, 20), np.uint16), nodata=0)
    with opened(path) as scene:
        assert len(scene.sample()["red_2"]) == 0


# ---- files ----


def test_files_that_are_no_rasters(tmp_path):
    refused(tmp_path / "missing.tif", "no such file")
    refused(tmp_path, "no rasters in this folder")
    (tmp_path / "B04.tif").write_bytes(b"II*\0 nothing more")
    refused(tmp_path / "B04.tif", "not a raster")
    refused(tmp_path, "not a raster")
    refused(tmp_path / "B04.tif", "unknown sensor", sensor="Sentinel-9")


def test_truncated_file(tmp_path):
    path = write_raster(tmp_path / "B04.tif", np.random.default_rng(0).integers(1, 9999, (300, 300), np.uint16))
    path.write_bytes(path.read_bytes()[:100000])
    with opened(path) as scene, pytest.raises(InputError, match="corrupt or incomplete"):
        scene.read(0, 0, 300, 300)


def test_complex_values(tmp_path):
    refused(write_raster(tmp_path / "B04.tif", np.zeros((9, 9), np.complex64)), "B04.tif, band red_2.*complex64")


def test_files_are_closed(folder):
    with opened(folder) as scene:
        files = {reader.dataset for reader in scene._bands}
        assert len(files) == 12 and not any(file.closed for file in files)
    assert all(file.closed for file in files)
