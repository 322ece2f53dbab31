from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..rule import Number, State, hyperparameter, nonnegative, open_unit_interval, real
from ..schedule_free import ScheduleFree


@dataclass(frozen=True)
class SGDScheduleFree(ScheduleFree):
    """SGD that averages, as `schedulefree.SGDScheduleFree`; see `schedule_free`."""

    lr: Number = hyperparameter(1.0, nonnegative)
    momentum: Number = hyperparameter(0.9, open_unit_interval, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    r: Number = hyperparameter(0.0, real, tuned=False)
    weight_lr_power: Number = hyperparameter(2.0, real, tuned=False)
    multiplier: ClassVar[str] = "lr"

    @property
    def beta(self) -> Any:
        return self.momentum

    def init(self, param: Tensor) -> State:
        return {"z": param.clone()}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return (self.new(step),)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        y, z = self.moved(param, self.penalized(param, grad), state, c[0], self.lr)
        return y, {"z": z}
