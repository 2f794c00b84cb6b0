"""What is asked for each task. Fine-tuning data are written with the same words, so that training and asking agree.

`DESCRIBE` and `CHANGE` are those of the published README. How TerraSense was asked for boxes is not published: the
form asked for here is the one that Qwen's models are trained to give, and the parser reads all their others.
"""

from __future__ import annotations

from collections.abc import Sequence

DESCRIBE = "Describe this remote sensing image."
CHANGE = "Identify the locations and categories of changed areas between these two images."

UPRIGHT_FORM = 'Answer with a JSON list, an object {"bbox_2d": [x1, y1, x2, y2], "label": "..."} for each'
ORIENTED_FORM = (
    'Answer with a JSON list, an object {"bbox_2d": [x1, y1, x2, y2, x3, y3, x4, y4], "label": "..."} for each, '
    "its four corners in order around the oriented box"
)
NONE = "[] if there is none."


def form(oriented: bool = False) -> str:
    """The sentence that says how boxes are to be written."""
    return f"{ORIENTED_FORM if oriented else UPRIGHT_FORM}; {NONE}"


def detect(classes: Sequence[str], *, oriented: bool = False) -> str:
    """Every object of some classes.

    >>> detect(["ship", "harbour"]).partition(" Answer")[0]
    'Detect every ship and harbour in this image.'
    """
    return f"Detect every {_listed(classes, 'and')} in this image. {form(oriented)}"


def ground(phrase: str, *, oriented: bool = False) -> str:
    """The place that a phrase describes."""
    return f"Locate in this image: {phrase}. {form(oriented)}"


def change(*, oriented: bool = False) -> str:
    """Changed areas between two images; their places hold in both."""
    return f"{CHANGE} {form(oriented)}"


def count(what: str) -> str:
    """How many objects there are."""
    return f"How many instances of {what} are in this image? Answer with the number alone."


def classify(classes: Sequence[str]) -> str:
    """One class of a closed list."""
    return (
        f"Which of these classes does this remote sensing image show: {', '.join(classes)}? "
        "Answer with the name of the class alone."
    )


def _listed(names: Sequence[str], last: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
