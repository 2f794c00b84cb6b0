"""Model families; importing this package registers them with timm."""

from eo_zoo.models import mars, smarties

__all__ = ["mars", "smarties"]
