"""Files changed at random are refused in a sentence or read well; known files with one bit flipped are refused."""

from __future__ import annotations

import sys

import pytest

from tests.weights import fuzz

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and measured as Linux does it")

#: Files of each kind, and flipped bits of each known file (quick lane, and full one with others).
QUICK, FULL = 300, 3600
QUICK_BITS, FULL_BITS = 60, 1200
KINDS, RECORDS = tuple(fuzz.KINDS), tuple(fuzz.RECORDS)


def _check(counts, folder, record_property, *, first):
    told = fuzz.run(folder / "made", counts, first=first)
    for kind, facts in told.items():
        record_property("figures", f"fuzz {kind}: {facts}")
    assert [fault for facts in told.values() for fault in facts.faults] == []
    assert list(told) == list(counts)
    for kind, facts in told.items():
        assert facts.files == facts.refused + facts.read == counts[kind]
        assert facts.slowest < fuzz.SECONDS and facts.peak * (1 << 20) < fuzz.MEMORY
        if kind in RECORDS:
            assert facts.read == 0
        else:  # the changes are neither missed nor all fatal
            assert facts.refused > facts.files / 5 and facts.read > facts.files / 25


def test_changed_files_and_flipped_bits(tmp_path, record_property):
    _check(dict.fromkeys(KINDS, QUICK) | dict.fromkeys(RECORDS, QUICK_BITS), tmp_path, record_property, first=0)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [KINDS[:3], KINDS[3:]], ids="-".join)
def test_many_changed_files(tmp_path, record_property, kinds):
    _check(dict.fromkeys(kinds, FULL), tmp_path, record_property, first=QUICK)


@pytest.mark.slow
def test_many_flipped_bits(tmp_path, record_property):
    _check(dict.fromkeys(RECORDS, FULL_BITS), tmp_path, record_property, first=QUICK_BITS)
