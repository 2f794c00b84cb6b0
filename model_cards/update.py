"""Writes into every card what the records say: the front matter, and the block of facts. What people wrote stays.

    python model_cards/update.py [--check]

A weight set without a card gets one whose sections are still to be written. With --check nothing is written, and cards
that differ from the records are named (exit code 1).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from eo_zoo import terrasense, weights
from eo_zoo.describe import front_matter, header, markdown

FOLDER = Path(__file__).parent
START, END = "<!-- facts -->", "<!-- /facts -->"
SECTIONS = (
    "Use", "Not for", "Results", "Quirks kept", "Faults of the original that are not here", "Citation",
)  # fmt: skip


def names() -> list[str]:
    """The weight sets that need a card: those that are published."""
    return [*(name for name, record in weights.RECORDS.items() if record.source), terrasense.RECORD.name]


def updated(name: str, text: str) -> str:
    """A card with the front matter and the facts of now.

    Raises:
        ValueError: the marks of the block are not there.
    """
    body = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE).lstrip("\n")
    parts = re.fullmatch(f"(.*){START}.*{END}(.*)", body, re.DOTALL)
    if not parts:
        raise ValueError(f"the card of {name} has no block between {START} and {END}: put both lines below its title")
    before, after = parts.groups()
    return f"{header(front_matter(name))}\n{before}{START}\n\n{markdown(name)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write all cards, or compare them; the number is the exit code."""
    parser = argparse.ArgumentParser(description="Write the facts of the records into the cards.")
    parser.add_argument("--check", action="store_true", help="write nothing, name the cards that differ")
    check = parser.parse_args(arguments).check
    stale = []
    for name in names():
        path = FOLDER / f"{name}.md"
        sections = "\n".join(f"## {section}\n" for section in SECTIONS)
        text = path.read_text("utf-8") if path.exists() else f"# {name}\n\n{START}\n{END}\n\n{sections}"
        new = updated(name, text)
        if not path.exists() or new != text:
            stale.append(path.name)
            if not check:
                path.write_text(new, "utf-8")
    if stale:
        what = "differ from the records, run python model_cards/update.py" if check else "written"
        sys.stdout.write(f"{', '.join(stale)}: {what}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
