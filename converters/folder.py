"""What the converters share: a checkpoint, loaded strictly, to a folder that timm reads."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

import eo_zoo
from eo_zoo import registry
from eo_zoo.errors import InputError, WeightsError

KEPT = ("tag", "input_size", "mean", "std", "num_classes", "label_names", "crop_pct", "classifier", "license")


def convert(checkpoint: Path, folder: Path, *, model: str) -> None:
    """Write ``folder`` with model.safetensors and config.json.

    Raises:
        InputError: the folder exists.
        WeightsError: the checkpoint is not exactly this model's, or what was read back differs.
    """
    require_new(folder)
    made = eo_zoo.create_model(model, weights=checkpoint)
    config = {
        "architecture": model.partition(".")[0],
        "num_classes": made.num_classes,
        "num_features": made.num_features,
        "pretrained_cfg": {key: made.pretrained_cfg[key] for key in KEPT if made.pretrained_cfg.get(key) is not None},
        "eo_zoo": {
            "version": eo_zoo.__version__,
            "sha256": made.weights_origin.sha256,
            **{what: getattr(made, what) for what in ("bands", "inputs", "in_domains") if hasattr(made, what)},
        },
    }

    def save(beside: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    place(folder, made, save)


def require_new(folder: Path) -> None:
    """Raise InputError for a folder that exists."""
    if folder.exists():
        raise InputError(f"{folder} exists: remove it, or give another folder")


def place(folder: Path, model: nn.Module, save: Callable[[Path], None]) -> None:
    """Let ``save`` write a model beside ``folder``, compare what timm reads there, and only then rename it.

    Raises:
        WeightsError: what was read back differs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save(beside)
        tensors, again = model.state_dict(), timm.create_model(f"local-dir:{beside}", pretrained=True).state_dict()
        if set(again) != set(tensors) or not all(torch.equal(again[name], tensors[name]) for name in tensors):
            raise WeightsError(f"{folder}: what was read back differs from what was written")
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def options(description: str, family: str, default: str) -> argparse.ArgumentParser:
    """The arguments that all converters have: checkpoint, output and model."""
    names = [name for model in eo_zoo.list_models(f"{family}_*") for name in (model, *registry.list_tags(model))]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=default, choices=names, metavar="NAME[.TAG]")
    return parser


def finish(folder: Path, work: Callable[[], None]) -> int:
    """Do the work and tell how it went: exit code 2 for a checkpoint or folder that cannot be used."""
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: every tensor read back and equal")
    return 0


def main(description: str, family: str, default: str) -> int:
    """Parse the arguments and convert; gives the exit code."""
    given = options(description, family, default).parse_args()
    return finish(given.output, lambda: convert(given.checkpoint, given.output, model=given.model))
