"""The tower that needs no tuning."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import fields, replace
from typing import Any, cast

from .charts import POSITIVE
from .evaluation import averages
from .probe import metric
from .rule import Age, Rule
from .rules.adamw_schedule_free import AdamWScheduleFree
from .rules.tuner import Tuner
from .tower import Tower


def start(rule: Rule) -> float:
    """The lr that `auto` begins with, so small that it does no harm, and grows from there: a 32nd of the rule's default; but
    1e-6 where that is 0, or without a preconditioner, as steps may be as large as the gradients of a summed loss.
    """
    return usual(rule) / 32 if metric(rule) and usual(rule) else 1e-6


def usual(rule: Rule) -> float:
    """The lr that a rule has where none is given."""
    return cast(float, rule.hyperparameters()["lr"].default)


CHOSEN: dict[str, Callable[[Rule, Any], Any]] = {
    "lr": lambda rule, given: min(given, start(rule)) if isinstance(given, (int, float)) else given,
    "r": lambda rule, given: 4.0 if averages(rule) and given == rule.hyperparameters()["r"].default else given,
}
"""What `auto` takes in the place of what a rule says; with r, averages are over about the last fifth of all steps."""
OWN = "tune", "horizon", "normalize", "sample"
"""What it says itself of how a rule is tuned."""


def auto(rule: Rule | None = None, **arguments: Any) -> Tower:
    """The tower that needs no tuning, around any rule; ``Hyperoptimizer(params)`` is ``Hyperoptimizer(params, auto())``.

        optimizer = Hyperoptimizer(model.parameters(), auto(weight_decay=0.1))

    The logarithm of the step size is moved along the cosine between the gradient and the path so far, which is what the step
    size has done over the run: larger as long as the path goes downhill, smaller when it should have been shorter.

    Args:
        rule: what moves the parameters; default: ``AdamWScheduleFree(**arguments)``. Its values stay, but for an r at its
            default, which becomes 4 (``auto(r=0)`` keeps it), and lr, which is where the search begins: at most a 32nd of the
            rule's default, or 1e-6 for a rule without a `Rule.preconditioner`; what is higher is lowered to that, as it could
            ruin the first steps.
        arguments: those of `AdamWScheduleFree`, where no rule is given, such as ``weight_decay=0.1``.

    Raises:
        TypeError: something that is not a rule; arguments beside a rule.
        ValueError: a rule without an lr, or with one of 0, or that says itself how it is tuned.
    """
    if isinstance(rule, Rule) and arguments:
        raise TypeError(f"auto({rule!r}, …) takes no more arguments: give {', '.join(arguments)} to {type(rule).__name__}")
    if rule is not None and not isinstance(rule, Rule):
        hint = f"; write auto({rule.__name__}())" if isinstance(rule, type) and issubclass(rule, Rule) else ""
        raise TypeError(f"rule={rule!r} is not allowed; it must be a rule such as SGD(momentum=0.9){hint}")
    rule = AdamWScheduleFree(**arguments) if rule is None else rule
    if said := says(rule):
        raise ValueError(
            f"auto has its own {', '.join(OWN)}: leave out {', '.join(said)}, or write a tower, Adam(tune=…) / SGD(…)"
        )
    if getattr(rule, "lr", 1) == 0:
        raise ValueError(f"rule={rule!r} is not allowed: it would rest; leave out lr, or give a group its own, {{'lr': 0.0}}")
    return around(chosen(rule, keep={"r"} & arguments.keys()))


def chosen(rule: Rule, keep: Set[str] = frozenset()) -> Rule:
    """`rule` with what is `CHOSEN`, but for what is to `keep` its value."""
    names = rule.hyperparameters().keys() - keep
    return replace(rule, **{n: f(rule, getattr(rule, n)) for n, f in CHOSEN.items() if n in names})


def around(rule: Rule) -> Tower:
    """`auto` of a rule whose values all stay."""
    if "lr" not in rule.tunable():
        raise ValueError(f"rule={rule!r} is not allowed: it has no hyperparameter lr that can be tuned")
    if rule.charts.get("lr", POSITIVE) != POSITIVE:
        raise ValueError(f"rule={rule!r}: auto has its own chart of lr: leave out charts, or write a tower, Adam(…) / SGD(…)")
    charts = {**rule.charts, "lr": POSITIVE}
    horizon = Age(2 if averages(rule) else 4)  # without an average, what is near asks for too small steps
    return replace(rule, tune=("lr",), charts=charts, horizon=horizon, normalize="metric cosine", sample=16) / Tuner()


def says(rule: Rule) -> list[str]:
    """What of `OWN` a rule says itself."""
    return [f.name for f in fields(rule) if f.name in OWN and getattr(rule, f.name) != f.default]


def searches(rule: Rule) -> bool:
    """Whether `rule` is tuned as `auto` does."""
    return isinstance(rule.horizon, Age) and rule.normalize == "metric cosine" and rule.tuned() == ("lr",)


def beside(rule: Rule, first: Rule) -> Rule:
    """`rule` for a group of its own: tuned as `auto` does where the `first` rule is, and it says nothing."""
    plain = says(rule) or not searches(first) or "lr" not in rule.tunable()
    return rule if plain else around(chosen(rule)).rules[0]


def usual_lr(rule: Rule) -> float | None:
    """The lr that a group of `rule` shows, which schedules are relative to, where `auto` has it learned from far below; else
    None.
    """
    return usual(rule) if searches(rule) and usual(rule) and getattr(rule, "lr") == start(rule) else None  # noqa: B009
