from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative, positive


@dataclass(frozen=True)
class Tuner(Rule):
    """Adagrad (Duchi, Hazan & Singer 2011), that falls no further than `span` below the highest that it has reached.

    Made for the logarithm of a step size. One that has overshot is told to shrink for as long as the path that it has led to
    is not undone; too small, it would undo nothing any more, and shrink for ever.
    """

    lr: Number = hyperparameter(1.3, nonnegative)
    span: Number = hyperparameter(3.0, positive, tuned=False)
    initial_accumulator_value: float = hyperparameter(2.0, nonnegative, tuned=None)

    def init(self, param: Tensor) -> State:
        return {"sum": torch.full_like(param, self.initial_accumulator_value), "highest": param.clone()}

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        total = state["sum"] + grad * grad
        moved = param - self.lr * grad / sqrt(total)
        highest = torch.maximum(state["highest"], moved)
        return torch.maximum(moved, highest - self.span), {"sum": total, "highest": highest}
