"""The commands, as a user types them; boxes come from the oracle, words from a tiny model."""

from __future__ import annotations

import json

import geopandas
import pytest
from PIL import Image

from eo_zoo.vlm import model
from eo_zoo.vlm.engine import Answer
from tests.vlm import oracle
from tests.vlm.oracle import GRIDS, Oracle, square

PLANTED = {"ship": [square(20, 30, 41, 17), square(300, 150, 25, 60)], "roof": [square(64, 30, 30, 17)]}


@pytest.fixture
def scene(tmp_path):
    return oracle.raster(tmp_path / "scene.tif", "aerial", PLANTED)


@pytest.fixture
def sees(monkeypatch):
    """``-m`` gives the oracle; what it was loaded with is noted."""
    loaded = []

    def load(*name, **options):
        loaded.append((name, options))
        return Oracle()

    monkeypatch.setattr(model.TerraSense, "from_pretrained", load)
    return loaded


def test_detect_writes_records_and_a_picture(run, sees, scene, tmp_path):
    out, picture = tmp_path / "ships.geojson", tmp_path / "o.png"
    code, text, err = run("detect", scene, "ship", "roof", "-o", out, "--overlay", picture)
    assert (code, err) == (0, "") and "3 boxes: 2 ship, 1 roof" in text
    found = geopandas.read_file(out)
    assert sorted(found["class"]) == ["roof", "ship", "ship"] and set(found["model"]) == {"oracle"}
    assert set(found["revision"]) == {"abc123"} and "Detect every ship and roof" in found["prompt"][0]
    assert Image.open(picture).width >= GRIDS["aerial"]["size"][0]
    assert sees == [((), {})]
    code, _, err = run("detect", scene, "ship", "-o", out)
    assert code == 2 and "--overwrite" in err and len(sees) == 1  # said before the model is loaded
    assert run("detect", scene, "ship", "-o", out, "--overwrite", "-q")[0] == 0


def test_every_format(run, sees, scene, tmp_path):
    for name in ("o.gpkg", "o.parquet", "o.csv", "o.json"):
        assert run("detect", scene, "ship", "-o", tmp_path / name)[0] == 0
        assert (tmp_path / name).stat().st_size
    assert geopandas.read_file(tmp_path / "o.gpkg").crs == geopandas.read_parquet(tmp_path / "o.parquet").crs
    code, _, err = run("detect", scene, "ship", "-o", tmp_path / "o.shp")
    assert code == 2 and ".geojson" in err


def test_detect_without_output_prints_the_boxes(run, sees, scene):
    code, text, _ = run("detect", scene, "ship", "--window", 200, "--overlap", 80)
    assert code == 0 and text.splitlines()[0].startswith("3 boxes") and text.count("\t") == 3
    code, text, _ = run("detect", scene, "ship", "--json")
    assert code == 0 and len(json.loads(text)["boxes"]) == 3


def test_options_reach_the_model(run, sees, scene):
    given = "--revision", "v1", "--dtype", "bfloat16", "--device-map", "cpu", "--quantization", "4bit"
    assert run("count", scene, "ship", "--boxes", "-m", "owner/name", *given, "--batch-size", 2)[:2] == (0, "3\n")
    expected = dict(revision="v1", dtype="bfloat16", device_map="cpu", quantization="4bit", batch_size=2)
    assert sees == [(("owner/name",), expected)]
    assert run("describe", scene, "-m", "terrasense_base")[0] == 0 and sees[1] == ((), {})
    code, _, err = run("count", scene, "ship", "--model-type", "qwen3_vl")
    assert code == 2 and "--model-type" in err and "--url" in err
    code, _, err = run("count", scene, "ship", "--url", "http://127.0.0.1:9", "--dtype", "float32")
    assert code == 2 and "--dtype" in err


def test_reading_options(run, sees, scene):
    code, text, err = run("detect", scene, "ship", "--bands", "1,2,3", "--stretch", "1,99", "--json")
    assert code == 0, err
    assert any("1" in note and "99" in note for note in json.loads(text)["notes"])
    for wrong in (("--stretch", "some"), ("--bands", "7,8,9"), ("--bands", "red,green"), ("--stretch", "98,2")):
        code, _, err = run("detect", scene, "ship", *wrong)
        assert code == 2 and "error:" in err, wrong
    left = ~GRIDS["aerial"]["transform"]
    west, north = GRIDS["aerial"]["transform"] @ (0, 0)
    east, south = GRIDS["aerial"]["transform"] @ (150, 100)
    assert left
    code, text, _ = run("count", scene, "ship", "--boxes", "--bbox", west, south, east, north)
    assert (code, text) == (0, "2\n")
    told = run("count", scene, "ship", "--boxes", "--bbox", west, south, east, north)[2]
    assert "cut to 150 x 100 pixels from column 0, row 0" in told


def test_ground_and_change(run, sees, scene, tmp_path):
    assert "2 ship" in run("ground", scene, "the two long ships")[1]
    before = oracle.raster(tmp_path / "before.tif", "aerial", {"roof": PLANTED["roof"]})
    code, _, err = run("change", before, scene, "-o", tmp_path / "c.gpkg", "--overlay", tmp_path / "c.png")
    assert code == 0, err
    assert sorted(geopandas.read_file(tmp_path / "c.gpkg")["class"]) == ["ship", "ship"]


def test_ask_prints_words(run, scene, tiny_folder, noise, tmp_path):
    noise(60, 40).save(tmp_path / "a.png")
    options = ("-m", tiny_folder, "--max-new-tokens", 8, "--temperature", 0, "-q")
    code, text, err = run("ask", scene, "How many ships?", *options)
    assert code == 0 and text.strip() and "cut off" in err
    told = json.loads(run("ask", scene, "How many ships?", *options, "--json")[1])
    assert (
        told["text"].strip() == text.strip()
        and told["prompt"] == "How many ships?"
        and told["sources"] == ["scene.tif"]
    )
    assert run("ask", scene, "How many ships?", *options, "--stream")[1].strip() == text.strip()
    both = json.loads(run("ask", scene, tmp_path / "a.png", "What changed?", *options, "--json")[1])
    assert both["sources"] == ["scene.tif", "a.png"]
    each = json.loads(run("ask", scene, *[tmp_path / "a.png"] * 3, "What?", *options, "--json", "--each")[1])
    assert len(each) == 4 and each[1]["text"] == each[2]["text"] == each[3]["text"]
    again = run("ask", scene, "What?", *options, "--seed", 3, "--temperature", 1)[1]
    assert again == run("ask", scene, "What?", *options, "--seed", 3, "--temperature", 1)[1]


def test_classify_prints_a_table(run, scene, tiny_folder, tmp_path):
    (tmp_path / "classes.txt").write_text("harbour\nforest\n\nairport\n")
    code, text, err = run("classify", scene, "-m", tiny_folder, "--classes", tmp_path / "classes.txt")
    assert code == 0, err
    assert len(text.splitlines()) == 3 and text.count("%") == 3
    scores = json.loads(run("classify", scene, "-m", tiny_folder, "--classes", "a, b", "--json")[1])["scores"]
    assert set(scores) == {"a", "b"}
    assert run("classify", scene, "-m", tiny_folder, "--classes", "a")[0] == 2


def test_no_answer_is_a_failure(run, scene, tmp_path, monkeypatch):
    """Not "there is none", and nothing is written."""

    class Mute(Oracle):
        def _one(self, question, generation):
            return Answer("", (), tuple(image.size for image in question.images))

        def pieces(self, question, generation):
            yield ""

    monkeypatch.setattr(model.TerraSense, "from_pretrained", lambda **_: Mute())
    out = tmp_path / "o.geojson"
    asked = (("ask", scene, "What?"), ("ask", scene, "What?", "--stream"), ("describe", scene))
    for words in (*asked, ("detect", scene, "ship", "-o", out), ("ask", scene, "What?", "--json")):
        code, _, err = run(*words)
        assert code == 1 and "answer is empty" in err, words
    assert not out.exists()


def test_streams_tell_what_was_shown(run, sees, scene):
    code, _, err = run("ask", scene, "What?", "--stream", "--stretch", "1,99")
    assert code == 0 and "99" in err


def test_a_count_without_a_number_fails(run, scene, tiny_folder):
    code, _, err = run("count", scene, "ship", "-m", tiny_folder, "--max-new-tokens", 3)
    assert code == 1 and "no one number" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ask", "What?"), "give an image and a question"),
        (("ask", "absent.tif", "What?"), "no such file"),
        (("ask", "SCENE", " "), "prompt is empty"),
        (("ask", "SCENE", "PLAIN"), "the question comes last"),
        (("ask", "SCENE", "SCENE", "SCENE", "absent.tif", "What?", "--each"), "no such file"),
        (("classify", "SCENE", "--classes", "nothere.txt"), "not there"),
        (("ask", "SCENE", "SCENE", "SCENE", "What?"), "--each"),
        (("ask", "SCENE", "What?", "--stream", "--json"), "--stream"),
        (("ask", "TEXT", "What?"), "TEXT"),
        (("ask", "EMPTY", "What?"), "EMPTY"),
        (("detect", "absent.tif", "ship"), "no such file"),
        (("detect", "PLAIN", "ship", "-o", "x.geojson"), "georeference"),
        (("change", "SCENE", "PLAIN"), "expected"),
        (("detect", "SCENE", "ship", "--overlay", "x.jpg"), ".png"),
        (("detect", "SCENE", "ship", "-m", "no/such/model"), "no/such/model"),
        (("classify", "SCENE", "--classes", "a,a", "-m", "TINY"), "different names"),
    ],
)
def test_wrong_input_is_one_sentence(run, scene, tiny_folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EO_ZOO_OFFLINE", "1")
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (30, 20)).save(tmp_path / "plain.png")
    places = {"SCENE": scene, "TEXT": "text.tif", "EMPTY": "empty.png", "PLAIN": "plain.png", "TINY": tiny_folder}
    given = [places.get(word, word) for word in words]
    if "-m" not in words:
        given += ["-m", tiny_folder]
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*given)
    assert code in (1, 2) and not out and err.startswith("error:") and err.count("error:") == 1
    assert str(places.get(said, said)) in err
    assert "Traceback" not in err and sorted(tmp_path.iterdir()) == before
