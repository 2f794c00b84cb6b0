from __future__ import annotations

import base64
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load as safetensors_of
from torch import nn

import eo_zoo
from eo_zoo import publish, weights
from eo_zoo.errors import InputError
from tests.hub_server import COMMIT, HubServer, _Handler
from tests.models.families import anysat_inputs

SMALL = dict(img_size=64, embed_dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)


class _Uploads(_Handler):
    """What the Hub answers to huggingface_hub's upload_folder, with every file sent inside the commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(("POST", self.path, None))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            answer = {"url": f"{self.hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.add(repo, line["value"]["path"], base64.b64decode(line["value"]["content"]), lfs=False)
            answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        else:
            answer = {"errors": [], "warnings": []}  # of the card's front matter
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server._server.RequestHandlerClass = type("Uploads", (_Uploads,), {"hub": server})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        # huggingface_hub read it when it was imported
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_what_is_pushed_is_whole_safe_and_comes_back_equal(hub):
    model = eo_zoo.create_model("smarties_vit_nano", sensor="S1")
    address = eo_zoo.push_to_hub(model, "me/tuned", token="hf_secret")
    assert address == f"{hub.url}/me/tuned/commit/{COMMIT}"
    files = {name: file.data for (_, name), file in hub.files.items()}
    assert set(files) == {"config.json", "model.safetensors", "README.md"}  # and no pickle
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


def test_options_and_licence_are_passed_on(monkeypatch):
    record, given = weights.RECORDS["smarties_vit_nano.demo"], {}
    monkeypatch.setitem(weights.RECORDS, record.name, replace(record, licence="mit"))
    answer = SimpleNamespace(commit_url="address")
    monkeypatch.setattr(publish, "push_to_hf_hub", lambda model, repo_id, **options: given.update(options) or answer)
    options = dict(private=True, token="t", revision="tuned", commit_message="Tuned")
    assert eo_zoo.push_to_hub(timm.create_model("smarties_vit_nano"), "me/mine", **options) == "address"
    assert given.items() >= options.items() and given["model_card"]["license"] == "mit"
    assert given["task_name"] == "image-feature-extraction"
    head = dict(embed_dim=64, depth=2, num_heads=4)
    eo_zoo.push_to_hub(timm.create_model("smarties_vit_base.dfc2020_linprobe", **head), "me/mine")
    assert given["task_name"] == "image-segmentation"


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
