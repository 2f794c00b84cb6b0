"""From conversations to tensors, with a loss on the assistant's words alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from eo_zoo.errors import InputError
from eo_zoo.vlm.engine import (
    FACTORS,
    FEWEST,
    MOST,
    STEP,
    Generation,
    Size,
    check_shape,
    limits,
    multiples,
    prepared,
    seen,
)
from eo_zoo.vlm.sft.sharegpt import Conversation, Message

IGNORED = -100  # label of a token without a loss
HEADER, END = "<|im_start|>assistant\n", "<|im_end|>"  # around an answer in Qwen's chat templates


def shown(path: Path) -> Image.Image:
    """The image as it is shown when asked of."""
    from eo_zoo.vlm.pictures import open_picture

    with open_picture(path) as picture:
        return prepared(picture.read())


def seen_size(size: Size, model_type: str, generation: Generation) -> Size:
    """Width and height as the model sees an image of ``size``, prepared and processed.

    Raises:
        InputError: no model of these takes such an image.
    """
    check_shape(size)
    return seen(multiples(size, STEP, FEWEST, MOST), model_type, generation)


def row(conversation: Conversation) -> dict[str, Any]:
    """As a data set holds it: texts and paths, so that images are read when they are needed."""
    messages = [{"role": role, "content": text} for role, text in conversation.messages]
    return {"messages": messages, "images": [str(path) for path in conversation.images]}


@dataclass(frozen=True)
class Collator:
    """Rows to a padded batch: the processor's tensors and ``labels`` (B, L), -100 where there is no loss.

    The loss is on each answer and the token that ends it: not on questions, images, roles or padding.

    Args:
        processor: of a Qwen-VL model.
        model_type: of that model, as its config.json says.
        generation: the limits of an image's pixels.
        cutoff: tokens of a conversation at most.
    """

    processor: Any
    model_type: str
    generation: Generation
    cutoff: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tensors of conversations as `row` gives them.

        Raises:
            InputError: one is longer than ``cutoff``, an image cannot be read, or the chat template is not Qwen's.
        """
        conversations = [_conversation(one) for one in rows]
        batch = self.processor(
            text=[self.text(one) for one in conversations],
            images=[shown(path) for one in conversations for path in one.images],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            **limits(self.processor.image_processor, self.generation),
        )
        labels = batch["input_ids"].clone()
        for place, conversation in enumerate(conversations):
            length = int(batch["attention_mask"][place].sum())
            if length > self.cutoff:
                raise InputError(f"{conversation.images[0]}: {length} tokens, more than the cutoff, {self.cutoff}")
            spans = self.answers(batch["input_ids"][place].tolist(), sum(1 for _ in conversation.turns()))
            labels[place] = IGNORED
            for start, end in spans:
                labels[place, start:end] = batch["input_ids"][place, start:end]
        return {**batch, "labels": labels}

    def text(self, conversation: Conversation) -> str:
        """The conversation in the model's chat template."""
        return self.processor.apply_chat_template(conversation.chat(), tokenize=False)

    def length(self, conversation: Conversation, sizes: Sequence[Size]) -> int:
        """Tokens, with images of these widths and heights, which need not be read."""
        text = len(self.processor.tokenizer(self.text(conversation), add_special_tokens=False)["input_ids"])
        for size in sizes:
            width, height = seen_size(size, self.model_type, self.generation)
            text += width * height // FACTORS[self.model_type] ** 2 - 1
        return text

    def answers(self, ids: Sequence[int], count: int) -> list[tuple[int, int]]:
        """Where each answer starts and ends, with the token that ends it."""
        tokenizer = self.processor.tokenizer
        header = tokenizer(HEADER, add_special_tokens=False)["input_ids"]
        end = tokenizer.convert_tokens_to_ids(END)
        starts = [
            place + len(header)
            for place, one in enumerate(ids)
            if one == header[0] and list(ids[place : place + len(header)]) == header
        ]
        spans = [(start, start + list(ids[start:]).index(end) + 1) for start in starts if end in ids[start:]]
        if len(spans) != count:
            raise InputError(
                f"the chat template sets {len(spans)} of {count} answers between {HEADER!r} and {END}: expected that "
                "of a Qwen-VL model, as only answers are learnt from"
            )
        return spans


def _conversation(one: Mapping[str, Any]) -> Conversation:
    messages = tuple(Message(message["role"], message["content"]) for message in one["messages"])
    return Conversation(messages, tuple(Path(path) for path in one["images"]))
