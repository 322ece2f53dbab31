from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad: the gradient divided by the root of the sum of all squares so far; as `torch.optim.Adagrad`.

    Source: Duchi, Hazan & Singer 2011, diagonal form.

        s = s + g^2,      w = w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Tuned by default: lr.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size: what an element moves in its first step, in units of the parameter; at least 0. Default 0.01.
        lr_decay: fall of the step size per step, as a part; at least 0. Default 0.0.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        initial_accumulator_value: the sum before the first step, in squared units of the gradient; at least 0; cannot be
            tuned. Default 0.0.
        eps: added to the root, in units of the gradient; at least 0. Default 1e-10.
    """

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

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        usual: Tensor = sqrt((state["sum"] + grad * grad) / step) + self.eps
        return usual

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        (step_size,) = c
        g = self.penalized(param, grad)
        total = state["sum"] + g * g
        return param - step_size * g / (sqrt(total) + self.eps), {"sum": total}
