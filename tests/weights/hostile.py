"""Hostile and damaged weights: makers by name, each with the sentence that refuses what it makes.

The files are in hostile_pickles.py, hostile_archives.py, hostile_safetensors.py and hostile_folders.py.
"""

from __future__ import annotations

import functools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eo_zoo.weights import checkpoint, lora, sharded, zero
from eo_zoo.weights.archives import LEGACY_MAGIC
from eo_zoo.weights.sharded import LazyTensors, held
from tests.weights.toys import load

#: A module on the path of the subprocess that reads the whole collection; importing it makes the canary.
CANARY_MODULE = "eo_zoo_canary"


@dataclass(frozen=True)
class Hostile:
    """One file or folder: ``make`` writes it into a new folder and gives its path; payloads would make the canary."""

    make: Callable[[Path, Path], Path]
    says: str  # a pattern of the sentence that refuses it
    kind: str = "file"  # of READERS


COLLECTION: dict[str, Hostile] = {}


def add(name: str, says: str, make: Callable[[Path, Path], Path], kind: str = "file") -> None:
    if name in COLLECTION:
        raise ValueError(f"{name} is there twice")
    COLLECTION[name] = Hostile(make, says, kind)


# ------------------------------------------------------------------------------------------------ readers


def read_all(tensors: LazyTensors) -> dict[str, Tensor]:
    value = tensors.reader()
    return {name: value(name) for name in tensors.shapes}


#: What an adapter is merged into here.
REPEATED = "a" * 40 + "b"  # the name of a module that takes some regular expressions years
BASE = {"q.weight": torch.zeros(6, 6), f"{REPEATED}.weight": torch.zeros(6, 6)}


def read_adapter(folder: Path) -> dict[str, Tensor]:
    return read_all(lora.merged(held(BASE), folder, lambda name: name.removeprefix("base_model.model.")))


def read_zero(folder: Path) -> dict[str, Tensor]:
    found = zero.find_zero(folder)
    return read_all(zero.read_zero(found)) if found else {}


READERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    "file": lambda path: load(path)[0],
    "plain": lambda path: checkpoint.unwrapped(path).tensors,
    "folder": lambda path: read_all(sharded.read_folder(path)),
    "zero": read_zero,
    "lora": read_adapter,
}


# ------------------------------------------------------------------------------------------------ pickles


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: bytes = number(12), key: str = "0", kind: bytes = name_of("torch", "FloatStorage")) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"


def tensor(
    *,
    stored: bytes | None = None,
    offset: bytes = number(0),
    size: bytes = numbers((3, 4)),
    stride: bytes = numbers((4, 1)),
    rebuild: str = "_rebuild_tensor_v2",
) -> bytes:
    """The pickle instructions of one tensor: by default (3, 4) float32, all of the storage "0"."""
    rest = b"\x89" + name_of("collections", "OrderedDict") + b")R"
    return (
        name_of("torch._utils", rebuild) + b"(" + (storage() if stored is None else stored) + offset + size + stride
        + rest + b"tR"
    )  # fmt: skip


def checkpoint_of(evil: bytes, *, good: bytes | None = None) -> bytes:
    """A dict of a good tensor and something else."""
    return b"\x80\x02}(" + text("old.weight") + (tensor() if good is None else good) + text("x") + evil + b"u."


def _doubled(first: bytes, level: Callable[[bytes], bytes]) -> bytes:
    """A tuple of values, each of which holds the one before twice: written out, or hashed, it has 2^90 parts."""
    levels = [level(b"h%c" % i * 2) + b"q%c" % (i + 1) for i in range(1, 90)]
    return b"(" + first + b"q\x01" + b"".join(levels) + b"t"


TUPLES = _doubled(b"N", lambda both: both + b"\x86")
LISTS = b"](" + _doubled(b"](NNe", lambda both: b"](" + both + b"e") + b"e"

VALUES = struct.pack("<12f", *range(1, 13))


def archive(
    path: Path,
    program: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    root: str = "w",
    more: Mapping[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a zip archive as torch.save does."""
    entries = {
        f"{root}/data.pkl": program,
        f"{root}/byteorder": sys.byteorder.encode(),
        **{f"{root}/data/{key}": data for key, data in ({"0": VALUES} if storages is None else storages).items()},
        f"{root}/version": b"3\n",
        **(more or {}),
    }
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return path


SYSTEM = (
    b"\x80\x02}(" + text("protocol_version") + number(1001) + text("little_endian") + b"\x88" + text("type_sizes")
    + b"}u."
)  # fmt: skip


def legacy(
    path: Path,
    program: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    system: bytes = SYSTEM,
    keys: bytes | None = None,
    counts: Mapping[str, int] | None = None,
) -> Path:
    """Write a file as torch.save did before 1.6."""
    storages = {"0": VALUES} if storages is None else storages
    listed = b"\x80\x02](" + b"".join(map(text, storages)) + b"e." if keys is None else keys
    parts = [LEGACY_MAGIC, b"\x80\x02M\xe9\x03.", system, program, listed]
    for key, data in storages.items():
        parts.append(struct.pack("<q", (counts or {}).get(key, len(data) // 4)) + data)
    path.write_bytes(b"".join(parts))
    return path


def both(name: str, says: str, program: Callable[[Path], bytes]) -> None:
    """Add a program in an archive and in the older format; it is given the canary's path."""

    def make(write: Callable[[Path, bytes], Path], folder: Path, canary: Path) -> Path:
        return write(folder / "w.pth", program(canary))

    for kind, write in (("zip", archive), ("legacy", legacy)):
        add(f"{name}-{kind}", says, functools.partial(make, write))
