from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from eo_zoo.weights.stored import DTYPES
from tests.converters.test_smarties import ROOT, run
from tests.vlm import tiny

GB = 1_000_000_000
# Runs a command and tells the most memory that it had at a time, in bytes.
MEASURE = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr); sys.exit(code)"
)


def measured(*arguments: object) -> tuple[str, int]:
    script = str(ROOT / "converters" / "terrasense.py")
    command = [sys.executable, "-c", MEASURE, sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout, int(result.stderr.splitlines()[-1])


def test_folder_reads_back_equal(tmp_path):
    source = tiny.build(tmp_path / "in", "qwen3_vl")
    checked = run(source, "--check", script="terrasense")
    assert checked.returncode == 0 and "fit Qwen3VLForConditionalGeneration" in checked.stdout
    result = run(source, "-o", tmp_path / "out", "--dtype", "bfloat16", script="terrasense")
    assert result.returncode == 0, result.stderr
    assert "read back and equal" in result.stdout
    found, expected = load_file(tmp_path / "out/model.safetensors"), load_file(source / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in expected.items())
    again = run(source, "-o", tmp_path / "out", "--check", script="terrasense")
    assert again.returncode == 2 and "give one of --output FOLDER, --export FILE and --check" in again.stderr


def test_a_place_that_cannot_be_written(tmp_path):
    source = tiny.build(tmp_path / "in")
    (tmp_path / "file").touch()
    result = run(source, "-o", tmp_path / "file" / "out", script="terrasense")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


# Of the Hub's Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct.
LARGE = {
    "qwen2_5_vl": {
        "text_config": {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        "values": 8_292_166_656,
    },
    "qwen3_vl": {
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096},
        "values": 8_767_123_696,
    },
}  # fmt: skip
MEDIUM = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 44, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip


def forge(folder: Path, kind: str, model_type: str, *, shards: int, **parts: object) -> int:
    """Write a model's shards in bfloat16 as holes, which take no place on the disk; gives the number of values."""
    folder.mkdir()
    config = {"model_type": model_type, "tie_word_embeddings": False, **parts}
    (folder / "config.json").write_text(json.dumps(config))
    kind_of_model = getattr(transformers, f"{tiny.CLASSES[model_type]}ForConditionalGeneration")
    configuration = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        tensors = kind_of_model(configuration).bfloat16().state_dict()
    per_shard = sum(tensor.nbytes for tensor in tensors.values()) // shards + 1
    files: dict[str, dict[str, torch.Tensor]] = {}
    size = 0
    for name, tensor in tensors.items():
        files.setdefault(f"{size // per_shard + 1:05}-of-{shards:05}.{kind}", {})[name] = tensor
        size += tensor.nbytes
    stem = {"bin": "pytorch_model", "safetensors": "model"}[kind]
    for file, part in files.items():
        _holes(folder / f"{stem}-{file}", part)
    places = {name: f"{stem}-{file}" for file, part in files.items() for name in part}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) < 5_000_000
    return sum(tensor.numel() for tensor in tensors.values())


def _holes(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".bin":
        with torch.serialization.skip_data():
            torch.save({name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors.items()}, path)
        return
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + end)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("model_type", LARGE)
def test_eight_billion_values_are_checked_in_little_memory(tmp_path, model_type, kind):
    parts = dict(LARGE[model_type])
    values = parts.pop("values")
    assert forge(tmp_path / "in", kind, model_type, shards=4, **parts) == values
    text, memory = measured(tmp_path / "in", "--check")
    assert f"{values:,} values (bfloat16) fit" in text
    assert memory < 2 * GB, memory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_memory_stays_near_one_shard(tmp_path, kind):
    vision = {"depth": 2, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 1024}
    parts = {"text_config": MEDIUM, "vision_config": vision}
    values = forge(tmp_path / "in", kind, "qwen2_5_vl", shards=2, **parts)
    assert 2 * values > 1.4 * GB
    _, idle = measured(tmp_path / "in", "--check")
    _, memory = measured(tmp_path / "in", "-o", tmp_path / "out", "--shard-size", "200MB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= 8
    # comparing has one shard mapped twice: as it was read, and as it was written
    assert memory - idle < 0.6 * GB, (memory, idle)
