"""Model families; importing this package registers them with timm."""

from eo_zoo.models import smarties

__all__ = ["smarties"]
