"""MultiMAE's published file, forged with all that lies in it beside the model, through every door."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import eo_zoo
from eo_zoo import registry, weights
from eo_zoo.errors import WeightsError
from eo_zoo.models.multimae import position_table
from tests.hub_server import HubServer
from tests.procedural import forge, manifest
from tests.weights.test_checkpoint import Hostile

ROOT = Path(__file__).parents[2]
TINY = dict(embed_dim=64, depth=2, num_heads=4)
SOURCE = weights.RECORDS["multimae_eo_base.pretrain"].source


def official(size: str, part: str = "pretraining") -> dict[str, Tensor]:
    """The tensors of a public checkpoint."""
    rows = manifest(f"multimae_{size}", part)
    return forge(rows, {name: position_table(shape[1], 8) for name, shape, _ in rows if name.endswith("pos_emb")})


def published(tensors: Mapping[str, Tensor], *, numpy: bool = True) -> dict[str, object]:
    """What the public training loop saves; its schedule gives learning rates as numpy's floats."""
    model = OrderedDict(tensors)
    model._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() leaves it
    small = [torch.nn.Parameter(tensor.clone()) for tensor in tensors.values() if tensor.ndim == 1]
    groups = [dict(params=small[::2], lr_scale=1.0), dict(params=small[1::2], lr_scale=1.0, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    for parameter in small:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    if numpy:
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = np.float64(1e-4), np.linspace(0, 0.05, 3)[1]
    return {
        "model": model,
        "optimizer": optimizer.state_dict(),
        "epoch": 999,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(
            model="pretrain_multimae_base",
            in_domains=["rgb", "depth"],
            alphas=1.0,
            opt_betas=[0.9, 0.95],
            clip_grad=None,
            output_dir="output/pretrain/",
            gpu=0,
            distributed=True,
            lr=1e-4,
        ),  # fmt: skip
        "loss_balancer": torch.nn.Module().state_dict(),
    }


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
    tensors, path = official("tiny"), tmp_path / "checkpoint-999.pth"
    torch.save(published(tensors), path, _use_new_zipfile_serialization=zipped)
    found = weights.read(path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("where", ["args", "optimizer", "loss_balancer", "scaler"])
def test_a_hostile_object_anywhere_in_it_is_refused_and_not_run(tmp_path, where):
    canary, path = tmp_path / "canary", tmp_path / "checkpoint-999.pth"
    content, evil = published(official("tiny")), Hostile(os.makedirs, str(canary))
    if where == "args":
        content["args"].output_dir = evil
    else:
        content[where]["state"] = evil
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"it asks to run `os.makedirs`; nothing was executed"):
        eo_zoo.create_model("multimae_eo_base", weights=path, **TINY)
    assert not canary.exists()


@pytest.mark.parametrize("part", ["pretraining", "encoder"])
def test_with_or_without_output_adapters_the_encoder_is_filled(tmp_path, part):
    tensors, path = official("tiny", part), tmp_path / "checkpoint.pth"
    torch.save(published(tensors), path)
    model = eo_zoo.create_model("multimae_eo_base", weights=path, **TINY)
    assert same(model, expected(tensors)) and not model.weights_origin.verified
    depth = eo_zoo.create_model("multimae_eo_base", weights=path, in_domains=["depth"], **TINY)
    own = {n: t for n, t in expected(tensors).items() if not n.startswith("input_adapters.") or ".depth." in n}
    assert same(depth, own)


def test_timm_reads_it_where_no_numpy_is_inside(tmp_path):
    tensors = official("tiny")
    for name, numpy in (("plain.pth", False), ("published.pth", True)):
        torch.save(published(tensors, numpy=numpy), tmp_path / name)
    plain = timm.create_model("multimae_eo_base", checkpoint_path=str(tmp_path / "plain.pth"), **TINY)
    assert same(plain, expected(tensors))
    with pytest.raises(RuntimeError, match="non-allowlisted"):
        timm.create_model("multimae_eo_base", checkpoint_path=str(tmp_path / "published.pth"), **TINY)


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


@pytest.mark.slow
def test_every_door_gives_the_same_tensors(tmp_path, github, caplog):
    tensors, path = official("base"), tmp_path / "checkpoint-999.pth"
    wanted = expected(tensors)
    torch.save(published(tensors, numpy=False), path)
    name = "multimae_eo_base"
    assert same(timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path))), wanted)
    assert same(timm.create_model(name, checkpoint_path=str(path)), wanted)
    assert same(torch.hub.load(str(ROOT), name, source="local", weights=path), wanted)
    assert same(eo_zoo.create_model(name, weights=path), wanted)
    torch.save(published(tensors), path)
    data = path.read_bytes()
    release(github, data)
    for model in (timm.create_model(name, pretrained=True), eo_zoo.create_model(name, weights=SOURCE)):
        assert same(model, wanted) and model.weights_origin.verified and model.weights_origin.source == SOURCE
    assert torch.hub.load(str(ROOT), name, source="local").weights_origin.sha256 == hashlib.sha256(data).hexdigest()
    assert registry.download(name).verified and len(github.requests) == 2
    assert "states no licence" in caplog.text and eo_zoo.info(name)["size"] == len(data)
    with HubServer() as other:  # a release whose one asset is another model's
        release(other, (ROOT / "eo_zoo" / "data" / "smarties_vit_nano.demo.safetensors").read_bytes())
        os.environ["GITHUB_API_URL"] = other.url  # set back by the fixture
        with pytest.raises(WeightsError, match="tensors are not of a MultiMAE checkpoint"):
            eo_zoo.create_model(name, cache_dir=tmp_path / "new")
