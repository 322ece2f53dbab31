from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from ..rule import Number, hyperparameter, nonnegative
from .adam import Adam


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: Loshchilov & Hutter 2019, Algorithm 2 (arXiv 1711.05101)."""

    weight_decay: Number = hyperparameter(1e-2, nonnegative, tuned=False)

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return *super().coefficients(step), 1 - self.lr * self.weight_decay

    def coefficients_slopes(
        self, step: Tensor, c: tuple[Tensor, ...], wanted: Collection[str]
    ) -> dict[tuple[int, str], Tensor]:
        return {**super().coefficients_slopes(step, c, wanted), (4, "lr"): -self.weight_decay, (4, "weight_decay"): -self.lr}

    def gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        return grad

    def decay(self, c: tuple[Tensor, ...]) -> Tensor | None:
        return c[4]
