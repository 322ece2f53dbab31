from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..rule import Number, hyperparameter, nonnegative
from .adam import Adam


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    Source: Loshchilov & Hutter 2019, Algorithm 2 (arXiv 1711.05101).

        w = (1 - lr weight_decay) w,      then as Adam

    Tuned by default: lr, beta1, beta2.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.001.
        beta1: coefficient of the average gradient, which reaches back 1 / (1 - beta1) steps; in [0, 1). Default 0.9.
        beta2: that of the average square of the gradient; in [0, 1). Default 0.999.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: decoupled: each step shrinks the parameter by the part lr * weight_decay; at least 0. Default 0.01.
        amsgrad: divide by the greatest average square so far. Default False.
    """

    weight_decay: Number = hyperparameter(1e-2, nonnegative, tuned=False)

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return *super().coefficients(step), 1 - self.lr * self.weight_decay

    def gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        return grad

    def decay(self, c: tuple[Tensor, ...]) -> Tensor | None:
        return c[4]
