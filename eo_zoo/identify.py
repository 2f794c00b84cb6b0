"""What a checkpoint is, found from its tensors and never from its name: which model, in which layout, how wrapped."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from eo_zoo import registry, weights
from eo_zoo.errors import InputError, WeightsError, nearest
from eo_zoo.models._build import StrictLoading
from eo_zoo.weights import sharded
from eo_zoo.weights.checkpoint import check_fit, some, unwrapped
from eo_zoo.weights.plan import Move, Plan
from eo_zoo.weights.sharded import MANIFEST
from eo_zoo.weights.wrappings import plain_names

OWN = "eo_zoo"  # the layout of our names
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
    config, manifest = (json_of(path / name) if path.is_dir() else {} for name in ("config.json", MANIFEST))
    if config.get("architecture") not in registry.list_models():
        config = {}
    named = {plain: tensors[name] for name, plain in names.items()}
    return Source(path, tuple(files), named, tuple(wrappings), beside, config, manifest)


def json_of(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; empty if there is none."""
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
        fitting = [one for one in records if is_of(one, cls.layout, name)]
        try:
            return _described(source, cls, plans[cls], name, own, fitting, dict(arguments or {}), family)
        except InputError as error:
            failures.append(error)
    # of several classes of one family, the one that it is of
    raise min(failures, key=lambda error: isinstance(error, _Sizeless))


class _Sizeless(WeightsError):
    """There is no model of these sizes in a family."""


def is_of(record: weights.Record, layout: str, part: str) -> bool:
    """Whether a weight set is of a layout, and of a part of it."""
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
