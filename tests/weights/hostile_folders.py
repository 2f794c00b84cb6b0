"""Folders of shards, of DeepSpeed's ZeRO and of LoRA adapters that lie about what is in them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.weights import zero_files
from tests.weights.hostile import (
    CANARY_MODULE,
    LISTS,
    TUPLES,
    add,
    archive,
    checkpoint_of,
    name_of,
    number,
    numbers,
    tensor,
    text,
)
from tests.weights.toys import toy

NESTED = 100_000
SYSTEM = name_of("posix", "system") + b"(" + text("touch canary") + b"tR"
ASKS = "asks to run `posix.system`"

# ------------------------------------------------------------------------------------------------- shards

PLACES = {
    name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(toy())
}  # fmt: skip


def shards(folder: Path, places: Any = None, *, index: str | bytes | None = None) -> Path:
    """Two shards and their index."""
    folder = folder / "shards"
    folder.mkdir()
    for file in set(PLACES.values()):
        save_file({name: tensor for name, tensor in toy().items() if PLACES[name] == file}, folder / file)
    listed = json.dumps({"metadata": {}, "weight_map": PLACES if places is None else places})
    index = listed if index is None else index
    (folder / "model.safetensors.index.json").write_bytes(index if isinstance(index, bytes) else index.encode())
    return folder


def _moved(name: str) -> dict[str, str]:
    """The index, with one tensor in a file of that name."""
    return {**PLACES, "old.weight": name}


OUTSIDE = "which is no file beside it"
for name, (places, says) in {
    "outside": (_moved("../w.safetensors"), OUTSIDE),
    "far-outside": (_moved("../" * 20 + "etc/passwd"), OUTSIDE),
    "absolute": (_moved("/etc/passwd"), OUTSIDE),
    "deeper": (_moved("a/w.safetensors"), OUTSIDE),
    "folder": (_moved(".."), OUTSIDE),
    "here": (_moved("."), OUTSIDE),
    "nothing": (_moved(""), OUTSIDE),
    "control": (_moved("w\x1b[2J"), OUTSIDE),
    "nul": (_moved("w\0"), OUTSIDE),
    "surrogate": (_moved("w\ud800"), OUTSIDE),
    "long": (_moved("w" * 5000), OUTSIDE),
    "itself": (dict.fromkeys(PLACES, "model.safetensors.index.json"), "not a checkpoint"),
    "itself-too": (_moved("model.safetensors.index.json"), "lacks tensors|holds tensors|not a checkpoint"),
    "missing": (_moved("model-00003-of-00002.safetensors"), "which is not there"),
    "list": (list(PLACES), "no weight_map"),
    "numbers": (dict.fromkeys(PLACES, 1), "no weight_map"),
    "lists": ({key: ["w"] for key in PLACES}, "no weight_map"),
    "empty": ({}, "no weight_map"),
    "more": ({**PLACES, "old.more": "model-00001-of-00002.safetensors"}, "lacks tensors that the index promises"),
    "terminal": ({**PLACES, "old\x1b[2J": "model-00001-of-00002.safetensors"}, r"lacks tensors .*'old\\x1b\[2J'"),
}.items():
    add(f"index-{name}", says, lambda folder, _, places=places: shards(folder, places), "folder")
for name, index in {
    "deep": '{"weight_map":' * NESTED, "deep-list": "[" * NESTED, "not-json": "{", "list": "[]", "null": "null",
    "utf8": b'{"\xff":1}', "utf16": "{}".encode("utf-16"), "digits": '{"weight_map":' + "9" * 5000 + "}", "empty": "",
}.items():  # fmt: skip
    add(f"index-json-{name}", r"cannot be read as JSON|expected an object|no weight_map",
        lambda folder, _, index=index: shards(folder, index=index), "folder")  # fmt: skip


def _large(folder: Path, _: Path) -> Path:
    folder = shards(folder)
    with (folder / "model.safetensors.index.json").open("ab") as file:
        file.truncate(3_000_000_000)  # of holes: no room on the disk
    return folder


add("index-json-large", "which is no list of names and values", _large, "folder")


def _hostile_shard(folder: Path, _: Path) -> Path:
    folder = shards(folder)
    archive(folder / PLACES["old.weight"], checkpoint_of(SYSTEM))
    return folder


add("index-hostile-shard", ASKS, _hostile_shard, "folder")


def _bin(folder: Path, _: Path) -> Path:
    archive(folder / "pytorch_model.bin", checkpoint_of(SYSTEM))
    return folder


add("folder-hostile-bin", ASKS, _bin, "folder")
add("folder-empty", "holds no weights", lambda folder, _: folder, "folder")


def _symlink(folder: Path, _: Path) -> Path:
    (folder / "pytorch_model.bin").symlink_to("pytorch_model.bin")
    return folder


add("folder-link-to-itself", "holds no weights", _symlink, "folder")


def _cut(make: Callable[[Path, Path], Path], file: str, share: int, folder: Path, canary: Path) -> Path:
    """A sound folder, one file of which has lost its end."""
    made = make(folder, canary)
    path = next(made.rglob(file))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * share // 100])
    return made


def cut(kind: str, file: str, make: Callable[[Path, Path], Path]) -> None:
    says = "ends after|not a checkpoint|damaged|cut short|is empty|cannot be read as JSON"
    for share in range(0, 100, 7):
        add(f"{kind}-{file.strip('*')}-cut-at-{share}", says, functools.partial(_cut, make, file, share), kind)


cut("folder", "*.index.json", lambda folder, _: shards(folder))
cut("folder", "*-00002.safetensors", lambda folder, _: shards(folder))

# --------------------------------------------------------------------------------------------------- ZeRO

OPTIM, MODEL = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
WEIGHTS = {"a": torch.ones(3, 4), "b": torch.ones(5)}


def pickled(value: Any) -> bytes:
    """The instructions of plain values; bytes are instructions already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    return number(value)


def states(**changes: Any) -> dict[str, Any]:
    """What the model's file of one process holds."""
    return {
        "module": {}, "buffer_names": [], "param_shapes": [{"a": (3, 4)}], "frozen_param_shapes": {},
        "frozen_param_fragments": {}, "shared_params": {}, **changes,
    }  # fmt: skip


def optimizer(**changes: Any) -> dict[str, Any]:
    flat = tensor(size=numbers([12]), stride=numbers([1]))
    return {"optimizer_state_dict": {"partition_count": 1, "fp32_flat_groups": [flat], **changes}}


def of_zero(name: str, says: str, *, model: Any = None, optim: Any = None) -> None:
    """One process's two files."""

    def make(folder: Path, _: Path) -> Path:
        archive(folder / MODEL, b"\x80\x02" + pickled(states() if model is None else model) + b".")
        archive(folder / OPTIM, b"\x80\x02" + pickled(optimizer() if optim is None else optim) + b".")
        return folder

    add(f"zero-{name}", says, make, "zero")


NO_SHAPE = "with a shape that is none"
cut("zero", "*_0_*model_states.pt", lambda folder, _: zero_files.save(WEIGHTS, folder / "c", world=2))
cut("zero", "*_1_*optim_states.pt", lambda folder, _: zero_files.save(WEIGHTS, folder / "c", world=2))
of_zero("model-hostile", ASKS, model=states(x=SYSTEM))
of_zero("optim-hostile", ASKS, optim=optimizer(x=SYSTEM))
of_zero("module-imported", f"asks to run `{CANARY_MODULE}.X`", optim=optimizer(x=name_of(CANARY_MODULE, "X")))
of_zero("not-a-dict", "expected a dict", model=[1])
for name, count in {
    "zero": 0, "negative": -1, "two": 2, "huge": 1 << 600, "text": "1", "none": [], "nested": [[1]], "others": [2],
    "lists": LISTS, "tuples": TUPLES,
}.items():  # fmt: skip
    of_zero(f"count-{name}", "processes, expected", optim=optimizer(partition_count=count))
for name, shape in {
    "negative": (-3, -4), "zero": (0, 4), "huge": (1 << 40, 1 << 40), "enormous": (1 << 1000,), "text": "34",
    "texts": ("3", "4"), "many": (1,) * 70, "nested": ((3, 4),), "laughs": LISTS, "tuples": TUPLES,
}.items():  # fmt: skip
    of_zero(f"shape-{name}", NO_SHAPE, model=states(param_shapes=[{"a": shape}]))
    of_zero(f"frozen-shape-{name}", NO_SHAPE, model=states(frozen_param_shapes={"a": shape}))
of_zero("shape-larger", "values of the parameters, expected", model=states(param_shapes=[{"a": (1 << 30,)}]))
of_zero("shapes-list", "expected a dict", model=states(param_shapes=[[1]]))
of_zero("shapes-laughs", "expected a dict", model=states(param_shapes=LISTS))
for name, key in {"control": "a\x1b[2J", "huge": "a" * 10_000, "number": 7}.items():
    of_zero(f"name-{name}", "names a tensor", model=states(param_shapes=[{key: (3, 4)}]))
    of_zero(f"name-{name}-shared", "names a tensor", model=states(shared_params={key: "a"}))
of_zero("buffer-text", "is str, expected a tensor", model=states(module={"x": "y"}, buffer_names=["x"]))
of_zero("pieces-none", "holds no parameters", optim=optimizer(fp32_flat_groups=[]))
of_zero("pieces-text", "is str, expected a tensor", optim=optimizer(fp32_flat_groups=["x"]))
of_zero("pieces-laughs", "is tuple, expected a tensor", optim=optimizer(fp32_flat_groups=LISTS))
of_zero("pieces-expanded", "show the same few bytes|stores less", optim=optimizer(
    fp32_flat_groups=[tensor(size=numbers([1 << 40]), stride=numbers([0]))]))  # fmt: skip
of_zero("pieces-twice", "values of the parameters, expected", optim=optimizer(
    fp32_flat_groups=[tensor(size=numbers([12]), stride=numbers([1]))] * 2))  # fmt: skip
of_zero("fragments-none", "is NoneType, expected a tensor", model=states(frozen_param_shapes={"f": (2,)}))


def _latest(tag: bytes, folder: Path, _: Path) -> Path:
    zero_files.save(WEIGHTS, folder / "c", world=1)
    (folder / "c" / "latest").write_bytes(tag)
    return folder / "c"


for name, tag in {
    "outside": b"../c/global_step7", "absolute": b"/tmp", "control": b"a\x1b[2J", "long": b"a" * 900, "nul": b"a\0b",
    "large": b"x" * 1_000_000, "utf8": b"\xff\xfe", "empty": b"",
}.items():  # fmt: skip
    add(f"zero-latest-{name}", "no folder beside it", functools.partial(_latest, tag), "zero")


def _ranks(names: tuple[str, ...], folder: Path, _: Path) -> Path:
    for name in names:
        archive(folder / name, b"\x80\x02}.")
    return folder


for name, (file, says) in {
    "rank-far": ("zero_pp_rank_999999_mp_rank_00_optim_states.pt", "lacks the"),
    "rank-enormous": ("zero_pp_rank_99999999999_mp_rank_00_optim_states.pt", "cut by layers"),
    "rank-of-tensors": ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "cut by layers"),
    "model-missing": (OPTIM, "lacks the|is not of DeepSpeed"),
}.items():
    add(f"zero-{name}", says, functools.partial(_ranks, (file,)), "zero")

# --------------------------------------------------------------------------------------------------- LoRA

Q = "base_model.model.q.lora_{}.weight"
ADAPTER = {Q.format("A"): torch.ones(2, 6), Q.format("B"): torch.ones(6, 2)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def adapter(
    name: str,
    says: str,
    *,
    tensors: Callable[[dict[str, torch.Tensor]], object] = bool,
    config: str | bytes | None = None,
    **changes: Any,
) -> None:
    def make(folder: Path, _: Path) -> Path:
        listed = json.dumps({**CONFIG, **changes}) if config is None else config
        return adapted(folder, listed if isinstance(listed, bytes) else listed.encode(), tensors)

    add(f"lora-{name}", says, make, "lora")


def adapted(folder: Path, config: bytes, tensors: Callable[[dict[str, torch.Tensor]], object] = bool) -> Path:
    found = {name: tensor.clone() for name, tensor in ADAPTER.items()}
    tensors(found)
    save_file(found, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes(config)
    return folder


for file in ("adapter_config.json", "adapter_model.safetensors"):
    cut("lora", file, lambda folder, _: adapted(folder, json.dumps(CONFIG).encode()))


FOREVER = "which may take for ever to match"
for name, pattern in {
    "nested": "(a+)+$", "nested-star": "(.*)*x", "nested-optional": "(a?)*b", "choice": "(a|a)*$", "ahead": "(?=a+)+",
    "count": "a{1,99999}{1,99999}", "count-huge": "(a{2000}){2000}", "reference": r"(a*)\1", "named": "(?P<a>x)",
    "flags": "(?i)x", "many-stars": ".*" * 20 + "x", "many-optional": "a?" * 30 + "a" * 30, "three": ".*.*.*x",
    "choices": "(a|a)" * 30, "long": "a" * 100_000, "brackets": "(" * 3000 + "q" + ")" * 3000, "any": r"(\w+\s?)+$",
}.items():  # fmt: skip
    for key in ("alpha_pattern", "rank_pattern"):
        adapter(f"{key}-{name}", FOREVER, **{key: {pattern: 2}})
adapter("pattern-none", "is no regular expression", alpha_pattern={"(": 1})
adapter("pattern-deep", "is no regular expression|which may take", alpha_pattern={"(" * 450: 1})
adapter("pattern-many", "expected an object of at most", rank_pattern={f"m{i}": 2 for i in range(2000)})
adapter("pattern-list", "expected an object of at most", rank_pattern=[1])
for name, value in {
    "digits": 10**400, "nan": float("nan"), "infinite": float("inf"), "text": "4", "list": [4], "true": True,
    "float-huge": 1e300, "null": None, "nested": {"a": [{}] * 1000},
}.items():  # fmt: skip
    adapter(f"alpha-{name}", "alpha of q is .* expected numbers", lora_alpha=value)
    adapter(f"alpha-pattern-{name}", "alpha of q is .* expected numbers", alpha_pattern={"q": value})
for value in (10**400, -2, "2", [2] * 10_000, None, 1e300, {"a": 1}):
    adapter(f"rank-{value!r:.20}", "is of rank 2, expected", r=value)
for name, text_ in {
    "deep": '{"a":' * NESTED, "deep-list": "[" * NESTED, "list": "[]", "utf8": b'{"\xff":1}', "empty": "",
    "digits": '{"r":' + "9" * 5000 + "}",
}.items():  # fmt: skip
    adapter(f"json-{name}", r"cannot be read as JSON|expected an object", config=text_)
adapter("type", "is of 'LOHA'", peft_type="LOHA")
adapter("type-long", "is of .{,200}only LoRA", peft_type=["x" * 100_000])
adapter("more", "asks for .{,3000}merge it with peft", **{f"key{i}\x1b": 1 for i in range(1000)})
adapter("beginning", "init_lora_weights=.{,300}merge it with peft", init_lora_weights="x" * 100_000)
adapter("scalar", "is of rank 0, expected 2|does not fit", tensors=lambda t: t.update({Q.format("A"): torch.ones(())}))
adapter(
    "scalar-rank-0", "expected numbers|does not fit", tensors=lambda t: t.update({Q.format("A"): torch.ones(())}), r=0
)
adapter("empty", "expected numbers|does not fit", tensors=lambda t: t.update({Q.format("A"): torch.ones(0, 6)}), r=0)
adapter("twice", "changes q.weight twice", tensors=lambda t: t.update({
    Q.format("embedding_A").removesuffix(".weight"): torch.ones(2, 6),
    Q.format("embedding_B").removesuffix(".weight"): torch.ones(6, 2)}))  # fmt: skip
adapter("name-control", "expected a line of text", tensors=lambda t: t.update({"q\x1b[2J": torch.ones(1)}))
adapter("others", "the base has no", tensors=lambda t: t.update({"../../x.weight": torch.ones(1)}))


def _pickled_adapter(folder: Path, _: Path) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    archive(folder / "adapter_model.bin", checkpoint_of(SYSTEM))
    return folder


add("lora-hostile-bin", ASKS, _pickled_adapter, "lora")
