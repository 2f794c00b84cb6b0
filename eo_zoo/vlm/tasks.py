"""What can be asked of an image, on top of any model that answers: one here, or one behind an address."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from eo_zoo.errors import InputError, nearest
from eo_zoo.progress import progress_bar
from eo_zoo.vlm import prompts
from eo_zoo.vlm.boxes import Box, Window, class_of, merge, windows
from eo_zoo.vlm.engine import FACTORS, GENERATION_OPTIONS, MOST, STEP, Answer, Generation, Question, check_shape
from eo_zoo.vlm.parse import Space, Unparsed, parse_count, parse_together

if TYPE_CHECKING:
    from eo_zoo.vlm.pictures import Picture
    from eo_zoo.vlm.records import Detections

SIDE = 1024  # pixels of a window, where an image is larger than what is shown at once
#: Of answers that are read by a program: the likeliest words each time, and room for some fifty boxes.
EXACT: Mapping[str, Any] = {"temperature": 0.0, "max_new_tokens": 2048}
READING = ("bands", "sensor", "stretch", "nodata", "bbox", "bbox_crs")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What every result tells of where it comes from.

    Args:
        prompt: the model's question, word by word.
        sources: the image, or the two.
        model: name or folder.
        revision: commit of the weights, where it is known.
        notes: every choice made on the way, a sentence each.
        warnings: what may be wrong, a sentence each.
    """

    prompt: str
    sources: tuple[str, ...]
    model: str
    revision: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Reply(Said):
    """An answer in words.

    Args:
        text: the model's, without special tokens.
        tokens: their ids; none from a server.
        complete: False where it was cut off at ``max_new_tokens``.
    """

    text: str
    tokens: tuple[int, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        """The words alone."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class Count(Said):
    """How many there are; its text is the model's own, or where boxes were counted, how many.

    Args:
        value: None where the answer holds no one number.
        text: the answer, or what was counted.
        detections: the boxes, where these were counted.
    """

    value: int | None
    text: str
    detections: Detections | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return plain | {"detections": self.detections and self.detections.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Classification(Said):
    """One class of a closed list.

    Args:
        label: the likeliest.
        scores: of every class, the likeliest first: the probability that the model answers with its name and nothing
            more, over the sum of these; 1 in sum.
    """

    label: str
    scores: dict[str, float]


@dataclass
class Looked:
    """What was found in windows, and what was not understood."""

    found: list[tuple[Window, list[Box]]] = field(default_factory=list)
    unparsed: list[Unparsed] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cut: int = 0  # answers that were cut off

    @classmethod
    def of(cls, answers: Sequence[tuple[Window, Answer]], model_type: str, label: str) -> Self:
        """Read the answers; boxes are in pixels of the whole image."""
        spaces = [Space.of(model_type, one.seen[-1], (place.width, place.height)) for place, one in answers]
        parsed = parse_together([one.text for _, one in answers], spaces, label=label)
        return cls(
            found=[
                (place, [box.shifted(place.col, place.row) for box in own.boxes])
                for (place, _), own in zip(answers, parsed, strict=True)
            ],
            unparsed=[part for own in parsed for part in own.unparsed],
            answers=[one.text for _, one in answers],
            warnings=[text for own in parsed for text in own.warnings],
            cut=sum(not one.complete for _, one in answers),
        )

    def all_warnings(self, generation: Generation) -> list[str]:
        """Each once."""
        several = f"{self.cut} of {len(self.answers)} answers were" if len(self.answers) > 1 else "the answer was"
        cut = (
            f"{several} cut off at max_new_tokens, {generation.max_new_tokens}: there may be more than was found; "
            "raise it, or take smaller windows"
        )
        unread = len(self.unparsed)
        not_read = f"{unread} part{'s' * (unread > 1)} of what the model said could not be read as boxes: see unparsed"
        return list(dict.fromkeys([*self.warnings, *[cut] * bool(self.cut), *[not_read] * bool(unread)]))


class Asker(abc.ABC):
    """A model that answers questions about images, and what is asked of it.

    Every method takes an ``image``: a path or an http(s) address of a GeoTIFF or any other raster, PNG, JPEG, WebP, a
    STAC item (path, address or dict), a folder of band files, a PIL image, or an array (H, W, 3) of bytes; and these
    ``options``:

    - how it is read: ``bands``, ``sensor``, ``stretch``, ``nodata``, ``bbox``, ``bbox_crs``, see
      `eo_zoo.vlm.pictures.open_picture`;
    - how it is answered: ``max_new_tokens``, ``temperature``, ``top_p``, ``seed``, ``min_pixels``, ``max_pixels``, see
      `eo_zoo.vlm.engine.Generation`.

    All raise InputError for an image, a prompt or an option that cannot be used.

    Attributes:
        name: of the model, as it was asked for.
        revision: commit of its weights, where it is known.
        model_type: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``, which decides how it writes places; None if unknown.
        at_a_time: questions that are best given together.
    """

    name: str
    revision: str | None = None
    model_type: str | None = None
    at_a_time: int = 1

    @abc.abstractmethod
    def answer(self, questions: Sequence[Question], generation: Generation) -> list[Answer]:
        """An answer to each question, in their order."""

    @abc.abstractmethod
    def pieces(self, question: Question, generation: Generation) -> Iterator[str]:
        """The answer to one question, as it comes."""

    def likelihoods(self, question: Question, options: Sequence[str], generation: Generation) -> list[float]:
        """Logarithm of the probability that the answer is exactly this, for each option."""
        raise InputError(
            f"{self.name}: a server gives no likelihoods of given answers: classify with the model in this process, "
            "or ask, with the classes in the prompt"
        )

    # ---- words ----

    def ask(self, image: Any, prompt: str, **options: Any) -> Reply:
        """What the model says of one image, or of two: ``ask([before, after], prompt)``."""
        return self.ask_all([(image, prompt)], **options)[0]

    def describe(self, image: Any, **options: Any) -> Reply:
        """A description."""
        return self.ask(image, prompts.DESCRIBE, **options)

    def ask_all(
        self, questions: Iterable[tuple[Any, str]], *, progress: bool | None = None, **options: Any
    ) -> list[Reply]:
        """Replies to pairs of image (or two) and prompt, in their order; several are answered together."""
        generation, reading = _options(options)
        pairs = list(questions)
        replies: list[Reply] = []
        with progress_bar("asking", len(pairs), progress if len(pairs) > 1 else False, "questions") as tick:
            for chunk in _chunks(pairs, self.at_a_time):
                with ExitStack() as stack:
                    pictures = [_open(stack, image, reading) for image, _ in chunk]
                    asked = [
                        self._question(those, prompt, generation)
                        for those, (_, prompt) in zip(pictures, chunk, strict=True)
                    ]
                    answers = self.answer(asked, generation)
                    replies += [
                        _reply(answer, **self._provenance(those, question.prompt, generation))
                        for those, question, answer in zip(pictures, asked, answers, strict=True)
                    ]
                tick(len(chunk))
        return replies

    def stream(self, image: Any, prompt: str, **options: Any) -> Iterator[str]:
        """As ``ask``, the words piece by piece as they come."""
        generation, reading = _options(options)
        with ExitStack() as stack:
            question = self._question(_open(stack, image, reading), prompt, generation)
        yield from self.pieces(question, generation)

    def classify(
        self, image: Any, classes: Sequence[str], *, prompt: str | None = None, **options: Any
    ) -> Classification:
        """The likeliest of some classes, with a score for each.

        Args:
            image: see the class.
            classes: their names, two or more.
            prompt: instead of ``eo_zoo.vlm.prompts.classify``.
            **options: see the class.
        """
        names = class_names(classes)
        generation, reading = _options(options, EXACT)
        with ExitStack() as stack:
            pictures = _open(stack, image, reading)
            asked = prompts.classify(names) if prompt is None else prompt
            question = self._question(pictures, asked, generation)
            logs = self.likelihoods(question, names, generation)
            said = self._provenance(pictures, question.prompt, generation)
        best = max(logs)
        shares = [math.exp(log - best) for log in logs]
        scores = {name: share / sum(shares) for name, share in zip(names, shares, strict=True)}
        ranked = dict(sorted(scores.items(), key=lambda item: -item[1]))
        return Classification(label=next(iter(ranked)), scores=ranked, **said)

    # ---- places ----

    def detect(
        self,
        image: Any,
        what: str | Sequence[str],
        *,
        oriented: bool = False,
        prompt: str | None = None,
        window: int | None = None,
        overlap: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Detections:
        """Where the objects of one or more classes are.

        Args:
            image: see the class.
            what: a class, or several.
            oriented: ask for boxes along the objects, not along the image.
            prompt: instead of ``eo_zoo.vlm.prompts.detect``; boxes are looked for in the answer all the same.
            window: pixels a side of what is shown at a time. By default an image of more than ``max_pixels`` is gone
                through in windows of 1024, and a smaller one is shown whole.
            overlap: pixels that neighbouring windows share, a quarter of them by default. An object in several of them
                is counted once.
            progress: show a bar on stderr; by default if that is a terminal.
            **options: see the class. By default the answer is the likeliest one (``temperature=0``), of up to 2048
                tokens for each window.
        """
        classes = [what] if isinstance(what, str) else list(what or ())
        if not classes or not all(isinstance(name, str) and name.strip() for name in classes):
            raise InputError("there is nothing to look for: give a class, or several")
        return self._boxes(
            image,
            prompts.detect(classes, oriented=oriented) if prompt is None else prompt,
            label=classes[0] if len(classes) == 1 else "",
            one_class=len(classes) == 1,
            window=window,
            overlap=overlap,
            progress=progress,
            **options,
        )

    def ground(self, image: Any, phrase: str, *, oriented: bool = False, **options: Any) -> Detections:
        """Where that is which a phrase describes, as "the largest building"; ``options`` also as of ``detect``.

        In an image of several windows the phrase is looked for in each of them.
        """
        if not phrase or not phrase.strip():
            raise InputError("the phrase is empty: say what is to be found")
        asked = options.pop("prompt", None)
        prompt = prompts.ground(phrase, oriented=oriented) if asked is None else asked
        return self._boxes(image, prompt, label=phrase, one_class=True, **options)

    def change(self, before: Any, after: Any, *, oriented: bool = False, **options: Any) -> Detections:
        """Where two images of one place differ, on the grid of the first; ``options`` also as of ``detect``.

        Georeferenced ones are brought to one grid first, others must be equally large.
        """
        asked = options.pop("prompt", None)
        prompt = prompts.change(oriented=oriented) if asked is None else asked
        return self._boxes((before, after), prompt, label="change", one_class=False, **options)

    def count(
        self, image: Any, what: str, *, boxes: bool | None = None, prompt: str | None = None, **options: Any
    ) -> Count:
        """How many objects of a class there are.

        Args:
            image: see the class.
            what: the class, as "ship".
            boxes: detect them and count the boxes; False: ask for the number. By default the number is asked for,
                and boxes are counted where the image is gone through in windows or ``window`` is given, as sums of
                windows' numbers would count what lies across a seam twice.
            prompt: instead of ``eo_zoo.vlm.prompts.count``, or where boxes are counted ``detect``.
            **options: see ``detect``.
        """
        if not what or not what.strip():
            raise InputError("there is nothing to count: give a class")
        with ExitStack() as stack:
            generation, reading = _options({k: v for k, v in options.items() if k not in WINDOWING}, EXACT)
            pictures = _open(stack, image, reading)
            if len(pictures) > 1:
                raise InputError("two images were given: objects are counted in one")
            window = options.get("window")
            if boxes is None:
                boxes = window is not None or len(_places(pictures[0].size, None, None, generation)) > 1
            if boxes:
                own = {name: value for name, value in options.items() if name not in READING}
                return _counted(self.detect(pictures[0], what, prompt=prompt, **own), what)
            if window is not None:
                raise InputError("the number is asked of a whole image: leave window out, or count with boxes=True")
            question = self._question(pictures, prompts.count(what) if prompt is None else prompt, generation)
            reply = _reply(
                self.answer([question], generation)[0], **self._provenance(pictures, question.prompt, generation)
            )
        value = parse_count(reply.text)
        shared = {one.name: getattr(reply, one.name) for one in dataclasses.fields(Said)}
        if value is None:
            shared["warnings"] = (*reply.warnings, "the answer holds no one number: read the text")
        return Count(value=value, text=reply.text, **shared)

    def _boxes(
        self,
        image: Any,
        prompt: str,
        *,
        label: str,
        one_class: bool,
        window: int | None = None,
        overlap: int | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Detections:
        from eo_zoo.vlm.records import Detections

        generation, reading = _options(options, EXACT)
        model_type = self.model_type
        if model_type not in FACTORS:
            raise InputError(
                f"how {self.name} writes places is not known: give model_type (--model-type), one of "
                f"{', '.join(FACTORS)}, as its config.json says"
            )
        with ExitStack() as stack:
            pictures = _open(stack, image, reading, aligned=True)
            places = _places(pictures[0].size, window, overlap, generation)
            shown = [place for place in places if all(picture.valid(place) for picture in pictures)]
            if not shown:
                raise InputError(f"{pictures[0].source}: no window holds valid pixels: is it all nodata?")
            asked = self._answers(pictures, shown, prompt, generation, progress)
            looked = Looked.of(asked, model_type, label)
            size, boxes = pictures[0].size, [box for _, boxes in looked.found for box in boxes]
            said = self._provenance(pictures, prompt, generation, shown[0])
            if len(places) > 1:
                boxes = merge(looked.found, size, by_label=not one_class)
                empty = f", {len(places) - len(shown)} without valid pixels left out" * (len(shown) < len(places))
                side = f"{places[0].width} x {places[0].height}"
                said["notes"] += (f"gone through in {len(shown)} windows of {side} pixels{empty}",)
            return Detections(
                boxes=tuple(boxes),
                size=size,
                crs=pictures[0].crs,
                transform=pictures[0].transform,
                source=" and ".join(said["sources"]),
                prompt=prompt,
                model=self.name,
                revision=self.revision,
                unparsed=tuple(looked.unparsed),
                answers=tuple(looked.answers),
                notes=said["notes"],
                warnings=(*said["warnings"], *looked.all_warnings(generation)),
            )

    def _answers(
        self,
        pictures: Sequence[Picture],
        shown: Sequence[Window],
        prompt: str,
        generation: Generation,
        progress: bool | None,
    ) -> list[tuple[Window, Answer]]:
        """The same question about each window."""
        answers: list[tuple[Window, Answer]] = []
        with progress_bar("looking", len(shown), progress if len(shown) > 1 else False, "windows") as tick:
            for chunk in _chunks(shown, self.at_a_time):
                asked = [self._question(pictures, prompt, generation, place) for place in chunk]
                answers += zip(chunk, self.answer(asked, generation), strict=True)
                tick(len(chunk))
        return answers

    def _question(
        self, pictures: Sequence[Picture], prompt: str, generation: Generation, window: Window | None = None
    ) -> Question:
        """What is shown and asked."""
        shown = []
        for picture in pictures:
            width, height = picture.size if window is None else (window.width, window.height)
            check_shape((width, height), picture.source)
            shown.append(picture.read(window))
        return Question(tuple(shown), prompt)

    def _provenance(
        self, pictures: Sequence[Picture], prompt: str, generation: Generation, shown: Window | None = None
    ) -> dict[str, Any]:
        """What a result tells; ``shown`` is one of the windows, None for whole pictures."""
        limit, reduced = generation.max_pixels or MOST, []
        for picture in pictures:
            width, height = picture.size if shown is None else (shown.width, shown.height)
            if width * height > limit:
                reduced.append(
                    f"{picture.source}: {width} x {height} pixels are more than max_pixels, {limit:,}: the model sees "
                    f"one pixel for {width * height / limit:.1f}; for small objects take windows, or bbox"
                )
        return dict(
            prompt=prompt,
            sources=tuple(picture.source for picture in pictures),
            model=self.name,
            revision=self.revision,
            notes=tuple(dict.fromkeys(note for picture in pictures for note in picture.notes)),
            warnings=tuple(dict.fromkeys([text for one in pictures for text in one.warnings] + reduced)),
        )


def class_names(classes: Sequence[str]) -> list[str]:
    """The names, without spaces around them.

    Raises:
        InputError: fewer than two, one twice, or an empty one.
    """
    names = [name.strip() for name in classes]
    if isinstance(classes, str) or len(set(names)) < len(names) or len(names) < 2 or not all(names):
        raise InputError(f"classes are {classes!r}, expected a list of two or more different names")
    return names


WINDOWING = ("window", "overlap", "progress")


def _options(
    options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> tuple[Generation, dict[str, Any]]:
    """How to answer, and how to read the image."""
    known = [*GENERATION_OPTIONS, *READING]
    unknown = options.keys() - known
    if unknown:
        name = min(unknown)
        hint = "It is for what finds boxes." if name in WINDOWING else nearest(name, known)
        raise InputError(f"unknown option '{name}'. {hint}")
    generation = {name: value for name, value in options.items() if name in GENERATION_OPTIONS}
    return Generation(**{**(defaults or {}), **generation}), {k: v for k, v in options.items() if k in READING}


def _open(stack: ExitStack, image: Any, reading: Mapping[str, Any], *, aligned: bool = False) -> tuple[Picture, ...]:
    """The picture of an image, or those of two, which may be brought to one grid; closed with ``stack``."""
    from eo_zoo.vlm.pictures import Picture, open_pair, open_picture

    images = list(image) if isinstance(image, (list, tuple)) else [image]
    missing = not images or any(one is None for one in images)
    if missing or len(images) > 2:
        given = "no image was" if missing else f"{len(images)} images were"
        raise InputError(f"{given} given, expected one, or two to compare")
    if aligned and len(images) == 2 and not all(isinstance(one, Picture) for one in images):
        pictures: tuple[Picture, ...] = open_pair(*images, **reading)
    else:
        pictures = tuple(one if isinstance(one, Picture) else open_picture(one, **reading) for one in images)
    if aligned and len({one.size for one in pictures}) > 1:
        raise InputError("the two pictures are not on one grid: open them with open_pair")
    for one in pictures:
        if not any(one is given for given in images):  # what the caller opened stays open
            stack.enter_context(one)
    return pictures


def _places(size: tuple[int, int], window: int | None, overlap: int | None, generation: Generation) -> list[Window]:
    """The windows that an image is shown in: one where it is no larger than what is shown at once."""
    width, height = size
    if overlap is not None and window is None and width * height <= (generation.max_pixels or MOST):
        raise InputError("overlap is of windows: give window with it, the pixels a side")
    if window is None:
        if width * height <= (generation.max_pixels or MOST):
            return [Window(0, 0, height, width)]
        window = SIDE
    if not isinstance(window, int) or window < STEP:
        raise InputError(f"window is {window}, expected pixels a side, {STEP} or more, which are one token")
    overlap = window // 4 if overlap is None else overlap
    if not 0 <= overlap < window:
        raise InputError(f"overlap is {overlap}, expected 0 or more and less than the window, {window}")
    return windows(width, height, window, overlap)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _counted(found: Detections, what: str) -> Count:
    others = [label for label in found.counts() if class_of(label) not in (class_of(what), "")]
    called = (f"some of what was counted is called otherwise than {what}: {', '.join(others)}",) * bool(others)
    return Count(
        value=len(found),
        text=found.summary(),
        detections=found,
        prompt=found.prompt,
        sources=(found.source,),
        model=found.model,
        revision=found.revision,
        notes=(*found.notes, "boxes were counted"),
        warnings=(*found.warnings, *called),
    )


def _reply(answer: Answer, *, warnings: tuple[str, ...], **said: Any) -> Reply:
    if not answer.text.strip():
        warnings += ("the answer is empty",)
    if not answer.complete:
        warnings += ("the answer was cut off at max_new_tokens: raise it",)
    return Reply(text=answer.text, tokens=answer.tokens, complete=answer.complete, warnings=warnings, **said)
