"""Checkpoint files to tensors and back: told apart by content, read strictly, never executed.

This is the pure half of `eo_zoo.weights`: no network, no cache, one file at a time.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import archives, stored
from eo_zoo.weights.pickles import BROKEN, MAX_DIMENSIONS
from eo_zoo.weights.wrappings import Opened, open_dict, plain_names

MAX_NAME = 500  # characters of a tensor's name


class IncompleteError(WeightsError):
    """Tensors are missing."""


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint as `unwrapped` gives them, under names without what training scripts put before all
    of them; raises as it does.
    """
    tensors = unwrapped(path).tensors
    return {plain: tensors[name] for name, plain in plain_names(tensors).items()}


def unwrapped(path: str | Path, *, ema: bool = False) -> Opened:
    """The tensors of a checkpoint: safetensors, torch's zip archive or torch's older format, by content.

    Nothing in the file is executed. Files of the first two kinds are memory-mapped: tensors are pages of the file until
    they are written to, and writing never reaches the file.

    Args:
        path: of the file.
        ema: give the moving average of a model's tensors, where the file has one beside them.

    Raises:
        InputError: there is no such file.
        WeightsError: the file is hostile, damaged, of another kind, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a checkpoint file")
    with path.open("rb") as file:
        head = file.read(len(archives.LEGACY_MAGIC))
    return _open(stored.read(path) if head[8:9] == b"{" else objects(path), path, ema=ema)


def objects(path: Path) -> object:
    """All that a file of torch.save holds, with tensors as in `read` and stand-ins for foreign objects.

    The tensors are not checked: see `check_tensor`.

    Raises:
        WeightsError: the file is hostile, damaged or of another kind.
    """
    with path.open("rb") as file:
        head = file.read(len(archives.LEGACY_MAGIC))
    if not head.startswith(archives.ZIP_MAGIC) and head != archives.LEGACY_MAGIC:
        raise WeightsError(f"{path} is not a checkpoint: {_guess(head)}")
    try:
        return archives.load(path)
    except archives.Unlisted:
        if lost := _beyond_end(path):
            raise IncompleteError(f"{path} is cut short: {lost}; if its source has more, download it again") from None
        raise


def _beyond_end(path: Path) -> str:
    """Which tensors of a zip archive that lost its end are missing; empty if that cannot be told."""
    try:
        loaded, whole = archives.load_cut(path)
        tensors = _open(loaded, path).tensors
    except BROKEN:  # a WeightsError too
        return ""
    lost = [name for name, tensor in tensors.items() if tensor.untyped_storage().data_ptr() not in whole]
    if not lost:
        return ""
    size = path.stat().st_size
    return f"it has {size:,} bytes, and {len(lost)} of its {len(tensors)} tensors lie beyond ({some(lost)})"


def _guess(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if head.startswith(b"\x80"):
        return "it is a plain pickle, which torch.save did not write; refused, nothing was executed"
    if head.lstrip().startswith(b"<"):
        return "it is a web page, perhaps a login or an error page; download the file itself"
    if head.startswith(b"version https"):
        return "it is a Git LFS pointer; fetch the file that it stands for with `git lfs pull`"
    return f"expected safetensors or a file of torch.save, found {head!r}..."


def _open(loaded: object, path: Path, *, ema: bool = False) -> Opened:
    opened = open_dict(loaded, ema=ema)
    if opened is None:
        keys = f"its keys are {some(map(str, loaded))}" if isinstance(loaded, dict) else f"it is {type(loaded)}"
        what = "no moving average of a model's tensors" if ema else "no tensors where a model's would be"
        raise WeightsError(f"{path} holds {what}: {keys}")
    for name, tensor in opened.tensors.items():
        check_tensor(name, tensor, path)
    return opened


def check_name(name: object, path: Path) -> None:
    """Raise WeightsError for a tensor's name that is no line of text."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        raise WeightsError(f"{path} names a tensor {reprlib.repr(name)}; expected a line of text")


def check_tensor(name: object, tensor: Tensor, path: Path) -> None:
    """Raise WeightsError for a name that is no line of text, and for a tensor without plain values of its own."""
    check_name(name, path)
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.ndim > MAX_DIMENSIONS:
        raise WeightsError(f"{path}: tensor {name} is sparse, quantized, empty of values or of too many dimensions")
    # A few stored bytes may be shown as terabytes with a stride of 0; copying such a tensor fills the memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path}: tensor {name} claims the shape {tuple(tensor.shape)}, but stores less")


# ----------------------------------------------------------------------------------------- comparison


def some(names: Iterable[str]) -> str:
    """The first ten names, and how many more there are."""
    listed = list(names)
    # a file may name its tensors as it likes: not thousands of letters, nor what moves a terminal's cursor
    shown = [name if name.isprintable() and len(name) < 200 else repr(name[:200]) for name in listed[:10]]
    return ", ".join(shown) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def check_fit(
    found: Mapping[str, Any], wanted: Mapping[str, Tensor], *, optional: Collection[str] = (), what: str
) -> None:
    """Compare names and shapes of ``found`` with those that a model wants.

    Args:
        found: name to anything with a ``shape``.
        wanted: the model's ``state_dict()``.
        optional: names of ``wanted`` that may be missing.
        what: whose tensors these are; begins the message.

    Raises:
        WeightsError: one sentence with all that differs: the first ten of each kind, and how many there are.
    """
    missing = [name for name in wanted if name not in found and name not in optional]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(tensor.shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    faults = [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds.items() if names]
    if faults:
        kind = IncompleteError if missing else WeightsError
        raise kind(f"{what} does not fit the model: " + "; ".join(faults))
