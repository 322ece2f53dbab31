"""What an optimizer says of itself: its values, its hypergradients, and how it prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from torch import Tensor

from .level import READ, Hyperparameters, Levels
from .numerics import readable
from .rule import Rule


class Snapshot(NamedTuple):
    """What an optimizer says of itself at one moment, to be looked at later."""

    per: str  # as the optimizer's
    groups: list[tuple[Hyperparameters, Tensor, dict[str, float]]]  # of each, its schedule, and what the user says of them
    levels: Levels  # those above
    memory: Tensor  # what they remember; see `Levels`

    @property
    def above(self) -> list[Hyperparameters]:
        """The hyperparameters of every level above."""
        return [level.own for level in self.levels.levels]

    def hyperparameters(self, group: int) -> list[dict[str, Any]]:
        """See `Hyperoptimizer.hyperparameters`."""
        owner, schedule, said = self._group(group)
        fixed: list[dict[str, Any]] = [{n: getattr(h.rule, n) for n in h.rule.hyperparameters()} for h in self.above]
        fixed.insert(0, {n: [said[n]] * owner.sets if self.per == "tensor" else said[n] for n in owner.rule.hyperparameters()})
        learned = self.levels.learned(self.memory)
        values = [owner.values(learned[0], schedule)[0][: len(owner.names)], *learned[1:]] if learned else []
        return [{**f, **t} for f, t in zip(fixed, self._tell(group, values), strict=True)]

    def hypergradients(self, group: int) -> list[dict[str, Any]]:
        """See `Hyperoptimizer.hypergradients`."""
        moved = self._group(group)[0], *self.above
        read = self.memory[READ].split(self.levels.sizes)
        return self._tell(group, [x[h.place] for x, h in zip(read, moved, strict=False)])

    def _group(self, group: int) -> tuple[Hyperparameters, Tensor, dict[str, float]]:
        if not -(n := len(self.groups)) <= group < n:
            raise IndexError(f"group={group!r} is not allowed; it must be less than {n}, the number of groups")
        return self.groups[group]

    def _tell(self, group: int, values: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Of each level the `values` of its tuned hyperparameters, as numbers in the shape of `hyperparameters`."""
        levels: list[dict[str, Any]] = []
        for k, h in enumerate((self.groups[group][0], *self.above)):
            rows = _listed(values[k].view(h.shape)) if h.names else []
            numbers = dict(zip(h.names, rows, strict=True))
            if k or self.per != "tensor":
                numbers = {n: dict(zip(h.below, row, strict=True)) if h.below else row[0] for n, row in numbers.items()}
            levels.append(numbers)
        return levels


def _listed(x: Tensor) -> Any:
    """Its numbers; NaN where the host cannot read them."""
    return x.tolist() if readable(x) else _unknown(x.shape)


def _unknown(shape: Sequence[int]) -> Any:
    return [_unknown(shape[1:]) for _ in range(shape[0])] if shape else math.nan


def printed(rules: Sequence[Rule], values: Sequence[dict[str, Any]]) -> str:
    """A tower with its `values`: of those that are not tuned, what differs from the default."""
    text = []
    for rule, mine in zip(rules, values, strict=True):
        defaults = {n: f.default for n, f in rule.hyperparameters().items() if n != "lr" and n not in rule.tuned()}
        shown = (f"{n}={_brief(v)}" for n, v in mine.items() if n not in defaults or _brief(v) != _brief(defaults[n]))
        plain = [(f.name, getattr(rule, f.name), f.default) for f in fields(rule) if f.name in rule.settings()]
        flags = (f"{n}={v!r}" for n, v, default in plain if n not in mine and v != default)
        text.append(f"{type(rule).__name__}({', '.join([*shown, *flags])})")
    return " / ".join(text)


def _brief(value: Any) -> str:
    """A value with four digits; of many, the range."""
    if isinstance(value, list) and value:
        low, high = _brief(min(value)), _brief(max(value))
        return low if low == high else f"{low}…{high}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_brief(v)}" for k, v in value.items()) + "}"
    return f"{value:.4g}" if value != [] else "none"
