from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eo_zoo.errors import InputError
from eo_zoo.vlm.model import TerraSense
from eo_zoo.vlm.sft import train as training
from eo_zoo.vlm.sft.sharegpt import Conversation
from eo_zoo.vlm.sft.train import Recipe, linear_layers, part, train
from tests.vlm.sft.planted import PIXELS, QUESTION, fields, picture

QUICK = dict(schedule="constant", batch_size=4, accumulation=1, learning_rate=1e-3, workers=0, **PIXELS)


def run(conversations, base, output, progress=False, **recipe) -> training.Trained:
    return train(conversations, str(base), output, recipe=Recipe(**{**QUICK, **recipe}), progress=progress)


def test_the_recipe_is_the_published_one():
    recipe = Recipe()
    published = dict(
        lora=False, learning_rate=1e-5, schedule="cosine", warmup=0.1, batch_size=1, accumulation=16, epochs=3,
        cutoff=16384, max_pixels=4194304, freeze_vision=True, freeze_projector=True, save_steps=500, log_steps=10,
    )  # fmt: skip
    assert {name: getattr(recipe, name) for name in published} == published
    assert recipe.trained == ("language",)


def test_the_loss_falls_and_answers_become_right(base, tmp_path):
    conversations = fields(tmp_path)
    told: list[str] = []
    output = tmp_path / "model"
    recipe = Recipe(**QUICK | dict(max_steps=60, learning_rate=2e-3))
    result = train(conversations, str(base), output, recipe=recipe, progress=False, report=lambda k, t: told.append(t))
    first, last = result.losses[0][1], result.losses[-1][1]
    assert last < 0.1 < 1 < first
    assert result.examples == 20
    assert result.steps == 60
    assert told[-1].startswith("step 60 of 60: loss")
    before, after = (TerraSense.from_pretrained(folder) for folder in (base, output))
    asked = [(one.images[0], QUESTION) for one in conversations]
    right = [next(answer for _, answer in one.turns()) for one in conversations]
    said = [[str(reply) for reply in model.ask_all(asked, temperature=0, **PIXELS)] for model in (before, after)]
    assert said[1] == right
    assert said[0] != right
    again = json.loads((output / "config.json").read_text())
    assert again["model_type"] == "qwen2_5_vl"
    assert not list(output.glob("*.bin"))


def changed(base: Path, output: Path) -> set[str]:
    before, after = (load_file(folder / "model.safetensors") for folder in (base, output))
    assert before.keys() == after.keys()
    assert {str(one.dtype) for one in after.values()} == {"torch.float32"}
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_exactly_the_language_model_changes(any_base, tmp_path):
    run(fields(tmp_path, 4), any_base, tmp_path / "model", max_steps=2)
    names = set(load_file(any_base / "model.safetensors"))
    language = {name for name in names if part(name) == "language"}
    assert changed(any_base, tmp_path / "model") == language
    assert {part(name) for name in names} == {"language", "vision", "projector"}


def test_the_vision_tower_and_what_joins_it_can_be_trained(any_base, tmp_path):
    conversations = fields(tmp_path, 4)
    run(conversations, any_base, tmp_path / "a", max_steps=1, freeze_projector=False)
    run(conversations, any_base, tmp_path / "b", max_steps=1, freeze_vision=False)
    assert {part(name) for name in changed(any_base, tmp_path / "a")} == {"language", "projector"}
    assert {part(name) for name in changed(any_base, tmp_path / "b")} == {"language", "vision"}


def test_adapters_are_on_the_linear_layers_of_the_language_model(any_base, tmp_path):
    result = run(fields(tmp_path, 8), any_base, tmp_path / "a", lora=True, max_steps=30, learning_rate=2e-2)
    assert result.losses[-1][1] < 0.7 * result.losses[0][1]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    model = TerraSense.from_pretrained(any_base).model
    linear = linear_layers(model, ("language",))
    assert len(linear) == 2 * 7  # q, k, v, o, gate, up, down of each layer
    kinds = ("lora_A", "lora_B")
    assert set(tensors) == {f"base_model.model.{name}.{kind}.weight" for name in linear for kind in kinds}
    assert not (tmp_path / "a" / "model.safetensors").exists()
    with_vision = linear_layers(model, ("language", "vision"))
    assert {part(name) for name in with_vision} == {"language", "vision"}
    assert "lm_head" not in with_vision


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_training_ends_where_training_at_one_go_does(base, tmp_path, lora):
    conversations = fields(tmp_path, 8)
    output = tmp_path / "model"
    weights = output / ("adapter_model.safetensors" if lora else "model.safetensors")
    recipe = dict(max_steps=5, save_steps=3, schedule="cosine", lora=lora)
    run(conversations, base, output, **recipe)
    wanted = load_file(weights)
    with pytest.raises(InputError, match="exists: give another folder, or --resume"):
        run(conversations, base, output, **recipe)
    weights.unlink()
    shutil.rmtree(output / "checkpoint-5")
    result = train(conversations, str(base), output, recipe=Recipe(**QUICK | recipe), resume=True, progress=False)
    assert result.steps == 5
    assert len(list(output.glob("checkpoint-*"))) == 2
    found = load_file(weights)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_too_long_conversations_are_refused_or_left_out(base, tmp_path):
    conversations = fields(tmp_path, 4)
    long = Conversation.of([("q", "word " * 200)], [picture(tmp_path / "long.png", (1, 2, 3))])
    with pytest.raises(InputError, match=r"1 of 5 conversations are longer than the cutoff, 300 tokens.*long\.png"):
        run([*conversations, long], base, tmp_path / "a", cutoff=300, max_steps=1)
    assert not (tmp_path / "a").exists()
    told = []
    recipe = Recipe(**QUICK | dict(cutoff=300, max_steps=1, skip_long=True))
    result = train(
        [*conversations, long], str(base), tmp_path / "b", recipe=recipe, progress=False,
        report=lambda kind, text: told.append((kind, text)),
    )  # fmt: skip
    assert (result.examples, result.skipped) == (4, 1)
    assert [step for step, _ in result.losses] == [1]  # the last one is always reported
    assert told[0] == ("warning", "1 of 5 conversations are longer than the cutoff and left out")
    with pytest.raises(InputError, match="5 of 5"):
        run([*conversations, long], base, tmp_path / "c", cutoff=10, skip_long=True)


def test_bfloat16_keeps_what_is_trained_in_full_precision(base, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = run(fields(tmp_path, 4), base, tmp_path / "a", bf16=True, max_steps=20)
    assert result.losses[-1][1] < result.losses[0][1]
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(learning_rate=0), "learning_rate is 0, expected more than 0"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(schedule="cosin"), "schedule is 'cosin', expected one of cosine"),
        (dict(warmup=1.0), "warmup is 1.0"),
        (dict(lora_dropout=1.0), "lora_dropout is 1.0"),
        (dict(min_pixels=5000000), "min_pixels is 5000000, more than max_pixels"),
        (dict(deepspeed=Path("none.json")), "none.json: there is no such DeepSpeed configuration"),
        (dict(attention="flash"), "attention is 'flash', expected flash_attention_2, sdpa or eager"),
    ],
)
def test_a_recipe_out_of_range(wrong, said):
    with pytest.raises(InputError) as told:
        Recipe(**wrong)
    assert said in str(told.value)


def test_no_data_and_no_checkpoint(base, tmp_path):
    with pytest.raises(InputError, match="no conversation to learn from"):
        train([], str(base), tmp_path / "a")
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        train(fields(tmp_path, 1), str(base), tmp_path / "a", resume=True)
    with pytest.raises(InputError, match="not a folder"):
        run(fields(tmp_path, 1), tmp_path / "lost", tmp_path / "a")
