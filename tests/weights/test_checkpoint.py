"""Checkpoint files: what is read, what is refused, and what is written."""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eo_zoo import weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import stored
from tests.weights.toys import load, toy, toy_bytes


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])  # the content counts, not the name
def test_every_format_is_read_under_any_name(tmp_path, kind, name):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(toy(), path)
    else:
        torch.save(toy(), path, _use_new_zipfile_serialization=kind == "zip")
    same(weights.read(path), toy())


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_mapped_tensors_never_write_to_the_file(tmp_path, kind):
    path = tmp_path / "w"
    save_file(toy(), path) if kind == "safetensors" else torch.save(toy(), path)
    before = path.read_bytes()
    weights.read(path)["old.weight"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, "scaler": None},
        lambda t: {"state_dict": t, "lr": 0.1},
        lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}},
        lambda t: {f"module._orig_mod.{k}": v for k, v in t.items()},
        lambda t: {f"_orig_mod.{k}": torch.nn.Parameter(v, requires_grad=False) for k, v in t.items()},
        lambda t: {**t, "epoch": 3},
    ],
)
def test_wrappers_and_prefixes_are_removed(tmp_path, wrap):
    torch.save(wrap(toy()), tmp_path / "w.pth")
    same(weights.read(tmp_path / "w.pth"), toy())


def test_a_prefix_of_some_names_only_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert weights.read(tmp_path / "w.pth").keys() == {"module.a", "b"}


def test_without_tensors_the_keys_are_listed(tmp_path):
    torch.save({"epoch": 3, "weights": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="its keys are epoch, weights"):
        weights.read(tmp_path / "w.pth")


def stub(monkeypatch, module: str, name: str) -> type:
    """A class that pickles as ``module.name``, whether or not that package is installed."""
    created = type(name, (), {"__module__": module, "__qualname__": name})
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    setattr(sys.modules[module], name, created)
    return created


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_leave_behind_is_inert(tmp_path, monkeypatch, zipped):
    config = stub(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    config._metadata = stub(monkeypatch, "omegaconf.base", "ContainerMetadata")()
    config._metadata.object_type, config._metadata.resolver_cache = dict, collections.defaultdict(dict, a={})
    config._content = {"lr": stub(monkeypatch, "omegaconf.nodes", "AnyNode")(), "parent": config}
    kept = {
        "args": argparse.Namespace(out=pathlib.PurePosixPath("/out"), best=np.float64(0.5), n=np.int64(3)),
        "config": config,
        "rng": np.random.RandomState(0).get_state(),
        "dtype": np.dtype("float32"),
        "history": [np.float32(1)],
    }
    torch.save({"model": toy(), **kept}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    same(weights.read(tmp_path / "w.pth"), toy())


def test_truncated_safetensors_says_by_how_much(tmp_path):
    data = toy_bytes(tmp_path)
    (tmp_path / "cut").write_bytes(data[:-5])
    with pytest.raises(WeightsError, match=f"ends after {len(data) - 5} bytes, of {len(data)} promised"):
        weights.read(tmp_path / "cut")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(InputError, match=r"absent|folder"):
            weights.read(path)
        with pytest.raises(InputError, match=r"absent|folder"):
            load(path)


def test_what_is_saved_is_what_safetensors_reads(tmp_path):
    odd = {"view": torch.arange(12.0).reshape(3, 4).T, "none": torch.empty(0, 3), "on": torch.ones(3) > 0}
    tensors = {**toy(), **odd}
    metadata = {"b": "2", "a": "1", "format": "pt"}
    paths = tmp_path / "a", tmp_path / "b"
    stored.save(tensors, paths[0], metadata=metadata)
    stored.save(dict(reversed(tensors.items())), paths[1], metadata=dict(reversed(metadata.items())))
    same(load_file(paths[0]), tensors)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert stored.metadata(paths[0]) == {"a": "1", "b": "2", "format": "pt"}


def test_check_fit_lists_everything_in_one_message():
    wanted = {f"w{i}": torch.empty(2) for i in range(15)}
    wanted |= {"shape": torch.empty(3, 4), "free": torch.empty(1)}
    found = {"shape": torch.empty(4, 3), "extra": torch.empty(1)}
    with pytest.raises(WeightsError) as caught:
        weights.check_fit(found, wanted, optional=("free",), what="toy")
    assert str(caught.value) == (
        "toy does not fit the model: 15 missing (w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 5 more); "
        "1 unexpected (extra); 1 of another shape (shape is (4, 3), expected (3, 4))"
    )
    weights.check_fit(wanted, wanted, what="toy")


@pytest.mark.parametrize("before", [{}, {"history": [torch.zeros(50)]}])
def test_a_cut_archive_names_exactly_the_tensors_that_are_lost(tmp_path, before):
    sizes = [7, 300, 300, 2, 5000, *range(1, 40)]
    model = {f"layers.{i}.weight": torch.ones(size) for i, size in enumerate(sizes)}
    torch.save({**before, "model": model, "optimizer": (torch.zeros(9),)}, tmp_path / "whole")
    data, names = (tmp_path / "whole").read_bytes(), list(model)
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        entries = [archive.getinfo(f"whole/data/{i}") for i in range(len(before) + len(sizes) + 1)]
    header = [entry.header_offset for entry in entries]
    ends = [at + 30 + sum(struct.unpack("<HH", data[at + 26 : at + 30])) + entry.file_size
            for at, entry in zip(header, entries, strict=True)]  # fmt: skip
    ends = ends[len(before) : -1]  # of the model's tensors
    for length in [header[0] - 1, header[0] + 9, *ends, *(end - 1 for end in ends)]:
        (tmp_path / "cut").write_bytes(data[:length])
        lost = [name for name, end in zip(names, ends, strict=True) if end > length]
        says = (
            rf"{len(lost)} of its 44 tensors lie beyond \({re.escape(', '.join(lost[:10]))}"
            if lost
            else "damaged or cut"
        )
        with pytest.raises(WeightsError, match=says):
            weights.read(tmp_path / "cut")


def test_a_cut_archive_without_tensors_is_damaged(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        weights.read(tmp_path / "cut")
