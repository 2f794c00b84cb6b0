from __future__ import annotations

import json

import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import iou
from eo_zoo.vlm.parse import Space, parse_boxes
from eo_zoo.vlm.sft import readers
from eo_zoo.vlm.sft.questions import Writing
from tests.vlm.sft import published

THOUSAND = Writing(model_type="qwen3_vl", group=1, tasks=("detect",))


def read(name, folder, split="train", writing=THOUSAND, **options):
    return readers.read(name, folder, writing, folder / "parts", split=split, **options)


def asked(written) -> dict[str, str]:
    return {question: answer for one in written.conversations for question, answer in one.turns()}


def test_dota(tmp_path):
    written = read("dota", published.dota(tmp_path))
    full, empty = (
        {q: a for one in written.conversations if one.images[0].stem == name for q, a in one.turns()}
        for name in ("P0001", "P0002")
    )
    plane = '[{"bbox_2d": [100, 100, 300, 100, 300, 300, 100, 300], "label": "plane"}]'
    vehicle = '[{"bbox_2d": [500, 500, 600, 700, 500, 900, 400, 700], "label": "small vehicle"}]'
    assert full == {
        prompts.detect(["plane"], oriented=True): plane,
        prompts.detect(["small vehicle"], oriented=True): vehicle,
    }
    assert list(empty.values()) == ["[]"]
    assert written.left_out == {"objects left out that are cut at an edge": 1, "difficult objects left out": 0}
    easy = read("dota", tmp_path, difficult=False)
    assert "small vehicle" not in str(asked(easy))
    assert easy.left_out["difficult objects left out"] == 1
    upright = read("dota", tmp_path, oriented=False)
    assert asked(upright)[prompts.detect(["plane"])] == '[{"bbox_2d": [100, 100, 300, 300], "label": "plane"}]'
    assert {one.images[0].stem for one in read("dota", tmp_path, split=None).conversations} == {"P0001", "P0002", "P3"}


def test_dota_is_cut_into_parts(tmp_path):
    from PIL import Image

    writing = Writing(model_type="qwen3_vl", group=1, tasks=("detect",), window=100, overlap=20)
    written = read("dota", published.dota(tmp_path), writing=writing)
    parts = {one.images[0].name: dict(one.turns()) for one in written.conversations}
    assert set(parts) == {f"{name}_{col}_0.png" for name in ("P0001", "P0002") for col in (0, 80, 100)}
    for one in written.conversations:
        with Image.open(one.images[0]) as part:
            assert part.size == (100, 100)
    # the vehicle, 80 to 120, is whole in the part from 80, and cut in half by the others
    assert "[0, 700" not in str(parts["P0001_0_0.png"])
    vehicle = parts["P0001_80_0.png"][prompts.detect(["small vehicle"], oriented=True)]
    assert json.loads(vehicle)[0]["bbox_2d"] == [200, 500, 400, 700, 200, 900, 0, 700]


@pytest.mark.parametrize(
    ("split", "names"), [("train", {"00001"}), ("test", {"00003"}), (None, {"00001", "00002", "00003"})]
)
def test_dior(tmp_path, split, names):
    written = read("dior", published.dior(tmp_path), split=split)
    assert {one.images[0].stem for one in written.conversations} == names
    answers = asked(written)
    area = "expressway service area"
    assert answers[prompts.detect([area])] == f'[{{"bbox_2d": [100, 100, 500, 500], "label": "{area}"}}]'
    turned = asked(read("dior", tmp_path, split=split, oriented=True, difficult=False))
    corners = [250, 167, 375, 333, 250, 500, 125, 333]
    assert json.loads(turned[prompts.detect([area], oriented=True)]) == [{"bbox_2d": corners, "label": area}]
    assert "ship" not in str(turned)


def test_levir_cd(tmp_path):
    written = read("levir-cd", published.levir_cd(tmp_path))
    changed, same = written.conversations
    assert [path.parent.name for path in changed.images] == ["A", "B"]
    (question, answer), *_ = changed.turns()
    assert question == prompts.change()
    assert changed.messages[0].text == f"<image><image>{prompts.change()}"
    first, second = json.loads(answer)
    assert first == {"bbox_2d": [312, 156, 562, 375], "label": "building"}  # 30..54 of 96, 10..24 of 64
    assert second == {"bbox_2d": [729, 781, 938, 938], "label": "building"}
    assert [text for _, text in same.turns()] == ["[]"]
    turned = read("levir-cd", tmp_path, split="test", oriented=True)
    boxes = json.loads(next(iter(asked(turned).values())))
    assert all(len(box["bbox_2d"]) == 8 for box in boxes)


def test_levir_cd_with_lists(tmp_path):
    published.levir_cd(tmp_path / "whole")
    flat = tmp_path / "flat"
    (flat / "list").mkdir(parents=True)
    for side in ("A", "B", "label"):
        (tmp_path / "whole" / "train" / side).rename(flat / side)
    (flat / "list" / "train.txt").write_text("train_2.png\n")
    (flat / "list" / "val.txt").write_text("train_1.png\n")
    written = read("levir-cd", flat, split="val")
    assert [one.images[0].stem for one in written.conversations] == ["train_1"]


def test_rsvqa(tmp_path):
    written = read("rsvqa", published.rsvqa(tmp_path))
    turns = [(one.images[0].name, list(one.turns())) for one in written.conversations]
    assert turns == [
        ("0.tif", [("Is there water?", "yes"), ("More farms?", "no")]),
        ("1.tif", [("How many roads?", "4")]),
    ]
    single = read("rsvqa", tmp_path, writing=Writing(model_type="qwen3_vl", turns=1))
    assert len(single.conversations) == 3
    assert single.questions == 3


def test_rsicd(tmp_path):
    written = read("rsicd", published.rsicd(tmp_path))
    assert [list(one.turns()) for one in written.conversations] == [
        [(prompts.DESCRIBE, "many planes are parked .")],
        [(prompts.DESCRIBE, "an airport .")],
    ]
    assert len(read("rsicd", tmp_path, split=None).conversations) == 3


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_is_written_is_what_the_product_reads(tmp_path, model_type):
    writing = Writing(model_type=model_type, group=1, tasks=("detect",))
    answers = asked(read("dior", published.dior(tmp_path), writing=writing))
    from eo_zoo.vlm.sft.collate import seen_size

    space = Space.of(model_type, seen_size((80, 60), model_type, writing.generation()), (80, 60))
    parsed = parse_boxes(answers[prompts.detect(["ship"])], space)
    assert not parsed.unparsed
    assert not parsed.warnings
    from eo_zoo.vlm.boxes import Box

    assert iou(parsed.boxes[0], Box.upright(8, 6, 40, 30)) > 0.98


def test_malformed_files_are_named_with_their_lines(tmp_path):
    dota = published.dota(tmp_path / "dota")
    label = dota / "train" / "labelTxt" / "P0001.txt"
    label.write_text(published.DOTA + "1 2 3 4 plane 0\n")
    with pytest.raises(InputError, match=r"P0001\.txt, line 6: found '1 2 3 4 plane 0', expected x1 y1"):
        read("dota", dota)
    label.write_text(published.DOTA + "1 2 3 4 5 6 7 nan plane 0\n")
    with pytest.raises(InputError, match="line 6: found"):
        read("dota", dota)
    (dota / "train" / "images" / "P0001.png").unlink()
    label.write_text(published.DOTA)
    with pytest.raises(InputError, match=r"P0001\.txt: there is no image P0001"):
        read("dota", dota)

    dior = published.dior(tmp_path / "dior")
    file = dior / "Annotations" / "Horizontal Bounding Boxes" / "00001.xml"
    good = file.read_text()
    file.write_text(good.replace("<xmax>40</xmax>", "", 1))
    with pytest.raises(InputError, match=r"00001\.xml, line 4: no xmax in this object"):
        read("dior", dior)
    file.write_text(good.replace("</annotation>", ""))
    with pytest.raises(InputError, match=r"00001\.xml, line 13: not XML"):
        read("dior", dior)
    with pytest.raises(InputError, match=r"there is no .*other\.txt"):
        read("dior", dior, split="other")

    levir = published.levir_cd(tmp_path / "levir")
    published.image(levir / "train" / "B" / "train_1.png", (90, 64))
    with pytest.raises(InputError, match=r"train_1\.png is 90 x 64.*expected three of one size"):
        read("levir-cd", levir)

    rsvqa = published.rsvqa(tmp_path / "rsvqa")
    answers = rsvqa / "LR_split_train_answers.json"
    text = answers.read_text()
    answers.write_text(text.replace("[{", "[\n{", 1)[:-1])
    with pytest.raises(InputError, match=r"answers\.json, line 2: not JSON"):
        read("rsvqa", rsvqa)
    answers.write_text(text.replace('"id": 1,', '"id": 7,', 1))
    with pytest.raises(InputError, match="question 1 has no active answer"):
        read("rsvqa", rsvqa)
    with pytest.raises(InputError, match="found none as"):
        read("rsvqa", rsvqa, split="val")

    rsicd = published.rsicd(tmp_path / "rsicd")
    (rsicd / "dataset_rsicd.json").write_text('{"images": [{"filename": "a.jpg"}]}')
    with pytest.raises(InputError, match="entry 1 of 'images' has no split"):
        read("rsicd", rsicd)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"unknown data set 'dotta'\. Did you mean 'dota'"):
        read("dotta", tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read("dota", tmp_path / "lost")
    for name in ("dota", "dior", "levir-cd", "rsvqa", "rsicd"):
        with pytest.raises(InputError, match=r"there is no|there are no|found"):
            read(name, tmp_path)
