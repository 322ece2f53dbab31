"""The paper, written down literally: the graph of each update is kept, and one backward pass reaches every level.

Slow and simple, for one group of dense parameters and a horizon of 1. It shares with the package only the formulas of
the rules and the transforms of the charts; `differentiate`, buckets, levels and the optimizer are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hypergradient import Rule, Tower


class Entry(NamedTuple):
    """A tuned hyperparameter: its name, and which hyperparameter of the level below it moves, if not all of them."""

    name: str
    column: str | None


class Oracle:
    """``weights_t = U(weights_{t-1}, …; h_t)``, ``h_t = U(h_{t-1}, …; k_t)`` and so on, each with its graph.

    Attributes:
        weights: the present weights, a function of `raw`.
        raw: by level, the tuned hyperparameters in chart coordinates.
        gradients: by level, the hypergradients last read, in natural units.
    """

    def __init__(self, tower: Rule | Tower, weights: list[Tensor]) -> None:
        self.rules = Tower.of(tower).rules
        self.weights = [w.clone().requires_grad_() for w in weights]
        self.start: list[dict[Entry, Tensor]] = []
        for k, rule in enumerate(self.rules[:-1]):
            split = any(isinstance(getattr(rule, n), Mapping) for n in rule.hyperparameters())
            columns = self.rules[k - 1].tuned() if split else (None,)
            self.start.append({Entry(n, c): torch.tensor(self.given(k, n, c)) for n in rule.tuned() for c in columns})
        self.raw = [
            {e: r.chart(e.name).raw(v).requires_grad_() for e, v in start.items()}
            for start, r in zip(self.start, self.rules, strict=False)
        ]
        self.sums: list[list[dict[str, Tensor]]] = [[{} for _ in self.targets(k)] for k in range(len(self.rules))]
        self.origins = [[x.detach().clone() if k else torch.zeros(()) for x in self.targets(k)] for k in range(len(self.rules))]
        starts = [zip(self.targets(k), origins, strict=True) for k, origins in enumerate(self.origins)]
        self.state = [[r.init(x - origin) for x, origin in s] for r, s in zip(self.rules, starts, strict=True)]
        self.count = [0] * len(self.rules)
        self.gradients: list[dict[Entry, float]] = []

    def leaves(self) -> list[Tensor]:
        """All tensors with a graph."""
        return [*self.weights, *(x for raw in self.raw for x in raw.values())]

    def given(self, k: int, name: str, column: str | None) -> float:
        value = getattr(self.rules[k], name)
        return value[column] if isinstance(value, Mapping) else value

    def targets(self, k: int) -> list[Tensor]:
        """What the rule of level k moves."""
        return self.weights if k == 0 else list(self.raw[k - 1].values())

    def value(self, k: int, e: Entry) -> Tensor:
        chart = self.rules[k].chart(e.name)
        return chart.unit(self.start[k][e]) * chart.transform(self.raw[k][e])

    def step(self, loss: Tensor, bump: Mapping[tuple[int, str], float] | None = None) -> None:
        """One step of every level. `bump` adds to a value in this step alone: for finite differences."""
        found = torch.autograd.grad(loss, self.leaves(), allow_unused=True, retain_graph=True)
        parts = iter(torch.zeros_like(x) if g is None else g for x, g in zip(self.leaves(), found, strict=True))
        slopes = [[next(parts) for _ in self.targets(k)] for k in range(len(self.rules))]
        self.gradients = [
            {
                e: (g / torch.autograd.grad(self.value(k, e), x)[0]).item()
                for (e, x), g in zip(raw.items(), slopes[k + 1], strict=True)
            }
            for k, raw in enumerate(self.raw)
        ]
        self.weights = [w.detach().requires_grad_() for w in self.weights]
        self.raw = [{e: x.detach().requires_grad_() for e, x in raw.items()} for raw in self.raw]
        for k in reversed(range(len(self.rules))):
            if k <= self.count[0]:  # a level can move when the one below has made a step to be judged by
                self.move(k, slopes[k], bump or {})

    def move(self, k: int, slopes: list[Tensor], bump: Mapping[tuple[int, str], float]) -> None:
        self.count[k] += 1
        moved = []
        columns: list[str | None] = [e.name for e in self.raw[k - 1]] if k else [None] * len(self.weights)
        for i, (x, g, column) in enumerate(zip(self.targets(k), slopes, columns, strict=True)):
            values = {n: torch.tensor(self.given(k, n, column)) for n in self.rules[k].hyperparameters()}
            for e in self.raw[k] if k < len(self.raw) else ():
                if e.column in (None, column):
                    values[e.name] = self.value(k, e) + bump.get((k, e.name), 0.0)
            rule, count = self.rules[k].at(values), torch.tensor(float(self.count[k]))
            before = self.sums[k][i]
            sums = {n: before.get(n, 0.0) + x for n, x in rule.at(before).summed(count).items()}
            self.sums[k][i] = {n: x.detach() for n, x in sums.items()}
            rule = rule.at(sums)
            c = rule.coefficients(count)
            origin = self.origins[k][i]  # a decay of a rule above draws to where a hyperparameter started
            new, state = rule.update(x.detach() - origin, g.detach(), self.state[k][i], c)
            new = new + origin
            self.state[k][i] = {n: s.detach() for n, s in state.items()}
            moved.append(new if new.requires_grad else new.requires_grad_())
        if k == 0:
            self.weights = moved
        else:
            self.raw[k - 1] = dict(zip(self.raw[k - 1], moved, strict=True))
