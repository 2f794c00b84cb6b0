"""From boxes on images to questions and answers, in the words and coordinates that the model is asked in later."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from eo_zoo.errors import InputError, require
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import Box, Window, windows
from eo_zoo.vlm.engine import FACTORS, Generation, Size, check_shape
from eo_zoo.vlm.parse import Space
from eo_zoo.vlm.sft.collate import seen_size
from eo_zoo.vlm.sft.sharegpt import Conversation

Turn = tuple[str, str]  # question, answer
VISIBLE = 0.7  # share of an object that a window must show; the threshold of DOTA's own tool for cutting images
TASKS = ("detect", "count")


@dataclass(frozen=True)
class Scene:
    """What a data set says of an image, or of two of one place.

    Args:
        images: files; before and after where there are two.
        size: width and height in pixels.
        boxes: in pixels from the image's outer top-left edge.
    """

    images: tuple[Path, ...]
    size: Size
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How scenes become conversations.

    Args:
        model_type: of the model that is trained, which decides the coordinates: qwen2_5_vl takes pixels of the image as
            it sees it, qwen2_vl and qwen3_vl thousandths of the sides.
        tasks: what is asked of objects: detect, count.
        group: classes that one question asks for, at most.
        turns: questions of a conversation, at most.
        window: pixels a side of the parts that larger images are cut into; not cut if None.
        overlap: pixels that neighbouring parts share; a quarter of them if None.
        empty: keep images without an object, whose answers say that there is none.
        min_pixels: as in training, as it decides what the model sees.
        max_pixels: as in training.
        seed: of the choice and order of questions.

    Raises:
        InputError: a value is out of range.
    """

    model_type: str
    tasks: tuple[str, ...] = TASKS
    group: int = 3
    turns: int = 8
    window: int | None = None
    overlap: int | None = None
    empty: bool = True
    min_pixels: int = Generation.min_pixels or 0
    max_pixels: int = Generation.max_pixels or 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.model_type not in FACTORS:
            raise InputError(f"model_type is '{self.model_type}', expected one of {', '.join(FACTORS)}")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise InputError(f"tasks are {', '.join(self.tasks) or 'none'}, expected some of {', '.join(TASKS)}")
        for name in ("group", "turns"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.window is not None and self.window < 28:
            raise InputError(f"window is {self.window}, expected 28 pixels or more")
        self.generation()

    def generation(self) -> Generation:
        """The limits of an image's pixels, checked."""
        return Generation(min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def answer(self, boxes: Sequence[Box], size: Size) -> str:
        """Boxes as the model is to write them, from top to bottom."""
        ordered = sorted(boxes, key=lambda box: (box.bounds[1], box.bounds[0]))
        return json.dumps([{"bbox_2d": self.numbers(box, size), "label": box.label} for box in ordered])

    def numbers(self, box: Box, size: Size) -> list[int]:
        """Four or eight whole numbers in the model's space."""
        space = Space.of(self.model_type, seen_size(size, self.model_type, self.generation()), size)
        left, top, right, bottom = box.bounds
        points = box.corners if box.oriented else ((left, top), (right, bottom))
        places = [axis / by for point in points for axis, by in zip(point, space.scale, strict=True)]
        return [round(min(max(one, 0), most)) for one, most in zip(places, space.extent * len(points), strict=True)]


@dataclass
class Written:
    """Conversations, and what was left out on the way."""

    conversations: list[Conversation] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def questions(self) -> int:
        """Of all conversations."""
        return sum(sum(1 for _ in one.turns()) for one in self.conversations)

    def summary(self) -> str:
        """One line."""
        left = "".join(f"; {count} {what}" for what, count in self.left_out.items() if count)
        images = len({image for one in self.conversations for image in one.images})
        return f"{len(self.conversations)} conversations with {self.questions} questions on {images} images{left}"


def write(scenes: Iterable[Scene], writing: Writing, parts: Path) -> Written:
    """Conversations about objects on one image, and about changes between two.

    Args:
        scenes: of a data set.
        writing: how they are put.
        parts: a folder for the parts of images that are cut.
    """
    written = Written()
    if writing.window is not None:
        scenes = _cut(scenes, writing, parts)
    listed = [_visible(scene, writing, written.left_out) for scene in scenes]
    classes = sorted({box.label for scene in listed for box in scene.boxes})
    oriented = any(box.oriented for scene in listed for box in scene.boxes)
    for scene in listed:
        if not scene.boxes and not (writing.empty and classes):
            written.left_out["images without an object left out"] += 1
            continue
        ask = _changes if len(scene.images) == 2 else _objects
        written.conversations += talks(ask(scene, classes, oriented, writing), scene.images, writing.turns)
    return written


def talks(turns: Sequence[Turn], images: tuple[Path, ...], most: int) -> Iterator[Conversation]:
    """Questions about the same images in conversations of ``most`` questions."""
    for first in range(0, len(turns), most):
        yield Conversation.of(turns[first : first + most], images)


def _changes(scene: Scene, classes: Sequence[str], oriented: bool, writing: Writing) -> list[Turn]:
    return [(prompts.change(oriented=oriented), writing.answer(scene.boxes, scene.size))]


def _objects(scene: Scene, classes: Sequence[str], oriented: bool, writing: Writing) -> list[Turn]:
    """Every class that is there is asked for once, and one that is not, alone or together, in any order."""
    chance = random.Random(f"{writing.seed} {scene.images[0].name}")
    counts = Counter(box.label for box in scene.boxes)
    absent = [name for name in classes if name not in counts]
    asked = sorted(counts) + chance.sample(absent, min(1, len(absent)))
    chance.shuffle(asked)
    turns: list[Turn] = []
    rest = asked if "detect" in writing.tasks else []
    while rest:
        many = chance.randint(1, writing.group)
        names, rest = rest[:many], rest[many:]
        boxes = [box for box in scene.boxes if box.label in names]
        turns.append((prompts.detect(names, oriented=oriented), writing.answer(boxes, scene.size)))
    if "count" in writing.tasks:
        name = chance.choice(asked)
        turns.append((prompts.count(name), str(counts[name])))
    chance.shuffle(turns)
    return turns


def _visible(scene: Scene, writing: Writing, left_out: Counter[str]) -> Scene:
    """The scene with its boxes as far as they are inside it and can be written."""
    try:
        check_shape(scene.size)
    except InputError as error:
        raise InputError(f"{scene.images[0]}: {error}; or cut it into parts with --window 1024") from error
    whole = Window(0, 0, scene.size[1], scene.size[0])
    boxes = []
    for box in scene.boxes:
        inside = clipped(box, whole)
        if inside is None:
            left_out["objects left out that are cut at an edge"] += 1
        elif not _spread(writing.numbers(inside, scene.size)):
            left_out["objects left out that are too small to be written"] += 1
        else:
            boxes.append(inside)
    return replace(scene, boxes=tuple(boxes))


def clipped(box: Box, window: Window) -> Box | None:
    """What a window shows of a box, in the window's pixels; None where that is too little."""
    shapely = require("shapely", "vlm")
    box = box.shifted(-window.col, -window.row)
    left, top, right, bottom = box.bounds
    if left >= 0 and top >= 0 and right <= window.width and bottom <= window.height:
        return box if box.area else None
    part = box.polygon.intersection(shapely.box(0, 0, window.width, window.height))
    if not part.area or part.area < VISIBLE * box.polygon.area:
        return None
    if not box.oriented:
        return replace(Box.upright(*part.bounds), label=box.label)
    corners = shapely.oriented_envelope(part).exterior.coords[:4]
    return replace(box, corners=tuple((float(x), float(y)) for x, y in corners))


def _spread(numbers: Sequence[int]) -> bool:
    """Whether rounded corners still enclose something."""
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    if len(points) == 2:
        return points[0][0] < points[1][0] and points[0][1] < points[1][1]
    return Box(tuple(points)).area > 0


def _cut(scenes: Iterable[Scene], writing: Writing, folder: Path) -> Iterator[Scene]:
    """The parts of images larger than the window, written as PNG; an object is in each part that shows most of it."""
    from eo_zoo.vlm.pictures import open_picture

    side = writing.window or 0
    overlap = side // 4 if writing.overlap is None else writing.overlap
    for scene in scenes:
        places = windows(*scene.size, side, overlap)
        if len(places) == 1:
            yield scene
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            pictures = [stack.enter_context(open_picture(path)) for path in scene.images]
            for place in places:
                boxes = [clipped(box, place) for box in scene.boxes]
                files = []
                for number, picture in enumerate(pictures):
                    name = f"{scene.images[number].stem}_{place.col}_{place.row}"
                    files.append(folder / f"{name}{'_after' * number}.png")
                    picture.read(place).save(files[-1])
                shown = tuple(box for box in boxes if box is not None)
                yield Scene(tuple(files), (place.width, place.height), shown)
