"""What training scripts put around a model's tensors, around a small model of each family."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eo_zoo.convert import convert
from eo_zoo.errors import WeightsError
from eo_zoo.identify import Source, open_source
from eo_zoo.weights import wrappings
from tests.convert.originals import SMALL, model_of, public_of, said, state_of

Tensors = dict[str, Tensor]


def before(prefix: str) -> Callable[[Tensors], Any]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def under(*keys: str, **beside: Any) -> Callable[[Any], Any]:
    def wrapped(found: Any) -> Any:
        for key in reversed(keys):
            found = {key: found, **beside}
        return found

    return wrapped


def inside(name: str) -> str:
    """As FSDP and activation checkpointing name what is in blocks and stages that they wrap."""
    name = re.sub(
        r"((?:blocks|layers)[._]\d+\.)(?!blocks)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name
    )
    return f"_fsdp_wrapped_module.{name}"


OTHER = argparse.Namespace(lr=1e-3, model="another")
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3}]}
LIGHTNING: dict[str, Any] = {
    "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.5.1", "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
    "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 1e-3, "weights": torch.ones(4)},
}  # fmt: skip
WRAPPINGS: dict[str, Callable[[Tensors], Any]] = {
    "bare": dict,
    "ordered": OrderedDict,
    "parameters": lambda tensors: {name: nn.Parameter(t, t.is_floating_point()) for name, t in tensors.items()},
    "module.": before("module."),
    "_orig_mod.": before("_orig_mod."),
    "nested prefixes": before("module._orig_mod.module."),
    "model": under("model", optimizer=OPTIMIZER, epoch=3, args=OTHER),
    "state_dict": under("state_dict", epoch=3),
    "model_state_dict": under("model_state_dict", optimizer_state_dict=OPTIMIZER, loss=torch.tensor(0.5)),
    "nested keys": under("model", "state_dict", epoch=3),
    "key and prefix": lambda tensors: {"state_dict": before("module.")(tensors), "epoch": 3},
    "Lightning": lambda tensors: {"state_dict": before("model.")(tensors), **LIGHTNING},
    "Lightning, compiled": lambda tensors: {"state_dict": before("model._orig_mod.")(tensors), **LIGHTNING},
    "Lightning of a net": lambda tensors: {"state_dict": before("net.")(tensors), **LIGHTNING},
    "DeepSpeed by Lightning": lambda tensors: {"module": before("_forward_module.model.")(tensors), "epoch": 3},
    "FSDP": lambda tensors: {"model": {inside(name): tensor for name, tensor in tensors.items()}},
    "compiled parts": lambda tensors: {re.sub(r"(\d+\.)", r"\1_orig_mod.", n, count=1): t for n, t in tensors.items()},
    "an average alone": under("model_ema", epoch=3),
    "timm's average alone": under("state_dict_ema", epoch=3, arch="vit", version=2),
    "AveragedModel": lambda tensors: {**before("module.")(tensors), "n_averaged": torch.tensor(7)},
    "AveragedModel under a key": lambda tensors: {
        "ema_model": {**before("module.")(tensors), "n_averaged": torch.tensor(7)}, "step": torch.tensor(3)
    },
    "ema-pytorch": lambda tensors: {
        **before("ema_model.")(tensors), "initted": torch.tensor(True), "step": torch.tensor(7)
    },
}  # fmt: skip


def equal(found: Source, tensors: Tensors) -> bool:
    return found.tensors.keys() == tensors.keys() and all(
        torch.equal(found.tensors[name], one) and not found.tensors[name].requires_grad for name, one in tensors.items()
    )


def put(tensors: Tensors, folder: Path, count: int, end: str) -> None:
    """Shards with their index."""
    stem = "model" if end == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-{i % count + 1:05}-of-{count:05}.{end}" for i, name in enumerate(tensors)}
    folder.mkdir()
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file) if end == "safetensors" else torch.save(part, folder / file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_around_every_family(family, wrapping, tmp_path):
    """In both formats of torch and, where nothing but tensors is in it, in safetensors; names of files say nothing."""
    tensors, other = public_of(family), next(one for one in SMALL if one != family)
    for zipped in (True, False):
        path = tmp_path / f"{other}_base.{'safetensors' if zipped else 'pth'}"
        torch.save(WRAPPINGS[wrapping](tensors), path, _use_new_zipfile_serialization=zipped)
        found = open_source(path)
        assert equal(found, tensors), found.wrappings
        average = "average" in wrapping.lower() or "ema" in wrapping
        assert ("moving average" in found.wrappings) == (average and wrapping not in ("AveragedModel", "ema-pytorch"))
    made = WRAPPINGS[wrapping](tensors)
    if all(isinstance(one, Tensor) for one in made.values()):
        save_file({name: tensor.detach().clone() for name, tensor in made.items()}, tmp_path / "x")
        assert equal(open_source(tmp_path / "x"), tensors)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_shards_of_every_family(family, end, tmp_path):
    tensors = public_of(family)
    put(before("module.")(tensors), tmp_path / "smarties.safetensors", 3, end)
    found = open_source(tmp_path / "smarties.safetensors")
    assert equal(found, tensors) and found.wrappings == ("3 shards", "prefix 'module.'") and len(found.files) == 3
    index = next((tmp_path / "smarties.safetensors").glob("*.json"))
    assert equal(open_source(index), tensors)


@pytest.mark.parametrize("family", SMALL)
def test_what_is_found_is_converted(family, tmp_path):
    """The same folder comes of each; a whole conversion of two that have little in common."""
    name, built, _ = SMALL[family]
    made = {}
    for wrapping in ("Lightning", "FSDP"):
        path = tmp_path / "swin_large.bin"
        torch.save(WRAPPINGS[wrapping](public_of(family)), path)
        made[wrapping] = convert(path, tmp_path / wrapping, arguments=said(family))
        assert made[wrapping].facts["name"] == name
    weights = [(tmp_path / wrapping / "model.safetensors").read_bytes() for wrapping in made]
    assert weights[0] == weights[1]
    facts = made["Lightning"].facts
    assert facts["source"]["wrappings"] == ["under 'state_dict'", "prefix 'model.'"]
    assert set(facts["source"]["beside"]) == LIGHTNING.keys()
    assert facts["tensors"] == made["FSDP"].facts["tensors"]
    assert json.loads(json.dumps(facts["arguments"])).items() >= built.items()
    assert "around them: under 'state_dict', prefix 'model.'" in made["Lightning"].summary


BOTH: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "timm": lambda own, average: {"state_dict": own, "state_dict_ema": average, "epoch": 3},
    "model_ema": lambda own, average: {"model": own, "model_ema": average, "optimizer": OPTIMIZER},
    "prefixes": lambda own, average: {"model": before("module.")(own), "ema": before("module.")(average)},
    "AveragedModel": lambda own, average: {
        "model": own, "ema_model": {**before("module.")(average), "n_averaged": torch.tensor(7)}
    },
    "nested": lambda own, average: {"model": {"model": own, "ema": average}, "epoch": 3},
    "side by side": lambda own, average: {
        "state_dict": {**before("model.")(own), **before("ema_model.module.")(average),
                       "ema_model.n_averaged": torch.tensor(7)}, **LIGHTNING,
    },
    "side by side, without a prefix": lambda own, average: {**own, **before("model_ema.")(average)},
}  # fmt: skip


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("both", BOTH)
@pytest.mark.parametrize("ema", [False, True])
def test_model_and_average_in_one_file(family, both, ema, tmp_path):
    own = public_of(family)
    average = {name: tensor + 1 for name, tensor in own.items()}
    torch.save(BOTH[both](own, average), tmp_path / "x.pth")
    found = open_source(tmp_path / "x.pth", ema=ema)
    assert equal(found, average if ema else own)
    assert ("moving average" in found.wrappings) == ema
    others = [one for one in found.beside if not one.endswith("n_averaged")]
    assert any("ema" in one for one in others) != ema  # what was left is told


def test_an_average_that_is_not_there(tmp_path):
    torch.save({"model": public_of("smarties"), "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no moving average of a model's tensors: its keys are model, epoch"):
        convert(tmp_path / "x.pth", tmp_path / "out", ema=True)
    put(public_of("smarties"), tmp_path / "shards", 2, "bin")
    with pytest.raises(WeightsError, match=r"shards.* holds no moving average"):
        convert(tmp_path / "shards", tmp_path / "out", ema=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "x.pth"]


def test_torchs_own_wrappers_give_such_names():
    """What the names above are modelled on, of the classes themselves."""
    model = model_of("smarties")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    opened = wrappings.open_dict(averaged.state_dict())
    assert opened is not None and opened.beside == ("n_averaged",)
    assert set(wrappings.plain_names(opened.tensors).values()) == state_of("smarties").keys()
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model.blocks[0] = checkpoint_wrapper(model.blocks[0])  # it takes its own prefix off when it is asked
    names = [name for name, _ in torch.compile(model).named_parameters()]
    assert any("_checkpoint_wrapped_module" in name for name in names) and names[0].startswith("_orig_mod.")
    assert set(wrappings.plain_names(names).values()) == {name for name, _ in model_of("smarties").named_parameters()}


def test_names_that_would_become_one_stay():
    names = ["blocks.0.weight", "blocks._orig_mod.0.weight"]
    assert wrappings.plain_names(names) == {name: name for name in names}
    assert wrappings.plain_names([]) == {}


def test_a_model_that_has_a_prefix_of_its_own_keeps_it():
    names = ["model.encoder.x", "target_encoder.x"]
    assert wrappings.plain_names(names) == {name: name for name in names}


def test_dicts_that_hold_themselves_end():
    endless: dict[str, Any] = {}
    endless["model"] = {"state_dict": endless}
    assert wrappings.open_dict(endless) is None
