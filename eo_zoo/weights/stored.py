"""Safetensors: checked before they are read, and written so that equal input gives equal bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eo_zoo.errors import WeightsError

MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers as well
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, once the file is known to be as long as it promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise WeightsError(f"{path} is not safetensors: its header claims {length} bytes")
        raw = file.read(length)
    if len(raw) < length:
        raise WeightsError(f"{path} ends after {size} bytes, within its header: download it again")
    try:
        header: dict[str, Any] = json.loads(raw, object_pairs_hook=_unique)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        promised = 8 + length + max(ends, default=0)
        truncated = size < promised
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} has a damaged safetensors header ({error}); download it again") from error
    if truncated:
        raise WeightsError(f"{path} ends after {size} bytes, of {promised} promised: download it again")
    return header


def metadata(path: Path) -> dict[str, str]:
    """The free text in a safetensors header; empty for any other file."""
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return {}
    found = _header(path).get("__metadata__")
    return found if isinstance(found, dict) else {}


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
) -> None:
    """Write safetensors and wait until they are on the disk; equal input gives equal bytes.

    With ``values``, which is asked for one tensor at a time, ``tensors`` only tells their types and shapes and may be
    on the meta device.

    Written here because the library's own writer puts several metadata keys in a random order and needs a
    second copy of all tensors in memory.

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
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            # A copy: what is written straight from a mapped file, Linux caches in small pages, and until the file
            # leaves its cache each load takes half as long again.
            tensor = tensors[name] if values is None else values(name)
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())
