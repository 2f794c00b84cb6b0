"""Safetensors: checked before they are read, and written so that equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eo_zoo.errors import WeightsError

PIECE = 1 << 19  # bytes that are written at a time: they stay in the processor's cache
SYNC = 1 << 26  # bytes that are brought to the disk at a time
MAX_HEADER = 25_000_000  # bytes, of some 150,000 tensors; JSON takes thirty times as much memory
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
#: Bytes of a value, of all types that are read.
SIZES = {name: dtype.itemsize for dtype, name in DTYPES.items()} | {
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, once it is known to describe the file byte by byte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise WeightsError(f"{path} is not safetensors: its header claims {length:,} bytes")
        raw = file.read(length)
    if len(raw) < length:
        raise WeightsError(f"{path} ends after {size} bytes, within its header: download it again")
    try:
        header: dict[str, Any] = json.loads(raw.decode(), object_pairs_hook=_unique)
        end = _end(header)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} has a damaged safetensors header ({error}); download it again") from error
    if size < (promised := 8 + length + end):
        raise WeightsError(f"{path} ends after {size} bytes, of {promised} promised: download it again")
    if size > promised:
        raise WeightsError(f"{path} has {size - promised:,} bytes behind its last tensor: download it again")
    return header


def _end(header: Mapping[str, Any]) -> int:
    """Where the last tensor ends; raises ValueError and others where they do not follow each other byte by byte."""
    text = header.get("__metadata__", {})
    if not isinstance(text, dict) or not all(isinstance(value, str) for value in text.values()):
        raise ValueError("its metadata are something else than texts")
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        (start, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
            raise ValueError(f"{name[:80]!r} has sizes or offsets that are none")
        if dtype not in SIZES:
            raise ValueError(f"{name[:80]!r} is of an unknown type")
        if end - start != math.prod(shape) * SIZES[dtype]:
            raise ValueError(f"{name[:80]!r} has another number of bytes than its shape and type")
        spans.append((start, end))
    behind = 0
    for start, end in sorted(spans):
        if start != behind:
            raise ValueError("its tensors lie over each other, or apart")
        behind = end
    return behind


def metadata(path: Path) -> dict[str, str]:
    """The free text in a safetensors header; empty for any other file."""
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return {}
    found: dict[str, str] = _header(path).get("__metadata__", {})
    return found


def read(path: Path) -> dict[str, Tensor]:
    """All tensors, memory-mapped.

    Raises:
        WeightsError: the file is damaged or cut short.
    """
    _header(path)
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(f"{path} is not valid safetensors ({error}); download it again") from error


def save(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    values: Callable[[str], Tensor] | None = None,
) -> str:
    """Write safetensors and wait until they are on the disk; equal input gives equal bytes.

    With ``values``, which is asked for one tensor at a time, ``tensors`` only tells their types and shapes and may be
    on the meta device.

    Written here because the library's own writer puts several metadata keys in a random order and needs a
    second copy of all tensors in memory.

    Returns:
        The SHA-256 of the file.

    Raises:
        OSError: the disk is full or the place cannot be written.
        WeightsError: a tensor has a type that the format, as we write it, lacks.
    """
    # Widest types first, so that every tensor lies on a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise WeightsError(f"tensor {name} has the type {tensor.dtype}, which cannot be stored")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    sha256 = hashlib.sha256()
    start = len(encoded).to_bytes(8, "little") + encoded
    stretches = (piece for name in names for piece in _pieces(tensors[name] if values is None else values(name)))
    # Both leave the interpreter's lock: hashing a piece while the next one is read and written, and bringing to disk
    # what has been written so far.
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as syncer:
        hashed, synced, waiting = hasher.submit(sha256.update, start), syncer.submit(lambda: None), 0
        file.write(start)
        for piece in stretches:
            file.write(piece)
            hashed.result()
            hashed = hasher.submit(sha256.update, piece)
            waiting += len(piece)
            if waiting >= SYNC and synced.done():
                synced.result()
                synced, waiting = syncer.submit(os.fsync, file.fileno()), 0
        synced.result()
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    """A tensor's bytes, `PIECE` of them at a time.

    They are copies: what is written straight from a mapped file, Linux caches in small pages, and until the file leaves
    its cache each load takes half as long again.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, len(flat), PIECE):
        yield flat[start : start + PIECE].numpy().tobytes()


def compare(path: Path, tensors: Mapping[str, Tensor], values: Callable[[str], Tensor]) -> None:
    """Read a file back that `save` wrote, and compare names, types, shapes and every byte.

    The file is read in pieces, not mapped, so that memory stays at what ``values`` holds.

    Raises:
        WeightsError: something differs.
    """
    found = _header(path)
    start = path.stat().st_size - _end(found)
    entries = {name: entry for name, entry in found.items() if name != "__metadata__"}
    wanted = {name: (DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in tensors.items()}
    if {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()} != wanted:
        raise WeightsError(f"{path}: the names, types or shapes that were read back differ from what was written")
    with path.open("rb") as file:
        for name, entry in entries.items():
            file.seek(start + entry["data_offsets"][0])
            if any(file.read(len(piece)) != piece for piece in _pieces(values(name))):
                raise WeightsError(f"{path}: {name} read back differs from what was written")
