from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_zoo.errors import WeightsError
from eo_zoo.models._build import StrictLoading
from eo_zoo.weights.plan import Layout, Move, Plan, Rule, best, same
from tests.convert.originals import ORIGINALS
from tests.procedural import manifest

STACK = Rule("experts.{i}.{wb}", "experts.{wb}", "stack", ("0", "1", "2"))
TABLE = Layout(
    "public",
    (
        same(r"token|head\.\d+"),
        Rule("layer_{n}.{x:norm|mlp}.{wb}", "layers.{n}.{x}.{wb}"),
        STACK,
        Rule("attn.{i}.bias", "kv.bias", "cat", ("wk", "wv")),
        Rule("table", "pool.table", "squeeze"),
    ),
    {r"decoder\..+": "the decoder", "spare": "a spare"},
)


def test_every_name_has_one_fate():
    names = [
        "token", "layer_3.mlp.weight", "experts.2.bias", "experts.0.bias", "experts.1.bias", "decoder.x", "odd",
        "attn.wv.bias", "attn.wk.bias", "table", "spare",
    ]  # fmt: skip
    plan = TABLE.plan(names)
    assert {move.ours: (move.official, move.fate) for move in plan.moves} == {
        "token": (("token",), "same"),
        "layers.3.mlp.weight": (("layer_3.mlp.weight",), "renamed"),
        "experts.bias": (("experts.0.bias", "experts.1.bias", "experts.2.bias"), "stacked"),
        "kv.bias": (("attn.wk.bias", "attn.wv.bias"), "joined"),
        "pool.table": (("table",), "reshaped"),
    }
    assert plan.left_out == {"decoder.x": "the decoder", "spare": "a spare"} and plan.unknown == ("odd",)


@pytest.mark.parametrize(
    "name", ["layer_x.mlp.weight", "layer_1.mlp.gain", "layer_1.attn.weight", "tokens", "head.", "atable"]
)
def test_templates_match_whole_names(name):
    assert TABLE.plan([name]).unknown == (name,)


def test_tensors_go_there_and_back():
    tensors = {f"experts.{i}.weight": torch.full((2, 3), float(i)) for i in range(3)}
    tensors |= {"attn.wk.bias": torch.zeros(2), "attn.wv.bias": torch.ones(2), "table": torch.rand(1, 4, 2)}
    tensors |= {"token": torch.rand(3), "layer_0.norm.bias": torch.rand(3)}
    plan = TABLE.plan(tensors)
    ours = plan.apply(tensors)
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        "experts.weight": (3, 2, 3), "kv.bias": (4,), "pool.table": (4, 2), "token": (3,), "layers.0.norm.bias": (3,),
    }  # fmt: skip
    assert ours["experts.weight"][2].eq(2).all() and ours["kv.bias"].tolist() == [0, 0, 1, 1]
    assert ours["token"].data_ptr() == tensors["token"].data_ptr()  # no copy of what is only renamed
    for undone in (plan, TABLE.back(ours)):
        again = undone.undo(ours)
        assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_part_that_is_missing_and_one_that_is_there_twice():
    with pytest.raises(WeightsError, match=r"experts.weight is made of 3 parts; missing: 1"):
        TABLE.plan(["experts.0.weight", "experts.2.weight"])
    twice = Layout("x", (same("token"), Rule("encoder.token", "token")))
    with pytest.raises(WeightsError, match=r"encoder.token and token are one and the same tensor"):
        twice.plan(["token", "encoder.token"])
    with pytest.raises(
        WeightsError, match=r"experts.0.weight, experts.1.weight belong together as experts, but are of several"
    ):
        Move("experts", ("experts.0.weight", "experts.1.weight"), "stack").make([torch.zeros(2), torch.zeros(3)])


def test_what_nobody_knows_and_what_is_nothing():
    with pytest.raises(WeightsError, match=r"2 tensors are not of a checkpoint of X: a, b"):
        TABLE.plan(["token", "b", "a"]).require_known("X")
    with pytest.raises(WeightsError, match=r"nothing in it is a tensor of X: all are the decoder"):
        TABLE.plan(["decoder.1", "decoder.2"]).require_known("X")
    plan = TABLE.plan(["token"])
    assert plan.require_known("X") is plan
    assert TABLE.back(["layers.0.mlp.weight", "pool.query"]).unknown == ("pool.query",)


def test_the_layout_that_knows_most_is_taken():
    few, many = Layout("few", (same("a"),)), Layout("many", (same("a|b"),))
    assert best([few, many], ["a", "b"]).layout == "many"
    assert best([few, many], ["a"]).layout == "few"
    dropping = Layout("dropping", (), {"a": "why"})
    assert best([dropping, few], ["a"]).layout == "few"  # rather than leave all of it out
    assert best([few], []) == Plan("few", ())


def test_prefixes_on_both_sides():
    rule = STACK.behind("encoder.", "student.")
    assert rule.from_official.fullmatch("encoder.experts.1.bias")["i"] == "1"
    assert rule.from_official.fullmatch("encoderXexperts.1.bias") is None  # a dot is a dot
    assert rule.from_ours.fullmatch("student.experts.bias") and not rule.from_ours.fullmatch("experts.bias")


# ------------------------------------------------------------------------------------------ the families' tables


def names_of(recorded: tuple[str, str | None]) -> list[str]:
    return [row[0] for row in manifest(*recorded)]


RECORDED = sorted({original.recorded for original in ORIGINALS.values()}, key=str)


def family_of(recorded: tuple[str, str | None]) -> list[type[StrictLoading]]:
    start = recorded[0].partition("_")[0]
    kind = next((sensor for sensor in ("rgb", "sar") if sensor in (recorded[1] or "")), "")
    return [cls for layout, cls in StrictLoading.families.items() if layout.startswith(f"{start}-{kind}")]


@pytest.mark.parametrize("recorded", RECORDED, ids=str)
def test_a_family_knows_its_manifests_and_no_other_family_does(recorded):
    names = names_of(recorded)
    for cls in family_of(recorded):
        plan = cls.plan(names)
        assert not plan.unknown and plan.layout != "eo_zoo"
        used = [name for move in plan.moves for name in move.official]
        assert sorted([*used, *plan.left_out]) == sorted(names)
        assert len({move.ours for move in plan.moves}) == len(plan.moves)
        layout = next(one for one in cls.layouts(names) if one.name == plan.layout)
        again = layout.back([move.ours for move in plan.moves])
        assert {move.ours: move for move in again.moves} == {move.ours: move for move in plan.moves}
    others = {cls.family for cls in StrictLoading.families.values()} - {cls.family for cls in family_of(recorded)}
    for cls in StrictLoading.families.values():
        assert cls.family not in others or cls.plan(names).unknown


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RECORDED), st.integers(0, 2**32), st.lists(st.text("abc.0_encodr", min_size=1), max_size=3))
def test_no_name_is_lost_whatever_is_in_a_file(recorded, seed, more):
    """Some names of a checkpoint, and some of nobody's: each has exactly one fate, or there is an error."""
    chance = random.Random(seed)
    names = [name for name in names_of(recorded) if chance.random() < 0.9 or ".{" in name]
    names = list(dict.fromkeys([*names, *more]))
    for cls in family_of(recorded):
        try:
            plan = cls.plan(names)
        except WeightsError as error:
            assert "missing" in str(error) or "one and the same" in str(error)
            continue
        fates = [*(name for move in plan.moves for name in move.official), *plan.left_out, *plan.unknown]
        assert sorted(fates) == sorted(names)
        moves = {move.ours: move for move in plan.moves}
        layout = next(one for one in cls.layouts(names) if one.name == plan.layout)
        assert {move.ours: move for move in layout.back(moves).moves} == moves
