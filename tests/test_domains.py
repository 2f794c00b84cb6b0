"""From rasters to what MultiMAE takes: bands by name, statistics, sizes, gaps, and units that are none of its."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eo_zoo import create_model, create_transform
from eo_zoo.domains import Domains
from eo_zoo.errors import InputError
from eo_zoo.models.multimae_domains import DOMAINS
from eo_zoo.sensors import get_order, get_statistics

NAME = "multimae_eo_base"
S2 = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]  # ESA's order of L2A
MMEARTH = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
CODES = [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]


def image(*shape, bands=12, low=100, high=9000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, (*shape[:-2], bands, *shape[-2:])))


def expected(x, names, wanted, statistics="mmearth/s2-l2a"):
    own = get_statistics(statistics).select(wanted)
    mean, std = (torch.tensor(column, dtype=torch.float64)[:, None, None] for column in (own.mean, own.std))
    return ((x[..., [names.index(name) for name in wanted], :, :].double() - mean) / std).float()


DOMAIN_BANDS = {"rgb": ["B4", "B3", "B2"], "ired": ["B5", "B6", "B7"], "sired": ["B11", "B12"], "ebands": ["B8A", "B8"]}


# ---- values ----


def test_of_rasters_to_the_model():
    transform = create_transform(NAME)
    assert isinstance(transform, Domains)
    data = {"s2": image(2, 64, 64), "dem": np.full((2, 1, 22, 20), 500.0), "worldcover": torch.full((2, 1, 64, 64), 30)}
    data["dem"][..., 3:] = 900
    made = transform(data)
    assert list(made) == ["rgb", "ired", "sired", "ebands", "depth", "semseg"]
    for name, domain in DOMAINS.items():
        assert made[name].shape == ((2, 14, 14) if domain.classes else (2, domain.channels, 56, 56))
    assert (made["semseg"] == 2).all() and made["semseg"].dtype == torch.int64
    with torch.inference_mode():
        assert create_model(NAME, pretrained=False)(made).isfinite().all()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float64, torch.int16, torch.float32])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_chosen_by_name_and_standardised(kind, batch):
    """At their own size nothing is resized, so the numbers can be written down; of any type and batch."""
    x = image(*batch, 56, 56)
    given = x.to(kind) if isinstance(kind, torch.dtype) else x.numpy().astype(kind)
    made = create_transform(NAME)({"s2": given})
    for name, wanted in DOMAIN_BANDS.items():
        assert made[name].dtype == torch.float32
        torch.testing.assert_close(made[name], expected(x, S2, wanted), rtol=0, atol=1e-5)


def test_other_orders_and_levels():
    x = image(56, 56, bands=13)
    for bands in (MMEARTH, "mmearth"):
        made = create_transform(NAME, bands={"s2": bands})({"s2": x})
        for name, wanted in DOMAIN_BANDS.items():
            torch.testing.assert_close(made[name], expected(x, MMEARTH, wanted), rtol=0, atol=1e-5)
    l1c = create_transform(NAME, "S2-L1C", bands={"s2": MMEARTH})({"s2": x})
    for name, wanted in DOMAIN_BANDS.items():
        own = expected(x, MMEARTH, wanted, "mmearth/s2-l1c")
        torch.testing.assert_close(l1c[name], own, rtol=0, atol=1e-5)
    in_file_order = create_transform(NAME, "S2-L1C")({"s2": x[[MMEARTH.index(b) for b in (*S2[:10], "B10", *S2[10:])]]})
    torch.testing.assert_close(in_file_order["ebands"], l1c["ebands"])


def test_other_statistics(tmp_path):
    path = tmp_path / "band_stats.json"
    column = {"mean": [float(i) for i in range(13)], "std": [1.0] * 13}
    path.write_text(
        json.dumps({"sentinel2_l2a": column, "sentinel2_l1c": column, "aster": {"mean": [0, 0], "std": [1, 1]}})
    )
    x = image(56, 56)
    made = create_transform(NAME, stats=path)({"s2": x})
    for name, wanted in DOMAIN_BANDS.items():
        for channel, band in enumerate(wanted):
            torch.testing.assert_close(made[name][channel], x[S2.index(band)].float() - MMEARTH.index(band))
    with pytest.raises(InputError, match="has no sentinel2_l2a with 13 numbers each"):
        path.write_text(json.dumps({"aster": {}}))
        create_transform(NAME, stats=path)


def test_resized_bilinearly_without_antialiasing():
    x = image(1, 130, 64)
    own = F.interpolate(expected(x, S2, ["B4", "B3", "B2"]), (112, 112), mode="bilinear")
    torch.testing.assert_close(create_transform(NAME, size=112)({"s2": x})["rgb"], own, rtol=0, atol=1e-5)


def test_domains_by_their_own_names():
    x, codes = image(2, 56, 56, bands=3), torch.from_numpy(np.random.default_rng(0).choice(CODES, (2, 56, 56)))
    made = create_transform(NAME, bands={"rgb": ["B2", "B3", "B4"]})({"semseg": codes, "rgb": x})
    assert list(made) == ["semseg", "rgb"]
    torch.testing.assert_close(made["rgb"], expected(x, ["B2", "B3", "B4"], ["B4", "B3", "B2"]), rtol=0, atol=1e-5)
    assert torch.equal(made["semseg"], torch.from_numpy(np.searchsorted(CODES, codes[:, 2::4, 2::4].numpy())))
    both = create_transform(NAME)({"worldcover": codes[:, None].byte()})
    assert torch.equal(both["semseg"], made["semseg"])


def test_elevation_of_each_image_by_itself():
    x = torch.from_numpy(np.random.default_rng(0).normal(2000, 100, (2, 1, 56, 56)))
    made = create_transform(NAME)({"dem": x})["depth"]
    higher = create_transform(NAME)({"dem": x * 1.5 + 300})["depth"]
    torch.testing.assert_close(made, higher, rtol=1e-3, atol=1e-3)
    assert made[0].std() == pytest.approx(1.6, abs=0.2)  # more than 1, as the middle 80 % vary less
    assert torch.equal(create_transform(NAME)({"depth": x})["depth"], made)


# ---- what is missing ----


def test_gaps_are_zero_after_standardising():
    x = image(2, 56, 56).float()
    x[:, S2.index("B4"), 3, 4], x[:, S2.index("B12"), 5, 6] = float("nan"), -9999
    made = create_transform(NAME, nodata={"s2": -9999})({"s2": x})
    own = expected(x, S2, ["B4", "B3", "B2"])
    own[:, 0, 3, 4] = 0
    torch.testing.assert_close(made["rgb"], own, rtol=0, atol=1e-5)
    assert (made["sired"][:, 1, 5, 6] == 0).all() and (made["sired"][:, 0, 5, 6] != 0).all()
    resized = create_transform(NAME, nodata={"s2": -9999}, size=28)({"s2": x})
    assert all(values.isfinite().all() for values in resized.values())
    assert (resized["rgb"][:, 0, 1, 2] == 0).all()  # a gap is in it
    thirds = image(168, 168).float()
    thirds[:, 5, 7] = float("nan")  # beside the pixel that is taken
    assert all(values.isfinite().all() for values in create_transform(NAME)({"s2": thirds}).values())


def test_gaps_of_heights_and_labels():
    dem, codes = torch.full((1, 56, 56), 100.0), torch.full((1, 56, 56), 60)
    dem[0, 10:] += 20 * torch.arange(46)[:, None]
    dem[0, 0], codes[0, :4], codes[0, 4:8] = -32768, 0, 77
    transform = create_transform(NAME, nodata={"dem": -32768, "worldcover": 77})
    made = transform({"dem": dem, "worldcover": codes})
    assert (made["depth"][0, 0] == 0).all() and made["depth"].abs().max() < 5
    assert (made["semseg"][:2] == 11).all() and (made["semseg"][2:] == 5).all()
    nothing = transform({"dem": torch.full((1, 56, 56), float("nan")), "worldcover": codes * 0})
    assert (nothing["depth"] == 0).all() and (nothing["semseg"] == 11).all()
    everywhere = create_transform(NAME, nodata=-32768)({"dem": dem, "s2": torch.full((12, 56, 56), -32768)})
    assert torch.equal(everywhere["depth"], made["depth"]) and (everywhere["rgb"] == 0).all()
    dem[0, :30] = -32768
    inner = dem[0, 30:].flatten().sort().values[145:1310]  # of 26 x 56 the middle 80 %: gaps have no part in it
    own = (dem[0, 30:] - inner.mean()) / inner.std()
    torch.testing.assert_close(transform({"dem": dem})["depth"][0, 30:], own, rtol=1e-3, atol=1e-3)


def test_zero_is_a_value():
    """The sea's height; and a scene of nothing but zeros is no reflectance either."""
    dem = torch.zeros(1, 56, 56)
    dem[0, 28:] = 100
    made = create_transform(NAME)({"dem": dem, "s2": torch.zeros(12, 56, 56)})
    assert (made["depth"][0, :28] < -0.9).all() and (made["depth"][0, 28:] > 0.9).all()
    torch.testing.assert_close(made["rgb"], expected(torch.zeros(12, 56, 56), S2, ["B4", "B3", "B2"]))


# ---- what does not fit ----


def test_a_raster_with_fewer_bands(caplog):
    with caplog.at_level(logging.WARNING):
        transform = create_transform(NAME, bands={"s2": ["blue", "green", "red", "B08"]})
    assert [record.message for record in caplog.records] == [
        "s2 has not all bands of ired, sired, ebands, which are left out"
    ]
    assert list(transform({"s2": image(56, 56, bands=4)})) == ["rgb"]
    with pytest.raises(InputError, match=r"bands of s2 \(aerosol, .*\) hold no domain whole: rgb takes red_2, green_2"):
        create_transform(NAME, bands={"s2": ["B1", "B9"]})
    with pytest.raises(InputError, match=r"bands of rgb \(red_2, green_2\) hold no domain whole: rgb takes red_2"):
        create_transform(NAME, bands={"rgb": ["B4", "B3"]})


@pytest.mark.parametrize(
    "data, message",
    [
        ({"s2": image(56, 56, bands=13)}, r"s2 is \(13, 56, 56\), expected \(..., 12, H, W\), its bands being aerosol"),
        ({"s2": image(56, 56)[0]}, r"s2 is \(56, 56\), expected"),
        ({"s2": torch.zeros(12, 0, 56)}, r"s2 is \(12, 0, 56\), expected"),
        ({"s2": image(56, 56) / 1e4}, r"s2 holds values from 0\.01 to 0\.\d+, expected digital numbers"),
        ({"s2": torch.randn(12, 56, 56)}, r"s2 holds values from -\d.* neither scaled nor normalised"),
        ({"s2": image(56, 56) / -1e4}, r"s2 holds values from -0\.\d+ to -0\.01, .* neither scaled nor normalised"),
        ({"rgb": image(56, 56, bands=3, high=255).byte()}, "rgb holds uint8, expected digital numbers"),
        ({"rgb": image(56, 56, bands=3) / 0.0}, "rgb holds values from inf to inf"),
        ({"dem": torch.full((1, 56, 56), -9999)}, r"dem holds -9999, .* nodata=\{'dem': -9999\}"),
        (
            {"depth": torch.full((1, 56, 56), 32767)},
            r"depth holds 32767, expected heights in metres from -1000 to 9000",
        ),
        (
            {"dem": torch.zeros(2, 56, 56)},
            r"dem is \(2, 56, 56\), expected \(..., 1, H, W\), its bands being elevation",
        ),
        ({"worldcover": torch.full((1, 56, 56), 11)}, r"3136 land-cover values are no ESA WorldCover code \(11\)"),
        ({"worldcover": torch.full((8, 56, 56), 10)}, r"worldcover is \(8, 56, 56\), expected \(..., 1, H, W\)"),
        ({"semseg": torch.tensor(3)}, r"semseg is \(\), expected"),
        ({"sentinel2": image(56, 56)}, "unknown raster or domain 'sentinel2'"),
        ({"semsge": torch.zeros(56, 56)}, r"unknown raster or domain 'semsge'\. Did you mean 'semseg'"),
        ({"s2": image(56, 56), "rgb": image(56, 56, bands=3)}, "rgb is given twice, by itself and in a raster"),
        ({"s2": image(2, 56, 56), "dem": torch.zeros(1, 56, 56)}, r"batches differ: s2 \(2,\), dem \(\)"),
        ({}, "the dict is empty: give at least one of s2, dem, worldcover"),
        (
            {"s2": image(64, 128), "dem": torch.zeros(1, 64, 64)},
            "height by width differs: s2 0.5, dem 1; expected the same ground in all",
        ),
        (image(56, 56), "expected a dict with any of s2, dem, worldcover, rgb, .*; got Tensor"),
    ],
)
def test_data_that_do_not_fit(data, message):
    with pytest.raises(InputError, match=message):
        create_transform(NAME)(data)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sensor": "S1"}, "sensor is S1, expected S2"),
        ({"preset": "FLAIR"}, "has no preset"),
        ({"bands": ["B4", "B3", "B2"]}, r"bands are given by raster, \{'s2'"),
        ({"bands": {"s3": ["B4"]}}, "unknown raster or domain 's3'"),
        ({"bands": {"s2": ["B4", "B33"]}}, "unknown band 'B33' of S2-L1C"),
        ({"nodata": {"sentinel": 0}}, "unknown raster or domain 'sentinel'"),
        ({"size": 54}, "size is 54, expected a multiple of 4"),
        ({"size": 0}, "size is 0, expected"),
        ({"stats": "mars/Umbra"}, "which are all bands of none of the inputs"),
        ({"stats": "nowhere_band_stats.json"}, "cannot be read as statistics"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        create_transform(NAME, **options)


def test_without_statistics():
    rgb = {"rgb": get_statistics("mmearth/s2-l2a").select(["B4", "B3", "B2"])}
    transform = Domains(rgb, bands={"s2": get_order("S2")}, nodata={}, size=56)
    with pytest.raises(InputError, match=r"there are no statistics of depth: give stats="):
        transform({"dem": torch.zeros(1, 56, 56)})
