from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt, usual_square
from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative


@dataclass(frozen=True)
class Adadelta(Rule):
    """Adadelta: moves in the size of the moves before, times a step size; as `torch.optim.Adadelta`.

    Source: Zeiler 2012, Algorithm 1 (arXiv 1212.5701).

        s = rho s + (1 - rho) g^2,      d = sqrt(u + eps) / sqrt(s + eps) g
        u = rho u + (1 - rho) d^2,      w = w - lr d

    Tuned by default: lr, rho.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: factor of the move, without unit; at least 0. Default 1.0.
        rho: coefficient of both averages, which reach back 1 / (1 - rho) steps; in [0, 1]. Default 0.9.
        eps: added under both roots; at least 0. Default 1e-06.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
    """

    lr: Number = hyperparameter(1.0, nonnegative)
    rho: Number = hyperparameter(0.9, closed_unit_interval)
    eps: Number = hyperparameter(1e-6, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        return {"square_avg": torch.zeros_like(param), "acc_delta": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (1 - self.rho,)

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        return sqrt(usual_square(grad, state["square_avg"], self.rho, step) + self.eps)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        g = self.penalized(param, grad)
        (new,) = c
        s = self.rho * state["square_avg"] + new * g * g
        delta = sqrt(state["acc_delta"] + self.eps) / sqrt(s + self.eps) * g
        u = self.rho * state["acc_delta"] + new * delta * delta
        return param - self.lr * delta, {"square_avg": s, "acc_delta": u}
