from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..averages import Average, Averages
from ..numerics import sqrt, usual_square
from ..rule import Number, State, hyperparameter, nonnegative, unit_interval


@dataclass(frozen=True)
class Adam(Averages):
    """Adam: along the average gradient, divided by the root of the average square; as `torch.optim.Adam`.

    Source: Kingma & Ba 2015, Algorithm 1 (arXiv 1412.6980); `amsgrad`: Reddi, Kale & Kumar 2018, Algorithm 2.

        m = beta1 m + (1 - beta1) g,      v = beta2 v + (1 - beta2) g^2
        w = w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Tuned by default: lr, beta1, beta2.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.001.
        beta1: coefficient of the average gradient, which reaches back 1 / (1 - beta1) steps; in [0, 1). Default 0.9.
        beta2: that of the average square of the gradient; in [0, 1). Default 0.999.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        amsgrad: divide by the greatest average square so far. Default False.
    """

    lr: Number = hyperparameter(1e-3, nonnegative)
    beta1: Number = hyperparameter(0.9, unit_interval)
    beta2: Number = hyperparameter(0.999, unit_interval)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    amsgrad: bool = False
    multiplier: ClassVar[str] = "lr"

    def init(self, param: Tensor) -> State:
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * self.amsgrad
        return {name: torch.zeros_like(param) for name in names}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        root = (1 - self.beta2**step).sqrt()  # of more than 0, for beta2 < 1
        return self.lr / (1 - self.beta1**step) * root, self.eps * root, 1 - self.beta1, 1 - self.beta2

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        v = usual_square(grad, state["exp_avg_sq"], self.beta2, step)
        v = torch.maximum(v, state["max_exp_avg_sq"] / (1 - self.beta2**step)) if self.amsgrad else v
        usual: Tensor = sqrt(v) + self.eps
        return usual

    def averages(self, grad: Tensor, c: tuple[Tensor, ...]) -> dict[str, Average]:
        return {"exp_avg": (grad, c[2]), "exp_avg_sq": (grad, c[3], grad)}

    def follows(self, others: State, averages: State) -> State:
        return {"max_exp_avg_sq": torch.maximum(others["max_exp_avg_sq"], averages["exp_avg_sq"])} if self.amsgrad else {}

    def displacement(self, state: State, c: tuple[Tensor, ...]) -> Tensor:
        v = state["max_exp_avg_sq" if self.amsgrad else "exp_avg_sq"]
        return c[0] * (state["exp_avg"] / (sqrt(v) + c[1]))
