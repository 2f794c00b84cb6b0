"""TerraSense: ask an image, get answers a GIS can open; needs the extra "vlm"."""
