"""The tower that needs no tuning."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .charts import POSITIVE
from .evaluation import averages
from .rule import Age, Rule
from .rules.adamw_schedule_free import AdamWScheduleFree
from .rules.tuner import Tuner
from .tower import Tower

START = {"lr": 1e-6, "r": 4.0}
"""What `auto` takes in the place of a rule's defaults: a step size so small that it does no harm and grows from there; and
averages over about the last fifth of all steps."""


def auto(rule: Rule | None = None, **arguments: Any) -> Tower:
    """The tower that needs no tuning, around any rule; ``Hyperoptimizer(params)`` is ``Hyperoptimizer(params, auto())``.

        optimizer = Hyperoptimizer(model.parameters(), auto(weight_decay=0.1))

    The logarithm of the step size is moved along the cosine between the gradient and the path so far, which is what the step
    size has done over the run: larger as long as the path goes downhill, smaller when it would better have been shorter.

    Args:
        rule: what moves the parameters; default: ``AdamWScheduleFree(**arguments)``. Its values stay, but for an lr and an
            r at their defaults, which become 1e-6 and 4.
        arguments: those of `AdamWScheduleFree`, where no rule is given, such as ``weight_decay=0.1``.

    Raises:
        TypeError: something that is not a rule; arguments beside a rule.
        ValueError: a rule without an lr.
    """
    if isinstance(rule, Rule) and arguments:
        raise TypeError(f"auto({rule!r}, …) takes no more arguments: give {', '.join(arguments)} to {type(rule).__name__}")
    if rule is not None and not isinstance(rule, Rule):
        hint = f"; write auto({rule.__name__}())" if isinstance(rule, type) and issubclass(rule, Rule) else ""
        raise TypeError(f"rule={rule!r} is not allowed; it must be a rule such as SGD(momentum=0.9){hint}")
    rule = AdamWScheduleFree(**arguments) if rule is None else rule
    defaults = {f.name: f.default for f in fields(rule)}
    chosen: dict[str, Any] = {n: value for n, value in START.items() if n in defaults and getattr(rule, n) == defaults[n]}
    return around(replace(rule, **chosen))


def around(rule: Rule) -> Tower:
    """`auto` of a rule whose values all stay."""
    if "lr" not in rule.tunable():
        raise ValueError(f"rule={rule!r} is not allowed: it has no hyperparameter lr that can be tuned")
    charts = {**rule.charts, "lr": POSITIVE}
    horizon = Age(2 if averages(rule) else 4)  # without an average, what is near asks for too small steps
    return replace(rule, tune=("lr",), charts=charts, horizon=horizon, normalize="metric cosine", sample=16) / Tuner()


def usual_lr(rule: Rule) -> float | None:
    """The lr that a group of `rule` shows, which schedules are relative to, where `auto` has it learned from far below; else
    None.
    """
    usual = {f.name: f.default for f in fields(rule)}.get("lr")
    return usual if isinstance(usual, float) and isinstance(rule.horizon, Age) and getattr(rule, "lr") == START["lr"] else None  # noqa: B009
