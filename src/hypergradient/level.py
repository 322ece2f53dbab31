"""The levels of a tower above the weights: the hyperparameters of a rule, and the rules that move those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .charts import interval
from .hypergradient import Step, cosine, slopes
from .numerics import finite, finite_or_zero
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
        ends: their intervals, in that order.
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
        self.plain, self.relative = all(chart.flat for chart in charts), any(chart.relative for chart in charts)
        self.ends = [interval(rule.constraint(n), self.like.dtype) for n in self.order]
        low, high = (self.given.new_tensor(end).unsqueeze(1) for end in zip(*self.ends, strict=True))
        self.low, self.high = low[: len(self.names)], high[: len(self.names)]

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

    def learned(self, memory: Sequence[Tensor]) -> Tensor:
        """The values of what is tuned, before schedules. shape: (tuned, sets)

        Args:
            memory: the rows of the level above. shape of each: (all that it moves,)
        """
        raw = memory[RAW][self.place].view(self.shape)
        if self.plain:
            return raw
        values = self._by_chart(raw, [chart.transform for chart, _ in self.runs])
        return values * memory[UNIT][self.place].view(self.shape) if self.relative else values

    def slope(self, memory: Sequence[Tensor]) -> Tensor | None:
        """The derivative of `learned` with respect to the coordinate; None where it is 1. shape: as there"""
        if self.plain:
            return None
        slope = self._by_chart(memory[RAW][self.place].view(self.shape), [chart.slope for chart, _ in self.runs])
        return slope * memory[UNIT][self.place].view(self.shape) if self.relative else slope

    def _by_chart(self, raw: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        if len(functions) == 1:
            return functions[0](raw)
        parts = torch.split_with_sizes(raw, [count for _, count in self.runs])
        return torch.cat([function(x) for function, x in zip(functions, parts, strict=True)])

    def values(self, memory: Sequence[Tensor], scope: Tensor | None = None) -> Tensor:
        """All values in force, in the order of `order`. shape: (hyperparameters, sets)

        Args:
            memory: see `learned`; without a level above, none.
            scope: what the user says: of what is tuned a factor, the values of all others. shape: (hyperparameters, 1)
        """
        t = len(self.names)
        fixed = (self.given if scope is None else scope)[t:].expand(-1, self.sets)
        if not t:
            return fixed
        learned = self.learned(memory)
        if scope is not None:
            learned = (learned * scope[:t]).clamp(self.low, self.high)
        return torch.cat([learned, fixed])

    def gradient(self, memory: Sequence[Tensor], products: Tensor) -> Tensor:
        """The hypergradient in the coordinates of the charts, normalized if the rule asks for it. shape: (tuned, sets)

        Args:
            memory: see `learned`.
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
        off = {n for n, value in zip(own.order, own.given, strict=True) if n not in own.names and not value.any()}
        self.rule = own.rule.at({}, frozenset(off))
        self.state = tuple(own.rule.init(torch.zeros((1,))))
        self.fading = 1 - 1 / own.rule.horizon
        self.zero, self.nan = own.like.new_tensor([0.0, torch.nan]).unbind()
        self.kind = str(own), self.rule.off
        parts, end = [], 0
        for h in below:
            raw, unit = (x.flatten() for x in h.start())
            zero = torch.zeros_like(raw)
            parts.append(
                torch.stack([raw, unit, zero + torch.nan, zero, *own.rule.init(raw).values(), *[zero] * len(own.names)])
            )
            h.place = slice(end, end := end + len(raw))
        self.memory = torch.cat(parts, dim=1)
        self.index = None
        if own.sets > 1:  # a set of its own for each name below
            names = [below[0].names.index(n) for h in below for n in h.names for _ in range(h.sets)]
            self.index = torch.tensor(names, device=own.like.device)
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

    def known(self, moved: Tensor) -> Tensor:
        """Which of its own hyperparameters have moved something. shape: (all that it moves,) -> (tuned * sets,)"""
        any_of = moved.any(0, keepdim=True) if self.index is None else self.gather(moved.to(self.memory)) > 0
        return any_of.expand(self.own.shape).flatten()

    def gradient(self, memory: Sequence[Tensor], products: Sequence[Tensor]) -> Tensor:
        """The hypergradients of what it moves, in the coordinates of their charts. shape: (all that it moves,)"""
        return _joined([h.gradient(memory, p) for h, p in zip(self.below, products, strict=True)])

    def products(self, grad: Tensor) -> Tensor:
        """As `Step.read`, of what this level moves. shape: (1 or 3, tuned, sets)"""
        sensitivity = self.sensitivity()
        product = self.gather(sensitivity * grad)
        if not self.own.rule.normalize:
            return product[None]
        return torch.stack([product, self.gather(grad * grad).expand_as(product), self.gather(sensitivity * sensitivity)])

    def columns(self, values: Tensor) -> Tensor:
        """Its own hyperparameters for each of what it moves. shape: (hyperparameters, sets) -> (hyperparameters, n)"""
        return values.expand(-1, self.memory.shape[1]) if self.index is None else values.index_select(1, self.index)

    def move(self, rows: Sequence[Tensor], columns: Tensor, grad: Tensor, read: Tensor, allowed: Tensor) -> Tensor:
        """One step of those that are allowed to; of none if its result is not finite. Returns which were made.

        Args:
            rows: those of the memory.
            columns: see `columns`.
            grad, read, allowed: the gradient in the coordinate and in natural units, and the permission. shape: (n,)
        """
        raw, unit, _, count, *rest = rows
        step = count + 1
        new, state = self.update(columns.unbind(), raw, grad, step, rest)
        after = torch.stack([new, unit, unit, step, *(state[n] for n in self.state)])
        made = allowed & finite(after)
        after[RAW].clamp_(self.low, self.high)
        before = self.memory[: len(after)]
        before.copy_(torch.where(made, after, before))
        rows[READ].copy_(read)
        return made

    def update(
        self, columns: Sequence[Tensor], raw: Tensor, grad: Tensor, step: Tensor, rest: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`Rule.update` of a step. shape of each: (n,)"""
        at = self.rule.at(dict(zip(self.own.order, columns, strict=True)))
        return at.update(raw, grad, dict(zip(self.state, rest, strict=False)), at.coefficients(step))


class Stack:
    """Levels whose rules are alike but for their numbers: they have one memory, and their derivatives are taken at once."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.first, self.levels = levels[0], list(levels)
        self.memory = torch.cat([level.memory for level in levels], dim=1)
        for level, part in zip(levels, self.memory.split([level.memory.shape[1] for level in levels], dim=1), strict=True):
            level.memory = part

    def differentiate(self, old: Tensor, columns: Tensor, grad: Tensor, made: Tensor) -> None:
        """The sensitivities after a step, from the memory before it: ``T = fading T + dU/dh``.

        Args:
            columns, grad, made: of all levels, side by side; see `Level.move`.
        """
        first, t = self.first, len(self.first.own.names)
        raw, _, _, count, *rest = old.unbind()

        def step(tuned: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
            return (first.update((*tuned.unbind(), *columns[t:].unbind()), raw, grad, count + 1, rest)[0],), ()

        trace = self.memory[COUNT + 1 + len(first.state) :]
        (found,) = slopes(step, [columns[:t]])[2]
        slope = torch.zeros_like(trace) if found is None else found
        slope = finite_or_zero(trace * first.fading + slope if first.fading else slope)
        trace.copy_(torch.where(made, slope, trace))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """As one vector."""
    return parts[0].flatten() if len(parts) == 1 else torch.cat([x.flatten() for x in parts])


class Tuner:
    """All levels above the weights: what the last step says goes up, the numbers of this step come down.

    Args:
        levels: from the weights upwards; there may be none.
        stacks: the same, those alike together.
        asks: which numbers are asked for: the hyperparameters that make them, and the step that they are for.
    """

    def __init__(self, levels: Sequence[Level], stacks: Sequence[Stack], asks: Sequence[tuple[Hyperparameters, Step]]) -> None:
        self.levels, self.stacks, self.asks = tuple(levels), tuple(stacks), tuple(asks)

    def tune(
        self, found: Sequence[Sequence[Tensor]], known: Tensor, scopes: Sequence[Tensor], clocks: Sequence[Tensor]
    ) -> list[Tensor]:
        """One step of all levels.

        Upwards, each level takes the hypergradients of what it moves as its gradients and reads its own off its last
        step; where one is not finite, this level and those above will not move. Downwards, each moves with the
        hyperparameters just moved.

        Args:
            found: for each of the hyperparameters that the first level moves, what was read; see `Step.read`.
            known: which of them have moved something. shape: (all that the first level moves,)
            scopes, clocks: see `numbers`, which has the last word.
        """
        products = [sum(mine[1:], mine[0]) for mine in found]
        plan = []
        allowed = torch.ones_like(known[0])
        for level in self.levels:
            rows = level.memory.unbind()
            read = torch.where(known, _joined([p[0] for p in products]), level.nan)
            grad = torch.where(known, level.gradient(rows, products), level.zero)
            allowed = allowed & finite(grad)
            plan.append((level, rows, grad, read, known & allowed))
            if level.own.names:
                products = [level.products(grad)]
                known = level.known(known & (rows[COUNT] > 0))
        old = [stack.memory.clone() if stack.first.own.names else None for stack in self.stacks]
        above: Sequence[Tensor] = ()
        done = {}
        for level, rows, grad, read, allowed in reversed(plan):
            columns = level.columns(level.own.values(above))
            done[level] = columns, grad, level.move(rows, columns, grad, read, allowed)
            above = rows
        for stack, before in zip(self.stacks, old, strict=True):
            if before is not None:
                parts = zip(*(done[level] for level in stack.levels), strict=True)
                stack.differentiate(before, *(torch.cat(x, dim=-1) for x in parts))
        return self.numbers(scopes, clocks)

    def numbers(self, scopes: Sequence[Tensor], clocks: Sequence[Tensor]) -> list[Tensor]:
        """What is asked for, with the hyperparameters as they are; see `Step.prepare`.

        Args:
            scopes: for each, what the user says; see `Hyperparameters.values`.
            clocks: for each, how many steps have been made before. shape: ()
        """
        memory = self.levels[0].memory.unbind() if self.levels else ()
        return [
            step.prepare(own.values(memory, scope), scope[: len(own.names)], clock + 1)
            for (own, step), scope, clock in zip(self.asks, scopes, clocks, strict=True)
        ]

    def whole(
        self,
        elements: tuple[Any, ...],
        kept: list[Tensor],
        last: Tensor,
        known: Tensor,
        scope: Tensor,
        clock: Tensor,
        *maps: Any,
    ) -> None:
        """All of a step in which a single bucket moves: the parts of a small step take less time than to call them.

        Args:
            elements: parameter, gradient, state, and in a list the gradient to tune along, if that is another.
            kept, last, maps: see `Step.read`; the rest: see `tune` and `numbers`.
        """
        ((_, step),), (param, grad, state, others) = self.asks, elements
        found = step.read((others or [grad])[0], param, state, kept, last, *maps)
        (now,) = self.tune([[found]], known, [scope], [clock])
        step.move(param, grad, state, kept, now)
        if len(last):
            last.copy_(now)
