from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative


@dataclass(frozen=True)
class Adagrad(Rule):
    """Duchi, Hazan & Singer 2011, diagonal form, with the options of `torch.optim.Adagrad`."""

    lr: Number = hyperparameter(1e-2, nonnegative)
    lr_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    initial_accumulator_value: float = hyperparameter(0.0, nonnegative, tuned=None)
    eps: Number = hyperparameter(1e-10, nonnegative, tuned=False)
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        return {"sum": torch.full_like(param, self.initial_accumulator_value)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (self.lr / (1 + (step - 1) * self.lr_decay),)

    def preconditioner(self, grad: Tensor, state: State, step: Tensor) -> Tensor:
        usual: Tensor = sqrt((state["sum"] + grad * grad) / step) + self.eps
        return usual

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        (step_size,) = c
        g = self.penalized(param, grad)
        total = state["sum"] + g * g
        return param - step_size * g / (sqrt(total) + self.eps), {"sum": total}
