from __future__ import annotations

import json
from pathlib import Path

import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import Box
from eo_zoo.vlm.engine import Answer
from eo_zoo.vlm.records import Detections
from eo_zoo.vlm.sft import sharegpt
from eo_zoo.vlm.sft.evaluate import NO_ANSWER, compare, evaluate, predict
from eo_zoo.vlm.sft.sharegpt import Conversation
from eo_zoo.vlm.tasks import Asker
from tests.vlm.sft.planted import picture

SHIPS, PLANES = prompts.detect(["ship"]), prompts.detect(["plane"])


def ship(*bounds: float, score: float | None = None, label: str = "ship") -> Box:
    return Box.upright(*bounds, label=label, score=score)


def test_scores_by_hand():
    truth = [ship(0, 0, 10, 10), ship(20, 0, 30, 10), ship(40, 0, 50, 10)]
    # 100 of 100; 80 of 120 (IoU 2/3); 40 of 160 (IoU 1/4, no match)
    predicted = [ship(0, 0, 10, 10), ship(22, 0, 32, 10), ship(46, 0, 56, 10)]
    (one,) = compare(predicted, truth).values()
    assert (one.matched, one.predicted, one.truth) == (2, 3, 3)
    assert one.precision == one.recall == one.f1 == pytest.approx(2 / 3)
    assert one.mean_iou == pytest.approx((1 + 2 / 3) / 2)
    (strict,) = compare(predicted, truth, 0.7).values()
    assert strict.matched == 1


def test_matches_are_one_to_one():
    truth = [ship(0, 0, 10, 10)]
    doubled = [ship(0, 0, 10, 9), ship(0, 0, 10, 10)]
    (one,) = compare(doubled, truth).values()
    assert (one.matched, one.predicted, one.mean_iou) == (1, 2, 1.0)  # without scores the better one is taken
    scored = [ship(0, 0, 10, 9, score=0.9), ship(0, 0, 10, 10, score=0.8)]
    (one,) = compare(scored, truth).values()
    assert (one.matched, one.mean_iou) == (1, pytest.approx(0.9))  # with scores the surer one


def test_classes_are_kept_apart_and_spelling_is_not():
    truth = [ship(0, 0, 10, 10, label="Small-Vehicle"), ship(0, 0, 10, 10, label="plane")]
    predicted = [ship(0, 0, 10, 10, label="small vehicle"), ship(20, 0, 30, 10, label="car")]
    scores = {label: (one.matched, one.predicted, one.truth) for label, one in compare(predicted, truth).items()}
    assert scores == {"small vehicle": (1, 1, 1), "car": (0, 1, 0), "plane": (0, 0, 1)}
    assert compare(predicted, truth)["car"].recall is None
    assert compare(predicted, truth)["plane"].precision is None


def test_oriented_boxes_by_hand():
    diamond = Box(((10, 0), (20, 10), (10, 20), (0, 10)), "ship", oriented=True)
    upright = ship(0, 0, 20, 20)  # twice the area
    (one,) = compare([upright], [diamond]).values()
    assert one.matched == 1
    assert one.mean_iou == pytest.approx(0.5)
    (one,) = compare([upright], [diamond], 0.51).values()
    assert one.matched == 0


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """100 x 100 pictures: an upright one with two ships, an empty one, an oriented one."""
    a, b, c = (picture(tmp_path / f"{name}.png", (9, 9, 9), size=(100, 100)) for name in "abc")
    corners = [100, 0, 200, 100, 100, 200, 0, 100]
    oriented = prompts.detect(["ship"], oriented=True)
    counting = prompts.count("ship")

    def places(*boxes: list[int]) -> str:
        return json.dumps([{"bbox_2d": box, "label": "ship"} for box in boxes])

    truth = [
        Conversation.of([(SHIPS, places([0, 0, 100, 100], [500, 500, 600, 600])), (counting, "2")], [a]),
        Conversation.of([(SHIPS, "[]"), ("Is it empty?", "no")], [b]),
        Conversation.of([(oriented, places(corners))], [c]),
    ]
    said = [
        Conversation.of([(SHIPS, places([0, 0, 100, 100])), (counting, "3")], [a]),
        Conversation.of([(SHIPS, places([10, 10, 90, 90])), ("Is it empty?", "yes")], [b]),
        Conversation.of([(oriented, f"{places(corners)} and one at [1, 2")], [c]),
    ]
    sharegpt.write(tmp_path / "truth.json", truth)
    sharegpt.write(tmp_path / "said.jsonl", said)
    return tmp_path / "said.jsonl", tmp_path / "truth.json"


def test_conversations_are_compared_question_by_question(files):
    result = evaluate(*files, model_type="qwen3_vl")
    assert (result.questions, result.unanswered, result.unread, result.unknown) == (3, 0, 1, 0)
    upright, oriented = result.scores["upright"][""], result.scores["oriented"][""]
    assert (upright.matched, upright.predicted, upright.truth) == (1, 2, 2)
    assert upright.mean_iou == 1
    assert (oriented.matched, oriented.predicted, oriented.truth) == (1, 1, 1)
    assert result.scores["upright"]["ship"] == upright
    assert result.to_dict()["scores"]["upright"]["all"]["f1"] == 0.5


def test_missing_and_surplus_predictions(files, tmp_path):
    said = sharegpt.read(files[0])
    other = Conversation.of([(PLANES, "[]")], said[0].images)
    sharegpt.write(tmp_path / "part.json", [said[1], other])
    result = evaluate(tmp_path / "part.json", files[1], model_type="qwen3_vl")
    assert (result.questions, result.unanswered, result.unknown) == (3, 2, 1)
    assert result.scores["upright"][""].truth == 2
    sharegpt.write(tmp_path / "other.json", [other])
    with pytest.raises(InputError, match="have nothing in common: expected the same images' names, and the same"):
        evaluate(tmp_path / "other.json", files[1], model_type="qwen3_vl")


def found(name: str, *boxes: Box) -> Detections:
    return Detections(boxes, (100, 100), None, None, source=name, prompt=SHIPS, model="m")


def test_detections_are_compared_image_by_image(files, tmp_path):
    folder = tmp_path / "found"
    folder.mkdir()
    found("a.png", ship(0, 0, 10, 10, score=0.5), ship(70, 70, 80, 80, score=0.9)).write(folder / "a.json")
    found("b.png").write(folder / "b.json")
    result = evaluate(folder, files[1], model_type="qwen3_vl")
    assert (result.questions, result.unanswered) == (3, 1)
    upright = result.scores["upright"][""]
    assert (upright.matched, upright.predicted, upright.truth) == (1, 2, 2)
    lines = [json.dumps(json.loads((folder / f"{name}.json").read_text())) for name in "ab"]
    (tmp_path / "found.jsonl").write_text("\n".join(lines))
    assert evaluate(tmp_path / "found.jsonl", files[1], model_type="qwen3_vl") == result
    same = evaluate(folder, folder / "a.json")
    assert same.scores["upright"][""].f1 == 1


def test_coordinates_are_read_as_the_model_writes_them(tmp_path):
    """448 x 448 is what is seen of 100 x 100."""
    image = picture(tmp_path / "a.png", (9, 9, 9), size=(100, 100))
    answer = '[{"bbox_2d": [0, 0, 448, 224], "label": "ship"}]'
    sharegpt.write(tmp_path / "said.json", [Conversation.of([(SHIPS, answer)], [image])])
    found("a.png", ship(0, 0, 100, 50)).write(tmp_path / "truth.json")
    result = evaluate(tmp_path / "said.json", tmp_path / "truth.json", model_type="qwen2_5_vl")
    assert result.scores["upright"][""].mean_iou == pytest.approx(1)


def test_files_that_cannot_be_compared(files, tmp_path):
    with pytest.raises(InputError, match="give the model type"):
        evaluate(*files)
    with pytest.raises(InputError, match="threshold is 0"):
        evaluate(*files, threshold=0, model_type="qwen3_vl")
    (tmp_path / "bad.json").write_text('{"source": "a.png", "boxes": [{"class": "ship"}]}')
    with pytest.raises(InputError, match=r"bad\.json: a box is not as eo-zoo detect writes it"):
        evaluate(tmp_path / "bad.json", files[1], model_type="qwen3_vl")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no \.json in this folder"):
        evaluate(tmp_path / "none", files[1], model_type="qwen3_vl")


class Parrot(Asker):
    """Says what it was asked."""

    name, model_type = "parrot", "qwen3_vl"

    def answer(self, questions, generation):
        assert generation.temperature == 0
        return [Answer("" if "empty" in q.prompt else f"{len(q.images)}: {q.prompt}") for q in questions]

    def pieces(self, question, generation):
        # nothing here streams
        raise NotImplementedError


def test_each_question_is_asked_alone_and_answers_are_kept_in_place(files):
    truth = sharegpt.read(files[1])
    answered = predict(Parrot(), truth, progress=False)
    assert [one.images for one in answered] == [one.images for one in truth]
    for one, true in zip(answered, truth, strict=True):
        for (question, answer), (asked, _) in zip(one.turns(), true.turns(), strict=True):
            assert question == asked
            assert answer == (NO_ANSWER if "empty" in question else f"1: {question}")
