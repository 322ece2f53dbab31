from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt, usual_square
from ..rule import Number, Rule, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class NAdam(Rule):
    """Adam with Nesterov's momentum, as `torch.optim.NAdam`.

    Source: Dozat 2016, Algorithm 2, with the momentum schedule of torch.

        mu[t] = beta1 (1 - 0.96^(t momentum_decay) / 2)

    Tuned by default: lr, beta1, beta2.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.002.
        beta1: coefficient of the average gradient, which reaches back 1 / (1 - beta1) steps; in [0, 1). Default 0.9.
        beta2: that of the average square of the gradient; in [0, 1). Default 0.999.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        momentum_decay: how fast mu grows to beta1, per step; at least 0. Default 0.004.
        decoupled_weight_decay: shrink the parameter by the part lr * weight_decay instead of a penalty. Default False.
    """

    lr: Number = hyperparameter(2e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    momentum_decay: Number = hyperparameter(4e-3, nonnegative, tuned=False)
    decoupled_weight_decay: bool = False
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        zero = torch.zeros_like(param)
        return {"exp_avg": zero, "exp_avg_sq": zero.clone(), "mu_product": torch.ones_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        mu, mu_next = (self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)) for t in (step, step + 1))
        return mu, mu_next, sqrt(1 - self.beta2**step), 1 - self.beta1, 1 - self.beta2

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        usual: Tensor = sqrt(usual_square(grad, state["exp_avg_sq"], self.beta2, step)) + self.eps
        return usual

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        mu, mu_next, root, new1, new2 = c
        g = grad if self.decoupled_weight_decay else self.penalized(param, grad)
        shrink = 1 - self.lr * self.weight_decay if self.decoupled_weight_decay else 1.0
        m = self.beta1 * state["exp_avg"] + new1 * g
        v = self.beta2 * state["exp_avg_sq"] + new2 * g * g
        product = state["mu_product"] * mu
        nesterov = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * m
        new = {"exp_avg": m, "exp_avg_sq": v, "mu_product": product}
        return shrink * param - self.lr * nesterov / (sqrt(v) / root + self.eps), new
