"""Towers: a stack of rules, each of which tunes the one on its left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .rule import Rule


@dataclass(frozen=True)
class Tower:
    """A stack of rules, written ``Adam(lr=1e-3) / SGD(lr=1e-5)``; the leftmost adjusts the weights.

    Raises:
        TypeError: something that is not a rule.
        ValueError: a level above one that has nothing to tune; a dict of values whose names are not those that the
            level below lets be tuned; a rule above that is not elementwise.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise ValueError("a tower has at least one rule, such as Adam(lr=1e-3)")
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"a tower is made of rules such as Adam(lr=1e-3); got {rule!r}")
            if not rule.hyperparameters():
                raise TypeError(f"{type(rule).__name__} has no hyperparameters: a rule is a @dataclass(frozen=True) with some")
        for below, rule in zip(self.rules, self.rules[1:], strict=False):
            if not below.tuned():
                raise ValueError(f"{rule!r} has nothing to tune: {below!r} names no hyperparameter in `tune`")
            if not rule.elementwise:
                raise ValueError(f"{rule!r} cannot tune another rule: it moves matrices, and hyperparameters are numbers")
            for name in rule.hyperparameters():
                value = getattr(rule, name)
                if isinstance(value, Mapping) and set(value) != set(below.tuned()):
                    raise ValueError(
                        f"{rule!r}: {name} has values for {', '.join(value)}; it needs one for each hyperparameter "
                        f"that {below!r} lets be tuned: {', '.join(below.tuned())}"
                    )

    @classmethod
    def of(cls, rules: Rule | Tower) -> Tower:
        """A tower; one rule alone is a tower of height 0."""
        return rules if isinstance(rules, Tower) else cls((rules,))

    @property
    def height(self) -> int:
        """How many rules tune: 0 for a rule alone."""
        return len(self.rules) - 1

    def __truediv__(self, above: Rule | Tower) -> Tower:
        return Tower(self.rules + Tower.of(above).rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __repr__(self) -> str:
        return " / ".join(map(repr, self.rules))
