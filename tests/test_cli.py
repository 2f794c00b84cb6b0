from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import timm
import torch
from rasterio.warp import transform_bounds

import eo_zoo
from eo_zoo import geo, registry, weights
from eo_zoo.errors import DownloadError, MissingExtra
from tests.geo.rasters import s2_folder, smooth, stac_item, write_raster
from tests.hub_server import HubServer

ROOT = Path(__file__).parent.parent
SAHARA = ROOT / "examples" / "sahara"


class TestFacts:
    def test_list(self, run):
        code, out, _ = run("list", "--json")
        rows = json.loads(out)
        assert code == 0 and {row["name"].partition(".")[0] for row in rows} == set(eo_zoo.list_models())
        assert run("list", "vit_nano")[1].count("smarties_vit") == 1
        code, _, err = run("list", "nothing")
        assert code == 2 and "no model matches" in err

    def test_info(self, run):
        code, out, _ = run("info", "smarties_vit_base", "--json")
        facts = json.loads(out)
        assert code == 0 and facts == json.loads(json.dumps(eo_zoo.info("smarties_vit_base")))
        assert [band["sensor_name"] for band in facts["bands"]][:2] == ["B01", "B02"]
        text = run("info", "smarties_vit_base")[1]
        assert "arXiv:2506.19585" in text and "apache-2.0" in text and "B8A" in text
        tuned = " ".join(run("info", "smarties_vit_base.eurosat_linprobe")[1].split())
        assert "scene, linear probe on EuroSAT (64 x 64 pixels)" in tuned and "10 classes: AnnualCrop; Forest" in tuned

    def test_of_a_model_that_takes_a_dict(self, run):
        text = " ".join(run("info", "anysat_base")[1].split())
        assert "inputs s2: B02, B03, B04" in text and "modis: B1, B2" in text and "accepts" not in text
        assert "the Hub's own SHA-256 is checked" in text

    def test_where_no_weights_are_published(self, run):
        text = " ".join(run("info", "anysat_tiny")[1].split())
        assert "source none: no weights are published" in text and "sha256" not in text and "size" not in text
        for arguments in (["anysat_tiny"], ["anysat_tiny", "--all-tags"]):
            code, _, err = run("download", *arguments)
            assert code == 2 and "no weights are published for anysat_tiny: pretrained=False gives" in err

    def test_download_of_bundled_weights(self, run):
        code, out, _ = run("download", "smarties_vit_nano", "--json")
        assert code == 0 and json.loads(out)["verified"]

    def test_download_offline(self, run, monkeypatch):
        monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
        code, _, err = run("download", "smarties_vit_base")
        assert code == 1 and "offline" in err and "smarties-v1-vitb.safetensors" in err

    @pytest.mark.parametrize("as_json", [False, True])
    def test_download_of_all_tags(self, run, monkeypatch, tmp_path, as_json):
        """One from the package, one that fails, one from a server, which the second time is in the cache."""
        bundled = weights.RECORDS["smarties_vit_nano.demo"]
        data = SAFETENSORS.read_bytes()
        with HubServer() as server:
            server.add("owner/repo", "nano.safetensors", data)
            for tag, file in {"gone": "gone.pth", "web": "nano.safetensors"}.items():
                source = f"{server.url}/owner/repo/{file}"
                record = replace(bundled, name=f"smarties_vit_nano.{tag}", source=source, sha256=None, size=None)
                monkeypatch.setitem(weights.RECORDS, record.name, record)
                config = replace(timm.get_pretrained_cfg(bundled.name), tag=tag)
                monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, record.name, config)
            arguments = ["download", "smarties_vit_nano", "--all-tags", "--cache-dir", tmp_path / "mine"]
            code, out, err = run(*arguments, *(["--json"] if as_json else []))
            assert code == 1
            assert err.count("error:") == 1 and "smarties_vit_nano.gone could not be fetched: there is no such" in err
            assert not (tmp_path / "cache").exists()
            sha256 = hashlib.sha256(data).hexdigest()
            if as_json:
                rows = {row["name"].partition(".")[2]: row for row in json.loads(out)}
                facts = {"size": len(data), "sha256": sha256, "error": None}
                assert rows["demo"] == facts | {"name": bundled.name, "verified": True, "from": "package"}
                assert rows["web"] == facts | {"name": "smarties_vit_nano.web", "verified": False, "from": "fetched"}
                assert rows["gone"]["sha256"] is None and "weights=PATH" in rows["gone"]["error"]
            else:
                lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
                assert lines["smarties_vit_nano.web"] == ["3.8", "MB", sha256[:8], "false", "fetched"]
                assert lines["smarties_vit_nano.gone"] == ["unknown", "failed"]
            monkeypatch.delitem(weights.RECORDS, "smarties_vit_nano.gone")
            asked = len(server.requests)
            code, out, _ = run(*arguments, "--json")
            assert code == 0 and len(server.requests) == asked
            assert [row["from"] for row in json.loads(out)] == ["package", "cache"]

    def test_all_tags_of_one_tag_is_wrong_use(self, run):
        code, _, err = run("download", "smarties_vit_nano.demo", "--all-tags")
        assert code == 2 and "give the architecture alone, smarties_vit_nano" in err
        code, _, err = run("download", "smarties_vit_nan", "--all-tags")
        assert code == 2 and "Did you mean 'smarties_vit_nano'" in err

    def test_version_and_help(self, run):
        assert run("--version")[1].strip() == eo_zoo.__version__
        assert run("embed", "--help")[0] == 0

    @pytest.mark.parametrize("command", ["info", "download"])
    def test_unknown_model(self, run, command):
        code, _, err = run(command, "smarties_vit_nan")
        assert code == 2 and "Did you mean 'smarties_vit_nano'" in err

    def test_json_and_markdown(self, run):
        assert run("list", "--markdown")[1].startswith("| model.tag |")
        assert run("list", "--json", "--markdown")[0] == 2

    @pytest.mark.parametrize(
        ("error", "code"),
        [(KeyboardInterrupt(), 130), (OSError("disk full"), 1), (DownloadError("x"), 1), (MissingExtra("x"), 1)],
    )
    def test_exit_codes(self, run, monkeypatch, error, code):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(registry, "info", fail)
        assert run("info", "smarties_vit_nano")[0] == code

    def test_unknown_option(self, run):
        assert run("embed", "x.tif", "-o", "y.tif", "--nonsense")[0] == 2


OPTIONS = {
    "--weights": ("github://o/r/v1", "github://o/r/v1"), "--cache-dir": ("c", Path("c")), "--sensor": ("S1", "S1"),
    "--bands": ("VV, VH", ["VV", "VH"]), "--bbox-crs": ("EPSG:4326", "EPSG:4326"), "--resolution": ("5", 5.0),
    "--units": ("db", "db"), "--boa-offset": ("-1", -1.0), "--nodata": ("7", 7.0), "--stats": ("s", "s"),
    "--layer": ("2", 2), "--pool": ("avg", "avg"), "--overlap": ("8", 8), "--min-valid": ("0.5", 0.5),
    "--batch-size": ("3", 3), "--device": ("cpu", "cpu"), "--dtype": ("bfloat16", "bfloat16"),
    "--out-dtype": ("float16", "float16"), "--preview": ("p.png", Path("p.png")), "--patch-size": ("40", 40),
    "--output-modality": ("s2", "s2"), "--tile": ("80", 80.0), "--preset": ("FLAIR", "FLAIR"), "--start": ("a", "a"),
    "--date-pattern": ("%Y%j", "%Y%j"), "--end": ("b", "b"), "--max-dates": ("9", 9), "--masks": ("off", "off"),
    "--scl-invalid": ("3, 8", [3, 8]), "--max-probability": ("7", 7.0),
}  # fmt: skip


def test_every_option_of_embed_arrives(run, monkeypatch):
    seen = {}

    def fake(source, model, out, **arguments):
        seen.update(arguments)
        arguments["report"]("warning", "careful")
        arguments["report"]("note", "a step")
        return SimpleNamespace(summary=lambda: "the end", to_dict=dict)

    monkeypatch.setattr(geo, "embed_raster", fake)
    words = [word for option, (text, _) in OPTIONS.items() for word in (option, text)]
    code, out, err = run("embed", "x", "-o", "y.tif", *words, "-q", "--overwrite")
    assert code == 0 and not out and err == "warning: careful"
    expected = {option.strip("-").replace("-", "_"): value for option, (_, value) in OPTIONS.items()}
    assert {name: seen[name] for name in expected} == expected
    assert seen["progress"] is False and seen["overwrite"] is True
    code, out, err = run("embed", "x", "-o", "y.tif")
    assert seen["bands"] is None and seen["progress"] is None and "a step" in err and "the end" in out


class TestEmbed:
    def test_folder_and_item_give_the_same_and_overlay_the_scene(self, run, tmp_path):
        """The demonstration scene by both routes, against coordinates."""
        maps = {}
        for name, source in {"folder": SAHARA, "item": SAHARA / "item.json"}.items():
            code, _, err = run(
                "embed", source, "-o", tmp_path / f"{name}.tif", "--bbox", 199980, 2715620, 225580, 2741220
            )
            assert code == 0, err
            with rasterio.open(tmp_path / f"{name}.tif") as file:
                maps[name] = file.read()
                assert file.crs.to_epsg() == 32629
                assert file.transform[:6] == (800, 0, 199980, 0, -800, 2741220)
                assert file.shape == (32, 32) and file.count == 128
                tags = file.tags()
        assert np.array_equal(maps["folder"], maps["item"])
        assert tags["MODEL"] == "smarties_vit_nano.demo" and "verified" in tags["WEIGHTS"]
        assert json.loads(tags["CLIPPED"]).keys() == set(json.loads(tags["BANDS"]))

    def test_preview_and_json(self, run, tmp_path):
        out = tmp_path / "o.tif"
        code, text, _ = run(
            "embed", SAHARA, "-o", out, "--preview", tmp_path / "p.png", "--json", "--out-dtype", "float16"
        )
        result = json.loads(text)
        assert code == 0 and result["shape"] == [128, 63, 63] and result["path"] == str(out)
        assert sorted(path.name for path in tmp_path.glob("*.*")) == ["o.tif", "p.png"]

    def test_two_runs_give_the_same_bytes(self, run, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=1500)
        for name in ("a", "b"):
            assert run("embed", folder, "-o", tmp_path / f"{name}.tif", "-q")[0] == 0
        assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()

    def test_pool_gives_the_models_own_vector(self, run, tmp_path):
        two = np.stack([smooth(1, 112, 112), smooth(2, 112, 112)])
        path = write_raster(tmp_path / "two.tif", two, descriptions=["B04", "B08"])
        assert run("embed", path, "-o", tmp_path / "v.npy", "--pool", "token")[0] == 0
        assert run("embed", path, "-o", tmp_path / "v.JSON", "--pool", "token")[0] == 0
        x = eo_zoo.create_transform("smarties_vit_nano", bands=["B04", "B08"])(two.astype(np.int32))
        with torch.no_grad():
            expected = eo_zoo.create_model("smarties_vit_nano")(x[None], bands=["B04", "B08"])[0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)
        np.testing.assert_allclose(json.loads((tmp_path / "v.JSON").read_text())["embedding"], expected, atol=1e-5)

    def test_nodata_given_by_hand(self, run, tmp_path):
        values = smooth(1, 112, 112)
        values[:56] = 7
        path = write_raster(tmp_path / "B04.tif", values)
        for name, more in {"with": ["--nodata", 7], "without": []}.items():
            assert run("embed", path, "-o", tmp_path / f"{name}.tif", *more)[0] == 0
            with rasterio.open(tmp_path / f"{name}.tif") as file:
                assert np.isnan(file.read(1)).mean() == (0.5 if more else 0)

    def test_fourth_band_is_what_bands_says(self, run, tmp_path):
        four = np.stack([smooth(seed, 112, 112, 0, 255) for seed in range(4)]).astype(np.uint8)
        four[3, :56] = 0  # blue, and no mask
        colours = ["red", "green", "blue", "alpha"]
        path = write_raster(tmp_path / "nirrgb.tif", four, colours=colours, photometric="RGB")
        out = tmp_path / "o.tif"
        code, _, err = run("embed", path, "-o", out, "--sensor", "RGB", "--bands", "near_infrared_1,R,G,B")
        assert code == 0 and "left out" in err
        with rasterio.open(out) as file:
            assert not np.isnan(file.read(1)).any() and json.loads(file.tags()["BANDS"]) == [
                "red_1",
                "green_1",
                "blue_3",
            ]

    def test_a_link_stays_a_link(self, run, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=1200)
        (tmp_path / "real.tif").write_bytes(b"old")
        (tmp_path / "link.tif").symlink_to(tmp_path / "real.tif")
        assert run("embed", folder, "-o", tmp_path / "link.tif", "--overwrite")[0] == 0
        assert (tmp_path / "link.tif").is_symlink() and (tmp_path / "real.tif").stat().st_size > 1000

    def test_clipped_shares_are_printed(self, run, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=1200)
        code, out, _ = run("embed", folder, "-o", tmp_path / "o.tif")
        assert code == 0 and "clipped by normalisation: aerosol " in out and "short_wave_infrared_4 " in out

    def test_conversions_are_printed(self, run, tmp_path):
        s2_folder(tmp_path / "s2", size=1200)
        hrefs = {path.stem: f"./s2/{path.name}" for path in (tmp_path / "s2").glob("*.tif")}
        item = stac_item(tmp_path / "item.json", hrefs, offset=-0.1)
        code, _, err = run("embed", item, "-o", tmp_path / "o.tif")
        assert code == 0 and "dn = stored - 1000" in err and "bilinear" in err

    def test_quiet_keeps_warnings(self, run, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=1200)
        code, out, err = run("embed", folder, "-o", tmp_path / "o.tif", "-q")
        assert code == 0 and not out and "warning:" in err and "bilinear" not in err

    def test_bbox_in_another_crs_and_min_valid(self, run, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=2400)
        west, south, east, north = transform_bounds("EPSG:32632", "EPSG:4326", 600000, 4998840, 601200, 5000040)
        out = tmp_path / "o.tif"
        arguments = ["--bbox", west, south, east, north, "--bbox-crs", "EPSG:4326", "--min-valid", 1]
        code, _, err = run("embed", folder, "-o", out, *arguments)
        assert code == 0, err
        with rasterio.open(out) as file:
            assert file.shape[0] in (15, 16) and abs(file.transform.c - 600000) < 100
            assert file.tags()["MIN_VALID"] == "1.0"

    def test_eurosat_trap_is_caught(self, run, tmp_path):
        """Values as in EuroSAT's files (B8A last), under the names of a file that says otherwise."""
        medians = dict(zip(EUROSAT_ORDER, EUROSAT_MEDIANS, strict=True))
        for label, names in {"right": EUROSAT_ORDER, "wrong": L1C_ORDER}.items():
            rng = np.random.default_rng(0)
            values = np.stack([rng.normal(m, 0.1 * m, (128, 128)) for m in medians.values()]).astype(np.uint16)
            path = write_raster(tmp_path / f"{label}.tif", values, descriptions=names)
            code, _, err = run(
                "embed", path, "-o", tmp_path / f"{label}_out.tif", "--sensor", "S2-L1C", "--stats", "smarties/S2-L1C"
            )
            assert code == 0, err
            assert ("B8A" in err and "order" in err) == (label == "wrong"), err


EUROSAT_ORDER = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"]
L1C_ORDER = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
# of a EuroSAT image, in its file's order
EUROSAT_MEDIANS = [1217, 868, 637, 370, 583, 1599, 2024, 2014, 772, 8, 799, 304, 2254]


def hostile(path: Path) -> Path:
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {path.parent / 'canary'}",)

    torch.save({"model": Attack()}, path)
    return path


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Name -> arguments of embed, and what the error must say."""
    s2 = s2_folder(folder / "s2", size=1200)
    out = ["-o", folder / "out.tif"]
    named = dict(descriptions=["B02", "B03"])
    two = np.stack([smooth(1, 120, 120), smooth(2, 120, 120)])
    write_raster(folder / "two.tif", two, **named)
    write_raster(folder / "unnamed.tif", two)
    write_raster(folder / "no_crs.tif", two, crs=None, **named)
    write_raster(folder / "rotated.tif", two, transform=rasterio.Affine(10, 2, 0, 2, -10, 0), **named)
    write_raster(folder / "small.tif", two[:, :4, :4], **named)
    write_raster(folder / "empty.tif", np.zeros_like(two), nodata=0, **named)
    infinite = two.astype(np.float32)
    infinite[0, 5, 7] = np.inf
    write_raster(folder / "infinite.tif", infinite, **named)
    write_raster(folder / "float.tif", two.astype(np.float32) / 10000, **named)
    write_raster(folder / "crs" / "B02.tif", two[0])
    write_raster(folder / "crs" / "B03.tif", two[0], crs="EPSG:32633")
    write_raster(folder / "far" / "B02.tif", two[0])
    write_raster(folder / "far" / "B03.tif", two[0], origin=(900000.0, 5000040.0))
    write_raster(folder / "scaled.tif", two, scale=0.0001, **named)
    os.mkfifo(folder / "pipe.tif")
    (folder / "corrupt.tif").write_bytes(b"II*\0" + bytes(range(200)))
    (folder / "exists.tif").write_bytes(b"mine")
    torch.save({"x": torch.zeros(1)}, folder / "other.pth")
    (folder / "cut.safetensors").write_bytes(SAFETENSORS.read_bytes()[:100_000])
    return {
        "missing file": ([folder / "nowhere.tif", *out], "nowhere.tif"),
        "corrupt file": ([folder / "corrupt.tif", *out], "corrupt.tif"),
        "unknown model": ([s2, *out, "-m", "smarties_vit_bas"], "Did you mean 'smarties_vit_base'"),
        "unknown band": ([folder / "two.tif", *out, "--bands", "B02,B99"], "B99"),
        "unknown sensor": ([s2, *out, "--sensor", "S9"], "S9"),
        "band count": ([folder / "unnamed.tif", *out, "--bands", "B02,B03,B04"], "2 bands"),
        "no band names": ([folder / "unnamed.tif", *out], "--bands"),
        "band twice": ([folder / "unnamed.tif", *out, "--bands", "B02,blue"], "twice"),
        "no CRS": ([folder / "no_crs.tif", *out], "CRS"),
        "rotated": ([folder / "rotated.tif", *out], "gdalwarp"),
        "different CRS": ([folder / "crs", *out], "EPSG:32633"),
        "no overlap": ([folder / "far", *out], "no common area"),
        "smaller than a patch": ([folder / "small.tif", *out], "patch"),
        "all nodata": ([folder / "empty.tif", *out], "nodata"),
        "infinity": ([folder / "infinite.tif", *out, "--units", "dn"], "infinite"),
        "float without units": ([folder / "float.tif", *out], "--units"),
        "units against the type": ([folder / "two.tif", *out, "--units", "reflectance"], "reflectance"),
        "units against the metadata": ([folder / "scaled.tif", *out, "--units", "reflectance"], "0.0001"),
        "a pipe": ([folder / "pipe.tif", *out], "not a file"),
        "output is a pipe": ([s2, "-o", folder / "pipe.tif", "--overwrite"], "not a regular file"),
        "meta device": ([s2, *out, "--device", "meta"], "meta"),
        "second cpu": ([s2, *out, "--device", "cpu:3"], "cpu:3"),
        "resolution too fine": ([s2, *out, "--resolution", "0.001"], "far finer"),
        "infinite offset": ([s2, *out, "--boa-offset", "inf"], "--boa-offset"),
        "existing output": ([s2, "-o", folder / "exists.tif"], "--overwrite"),
        "no such folder": ([s2, "-o", folder / "none" / "out.tif"], "does not exist"),
        "wrong suffix": ([s2, "-o", folder / "out.jpg"], ".tif"),
        "no such device": ([s2, *out, "--device", "cuda:99"], "cuda:99"),
        "unknown dtype": ([s2, *out, "--dtype", "int8"], "int8"),
        "layer": ([s2, *out, "--layer", "4"], "the model has 4"),
        "overlap": ([s2, *out, "--overlap", "13"], "13"),
        "batch size": ([s2, *out, "--batch-size", "0"], "batch_size"),
        "bbox elsewhere": ([s2, *out, "--bbox", "0", "0", "10", "10"], "600000"),
        "hostile pickle": ([s2, *out, "--weights", hostile(folder / "evil.pth")], "system"),
        "other model's weights": ([s2, *out, "--weights", folder / "other.pth"], "not of a checkpoint of SMARTIES"),
        "truncated safetensors": ([s2, *out, "--weights", folder / "cut.safetensors"], "cut.safetensors"),
        "unknown statistics": ([s2, *out, "--stats", "eurosatt"], "EuroSAT"),
    }


SAFETENSORS = ROOT / "eo_zoo" / "data" / "smarties_vit_nano.demo.safetensors"


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, bad_inputs(folder)


def test_bad_input_is_one_error_and_leaves_nothing(bad, run):
    folder, cases = bad
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name, (arguments, words) in cases.items():
        code, out, err = run("embed", *arguments)
        assert code == 2, (name, code, err)
        assert words in err and err.count("error:") == 1 and "Traceback" not in err, (name, err)
        assert not out, name
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, name
    assert not (folder / "canary").exists()


# ---- predict ----

PREDICT_OPTIONS = {
    **{name: OPTIONS[name] for name in (
        "--weights", "--cache-dir", "--sensor", "--bands", "--bbox-crs", "--resolution", "--units", "--boa-offset",
        "--nodata", "--stats", "--min-valid", "--batch-size", "--device", "--dtype", "--preview",
    )},
    "--threshold": ("0.25", 0.25), "--window": ("32", 32), "--stride": ("8", 8), "--scores": ("s.tif", Path("s.tif")),
    "--mix": ("plain", "plain"), "--seed": ("4", 4),
}  # fmt: skip


def test_every_option_of_predict_arrives(run, monkeypatch):
    seen = {}

    def fake(source, model, output, **arguments):
        seen.update(arguments, source=source, model=model, output=output)
        arguments["report"]("warning", "careful")
        arguments["report"]("note", "a step")
        return SimpleNamespace(summary=lambda top: f"the {top} best", to_dict=lambda: {"scores": {}})

    monkeypatch.setattr(geo, "predict_raster", fake)
    words = [word for option, (text, _) in PREDICT_OPTIONS.items() for word in (option, text)]
    code, out, err = run("predict", "x", "-m", "m", "-o", "y.tif", *words, "-q", "--overwrite")
    assert code == 0 and not out and err == "warning: careful"
    expected = {option.strip("-").replace("-", "_"): value for option, (_, value) in PREDICT_OPTIONS.items()}
    assert {name: seen[name] for name in expected} == expected
    assert (seen["source"], seen["model"], seen["output"], seen["overwrite"]) == ("x", "m", Path("y.tif"), True)
    code, out, err = run("predict", "-m", "m", "--input", "s2=a=b", "--input", "s1=c", "--top", "7")
    assert seen["source"] == {"s2": "a=b", "s1": "c"} and seen["output"] is None and seen["overwrite"] is False
    assert "a step" in err and "the 7 best" in out
    assert "the 5 best" in run("predict", "x", "-m", "m", "-q")[1]  # without a file, what is printed is the result
    assert json.loads(run("predict", "x", "-m", "m", "--json")[1]) == {"scores": {}}


EUROSAT = "smarties_vit_base.eurosat_finetune"


class TestReconstruct:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        from eo_zoo.geo import reconstruct
        from eo_zoo.models.multimae import MultiMae
        from eo_zoo.train.multimae import MultiMaePretraining

        torch.manual_seed(0)
        model = MultiMaePretraining(MultiMae(embed_dim=64, depth=2, num_heads=4), decoder_dim=32, decoder_depth=1)
        monkeypatch.setattr(reconstruct, "pretraining_model", lambda name, **loading: model)

    def test_picture_and_json(self, run, tmp_path):
        arguments = ["reconstruct", "--input", f"s2={SAHARA}", "--visible", "0.5", "--hide", "rgb,ired", "--row", 50]
        code, out, err = run(*arguments, "-o", tmp_path / "a.png", "--json")
        facts = json.loads(out)
        assert code == 0 and "pixels are 100 m" in err and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        assert (facts["row"], facts["col"], facts["seed"]) == (50, 224, 0)
        assert [name for name, own in facts["domains"].items() if own["given"]] == ["sired", "ebands"]
        assert sum(own["visible"] for own in facts["domains"].values()) == 49
        code, out, _ = run(*arguments, "-o", tmp_path / "b.png", "--seed", 1)
        assert code == 0 and out.splitlines()[0].startswith("rgb: not given, loss ")
        code, out, err = run(*arguments, "-o", tmp_path / "b.png", "--overwrite", "--quiet")
        assert code == 0 and not out and err.startswith("warning:")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--visible", "half"], "--visible is half, expected a number of patches, as 49, or a share, as 0.25"),
            (["--given", "dem"], "given has 'dem', but the inputs hold rgb, ired, sired, ebands"),
            (["-m", "anysat_base"], "anysat_base reconstructs nothing"),
            (["--input", "s2"], "--input is 's2', expected SENSOR=INPUT"),
            (["--input", "dem=missing.tif"], "missing.tif"),
        ],
    )
    def test_wrong_use(self, run, tmp_path, arguments, sentence):
        code, _, err = run("reconstruct", "--input", f"s2={SAHARA}", "-o", tmp_path / "a.png", "-q", *arguments)
        assert code == 2 and err.count("error:") == 1 and sentence in err and not list(tmp_path.glob("*.png"))


class TestPredict:
    @pytest.fixture
    def tuned(self, monkeypatch):
        """The tag's architecture is too large for here: the nano one takes its place, its head random."""
        create = registry.create_model

        def small(name, *, weights, cache_dir, bands):
            model = create("smarties_vit_nano", pretrained=False, bands=bands, num_classes=10)
            torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
            return model

        monkeypatch.setattr(registry, "create_model", small)

    def test_image(self, run, tmp_path, tuned):
        box = ["--bbox", 199980, 2734820, 206380, 2741220]  # 64 x 64 pixels
        code, out, err = run("predict", SAHARA, "-m", EUROSAT, *box, "--top", 3)
        assert code == 0 and "tuned on EuroSAT: Sentinel-2 L1C" in err and "OUT.tif" not in err
        assert out.startswith("* ") and len([line for line in out.splitlines() if line[:2] in ("* ", "  ")]) == 3
        code, out, _ = run("predict", SAHARA, "-m", EUROSAT, *box, "-o", tmp_path / "o.json", "--json")
        told, written = json.loads(out), json.loads((tmp_path / "o.json").read_text())
        assert told["scores"].keys() == set(registry.get_record(EUROSAT).task.classes)
        assert told["predicted"] == written["predicted"] == list(told["scores"])[:1]

    def test_map(self, run, tmp_path, tuned):
        arguments = ["-o", tmp_path / "o.tif", "--preview", tmp_path / "p.png", "--stride", 32]
        code, out, err = run("predict", SAHARA, "-m", EUROSAT, *arguments)
        assert code == 0 and "16 x 16 cells, 0.0% nodata" in out and "predicting" not in err
        with rasterio.open(tmp_path / "o.tif") as file:
            assert file.transform[:6] == (3200, 0, 199980, 0, -3200, 2741220) and file.crs.to_epsg() == 32629
            assert file.read(1).max() < 10 and file.tags()["DATA_SET"] == "EuroSAT"
        assert sorted(path.name for path in tmp_path.glob("*.*")) == ["o.tif", "o.tif.aux.xml", "p.png"]


def test_bad_input_of_predict_is_one_error_and_leaves_nothing(bad, run):
    folder, _ = bad
    s2, out, m = folder / "s2", ["-o", folder / "out.tif"], ["-m", EUROSAT]
    labels, pixels, both = (f"smarties_vit_base.{tag}" for tag in ("bigearthnets2_finetune", "dfc2020_linprobe",
                                                                    "bigearthnetmm_linprobe"))  # fmt: skip
    cases = {
        "no input": (m, "--input"),
        "input twice over": ([s2, *m, "--input", f"s2={s2}"], "give one INPUT, or --input"),
        "input without sensor": ([*m, "--input", s2], "expected SENSOR=INPUT"),
        "input twice": ([*m, "--input", f"s2={s2}", "--input", "S2=x"], "given twice"),
        "several for one": ([*m, "--input", f"s2={s2}"], "takes one input (S2-L1C), not several"),
        "one for two": ([s2, "-m", both], "takes S2, S1 together"),
        "one of two": (["-m", both, "--input", f"s2={s2}"], "takes one of each of S2, S1"),
        "unknown sensor of an input": (["-m", both, "--input", f"s2={s2}", "--input", "s9=x"], "s9"),
        "another model's sensor": (["-m", both, "--input", f"s2={s2}", "--input", "l8=x"], "one of each of S2, S1"),
        "half a sensor": (["-m", both, "--input", f"s2={folder / 'two.tif'}", "--input", "s1=x"], "has no aerosol"),
        "missing file": ([folder / "nowhere.tif", *m], "nowhere.tif"),
        "unknown model": ([s2, "-m", "smarties_vit_base.eurosat"], "Did you mean"),
        "features only": ([s2, "-m", "smarties_vit_nano"], "gives features, not classes"),
        "wrong suffix": ([s2, *m, "-o", folder / "out.jpg"], ".tif"),
        "existing output": ([s2, *m, "-o", folder / "exists.tif"], "--overwrite"),
        "scores into the output": ([s2, *m, *out, "--scores", folder / "out.tif"], "is out itself"),
        "wrong bands": ([folder / "two.tif", *m, "--bands", "B02,B99"], "B99"),
        "no CRS": ([folder / "no_crs.tif", *m], "CRS"),
        "unknown statistics": ([s2, *m, "--stats", "eurosatt"], "EuroSAT"),
        "window of nothing": ([s2, *m, *out, "--window", "0"], "window is 0"),
        "window too large": ([s2, *m, *out, "--window", "121"], "does not fit into the scene, 120 x 120"),
        "stride too large": ([s2, *m, *out, "--stride", "65"], "stride is 65, expected 1 to 64"),
        "threshold out of range": ([s2, "-m", labels, "--threshold", "2"], "from 0 to 1"),
        "threshold of one class": ([s2, *m, "--threshold", "0.5"], "only for multi-label"),
        "top": ([s2, *m, "--top", "0"], "--top is 0, expected 1 or more"),
        "preview of an image": ([s2, *m, "--preview", folder / "p.png"], "preview: only for maps"),
        "pixels without a map": ([s2, "-m", pixels], "gives every pixel a class"),
        "digital numbers for uint8": ([s2, "-m", pixels, *out], "uint16, but the statistics of S2 are for uint8"),
        "mix of one sensor": ([s2, *m, "--mix", "plain"], "two sensors together"),
        "no such device": ([s2, *m, "--device", "cuda:99"], "cuda:99"),
        "hostile pickle": ([s2, *m, "--weights", folder / "evil.pth"], "system"),
        "other model's weights": ([s2, *m, "--weights", folder / "other.pth"], "not of a checkpoint of SMARTIES"),
    }
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name, (arguments, words) in cases.items():
        code, printed, err = run("predict", *arguments)
        assert code == 2, (name, code, err)
        assert words in err and err.count("error:") == 1 and "Traceback" not in err, (name, err)
        assert not printed, name
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, name
    assert not (folder / "canary").exists()
