"""Whatever checkpoint a user has, to a verified folder that timm, transformers and eo_zoo read, and back.

What a file is, is found from its tensors, never from its name. A manifest, conversion.json, says what became of each.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from eo_zoo import publish, registry, weights
from eo_zoo.errors import InputError, WeightsError, nearest
from eo_zoo.files import making, replacing, require_new
from eo_zoo.models._build import StrictLoading
from eo_zoo.terrasense import MODEL_TYPES
from eo_zoo.version import __version__
from eo_zoo.weights import cache, lora, sharded, stored, zero
from eo_zoo.weights.checkpoint import check_fit, some, unwrapped
from eo_zoo.weights.plan import Layout, Move, Plan
from eo_zoo.weights.sharded import MANIFEST
from eo_zoo.weights.sound import require_sound
from eo_zoo.weights.wrappings import plain_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OWN = "eo_zoo"  # the layout of our names
TERRASENSE = "terrasense"
SIZES = ("embed_dim", "depth", "depths", "num_heads", "patch_size")  # what tells the sizes of a family apart


# ------------------------------------------------------------------------------------------------ sources


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was found."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]  # without what training scripts put around them and before their names
    wrappings: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()  # what else it holds
    config: Mapping[str, Any] = field(default_factory=dict)  # of a folder of ours
    manifest: Mapping[str, Any] = field(default_factory=dict)  # of a folder that `convert` wrote

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in self.files)


def open_source(path: str | Path, *, ema: bool = False) -> Source:
    """A checkpoint: a file, an index of shards, or a folder as transformers writes it.

    Args:
        path: of it.
        ema: take the moving average of the weights, where the file has one beside them.

    Raises:
        InputError: there is no such file, or no weights.
        WeightsError: it is hostile or damaged, or holds no moving average.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} is not there: give a checkpoint, a file or a folder")
    files = sharded.files_of(path)
    wrappings: list[str] = []
    if list(files.values()) == [None]:
        opened = unwrapped(next(iter(files)), ema=ema)
        tensors, beside = opened.tensors, opened.beside
        wrappings += [*(f"under '{key}'" for key in opened.path), *(["moving average"] * opened.average)]
    elif ema:
        raise WeightsError(f"{path} is in shards and holds no moving average of a model's tensors beside them")
    else:
        lazy = sharded.read_files(files)
        read = lazy.reader()
        tensors, beside = {name: read(name) for name in lazy.shapes}, ()
        wrappings.append(f"{len(files)} shards")
    names = plain_names(tensors)
    first, plain = next(((name, plain) for name, plain in names.items() if name != plain), ("", ""))
    if first:
        wrappings.append(f"prefix '{first.removesuffix(plain)}'" if first.endswith(plain) else "wrapped modules")
    config, manifest = (_json(path / name) if path.is_dir() else {} for name in ("config.json", MANIFEST))
    if config.get("architecture") not in registry.list_models():
        config = {}
    named = {plain: tensors[name] for name, plain in names.items()}
    return Source(path, tuple(files), named, tuple(wrappings), beside, config, manifest)


def _json(path: Path) -> dict[str, Any]:
    return sharded.read_json(path) if path.is_file() else {}


def _object(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object in a file that anybody may have written; empty if it is not there."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f"config.json has {found!r:.80} as {key}, expected an object of names and values")
    return dict(found)


# ------------------------------------------------------------------------------------------- what it is


@dataclass(frozen=True)
class Found:
    """Which model a checkpoint is of, and what becomes of its tensors."""

    architecture: str
    model: StrictLoading  # on the meta device
    part: str
    plan: Plan
    tensors: Mapping[str, Tensor]  # all of the model's
    moves: Mapping[str, Move]  # by its names; none for what was added
    left_out: Mapping[str, str]  # official name: why
    added: Mapping[str, str]  # name of ours: why


def identify(
    source: Source,
    *,
    family: str | None = None,
    records: Sequence[weights.Record] = (),
    part: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Found:
    """Which model a checkpoint is of, by its tensors.

    Args:
        source: of `open_source`.
        family: mars, smarties, anysat or multimae, that it has to be of.
        records: weight sets, one of which it has to be of.
        part: which model of several in one file: student, teacher, encoder_rgb or encoder_sar.
        arguments: of the model, where tensors do not tell: ``num_heads`` of a size of your own, ``bands`` ...

    Raises:
        InputError: there are several possibilities, or something is missing that only you can say.
        WeightsError: it is none of eo_zoo's models, or its tensors are not exactly those of one.
    """
    every = {cls.family.lower(): cls.family for cls in StrictLoading.families.values()}
    if family not in (None, *every):
        raise InputError(f"unknown family '{family}'. {nearest(str(family), every)}")
    wanted = [cls for cls in StrictLoading.families.values() if family in (None, cls.family.lower())]
    plans = {cls: cls.plan(source.tensors) for cls in wanted}
    layouts = {record.layout for record in records}
    known = {
        cls: plan
        for cls, plan in plans.items()
        if not plan.unknown and plan.moves and (not layouts or cls.layout in layouts)
    }
    if not known:
        raise _strange(plans, records)
    options = [
        (cls, name, own)
        for cls, plan in known.items()
        for name, own in cls.held(plan, plan.apply(source.tensors)).items()
    ]
    held = sorted({name or "encoder" for _, name, _ in options})
    if part is not None:
        options = [option for option in options if option[1] == part or (part == "encoder" and not option[1])]
        if not options:
            raise InputError(f"{source.path} holds {' and '.join(held)}, no {part}")
    elif len(held) > 1:
        raise InputError(f"{source.path} holds {' and '.join(held)}: choose one by part (--part {held[0]})")
    failures: list[InputError] = []
    for cls, name, own in options:
        fitting = [one for one in records if _is_of(one, cls.layout, name)]
        try:
            return _described(source, cls, plans[cls], name, own, fitting, dict(arguments or {}), family)
        except InputError as error:
            failures.append(error)
    # of several classes of one family, the one that it is of
    raise min(failures, key=lambda error: isinstance(error, _Sizeless))


class _Sizeless(WeightsError):
    """There is no model of these sizes in a family."""


def _is_of(record: weights.Record, layout: str, part: str) -> bool:
    tag = record.name.partition(".")[2]
    return record.layout == layout and (not part or tag not in ("student", "teacher") or tag == part)


def _strange(plans: Mapping[type[StrictLoading], Plan], records: Sequence[weights.Record]) -> WeightsError:
    """Why no family takes a checkpoint."""
    cls, plan = min(plans.items(), key=lambda item: (len(item[1].unknown), not item[1].left_out))
    if records and not plan.unknown and plan.moves:
        return WeightsError(f"these are tensors of {cls.family}, not of {records[0].name}")
    if not plan.unknown:
        return WeightsError(f"no model of eo_zoo is in it: all is {some(sorted(set(plan.left_out.values())))}")
    total = len(plan.unknown) + len(plan.left_out) + sum(len(move.official) for move in plan.moves)
    if total == len(plan.unknown):
        return WeightsError(f"these are tensors of none of eo_zoo's models: {some(sorted(plan.unknown))}")
    return WeightsError(
        f"these are tensors of none of eo_zoo's models: of {cls.family}, the nearest, {len(plan.unknown)} of {total} "
        f"names are not ({some(sorted(plan.unknown))})"
    )


def _described(
    source: Source,
    cls: type[StrictLoading],
    plan: Plan,
    part: str,
    own: Mapping[str, Tensor],
    records: Sequence[weights.Record],
    given: dict[str, Any],
    family: str | None,
) -> Found:
    try:
        implied = cls.implied(own)
    except KeyError as error:
        raise _Sizeless(f"{source.path} does not hold all tensors of {cls.family}: no {error.args[0]}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise _Sizeless(
            f"{source.path} has the names of {cls.family}'s tensors, but not their shapes: {error}"
        ) from error
    asked = {record.name.partition(".")[0] for record in records}
    if cls.alike and plan.layout == OWN and not (asked or source.config or family):
        raise InputError(
            f"{source.path} has names that {cls.alike} and {cls.family} share: say by a family or a model which it is "
            f"(--family {cls.family.lower()})"
        )
    if source.config:
        name, arguments = source.config["architecture"], _object(source.config, "model_args")
        arguments |= {key: implied[key] for key in ("num_classes",) if key in implied}
        if asked and name not in asked:
            raise InputError(f"{source.path} holds {name}, not {' or '.join(sorted(asked))}")
    else:
        name, arguments = _sized(cls, implied, asked, given)
    tags = [record.name for record in records if record.name.partition(".")[0] == name]
    tags += [f"{name}.{tag}" for tag in (part, _object(source.config, "pretrained_cfg").get("tag")) if tag]
    name = next((tag for tag in tags if tag in weights.RECORDS), name)
    model = _skeleton(name, {**arguments, **given})
    adapted, added = model.adapt(dict(own))
    check_fit(adapted, wanted := model.state_dict(), optional=added, what=str(source.path))
    kinds = {name: one for name, one in adapted.items() if one.is_floating_point() != wanted[name].is_floating_point()}
    if kinds:
        types = ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in kinds.values()}))
        raise WeightsError(
            f"{source.path} holds {some(kinds)} as {types}, which is not what {cls.family} calculates with"
        )
    moves = {move.ours: move for move in plan.moves}
    used = {name: moves[cls.behind(plan.layout, part, name)] for name in adapted}
    left_out = dict(plan.left_out)
    taken = {move.ours for move in used.values()}
    for move in plan.moves:
        if move.ours not in taken:
            left_out |= dict.fromkeys(move.official, _why(cls, move.ours))
    tensors = {**{name: _initial(model, name) for name in added}, **adapted}
    return Found(
        name.partition(".")[0],
        model,
        part,
        plan,
        {name: tensors[name] for name in model.state_dict()},
        used,
        left_out,
        added,
    )


def _why(cls: type[StrictLoading], name: str) -> str:
    return next((why for pattern, why in cls.spare.items() if re.fullmatch(pattern, name)), "not of this model")


def _sized(
    cls: type[StrictLoading], implied: dict[str, Any], asked: Collection[str], given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The architecture, and the arguments that it is built with besides."""
    names = [name for name in registry.list_models() if registry.get_record(name).layout == cls.layout]
    asked = asked or names
    sizes = {key: value for key, value in implied.items() if key in SIZES}
    for name in names:
        own = _registered(name)
        if name in asked and {key: own[key] for key in sizes if key in own} == sizes:
            return name, {key: value for key, value in implied.items() if key not in SIZES and own.get(key) != value}
    found = ", ".join(f"{key}={value}" for key, value in sizes.items())
    if cls.unseen not in {**implied, **given}:
        raise InputError(
            f"a {cls.family} of {found} is none of {', '.join(sorted(asked))}, and its {cls.unseen} cannot be told "
            f"from the tensors: give it as an argument (--arg {cls.unseen}=...)"
        )
    return next((name for name in names if "_base" in name), names[0]), implied


@functools.cache
def _registered(name: str) -> Mapping[str, Any]:
    """The sizes of an architecture."""
    model = _skeleton(name, {})
    return type(model).implied(model.state_dict())


def _skeleton(name: str, arguments: Mapping[str, Any]) -> Any:
    """A model without values."""
    # transformers is slow to import, and only what is converted needs it
    from eo_zoo.hf.config import create

    classes = arguments.get("num_classes", 0)
    if foreign := sorted(set(arguments) & {"features_only", *inspect.signature(timm.create_model).parameters}):
        raise InputError(f"{', '.join(foreign)} is no argument of a model that is converted: leave it out")
    with torch.device("meta"):
        return create(name, classes, {key: value for key, value in arguments.items() if key != "num_classes"})


def _initial(model: StrictLoading, name: str) -> Tensor:
    """What a parameter of a norm begins as."""
    place, _, last = name.rpartition(".")
    module = copy.deepcopy(model.get_submodule(place)).to_empty(device="cpu")
    # a norm has it, and nothing else is added
    module.reset_parameters()  # type: ignore[operator]
    return module.get_parameter(last).detach()


# ------------------------------------------------------------------------------------------------ there


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint: the content of conversion.json."""

    facts: Mapping[str, Any]
    summary: str  # for people, some lines


def _summary(facts: Mapping[str, Any]) -> str:
    fates = Counter(one["fate"] for one in facts["tensors"])
    part = f", its {facts['part']}" if facts["part"] else ""
    origin = facts["source"]["record"]
    lines = [
        f"{facts['name']} from the layout '{facts['layout']}'{part}; "
        + (f"by its hash it is {origin}" if origin else "its hash is of no published file that is known here"),
        f"{len(facts['tensors'])} tensors: " + ", ".join(f"{count} {fate}" for fate, count in fates.most_common()),
    ]
    for what, names in (("around them", facts["source"]["wrappings"]), ("not read", facts["source"]["beside"])):
        lines += [f"{what}: {some(names)}"] * bool(names)
    reasons = Counter(one["why"] for one in facts["left_out"])
    lines += [f"left out: {count}, {why}" for why, count in reasons.most_common()]
    lines += [f"added: {one['ours']}, {one['why']}" for one in facts["added"]]
    return "\n".join(lines)


def convert(
    source: str | Path,
    output: str | Path | None,
    *,
    family: str | None = None,
    model: str | None = None,
    part: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_size: str = "5GB",
    base: str | Path | None = None,
    push_to_hub: str | None = None,
    own_weights: bool = False,
) -> Conversion:
    """Write a checkpoint as a new folder that timm, transformers and eo_zoo read: beside, read back, then renamed.

    Args:
        source: a checkpoint of the public code of any family, official or self-trained, or one of ours: a file, a
            folder, or an index of shards.
        output: the folder, which is made; None only tells what would be written.
        family: mars, smarties, anysat, multimae or terrasense, that it has to be of.
        model: architecture, or architecture.tag, that it has to be; found from the tensors if not given.
        part: which model of several in one file: student, teacher, encoder_rgb or encoder_sar.
        ema: take the moving average of the weights, where the file has one beside them.
        arguments: of the model, where tensors do not tell: ``num_heads`` of a size of your own, ``bands`` ...
        dtype: float32, bfloat16 or float16 for all floating tensors; as they are stored if not given.
        shard_size: of each file at most, as "500MB", unless one tensor is larger.
        base: of TerraSense: folder of the model that ``source`` was trained from; see ``eo_zoo.vlm.convert``.
        push_to_hub: OWNER/NAME, to upload the folder to.
        own_weights: your word that no published weights are in it, where their licence forbids to upload them.

    Raises:
        InputError: nothing to convert, several possibilities, an output that exists, or a licence that forbids it.
        WeightsError: hostile or damaged, not a model of eo_zoo's, not finite, or what was read back differs.
        OSError: writing failed; nothing is left.

    >>> import tempfile, eo_zoo
    >>> from eo_zoo.convert import convert
    >>> from eo_zoo.hf import export
    >>> folder = tempfile.mkdtemp()
    >>> export("smarties_vit_nano", f"{folder}/nano")
    >>> convert(f"{folder}/nano", f"{folder}/half", dtype="bfloat16").facts["name"]
    'smarties_vit_nano'
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"the type {dtype!r} is none of {', '.join(DTYPES)}")
    if output is not None:
        require_new(Path(output))
    elif push_to_hub is not None:
        raise InputError("what is pushed to the hub has to be written first: give a folder (--output FOLDER)")
    if family == TERRASENSE or (family is None and _is_vision_language(Path(source))):
        given = dict(model=model, part=part, ema=ema, arguments=arguments, push_to_hub=push_to_hub)
        if unused := [name for name, value in given.items() if value]:
            raise InputError(f"{source} is of a Qwen-VL model, for which there is no {' and no '.join(unused)}")
        # an extra, and slow to import
        from eo_zoo.vlm import convert as vlm

        shared: dict[str, Any] = dict(base=base, dtype=dtype, shard_size=shard_size)
        checked = vlm.check(source, **shared) if output is None else vlm.convert(source, output, **shared)
        return Conversion(checked.manifest, checked.summary)
    if base is not None:
        raise InputError(f"a base is of TerraSense's adapters, which {source} is none of: leave it out")
    with ThreadPoolExecutor(2) as beside:  # both leave the interpreter's lock
        hashing = beside.submit(sharded.hashes, Path(source).expanduser())
        opened = open_source(source, ema=ema)
        checking = beside.submit(require_sound, opened.tensors, str(source))
        sha256 = cache.together(list(hashing.result().values()))
        published = weights.published(opened.files[0], sha256) if len(opened.files) == 1 else {}
        records = [registry.get_record(name) for name in ([model] if model else published)]
        if part is None and model and model.endswith((".student", ".teacher")):
            part = model.partition(".")[2]
        found = identify(opened, family=family, records=records, part=part, arguments=arguments)
        checking.result()
    name = next((name for name in published if _is_of(weights.RECORDS[name], found.model.layout, found.part)), None)
    if push_to_hub is not None:
        publish.require_redistributable(found.model, own_weights=own_weights and name is None)
    found.model.weights_origin = weights.Origin(
        name, str(opened.path), sha256, verified=published.get(name or "", False)
    )
    lazy = sharded.held(found.tensors)
    if dtype is not None:
        lazy = lazy.to(DTYPES[dtype])
    facts = _facts(opened, found, lazy, sha256, name)
    if output is None:
        return Conversion(facts, _summary(facts))
    with making(Path(output)) as folder:
        _write(found.model, lazy, folder, facts, shard_size)
    if push_to_hub is not None:
        publish.upload(Path(output), found.model, push_to_hub)
    return Conversion(facts, _summary(facts))


def _write(model: StrictLoading, lazy: sharded.LazyTensors, folder: Path, facts: dict[str, Any], size: str) -> None:
    from eo_zoo.hf.folder import describe_in, wrap

    wrapped = wrap(model)
    hashes = wrapped.write(folder, lazy, shard_size=size)
    facts["files"] = {name: {"sha256": h, "bytes": (folder / name).stat().st_size} for name, h in hashes.items()}
    describe_in(folder, wrapped, publish.card(model))
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with torch.device("meta"):
        again = timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict()
    check_fit(lazy.shapes, again, what=f"{folder}, as its config.json describes it,")


def _is_vision_language(folder: Path) -> bool:
    """Whether a folder holds what training leaves of TerraSense or another Qwen-VL."""
    if not folder.is_dir():
        return False
    kind = str(_json(folder / "config.json").get("model_type"))
    return (folder / lora.CONFIG).is_file() or zero.find_zero(folder) is not None or kind in MODEL_TYPES


def _facts(source: Source, found: Found, lazy: sharded.LazyTensors, sha256: str, record: str | None) -> dict[str, Any]:
    return {
        "eo_zoo": __version__,
        "name": record or found.architecture,
        "arguments": dict(found.model.model_args),
        "layout": found.plan.layout,
        "part": found.part,
        "source": {
            "sha256": sha256,
            "bytes": source.size,
            "record": record,
            "wrappings": list(source.wrappings),
            "beside": list(source.beside),
        },
        "files": {},
        "tensors": [
            {
                "ours": name,
                "official": list(found.moves[name].official),
                "fate": _fate(found, name),
                "shape": list(lazy.shapes[name].shape),
                "dtype": str(lazy.shapes[name].dtype).removeprefix("torch."),
            }
            for name in found.tensors
            if name in found.moves
        ],
        "left_out": [{"official": name, "why": why} for name, why in found.left_out.items()],
        "added": [{"ours": name, "why": why} for name, why in found.added.items()],
    }


def _fate(found: Found, name: str) -> str:
    move = found.moves[name]
    made = move.official == (name,) and not move.join
    return "same" if made else "renamed" if move.fate == "same" else move.fate


# ------------------------------------------------------------------------------------------- and back


def export_original(
    source: str | Path,
    output: str | Path,
    *,
    layout: str | None = None,
    overwrite: bool = False,
    family: str | None = None,
    part: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Plan:
    """Write a model's tensors under the names of the public code, each bit as it is.

    Args:
        source: a folder of ours, or whatever `convert` takes.
        output: OUT.safetensors, or for any other name a file of torch.save.
        layout: "encoder" (of MaRS: as released), "pretraining" or, of AnySat, "state"; by default the one that a
            folder was converted from, else "encoder".
        overwrite: replace a file.
        family, part, ema, arguments: as of `convert`.

    Returns:
        What became of each tensor.

    Raises:
        InputError: an unknown layout, one that has no place for a tensor, or an output that exists.
        WeightsError: as `convert`.
        OSError: writing failed; nothing is left.
    """
    output = Path(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder: give a file's name")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: give another name, or overwrite it (--overwrite)")
    opened = open_source(source, ema=ema)
    sharded.hashes(opened.path)
    found = identify(opened, family=family, part=part, arguments=arguments)
    part = found.part or str(opened.manifest.get("part") or "")
    added = opened.manifest.get("added")
    before = {str(one.get("ours")) for one in (added if isinstance(added, list) else []) if isinstance(one, dict)}
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in {*found.added, *before}}
    wanted = layout or str(opened.manifest.get("layout") or "")
    chosen = _public(found.model, tensors, "encoder" if wanted in ("", OWN) else wanted)
    named = {type(found.model).behind(chosen.name, part, name): tensor for name, tensor in tensors.items()}
    plan = chosen.back(named)
    if plan.unknown:
        raise InputError(f"the layout '{chosen.name}' has no place for {some(plan.unknown)}")
    public = {name: tensor.contiguous() for name, tensor in plan.undo(named).items()}
    require_sound(public, str(source))
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as beside:
        if output.suffix == ".safetensors":
            stored.save(public, beside, metadata={"format": "pt"})
            stored.compare(beside, public, public.__getitem__)
        else:
            # torch.save stores what a tensor is a view of
            alone = {name: t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for name, t in public.items()}
            try:
                with beside.open("wb") as file:  # of a path torch would write the name into it
                    torch.save({chosen.wrapper: alone} if chosen.wrapper else alone, file)
            except RuntimeError as error:  # so torch tells of a full disk
                raise OSError(f"{output} cannot be written: {error}") from error
            again = unwrapped(beside).tensors
            if set(again) != set(public) or not all(torch.equal(again[name], public[name]) for name in public):
                raise WeightsError(f"{output}: what was read back differs from what was written")
    return plan


def _public(model: StrictLoading, tensors: Mapping[str, Tensor], name: str) -> Layout:
    layouts = {one.name: one for one in type(model).layouts(tensors) if one.name != OWN}
    if name not in layouts:
        raise InputError(f"unknown layout '{name}' of {type(model).family}: expected {' or '.join(layouts)}")
    return layouts[name]
