"""Files of torch.save: where their pickles and storages lie, in zip archives and in the format before torch 1.6.

Storages are slices of one private mapping of the file, if they lie on multiples of 8 bytes, as today's releases of
torch write them: pages of it until they are written to, and writing never reaches the file. Others are read.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import UntypedStorage

from eo_zoo.errors import WeightsError
from eo_zoo.weights import pickles
from eo_zoo.weights.pickles import BROKEN, Refused

ZIP_MAGIC = b"PK\x03\x04"
# torch.save's magic number, pickled with protocol 2: how every file of the format before torch 1.6 begins.
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
LEGACY_PROTOCOL = 1001
STORED = re.compile(rb"PK\x03\x04.{22}(..)..[^/]{1,200}/data/", re.DOTALL)  # the entry of a storage
MAX_LIST = 8_000_000  # bytes of an archive's list of entries: 100,000 of them
MAX_INDEX = 16_000_000  # bytes of a cut archive that are searched for its list of tensors
MAX_END = 70_000  # bytes behind that list: its records, and a comment
MAX_VERSION = 10  # of the archive's layout, that torch reads; it writes 3


class Unlisted(WeightsError):
    """A zip archive has no list of its entries, which stands at its end."""


def load(path: Path) -> object:
    """All that a file of torch.save holds, with stand-ins for what is not a tensor, a container or a plain value.

    Raises:
        WeightsError: the file is hostile, damaged or of another kind.
        Unlisted: it is an archive without its end.
    """
    with _told(path), _mapped(path) as content:
        if content[:4] == ZIP_MAGIC:
            return _load_archive(path, content)
        return _load_legacy(path, content)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise WeightsError(f"{path} is refused: {_line(error)}") from error
    except WeightsError:
        raise
    except BROKEN as error:
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}: {_line(error)}); download it again"
        ) from error


def _line(error: BaseException) -> str:
    """What an error says, in a line; it may quote the file, which may hold what moves a terminal's cursor."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in first)


class _Slices:
    """Storages of a file by their name."""

    def __init__(self, path: Path, places: dict[str, tuple[int, int]]) -> None:
        self.path, self.places = path, places
        self.whole = UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self.found: dict[str, UntypedStorage] = {}

    def __call__(self, key: str, size: int) -> UntypedStorage:
        if key not in self.places:
            raise Refused(f"it names the storage {key[:80]!r}, which it does not hold")
        start, held = self.places[key]
        if size > held:
            raise Refused(f"its storage {key[:80]} has {held:,} bytes, and is said to have {size:,}")
        if key not in self.found:
            # Values lie on multiples of their size: those that do not are read, the others mapped.
            self.found[key] = self.read(start, held) if start % 8 or not held else self.whole[start : start + held]
        return self.found[key]

    def read(self, start: int, size: int) -> UntypedStorage:
        data = torch.empty(size, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(start)
            file.readinto(data.numpy().data)
        return data.untyped_storage()


# ----------------------------------------------------------------------------------------------- archives


def _load_archive(path: Path, content: mmap.mmap) -> object:
    entries = _entries(path, content)
    root = next(iter(entries)).partition("/")[0]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise WeightsError(f"{path} is a TorchScript program; save its state_dict() with torch.save instead")
    if f"{root}/data.pkl" not in entries:
        raise WeightsError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
    for name in entries:
        parts = name.split("/")
        if parts[0] != root or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name:
            raise Refused(f"its entry {name[:80]!r} is not in the one folder of an archive of torch.save")

    def text(name: str, default: str) -> str:
        start, size = entries.get(f"{root}/{name}", (0, 0))
        return content[start : start + min(size, 80)].decode(errors="replace").strip() if size else default

    if (order := text("byteorder", "little")) != sys.byteorder:
        raise Refused(f"it is of a machine with the byte order {order!r}; expected {sys.byteorder}")
    version = text("version", "3")
    if not re.fullmatch("[0-9]{1,2}", version) or not 1 <= int(version) <= MAX_VERSION:
        raise Refused(f"its format is of version {version!r}; expected 1 to {MAX_VERSION}")
    start, size = entries[f"{root}/data.pkl"]
    data = f"{root}/data/"
    places = {name.removeprefix(data): place for name, place in entries.items() if name.startswith(data)}
    return pickles.load(io.BytesIO(content[start : start + size]), _Slices(path, places), size=len(content))


def _entries(path: Path, content: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where each entry's data lie and how many bytes they are, if torch.save can have written the archive."""
    try:
        # Reading a long list takes minutes: its length is in one of the last records.
        tail = content[-MAX_END:]
        for end in re.finditer(rb"PK(\x05\x06.{8}(.{4})|\x06\x06.{36}(.{8}))", tail, re.DOTALL):
            if int.from_bytes(end[2] or end[3], "little") > MAX_LIST:
                raise Refused("it lists more entries than any checkpoint has")
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except Refused:
        raise
    except (*BROKEN, OSError) as error:
        raise Unlisted(f"{path} is damaged or cut short ({_line(error)}); download it again") from error
    entries: dict[str, tuple[int, int]] = {}
    behind = 0
    for entry in sorted(listed, key=lambda entry: entry.header_offset):
        # torch.save compresses nothing, so compression can only mean another program or a zip bomb.
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise WeightsError(f"{path} has compressed entries, which torch.save does not write; refused")
        if entry.filename in entries:
            raise WeightsError(f"{path} holds two entries of the same name; refused")
        at = entry.header_offset
        if at < behind or content[at : at + 4] != ZIP_MAGIC:
            raise Refused(f"its entry {entry.filename[:80]!r} lies over another one, or nowhere")
        start = data_of(content, at)
        behind = start + entry.file_size
        if behind > len(content):
            raise Refused(f"its entry {entry.filename[:80]!r} reaches beyond the end of the file")
        entries[entry.filename] = start, entry.file_size
    if not entries:
        raise WeightsError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl")
    return entries


def data_of(content: mmap.mmap, position: int) -> int:
    """Where the data of the zip entry at ``position`` begin: behind its name and padding."""
    head = content[position : position + 30].ljust(30, b"\xff")
    return position + 30 + sum(struct.unpack("<HH", head[26:]))


class _Claimed:
    """Storages of the sizes that a pickle states, without values, and their order: no memory is used for them."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.left = limit
        self.found: dict[str, UntypedStorage] = {}

    def __call__(self, key: str, size: int) -> UntypedStorage:
        if key not in self.found:
            self.left -= size
            if self.left < 0:
                raise Refused("its storages are said to be longer than the file")
            self.found[key] = UntypedStorage(size)
        if self.found[key].nbytes() < size:
            raise Refused(f"its storage {key[:80]} is of two sizes")
        return self.found[key]


def load_cut(path: Path) -> tuple[object, set[int]]:
    """What an archive without its end held, and the addresses of those storages of it that are whole.

    torch.save writes data.pkl, the list of tensors, before the tensors themselves. Tensors are told by their storages'
    addresses; they have no values.

    Raises:
        BROKEN: that cannot be told.
    """
    claimed, whole = _Claimed(), set()
    with _mapped(path) as content:
        size = len(content)
        listed = content[data_of(content, 0) : MAX_INDEX]
        loaded = pickles.load(io.BytesIO(listed), claimed, size=1 << 60)
        position = data_of(content, 0) + (first.start() if (first := STORED.search(listed)) else len(listed))
        while entry := STORED.match(content, position):
            name = content[position + 30 : position + 30 + int.from_bytes(entry[1], "little")].decode(errors="replace")
            storage = claimed.found.get(name.rpartition("/")[2])
            end = data_of(content, position) + (storage.nbytes() if storage else size)
            if storage is None or end > size:
                break
            whole.add(storage.data_ptr())
            # Between two entries are the checksum of one and the padding of the other.
            position = end + max(0, content[end : end + 64].find(ZIP_MAGIC))
    return loaded, whole


# ------------------------------------------------------------------------------------- before torch 1.6


def _load_legacy(path: Path, content: mmap.mmap) -> object:
    size = len(content)

    def part(storages: pickles.Storages) -> Any:
        return pickles.load(content, storages, size=size)  # type: ignore[arg-type]  # a mapping reads as a file does

    claimed = _Claimed(limit=size)
    content.seek(len(LEGACY_MAGIC))
    protocol, system = part(claimed), part(claimed)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("protocol_version") != protocol:
        raise Refused("it does not begin as torch.save begins a file")
    if system.get("little_endian") is not (sys.byteorder == "little"):
        raise Refused("it is of a machine with another byte order")
    start = content.tell()
    part(claimed)  # to know the storages, which come after it
    keys = part(claimed)
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(claimed.found):
        raise Refused("it lists other storages than its tensors have")
    places = {}
    position = content.tell()
    for key in keys:
        count, held = int.from_bytes(content[position : position + 8], "little"), claimed.found[key].nbytes()
        if position + 8 <= size and held not in [count * width for width in (1, 2, 4, 8, 16)]:
            raise Refused(f"its storage {key[:80]} has {count:,} values, and is said to have {held:,} bytes")
        places[key] = position + 8, held
        position += 8 + held
    if position > size:
        raise WeightsError(f"{path} ends after {size:,} bytes, of {position:,} promised: download it again")
    content.seek(start)
    return part(_Slices(path, places))
