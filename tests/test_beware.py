"""Every block of BEWARE.md is run: what is quoted is what eo_zoo says, and what is not caught passes in silence."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from PIL import Image
from safetensors.torch import save_file

import eo_zoo
from eo_zoo.errors import DownloadError, InputError, MissingExtra
from eo_zoo.models import anysat
from tests import page_files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "BEWARE.md").read_text("utf-8")
KINDS = ("Error", "Warning", "Note", "Default", "Not caught")
TOLD = KINDS[:3]  # by eo_zoo, in these words
S2 = page_files.names_of("S2")
SERIES = [name for name in S2 if name not in ("B01", "B09")]


def verdicts(text: str) -> list[tuple[str, str]]:
    """What is quoted: its kind, and the words on one line."""
    quotes = re.findall(r"^> ([A-Z][a-z ]+): (.+)$", text, re.M)
    assert len(quotes) == text.count("\n> ") and {kind for kind, _ in quotes} <= {*KINDS}, text
    return quotes


def cases() -> list[Any]:
    """Of each block: the item that it is of, its kind, its code, and what is quoted up to the next one."""
    found = []
    for item in re.split(r"^### ", PAGE, flags=re.M)[1:]:
        title, _, text = re.split(r"^## ", item, flags=re.M)[0].partition("\n")
        _, *parts = re.split(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
        blocks = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
        found += [pytest.param(*block, id=f"{title} {n}") for n, block in enumerate(blocks, 1)]
    return found


# ------------------------------------------------------------------------------------- the files that blocks name


def scene(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda values: values, **options: Any) -> None:
    """Twelve bands of Sentinel-2 that the bundled model finds nothing to object to, but for what ``change`` does."""
    own = eo_zoo.sensors.get_statistics("nano/S2-L2A")
    waves = page_files.surfaces(len(S2), 112, 100, 900)
    values = [low + (high - low) * wave / 1000 for wave, low, high in zip(waves, own.p1, own.p99, strict=True)]
    page_files.write(
        path, [change(one.astype(np.uint16)) for one in values], **{"pixel": 100, "names": S2, "nodata": 0, **options}
    )


def eurosat(path: Path) -> None:
    """Values of thirteen bands, the narrow near infrared last, under names in the order of wavelengths."""
    names = page_files.names_of("S2-L1C")
    values = (1300, 1100, 1000, 900, 1100, 1800, 2100, 2000, 719, 42, 1700, 1046, 2200)
    page_files.write(path, [np.full((64, 64), one, np.uint16) for one in values], names=names, pixel=100, nodata=0)


def radar(path: Path, kind: type) -> None:
    values = [(one / 1000).astype(kind) for one in page_files.surfaces(2, 112)]
    page_files.write(path, values, names=["VV", "VH"], pixel=20)


def aerial(path: Path, **options: Any) -> None:
    values = [one.astype(np.uint8) for one in page_files.surfaces(4, 400, 20, 200)]
    page_files.write(path, values, names=["nir", "red", "green", "blue"], **{"pixel": 0.2, **options})


def images(folder: Path, *names: str) -> None:
    for name in names:
        page_files.write(folder / name, page_files.surfaces(len(SERIES), 8), names=SERIES)


def weights_of(model: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in model.state_dict().items()}


def nano(path: Path, *, norm: str | None = "norm", times: float = 1) -> None:
    """The bundled weights, all ``times`` that, with the last norm under another name or none."""
    tensors = weights_of(eo_zoo.create_model("smarties_vit_nano"))
    if norm != "norm":
        ours = {name: tensors.pop(name) for name in ("norm.weight", "norm.bias")}
        tensors |= {name.replace("norm", norm): tensor for name, tensor in ours.items() if norm}
    save_file({name: times * tensor for name, tensor in tensors.items()}, path)


def diverged(path: Path) -> None:
    tensors = weights_of(eo_zoo.create_model("smarties_vit_nano"))
    save_file(tensors | {"norm.weight": torch.full((128,), torch.nan)}, path)


def cut(path: Path) -> None:
    nano(path)
    path.write_bytes(path.read_bytes()[:-1000])


def state(path: Path) -> None:
    """AnySat's pretraining state with both encoders."""
    model = eo_zoo.create_model("anysat_nano", pretrained=False)
    torch.save({"state_dict": weights_of(model, "student.") | weights_of(model, "teacher.")}, path)


FILES: dict[str, Callable[[Path], None]] = {
    "scene.tif": scene,
    "reflectance.tif": lambda path: scene(path, lambda values: (values / 10000).astype(np.float32)),
    "offset.tif": lambda path: scene(path, scale=0.0001, offset=-0.1),
    "preview.tif": lambda path: scene(path, lambda values: (values // 30).astype(np.uint8)),
    "infinite.tif": lambda path: scene(path, lambda values: np.full_like(values, np.inf, np.float32)),
    "margin.tif": lambda path: scene(path, nodata=None),
    "bright.tif": lambda path: scene(path, lambda values: 8 * values),
    "nameless.tif": lambda path: scene(path, names=()),
    "fine.tif": lambda path: scene(path, pixel=10),
    "unplaced.tif": lambda path: scene(path, crs=None),
    "rotated.tif": lambda path: scene(path, transform=Affine(100, 5, 5e5, 5, -100, 52e5)),
    "fiji.tif": lambda path: scene(path, crs="EPSG:4326", pixel=0.001, origin=(179.95, -17)),
    "level1c.tif": lambda path: page_files.level1c(path, 112),
    "eurosat.tif": eurosat,
    "unit.tif": lambda path: page_files.write(
        path, [np.full((112, 112), 0.5, np.float32)] * 3, names=["red", "green", "blue"], pixel=0.2
    ),
    "power.tif": lambda path: radar(path, np.float32),
    "amplitude.tif": lambda path: radar(path, np.uint16),
    "degrees.tif": lambda path: aerial(path, crs="EPSG:4326", pixel=0.00001, origin=(10.0, 47.0)),
    "zone33.tif": lambda path: aerial(path, crs="EPSG:32633"),
    "series": page_files.series,
    "undated": lambda path: images(path, "a.tif"),
    "twice": lambda path: images(path, "20200401_a.tif", "20200401_b.tif"),
    "nano.safetensors": nano,
    "partial.safetensors": lambda path: nano(path, norm=None),
    "averaged.safetensors": lambda path: nano(path, norm="fc_norm"),
    "empty.safetensors": lambda path: nano(path, times=0),
    "diverged.safetensors": diverged,
    "cut.safetensors": cut,
    "state.pth": state,
    "pickled.pth": lambda path: torch.save(eo_zoo.create_model("smarties_vit_nano"), path),
    "mars_large_rgb_encoder_only.pth": lambda path: torch.save({"patch_embed.norm.bias": torch.ones(192)}, path),
    "photo.jpg": page_files.photo,
    "larger.jpg": lambda path: Image.new("RGB", (100, 100)).save(path),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def given():
    """The names of the page's first block."""
    [(_, code)] = re.findall(r"^```(python)\n(.*?)^```$", PAGE.partition("\n## ")[0], re.M | re.S)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)  # noqa: S102 - our own
    return names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a mirror that holds a damaged file, and is all the network there is."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("EO_ZOO_MIRROR", str(tmp_path / "mirror"))
    damaged = tmp_path / "mirror" / eo_zoo.weights.RECORDS["mars_base_rgb.pretrain"].address
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(bytes(1000))
    return tmp_path / "work"


def in_words(sentence: str) -> str:
    """A pattern; the page has … for what depends on the machine or the data, but for that of a short hash."""
    return ".*".join(re.escape(part.strip()) for part in re.split(r"(?:^|(?<=[ (]))…", sentence))


@pytest.mark.parametrize(("kind", "code", "after"), cases())
def test_a_block(kind, code, after, given, here, caplog, run):
    quoted = verdicts(after)
    for name in FILES.keys() & {*re.findall(r"[\w.-]+", code)}:
        FILES[name](here / name)
    caplog.set_level(logging.INFO, logger="eo_zoo")
    caplog.clear()
    anysat._say_flash.cache_clear()
    anysat._warn_many.cache_clear()
    said = dict(in_python(code, dict(given), caplog) if kind == "python" else on_the_command_line(code, run))
    for verdict, sentence in quoted:
        if verdict in TOLD:
            assert re.search(in_words(sentence), said[verdict]), (verdict, sentence, said)
    known = {kind for kind, _ in quoted}
    assert "Error" in known or not said["Error"], said
    assert {"Error", "Warning"} & known or not said["Warning"], said


def in_python(code, names, caplog):
    error = ""
    try:
        exec(code, names)  # noqa: S102 - our own
    except (InputError, DownloadError) as raised:
        error = str(raised)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    told = {
        level: "\n".join(r.getMessage() for r in caplog.records if r.levelname == level)
        for level in ("INFO", "WARNING")
    }
    return {"Error": error, "Warning": told["WARNING"], "Note": told["INFO"]}


def on_the_command_line(code, run):
    [line] = code.splitlines()
    _, *words = shlex.split(line)
    status, _, told = run(*words)
    _, *parts = re.split(r"(?:^| )(error|warning): ", told)
    by_kind = {
        kind: "\n".join(t for k, t in zip(parts[::2], parts[1::2], strict=True) if k == kind)
        for kind in ("error", "warning")
    }
    assert bool(status) == bool(by_kind["error"]), told
    return {"Error": by_kind["error"], "Warning": by_kind["warning"], "Note": told}


def test_every_item_says_what_becomes_of_it():
    items = re.split(r"^##+ ", PAGE, flags=re.M)[1:]
    titles = [item.partition("\n")[0] for item in items]
    assert len({*titles}) == len(titles) > 60
    for item in re.split(r"^### ", PAGE, flags=re.M)[1:]:
        text = re.split(r"^## ", item, flags=re.M)[0]
        blocks = re.split(r"^```\w*\n.*?^```$", text, flags=re.M | re.S)
        quoted = [verdicts(part) for part in blocks]
        assert all(quoted[1:]) and any(quoted), text
        # without a block there is nothing that could catch it
        assert len(blocks) > 1 or [kind for kind, _ in quoted[0]] == ["Not caught"], text


def test_links_lead_somewhere():
    groups = [f"#{group.lower().replace(' ', '-')}" for group in re.findall(r"^## (.+)$", PAGE, re.M)]
    links = re.findall(r"\]\(([^)\s]+)\)", PAGE)
    assert [link for link in links if link.startswith("#")] == groups
    assert not [link for link in links if not link.startswith("#") and not (ROOT / link).exists()]
