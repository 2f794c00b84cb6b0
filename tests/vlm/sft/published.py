"""Small folders laid out as DOTA, DIOR, LEVIR-CD, RSVQA and RSICD are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

DOTA = """imagesource:GoogleEarth
gsd:0.146343590398
20 10 60 10 60 30 20 30 plane 0
100.0 50.0 120.0 70.0 100.0 90.0 80.0 70.0 small-vehicle 1
-30 40 10 40 10 60 -30 60 ship 0
"""
VOC = """<annotation>
  <filename>{name}.jpg</filename>
  <size><width>80</width><height>60</height><depth>3</depth></size>
  <object>
    <name>{kind}</name><pose>Unspecified</pose>
    {box}
  </object>
  <object>
    <name>ship</name><difficult>1</difficult>
    {box}
  </object>
</annotation>
"""
UPRIGHT = "<bndbox><xmin>8</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
TURNED = (
    "<robndbox><x_left_top>20</x_left_top><y_left_top>10</y_left_top><x_right_top>30</x_right_top>"
    "<y_right_top>20</y_right_top><x_right_bottom>20</x_right_bottom><y_right_bottom>30</y_right_bottom>"
    "<x_left_bottom>10</x_left_bottom><y_left_bottom>20</y_left_bottom></robndbox>"
)


def image(path: Path, size: tuple[int, int], value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def dota(folder: Path) -> Path:
    for split, name, text in (
        ("train", "P0001", DOTA),
        ("train", "P0002", "imagesource:x\ngsd:null\n"),
        ("val", "P3", DOTA),
    ):
        image(folder / split / "images" / f"{name}.png", (200, 100))
        label = folder / split / "labelTxt" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)
    return folder


def dior(folder: Path) -> Path:
    for split, names in (("trainval", ("00001", "00002")), ("test", ("00003",))):
        for name in names:
            image(folder / f"JPEGImages-{split}" / f"{name}.jpg", (80, 60))
            for kind, box in (("Horizontal", UPRIGHT), ("Oriented", TURNED)):
                file = folder / "Annotations" / f"{kind} Bounding Boxes" / f"{name}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(VOC.format(name=name, kind="Expressway-Service-area", box=box))
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split, names in (("train", "00001\n"), ("val", "00002\n"), ("test", "00003\n")):
        (main / f"{split}.txt").write_text(names)
    return folder


def levir_cd(folder: Path) -> Path:
    mask = np.zeros((64, 96), np.uint8)
    mask[10:20, 30:50] = 255
    mask[20:24, 50:54] = 255  # touches the first over a corner
    mask[50:60, 70:90] = 255
    for split, name, label in (("train", "train_1", mask), ("train", "train_2", mask * 0), ("test", "test_1", mask)):
        for side in "AB":
            image(folder / split / side / f"{name}.png", (96, 64))
        path = folder / split / "label" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(path)
    return folder


def rsvqa(folder: Path) -> Path:
    for number in (0, 1):
        image(folder / "Images_LR" / f"{number}.tif", (32, 32))
    gone = {"id": 9, "active": False}
    questions = [
        {"id": 0, "img_id": 0, "type": "presence", "question": "Is there water?", "answers_ids": [0], "active": True},
        {"id": 1, "img_id": 1, "type": "count", "question": "How many roads?", "answers_ids": [1], "active": True},
        gone,
        {"id": 2, "img_id": 0, "type": "comp", "question": "More farms?", "answers_ids": [2], "active": True},
    ]
    answers = [
        {"id": number, "question_id": number, "answer": text, "active": True}
        for number, text in enumerate(("yes", "4", "no"))
    ]
    (folder / "LR_split_train_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "LR_split_train_answers.json").write_text(json.dumps({"answers": [*answers, gone]}))
    return folder


def rsicd(folder: Path) -> Path:
    entries = []
    for name, split, texts in (
        ("airport_1.jpg", "train", ("many planes are parked .", "an airport .", "an airport .")),
        ("bridge_2.jpg", "test", ("a bridge .",)),
    ):
        image(folder / "RSICD_images" / name, (32, 32))
        sentences = [{"raw": text, "tokens": text.split(), "imgid": 0, "sentid": 0} for text in texts]
        entries.append({"filename": name, "imgid": len(entries), "split": split, "sentences": sentences})
    (folder / "dataset_rsicd.json").write_text(json.dumps({"images": entries, "dataset": "rsicd"}))
    return folder
