"""``AutoModelForVision2Seq`` where transformers no longer has it, so that published snippets run unchanged.

transformers 5 removed that name, under which 4.x loaded models of images and text; `AutoModelForImageTextToText` took
its place, with the same calls. ``EO_ZOO_NO_VISION2SEQ=1`` leaves transformers as it is.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

NAME = "AutoModelForVision2Seq"
SWITCH = "EO_ZOO_NO_VISION2SEQ"


def provide() -> None:
    """Give the successor under the old name, as ``transformers.AutoModelForVision2Seq``; a class of that name stays."""
    if os.environ.get(SWITCH, "").lower() in ("1", "true", "yes", "on"):
        return
    import transformers.processing_utils  # noqa: F401 - at its first import it runs transformers/__init__ once more

    current = sys.modules["transformers"]
    if hasattr(current, NAME):
        return
    for module in (current, *_replaced(current)):
        setattr(module, NAME, current.AutoModelForImageTextToText)


def _replaced(current: ModuleType) -> list[ModuleType]:
    """What ``import transformers`` gave before it ran once more, as far as modules still hold it under any name."""
    holders = [vars(module) for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    held = {id(one): one for names in holders for one in list(names.values()) if type(one) is type(current)}
    return [one for one in held.values() if one.__name__ == current.__name__ and one is not current]
