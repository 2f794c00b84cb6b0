"""Changed weights, made with a fixed seed and read in a process of their own, and known ones with one bit flipped:
``python -m tests.weights.fuzz FOLDER FIRST KIND=COUNT...`` tells in JSON what became of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.weights import stored
from eo_zoo.weights.sound import require_sound
from tests.weights import toys
from tests.weights.hostile import READERS
from tests.weights.mutations import KINDS
from tests.weights.toys import LAYOUT, load, record, toy

SECONDS = 5  # for one file
MEMORY = 1 << 30  # bytes of address space, beyond what the process has before the first file
ROOT = Path(__file__).parents[2]


@dataclass
class Told:
    """What became of some files."""

    files: int = 0
    refused: int = 0
    read: int = 0
    slowest: float = 0.0  # seconds
    peak: float = 0.0  # MB of memory in use beyond those before the first file
    faults: list[str] = field(default_factory=list)  # which file, and what happened

    def __str__(self) -> str:
        return (
            f"{self.files:,} files: {self.refused:,} refused, {self.read:,} read, {len(self.faults)} faults; slowest "
            f"{self.slowest:.2f} s of {SECONDS}, memory +{self.peak:.1f} MB of {MEMORY >> 20}"
        )


class Hang(BaseException):
    """A file took too long."""


def check(tensors: dict[str, Tensor], size: int) -> None:
    """Read all values; raise ValueError unless each tensor lies in its storage, and that in a file of so many bytes."""
    for name, value in tensors.items():
        if not isinstance(name, str) or not name.isprintable() or value.is_meta or value.layout is not torch.strided:
            raise ValueError(f"{name!r} is no plain tensor")
        steps = zip(value.shape, value.stride(), strict=True)
        last = value.storage_offset() + sum((n - 1) * step for n, step in steps) if value.numel() else -1
        held = value.untyped_storage().nbytes()
        if (last + 1) * value.element_size() > held or value.numel() * value.element_size() > held:
            raise ValueError(f"{name!r} of the shape {tuple(value.shape)} is beyond its storage of {held} bytes")
        if held > size:
            raise ValueError(f"{name!r} has {held} bytes, of a file of {size}")
        (value.abs() if value.is_complex() else value.float()).sum().item()


def read_one(kind: str, at: int, folder: Path) -> bool:
    """Make a file and read it: True if it is read, False if it is refused; all else is an error."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    make, reader = KINDS[kind]
    path = make(random.Random(f"{kind} {at}"), made)
    # what is put together from several files, or merged, is in new memory
    size = sum(file.stat().st_size for file in made.iterdir()) * 4
    try:
        tensors = READERS[reader](path)
        check(tensors, size)
        require_sound(tensors, str(path))
    except InputError as error:
        said = str(error)
        if "\n" in said or not said.isprintable() or len(said) > 3000:
            raise ValueError(f"refused with more than a sentence: {said[:200]!r}") from error
        return False
    return True


def main(folder: Path, first: int, counts: Mapping[str, int]) -> Iterator[tuple[str, Told]]:
    """Read so many files of each kind, from the ``first`` on; ``folder``/current names the one that is read."""

    def hang(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    for kind in counts:
        for warm in range(1, 10):  # imports and caches
            _one(kind, -warm, folder)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY, space + MEMORY))
    for kind, count in counts.items():
        told = Told()
        Path("/proc/self/clear_refs").write_text("5")  # the highest use of memory is counted from here
        before = _highest()
        for at in range(first, first + count):
            (folder / "current").write_text(f"{kind} {at}")
            start = time.perf_counter()
            try:
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                read = _one(kind, at, folder)
                signal.setitimer(signal.ITIMER_REAL, 0)
                told.read += read
                told.refused += not read
            except Hang:
                told.faults.append(f"{kind} {at}: not done after {SECONDS} s")
            except Exception as error:  # noqa: BLE001 - any is what is looked for
                signal.setitimer(signal.ITIMER_REAL, 0)
                told.faults.append(f"{kind} {at}: {type(error).__name__}: {error}"[:300])
            told.files += 1
            told.slowest = max(told.slowest, time.perf_counter() - start)
        told.peak = _highest() - before
        yield kind, told


def _one(kind: str, at: int, folder: Path) -> bool:
    place = folder / kind
    place.mkdir(exist_ok=True)
    return flip_one(kind, at, place) if kind in RECORDS else read_one(kind, at, place)


def _highest() -> float:
    """The most memory that was in use, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0


def run(folder: Path, counts: Mapping[str, int], *, first: int) -> dict[str, Told]:
    """The same in a process of its own, whose end, whatever it is, is told too."""
    folder.mkdir()
    listed = [f"{kind}={count}" for kind, count in counts.items()]
    command = [sys.executable, "-m", "tests.weights.fuzz", str(folder), str(first), *listed]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EO_ZOO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300 + sum(counts.values()) / 10
    )
    told = {kind: Told(**facts) for kind, facts in map(json.loads, done.stdout.splitlines())}
    if done.returncode:
        current = folder / "current"
        kind, _, at = (current.read_text() if current.is_file() else f"{next(iter(counts))} 0").partition(" ")
        told[kind] = Told(faults=[f"{kind} {at}: the process ended with {done.returncode}: {done.stderr[-1000:]}"])
    return told


# ------------------------------------------------------------------------------------- files that are known


def _official(folder: Path) -> bytes:
    torch.save(toy(), folder / "official.pth")
    return (folder / "official.pth").read_bytes()


def _ours(folder: Path) -> bytes:
    stored.save(toys.Mapping()(toy()), folder / "ours.safetensors", metadata={"eo_zoo.layout": LAYOUT})
    return (folder / "ours.safetensors").read_bytes()


#: By what is known of a file: how the valid one is made, and what the record says, given its path and its bytes.
RECORDS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path, bytes], Any]]] = {
    "sha256": (_official, lambda path, data: record(source=f"file://{path}", sha256=hashlib.sha256(data).hexdigest())),
    "sha256-ours": (_ours, lambda path, data: record(source=f"file://{path}", sha256=hashlib.sha256(data).hexdigest())),
    "md5": (_official, lambda path, data: record(source=f"file://{path}", md5=hashlib.md5(data).hexdigest())),
    "pin": (_ours, lambda path, data: record(source="hf://owner/name/w")),
}


def flip_one(kind: str, at: int, folder: Path) -> bool:
    """Flip one bit of a file that is known, and load it with an empty cache; see `read_one`."""
    make, of = RECORDS[kind]
    root, mirror = folder / "empty", folder / "mirror"
    path = mirror / "owner/name/w"
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        path.with_name("valid").write_bytes(make(folder))
    data = path.with_name("valid").read_bytes()
    os.environ["EO_ZOO_MIRROR"] = str(mirror)
    known = of(path, data)
    if kind == "pin" and not root.is_dir():
        path.write_bytes(data)
        load(known, cache_dir=root)
        for kept in root.glob("*.safetensors"):
            kept.unlink()
    bit = random.Random(f"{kind} {at}").randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        load(known, cache_dir=root)
    except WeightsError:
        if list(root.glob("*.safetensors")):
            raise ValueError("refused, but kept") from None
        return False
    return True


if __name__ == "__main__":
    logging.disable()
    asked = {one: int(count) for one, _, count in (part.partition("=") for part in sys.argv[3:])}
    for one, facts in main(Path(sys.argv[1]), int(sys.argv[2]), asked):
        print(json.dumps((one, asdict(facts))), flush=True)
