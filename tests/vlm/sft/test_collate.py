from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from eo_zoo.errors import InputError
from eo_zoo.vlm.engine import Generation
from eo_zoo.vlm.sft.collate import IGNORED, Collator, row
from eo_zoo.vlm.sft.sharegpt import Conversation, Message
from tests.vlm.sft.planted import PIXELS, picture


def collator(folder, cutoff: int = 4096) -> Collator:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model_type = type(transformers.AutoConfig.from_pretrained(folder)).model_type
    return Collator(processor, model_type, Generation(**PIXELS), cutoff)


@pytest.fixture
def conversations(tmp_path) -> list[Conversation]:
    first = picture(tmp_path / "a.png", (200, 10, 10), size=(84, 56))
    second = picture(tmp_path / "b.png", (10, 200, 10), size=(30, 90))
    system = Conversation.of([("How many ships?", "12"), ("Sure?", " Yes, [12, 3].\n")], [first])
    return [
        Conversation((Message("system", "Be brief."), *system.messages), system.images),
        Conversation.of([("What changed?", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]')], [first, second]),
    ]


def test_the_loss_is_on_answers_and_their_ends_alone(any_base, conversations):
    collate = collator(any_base)
    batch = collate([row(one) for one in conversations])
    tokenizer = collate.processor.tokenizer
    for ids, labels, conversation in zip(batch["input_ids"], batch["labels"], conversations, strict=True):
        learnt = labels != IGNORED
        assert torch.equal(labels[learnt], ids[learnt])
        expected = "".join(answer.strip() + "<|im_end|>" for _, answer in conversation.turns())
        assert tokenizer.decode(ids[learnt]) == expected
        reserved = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|im_start|>"])
        assert not set(reserved) & set(ids[learnt].tolist())
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert not batch["attention_mask"].all()  # there was something to pad


def test_lengths_are_known_without_reading_images(any_base, conversations):
    collate = collator(any_base)
    batch = collate([row(one) for one in conversations])
    sizes = [[(84, 56)], [(84, 56), (30, 90)]]
    lengths = [collate.length(one, size) for one, size in zip(conversations, sizes, strict=True)]
    assert lengths == batch["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize("fast", [True, False])
def test_limits_of_pixels_hold(any_base, tmp_path, fast):
    collate = collator(any_base)
    processor = transformers.AutoProcessor.from_pretrained(any_base, use_fast=fast)
    large = Conversation.of([("q", "a")], [picture(tmp_path / "large.png", (9, 9, 9), size=(400, 300))])
    batch = replace(collate, processor=processor)([row(large)])
    assert int(batch["attention_mask"].sum()) == collate.length(large, [(400, 300)])
    side = processor.image_processor.patch_size
    pixels = int(batch["image_grid_thw"][0].prod()) * side**2
    assert PIXELS["max_pixels"] / 2 < pixels <= PIXELS["max_pixels"]


def test_images_keep_their_order(any_base, conversations):
    collate = collator(any_base)
    pair = conversations[1]
    turned = Conversation(pair.messages, pair.images[::-1])
    there, back = (collate([row(one)]) for one in (pair, turned))
    count = int(there["image_grid_thw"][0].prod())
    assert torch.equal(there["image_grid_thw"], back["image_grid_thw"].flip(0))
    assert torch.equal(there["pixel_values"][:count], back["pixel_values"][-count:])


def test_a_template_that_is_not_qwens_is_refused(base, conversations):
    collate = collator(base)
    collate.processor.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] <|vision_start|><|image_pad|>{% endfor %}"
    )
    with pytest.raises(InputError, match="sets 0 of 1 answers"):
        collate([row(Conversation.of([("q", "a")], conversations[0].images * 2))])


def test_nothing_is_cut(base, conversations):
    with pytest.raises(InputError, match="tokens, more than the cutoff, 20"):
        collator(base, cutoff=20)([row(conversations[0])])
