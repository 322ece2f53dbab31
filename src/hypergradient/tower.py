"""Towers: a stack of rules, each of which tunes the one on its left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .probe import elementwise
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
                named = (isinstance(rule, type) and issubclass(rule, Rule)) or getattr(rule, "__name__", "") == "auto"
                hint = f": write {rule.__name__}()" if named else ""
                hint = ": write from_torch(optimizer, above=…)" if hasattr(rule, "add_param_group") else hint
                hint = ": it finds the lr; leave it out, or start at one with auto(lr=…)" if isinstance(rule, float) else hint
                given = type(rule).__name__ if hasattr(rule, "param_groups") else repr(rule)  # that of torch fills a page
                raise TypeError(f"a tower is made of rules such as Adam(lr=1e-3); got {given}{hint}")
            if not rule.hyperparameters():
                raise TypeError(
                    f"{type(rule).__name__} has no hyperparameters: a rule is a @dataclass(frozen=True) with "
                    "some, such as lr: float = hyperparameter(1e-3, nonnegative)"
                )
        for below, rule in zip(self.rules, self.rules[1:], strict=False):
            _check(below, rule)

    @classmethod
    def of(cls, rules: Rule | Tower) -> Tower:
        """A tower; one rule alone is a tower of height 0."""
        return rules if isinstance(rules, Tower) else cls((rules,))

    @property
    def height(self) -> int:
        """How many rules tune: 0 for a rule alone."""
        return len(self.rules) - 1

    def __truediv__(self: Rule | Tower, above: Rule | Tower) -> Tower:
        return Tower(Tower.of(self).rules + Tower.of(above).rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __repr__(self) -> str:
        return " / ".join(map(repr, self.rules))


def _check(below: Rule, rule: Rule) -> None:
    """Raise ValueError where `rule` cannot tune `below`."""
    if not (tuned := below.tuned()):
        raise ValueError(f"{rule!r} has nothing to tune: {below!r} names no hyperparameter in `tune`")
    if not elementwise(rule):
        raise ValueError(
            f"{rule!r} cannot tune another rule: it is not elementwise, and hyperparameters do not belong together as "
            "the elements of a tensor do"
        )
    for name in rule.hyperparameters():
        value = getattr(rule, name)
        if isinstance(value, Mapping) and set(value) != set(tuned):
            raise ValueError(
                f"{rule!r}: {name} has values for {', '.join(value)}; it needs one for each hyperparameter "
                f"that {below!r} lets be tuned: {', '.join(tuned)}"
            )


Rule.__truediv__ = Tower.__truediv__  # type: ignore[method-assign]
