from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import sharded

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([float("nan"), -0.0]), "c": torch.ones(4).bfloat16()}
PARTS = [("a",), ("b", "c")]


def save(folder, kind, tensors=TENSORS, parts=PARTS):
    folder.mkdir(exist_ok=True)
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    places = {}
    for i, names in enumerate(parts):
        file = f"{stem}-{i + 1:05}-of-{len(parts):05}.{end}"
        found = {name: tensors[name] for name in names}
        save_file(found, folder / file) if kind == "safetensors" else torch.save(found, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def same(found, expected):
    assert list(found.shapes) == list(expected) or set(found.shapes) == set(expected)
    read = found.reader()
    for name, tensor in expected.items():
        assert found.shapes[name].is_meta and found.shapes[name].shape == tensor.shape
        assert torch.equal(read(name).reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_and_single_files_read_equal(tmp_path, kind):
    same(sharded.read_folder(save(tmp_path / "shards", kind)), TENSORS)
    (tmp_path / "one").mkdir()
    if kind == "safetensors":
        save_file(TENSORS, tmp_path / "one" / "model.safetensors")
    else:
        torch.save(TENSORS, tmp_path / "one" / "pytorch_model.bin")
    same(sharded.read_folder(tmp_path / "one"), TENSORS)


@pytest.mark.parametrize(("size", "files"), [("1GB", 1), ("0.025KB", 2), ("0.001KB", 3)])
def test_written_folders_read_equal(tmp_path, size, files):
    source = sharded.read_folder(save(tmp_path / "in", "bin"))
    (tmp_path / "out").mkdir()
    sharded.write_folder(source, tmp_path / "out", shard_size=size)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == files
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (files > 1)
    same(sharded.read_folder(tmp_path / "out"), TENSORS)


def test_what_is_written_otherwise_is_noticed(tmp_path, monkeypatch):
    source = sharded.read_folder(save(tmp_path / "in", "bin"))
    real = sharded.stored.save

    def damaged(shapes, path, **kwargs):
        real(shapes, path, **kwargs)
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)

    monkeypatch.setattr(sharded.stored, "save", damaged)
    with pytest.raises(WeightsError, match="differs from what was written"):
        sharded.write_folder(source, tmp_path, shard_size="1GB")


def test_other_names_and_types(tmp_path):
    source = sharded.read_folder(save(tmp_path / "in", "safetensors"))
    same(source.renamed({"x": "a", "y": "c"}), {"x": TENSORS["a"], "y": TENSORS["c"]})
    same(source.renamed({"x": "a"}).to(torch.float16), {"x": TENSORS["a"].half()})
    with pytest.raises(WeightsError, match="not finite"):
        source.to(torch.float16).reader()("b")


def edit(index, change):
    found = json.loads(index.read_text())
    change(found["weight_map"])
    index.write_text(json.dumps(found))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(d="gone.bin"), "names gone.bin, which is not there"),
        (lambda m: m.update(d="../x"), "'../x', which is no file beside it"),
        (lambda m: m.update(d=m["a"]), "lacks tensors that the index promises: d"),
        (lambda m: m.pop("c"), "holds tensors that the index does not name: c"),
        (lambda m: m.clear(), "no weight_map"),
        (lambda m: m.update(a=3), "no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, kind, change, expected):
    folder = save(tmp_path, kind)
    edit(next(folder.glob("*.index.json")), change)
    with pytest.raises(WeightsError, match=expected):
        sharded.read_folder(folder)


def test_shards_need_their_index_and_hold_each_tensor_once(tmp_path):
    folder = save(tmp_path, "bin", parts=[("a", "b"), ("b", "c")])
    edit(next(folder.glob("*.index.json")), lambda m: m.update(b="pytorch_model-00001-of-00002.bin"))
    with pytest.raises(WeightsError, match="does not name: b"):
        sharded.read_folder(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(WeightsError, match="has shards such as"):
        sharded.read_folder(folder)
    with pytest.raises(WeightsError, match="both hold b"):
        sharded.read_files(dict.fromkeys(sorted(folder.glob("*.bin"))))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"index\.json"):
        sharded.read_folder(tmp_path)


def test_an_empty_folder_and_a_size_without_unit(tmp_path):
    with pytest.raises(InputError, match="holds no weights"):
        sharded.read_folder(tmp_path)
    for size in ("much", "5", "infGB"):
        with pytest.raises(InputError, match="5GB or 500MB"):
            sharded.split(TENSORS, size)
