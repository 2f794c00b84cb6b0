"""Boxes against the truth: precision, recall, F1 and mean IoU, of upright and of oriented boxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eo_zoo.errors import InputError
from eo_zoo.vlm.boxes import Box, class_of, iou
from eo_zoo.vlm.engine import Generation
from eo_zoo.vlm.parse import Space, parse_boxes
from eo_zoo.vlm.sft import sharegpt
from eo_zoo.vlm.sft.collate import seen_size
from eo_zoo.vlm.sft.sharegpt import Conversation, Message
from eo_zoo.vlm.tasks import EXACT, Asker

FORMS = ("upright", "oriented")
NO_ANSWER = "(no answer)"
Key = tuple[str, ...]  # names of the images, and the question where both sides have one


@dataclass
class Scores:
    """Counts of boxes, and the numbers that follow from them.

    Args:
        matched: predicted boxes that are a true one.
        predicted: boxes.
        truth: boxes.
        overlap: sum of the matched boxes' IoU.
    """

    matched: int = 0
    predicted: int = 0
    truth: int = 0
    overlap: float = 0.0

    def add(self, other: Scores) -> None:
        """Take in more boxes."""
        self.matched += other.matched
        self.predicted += other.predicted
        self.truth += other.truth
        self.overlap += other.overlap

    @property
    def precision(self) -> float | None:
        """Share of the predicted boxes that are true; None without any."""
        return self.matched / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the true boxes that were found; None without any."""
        return self.matched / self.truth if self.truth else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None without any box."""
        both = self.predicted + self.truth
        return 2 * self.matched / both if both else None

    @property
    def mean_iou(self) -> float | None:
        """Of the matched boxes; None without any."""
        return self.overlap / self.matched if self.matched else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        numbers = dict(precision=self.precision, recall=self.recall, f1=self.f1, mean_iou=self.mean_iou)
        return numbers | dict(matched=self.matched, predicted=self.predicted, truth=self.truth)


@dataclass
class Evaluation:
    """Scores of each form and class, and what was not compared.

    Args:
        scores: by form ("upright", "oriented"), then by class; "" is all classes.
        questions: that were compared: those of the truth whose answers are boxes.
        unanswered: of these, without a prediction; their boxes count as not found.
        unread: predictions with parts that could not be read as boxes.
        unknown: predictions without a truth, left out.
    """

    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    questions: int = 0
    unanswered: int = 0
    unread: int = 0
    unknown: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``all`` is all classes."""
        by_form = {
            form: {label or "all": one.to_dict() for label, one in classes.items()}
            for form, classes in self.scores.items()
        }
        told = dict(questions=self.questions, unanswered=self.unanswered, unread=self.unread, unknown=self.unknown)
        return told | {"scores": by_form}


@dataclass
class Found:
    """The boxes of an answer, the number of parts that are none, and whether the answer is of boxes at all."""

    boxes: list[Box]
    unread: int = 0
    places: bool = True


def evaluate(
    predictions: Path,
    truth: Path,
    *,
    threshold: float = 0.5,
    model_type: str | None = None,
    generation: Generation | None = None,
) -> Evaluation:
    """Compare two files question by question.

    Each may be conversations (.json, .jsonl; see `eo_zoo.vlm.sft.sharegpt`), or detections as ``eo-zoo detect -o
    FILE.json`` writes them: a file, one a line in a .jsonl, or a folder of files. Where one side is detections, boxes
    are compared image by image. A question is of oriented boxes if a true box is, or without a true one if a predicted
    one is. Matches are one to one within a class and a question: by falling score, each with the best box left, where
    all predicted boxes have one, else by falling IoU.

    Args:
        predictions: what a model said.
        truth: what is there.
        threshold: IoU from which on two boxes match.
        model_type: of conversations, how places are written in them.
        generation: the limits of an image's pixels in conversations; the usual ones if None.

    Raises:
        InputError: a file that is none of these, a missing ``model_type``, or nothing in common.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"the IoU threshold is {threshold}, expected more than 0, at most 1")
    limits = generation or Generation()
    said, there = _read(predictions, model_type, limits), _read(truth, model_type, limits)
    if not (said.conversations and there.conversations):
        said, there = said.by_image(), there.by_image()
    result = Evaluation(unknown=len(said.found.keys() - there.found.keys()))
    for key, true in there.found.items():
        if not true.places:
            continue
        guess = said.found.get(key)
        result.questions += 1
        result.unanswered += guess is None
        result.unread += guess is not None and guess.unread > 0
        boxes = guess.boxes if guess else []
        form = FORMS[any(box.oriented for box in true.boxes or boxes)]
        classes = result.scores.setdefault(form, {"": Scores()})
        for label, one in compare(boxes, true.boxes, threshold).items():
            classes.setdefault(label, Scores()).add(one)
            classes[""].add(one)
    if result.unanswered == result.questions:
        raise InputError(
            f"{predictions} and {truth} have nothing in common: expected the same images' names"
            + ", and the same questions" * (said.conversations and there.conversations)
        )
    result.scores = {
        form: dict(sorted(result.scores[form].items())) for form in FORMS if form in result.scores
    }  # the sum of all classes, called "", comes first
    return result


def compare(predicted: Sequence[Box], truth: Sequence[Box], threshold: float = 0.5) -> dict[str, Scores]:
    """Scores of each class of one image; case, hyphens and underscores of a class make no difference."""
    sides: dict[str, tuple[list[Box], list[Box]]] = defaultdict(lambda: ([], []))
    for side, boxes in enumerate((predicted, truth)):
        for box in boxes:
            sides[class_of(box.label)][side].append(box)
    scores = {}
    for label, (guesses, true) in sides.items():
        overlaps = _matches(guesses, true, threshold)
        scores[label] = Scores(len(overlaps), len(guesses), len(true), sum(overlaps))
    return scores


def predict(
    asker: Asker, conversations: Sequence[Conversation], *, progress: bool | None = None, **options: Any
) -> list[Conversation]:
    """The same questions, each asked alone, with the model's answers.

    Args:
        asker: see `eo_zoo.vlm.tasks.Asker`.
        conversations: their answers are not shown to the model.
        progress: show a bar on stderr; by default if that is a terminal.
        **options: as of ``Asker.ask``; by default the likeliest answer, of up to 2048 tokens.
    """
    asked = [(list(one.images), question) for one in conversations for question, _ in one.turns()]
    replies = iter(asker.ask_all(asked, progress=progress, **{**EXACT, **options}))
    answered = []
    for one in conversations:
        messages = [
            Message(role, next(replies).text.strip() or NO_ANSWER) if role == "assistant" else Message(role, text)
            for role, text in one.messages
        ]
        answered.append(replace(one, messages=tuple(messages)))
    return answered


# ---- files ----


@dataclass
class _Side:
    found: dict[Key, Found]
    conversations: bool

    def by_image(self) -> _Side:
        """The boxes of all questions about the same images together, each once."""
        images: dict[Key, Found] = {}
        for key, found in self.found.items():
            whole = images.setdefault(key[:-1] if self.conversations else key, Found([], places=False))
            whole.boxes += [box for box in found.boxes if box not in whole.boxes]
            whole.unread += found.unread
            whole.places |= found.places
        return _Side(images, False)


def _read(path: Path, model_type: str | None, generation: Generation) -> _Side:
    entries = list(_detections(path))
    if entries:
        found: dict[Key, Found] = {}
        for entry, where in entries:
            key = tuple(Path(name).name for name in str(entry["source"]).split(" and "))
            found[key] = Found([_box(box, where) for box in entry["boxes"]], len(entry.get("unparsed", ())))
        return _Side(found, False)
    if model_type is None:
        raise InputError(f"{path}: give the model type (--model-type), which decides how places are written in it")
    return _Side(dict(_answers(sharegpt.read(path), model_type, generation)), True)


def _answers(
    conversations: Iterable[Conversation], model_type: str, generation: Generation
) -> Iterator[tuple[Key, Found]]:
    """Boxes in each answer; [] is an answer of boxes too, "no" is none."""
    from eo_zoo.vlm.pictures import open_picture

    for conversation in conversations:
        with open_picture(conversation.images[-1]) as picture:
            size = picture.size
        space = Space.of(model_type, seen_size(size, model_type, generation), size)
        names = tuple(image.name for image in conversation.images)
        for question, answer in conversation.turns():
            parsed = parse_boxes(answer, space)
            places = bool(parsed.boxes) or (parsed.none and "[" in answer)
            yield (*names, question), Found(list(parsed.boxes), len(parsed.unparsed), places)


def _detections(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Records of detections, none if the file holds something else."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise InputError(f"{path}: there is no .json in this folder, expected detections")
        for file in files:
            yield from _detections(file)
        return
    for entry, where in sharegpt.entries(path):
        if isinstance(entry, dict) and {"source", "boxes"} <= entry.keys():
            yield entry, where


def _box(record: Any, where: str) -> Box:
    try:
        numbers = [float(number) for number in record["pixels"]]
        corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        if len(corners) != 4:
            raise ValueError(f"{len(corners)} corners")
        score = None if record["score"] is None else float(record["score"])
        return Box(corners, str(record["class"]), score, bool(record["oriented"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: a box is not as eo-zoo detect writes it ({error!r})") from error


# ---- matching ----


def _matches(predicted: Sequence[Box], truth: Sequence[Box], threshold: float) -> list[float]:
    """IoU of each match."""
    pairs = [
        (value, i, j)
        for i, guess in enumerate(predicted)
        for j, true in enumerate(truth)
        if _touch(guess, true) and (value := iou(guess, true)) >= threshold
    ]
    scores = [box.score for box in predicted]
    if None in scores:
        pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    else:
        pairs.sort(key=lambda pair: (-(scores[pair[1]] or 0), pair[1], -pair[0]))
    used: tuple[set[int], set[int]] = (set(), set())
    overlaps = []
    for value, i, j in pairs:
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            overlaps.append(value)
    return overlaps


def _touch(a: Box, b: Box) -> bool:
    """Whether their bounds do, which is quickly known."""
    left, top, right, bottom = a.bounds
    other = b.bounds
    return left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
