"""A made-up port, and the picture of the docs: ``python tests/vlm/port.py docs/terrasense_overlay.png``.

The port is painted by code, and what finds its ships is a stand-in that knows their colours: see tests/vlm/oracle.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # in the place of this folder

from tests.vlm.oracle import Corners, Oracle, _along, _shapes, square, turned

SIZE = (760, 470)
FINE = 4  # painted this much larger, for soft edges
PIXEL, ORIGIN = 0.5, (560000.0, 5930000.0)  # metres, EPSG:32632
WATER, QUAY, GRASS, ROAD = (58, 92, 110), (150, 148, 142), (112, 128, 92), (98, 98, 98)
RED, BLACK, CREAM, WHITE, ROOF = (170, 50, 42), (26, 26, 30), (212, 204, 186), (240, 240, 236), (112, 140, 172)
COLOURS = {"ship": (RED, BLACK), "storage tank": (WHITE,), "warehouse": (ROOF,)}
TOLERANCE = 24

# Middle, length, width and direction (degrees, clockwise from the right), and the hull's colour.
SHIPS = [
    (330, 62, 128, 22, -14, RED), (548, 118, 92, 18, 24, BLACK), (690, 52, 54, 12, 66, RED),
    (128, 52, 62, 13, 8, BLACK), (642, 214, 60, 13, -38, RED), (476, 190, 34, 9, 80, BLACK),
    (70, 128, 40, 10, -52, RED), (208, 108, 36, 9, 33, RED), (396, 166, 78, 16, 97, BLACK),
    (316, 182, 74, 15, 97, RED), (212, 196, 66, 14, 97, BLACK), (602, 44, 30, 8, -8, BLACK),
    (716, 140, 32, 8, 12, RED), (430, 110, 26, 8, -30, RED),
]  # fmt: skip
TANKS = [(560, 320, 24), (620, 326, 24), (676, 318, 20), (566, 384, 20), (618, 388, 18), (668, 378, 26), (722, 352, 15)]
SHEDS = [(118, 318, 120, 44, 7), (250, 330, 92, 40, 7), (104, 400, 84, 38, 7), (226, 412, 110, 44, 7)]


def planted() -> dict[str, list[Corners]]:
    """What there is to be found."""
    return {
        "ship": [turned(*ship[:5]) for ship in SHIPS],
        "storage tank": [square(x - r, y - r, 2 * r, 2 * r) for x, y, r in TANKS],
        "warehouse": [turned(*shed) for shed in SHEDS],
    }


def paint() -> np.ndarray:
    """Bytes (470, 760, 3)."""
    width, height = SIZE
    image = Image.new("RGB", (FINE * width, FINE * height), WATER)
    pen = ImageDraw.Draw(image)

    def area(corners: Corners, colour: tuple[int, int, int]) -> None:
        pen.polygon([(FINE * x, FINE * y) for x, y in corners], colour)

    def disc(x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse([FINE * (x - radius), FINE * (y - radius), FINE * (x + radius), FINE * (y + radius)], colour)

    area([(0, 262), (300, 250), (770, 268), (770, 480), (0, 480)], QUAY)
    for x, y, length in ((258, 200, 130), (352, 186, 160)):
        area(turned(x, y, length, 26, 97), QUAY)
        area(turned(x, y + 6, length - 20, 6, 97), ROAD)
    area(turned(380, 286, 900, 12, 1), ROAD)
    area(turned(440, 380, 240, 12, 91), ROAD)
    area([(480, 296), (770, 300), (770, 480), (468, 480)], GRASS)
    area([(0, 446), (330, 452), (428, 480), (0, 480)], GRASS)
    random = np.random.default_rng(3)
    stacks = ((196, 108, 74), (88, 120, 140), (186, 164, 96), (96, 132, 104), (142, 96, 120))
    for row in range(9):
        for column in range(4):
            if random.random() < 0.8:
                corners = turned(345 + 22 * column, 312 + 13 * row, 18, 8, 2)
                area(corners, stacks[random.integers(len(stacks))])
    for x, y, length, wide, angle in SHEDS:
        area(turned(x + 4, y + 4, length, wide, angle), (96, 95, 92))  # their shadows
        area(turned(x, y, length, wide, angle), ROOF)
        area(turned(x, y, length, 2, angle), (126, 152, 184))
    for x, y, radius in TANKS:
        disc(x + 4, y + 4, radius, (84, 98, 70))
        disc(x, y, radius, WHITE)
        disc(x, y, radius - 4, (224, 226, 222))
        disc(x, y, radius - 6, WHITE)
    for x, y, length, wide, angle, hull in SHIPS:
        way = np.radians(angle)
        along = np.array([np.cos(way), np.sin(way)])
        across = np.array([-along[1], along[0]])

        def place(forward: float, aside: float, middle=(x, y), along=along, across=across) -> tuple[float, float]:
            return tuple(np.array(middle) + forward * along + aside * across)

        def shape(scale: float, length=length, wide=wide, place=place) -> Corners:
            half, side = scale * length / 2, scale * wide / 2
            return [place(half, 0), place(0.66 * half, side), place(-0.94 * half, side), place(-half, 0.7 * side),
                    place(-half, -0.7 * side), place(-0.94 * half, -side), place(0.66 * half, -side)]  # fmt: skip

        area(shape(1), hull)
        if wide > 11:
            area(shape(0.68), (126, 92, 78) if hull is RED else (104, 112, 106))
            for hatch in np.arange(-0.12, 0.26, 0.13):
                area(turned(*place(hatch * length, 0), 0.09 * length, 0.36 * wide, angle), (88, 76, 70))
        area(turned(*place(-0.3 * length, 0), 0.14 * length, 0.5 * wide, angle), CREAM)
    pixels = np.asarray(image.reduce(FINE), float)
    # light and dark patches of the ground; steps of 3, so that the picture stays small as a PNG
    patches = Image.fromarray(random.normal(0, 1, (height // 40 + 1, width // 40 + 1)).astype(np.float32))
    shade = np.asarray(patches.resize(SIZE, Image.Resampling.BICUBIC))
    return (pixels + 3 * np.round(2 * shade)[..., None]).clip(0, 255).round().astype(np.uint8)


def write(path: Path) -> None:
    """A GeoTIFF of the port."""
    profile = dict(driver="GTiff", width=SIZE[0], height=SIZE[1], count=3, dtype="uint8", photometric="RGB")
    grid = rasterio.Affine(PIXEL, 0, ORIGIN[0], 0, -PIXEL, ORIGIN[1])
    with rasterio.open(path, "w", crs="EPSG:32632", transform=grid, **profile) as file:
        file.write(np.moveaxis(paint(), -1, 0))


class Lookout(Oracle):
    """Finds things of the port's colours: boxes along ships and warehouses, and upright ones around what is round."""

    def __init__(self) -> None:
        super().__init__(oriented=True)
        self.name, self.revision = "a stand-in for a model", None

    def _find(self, image: Image.Image) -> list[tuple[str, Corners]]:
        pixels = np.asarray(image, float)
        found = []
        for label, colours in COLOURS.items():
            for colour in colours:
                mask = np.abs(pixels - colour).max(axis=-1) < TOLERANCE
                for shape in _shapes(mask):
                    if shape.area < 100:
                        continue
                    points = shape.envelope if label == "storage tank" else _along(shape, mask)
                    found.append((label, [self._number(x, y, image.size) for x, y in points.exterior.coords[:4]]))
        return found


def draw(path: Path) -> None:
    """The port, and what the stand-in says of it in windows."""
    from eo_zoo.vlm import open_picture
    from eo_zoo.vlm.overlay import draw as draw_overlay

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "port.tif")
        with open_picture(Path(folder) / "port.tif") as picture:
            found = Lookout().detect(picture, list(COLOURS), oriented=True, window=320, overlap=160)
            draw_overlay(path, picture.read(), found, overwrite=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
