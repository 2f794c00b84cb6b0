from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eo_zoo.errors import WeightsError
from eo_zoo.weights import zero
from tests.weights import zero_files

DATA = Path(__file__).parents[1] / "data" / "zero"


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (11, 7), "bias": (13,), "scalar": (), "one": (1,), "cube": (2, 3, 5), "wide": (3, 101)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def read(folder):
    found = zero.read_zero(zero.find_zero(folder))
    value = found.reader()
    read = {name: value(name) for name in found.shapes}
    assert all(found.shapes[name].shape == t.shape and found.shapes[name].dtype == t.dtype for name, t in read.items())
    return read


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_true_checkpoints_give_what_deepspeed_makes_of_them(stage):
    found, expected = read(DATA / stage), load_file(DATA / f"{stage}.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in expected)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 8, 31])
def test_any_number_of_processes(tmp_path, world, stage):
    frozen = ("cube", "one")
    saved = zero_files.save(
        tensors(), tmp_path / "c", world=world, stage=stage, frozen=frozen, shared={"head": "embed"}
    )
    found = read(saved)
    expected = {name: t if name in frozen else t.float() for name, t in tensors().items()}
    expected["head"] = expected["embed"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in expected.items())


def change(step, file, edit):
    path = next(step.glob(file))
    with zero_files._as_deepspeed():
        state = torch.load(path, weights_only=False)
        edit(state)
        torch.save(state, path)


OPTIM, MODEL = "*_rank_1_*optim*", "*_rank_0_*model*"


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        (OPTIM, lambda s: s.pop("optimizer_state_dict"), "optimizer_state_dict"),
        (OPTIM, lambda s: s["optimizer_state_dict"]["fp32_flat_groups"].pop(), "values of the parameters, expected"),
        (OPTIM, lambda s: s["optimizer_state_dict"].update(fp32_flat_groups=["x"]), "is str, expected a tensor"),
        (OPTIM, lambda s: s["optimizer_state_dict"].update(fp32_flat_groups=[]), "holds no parameters"),
        (MODEL, lambda s: s.pop("param_shapes"), "param_shapes"),
        (MODEL, lambda s: s["param_shapes"].append(3), "expected a dict"),
        (MODEL, lambda s: s["param_shapes"][0].update(embed=(-1, 7)), "embed with a shape that is none"),
        (MODEL, lambda s: s["param_shapes"][0].update(embed=torch.Size((2**40, 7))), "values of the parameters"),
        (MODEL, lambda s: s["frozen_param_fragments"].clear(), "is NoneType, expected a tensor"),
        ("*_rank_0_*optim*", lambda s: s["optimizer_state_dict"].update(partition_count=4), "3 processes, expected 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, file, edit, expected):
    folder = zero_files.save(tensors(), tmp_path / "c", world=3, frozen=("cube",))
    change(folder / "global_step7", file, edit)
    with pytest.raises(WeightsError, match=expected):
        read(folder)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "lacks the .*optim_states.pt of process 1"),
        ("bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt", "2 processes, expected 3"),
        ("zero_pp_rank_2_mp_rank_00_model_states.pt", "model_states.pt of 2 processes, expected 3"),
    ],
)
def test_a_missing_file_is_named(tmp_path, file, expected):
    folder = zero_files.save(tensors(), tmp_path / "c", world=3)
    (folder / "global_step7" / file).unlink()
    with pytest.raises(WeightsError, match=expected):
        read(folder)


def test_files_of_other_cuts_or_two_of_one_process_are_refused(tmp_path):
    step = zero_files.save(tensors(), tmp_path / "c", world=2) / "global_step7"
    one = step / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(one, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(WeightsError, match="of the same process"):
        read(step)
    (step / "zero_pp_rank_0_mp_rank_00_optim_states.pt").rename(step / "zero_pp_rank_0_mp_rank_01_optim_states.pt")
    with pytest.raises(WeightsError, match="cut by layers, tensors or experts"):
        read(step)


@pytest.mark.parametrize("tag", ["../elsewhere", "/tmp", "", ".", "..", "global_step9"])
def test_latest_names_a_folder_beside_it(tmp_path, tag):
    folder = zero_files.save(tensors(), tmp_path / "c", world=1)
    (tmp_path / "elsewhere").mkdir()
    (folder / "latest").write_text(tag)
    with pytest.raises(WeightsError, match="no folder beside it"):
        zero.find_zero(folder)
