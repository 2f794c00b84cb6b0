"""What training scripts put around a model's tensors: dicts inside dicts, and prefixes before every name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Keys under which training scripts keep the model's own tensors.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net")
#: Keys under which they keep the moving average of them.
AVERAGES = ("model_ema", "state_dict_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict")
#: What may lie in such a dict beside the tensors: how many averages were taken, by torch's AveragedModel and others.
COUNTERS = ("n_averaged", "num_updates", "initted", "step")
# DistributedDataParallel's and Lightning's, torch.compile's, FSDP's, those of moving averages.
PREFIX = re.compile(r"(?:module|model|_orig_mod|_fsdp_wrapped_module|_forward_module|ema_model|model_ema|ema|net)\.")
# Of the average, where it lies among the model's own tensors: a training module holds both.
AVERAGED = re.compile(r"(?:ema_model|model_ema|ema)\.")
DEPTH = 4  # of dicts in dicts; one may hold itself
# torch.compile, FSDP and activation checkpointing wrap modules inside a model too.
INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Opened:
    """A model's tensors, and what was around them."""

    tensors: dict[Any, Tensor]  # names are checked by who reads the file
    path: tuple[str, ...] = ()  # the keys that led to them
    beside: tuple[str, ...] = ()  # what else the file holds, not read
    average: bool = False  # they are a moving average


def open_dict(loaded: object, *, ema: bool = False) -> Opened | None:
    """The tensors in what a checkpoint holds: its own, or those of the dict under one of the known keys.

    Args:
        loaded: what was read.
        ema: the moving average is wanted, where there is one beside the model's own.

    Returns:
        None where there are no tensors, or no moving average.
    """
    path: list[str] = []
    beside: list[str] = []
    average = False
    while isinstance(loaded, Mapping) and len(path) < DEPTH:
        found = next((key for key in AVERAGES if _holds_tensors(loaded.get(key))), None)
        key = next((key for key in WRAPPERS if _holds_tensors(loaded.get(key))), None)
        average = average or (found is not None and (ema or key is None))
        key = found if found is not None and (ema or key is None) else key
        own = {name: value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
        if key is None:
            names = [name for name in own if str(name).rpartition(".")[2] not in COUNTERS]
            averaged = [name for name in names if AVERAGED.match(str(name))]
            if averaged and len(averaged) < len(names):
                average = average or ema
                names = averaged if ema else [name for name in names if name not in set(averaged)]
            if not names or (ema and not average):
                return None
            beside += [".".join([*path, str(name)]) for name in loaded if name not in names]
            return Opened({name: own[name] for name in names}, tuple(path), tuple(beside), average)
        beside += [".".join([*path, str(name)]) for name in loaded if name != key]
        path.append(key)
        loaded = loaded[key]
    return None


def _holds_tensors(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(one, Tensor) for one in value.values()) or any(
        isinstance(value.get(key), Mapping) for key in (*WRAPPERS, *AVERAGES)
    )


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without the prefixes that all of them have, and without what wraps modules inside the model.

    Names that would become the same are left as they are.
    """
    plain = {name: name for name in names}
    while plain and (match := PREFIX.match(next(iter(plain.values())))):
        if not all(name.startswith(match[0]) for name in plain.values()):
            break
        plain = {name: short.removeprefix(match[0]) for name, short in plain.items()}
    inner = {name: INSIDE.sub("", short) for name, short in plain.items()}
    return inner if len(set(inner.values())) == len(inner) else plain
