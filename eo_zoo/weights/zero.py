"""What DeepSpeed's ZeRO leaves: parameters in pieces, one file a process, put together one at a time.

Format: deepspeed/utils/zero_to_fp32.py of DeepSpeed (Apache 2.0). Stage 3 cuts every parameter into as many equal
parts as there were processes, the last ones padded, and each process stores its parts of all parameters one after the
other. Stages 1 and 2 put all parameters one after the other and cut the whole.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import WeightsError
from eo_zoo.weights import checkpoint
from eo_zoo.weights.pickles import MAX_COUNT, MAX_DIMENSIONS
from eo_zoo.weights.sharded import LazyTensors, Reader, is_plain, shape_of

Pieces = Sequence[Tensor]  # of one dimension, one after the other
Shapes = dict[str, tuple[int, ...]]
Assembly = tuple[Tensor, Callable[[], Tensor]]  # type and shape on the meta device, and what makes the tensor


def find_zero(folder: Path) -> Path | None:
    """The folder with the files of all processes: ``folder``, or what its file ``latest`` names; None if neither is.

    Raises:
        WeightsError: ``latest`` names what is not there.
    """
    if any(folder.glob("*_optim_states.pt")):
        return folder
    latest = folder / "latest"
    if not latest.is_file():
        return None
    with latest.open(encoding="utf-8", errors="replace") as file:
        tag = file.read(1000).strip()
    if not is_plain(tag) or not (folder / tag).is_dir():
        raise WeightsError(f"{latest} names {tag[:80]!r}, which is no folder beside it")
    return folder / tag


def read_zero(folder: Path) -> LazyTensors:
    """The float32 parameters of a checkpoint of ZeRO, with frozen parameters and buffers as they are stored.

    Args:
        folder: with the ``*_optim_states.pt`` and ``*_model_states.pt`` of all processes.

    Raises:
        WeightsError: a file is missing, damaged or hostile, or they do not belong together.
    """
    states = _files(folder, "optim_states")
    models = _files(folder, "model_states")
    shapes = {name: tensor for name, (tensor, _) in _assemble(states, models).items()}

    def reader() -> Reader:
        parts = _assemble(states, models)
        return lambda name: parts[name][1]()

    return LazyTensors(shapes, reader)


def _files(folder: Path, kind: str) -> list[Path]:
    """The files of one kind by process, none missing in between."""
    files: dict[int, Path] = {}
    for path in folder.glob(f"*_{kind}.pt"):
        named = re.fullmatch(rf"(?:bf16_)?(?:zero_pp_rank_(\d{{1,6}})_)?mp_rank_(\d+)_{kind}", path.stem)
        if named is None or int(named[2]) > 0:
            raise WeightsError(f"{path} is of a model cut by layers, tensors or experts: only ZeRO's own cuts are read")
        if other := files.get(int(named[1] or 0)):
            raise WeightsError(f"{path} and {other.name} are of the same process: remove the older one")
        files[int(named[1] or 0)] = path
    missing = set(range(max(files, default=0) + 1)) - files.keys()
    if missing:
        raise WeightsError(f"{folder} lacks the *_{kind}.pt of process {min(missing)}: copy the whole folder again")
    return [files[rank] for rank in sorted(files)]


def _assemble(states: Sequence[Path], models: Sequence[Path]) -> dict[str, Assembly]:
    """How each parameter and buffer is made, once the sizes of all parts are known to fit."""
    third, flat = _partitions(states)
    if third and len(models) != len(states):
        raise WeightsError(
            f"{models[0].parent} has *_model_states.pt of {len(models)} processes, expected {len(states)}"
        )
    modules, where = [_loaded(path) for path in models], models[0]
    first = modules[0]
    stored = _part(first, "module", dict, where)
    buffers = dict.fromkeys(name for name in _part(first, "buffer_names", list, where) if isinstance(name, str))
    made = {name: _whole(stored[name], name, where) for name in buffers if name in stored}
    made |= _frozen(modules, models, third)
    groups = [_shapes(group, where) for group in _part(first, "param_shapes", list, where)]
    if third:
        made |= _thirds({name: shape for group in groups for name, shape in group.items()}, flat, where)
    elif any(len(found) != len(groups) for found in flat):
        raise WeightsError(f"{where} lists {len(groups)} groups of parameters, expected {len(flat[0])}")
    else:
        for group, pieces in zip(groups, zip(*flat, strict=True), strict=True):
            made |= _seconds(group, pieces, where)
    for name, other in _part(first, "shared_params", dict, where).items():
        if isinstance(other, str) and other in made:
            checkpoint.check_name(name, where)
            made[name] = made[other]
    return made


def _partitions(states: Sequence[Path]) -> tuple[bool, list[list[Tensor]]]:
    """Whether the checkpoint is of stage 3, and each process's pieces of the trained parameters."""
    found = [_part(_loaded(path), "optimizer_state_dict", dict, path) for path in states]
    third = "fp32_flat_groups" in found[0]
    count = found[0].get("partition_count")  # a list where groups of parameters may differ
    counts = count if isinstance(count, list) else [count]
    if len(states) not in counts or not all(isinstance(n, int) and n <= len(states) for n in counts):
        expected = next((n for n in counts if isinstance(n, int)), "a number of them in the files")
        raise WeightsError(f"{states[0].parent} has *_optim_states.pt of {len(states)} processes, expected {expected}")
    key = "fp32_flat_groups" if third else "single_partition_of_fp32_groups"
    return third, [_flat(_part(state, key, list, path), path) for state, path in zip(found, states, strict=True)]


def _frozen(modules: Sequence[dict[str, Any]], models: Sequence[Path], third: bool) -> dict[str, Assembly]:
    """Parameters that were not trained: cut as the others in stage 3, whole in each file before."""
    made: dict[str, Assembly] = {}
    for name, shape in _shapes(modules[0].get("frozen_param_shapes") or {}, models[0]).items():
        cuts = [
            _flat([_part(module, "frozen_param_fragments", dict, path).get(name)], path)
            for module, path in zip(modules, models, strict=True)
        ]
        made |= _thirds({name: shape}, cuts, models[0]) if third else _seconds({name: shape}, cuts[0], models[0])
    return made


def _loaded(path: Path) -> dict[str, Any]:
    found = checkpoint.objects(path)
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is not of DeepSpeed's ZeRO: it holds a {type(found).__name__}, expected a dict")
    return found


def _part(found: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    part = found.get(key)
    if not isinstance(part, kind):
        raise WeightsError(f"{path} is not of DeepSpeed's ZeRO: expected a {kind.__name__} under {key!r}")
    return part


def _shapes(group: Any, path: Path) -> Shapes:
    if not isinstance(group, dict):
        raise WeightsError(f"{path} lists the shapes of parameters as {type(group).__name__}, expected a dict")
    for name, shape in group.items():
        sizes = shape if isinstance(shape, list | tuple) else [None]
        checkpoint.check_name(name, path)
        plain = len(sizes) <= MAX_DIMENSIONS and all(isinstance(size, int) and size > 0 for size in sizes)
        if not plain or math.prod(sizes) > MAX_COUNT:
            raise WeightsError(f"{path} lists {name} with a shape that is none")
    return {name: tuple(shape) for name, shape in group.items()}


def _whole(tensor: Any, name: str, path: Path) -> Assembly:
    """A tensor that is stored in one piece."""
    if not isinstance(tensor, Tensor):
        raise WeightsError(f"{path}: {name} is {type(tensor).__name__}, expected a tensor")
    checkpoint.check_tensor(name, tensor, path)
    return shape_of(tensor), lambda: tensor


def _flat(tensors: Sequence[Any], path: Path) -> list[Tensor]:
    """The same tensors, without their shapes and what subclass they were of."""
    if not tensors:
        raise WeightsError(f"{path} holds no parameters")
    return [_whole(tensor, "a part of the parameters", path)[1]().detach().reshape(-1) for tensor in tensors]


def _thirds(shapes: Shapes, processes: Sequence[Pieces], where: Path) -> dict[str, Assembly]:
    """Parameters as stage 3 cuts them, from what each process holds."""
    shares = {name: -(-math.prod(shape) // len(processes)) for name, shape in shapes.items()}
    ends = [list(itertools.accumulate(piece.numel() for piece in pieces)) for pieces in processes]
    held, expected = [end[-1] for end in ends], sum(shares.values())
    if any(count != expected for count in held):
        raise WeightsError(f"{where}: the processes hold {held} values of the parameters, expected {expected} each")
    start, made = 0, {}
    for name, share in shares.items():
        cuts = [_near(pieces, end, start, start + share) for pieces, end in zip(processes, ends, strict=True)]
        made[name] = _joined(shapes[name], cuts)
        start += share
    return made


def _near(pieces: Pieces, ends: Sequence[int], start: int, stop: int) -> tuple[Pieces, int, int]:
    """Those of many pieces that hold a stretch, and where in them it is; ``ends`` are those of the pieces."""
    first = bisect.bisect_right(ends, start)
    before = ends[first - 1] if first else 0
    return pieces[first : bisect.bisect_left(ends, stop) + 1], start - before, stop - before


def _seconds(shapes: Shapes, pieces: Pieces, where: Path) -> dict[str, Assembly]:
    """Parameters as stages 1 and 2 cut them, from what all processes hold of one group."""
    start, made = 0, {}
    for name, shape in shapes.items():
        made[name] = _joined(shape, [(pieces, start, start + math.prod(shape))])
        start += math.prod(shape)
    held = sum(piece.numel() for piece in pieces)
    if not start <= held <= start + 2 * len(pieces):  # groups are padded to a multiple of twice the processes
        raise WeightsError(f"{where}: the processes hold {held} values of a group of parameters, expected {start}")
    return made


def _joined(shape: tuple[int, ...], cuts: Sequence[tuple[Pieces, int, int]]) -> Assembly:
    """A parameter from stretches, each from a first value to behind a last one of some pieces."""

    def make() -> Tensor:
        found = torch.cat([part for pieces, start, stop in cuts for part in _stretch(pieces, start, stop)])
        return found[: math.prod(shape)].reshape(shape)

    return torch.empty(shape, dtype=cuts[0][0][0].dtype, device="meta"), make


def _stretch(pieces: Pieces, start: int, stop: int) -> Iterator[Tensor]:
    for piece in pieces:
        length = piece.numel()
        if start < length and stop > 0:
            yield piece[max(start, 0) : stop]
        start, stop = start - length, stop - length
