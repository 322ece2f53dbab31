"""The levels of a tower above the weights: the hyperparameters of a rule, and the rules that move those of others.

A tensor of which no shape is said is a vector, with a number for each hyperparameter that a level moves: (n,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .charts import Charts, interval
from .normalize import NORMALIZATIONS
from .numerics import REACH, finite, finite_or_zero, ratio, sent
from .probe import branches, metric, ours, prepared, sums, warn_of_idle
from .rule import Rule, State
from .sensitivity import Step, Tensors, slopes
from .tower import Tower

LARGE = 1 << 11
"""From so many elements on, a parameter says by itself what its step size should be."""
EARLY = 100.0
"""Steps in which that counts more than what all say together."""
RECENT, LATE, SPIKE = 4.0, 600.0, 100.0
"""The usual square of gradients is a mean over about the last quarter of all steps, in which none counts for more than SPIKE
times the mean before it. From step LATE on it counts more than the square of the step itself."""
ROUNDED = 0.6
"""The power of the precision that is hardly a part of a step."""
RAW, UNIT, READ, COUNT = range(4)
"""What a level remembers of each hyperparameter that it moves comes in rows: its coordinate in its chart, what its value
is measured in, its hypergradient as last read (in natural units; NaN before), how many steps it has made. Behind them the
state of the rule that moves it, the sensitivity to each tuned hyperparameter of that rule, the usual square of gradients."""


class Hyperparameters:
    """The hyperparameters of a rule, one or several sets of them.

    Args:
        rule: the rule they belong to.
        initial: a value in each set for each hyperparameter of the rule; held where rounding would break its constraint.
        like: of their dtype and device.
        tuned: whether there is a level above that moves them.
        below: where there is a set of them for each hyperparameter that they move, the names of those.

    Attributes:
        names: which of them are tuned.
        order: all, those first.
        given: their values as they were given, in that order. shape: (hyperparameters, sets)
        charts: of what is tuned, set by set of each.
        place: where that stands among all that the level above moves.
        moves: whether its sensitivity is the movement of what it moves, which is that to the logarithm; see `Step.follows`.
        lacks: whether its rule has no metric, where its normalization needs one.
        apart: by id, which reading is that of a parameter alone; the last one is that of all others.
        weights: where there are several of one set, how much each counts, from the `counts` of its elements.
            shape: (readings,)
        memory: what that level remembers of it, or None before there is one. shape: (rows, tuned * sets)
        source: by column, with which of that memory it goes on in a new level; the others start anew.
    """

    place = slice(0, 0)
    memory: Tensor | None = None
    moves = False
    apart: Mapping[int, int] = {}
    counts: Sequence[int] = ()
    weights: Tensor | None = None

    def __init__(
        self, rule: Rule, initial: Mapping[str, Sequence[float]], like: Tensor, tuned: bool, below: Sequence[str] = ()
    ) -> None:
        self.rule, self.names, self.below = rule, rule.tuned() if tuned else (), tuple(below)
        self.initial = {n: list(values) for n, values in initial.items()}
        self.order = (*self.names, *(n for n in initial if n not in self.names))
        ends = [interval(rule.constraint(n), like.dtype) for n in self.order]
        low, high = (like.new_tensor(end).unsqueeze(1) for end in zip(*ends, strict=True))
        self.given = like.new_tensor([initial[n] for n in self.order]).clamp(low, high)
        self.sets = self.given.shape[1]
        self.shape = len(self.names), self.sets
        self.charts = [rule.chart(n) for n in self.names for _ in range(self.sets)]
        self.normalization = NORMALIZATIONS[rule.normalize]
        self.lacks = self.normalization.metric and not metric(rule)
        self.low, self.high = low[: len(self.names)], high[: len(self.names)]
        self.source = {i: i for i in range(len(self.charts))}

    def take_apart(self, params: Iterable[Tensor]) -> bool:
        """Have those of the parameters that it moves read by themselves that are LARGE enough to say something, if there is a
        metric, in which they are alike. Each counts as the root of the number of its elements. Returns whether that is new.
        """
        if not self.normalization.metric or self.lacks or self.sets > 1 or not self.names:
            return False
        sizes = {id(p): p.numel() for p in params if not is_lazy(p)}
        large = sorted((i for i, n in sizes.items() if n >= LARGE), key=sizes.__getitem__)  # those alike side by side
        rest = [sum(n for n in sizes.values() if n < LARGE)] if len(large) < len(sizes) else []
        self.apart, counts = {i: k for k, i in enumerate(large)}, [*(sizes[i] for i in large), *rest]
        old, self.counts = self.counts, counts
        self.weights = self.given.new_tensor(counts).sqrt() if len(counts) > 1 else None
        return old != counts

    @property
    def readings(self) -> int:
        """How many there are for each that is tuned: one for each set, or for each of some parameters."""
        return len(self.counts) or self.sets

    def unread(self, like: Tensor) -> Tensor:
        """What is read where there is nothing: 0, in the dtype of `like`; see `Step.read`."""
        return like.new_zeros(len(self.normalization.products), len(self.names), self.readings)

    def gradient(self, products: Tensors, slope: Tensor | None, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The hypergradients of a set, from what was read: in natural units; in the coordinates, and normalized if its rule
        asks for it. What parameters say that are read one by one is averaged at first, for one with a large gradient would
        have all others move too fast; later, what all say together.

        Args:
            products: see `Step.read`. shape of each: (tuned, readings)
            slope: the derivative of the values with respect to their coordinates; None where it is 1.
                shape: (tuned, sets), as what is returned
            steps: how many have been made with them. shape: (tuned, sets)
        """
        whole = products if self.weights is None else [x.sum(1, keepdim=True) for x in products]
        natural = ratio(whole[0], slope) if self.moves and slope is not None else whole[0]
        found = self._combined(whole, slope)
        if self.weights is not None:
            weights = self.weights * (products[1] + products[-1] > 0)  # where there is something to be read
            mean = (self._combined(products, slope) * weights).sum(1, keepdim=True)
            found = torch.lerp(found, ratio(mean, weights.sum(1, keepdim=True)), EARLY / (EARLY + steps))
        return natural, found

    def _combined(self, products: Tensors, slope: Tensor | None) -> Tensor:
        """One hypergradient from each reading; a step too small for the numbers that it is added to is read as one along -u."""
        first, more = products[0], [*products[1:]]  # a starred name is a tuple to the compiler of torch 2.6
        if self.moves and more:
            still = more[-1] == 0
            first, more[-1] = torch.where(still, -more[0], first), torch.where(still, more[0], more[-1])
        return self.normalization.combine(first, *more, None if self.moves else slope)

    def bounds(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the coordinates of what is tuned. shape: (tuned * sets,) -> (tuned * sets,) both"""
        units = unit.view(self.shape)
        ends = [self.rule.chart(n).bounds(self.rule.constraint(n), u) for n, u in zip(self.names, units, strict=True)]
        low, high = zip(*ends, strict=True)
        return torch.cat(low), torch.cat(high)

    def values(self, learned: Tensor, schedule: Tensor) -> tuple[Tensor, Tensor]:
        """All values in force, and what the tuned ones of them gain per unit of what is learned: 0 where one is held.

        Args:
            learned: of what is tuned, before schedules, among all that the level above moves.
            schedule: what the user says: of what is tuned a factor, the values of all others.
                shape: (hyperparameters, 1), or more

        Returns:
            in the order of `order`. shapes: (hyperparameters, sets), (tuned, sets)
        """
        t = len(self.names)
        factor, fixed = schedule[:t], schedule[t:].expand(-1, self.sets)
        if not t:
            return fixed, fixed[:0]
        free = learned[self.place].view(self.shape) * factor
        held = free.clamp(self.low, self.high)
        return torch.cat([held, fixed]), (free == held) * factor


def title(rule: Rule, names: Sequence[str]) -> str:
    """All of a rule but its values, by which a checkpoint recognizes it: ``Adam[lr REAL, beta1 UNIT, amsgrad=True]``.

    Args:
        names: which of its hyperparameters are tuned.
    """
    charts = [f"{n} {rule.chart(n)!r}" for n in names]
    left = ("tune", "charts") if names else [f.name for f in fields(Rule)]
    settings = [f for f in fields(rule) if "constraint" not in f.metadata and f.name not in left]
    said = [f"{f.name}={v!r}" for f in settings if (v := getattr(rule, f.name)) != f.default]
    return f"{type(rule).__name__}[{', '.join(charts + said)}]"


def upper(tower: Tower, like: Tensor) -> Iterator[Hyperparameters]:
    """The hyperparameters of every rule but the leftmost, from left to right; dtype and device are those of `like`."""
    for level, (below, rule) in enumerate(zip(tower.rules, tower.rules[1:], strict=False), 1):
        given = {n: getattr(rule, n) for n in rule.hyperparameters()}
        each = below.tuned() if any(isinstance(v, Mapping) for v in given.values()) else ()
        rows = {n: [v[b] for b in each] if isinstance(v, Mapping) else [v] * max(1, len(each)) for n, v in given.items()}
        yield Hyperparameters(rule, rows, like, tuned=level < tower.height, below=each)


Ask = tuple[Hyperparameters, Step, Tensor, Tensor]
"""Which scalars are asked for: the hyperparameters that make them; the step that they are for; what the user says, see
`Hyperparameters.values`; how many steps have been made before, and the sums of these, shape: (1 + sums, sets or 1)."""


class Level:
    """A rule that moves hyperparameters of the level below: all of them as one vector.

    Args:
        own: the hyperparameters it moves them with.
        below: what it moves: its `place` is set here.

    Attributes:
        rule: its rule, with the numbers that nothing moves.
        state: the names of what that remembers: tensors like what it moves, then sums; `dtypes`: what `init` made these of.
        rows: how many rows of the memory come before the sensitivities.
        start: what is remembered of what it moves, at the start. shape: (rows, n)
        sets: with which set of its own hyperparameters it moves each. (n entries)
        origin: where a decay draws to, if there is one.
        kind: the same for levels that are alike but for what moves them.
        place: where what it moves stands among all that is moved.
    """

    place: slice

    def __init__(self, own: Hyperparameters, below: Sequence[Hyperparameters]) -> None:
        self.own, self.below, t = own, list(below), len(own.names)
        added = sums(own.rule)
        warn_of_idle(own.rule, own.names)
        if sum(len(h.charts) for h in below) > 1:
            branches(own.rule, own.names, above=True)
        self.state = (*own.rule.init(torch.zeros((1,))), *added)
        self.rows = COUNT + 1 + len(self.state)
        end = 0
        for h in below:
            h.place = slice(end, end := end + len(h.charts))
        given = [(h.rule.chart(n), v) for h in below for n, v in zip(h.names, h.given, strict=False)]
        raw, unit = torch.cat([chart.raw(v) for chart, v in given]), torch.cat([chart.unit(v) for chart, v in given])
        self.charts = Charts([chart for h in below for chart in h.charts], raw.device)
        self.sets, self.member = [0] * end, None
        if own.sets > 1:  # one for each name below
            self.sets = [own.below.index(n) for h in below for n in h.names for _ in range(h.sets)]
            self.index = torch.tensor(self.sets, device=raw.device)
            self.member = (self.index == torch.arange(own.sets, device=raw.device)[:, None]).to(raw)
        self._fix(dict(zip(own.order[t:], own.given[t:], strict=True)), raw)
        state, zero = own.rule.init(raw if self.origin is None else raw - self.origin), torch.zeros_like(raw)
        self.dtypes = {n: x.dtype for n, x in state.items()}
        kept = [zero] * (len(added) + t + 1)
        self.start = torch.stack([raw, unit, zero + torch.nan, zero, *state.values(), *kept])

    def _fix(self, fixed: Mapping[str, Tensor], raw: Tensor) -> None:
        """Take the values that nothing moves into the rule; a decay draws to where the coordinates are now."""
        off = frozenset(n for n in fixed if not any(self.own.initial[n]))
        self.rule = self.own.rule.at({"off": off, **{n: self.columns(value) for n, value in fixed.items()}})
        self.origin = raw.clone() if hasattr(self.rule, "weight_decay") and self.rule.uses("weight_decay") else None
        alone = self.member is not None or self.origin is not None
        charts, values = [chart for h in self.below for chart in h.charts], [self.own.initial[n] for n in fixed]
        self.kind = type(self.own.rule), title(self.own.rule, self.own.names), charts, values, id(self) if alone else None

    def columns(self, values: Tensor) -> Tensor:
        """From sets of its own hyperparameters to what they move. shape: (…, sets) -> (…, n), or (…, 1) of a single set"""
        return values if self.member is None else values.index_select(-1, self.index)

    def total(self, x: Tensor) -> Tensor:
        """The other way, by summation. shape: (…, n) -> (…, sets)"""
        return x.sum(-1, keepdim=True) if self.member is None else (x.unsqueeze(-2) * self.member).sum(-1)

    def gradient(self, products: Sequence[Tensors], slope: Tensor | None, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The hypergradients of what it moves; see `Hyperparameters.gradient`.

        Args:
            products: for each of `below`. shape of each: (products, tuned, readings)
        """
        both = []
        for h, each in zip(self.below, products, strict=True):
            part = None if slope is None else slope[h.place].view(h.shape)
            both.append([x.flatten() for x in h.gradient(each, part, steps[h.place].view(h.shape))])
        first, second = zip(*both, strict=True)
        return joined(first), joined(second)

    def sized(self, found: Tensors, memory: Tensor, known: Tensor) -> Tensors:
        """What was read, see `Step.read`, with the mean square of the RECENT gradients where no metric says what is usual: of
        small batches, most are far smaller than those that matter, and a cosine would count them as much.

        Args:
            memory: its own, where the mean is remembered, of shape (rows, n); `known`: see `Levels.leave`.
        """
        read = []
        for h, x in zip(self.below, found, strict=True):
            if h.lacks:
                mean, t, knows = (row[h.place].view(h.shape) for row in (memory[-1], memory[COUNT], known))
                held = torch.where((x[1] > SPIKE * mean) & (mean > 0), SPIKE * mean, x[1])
                moved = torch.lerp(mean, held, torch.where(mean > 0, RECENT / (t + RECENT), 1.0))
                x = torch.stack([x[0], x[1], torch.lerp(x[1], moved, t / (LATE + t)), x[3]])
                mean.copy_(torch.where(knows & (x[1] <= REACH.max), moved, mean))
            read.append(x)
        return read

    def products(self, grad: Tensor, trace: Tensor) -> Tensors:
        """As `Step.read`, of what this level moves; shape of `trace`: (tuned, n)."""
        found = [self.total(product(grad, trace, None)) for product in self.own.normalization.products]
        return [x if x.ndim == 2 else x.expand(self.own.shape) for x in found]

    def update(self, tuned: Tensor, raw: Tensor, grad: Tensor, step: Tensor, state: Tensors) -> tuple[Tensor, State]:
        """`Rule.update` of a step; `tuned`: its own hyperparameters, for each that it moves. shape: (tuned, n)

        A decay draws to where a coordinate started: 0 is no better than other values of a hyperparameter.
        """
        old = {n: x.to(self.dtypes.get(n, x.dtype)) for n, x in zip(self.state, state, strict=True)}
        at, c, sums = prepared(self.rule.at(dict(zip(self.own.names, tuned.unbind(), strict=True))), step, old)
        old.update({n: x.expand_as(step) for n, x in sums.items()})
        moved, after = at.update(raw if self.origin is None else raw - self.origin, grad, old, c)
        return moved if self.origin is None else moved + self.origin, {**old, **after}

    def move(self, old: Tensor, tuned: Tensor, grad: Tensor, known: Tensor, ends: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """One step of those that are known to have moved something; of none if a gradient or a result is not finite.

        Args:
            old: what is remembered, but for sensitivities. shape: (rows, n)
            tuned, grad, known: see `update`, `gradient` and `Levels.leave`.
            ends: of the coordinate: the low ones, the high ones.

        Returns:
            what is remembered now, as `old`; which steps were made; which coordinates the ends did not hold.
        """
        raw, unit, _, count, *state = old.unbind()
        step = count + 1
        moved, after = self.update(tuned, raw, grad, step, state)
        new = torch.stack([moved, unit, grad, step, *(after[n] for n in self.state)])
        made = known & finite(new.where(known, 0.0))
        held = new[RAW].clamp_(*ends)
        return torch.where(made, new, old), made, held == moved


class Run(NamedTuple):
    """Levels that follow each other and are alike: their derivatives are taken at once.

    Args:
        first: one of them.
        levels: which they are.
        place: their columns in the memory.
    """

    first: Level
    levels: slice
    place: slice

    def before(self, memory: Tensor) -> Tensor:
        """What is remembered, but for sensitivities. shape: (rows, n)"""
        return memory[: self.first.rows, self.place]

    def trace(self, memory: Tensor) -> Tensor:
        """The sensitivities of what they move to their own hyperparameters. shape: (tuned, n)"""
        return memory[self.first.rows : len(self.first.start) - 1, self.place]

    def differentiate(self, memory: Tensor, own: Tensors, grad: Tensor, made: Tensor, free: Tensor) -> None:
        """The sensitivities after a step, from the memory before it: ``T = fading T + dU/dh``; see `Level.move`.

        What was held at an end of its coordinate would not have moved otherwise, so it has none. Nor is there one where hardly
        any part of the step depends on a hyperparameter: that is the rounding of ``1 - beta``; see `added`.

        Args:
            own: its own hyperparameters, and what they gain by a change of their coordinates. shape of both: (tuned, n)
        """
        tuned, gain = own
        trace, rule = self.trace(memory), self.first.own.rule
        raw, _, _, count, *state = self.before(memory).unbind()

        def step(tuned: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
            return (self.first.update(tuned, raw, grad, count + 1, state)[0],), ()

        (moved,), _, (found,) = slopes(step, [tuned])
        slope = torch.zeros_like(trace) if found is None else found
        slope = slope.masked_fill((slope * gain).abs() <= torch.finfo(raw.dtype).eps ** ROUNDED * (moved - raw).abs(), 0.0)
        slope = finite_or_zero(slope if rule.one_step else trace * rule.fading(count + 1) + slope) * free
        trace.copy_(torch.where(made, slope, trace))


class Levels:
    """All levels above the weights, with one memory: what the last step says goes up, the scalars of this step come down.

    Args:
        levels: from the weights upwards; there may be none.
        like: of their dtype and device.

    Attributes:
        memory: what is remembered. shape: (rows, all that is moved)
        sizes: how many of its columns belong to each level.
        ours: whether all rules are of this package.
    """

    def __init__(self, levels: Sequence[Level], like: Tensor) -> None:
        self.levels, self.sizes, begin = tuple(levels), [len(level.sets) for level in levels], 0
        self._leave: tuple[Any, Tensor] = None, like
        self.ours = all(ours(level.own.rule) for level in levels)
        self.memory = like.new_zeros((max((len(level.start) for level in levels), default=COUNT + 1), sum(self.sizes)))
        for level in levels:
            level.place = slice(begin, begin := begin + len(level.sets))
            mine = self.of(level).copy_(level.start)
            for h in level.below:
                if (old := h.memory) is not None and not old.is_meta:
                    mine[: len(old), [h.place.start + i for i in h.source]] = old[:, list(h.source.values())].to(mine)
                h.memory = mine[:, h.place]
        self.charts = Charts([chart for level in levels for h in level.below for chart in h.charts], like.device)
        bounds = [h.bounds(self.of(level)[UNIT, h.place]) for level in levels for h in level.below]
        self.bounds = [torch.cat(side) for side in zip(*bounds, strict=True)]
        self.runs, i = [], 0
        for _, run in groupby(levels, key=lambda level: level.kind):
            first, *more = run
            for level in more:  # with the same tensors: fewer for the compiler
                level.rule, level.charts = first.rule, more[0].charts
            place = slice(first.place.start, [first, *more][-1].place.stop)
            self.runs.append(Run(first, slice(i, i := i + 1 + len(more)), place))

    def of(self, level: Level) -> Tensor:
        """What is remembered of what a level moves. shape: (rows, n)"""
        return self.memory[: len(level.start), level.place]

    def begin_anew(self, h: Hyperparameters) -> Tensor:
        """Put `h` back to where it was at first, if it has grown. Returns whether it has. shape: (1,)"""
        level = next(level for level in self.levels if h in level.below)
        mine, start = self.of(level)[:, h.place], level.start[:, h.place]
        grown = mine[RAW] > start[RAW]
        mine.copy_(torch.where(grown, start, mine))
        return grown

    def learned(self, memory: Tensor) -> Sequence[Tensor]:
        """The values of what each level moves, before schedules."""
        return cut(self.charts.values(memory[RAW], memory[UNIT]), self.sizes)

    def leave(self, made: Sequence[int], free: Sequence[float]) -> Tensor:
        """See `tune`. What has moved nothing sees the step pass: its sensitivities to the levels above fade.

        Args:
            made: of all that the first level moves, how many steps have been made with it; -1 where there is none now.
            free: how much of what it wants to it may move, see `Group.freedom`.
        """
        if self._leave[0] != (made, free):  # a new one has to be sent to the device
            known = self._known(made)
            self._leave = (made, free), sent([known, [*free, *[1.0] * (len(known) - len(free))]], self.memory)
        first, leave = self.levels[0], self._leave[1]
        if min(made, default=1) <= 0:
            mine, here = self.of(first), leave[0, first.place] > 0
            mine[first.rows : -1].mul_(torch.where(here, 1.0, first.own.rule.fading(mine[COUNT].clamp_min(1))))
        return leave

    def _known(self, made: Sequence[int]) -> list[float]:
        """Of all that is moved, 1 where it has moved something, else 0: each level begins one step after the one below."""
        found: list[float] = []
        for level in self.levels:
            found += [float(n > 0) for n in made]
            sets = ([n for n, k in zip(made, level.sets, strict=True) if k == s] for s in range(level.own.sets))
            made = [max(mine, default=0) - 1 for mine in sets] * len(level.own.names)
        return found

    def tune(self, found: Tensors, leave: Tensor) -> Tensor:
        """One step of all levels.

        Upwards, each level takes the hypergradients of what it moves as its gradients and reads its own off its last
        step; where one is not finite, nor are those of the levels above, and none of these moves. Downwards, each moves
        with the hyperparameters just moved.

        Args:
            found: for each of the hyperparameters that the first level moves, what was read; see `Step.read`.
            leave: whether it has moved something, 0 or 1, and the part of its gradient that it moves along.
                shape: (2, all that is moved)

        Returns:
            what the first level has learned, before schedules.
        """
        raw, unit, read, count, *_ = self.memory.unbind()
        first, known = self.levels[0], leave[0] > 0
        found = first.sized(found, self.of(first), known[first.place])
        natural, grad = self._read(found, slope := self.charts.slope(raw, unit), count)
        moved, learned = [], grad[:0]
        down = grad * leave[1]
        split = (cut(x, self.sizes) for x in (down, known, *self.bounds, unit))
        each = zip(self.levels, self._parts(Run.before), *split, strict=True)
        for level, before, mine, moves, low, high, units in reversed([*each]):
            tuned = level.columns(learned.view(level.own.shape)).expand(-1, len(mine))
            gain = torch.ones_like(tuned) if slope is None else level.columns(slope[level.own.place].view(level.own.shape))
            after, made, free = level.move(before, tuned, mine, moves, (low, high))
            learned = level.charts.values(after[RAW], units)
            moved.append((after, tuned, made, free, gain.expand_as(tuned)))
        done = list(zip(*reversed(moved), strict=True))
        for run in self.runs:
            after, tuned, made, free, gain = (joined(x[run.levels]) for x in done)
            if run.first.own.names:
                run.differentiate(self.memory, (tuned, gain), down[run.place], made, free)
            run.before(self.memory).copy_(after)
        read.copy_(natural.where(known, torch.nan))
        return learned

    def expected(self, asks: Sequence[Ask], memory: Tensor) -> list[Tensor]:
        """What is asked for as if nothing were learned in this step, which is not counted; `memory`: coordinates and units."""
        learned = self.learned(memory)[0]
        each = [(step, own.values(learned, said), torch.cat([clock[:1] + 1, clock[1:]])) for own, step, said, clock in asks]
        return [step.prepare(*values, clock) for step, values, clock in each]

    def _read(self, found: Tensors, slope: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor]:
        """The hypergradients of all that is moved; see `Level.gradient`. shape of both: (all that is moved,)"""
        products: list[Tensors] = [x.unbind() for x in found]
        gradients = []
        for level, trace in zip(self.levels, self._parts(Run.trace), strict=True):
            gradients.append(level.gradient(products, None if slope is None else slope[level.place], count[level.place]))
            products = [level.products(gradients[-1][1], trace)]
        natural, grad = map(joined, zip(*gradients, strict=True))
        return natural, grad

    def _parts(self, rows: Callable[[Run, Tensor], Tensor]) -> list[Tensor]:
        """Rows of the memory, cut into the columns of each level. shape of each: (rows, n)"""
        return [x for run in self.runs for x in cut(rows(run, self.memory), self.sizes[run.levels])]


def scalars(asks: Sequence[Ask], learned: Tensor) -> list[Tensor]:
    """What is asked for, by `Step.prepare`, from what the first level has `learned`, before schedules; this step is counted."""
    found = []
    for own, step, schedule, clock in asks:
        clock[0].add_(1)
        rows = step.prepare(*own.values(learned, schedule), clock)
        if step.sums:
            clock[1:].copy_(step.summed(rows[step.rows["values"]], clock))
        found.append(rows)
    return found


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Side by side. shape of each: (…, n) -> (…, n of all)"""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=-1)


def cut(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Taken apart again."""
    return (x,) if len(sizes) == 1 else x.split(sizes, dim=-1)
