"""What goes to a model and what comes back, whether it runs in this process or behind an address.

The way from an image to what the model sees is the published one, in two steps: ``qwen_vl_utils`` brings both sides to
multiples of 28, and then the model's processor to multiples of its own patches, between two numbers of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from eo_zoo.errors import InputError

Size = tuple[int, int]  # width, height

#: Kinds of model, as ``config.json`` says, and the pixels a side that one token stands for.
FACTORS = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}
STEP = 28  # of the first step, whatever the model; pixels a side that become one token
FEWEST, MOST = 4 * STEP**2, 16384 * STEP**2  # pixels after the first step
#: Tokens of Qwen's chat templates, which no text may hold.
RESERVED = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
ASPECT = 200  # the longer side over the shorter one, at most
WHOLE = 2**26  # pixels (8192 x 8192) of an image that is shown at once, at most


@dataclass(frozen=True)
class Generation:
    """How an answer is made; the published demonstration's values.

    Args:
        max_new_tokens: of an answer; what is longer is cut off and said to be.
        temperature: of sampling; 0 for the likeliest token each time, None for what the weights themselves say.
        top_p: tokens that together have this probability are sampled from.
        seed: of sampling; equal seeds give equal answers on one machine.
        min_pixels: smaller images are enlarged to this; None for what the weights themselves say.
        max_pixels: larger images are reduced to this, as ``min_pixels``.

    Raises:
        InputError: a value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float | None = 0.1
    top_p: float = 0.9
    seed: int | None = None
    min_pixels: int | None = 256 * STEP**2
    max_pixels: int | None = 2048**2

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("max_new_tokens", "min_pixels", "max_pixels", "seed"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or (name != "seed" and value < 1)):
                raise InputError(f"{name} is {value!r}, expected a whole number{' from 1 on' * (name != 'seed')}")
        if max(self.min_pixels or 0, self.max_pixels or 0) > MOST:
            raise InputError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}, expected at most {MOST:,}: larger "
                "images are reduced to this before the model's own processor sees them"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}, expected a number of 64 bits")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, expected more than 0, at most 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise InputError(f"min_pixels is {self.min_pixels}, more than max_pixels, {self.max_pixels}")


GENERATION_OPTIONS = frozenset(field.name for field in fields(Generation))


@dataclass(frozen=True)
class Question:
    """One or two images (RGB) and what is asked of them.

    Raises:
        InputError: no image, more than two, or no words.
    """

    images: tuple[Image.Image, ...]
    prompt: str

    def __post_init__(self) -> None:
        """Check that there is something to look at and something to answer."""
        if not 1 <= len(self.images) <= 2:
            raise InputError(f"{len(self.images)} images were given, expected one, or two to compare")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise InputError("the prompt is empty: say what is asked of the image")
        forged = next((token for token in RESERVED if token in self.prompt), None)
        if forged:
            raise InputError(f"the prompt holds {forged}, a token that only the chat template may set")
        for image in self.images:
            check_shape(image.size)


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Args:
        text: without special tokens.
        tokens: their ids, the one at the end included; none from a server.
        seen: width and height of each image as the model saw it.
        complete: False where it was cut off at ``max_new_tokens``.
    """

    text: str
    tokens: tuple[int, ...] = ()
    seen: tuple[Size, ...] = ()
    complete: bool = True


def check_shape(size: Size, name: str = "the image") -> None:
    """Raise what no model of these takes; ``name`` is what the image is called.

    Raises:
        InputError: a side of 0 pixels, too long a strip, or too many pixels at once.
    """
    width, height = size
    if min(size) < 1:
        raise InputError(f"{name} is {width} x {height} pixels, expected at least one")
    if any(max(sides) > ASPECT * min(sides) for sides in (size, multiples(size, STEP, FEWEST, MOST))):
        raise InputError(
            f"{name} is {width} x {height} pixels, a strip; expected a longer side of at most {ASPECT} times the "
            "shorter one: cut it"
        )
    if width * height > WHOLE:
        raise InputError(
            f"{name} is {width} x {height} pixels, more than {WHOLE:,} that are shown to the model at once: cut it "
            "with bbox (--bbox), or look for objects with detect, which goes through it in windows (--window 1024)"
        )


def prepared(image: Image.Image) -> Image.Image:
    """An RGB image after the first step, both sides multiples of 28: what the model's processor is given."""
    return image.resize(multiples(image.size, STEP, FEWEST, MOST), Image.Resampling.BICUBIC)


def seen(size: Size, model_type: str, generation: Generation) -> Size:
    """Width and height that a model sees of an image that is ``prepared``, where the processor has its usual limits."""
    factor = FACTORS[model_type]
    low, high = generation.min_pixels or FEWEST, generation.max_pixels or MOST
    return multiples(size, factor, low, high)


def limits(processor: Any, generation: Generation) -> dict[str, Any]:
    """What an image processor is given so that images have so many pixels.

    In transformers 4.57 it keeps ``min_pixels`` and ``max_pixels``, which go before ``size`` without a word; in 5 these
    are deprecated, and ``size`` holds them as edges.
    """
    old = getattr(processor, "min_pixels", None) is not None
    low = generation.min_pixels or (processor.min_pixels if old else processor.size["shortest_edge"])
    high = generation.max_pixels or (processor.max_pixels if old else processor.size["longest_edge"])
    return {"min_pixels": low, "max_pixels": high} if old else {"size": {"shortest_edge": low, "longest_edge": high}}


def multiples(size: Size, factor: int, low: int, high: int) -> Size:
    """The nearest sides that are multiples of ``factor``, with ``low`` to ``high`` pixels in all.

    >>> multiples((383, 232), 28, 256 * 28 * 28, 2048**2)
    (588, 364)
    """
    width, height = (max(factor, round(side / factor) * factor) for side in size)
    if width * height > high:
        by = math.sqrt(math.prod(size) / high)
        width, height = (max(factor, math.floor(side / by / factor) * factor) for side in size)
    elif width * height < low:
        by = math.sqrt(low / math.prod(size))  # not divided by: rounding would give another multiple at times
        width, height = (math.ceil(side * by / factor) * factor for side in size)
    return width, height
