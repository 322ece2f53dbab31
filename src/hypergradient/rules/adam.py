from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Adam(Rule):
    """Kingma & Ba 2015, Algorithm 1 (arXiv 1412.6980); `amsgrad`: Reddi, Kale & Kumar 2018, Algorithm 2."""

    lr: Number = hyperparameter(1e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    amsgrad: bool = False

    def init(self, param: Tensor) -> State:
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * self.amsgrad
        return {name: torch.zeros_like(param) for name in names}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        root = sqrt(1 - self.beta2**step)
        return self.lr / (1 - self.beta1**step) * root, self.eps * root, 1 - self.beta1, 1 - self.beta2

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        step, state = self.move(torch.addcmul(grad, self.weight_decay, param), state, c)
        return param - step, state

    def move(self, g: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        """The step that gradients of a first and second moment ask for, and their new averages."""
        step_size, eps, weight1, weight2 = c
        m = torch.lerp(state["exp_avg"], g, weight1)
        v = torch.lerp(state["exp_avg_sq"], g * g, weight2)
        new = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            v = new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        return step_size * m / (sqrt(v) + eps), new
