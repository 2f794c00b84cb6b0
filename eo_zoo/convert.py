"""Whatever checkpoint a user has, to a verified folder that timm, transformers and eo_zoo read, and back.

What a file is, is found from its tensors, never from its name. A manifest, conversion.json, says what became of each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from eo_zoo import publish, registry, weights
from eo_zoo.errors import InputError, WeightsError
from eo_zoo.files import making, replacing, require_new
from eo_zoo.identify import OWN, Found, Source, identify, is_of, json_of, open_source
from eo_zoo.models._build import StrictLoading
from eo_zoo.terrasense import MODEL_TYPES
from eo_zoo.version import __version__
from eo_zoo.weights import cache, lora, sharded, stored, zero
from eo_zoo.weights.checkpoint import check_fit, some, unwrapped
from eo_zoo.weights.plan import Layout, Plan
from eo_zoo.weights.sharded import MANIFEST
from eo_zoo.weights.sound import require_sound

TERRASENSE = "terrasense"


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
    sharded.require_float(dtype)
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
    name = next((name for name in published if is_of(weights.RECORDS[name], found.model.layout, found.part)), None)
    if push_to_hub is not None:
        publish.require_redistributable(found.model, own_weights=own_weights and name is None)
    found.model.weights_origin = weights.Origin(
        name, str(opened.path), sha256, verified=published.get(name or "", False)
    )
    lazy = sharded.held(found.tensors)
    if dtype is not None:
        lazy = lazy.to(sharded.FLOATS[dtype])
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
    kind = str(json_of(folder / "config.json").get("model_type"))
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
