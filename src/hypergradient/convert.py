"""The one-line change of an existing script: an optimizer of `torch.optim` becomes the bottom of a tower."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from .auto import around, searches
from .optimizer import Hyperoptimizer
from .rule import Rule
from .tower import Tower

ENGINE = {"foreach", "fused", "capturable", "differentiable"}
"""Options of torch that choose an implementation, of which there is one here."""
TUNING = {"tune", "charts", "horizon", "normalize", "sample"}


def from_torch(
    optimizer: torch.optim.Optimizer, above: Rule | Tower | Literal["auto"] | None = "auto", **options: Any
) -> Hyperoptimizer:
    """A Hyperoptimizer with the groups, values and state of an optimizer of `torch.optim`.

        optimizer = from_torch(torch.optim.AdamW(model.parameters(), lr=3e-4))

    The groups are the same dicts, so that a scheduler made for `optimizer` goes on. If `optimizer` has loaded a checkpoint
    of a Hyperoptimizer with the same tower, that comes back whole.

    Args:
        optimizer: one whose class has a rule of the same name. It can be in mid-training; it must not be used any more.
        above: what tunes it, such as ``SGD(lr=1e-5)``; ``"auto"`` (default): it is tuned as by `auto`, from its own lr; None:
            nothing.
        options: `tune`, `charts`, `horizon`, `normalize`, `sample` of the rule, `per` and `compile` of the
            Hyperoptimizer.

    Raises:
        TypeError: it is no optimizer of `torch.optim`, there is no such rule, or no such option.
        ValueError: another string, or a tower of `auto`; an option of tuning beside ``"auto"``, which has its own.
    """
    tuning = _tuning(optimizer, above, options)
    groups = [_translated(group, type(optimizer), tuning) for group in optimizer.param_groups]
    rule = groups[0]["rule"]
    for group in groups:  # alike where nothing but values differ, which the group says itself
        own = group["rule"]
        alike = (
            type(own) is type(rule) and own.tuned() == rule.tuned() and all(own.chart(n) == rule.chart(n) for n in own.tuned())
        )
        group["rule"] = replace(rule, **{n: getattr(own, n) for n in own.settings()}) if alike else own
        group["rule"] = _under(above, group["rule"]).rules[0]
    result = Hyperoptimizer(groups, _under(above, rule), **options)
    usual = _translated({**optimizer.defaults, "params": []}, type(optimizer), tuning)
    result.defaults.update({n: usual[n] for n in result.defaults if n in usual})
    result.load_state_dict(optimizer.state_dict())
    _replace(optimizer, result)
    return result


def _replace(optimizer: torch.optim.Optimizer, result: Hyperoptimizer) -> None:
    """Put `result` in the place of `optimizer`: schedulers, hooks and scripts hold the dicts of that."""
    for i, (theirs, mine) in enumerate(zip(optimizer.param_groups, result.param_groups, strict=True)):
        theirs.clear()
        theirs.update({n: x for n, x in mine.items() if n not in ENGINE or n in result.rules[i].settings()})
        result.param_groups[i] = result._own.groups[i].entry = theirs
    for hooks in (n for n in vars(optimizer) if n.startswith("_optimizer_") and n.endswith("_hooks")):
        setattr(result, hooks, getattr(optimizer, hooks))
    optimizer.param_groups, optimizer.state, result.instead_of = result.param_groups, result.state, optimizer
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler asks, which warns where no step was made
    optimizer.step = step = partial(_replaced, type(optimizer).__name__)  # type: ignore[assignment, method-assign]
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # what a scheduler asks, which warns of other steps


def _replaced(name: str, *_: Any, **__: Any) -> None:
    """A step of an optimizer that has been replaced."""
    raise RuntimeError(f"this {name} was given to from_torch: use the optimizer that it returned")


def _tuning(optimizer: Any, above: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are the rule's, taken out of them; see `from_torch`, whose arguments are checked."""
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, Hyperoptimizer):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} is not one of torch.optim, such as torch.optim.AdamW(params, lr=1e-3)"
        )
    if others := options.keys() - TUNING - {"per", "compile"}:
        said = ", ".join(sorted(others))
        raise TypeError(
            f"from_torch takes no {said}; allowed: above, per, compile, {', '.join(sorted(TUNING))}. Give it to the optimizer"
        )
    tuning = {n: options.pop(n) for n in TUNING & options.keys()}
    if isinstance(above, Tower) and searches(above.rules[0]):
        raise ValueError(
            f"above={above!r} is not allowed; leave it out: {type(optimizer).__name__} itself is then tuned by auto"
        )
    if isinstance(above, str) and (above != "auto" or tuning):
        beside = f" beside {', '.join(sorted(tuning))}" if tuning else ""
        raise ValueError(
            f"above={above!r} is not allowed{beside}; it must be a rule such as SGD(lr=1e-5), None, or 'auto' alone"
        )
    return tuning


def _under(above: Rule | Tower | str | None, rule: Rule) -> Tower:
    """The tower of what is above, and a rule."""
    if isinstance(above, str):
        return around(rule)
    return Tower.of(rule) if above is None else rule / above


def _translated(group: dict[str, Any], given: type, tuning: dict[str, Any]) -> dict[str, Any]:
    """A group of torch as one of ours, with a rule of its own."""
    ours = [rule for rule in vars(sys.modules[__package__]).values() if isinstance(rule, type) and issubclass(rule, Rule)]
    twins: dict[Any, Any] = {getattr(torch.optim, rule.__name__, None): rule for rule in ours}
    if given not in twins:
        known = ", ".join(sorted(rule.__name__ for twin, rule in twins.items() if twin is not None))
        raise TypeError(f"optimizer={given.__name__} has no rule of its name; allowed: {known}")
    decoupled = given is torch.optim.Adam and group.get("decoupled_weight_decay", False)
    kind = twins[torch.optim.AdamW if decoupled else given]
    entry = {n: x for n, x in group.items() if n not in ENGINE or n in kind.settings()}
    if "betas" in entry:
        entry["beta1"], entry["beta2"] = entry.pop("betas")
    values = {n: float(entry[n]) for n in kind.hyperparameters()}
    entry["rule"] = kind(**values, **{n: entry[n] for n in kind.settings() if n in entry and n not in values}, **tuning)
    return entry
