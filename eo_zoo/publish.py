"""To the Hugging Face Hub, where the weights' licence allows it, with a card."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from eo_zoo import describe, registry, weights
from eo_zoo.errors import InputError
from eo_zoo.models._build import StrictLoading


def _known(model: nn.Module) -> tuple[StrictLoading, weights.Record]:
    """A model of ours, taken out of its transformers class, and its record; raises InputError for any other."""
    inner = getattr(model, "model", None)
    encoder = getattr(inner, "encoder", inner) if isinstance(inner, nn.Module) else None
    # what features_only gives has a ``model`` too, but only a part of it
    found = encoder if encoder is not None and hasattr(model, "config") else model
    record = registry.record_of(found)
    if record is None or not isinstance(found, StrictLoading):
        raise InputError(f"{type(model).__name__} is not a model of eo_zoo: expected one of {registry.list_models()}")
    return found, record


def require_redistributable(model: nn.Module, *, own_weights: bool = False) -> None:
    """Raise InputError where a model's weights may not be hosted elsewhere, or it is none of ours."""
    found, record = _known(model)
    # By the class, which nobody changes by accident; where tensors came from cannot be told from them.
    known = (record, *weights.RECORDS.values())
    bound = next((one for one in known if one.layout == found.layout and not one.redistributable), None)
    if bound and (found.weights_origin is not None or not own_weights):
        raise InputError(
            f"weights of {bound.name.partition('.')[0]} may not be pushed to a hub: {bound.terms}. Others load them "
            f"from their source by eo_zoo.create_model('{bound.name}'); if all of them are your own, trained from "
            "random ones, give own_weights=True"
        )


def _held(origin: weights.Origin | None) -> str:
    """Where weights came from; a path of this machine is nobody's business."""
    if origin is None:
        return "random"
    return str(origin if origin.name or not origin.sha256 else replace(origin, source="of its own"))


def card(model: nn.Module, place: str = "this folder") -> str:
    """A model card in Markdown with the Hub's front matter, from the model's record.

    Args:
        model: one of this package, in its transformers class or not.
        place: OWNER/NAME on the Hub, or what else is to be read there.
    """
    found, record = _known(model)
    facts = {
        what.capitalize(): getattr(found, what) for what in ("bands", "inputs", "in_domains") if hasattr(found, what)
    }
    rows = {what.replace("_", " "): ", ".join(values) for what, values in facts.items()}
    rows |= {"Statistics": ", ".join(f"{sensor}: {name}" for sensor, name in record.statistics.items())}
    rows |= describe.terms(record)
    address = f"hf-hub:{place}" if "/" in place else "local-dir:FOLDER"
    folder = place if "/" in place else "FOLDER"
    task, kind = "", ""
    if found.num_classes:
        segments = getattr(found, "head_kind", "") == "segmentation"
        task = "segmentation" if segments else record.task.kind if record.task else "scene"
        kind = "ForSemanticSegmentation" if segments else "ForImageClassification"
    front = describe.front_matter(record.name, library="transformers") | {"pipeline_tag": describe.PIPELINES[task]}
    if found.weights_origin is None:  # one's own are of nobody else's data and under no terms of others
        rows |= dict.fromkeys(("Trained on", "Licence", "Terms"), "")
        front = {key: front[key] for key in ("license", "library_name", "pipeline_tag", "tags")}
    lines = [
        describe.header(front), f"# {record.title}", "",
        f"Weights: {_held(found.weights_origin)}, as they were or trained further.", "",
        *(f"- **{what}:** {text}" for what, text in rows.items() if text), "",
        "```python", "import eo_zoo.hf", "import timm", f"from transformers import AutoImageProcessor, AutoModel{kind}",
        "", f'model = AutoModel{kind}.from_pretrained("{folder}")',
        f'processor = AutoImageProcessor.from_pretrained("{folder}")',
        f'the_same = timm.create_model("{address}", pretrained=True).eval()', "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    own_weights: bool = False,
) -> str:
    """Upload a model as safetensors with its configurations and a card, to be read by transformers and by timm.

    Args:
        model: a model of this package, trained further or not, in its transformers class or not.
        repo_id: OWNER/NAME, created if it is not there; a card that is there already stays.
        private: whether a new repository is private.
        token: of a Hugging Face account; by default the one of ``hf auth login``.
        revision: branch, made if it is not there; the main one if not given.
        commit_message: of the upload.
        own_weights: your word that no published weights are in the model, where their licence would forbid this.

    Returns:
        The address of the commit.

    Raises:
        InputError: not a model of this package, or weights that may not be hosted elsewhere.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    require_redistributable(model, own_weights=own_weights)
    from eo_zoo.hf.folder import save

    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), "")
        return upload(
            Path(folder), model, repo_id, private=private, token=token, revision=revision, commit_message=commit_message
        )


def upload(
    folder: Path,
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Upload a folder that holds a model, with a card of its own; see `push_to_hub`, which asks whether it may be."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.name != "README.md"}
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    if not api.file_exists(repository, "README.md", revision=revision):
        operations.append(CommitOperationAdd("README.md", card(model, repository).encode()))
    commit = api.create_commit(repository, operations, commit_message=commit_message, revision=revision)
    return str(commit.commit_url)
