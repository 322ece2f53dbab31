from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative, real


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    Source: Polyak 1964 (heavy ball); Nesterov's variant as in Sutskever, Martens, Dahl & Hinton 2013.

        b = momentum b + (1 - dampening) g,      w = w - lr b

    As in torch, dampening counts from the second step on (of the parameter; in torch, of the buffer), and only where there is
    momentum. Tuned by default: lr, and a momentum that is not 0.

    How a rule above tunes it is said by the arguments of every `Rule`: tune, charts, horizon, normalize, sample.

    Args:
        lr: step size, in units of the parameter per unit of the gradient; at least 0. Default 0.001.
        momentum: part of the last move that is kept; in [0, 1]. Default 0.0.
        dampening: part of the gradient that is left out; any number. Default 0.0.
        weight_decay: L2 penalty, added to the gradient times the parameter; at least 0. Default 0.0.
        nesterov: look ahead along the momentum; needs one, and no dampening. Default False.

    Raises:
        ValueError: nesterov without momentum, or with dampening.
    """

    lr: Number = hyperparameter(1e-3, nonnegative)
    momentum: Number = hyperparameter(0.0, closed_unit_interval)
    dampening: Number = hyperparameter(0.0, real, tuned=False)
    weight_decay: Number = hyperparameter(0.0, nonnegative, tuned=False)
    nesterov: bool = False
    multiplier: ClassVar[str] = "lr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (self.dampening != 0 or (self.momentum == 0 and "momentum" not in self.tuned())):
            raise ValueError("SGD: nesterov=True needs a momentum, and dampening=0")

    def init(self, param: Tensor) -> State:
        return {"momentum_buffer": torch.zeros_like(param)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        if not self.uses("dampening"):
            return ()
        undamped = (step == 1) | (self.momentum == 0)
        return (torch.where(undamped, 1.0, 1 - self.dampening),)

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        g = self.penalized(param, grad)
        if not self.uses("momentum"):
            return param - self.lr * g, state
        b = self.momentum * state["momentum_buffer"] + (c[0] * g if c else g)
        direction = g + self.momentum * b if self.nesterov else b
        return param - self.lr * direction, {"momentum_buffer": b}
