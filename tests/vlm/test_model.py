"""TerraSense in this process: its tokens are those of the published calls, and only whole weights are taken."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from eo_zoo.errors import DownloadError, InputError, MissingExtra, WeightsError
from eo_zoo.vlm import TerraSense
from eo_zoo.vlm.engine import Generation, Question, limits, multiples, prepared, seen
from eo_zoo.vlm.model import OFFICIAL
from tests.hub_server import COMMIT, HubServer
from tests.vlm import tiny

CHANGED = "Identify the locations and categories of changed areas between these two images."
OWN = dict(min_pixels=None, max_pixels=None, temperature=None)  # what the weights themselves say, as the README has it


@pytest.fixture(scope="module", params=tiny.TYPES)
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(tiny_models, model_type):
    return TerraSense.from_pretrained(tiny_models[model_type])


@pytest.fixture
def images(tmp_path, noise):
    """Two on disk, of unequal shape."""
    for name, size in (("before.png", (383, 232)), ("after.png", (150, 301))):
        noise(*size).save(tmp_path / name)
    return [str(tmp_path / "before.png"), str(tmp_path / "after.png")]


def published(folder, images, prompt, *, demo=False, **generation):
    """The calls of the public README, or of its demonstration: tokens and text."""
    import eo_zoo.hf  # noqa: F401 - for the old name

    model = transformers.AutoModelForVision2Seq.from_pretrained(folder, trust_remote_code=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    if demo:
        processor.image_processor.max_pixels, processor.image_processor.min_pixels = 4194304, 256 * 28 * 28
    from qwen_vl_utils import process_vision_info

    said = [{"type": "image", "image": path} for path in images] + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": said}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pictures, videos = process_vision_info(messages)
    inputs = processor(text=[text], images=pictures, videos=videos, padding=True, return_tensors="pt")
    torch.manual_seed(5)
    made = model.generate(**inputs, **generation)[0, inputs.input_ids.shape[1] :]
    text = processor.batch_decode([made], skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    return made.tolist(), text


@pytest.mark.parametrize("count", [1, 2])
def test_tokens_of_the_readme(tiny_models, model_type, loaded, images, count):
    tokens, text = published(tiny_models[model_type], images[:count], CHANGED, max_new_tokens=40)
    reply = loaded.ask(images[:count], CHANGED, max_new_tokens=40, **OWN)
    assert list(reply.tokens) == tokens and reply.text == text == str(reply)
    assert len(set(tokens)) > 2  # of one token for ever anything would be equal


@pytest.mark.parametrize("count", [1, 2])
def test_tokens_of_the_demonstration_by_default(tiny_models, model_type, loaded, images, count):
    sampling = dict(max_new_tokens=40, temperature=0.1, top_p=0.9, do_sample=True)
    tokens, _ = published(tiny_models[model_type], images[:count], "What?", demo=True, **sampling)
    torch.manual_seed(5)
    reply = loaded.ask(images[:count], "What?", max_new_tokens=40)
    assert list(reply.tokens) == tokens
    assert Generation() == Generation(512, 0.1, 0.9, None, 256 * 28 * 28, 4194304)


def test_what_the_model_sees(loaded, model_type, noise):
    """Sizes are those of the processor's own grid, and as `seen` foretells them."""
    generation = Generation(max_new_tokens=1)
    for size in ((383, 232), (40, 30), (3000, 60)):
        image = noise(*size)
        (answer,) = loaded.answer([Question((image,), "What?")], generation)
        assert answer.seen == (seen(prepared(image).size, model_type, generation),)
    limited = Generation(max_new_tokens=1, min_pixels=56 * 56, max_pixels=100 * 100)
    (answer,) = loaded.answer([Question((noise(383, 232),), "What?")], limited)
    assert np.prod(answer.seen) <= 100 * 100


@pytest.mark.parametrize("size", [(1, 1), (13, 27), (34, 34), (2600, 13), (28, 5600), (5000, 4000), (56, 56)])
@pytest.mark.parametrize(("factor", "low", "high"), [(28, 3136, 12845056), (32, 200704, 4194304)])
def test_sizes_are_those_of_qwens_own_tools(size, factor, low, high):
    from qwen_vl_utils.vision_process import smart_resize

    assert multiples(size, factor, low, high)[::-1] == smart_resize(*size[::-1], factor, low, high)


def test_several_at_a_time(loaded, noise):
    """Each answer is that of the question alone."""
    generation = Generation(max_new_tokens=20, temperature=0)
    questions = [
        Question((noise(383, 232),), "What?"),
        Question((noise(50, 60, 1), noise(90, 40, 2)), "How many, and where?"),
        Question((noise(200, 90, 3),), "x"),
    ]
    together = loaded.answer(questions, generation)
    alone = [loaded.answer([question], generation)[0] for question in questions]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.seen for one in together] == [one.seen for one in alone]
    assert loaded.answer([], generation) == []


def test_ask_all_keeps_the_order(loaded, noise):
    pairs = [(noise(60 + 10 * i, 60, i), f"Which of {i}?") for i in range(6)]
    replies = loaded.ask_all(pairs, max_new_tokens=6, temperature=0)
    assert [reply.prompt for reply in replies] == [prompt for _, prompt in pairs]
    single = [loaded.ask(*pair, max_new_tokens=6, temperature=0) for pair in pairs]
    assert [reply.tokens for reply in replies] == [reply.tokens for reply in single]


def test_streaming(loaded, noise):
    image, options = noise(90, 60), dict(max_new_tokens=30, temperature=0)
    pieces = list(loaded.stream(image, "What?", **options))
    assert "".join(pieces) == loaded.ask(image, "What?", **options).text
    left = loaded.stream(image, "What?", max_new_tokens=10_000, temperature=0)
    next(left)
    left.close()  # ends the work, too: else this would take minutes


def test_a_failure_while_streaming_is_told(loaded, noise, monkeypatch):
    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(loaded.stream(noise(60, 60), "What?"))


def test_seeds(loaded, noise):
    options = dict(temperature=1.0, max_new_tokens=12)
    state = torch.random.get_rng_state()
    one, same, other = (loaded.ask(noise(60, 60), "What?", seed=seed, **options).tokens for seed in (1, 1, 2))
    assert one == same != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_cut_off_and_ended(loaded, noise, monkeypatch):
    reply = loaded.ask(noise(60, 60), "What?", max_new_tokens=3, temperature=0)
    assert not reply.complete and len(reply.tokens) == 3 and "cut off" in reply.warnings[-1]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [reply.tokens[0]])
    ended = loaded.ask(noise(60, 60), "What?", max_new_tokens=3, temperature=0)
    assert ended.complete and ended.tokens == reply.tokens[:1]


def test_likelihoods_are_those_of_the_whole_text(loaded, noise):
    """Read after the cached question, an option has the probability that it has in one long text."""
    question, generation = Question((noise(90, 60),), "Which?"), Generation()
    options = ["ship", "a harbour, large", "x"]
    found = loaded.likelihoods(question, options, generation)
    for option, log in zip(options, found, strict=True):
        said = [{"type": "image"}, {"type": "text", "text": "Which?"}]
        start = loaded.processor.apply_chat_template(
            [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
        )
        text = loaded.processor(
            text=[f"{start}{option}<|im_end|>"],
            images=[prepared(question.images[0])],
            return_tensors="pt",
            **limits(loaded.processor.image_processor, generation),
        )
        with torch.inference_mode():
            logs = loaded.model(**text).logits.log_softmax(-1)[0]
        ids = text["input_ids"][0].tolist()
        places = range(len(ids) - len(option) - 1, len(ids))  # a token a byte, and the end
        assert log == pytest.approx(sum(float(logs[i - 1, ids[i]]) for i in places), abs=1e-3)


# ---- loading ----


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def hub(tiny_folder, monkeypatch, tmp_path):
    """The official repository, with a tiny model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with HubServer() as server:
        server.stand_in(monkeypatch)
        for path in tiny_folder.iterdir():
            server.add(OFFICIAL, path.name, path.read_bytes(), lfs=path.suffix == ".safetensors")
        yield server


def test_from_the_hub(hub, monkeypatch):
    """By the official name, and of which commit; a second time without the network."""
    model = TerraSense.from_pretrained(dtype=torch.float32)
    assert (model.name, model.revision) == (OFFICIAL, COMMIT)
    with pytest.raises(DownloadError, match="no such revision"):
        TerraSense.from_pretrained(OFFICIAL, revision="nowhere")
    with pytest.raises(DownloadError, match="owner/other"):
        TerraSense.from_pretrained("owner/other")
    with pytest.raises(InputError, match="cannot be OWNER/NAME"):
        TerraSense.from_pretrained("what is this?")
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    asked = len(hub.requests)
    assert TerraSense.from_pretrained(OFFICIAL).revision == COMMIT
    assert len(hub.requests) == asked
    with pytest.raises(DownloadError, match="owner/absent"):
        TerraSense.from_pretrained("owner/absent")


def test_damaged_on_the_way(hub):
    """What came is not what the Hub states: one bit of a weight."""
    file = hub.files[OFFICIAL, "model.safetensors"]
    file.sent = file.data[:-1] + bytes([file.data[-1] ^ 1])
    with pytest.raises(WeightsError, match="damaged"):
        TerraSense.from_pretrained()


def test_dtypes_and_device_maps(tiny_folder):
    pytest.importorskip("accelerate")
    assert TerraSense.from_pretrained(tiny_folder).model.dtype == torch.float32
    assert TerraSense.from_pretrained(tiny_folder, dtype="bfloat16", device_map="cpu").model.dtype == torch.bfloat16
    assert TerraSense.from_pretrained(tiny_folder, dtype="auto", device_map="auto").model.dtype == torch.float32


def test_another_kind_of_model(copy):
    for kind in ("llava", "qwen3_vl_moe", None):
        facts = json.loads((copy / "config.json").read_text())
        facts["model_type"] = kind
        (copy / "config.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match=r"expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
            TerraSense.from_pretrained(copy)


@pytest.mark.parametrize("fault", ["missing", "left over", "shape"])
def test_weights_that_do_not_fit(copy, fault):
    """transformers would go on with random ones."""
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.gate_proj.weight"))
    if fault == "missing":
        tensors.pop(name)
    elif fault == "left over":
        tensors["other.weight"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:5].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(WeightsError):
        TerraSense.from_pretrained(copy)


def test_files_that_are_cut_off_or_missing(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="damaged or cut off"):
        TerraSense.from_pretrained(copy)
    path.write_bytes(whole)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises((WeightsError, InputError), match=r"tokenizer|loaded"):
        TerraSense.from_pretrained(copy)


def test_no_pickle_is_opened(copy, tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (canary.touch, ())

    (copy / "model.safetensors").unlink()
    torch.save(Hostile(), copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"converters/terrasense\.py"):
        TerraSense.from_pretrained(copy)
    assert not canary.exists()


def test_no_remote_code_is_run(copy, tmp_path):
    canary = tmp_path / "canary"
    (copy / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    for file in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (copy / file).is_file():
            facts = json.loads((copy / file).read_text())
            facts["auto_map"] = {"AutoConfig": "evil.X", "AutoModelForVision2Seq": "evil.X", "AutoProcessor": "evil.X"}
            (copy / file).write_text(json.dumps(facts))
    assert TerraSense.from_pretrained(copy).model_type == "qwen2_5_vl"
    assert not canary.exists()


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        TerraSense.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="eo-zoo sft merge"):
        TerraSense.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        TerraSense.from_pretrained(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError):
        TerraSense.from_pretrained(tmp_path)


def test_arguments(tiny_folder, monkeypatch):
    with pytest.raises(InputError, match="8bit or 4bit"):
        TerraSense.from_pretrained(tiny_folder, quantization="2bit")
    for wrong in (dict(dtype="bf16"), dict(device_map="gpu"), dict(device_map="cuda:7")):
        with pytest.raises(InputError):
            TerraSense.from_pretrained(tiny_folder, **wrong)
    with pytest.raises(InputError, match="batch_size is 0"):
        TerraSense.from_pretrained(tiny_folder, batch_size=0)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"eo-zoo\[quantized\]"):
        TerraSense.from_pretrained(tiny_folder, quantization="4bit")


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_new_tokens", 0), ("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("min_pixels", 10**7), ("colour", 1)],
)
def test_options_out_of_range(loaded, noise, option, value):
    with pytest.raises(InputError, match=option):
        loaded.ask(noise(60, 60), "What?", **{option: value})


def test_questions_that_cannot_be_asked(loaded, noise):
    image = noise(60, 60)
    for wrong, words in (
        ((None, "What?"), "no image was given"),
        (([], "What?"), "no image was given"),
        (([image] * 3, "What?"), "3 images"),
        ((image, "  "), "prompt is empty"),
        ((Image.new("RGB", (4000, 10)), "What?"), "strip"),
        ((Image.new("L", (9000, 9000)), "What?"), "window"),
    ):
        with pytest.raises(InputError, match=words):
            loaded.ask(*wrong)
