from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Adamax(Rule):
    """Adamax: Adam with a fading maximum in the place of the root; as `torch.optim.Adamax`.

    Source: Kingma & Ba 2015, Algorithm 2 (arXiv 1412.6980), with torch's `eps` inside the maximum.

        m = beta1 m + (1 - beta1) g,      u = max(beta2 u, |g| + eps),      w = w - lr / (1 - beta1^t) m / u

    Tuned by default: lr, beta1, beta2.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.002.
        beta1: coefficient of the average gradient, which reaches back 1 / (1 - beta1) steps; in [0, 1). Default 0.9.
        beta2: coefficient by which the maximum fades in a step; in [0, 1). Default 0.999.
        eps: added to the size of the gradient, in its units; at least 0. Default 1e-08.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
    """

    lr: Number = hyperparameter(2e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(param), "exp_inf": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return self.lr / (1 - self.beta1**step), 1 - self.beta1

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        return torch.maximum(self.beta2 * state["exp_inf"], grad.abs() + self.eps)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        step_size, new = c
        g = self.penalized(param, grad)
        m = self.beta1 * state["exp_avg"] + new * g
        u = torch.maximum(self.beta2 * state["exp_inf"], g.abs() + self.eps)
        return param - step_size * m / u, {"exp_avg": m, "exp_inf": u}
