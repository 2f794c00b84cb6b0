"""Programs of pickle instructions that a reader of weights must not follow."""

from __future__ import annotations

import struct

from tests.weights.hostile import (
    CANARY_MODULE,
    LISTS,
    TUPLES,
    both,
    checkpoint_of,
    name_of,
    number,
    numbers,
    storage,
    tensor,
    text,
)

NOTHING_RAN = "; nothing was executed"


def _run(module: str, name: str, argument: str):
    """A call of module.name with one text, in which {} stands for the canary."""
    return lambda canary: checkpoint_of(name_of(module, name) + b"(" + text(argument.format(canary)) + b"tR")


PYTHON = "open({!r}, 'w').close()".replace("{!r}", "'{}'")
for module, function, argument in [
    ("posix", "system", "touch {}"),
    ("nt", "system", "touch {}"),
    ("os", "system", "touch {}"),
    ("os", "popen", "touch {}"),
    ("os", "makedirs", "{}"),
    ("subprocess", "Popen", "touch {}"),
    ("subprocess", "check_output", "touch {}"),
    *((builtins, name, PYTHON) for builtins in ("builtins", "__builtin__") for name in ("eval", "exec", "compile")),
    ("__builtin__", "execfile", "{}"),
    ("builtins", "getattr", "{}"),
    ("builtins", "__import__", CANARY_MODULE),
    ("builtins", "open", "{}"),
    ("builtins", "breakpoint", "{}"),
    ("importlib", "import_module", CANARY_MODULE),
    ("runpy", "run_path", "{}"),
    ("runpy", "run_module", CANARY_MODULE),
    ("pickle", "loads", "{}"),
    ("_pickle", "loads", "{}"),
    ("marshal", "loads", "{}"),
    ("operator", "attrgetter", "system"),
    ("functools", "partial", "{}"),
    ("pathlib", "Path.touch", "{}"),
    ("shutil", "rmtree", "{}"),
    ("webbrowser", "open", "file://{}"),
    ("sys", "exit", "{}"),
    ("ctypes", "CDLL", "{}"),
    ("timeit", "timeit", PYTHON),
    ("code", "interact", "{}"),
    ("pty", "spawn", "touch {}"),
    ("numpy", "load", "{}"),
    ("numpy", "fromfile", "{}"),
    ("torch", "load", "{}"),
    ("torch.hub", "load", "{}"),
    ("torch.jit", "load", "{}"),
    ("torch.storage", "_load_from_bytes", "{}"),
    ("torch.serialization", "load", "{}"),
    ("torch.nn.modules.linear", "Linear", "{}"),
    ("torch.nn.modules.container", "Sequential", "{}"),
    ("torch._C", "_jit_compile", "{}"),
    ("torch.utils.cpp_extension", "load_inline", "{}"),
    ("torch._inductor.codecache", "PyCodeCache.load", PYTHON),
    ("transformers.dynamic_module_utils", "get_class_from_dynamic_module", "{}"),
    ("timm.models", "create_model", "{}"),
    ("eo_zoo", "create_model", "{}"),
    (CANARY_MODULE, "anything", "{}"),
    ("argparse", "Namespace.__init__.__globals__", "{}"),
    ("collections", "OrderedDict.fromkeys", "{}"),
    ("torch._utils", "import_module", CANARY_MODULE),
    ("torch", "Tensor.__class__", "{}"),
]:  # fmt: skip
    shown = module.replace("__builtin__", "builtins")
    both(
        f"run-{module}.{function}", rf"asks to run `{shown}.{function}`{NOTHING_RAN}", _run(module, function, argument)
    )

both(
    "run-control",
    r"asks to run `o\\x1b\[2Js\.system`",
    lambda canary: checkpoint_of(name_of("o\x1b[2Js", "system") + b")R"),
)

#: Other ways to say the same, none of which torch.save uses.
for name, instructions in {
    "STACK_GLOBAL": text("os") + text("system") + b"\x93",
    "INST": b"(" + text("touch {}") + b"ios\nsystem\n",
    "OBJ": b"(" + name_of("argparse", "Namespace") + text("touch {}") + b"o",
    "NEWOBJ_EX": name_of("argparse", "Namespace") + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pos.system\n",
    "POP": b"N0N",
    "DUP": b"N2",
    "POP_MARK": b"(1N",
    "DICT": b"(d",
    "LIST": b"(l",
    "PUT": b"Np0\n",
    "GET": b"g0\n",
    "INT": b"I" + b"9" * 4000 + b"\n",
    "LONG": b"L" + b"9" * 4000 + b"L\n",
    "UNICODE": b"Vtext\n",
    "STRING": b"S'text'\n",
    "FLOAT": b"F1.5\n",
    "FRAME": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "EMPTY_SET": b"\x8f",
    "FROZENSET": b"(\x91",
    "NEXT_BUFFER": b"\x97",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"x",
    "SHORT_BINUNICODE": b"\x8c\x01x",
    "LONG4": b"\x8b" + struct.pack("<i", 1) + b"x",
}.items():
    both(f"instruction-{name}", rf"is refused: it has the pickle instruction {name}\b",
         lambda canary, instructions=instructions: checkpoint_of(instructions))  # fmt: skip

#: Lengths that are claimed, and programs without sense or end.
for name, instructions in {
    "text-of-4-GB": b"X\xff\xff\xff\xff",
    "text-of-exabytes": b"\x8d" + struct.pack("<Q", 1 << 60),
    "bytes-of-exabytes": b"\x8e" + struct.pack("<Q", 1 << 62),
    "number-of-2-GB": b"\x8b\xff\xff\xff\x7f",
    "number-of-a-negative-size": b"\x8b\xff\xff\xff\xff",
    "digits": b"I" + b"9" * 5000 + b"\n",
    "no-such-instruction": b"\xff",
    "nothing-to-set": b"s" * 9,
    "nothing-to-append": b"a" * 9,
    "nothing-to-call": b"R" * 9,
    "nothing-to-remember": b"(q\x00",
    "nothing-to-end": b"t" * 9,
    "nothing-to-pair": b"(\x87",
    "not-remembered": b"h\x77",
    "not-remembered-far": b"j\xff\xff\xff\x7f",
    "end-at-once": b"(.",
    "global-without-end": b"cos",
    "utf8": b"X\x02\x00\x00\x00\xff\xfe",
    "ascii": b"c\xff\xff\n\xff\n",
}.items():  # fmt: skip
    both(
        f"nonsense-{name}", "cannot be read|is refused|damaged or cut", lambda canary, i=instructions: checkpoint_of(i)
    )


def _nested(depth: int) -> bytes:
    """_rebuild_from_type_v2(itself, None, (itself, None, (...)))."""
    function = name_of("torch._tensor", "_rebuild_from_type_v2")
    return (function + b"(") + (function + b"N(") * depth + b"N" + b"t" * depth + b"tR"


both("nested-calls", "is refused: it calls|RecursionError", lambda canary: checkpoint_of(_nested(30_000)))

BUILT = name_of("argparse", "Namespace") + b")R"
ORDERED = name_of("collections", "OrderedDict")
for name, (instructions, says) in {
    "build-function": (ORDERED + b"}b", "sets attributes of a Named"),
    "build-list": (b"]}b", "sets attributes of a list"),
    "build-text": (text("x") + b"}b", "sets attributes of a str"),
    "call-tensor": (tensor() + b")R", "calls a Tensor"),
    "call-text": (text("os.system") + b")R", "calls a str"),
    "call-object": (BUILT + b")R", "calls a Inert"),
    "call-without-tuple": (ORDERED + b"]R", "calls a Named"),
    "new-tensor": (tensor() + b")\x81", "calls a Tensor"),
    "indirect": (name_of("torch._tensor", "_rebuild_from_type_v2") + b"(" + name_of("posix", "system") + b"N("
                 + text("touch x") + b"tNtR", "asks to run `posix.system`"),
    "subclass": (name_of("torch._tensor", "_rebuild_from_type_v2") + b"("
                 + name_of("torch._utils", "_rebuild_tensor_v2") + name_of(CANARY_MODULE, "Tensor")
                 + b")}tR", f"asks to run `{CANARY_MODULE}.Tensor`"),
    "parameter-of-text": (name_of("torch._utils", "_rebuild_parameter") + b"(" + text("x") + b"\x89Nt" + b"R",
                          "makes a parameter of a str"),
    "set-item-of-tensor": (tensor() + number(0) + text("x") + b"s", "sets items of a Tensor"),
    "set-items-of-tensor": (tensor() + b"(" + number(0) + number(1) + b"u", "sets items of a Tensor"),
    "set-items-of-list": (b"](" + number(0) + number(1) + b"u", "sets items of a list"),
    "set-odd-items": (b"}(" + number(0) + b"u", "sets items of a dict"),
    "append-to-tensor": (tensor() + b"Na", "appends to a Tensor"),
    "append-to-dict": (b"}(NNe", "appends to a dict"),
    "size-of-text": (name_of("torch", "Size") + b"(" + text("x") + b"tR", "makes a shape of a str"),
    "size-long": (name_of("torch", "Size") + b"(" + numbers(range(65)) + b"tR", "of too many dimensions"),
    "outside-long": (b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu") + number(12)
                     + b"NNtQ", "refers to something outside"),
    "outside-text": (text("../secret") + b"Q", "refers to something outside"),
    "outside-module": (b"(" + text("module") + name_of("argparse", "Namespace") + text("f") + text("s") + b"NtQ",
                       "refers to something outside"),
    "outside-view": (b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu") + number(12)
                     + b"(" + text("v") + number(0) + number(4) + b"ttQ", "refers to something outside"),
    "outside-nested": (b"(" + text("storage") + b"(((ttt" + text("0") + text("cpu") + number(12) + b"tQ",
                       "describes a storage"),
}.items():  # fmt: skip
    both(f"misuse-{name}", says, lambda canary, i=instructions: checkpoint_of(i))

BEYOND = "reaches beyond its storage"
NONE = "sizes, strides or an offset that are none"
for name, (instructions, says) in {
    "offset-negative": (tensor(offset=number(-1)), NONE),
    "offset-huge": (tensor(offset=number(1 << 62)), NONE),
    "offset-beyond": (tensor(offset=number(1)), BEYOND),
    "offset-far-beyond": (tensor(offset=number(1 << 40)), BEYOND),
    "offset-text": (tensor(offset=text("0")), NONE),
    "offset-true": (tensor(offset=b"\x88"), NONE),
    "size-negative": (tensor(size=numbers((-3, 4))), NONE),
    "size-huge": (tensor(size=numbers((1 << 63, 4))), NONE),
    "size-beyond": (tensor(size=numbers((4, 4))), BEYOND),
    "size-overflowing": (tensor(size=numbers((1 << 33, 1 << 33)), stride=numbers((0, 0))), BEYOND),
    "size-overflowing-to-nothing": (tensor(size=numbers((1 << 40, 1 << 40, 0)), stride=numbers((0, 0, 0))), BEYOND),
    "size-of-terabytes": (tensor(size=numbers((1 << 40,)), stride=numbers((0,))), "show the same few bytes"),
    "size-other": (tensor(size=numbers((3,))), NONE),
    "size-list": (tensor(size=b"]"), "something else than a storage, sizes and strides"),
    "size-float": (tensor(size=b"(G" + struct.pack(">d", 3) + number(4) + b"t"), NONE),
    "stride-negative": (tensor(stride=numbers((-4, 1))), NONE),
    "stride-huge": (tensor(stride=numbers((1 << 61, 1))), NONE),
    "stride-beyond": (tensor(stride=numbers((5, 1))), BEYOND),
    "stride-overflowing": (tensor(size=numbers((3, 4)), stride=numbers(((1 << 47), 1 << 47))), BEYOND),
    "dimensions": (tensor(size=numbers([1] * 65), stride=numbers([1] * 65)), NONE),
    "storage-of-text": (tensor(stored=text("0")), "something else than a storage, sizes and strides"),
    "storage-of-tensor": (tensor(stored=tensor()), "something else than a storage, sizes and strides"),
    "storage-negative": (tensor(stored=storage(number(-12))), "describes a storage"),
    "storage-beyond": (tensor(stored=storage(number(13))), "has 48 bytes, and is said to have 52|longer than the file"
                       "|is said to have 52 bytes|is of two sizes"),
    "storage-of-exabytes": (tensor(stored=storage(number(1 << 60))), "describes a storage"),
    "storage-of-terabytes": (tensor(stored=storage(number(1 << 40))), "is said to have|longer than the file|two sizes"),
    "storage-count-of-text": (tensor(stored=storage(text("12"))), "describes a storage"),
    "storage-missing": (tensor(stored=storage(key="7")), "does not hold|other storages|longer than the file"),
    "storage-elsewhere": (tensor(stored=storage(key="../../etc/passwd")), "does not hold|other storages|longer than"),
    "storage-of-the-pickle": (tensor(stored=storage(key="../data.pkl")), "does not hold|other storages|longer than"),
    "storage-of-the-version": (tensor(stored=storage(number(0), key="w/version"), size=numbers((0,)),
                                      stride=numbers((1,))), "does not hold|other storages"),
    "storage-class": (tensor(stored=storage(kind=name_of("torch", "device"))), "describes a storage"),
    "storage-quantized": (tensor(stored=storage(kind=name_of("torch", "QInt8Storage"))), "sparse, quantized"),
    "quantized": (tensor(rebuild="_rebuild_qtensor"), "sparse, quantized"),
    "sparse": (tensor(rebuild="_rebuild_sparse_tensor"), "sparse, quantized"),
    "meta": (tensor(rebuild="_rebuild_meta_tensor_no_storage"), "sparse, quantized"),
    "nested": (tensor(rebuild="_rebuild_nested_tensor"), "sparse, quantized"),
    "wrapper": (tensor(rebuild="_rebuild_wrapper_subclass"), "sparse, quantized"),
    "from-numpy": (tensor(rebuild="_rebuild_device_tensor_from_numpy"), "sparse, quantized"),
    "of-a-type-unknown": (
        name_of("torch._utils", "_rebuild_tensor_v3") + b"(" + storage() + number(0) + numbers((3, 4)) + numbers((4, 1))
        + b"\x89}" + name_of("argparse", "Namespace") + b"tR", "a type that is unknown"),
    "of-a-wider-type": (
        name_of("torch._utils", "_rebuild_tensor_v3") + b"(" + storage() + number(0) + numbers((3, 4)) + numbers((4, 1))
        + b"\x89}" + name_of("torch", "float64") + b"tR", BEYOND),
}.items():  # fmt: skip
    both(f"tensor-{name}", says, lambda canary, i=instructions: checkpoint_of(i))

#: Names that are none, where a model's would be.
for name, key in {
    "number": number(7),
    "control": text("old.\x1b[2J\x07"),
    "lines": text("old.a\nb"),
    "nul": text("old.\0"),
    "surrogate": text("old.\ud800"),
    "right-to-left": text("old.\u202e"),
    "huge": text("old." + "x" * 100_000),
}.items():
    both(f"name-{name}", "names a tensor .*; expected a line of text",
         lambda canary, key=key: b"\x80\x02}(" + text("old.weight") + tensor() + key + tensor() + b"u.")  # fmt: skip
both("name-path", r"unknown tensors: \['\.\./\.\./etc/passwd'\]",
     lambda canary: b"\x80\x02}(" + text("../../etc/passwd") + tensor() + b"u.")  # fmt: skip

#: Values in which the same few bytes are shown again and again.
both("many-views", "show the same few bytes", lambda canary: checkpoint_of(
    b"](" + tensor(size=numbers((1 << 20,)), stride=numbers((0,))) * 3 + b"e"))  # fmt: skip


# ---------------------------------------------------------------------------- harmless, if it is not followed

#: What is beside the tensors here is not looked at; followed, it would take for ever or fill the memory.
BESIDE = {
    "bytearray": name_of("builtins", "bytearray") + b"(" + number(10**12) + b"tR",
    "laughs": LISTS,
    "tuples": TUPLES,
    "tuples-as-key": b"}" + TUPLES + b"Ns",
    "tuples-in-set": name_of("builtins", "set") + b"((" + TUPLES + b"ttR",
    "tuples-as-argument": name_of("argparse", "Namespace") + b"(" + TUPLES + b"tR",
    "tuples-as-state": BUILT + TUPLES + b"b",
    "numbers-of-one-hash": b"}(" + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 30_000)) + b"u",
    "list-in-itself": b"]q\x00h\x00a",
    "dict-in-itself": b"}q\x00" + text("model") + b"h\x00s",
    "idna": name_of("_codecs", "encode") + b"(" + text("\u2fc0" * 100_000) + text("idna") + b"tR",
    "big-tensor": name_of("torch", "Tensor") + b"(" + number(10**11) + b"tR",
    "big-counter": name_of("collections", "Counter") + b"(" + text("x" * 1000) + b"tR",
    "far-memo": b"Nr\xff\xff\xff\xff",
}
