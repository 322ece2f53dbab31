from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..rule import Number, State, hyperparameter, nonnegative, open_unit_interval, real
from ..schedule_free import ScheduleFree


@dataclass(frozen=True)
class SGDScheduleFree(ScheduleFree):
    """SGD that averages its weights, as `schedulefree.SGDScheduleFree`.

    Source: Defazio et al. 2024, The Road Less Scheduled (arXiv 2405.15682).

        z = z - lr (g + weight_decay y),      x = the average of all z,      y = (1 - momentum) z + momentum x

    The parameters hold y in training, where the gradient is taken, and x after ``optimizer.eval()``. In the average, step t
    weighs ``lr_max**weight_lr_power * t**r``, with the highest lr so far. Tuned by default: lr.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, in units of the parameter per unit of the gradient; at least 0. Default 1.0.
        momentum: how near to the average the gradient is taken; in (0, 1). Default 0.9.
        weight_decay: L2 penalty, of y; at least 0. Default 0.0.
        r: power of the step count in the weights of the average: 0 for all alike. Default 0.0; `auto` takes 4.
        weight_lr_power: power of the highest lr so far in them. Default 2.0.
    """

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
