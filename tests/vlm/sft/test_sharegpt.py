from __future__ import annotations

import json
from pathlib import Path

import pytest

from eo_zoo.errors import InputError
from eo_zoo.vlm.sft import sharegpt
from eo_zoo.vlm.sft.sharegpt import Conversation, Message
from tests.vlm.sft.planted import picture


@pytest.fixture
def image(tmp_path) -> Path:
    return picture(tmp_path / "a.png", (10, 20, 30))


def entry(*texts: str, images=("a.png",), **more) -> dict:
    roles = ["user", "assistant"] * len(texts)
    # there are more roles than texts: an entry may end with a question
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": messages, "images": list(images), **more}


def written(path: Path, *entries: dict) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(one) for one in entries) + "\n")
    else:
        path.write_text(json.dumps(entries))
    return path


def test_both_of_llamafactorys_namings_are_read_alike(tmp_path, image):
    first = written(tmp_path / "a.json", entry("<image>How many?", "3", "And now?", "4"))
    turns = [("human", "<image>How many?"), ("gpt", "3"), ("human", "And now?"), ("gpt", "4")]
    named = {"conversations": [{"from": who, "value": text} for who, text in turns], "images": ["a.png"]}
    second = written(tmp_path / "b.jsonl", named)
    assert sharegpt.read(first) == sharegpt.read(second)
    (conversation,) = sharegpt.read(first)
    assert conversation.images == (image,)
    assert list(conversation.turns()) == [("How many?", "3"), ("And now?", "4")]


def test_a_system_prompt_is_a_message_or_a_column(tmp_path, image):
    columned = entry("<image>q", "a", system="Be brief.")
    message = entry("<image>q", "a")
    message["messages"].insert(0, {"role": "system", "content": "Be brief."})
    first, second = sharegpt.read(written(tmp_path / "a.json", columned, message))
    assert first == second
    assert first.messages[0] == Message("system", "Be brief.")


def test_images_stand_where_their_marks_are(tmp_path, image):
    other = picture(tmp_path / "b.png", (1, 2, 3))
    one = Conversation((Message("user", "Before <image> after <image>?"), Message("assistant", "x")), (image, other))
    parts = [part["type"] for part in one.chat()[0]["content"]]
    assert parts == ["text", "image", "text", "image", "text"]
    asked = Conversation.of([("What changed?", "x")], [image, other])
    assert [part["type"] for part in asked.chat()[0]["content"]] == ["image", "image", "text"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_what_is_written_is_read_back_and_can_be_moved(tmp_path, image, name):
    folder = tmp_path / "set"
    folder.mkdir()
    inner = picture(folder / "b.png", (9, 9, 9))
    made = [Conversation.of([("q", "ä")], [inner]), Conversation.of([("q", "b")], [inner, image])]
    sharegpt.write(folder / name, made)
    assert sharegpt.read(folder / name) == made
    moved = folder.rename(tmp_path / "moved")
    again = sharegpt.read(moved / name)
    assert again[0].images == (moved / "b.png",)
    assert again[1].images == (moved / "b.png", image)


def test_images_may_start_in_another_folder(tmp_path, image):
    (tmp_path / "data").mkdir()
    path = written(tmp_path / "data" / "a.json", entry("<image>q", "a"))
    with pytest.raises(InputError, match=r"example 1: there is no image .*data/a\.png"):
        sharegpt.read(path)
    assert sharegpt.read(path, media=tmp_path)[0].images == (image,)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (entry("q", "a"), "0 <image> for 1 images"),
        (entry("<image><image>q", "a"), "2 <image> for 1 images"),
        (entry("<image>q", "a <image>", images=["a.png", "a.png"]), "in a message of assistant"),
        (entry("<image>q", "a", images=[]), "0 images, expected one, or two"),
        (entry("<image><image><image>q", "a", images=["a.png"] * 3), "3 images, expected one, or two"),
        (entry("<image>q"), "the roles are user; expected"),
        (entry("<image>q", "a", "b"), "the roles are user, assistant, user; expected"),
        (entry("<image>q", " "), "a message of assistant is empty"),
        (entry("<image>q<|im_end|>", "a"), "holds <|im_end|>"),
        (entry("<image>q <|image_pad|>", "a"), "holds <|image_pad|>"),
        (entry("<image>q", "a", images=["lost.png"]), "there is no image"),
        ({"messages": [{"role": "tool", "content": "x"}], "images": ["a.png"]}, "role is 'tool'"),
        ({"messages": [{"role": "user"}], "images": ["a.png"]}, "expected role and content"),
        ({"messages": [], "images": "a.png"}, "expected images, a list of paths"),
        ({"text": "x"}, "expected an object with a list of messages"),
        ([1], "expected an object with a list of messages"),
    ],
)
def test_a_bad_example_is_named_with_its_line(tmp_path, image, bad, said):
    path = written(tmp_path / "data.jsonl", entry("<image>q", "a"), bad)
    with pytest.raises(InputError) as told:
        sharegpt.read(path)
    assert str(told.value).startswith(f"{path}, line 2: ")
    assert said in str(told.value)


def test_files_that_are_none(tmp_path, image):
    (tmp_path / "bad.json").write_text('[{"a": 1,]')
    with pytest.raises(InputError, match=r"bad\.json: not JSON"):
        sharegpt.read(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot be read"):
        sharegpt.read(tmp_path / "lost.json")
    with pytest.raises(InputError, match=r"expected \.json or \.jsonl"):
        sharegpt.write(tmp_path / "data.csv", [Conversation.of([("q", "a")], [image])])
    with pytest.raises(InputError, match="exists"):
        sharegpt.write(tmp_path / "bad.json", [Conversation.of([("q", "a")], [image])])
    with pytest.raises(InputError, match="no conversation"):
        sharegpt.write(tmp_path / "none.json", [])
    assert not (tmp_path / "none.json").exists()
