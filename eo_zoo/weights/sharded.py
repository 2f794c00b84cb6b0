"""The tensors of a whole folder, one at a time: memory stays near what is asked for together, whatever the size."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.progress import progress_bar
from eo_zoo.weights import cache, checkpoint, stored
from eo_zoo.weights.wrappings import plain_names

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"  # transformers' names for one file of weights
INDEX = ".index.json"  # what its index of several adds
MANIFEST = "conversion.json"  # what a conversion says of each tensor, and its files' hashes
#: What weights may be cast to.
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class LazyTensors:
    """Tensors that are read when they are asked for."""

    shapes: Mapping[str, Tensor]  # on the meta device: types and shapes
    #: Gives what reads a tensor by its name. Files that it opened stay mapped as long as it lives.
    reader: Callable[[], Reader]
    names: Mapping[str, str] = field(default_factory=dict)  # in the files, of those that have another one here

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """The tensors that ``names`` lists: new name to old."""

        def reader() -> Reader:
            read = self.reader()
            return lambda name: read(names[name])

        stored = {new: self.names.get(old, old) for new, old in names.items()}
        return LazyTensors({new: self.shapes[old] for new, old in names.items()}, reader, stored)

    def to(self, dtype: torch.dtype) -> LazyTensors:
        """The same values, of floating types in another one; reading raises WeightsError for those it cannot hold."""

        def reader() -> Reader:
            read = self.reader()
            return lambda name: _cast(name, read(name), dtype)

        return LazyTensors({name: _as(tensor, dtype) for name, tensor in self.shapes.items()}, reader, self.names)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = _as(tensor, dtype)
    if cast is not tensor and not bool(cast.isfinite().all()):
        raise WeightsError(f"{name} holds values that are not finite as {dtype}: give another type")
    return cast


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def held(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Tensors that are read, or mapped, already."""
    return LazyTensors({name: shape_of(tensor) for name, tensor in tensors.items()}, lambda: tensors.__getitem__)


def require_float(dtype: str | None) -> None:
    """Raise InputError for the name of a type that weights are not cast to."""
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"the type {dtype!r} is none of {', '.join(FLOATS)}")


def shape_of(tensor: Tensor) -> Tensor:
    """Type and shape of a tensor, on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if path.is_file() and path.stat().st_size > stored.MAX_HEADER:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes, which is no list of names and values")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected an object of names and values")
    return found


def is_plain(name: str) -> bool:
    """Whether a name that a file states is one beside that file, and leads nowhere else."""
    return Path(name).name == name and name not in ("", "..") and name.isprintable() and len(name.encode()) < 256


def has_weights(folder: Path) -> bool:
    """Whether `read_folder` finds weights there, or a list of them."""
    return any((folder / f"{name}{end}").is_file() for name in (SAFETENSORS, TORCH) for end in ("", INDEX))


def files_of(path: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint with the tensors that its index promises in each (None: any).

    Args:
        path: a file, a folder as transformers writes it (safetensors, else torch's .bin, whole or by their index), or
            an index.

    Raises:
        InputError: there are no weights.
        WeightsError: the index is damaged, or names a file that is not beside it.
    """
    if path.name.endswith(INDEX):
        return _indexed(path)
    if not path.is_dir():
        return {path: None}
    for name in (SAFETENSORS, TORCH):
        if (path / f"{name}{INDEX}").is_file():
            return _indexed(path / f"{name}{INDEX}")
        if (path / name).is_file():
            return {path / name: None}
    shards = [shard.name for pattern in ("model-*-of-*", "pytorch_model-*-of-*") for shard in path.glob(pattern)]
    if shards:
        raise WeightsError(f"{path} has shards such as {min(shards)}, but no {SAFETENSORS}{INDEX} or {TORCH}{INDEX}")
    raise InputError(f"the folder {path} holds no weights: expected {SAFETENSORS}, {TORCH}, or shards with their index")


def hashes(path: Path) -> dict[Path, str]:
    """The SHA-256 of each file of a checkpoint, and of those that a folder's manifest lists.

    Raises:
        InputError: there are no weights.
        WeightsError: a file is missing, or is not what the manifest noted when it was written.
    """
    note = path / MANIFEST
    noted = read_json(note).get("files") if path.is_dir() and note.is_file() else {}
    if not isinstance(noted, dict) or (note.is_file() and not noted):
        raise WeightsError(f"{note} is damaged: it lists no files; convert again")
    for name in noted:
        if not is_plain(name) or not (path / name).is_file():
            raise WeightsError(f"{path / name} is missing, and {note} lists it: convert again")
    found = {}
    for file in dict.fromkeys([*files_of(path), *(path / name for name in noted)]):
        found[file], facts = cache.digest(file), noted.get(file.name)
        expected = facts.get("sha256") if isinstance(facts, dict) else None
        if noted and found[file] != expected:
            raise WeightsError(cache.differs(file, found[file], expected, "convert again"))
    return found


def read_folder(folder: Path) -> LazyTensors:
    """The weights of a folder, see `files_of`; raises as that and `read_files` do."""
    return read_files(files_of(folder))


def read(path: str | Path) -> dict[str, Tensor]:
    """As `checkpoint.read`, also of a folder or an index; see `files_of`."""
    files = files_of(Path(path))
    if list(files.values()) == [None]:
        return checkpoint.read(next(iter(files)))
    tensors = read_files(files)
    value = tensors.reader()
    return {plain: value(name) for name, plain in plain_names(tensors.shapes).items()}


def _indexed(index: Path) -> dict[Path, set[str] | None]:
    """The files of an index with the tensors that it promises in them."""
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised or not all(isinstance(file, str) for file in promised.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files")
    named: dict[str, set[str]] = {}
    for name, file in promised.items():
        named.setdefault(file, set()).add(name)
    for file in sorted(named):
        if not is_plain(file):
            raise WeightsError(f"{index} names {file[:80]!r}, which is no file beside it")
        if not (index.parent / file).is_file():
            raise WeightsError(f"{index} names {file}, which is not there: download it again")
    return {index.parent / file: named[file] for file in sorted(named)}


def read_files(files: Mapping[Path, set[str] | None]) -> LazyTensors:
    """The tensors of several checkpoints, each of which holds exactly those named, or any (None).

    Raises:
        WeightsError: one is damaged or hostile, holds other tensors, or one that another holds too.
    """
    shapes: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file, promised in files.items():
        found = checkpoint.unwrapped(file).tensors
        if promised is not None and (missing := promised - found.keys()):
            raise WeightsError(f"{file} lacks tensors that the index promises: {checkpoint.some(sorted(missing))}")
        if promised is not None and (extra := found.keys() - promised):
            raise WeightsError(f"{file} holds tensors that the index does not name: {checkpoint.some(sorted(extra))}")
        if twice := places.keys() & found.keys():
            raise WeightsError(f"{file} and {places[min(twice)]} both hold {checkpoint.some(sorted(twice))}")
        shapes |= {name: shape_of(tensor) for name, tensor in found.items()}
        places |= dict.fromkeys(found, file)

    def reader() -> Reader:
        opened = functools.cache(checkpoint.unwrapped)
        return lambda name: opened(places[name]).tensors[name]

    return LazyTensors(shapes, reader)


def write_folder(
    tensors: LazyTensors, folder: Path, *, shard_size: str, metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write safetensors of at most ``shard_size`` ("5GB") each with an index, read them back and compare every byte.

    The names are transformers': model.safetensors where all fits into one.

    Returns:
        The SHA-256 of each file of tensors, by its name.

    Raises:
        InputError: no such size.
        WeightsError: what was read back differs.
        OSError: the disk is full.
    """
    plan = split(tensors.shapes, shard_size)
    hashes = {}
    with progress_bar("writing and comparing", 2 * len(tensors.shapes), unit="tensors") as advance:
        for file, listed in plan.filename_to_tensors.items():
            read = tensors.reader()

            def value(name: str, read: Reader = read) -> Tensor:
                advance(1)
                return read(name)

            shapes = {name: tensors.shapes[name] for name in listed}
            hashes[file] = stored.save(shapes, folder / file, metadata=metadata or {"format": "pt"}, values=value)
            stored.compare(folder / file, shapes, value)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (folder / f"{SAFETENSORS}{INDEX}").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return hashes


def split(shapes: Mapping[str, Tensor], shard_size: str) -> Any:
    """Which tensor goes into which file, as huggingface_hub splits.

    Raises:
        InputError: no such size.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        return split_torch_state_dict_into_shards(dict(shapes), max_shard_size=shard_size)
    except (ValueError, OverflowError) as error:
        raise InputError(f"the shard size is {shard_size!r}: expected a number and a unit, as 5GB or 500MB") from error
