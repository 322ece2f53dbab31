"""One level of a tower: the hyperparameters of a rule, and the recursion that moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .bucket import Block, Matrix
from .charts import interval
from .hypergradient import cosine
from .numerics import all_finite
from .rule import Rule
from .tower import Tower


@dataclass
class Scope:
    """What the user, not the tower, decides about a rule's hyperparameters.

    Args:
        fixed: the values of those that are not tuned. shape of each: () or (sets,)
        scale: factors on those that are tuned (a schedule), where they are not 1. shape of each: ()
        said: the numbers that both come from.
    """

    fixed: Mapping[str, Tensor]
    scale: Mapping[str, Tensor] = field(default_factory=dict)
    said: Mapping[str, float] = field(default_factory=dict)


class Hyperparameters:
    """The hyperparameters of a rule, one or several sets of them, and the rule that moves them.

    Args:
        rule: the rule they belong to.
        initial: a value for each hyperparameter of the rule. shape of each: (sets,)
        above: the hyperparameters of the rule that tunes these, or None.

    Attributes:
        names: which of them are tuned.
        raw: those, in the coordinates of their charts. shape: (tuned, sets)
        read: their hypergradients as last read, in natural units; NaN before. shape: (tuned, sets)
        block: `raw` as what the rule above moves; None at the top.
    """

    def __init__(self, rule: Rule, initial: Mapping[str, Tensor], above: Hyperparameters | None) -> None:
        self.rule = rule
        self.names = rule.tuned() if above else ()
        self.charts = [rule.chart(n) for n in self.names]
        self.fading = 1 - 1 / rule.horizon
        lr = initial["lr"] if "lr" in initial else next(iter(initial.values()))
        self.sets = lr.numel()
        self.like = lr.new_empty(())
        self.scope = Scope({n: v if self.sets > 1 else v.view(()) for n, v in initial.items() if n not in self.names})
        if above is None:
            self.block = None
            return
        tuned = [initial[n] for n in self.names]
        self.unit = torch.stack([c.unit(v) for c, v in zip(self.charts, tuned, strict=True)])
        self.raw = torch.stack([c.raw(v) for c, v in zip(self.charts, tuned, strict=True)])
        constraints = [rule.constraint(n) for n in self.names]
        bounds = [c.bounds(k, u) for c, k, u in zip(self.charts, constraints, self.unit, strict=True)]
        self.low, self.high = (torch.stack(ends) for ends in zip(*bounds, strict=True))
        self.interval = [interval(k, lr.dtype) for k in constraints]
        self.read = torch.full_like(self.raw, torch.nan)
        self.block = Matrix(above, self.raw)

    def learned(self, raw: Tensor) -> Tensor:
        """The values at a raw coordinate, before schedules. shape: (tuned, sets)"""
        return self.unit * torch.stack([c.transform(x) for c, x in zip(self.charts, raw, strict=True)])

    def values(self, scope: Scope) -> dict[str, Tensor]:
        """Every hyperparameter of the rule as it is in force. shape of each: () or (sets,)"""
        values = dict(scope.fixed)
        if self.names:
            for name, value, ends in zip(self.names, self.learned(self.raw), self.interval, strict=True):
                values[name] = (value * scope.scale[name]).clamp(*ends) if name in scope.scale else value
        return values

    def gradient(self, blocks: Sequence[Block], known: Tensor) -> Tensor:
        """The hypergradient in chart coordinates, normalized if the rule asks for it. shape: (tuned, sets)

        Args:
            blocks: what these hyperparameters have moved, with its gradients.
            known: whether they have moved anything yet. shape: ()
        """
        with torch.enable_grad():
            raw = self.raw.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.learned(raw).sum(), raw)
        products = [[torch.stack(x) for x in zip(*map(b.products, self.names), strict=True)] for b in blocks]
        product, gradient, sensitivity = (sum(x[1:], x[0]).to(raw) for x in zip(*products, strict=True))
        self.read.copy_(torch.where(known, product, torch.nan))
        raw_product: Tensor = product * slope
        return cosine(raw_product, gradient, sensitivity * slope.square()) if self.rule.normalize else raw_product

    def tensors(self) -> dict[str, Tensor]:
        """All that has to be saved, by name."""
        if self.block is None:
            return {}
        return {"raw": self.raw, "unit": self.unit, "read": self.read, **self.block.tensors()}

    def __str__(self) -> str:
        """The rule and its charts, by which a checkpoint recognizes it: ``Adam[lr REAL, beta1 UNIT]``."""
        charts = (f"{n} {c!r}" for n, c in zip(self.names, self.charts, strict=True))
        return f"{type(self.rule).__name__}[{', '.join(charts)}]"


def upper(tower: Tower, like: Tensor) -> list[Hyperparameters]:
    """The hyperparameters of every rule but the leftmost, from left to right; dtype and device are those of `like`."""
    stack: list[Hyperparameters] = []
    for below, rule in reversed(list(zip(tower.rules, tower.rules[1:], strict=False))):
        given = {n: getattr(rule, n) for n in rule.hyperparameters()}
        rows = {n: [v[b] for b in below.tuned()] if isinstance(v, Mapping) else [v] for n, v in given.items()}
        sets = max(map(len, rows.values()))
        initial = {n: like.new_tensor(row).expand(sets).clone() for n, row in rows.items()}
        stack.insert(0, Hyperparameters(rule, initial, stack[0] if stack else None))
    return stack


def step(blocks: Sequence[Block], allowed: Sequence[Tensor] | None = None) -> None:
    """One step of one level: read the hypergradients of the last step, let the level above move, then move.

    Args:
        blocks: what this level moves, with its gradients.
        allowed: for each block, whether it may move; None: all may. shape of each: ()
    """
    owners = dict.fromkeys(b.owner for b in blocks)
    tuned = {h: h.block for h in owners if h.block is not None}
    known = []
    for h, above in tuned.items():
        mine = [b for b in blocks if b.owner is h]
        known.append(torch.stack([(b.step > 0).to(h.raw.device) for b in mine]).any())
        above.grad = h.gradient(mine, known[-1])
    if tuned:
        finite = all_finite(above.grad for above in tuned.values())
        step(list(tuned.values()), [finite & k for k in known])
        for h in tuned:
            h.raw.copy_(h.raw.clamp(h.low, h.high))
    for i, block in enumerate(blocks):
        block.move(None if allowed is None else allowed[i])
