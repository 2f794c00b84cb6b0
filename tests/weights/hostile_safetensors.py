"""Safetensors whose header does not describe their bytes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tests.weights.hostile import VALUES, add

DAMAGED = "damaged safetensors header"


def of(header: Any, data: bytes = VALUES, *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(start: Any = 0, end: Any = 48, shape: Any = (3, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _write(data: bytes, folder: Path, _: Path) -> Path:
    (folder / "w.safetensors").write_bytes(data)
    return folder / "w.safetensors"


def file(name: str, says: str, data: bytes) -> None:
    add(f"safetensors-{name}", says, functools.partial(_write, data))


A = "old.a"
GOOD = {A: entry()}
HALVES = (0, 24, (2, 3)), (24, 48, (2, 3))
ONE = json.dumps(entry()).encode()

for name, header in {
    "overlapping": {A: entry(0, 32, (8,)), "old.b": entry(16, 48, (8,))},
    "same-bytes": {A: entry(), "old.b": entry()},
    "hole": {A: entry(0, 16, (4,)), "old.b": entry(32, 48, (4,))},
    "hole-first": {A: entry(16, 48, (8,))},
    "reversed": {A: entry(48, 0)},
    "reversed-negative": {A: entry(0, -48)},
    "negative": {A: entry(-48, 0)},
    "float-offset": {A: entry(0.0, 48.0)},
    "text-offset": {A: entry("0", "48")},
    "true-offset": {A: entry(False, 48)},
    "three-offsets": {A: {**entry(), "data_offsets": [0, 24, 48]}},
    "no-offsets": {A: {"dtype": "F32", "shape": [3, 4]}},
    "no-shape": {A: {"dtype": "F32", "data_offsets": [0, 48]}},
    "no-dtype": {A: {"shape": [3, 4], "data_offsets": [0, 48]}},
    "shape-larger": {A: entry(shape=(3, 5))},
    "shape-smaller": {A: entry(shape=(3, 3))},
    "shape-negative": {A: entry(shape=(-3, -4))},
    "shape-huge": {A: entry(shape=(1 << 62, 1 << 62))},
    "shape-overflowing": {A: entry(0, 0, (1 << 32, 1 << 32)), "old.b": entry()},
    "shape-float": {A: entry(shape=(3.0, 4.0))},
    "shape-text": {A: entry(shape="12")},
    "shape-nested": {A: entry(shape=([3], [4]))},
    "shape-true": {A: entry(0, 4, (True,))},
    "dtype-other": {A: entry(dtype="F64")},
    "dtype-unknown": {A: entry(dtype="F99")},
    "dtype-lower": {A: entry(dtype="f32")},
    "dtype-of-four-bits": {A: entry(dtype="F4", shape=(96,))},
    "dtype-list": {A: entry(dtype=["F32"])},
    "dtype-null": {A: entry(dtype=None)},
    "entry-list": {A: [1]},
    "entry-null": {A: None},
    "entry-empty": {A: {}},
    "metadata-list": {"__metadata__": [], **GOOD},
    "metadata-number": {"__metadata__": {"a": 1}, **GOOD},
    "metadata-nested": {"__metadata__": {"a": {"b": "c"}}, **GOOD},
    "metadata-text": {"__metadata__": "x", **GOOD},
    "metadata-null": {"__metadata__": None, **GOOD},
}.items():
    file(name, DAMAGED, of(header))
file("twice", f"{DAMAGED} .a name appears twice", of(b'{"old.a":' + ONE + b',"old.a":' + ONE + b"}"))
file("field-twice", f"{DAMAGED} .a name appears twice",
     of(b'{"old.a":{"dtype":"F32","shape":[3,4],"shape":[12],"data_offsets":[0,48]}}'))  # fmt: skip
file("metadata-twice", f"{DAMAGED} .a name appears twice",
     of(b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"},"old.a":' + ONE + b"}"))  # fmt: skip
file("deep", DAMAGED, of(b'{"a":' * 100_000))
file("deep-list", DAMAGED, of(b'{"a":' + b"[" * 100_000))
file("deep-closed", DAMAGED, of(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"))
file("not-json", DAMAGED, of(b"{x"))
file("text-after", DAMAGED, of(json.dumps(GOOD).encode() + b"{}"))
file("nan", DAMAGED, of(b'{"old.a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,48]}}'))
file("infinite", DAMAGED, of(b'{"old.a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,48]}}'))
file("digits", DAMAGED, of(b'{"old.a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,48]}}'))
file("utf8", DAMAGED, of(b'{"\xff\xfe":' + ONE + b"}"))
file("utf16", "not a checkpoint|damaged", of(json.dumps(GOOD).encode("utf-16-le")))
file("mark", "not a checkpoint", of(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()))
file("length-enormous", "header claims", of(GOOD, length=(1 << 64) - 1))
file("length-negative", "header claims", of(GOOD, length=1 << 63))
file("length-of-gigabytes", "header claims", of(GOOD, length=1 << 32))
file("length-beyond", "within its header", of(GOOD, length=20_000_000))
file("length-zero", DAMAGED, of(GOOD, length=0))
file("length-short", DAMAGED, of(GOOD, length=20))
file("length-long", DAMAGED, of(GOOD, length=len(json.dumps(GOOD)) + 4))
file("bytes-missing", "ends after .* promised", of(GOOD, VALUES[:-1]))
file("bytes-behind", "bytes behind its last tensor", of(GOOD, VALUES + b"x"))
file("bytes-far", "ends after .* promised", of({A: entry(0, 1 << 60, (1 << 58,))}))
file("nothing", "holds no tensors", of({}, b""))
file("metadata-alone", "holds no tensors", of({"__metadata__": {"a": "b"}}, b""))
file("dimensions", "too many dimensions|not valid", of({A: entry(0, 4, [1] * 1000), "old.b": entry(4, 48, (11,))}))
for name, key in {
    "control": "old.\x1b[2J\x07", "lines": "old.a\nb", "nul": "old.\0", "huge": "old." + "x" * 100_000,
    "right-to-left": "old.\u202e",
}.items():  # fmt: skip
    file(f"name-{name}", "names a tensor .*; expected a line of text", of({key: entry()}))
file("name-surrogate", "not valid safetensors|names a tensor", of({"old.\ud800": entry()}))
for name, key in {"path": "../../etc/passwd", "absolute": "/etc/passwd", "empty": "", "prefix": "__import__"}.items():
    file(f"name-{name}", "unknown tensors", of({key: entry()}))

WHOLE = of({"__metadata__": {"a": "b"}, A: entry(*HALVES[0]), "old.b": entry(*HALVES[1])})
for share in range(0, 100, 2):
    says = "ends after|not a checkpoint|damaged|is empty"
    file(f"cut-at-{share}", says, WHOLE[: len(WHOLE) * share // 100])
