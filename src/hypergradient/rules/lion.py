from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Lion(Rule):
    """Lion: the sign of an average gradient.

    Source: Chen et al. 2023, Algorithm 2 (arXiv 2302.06675).

        w = (1 - lr weight_decay) w - lr sign(beta1 m + (1 - beta1) g),      m = beta2 m + (1 - beta2) g

    Tuned by default: lr. The sign hides the betas: their one-step hypergradient is 0 almost everywhere.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size: what every element moves in a step, in units of the parameter; at least 0. Default 0.0001.
        beta1: part of the average in the direction of this step; in [0, 1). Default 0.9.
        beta2: coefficient of the average, which reaches back 1 / (1 - beta2) steps; in [0, 1). Default 0.99.
        weight_decay: decoupled: each step shrinks the parameter by the part lr * weight_decay; at least 0. Default 0.0.
    """

    lr: Number = hyperparameter(1e-4, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval, tuned=False)
    beta2: Number = hyperparameter(0.99, unit_interval, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return 1 - self.beta1, 1 - self.beta2

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        m = state["exp_avg"]
        direction = torch.sign(self.beta1 * m + c[0] * grad)
        m = self.beta2 * m + c[1] * grad
        return param * (1 - self.lr * self.weight_decay) - self.lr * direction, {"exp_avg": m}
