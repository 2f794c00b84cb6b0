from __future__ import annotations

import errno
import functools
import json
import os
import shutil

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from eo_zoo.errors import InputError, WeightsError
from eo_zoo.vlm import convert
from eo_zoo.weights import sharded, stored
from tests.vlm import tiny
from tests.weights import zero_files

SOURCES = ("bin", "bin shards", "safetensors", "safetensors shards", "zero 2", "zero 3")


def tensors_of(folder):
    found = sharded.read_folder(folder)
    read = found.reader()
    return {name: read(name) for name in found.shapes}


def former(name):
    """Names as of transformers 4.51."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def today(name):
    """Names as of transformers 4.52."""
    name = former(name)
    if name.startswith("model."):
        return name.replace("model.", "model.language_model.", 1)
    return f"model.{name}" if name.startswith("visual.") else name


def without_weights(folder, place):
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors*"))
    return place


def save(tensors, place, kind):
    """Write the weights in one of the forms of `SOURCES`."""
    if kind.startswith("zero"):
        frozen = [name for name in tensors if "visual" in name]
        zero_files.save(tensors, place, world=3, stage=int(kind[-1]), frozen=frozen, tag="global_step12")
        return
    stem, end = ("pytorch_model", "bin") if kind.startswith("bin") else ("model", "safetensors")
    count = 3 if kind.endswith("shards") else 1
    places = {name: f"{stem}-{i % count + 1:05}-of-{count:05}.{end}" for i, name in enumerate(tensors)}
    if count == 1:
        places = dict.fromkeys(tensors, f"{stem}.{end}")
    for file in set(places.values()):
        part = {name: tensors[name] for name in tensors if places[name] == file}
        torch.save(part, place / file) if end == "bin" else save_file(part, place / file)
    if count > 1:
        (place / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def load(folder, model_type):
    """The model of a folder, of which every tensor was used and none was missing."""
    kind = getattr(transformers, f"{tiny.CLASSES[model_type]}ForConditionalGeneration")
    found, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return found.eval()


@functools.cache
def expected_logits(folder, model_type):
    return logits(load(folder, model_type), folder)


def logits(model, folder):
    processor = transformers.AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "ships?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    with torch.no_grad():
        return model(**processor(text=[text], images=[image], return_tensors="pt")).logits


@pytest.mark.parametrize("model_type", tiny.TYPES)
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("layout", [former, today])
def test_every_source_gives_a_folder_that_loads_strictly(tiny_models, tmp_path, model_type, kind, layout):
    expected = tensors_of(tiny_models[model_type])
    source = without_weights(tiny_models[model_type], tmp_path / "in")
    save({layout(name): tensor for name, tensor in expected.items()}, source, kind)
    convert.convert(source, tmp_path / "out", shard_size="100KB")
    found = tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys()  # what save_pretrained writes
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(list((tmp_path / "out").glob("model-0000*.safetensors"))) > 3
    wanted = expected_logits(tiny_models[model_type], model_type)
    assert torch.equal(logits(load(tmp_path / "out", model_type), tmp_path / "out"), wanted)
    names = {path.name for path in tiny_models[model_type].iterdir()} - {"model.safetensors"} | {"conversion.json"}
    assert names == {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("model")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("wrapping", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."])
def test_wrappings_are_taken_off(tiny_folder, tmp_path, wrapping):
    expected = tensors_of(tiny_folder)
    source = without_weights(tiny_folder, tmp_path / "in")
    save({wrapping + name: tensor for name, tensor in expected.items()}, source, "bin shards")
    convert.convert(source, tmp_path / "out")
    assert tensors_of(tmp_path / "out").keys() == expected.keys()
    save({name.replace("layers.", "layers._orig_mod."): t for name, t in expected.items()}, source, "safetensors")
    assert convert.check(source).tensors.shapes.keys() == expected.keys()


def test_one_step_of_deepspeed_takes_what_lies_a_folder_above(tiny_folder, tmp_path):
    source = without_weights(tiny_folder, tmp_path / "in")
    save(tensors_of(tiny_folder), source, "zero 3")
    convert.convert(source / "global_step12", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("model_type", tiny.TYPES)
def test_another_type_is_named_in_the_configuration(tiny_models, tmp_path, model_type):
    convert.convert(tiny_models[model_type], tmp_path / "out", dtype="bfloat16")
    for name, tensor in tensors_of(tiny_models[model_type]).items():
        assert torch.equal(tensors_of(tmp_path / "out")[name], tensor.bfloat16())
    kind = getattr(transformers, f"{tiny.CLASSES[model_type]}ForConditionalGeneration")
    assert {p.dtype for p in kind.from_pretrained(tmp_path / "out", torch_dtype="auto").parameters()} == {
        torch.bfloat16
    }


# ------------------------------------------------------------------------------------------------ tied heads


def tie(folder):
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("model_type", tiny.TYPES)
@pytest.mark.parametrize("held", ["embedding", "head", "both"])
def test_a_tied_head_is_written_once(tiny_models, tmp_path, model_type, held):
    expected = tensors_of(tiny_models[model_type])
    embedding = next(name for name in expected if "embed_tokens" in name)
    source = without_weights(tiny_models[model_type], tmp_path / "in")
    tie(source)
    tensors = {**expected, "lm_head.weight": expected[embedding]}
    if held != "both":
        del tensors["lm_head.weight" if held == "embedding" else embedding]
    save(tensors, source, "bin")
    convert.convert(source, tmp_path / "out")
    assert tensors_of(tmp_path / "out").keys() == expected.keys() - {"lm_head.weight"}
    loaded = load(tmp_path / "out", model_type)
    assert torch.equal(loaded.lm_head.weight, expected[embedding])


def test_a_tied_head_of_other_values_is_refused(tiny_folder, tmp_path):
    source = without_weights(tiny_folder, tmp_path / "in")
    save(tensors_of(tiny_folder), source, "bin")
    tie(source)
    with pytest.raises(WeightsError, match="set tie_word_embeddings to false"):
        convert.convert(source, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ adapters


@pytest.mark.parametrize("model_type", tiny.TYPES)
@pytest.mark.parametrize("layout", [former, today])
def test_an_adapter_is_merged_as_peft_does(tiny_models, tmp_path, model_type, layout):
    peft = pytest.importorskip("peft")
    model = load(tiny_models[model_type], model_type)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=r".*(language_model|visual).*(q_proj|down_proj|qkv)",
        modules_to_save=["lm_head"],
        alpha_pattern={"layers.1.mlp.down_proj": 3},
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    prefix = "base_model.model."
    save_file({prefix + layout(n.removeprefix(prefix)): t.clone() for n, t in stored.read(file).items()}, file)
    merged = adapted.merge_and_unload().eval()
    with pytest.raises(InputError, match="is an adapter of"):
        convert.check(tmp_path / "adapter")
    convert.convert(tmp_path / "adapter", tmp_path / "out", base=tiny_models[model_type], shard_size="100KB")
    found = load(tmp_path / "out", model_type)
    for (name, one), (_, other) in zip(found.named_parameters(), merged.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
    expected = logits(merged, tiny_models[model_type])
    torch.testing.assert_close(logits(found, tmp_path / "out"), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, expected_logits(tiny_models[model_type], model_type), atol=0.1)
    with pytest.raises(InputError, match="is an adapter, not the model"):
        convert.check(tmp_path / "adapter", base=tmp_path / "adapter")


def test_the_tokenizer_of_an_adapter_comes_first(tiny_folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(1, 32), f"{name}B.weight": torch.ones(32, 1)},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "chat_template.jinja").write_text("trained")
    convert.convert(adapter, tmp_path / "out", base=tiny_folder)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "trained"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


# ------------------------------------------------------------------------------------------------ bad input


def refused(source, tmp_path, expected, kind=InputError, **kwargs):
    with pytest.raises(kind, match=expected) as caught:
        convert.convert(source, tmp_path / "out", **kwargs)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("lm_head.weight"), r"1 missing \(lm_head.weight\)"),
        (lambda t: t.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 3)}), r"lm_head.weight is \(3, 3\), expected \(\d+, 32\)"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}),
            "quantized.*lm_head.weight is torch.int8",
        ),
        (
            lambda t: t.update({"module.lm_head.weight": torch.ones(1)}),
            "twice: as lm_head.weight and as module.lm_head",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"] * torch.inf}),
            "lm_head.weight holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tiny_folder, tmp_path, change, expected):
    source, tensors = without_weights(tiny_folder, tmp_path / "in"), tensors_of(tiny_folder)
    change(tensors)
    save(tensors, source, "safetensors")
    refused(source, tmp_path, expected, WeightsError, dtype="bfloat16")


def test_a_missing_shard_a_cut_file_and_none_at_all(tiny_folder, tmp_path):
    source = without_weights(tiny_folder, tmp_path / "in")
    refused(source, tmp_path, "holds no weights")
    save(tensors_of(tiny_folder), source, "bin shards")
    shard = source / "pytorch_model-00002-of-00003.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(source, tmp_path, "cut short", WeightsError)
    shard.unlink()
    refused(source, tmp_path, "pytorch_model-00002-of-00003.bin, which is not there", WeightsError)


@pytest.mark.parametrize("where", ["bin", "zero"])
def test_a_hostile_pickle_is_never_run(tiny_folder, tmp_path, where):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    source = without_weights(tiny_folder, tmp_path / "in")
    if where == "bin":
        torch.save({**tensors_of(tiny_folder), "x": Hostile()}, source / "pytorch_model.bin")
    else:
        save(tensors_of(tiny_folder), source, "zero 3")
        file = source / "global_step12" / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": Hostile()}, file)
    refused(source, tmp_path, "asks to run", WeightsError)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, "is of the type 'llama'; expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"),
        ({"model_type": ["qwen2_vl"]}, r"is of the type \['qwen2_vl'\]"),
        ({"model_type": "qwen2_5_vl", "text_config": {"num_hidden_layers": 10**9}}, "1000000000 layers"),
        ({"model_type": "qwen2_5_vl", "text_config": 3}, "describes no model"),
        ({"model_type": "qwen2_5_vl", "text_config": {"hidden_size": "wide"}}, "describes no model"),
        ({"model_type": "qwen2_5_vl", "text_config": {"num_attention_heads": 0}}, "describes no model"),
        ({"model_type": "qwen2_5_vl", "vision_config": {"depth": 10**9}}, "1000000000 layers"),
    ],
)
def test_other_configurations_are_refused(tiny_folder, tmp_path, config, expected):
    source = tmp_path / "in"
    shutil.copytree(tiny_folder, source)
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path, expected)


def test_folders_that_are_not_there_or_in_the_way(tiny_folder, tmp_path):
    refused(tmp_path / "none", tmp_path, "none is not there: give a folder")
    refused(tiny_folder / "config.json", tmp_path, "config.json is a file: give a folder")
    refused(tiny_folder, tmp_path, "none is not there", base=tmp_path / "none")
    refused(tiny_folder, tmp_path, "'int8' is none of float32", dtype="int8")
    refused(tiny_folder, tmp_path, "5GB or 500MB", shard_size="small")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_folder / "model.safetensors", bare)
    refused(bare, tmp_path, "no config.json: .*--base")
    assert "no tokenizer" not in convert.check(bare, base=tiny_folder).summary
    shutil.copy(tiny_folder / "config.json", bare)
    assert "no tokenizer" in convert.check(bare).summary
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists"):
        convert.convert(tiny_folder, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_full_disk_leaves_nothing(tiny_folder, tmp_path, monkeypatch):
    real, calls = stored.save, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "save", full)
        with pytest.raises(OSError, match="No space left"):
            convert.convert(tiny_folder, tmp_path / "out", shard_size="100KB")
    assert len(calls) == 3 and not list(tmp_path.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(tiny_folder, tmp_path, "and 1,000 are free")
