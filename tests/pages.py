"""Runs every fenced block of Markdown pages: what a page shows is what happens.

    python tests/pages.py docs/NAME.md [more] [--quick]

Needs neither pytest nor the extra "test", so that a page for an environment of its own is run there; but published
weights are made by the tests' own code (tests/forged.py), which needs both. Each page has a fresh working directory:

- ```python blocks run top to bottom in one namespace, statement by statement. Where the comment beside an assignment
  begins with a shape, as in ``vector = model(x)  # (1, 128)``, the value has it.
- ``` and ```bash blocks hold shell lines. ``eo-zoo`` runs in this process, over the inputs that the page names, made by
  tests/page_files.py; ``python examples/...`` and ``python converters/...`` run as they are; make, pip and .ci/run are
  CI's own lines, and looked up.
- ``org/eo_zoo`` for torch.hub is this checkout; ``org/MODEL`` is, on a Hub of this machine, what
  ``eo_zoo.hf.export("MODEL", folder)`` writes, and TerraSense a tiny random model with the official one's name.
- http://127.0.0.1:8000 is a stand-in for a server of chats.

Anything else, and a package that is missing, is a failure, but for the pages of `ELSEWHERE`. With --quick, shell lines
that need published weights are left out: their models are of full size.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in the place of tests/, whose modules are found as tests.NAME

from tests.hub_server import HubServer  # noqa: E402 - found by the line before

#: Pages that an environment of their own runs, by its name in .ci/ecosystem.
ELSEWHERE = {
    "docs/terratorch.md": "terratorch",
    "docs/torchgeo.md": "torchgeo",
    "docs/torchgeo_bench.md": "torchgeo-bench",
}
SHELL = ("", "bash")
OUTPUTS = ("-o", "--output", "--preview", "--scores", "--overlay")
SCRIPTS = ("examples", "converters")
ASKED = ("ask", "describe", "classify", "count", "detect", "ground", "change", "sft")
ADDRESS = "http://127.0.0.1:8000"  # of a server, as pages have it
SHAPE = r"\((?:[\d+* ]+|\.\.\.)(?:,[\d+* ]*)+\)"  # as (1, 49 + 49 + 1, 768) or (..., 16, 16)


class PageError(Exception):
    """What is wrong with a page, in one sentence."""


@dataclass(frozen=True)
class Block:
    """A fenced block: ``line`` is that of its first line of code, from 1."""

    page: Path
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def pages() -> list[Path]:
    """All pages with blocks, but BEWARE.md, whose blocks fail as they should (tests/test_beware.py)."""
    patterns = ("*.md", "docs/**/*.md", "examples/**/*.md", "model_cards/*.md")
    found = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if blocks(path))
    return [path for path in found if path.name != "BEWARE.md"]


def name_of(page: Path) -> str:
    """As `ELSEWHERE` has it."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page)


def blocks(page: Path) -> list[Block]:
    """Raise PageError if the last block has no end."""
    found, lines = [], iter(enumerate(page.read_text().splitlines(), start=1))
    for number, line in lines:
        if opened := re.fullmatch(r"( *)(```+)\s*(.*)", line):
            indent, fence, kind = opened.groups()
            code = []
            for _, inner in lines:
                if inner.strip() == fence:
                    break
                code.append(inner.removeprefix(indent))
            else:
                raise PageError(f"{name_of(page)}:{number}: the block has no end")
            found.append(Block(page, number + 1, kind, "\n".join(code) + "\n"))
    return found


def shell_lines(block: Block) -> Iterator[list[str]]:
    """The words of each command, continued lines joined and comments left out."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


# ------------------------------------------------------------------------------------------------- a page


def run_page(page: Path, *, quick: bool = False) -> None:
    """Run all blocks in the current directory, which should be empty.

    Raises:
        PageError: a block cannot be run, or a shape is another than its comment says. Whatever Python raises passes.
    """
    module = types.ModuleType("__main__")  # as if the page were a script: what it defines can be pickled
    module.__file__ = str(page)
    sys.modules["__main__"] = module
    found = blocks(page)
    if not found:
        raise PageError(f"{name_of(page)}: there is no block in it")
    for folder in SCRIPTS:
        os.symlink(ROOT / folder, folder)
    make_files("\n".join(block.code for block in found))
    if page.parent.name == "model_cards" and found[0].kind == "python":
        vars(module).update(given_by_card(found[0]))
    with chats(found) as found:
        run_blocks(found, vars(module), quick=quick)


@contextlib.contextmanager
def chats(found: list[Block]) -> Iterator[list[Block]]:
    """The blocks with the address of a stand-in, where they ask a server."""
    if not any(ADDRESS in block.code for block in found):
        yield found
        return
    from tests.vlm.chat_server import ChatServer

    with ChatServer() as server:
        yield [replace(block, code=block.code.replace(ADDRESS, server.url)) for block in found]


def run_blocks(found: list[Block], names: dict[str, Any], *, quick: bool) -> None:
    for block in found:
        if block.kind == "python":
            run_python(block, names)
        elif block.kind in SHELL:
            for words in shell_lines(block):
                run_shell(block, words, quick=quick)
        else:
            raise PageError(f"{block}: nothing runs a block of kind '{block.kind}', expected python, bash or none")


def given_by_card(block: Block) -> dict[str, object]:
    """A model card's example begins with the images ``x: (B, channels, rows, columns)`` that the card describes."""
    import torch

    import eo_zoo

    said = re.search(r"# x: \(B, (\d+), (\d+), (\d+)\)", block.code)
    if not said:
        raise PageError(f"{block}: no comment says what x is, as x: (B, 12, 120, 120)")
    return {"torch": torch, "eo_zoo": eo_zoo, "x": torch.zeros(2, *map(int, said.groups()))}


def run_python(block: Block, names: dict[str, Any]) -> None:
    tree = ast.increment_lineno(ast.parse(block.code), block.line - 1)  # tracebacks show the page's own lines
    lines = block.code.splitlines()
    for statement in tree.body:
        try:
            exec(compile(ast.Module([statement], []), str(block.page), "exec"), names)  # noqa: S102 - our own
        except SystemExit as stopped:
            raise PageError(f"{block}: it ends the program") from stopped
        if isinstance(statement, ast.Assign):
            _, _, comment = lines[(statement.end_lineno or statement.lineno) - block.line].partition("  # ")
            check_shapes(block, ast.unparse(statement.targets[0]), comment, names)


def check_shapes(block: Block, name: str, comment: str, names: dict[str, Any]) -> None:
    """Of a comment that begins with a shape: that of a tensor, or those of a list's tensors."""
    if not re.match(SHAPE, comment):
        return
    said = [eval(shape) for shape in re.findall(SHAPE, comment)]
    value = eval(name, names)
    found = [tuple(one.shape) for one in ([value] if hasattr(value, "shape") else value)]
    if len(said) < len(found) or not all(map(fits, found, said)):
        raise PageError(f"{block}: {name} has the shape {', '.join(map(str, found))}, and the comment says {comment}")


def fits(shape: tuple[int, ...], said: tuple[Any, ...]) -> bool:
    """``said`` may begin with ``...``."""
    return shape[1 - len(said) :] == said[1:] if said[0] is ... else shape == said


def make_files(text: str) -> None:
    """Those inputs that a page names."""
    from tests.page_files import FILES

    for name in FILES.keys() & {*re.findall(r"[\w.-]+", text)}:
        FILES[name](Path(name))


# --------------------------------------------------------------------------------------------- shell lines


def run_shell(block: Block, words: list[str], *, quick: bool = False) -> None:
    """Run a command, or find it in CI."""
    if words[0] == "eo-zoo":
        if not (quick and names_published(words)):
            run_eo_zoo(block, words[1:])
    elif words[0] == "python" and words[1].split("/")[0] in SCRIPTS:
        subprocess.run([sys.executable, *words[1:]], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    elif not in_ci(words):
        raise PageError(f"{block}: neither these tests nor .ci run '{shlex.join(words)}'")


def names_published(words: list[str]) -> bool:
    """Whether a word is a model whose weights are downloaded, or the line asks TerraSense."""
    if words[0] == "eo-zoo" and words[1] in ASKED and "--url" not in words:
        return True
    from eo_zoo import registry, weights
    from eo_zoo.weights.sources import LOCAL

    models = {*registry.list_models(), *weights.RECORDS}
    asked = [word for word in words if word in models and not {"info", "list"} & {*words}]
    return any(registry.get_record(name).scheme not in LOCAL for name in asked)


def run_eo_zoo(block: Block, arguments: list[str]) -> None:
    """In this process; lines stand for themselves, so what an earlier one wrote is not in the way."""
    from eo_zoo import cli

    for option, path in itertools.pairwise(arguments):
        if option in OUTPUTS:
            Path(path).unlink(missing_ok=True)
    sys.argv = ["eo-zoo", *arguments]
    try:
        cli.main()
    except SystemExit as stopped:
        if stopped.code:
            raise PageError(f"{block}: '{shlex.join(sys.argv)}' exits with {stopped.code}") from stopped


def in_ci(words: list[str]) -> bool:
    """Whether CI runs that line itself, or installs all that it names."""
    if words == ["bash", ".ci/run"]:
        return True
    ran = ci_lines()
    if words[:2] == ["pip", "install"]:
        installed = [line for line in ran if "pip" in line and "install" in line]
        return any({*requirements(words[2:])} <= {*requirements(line)} for line in installed)
    return words in ran


def requirements(words: list[str]) -> list[str]:
    """What is to be installed, and the extras that an extra of this package takes in."""
    wanted = [re.sub(r"^eo-zoo\b", ".", word) for word in words if not word.startswith("-")]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in wanted:  # which grows
        for extra in re.findall(r"[\w-]+", word) if word.startswith(".[") else ():
            own = [line for line in extras.get(extra, ()) if line.startswith("eo-zoo[")]
            wanted += [f".[{one}]" for line in own for one in re.findall(r"\w+", line)[2:]]
    return wanted


def ci_lines() -> list[list[str]]:
    """The words of all commands in .ci, and of those that make runs for its targets there."""
    lines = [line for path in sorted((ROOT / ".ci").iterdir()) for line in path.read_text().splitlines()]
    targets = [line.split()[1] for line in lines if re.fullmatch(r"make \w+", line)]
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", *targets], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found = []
    for line in [*lines, *made.stdout.splitlines()]:
        try:
            found.append(shlex.split(line, comments=True))
        except ValueError:  # of a quotation over several lines, which no page shows
            continue
    return found


# ------------------------------------------------------------------------------------------------ the script


def serve_models(hub: HubServer, text: str, folder: Path) -> None:
    """Let the Hub hold each model that a page calls org/MODEL, as `eo_zoo.hf.export` writes it."""
    from eo_zoo import registry, weights

    known = {*registry.list_models(), *weights.RECORDS}
    for name in sorted({*re.findall(r"\borg/([\w.-]+)", text)} & known):
        from eo_zoo.hf import export

        export(name, folder / name)
        for path in (path for path in (folder / name).rglob("*") if path.is_file()):
            file = path.relative_to(folder / name).as_posix()
            hub.add(f"org/{name}", file, path.read_bytes(), lfs=path.suffix == ".safetensors")


def serve_terrasense(hub: HubServer, text: str, folder: Path) -> None:
    """Let the Hub hold a tiny random TerraSense, where a page asks it."""
    if not re.search(rf"TerraSense|eo-zoo (?:{'|'.join(ASKED)})", text) or folder.exists():
        return
    from tests.vlm import tiny

    for path in tiny.brief(tiny.build(folder, "qwen3_vl")).iterdir():
        hub.add("TerraSense-CASM/TerraSense-Base", path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")


def read_checkout() -> None:
    """Let torch.hub read this checkout where a page says org/eo_zoo, and nothing else."""
    import torch

    load = torch.hub.load

    def local(repo: str, *arguments: Any, **options: Any) -> Any:
        if repo != "org/eo_zoo":
            raise PageError(f"torch.hub would load {repo}: only org/eo_zoo is at hand")
        return load(str(ROOT), *arguments, **{**options, "source": "local"})

    torch.hub.load = local


def forge_weights() -> None:
    """Let published weights be made on the spot instead of fetched."""
    from eo_zoo import weights
    from eo_zoo.weights import cache, sources

    fetch = sources.fetch
    for name, record in weights.RECORDS.items():  # where only an md5 is published, it and the size cannot be forged
        weights.RECORDS[name] = replace(record, md5=None, size=None) if record.md5 else record

    def forged(root: Path, record: weights.Record, expected: str | None) -> sources.Fetched:
        if record.scheme in sources.LOCAL or record.name not in weights.RECORDS:  # the latter from this machine's Hub
            return fetch(root, record, expected)
        from tests import forged

        path = root / "forged" / record.address
        forged.save(record, path)
        return sources.Fetched(path, cache.digest(path))

    sources.fetch = forged


def main() -> None:
    """Exit with 1 and one sentence, or the traceback of what a block raised, at the first failure."""
    parser = argparse.ArgumentParser(description="Run every block of Markdown pages.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--quick", action="store_true", help="without shell lines that name published weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, HubServer() as hub:
        # before any import that reads them once
        own = {"EO_ZOO_CACHE": f"{work}/cache", "HF_HOME": f"{work}/hf", "HF_ENDPOINT": hub.url, "MPLBACKEND": "Agg"}
        os.environ.update(own)
        try:
            read_checkout()
            forge_weights()
            for number, page in enumerate([page.resolve() for page in arguments.pages]):
                folder = Path(work) / str(number)
                folder.mkdir()
                os.chdir(folder)
                text = "\n".join(block.code for block in blocks(page))
                serve_models(hub, text, Path(work) / "exported")
                serve_terrasense(hub, text, Path(work) / "terrasense")
                run_page(page, quick=arguments.quick)
                sys.stdout.write(f"{name_of(page)}: every block ran\n")
        except PageError as error:
            sys.exit(str(error))
        finally:
            os.chdir(ROOT)  # Windows removes no folder that somebody works in


if __name__ == "__main__":
    main()
