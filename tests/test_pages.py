"""Every block of every page is run, here or in the environment that tests/pages.py names for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import pages

ROOT = Path(__file__).parents[1]
HERE = [path for path in map(pages.name_of, pages.pages()) if path not in pages.ELSEWHERE]
CARDS = [name for name in HERE if name.startswith("model_cards/")]
LONG = ["docs/finetuning.md", "docs/onnx.md", "docs/segmentation.md"]  # ten seconds and more
QUICK = [name for name in HERE if name not in (*CARDS, *LONG)]
PUBLISHED = [
    name
    for name in QUICK
    for block in pages.blocks(ROOT / name)
    if block.kind in pages.SHELL and any(map(pages.names_published, pages.shell_lines(block)))
]


def run(page: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "pages.py"), str(ROOT / page), *options]
    threads = os.environ.get("EO_ZOO_TEST_THREADS", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", QUICK)
def test_page(name):
    done = run(name, "--quick")
    assert done.returncode == 0 and f"{name}: every block ran" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [*dict.fromkeys(PUBLISHED), *LONG, *CARDS])
def test_long_page(name):
    done = run(name)
    assert done.returncode == 0 and f"{name}: every block ran" in done.stdout, done.stderr


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md"} <= {*QUICK} and {"README.md", "docs/terrasense.md"} <= {*PUBLISHED}
    assert {*LONG} <= {*HERE} and {Path(name).stem for name in CARDS} >= {"smarties_vit_base.eurosat_finetune"}


@pytest.mark.parametrize("name", pages.ELSEWHERE)
def test_the_other_environments_run_their_pages(name):
    rows = [re.split(r"[^\w./-]+", line) for line in (ROOT / ".ci" / "ecosystem").read_text().splitlines()]
    assert any({name, pages.ELSEWHERE[name]} <= {*row} for row in rows)
    for block in pages.blocks(ROOT / name):
        assert block.kind == "python" or all(map(pages.in_ci, pages.shell_lines(block))), block


BLOCK = "```{}\n{}\n```\n"
PASS = {
    "names live on": BLOCK.format("python", "x = 1") + BLOCK.format("python", "assert x == 1"),
    "an indented block": "- so:\n\n  ```python\n  for i in range(2):\n      i + 1\n  ```\n",
    "shapes": BLOCK.format(
        "python",
        "import torch\none = torch.zeros(2, 3)  # (2, 1 + 2)\n"
        "maps = [torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)]  # (1, 4, 4), (..., 2, 2), finest first\n"
        "[last] = maps[1:]  # (1, 2, 2)",
    ),
    "what is defined can be pickled": BLOCK.format(
        "python", "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A"
    ),
    "torch.hub": BLOCK.format(
        "python", 'import torch\nmodel = torch.hub.load("org/eo_zoo", "smarties_vit_nano", pretrained=False)'
    ),
    "the command line, and what it wrote": BLOCK.format(
        "bash",
        "eo-zoo embed examples/sahara --bbox 199980 2715620 225580 2741220 \\\n  -o out.tif  # a corner\n"
        "eo-zoo embed S2_folder/ -o out.tif",
    )
    + BLOCK.format("python", "from pathlib import Path\nassert Path('out.tif').stat().st_size > 1000"),
    "a Hub": BLOCK.format(
        "python",
        "import torch, timm, eo_zoo.hf\nfrom transformers import AutoModel\n"
        'a = timm.create_model("hf-hub:org/smarties_vit_nano", pretrained=True)\n'
        'b = AutoModel.from_pretrained("org/smarties_vit_nano")\n'
        "assert any(torch.equal(p, a.cls_token) for p in b.parameters())",
    ),
    "lines that CI has": BLOCK.format("", 'make test\nbash .ci/run\npip install ".[geo]"\npip install ".[vlm]"'),
    "a server of chats": BLOCK.format("", 'eo-zoo ask photo.jpg "What?" --url http://127.0.0.1:8000')
    + BLOCK.format(
        "python",
        "from eo_zoo.vlm import ServedModel\n"
        'assert ServedModel("http://127.0.0.1:8000").ask("photo.jpg", "What?").text == "What?"',
    ),
}
FAIL = {
    "a missing package": ("python", "import no_such_package", "No module named 'no_such_package'"),
    "a wrong shape": ("python", "import torch\nx = torch.zeros(2, 3)  # (2, 4)", r"x has the shape \(2, 3\), and the"),
    "a wrong shape in a list": (
        "python",
        "import torch\nx = [torch.zeros(2, 3)] * 2  # (2, 3), (..., 4)",
        r"x has the shape \(2, 3\), \(2, 3\), and the comment says \(2, 3\), \(\.\.\., 4\)",
    ),
    "a list with more than is said": ("python", "import torch\nx = [torch.zeros(2, 3)] * 2  # (2, 3)", "has the shape"),
    "the end of the program": ("python", "raise SystemExit", "it ends the program"),
    "another repository": ("python", "import torch\ntorch.hub.load('o/r', 'x')", "torch.hub would load o/r"),
    "another kind": ("yaml", "model: x", "nothing runs a block of kind 'yaml'"),
    "another command": ("", "git clone x", "neither these tests nor .ci run 'git clone x'"),
    "a target that CI does not make": ("", "make clean", "neither these tests nor .ci run 'make clean'"),
    "an extra that CI does not install": ("", 'pip install ".[terratorch]"', "neither these tests nor .ci run"),
    "a package that CI does not install": ("", "pip install no-such-package", "neither these tests nor .ci run"),
    "a wrong option": ("bash", "eo-zoo list --no-such", "'eo-zoo list --no-such' exits with 2"),
    "a script that fails": ("bash", "python examples/no_such.py", "non-zero exit status"),
}


def test_what_is_right_passes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join(PASS.values()))
    done = run(page)
    assert done.returncode == 0 and "page.md: every block ran" in done.stdout, done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to run pages in, in this process, whose state is put back."""
    for mapping, key in ((sys.modules, "__main__"), (vars(sys), "argv"), (vars(torch.hub), "load")):
        monkeypatch.setitem(mapping, key, mapping[key])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pages.read_checkout()
    return tmp_path


@pytest.mark.parametrize("case", FAIL)
def test_what_is_wrong_fails(here, case):
    kind, code, told = FAIL[case]
    (here / "page.md").write_text(BLOCK.format(kind, code))
    wrong = (pages.PageError, AssertionError, ImportError, subprocess.CalledProcessError)
    with pytest.raises(wrong, match=told):
        pages.run_page(here / "page.md")


@pytest.mark.parametrize(("text", "told"), [("```python\nx = 1\n", "has no end"), ("text\n", "there is no block")])
def test_a_page_that_is_not_whole_fails(here, text, told):
    (here / "page.md").write_text(text)
    with pytest.raises(pages.PageError, match=told):
        pages.run_page(here / "page.md")


def test_a_failure_is_shown_with_the_line_of_the_page(tmp_path):
    (tmp_path / "page.md").write_text("text\n\n" + BLOCK.format("python", "x = 1\nassert x == 2"))
    done = run(tmp_path / "page.md")
    assert done.returncode == 1 and 'page.md", line 5, in <module>\n    assert x == 2' in done.stderr
    (tmp_path / "page.md").write_text(BLOCK.format("yaml", "x: 1"))
    done = run(tmp_path / "page.md")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(str(tmp_path / "page.md:2: nothing runs"))
