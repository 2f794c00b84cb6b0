from __future__ import annotations

import json
import re
import time
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eo_zoo.errors import InputError
from eo_zoo.vlm.boxes import Box
from eo_zoo.vlm.parse import Space, parse_boxes, parse_count, says_nothing

SPACE = Space("absolute", (1000, 1000), (1000, 1000))  # numbers are pixels
PLANE = Space("absolute", (10**9, 10**9), (10**9, 10**9))  # where nothing is clipped
QUAD = (455.0, 321.0, 533.0, 331.0, 523.0, 721.0, 445.0, 711.0)


def read(text, space=SPACE, **options):
    """Numbers and label of each box, of an answer without anything unread."""
    parsed = parse_boxes(text, space, **options)
    assert not parsed.unparsed, parsed.unparsed
    assert not parsed.none
    return [(numbers(box), box.label) for box in parsed.boxes]


def numbers(box):
    return tuple(value for corner in box.corners for value in corner) if box.oriented else box.bounds


def refused(text, space=SPACE):
    """The reasons for an answer without a box."""
    parsed = parse_boxes(text, space)
    assert not parsed.boxes
    assert not parsed.none
    return [part.reason for part in parsed.unparsed]


SHIP = [((10, 20, 30, 40), "ship")]
BARE = [((10, 20, 30, 40), "")]
TWO = [((10, 20, 30, 40), "ship"), ((50, 60, 70, 80), "ship")]
GRAMMARS = {
    '[{"bbox_2d": [10, 20, 30, 40], "label": "ship"}]': SHIP,
    '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "ship"}\n]\n```': SHIP,
    'Here they are:\n```json\n{"bbox_2d": [10, 20, 30, 40], "label": "ship"}\n```\nI hope this helps.': SHIP,
    '{"bbox_2d": [10, 20, 30, 40], "label": "ship"}\n{"bbox_2d": [50, 60, 70, 80], "label": "ship"}': TWO,
    '{"bbox_2d": [10, 20, 30, 40], "label": "ship"},{"bbox_2d": [50, 60, 70, 80], "label": "ship"},': TWO,
    '{"bbox_2d": [10, 20, 30, 40], "label": "ship", "bbox_2d": [50, 60, 70, 80], "label": "ship"}': TWO,
    '{"bbox_2d": [10, 20, 30, 40] "label": "ship"} {"bbox_2d": [50, 60, 70, 80] "label": "ship"}': TWO,
    '{"objects": [{"bbox": [10, 20, 30, 40], "class": "ship"}]}': SHIP,
    '{"result": {"objects": [{"box": [10, 20, 30, 40], "category": "ship"}]}}': SHIP,
    '{"label": "ship", "bbox_2d": [[10, 20, 30, 40], [50, 60, 70, 80]]}': TWO,
    '{"label": "ship", "objects": [[10, 20, 30, 40], [50, 60, 70, 80]]}': TWO,
    '{"ship": [[10, 20, 30, 40], [50, 60, 70, 80]]}': TWO,
    '{"ship": [10, 20, 30, 40]}': SHIP,
    '{"Objects": [[10, 20, 30, 40]]}': BARE,
    "ship(10,20),(30,40) near [50, 60, 70, 80]": [*SHIP, ((50, 60, 70, 80), "")],
    "They are at [10, 20, 30, 40]\n[70, 60, 50, 80]": [(place, "") for place, _ in TWO],
    "(in the middle of the harbour: [10, 20, 30, 40])": BARE,
    "Please look very closely now: [10, 20, 30, 40]": BARE,
    '{"Small-Vehicle": [10, 20, 30, 40]}': [((10, 20, 30, 40), "Small-Vehicle")],
    "[{'box_2d': (10, 20, 30, 40), 'name': 'ship',},]": SHIP,
    "[{'bbox': [10, 20, 30, 40], 'label': 'fisher's boat'}]": [((10, 20, 30, 40), "fisher's boat")],
    '[{"bbox": [10, 20, 30, 40], "label": "a \\"ship\\", [1]"}]': [((10, 20, 30, 40), 'a "ship", [1]')],
    '[{"bbox": [10, 20, 30, 40], "label": "caf\\u00e9\\n"}]': [((10, 20, 30, 40), "caf\u00e9")],
    '[{"bbox": [10, 20, 30, 40], "label": "\\ud800\\u0000ship"}]': SHIP,
    '[{"bbox": [10, 20, 30, 40], "label": null}]': BARE,
    '[{"bbox": [10, 20, 30, 40], "label": 7}]': [((10, 20, 30, 40), "7")],
    "{bbox_2d: [10, 20, 30, 40], label: small ship}": [((10, 20, 30, 40), "small ship")],
    '{"BBox": [10, 20, 30, 40], "Label": "ship"}': SHIP,
    '{"bbox": {"x1": 10, "y1": 20, "x2": 30, "y2": 40}, "label": "ship"}': SHIP,
    '{"y2": 40, "x2": 30, "label": "ship", "y1": 20, "x1": 10}': SHIP,
    '{"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40, "text_label": "ship"}': SHIP,
    '{"left": 10, "top": 20, "right": 30, "bottom": 40, "object": "ship"}': SHIP,
    '{"bbox": "[10, 20, 30, 40]", "label": "ship"}': SHIP,
    '{"bbox": "10, 20, 30, 40", "label": "ship"}': SHIP,
    '{"bbox": "<|box_start|>(10,20),(30,40)<|box_end|>", "label": "ship"}': SHIP,
    '{"bbox": ["10", "20", "30", "40"], "label": "ship"}': SHIP,
    '{"bbox": [[10, 20], [30, 40]], "label": "ship"}': SHIP,
    '{"bbox": 10, 20, 30, 40, "label": "ship"}': SHIP,
    '{"bbox": [10, 20, 30, 40}, "label": "ship"}': BARE,
    '{"coordinates": [10, 20, 30, 40], "label": "ship", "points": null}': SHIP,
    '{"label": "ship", "bbox": [10, 20, 30, 40], "polygon": [[1, 2], [3, 4], [5, 6], [7, 8], [1, 9]]}': SHIP,
    "<|object_ref_start|>ship<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|><|im_end|>": SHIP,
    "<|object_ref_start|>ship<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"
    "<|box_start|>(50,60),(70,80)<|box_end|>": TWO,
    "<|object_ref_start|>ship<|object_ref_end|> at <|box_start|>(10, 20), (30, 40)<|box_end|>": SHIP,
    "ship(10,20),(30,40)": SHIP,
    "ship(10,20),(30,40)(50,60),(70,80)": TWO,
    "ship(10,20),(30,40)\nship(50,60),(70,80)": TWO,
    "ship(10,20),(30,40),\nship(50,60),(70,80)": TWO,
    "(10,20),(30,40),\n(50,60),(70,80)": [(place, "") for place, _ in TWO],
    "<ref>ship</ref><box>(10,20),(30,40)</box>": SHIP,
    "<ref>ship</ref><box>[[10,20,30,40]]</box>": SHIP,
    "<ref>ship</ref><box>[[10, 20, 30, 40], [50, 60, 70, 80]]</box>": TWO,
    "There is <ref>ship</ref><box>(10,20),(30,40)</box> by <ref>pier</ref><box>(1,2),(3,4)</box>.": [
        *SHIP,
        ((1, 2, 3, 4), "pier"),
    ],
    "<box>10,20,30,40</box>": BARE,
    "<box>10 20 30 40</box>": BARE,
    "<bbox>[10, 20, 30, 40]</bbox>": BARE,
    "[10, 20, 30, 40]": BARE,
    "[30, 40, 10, 20]": BARE,
    "[30, 20, 10, 40]": BARE,
    "[10 20 30 40]": BARE,
    "(10, 20, 30, 40)": BARE,
    "[(10, 20), (30, 40)]": BARE,
    "[10, 20], [30, 40]": BARE,
    "(10, 20) to (30, 40)": BARE,
    "(10, 20) - (30, 40)": BARE,
    "(10,20) (30,40)": BARE,
    "[10.0, 2e1, +30, 4.0E+1]": BARE,
    "ship: [10, 20, 30, 40]": SHIP,
    "ships:\n[10, 20, 30, 40]": [((10, 20, 30, 40), "ships")],
    "1. **ship**: [10, 20, 30, 40]\n2. **ship**: [50, 60, 70, 80]": TWO,
    "A ship(10,20),(30,40), and the ship(50,60),(70,80).": TWO,
    "The ships in the image are at: [10, 20, 30, 40]": BARE,
    "The bounding box: [30, 40, 10, 20]": BARE,
    "The ship is at [10, 20, 30, 40]; nothing else.": BARE,
    "[10, 20, 30, 40] and [50, 60, 70, 80]": [(place, "") for place, _ in TWO],
    "[[10, 20, 30, 40], [50, 60, 70, 80]]": [(place, "") for place, _ in TWO],
    "\uff08\uff11\uff10\uff0c20\uff09\uff0c\uff0830\uff0c40\uff09": BARE,
    "\u8239\uff1a[10\uff0c20\uff0c30\uff0c40]": [((10, 20, 30, 40), "\u8239")],
    "<think>perhaps [1, 2, 3, 4]</think>[10, 20, 30, 40]": BARE,
    "perhaps [1, 2, 3, 4]</think>[10, 20, 30, 40]": BARE,
    "[455,321,533,331,523,721,445,711]": [(QUAD, "")],
    "[[455,321],[533,331],[523,721],[445,711]]": [(QUAD, "")],
    "(455,321),(533,331),(523,721),(445,711)": [(QUAD, "")],
    "[(455,321), (533,331),\n (523,721), (445,711)]": [(QUAD, "")],
    "<|quad_start|>(455,321),(533,331),(523,721),(445,711)<|quad_end|>": [(QUAD, "")],
    "<quad>455,321,533,331,523,721,445,711</quad>": [(QUAD, "")],
    '{"bbox_2d": [455,321,533,331,523,721,445,711], "label": "ship"}': [(QUAD, "ship")],
    **{
        f'{{"{key}": [[455,321],[533,331],[523,721],[445,711]], "label": "ship"}}': [(QUAD, "ship")]
        for key in ("obb", "bbox_obb", "poly", "polygon", "quad", "points", "coordinates")
    },
    '{"bbox_2d": [445,321,533,721], "obb": [455,321,533,331,523,721,445,711], "label": "ship"}': [(QUAD, "ship")],
    "[[[455,321],[533,331],[523,721],[445,711]], [[10,20],[30,40]]]": [(QUAD, ""), *BARE],
}


class TestGrammars:
    @pytest.mark.parametrize("text", GRAMMARS)
    def test_known(self, text):
        assert read(text) == GRAMMARS[text]

    def test_oriented_is_what_has_four_corners(self):
        text = "[10, 20, 30, 40] [10, 20, 30, 20, 30, 40, 10, 40] [[10, 20], [31, 40]]"
        assert [box.oriented for box in parse_boxes(text, SPACE).boxes] == [False, True, False]

    def test_a_default_label_is_for_those_without(self):
        text = '[{"bbox": [1, 2, 3, 4], "label": "ship"}, {"bbox": [5, 6, 7, 8]}] [9, 10, 11, 12]'
        assert [label for _, label in read(text, label="boat")] == ["ship", "boat", "boat"]

    @pytest.mark.parametrize(
        ("score", "expected"), [("0.75", 0.75), ('"0.5"', 0.5), ("1", 1.0), ("0", 0.0), ("null", None)]
    )
    def test_scores(self, score, expected):
        for key in ("score", "confidence"):
            parsed = parse_boxes(f'{{"bbox": [1, 2, 3, 4], "{key}": {score}}}', SPACE)
            assert [box.score for box in parsed.boxes] == [expected]
            assert not parsed.warnings

    @pytest.mark.parametrize("score", ["87", "-0.1", "1.01", '"high"', "95%"])
    def test_a_score_that_is_none_is_left_out(self, score):
        parsed = parse_boxes(f'{{"bbox": [1, 2, 3, 4], "score": {score}}}', SPACE)
        assert [box.score for box in parsed.boxes] == [None]
        assert "not in 0..1" in parsed.warnings[0]

    def test_each_of_several_has_its_own_label_and_score(self):
        text = '{"bbox": [1,2,3,4], "label": "a", "score": 0.1, "bbox": [5,6,7,8], "label": "b", "score": 0.2}'
        assert [(box.label, box.score) for box in parse_boxes(text, SPACE).boxes] == [("a", 0.1), ("b", 0.2)]

    def test_what_is_said_again_is_kept_once_and_said(self):
        item = '{"bbox_2d": [10, 20, 30, 40], "label": "%s"}'
        text = "[" + ", ".join([item % "ship"] * 5 + [item % "Ship", item % "pier"]) + "]"
        parsed = parse_boxes(text, SPACE)
        assert [box.label for box in parsed.boxes] == ["ship", "pier"]
        assert parsed.warnings == ("5 boxes repeated in the answer: kept once",)


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "empty"),
            (" \n", "empty"),
            ("<think>", "still thinking"),
            ("<think>It may be [1, 2, 3, 4]", "still thinking"),
            ("It is [1, 2, 3, 4]</think>\n", "still thinking"),
            ("The harbour is busy.", "holds no box"),
            ("In the years [2019, 2020] it grew.", "holds no box"),
            ("[1, 2, 3]", "holds no box"),
            ("(10, 20)", "holds no box"),
            ("ships at (10, 20) and (30, 40)", "holds no box"),
            ("at 45%, 20%", "holds no box"),
            ("Values between [4, 3, 2, 1] are", "a sentence"),
            ("Values between [1, 4, 3, 2] are", "a sentence"),
            ("[1, 2, 3, 4, 5]", "5 numbers, where a box has 4 or 8"),
            ("[1, 2, 3, 4, 5, 6, 7]", "7 numbers"),
            ("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]", "12 numbers"),
            ("[[1, 2], [3, 4], [5, 1]]", "3 points, where a box has 2 or 4"),
            ("[[1, 2], [3, 4], [5, 1], [7, 7], [1, 6]]", "5 points"),
            ("(1,2),(3,4),(5,1)", "3 points"),
            ("(1,2),(3,4),(5,1),(7,7),(1,6),(1,5)", "6 points"),
            ('{"point_2d": [3, 4], "label": "ship"}', "1 point, where"),
            ('{"bbox_2d": [3, 4, 5], "label": "ship"}', "3 numbers"),
            ('{"bbox_2d": [], "label": "ship"}', "no coordinates"),
            ('{"bbox_2d": null, "label": "ship"}', "no coordinates"),
            ('{"bbox_2d": "top left", "label": "ship"}', "holds no box"),
            ('{"label": "ship"}', "names no box"),
            ('{"x1": 1, "y1": 2, "x2": 3}', "names no box"),
            ('{"bbox_2d": ["45%", "20%", "60%", "80%"]}', "percentages"),
            ("[45%, 20%, 60%, 80%]", "percentages"),
            ("[NaN, 1, 2, 3]", "not finite"),
            ("[1, 2, Infinity, 3]", "not finite"),
            ("[1, 2, 1e999, 3]", "not finite"),
            ("[1,, 2, 3, 4]", "more than a list of numbers"),
            ("[, 1, 2, 3, 4]", "more than a list of numbers"),
            ("[1, 2, 3, x, 4]", "more than a list of numbers"),
            ("[1, 2, 3px, 4, 5]", "more than a list of numbers"),
            ("[10-20, 30-40]", "more than a list of numbers"),
            ("[1, 024, 3, 4, 5]", "more than a list of numbers"),
            ("[1.2.3, 4, 5, 6]", "more than a list of numbers"),
            ("[10, 20, 30, 40", "cut off"),
            ("(10, 20), (30, 4", "cut off"),
            ("<box>(10,20),(30,40)", "cut off"),
            ("[[1, 2], [3, 4], [5,", "cut off"),
            ("[[1, 2], [3, 4]", "cut off"),
            ('{"ship": (1, 2), (3, 4)', "cut off"),
            ('{"bbox_2d": [1, 2, 3, 4], "label": "sh', "cut off"),
            ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4', "cut off"),
            ("[10, 20, 10, 40]", "without an area"),
            ("[10, 20, 30, 20]", "without an area"),
            ("[[1, 1], [2, 2], [3, 3], [4, 4]]", "without an area"),
            ("[[1, 1], [1, 1], [1, 1], [1, 1]]", "without an area"),
            ("[[0, 0], [10, 0], [10, 10], [5, 0]]", "not those of a box"),
            ("[[0, 0], [10, 0], [10, 10], [0, 0]]", "not those of a box"),
            ("[1100, 20, 1200, 40]", "outside of the image"),
            ("[-30, 20, -10, 40]", "outside of the image"),
            ("[10, -30, 20, -10]", "outside of the image"),
            ("[10, 1000, 20, 1100]", "outside of the image"),
            ("[1000, 20, 1100, 40]", "outside of the image"),
            ("[-10, 20, 0, 40]", "outside of the image"),
            ("[10, -10, 20, 0]", "outside of the image"),
            ("[950, 20, 1100, 20, 1100, 40, 950, 40]", "centre lies outside"),
            ("[20, -100, 40, -100, 40, 50, 20, 50]", "centre lies outside"),
            ("[-1500, 20, 1600, 20, 1600, 40, -1500, 40]", "far beyond"),
            ("[-1010, 0, 900, 0, 900, 40, 900, 40]", "far beyond"),
            ("[0, -1010, 0, 900, 40, 900, 40, 900]", "far beyond"),
            ("[2010, 0, 100, 0, 100, 40, 100, 40]", "far beyond"),
            ("[0, 2010, 0, 100, 40, 100, 40, 100]", "far beyond"),
            ("[" * 60 + "1, 2, 3, 4" + "]" * 60, "deep"),
        ],
    )
    def test_with_the_reason(self, text, reason):
        assert reason in refused(text)[-1]

    def test_the_whole_text_where_there_is_no_box(self):
        text = "I see a harbour \u2013 and 2 ships at 45%, 20%."
        assert [part.text for part in parse_boxes(text, SPACE).unparsed] == [text]

    def test_the_rest_of_a_mixed_answer(self):
        text = '[{"bbox": [10, 20, 30, 40], "label": "ship"}, {"bbox": [1, 2, 3], "label": "pier"}, {"label": "car"}]'
        parsed = parse_boxes(text, SPACE)
        assert [box.label for box in parsed.boxes] == ["ship"]
        assert [(part.text, part.reason.split(",")[0]) for part in parsed.unparsed] == [
            ('{"bbox": [1, 2, 3], "label": "pier"}', "3 numbers"),
            ('{"label": "car"}', "an object that names no box"),
        ]

    def test_text_beside_boxes_is_told_if_it_may_name_a_place(self):
        text = (
            "There are 3 ships. [10, 20, 30, 40] One more is 15% from the left and 20% from the top. [50, 60, 70, 80]"
        )
        parsed = parse_boxes(text, SPACE)
        assert len(parsed.boxes) == 2
        assert [part.text for part in parsed.unparsed] == ["One more is 15% from the left and 20% from the top."]
        assert parse_boxes(text.rpartition(" [")[0], SPACE).unparsed == parsed.unparsed

    @pytest.mark.parametrize("place", ["[10, 20, 30, 40]", "(10, 20), (30, 40)"])
    def test_a_half_open_range_swallows_nothing(self, place):
        parsed = parse_boxes(f"In [0, 10) there is {place}", SPACE)
        assert [numbers(box) for box in parsed.boxes] == [(10, 20, 30, 40)]
        assert [part.text for part in parsed.unparsed] == ["In [0, 10) there is"]

    def test_a_label_that_may_be_cut_is_none(self):
        parsed = parse_boxes('{"objects": [{"bbox": [1, 2, 3, 4]}], "label": "sh', SPACE)
        assert [box.label for box in parsed.boxes] == [""]

    def test_what_is_not_read_keeps_the_answers_letters(self):
        parsed = parse_boxes("\uff3b\uff11\uff0c2\uff0c3\uff0c4\uff0c5\uff3d", SPACE)
        assert [part.text for part in parsed.unparsed] == ["\uff3b\uff11\uff0c2\uff0c3\uff0c4\uff0c5\uff3d"]

    @pytest.mark.parametrize("opening", ["", "```json\n", '{"objects": ', "[[1, 2, 3, 4], "])
    def test_whole_objects_before_a_cut_are_kept(self, opening):
        items = [f'{{"bbox_2d": [{i}1, 20, {i}5, 40], "label": "ship {i}"}}' for i in (1, 2, 3)]
        text = opening + "[" + ", ".join(items) + "]"
        first = len(opening) + 1
        for end in range(first, len(text)):
            parsed = parse_boxes(text[:end], SPACE)
            whole = sum(text.find(item) + len(item) <= end for item in items)
            labels = [box.label for box in parsed.boxes if box.label]
            assert labels == [f"ship {i}" for i in (1, 2, 3)][:whole]
            cut = text[:end].rpartition(items[whole - 1])[2] if whole else text[first:end]
            if re.search(r"\w", cut):
                assert [part.reason for part in parsed.unparsed] == ["cut off"]
                assert parsed.unparsed[0].text.endswith(cut.strip(" ,"))
            elif parsed.boxes:
                assert not parsed.unparsed
                assert "there may be more objects" in parsed.warnings[0]


class TestNothing:
    @pytest.mark.parametrize(
        "text",
        [
            *("[]", "```json\n[]\n```", "{}", '{"objects": []}', '{"ship": [], "plane": []}', "There are none: []"),
            *("None", "none.", "No.", "0", "No ships.", "no ships found", "There are no ships in the image."),
            *("There is no ship.", "There aren't any ships.", "I can\u2019t see any ships in this image."),
            *("No aircraft carriers are visible.", "I do not see any ships.", "**No ships detected.**"),
            *("\u56fe\u4e2d\u6ca1\u6709\u8239", "<think>is it [1, 2, 3, 4]?</think>No ships.", "0 ships"),
        ],
    )
    def test_said(self, text):
        parsed = parse_boxes(text, SPACE)
        assert parsed.none
        assert (parsed.boxes, parsed.unparsed, parsed.warnings) == ((), (), ())

    @pytest.mark.parametrize(
        "text",
        [
            *("There are no planes, but a ship is at the top.", "No, the ship is at the top.", "No idea.", "Yes"),
            *(
                "Found 12 ships: []",
                "Not sure.",
                "I know the ship is there.",
                "North of the pier",
                "10",
                "nothing but one",
                "pier()",
            ),
            "There are no ships. " * 20,
        ],
    )
    def test_not_said(self, text):
        parsed = parse_boxes(text, SPACE)
        assert not parsed.none
        assert [part.text for part in parsed.unparsed] == [text]

    def test_a_box_is_not_nothing(self):
        assert not parse_boxes("No ships. [1, 2, 3, 4] []", SPACE).none

    def test_what_cannot_be_read_is_not_nothing(self):
        assert not parse_boxes('[] {"label": "ship"}', SPACE).none


class TestSpace:
    @pytest.mark.parametrize(
        ("model_type", "kind"), [("qwen2_vl", "thousand"), ("qwen2_5_vl", "absolute"), ("qwen3_vl", "thousand")]
    )
    def test_of_a_model(self, model_type, kind):
        assert Space.of(model_type, (56, 28), (50, 30)) == Space(kind, (56, 28), (50, 30))

    def test_of_an_unknown_model(self):
        with pytest.raises(InputError, match=r"'qwen4_vl'.*Did you mean 'qwen3_vl'"):
            Space.of("qwen4_vl", (56, 28), (50, 30))

    @pytest.mark.parametrize(
        ("kind", "numbers_", "expected"),
        [
            ("absolute", [28, 14, 56, 28], (50, 15, 100, 30)),
            ("thousand", [500, 500, 1000, 1000], (50, 15, 100, 30)),
            ("absolute", [0.5, 0.5, 1.0, 1.0], (50, 15, 100, 30)),
            ("thousand", [0.5, 0.5, 1, 1], (50, 15, 100, 30)),
            ("thousand", [0.0, 0.0, 1.0, 1.0], (0, 0, 100, 30)),
            ("thousand", [0, 0, 1, 1], (0, 0, 0.1, 0.03)),
            ("absolute", [0, 0, 1.5, 1], (0, 0, 1.5 * 100 / 56, 30 / 28)),
        ],
    )
    def test_by_the_kind_or_fractions(self, kind, numbers_, expected):
        parsed = parse_boxes(json.dumps(numbers_), Space(kind, (56, 28), (100, 30)))
        assert parsed.boxes[0].bounds == pytest.approx(expected)
        assert not parsed.warnings

    def test_one_that_is_no_fraction_makes_none_a_fraction(self):
        parsed = parse_boxes("[0.5, 0.5, 0.9, 0.9], [0, 0, 2, 1]", Space("thousand", (100, 100), (1000, 1000)))
        assert [box.bounds for box in parsed.boxes] == [(0.5, 0.5, 0.9, 0.9), (0, 0, 2, 1)]

    def test_what_cannot_be_thousandths_is_pixels(self):
        parsed = parse_boxes("[10, 20, 1500, 40], [10, 20, 30, 40]", Space("thousand", (2000, 500), (4000, 1000)))
        assert [box.bounds for box in parsed.boxes] == [(20, 40, 3000, 80), (20, 40, 60, 80)]
        assert parsed.warnings == (
            "coordinates were taken as pixels of the image as the model saw it, 2000 x 500: they cannot be 0..1000",
        )

    def test_what_cannot_be_pixels_is_thousandths(self):
        parsed = parse_boxes("[10, 20, 900, 40], [10, 20, 30, 40]", Space("absolute", (500, 500), (2000, 1000)))
        assert [box.bounds for box in parsed.boxes] == [(20, 20, 1800, 40), (20, 20, 60, 40)]
        assert "taken as 0..1000: they cannot be pixels" in parsed.warnings[0]

    @pytest.mark.parametrize("text", ["[10, 20, 900, 40], [10, 20, 1100, 40]", "[10, 20, 900, 40], [-100, 20, 30, 40]"])
    def test_unless_one_box_fits_neither(self, text):
        parsed = parse_boxes(text, Space("absolute", (500, 500), (500, 500)))
        assert parsed.boxes[0].bounds == (10, 20, 500, 40)
        assert all("clipped" in warning for warning in parsed.warnings)

    def test_axes_are_looked_at_apart(self):
        parsed = parse_boxes("[10, 20, 30, 300]", Space("absolute", (900, 200), (1000, 1000)))
        assert parsed.boxes[0].bounds == (10, 20, 30, 300)
        assert "taken as 0..1000" in parsed.warnings[0]

    def test_an_oriented_box_may_reach_beyond(self):
        """A turned object at the edge is no sign of another space as long as its centre is inside."""
        space = Space("absolute", (500, 500), (500, 500))
        for text in ("[440, 300, 520, 300, 520, 320, 440, 320]", "[300, 440, 320, 440, 320, 520, 300, 520]"):
            assert numbers(parse_boxes(text, space).boxes[0]) == tuple(json.loads(text))
        for text in ("[520, 300, 530, 300, 530, 320, 520, 320]", "[300, 520, 320, 520, 320, 530, 300, 530]"):
            assert "taken as 0..1000" in parse_boxes(text, space).warnings[0]

    @pytest.mark.parametrize(("most", "taken"), [(510, 500), (511, 255.5)])
    def test_a_little_beyond_the_edge_is_clipped(self, most, taken):
        parsed = parse_boxes(f"[10, 20, {most}, 40]", Space("absolute", (500, 500), (500, 500)))
        assert parsed.boxes[0].bounds[2] == taken

    @given(
        st.sampled_from(["absolute", "thousand", "unit"]),
        st.tuples(*[st.integers(28, 8000)] * 4),
        st.tuples(*[st.floats(0, 1)] * 4),
    )
    def test_model_image_model(self, kind, sizes, places):
        space = Space(kind, sizes[:2], sizes[2:])
        across, down = space.scale
        box = Box.upright(*places).scaled(*space.extent)
        there = box.scaled(across, down)
        assert max(there.bounds[2] - sizes[2], there.bounds[3] - sizes[3]) <= 1e-6
        back = there.scaled(1 / across, 1 / down)
        assert back.bounds == pytest.approx(box.bounds, rel=1e-9, abs=1e-9)


class TestOutside:
    def test_upright_boxes_are_clipped(self):
        parsed = parse_boxes("[-5, 900, 1010, 1015], [10, 20, 30, 40], [900, -3, 950, 4]", SPACE)
        assert [box.bounds for box in parsed.boxes] == [(0, 900, 1000, 1000), (10, 20, 30, 40), (900, 0, 950, 4)]
        assert all(isinstance(value, float) for box in parsed.boxes for value in box.bounds)
        assert parsed.warnings == ("2 boxes clipped to the image",)

    def test_up_to_the_edge_is_inside(self):
        assert parse_boxes("[0, 0, 1000, 1000]", SPACE).warnings == ()

    def test_oriented_boxes_keep_their_shape(self):
        for text in (
            "[900, 20, 1015, 20, 1015, 40, 900, 40]",
            "[-20, 30, 60, 30, 60, 40, -20, 40]",
            "[20, -20, 40, -20, 40, 60, 20, 60]",
            "[20, 900, 40, 900, 40, 1020, 20, 1020]",
        ):
            parsed = parse_boxes(text, SPACE)
            assert [numbers(box) for box in parsed.boxes] == [tuple(json.loads(text))]
            assert parsed.warnings == ("1 box oriented, reaching beyond the image: kept whole",)

    @pytest.mark.parametrize("text", ["[0, 0, 10, 10, 10, 0, 0, 10]", "[0, 0, 10, 0, 0, 10, 10, 10]"])
    def test_crossing_corners_are_put_in_order(self, text):
        parsed = parse_boxes(text, SPACE)
        assert [box.area for box in parsed.boxes] == [100]
        assert parsed.boxes[0].corners[0] == (0, 0)
        assert "corners that cross" in parsed.warnings[0]

    @pytest.mark.parametrize("text", ["[0, 0, 20, 0, 5, 5, 0, 20]", "[0, 0, 10, 0, 10, 10, 0, 10]"])
    def test_others_stay_in_theirs(self, text):
        parsed = parse_boxes(text, SPACE)
        assert numbers(parsed.boxes[0]) == tuple(json.loads(text))
        assert not parsed.warnings


PIECES = st.sampled_from(
    [
        *("[", "]", "{", "}", "(", ")", ",", ",", ":", " ", "\n", '"', "'", "%", "-", ".", "</think>", "to", "```json"),
        *("12", "7", "-3.5", "1e2", "0", ".5", "450", "9", "88", "NaN", "ship", "\u8239", "null", "\uff0c", "no"),
        *("bbox_2d", '"bbox_2d": ', '"label": "ship"', "'poly': ", "x1: ", '"objects": ', "<box>", "</box>", "<ref>"),
        *("</ref>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "[1, 2, 3, 4]", "(5,6)", "(50,60),(70,80)", "\\"),
    ]
)
ANSWERS = st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=200)
WRITTEN = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def stands_in(box, values):
    """Whether a box's coordinates follow each other in the answer."""
    count = 8 if box.oriented else 4
    for start in range(len(values) - count + 1):
        x, y = values[start : start + count : 2], values[start + 1 : start + count : 2]
        if box.oriented and sorted(zip(x, y, strict=True)) == sorted(box.corners):
            return True
        if not box.oriented:
            x, y = ([min(max(value, 0.0), 1e9) for value in axis] for axis in (x, y))  # clipped to PLANE
            if (min(x), min(y), max(x), max(y)) == box.bounds:
                return True
    return False


class TestProperties:
    @settings(max_examples=400, deadline=None)
    @given(ANSWERS, st.sampled_from(["absolute", "thousand"]))
    @example("[[[[1,2],[3,4]],[5", "thousand")
    @example('{"a":', "absolute")
    @example("{:}", "absolute")
    @example('["\\', "absolute")
    def test_never_raises_and_never_drops(self, text, kind):
        parsed = parse_boxes(text, Space(kind, (500, 400), (123, 45)))
        assert parsed.boxes or parsed.unparsed or parsed.none
        assert not (parsed.none and (parsed.boxes or parsed.unparsed))
        for part in parsed.unparsed:
            assert part.text in text
            assert part.reason
        for box in parsed.boxes:
            left, top, right, bottom = box.bounds
            assert left < right and top < bottom and box.area > 0
            assert box.polygon.is_valid
            if not box.oriented:
                assert left >= 0 and top >= 0 and right <= 123 and bottom <= 45
        parse_count(text)
        says_nothing(text)

    @settings(max_examples=400, deadline=None)
    @given(ANSWERS)
    def test_never_invents(self, text):
        if not all(name not in text.lower() for name in ("x1", "xmin", "left")):
            return  # corners by name may stand in any order
        values = [float(value) for value in WRITTEN.findall(text.translate({0xFF0C: ","}).replace("</think>", " "))]
        assert all(
            stands_in(box, values) for box in parse_boxes(text, PLANE).boxes if not all(0 <= v <= 1 for v in box.bounds)
        )

    integers = st.integers(0, 1000)
    uprights = st.lists(
        st.tuples(integers, integers, integers, integers).filter(lambda b: b[0] < b[2] and b[1] < b[3]),
        min_size=1, max_size=6, unique=True,
    )  # fmt: skip
    labels = st.text("abcdefgh \u8239-", min_size=1, max_size=12).map(str.strip).filter(lambda s: s.strip("- "))

    @settings(max_examples=150, deadline=None)
    @given(
        uprights,
        labels,
        st.sampled_from(
            [
                lambda boxes, label: json.dumps([{"bbox_2d": box, "label": label} for box in boxes]),
                lambda boxes, label: json.dumps(
                    {"objects": [{"label": label, "bbox": box} for box in boxes]}, indent=1
                ),
                lambda boxes, label: "\n".join(json.dumps({"box": box, "class": label}) for box in boxes),
                lambda boxes, label: repr([{"box_2d": box, "category": label} for box in boxes]),
                lambda boxes, label: json.dumps({"name": label, "boxes": boxes}, ensure_ascii=False),
                lambda boxes, label: "".join(
                    f"<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({a},{b}),({c},{d})<|box_end|>"
                    for a, b, c, d in boxes
                ),
                lambda boxes, label: f"<ref>{label}</ref>" + "".join(f"<box>[{list(box)}]</box>" for box in boxes),
            ]
        ),
        st.sampled_from(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]),
        st.tuples(st.integers(1001, 4000), st.integers(1001, 4000), st.integers(28, 9000), st.integers(28, 9000)),
    )
    def test_round_trip_of_upright_boxes(self, boxes, label, write, model_type, sizes):
        space = Space.of(model_type, sizes[:2], sizes[2:])
        parsed = parse_boxes(write(boxes, label), space)
        assert not parsed.unparsed
        assert [box.label for box in parsed.boxes] == [" ".join(label.split())] * len(boxes)
        for box, place in zip(parsed.boxes, boxes, strict=True):
            assert box.bounds == pytest.approx(Box.upright(*place).scaled(*space.scale).bounds)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.tuples(*[st.integers(200, 800)] * 2, *[st.integers(10, 150)] * 2), min_size=1, max_size=5, unique=True
        ),
        st.sampled_from(
            [
                lambda quads: json.dumps([{"obb": list(chain(*quad))} for quad in quads]),
                lambda quads: json.dumps([{"poly": quad} for quad in quads]),
                lambda quads: json.dumps(quads),
                lambda quads: " and ".join(str(list(chain(*quad))) for quad in quads),
                lambda quads: "".join(
                    f"<|quad_start|>{','.join(f'({x},{y})' for x, y in quad)}<|quad_end|>" for quad in quads
                ),
                lambda quads: "\n".join(",".join(f"({x},{y})" for x, y in quad) for quad in quads),
            ]
        ),
    )
    def test_round_trip_of_oriented_boxes(self, shapes, write):
        quads = [[[x - a, y - b], [x + b, y - a], [x + a, y + b], [x - b, y + a]] for x, y, a, b in shapes]
        parsed = parse_boxes(write(quads), SPACE)
        assert not parsed.unparsed
        assert not parsed.warnings
        assert [box.corners for box in parsed.boxes] == [tuple(map(tuple, quad)) for quad in quads]
        assert all(box.oriented for box in parsed.boxes)


HOSTILE = [
    *("[", "{", "(", "<", '"', "'", ":", ",", "\\", "-", "1", "a ", "\uff0e", "[]", "{}", "no ", "1,111", "twenty-"),
    *(
        '["',
        "['",
        '[\\"',
        "[' ",
        '{"a":',
        '{"bbox":',
        '{"bbox":[1,2,3,4],',
        "<ref>",
        "<box>",
        "<|box_start|>",
        "<think>",
    ),
    *(
        "[1,2,3,4]",
        "[1] ",
        "(1,2)",
        "(1,2),",
        "(1,2) to ",
        "[1,2]-",
        "[[1,2],",
        "[1,2,3,4",
        "[1e",
        '{"":',
        "[('",
        "[1 , ",
    ),
    *(
        '{"label":"s","label":',
        '{"bbox":"{',
        "there are no ",
        "ship(1,2),(3,4)",
        "</think>",
        "n't see any",
        "[1,2,3,4]a ",
    ),
]


class TestTime:
    """Against answers that would take for ever, not for speed: the limits are many times what is needed."""

    @pytest.mark.parametrize(("length", "seconds"), [(15_000, 10), pytest.param(100_000, 60, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("piece", HOSTILE)
    def test_is_linear(self, piece, length, seconds):
        for opening, closing in (("", ""), ("[", ""), ("[" * 49, "]" * 49)):
            text = opening + piece * (length // len(piece)) + closing
            start = time.process_time()
            parse_boxes(text, SPACE)
            parse_count(text)
            assert time.process_time() - start < seconds

    @pytest.mark.parametrize("piece", ["[", "{", "(1,2)", "[1,2,3,4]"])
    def test_a_hundred_kilobytes(self, piece):
        start = time.process_time()
        parse_boxes(piece * (100_000 // len(piece)), SPACE)
        assert time.process_time() - start < 30

    @pytest.mark.parametrize("opening,closing", [("[", "]"), ("(", ")"), ("{", "}"), ('{"a":', "}"), ("[", "")])
    def test_deep(self, opening, closing):
        text = opening * 30_000 + "[1, 2, 3, 4]" + closing * 30_000
        start = time.process_time()
        (part,) = parse_boxes(text, SPACE).unparsed
        assert "deep" in part.reason
        assert time.process_time() - start < 30
