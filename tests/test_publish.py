from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load as safetensors_of
from torch import nn

import eo_zoo
from eo_zoo import weights
from eo_zoo.errors import InputError
from tests.hub_server import COMMIT, HubServer, commit_of
from tests.models.families import anysat_inputs

SMALL = dict(img_size=64, embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with HubServer() as server:
        yield server.stand_in(monkeypatch)


def test_what_is_pushed_is_whole_safe_and_comes_back_equal(hub):
    model = eo_zoo.create_model("smarties_vit_nano", sensor="S1")
    address = eo_zoo.push_to_hub(model, "me/tuned", token="hf_secret")
    assert address == f"{hub.url}/me/tuned/commit/{COMMIT}"
    files = {name: file.data for (_, name), file in hub.files.items()}
    # and no pickle
    assert set(files) == {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
    sent = safetensors_of(files["model.safetensors"])
    assert all(torch.equal(sent[name], tensor) for name, tensor in model.state_dict().items())
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card and "smarties_vit_nano.demo (sha256 dca7440b" in card and "ICCV 2025" in card
    again = timm.create_model("hf-hub:me/tuned", pretrained=True, sensor="S1").eval()
    x = torch.randn(1, 2, 112, 112)
    assert torch.equal(again(x), model(x))
    eo_zoo.push_to_hub(timm.create_model("smarties_vit_nano"), "me/other", token="hf_secret")
    assert "Weights: random" in hub.files["me/other", "README.md"].data.decode()


def test_a_model_of_several_inputs(hub):
    model = timm.create_model("anysat_nano", inputs=["s2", "spot"]).eval()
    eo_zoo.push_to_hub(model, "me/any", token="hf_secret")
    card = hub.files["me/any", "README.md"].data.decode()
    assert "Inputs:** spot, s2" in card and "license: mit" in card and "Bands" not in card
    again = timm.create_model("hf-hub:me/any", pretrained=True, inputs=["s2", "spot"]).eval()
    data = anysat_inputs(["s2", "spot"])
    assert torch.equal(again(data, 20, "dense"), model(data, 20, "dense"))
    assert again.weights_origin.source == "hf://me/any/model.safetensors"


def test_options_and_licence_are_passed_on(hub, monkeypatch):
    record = weights.RECORDS["smarties_vit_nano.demo"]
    monkeypatch.setitem(weights.RECORDS, record.name, replace(record, licence="mit"))
    options = dict(private=True, token="hf_own", revision="tuned", commit_message="Tuned")
    address = eo_zoo.push_to_hub(timm.create_model("smarties_vit_nano"), "me/mine", **options)
    assert address == f"{hub.url}/me/mine/commit/{commit_of('tuned')}"
    posted = dict(reversed(hub.posted))  # by path, the first of each
    made = posted["/api/repos/create"]
    assert made.get("private") is True or made["visibility"] == "private"  # since huggingface_hub 2
    assert "/api/models/me/mine/branch/tuned" in posted
    assert posted["/api/models/me/mine/commit/tuned"]["value"]["summary"] == "Tuned"
    assert {headers["authorization"] for headers in hub.headers if "authorization" in headers} == {"Bearer hf_own"}
    card = hub.files["me/mine@tuned", "README.md"].data.decode()
    assert "license: mit" in card and "pipeline_tag: image-feature-extraction" in card
    small = dict(embed_dim=64, depth=2, num_heads=4)
    tuned = timm.create_model("smarties_vit_base.dfc2020_linprobe", **small)
    eo_zoo.push_to_hub(tuned, "me/segmenter", token="hf_own")
    card = hub.files["me/segmenter", "README.md"].data.decode()
    assert "pipeline_tag: image-segmentation" in card


def test_weights_that_may_not_be_hosted_elsewhere_are_refused(hub, tmp_path):
    untrained = timm.create_model("mars_base_sar", **SMALL)
    torch.save(untrained.state_dict(), tmp_path / "mars.pth")
    loaded = eo_zoo.create_model("mars_base_sar", weights=tmp_path / "mars.pth", **SMALL)
    copied, moved, disguised, averaged = (timm.create_model("mars_base_sar", **SMALL) for _ in range(4))
    copied.load_state_dict(loaded.state_dict())
    moved.layers = loaded.layers
    disguised.load_state_dict(loaded.state_dict())
    disguised.pretrained_cfg |= {"architecture": "smarties_vit_nano", "tag": "demo"}
    torch.optim.swa_utils.AveragedModel(averaged).update_parameters(loaded)
    for model in (loaded, copied, moved, disguised, averaged, pickle.loads(pickle.dumps(loaded))):
        with pytest.raises(
            InputError, match=r"mars_base_\w+ may not be pushed to a hub: .*academic research"
        ) as caught:
            eo_zoo.push_to_hub(model, "me/mars", token="hf_secret")
        assert "eo_zoo.create_model('mars_base_sar.pretrain')" in str(caught.value)
    for model in (loaded, copied, disguised):  # where it is known that the word is not true
        with pytest.raises(InputError, match="may not be pushed"):
            eo_zoo.push_to_hub(model, "me/mars", token="hf_secret", own_weights=True)
    assert not hub.requests
    # one's own training from scratch is one's own
    assert COMMIT in eo_zoo.push_to_hub(untrained, "me/own", token="hf_secret", own_weights=True)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), timm.create_model("smarties_vit_nano", features_only=True)])
def test_other_modules_are_refused(hub, model):
    with pytest.raises(InputError, match="is not a model of eo_zoo: expected one of"):
        eo_zoo.push_to_hub(model, "me/other")
    assert not hub.requests
