"""Earth-observation foundation models, one line away.

Importing the package registers its models with timm:

>>> import timm, eo_zoo
>>> model = timm.create_model("smarties_vit_nano", pretrained=True)
"""

from eo_zoo import models  # registers the models with timm
from eo_zoo.publish import push_to_hub
from eo_zoo.registry import create_model, info, list_models
from eo_zoo.transforms import create_transform
from eo_zoo.version import __version__

__all__ = ["__version__", "create_model", "create_transform", "info", "list_models", "models", "push_to_hub"]
