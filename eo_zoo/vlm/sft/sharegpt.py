"""Conversations about images in LLaMA-Factory's sharegpt form: a list of ``messages`` beside a list of ``images``.

Source: data/README.md of hiyouga/LLaMA-Factory (Apache-2.0). Roles take turns, and there are as many ``<image>`` as
images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eo_zoo.errors import InputError
from eo_zoo.files import replacing
from eo_zoo.vlm.engine import RESERVED

IMAGE = "<image>"  # the place of an image in a question
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
FORMS = (("messages", "role", "content"), ("conversations", "from", "value"))
#: Tokens that the chat template and the processor set, and that no text may forge.


class Message(NamedTuple):
    """What one side says: role "system", "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Questions about one image, or about two, and their answers.

    Args:
        messages: an optional system message, then user and assistant in turns; ``<image>`` in the users' texts.
        images: files, in the order of the ``<image>`` marks.

    Raises:
        InputError: the order of the roles, the number of images or marks, an empty text, or a reserved token.
    """

    messages: tuple[Message, ...]
    images: tuple[Path, ...]

    def __post_init__(self) -> None:
        """Check what training relies on."""
        spoken = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        if not spoken or [m.role for m in spoken] != ["user", "assistant"] * (len(spoken) // 2):
            roles = ", ".join(message.role for message in self.messages) or "none"
            raise InputError(f"the roles are {roles}; expected user and assistant in turns, an answer at the end")
        if not 1 <= len(self.images) <= 2:
            raise InputError(f"{len(self.images)} images, expected one, or two to compare")
        for role, text in self.messages:
            if not text.strip():
                raise InputError(f"a message of {role} is empty")
            forged = next((token for token in RESERVED if token in text), None)
            if forged:
                raise InputError(f"a message of {role} holds {forged}, a token that only the chat template may set")
            if role != "user" and IMAGE in text:
                raise InputError(f"{IMAGE} stands in a message of {role}, expected in those of the user alone")
        marks = sum(text.count(IMAGE) for _, text in self.messages)
        if marks != len(self.images):
            raise InputError(f"{marks} {IMAGE} for {len(self.images)} images, expected as many as images")

    def chat(self) -> list[dict[str, Any]]:
        """As a chat template takes it: an image part for each ``<image>``, no space around answers."""
        said = ((role, text.strip() if role == "assistant" else text) for role, text in self.messages)
        return [{"role": role, "content": _parts(text)} for role, text in said]

    def turns(self) -> Iterator[tuple[str, str]]:
        """Each question, without ``<image>``, and its answer."""
        questions = [text.replace(IMAGE, "").strip() for role, text in self.messages if role == "user"]
        answers = [text for role, text in self.messages if role == "assistant"]
        yield from zip(questions, answers, strict=True)

    @classmethod
    def of(cls, turns: Sequence[tuple[str, str]], images: Sequence[Path]) -> Conversation:
        """Questions and answers, with the images before the first, as they are when asked."""
        messages = []
        for place, (question, answer) in enumerate(turns):
            marks = "" if place else IMAGE * len(images)
            messages += [Message("user", marks + question), Message("assistant", answer)]
        return cls(tuple(messages), tuple(images))


def read(path: Path, media: Path | None = None) -> list[Conversation]:
    """Every conversation of a JSON or JSON lines file.

    Args:
        path: a list of objects, or an object a line, with ``messages`` (role, content) or ``conversations`` (from,
            value), and ``images``.
        media: where the images' paths start; the file's own folder by default.

    Raises:
        InputError: naming the line or the example.
    """
    return [_conversation(entry, media or path.parent, where) for entry, where in entries(path)]


def write(path: Path, conversations: Sequence[Conversation], *, overwrite: bool = False) -> None:
    """A list as JSON, or one a line for ``.jsonl``; images below the file's folder get paths that start there.

    Raises:
        InputError: another suffix, no conversation, or a file that exists.
    """
    check_output(path, overwrite=overwrite)
    if not conversations:
        raise InputError(f"there is no conversation to write to {path}")
    entries = [_entry(conversation, path.parent) for conversation in conversations]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        else:
            json.dump(entries, file, ensure_ascii=False, indent=1)


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Raise what ``write`` would, before the work is done."""
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path} ends in '{path.suffix}', expected .json or .jsonl")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: give --overwrite, or another name")


def entries(path: Path) -> Iterator[tuple[Any, str]]:
    """What a JSON or JSON lines file lists, or its one object, and where each stands, for messages."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _json(line, f"{path}, line {number}"), f"{path}, line {number}"
        return
    listed = _json(text, str(path))
    if isinstance(listed, list):
        yield from ((entry, f"{path}, example {number}") for number, entry in enumerate(listed, 1))
    else:
        yield listed, str(path)


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] * (place > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _conversation(entry: Any, folder: Path, where: str) -> Conversation:
    form = next((form for form in FORMS if isinstance(entry, dict) and isinstance(entry.get(form[0]), list)), None)
    if form is None:
        raise InputError(f"{where}: expected an object with a list of messages (role, content) or conversations")
    column, role, content = form
    messages = [_message(one, role, content, where) for one in entry[column]]
    if entry.get("system"):
        messages.insert(0, Message("system", str(entry["system"])))
    images = entry.get("images")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InputError(f"{where}: expected images, a list of paths")
    files = tuple(folder / image for image in images)
    lost = next((file for file in files if not file.is_file()), None)
    if lost:
        raise InputError(f"{where}: there is no image {lost}")
    try:
        return Conversation(tuple(messages), files)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _message(one: Any, role: str, content: str, where: str) -> Message:
    if not isinstance(one, dict) or not isinstance(one.get(content), str):
        raise InputError(f"{where}: a message is {json.dumps(one)[:80]}, expected {role} and {content}, a text")
    if one.get(role) not in ROLES:
        raise InputError(f"{where}: a message's {role} is '{one.get(role)}', expected one of {', '.join(ROLES)}")
    return Message(ROLES[one[role]], one[content])


def _entry(conversation: Conversation, folder: Path) -> dict[str, Any]:
    return {
        "messages": [{"role": role, "content": text} for role, text in conversation.messages],
        "images": [_path(image, folder) for image in conversation.images],
    }


def _path(image: Path, folder: Path) -> str:
    whole, base = Path(os.path.abspath(image)), Path(os.path.abspath(folder))
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()
