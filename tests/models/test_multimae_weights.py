"""MultiMAE's published file, forged with all that lies in it beside the model, through every door."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import eo_zoo
from eo_zoo import registry, weights
from eo_zoo.errors import WeightsError
from eo_zoo.train.multimae import pretraining_model
from tests.hub_server import HubServer
from tests.models.multimae import TINY, official, save

ROOT = Path(__file__).parents[2]
SOURCE = weights.RECORDS["multimae_eo_base.pretrain"].source


def expected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder under our names."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("output_adapters.")}
    return {name.replace("encoder.", "blocks.", 1) if name[0] == "e" else name: one for name, one in kept.items()}


def same(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


# -------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("zipped", [True, False])
def test_of_the_published_layout_the_model_alone_is_read(tmp_path, zipped):
    tensors = official("tiny")
    found = weights.read(save(tensors, tmp_path / "checkpoint-999.pth", zipped=zipped))
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("where", ["args", "optimizer", "loss_balancer", "scaler", "epoch"])
def test_a_hostile_object_anywhere_in_it_is_refused_and_not_run(tmp_path, where):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.makedirs, (str(canary),)

    evil = Evil()
    inside = {"args": argparse.Namespace(output_dir=evil), "epoch": evil}.get(where, {"state": evil})
    path = save(official("tiny"), tmp_path / "checkpoint-999.pth", **{where: inside})
    with pytest.raises(WeightsError, match=r"it asks to run `os.makedirs`; nothing was executed"):
        eo_zoo.create_model("multimae_eo_base", weights=path, **TINY)
    assert not canary.exists()


def test_with_fewer_domains_the_rest_is_left_in_the_file(tmp_path):
    tensors = official("tiny")
    path = save(tensors, tmp_path / "checkpoint-999.pth")
    depth = eo_zoo.create_model("multimae_eo_base", weights=path, in_domains=["depth"], **TINY)
    assert same(depth, {n: t for n, t in expected(tensors).items() if not n.startswith("input_") or ".depth." in n})


def test_timm_reads_it_where_no_numpy_is_inside(tmp_path):
    """And refuses it otherwise: then ``pretrained_cfg_overlay=dict(file=PATH)`` is the way."""
    tensors = official("tiny")
    plain = save(tensors, tmp_path / "plain.pth", lr=1e-4)
    published = save(tensors, tmp_path / "published.pth")
    assert same(timm.create_model("multimae_eo_base", checkpoint_path=str(plain), **TINY), expected(tensors))
    with pytest.raises(RuntimeError, match="non-allowlisted pickle globals"):
        timm.create_model("multimae_eo_base", checkpoint_path=str(published), **TINY)
    overlay = dict(file=str(published))
    by_file = timm.create_model("multimae_eo_base", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert same(by_file, expected(tensors))


# ------------------------------------------------------------------------------------------------- every door


@pytest.fixture
def github(monkeypatch):
    """GitHub's API and the release, on the loopback interface."""
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("GITHUB_API_URL", server.url)
        yield server


def release(server: HubServer, data: bytes, name: str = "checkpoint-999.pth") -> None:
    owner, repo, tag = SOURCE.removeprefix("github://").split("/")
    server.add(f"{owner}/{repo}", f"releases/download/{tag}/{name}", data)
    asset = {
        "name": name,
        "browser_download_url": f"{server.url}/{owner}/{repo}/releases/download/{tag}/{name}",
        "size": len(data),
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "state": "uploaded",
    }
    server.add(f"repos/{owner}", f"{repo}/releases/tags/{tag}", json.dumps({"assets": [asset]}).encode())


def test_pretraining_takes_a_release_too(tmp_path, github):
    tensors = official("tiny")
    release(github, save(tensors, tmp_path / "checkpoint-999.pth").read_bytes())
    model = pretraining_model(weights=f"{SOURCE}/checkpoint-999.pth", **TINY)
    assert same(model.encoder, expected(tensors)) and model.encoder.weights_origin.verified
    outputs = {name: tensor for name, tensor in tensors.items() if name.startswith("output_adapters.")}
    assert len(outputs) > 100 and all(torch.equal(model.state_dict()[name], one) for name, one in outputs.items())


@pytest.mark.slow
def test_every_door_gives_the_same_tensors(tmp_path, github, caplog):
    name, tensors = "multimae_eo_base", official("base")
    wanted, path = expected(tensors), save(tensors, tmp_path / "checkpoint-999.pth")
    data = path.read_bytes()
    release(github, data)
    overlay = dict(file=str(path))
    plain = save(tensors, tmp_path / "plain.pth", lr=1e-4)
    assert same(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay), wanted)
    assert same(timm.create_model(name, checkpoint_path=str(plain)), wanted)
    assert same(torch.hub.load(str(ROOT), name, source="local", weights=path), wanted)
    assert github.requests == []
    for model in (
        timm.create_model(name, pretrained=True),
        torch.hub.load(str(ROOT), name, source="local"),
        eo_zoo.create_model(name, weights=SOURCE),
    ):
        assert same(model, wanted) and model.weights_origin.verified and model.weights_origin.source == SOURCE
        assert model.weights_origin.sha256 == hashlib.sha256(data).hexdigest()
    assert registry.download(name).verified and len(github.requests) == 2
    assert caplog.text.count("states no licence") == 1 and eo_zoo.info(name)["size"] == len(data)


def test_a_release_with_another_models_file(github):
    release(github, (ROOT / "eo_zoo" / "data" / "smarties_vit_nano.demo.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"has the layout 'smarties-1', this model reads 'multimae-1'"):
        eo_zoo.create_model("multimae_eo_base")
