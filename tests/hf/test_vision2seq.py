"""The old name in fresh processes, where the order of imports is what the test says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from eo_zoo.hf import vision2seq

ROOT = Path(__file__).parents[2]
REMOVED = Version(transformers.__version__) >= Version("5")
SUCCESSOR = "AutoModelForImageTextToText" if REMOVED else "AutoModelForVision2Seq"


def python(code: str) -> str:
    """What a fresh process prints; it must not fail."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CHECK = """
import pickle, sys, transformers
from transformers import AutoModelForVision2Seq as again
assert again is AutoModelForVision2Seq and transformers.AutoModelForVision2Seq is again
assert pickle.loads(pickle.dumps(again)) is again and "AutoModelForVision2Seq" in dir(transformers)
"""


def test_after_other_imports():
    """By then transformers/__init__ has run twice, and two names still hold what its first run made."""
    code = """
import transformers, transformers as held
import transformers.processing_utils
from transformers import AutoProcessor, Trainer, pipeline
import eo_zoo.hf
AutoModelForVision2Seq = transformers.AutoModelForVision2Seq
assert held.AutoModelForVision2Seq is AutoModelForVision2Seq
"""
    assert python(code + CHECK + "print(again.__name__)") == SUCCESSOR


@pytest.mark.parametrize("value", ["1", "TRUE"])
def test_switched_off(monkeypatch, value):
    current = sys.modules["transformers"]
    monkeypatch.delattr(current, vision2seq.NAME, raising=False)
    monkeypatch.setenv(vision2seq.SWITCH, value)
    vision2seq.provide()
    assert hasattr(current, vision2seq.NAME) == (not REMOVED)
    monkeypatch.setenv(vision2seq.SWITCH, "0")
    vision2seq.provide()
    assert getattr(current, vision2seq.NAME).__name__ == SUCCESSOR


SNIPPET = """
import torch
from PIL import Image
from transformers import AutoModelForVision2Seq, AutoProcessor

model_path = {path!r}
model = AutoModelForVision2Seq.from_pretrained(
    model_path,
    torch_dtype=torch.bfloat16,
    device_map="auto",
    trust_remote_code=True,
)
processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
image = Image.new("RGB", (56, 56), "green")
messages = [{{"role": "user", "content": [{{"type": "image", "image": image}}, {{"type": "text", "text": "What?"}}]}}]
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device)
with torch.inference_mode():
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
new = generated[:, inputs.input_ids.shape[1] :]
print(type(model).__name__, model.dtype, tuple(new.shape), len(processor.batch_decode(new)))
"""


def tiny_qwen(folder: Path) -> Path:
    """A random Qwen2.5-VL of two layers, with a tokenizer of single bytes and Qwen's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>",
    ]  # fmt: skip
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.save_pretrained(folder)
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(folder)
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(), tokenizer, transformers.Qwen2VLVideoProcessor(), chat_template=template
    ).save_pretrained(folder)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    sight = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32, fullatt_block_indexes=[1]
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=sight,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_published_snippet_runs_unchanged(tmp_path):
    pytest.importorskip("accelerate", reason='device_map="auto" needs it')
    later = "import transformers.processing_utils, transformers.pipelines, transformers.models.auto\n"
    later += "from transformers import AutoModel, Qwen2_5_VLProcessor, Trainer, pipeline\n"
    code = "import eo_zoo.hf\n" + SNIPPET.format(path=str(tiny_qwen(tmp_path))) + later + CHECK
    assert python(code) == "Qwen2_5_VLForConditionalGeneration torch.bfloat16 (1, 3) 1"
