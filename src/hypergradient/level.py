"""One level of a tower: the hyperparameters of a rule, and the recursion that moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain

import torch
from torch import Tensor

from .bucket import EAGER, Block, Matrix
from .charts import interval
from .engine import Engine
from .hypergradient import Numbers, cosine, pullback
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
        self.interval = {n: interval(rule.constraint(n), lr.dtype) for n in initial}
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
        self.read = torch.full_like(self.raw, torch.nan)
        self.block = Matrix(above, self.raw)

    def learned(self, raw: Tensor) -> Tensor:
        """The values at a raw coordinate, before schedules. shape: (tuned, sets)"""
        return self.unit * torch.stack([c.transform(x) for c, x in zip(self.charts, raw, strict=True)])

    def values(self, scope: Scope) -> dict[str, Tensor]:
        """Every hyperparameter of the rule as it is in force. shape of each: () or (sets,)"""
        values = dict(scope.fixed)
        if self.names:
            for name, value in zip(self.names, self.learned(self.raw), strict=True):
                scaled = name in scope.scale
                values[name] = (value * scope.scale[name]).clamp(*self.interval[name]) if scaled else value
        return values

    def gradient(self, products: Tensor, known: Tensor) -> Tensor:
        """The hypergradient in chart coordinates, normalized if the rule asks for it. shape: (tuned, sets)

        Args:
            products: of what these hyperparameters have moved; see `Block.products`.
            known: whether they have moved anything yet. shape: ()
        """
        _, _, back = pullback(lambda raw: ((self.learned(raw),), ()), [self.raw])
        slope = back(0, torch.ones_like(self.raw))[0]
        assert slope is not None
        self.read.copy_(torch.where(known, products[0], torch.nan))
        product: Tensor = products[0] * slope
        return cosine(product, products[1], products[2] * slope.square()) if self.rule.normalize else product

    def rest(self) -> None:
        """Let a step pass in which nothing that these hyperparameters move has moved."""
        if self.block is not None:
            self.read.fill_(torch.nan)
            self.block.fade()

    def tensors(self) -> dict[str, Tensor]:
        """All that has to be saved, by name."""
        if self.block is None:
            return {}
        return {"raw": self.raw, "unit": self.unit, "read": self.read, **self.block.tensors()}

    def __str__(self) -> str:
        """All but the values, by which a checkpoint recognizes it: ``Adam[lr REAL, beta1 UNIT, amsgrad=True]``."""
        charts = [f"{n} {c!r}" for n, c in zip(self.names, self.charts, strict=True)]
        settings = [f for f in fields(self.rule) if "constraint" not in f.metadata and f.name not in ("tune", "charts")]
        if not self.names:
            settings = [f for f in settings if not f.kw_only]
        said = [f"{f.name}={v!r}" for f in settings if (v := getattr(self.rule, f.name)) != f.default]
        return f"{type(self.rule).__name__}[{', '.join(charts + said)}]"


def number(rule: Rule, name: str, value: list[float], like: Tensor) -> Tensor:
    """Values of a hyperparameter in the dtype of `like`, held where rounding would take them out of their constraint."""
    return like.new_tensor(value).clamp(*interval(rule.constraint(name), like.dtype))


def upper(tower: Tower, like: Tensor) -> list[Hyperparameters]:
    """The hyperparameters of every rule but the leftmost, from left to right; dtype and device are those of `like`."""
    stack: list[Hyperparameters] = []
    for below, rule in reversed(list(zip(tower.rules, tower.rules[1:], strict=False))):
        given = {n: getattr(rule, n) for n in rule.hyperparameters()}
        rows = {n: [v[b] for b in below.tuned()] if isinstance(v, Mapping) else [v] for n, v in given.items()}
        sets = max(map(len, rows.values()))
        initial = {n: number(rule, n, row, like).expand(sets).clone() for n, row in rows.items()}
        stack.insert(0, Hyperparameters(rule, initial, stack[0] if stack else None))
    return stack


def step(blocks: Sequence[Block], engine: Engine) -> None:
    """One step of all levels: read the hypergradients of the last step, let the levels above move, then move `blocks`."""
    if hypers := [h for h in dict.fromkeys(b.owner for b in blocks) if h.block is not None]:
        engine(tune, False)(hypers, *zip(*(_read(h, [b for b in blocks if b.owner is h], engine) for h in hypers), strict=True))
    numbers: dict[tuple[int, ...], Numbers] = {}
    for block in blocks:
        key = id(block.scope), id(block.step), id(block.index)
        if key not in numbers:
            numbers[key] = block.numbers(engine)
        block.move(engine, numbers[key])
    for count in {id(b.step): b.step for b in blocks}.values():
        count.add_(1)


def tune(hypers: Sequence[Hyperparameters], products: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """One step of all levels above those of `hypers`.

    Upwards, each level takes the hypergradients below as its gradients and reads its own off its last step; where one is
    not finite, this level and those above will not move. Downwards, each moves with the hyperparameters just moved.

    Args:
        products: for each of `hypers`, what was read off the last step; see `Block.products`.
        known: for each, whether there was one. shape of each: ()
    """
    plan = []
    finite = torch.ones_like(known[0])
    while True:
        blocks = [h.block for h in hypers if h.block is not None]
        for h, block, p, k in zip(hypers, blocks, products, known, strict=True):
            block.grad.copy_(h.gradient(p, k))
        finite = finite & all_finite(b.grad for b in blocks)
        plan.append([(h, b, finite & k) for h, b, k in zip(hypers, blocks, known, strict=True)])
        above = blocks[0].owner
        if above.block is None:
            break
        product, moved = _read(above, blocks, EAGER)
        hypers, products, known = [above], [product], [moved]
    for h, block, allowed in chain.from_iterable(reversed(plan)):
        made = block.move(EAGER, block.numbers(EAGER), allowed)
        block.step.copy_(block.step + allowed if made is None else block.step + made)
        h.raw.copy_(h.raw.clamp(h.low, h.high))


def _read(hyper: Hyperparameters, blocks: Sequence[Block], engine: Engine) -> tuple[Tensor, Tensor]:
    """What `hyper` has done in the last step: the products over all that it moved, and whether it moved anything."""
    products = [b.products(engine).to(hyper.raw) for b in blocks]
    known = [(b.step > 0).to(hyper.raw.device) for b in blocks]
    return sum(products[1:], products[0]), torch.stack(known).any()
