"""The tensors of a whole folder, one at a time: memory stays near what is asked for together, whatever the size."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.progress import progress_bar
from eo_zoo.weights import checkpoint, stored

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"  # transformers' names for one file of weights
INDEX = ".index.json"  # what its index of several adds
Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class LazyTensors:
    """Tensors that are read when they are asked for."""

    shapes: Mapping[str, Tensor]  # on the meta device: types and shapes
    #: Gives what reads a tensor by its name. Files that it opened stay mapped as long as it lives.
    reader: Callable[[], Reader]

    def renamed(self, names: Mapping[str, str]) -> LazyTensors:
        """The tensors that ``names`` lists: new name to old."""

        def reader() -> Reader:
            read = self.reader()
            return lambda name: read(names[name])

        return LazyTensors({new: self.shapes[old] for new, old in names.items()}, reader)

    def to(self, dtype: torch.dtype) -> LazyTensors:
        """The same values in another type; reading raises WeightsError for those that it cannot hold."""

        def reader() -> Reader:
            read = self.reader()
            return lambda name: _cast(name, read(name), dtype)

        return LazyTensors({name: tensor.to(dtype) for name, tensor in self.shapes.items()}, reader)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if not bool(cast.isfinite().all()):
        raise WeightsError(f"{name} holds values that are not finite as {dtype}: give another type")
    return cast


def shape_of(tensor: Tensor) -> Tensor:
    """Type and shape of a tensor, on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected an object of names and values")
    return found


def is_plain(name: str) -> bool:
    """Whether a name that a file states is one beside that file, and leads nowhere else."""
    return Path(name).name == name and name not in ("", "..")


def has_weights(folder: Path) -> bool:
    """Whether `read_folder` finds weights there, or a list of them."""
    return any((folder / f"{name}{end}").is_file() for name in (SAFETENSORS, TORCH) for end in ("", INDEX))


def read_folder(folder: Path) -> LazyTensors:
    """The weights of a folder as transformers writes it: safetensors, else torch's .bin, whole or by their index.

    Raises:
        InputError: there are none.
        WeightsError: a file is missing, damaged or hostile, or holds other tensors than the index says.
    """
    for name in (SAFETENSORS, TORCH):
        if (folder / f"{name}{INDEX}").is_file():
            return read_files(_indexed(folder / f"{name}{INDEX}"))
        if (folder / name).is_file():
            return read_files({folder / name: None})
    shards = [path.name for pattern in ("model-*-of-*", "pytorch_model-*-of-*") for path in folder.glob(pattern)]
    if shards:
        raise WeightsError(f"{folder} has shards such as {min(shards)}, but no {SAFETENSORS}{INDEX} or {TORCH}{INDEX}")
    raise InputError(f"{folder} holds no weights: expected {SAFETENSORS}, {TORCH}, or shards with their index")


def _indexed(index: Path) -> dict[Path, set[str] | None]:
    """The files of an index with the tensors that it promises in them."""
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised or not all(isinstance(file, str) for file in promised.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files")
    files: dict[Path, set[str] | None] = {}
    for file in sorted(set(promised.values())):
        if not is_plain(file):
            raise WeightsError(f"{index} names {file!r}, which is no file beside it")
        if not (index.parent / file).is_file():
            raise WeightsError(f"{index} names {file}, which is not there: download it again")
        files[index.parent / file] = {name for name, place in promised.items() if place == file}
    return files


def read_files(files: Mapping[Path, set[str] | None]) -> LazyTensors:
    """The tensors of several checkpoints, each of which holds exactly those named, or any (None).

    Raises:
        WeightsError: one is damaged or hostile, holds other tensors, or one that another holds too.
    """
    shapes: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for file, promised in files.items():
        found = checkpoint.read(file, keep_prefixes=True)
        if promised is not None and (missing := promised - found.keys()):
            raise WeightsError(f"{file} lacks tensors that the index promises: {checkpoint.some(sorted(missing))}")
        if promised is not None and (extra := found.keys() - promised):
            raise WeightsError(f"{file} holds tensors that the index does not name: {checkpoint.some(sorted(extra))}")
        if twice := places.keys() & found.keys():
            raise WeightsError(f"{file} and {places[min(twice)]} both hold {checkpoint.some(sorted(twice))}")
        shapes |= {name: shape_of(tensor) for name, tensor in found.items()}
        places |= dict.fromkeys(found, file)

    def reader() -> Reader:
        opened = functools.cache(functools.partial(checkpoint.read, keep_prefixes=True))
        return lambda name: opened(places[name])[name]

    return LazyTensors(shapes, reader)


def write_folder(tensors: LazyTensors, folder: Path, *, shard_size: str) -> None:
    """Write safetensors of at most ``shard_size`` ("5GB") each with an index, read them back and compare every byte.

    The names are transformers': model.safetensors where all fits into one.

    Raises:
        InputError: no such size.
        WeightsError: what was read back differs.
        OSError: the disk is full.
    """
    plan = split(tensors.shapes, shard_size)
    names = [name for listed in plan.filename_to_tensors.values() for name in listed]
    with progress_bar("writing", len(names), unit="tensors") as advance:
        for file, listed in plan.filename_to_tensors.items():
            read = tensors.reader()

            def value(name: str, read: Reader = read) -> Tensor:
                advance(1)
                return read(name)

            shapes = {name: tensors.shapes[name] for name in listed}
            stored.save(shapes, folder / file, metadata={"format": "pt"}, values=value)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (folder / f"{SAFETENSORS}{INDEX}").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    written = read_folder(folder)
    with progress_bar("comparing", len(names), unit="tensors") as advance:
        for listed in plan.filename_to_tensors.values():
            read, again = tensors.reader(), written.reader()
            for name in listed:
                if not _same(read(name), again(name)):
                    raise WeightsError(f"{folder}: {name} read back differs from what was written; nothing is kept")
                advance(1)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bytes: NaN equals itself, and 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


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
