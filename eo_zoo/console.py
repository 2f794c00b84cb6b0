"""How the command line speaks: results on stdout, all else on stderr."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

out = Console(emoji=False)  # ":x:" in a path or message is no picture
err = Console(stderr=True, emoji=False)


def json_text(value: Any) -> str:
    """For scripts to read."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def print_json(value: Any) -> None:
    """For scripts to read."""
    # not rich's own: it wraps and colours
    typer.echo(json_text(value))


def warn(text: str) -> None:
    """What may be wrong, a sentence."""
    err.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
