"""To the Hugging Face Hub, where the weights' licence allows it."""

from __future__ import annotations

from timm.models import push_to_hf_hub
from torch import nn

from eo_zoo import registry, weights
from eo_zoo.errors import InputError
from eo_zoo.models._build import StrictLoading

# The Hub's name for what a model answers, by the kind of its task.
_PIPELINES = {
    "": "image-feature-extraction",
    "scene": "image-classification",
    "multi-label": "image-classification",
    "segmentation": "image-segmentation",
}


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
    """Upload a model as safetensors with its configuration and a card; ``timm.create_model("hf-hub:ID")`` reads it.

    Args:
        model: a model of this package, trained further or not.
        repo_id: OWNER/NAME, created if it is not there; a card that is there already stays.
        private: whether a new repository is private.
        token: of a Hugging Face account; by default the one of ``hf auth login``.
        revision: branch; the main one if not given.
        commit_message: of the upload.
        own_weights: your word that no published weights are in the model, where their licence would forbid this.

    Returns:
        The address of the commit.

    Raises:
        InputError: not a model of this package, or weights that may not be hosted elsewhere.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    record = registry.record_of(model)
    if record is None or not isinstance(model, StrictLoading):
        raise InputError(f"{type(model).__name__} is not a model of eo_zoo: expected one of {registry.list_models()}")
    # By the class, which nobody changes by accident; where tensors came from cannot be told from them.
    known = (record, *weights.RECORDS.values())
    bound = next((one for one in known if one.layout == model.layout and not one.redistributable), None)
    if bound and (model.weights_origin is not None or not own_weights):
        raise InputError(
            f"weights of {bound.name.partition('.')[0]} may not be pushed to a hub: {bound.terms}. Others load them "
            f"from their source by eo_zoo.create_model('{bound.name}'); if all of them are your own, trained from "
            "random ones, give own_weights=True"
        )
    held = str(model.weights_origin or "random")
    takes = {what.capitalize(): ", ".join(getattr(model, what)) for what in ("bands", "inputs") if hasattr(model, what)}
    card = dict(
        description=f"{record.title}. Weights: {held}, as they were or trained further. Load it with "
        f'`import eo_zoo, timm; timm.create_model("hf-hub:{repo_id}", pretrained=True)`.',
        license=record.licence,
        citation=record.citation,
        details={**takes, "Original": record.repository or "eo_zoo"},
        tags=["earth-observation", "timm"],
    )
    commit = push_to_hf_hub(
        model,
        repo_id,
        commit_message=commit_message,
        token=token,
        revision=revision,
        private=private,
        model_card=card,
        task_name=_PIPELINES[record.task.kind if record.task and model.num_classes else ""],
        safe_serialization=True,
    )
    return str(commit.commit_url)
