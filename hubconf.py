"""torch.hub: every public name here is an entrypoint, and all of them come from the registry."""

dependencies = ["torch", "timm", "safetensors", "huggingface_hub"]

from eo_zoo.hub import *  # noqa: E402, F403 - after the dependencies, which torch.hub reads first
