from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..numerics import sqrt
from ..rule import Number, State, hyperparameter, nonnegative, open_unit_interval, real, unit_interval
from ..schedule_free import ScheduleFree


@dataclass(frozen=True)
class AdamWScheduleFree(ScheduleFree):
    """AdamW that averages its weights, as `schedulefree.AdamWScheduleFree`; the rule of the default.

    Source: Defazio et al. 2024, The Road Less Scheduled (arXiv 2405.15682).

        z = z - lr (g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay y),      x = the average of all z
        y = (1 - beta1) z + beta1 x

    The parameters hold y in training, where the gradient is taken, and x after ``optimizer.eval()``. In the average, step t
    weighs ``lr_max**weight_lr_power * t**r``, with the highest lr so far. Tuned by default: lr.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, about what an element moves in a step, in units of the parameter; at least 0. Default 0.0025.
        beta1: how near to the average the gradient is taken; in (0, 1). Default 0.9.
        beta2: that of the average square of the gradient; in [0, 1). Default 0.999.
        eps: added to the root of the average square, in units of the gradient; at least 0. Default 1e-08.
        weight_decay: decoupled, of y, times lr; at least 0. Default 0.0.
        r: power of the step count in the weights of the average: 0 for all alike. Default 0.0; `auto` takes 4.
        weight_lr_power: power of the highest lr so far in them. Default 2.0.
    """

    lr: Number = hyperparameter(0.0025, nonnegative)
    beta1: Number = hyperparameter(0.9, open_unit_interval, tuned=False)
    beta2: Number = hyperparameter(0.999, unit_interval, tuned=False)
    eps: Number = hyperparameter(1e-8, nonnegative, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    r: Number = hyperparameter(0.0, real, tuned=False)
    weight_lr_power: Number = hyperparameter(2.0, real, tuned=False)
    multiplier: ClassVar[str] = "lr"

    @property
    def beta(self) -> Any:
        return self.beta1

    def init(self, param: Tensor) -> State:
        return {"z": param.clone(), "exp_avg_sq": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (1 - self.beta2**step).sqrt().reciprocal(), 1 - self.beta2, self.new(step)

    def square(self, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> Tensor:
        """The average of squares after a step."""
        return torch.addcmul(self.beta2 * state["exp_avg_sq"], c[1] * grad, grad)

    def size(self, square: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        """Its root, without the bias of the beginning."""
        size: Tensor = sqrt(square) * c[0] + self.eps
        return size

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor:
        return self.size(self.square(grad, state, c), c)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        v = self.square(grad, state, c)
        direction = grad / self.size(v, c)
        direction = torch.addcmul(direction, self.weight_decay, param) if self.uses("weight_decay") else direction
        y, z = self.moved(param, direction, state, c[2], self.lr)
        return y, {"z": z, "exp_avg_sq": v}
