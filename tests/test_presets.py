from __future__ import annotations

import pytest

from eo_zoo import sensors
from eo_zoo.errors import InputError
from eo_zoo.models.anysat_inputs import INPUTS, step_of
from eo_zoo.presets import get_preset, list_presets


def test_all_data_sets():
    assert list_presets() == ["TreeSatAI-TS", "PASTIS-HD", "FLAIR", "PLANTED", "S2NAIP"]
    inputs = {name: set(get_preset(name).inputs) for name in list_presets()}
    assert inputs == {
        "TreeSatAI-TS": {"aerial", "s2", "s1-asc", "s1"},
        "PASTIS-HD": {"spot", "s2", "s1"},
        "FLAIR": {"aerial-flair", "s2"},
        "PLANTED": {"s2", "s1", "l7", "alos", "modis"},
        "S2NAIP": {"naip", "l8", "s2", "s1"},
    }


@pytest.mark.parametrize("name", list_presets())
def test_each_fits_the_model(name):
    preset = get_preset(name)
    assert preset.name == name and preset.title and preset.dates and "src/data/" in preset.source
    for key, channels in preset.inputs.items():
        assert len(channels.order) == INPUTS[key].channels
        assert channels.sensor == sensors.sensor_of(INPUTS[key].order)
        assert channels.units in (None, *sensors.UNITS) and channels.ratio in ("quotient", "difference")
        assert (preset.extent / INPUTS[key].gsd) % 1 < 1e-9 or key == "modis"
        if channels.statistics is None:
            assert "not published" in channels.note + preset.note or channels.units is None
        else:
            statistics = sensors.get_statistics(channels.statistics)
            assert statistics.select(channels.order).sensor == channels.sensor
            assert statistics.units == channels.units
    for size in preset.patch_sizes:
        assert preset.extent % size == 0 and size % step_of(list(preset.inputs)) == 0


def test_facts_of_the_public_code():
    treesat, pastis = get_preset("TreeSatAI-TS"), get_preset("PASTIS-HD")
    assert treesat.inputs["aerial"].order == sensors.get_order("anysat/aerial")
    assert treesat.inputs["s1-asc"].units == "linear" and treesat.inputs["s1-asc"].statistics is None
    assert (pastis.extent, pastis.patch_sizes) == (1280, (40, 80, 160))
    assert "1 September 2018" in pastis.dates and pastis.inputs["s1"].ratio == "difference"
    assert get_preset("planted").patch_sizes == (30,) and get_preset("S2NAIP").extent == 640
    vv, vh, ratio = sensors.get_statistics("pastis/s1").mean
    assert ratio == pytest.approx(vv - vh, abs=1e-3)  # of dB, a mean of differences is the difference of means


def test_other_orders():
    readme = get_preset("treesatai-ts", orders={"aerial": "anysat/aerial-readme"})
    named = get_preset("TreeSatAI-TS", orders={"aerial": ["R", "G", "B", "NIR"]})
    assert readme == named and readme.inputs["aerial"].order[-1] == "aerial_near_infrared"
    assert readme.inputs["s2"] == get_preset("TreeSatAI-TS").inputs["s2"]
    assert get_preset("TreeSatAI-TS").inputs["aerial"].order[0] == "aerial_near_infrared"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_preset("treesat"), "unknown preset 'treesat'. Did you mean 'TreeSatAI-TS'?"),
        (
            lambda: get_preset("FLAIR", orders={"aerial": "anysat/aerial"}),
            "no input 'aerial'. Did you mean 'aerial-flair'?",
        ),
        (lambda: get_preset("FLAIR", orders={"s2": "anysat/s3"}), "unknown band order 'anysat/s3'"),
        (lambda: get_preset("FLAIR", orders={"s2": ["R99"]}), "unknown band 'R99' of S2"),
    ],
)
def test_what_is_unknown(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
