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
    """AdamW that averages, as `schedulefree.AdamWScheduleFree`; see `schedule_free`."""

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
        return (1 - self.beta2**step).sqrt(), 1 - self.beta2, self.new(step)

    def square(self, grad: Tensor, state: State, new: Tensor) -> Tensor:
        """The average of squares after a step."""
        return torch.addcmul(self.beta2 * state["exp_avg_sq"], new * grad, grad)

    def preconditioner(self, grad: Tensor, state: State, step: Tensor) -> Tensor:
        v, root = self.square(grad, state, 1 - self.beta2), (1 - self.beta2**step).sqrt()
        usual: Tensor = sqrt(v) / root + self.eps
        return usual

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        root, new, share = c
        v = self.square(grad, state, new)
        direction = grad / (sqrt(v) / root + self.eps)
        direction = torch.addcmul(direction, self.weight_decay, param) if self.uses("weight_decay") else direction
        y, z = self.moved(param, direction, state, share, self.lr)
        return y, {"z": z, "exp_avg_sq": v}
