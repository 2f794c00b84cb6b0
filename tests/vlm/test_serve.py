from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eo_zoo.errors import DownloadError, InputError, MissingExtra
from eo_zoo.vlm import serve
from eo_zoo.vlm.engine import Generation, Question
from eo_zoo.vlm.serve import cautions, check_port, find_backend, serve_command, takes_questions_at_once
from eo_zoo.vlm.served import ServedModel
from tests.vlm import tiny
from tests.vlm.serving import free_port, serving

NAME = "TerraSense-CASM/TerraSense-Base"
SHORT = Generation(max_new_tokens=12, temperature=0, min_pixels=None, max_pixels=None)


def options(command: list[str]) -> dict[str, str]:
    """The flags with a value, by name."""
    return {flag: value for flag, value in itertools.pairwise(command) if flag.startswith("--")}


# ---- the command ----


def test_vllm_gets_the_published_flags():
    published = shlex.split(
        "vllm serve TerraSense-CASM/TerraSense-Base --served-model-name TerraSense-Base --enable-prefix-caching "
        "--max-model-len 16384 --host 0.0.0.0 --port 8000 --gpu-memory-utilization 0.9"
    )
    ours = serve_command(NAME, backend="vllm", host="0.0.0.0")
    assert ours[: len(published)] == published
    rest = options(ours[len(published) :])
    assert {flag: json.loads(value) for flag, value in rest.items()} == {
        "--mm-processor-kwargs": {"min_pixels": 256 * 28 * 28, "max_pixels": 2048 * 2048},
        "--limit-mm-per-prompt": {"image": 2, "video": 0},
    }


def test_vllm_on_two_gpus_as_published():
    found = options(serve_command(NAME, backend="vllm", tensor_parallel_size=2))
    assert (found["--tensor-parallel-size"], found["--gpu-memory-utilization"]) == ("2", "0.8")
    assert "--tensor-parallel-size" not in serve_command(NAME, backend="vllm")
    assert found["--host"] == "127.0.0.1"


def test_vllm_with_every_option(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    command = serve_command(
        NAME, backend="vllm", port=81, revision="abc", max_model_len=8192, gpu_memory_utilization=0.5,
        served_model_name="ours", api_key="sk-secret", extra=("--quantization", "fp8"),
    )  # fmt: skip
    expected = {
        "--port": "81", "--revision": "abc", "--max-model-len": "8192", "--gpu-memory-utilization": "0.5",
        "--served-model-name": "ours", "--quantization": "fp8",
    }  # fmt: skip
    assert expected.items() <= options(command).items()
    assert "sk-secret" not in " ".join(command)
    assert serve.environment("sk-secret") == {"VLLM_API_KEY": "sk-secret"}
    assert serve.environment(None) == {}
    folder = options(serve_command(str(tmp_path), backend="vllm"))
    assert folder["--served-model-name"] == tmp_path.name


@pytest.mark.parametrize("at_once", [True, False])
def test_transformers_is_pinned_to_the_model_in_the_words_of_its_release(at_once, monkeypatch):
    monkeypatch.setattr(serve, "takes_questions_at_once", lambda: at_once)
    words = serve_command(NAME, backend="transformers", revision="abc", port=81)
    assert Path(words[0]).name == "transformers" and words[1] == "serve"
    assert words[2:4] == ([f"{NAME}@abc", "--host"] if at_once else ["--force-model", f"{NAME}@abc"])
    assert words[-4:] == ["--host", "127.0.0.1", "--port", "81"]


def test_the_release_of_transformers_is_told_by_its_server():
    import transformers

    assert takes_questions_at_once() == (int(transformers.__version__.partition(".")[0]) >= 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tensor_parallel_size": 2}, "transformers serve has no --tensor-parallel-size: leave it out, or install"),
        ({"api_key": "sk-1"}, r"transformers serve has no --api-key \(EO_ZOO_API_KEY\)"),
        ({"max_model_len": 4096, "served_model_name": "a"}, "no --max-model-len and no --served-model-name"),
        ({"gpu_memory_utilization": 0.5}, "no --gpu-memory-utilization"),
        ({"backend": "ollama"}, "backend is 'ollama', expected one of vllm, transformers"),
        ({"model": "nowhere"}, "'nowhere' is no folder here, nor OWNER/NAME on the Hub"),
        ({"model": "./no/where"}, "'./no/where' is no folder here"),
    ],
)
def test_what_a_command_cannot_be_made_of(arguments, words):
    with pytest.raises(InputError, match=words):
        serve_command(**{"model": NAME, "backend": "transformers", **arguments})


def test_folders_that_cannot_be_served(tmp_path):
    with pytest.raises(InputError, match=r"no config.json there"):
        serve_command(str(tmp_path), backend="vllm")
    folder = tmp_path / "a@b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert str(folder) in serve_command(str(folder), backend="vllm")
    with pytest.raises(InputError, match="takes what follows an @ for a revision"):
        serve_command(str(folder), backend="transformers")
    with pytest.raises(InputError, match="is a folder, which has no revision 'main'"):
        serve_command(str(folder), backend="vllm", revision="main")


def test_the_backend_is_what_is_installed(monkeypatch):
    def installed(*names: str) -> None:
        monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: name if name in names else None)

    installed("vllm", "fastapi", "uvicorn")
    assert find_backend() == "vllm"
    installed("fastapi", "uvicorn")
    assert find_backend() == "transformers"
    installed("fastapi")
    with pytest.raises(MissingExtra, match=r'pip install vllm, or .* pip install "transformers\[serving\]"'):
        find_backend()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_loopback_is_nothing_to_speak_of(host):
    assert cautions("vllm", host, 8000, None) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "station"])
def test_others_are_let_in(host):
    [open_] = cautions("vllm", host, 81, None)
    assert f"{host} is not loopback" in open_ and "port 81" in open_ and "give --api-key" in open_
    [guarded] = cautions("vllm", host, 81, "sk-1")
    assert "guards the paths below /v1 alone" in guarded and "sk-1" not in guarded
    assert "transformers serve knows no API key" in cautions("transformers", host, 81, None)[0]


def test_questions_at_once_are_cautioned_against_where_they_are_mixed_up(monkeypatch):
    monkeypatch.setattr(serve, "takes_questions_at_once", lambda: False)
    [caution] = cautions("transformers", "localhost", 8000, None)
    assert "answers questions that come at once wrongly" in caution
    monkeypatch.setattr(serve, "takes_questions_at_once", lambda: True)
    assert cautions("transformers", "localhost", 8000, None) == []


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen at port {port} of 127.0.0.1 \(.*in use\): give another"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", free_port())
    with pytest.raises(InputError, match=r"cannot listen at port 8000 of 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)


# ---- the command line ----


def test_a_dry_run_shows_the_command_and_not_the_key(run):
    code, out, err = run("serve", "terrasense", "--backend", "vllm", "--dry-run", "--api-key", "sk-secret")
    assert (code, err) == (0, "")
    assert out.startswith('VLLM_API_KEY="${EO_ZOO_API_KEY:?}" vllm serve TerraSense-CASM/TerraSense-Base ')
    shell = {**os.environ, "EO_ZOO_API_KEY": "sk-secret"}
    script = ["sh", "-c", f'vllm() {{ echo "$VLLM_API_KEY" "$@"; }}; {out}']
    shown = subprocess.run(script, env=shell, capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:3] == ["sk-secret", "serve", NAME]
    assert subprocess.run(script, env={**shell, "EO_ZOO_API_KEY": ""}, capture_output=True).returncode != 0


def test_flags_of_the_server_follow_two_dashes(run):
    code, out, _ = run("serve", "terrasense", "--backend", "vllm", "--dry-run", "--", "--quantization", "fp8")
    assert code == 0 and out.endswith(" --quantization fp8\n") and "VLLM_API_KEY" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["clay"], 2, "'clay' cannot be served. Known: terrasense."),
        (["terrasense", "--model", "nowhere"], 2, "'nowhere' is no folder here"),
        (["terrasense", "--port", "70000"], 2, "--port"),
        (["terrasense", "--backend", "vllm", "--port", free_port()], 1, "vllm is not installed: pip install vllm"),
    ],
)
def test_what_is_told_on_the_command_line(run, monkeypatch, arguments, code, words):
    monkeypatch.setenv("PATH", "/nowhere")
    found, _, err = run("serve", *arguments)
    assert found == code and words in err


def test_a_host_that_lets_others_in_is_told(run):
    code, _, err = run("serve", "terrasense", "--backend", "vllm", "--host", "0.0.0.0", "--dry-run")
    assert code == 0 and "warning: 0.0.0.0 is not loopback: anyone who reaches port 8000" in err


def test_the_process_becomes_the_server(tmp_path):
    server = tmp_path / "vllm"
    server.write_text('#!/bin/sh\necho "$$ $VLLM_API_KEY $1 $2"\nexec sleep 60\n')
    server.chmod(0o755)
    words = [sys.executable, "-m", "eo_zoo.cli", "serve", "terrasense", "--backend", "vllm", "--port", str(free_port())]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "EO_ZOO_API_KEY": "sk-1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [str(process.pid), "sk-1", "serve", NAME]
        process.send_signal(signal.SIGTERM)  # which no shell lets its children ignore
        assert process.wait(60) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


# ---- a real one ----


def questions(count: int = 32) -> list[Question]:
    """Of images in several sizes, one or two to a question."""
    draw = np.random.default_rng(0)

    def image() -> Image.Image:
        height, width = draw.integers(2, 6, 2) * 28
        return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return [Question(tuple(image() for _ in range(1 + i % 5 // 4)), f"What is in image {i}?") for i in range(count)]


def legible(text: str) -> str:
    """Without spaces and what is no whole character: where special tokens stood between bytes, servers differ."""
    return re.sub("[^!-~]", "", text)


def check_server(folder: Path, url: str) -> None:
    """32 questions at once by OpenAI's client and by ours: none is lost, and ours are answered as in this process."""
    from openai import OpenAI

    from eo_zoo.vlm.model import TerraSense

    asked = questions()
    expected = TerraSense.from_pretrained(folder)
    here = [expected.answer([question], SHORT)[0] for question in asked]
    assert len({answer.text for answer in here}) > 16

    served = ServedModel(url, model_type=expected.model_type)
    there = served.answer(asked, SHORT)
    assert [legible(answer.text) for answer in there] == [legible(answer.text) for answer in here]
    assert [answer.seen for answer in there] == [answer.seen for answer in here]
    assert served.name == str(folder)
    if takes_questions_at_once():  # before, the server does not tell
        assert not any(far.complete for near, far in zip(here, there, strict=True) if not near.complete)
    assert ServedModel(url, model=str(folder)).model_type == expected.model_type

    bodies = [served._request(question, SHORT)[0] | {"model": str(folder), "stream": True} for question in asked]
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, ThreadPoolExecutor(32) as pool:
        ended = list(pool.map(lambda body: list(client.chat.completions.create(**body))[-1], bodies))
        assert [chunk.choices[0].finish_reason in ("stop", "length") for chunk in ended] == [True] * 32

    pieces = "".join(served.pieces(asked[0], SHORT))  # the server keeps back what is no whole character in the end
    assert legible(here[0].text).startswith(legible(pieces)) and len(pieces) > 6
    if takes_questions_at_once():
        with pytest.raises(InputError, match="Server is pinned to"):
            ServedModel(url, model="another").answer(asked[:1], SHORT)


def test_a_real_server(tmp_path):
    pytest.importorskip("uvicorn")
    folder = tiny.build(tmp_path / "tiny")
    port = free_port()
    with serving(folder, port) as url:
        check_server(folder, url)
        with pytest.raises(InputError, match="cannot listen"):
            check_port("127.0.0.1", port)
    with pytest.raises(DownloadError, match="no connection"):
        ServedModel(url, retries=0).answer(questions(1), SHORT)
    check_port("127.0.0.1", port)  # nobody is left


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_a_real_server_of_the_other_kinds(tmp_path, model_type):
    pytest.importorskip("uvicorn")
    folder = tiny.build(tmp_path / "tiny", model_type)
    with serving(folder) as url:
        check_server(folder, url)
