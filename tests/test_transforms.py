from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import eo_zoo
from eo_zoo import sensors, weights
from eo_zoo.errors import InputError
from eo_zoo.presets import get_preset
from eo_zoo.transforms import Normalize, SplineResize, _spline_matrix, spline_matrix
from tests.procedural import uniform


def test_normalise_then_resize():
    statistics = sensors.get_statistics("smarties/S2-L2A")
    x = np.random.default_rng(0).integers(0, 6000, (2, 12, 64, 64)).astype(np.uint16)
    out = eo_zoo.create_transform("smarties_vit_base")(x)
    assert out.shape == (2, 12, 224, 224) and out.dtype == torch.float32
    normalised = sensors.normalize(torch.as_tensor(x), statistics)
    expected = torch.nn.functional.interpolate(normalised, (224, 224), mode="bicubic", antialias=True)
    torch.testing.assert_close(out, expected)


def test_bands_by_name_and_other_statistics():
    x = torch.full((3, 112, 112), 2000.0)
    transform = eo_zoo.create_transform("smarties_vit_nano", bands=["B04", "B03", "B02"])
    chosen = sensors.get_statistics("nano/S2-L2A").select(["red_2", "green_2", "blue_1"])
    torch.testing.assert_close(transform(x), sensors.normalize(x, chosen))
    x = torch.rand(13, 112, 112) * 3000
    own_order = eo_zoo.create_transform("smarties_vit_nano", "S2-L1C", stats="EuroSAT")(x)
    file_order = sensors.reorder(x, "S2-L1C", "eurosat")
    by_file = eo_zoo.create_transform(
        "smarties_vit_nano", "S2-L1C", stats="EuroSAT", bands=sensors.get_order("eurosat")
    )
    torch.testing.assert_close(sensors.reorder(by_file(file_order), "eurosat", "S2-L1C"), own_order)
    eurosat = eo_zoo.create_transform("smarties_vit_base", "S2-L1C", stats="EuroSAT", size=64)
    assert eurosat(torch.zeros(13, 64, 64)).shape == (13, 64, 64)


def test_images_that_are_not_square_and_other_sensors():
    out = eo_zoo.create_transform("smarties_vit_nano", "S1", bands=["VH", "VV"])(torch.full((2, 112, 224), -12.0))
    chosen = sensors.get_statistics("nano/S1").select(["microwave_2", "microwave_1"])
    assert out.shape == (2, 112, 112)
    expected = sensors.normalize(torch.full((2, 112, 112), -12.0), chosen)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16, torch.uint16])
def test_any_type_in_float32_out(dtype):
    x = torch.full((12, 112, 112), 1000).to(dtype)
    assert eo_zoo.create_transform("smarties_vit_nano")(x).dtype == torch.float32


def test_values_are_checked(caplog):
    transform = eo_zoo.create_transform("smarties_vit_nano")
    x = torch.full((12, 112, 112), 1000.0)
    transform(x)
    assert not caplog.records
    eo_zoo.create_transform("smarties_vit_nano", "S1")(torch.full((2, 112, 112), -5.0))
    transform(torch.zeros(12, 112, 112))
    assert not caplog.records
    transform(transform(x))
    assert "normalised already" in caplog.text
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="NaN or infinite"):
            transform(torch.where(torch.rand(12, 112, 112) < 0.01, value, x))
    graph = torch.export.export(transform, (x,)).module()  # no value check inside a graph
    torch.testing.assert_close(graph(x), transform(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sensor="S3"), "unknown sensor"),
        (dict(sensor="MODIS"), "none for MODIS"),
        (dict(sensor="AERIAL"), "anysat/aerial"),
        (dict(bands=["B10"]), "B10"),
        (dict(sensor="S1", stats="EuroSAT"), "microwave_1"),
        (dict(stats="EuroSat2"), "EuroSAT"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        eo_zoo.create_transform("smarties_vit_base", **arguments)


def check(found, expected, atol=1e-5):
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), atol=atol, rtol=0)


class TestSplineResize:
    """Expected numbers: skimage.transform.rescale(..., order=3, anti_aliasing=True) of scikit-image 0.21.0 and 0.26.0,
    which the public evaluation of SMARTIES calls, in float64, on the same images."""

    def test_enlarges_as_scikit_image_does(self):
        found = SplineResize(9)(uniform("spline/enlarge", (2, 5, 7)))
        assert found.shape == (2, 9, 9)
        check(found[:, ::4, ::4], [
            -0.985553, 1.586451, -0.162208, 0.500284, -1.088086, -0.982488, -0.048952, -1.038896, 0.148526,
            -0.892845, -0.340379, -0.439137, -1.345424, 0.858164, 0.556074, 1.428315, -1.422620, 0.184448,
        ])  # fmt: skip

    def test_blurs_before_it_shrinks(self):
        found = SplineResize(8)(uniform("spline/shrink", (2, 40, 25)))
        check(found[:, ::4, ::4], [0.209712, 0.154692, 0.173632, 0.075374, -0.102399, -0.246298, -0.190562, 0.028770])

    def test_shorter_side_and_centre_crop(self):
        found = SplineResize(14, crop=0.875)(uniform("spline/crop", (2, 30, 44)))
        assert found.shape == (2, 14, 14)
        check(found[:, ::6, ::6], [
            -0.529703, -0.563414, 0.165346, -0.821825, -0.359042, 0.648457, -0.582192, -0.028513, 0.237136,
            1.009095, -1.354705, -0.928626, 1.295576, 0.137085, -0.575877, 0.170201, -1.351526, 0.375540,
        ])  # fmt: skip

    def test_each_image_is_clipped_to_its_own_range(self):
        step = torch.zeros(2, 1, 8, 8)
        step[..., 4:] = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
        found = SplineResize(32)(step)
        assert found.amin() == 0 and torch.equal(found.amax(dim=(1, 2, 3)), torch.tensor([1.0, 5.0]))
        torch.testing.assert_close(found[1], 5 * found[0])
        low, high = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 9.0)
        both = torch.cat([step[0], low - 9, high])
        overshoot = SplineResize(32)(both)[0]
        assert overshoot.amin() < 0 and overshoot.amax() > 1
        assert torch.equal(SplineResize(32, counted=[0])(both)[0], found[0, 0])

    def test_an_image_of_the_size_stays(self):
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(SplineResize(16)(x), x)
        assert torch.equal(SplineResize(14, crop=0.875)(x), x[..., 1:15, 1:15])

    @pytest.mark.parametrize(("old", "new"), [(1, 5), (2, 7), (64, 224), (300, 224), (1000, 16)])
    def test_a_constant_stays_constant(self, old, new):
        matrix = spline_matrix(old, new)
        assert matrix.shape == (new, old)
        torch.testing.assert_close(matrix.sum(1), torch.ones(new))

    def test_exports(self):
        _spline_matrix.cache_clear()  # so that the graph makes it first
        transform = eo_zoo.create_transform("smarties_vit_base.eurosat_finetune")
        x = torch.rand(2, 13, 64, 64) * 3000
        torch.testing.assert_close(torch.export.export(transform, (x,)).module()(x), transform(x))
        compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), transform(x))


class TestPublicEvaluation:
    """What the public code at fc0df04 feeds its models, computed with its configuration and scikit-image."""

    def test_eurosat_in_file_order_and_in_the_sensors(self):
        raw = 1500 + 1000 * uniform("eurosat/raw", (13, 64, 64))  # B8A last, as the files have it
        expected = [
            1.441224, -0.173607, -1.400045, -0.773104, -1.452373, 0.332583, 0.846009, 0.738235, -0.965599, 0.387003,
            2.384860, -0.107375,
        ]  # fmt: skip
        order = sensors.get_order("eurosat")
        by_file = eo_zoo.create_transform("smarties_vit_base.eurosat_finetune", bands=order)(raw)
        keep = [i for i in range(13) if order[i] != "short_wave_infrared_2"]
        assert by_file.shape == (13, 224, 224)
        check(by_file[keep, 100, 50], expected)
        # B10, which is not read, would let overshoot pass up to 3.98
        check(torch.stack([by_file[keep].amin(), by_file[keep].amax()]), [-2.131471, 3.697276])
        own = eo_zoo.create_transform("smarties_vit_large.eurosat_linprobe")(sensors.reorder(raw, order, "S2-L1C"))
        torch.testing.assert_close(own, sensors.reorder(by_file, order, "S2-L1C"))

    def test_resisc45_is_cropped(self):
        raw = 128 + 60 * uniform("resisc/raw", (3, 300, 400))
        found = eo_zoo.create_transform("smarties_vit_large.resisc45_finetune")(raw)
        assert found.shape == (3, 224, 224)
        check(found[:, ::223, ::223], [
            -0.717412, 0.837892, 0.306453, -0.744051, 1.281243, 1.037944, 1.388815, 1.969446, 1.023599, 0.521495,
            0.937203, 1.638393,
        ])  # fmt: skip

    def test_dfc2020_has_statistics_of_its_own(self):
        raw = 128 + 60 * uniform("dfc/raw", (14, 96, 96))
        found = eo_zoo.create_transform("smarties_vit_base.dfc2020_linprobe")(raw[:12])
        check(found[:, 100, 50], [
            1.382192, -0.704729, 0.373395, -0.385628, 0.851265, -0.817192, 0.255740, -0.122942, -0.139524, -1.249243,
            1.420305, 1.271900,
        ])  # fmt: skip

    def test_bigearthnet_sensors_alone_and_together(self):
        s2, s1 = 1500 + 1000 * uniform("mm/s2", (12, 120, 120)), -15 + 4 * uniform("mm/s1", (2, 120, 120))
        first = [
            5.956946, -0.604769, 2.086457, 0.992346, 0.370178, -1.531185, -0.386610, -0.300217, 0.101155, 0.217673,
            1.161736, 1.341726,
        ]  # fmt: skip
        second = [-1.716737, 1.261737]
        check(eo_zoo.create_transform("smarties_vit_base.bigearthnets2_finetune")(s2)[:, 7, 150], first)
        check(eo_zoo.create_transform("smarties_vit_base.bigearthnets1_linprobe")(s1)[:, 7, 150], second)
        both = eo_zoo.create_transform("smarties_vit_base.bigearthnetmm_linprobe")
        check(both(torch.cat([s2, s1]).numpy())[:, 7, 150], first + second)
        mixed = eo_zoo.create_transform("smarties_vit_base.bigearthnetmm_linprobe", bands=["VH", "B02", "VV", "B04"])
        batch = torch.stack([s1[1], s2[1], s1[0], s2[3]])[None]
        parts = eo_zoo.create_transform("smarties_vit_base.bigearthnets2_finetune", bands=["B02", "B04"])
        made = mixed(batch)
        check(made[0, [2, 0], 7, 150], second)
        torch.testing.assert_close(made[:, [1, 3]], parts(s2[[1, 3]])[None])

    def test_every_tuned_set_has_a_transform_of_its_own(self):
        for name, record in weights.RECORDS.items():
            kind = repr(eo_zoo.create_transform(name))
            assert ("cubic spline" in kind) == (record.task is not None), name

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(bands=["VV", "B99"]), "no band of S2 or S1 is called 'B99'"),
            (dict(sensor="RGB"), "none for RGB"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(InputError, match=message):
            eo_zoo.create_transform("smarties_vit_base.bigearthnetmm_linprobe", **arguments)

    def test_wrong_number_of_bands(self):
        with pytest.raises(InputError, match=r"14 bands.*\(12, 120, 120\)"):
            eo_zoo.create_transform("smarties_vit_base.bigearthnetmm_linprobe")(torch.zeros(12, 120, 120))


def test_sizes_and_images_that_cannot_be():
    for size in (0, -3):
        with pytest.raises(InputError, match=f"size is {size}, expected 1 pixel or more"):
            eo_zoo.create_transform("smarties_vit_nano", size=size)
    with pytest.raises(InputError, match=r"the images are empty: got \(1, 12, 0, 5\)"):
        eo_zoo.create_transform("smarties_vit_nano")(torch.zeros(1, 12, 0, 5))


def test_small_numbers_are_doubtful_where_reflectance_is_meant_only(caplog):
    eo_zoo.create_transform("mars_base_sar", "Capella")(torch.full((1, 1, 8, 8), 3.0))
    assert not caplog.records
    eo_zoo.create_transform("smarties_vit_nano", "S2")(torch.full((1, 12, 8, 8), 3.0))
    assert "reflectance" in caplog.text


def statistics(sensor, bands, units="linear"):
    """Mean 1, 2, ... and standard deviation 2, 4, ... of the bands."""
    values = {"mean": [i + 1.0 for i in range(len(bands))], "std": [2 * i + 2.0 for i in range(len(bands))]}
    return sensors.Statistics.from_dict({"sensor": sensor, "units": units, "bands": list(bands), **values})


class TestInputs:
    """A model of several inputs by name."""

    def test_demo_of_the_public_code(self):
        """(x - mean) / std of its notebook, in its order; days of the year are 1 on the first of January."""
        aerial, s2 = 120 + 40 * uniform("aerial", (1, 4, 10, 10)), 4000 + 900 * uniform("s2", (1, 2, 10, 6, 6))
        out = eo_zoo.create_transform("anysat_base")(
            {"aerial": aerial.numpy(), "s2": s2, "s2_dates": [["2020-01-01", "2020-12-31"]]}
        )
        assert list(out) == ["aerial", "s2", "s2_mask", "s2_dates"]
        mean, std = torch.tensor([150.89, 92.71, 84.85, 80.70]), torch.tensor([36.76, 27.62, 22.48, 26.73])
        torch.testing.assert_close(out["aerial"], (aerial - mean.view(4, 1, 1)) / std.view(4, 1, 1))
        torch.testing.assert_close(out["s2"][0, 1, 9], (s2[0, 1, 9] - 2319.97) / 1549.30)
        assert out["s2_dates"].tolist() == [[1, 366]] and out["s2_mask"].all()
        assert out["s2_mask"].shape == s2.shape and out["s2"].dtype == torch.float32

    def test_bands_by_name_reach_the_models_order(self):
        rgbn = torch.arange(1.0, 5).view(1, 4, 1, 1).expand(1, 4, 10, 10) * 40
        by_file = eo_zoo.create_transform("anysat_base")({"aerial": rgbn[:, [3, 0, 1, 2]]})["aerial"]
        for bands in (["R", "G", "B", "NIR"], "anysat/aerial-readme"):
            own = eo_zoo.create_transform("anysat_base", bands={"aerial": bands})
            assert torch.equal(own({"aerial": rgbn})["aerial"], by_file)
        more = eo_zoo.create_transform("anysat_base", bands={"aerial": ["R", "elevation", "G", "B", "NIR"]})
        assert torch.equal(more({"aerial": rgbn[:, [0, 2, 1, 2, 3]]})["aerial"], by_file)
        preset = get_preset("TreeSatAI-TS", orders={"aerial": "anysat/aerial-readme"})
        readme = eo_zoo.create_transform("anysat_base", preset=preset)({"aerial": rgbn})["aerial"]
        assert torch.equal(readme, by_file[:, [1, 2, 3, 0]])

    def test_what_is_missing_is_0_and_masked(self):
        x = torch.full((2, 3, 10, 4, 4), 4000.0)
        x[0, 1, 2, 3, 0], x[1, 0, 5, 0, 1] = float("nan"), -10000
        given = torch.ones(2, 3, 1, 4, 4, dtype=torch.bool)
        given[1, 2, 0, 2, 2] = False
        expected = torch.ones(2, 3, 10, 4, 4, dtype=torch.bool)
        expected[0, 1, 2, 3, 0] = expected[1, 0, 5, 0, 1] = expected[1, 2, :, 2, 2] = False
        data = {"s2": x, "s2_dates": torch.ones(2, 3), "s2_mask": given, "aerial": torch.full((2, 4, 8, 8), 255)}
        data["aerial"][0, 1, 2, 3] = 7
        out = eo_zoo.create_transform("anysat_base", nodata={"s2": -10000, "aerial": 7})(data)
        assert torch.equal(out["s2_mask"], expected)
        assert not out["s2"][~expected].any() and out["s2"][expected].all()
        assert out["aerial"][0, 1, 2, 3] == 0 and (out["aerial"] == 0).sum() == 1
        for_all = eo_zoo.create_transform("anysat_base", nodata=255)({"aerial": data["aerial"]})["aerial"]
        assert for_all[0, 1, 2, 3] and (for_all != 0).sum() == 1
        full = {**data, "s2_mask": expected}
        assert torch.equal(eo_zoo.create_transform("anysat_base")(full)["s2_mask"], expected)
        assert given.sum() == given.numel() - 1 and x.isnan().sum() == 1  # what is given stays

    def test_one_sample_without_a_batch(self):
        out = eo_zoo.create_transform("anysat_base")({"s2": torch.zeros(3, 10, 2, 2), "s2_dates": [1, 2, 3]})
        assert out["s2"].shape == out["s2_mask"].shape == (3, 10, 2, 2) and out["s2_dates"].shape == (3,)

    def test_the_ratio_is_made_of_two_bands(self):
        two = torch.rand(1, 2, 2, 3, 3) + 0.1
        two[0, 0, 1, 0, 0], two[0, 1, 0, 1, 1], two[0, 1, 1, 2, 2] = 0.0, float("nan"), 1e-7
        stats = {"s1": statistics("S1", sensors.get_order("anysat/s1"))}
        out = eo_zoo.create_transform("anysat_base", stats=stats)({"s1": two, "s1_dates": [[1, 2]]})
        ratio = (two[:, :, 0] / (two[:, :, 1] + 1e-10)).clamp(-1e4, 1e4)
        assert ratio[0, 0, 0, 0] == 1e4
        valid = out["s1_mask"][:, :, 2]
        torch.testing.assert_close(out["s1"][:, :, 2][valid], (ratio[valid] - 3) / 6)
        assert (~valid).sum() == 1 and not valid[0, 1, 1, 1] and out["s1_mask"][:, :, 1].all()
        two[0, 0, 1, 2, 0] = float("nan")  # the ratio lacks what either band lacks
        out = eo_zoo.create_transform("anysat_base", stats=stats)({"s1": two, "s1_dates": [[1, 2]]})
        assert (~out["s1_mask"][:, :, 2]).sum() == 2 and out["s1"][0, 0, 2, 2, 0] == 0
        three = torch.cat([two, torch.full_like(two[:, :, :1], 5.0)], dim=2)
        kept = eo_zoo.create_transform("anysat_base", stats=stats)({"s1": three, "s1_dates": [[1, 2]]})
        assert torch.equal(kept["s1"][:, :, 2], torch.full((1, 2, 3, 3), (5.0 - 3) / 6))

    def test_a_ratio_in_db_is_a_difference(self):
        two = torch.tensor([-10.0, -16.0]).view(1, 1, 2, 1, 1)
        out = eo_zoo.create_transform("anysat_base", preset="PASTIS-HD")({"s1": two, "s1_dates": [[7]]})
        mean, std = (getattr(sensors.get_statistics("pastis/s1"), key)[2] for key in ("mean", "std"))
        assert out["s1"][0, 0, 2, 0, 0].item() == pytest.approx((6 - mean) / std, rel=1e-5)

    def test_statistics_of_one_and_of_several_inputs(self, tmp_path):
        s1 = statistics("S1", ["VH", "VV"])  # in another order, which is looked up by name
        x = {"s1-asc": torch.ones(1, 1, 2, 1, 1), "s1-asc_dates": [[1]]}
        files = {"one.json": s1.to_dict(), "several.json": {"s1-asc": s1.to_dict()}}
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        for given in (s1, {"s1-asc": s1}, {"s1-asc": tmp_path / "one.json"}, *(tmp_path / name for name in files)):
            out = eo_zoo.create_transform("anysat_base", stats=given)(x)["s1-asc"]
            assert out.flatten().tolist() == [(1 - 2) / 4, 0]
        own = statistics("S2", sensors.get_order("anysat/s2"), "dn")
        both = eo_zoo.create_transform("anysat_base", stats={"s2": own})(
            {"s2": torch.full((1, 1, 10, 1, 1), 11.0), "s2_dates": [[1]], "aerial": torch.full((1, 4, 1, 1), 150.89)}
        )
        assert both["s2"][0, 0, 0] == 5 and both["aerial"][0, 0] == 0  # the weights' own stay

    def test_output_goes_into_the_model(self):
        model = eo_zoo.create_model("anysat_nano", pretrained=False)
        x = {"s2": torch.rand(1, 3, 10, 6, 6) * 5000, "s2_dates": [["2020-02-29", "2020-05-01", "2020-08-30"]]}
        x["s2"][0, 0, :, 2, 2] = float("nan")
        out = model(eo_zoo.create_transform("anysat_nano")(x), patch_size=10, output="tile")
        assert out.shape == (1, model.num_features) and out.isfinite().all()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (torch.zeros(1, 4, 10, 10), "expected a dict of inputs by name"),
            ({"areal": 0}, "unknown input 'areal'. Did you mean 'aerial'"),
            ({"s2_dates": [1]}, "unknown input 's2_dates'"),
            ({"label": 3}, "unknown input 'label'"),
            ({"spot": torch.zeros(1, 3, 10, 10)}, "no statistics of spot .* eo-zoo stats --input spot=YOUR_RASTERS"),
            (
                {"aerial": torch.zeros(1, 3, 10, 10)},
                r"aerial is \(1, 3, 10, 10\), expected \(..., 4, H, W\): aerial_near",
            ),
            ({"aerial": torch.zeros(4)}, r"aerial is \(4,\), expected"),
            ({"aerial": torch.full((4, 2, 2), float("inf"))}, "infinite"),
            (
                {"s2": torch.zeros(1, 2, 10, 1, 1), "s2_mask": torch.ones(1, 2, 10, 1, 1)},
                "s2_mask is torch.float32 .* bool",
            ),
            (
                {"s2": torch.zeros(1, 2, 10, 1, 1), "s2_mask": torch.ones(1, 2, 3, 1, 1) > 0},
                r"s2_mask is .* \(1, 2, 3, 1, 1\)",
            ),
            ({"s2": torch.zeros(1, 1, 10, 1, 1), "s2_dates": [["soon"]]}, "'soon' is no date"),
        ],
    )
    def test_bad_data(self, data, message):
        with pytest.raises(InputError, match=message):
            eo_zoo.create_transform("anysat_base")(data)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(sensor="S2"), "takes inputs by name"),
            (dict(size=224), "takes inputs by name"),
            (dict(bands=["R"]), "bands are given by input"),
            (dict(bands={"areal": ["R"]}), "unknown input 'areal'. Did you mean 'aerial'"),
            (dict(bands={"aerial": ["R", "G"]}), "lack aerial_near_infrared, aerial_blue; the model takes"),
            (dict(bands={"aerial": ["R", "G", "B", "NIR", "R"]}), "hold a band twice"),
            (dict(bands={"s1": ["VV", "VV"]}), "lack microwave_2"),
            (dict(preset="TreeSat"), "unknown preset"),
            (dict(nodata={"s3": 0}), "unknown input 's3'"),
            (dict(stats={"s3": "EuroSAT"}), "statistics are given for 's3', which is no input"),
            (dict(stats={"s2": "anysat/aerial"}), "statistics 'anysat/aerial' have no blue_1"),
            (dict(stats="mars/RGB"), "all bands of none of the inputs"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(InputError, match=message):
            eo_zoo.create_transform("anysat_base", **arguments)

    @pytest.mark.parametrize(
        "arguments", [dict(preset="FLAIR"), dict(nodata=0), dict(bands={"s2": "S2"}), dict(stats={})]
    )
    def test_a_model_of_one_image_has_no_inputs(self, arguments):
        with pytest.raises(InputError, match="takes one image: it has no preset"):
            eo_zoo.create_transform("smarties_vit_nano", **arguments)


@pytest.mark.parametrize(
    ("name", "low", "high", "doubtful"),
    [
        ("mars/RGB", 0, 255, False), ("mars/RGB", -0.5, 260, False), ("mars/RGB", 0, 3, False),
        ("mars/RGB", 0, 0, False),
        ("mars/RGB", 0, 1, True), ("mars/RGB", -1.5, 2, True), ("mars/RGB", 0, 4000, True),
        ("smarties/S1", -25, 3, False), ("smarties/S1", 0, 0, False), ("smarties/S1", 0, 0.4, True),
        ("mars/Capella", 0, 9, False), ("mmearth/aster", 0, 0.5, False), ("anysat/s1-demo", 0, 0.4, False),
    ],
)  # fmt: skip
def test_values_that_no_image_has_are_doubtful(name, low, high, doubtful, caplog):
    own = sensors.get_statistics(name)
    Normalize(own)(torch.linspace(low, high, len(own.bands) * 16).reshape(-1, 4, 4))
    assert bool(caplog.records) == doubtful
