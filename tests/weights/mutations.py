"""Valid weights changed at random, with regard to their format: what `tests.weights.fuzz` reads."""

from __future__ import annotations

import functools
import io
import json
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from eo_zoo.weights.pickles import KNOWN
from tests.weights import zero_files
from tests.weights.hostile import LISTS, REPEATED, TUPLES, legacy, name_of, number, storage, tensor, text
from tests.weights.toys import toy

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 12, 47, 48, 49, 64, 255, 256, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
           1 << 32, (1 << 47) - 1, 1 << 48, 1 << 60, (1 << 63) - 1, -(1 << 31), -(1 << 63))  # fmt: skip
TEXTS = (
    "", "old.weight", "0", "../0", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "x" * 300, "storage", "cpu", "cuda:0",
    "model", "state_dict", "module.", "F32", "BF16", "I64", "F99", "(a+)+$", ".*" * 9, "(a|a)*$", "q", "__metadata__",
    "model.safetensors", "shapes", "NaN", "LORA",
)  # fmt: skip
GLOBALS = (*sorted(KNOWN), "posix.system", "builtins.eval", "torch._utils._rebuild_qtensor", "torch.QInt8Storage")
INSTRUCTIONS = [bytes([ord(one.code)]) for one in pickletools.opcodes if one.arg is None]


# ---------------------------------------------------------------------------------------------- mutations


def mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bits flipped, numbers written over, stretches removed, repeated, inserted, or taken from another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice((1, 2, 4, 8, 30, 200))
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                changed[at:at] = rng.randbytes(length)
            case 5:
                width = rng.choice((1, 2, 4, 8))
                value = rng.choice(NUMBERS) % (1 << 8 * width)
                changed[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 6:
                start = rng.randrange(len(other))
                changed[at:] = other[start:]
    return bytes(changed)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """A few values of a tree replaced, moved, removed, nested or added."""
    root = [json.loads(json.dumps(value))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(root))
        container, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                container[key] = rng.choice(NUMBERS)
            case 1:
                container[key] = rng.choice(TEXTS)
            case 2:
                other, place = rng.choice(places)
                container[key] = json.loads(json.dumps(other[place]))
            case 3:
                container[key] = rng.choice((None, True, False, 0.5, float("nan"), float("inf"), [], {}, [[]] * 9))
            case 4:
                container[key] = rng.choice(([container[key]], {rng.choice(TEXTS): container[key]}))
            case 5 if container is not root:
                del container[key]
            case 6 if isinstance(container, dict):
                container[rng.choice(TEXTS)] = container[key] if rng.random() < 0.5 else container.pop(key)
            case _ if type(container[key]) is int:
                container[key] += rng.choice((-48, -8, -4, -1, 1, 4, 8, 48))
    return root[0]


def _places(container: Any) -> Any:
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


def mutate_pickle(rng: random.Random, program: bytes) -> bytes:
    """Instructions removed, repeated, exchanged, replaced or inserted, and their arguments changed."""
    starts = [at for _, _, at in pickletools.genops(program)]
    parts = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(6):
            case 0 if len(parts) > 1:
                del parts[at]
            case 1:
                parts.insert(at, parts[other])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = _instruction(rng)
            case 4:
                parts.insert(at, _instruction(rng))
            case _:
                parts[at] = _changed(rng, parts[at])
    return b"".join(parts)


def _instruction(rng: random.Random) -> bytes:
    return rng.choice((
        lambda: rng.choice(INSTRUCTIONS), lambda: number(rng.choice(NUMBERS)), lambda: text(rng.choice(TEXTS)),
        lambda: name_of(*rng.choice(GLOBALS).rsplit(".", 1)), lambda: b"h%c" % rng.randrange(30),
        lambda: b"q%c" % rng.randrange(30), lambda: rng.choice((LISTS, TUPLES)), lambda: tensor(),
        lambda: storage(number(rng.choice(NUMBERS))), lambda: b"r" + rng.randbytes(4),
    ))()  # fmt: skip


def _changed(rng: random.Random, part: bytes) -> bytes:
    match part[:1]:
        case b"K" | b"M" | b"J" | b"\x8a":
            return number(rng.choice(NUMBERS))
        case b"X":
            return text(rng.choice(TEXTS))
        case b"c":
            return name_of(*rng.choice(GLOBALS).rsplit(".", 1))
        case b"h" | b"q" | b"j" | b"r":
            return part[:1] + rng.randbytes(len(part) - 1) if rng.random() < 0.3 else part[:1] + bytes(
                [rng.randrange(30), *part[2:]])  # fmt: skip
    return _instruction(rng)


#: Fields of the records of a zip archive, by what a record begins with: where they are, and how wide.
FIELDS = {
    b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)),
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\x06\x06": ((4, 8), (12, 2), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\x06\x07": ((4, 4), (8, 8), (16, 4)),
}


def mutate_fields(rng: random.Random, data: bytes) -> bytes:
    """Fields and names of the records of a zip archive."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        magic = rng.choice([magic for magic in FIELDS if magic in data])
        at = rng.choice([at for at in range(len(data) - 4) if data[at : at + 4] == magic])
        if rng.random() < 0.2 and magic in (b"PK\x01\x02", b"PK\x03\x04"):
            start = at + (46 if magic == b"PK\x01\x02" else 30) + rng.randrange(10)
            changed[start : start + 3] = rng.choice((b"../", b"/..", b"\\..", b"\0\0\0", b"\xff\xfe\xfd", b"w/d"))
            continue
        place, width = rng.choice(FIELDS[magic])
        old = int.from_bytes(changed[at + place : at + place + width], "little")
        value = rng.choice((*NUMBERS, old + 1, old - 1, old + 64, old * 2, old ^ 1 << rng.randrange(8 * width)))
        changed[at + place : at + place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)


# ------------------------------------------------------------------------------------------- whole files


def mutate_safetensors(rng: random.Random, data: bytes, other: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    chance = rng.random()
    if chance < 0.1:  # the values alone
        return data[: 8 + length] + rng.randbytes(len(data) - 8 - length)
    if chance < 0.3:
        return mutate_bytes(rng, data, other)
    if chance < 0.5:
        raw = mutate_bytes(rng, data[8 : 8 + length], other[8:])
    else:
        raw = json.dumps(mutate_json(rng, json.loads(data[8 : 8 + length]))).encode()
    claimed = rng.choice((*NUMBERS, len(raw) + 1, len(raw) - 1)) if rng.random() < 0.1 else len(raw)
    return (claimed % (1 << 64)).to_bytes(8, "little") + raw + data[8 + length :]


def mutate_zip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    chance = rng.random()
    if chance < 0.2:
        return mutate_bytes(rng, data, other)
    if chance < 0.5:
        return mutate_fields(rng, data)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), mutate_pickle(rng, content) if name.endswith("data.pkl") else content)
    return stream.getvalue()


def mutate_legacy(rng: random.Random, data: bytes, other: bytes) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(rng, data, other)
    stream = io.BytesIO(data)
    ends = [0, *([*pickletools.genops(stream)] and stream.tell() for _ in range(5))]
    parts = [data[a:b] for a, b in zip(ends, [*ends[1:], len(data)], strict=True)]  # five pickles, and the storages
    at = rng.choice((2, 3, 3, 3, 4, 5))
    if at < 5:
        parts[at] = mutate_pickle(rng, parts[at])
    else:
        parts[at] = struct.pack("<q", rng.choice(NUMBERS)) + parts[at][8:]
    return b"".join(parts)


@functools.cache
def _zipped(seed: int) -> bytes:
    stream = io.BytesIO()
    saved = {"model": toy(float(seed + 1)), "epoch": 3, "lr": [0.1] * 3, "state": {0: torch.ones(2), "none": None}}
    torch.save(saved if seed else toy(), stream)
    return stream.getvalue()


@functools.cache
def _legacy(seed: int) -> bytes:
    """The same in the older format; torch itself would name the storages by their addresses, which change."""
    with zipfile.ZipFile(io.BytesIO(_zipped(seed))) as zipped, tempfile.TemporaryDirectory() as folder:
        content = {name.partition("/")[2]: zipped.read(name) for name in zipped.namelist()}
        storages = {name.removeprefix("data/"): data for name, data in content.items() if name.startswith("data/")}
        sizes = [tensor.numel() for tensor in toy().values()]
        counts = {str(i): size for i, size in enumerate([*sizes, 2])}
        return legacy(Path(folder) / "w", content["data.pkl"], storages, counts=counts).read_bytes()


@functools.cache
def _safe(seed: int = 0) -> bytes:
    return save(toy(float(seed + 1)), {"note": "x" * 9 * seed})


@functools.cache
def _zero(stage: int) -> dict[str, bytes]:
    tensors = {"a": torch.ones(3, 4), "b": torch.ones(5), "c": torch.ones(2, 2)}
    with tempfile.TemporaryDirectory() as folder:
        zero_files.save(tensors, Path(folder) / "c", world=2, stage=stage, frozen=("c",), shared={"d": "a"})
        return {path.name: path.read_bytes() for path in sorted((Path(folder) / "c/global_step7").iterdir())}


PLACES = {"old.weight": "model-00001-of-00002.safetensors", "old.bias": "model-00002-of-00002.safetensors"}
Q = f"base_model.model.{REPEATED}.lora_{{}}.weight"
ADAPTER = {Q.format("A"): torch.ones(2, 6), Q.format("B"): torch.ones(6, 2)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"^a+": 3}, "rank_pattern": {r"\.k\d+": 4},
          "target_modules": ["q"], "use_rslora": False, "bias": "none", "lora_dropout": 0.1}  # fmt: skip


def _file(mutate: Callable[..., bytes], data: Callable[[int], bytes], rng: random.Random, folder: Path) -> Path:
    seed = rng.randrange(2)
    (folder / "w").write_bytes(mutate(rng, data(seed), data(1 - seed)))
    return folder / "w"


def _index(rng: random.Random, folder: Path) -> Path:
    index: Any = {"metadata": {"total_size": 60}, "weight_map": PLACES}
    files = {file: save({name: toy()[name]}) for name, file in PLACES.items()}
    if rng.random() < 0.3:
        file = rng.choice(sorted(files))
        files[file] = mutate_safetensors(rng, files[file], _safe())
    text = json.dumps(index if rng.random() < 0.3 else mutate_json(rng, index)).encode()
    files["model.safetensors.index.json"] = mutate_bytes(rng, text, _safe()) if rng.random() < 0.2 else text
    return _filled(folder, files)


def _states(rng: random.Random, folder: Path) -> Path:
    files = dict(_zero(rng.choice((2, 3))))
    name = rng.choice(sorted(files))
    files[name] = mutate_zip(rng, files[name], files[rng.choice(sorted(files))])
    return _filled(folder, files)


def _adapter(rng: random.Random, folder: Path) -> Path:
    config: Any = CONFIG if rng.random() < 0.3 else mutate_json(rng, CONFIG)
    text, weights = json.dumps(config).encode(), save(ADAPTER)
    changed = mutate_safetensors(rng, weights, _safe()) if rng.random() < 0.4 else weights
    return _filled(folder, {
        "adapter_config.json": mutate_bytes(rng, text, weights) if rng.random() < 0.2 else text,
        "adapter_model.safetensors": changed,
    })  # fmt: skip


def _filled(folder: Path, files: dict[str, bytes]) -> Path:
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


#: What is made of a source of chance in an empty folder, and who reads it.
KINDS: dict[str, tuple[Callable[[random.Random, Path], Path], str]] = {
    "safetensors": (functools.partial(_file, mutate_safetensors, _safe), "plain"),
    "zip": (functools.partial(_file, mutate_zip, _zipped), "plain"),
    "legacy": (functools.partial(_file, mutate_legacy, _legacy), "plain"),
    "index": (_index, "folder"),
    "zero": (_states, "zero"),
    "lora": (_adapter, "lora"),
}
