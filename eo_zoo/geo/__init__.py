"""Rasters in, georeferenced embeddings or classes out; needs the extra "geo"."""

from eo_zoo.errors import require

require("rasterio", "geo")

# All after the check, which names the pip line if rasterio is missing.
from eo_zoo.geo.embed import embed_raster  # noqa: E402
from eo_zoo.geo.predict import predict_raster  # noqa: E402
from eo_zoo.geo.scene import open_scene  # noqa: E402

__all__ = ["embed_raster", "open_scene", "predict_raster"]
