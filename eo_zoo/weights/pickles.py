"""Pickles of torch.save, read by a machine of our own that calls nothing and looks nothing up.

torch.load(weights_only=True) calls constructors with whatever arguments a file gives (``bytearray(10**12)``), lets it
set a tensor on memory beyond its storage, and before torch 2.10 could be made to overwrite memory (CVE-2026-24747).
Here dicts, lists, numbers and texts are made, tensors are views of storages that were checked to hold them, and all
else is a stand-in. Instructions are parsed by the standard library's ``pickletools``.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor, UntypedStorage

MAX_INSTRUCTIONS = 3_000_000  # a checkpoint of a thousand parameters with its optimizer has about 200,000
MAX_DIMENSIONS = 64  # torch's own iterators take no more
# How often a value may be shown by tensors. Beside a model lie its average or the same tensors under other names; a
# thousand tensors that all show the whole of one storage would fill a disk when they are written.
MAX_SHARING = 16
SMALL = 1 << 20  # bytes that may be shown anyway

# What is raised by parsers when bytes that anybody may have written make no sense.
BROKEN = (
    pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip

DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
        torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip
STORAGES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool, "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128, "torch.storage.UntypedStorage": torch.uint8,
}  # fmt: skip
DICTS = ("collections.OrderedDict", "collections.defaultdict")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
# What training scripts leave beside their tensors. It becomes a stand-in, whatever the file says about it.
INERT = (
    "argparse.Namespace", "types.SimpleNamespace", "typing.Any", "_codecs.encode", "collections.Counter",
    *(f"builtins.{name}" for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "int", "list", "set", "str", "tuple",
    )),
    "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
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
KNOWN = frozenset((*DTYPES, *STORAGES, *DICTS, *TENSORS, *PARAMETERS, WITH_ATTRIBUTES, "torch.Size", *INERT))

VALUES = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"))
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

#: Gives the storage of that name, of at least so many bytes.
Storages = Callable[[str, int], UntypedStorage]


class Refused(ValueError):
    """The file asks for what no checkpoint needs."""


class Inert:
    """Stands in for whatever object a checkpoint carries beside its tensors."""


@dataclass(frozen=True)
class Named:
    """A class or function that the file refers to; it is never looked up."""

    name: str


@dataclass(frozen=True)
class Stored:
    """A storage, and the type of its values."""

    storage: UntypedStorage
    dtype: torch.dtype
    size: int  # bytes


def load(stream: IO[bytes], storages: Storages, *, size: int) -> Any:
    """What the next pickle of a stream holds; the stream is left behind it.

    Args:
        stream: it has all of the file, or of the file's entry.
        storages: gives the storages that the pickle names.
        size: of the file in bytes.

    Raises:
        Refused: it asks for what no checkpoint needs.
        BROKEN: it makes no sense.
    """
    return _Machine(storages, size).run(stream)


class _Machine:
    def __init__(self, storages: Storages, size: int) -> None:
        self.storages = storages
        self.budget = MAX_SHARING * size + SMALL  # bytes that tensors may still show
        self.memo: dict[int, Any] = {}
        self.marks: list[list[Any]] = []
        self.stack: list[Any] = []

    def run(self, stream: IO[bytes]) -> Any:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                raise Refused(f"it has more than {MAX_INSTRUCTIONS:,} pickle instructions")
            if instruction.name in VALUES:
                self.stack.append(argument)
            elif instruction.name == "STOP":
                return self.stack.pop()
            else:
                self.step(instruction.name, argument)
        raise EOFError("no end")

    def step(self, instruction: str, argument: Any) -> None:
        stack = self.stack
        match instruction:
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE":
                together = tuple(self.marked())
                self.stack.append(together)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-TUPLES[instruction] :] = [tuple(self.top(TUPLES[instruction]))]
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[instruction])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS":
                items = self.marked()
                _extend(self.stack[-1], items)
            case "SETITEM":
                pair = self.top(2)
                del stack[-2:]
                _set(stack[-1], pair)
            case "SETITEMS":
                items = self.marked()
                _set(self.stack[-1], items)
            case "GLOBAL":
                stack.append(_named(argument))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self.top(2)
                stack[-2:] = [self.call(function, arguments)]
            case "BUILD":
                del stack[-1]  # attributes of an object, which nobody reads
                if not isinstance(stack[-1], Inert | dict | Tensor):
                    raise Refused(f"it sets attributes of a {type(stack[-1]).__name__}")
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "PROTO":
                pass
            case _:
                raise Refused(
                    f"it has the pickle instruction {instruction}, which torch.save does not write by itself; load it "
                    "in torch and save it again by torch.save"
                )

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("an empty stack")
        return self.stack[-count:]

    def call(self, function: Any, arguments: Any) -> Any:
        """What stands for a call: a tensor, a container, or something inert."""
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise Refused(f"it calls a {type(function).__name__}")
        if function.name in TENSORS:
            typed = arguments[6] if function.name.endswith("v3") else None
            stored, offset, size, stride = arguments[:4]
            return self.tensor(stored, offset, size, stride, typed)
        if function.name == WITH_ATTRIBUTES:
            return self.call(arguments[0], arguments[2])
        if function.name in PARAMETERS:
            if not isinstance(arguments[0], Tensor):
                raise Refused(f"it makes a parameter of a {type(arguments[0]).__name__}")
            return arguments[0]
        if function.name == "torch.Size":
            if not isinstance(arguments[0], tuple | list) or len(arguments[0]) > MAX_DIMENSIONS:
                raise Refused(f"it makes a shape of a {type(arguments[0]).__name__}, or of too many dimensions")
            return tuple(arguments[0])
        return {} if function.name in DICTS else Inert()

    def storage(self, identity: Any) -> Stored:
        """The storage of ("storage", class, key, device, number of values[, None])."""
        plain = isinstance(identity, tuple) and 5 <= len(identity) <= 6 and identity[0] == "storage"
        if not plain or any(identity[5:]):
            raise Refused("it refers to something outside that is no storage")
        kind, key, _, count = identity[1:5]
        dtype = STORAGES.get(kind.name) if isinstance(kind, Named) else None
        if dtype is None or not isinstance(key, str) or not _is_count(count):
            raise Refused("it describes a storage with something else than class, name and size")
        return Stored(self.storages(key, count * dtype.itemsize), dtype, count * dtype.itemsize)

    def tensor(self, stored: Any, offset: Any, size: Any, stride: Any, named: Any) -> Tensor:
        """A view of a storage, once it is known to lie in it."""
        if not isinstance(stored, Stored) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise Refused("it makes a tensor of something else than a storage, sizes and strides")
        dtype = stored.dtype if named is None else DTYPES.get(getattr(named, "name", ""))
        if dtype is None:
            raise Refused("it makes a tensor of a type that is unknown")
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
            raise Refused("it makes a tensor with sizes, strides or an offset that are none")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
        if (last + 1) * dtype.itemsize > stored.size or math.prod(n for n in size if n) > MAX_COUNT:
            raise Refused(f"a tensor of the shape {size} reaches beyond its storage of {stored.size:,} bytes")
        self.budget -= count * dtype.itemsize
        if self.budget < 0:
            raise Refused("its tensors show the same few bytes again and again, to more than they could come from")
        if not count:
            return torch.empty(size, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(stored.storage, offset, size, stride)


MAX_COUNT = 1 << 48  # products of it and an element's size stay within 64 bits


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _named(argument: str) -> Named:
    module, _, name = argument.partition(" ")
    # pickle writes Python 2's name of the one module
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in KNOWN:
        return Named(full)
    if full.startswith("torch._utils._rebuild_") or full.endswith("Storage"):
        raise Refused(f"it has tensors that are sparse, quantized or of another kind (`{full[:80]}`); save plain ones")
    raise Refused(f"it asks to run `{full[:80]}`; nothing was executed")


def _extend(container: Any, items: Any) -> list[Any]:
    if isinstance(container, Inert):
        return []
    if not isinstance(container, list) or not isinstance(items, list):
        raise Refused(f"it appends to a {type(container).__name__}")
    container.extend(items)
    return container


def _set(container: Any, items: list[Any]) -> None:
    if isinstance(container, Inert):
        return
    if not isinstance(container, dict) or len(items) % 2:
        raise Refused(f"it sets items of a {type(container).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples in tuples, each twice in the next, have a hash that takes for ever, and numbers may be chosen to have
        # all the same; nobody reads them here.
        if isinstance(key, str | float | None) or (isinstance(key, int) and abs(key) < MAX_COUNT):
            container[key] = value
