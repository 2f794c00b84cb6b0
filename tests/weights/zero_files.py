"""Checkpoints as DeepSpeed's ZeRO writes them, forged from tensors; see tests/data/zero for true ones."""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor


class LossScaler:
    """Of DeepSpeed: an object in every file of the optimizer."""

    def __init__(self):
        self.cur_scale = 1.0


LossScaler.__module__ = "deepspeed.runtime.fp16.loss_scaler"


def save(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    world: int,
    stage: int = 3,
    frozen: Collection[str] = (),
    shared: Mapping[str, str] | None = None,
    groups: int = 2,
    tag: str = "global_step7",
) -> Path:
    """Write ``folder``/``tag`` and ``folder``/latest; trained parameters as float32, ``frozen`` ones as they are."""
    step = folder / tag
    step.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    trained = [name for name in tensors if name not in frozen]
    listed = [trained[i::groups] for i in range(groups)]
    for rank in range(world):
        model = {
            "module": {name: torch.empty(0) for name in tensors},
            "buffer_names": [],
            "param_shapes": [{name: tensors[name].shape for name in names} for names in listed],
            "frozen_param_shapes": {name: tensors[name].shape for name in frozen},
            "frozen_param_fragments": {
                name: _part(tensors[name], rank, world) if stage == 3 else tensors[name] for name in frozen
            },
            "shared_params": dict(shared or {}),
            "sparse_tensor_module_names": set(),
            "ds_version": "0.19.8",
        }
        if stage == 3:
            torch.save(model, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            torch.save(model, step / "mp_rank_00_model_states.pt")
        state = {"loss_scaler": LossScaler(), "partition_count": world if stage == 3 else [world] * groups}
        if stage == 3:
            flat = torch.cat([_part(tensors[name].float(), rank, world) for names in listed for name in names])
            state["fp32_flat_groups"] = list(flat.split(flat.numel() // 3 + 1))  # cut without regard to parameters
        else:
            whole = [torch.cat([tensors[name].float().reshape(-1) for name in names]) for names in listed]
            state["single_partition_of_fp32_groups"] = [
                flat[rank * size : (rank + 1) * size]
                for flat in whole
                for size in [-(-flat.numel() // (2 * world)) * 2]
            ]
        with _as_deepspeed():
            torch.save(
                {"optimizer_state_dict": state, "ds_version": "0.19.8"},
                step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            )
    return folder


def _part(tensor: Tensor, rank: int, world: int) -> Tensor:
    """One of ``world`` equal parts, the last ones padded with a value that must not come back."""
    share = -(-tensor.numel() // world)
    padded = torch.full((share * world,), 777.0, dtype=tensor.dtype)
    padded[: tensor.numel()] = tensor.reshape(-1)
    return padded[rank * share : (rank + 1) * share].clone()


class _as_deepspeed:
    """While this holds, pickle finds `LossScaler` where DeepSpeed has it."""

    def __enter__(self):
        self.module = types.ModuleType(LossScaler.__module__)
        self.module.LossScaler = LossScaler
        sys.modules[LossScaler.__module__] = self.module
        for i in (1, 2, 3):
            sys.modules.setdefault(LossScaler.__module__.rsplit(".", i)[0], self.module)

    def __exit__(self, *_):
        for name in [name for name, module in sys.modules.items() if module is self.module]:
            del sys.modules[name]
