from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import eo_zoo
from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.geo import embed_raster, statistics
from eo_zoo.geo.scene import Scene
from eo_zoo.geo.statistics import Moments, raster_statistics
from tests.geo.rasters import s2_folder, smooth, stac_item, write_raster

RGBN = ["R", "G", "B", "NIR"]


def tile(path, seed=0, size=40, **options):
    """Four bands of uint8."""
    values = np.random.default_rng(seed).integers(1, 250, (4, size, size)).astype(np.uint8)
    return values, write_raster(path, values, pixel=0.2, photometric="minisblack", **options)


def aerial(sources, out=None, **options):
    return raster_statistics(
        sources, out, **{"sensor": "AERIAL", "bands": RGBN, "report": lambda *said: None, **options}
    )


class TestMoments:
    def test_parts_are_as_the_whole(self):
        rng = np.random.default_rng(0)
        values, valid = rng.normal(5000, 3, (3, 1000)), rng.random((3, 1000)) < 0.7
        valid[2] = False
        moments = Moments(3)
        for start, stop in ((0, 1), (1, 400), (400, 400), (400, 1000)):
            moments.add(values[:, start:stop].astype(np.float64), valid[:, start:stop])
        for band in (0, 1):
            known = values[band][valid[band]]
            assert moments.count[band] == len(known)
            assert moments.mean[band] == pytest.approx(known.mean(), rel=1e-14)
            assert moments.std[band] == pytest.approx(known.std(), rel=1e-12)
        assert moments.count[2] == 0

    def test_large_means_do_not_swallow_small_deviations(self):
        """Sums of squares in float32, or the textbook formula, would give 0 or nonsense."""
        values = (1e7 + np.tile([0, 1], 500_000))[None].astype(np.float32)
        moments = Moments(1)
        for part in np.array_split(values, 10, axis=1):
            moments.add(part, np.ones(part.shape, bool))
        assert moments.mean[0] == 1e7 + 0.5 and moments.std[0] == pytest.approx(0.5, rel=1e-12)


class TestImages:
    def test_several_rasters_are_one_population(self, tmp_path):
        made = [tile(tmp_path / f"{seed}.tif", seed, size)[0] for seed, size in ((0, 40), (1, 25))]
        found = aerial([tmp_path / "0.tif", tmp_path / "1.tif"])["AERIAL"]
        assert found.bands == sensors.resolve_bands(RGBN, "AERIAL") and found.units == "uint8"
        every = np.concatenate([values.reshape(4, -1) for values in made], axis=1)
        np.testing.assert_allclose(found.mean, every.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.std, every.std(axis=1), rtol=1e-12)
        assert "valid values: 2,225" in found.source and found.p1 is None

    def test_windows_change_nothing(self, tmp_path, monkeypatch):
        values, path = tile(tmp_path / "a.tif", size=41)
        whole = aerial(path)["AERIAL"]
        monkeypatch.setattr(statistics, "BYTES", 4 * 4 * 7 * 7)
        read = []
        original = Scene.read
        monkeypatch.setattr(Scene, "read", lambda scene, *window: read.append(window) or original(scene, *window))
        parts = aerial(path)["AERIAL"]
        assert len(read) == 36 and all(height <= 7 and width <= 7 for _, _, height, width in read)
        np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(parts.std, whole.std, rtol=1e-12)
        np.testing.assert_allclose(parts.mean, values.reshape(4, -1).mean(axis=1), rtol=1e-12)

    def test_only_valid_pixels_count(self, tmp_path):
        values, path = tile(tmp_path / "a.tif", nodata=7)
        values[:, :5] = 7
        write_raster(path, values, pixel=0.2, nodata=7)
        expected = [band[band != 7].mean() for band in values]
        np.testing.assert_allclose(aerial(path)["AERIAL"].mean, expected, rtol=1e-12)
        write_raster(path, values, pixel=0.2)
        np.testing.assert_allclose(aerial(path, nodata=7)["AERIAL"].mean, expected, rtol=1e-12)
        assert aerial(path)["AERIAL"].mean != pytest.approx(expected)

    def test_units_and_offset_as_embed_converts_them(self, tmp_path):
        s2_folder(tmp_path / "s2", size=120)
        plain = raster_statistics(tmp_path / "s2", sensor="S2")["S2"]
        moved = raster_statistics(tmp_path / "s2", sensor="S2", boa_offset=-1000)["S2"]
        np.testing.assert_allclose(moved.mean, np.subtract(plain.mean, 1000), rtol=1e-6)
        np.testing.assert_allclose(moved.std, plain.std, rtol=1e-4)
        power = np.random.default_rng(0).uniform(0.01, 0.2, (2, 9, 9)).astype(np.float32)
        radar = write_raster(tmp_path / "s1.tif", power, descriptions=["VV", "VH"])
        db = raster_statistics(radar, sensor="S1", units="linear")["S1"]
        linear = raster_statistics(radar, sensor="S1", units="linear", target_units="linear")["S1"]
        np.testing.assert_allclose(db.mean, (10 * np.log10(power)).mean(axis=(1, 2)), rtol=1e-6)
        np.testing.assert_allclose(linear.mean, power.mean(axis=(1, 2)), rtol=1e-6)
        assert (db.units, linear.units) == ("db", "linear")

    def test_a_stac_item(self, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=120)
        names = ("B02", "B03", "B04")
        item = stac_item(tmp_path / "item.json", {name: str(folder / f"{name}.tif") for name in names}, offset=-0.1)
        expected = [smooth(i, 12, 12).mean() - 1000 for i in range(3)]
        for source in (item, json.loads(item.read_text())):
            found = raster_statistics(source, sensor="S2")["S2"]
            assert found.bands == ("blue_1", "green_2", "red_2")
            np.testing.assert_allclose(found.mean, expected, rtol=1e-6)

    def test_percentiles_belong_to_clipped_values(self, tmp_path):
        values, path = tile(tmp_path / "a.tif", size=64)
        values[0, 0, 0] = 255
        write_raster(path, values, pixel=0.2)
        found = aerial(path, clip=True)["AERIAL"]
        band = values[0].ravel().astype(float)
        low, high = np.percentile(band, [1, 99])
        assert (found.p1[0], found.p99[0]) == (low, high)
        clipped = ((band - low) / (high - low)).clip(0, 1)
        assert found.mean[0] == pytest.approx(clipped.mean()) and found.std[0] == pytest.approx(clipped.std())
        normalised = sensors.normalize(values.astype(np.float64), found)
        np.testing.assert_allclose(normalised.mean(axis=(1, 2)), 0, atol=1e-12)
        np.testing.assert_allclose(normalised.std(axis=(1, 2)), 1, atol=1e-12)

    def test_samples_of_many_rasters_stay_small(self, tmp_path, monkeypatch):
        for seed in range(4):
            tile(tmp_path / f"{seed}.tif", seed)
        monkeypatch.setattr(statistics, "SAMPLES", 400)
        lengths = []
        percentile = np.percentile
        monkeypatch.setattr(np, "percentile", lambda x, *rest: lengths.append(len(x)) or percentile(x, *rest))
        found = aerial(str(tmp_path / "*.tif"), clip=True)["AERIAL"]
        assert set(lengths) == {400} and found.p1[0] < 20 and found.p99[0] > 230

    def test_what_only_reading_tells(self, tmp_path):
        power = np.random.default_rng(0).uniform(0.01, 0.2, (2, 9, 9)).astype(np.float32)
        power[0, 0, 0] = 0
        path = write_raster(tmp_path / "s1.tif", power, descriptions=["VV", "VH"])
        said = []
        found = raster_statistics([path, path], sensor="S1", units="linear", report=lambda *text: said.append(text))
        warnings = [text for kind, text in said if kind == "warning"]
        assert len(warnings) == 1 and "microwave_1: some values have no value in db" in warnings[0]
        assert "valid values: 160" in found["S1"].source

    def test_what_is_told(self, tmp_path):
        for seed in range(3):
            tile(tmp_path / f"{seed}.tif", seed)
        said = []
        aerial(str(tmp_path / "*.tif"), report=lambda *text: said.append(text))
        assert len(said) == 1 and said[0][0] == "note" and "values taken as uint8" in said[0][1]


class TestFile:
    def test_embed_takes_it(self, tmp_path):
        folder = s2_folder(tmp_path / "s2", size=1200)
        raster_statistics(folder, tmp_path / "mine.json", sensor="S2")
        said = []
        result = embed_raster(
            folder, "smarties_vit_nano", tmp_path / "out.npy", pool="token", stats=tmp_path / "mine.json",
            report=lambda *text: said.append(text[1]),
        )  # fmt: skip
        assert result.path.exists() and "normalised with the statistics 'mine'" in said

    def test_one_set_or_sets_by_input(self, tmp_path):
        _, path = tile(tmp_path / "a.tif")
        one, several = tmp_path / "one.json", tmp_path / "several.json"
        found = aerial(path, one)
        assert sensors.get_statistics(one) == found["AERIAL"] and found["AERIAL"].name == "one"
        by_input = raster_statistics({"aerial": path}, several, bands=RGBN)
        assert list(json.loads(several.read_text())) == ["aerial"] and by_input["aerial"].name == "several/aerial"
        order = sensors.get_order("anysat/aerial")
        assert sensors.statistics_for(several, {"aerial": order, "s2": sensors.get_order("S2")}) == by_input
        assert by_input["aerial"].mean == found["AERIAL"].select(order).mean

    def test_an_existing_file_stays(self, tmp_path):
        _, path = tile(tmp_path / "a.tif")
        out = tmp_path / "out.json"
        out.write_text("mine")
        with pytest.raises(InputError, match="exists; choose another name, or pass --overwrite"):
            aerial(path, out)
        write_raster(path, np.zeros((4, 8, 8), np.uint8), pixel=0.2)
        with pytest.raises(InputError, match="everywhere"):
            aerial(path, out, overwrite=True)
        assert out.read_text() == "mine" and sorted(one.name for one in tmp_path.iterdir()) == ["a.tif", "out.json"]
        tile(path)
        aerial(path, out, overwrite=True)
        assert sensors.get_statistics(out).sensor == "AERIAL"


class TestInputs:
    def test_a_folder_of_images_or_of_bands(self, tmp_path):
        made = [tile(tmp_path / "tiles" / f"{seed}.tif", seed)[0] for seed in range(2)]
        (tmp_path / "tiles" / "readme.txt").write_text("")
        mean = np.mean([values[3].mean() for values in made])
        for sources in (
            tmp_path / "tiles",
            str(tmp_path / "tiles" / "?.tif"),
            [tmp_path / "tiles" / "0.tif", tmp_path / "tiles" / "1.tif"],
        ):
            found = raster_statistics({"aerial": sources}, bands={"aerial": RGBN})["aerial"]
            assert found.mean[0] == pytest.approx(mean, rel=1e-12)
        for name, values in zip("RGB", made[0], strict=False):
            write_raster(tmp_path / "bands" / f"{name}.tif", values, pixel=1)
        found = raster_statistics({"spot": tmp_path / "bands"})["spot"]
        assert found.mean == pytest.approx(made[0][:3].mean(axis=(1, 2)), rel=1e-12)

    def test_the_models_order_and_bands(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 255, (5, 9, 9)).astype(np.uint8)
        path = write_raster(tmp_path / "flair.tif", values, pixel=0.2)
        bands = {key: ["elevation", "B", "G", "R", "NIR"] for key in ("aerial-flair", "aerial")}
        found = raster_statistics({"aerial-flair": path, "aerial": path}, bands=bands)
        assert found["aerial-flair"].bands == sensors.get_order("anysat/aerial-flair")
        assert found["aerial-flair"].mean == pytest.approx(values[[3, 2, 1, 4, 0]].mean(axis=(1, 2)))
        assert found["aerial"].mean == pytest.approx(values[[4, 3, 2, 1]].mean(axis=(1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sensor=None), "the images' sensor is not known: give one of S2,"),
        (dict(sensor="AERIA"), "unknown sensor 'AERIA'"),
        (dict(preset="FLAIR"), "a preset is for inputs by name"),
        (dict(target_units="metres"), "target_units is 'metres', expected dn"),
        (dict(bands={"aerial": RGBN}), "bands is given by input, but the images have none"),
        (dict(bands=["R", "G"]), r"has [34] bands, but --bands names 2"),
        (dict(masks="off"), "masks: only for time series"),
        (dict(sources=[]), "there are no rasters"),
        (dict(sources={}, sensor=None), "there are no rasters"),
        (dict(sources="nothing/*.tif"), r"nothing/\*.tif: nothing matches this pattern"),
        (dict(sources="nothing.tif"), "no such file"),
        (dict(sources={"aerial": "a.tif"}), "sensor 'AERIAL' is given, but inputs by name have their own"),
        (dict(sources={"areal": "a.tif"}, sensor=None), "unknown input 'areal'. Did you mean 'aerial'"),
        (
            dict(sources={"aerial": "a.tif"}, sensor=None, bands={"areal": RGBN}),
            "bands is given for 'areal', but the inputs",
        ),
        (
            dict(sources={"aerial": "a.tif"}, sensor=None, bands=None),
            "aerial: its bands carry no names: give --bands aerial=",
        ),
        (dict(sources={"aerial": "a.tif"}, sensor=None, start="2020-01-01"), "start: only for time series"),
        (dict(sources={"aerial": "a.tif"}, sensor=None, preset="PLANTED"), "preset PLANTED has no aerial"),
        (dict(sources={"aerial": "a.tif"}, sensor=None, bands=["R", "G", "B", "-"]), "aerial: its bands aerial_near"),
        (dict(sources={"aerial": "a", "s2": "b"}, sensor=None, target_units="dn"), "target_units is for one input"),
    ],
)
def test_bad_arguments(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tile(tmp_path / "a.tif")
    with pytest.raises(InputError, match=message):
        aerial(**{"sources": "a.tif", **change})


def test_bands_without_a_standard_deviation(tmp_path):
    values, path = tile(tmp_path / "a.tif")
    with pytest.raises(InputError, match="aerial-flair: its bands elevation are not there"):
        raster_statistics({"aerial-flair": path}, bands=RGBN)
    for clip in (False, True):
        write_raster(path, np.stack([*values[:3], np.full_like(values[0], 9)]), pixel=0.2)
        with pytest.raises(
            InputError, match=r"AERIAL: aerial_near_infrared is 9 (everywhere|from the 1st to the 99th %)"
        ):
            aerial(path, clip=clip)
        write_raster(path, np.stack([values[0], values[1] * 0, *values[2:]]), pixel=0.2, nodata=0)
        with pytest.raises(InputError, match="AERIAL: aerial_green has no valid value in 1 rasters; check the nodata"):
            aerial(path, clip=clip)
    constant = write_raster(tmp_path / "c.tif", np.full((3, 50, 50), 0.1, np.float32), descriptions=["R", "G", "B"])
    with pytest.raises(InputError, match=r"is 0\.1 everywhere"):
        raster_statistics(constant, sensor="AERIAL", target_units="reflectance")
    _, second = tile(tmp_path / "b.tif", descriptions=["R", "G", "B", None])
    _, first = tile(tmp_path / "0.tif", descriptions=RGBN)
    with pytest.raises(InputError, match=r"b\.tif has no aerial_near_infrared, which the statistics of AERIAL need"):
        aerial([first, second], bands=None)


class TestSeries:
    def folder(self, path, dates=("20200105", "20200210", "20200315")):
        values = np.random.default_rng(1).integers(300, 4000, (len(dates), 10, 6, 7)).astype(np.uint16)
        values[:, :, 0, 0] = 0
        for date, image in zip(dates, values, strict=True):
            write_raster(path / f"S2_{date}.tif", image, nodata=0, descriptions=sensors.get_order("anysat/s2"))
        return values

    def test_all_dates_are_one_population(self, tmp_path, monkeypatch):
        values = self.folder(tmp_path / "s2")
        monkeypatch.setattr(statistics, "BYTES", 4 * 10 * 3 * 4)  # 2 x 2 pixels of 3 dates at a time
        said = []
        found = raster_statistics(
            {"s2": tmp_path / "s2"}, tmp_path / "out.json", report=lambda *text: said.append(text[1])
        )["s2"]
        known = np.moveaxis(values, 1, 0).reshape(10, -1).astype(float)
        known = np.stack([band[band > 0] for band in known])
        np.testing.assert_allclose(found.mean, known.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.std, known.std(axis=1), rtol=1e-12)
        assert found.bands == sensors.get_order("anysat/s2") and found.units == "dn"
        assert all(text.startswith("s2: ") for text in said)
        order = {"s2": sensors.get_order("anysat/s2")}
        assert sensors.statistics_for(tmp_path / "out.json", order) == {"s2": found}

    def test_dates_can_be_chosen(self, tmp_path):
        values = self.folder(tmp_path / "s2")
        found = raster_statistics({"s2": str(tmp_path / "s?")}, start="2020-02-01", end="2020-02-28")["s2"]
        assert found.mean[0] == pytest.approx(values[1, 0][values[1, 0] > 0].mean(), rel=1e-12)
        clipped = raster_statistics({"s2": [tmp_path / "s2"]}, clip=True)["s2"]
        assert clipped.p1[0] > 300 and clipped.p99[0] < 4000 and 0.4 < clipped.mean[0] < 0.6

    def test_ratio_and_units_of_a_preset(self, tmp_path):
        power = np.random.default_rng(0).uniform(0.01, 0.2, (2, 2, 5, 5)).astype(np.float32)
        for day, image in zip(("20200101", "20200113"), power, strict=True):
            write_raster(tmp_path / "s1" / f"{day}.tif", image, descriptions=["VV", "VH"])
        found = raster_statistics({"s1-asc": tmp_path / "s1", "s1": tmp_path / "s1"}, preset="TreeSatAI-TS")
        assert found["s1-asc"].units == "linear"
        np.testing.assert_allclose(found["s1-asc"].mean, power.mean(axis=(0, 2, 3)), rtol=1e-6)
        ratio = (power[:, 0] / (power[:, 1] + 1e-10)).mean()
        assert found["s1"].bands[2] == "microwave_ratio" and found["s1"].mean[2] == pytest.approx(ratio, rel=1e-5)

        db = raster_statistics({"s1": tmp_path / "s1"}, preset="PASTIS-HD", units="linear")["s1"]
        vv, vh, difference = db.mean
        assert db.units == "db" and difference == pytest.approx(vv - vh, rel=1e-5)

    def test_what_statistics_make_of_their_own_data(self, tmp_path):
        """Through the transform, whose statistics they are, the series comes out with mean 0 and deviation 1."""
        values = self.folder(tmp_path / "s2")
        raster_statistics({"s2": tmp_path / "s2"}, tmp_path / "out.json")
        transform = eo_zoo.create_transform("anysat_base", stats=tmp_path / "out.json", nodata=0)
        out = transform(
            {"s2": values[None].astype(np.float32), "s2_dates": [["2020-01-05", "2020-02-10", "2020-03-15"]]}
        )
        x = out["s2"][out["s2_mask"]].reshape(-1)
        assert abs(x.mean()) < 1e-5 and abs(x.std(correction=0) - 1) < 1e-5
        assert out["s2_mask"].sum() == 3 * 10 * 41 and not out["s2"][..., 0, 0].any()

    def test_a_treesatai_tile(self):
        tile = Path(__file__).parent.parent / "data" / "treesatai"
        sources = {"aerial": tile / "aerial.tif", "s2": tile / "series.h5", "s1-asc": tile / "series.h5"}
        found = raster_statistics(sources, preset="TreeSatAI-TS", masks="off")
        with h5py.File(tile / "series.h5") as file:
            s2, s1 = file["sen-2-data"][:], file["sen-1-asc-data"][:]
        np.testing.assert_allclose(found["s2"].mean, s2.mean(axis=(0, 2, 3), dtype=float), rtol=1e-6)
        np.testing.assert_allclose(found["s1-asc"].std, s1.std(axis=(0, 2, 3), dtype=float), rtol=1e-6)
        assert [found[key].units for key in sources] == ["uint8", "dn", "linear"]
        assert found["aerial"].bands == sensors.get_order("anysat/aerial")
        cloudless = raster_statistics({"s2": tile / "series.h5"})["s2"]
        assert cloudless.mean[0] < found["s2"].mean[0] and cloudless.std[0] != found["s2"].std[0]
