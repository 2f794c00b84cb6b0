from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from eo_zoo.errors import DownloadError, InputError
from eo_zoo.vlm.engine import Generation, Question, prepared
from eo_zoo.vlm.served import ServedModel
from tests.vlm.chat_server import ChatServer, Reply, prompt_of, said, streamed

pytest.importorskip("openai")
PLAIN = Generation(min_pixels=None, max_pixels=None)


def picture(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def question(prompt: str = "What is this?", *images: Image.Image) -> Question:
    return Question(images or (picture(),), prompt)


def many(count: int = 32) -> list[Question]:
    return [question(f"question {i}") for i in range(count)]


def image_of(body: dict, i: int = 0) -> Image.Image:
    head, data = body["messages"][0]["content"][i]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def ask(server: ChatServer, **arguments) -> str:
    return ServedModel(server.url, **arguments).answer([question()], PLAIN)[0].text


# ---- what is sent ----


def test_parameters_are_openais_and_what_is_none_is_left_to_the_server():
    with ChatServer() as server:
        model = ServedModel(server.url, model="its name")
        model.answer([question()], Generation(max_new_tokens=7, temperature=0.5, top_p=0.8, seed=3))
        model.answer([question()], Generation(temperature=0))
        ServedModel(server.url).answer([question()], Generation(temperature=None))
    first, second, third = ({k: v for k, v in body.items() if k != "messages"} for body in server.bodies)
    assert first == {"model": "its name", "max_tokens": 7, "temperature": 0.5, "top_p": 0.8, "seed": 3}
    assert second == {"model": "its name", "max_tokens": 512, "temperature": 0}
    assert third == {"max_tokens": 512}
    assert set(server.paths) == {"/v1/chat/completions"}


def test_images_come_first_and_in_their_order_without_loss():
    before, after = picture(84, 56, seed=1), picture(56, 84, seed=2)
    with ChatServer() as server:
        ServedModel(server.url).answer([question("What changed?", before, after)], PLAIN)
    assert [part["type"] for part in server.bodies[0]["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    for i, image in enumerate((before, after)):
        assert np.array_equal(np.asarray(image_of(server.bodies[0], i)), np.asarray(prepared(image)))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("size", "sent_as_seen"), [((70, 100), True), ((480, 500), False), ((900, 300), True)])
def test_an_image_that_the_limits_change_is_sent_as_the_model_is_to_see_it(model_type, size, sent_as_seen):
    generation = Generation(max_pixels=256 * 1024)
    with ChatServer() as server:
        model = ServedModel(server.url, model_type=model_type)
        [answer] = model.answer([question("?", picture(*size))], generation)
    factor = 32 if model_type == "qwen3_vl" else 28
    [seen] = answer.seen
    assert 256 * 28**2 <= np.prod(seen) <= 256 * 1024 and all(side % factor == 0 for side in seen)
    assert image_of(server.bodies[0]).size == (seen if sent_as_seen else prepared(picture(*size)).size)


def test_sizes_are_not_stated_where_the_kind_of_model_is_not_known():
    with ChatServer() as server:
        assert ServedModel(server.url).answer([question()], PLAIN)[0].seen == ()


def test_the_kind_of_model_and_its_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    assert ServedModel("http://here", model=str(tmp_path)).model_type == "qwen3_vl"
    assert ServedModel("http://here", model=str(tmp_path), model_type="qwen2_vl").model_type == "qwen2_vl"
    for unknown in ('{"model_type": "llama"}', "{}", "[]", "no JSON"):
        (tmp_path / "config.json").write_text(unknown)
        assert ServedModel("http://here", model=str(tmp_path)).model_type is None
    with ChatServer() as server:
        model = ServedModel(server.url)
        assert model.name == f"{server.url}/v1"
        model.answer([question()], PLAIN)
        assert model.name == "tiny"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/proxy", "https://host/proxy/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/api/v3", "https://host/api/v3"),
        (" http://[::1]:8000 ", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(url, address):
    assert ServedModel(url).url == address


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "host", "", "ftp://host", "http://", "http://a?b=c", "http://[1", "http://a:b"]
)
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="no address of a server, expected http://HOST:PORT"):
        ServedModel(url)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"concurrency": 0}, "concurrency is 0, expected 1 or more"),
        ({"retries": -1}, "retries is -1, expected 0 or more"),
        ({"timeout": 0}, "timeout is 0, expected more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"model_type": "llama"}, "model_type is 'llama', expected one of qwen2_vl"),
        ({"api_key": "sk-a b"}, "the API key holds a space"),
        ({"api_key": "schlüssel"}, "not ASCII"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, words):
    with pytest.raises(InputError, match=words):
        ServedModel("http://here", **arguments)


# ---- many ----


def test_none_of_many_is_lost_and_their_order_is_kept():
    delays = np.random.default_rng(0).uniform(0, 0.1, 64)
    with ChatServer(lambda i, body: Reply(said(prompt_of(body)), delay=delays[i])) as server:
        answers = ServedModel(server.url, concurrency=8).answer(many(32), PLAIN)
    assert [answer.text for answer in answers] == [f"question {i}" for i in range(32)]
    assert len(server.bodies) == 32
    assert server.most == 8


def test_the_first_question_of_all_goes_alone():
    at_once: list[int] = []

    def replies(i, body):
        at_once.append(server.now)
        return Reply(said("x"), delay=0.1)

    with ChatServer(replies) as server:
        model = ServedModel(server.url, concurrency=4)
        model.answer(many(5), PLAIN)
        model.answer(many(4), PLAIN)
    assert at_once[0] == 1 and max(at_once[1:5]) == 4 and max(at_once[5:]) == 4


def test_a_server_that_streams_unasked_is_read_and_asked_one_by_one():
    with ChatServer(lambda i, body: streamed("ha", "fen\u2028\x85", f" {prompt_of(body)}")) as server:
        answers = ServedModel(server.url).answer(many(6), PLAIN)
    assert [answer.text for answer in answers] == [f"hafen\u2028\x85 question {i}" for i in range(6)]
    assert server.most == 1


def test_one_that_fails_is_named_and_the_rest_are_not_asked_any_more():
    def replies(i, body):
        bad = prompt_of(body) == "question 13"
        return Reply({"error": {"message": "too long"}}, 400) if bad else Reply(said("x"), delay=0.05)

    with ChatServer(replies) as server, pytest.raises(InputError) as failed:
        ServedModel(server.url, concurrency=4).answer(many(32), PLAIN)
    assert f"question 14 of 32: {server.url}/v1: the server answered 400: too long" in str(failed.value)
    answered = int(str(failed.value).rpartition("(")[2].split()[0])
    assert 9 <= answered <= 15
    assert len(server.bodies) < 24


def test_inside_a_running_event_loop_as_in_a_notebook():
    async def cell() -> str:
        return ask(server)

    with ChatServer() as server:
        assert asyncio.run(cell()) == "What is this?"


def test_ctrl_c_ends_at_once():
    program = """
import signal, sys, time
from PIL import Image
from eo_zoo.vlm.engine import Generation, Question
from eo_zoo.vlm.served import ServedModel
signal.signal(signal.SIGINT, signal.default_int_handler)
model = ServedModel(sys.argv[1], concurrency=4)
try:
    model.answer([Question((Image.new("RGB", (56, 56)),), "?")] * 8, Generation(min_pixels=None))
except KeyboardInterrupt:
    sys.exit(7)
"""
    with ChatServer(lambda i, body: Reply(said("x"), delay=60 if i else 0)) as server:
        process = subprocess.Popen([sys.executable, "-c", program, server.url])
        try:
            until(lambda: server.now == 4)
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            assert process.wait(20) == 7
            assert time.monotonic() - begun < 5
        finally:
            process.kill()
            process.wait()


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.02)


# ---- what comes back ----


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_answer_is_one(empty):
    with ChatServer(lambda i, body: Reply(said(empty))) as server:
        assert ask(server) == ""


def test_an_answer_that_was_cut_off_is_said_to_be():
    with ChatServer(lambda i, body: Reply(said("a", "length" if i else "stop"))) as server:
        model = ServedModel(server.url)
        assert [answer.complete for answer in model.answer(many(2), PLAIN)] == [True, False]
    with ChatServer(lambda i, body: streamed("a", reason="length")) as server:
        assert not ServedModel(server.url).answer([question()], PLAIN)[0].complete


PAGE = b"<!doctype html><html><title>Sign in</title></html>"
OPENAI = {"error": {"message": "The image is\nno image.", "type": "BadRequestError", "param": None, "code": 400}}
FAULTS = {
    "400 as OpenAI": (Reply(OPENAI, 400), InputError, "answered 400: The image is no image."),
    "400 as FastAPI": (Reply({"detail": "Server is pinned to 'x'"}, 400), InputError, "400: Server is pinned to 'x'"),
    "400 as text": (Reply(b"no", 400, kind="text/plain"), InputError, "answered 400: no"),
    "400 without words": (Reply(b"", 400), InputError, "answered 400"),
    "401": (Reply({"error": "Unauthorized"}, 401), InputError, "401: Unauthorized; set its key as EO_ZOO_API_KEY"),
    "403": (Reply(PAGE, 403, kind="text/html"), InputError, "answered 403; set its key as EO_ZOO_API_KEY"),
    "404": (
        Reply({"error": {"message": "The model `a` does not exist."}}, 404), InputError,
        "404: The model `a` does not exist.; check the address, and whether a server of several wants",
    ),
    "413": (Reply(PAGE, 413, kind="text/html"), InputError, "413; the images are too large for it: lower max_pixels"),
    "422": (Reply({"detail": [{"msg": "bad"}]}, 422), InputError, "422: .*bad"),
    "429": (Reply({"error": "busy"}, 429, headers={"Retry-After": "0.01"}), DownloadError, "busy; asked up to 2"),
    "500": (
        Reply(b"Internal Server Error", 500, kind="text/plain"), DownloadError,
        "500: Internal Server Error; asked up to 2 times: look at its log, or lower concurrency",
    ),
    "503": (Reply(PAGE, 503, kind="text/html"), DownloadError, "answered 503; asked up to 2 times: look at its log"),
    "307": (Reply(b"", 307, headers={"Location": "http://other/v1"}), InputError, "points to http://other/v1: give"),
    "a web page": (Reply(PAGE, kind="text/html"), DownloadError, "no answer of an OpenAI-compatible server: <!doctype"),
    "cut JSON": (Reply(b'{"choices": [{"mess'), DownloadError, "no answer of an OpenAI-compatible server: {\"choices"),
    "nothing": (Reply(b""), DownloadError, "no answer of an OpenAI-compatible server: nothing; check the address"),
    "no choices": (Reply({"object": "list"}), DownloadError, 'no answer of .*: {"object": "list"}'),
    "choices: []": (Reply({"choices": []}), DownloadError, "no answer of an OpenAI"),
    "choices: null": (Reply({"choices": None}), DownloadError, "no answer of an OpenAI"),
    "no message": (Reply({"choices": [{}]}), DownloadError, "no answer of an OpenAI"),
    "a list": (Reply([1]), DownloadError, r"no answer of an OpenAI-compatible server: \[1\]"),
    "content is a list": (Reply(said(["a"])), DownloadError, "no answer of an OpenAI"),
    "a long web page": (Reply(b"<p>" * 10_000, kind="text/html"), DownloadError, r"(<p>){100}\.\.\.; check"),
    "dropped": (Reply(said("x"), cut_after=0), DownloadError, "no connection .*: is a server running there?"),
    "dropped half-way": (Reply(said("x" * 99), cut_after=40), DownloadError, "no connection"),
    "a stream without an end": (
        Reply(streamed("ha", reason="").body, kind="text/event-stream"), DownloadError, "a stream without an end",
    ),
    "an error in the stream": (
        Reply(b'data: {"error": "out of memory"}\n\n', kind="text/event-stream"), DownloadError, "out of memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_is_told_in_a_sentence(name):
    reply, kind, words = FAULTS[name]
    with ChatServer(lambda i, body: reply) as server, pytest.raises(kind, match=words) as failed:
        ask(server, retries=1)
    message = str(failed.value)
    assert message.startswith(f"{server.url}/v1: ") and "\n" not in message and len(message) < 600
    again = reply.status in (429, 500, 503) or reply.cut_after is not None
    assert len(server.bodies) == 1 + again


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody takes it, but without listening
        port = taken.getsockname()[1]
        model = ServedModel(f"http://127.0.0.1:{port}", retries=0)
        with pytest.raises(DownloadError, match=rf"127.0.0.1:{port}/v1: no connection \(.*\): is a server running"):
            model.answer(many(32), PLAIN)
        with pytest.raises(DownloadError, match="no connection"):
            list(model.pieces(question(), PLAIN))


@pytest.mark.parametrize(
    "fault",
    [
        Reply(b"", 500),
        Reply(b"", 429, headers={"Retry-After": "0.2"}),
        Reply(b"", 503),
        Reply(said("lost"), cut_after=0),
        Reply(said("lost"), cut_after=30),
    ],
    ids=["500", "429", "503", "dropped", "dropped half-way"],
)
def test_what_passes_is_asked_again(fault):
    with ChatServer(lambda i, body: Reply(said("fine")) if i else fault) as server:
        begun = time.monotonic()
        assert ask(server) == "fine"
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]
    assert time.monotonic() - begun > 0.2


@pytest.mark.parametrize("reply", [Reply(said("x"), delay=30), Reply(b"", 429, headers={"Retry-After": "30"})])
def test_waiting_has_an_end(reply):
    with ChatServer(lambda i, body: reply) as server:
        begun = time.monotonic()
        with pytest.raises(DownloadError, match=r"no answer within 0\.5 seconds: raise timeout, or lower concurrency"):
            ask(server, timeout=0.5)
        assert time.monotonic() - begun < 3


# ---- the key ----


def test_the_key_is_sent_and_not_told(monkeypatch, caplog):
    caplog.set_level("DEBUG")
    with ChatServer(lambda i, body: Reply({"error": {"message": "wrong key sk-secret-1"}}, 401)) as server:
        with pytest.raises(InputError, match=r"401: wrong key \*\*\*; set its key") as failed:
            ask(server, api_key="sk-secret-1")
        assert server.headers[-1]["authorization"] == "Bearer sk-secret-1"
        assert "secret" not in str(failed.value) + repr(failed.value) + caplog.text
        monkeypatch.setenv("EO_ZOO_API_KEY", "sk-secret-2\n")
        with pytest.raises(InputError):
            ask(server)
        assert server.headers[-1]["authorization"] == "Bearer sk-secret-2"


def test_the_key_of_an_account_elsewhere_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-an-account")
    monkeypatch.delenv("EO_ZOO_API_KEY", raising=False)
    with ChatServer() as server:
        ask(server)
    assert "sk-of-an-account" not in json.dumps(server.headers)


def test_a_redirect_takes_neither_the_key_nor_the_image_elsewhere():
    with ChatServer() as other:
        reply = Reply(b"", 307, headers={"Location": f"{other.url}/v1/chat/completions"})
        with ChatServer(lambda i, body: reply) as server:
            model = ServedModel(server.url, api_key="sk-secret")
            with pytest.raises(InputError, match=f"points to {other.url}"):
                model.answer([question()], PLAIN)
            with pytest.raises(InputError, match=f"points to {other.url}"):
                list(model.pieces(question(), PLAIN))
        assert other.bodies == []


# ---- piece by piece ----


def test_pieces_come_as_they_are_sent():
    with ChatServer(lambda i, body: streamed("ha", "", "fen")) as server:
        pieces = ServedModel(server.url).pieces(question(), PLAIN)
        assert list(pieces) == ["ha", "fen"]
    assert server.bodies[0]["stream"] is True and prompt_of(server.bodies[0]) == "What is this?"


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(PAGE, kind="text/html"), DownloadError, "no answer of an OpenAI-compatible server"),
        (Reply(b"data: {no", kind="text/event-stream"), DownloadError, "no answer of an OpenAI-compatible server"),
        (Reply(b'data: {"error": {"message": "full"}}\n\n', kind="text/event-stream"), DownloadError, "failed: full"),
        (Reply(OPENAI, 400), InputError, "answered 400: The image is no image."),
        (Reply(b"", 500), DownloadError, "answered 500; asked once: look"),
        (Reply(b"", kind="text/event-stream"), DownloadError, "a stream without an end"),
        (Reply(streamed("ha", reason="").body, kind="text/event-stream"), DownloadError, "a stream without an end"),
    ],
)
def test_what_goes_wrong_piece_by_piece(reply, kind, words):
    with ChatServer(lambda i, body: reply) as server, pytest.raises(kind, match=words):
        list(ServedModel(server.url, retries=0).pieces(question(), PLAIN))


def test_a_stream_that_breaks_off_is_an_error_after_its_pieces():
    whole = streamed("ha", "fen", "stadt")
    whole.cut_after = whole.body.index(b"stadt")
    with ChatServer(lambda i, body: whole) as server:
        pieces = ServedModel(server.url).pieces(question(), PLAIN)
        assert [next(pieces), next(pieces)] == ["ha", "fen"]
        with pytest.raises(DownloadError, match="no connection"):
            next(pieces)
    assert len(server.bodies) == 1
