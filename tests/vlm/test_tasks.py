"""Planted objects: whatever grammar the answers come in, boxes lie on the map where the objects are."""

from __future__ import annotations

import json

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from PIL import Image

from eo_zoo.errors import InputError
from eo_zoo.vlm import open_picture, prompts
from eo_zoo.vlm.engine import Answer
from tests.vlm import oracle
from tests.vlm.oracle import GRAMMARS, GRIDS, Oracle, square, turned

UPRIGHT = {
    "aerial": {
        "ship": [square(20, 30, 41, 17), square(300, 150, 25, 60), square(150, 90, 12, 12)],
        "roof": [square(64, 30, 30, 17), square(340, 5, 40, 30)],
    },
    "drone": {
        "ship": [
            square(300, 100, 47, 23),
            square(120, 250, 20, 60),
            square(250, 240, 30, 30),
            square(282, 240, 30, 30),
        ],
        "tank": [square(400, 500, 90, 45), square(20, 500, 25, 25)],
    },
}
ORIENTED = {
    "aerial": {
        "ship": [turned(80, 60, 60, 18, 30), turned(300, 150, 70, 22, -55)],
        "roof": [turned(180, 170, 40, 20, 5)],
    },
    "drone": {
        "ship": [turned(330, 250, 90, 30, 20), turned(200, 520, 80, 24, 70)],
        "tank": [turned(520, 330, 60, 40, 45)],
    },
}
WINDOW = {"aerial": dict(window=200, overlap=100), "drone": dict(window=350, overlap=150)}
WHOLE: dict[str, dict[str, int]] = {"aerial": {}, "drone": {}}
# every grammar of the whole image, and in windows each of their three kinds: objects, marks, bare numbers
SHOWN = [(grammar, WHOLE) for grammar in GRAMMARS] + [(grammar, WINDOW) for grammar in ("json", "stripped", "lists")]
IDS = [f"{grammar}-{'windows' if options is WINDOW else 'whole'}" for grammar, options in SHOWN]


def on_pixels(path, grid):
    """The shapes of a GeoJSON by class, in pixels of the raster."""
    back = pyproj.Transformer.from_crs("EPSG:4326", grid["crs"], always_xy=True)
    to_pixel = ~grid["transform"]
    found = {}
    for feature in json.loads(path.read_text())["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        corners = [to_pixel @ back.transform(*place) for place in ring]
        found.setdefault(feature["properties"]["class"], []).append(shapely.Polygon(corners))
    return found


def assert_found(path, grid, planted, within=1.0):
    found = on_pixels(path, grid)
    assert {label: len(shapes) for label, shapes in found.items()} == {k: len(v) for k, v in planted.items()}
    for label, shapes in planted.items():
        for corners in shapes:
            truth = shapely.Polygon(corners)
            assert min(truth.hausdorff_distance(shape) for shape in found[label]) <= within, (label, corners)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("grammar", "options"), SHOWN, ids=IDS)
def test_upright_boxes_are_found_on_the_map(tmp_path, name, model_type, grammar, options):
    scene = oracle.raster(tmp_path / "scene.tif", name, UPRIGHT[name])
    found = Oracle(model_type, grammar).detect(scene, ["ship", "roof", "tank"], **options[name])
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS[name], UPRIGHT[name])
    assert len(found.answers) == (1 if not options else len(found.answers)) and bool(found.unparsed) == (
        grammar == "cut off"
    )


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("grammar", "options"), SHOWN, ids=IDS)
def test_oriented_boxes_are_found_on_the_map(tmp_path, name, model_type, grammar, options):
    """Within a pixel of what is painted: a turned rectangle's corners are whole pixels only."""
    scene = oracle.raster(tmp_path / "scene.tif", name, ORIENTED[name])
    found = Oracle(model_type, grammar, oriented=True).detect(
        scene, ["ship", "roof", "tank"], oriented=True, **options[name]
    )
    assert all(box.oriented for box in found)
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS[name], ORIENTED[name], within=1.5)


def test_fractions(tmp_path):
    """Places from 0 to 1, which no model type promises."""
    scene = oracle.raster(tmp_path / "scene.tif", "drone", UPRIGHT["drone"])
    found = Oracle("qwen3_vl", fractions=True).detect(scene, ["ship", "tank"])
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS["drone"], UPRIGHT["drone"])


def test_an_object_longer_than_a_window_is_one(tmp_path):
    """Cut in several windows, it is neither lost nor counted several times; its neighbour stays its own."""
    planted = {"ship": [square(30, 300, 600, 24), square(250, 340, 30, 20)], "roof": [square(300, 60, 16, 600)]}
    planted["roof"] = [square(340, 380, 18, 330)]
    scene = oracle.raster(tmp_path / "scene.tif", "drone", planted)
    found = Oracle().detect(scene, ["ship", "roof"], **WINDOW["drone"])
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS["drone"], planted)


def test_rows_of_equal_objects_are_not_thinned(tmp_path):
    """A car park: 6 rows of 14, three pixels apart, across many seams."""
    cars = [square(40 + 23 * i, 20 + 33 * j, 20, 30) for i in range(14) for j in range(6)]
    scene = oracle.raster(tmp_path / "scene.tif", "aerial", {"ship": cars})
    model = Oracle()
    assert model.count(scene, "ship", window=120, overlap=60).value == len(cars)
    assert len(model.detect(scene, "ship", window=120, overlap=60)) == len(cars)


def test_one_class_under_several_names_is_counted_once(tmp_path):
    """A model calls the same ship otherwise in another window, or numbers it; one class was asked for."""

    class Varies(Oracle):
        def _find(self, image):
            names = ("ship", "cargo ship", "Ships", "ship 1", "ship 2")
            number = len(self.questions) + round(np.asarray(image).mean())
            return [(names[(number + i) % 5], corners) for i, (_, corners) in enumerate(super()._find(image))]

    planted = {"ship": [square(130, 60, 30, 20), square(250, 100, 20, 40), square(118, 150, 40, 20)]}
    scene = oracle.raster(tmp_path / "scene.tif", "aerial", planted)
    counted = Varies().count(scene, "ship", window=128, overlap=64)
    assert counted.value == 3
    assert any("called otherwise than ship" in text for text in counted.warnings)


def test_windows_without_pixels_are_not_shown(tmp_path):
    scene = oracle.raster(tmp_path / "scene.tif", "drone", {})
    model = Oracle()
    found = model.detect(scene, "ship", window=100, overlap=0)
    assert len(found.answers) == len(model.questions) < 7 * 8
    assert "without valid pixels left out" in found.notes[-1]
    with rasterio.open(scene, "r+") as file:
        file.write(np.zeros((file.height, file.width), np.uint8), 4)
    with pytest.raises(InputError, match=r"nodata|valid"):
        model.detect(scene, "ship", window=100)


def test_an_image_larger_than_the_model_takes_goes_in_windows(tmp_path):
    """By itself; and asked in words, the model sees less of it, which is said."""
    wide = np.full((1100, 1200, 3), 90, np.uint8)
    Image.fromarray(oracle.paint(wide, {"ship": [square(1050, 1010, 60, 40)]})).save(tmp_path / "large.png")
    model, limit = Oracle(), dict(max_pixels=1_000_000)
    found = model.detect(tmp_path / "large.png", "ship", **limit)
    assert len(found.answers) == 4 and len(found) == 1
    assert np.abs(np.array(found.boxes[0].bounds) - (1050, 1010, 1110, 1050)).max() <= 1
    reply = model.ask(tmp_path / "large.png", "Any ships?", **limit)
    assert any("more than max_pixels" in text for text in reply.warnings)
    with open_picture(tmp_path / "large.png") as picture:
        assert model.ask(picture, "Any ships?", **limit).warnings
        assert not model.ask(picture, "Any ships?").warnings  # of this call alone
    assert not model.ask(tmp_path / "large.png", "Any ships?").warnings


def test_count(tmp_path):
    scene = oracle.raster(tmp_path / "scene.tif", "drone", UPRIGHT["drone"])
    counted = Oracle().count(scene, "ship", boxes=True)
    assert counted.value == 6 == len(counted.detections) and json.dumps(counted.to_dict())

    class Says(Oracle):
        def _one(self, question, generation):
            return Answer(self.grammar, (), (question.images[0].size,))

    for text, value in (("12", 12), ("There are three ships.", 3), ("none", 0), ("many", None), ("", None)):
        said = Says(grammar=text).count(scene, "ship")
        assert said.value == value and said.text == text and bool(said.warnings) == (value is None)
        assert said.prompt == prompts.count("ship")
    with pytest.raises(InputError, match="boxes=True"):
        Oracle().count(scene, "ship", boxes=False, window=100)
    assert Oracle().count(scene, "ship", window=4096).detections is not None  # asked for windows, given boxes
    with pytest.raises(InputError, match="two images"):
        Oracle().count([scene, scene], "ship", boxes=True)


def test_ground(tmp_path):
    scene = oracle.raster(tmp_path / "scene.tif", "aerial", {"roof": UPRIGHT["aerial"]["roof"][:1]})
    model = Oracle(grammar="lists")
    found = model.ground(scene, "the roof in the north")
    assert len(found) == 1 and "the roof in the north" in model.questions[0].prompt
    with pytest.raises(InputError, match="phrase is empty"):
        model.ground(scene, " ")


@pytest.mark.parametrize("options", [{}, WINDOW["drone"]], ids=["whole", "windows"])
def test_change_on_one_grid(tmp_path, options):
    """The later image lies elsewhere, in another CRS and with other pixels: what is new is found on the first's map."""
    grid = GRIDS["drone"]
    planted = {"tank": [square(300, 300, 60, 60)], "ship": [square(420, 380, 50, 30)]}
    before = oracle.raster(tmp_path / "before.tif", "drone", {"ship": planted["ship"]})
    full = oracle.raster(tmp_path / "full.tif", "drone", planted)
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    with rasterio.open(full) as file:
        west = rasterio.windows.Window(100, 60, 560, 640)
        bounds = file.window_bounds(west)
        transform, width, height = calculate_default_transform(file.crs, "EPSG:4326", 560, 640, *bounds)
        bands = np.zeros((4, height, width), np.uint8)
        for i in range(4):
            reproject(
                file.read(i + 1, window=west), bands[i], src_transform=file.window_transform(west), src_crs=file.crs,
                dst_transform=transform, dst_crs="EPSG:4326", resampling=Resampling.nearest,
            )  # fmt: skip
        profile = file.profile | dict(crs="EPSG:4326", transform=transform, width=width, height=height)
        colours = file.colorinterp
    with rasterio.open(tmp_path / "after.tif", "w", **profile) as file:
        file.colorinterp = colours
        file.write(bands)
    model = Oracle()
    found = model.change(before, tmp_path / "after.tif", **options)
    assert found.crs == rasterio.CRS.from_string(grid["crs"])
    new = [box for box in found if box.label == "tank"]
    assert len(new) == 1
    corners = [~grid["transform"] @ (found.transform @ corner) for corner in new[0].corners]
    assert shapely.Polygon(corners).hausdorff_distance(shapely.Polygon(planted["tank"][0])) <= 2
    assert all(len(question.images) == 2 for question in model.questions)
    assert {question.images[0].size for question in model.questions} == {
        question.images[1].size for question in model.questions
    }


def test_change_of_unequal_images(noise):
    with pytest.raises(InputError, match=r"60 x 40.*50 x 40"):
        Oracle().change(noise(60, 40), noise(50, 40))


def test_classify(tiny_folder, noise):
    from eo_zoo.vlm import TerraSense

    model = TerraSense.from_pretrained(tiny_folder)
    names = ["harbour", "forest", "airport area"]
    found = model.classify(noise(60, 60), names)
    assert set(found.scores) == set(names) and sum(found.scores.values()) == pytest.approx(1)
    assert found.label == max(found.scores, key=found.scores.get) == next(iter(found.scores))
    assert found.prompt == prompts.classify(names)
    again = model.classify(noise(60, 60), names[::-1], prompt=prompts.classify(names))
    assert again.scores == pytest.approx(found.scores)
    for wrong in ([], ["a"], ["a", "a "], ["a", ""], "harbour"):
        with pytest.raises(InputError, match="two or more different names"):
            model.classify(noise(60, 60), wrong)
    with pytest.raises(InputError, match="no likelihoods"):
        Oracle().classify(noise(60, 60), names)


def test_what_is_wrong_is_said_before_anything_is_asked(noise):
    model = Oracle()
    image = noise(60, 60)
    for call, words in (
        (lambda: model.detect(image, []), "nothing to look for"),
        (lambda: model.detect(image, "ship", window=0), "window is 0"),
        (lambda: model.detect(image, "ship", window=40, overlap=40), "overlap is 40"),
        (lambda: model.detect(image, "ship", overlap=10), "give window"),
        (lambda: model.detect(image, "ship", colour=1), "unknown option 'colour'"),
        (lambda: model.detect([image] * 3, "ship"), "3 images"),
        (lambda: model.detect([np.asarray(image)] * 3, "ship"), "3 images"),
        (lambda: model.ask([np.asarray(image), None], "What?"), "no image was given"),
        (lambda: model.detect(image, None), "nothing to look for"),
        (lambda: model.ask(image, None), "prompt is empty"),
        (lambda: model.ask(image, "the <|image_pad|> what?"), r"<\|image_pad\|>"),
        (lambda: model.detect(image, "ship", prompt=""), "prompt is empty"),
        (lambda: model.detect(image, "ship", window=30.5), "window is 30.5"),
        (lambda: model.ask(image, "What?", window=100), "what finds boxes"),
        (lambda: model.ask(image, "What?", max_pixels=50_000_000), "at most 12,845,056"),
        (lambda: model.ask(image, "What?", seed=2**70), "64 bits"),
        (lambda: model.ask(image, "What?", max_new_tokens="5"), "whole number"),
        (lambda: model.count(image, ""), "nothing to count"),
        (lambda: Oracle(None).detect(image, "ship"), "model_type"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    assert not model.questions


def test_what_could_not_be_read_is_kept(noise):
    class Mumbles(Oracle):
        def _one(self, question, generation):
            return Answer('[{"bbox_2d": [1, 2, 3], "label": "x"}] or so', (), (question.images[0].size,), False)

    found = Mumbles().detect(noise(60, 60), "ship")
    assert not found.boxes and found.unparsed and any("cut off" in text for text in found.warnings)
    assert any("could not be read" in text for text in found.warnings)


def test_a_picture_that_was_opened_stays_open(tmp_path):
    scene = oracle.raster(tmp_path / "scene.tif", "aerial", UPRIGHT["aerial"])
    model = Oracle()
    with open_picture(scene) as picture:
        assert len(model.detect(picture, "ship")) == 5
        assert len(model.detect(picture, "ship", **WINDOW["aerial"])) == 5
        assert model.ask(picture, "What?").text


@pytest.mark.parametrize("options", [{}, WINDOW["drone"]], ids=["whole", "windows"])
def test_places_written_in_another_way_than_the_type_promises(tmp_path, options):
    """A tuned Qwen2.5-VL that writes thousandths: windows whose numbers would fit pixels too are read alike."""

    class Thousandths(Oracle):
        def _number(self, x, y, size):
            return round(x / size[0] * 1000), round(y / size[1] * 1000)

    planted = {"ship": [*UPRIGHT["drone"]["ship"], square(620, 60, 30, 20)], "tank": UPRIGHT["drone"]["tank"]}
    scene = oracle.raster(tmp_path / "scene.tif", "drone", planted)
    found = Thousandths("qwen2_5_vl").detect(scene, ["ship", "tank"], **options)
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS["drone"], planted)
    assert sum("taken as 0..1000" in text for text in found.warnings) == 1


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_known_oriented_boxes_lie_within_a_pixel(tmp_path, name, model_type, grammar):
    """As whole numbers of the model's space, which is all that is lost."""

    class Knows(Oracle):
        def _find(self, image):
            across, down = (seen / own for seen, own in zip(image.size, GRIDS[name]["size"], strict=True))
            return [
                (label, [self._number(x * across, y * down, image.size) for x, y in corners])
                for label, shapes in ORIENTED[name].items()
                for corners in shapes
            ]

    scene = oracle.raster(tmp_path / "scene.tif", name, {})
    found = Knows(model_type, grammar, oriented=True).detect(scene, ["ship", "roof", "tank"], oriented=True)
    found.write(tmp_path / "found.geojson")
    assert_found(tmp_path / "found.geojson", GRIDS[name], ORIENTED[name], within=1.0)
