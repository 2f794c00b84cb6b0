"""The one number that an answer states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eo_zoo.vlm.parse import parse_count


class TestCount:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            *(("12", 12), ("There are twelve ships.", 12), ("no ships", 0), ("None", 0), ("0", 0), ("zero", 0)),
            *(("There are 12.", 12), ("12.0", 12), ("**12**", 12), ("1,200 cars", 1200), ("12 ships, 12 in all", 12)),
            *(("twenty-one", 21), ("Twenty one ships", 21), ("ninety", 90), ("nineteen", 19), ("one", 1)),
            *(("No, there are 5 ships", 5), ("Sentinel-2 shows 5 ships", 5), ('{"count": 12}', 12), ("(12)", 12)),
            *(("There are no ships in the image.", 0), ("\u56fe\u4e2d\u670912\u8258\u8239", 12), ("\uff11\uff12", 12)),
            *(("<think>10 or 11?</think>12", 12), ("<answer>12</answer>", 12), ("12<|im_end|>", 12), ("about 12", 12)),
            *(("the 2nd pier has 5", 5), ("5 ships under the bridge", 5), ("seven", 7), ("forty two", 42)),
            # what is no single number
            *(("", None), ("many", None), ("[12]", None), ("10-12", None), ("10 to 12", None), ("12.5", None)),
            *(("at least 5", None), ("more than 10", None), ("fewer than ten", None), ("4.9%", None), ("3/4", None)),
            *(("-5", None), ("12 ships and 3 planes", None), ("There are no planes, but 3 ships", None), ("12+", None)),
            *(
                ("one hundred", None),
                ("dozens", None),
                ("No idea", None),
                ("12,13", None),
                ("> 5", None),
                ("x12", None),
            ),
            *(("over 50 cars", None), ("up to 7", None), ("12x12", None), ("9" * 400, None), ("someone", None)),
        ],
    )
    def test_known(self, text, count):
        assert parse_count(text) == count

    @given(st.integers(0, 10**9))
    def test_round_trip(self, count):
        assert parse_count(str(count)) == parse_count(f"There are {count:,} ships.") == count

    @given(st.text(max_size=100))
    def test_never_raises_and_is_no_bool(self, text):
        count = parse_count(text)
        assert count is None or (type(count) is int and count >= 0)
