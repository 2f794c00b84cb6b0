"""Conversations about pictures whose answers can be seen in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from eo_zoo.vlm.sft.sharegpt import Conversation

COLOURS = {"red": (220, 30, 30), "green": (30, 190, 30), "blue": (30, 30, 220), "white": (235, 235, 235)}
QUESTION = "What colour is the field?"
PIXELS = dict(min_pixels=56 * 56, max_pixels=112 * 112)


def picture(path: Path, colour: tuple[int, int, int], seed: int = 0, size: tuple[int, int] = (56, 56)) -> Path:
    noise = np.random.default_rng(seed).integers(-15, 16, (*size[::-1], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def fields(folder: Path, count: int = 20) -> list[Conversation]:
    """``count`` pictures of four colours, and two questions on each."""
    made = []
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        path = picture(folder / f"{number}.png", COLOURS[name], seed=number)
        made.append(Conversation.of([(QUESTION, name), ("Is it a field?", "yes")], [path]))
    return made
