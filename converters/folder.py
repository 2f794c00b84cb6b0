"""What the converters share: a checkpoint, loaded strictly, to a folder that timm and transformers read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import eo_zoo
from eo_zoo import registry
from eo_zoo.errors import InputError
from eo_zoo.hf import export


def options(description: str, family: str, default: str) -> argparse.ArgumentParser:
    """The arguments that all converters have: checkpoint, output and model."""
    names = [name for model in eo_zoo.list_models(f"{family}_*") for name in (model, *registry.list_tags(model))]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=default, choices=names, metavar="NAME[.TAG]")
    return parser


def finish(folder: Path | None, work: Callable[[], None]) -> int:
    """Do the work and tell how it went: exit code 2 for what was given and cannot be used, 1 for a full disk."""
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if folder is not None:
        print(f"{folder}: every tensor read back and equal")
    return 0


def main(description: str, family: str, default: str) -> int:
    """Parse the arguments and convert; gives the exit code."""
    given = options(description, family, default).parse_args()
    return finish(given.output, lambda: export(given.model, given.output, weights=given.checkpoint))
