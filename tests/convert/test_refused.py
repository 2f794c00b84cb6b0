"""What cannot be converted: one sentence, and nothing is left of it."""

from __future__ import annotations

import errno
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import eo_zoo
from eo_zoo import hf
from eo_zoo.convert import convert, export_original
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.identify import open_source
from eo_zoo.weights import stored
from tests.convert.originals import model_of, public_of, said

NANO = eo_zoo.create_model("smarties_vit_nano").state_dict()
BIG = torch.full((128,), 1e6)


def without(*names):
    return {name: tensor for name, tensor in NANO.items() if not name.startswith(names)}


def small(name, **kwargs):
    return lambda: timm.create_model(name, **kwargs).state_dict()


def of(family, **kwargs):
    return lambda: public_of(family), dict(arguments=said(family)) | kwargs


def given(family, **arguments):
    return of(family, arguments={**said(family), **arguments})


VIT = dict(embed_dim=48, depth=1, num_heads=2, img_size=32)
REFUSED = {
    "a plain ViT": (
        small("vit_tiny_patch16_224", **VIT), {},
        r"none of eo_zoo's models: of SMARTIES, the nearest, 2 of 20 names are not \(patch_embed.proj.bias",
    ),
    "a Swin": (small("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(1, 1)), {},
               r"does not hold all tensors of MaRS: no layers.0.blocks.0.attn.logit_scale"),
    "a ResNet": (small("resnet10t"), {}, r"of none of eo_zoo's models: bn1.bias, .* and \d+ more"),
    "a language model": (
        lambda: {f"model.layers.{i}.self_attn.{x}_proj.weight": torch.ones(2, 2) for i in range(2) for x in "qkv"}, {},
        r"of none of eo_zoo's models: .*layers.0.self_attn.k_proj.weight",
    ),
    "nothing": (dict, {}, "holds no tensors where a model's would be: its keys are"),
    "an empty model": (lambda: {"model": {}, "epoch": 3}, {}, "holds no tensors .*: its keys are model, epoch"),
    "one number": (lambda: torch.tensor(3.0), {}, "holds no tensors"),
    "no norm": (lambda: without("norm"), {}, r"does not fit the model: 2 missing \(norm.weight, norm.bias\)"),
    "no token": (lambda: without("cls_token"), {}, "does not hold all tensors of SMARTIES: no cls_token"),
    "no second block": (lambda: without("blocks.1."), {}, r"does not hold all tensors of SMARTIES: no blocks\.1"),
    "one more": (lambda: {**NANO, "odd.one": torch.ones(1)}, {}, r"1 of 55 names .*\(odd.one\)"),
    "another shape": (lambda: {**NANO, "norm.weight": torch.ones(3)}, {},
                      r"1 of another shape \(norm.weight is \(3,\), expected \(128,\)\)"),
    "a scalar": (lambda: {**NANO, "pos_embed": torch.tensor(1.0)}, {}, "names of SMARTIES's tensors, but not their"),
    "two channels": (lambda: {**public_of("mars"), "patch_embed.proj.weight": torch.ones(16, 2, 4, 4)}, {},
                     "patch_embed.proj.weight is for 2 channels, expected 3"),
    "half a head": (lambda: {**NANO, "head.weight": torch.ones(3, 128)}, {}, "no head of linear, probe, segmentation"),
    "a projection missing": (
        lambda: {name: t for name, t in public_of("smarties").items() if "embeds.3.proj.bias" not in name}, {},
        "patch_embed.bias is made of 17 parts; missing: 3",
    ),
    "whole numbers": (lambda: {**NANO, "norm.weight": torch.ones(128).long()}, {}, "norm.weight as int64, which"),
    "complex numbers": (lambda: {**NANO, "norm.bias": torch.ones(128) * 1j}, {}, "norm.bias as complex64, which"),
    "NaN": (lambda: {**NANO, "norm.weight": BIG / 0}, {}, "values that are not finite .* in norm.weight"),
    "zeros": (lambda: {name: torch.zeros_like(t) for name, t in NANO.items()}, {}, "nothing but zeros in its matrices"),
    "too large a value": (lambda: {**NANO, "norm.weight": BIG}, dict(dtype="float16"),
                          "norm.weight holds values that are not finite as torch.float16: give another type"),
    "8 bits": (lambda: {**NANO, "norm.weight": torch.ones(128).to(torch.float8_e4m3fn)}, {}, "float8_e4m3fn, which"),
    "no type": (lambda: NANO, dict(dtype="int8"), "'int8' is none of float32, bfloat16, float16"),
    "no size": (lambda: NANO, dict(shard_size="big"), "the shard size is 'big': expected a number and a unit"),
    "no family": (lambda: NANO, dict(family="smartie"), "unknown family 'smartie'. Did you mean 'smarties'"),
    "another family": (lambda: NANO, dict(family="anysat"), "none of eo_zoo's models: of AnySat, the nearest"),
    "no model": (lambda: NANO, dict(model="smarties_vit_bas"), "unknown model 'smarties_vit_bas'. Did you mean"),
    "another model": (lambda: NANO, dict(model="mars_base_rgb"), "tensors of SMARTIES, not of mars_base_rgb"),
    "another size": (lambda: NANO, dict(model="smarties_vit_base"), "embed_dim=128, .* is none of smarties_vit_base"),
    "a part": (lambda: NANO, dict(part="student"), "holds encoder, no student"),
    "a base": (lambda: NANO, dict(base="x"), "a base is of TerraSense's adapters"),
    "an average": (lambda: NANO, dict(ema=True), "holds no moving average"),
    "heads not said": (*of("multimae", arguments={}), r"num_heads cannot be told .* \(--arg num_heads=...\)"),
    "windows not said": (*of("mars", arguments={}), r"window_size cannot be told .* \(--arg window_size=...\)"),
    "heads that do not divide": (*given("multimae", num_heads=5), "cannot be built .*divisible by num_heads"),
    "no heads": (*given("smarties", num_heads=0), "cannot be built with"),
    "heads in letters": (*given("smarties", num_heads="two"), "cannot be built with .*'two'"),
    "an unknown argument": (*given("smarties", nun_heads=2), "unexpected keyword argument 'nun_heads'"),
    "a maker's argument": (*given("smarties", checkpoint_path="x", features_only=True),
                           "checkpoint_path, features_only is no argument of a model"),
    "an unknown band": (*given("smarties", bands=["B99"]), "unknown band 'B99' of S2"),
    "classes without a head": (*given("smarties", num_classes=3), r"2 missing \(head.weight, head.bias\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_and_nothing_is_left(case, tmp_path):
    make, asked, says = REFUSED[case]
    torch.save(make(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=says) as caught:
        convert(tmp_path / "x.pth", tmp_path / "below" / "out", **asked)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200
    assert not list((tmp_path).rglob("*out*"))


def test_places(tmp_path):
    torch.save(NANO, tmp_path / "x.pth")
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "there", tmp_path / "x.pth"):
        with pytest.raises(InputError, match="exists: remove it, or give another folder"):
            convert(tmp_path / "x.pth", output)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "x.pth"))):
        convert(tmp_path / "x.pth", tmp_path / "x.pth" / "below")
    with pytest.raises(InputError, match=r"nowhere.pth is not there: give a checkpoint, a file or a folder"):
        convert(tmp_path / "nowhere.pth", None)
    with pytest.raises(InputError, match=r"there holds no weights: expected model.safetensors, pytorch_model.bin"):
        convert(tmp_path / "there", None)
    with pytest.raises(InputError, match=r"has to be written first: give a folder"):
        convert(tmp_path / "x.pth", None, push_to_hub="me/x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.pth"]


def test_a_folder_that_says_something_else(tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "in")
    with pytest.raises(InputError, match="holds smarties_vit_nano, not smarties_vit_base"):
        convert(tmp_path / "in", None, model="smarties_vit_base")
    config = tmp_path / "in" / "config.json"
    text = config.read_text()
    for found, says in (
        ('["depth"]', "config.json has .* as model_args, expected an object"),
        ('{"depth": 2}', "unexpected"),
    ):
        config.write_text(re.sub(r'"model_args": \{[^{}]*\}', f'"model_args": {found}', text))
        with pytest.raises(InputError, match=says):
            convert(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["in"]


@pytest.mark.parametrize("step", ["write", "fsync", "mkdir", "rename"])
def test_a_disk_that_fails(step, tmp_path, monkeypatch):
    """Full, or one that may not be written to: at any step nothing is left."""
    torch.save(NANO, tmp_path / "x.pth")

    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC if step in ("write", "fsync") else errno.EROFS, "it fails")

    if step == "write":
        monkeypatch.setattr(stored, "_pieces", fails)
    elif step == "fsync":
        monkeypatch.setattr("os.fsync", fails)
    else:
        monkeypatch.setattr(Path, step, fails)
    with pytest.raises(OSError, match="it fails"):
        convert(tmp_path / "x.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["x.pth"]


def test_what_reads_back_differently_is_refused(tmp_path, monkeypatch):
    torch.save(NANO, tmp_path / "x.pth")
    save = stored.save

    def flipped(tensors, path, **kwargs):
        made = save(tensors, path, **kwargs)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return made

    monkeypatch.setattr(stored, "save", flipped)
    with pytest.raises(WeightsError, match="read back differs from what was written"):
        convert(tmp_path / "x.pth", tmp_path / "out")
    with pytest.raises(WeightsError, match="read back differs from what was written"):
        export_original(tmp_path / "x.pth", tmp_path / "back.safetensors")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["x.pth"]


FULL = """
import resource, sys
from pathlib import Path
from eo_zoo.convert import convert, export_original
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for work in (
    lambda: convert(folder / "in", folder / "out"),
    lambda: export_original(folder / "in", folder / "back.pth"),
    lambda: export_original(folder / "in", folder / "back.safetensors"),
):
    try:
        work()
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="a limit of POSIX")
def test_a_real_limit_on_what_is_written(tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "in")
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert result.stdout.split() == ["OSError"] * 3, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == before


def test_export_refuses(tmp_path):
    hf.export("smarties_vit_nano", tmp_path / "in")
    (tmp_path / "taken").write_text("mine")
    for output, asked, says in (
        ("x.pth", dict(layout="state"), "unknown layout 'state' of SMARTIES: expected encoder or pretraining"),
        ("taken", {}, r"taken exists: give another name, or overwrite it \(--overwrite\)"),
        ("in", dict(overwrite=True), "in is a folder: give a file's name"),
        ("x.pth", dict(part="student"), "holds encoder, no student"),
    ):
        with pytest.raises(InputError, match=says):
            export_original(tmp_path / "in", tmp_path / output, **asked)
    assert (tmp_path / "taken").read_text() == "mine"
    export_original(tmp_path / "in", tmp_path / "taken", overwrite=True)
    export_original(tmp_path / "in", tmp_path / "new" / "folder" / "x.pth")
    assert open_source(tmp_path / "taken").tensors.keys() == open_source(tmp_path / "new/folder/x.pth").tensors.keys()


def test_what_has_no_place_in_the_public_layout(tmp_path):
    torch.save(model_of("anysat", num_classes=3).state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"the layout 'encoder' has no place for head.weight, head.bias"):
        export_original(tmp_path / "x.pth", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
