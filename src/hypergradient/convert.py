"""The one-line change of an existing script: an optimizer of `torch.optim` becomes the bottom of a tower."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .optimizer import STEPS, Hyperoptimizer
from .rule import Rule
from .tower import Tower

ENGINE = {"foreach", "fused", "capturable", "differentiable"}
"""Options of torch that choose an implementation; there is one here."""
TUNING = {"tune", "charts", "horizon", "normalize"}


def from_torch(optimizer: torch.optim.Optimizer, above: Rule | Tower | None = None, **options: Any) -> Hyperoptimizer:
    """A Hyperoptimizer with the groups, values and state of an optimizer of `torch.optim`.

        optimizer = from_torch(torch.optim.AdamW(model.parameters(), lr=3e-4), above=SGD(lr=1e-5))

    Args:
        optimizer: one whose class has a rule of the same name. It can be in mid-training; it must not be used any more.
        above: what tunes it; None: nothing.
        options: `tune`, `charts`, `horizon`, `normalize` of the rule, and `per` of the Hyperoptimizer.

    Raises:
        TypeError: there is no such rule.
    """
    ours = [rule for rule in vars(sys.modules[__package__]).values() if isinstance(rule, type) and issubclass(rule, Rule)]
    twins: dict[Any, Any] = {getattr(torch.optim, rule.__name__, None): rule for rule in ours}
    groups = [dict(group) for group in optimizer.param_groups]
    given = type(optimizer)
    if given not in twins:
        known = ", ".join(sorted(rule.__name__ for twin, rule in twins.items() if twin is not None))
        raise TypeError(f"optimizer={type(optimizer).__name__} has no rule of its name; allowed: {known}")
    tuning = {n: options.pop(n) for n in TUNING & options.keys()}
    rule: Any = None
    for group in groups:
        decoupled = given is torch.optim.Adam and group.get("decoupled_weight_decay", False)
        kind = twins[torch.optim.AdamW if decoupled else given]
        settings = kind.__dataclass_fields__.keys() - kind.hyperparameters().keys()
        if "betas" in group:
            group["beta1"], group["beta2"] = group.pop("betas")
        values = {n: float(group[n]) for n in kind.hyperparameters()}
        group.update(values)
        flags = {n: group.pop(n) for n in settings & group.keys()}
        own = kind(**values, **flags, **tuning)
        rule = rule or own
        alike = kind is type(rule) and own.tuned() == rule.tuned() and all(own.chart(n) == rule.chart(n) for n in own.tuned())
        group["rule"] = replace(rule, **flags) if alike else own
        for n in group.keys() & (ENGINE | {"decoupled_weight_decay"}):
            del group[n]
    result = Hyperoptimizer(groups, Tower.of(rule) if above is None else rule / above, **options)
    for p, memory in optimizer.state.items():
        memory = {n: torch.as_tensor(v, device=p.device).detach() for n, v in memory.items() if v is not None}
        if memory:  # SGD and Muon do not count their steps; all that matters to them is whether there was a first one
            moved = {n: _shaped(v, p) for n, v in memory.items() if n != "step"}
            result.state[p] = {"step": memory.get("step", torch.ones(())).clone(), **moved}
    made = max((int(memory["step"]) for memory in result.state.values()), default=0)
    for group in result.param_groups:
        group[STEPS] = made
    return result


def _shaped(value: Tensor, param: Tensor) -> Tensor:
    """State of torch in the shape of its parameter; a number stands for both parts of a complex one."""
    if value.ndim == 0 and param.is_complex() and not value.is_complex():
        value = torch.complex(value, value)
    return value.expand(param.shape).clone()
