"""Official files of full size, made on the spot from the names and shapes that tests/data/parity records."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from eo_zoo.weights import Record
from tests.models import multimae, test_anysat, test_mars, test_smarties, test_smarties_tags

WIDTHS = {"base": 768, "large": 1024}


def save(record: Record, path: Path) -> None:
    """Write what the record's authors published, in their layout, with values made of the tensors' names.

    Raises:
        ValueError: the names and shapes are not recorded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    model, _, tag = record.name.partition(".")
    family, *_, size = model.split("_")
    if family == "mars":
        _, size, sensor = model.split("_")
        torch.save(test_mars.official(size, sensor), path)
    elif family == "anysat" and tag == "pretrain":
        test_anysat.save(test_anysat.official(size), path)
    elif family == "multimae":
        multimae.save(multimae.official(size), path)
    elif family == "smarties" and tag == "pretrain":
        save_file(test_smarties.official(size, WIDTHS[size]), path)
    elif family == "smarties":
        save_file(test_smarties_tags.official(tag, size), path)
    else:
        raise ValueError(f"no names and shapes of {record.name} are at hand")
