"""``eo-zoo serve``: TerraSense behind an address."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from eo_zoo.cli_vlm import NAME
from eo_zoo.console import warn
from eo_zoo.errors import InputError, nearest

VLLM = "vLLM alone"


def serve(
    name: Annotated[str, typer.Argument(help="terrasense.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="After --: further flags of the server.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, or OWNER/NAME on the Hub; the published one if not given.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    backend: Annotated[str | None, typer.Option(help="vllm or transformers; vLLM where it is installed.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; this one answers this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen at.")] = 8000,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help=f"GPUs to spread the model over; {VLLM}.")] = 1,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="EO_ZOO_API_KEY",
            show_envvar=True,
            help=f"Asked of every client; better from the environment, where others cannot read it; {VLLM}.",
        ),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens of a question and its answer, 16384 if not given; {VLLM}.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help=f"Share of each GPU's memory, 0.9 or on several 0.8; {VLLM}."),
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help=f"What clients call the model; {VLLM}.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and do not run it.")] = False,
) -> None:
    """Serve a model to OpenAI's clients and to eo-zoo ask --url: by vLLM if it is installed, else by transformers."""
    from eo_zoo.vlm import serve as serving
    from eo_zoo.vlm.model import OFFICIAL

    if name not in ("terrasense", NAME):
        raise InputError(f"'{name}' cannot be served. {nearest(name, ['terrasense'])}")
    backend = backend or serving.find_backend()
    command = serving.serve_command(
        model or OFFICIAL,
        backend=backend,
        host=host,
        port=port,
        revision=revision,
        tensor_parallel_size=tensor_parallel_size,
        api_key=api_key,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        served_model_name=served_model_name,
        extra=extra or (),
    )
    for caution in serving.cautions(backend, host, port, api_key):
        warn(caution)
    if dry_run:
        # the key is not shown, and where it is not set the shell stops rather than serve everyone
        key = 'VLLM_API_KEY="${EO_ZOO_API_KEY:?}" ' if api_key else ""
        typer.echo(key + shlex.join(command))
        return
    serving.check_port(host, port)
    serving.run(command, api_key)
