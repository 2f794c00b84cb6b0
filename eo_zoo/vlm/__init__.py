"""TerraSense: ask an image, get answers a GIS can open; needs the extra "vlm".

    from eo_zoo.vlm import TerraSense

    model = TerraSense.from_pretrained("TerraSense-CASM/TerraSense-Base")
    print(model.ask("scene.tif", "What is in the harbour?"))
    model.detect("scene.tif", "ship", oriented=True).write("ships.geojson")

The tasks are described in `eo_zoo.vlm.tasks.Asker`. Names are imported when they are used, torch and transformers with
`TerraSense`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eo_zoo.errors import require

require("rasterio", "vlm")

if TYPE_CHECKING:
    from eo_zoo.vlm.boxes import Box, Window
    from eo_zoo.vlm.engine import Generation
    from eo_zoo.vlm.model import TerraSense
    from eo_zoo.vlm.parse import Space, parse_boxes, parse_count
    from eo_zoo.vlm.pictures import Picture, open_pair, open_picture
    from eo_zoo.vlm.records import Detections
    from eo_zoo.vlm.served import ServedModel

__all__ = [
    "Box", "Detections", "Generation", "Picture", "ServedModel", "Space", "TerraSense", "Window", "open_pair",
    "open_picture", "parse_boxes", "parse_count",
]  # fmt: skip

_HOME = {
    "boxes": ("Box", "Window"),
    "engine": ("Generation",),
    "model": ("TerraSense",),
    "parse": ("Space", "parse_boxes", "parse_count"),
    "pictures": ("Picture", "open_pair", "open_picture"),
    "records": ("Detections",),
    "served": ("ServedModel",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
