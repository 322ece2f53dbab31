"""Rules that average: Defazio et al. 2024, The Road Less Scheduled (arXiv 2405.15682).

Two points move: z by the rule, x as the average of all z. The gradient is taken between them, at the parameters
``y = (1 - beta) z + beta x``, where the loss is hardly shaken; x is what is to be evaluated. Kept are y and z.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .numerics import REACH, ratio
from .rule import Rule, State


@dataclass(frozen=True)
class ScheduleFree(Rule):
    """A rule that averages. It has the hyperparameters `lr`, `r` and `weight_lr_power`.

    In the average, step t weighs ``lr_max**weight_lr_power * t**r``, with the highest lr in force until then: with the lr
    itself, an average would hardly move any more, once that has fallen. A step of an lr of 0 weighs nothing.
    """

    points: ClassVar[tuple[str, ...]] = ("z",)
    lr_max: ClassVar[Any] = 0.0

    @property
    @abstractmethod
    def beta(self) -> Any:
        """How near to the average the gradient is taken."""

    def summed(self, step: Tensor) -> dict[str, Tensor]:
        own: Any = self
        highest = own.lr.clamp_min(own.lr_max)
        return {"lr_max": highest - own.lr_max, "weight_sum": own._weight(step, highest)}

    def _weight(self, step: Tensor, highest: Tensor) -> Tensor:
        own: Any = self
        weight: Tensor = own.lr.sign() * highest.clamp_min(REACH.tiny) ** own.weight_lr_power * step**own.r
        return weight

    def new(self, step: Tensor) -> Tensor:
        """The part of this step in the average."""
        own: Any = self
        return ratio(self._weight(step, own.lr_max), own.weight_sum)

    def moved(self, param: Tensor, direction: Tensor, state: State, new: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Y and z, after a step of z along `direction`."""
        param = torch.lerp(param, state["z"], new)
        return param + lr * (self.beta * (1 - new) - 1) * direction, state["z"] - lr * direction

    def evaluated(self, param: Tensor, state: State) -> Tensor:
        return torch.lerp(param, state["z"], 1 - 1 / self.beta)

    def trained(self, average: Tensor, state: State) -> Tensor:
        return torch.lerp(average, state["z"], 1 - self.beta)
