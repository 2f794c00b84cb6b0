from __future__ import annotations

import json

import pytest

from eo_zoo.vlm.model import TerraSense
from eo_zoo.vlm.sft import sharegpt
from tests.vlm.sft import published
from tests.vlm.sft.planted import PIXELS, QUESTION, fields

SMALL = ("--min-pixels", PIXELS["min_pixels"], "--max-pixels", PIXELS["max_pixels"])
QUICK = ("--schedule", "constant", "--accumulation", 1, "--batch-size", 4, "--workers", 0, *SMALL)


@pytest.fixture
def data(tmp_path):
    sharegpt.write(tmp_path / "data.json", fields(tmp_path, 8))
    return tmp_path / "data.json"


def test_data_of_a_data_set(run, tmp_path):
    published.dior(tmp_path / "dior")
    words = ("sft", "data", "dior", tmp_path / "dior", "-o", tmp_path / "set" / "data.json", "--model-type", "qwen3_vl")
    code, out, _ = run(*words, "--split", "train", "--tasks", "detect")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'set' / 'data.json'}: 1 conversations with 1 questions on 1 images")
    assert len(sharegpt.read(tmp_path / "set" / "data.json")) == 1
    assert run(*words)[0] == 2
    assert run(*words, "--overwrite", "--quiet")[:2] == (0, "")
    assert len(sharegpt.read(tmp_path / "set" / "data.json")) == 3
    code, _, err = run("sft", "data", "dotta", tmp_path, "-o", tmp_path / "x.json", "--model-type", "qwen3_vl")
    assert code == 2
    assert "Did you mean 'dota'?" in err
    code, _, err = run(*words, "--overwrite", "--tasks", "draw")
    assert (code, "expected some of detect, count" in err) == (2, True)


def test_evaluate_prints_a_table_or_json(run, tmp_path):
    published.dior(tmp_path / "dior")
    path = tmp_path / "data.json"
    run("sft", "data", "dior", tmp_path / "dior", "-o", path, "--model-type", "qwen2_5_vl", "--oriented")
    code, out, _ = run("sft", "evaluate", path, path, "--model-type", "qwen2_5_vl")
    assert code == 0
    head, every, *classes = [line.split() for line in out.splitlines()]
    assert head == ["boxes", "class", "precision", "recall", "F1", "mean", "IoU", "predicted", "truth"]
    assert every == ["oriented", "all", "100.00", "100.00", "100.00", "100.00", "6", "6"]
    assert ["oriented", "ship", "100.00"] in [line[:3] for line in classes]
    code, out, _ = run("sft", "evaluate", path, path, "--model-type", "qwen2_5_vl", "--json")
    assert json.loads(out)["scores"]["oriented"]["ship"]["recall"] == 1
    code, _, err = run("sft", "evaluate", path, path)
    assert (code, "--model-type" in err) == (2, True)


def test_export(run, data, tmp_path):
    words = ("sft", "export", data, "-o", tmp_path / "lf", "--model-type", "qwen2_vl", "--lora", "--images")
    code, out, _ = run(*words)
    assert (code, out.strip()) == (0, f"llamafactory-cli train {tmp_path / 'lf' / 'sft.yaml'}")
    assert "finetuning_type: lora" in (tmp_path / "lf" / "sft.yaml").read_text()
    assert run(*words)[0] == 2


def test_training_says_what_it_does_and_what_is_wrong(run, base, data, tmp_path):
    words = ("sft", "train", data, "-m", base, *QUICK, "--max-steps", 2, "--log-steps", 1)
    code, out, err = run(*words, "-o", tmp_path / "a", "--json", "--lr", 1e-3)
    assert code == 0
    result = json.loads(out)
    assert (result["steps"], result["examples"], len(result["losses"])) == (2, 8, 2)
    assert "36,000 of 115,488 parameters are trained" in err
    assert "step 2 of 2: loss" in err
    assert run(*words, "-o", tmp_path / "b", "--quiet") == (0, "", "")
    code, _, err = run(*words, "-o", tmp_path / "a")
    assert (code, "exists: give another folder, or --resume" in err) == (2, True)
    code, _, err = run(*words, "-o", tmp_path / "c", "--cutoff", 5)
    assert (code, "8 of 8 conversations are longer than the cutoff" in err) == (2, True)
    code, _, err = run("sft", "train", tmp_path / "lost.json", "-m", base, "-o", tmp_path / "d")
    assert (code, "lost.json: cannot be read" in err) == (2, True)
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_from_data_to_a_server(run, base, data, tmp_path):
    from tests.vlm.serving import serving

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    learn = ("--lora", "--lora-rank", 16, "--lr", 2e-2, "--max-steps", 60)
    code, out, _ = run("sft", "train", data, "-m", base, "-o", adapter, *QUICK, *learn, "--json")
    assert code == 0
    losses = json.loads(out)["losses"]
    assert losses[-1][1] < 0.6 * losses[0][1]
    code, out, _ = run("sft", "merge", adapter, "-o", merged)
    assert (code, out.strip()) == (0, f"{merged}: the merged model, checked against {adapter}")
    code, out, _ = run("sft", "predict", data, "-m", merged, "-o", tmp_path / "said.json", *SMALL)
    assert (code, out.strip()) == (0, f"{tmp_path / 'said.json'}: answers to 16 questions")
    answered = sharegpt.read(tmp_path / "said.json")
    one = answered[0]
    here = TerraSense.from_pretrained(merged).ask(one.images[0], QUESTION, temperature=0, **PIXELS)
    with serving(merged) as url:
        words = ("ask", one.images[0], QUESTION, "--url", url, "--temperature", 0, *SMALL)
        code, out, _ = run(*words)
        assert (code, out.strip()) == (0, str(here))
        code, out, _ = run("sft", "predict", data, "--url", url, "-o", tmp_path / "served.json", *SMALL, "--quiet")
        assert code == 0
    assert sharegpt.read(tmp_path / "served.json") == answered
