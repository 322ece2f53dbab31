from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Lion(Rule):
    """Chen et al. 2023, Algorithm 2 (arXiv 2302.06675).

    The sign hides the betas: their one-step hypergradient is 0 almost everywhere, so only the lr is tuned by default.
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
