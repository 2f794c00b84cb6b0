"""Which tensor of a checkpoint becomes which of ours: one table of names, read in both directions.

A template of names has fields: ``{n}`` is a number, ``{wb}`` is weight or bias, ``{rest}`` anything, and a field
``{x:pattern}`` what its pattern says. Fields of both sides are equal; ``{i}`` stands for the parts that one tensor of
ours is joined from.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eo_zoo.errors import WeightsError
from eo_zoo.weights.checkpoint import some

FIELDS = {"n": r"\d+", "wb": "weight|bias", "rest": ".+"}
_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


@dataclass(frozen=True)
class Rule:
    """Names of the public code and ours."""

    official: str  # template
    ours: str  # template
    join: str = ""  # "stack" or "cat" of the parts, "squeeze" of a first dimension of 1
    of: tuple[str, ...] = ()  # what ``{i}`` is for each part, in order

    @functools.cached_property
    def from_official(self) -> re.Pattern[str]:
        """Matches an official name."""
        return _compile(self.official, self.of)

    @functools.cached_property
    def from_ours(self) -> re.Pattern[str]:
        """Matches a name of ours."""
        patterns = {name: pattern for name, pattern in _FIELD.findall(self.official) if pattern}
        return _compile(_FIELD.sub(lambda m: f"{{{m[1]}:{patterns[m[1]]}}}" if m[1] in patterns else m[0], self.ours))

    def behind(self, official: str, ours: str) -> Rule:
        """The same rule for names behind prefixes."""
        return replace(self, official=official + self.official, ours=ours + self.ours)


def same(pattern: str) -> Rule:
    """The rule of names that are ours too."""
    return Rule(f"{{x:{pattern}}}", "{x}")


def _compile(template: str, parts: Sequence[str] = ()) -> re.Pattern[str]:
    made, end = "", 0
    for found in _FIELD.finditer(template):
        pattern = "|".join(parts) if found[1] == "i" else found[2] or FIELDS[found[1]]
        made += re.escape(template[end : found.start()]) + f"(?P<{found[1]}>{pattern})"
        end = found.end()
    return re.compile(made + re.escape(template[end:]))


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda found: fields[found[1]], template)


@dataclass(frozen=True)
class Move:
    """One tensor of ours, and those of the public code that it is made of."""

    ours: str
    official: tuple[str, ...]
    join: str = ""

    @property
    def fate(self) -> str:
        """What happens, in a word."""
        words = {"stack": "stacked", "cat": "joined", "squeeze": "reshaped"}
        return words.get(self.join) or ("same" if self.official == (self.ours,) else "renamed")

    def make(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor of ours.

        Raises:
            WeightsError: the parts do not fit together.
        """
        if len({part.shape for part in parts}) > 1:
            raise WeightsError(f"{some(self.official)} belong together as {self.ours}, but are of several shapes")
        if self.join == "stack":
            return torch.stack(list(parts))
        if self.join == "cat":
            return torch.cat(list(parts))
        return parts[0].squeeze(0) if self.join == "squeeze" else parts[0]

    def part(self, tensor: Tensor) -> list[Tensor]:
        """The public code's tensors of it."""
        if self.join == "stack":
            return list(tensor.unbind())
        if self.join == "cat":
            return list(tensor.chunk(len(self.official)))
        return [tensor.unsqueeze(0) if self.join == "squeeze" else tensor]


@dataclass(frozen=True)
class Plan:
    """What becomes of every tensor."""

    layout: str
    moves: tuple[Move, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # name: why
    unknown: tuple[str, ...] = ()

    def require_known(self, family: str) -> Plan:
        """This plan; raises WeightsError for names that the family's table does not hold, if there are any."""
        if self.unknown:
            raise WeightsError(
                f"{len(self.unknown)} tensors are not of a checkpoint of {family}: {some(sorted(self.unknown))}"
            )
        if not self.moves:
            raise WeightsError(f"nothing in it is a tensor of {family}: all are {some(set(self.left_out.values()))}")
        return self

    def apply(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The public code's tensors to ours: the same memory, but for those that are joined."""
        return {move.ours: move.make([tensors[name] for name in move.official]) for move in self.moves}

    def undo(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours to the public code's."""
        parts = ((move.official, move.part(tensors[move.ours])) for move in self.moves)
        return {name: part for names, own in parts for name, part in zip(names, own, strict=True)}


@dataclass(frozen=True)
class Layout:
    """One form of a family's checkpoints."""

    name: str
    rules: tuple[Rule, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # pattern of official names: why they are not needed
    wrapper: str = ""  # the key under which the public code keeps the tensors

    def plan(self, names: Collection[str]) -> Plan:
        """What becomes of official names.

        Raises:
            WeightsError: a part of a joined tensor is missing, or two names become one.
        """
        found: dict[str, dict[int, tuple[str, Rule]]] = {}
        left_out, unknown = {}, []
        drops = [(re.compile(pattern), why) for pattern, why in self.left_out.items()]
        for name in names:
            for rule in self.rules:
                if match := rule.from_official.fullmatch(name):
                    fields = match.groupdict()
                    index = rule.of.index(fields["i"]) if "i" in fields else 0
                    ours = found.setdefault(_filled(rule.ours, fields), {})
                    if index in ours:
                        raise WeightsError(f"{name} and {ours[index][0]} are one and the same tensor")
                    ours[index] = name, rule
                    break
            else:
                why = next((why for pattern, why in drops if pattern.fullmatch(name)), None)
                if why is None:
                    unknown.append(name)
                else:
                    left_out[name] = why
        moves = []
        for made, parts in found.items():
            rule = next(iter(parts.values()))[1]
            if missing := [one for index, one in enumerate(rule.of) if index not in parts]:
                raise WeightsError(f"{made} is made of {len(rule.of)} parts; missing: {some(missing)}")
            moves.append(Move(made, tuple(parts[index][0] for index in sorted(parts)), rule.join))
        return Plan(self.name, tuple(moves), left_out, tuple(unknown))

    def back(self, names: Iterable[str]) -> Plan:
        """The plan that made tensors of ours of these names, to be undone; ``unknown`` have no place in this layout."""
        moves, unknown = [], []
        for name in names:
            for rule in self.rules:
                if match := rule.from_ours.fullmatch(name):
                    fields = match.groupdict()
                    official = tuple(_filled(rule.official, {**fields, "i": part}) for part in rule.of or ("",))
                    moves.append(Move(name, official, rule.join))
                    break
            else:
                unknown.append(name)
        return Plan(self.name, tuple(moves), unknown=tuple(unknown))


def best(layouts: Iterable[Layout], names: Collection[str]) -> Plan:
    """The plan of the layout that leaves the fewest names unknown; the first of equal ones."""
    plans = [layout.plan(names) for layout in layouts]
    return min(plans, key=lambda plan: (len(plan.unknown), not plan.moves))
