from __future__ import annotations

import hashlib
import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import eo_zoo
from eo_zoo import registry, weights
from eo_zoo.errors import DownloadError, InputError, WeightsError

ROOT = Path(__file__).parent.parent


def test_names_are_timms_too_and_none_of_its_own():
    ours = set(eo_zoo.list_models())
    listed = {name for name in timm.list_models() if name in ours}
    assert listed == ours
    for name in ours:
        assert timm.models.model_entrypoint(name).__module__.startswith("eo_zoo.models.")
    # a name timm has would have been replaced with a mere warning
    theirs = subprocess.run(
        [sys.executable, "-c", "import timm; print(*timm.list_models(), *timm.list_modules())"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not ours & set(theirs)
    assert not {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in ours} & set(theirs)


def test_filters():
    assert eo_zoo.list_models("nano") == ["anysat_nano", "smarties_vit_nano"]
    assert eo_zoo.list_models("smarties_*e") == ["smarties_vit_base", "smarties_vit_large"]
    assert eo_zoo.list_models("nothing") == [] and eo_zoo.list_models("VIT_NANO") == ["smarties_vit_nano"]


@pytest.mark.parametrize("name", ["smarties_vit_bas", "smarties_vit_base.pretrian"])
def test_unknown_names_give_the_nearest(name):
    for call in (eo_zoo.create_model, eo_zoo.info, eo_zoo.create_transform, registry.download):
        with pytest.raises(InputError, match="Did you mean 'smarties_vit_base"):
            call(name)


def test_create_model_is_ready_for_use():
    model = eo_zoo.create_model("smarties_vit_nano")
    assert not model.training and model.weights_origin.verified
    assert model.weights_origin.sha256 == weights.RECORDS["smarties_vit_nano.demo"].sha256
    by_timm = timm.create_model("smarties_vit_nano", pretrained=True)
    assert by_timm.training
    x = torch.randn(1, 12, 112, 112)
    with torch.no_grad():
        assert torch.equal(model(x), by_timm.eval()(x))
    random = eo_zoo.create_model("smarties_vit_nano", pretrained=False)
    assert random.weights_origin is None


def test_info_says_what_a_model_holds(tmp_path):
    bundled = eo_zoo.create_model("smarties_vit_nano")
    assert "verified" in eo_zoo.info(bundled)["weights"] and "unverified" not in eo_zoo.info(bundled)["weights"]
    assert eo_zoo.info(eo_zoo.create_model("smarties_vit_nano", False))["weights"] == "random"
    save_file(bundled.state_dict(), tmp_path / "mine.safetensors")
    local = eo_zoo.create_model("smarties_vit_nano", weights=tmp_path / "mine.safetensors", features_only=True)
    assert "mine.safetensors" in eo_zoo.info(local)["weights"] and "unverified" in eo_zoo.info(local)["weights"]
    assert eo_zoo.info("smarties_vit_base")["sha256"] is None


@pytest.fixture
def mirrored(tmp_path, monkeypatch):
    """The nano weights as if they lay on the Hub, their hash unknown, and a mirror of it."""
    record = weights.RECORDS["smarties_vit_nano.demo"]
    file = tmp_path / "mirror" / "owner" / "repo" / "nano.safetensors"
    file.parent.mkdir(parents=True)
    save_file(eo_zoo.create_model("smarties_vit_nano").state_dict(), file)
    remote = replace(record, source="hf://owner/repo/nano.safetensors", sha256=None, size=None)
    monkeypatch.setitem(weights.RECORDS, record.name, remote)
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror"))
    return file


def test_cache_dir_is_where_weights_are_kept(mirrored, tmp_path, monkeypatch):
    makers = {
        "timm": lambda folder: timm.create_model("smarties_vit_nano.demo", pretrained=True, cache_dir=folder),
        "eo_zoo": lambda folder: eo_zoo.create_model("smarties_vit_nano", cache_dir=folder),
        "download": lambda folder: registry.download("smarties_vit_nano", cache_dir=folder),
    }
    for name, make in makers.items():
        make(tmp_path / name)
        assert len(list((tmp_path / name).glob("nano-*-smarties-1.safetensors"))) == 1, name
    assert not (tmp_path / "cache").exists()


def test_info_shows_what_was_pinned(mirrored):
    assert eo_zoo.info("smarties_vit_nano")["sha256"] is None
    eo_zoo.create_model("smarties_vit_nano")
    facts = eo_zoo.info("smarties_vit_nano")
    assert facts["size"] == mirrored.stat().st_size
    assert facts["sha256"] == hashlib.sha256(mirrored.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="not a model of eo_zoo"):
        eo_zoo.info(torch.nn.Linear(1, 1))


def test_info_tells_the_inputs_of_a_model_that_takes_a_dict():
    facts = eo_zoo.info("anysat_base")
    assert facts["inputs"]["s1"] == {"sensor": "S1", "bands": ["VV", "VH", "VV/VH"]} and len(facts["inputs"]) == 11
    assert next(iter(facts["inputs"])) == "s2" and len(facts["bands"]) == 10
    assert not eo_zoo.info("smarties_vit_nano")["inputs"]
    assert eo_zoo.info("anysat_tiny")["source"] == "" and facts["source"].endswith("AnySat.pth")


def test_nothing_to_download_is_said():
    for call in (registry.download, registry.download_all):
        with pytest.raises(InputError, match="no weights are published for anysat_tiny"):
            call("anysat_tiny")


def test_weights_and_random_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="leave one out"):
        eo_zoo.create_model("smarties_vit_nano", False, weights=tmp_path / "x.safetensors")


def test_a_table_is_filtered_by_architecture_or_full_name():
    def names(filter):
        return [row["name"] for row in registry.table(filter)]

    assert names("mars_base_rgb.pretrain") == ["mars_base_rgb.pretrain"]
    assert names("*_nano") == names("NANO") == ["anysat_nano.unpublished", "smarties_vit_nano.demo"]
    assert [name.partition(".")[2] for name in names("*eurosat*")] == ["eurosat_finetune", "eurosat_linprobe"] * 2
    assert names("landsat") == []


def test_parameters_are_counted_without_the_head():
    own = registry.parameter_count("smarties_vit_base.eurosat_linprobe")
    assert own == registry.parameter_count("smarties_vit_base")


def test_the_nearest_tag_is_proposed():
    with pytest.raises(InputError, match=r"Did you mean 'smarties_vit_base\.eurosat_linprobe'"):
        registry.get_record("smarties_vit_base.eurosat_linprob")


def test_a_file_and_an_overlay_go_together(tmp_path):
    save_file(eo_zoo.create_model("smarties_vit_nano").state_dict(), tmp_path / "x.safetensors")
    overlay = dict(crop_pct=0.5)
    model = eo_zoo.create_model("smarties_vit_nano", weights=tmp_path / "x.safetensors", pretrained_cfg_overlay=overlay)
    assert model.pretrained_cfg["crop_pct"] == 0.5


@pytest.mark.parametrize("error", [WeightsError, DownloadError, OSError])
def test_a_weight_set_that_fails_does_not_stop_the_others(monkeypatch, error):
    def download(*args, **kwargs):
        raise error("the reason")

    monkeypatch.setattr(registry, "download", download)
    assert [row["error"] for row in registry.download_all("smarties_vit_nano")] == ["the reason"]
    with pytest.raises(InputError, match="unknown model 'nothing'"):
        registry.download_all("nothing")


def test_where_a_weight_set_came_from(mirrored):
    [row] = registry.download_all("smarties_vit_nano")
    assert row["size"] == mirrored.stat().st_size and row["from"] == "fetched"


PUBLISHED = {name: record for name, record in weights.RECORDS.items() if record.source}


def test_notice_names_every_weight_set_and_its_licence():
    text = (ROOT / "NOTICE").read_text()
    for name, record in PUBLISHED.items():
        assert re.search(rf"^{re.escape(name)}: .*{record.licence}", text, re.M | re.I), name


def test_readme_table_is_fresh():
    text = (ROOT / "README.md").read_text()
    assert registry.markdown(registry.table()) in text, "run: eo-zoo list --markdown, and paste it into README.md"


def test_models_are_documented():
    for name in eo_zoo.list_models():
        function = timm.models.model_entrypoint(name)
        assert len(inspect.getdoc(function)) > 40, name
