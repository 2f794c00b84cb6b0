"""The same questions, asked of a model behind an address: vLLM, `transformers serve`, or any as OpenAI's.

A server resizes images by its own limits. So that it is known what its model sees, as places in an answer are in these
pixels, an image that `Generation` wants larger or smaller is sent in its final size, and every other one as the
published pipeline gives it to the model's processor.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from eo_zoo.errors import DownloadError, InputError, require
from eo_zoo.vlm.engine import FACTORS, FEWEST, MOST, Answer, Generation, Question, Size, multiples, prepared, seen
from eo_zoo.vlm.tasks import Asker

if TYPE_CHECKING:
    import openai

#: Not OPENAI_API_KEY: the key of an account is not sent to whatever address is asked.
API_KEY = "EO_ZOO_API_KEY"
PATH = "/chat/completions"
CONNECT = 10.0  # seconds to reach a server
QUOTED = 300  # characters of a server's own words in an error
SPECIAL = re.compile(r"<\|[a-z_]+\|>")  # tokens that `transformers serve` leaves in answers, as <|box_start|>


class ServedModel(Asker):
    """A model behind an address; see `Asker` for what it can be asked.

    Args:
        url: of the server, as ``http://127.0.0.1:8000`` or ``https://host/v1``; /v1 is added where it is missing.
        model: its name on the server. None: whatever the server serves, which vLLM and `transformers serve` allow.
        model_type: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``, needed for places. None: what config.json says, where
            ``model`` is a folder here.
        api_key: sent to this server alone; else ``$EO_ZOO_API_KEY``.
        concurrency: questions on their way at once.
        retries: of a question, when there is no connection or the server is busy or fails (408, 409, 429, 5xx); after
            growing pauses, or what its Retry-After says.
        timeout: seconds for a question, its retries included.

    A seed makes answers repeatable on vLLM; `transformers serve` draws for all questions from one generator, and only
    where the weights' own configuration says that it samples.

    Raises:
        InputError: an argument cannot be used.
        MissingExtra: the package openai is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        model_type: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        retries: int = 4,
        timeout: float = 600.0,
    ) -> None:
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if value < least:
                raise InputError(f"{name} is {value}, expected {least} or more")
        if not timeout > 0:
            raise InputError(f"timeout is {timeout}, expected more than 0 seconds")
        if model_type not in (None, *FACTORS):
            raise InputError(f"model_type is '{model_type}', expected one of {', '.join(FACTORS)}")
        key = (api_key or os.environ.get(API_KEY, "")).strip()
        if not re.fullmatch("[!-~]*", key):
            raise InputError("the API key holds a space, or a character that is not ASCII: check how it was copied")
        require("openai", "vlm")
        self.url = _address(url)
        self.model = model
        self.name = model or self.url
        self.model_type = model_type or _model_type(model)
        self.concurrency = concurrency
        self.retries = retries
        self.timeout = timeout
        self.at_a_time = 2 * concurrency
        self._key = key
        self._at_once: int | None = None  # not known before the first answer

    def answer(self, questions: Sequence[Question], generation: Generation) -> list[Answer]:
        """An answer to each question, in their order: to all of them, or an error that names the one that failed.

        Raises:
            InputError: the server refuses a question (4xx).
            DownloadError: it cannot be reached, fails, takes too long, or answers with something else.
        """
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:  # a loop of its own: in notebooks, one runs already
            return portal.call(self._answer, questions, generation)

    def pieces(self, question: Question, generation: Generation) -> Iterator[str]:
        """The answer to one question, as it comes; there is no second try once it has begun.

        Raises:
            InputError, DownloadError: as ``answer``.
        """
        import openai
        from openai.types.chat import ChatCompletionChunk

        body = self._request(question, generation)[0] | {"stream": True}
        http = openai.DefaultHttpxClient(follow_redirects=False)
        ended = None
        try:
            with (
                openai.OpenAI(**self._options(), http_client=http) as client,
                client.post(
                    PATH, body=body, cast_to=ChatCompletionChunk, stream=True,
                    stream_cls=openai.Stream[ChatCompletionChunk],
                ) as chunks,
            ):  # fmt: skip
                for chunk in chunks:
                    for choice in chunk.choices or ():
                        ended = choice.finish_reason or ended
                        if choice.delta and choice.delta.content:
                            yield SPECIAL.sub("", choice.delta.content)
        except openai.OpenAIError as error:
            raise self._explained(error) from error
        except ValueError as error:
            raise self._nonsense(str(error)) from error
        if not ended:
            raise self._nonsense("a stream without an end")

    async def _answer(self, questions: Sequence[Question], generation: Generation) -> list[Answer]:
        import anyio
        import openai

        answers: dict[int, Answer] = {}
        failures: dict[int, InputError | DownloadError] = {}
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False)

        async def ask(i: int, turns: anyio.CapacityLimiter, tasks: anyio.abc.TaskGroup) -> None:
            async with turns:
                try:
                    answers[i] = await self._ask(client, questions[i], generation)
                except (InputError, DownloadError) as error:
                    failures[i] = error
                    tasks.cancel_scope.cancel()

        async def ask_all(which: Iterable[int]) -> None:
            turns = anyio.CapacityLimiter(self._at_once or 1)
            async with anyio.create_task_group() as tasks:
                for i in which:
                    tasks.start_soon(ask, i, turns, tasks)

        async with openai.AsyncOpenAI(**self._options(), http_client=http) as client:
            # The very first goes alone: what is wrong for all is told once, and `transformers serve` before 5 would
            # load the model as often as questions come before it is there.
            alone = 1 if self._at_once is None else 0
            await ask_all(range(len(questions))[:alone])
            if not failures:
                await ask_all(range(len(questions))[alone:])
        if failures:
            i, error = min(failures.items())
            if len(questions) == 1:
                raise error
            raise type(error)(
                f"question {i + 1} of {len(questions)}: {error} ({len(answers)} were answered by then; ask again)"
            ) from error
        return [answers[i] for i in range(len(questions))]

    async def _ask(self, client: openai.AsyncOpenAI, question: Question, generation: Generation) -> Answer:
        import anyio
        import openai

        body, sizes = await anyio.to_thread.run_sync(self._request, question, generation)
        try:
            with anyio.fail_after(self.timeout):
                reply = _read(await client.post(PATH, body=body, cast_to=str))
        except TimeoutError as error:
            raise self._late() from error
        except openai.OpenAIError as error:
            raise self._explained(error) from error
        except ValueError as error:
            raise self._nonsense(str(error)) from error
        # `transformers serve` before 5 alone streams unasked, and it mixes up questions that come at once: the model
        # keeps the places of one question's tokens in itself while threads answer others.
        self._at_once = 1 if reply.streamed else self.concurrency
        if self.model is None and reply.model:
            self.name = reply.model
        return Answer(reply.text, seen=sizes, complete=reply.complete)

    def _options(self) -> dict[str, Any]:
        """Of OpenAI's clients, which ask again by themselves."""
        import openai

        limits = openai.Timeout(self.timeout, connect=CONNECT)
        return dict(base_url=self.url, api_key=self._key or "none", max_retries=self.retries, timeout=limits)

    def _request(self, question: Question, generation: Generation) -> tuple[dict[str, Any], tuple[Size, ...]]:
        """What is sent, and the sizes in which the model sees the images, where its kind is known."""
        shown = [_shown(image, self.model_type, generation) for image in question.images]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data(sent)}} for sent, _ in shown]
        content.append({"type": "text", "text": question.prompt})
        body = dict(
            model=self.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=generation.max_new_tokens,  # the newer max_completion_tokens is not known to transformers 4
            temperature=generation.temperature,
            top_p=generation.top_p if generation.temperature else None,
            seed=generation.seed,
        )
        sizes = tuple(size for _, size in shown if size)
        return {name: value for name, value in body.items() if value is not None}, sizes

    def _explained(self, error: openai.OpenAIError) -> InputError | DownloadError:
        import openai

        if isinstance(error, openai.APITimeoutError):
            return self._late()
        if isinstance(error, openai.APIConnectionError):
            return DownloadError(f"{self.url}: no connection ({error.__cause__ or error}): is a server running there?")
        if not isinstance(error, openai.APIStatusError):  # told in the middle of a stream
            return DownloadError(f"{self.url}: the server failed: {self._quoted(str(error))}")
        status, said = error.status_code, self._quoted(_words(error.body))
        sentence = f"{self.url}: the server answered {status}{said and f': {said}'}"
        if 300 <= status < 400:
            return InputError(f"{sentence}; it points to {error.response.headers.get('location')}: give that address")
        if status in (401, 403):
            return InputError(f"{sentence}; set its key as {API_KEY}, or give api_key")
        if status == 413:
            return InputError(f"{sentence}; the images are too large for it: lower max_pixels, or take windows")
        if status in (408, 409, 429) or status >= 500:
            times = f"asked up to {self.retries + 1} times" if self.retries else "asked once"
            return DownloadError(f"{sentence}; {times}: look at its log, or lower concurrency")
        name = f"'{self.model}' is the model's name there" if self.model else "a server of several wants a model's name"
        return InputError(f"{sentence}; check the address, and whether {name}" if status == 404 else sentence)

    def _late(self) -> DownloadError:
        return DownloadError(
            f"{self.url}: no answer within {self.timeout:g} seconds: raise timeout, or lower concurrency"
        )

    def _nonsense(self, found: str) -> DownloadError:
        return DownloadError(
            f"{self.url}: this is no answer of an OpenAI-compatible server: {self._quoted(found)}; check the address"
        )

    def _quoted(self, words: str) -> str:
        """One line of a server's words, in which a key is not repeated."""
        line = " ".join((words.replace(self._key, "***") if self._key else words).split())
        return line if len(line) <= QUOTED else f"{line[:QUOTED]}..."


class _Reply(NamedTuple):
    text: str
    complete: bool
    model: str
    streamed: bool


def _read(body: str) -> _Reply:
    """Of an answer in one piece, or one that was streamed.

    Raises:
        ValueError: it is neither.
    """
    lines = [line[5:].strip() for line in body.split("\n") if line.startswith("data:")]
    streamed = bool(lines)
    try:
        events = [json.loads(line) for line in lines if line != "[DONE]"] if streamed else [json.loads(body)]
        choices = [event["choices"][0] for event in events if not streamed or event["choices"]]
        parts = [(choice["delta"] if streamed else choice["message"]).get("content") or "" for choice in choices]
        text, model = SPECIAL.sub("", "".join(parts)), str(events[0].get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(body or "nothing") from error
    reasons = [choice.get("finish_reason") for choice in choices]
    if streamed and not any(reasons):
        raise ValueError("a stream without an end")
    return _Reply(text, "length" not in reasons, model.removesuffix("@main"), streamed)


def _words(body: object) -> str:
    """What an error says: OpenAI's form, FastAPI's, or plain text; nothing where it is a web page."""
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = str(body or "")
    return "" if text.lstrip().startswith("<") else text


def _shown(image: Image.Image, model_type: str | None, generation: Generation) -> tuple[Image.Image, Size | None]:
    """The image to send, and its size as the model sees it."""
    image = prepared(image)
    if model_type is None:
        return image, None
    size = seen(image.size, model_type, generation)
    if size != multiples(image.size, FACTORS[model_type], FEWEST, MOST):  # the server would not come to it by itself
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image, size


def _data(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _address(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:  # of the brackets or the port
        wrong = True
    if wrong or parts.query or parts.fragment or parts.username:
        raise InputError(f"'{url}' is no address of a server, expected http://HOST:PORT or https://HOST/v1")
    address = parts.geturl().rstrip("/").removesuffix(PATH)
    return address if re.search(r"/v\d+$", address) else f"{address}/v1"


def _model_type(model: str | None) -> str | None:
    config = Path(model or "", "config.json")
    if not model or not config.is_file():
        return None
    try:
        found = json.loads(config.read_bytes())["model_type"]
    except (ValueError, LookupError, TypeError):
        return None
    return found if found in FACTORS else None
