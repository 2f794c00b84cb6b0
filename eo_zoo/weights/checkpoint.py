"""Checkpoint files to tensors and back: told apart by content, read strictly, never executed.

This is the pure half of `eo_zoo.weights`: no network, no cache, one file at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import re
import struct
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import stored

logger = logging.getLogger(__name__)

#: Keys under which training scripts keep the model's own tensors.
WRAPPERS = ("model", "state_dict")
#: What DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")

ZIP_MAGIC = b"PK\x03\x04"
# torch.save's magic number, pickled with protocol 2: how every file of the format before torch 1.6 begins.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
MAX_INDEX = 16_000_000  # bytes of a cut archive that are searched for its list of tensors


class IncompleteError(WeightsError):
    """Tensors are missing."""


class Inert:
    """Stands in for whatever object a checkpoint carries beside its tensors: takes anything, does nothing."""

    def __new__(cls, *_: object) -> Inert:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Ignore any arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore any state."""


class InertDict:
    """Stands in for subclasses of dict: torch's unpickler fills only real dicts, so that is what it makes."""

    # on purpose: torch's unpickler makes what it is told to make, and gets a plain dict
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Accept any arguments; give an empty dict."""
        return OrderedDict()


# What known training scripts leave in their checkpoints. A name here is never looked up, let alone called.
INERT = (
    "argparse.Namespace", "types.SimpleNamespace", "typing.Any",
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple")),
    *(f"omegaconf.{name}" for name in (
        "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata",
        "nodes.AnyNode", "nodes.BooleanNode", "nodes.BytesNode", "nodes.EnumNode", "nodes.FloatNode",
        "nodes.IntegerNode", "nodes.PathNode", "nodes.StringNode",
    )),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{name}" for name in ("bool", "bool_", "float32", "float64", "int32", "int64", "uint8")),
    *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Float32", "Float64", "Int32", "Int64", "UInt8")),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"deepspeed.{name}" for name in (
        "runtime.fp16.loss_scaler.LossScaler", "runtime.fp16.loss_scaler.DynamicLossScaler",
        "runtime.zero.config.ZeroStageEnum", "utils.tensor_fragment.fragment_address",
    )),
)  # fmt: skip
INERT_DICTS = ("collections.defaultdict",)

# torch.load runs a small machine over bytes that anybody may have written: these are what it raises when they
# make no sense.
BROKEN = (
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip

_unpickling = threading.Lock()  # safe_globals changes a list that all threads share


def read(path: str | Path, *, keep_prefixes: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint: safetensors, torch's zip archive or torch's older format, by content.

    Nothing in the file is executed. Files of the first two kinds are memory-mapped: tensors are pages of the
    file until they are written to, and writing never reaches the file. A dict under one of `WRAPPERS` is
    opened, `PREFIXES` common to all names are removed unless they are to be kept, what is not a tensor is dropped.

    Raises:
        InputError: there is no such file.
        WeightsError: the file is hostile, damaged, of another kind, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a checkpoint file")
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    tensors = _unwrap(stored.read(path) if head[8:9] == b"{" else objects(path), path)
    return tensors if keep_prefixes else _without_prefixes(tensors)


def objects(path: Path) -> object:
    """All that a file of torch.save holds, with tensors as in `read` and stand-ins for foreign objects.

    The tensors are not checked: see `check_tensor`.

    Raises:
        WeightsError: the file is hostile, damaged or of another kind.
    """
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head.startswith(ZIP_MAGIC):
        _check_archive(path)
        return _unpickle(path, mmap=True)
    if head == LEGACY_MAGIC:
        return _unpickle(path, mmap=False)
    raise WeightsError(f"{path} is not a checkpoint: {_guess(head)}")


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


# -------------------------------------------------------------------------------------------- pickles


def _check_archive(path: Path) -> None:
    """Refuse zip archives that torch.save cannot have written, before torch opens them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*BROKEN, OSError) as error:
        lost = _beyond_end(path)
        if lost:
            raise IncompleteError(f"{path} is cut short: {lost}; if its source has more, download it again") from error
        raise WeightsError(f"{path} is damaged or cut short ({error}); download it again") from error
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise WeightsError(f"{path} holds two entries of the same name; refused")
    # torch.save compresses nothing, so compression can only mean another program or a zip bomb.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} has compressed entries, which torch.save does not write; refused")
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program; save its state_dict() with torch.save instead")
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")


def _beyond_end(path: Path) -> str:
    """Which tensors of a zip archive that lost its end are missing; empty if that cannot be told.

    torch.save writes data.pkl, the list of tensors, before the tensors themselves, which follow in its order.
    """
    with path.open("rb") as file:
        listed = file.read(MAX_INDEX)[_data_of(file, 0) :]
        small = io.BytesIO()
        with zipfile.ZipFile(small, "w") as archive:
            archive.writestr("archive/data.pkl", listed)
            archive.writestr("archive/byteorder", sys.byteorder)
            archive.writestr("archive/version", "3")
        small.seek(0)
        try:
            with _safely(), torch.serialization.skip_data():
                loaded = torch.load(small, map_location="cpu", weights_only=True)
            tensors = _without_prefixes(_unwrap(loaded, path))
        except BROKEN:  # a WeightsError too
            return ""
        size = path.stat().st_size
        position, whole = _data_of(file, 0), set()
        first = re.search(rb"PK\x03\x04.{26}[^/]{1,200}/data/0", listed, re.DOTALL)
        position = position + first.start() if first else size
        for storage, length in {_storage(tensor): _storage(tensor)[1] for tensor in _all_tensors(loaded)}.items():
            end = _data_of(file, position) + length
            if end > size:
                break
            whole.add(storage)
            file.seek(end)
            # Between two entries are the checksum of one and the padding of the other.
            position = end + max(0, file.read(64).find(ZIP_MAGIC))
    lost = [name for name, tensor in tensors.items() if _storage(tensor) not in whole]
    if not lost:
        return ""
    return f"it has {size:,} bytes, and {len(lost)} of its {len(tensors)} tensors lie beyond ({some(lost)})"


def _storage(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()


def _all_tensors(loaded: object) -> Iterator[Tensor]:
    """Every tensor in a checkpoint, in the order in which it was written."""
    if isinstance(loaded, Tensor):
        yield loaded
    elif isinstance(loaded, dict | list | tuple):
        for value in loaded.values() if isinstance(loaded, dict) else loaded:
            yield from _all_tensors(value)


def _data_of(file: BinaryIO, position: int) -> int:
    """Where the data of the zip entry at ``position`` begin: behind its name and padding."""
    file.seek(position)
    head = file.read(30).ljust(30, b"\xff")
    return position + 30 + sum(struct.unpack("<HH", head[26:]))


@contextlib.contextmanager
def _safely() -> Iterator[None]:
    """While this holds, torch's safe unpickler gives stand-ins for what training scripts leave in checkpoints."""
    stand_ins = [(Inert, name) for name in INERT] + [(InertDict, name) for name in INERT_DICTS]
    with _unpickling, torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        yield


def _unpickle(path: Path, *, mmap: bool) -> object:
    try:
        with _safely():
            # torch goes by the name if it ends in .safetensors; an open file has none, but cannot be mapped
            if mmap and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        raise WeightsError(f"{path} {_diagnose(error)}") from error


def _diagnose(error: BaseException) -> str:
    text = str(error)
    asked = re.search(r"GLOBAL (\S+)", text)
    if asked:
        name = asked[1] if "." in asked[1] else f"builtins.{asked[1]}"  # torch leaves `builtins.` out
        return f"is refused: it asks to run `{name}`; nothing was executed"
    if "Unsupported operand" in text:
        return "is refused: it has pickle instructions unknown to torch's safe loader; save it by torch.save"
    # torch wraps the unpickler's own words in advice on how to switch the protection off: leave that out.
    words = text.partition("WeightsUnpickler error:")[2] or text
    first = (words.strip().splitlines() or [""])[0]
    return f"cannot be read ({type(error).__name__}: {first}); download it again"


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    top = f"its keys are {some(map(str, loaded))}" if isinstance(loaded, dict) else f"it is {type(loaded)}"
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    found = loaded if isinstance(loaded, dict) else {}
    tensors = {key: value.detach() for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors where a model's would be: {top}")
    for name, tensor in tensors.items():
        check_tensor(name, tensor, path)
    return tensors


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def check_tensor(name: object, tensor: Tensor, path: Path) -> None:
    """Raise WeightsError for a name that is no text, and for a tensor without plain values of its own."""
    if not isinstance(name, str):
        raise WeightsError(f"{path} names a tensor {name!r}; expected text")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise WeightsError(f"{path}: tensor {name} is sparse, quantized or empty of values")
    # A few stored bytes may be shown as terabytes with a stride of 0; copying such a tensor fills the memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"{path}: tensor {name} claims the shape {tuple(tensor.shape)}, but stores less")


# ----------------------------------------------------------------------------------------- comparison


def some(names: Iterable[str]) -> str:
    """The first ten names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def refuse_unknown(names: Collection[str], family: str) -> None:
    """Raise WeightsError for names that a family's key table does not hold, if there are any."""
    if names:
        raise WeightsError(f"{len(names)} tensors are not of a checkpoint of {family}: {', '.join(sorted(names)[:10])}")


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
