"""The command that serves TerraSense: vLLM with the published flags where it is installed, else `transformers serve`.

Both speak OpenAI's protocol, so that `eo_zoo.vlm.served.ServedModel`, ``eo-zoo ask --url`` and any client of OpenAI's
can ask them.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from eo_zoo.errors import InputError, MissingExtra
from eo_zoo.vlm.engine import Generation

BACKENDS = ("vllm", "transformers")
MAX_MODEL_LEN = 16384  # tokens of a question and its answer, published
LOOPBACK = "127.0.0.1"


def find_backend() -> str:
    """``vllm`` or ``transformers``, by what is installed.

    Raises:
        MissingExtra: neither can serve.
    """
    if importlib.util.find_spec("vllm"):
        return "vllm"
    if importlib.util.find_spec("fastapi") and importlib.util.find_spec("uvicorn"):
        return "transformers"
    raise MissingExtra(
        "neither vLLM nor what transformers needs to serve is installed: pip install vllm, or for tests and single "
        'questions pip install "transformers[serving]"'
    )


def serve_command(
    model: str,
    *,
    backend: str | None = None,
    host: str = LOOPBACK,
    port: int = 8000,
    revision: str | None = None,
    tensor_parallel_size: int = 1,
    api_key: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    served_model_name: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The words of the command.

    Args:
        model: a folder, or OWNER/NAME on the Hub.
        backend: ``vllm`` or ``transformers``; None: see ``find_backend``.
        host: address to listen at; by default only this machine is answered.
        port: to listen at.
        revision: branch, tag or commit of a model on the Hub.
        tensor_parallel_size: GPUs to spread the model over (vLLM).
        api_key: asked of every client (vLLM); it is not among the words, see ``environment``.
        max_model_len: tokens of a question and its answer (vLLM), 16384 by default.
        gpu_memory_utilization: share of each GPU's memory that is taken (vLLM); by default 0.9, or 0.8 on several.
        served_model_name: what clients call the model (vLLM); by default the last part of ``model``.
        extra: further flags of the backend.

    Raises:
        InputError: the backend lacks what an argument asks for.
        MissingExtra: no backend is installed.
    """
    backend = backend or find_backend()
    if backend not in BACKENDS:
        raise InputError(f"backend is '{backend}', expected one of {', '.join(BACKENDS)}")
    folder = Path(model).expanduser()
    if folder.exists():
        model = str(folder.resolve())
        if not (folder / "config.json").is_file():
            raise InputError(f"{model}: no config.json there, expected a folder as transformers saves one")
        if revision:
            raise InputError(f"{model} is a folder, which has no revision '{revision}': leave it out")
    elif model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(f"'{model}' is no folder here, nor OWNER/NAME on the Hub")
    if backend == "vllm":
        pixels = Generation()
        several = tensor_parallel_size > 1
        return [
            _program("vllm"), "serve", model,
            "--served-model-name", served_model_name or Path(model).name,
            *(["--revision", revision] if revision else []),
            *(["--tensor-parallel-size", str(tensor_parallel_size)] if several else []),
            "--enable-prefix-caching",
            "--max-model-len", str(max_model_len or MAX_MODEL_LEN),
            "--host", host,
            "--port", str(port),
            "--gpu-memory-utilization", str(gpu_memory_utilization or (0.8 if several else 0.9)),
            # Two images of the processors' own limit would not fit max-model-len; memory for videos is not needed.
            "--mm-processor-kwargs", json.dumps({"min_pixels": pixels.min_pixels, "max_pixels": pixels.max_pixels}),
            "--limit-mm-per-prompt", json.dumps({"image": 2, "video": 0}),
            *extra,
        ]  # fmt: skip
    given = {
        "--tensor-parallel-size": tensor_parallel_size > 1,
        "--api-key (EO_ZOO_API_KEY)": api_key,
        "--max-model-len": max_model_len,
        "--gpu-memory-utilization": gpu_memory_utilization,
        "--served-model-name": served_model_name,
    }
    if unknown := [option for option, value in given.items() if value]:
        raise InputError(f"transformers serve has no {' and no '.join(unknown)}: leave it out, or install vLLM")
    if "@" in model:
        raise InputError(f"{model}: transformers serve takes what follows an @ for a revision: rename the folder")
    pinned = f"{model}@{revision}" if revision else model
    named = [pinned] if takes_questions_at_once() else ["--force-model", pinned, "--model-timeout", str(7 * 24 * 3600)]
    return [_program("transformers"), "serve", *named, "--host", host, "--port", str(port), *extra]


def takes_questions_at_once() -> bool:
    """Whether the `transformers serve` that is installed does, as that of transformers 5.

    Before, every question had its thread, and they mixed up the places of their tokens, which the model keeps.
    """
    spec = importlib.util.find_spec("transformers")
    return bool(spec and spec.origin and Path(spec.origin).parent.joinpath("cli", "serving").is_dir())


def environment(api_key: str | None) -> dict[str, str]:
    """What is added to the environment: on the command line, anyone on the machine could read the key."""
    return {"VLLM_API_KEY": api_key} if api_key else {}


def cautions(backend: str, host: str, port: int, api_key: str | None) -> list[str]:
    """What whoever starts the server should know, a sentence each."""
    said = []
    if not _is_loopback(host):
        reach = f"{host} is not loopback: anyone who reaches port {port} of this machine over the network"
        if backend == "transformers":
            said.append(f"{reach} can use the model, and transformers serve knows no API key; a tunnel is safer")
        elif api_key:
            said.append(f"{reach} can try the API key, which guards the paths below /v1 alone")
        else:
            said.append(f"{reach} can use the model; give --api-key, or leave out --host")
    if backend == "transformers" and not takes_questions_at_once():
        said.append(
            "transformers before 5 answers questions that come at once wrongly: eo-zoo asks one after the other, and "
            "so must other clients; and it leaves every image in the folder for temporary files"
        )
    return said


def check_port(host: str, port: int) -> None:
    """Raise before a large model is loaded for nothing.

    Raises:
        InputError: the address is not one of this machine, or taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen at port {port} of {host} ({error.strerror or error}): give another --port, or --host"
        ) from error


def run(command: Sequence[str], api_key: str | None = None) -> None:
    """Become the server: its signals, its output and its exit code are this process's.

    Raises:
        MissingExtra: the program is not installed.
    """
    if not shutil.which(command[0]):
        raise MissingExtra(f"the program {command[0]} is not installed: pip install {Path(command[0]).name}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], list(command), {**os.environ, **environment(api_key)})


def _program(name: str) -> str:
    """Of this interpreter's environment: by its name where a shell finds the same one."""
    own, found = Path(sys.executable).with_name(name), shutil.which(name)
    return str(own) if own.is_file() and found != str(own) else name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
