"""Rasters in, georeferenced embeddings out; needs the extra "geo"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_zoo.errors import require

if TYPE_CHECKING:
    from eo_zoo.geo.embed import embed_raster
    from eo_zoo.geo.scene import open_scene

require("rasterio", "geo")

__all__ = ["embed_raster", "open_scene"]


def __getattr__(name: str) -> Any:
    if name == "embed_raster":
        from eo_zoo.geo.embed import embed_raster

        return embed_raster
    if name == "open_scene":
        from eo_zoo.geo.scene import open_scene

        return open_scene
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
