from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rule import Number, Rule, State, closed_unit_interval, hyperparameter, nonnegative, real


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    Polyak 1964 (heavy ball); Nesterov's variant as in Sutskever, Martens, Dahl & Hinton 2013.
    As in torch, dampening counts from the second step on, and only where there is momentum.
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
