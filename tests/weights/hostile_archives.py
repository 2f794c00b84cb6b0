"""Zip archives and files of the format before torch 1.6 that torch.save cannot have written."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.weights.hostile import (
    SYSTEM,
    TUPLES,
    VALUES,
    add,
    archive,
    checkpoint_of,
    legacy,
    number,
    storage,
    tensor,
    text,
)
from tests.weights.toys import toy

GOOD = checkpoint_of(b"N")
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def zipped(name: str, says: str, **kwargs) -> None:
    program = kwargs.pop("program", GOOD)
    add(f"zip-{name}", says, lambda folder, _: archive(folder / "w.pth", program, **kwargs))


def poked(name: str, says: str, change: Callable[[bytearray], object]) -> None:
    """A good archive with some bytes changed."""

    def make(folder: Path, _: Path) -> Path:
        data = bytearray(archive(folder / "w.pth", GOOD).read_bytes())
        changed = change(data)
        (folder / "w.pth").write_bytes(changed if isinstance(changed, bytes) else data)
        return folder / "w.pth"

    add(f"zip-{name}", says, make)


def poke(data: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into("<" + form, data, at, value)


def entry(data: bytearray, number: int) -> int:
    """Where the record of an entry in the central directory is: 0 the pickle, 1 the byte order, 2 a storage."""
    at = -1
    for _ in range(number + 1):
        at = data.index(CENTRAL, at + 1)
    return at


zipped("compressed", "compressed entries", method=zipfile.ZIP_DEFLATED)
zipped("bomb", "compressed entries", storages={"0": bytes(5_000_000)}, method=zipfile.ZIP_DEFLATED)
zipped("bomb-bz2", "compressed entries", storages={"0": bytes(1_000_000)}, method=zipfile.ZIP_BZIP2)
zipped("bomb-lzma", "compressed entries", storages={"0": bytes(1_000_000)}, method=zipfile.ZIP_LZMA)
zipped("script", "is a TorchScript program", more={"w/constants.pkl": b"x", "w/code/__torch__.py": b"import os"})
for name, path in {
    "parent": "../evil", "deep-parent": "w/../../evil", "absolute": "/etc/cron.d/evil", "backslash": "w\\..\\evil",
    "drive": "C:/evil", "other": "v/evil", "folder": "w/", "top": "evil", "dot": "w/./evil", "double": "w//evil",
}.items():  # fmt: skip
    zipped(f"path-{name}", "is not in the one folder", more={path: b"evil"})
for root in ("..", ".", "", "w\\..", "/"):
    zipped(f"root-{root!r}", "is not in the one folder|no data.pkl", root=root)
zipped("two-pickles", "is not in the one folder", more={"v/data.pkl": GOOD})
zipped("pickle-deeper", "no data.pkl", root="w/deeper")
for order in ("big", "middle", "little\nbig", "\xff"):
    zipped(f"order-{order!r}", "byte order", more={"w/byteorder": order.encode("latin-1")})
for version in ("0", "11", "99999999999999999999", "-1", "x", "3.0", "\u0663"):
    zipped(f"version-{version!r}", "version", more={"w/version": version.encode()})
zipped("storage-short", "has 40 bytes, and is said to have 48", storages={"0": VALUES[:40]})
zipped("storage-empty", "has 0 bytes, and is said to have 48", storages={"0": b""})
zipped("storages-none", "the storage '0', which it does not hold", storages={})


def _twice(folder: Path, _: Path) -> Path:
    """Two entries of one name: readers could take one or the other."""
    path = archive(folder / "w.pth", GOOD, more={"w/data.pkL": checkpoint_of(b"cos\nsystem\n")})
    path.write_bytes(path.read_bytes().replace(b"w/data.pkL", b"w/data.pkl"))
    return path


add("zip-two-of-a-name", "two entries of the same name", _twice)


def _overlapping(folder: Path, _: Path) -> Path:
    """Storages that are all the same bytes, as in the zip bombs that need no compression."""
    keys = [str(i) for i in range(50)]
    program = b"\x80\x02}(" + b"".join(
        text(f"old.{key}") + tensor(stored=storage(key=key)) for key in keys
    ) + b"u."  # fmt: skip
    path = archive(folder / "w.pth", program, dict.fromkeys(keys, VALUES))
    data = bytearray(path.read_bytes())
    first = data.index(b"w/data/0") - 30
    at = data.index(CENTRAL)
    while at >= 0:
        if data[at + 46 :].startswith(b"w/data/"):
            poke(data, at + 42, "I", first)
        at = data.find(CENTRAL, at + 1)
    path.write_bytes(data)
    return path


add("zip-overlapping", "lies over another one", _overlapping)
poked("claims-gigabytes", "reaches beyond the end|lies over", lambda d: [
    poke(d, entry(d, 2) + at, "I", 0xFFFFFFF0) for at in (20, 24)])  # fmt: skip
poked("claims-more", "compressed entries", lambda d: poke(d, entry(d, 2) + 24, "I", 0xFFFFFFF0))
poked("claims-less-of-the-pickle", "cannot be read", lambda d: [poke(d, entry(d, 0) + at, "I", 20) for at in (20, 24)])
poked("claims-zip64-without-it", "damaged|reaches beyond|lies over", lambda d: [
    poke(d, entry(d, 2) + at, "I", 0xFFFFFFFF) for at in (20, 24)])  # fmt: skip
poked("encrypted", "compressed entries", lambda d: poke(d, entry(d, 2) + 8, "H", 1))
poked("method", "compressed entries", lambda d: poke(d, entry(d, 2) + 10, "H", 99))
poked("offset-beyond", "lies over another one, or nowhere", lambda d: poke(d, entry(d, 3) + 42, "I", 0xFFFFFF00))
poked("offset-into-data", "lies over another one, or nowhere|two entries", lambda d: poke(d, entry(d, 2) + 42, "I", 77))
poked("offset-of-another", "lies over another one", lambda d: poke(d, entry(d, 2) + 42, "I", 0))
poked("local-name-long", "lies over|reaches beyond", lambda d: poke(d, d.index(b"w/data/0") - 4, "H", 0xFFFF))
poked("local-magic", "lies over another one, or nowhere", lambda d: poke(d, d.index(b"w/data/0") - 30, "I", 0))
poked("version-needed", "damaged or cut", lambda d: poke(d, entry(d, 2) + 6, "H", 999))
poked("many-entries", "more entries than", lambda d: poke(d, d.rindex(END) + 12, "I", 0x7FFFFFFF))
poked(
    "list-before-the-file", "damaged|no data.pkl|lies over|cut", lambda d: poke(d, d.rindex(END) + 16, "I", 0xFFFFFFF0)
)
poked("list-of-nothing", "no data.pkl", lambda d: [poke(d, d.rindex(END) + at, "I", 0) for at in (8, 12)])
poked("end-of-nothing", "no data.pkl", lambda d: bytes(d[:-22]) + END + bytes(18))


def _zip64(size: int) -> Callable[[bytearray], bytes]:
    """A second, 64-bit record of the end, which takes precedence."""

    def change(data: bytearray) -> bytes:
        end = data.rindex(END)
        count, listed, at = struct.unpack("<HII", data[end + 10 : end + 20])
        record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size or listed, at)
        return bytes(data[:end]) + record + b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1) + bytes(data[end:])

    return change


poked("zip64-many-entries", "more entries than", _zip64(1 << 40))
poked("zip64-list-beyond", "damaged or cut|lies over", _zip64(1 << 20))


def _cut(data: bytes, share: float, folder: Path, _: Path) -> Path:
    (folder / "cut").write_bytes(data[: int(len(data) * share)])
    return folder / "cut"


def _saved(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": toy()}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


for kind in ("zip", "legacy"):
    data = _saved(kind == "zip")
    for share in range(0, 100, 2):
        says = "cut short|damaged|not a checkpoint|cannot be read|ends after|refused|plain pickle"
        add(f"{kind}-cut-at-{share}", says, functools.partial(_cut, data, share / 100))

# ------------------------------------------------------------------------------------------------- legacy


def old(name: str, says: str, **kwargs) -> None:
    add(f"legacy-{name}", says, lambda folder, _: legacy(folder / "w.pth", GOOD, **kwargs))


old("protocol", "does not begin as torch.save begins", system=SYSTEM.replace(number(1001), number(1002)))
old("system", "does not begin as torch.save begins", system=b"\x80\x02N.")
old("order", "another byte order", system=SYSTEM.replace(b"\x88", b"\x89"))
old("order-of-text", "another byte order", system=SYSTEM.replace(b"\x88", text("little")))
old("keys-text", "lists other storages", keys=b"\x80\x02" + text("0") + b".")
old("keys-none", "lists other storages", keys=b"\x80\x02].")
old("keys-twice", "lists other storages", keys=b"\x80\x02](" + text("0") * 2 + b"e.")
old("keys-others", "lists other storages", keys=b"\x80\x02](" + text("7") + b"e.")
old("keys-tuples", "lists other storages", keys=b"\x80\x02](" + TUPLES + b"e.")
old("keys-hostile", "asks to run `os.system`", keys=b"\x80\x02cos\nsystem\n(" + text("touch x") + b"tR.")
old("system-hostile", "asks to run `os.system`", system=b"\x80\x02cos\nsystem\n(" + text("touch x") + b"tR.")
old("count-other", "has 11 values, and is said to have 48 bytes", counts={"0": 11})
old("count-negative", "is said to have 48 bytes", counts={"0": -1})
old("count-huge", "is said to have 48 bytes", counts={"0": 1 << 62})
old("storage-short", "ends after .* promised", storages={"0": VALUES[:40]}, counts={"0": 12})


def _plain(data: bytes, folder: Path, _: Path) -> Path:
    (folder / "w.pth").write_bytes(data)
    return folder / "w.pth"


for name, (data, says) in {
    "pickle": (b"\x80\x02cposix\nsystem\n(X\x01\x00\x00\x00xtR.", "plain pickle.*refused"),
    "pickle-4": (b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.", "plain pickle"),
    "pickle-0": (b"cposix\nsystem\n(S'x'\ntR.", "not a checkpoint"),
    "empty": (b"", "the file is empty"),
    "page": (b"<!DOCTYPE html><html>log in</html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "tar": (b"storages" + bytes(504), "not a checkpoint"),
    "noise": (b"noise" * 9, "not a checkpoint"),
    "empty-zip": (END + bytes(18), "not a checkpoint"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "not a checkpoint"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "not a checkpoint"),
    "elf": (b"\x7fELF" + bytes(99), "not a checkpoint"),
}.items():
    add(f"other-{name}", says, functools.partial(_plain, data))

# ------------------------------------------------------------------------------------------------- values


def _valued(change: Callable[[dict[str, torch.Tensor]], object], write: Callable, folder: Path, _: Path) -> Path:
    tensors = toy()
    change(tensors)
    write(tensors, folder / "w")
    return folder / "w"


def _legacy(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


for kind, write in (("zip", torch.save), ("legacy", _legacy), ("safetensors", _safetensors)):
    for name, (change, says) in {
        "nan": (lambda t: [x.fill_(torch.nan) for x in t.values() if x.is_floating_point()],
                "not finite .* in new.weight, new.bias, new.half|not finite .* in new.*new.*new"),
        "one-nan": (lambda t: t["old.weight"].view(-1)[7:8].fill_(torch.nan), "not finite .* in new.weight:"),
        "inf": (lambda t: t["old.half"][:1].fill_(-torch.inf), "not finite .* in new.half:"),
        "zeros": (lambda t: [x.zero_() for x in t.values()], "nothing but zeros"),
    }.items():  # fmt: skip
        add(f"values-{name}-{kind}", says, functools.partial(_valued, change, write))
