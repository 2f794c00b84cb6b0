"""Model families; importing this package registers them with timm."""

from eo_zoo.models import anysat, mars, multimae, pyramid, smarties

__all__ = ["anysat", "mars", "multimae", "pyramid", "smarties"]
