"""The levels of a tower above the weights: the hyperparameters of a rule, and the rules that move those of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby

import torch
from torch import Tensor

from .charts import interval
from .hypergradient import cosine, slopes
from .numerics import finite_or_zero
from .rule import Rule
from .tower import Tower

RAW, UNIT, READ, COUNT = range(4)
"""What a level remembers of each hyperparameter that it moves comes in rows: its coordinate in its chart, what its value
is measured in, its hypergradient as last read (in natural units; NaN before), how many steps it has made. Behind them the
state of the rule that moves it, and the sensitivity to each tuned hyperparameter of that rule."""


class Hyperparameters:
    """The hyperparameters of a rule, one or several sets of them.

    Args:
        rule: the rule they belong to.
        initial: a value for each hyperparameter of the rule. shape of each: (sets,)
        tuned: whether there is a level above that moves them.

    Attributes:
        names: which of them are tuned.
        order: all, those first.
        given: their values as they were given, in that order. shape: (hyperparameters, sets)
        place: where those that are tuned stand among all that the level above moves.
    """

    place = slice(0, 0)

    def __init__(self, rule: Rule, initial: Mapping[str, Tensor], tuned: bool) -> None:
        self.rule, self.names = rule, rule.tuned() if tuned else ()
        self.order = (*self.names, *(n for n in initial if n not in self.names))
        self.given = torch.stack([initial[n] for n in self.order])
        self.like = self.given.new_empty(())
        self.sets = self.given.shape[1]
        self.shape = len(self.names), self.sets
        charts = [rule.chart(n) for n in self.names]
        self.runs = [(chart, len(list(same))) for chart, same in groupby(charts)]
        self.plain = all(chart.flat for chart in charts)
        ends = [interval(rule.constraint(n), self.like.dtype) for n in self.order]
        self.low, self.high = (self.given.new_tensor(end).unsqueeze(1) for end in zip(*ends, strict=True))

    def start(self) -> tuple[Tensor, Tensor]:
        """Coordinate and unit of what is tuned, at the start. shape of both: (tuned, sets)"""
        charts = [chart for chart, count in self.runs for _ in range(count)]
        raw = [chart.raw(v) for chart, v in zip(charts, self.given, strict=False)]
        unit = [chart.unit(v) for chart, v in zip(charts, self.given, strict=False)]
        return torch.stack(raw), torch.stack(unit)

    def bounds(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the coordinates of what is tuned. shape: (tuned, sets) -> (tuned, sets) both"""
        ends = [self.rule.chart(n).bounds(self.rule.constraint(n), u) for n, u in zip(self.names, unit, strict=True)]
        low, high = zip(*ends, strict=True)
        return torch.stack(low), torch.stack(high)

    def learned(self, memory: Tensor) -> Tensor:
        """The values of what is tuned, before schedules. shape: (rows, all that the level above moves) -> (tuned, sets)"""
        raw, unit = memory[RAW, self.place].view(self.shape), memory[UNIT, self.place].view(self.shape)
        if self.plain:
            return raw
        parts = raw.split([count for _, count in self.runs])
        return torch.cat([chart.transform(x) for (chart, _), x in zip(self.runs, parts, strict=True)]) * unit

    def slope(self, memory: Tensor) -> Tensor | None:
        """The derivative of `learned` with respect to the coordinate; None where it is 1. shape: as there"""
        if self.plain:
            return None
        raw, unit = memory[RAW, self.place].view(self.shape), memory[UNIT, self.place].view(self.shape)
        parts = raw.split([count for _, count in self.runs])
        return torch.cat([chart.slope(x) for (chart, _), x in zip(self.runs, parts, strict=True)]) * unit

    def values(self, memory: Tensor | None, scope: Tensor | None = None) -> Tensor:
        """All values in force, in the order of `order`. shape: (hyperparameters, sets)

        Args:
            memory: of the level above, if there is one.
            scope: what the user says: of what is tuned a factor, the values of all others. shape: (hyperparameters, 1)
        """
        t = len(self.names)
        fixed = (self.given if scope is None else scope.expand(-1, self.sets))[t:]
        if memory is None or not t:
            return fixed
        learned = self.learned(memory)
        if scope is not None:
            learned = (learned * scope[:t]).clamp(self.low[:t], self.high[:t])
        return torch.cat([learned, fixed])

    def gradient(self, memory: Tensor, products: Tensor) -> Tensor:
        """The hypergradient in the coordinates of the charts, normalized if the rule asks for it. shape: (tuned, sets)

        Args:
            memory: of the level above.
            products: see `Step.read`. shape: (1 or 3, tuned, sets)
        """
        slope = self.slope(memory)
        product = products[0] if slope is None else products[0] * slope
        if not self.rule.normalize:
            return product
        return cosine(product, products[1], products[2] if slope is None else products[2] * slope.square())

    def __str__(self) -> str:
        """All but the values, by which a checkpoint recognizes it: ``Adam[lr REAL, beta1 UNIT, amsgrad=True]``."""
        charts = [f"{n} {self.rule.chart(n)!r}" for n in self.names]
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
    for level, (below, rule) in enumerate(zip(tower.rules, tower.rules[1:], strict=False), 1):
        given = {n: getattr(rule, n) for n in rule.hyperparameters()}
        rows = {n: [v[b] for b in below.tuned()] if isinstance(v, Mapping) else [v] for n, v in given.items()}
        sets = max(map(len, rows.values()))
        initial = {n: number(rule, n, row, like).expand(sets) for n, row in rows.items()}
        stack.append(Hyperparameters(rule, initial, tuned=level < tower.height))
    return stack


class Level:
    """A rule that moves hyperparameters of the level below: all of them as one vector.

    Args:
        own: the hyperparameters it moves them with.
        below: what it moves: its `place` is set here.

    Attributes:
        memory: what is remembered. shape: (rows, all that it moves)
    """

    def __init__(self, own: Hyperparameters, below: Sequence[Hyperparameters]) -> None:
        self.own, self.below = own, list(below)
        off = {n for n in own.order if n not in own.names and not own.given[own.order.index(n)].any()}
        self.rule = own.rule.at({}, frozenset(off))
        self.state = tuple(own.rule.init(torch.zeros((1,))))
        self.fading = 1 - 1 / own.rule.horizon
        parts = []
        for h in below:
            raw, unit = h.start()
            state = [t.flatten() for t in own.rule.init(raw).values()]
            head = [raw.flatten(), unit.flatten(), torch.full((raw.numel(),), torch.nan).to(raw), torch.zeros_like(raw).flatten()]
            parts.append(torch.stack(head + state + [torch.zeros_like(raw).flatten() for _ in own.names]))
        end = 0
        for h, part in zip(below, parts, strict=True):
            h.place = slice(end, end := end + part.shape[1])
        self.memory = torch.cat(parts, dim=1)
        names = [n for h in below for n in h.names for _ in range(h.sets)]
        self.index = None
        if own.sets > 1:  # a set of its own for each name below
            self.index = torch.tensor([below[0].names.index(n) for n in names], device=own.like.device)
            self.member = (self.index == torch.arange(own.sets, device=own.like.device)[:, None]).to(own.given)

    def bound(self) -> None:
        """Find the ends of the coordinates, once the memory is what it will be."""
        ends = [h.bounds(self.memory[UNIT, h.place].view(h.shape)) for h in self.below]
        self.low, self.high = (torch.cat([x.flatten() for x in side]) for side in zip(*ends, strict=True))

    def sensitivity(self) -> Tensor:
        """Of what it moves to its own hyperparameters. shape: (tuned, all that it moves)"""
        return self.memory[COUNT + 1 + len(self.state) :]

    def gather(self, x: Tensor) -> Tensor:
        """From what is moved to the sets of hyperparameters it is moved with, by summation. shape: (…, n) -> (…, sets)"""
        return x.sum(-1, keepdim=True) if self.index is None else x @ self.member.T

    def gradient(self, products: Sequence[Tensor]) -> Tensor:
        """The hypergradients of what it moves, in the coordinates of their charts. shape: (all that it moves,)"""
        return torch.cat([h.gradient(self.memory, p).flatten() for h, p in zip(self.below, products, strict=True)])

    def products(self, grad: Tensor) -> Tensor:
        """As `Step.read`, of what this level moves. shape: (1 or 3, tuned, sets)"""
        sensitivity = self.sensitivity()
        terms = [self.gather(sensitivity * grad)]
        if self.own.rule.normalize:
            terms += [self.gather(grad * grad).expand_as(terms[0]), self.gather(sensitivity * sensitivity)]
        return torch.stack(terms)

    def move(self, values: Tensor, grad: Tensor, allowed: Tensor) -> None:
        """One step of those that are allowed to; of none if its result is not finite.

        Args:
            values: its own hyperparameters. shape: (hyperparameters, sets)
            grad, allowed: shape: (all that it moves,)
        """
        raw, unit, _, count, *rest = self.memory.unbind()
        state, traces = dict(zip(self.state, rest, strict=False)), rest[len(self.state) :]
        columns = (values.expand(-1, len(raw)) if self.index is None else values.index_select(1, self.index)).unbind()
        t = len(self.own.names)

        def step(*tuned: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            at = self.rule.at(dict(zip(self.own.order, (*tuned, *columns[t:]), strict=True)))
            return at.update(raw, grad, state, at.coefficients(count + 1))

        new, new_state, found = slopes(step, columns[:t])
        slope = [torch.zeros_like(raw) if x is None else x for x in found]
        if self.fading:  # what is not finite would stay for ever
            slope = [finite_or_zero(trace * self.fading + x) for trace, x in zip(traces, slope, strict=True)]
        rows = torch.stack([new.clamp(self.low, self.high), unit, unit, count + 1, *(new_state[n] for n in self.state), *slope])
        self.memory.copy_(torch.where(allowed & rows.isfinite().all(), rows, self.memory))

    def rest(self, hyper: Hyperparameters) -> None:
        """Let a step pass in which nothing has moved that `hyper` of the level below moves."""
        self.memory[READ, hyper.place] = torch.nan
        self.sensitivity()[:, hyper.place] *= self.fading


def tune(levels: Sequence[Level], products: Sequence[Tensor], known: Tensor) -> None:
    """One step of all levels.

    Upwards, each level takes the hypergradients of what it moves as its gradients and reads its own off its last step;
    where one is not finite, this level and those above will not move. Downwards, each moves with the hyperparameters just
    moved.

    Args:
        products: for each of the hyperparameters that the first level moves; see `Step.read`.
        known: which of them have moved something. shape: (all that the first level moves,)
    """
    plan = []
    finite = torch.ones_like(known[0])
    for level in levels:
        read = torch.where(known, torch.cat([p[0].flatten() for p in products]), torch.nan)
        grad = torch.where(known, level.gradient(products), 0.0)
        finite = finite & grad.isfinite().all()
        plan.append((level, grad, known & finite, read))
        if level.own.names:
            products = [level.products(grad)]
            moved = level.gather((known & (level.memory[COUNT] > 0)).to(grad)) > 0
            known = moved.expand(level.own.shape).flatten()
    above: Tensor | None = None
    for level, grad, allowed, read in reversed(plan):
        level.move(level.own.values(above), grad, allowed)
        level.memory[READ].copy_(read)
        above = level.memory
