"""Data sets as they are published, read to scenes or to questions: DOTA, DIOR, LEVIR-CD, RSVQA, RSICD.

Names of classes become words: "small-vehicle" is "small vehicle". A file that is not as published is an InputError that
names it and the line.
"""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from eo_zoo.errors import InputError, nearest, require
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import Box
from eo_zoo.vlm.engine import Size
from eo_zoo.vlm.sft.questions import Scene, Turn, Writing, Written, talks, write

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: Corners of DIOR-R's oriented boxes, in order around the box.
CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")


def read(
    name: str,
    folder: Path,
    writing: Writing,
    parts: Path,
    *,
    split: str | None = None,
    oriented: bool | None = None,
    difficult: bool = True,
) -> Written:
    """A data set's folder as conversations.

    Args:
        name: dota, dior, levir-cd, rsvqa or rsicd.
        folder: as it is unpacked.
        writing: how conversations are put.
        parts: a folder for the parts of images that are cut.
        split: train, val, test...; all that is there if None.
        oriented: boxes along the objects; those of DOTA by default, and of DIOR where it has only them.
        difficult: keep objects that are marked as difficult.

    Raises:
        InputError: another name, a folder that is not laid out so, or a malformed file.
    """
    if name not in READERS:
        raise InputError(f"unknown data set '{name}'. {nearest(name, READERS)}")
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected that of {name}, unpacked")
    if name in TEXTS:
        written = Written()
        for images, turns in TEXTS[name](folder, split):
            written.conversations += talks(turns, images, writing.turns if name == "rsvqa" else 1)
    else:
        left = 0
        scenes = []
        for scene, marked in SCENES[name](folder, split, oriented):
            keep = tuple(box for box, hard in zip(scene.boxes, marked, strict=True) if difficult or not hard)
            left += len(scene.boxes) - len(keep)
            scenes.append(replace(scene, boxes=keep))
        written = write(scenes, writing, parts)
        written.left_out["difficult objects left out"] += left
    if not written.conversations:
        raise InputError(f"{folder}: nothing of {name} was found there" + f" for the split '{split}'" * bool(split))
    return written


Marked = tuple[Scene, list[bool]]  # a scene, and whether each of its objects is difficult


def dota(folder: Path, split: str | None, oriented: bool | None) -> Iterator[Marked]:
    """DOTA: ``images`` and ``labelTxt``, also below a folder of the split; x1 y1 ... x4 y4 class difficult.

    Source: captain-whu.github.io/DOTA/dataset.html. Lines such as "gsd:0.146" at the top are passed over.
    """
    base = folder / split if split and (folder / split).is_dir() else folder
    labels = sorted(path for path in base.glob("**/labelTxt*") if any(path.glob("*.txt")))
    if split and base is folder:
        labels = [path for path in labels if split in path.relative_to(folder).parts]
    if not labels:
        raise InputError(f"{base}: there is no folder labelTxt with text files, expected that of DOTA")
    pictures = _pictures(base)
    for file in (file for label in labels for file in sorted(label.glob("*.txt"))):
        boxes: list[Box] = []
        marked: list[bool] = []
        for number, line in enumerate(_text(file).splitlines(), 1):
            words = line.split()
            if not words or (":" in line and not boxes):
                continue
            try:
                places = [float(word) for word in words[:8]]
                label, hard = words[8], len(words) > 9 and int(words[9]) > 0
            except (ValueError, IndexError):
                places = []
            if len(places) < 8 or not all(map(math.isfinite, places)):
                raise InputError(
                    f"{file}, line {number}: found '{line.strip()[:60]}', expected x1 y1 x2 y2 x3 y3 x4 y4 class "
                    "difficult"
                )
            box = Box(tuple(zip(places[::2], places[1::2], strict=True)), _words(label), oriented=True)
            boxes.append(box if oriented is not False else _upright(box))
            marked.append(hard)
        path = _picture(pictures, file.stem, file)
        yield Scene((path,), _size(path), tuple(boxes)), marked


def dior(folder: Path, split: str | None, oriented: bool | None) -> Iterator[Marked]:
    """DIOR and DIOR-R: Pascal VOC's XML in ``Annotations``, with ``bndbox`` or ``robndbox``; ``ImageSets/Main`` splits.

    Source: gcheng-nwpu.github.io (DIOR, DIOR-R). Places are taken as they are, from the image's outer top-left edge.
    """
    files = sorted((folder / "Annotations").glob("**/*.xml"))
    chosen = [file for file in files if ("Oriented" in file.parent.name) == bool(oriented)]
    if not chosen and (oriented is None or not any("Bounding Boxes" in file.parent.name for file in files)):
        chosen = files
    if not chosen:
        raise InputError(
            f"{folder / 'Annotations'}: there are no {'oriented' if oriented else 'upright'} boxes of DIOR"
        )
    names = _listed(folder / "ImageSets" / "Main" / f"{split}.txt") if split else {file.stem for file in chosen}
    pictures = _pictures(folder)
    for file in (file for file in chosen if file.stem in names):
        boxes, marked = [], []
        lines = [_text(file).count("\n", 0, found.start()) + 1 for found in re.finditer("<object>", _text(file))]
        for line, item in zip(lines, _xml(file).iter("object"), strict=True):
            boxes.append(_voc(item, f"{file}, line {line}"))
            marked.append(item.findtext("difficult", "0").strip() not in ("", "0"))
        path = _picture(pictures, file.stem, file)
        yield Scene((path,), _size(path), tuple(boxes)), marked


def levir_cd(folder: Path, split: str | None, oriented: bool | None) -> Iterator[Marked]:
    """LEVIR-CD: images ``A`` (before) and ``B`` (after), and ``label``, not 0 where a building changed.

    Also below a folder of the split, or with names in ``list/SPLIT.txt``. Each connected area, over corners too, is a
    box. Source: justchenhao.github.io/LEVIR.
    """
    bases = [folder / split] if split and (folder / split).is_dir() else sorted({*folder.glob("*/"), folder})
    bases = [base for base in bases if (base / "label").is_dir()]
    listed = _listed(folder / "list" / f"{split}.txt") if split and bases == [folder] else None
    if not bases:
        raise InputError(f"{folder}: there is no folder label beside A and B, expected those of LEVIR-CD")
    sides = {base: [_pictures(base / side) for side in "AB"] for base in bases}
    for mask in (mask for base in bases for mask in sorted((base / "label").iterdir())):
        if mask.suffix.lower() not in PICTURES or (listed is not None and mask.stem not in listed):
            continue
        pair = tuple(_picture(pictures, mask.stem, mask) for pictures in sides[mask.parents[1]])
        sizes = {path: _size(path) for path in (*pair, mask)}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{path} is {width} x {height}" for path, (width, height) in sizes.items())
            raise InputError(f"{said} pixels: expected three of one size")
        boxes = _areas(mask, oriented=bool(oriented))
        yield Scene(pair, sizes[mask], tuple(boxes)), [False] * len(boxes)


def rsvqa(folder: Path, split: str | None) -> Iterator[tuple[tuple[Path, ...], list[Turn]]]:
    """RSVQA, low or high resolution: ``*questions.json`` and ``*answers.json``, of which the active ones count.

    Source: rsvqa.sylvainlobry.com. An image's file is its id.
    """
    pattern = f"*_split_{split}_questions.json" if split else "*questions.json"
    files = [file for file in sorted(folder.glob(f"**/{pattern}")) if split or "_split_" not in file.name]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{folder}: found {found} as {pattern}, expected one; give the split, as train")
    answer_file = files[0].with_name(files[0].name.replace("questions", "answers"))
    answers = {entry["id"]: entry for entry in _active(answer_file, "answers", ("id", "answer"))}
    pictures = _pictures(folder)
    asked: dict[str, list[Turn]] = {}
    for entry in _active(files[0], "questions", ("id", "img_id", "question", "answers_ids")):
        given = [answers[one] for one in entry["answers_ids"] if one in answers]
        if not given:
            raise InputError(f"{files[0]}: question {entry['id']} has no active answer in {answer_file.name}")
        asked.setdefault(str(entry["img_id"]), []).append((entry["question"], str(given[0]["answer"])))
    for image, turns in asked.items():
        yield (_picture(pictures, image, files[0]),), turns


def rsicd(folder: Path, split: str | None) -> Iterator[tuple[tuple[Path, ...], list[Turn]]]:
    """RSICD: ``dataset_rsicd.json``, as Karpathy's splits; each different sentence is a description of the image.

    Source: github.com/201528014227051/RSICD_optimal.
    """
    files = sorted(folder.glob("**/dataset*.json"))
    if len(files) != 1:
        raise InputError(f"{folder}: found {len(files)} files dataset*.json, expected dataset_rsicd.json alone")
    pictures = _pictures(folder)
    for entry in _entries(files[0], "images", ("filename", "split", "sentences")):
        if split and entry["split"] != split:
            continue
        image = _picture(pictures, Path(entry["filename"]).stem, files[0])
        for sentence in dict.fromkeys(str(one.get("raw", "")).strip() for one in entry["sentences"]):
            if sentence:
                yield (image,), [(prompts.DESCRIBE, sentence)]


SCENES: dict[str, Callable[[Path, str | None, bool | None], Iterator[Marked]]] = {
    "dota": dota,
    "dior": dior,
    "levir-cd": levir_cd,
}
TEXTS: dict[str, Callable[[Path, str | None], Iterator[tuple[tuple[Path, ...], list[Turn]]]]] = {
    "rsvqa": rsvqa,
    "rsicd": rsicd,
}
READERS = (*SCENES, *TEXTS)


# ---- files ----


def _words(name: str) -> str:
    return re.sub(r"[-_\s]+", " ", name).strip().lower()


def _upright(box: Box) -> Box:
    return replace(Box.upright(*box.bounds), label=box.label)


def _pictures(folder: Path) -> dict[str, Path]:
    """Images below a folder by their names without suffix."""
    found: dict[str, Path] = {}
    for path in (path for path in sorted(folder.glob("**/*")) if path.suffix.lower() in PICTURES):
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have one name: which of them labels mean cannot be told")
        found[path.stem] = path
    return found


def _picture(pictures: dict[str, Path], stem: str, why: Path) -> Path:
    if stem not in pictures:
        raise InputError(f"{why}: there is no image {stem} for it ({', '.join(PICTURES)})")
    return pictures[stem]


def _size(path: Path) -> Size:
    from eo_zoo.vlm.pictures import open_picture

    with open_picture(path) as picture:
        return picture.size


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text ({error})") from error


def _listed(file: Path) -> set[str]:
    """Names without suffix, one a line."""
    if not file.is_file():
        raise InputError(f"there is no {file}, which would list the split")
    return {Path(line.split()[0]).stem for line in _text(file).splitlines() if line.strip()}


def _xml(file: Path) -> ET.Element:
    try:
        return ET.fromstring(_text(file))
    except ET.ParseError as error:
        raise InputError(f"{file}, line {error.position[0]}: not XML ({error})") from error


def _voc(item: ET.Element, where: str) -> Box:
    """The box of an object."""
    name = _words(item.findtext("name", ""))
    turned, upright = item.find("robndbox"), item.find("bndbox")
    try:
        if turned is not None:
            points = [(_number(turned, f"x_{at}"), _number(turned, f"y_{at}")) for at in CORNERS]
            box = Box(tuple(points), name, oriented=True)
        elif upright is not None:
            left, top, right, bottom = (_number(upright, key) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = Box.upright(left, top, right, bottom, label=name)
        else:
            raise ValueError("neither bndbox nor robndbox")
        if not name:
            raise ValueError("no name")
    except ValueError as error:
        raise InputError(f"{where}: {error} in this object, expected Pascal VOC's or DIOR-R's form") from error
    return box


def _number(element: ET.Element, key: str) -> float:
    text = element.findtext(key)
    if text is None:
        raise ValueError(f"no {key}")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{key} is {text}")
    return value


def _areas(mask: Path, *, oriented: bool) -> list[Box]:
    """A box around each connected area of a mask."""
    import numpy as np
    from PIL import Image
    from rasterio.features import shapes

    shapely = require("shapely", "vlm")
    with Image.open(mask) as image:
        changed = (np.array(image.convert("L")) > 0).astype(np.uint8)
    boxes = []
    for shape, _ in shapes(changed, mask=changed.astype(bool), connectivity=8):
        polygon = shapely.geometry.shape(shape)
        box = replace(Box.upright(*polygon.bounds), label="building")
        if oriented:
            corners = shapely.oriented_envelope(polygon).exterior.coords[:4]
            box = replace(box, corners=tuple((float(x), float(y)) for x, y in corners), oriented=True)
        boxes.append(box)
    return boxes


def _entries(file: Path, key: str, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file's list."""
    try:
        listed = json.loads(_text(file)).get(key)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from error
    except AttributeError as error:
        raise InputError(f"{file}: expected an object with a list '{key}'") from error
    if not isinstance(listed, list):
        raise InputError(f"{file}: expected an object with a list '{key}'")
    for number, entry in enumerate(listed, 1):
        if not isinstance(entry, dict):
            raise InputError(f"{file}: entry {number} of '{key}' is no object")
        if entry.get("active", True) and (missing := [name for name in needed if name not in entry]):
            raise InputError(f"{file}: entry {number} of '{key}' has no {missing[0]}")
        yield entry


def _active(file: Path, key: str, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Those that are not withdrawn, of which no more than the id is left."""
    return (entry for entry in _entries(file, key, needed) if entry.get("active", True))
