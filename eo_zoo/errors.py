"""The package's exceptions, and the two helpers that phrase them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class InputError(ValueError):
    """What the user gave cannot be used: a file, a name, a shape, a combination (exit code 2)."""


class WeightsError(InputError):
    """A checkpoint is not what it should be: hostile, truncated, changed, or with other tensors (exit code 2)."""


class DownloadError(RuntimeError):
    """Something could not be fetched (exit code 1)."""


class MissingExtra(RuntimeError):
    """An optional dependency is not installed; the message holds the pip line (exit code 1)."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence with the options closest to ``name``, or with all of them where few exist.

    >>> nearest("smarties_base", ["smarties_vit_base", "anysat"])
    "Did you mean 'smarties_vit_base'?"
    """
    lower = {option.lower(): option for option in sorted(options)}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    if close:
        return "Did you mean " + " or ".join(f"'{option}'" for option in close) + "?"
    return "Known: " + ", ".join(list(lower.values())[:40]) + "."


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtra: it is not installed; the message names the pip line that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"this needs the package '{error.name}', which is not installed: pip install \"eo-zoo[{extra}]\""
        ) from error
