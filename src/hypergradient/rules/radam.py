from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class RAdam(Rule):
    """Liu et al. 2020, Algorithm 2 (arXiv 1908.03265), with torch's threshold of 5."""

    lr: Number = hyperparameter(1e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    decoupled_weight_decay: bool = False

    def init(self, param: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        limit = 2 / (1 - self.beta2) - 1
        length = limit - 2 * step * self.beta2**step / (1 - self.beta2**step)
        rho, top = length.clamp_min(5), limit.clamp_min(5)  # below it the branch is not taken, but must stay finite
        rectifier = sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
        return self.lr / (1 - self.beta1**step), rectifier * sqrt(1 - self.beta2**step), length - 5

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        step_size, adaptive, excess = c
        g = grad if self.decoupled_weight_decay else grad + self.weight_decay * param
        shrink = 1 - self.lr * self.weight_decay if self.decoupled_weight_decay else 1.0
        m = self.beta1 * state["exp_avg"] + (1 - self.beta1) * g
        v = self.beta2 * state["exp_avg_sq"] + (1 - self.beta2) * g * g
        scale = torch.where(excess > 0, adaptive / (sqrt(v) + self.eps), 1.0)
        return shrink * param - step_size * m * scale, {"exp_avg": m, "exp_avg_sq": v}
