from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt, usual_square
from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop: the gradient divided by the root of its average square; as `torch.optim.RMSprop`.

    Source: Tieleman & Hinton 2012, lecture 6.5; `centered`: Graves 2013 (arXiv 1308.0850), equations 38–45.

        v = alpha v + (1 - alpha) g^2,      b = momentum b + g / (sqrt(v) + eps),      w = w - lr b

    Tuned by default: lr, alpha, and a momentum that is not 0.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.01.
        alpha: coefficient of the average square, which reaches back 1 / (1 - alpha) steps; in [0, 1]. Default 0.99.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        momentum: part of the last move that is kept; in [0, 1]. Default 0.0.
        centered: divide by the variance instead, the average square less the squared average. Default False.
    """

    lr: Number = hyperparameter(1e-2, nonnegative)
    alpha: Number = hyperparameter(0.99, closed_unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    momentum: Number = hyperparameter(0.0, closed_unit_interval)
    centered: bool = False
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        names = ["square_avg", "momentum_buffer"] + ["grad_avg"] * self.centered
        return {name: torch.zeros_like(param) for name in names}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (1 - self.alpha,)

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        usual: Tensor = sqrt(usual_square(grad, state["square_avg"], self.alpha, step)) + self.eps
        return usual

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        g = self.penalized(param, grad)
        variance = s = torch.addcmul(self.alpha * state["square_avg"], c[0] * g, g)
        new = {"square_avg": s}
        if self.centered:
            new["grad_avg"] = self.alpha * state["grad_avg"] + c[0] * g
            variance = torch.addcmul(s, -new["grad_avg"], new["grad_avg"]).clamp_min(0)
        b, new["momentum_buffer"] = g / (sqrt(variance) + self.eps), state["momentum_buffer"]
        if self.uses("momentum"):
            b = new["momentum_buffer"] = self.momentum * state["momentum_buffer"] + b
        return param - self.lr * b, new
