"""How many distributions ``pip install eo-zoo`` brings beyond its eight named dependencies.

    python benchmarks/install_cost.py

Asks pip's resolver without installing anything; needs a package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EIGHT = ["torch", "timm", "safetensors", "huggingface_hub", "transformers", "pillow", "numpy", "requests"]


def resolve(*requirements: str) -> set[str]:
    """Names of the distributions that pip would install into an empty environment."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    report = subprocess.run([*command, *requirements], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(report)["install"]}


def main() -> None:
    """Resolve both and print the difference."""
    alone, ours = resolve(*EIGHT), resolve(str(ROOT))
    print(f"the eight named dependencies: {len(alone)} distributions")
    print(f"eo-zoo: {len(ours)} distributions")
    print(f"added: {len(ours - alone)} ({', '.join(sorted(ours - alone))})")


if __name__ == "__main__":
    main()
