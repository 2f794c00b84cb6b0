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
from tests.vlm import tiny

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


def test_a_published_snippet_runs_unchanged(tmp_path):
    pytest.importorskip("accelerate", reason='device_map="auto" needs it')
    later = "import transformers.processing_utils, transformers.pipelines, transformers.models.auto\n"
    later += "from transformers import AutoModel, Qwen2_5_VLProcessor, Trainer, pipeline\n"
    code = "import eo_zoo.hf\n" + SNIPPET.format(path=str(tiny.build(tmp_path))) + later + CHECK
    assert python(code) == "Qwen2_5_VLForConditionalGeneration torch.bfloat16 (1, 3) 1"
