from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import Box, Window
from eo_zoo.vlm.sft.questions import Scene, Writing, clipped, write

BOXES = (
    Box.upright(10, 60, 30, 80, label="ship"),
    Box.upright(50, 10, 90, 30, label="ship"),
    Box.upright(0, 0, 100, 100, label="harbor"),
)


def scenes(count: int = 1) -> list[Scene]:
    other = Scene((Path("z.png"),), (100, 100), (Box.upright(1, 1, 50, 50, label="plane"),))
    return [*(Scene((Path(f"{number}.png"),), (100, 100), BOXES) for number in range(count)), other]


def turns(writing: Writing, count: int = 1) -> list[tuple[str, str]]:
    written = write(scenes(count), writing, Path("parts"))
    return [turn for one in written.conversations if one.images[0].stem != "z" for turn in one.turns()]


def test_each_class_is_asked_for_once_and_one_that_is_not_there():
    made = turns(Writing(model_type="qwen3_vl", group=1))
    ships = '[{"bbox_2d": [500, 100, 900, 300], "label": "ship"}, {"bbox_2d": [100, 600, 300, 800], "label": "ship"}]'
    answers = {
        prompts.detect(["ship"]): ships,
        prompts.detect(["harbor"]): '[{"bbox_2d": [0, 0, 1000, 1000], "label": "harbor"}]',
        prompts.detect(["plane"]): "[]",
    }
    counts = {prompts.count(name): str(count) for name, count in (("ship", 2), ("harbor", 1), ("plane", 0))}
    detected = [turn for turn in made if turn[0] in answers]
    assert dict(detected) == answers
    (counted,) = [turn for turn in made if turn not in detected]
    assert counts[counted[0]] == counted[1]


def test_classes_are_asked_for_together_and_alone():
    made = turns(Writing(model_type="qwen3_vl", tasks=("detect",)), count=40)
    asked = Counter(question.split(" in this image")[0] for question, _ in made)
    assert asked["Detect every ship"]
    assert any(" and " in question for question in asked)
    assert any(", " in question for question in asked)
    again = turns(Writing(model_type="qwen3_vl", tasks=("detect",)), count=40)
    assert made == again
    assert made != turns(Writing(model_type="qwen3_vl", tasks=("detect",), seed=1), count=40)


def test_conversations_are_no_longer_than_asked():
    written = write(scenes(), Writing(model_type="qwen3_vl", group=1, turns=3), Path("parts"))
    assert [sum(1 for _ in one.turns()) for one in written.conversations] == [3, 1, 3]
    assert all(one.messages[0].text.startswith("<image>") for one in written.conversations)


def test_coordinates_are_those_of_the_model():
    box, size = Box.upright(100, 40, 300, 120, label="a"), (400, 160)
    assert Writing(model_type="qwen2_vl").numbers(box, size) == [250, 250, 750, 750]
    # seen as 392 x 168 first, and, as these are fewer than 200,704 pixels, as 700 x 308
    assert Writing(model_type="qwen2_5_vl").numbers(box, size) == [175, 77, 525, 231]
    small = Writing(model_type="qwen2_5_vl", min_pixels=3136)
    assert small.numbers(box, size) == [98, 42, 294, 126]


def test_empty_images_and_objects_too_small_to_write():
    tiny = Scene((Path("a.png"),), (8000, 8000), (Box.upright(6, 6, 7, 7, label="car"), *BOXES))
    empty = Scene((Path("b.png"),), (100, 100), ())
    written = write([tiny, empty], Writing(model_type="qwen3_vl"), Path("parts"))
    assert written.left_out["objects left out that are too small to be written"] == 1
    assert any(one.images == (Path("b.png"),) for one in written.conversations)
    written = write([tiny, empty], Writing(model_type="qwen3_vl", empty=False), Path("parts"))
    assert written.left_out["images without an object left out"] == 1
    assert "1 images without an object left out" in written.summary()
    with pytest.raises(InputError, match=r"a\.png: .*10000 x 10000.* or cut it into parts with --window"):
        write([replace(tiny, size=(10000, 10000))], Writing(model_type="qwen3_vl"), Path("parts"))


def test_what_a_window_shows_of_a_box():
    box = Box.upright(80, 40, 120, 60, label="a")
    assert clipped(box, Window(0, 0, 100, 100)) is None  # half of it
    assert clipped(box, Window(0, 0, 100, 110)) == Box.upright(80, 40, 110, 60, label="a")
    assert clipped(box, Window(30, 50, 100, 100)) == Box.upright(30, 10, 70, 30, label="a")
    turned = Box(((100, 50), (120, 70), (100, 90), (80, 70)), "b", oriented=True)
    part = clipped(turned, Window(0, 0, 100, 115))
    assert part is not None
    assert part.oriented
    assert part.label == "b"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(model_type="llava"), "model_type is 'llava'"),
        (dict(model_type="qwen3_vl", tasks=("detect", "draw")), "tasks are detect, draw"),
        (dict(model_type="qwen3_vl", group=0), "group is 0"),
        (dict(model_type="qwen3_vl", window=5), "window is 5"),
        (dict(model_type="qwen3_vl", max_pixels=5), "min_pixels is"),
    ],
)
def test_a_writing_out_of_range(wrong, said):
    with pytest.raises(InputError, match=said):
        Writing(**wrong)
