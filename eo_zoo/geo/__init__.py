"""Rasters in, georeferenced embeddings or classes out; needs the extra "geo"."""

from eo_zoo.errors import require

require("rasterio", "geo")

from eo_zoo.geo.embed import embed_raster
from eo_zoo.geo.predict import predict_raster
from eo_zoo.geo.reconstruct import reconstruct_raster
from eo_zoo.geo.scene import open_scene
from eo_zoo.geo.series import open_series
from eo_zoo.geo.statistics import raster_statistics

__all__ = ["embed_raster", "open_scene", "open_series", "predict_raster", "raster_statistics", "reconstruct_raster"]
