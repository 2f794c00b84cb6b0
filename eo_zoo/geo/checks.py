"""Checks of options that cost nothing, before anything is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eo_zoo.errors import InputError
from eo_zoo.geo.output import side_file


def one_of(what: str, value: Any, options: tuple[Any, ...]) -> Any:
    """``value``, if it is one of ``options``; InputError otherwise."""
    if value not in options:
        raise InputError(f"{what} is {value!r}, expected {' or '.join(str(o) for o in options if o is not None)}")
    return value


def writable(
    what: str, path: str | Path | None, suffixes: tuple[str, ...], overwrite: bool, *inputs: object
) -> Path | None:
    """An output's path with links resolved; InputError if nothing can or should be written there."""
    if path is None:
        return None
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{what} is {path.name or path}, expected a name that ends in {' or '.join(suffixes)}")
    path = path.resolve()  # a link stays, and what it points to is replaced
    folder = path.parent
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{what}: {path} is {kind}, expected the name of a file")
    if not folder.is_dir():
        raise InputError(f"{what}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{what}: the folder {folder} cannot be written to; choose another")
    files = [source for source in inputs if isinstance(source, str | Path) and os.path.exists(source)]
    if path.exists() and any(path.samefile(source) for source in files):
        raise InputError(f"{what}: {path} is the input itself; choose another name")
    for there in (path, side_file(path)):
        if there.exists() and not overwrite:
            raise InputError(f"{what}: {there} exists; choose another name, or pass --overwrite (overwrite=True)")
    return path


def check_weights(weights: str | Path | None, model: str | nn.Module) -> None:
    """Raise InputError for a file of weights beside a module."""
    if weights is not None and not isinstance(model, str):
        raise InputError("weights belong to a model's name, but a module was given, which has its own")


def find_device(device: str | torch.device | None, model: str | nn.Module) -> torch.device:
    """The device of this name; without one, where a module is, or a GPU if there is one."""
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        if parameter is not None:
            return parameter.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
        if found.type == "meta" or (found.type == "cpu" and found.index):
            raise RuntimeError("it cannot compute" if found.type == "meta" else "there is one cpu device")
    # torch says so in three ways: no such name, not compiled in, no such card.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"\n|\. ", str(error))[0]
        raise InputError(f"device '{device}' is not there ({reason}); on this machine: {_devices()}") from error
    return found


def fast_dtype(device: torch.device) -> str:
    """ "bfloat16" where the device computes in it, else "float32": a CPU without AMX or avx512_bf16 is slower in it."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch before 2.10 does not tell
        found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
        fast = any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return "bfloat16" if fast else "float32"


def _devices() -> str:
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return ", ".join(names + ["mps"] * torch.backends.mps.is_available())
