"""To the Hugging Face Hub, where the weights' licence allows it."""

from __future__ import annotations

from timm.models import push_to_hf_hub
from torch import nn

from eo_zoo import registry
from eo_zoo.errors import InputError
from eo_zoo.models._build import StrictLoading


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
) -> str:
    """Upload a model as safetensors with its configuration and a card; ``timm.create_model("hf-hub:ID")`` reads it.

    Args:
        model: a model of this package, trained further or not.
        repo_id: OWNER/NAME, created if it is not there; a card that is there already stays.
        private: whether a new repository is private.
        token: of a Hugging Face account; by default the one of ``hf auth login``.
        revision: branch; the main one if not given.
        commit_message: of the upload.

    Returns:
        The address of the commit.

    Raises:
        InputError: not a model of this package, or weights that may not be hosted elsewhere.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    record = registry.record_of(model)
    if record is None or not isinstance(model, StrictLoading):
        raise InputError(f"{type(model).__name__} is not a model of eo_zoo: expected one of {registry.list_models()}")
    # Weights that were never loaded are the user's own; for any others nobody can tell that they are not MaRS'.
    if not record.redistributable and model.weights_origin is not None:
        raise InputError(
            f"these weights ({model.weights_origin}) may not be pushed to a hub: {record.terms}. "
            f"Others load them from their source by eo_zoo.create_model('{record.name}')"
        )
    held = str(model.weights_origin or "random")
    card = dict(
        description=f"{record.title}. Weights: {held}, as they were or trained further. Load it with "
        f'`import eo_zoo, timm; timm.create_model("hf-hub:{repo_id}", pretrained=True)`.',
        license=record.licence,
        citation=record.citation,
        details={"Bands": ", ".join(getattr(model, "bands", ())), "Original": record.repository or "eo_zoo"},
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
        task_name="image-feature-extraction",
        safe_serialization=True,
    )
    return str(commit.commit_url)
