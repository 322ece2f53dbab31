from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..averages import Average, Averages
from ..numerics import power_less_1, sqrt, usual_square
from ..rule import Number, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class RAdam(Averages):
    """Rectified Adam, which begins as momentum, until its average square is worth something; as `torch.optim.RAdam`.

    Source: Liu et al. 2020, Algorithm 2 (arXiv 1908.03265), with torch's threshold of 5.

    Tuned by default: lr, beta1, beta2.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.001.
        beta1: coefficient of the average gradient, which reaches back 1 / (1 - beta1) steps; in [0, 1). Default 0.9.
        beta2: that of the average square of the gradient; in [0, 1). Default 0.999.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        decoupled_weight_decay: shrink the parameter by the part lr * weight_decay instead of a penalty. Default False.
    """

    lr: Number = hyperparameter(1e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    decoupled_weight_decay: bool = False
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        limit = 2 / (1 - self.beta2) - 1
        past = power_less_1(self.beta2, step)
        length = limit + 2 * step * (1 + past) / past
        rho, top = length.clamp_min(5), limit.clamp_min(5)  # below it the branch is not taken, but must stay finite
        rectifier = sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
        adaptive = rectifier * sqrt(-past)
        shrink = 1 - self.lr * self.weight_decay
        excess = torch.where(step > 5, length - 5, -1.0)  # the length is less than the step: no rounding may hide that
        return self.lr / (1 - self.beta1**step), adaptive, excess, 1 - self.beta1, 1 - self.beta2, shrink

    def gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        return grad if self.decoupled_weight_decay else self.penalized(param, grad)

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        usual: Tensor = sqrt(usual_square(grad, state["exp_avg_sq"], self.beta2, step)) + self.eps
        return usual

    def averages(self, grad: Tensor, c: tuple[Tensor, ...]) -> dict[str, Average]:
        return {"exp_avg": (grad, c[3]), "exp_avg_sq": (grad, c[4], grad)}

    def decay(self, c: tuple[Tensor, ...]) -> Tensor | None:
        return c[5] if self.decoupled_weight_decay else None

    def displacement(self, state: State, c: tuple[Tensor, ...]) -> Tensor:
        step_size, adaptive, excess, *_ = c
        scale = torch.where(excess > 0, adaptive / (sqrt(state["exp_avg_sq"]) + self.eps), 1.0)
        return step_size * state["exp_avg"] * scale
