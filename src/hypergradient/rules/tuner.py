from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative, positive


@dataclass(frozen=True)
class Tuner(Rule):
    """Adagrad, whose squares fade with age, and that falls no further than `span` below the highest it has reached, less half
    the logarithm of how many times older it is by then; for the top of a tower.

    Source: Duchi, Hazan & Singer 2011; fading and span are ours.

        s = t / (t + fade) s + g^2,      h' = h - lr g / sqrt(s0 + s)
        highest = max(highest - log(1 + 1 / t) / 2, h'),      h = max(h', highest - span)

    Made for the logarithm of a step size. While that grows to where it belongs its hypergradients are far larger than ever
    after; with all of them in the sum it would hardly move any more. One that has overshot is told to shrink for as long as
    the path that it has led to is not undone; too small, it would undo nothing any more, and shrink for ever. So it may
    fall by a factor, and then with the root of the number of steps. Tuned by default: lr.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, in units of the coordinate it moves (of a logarithm: 1 is a factor of e); at least 0. Default 1.3.
        fade: of g^2 at step i, about (i / t)**fade is left at step t; at least 0. Default 0.5.
        span: the greatest fall below the highest, in the same units; more than 0. Default 2.0.
        initial_accumulator_value: s0, which does not fade; at least 0; cannot be tuned. Default 2.0.
    """

    lr: Number = hyperparameter(1.3, nonnegative)
    fade: Number = hyperparameter(0.5, nonnegative, tuned=False)
    span: Number = hyperparameter(2.0, positive, tuned=False)
    initial_accumulator_value: float = hyperparameter(2.0, nonnegative, tuned=None)

    def init(self, param: Tensor) -> State:
        return {"sum": torch.zeros_like(param), "highest": param.clone()}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return step / (step + self.fade), (step / (step + 1)).log() / 2

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        total = c[0] * state["sum"] + grad * grad
        moved = param - self.lr * grad / sqrt(total + self.initial_accumulator_value)
        highest = torch.maximum(state["highest"] + c[1], moved)
        return torch.maximum(moved, highest - self.span), {"sum": total, "highest": highest}
