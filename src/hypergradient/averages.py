"""Rules of averages: those whose state is exponential averages of functions of the gradient, such as Adam.

For the derivative of a step, ``dU/dh``, an optimizer has to keep one tensor per tuned hyperparameter until the next gradient
arrives. Here it need not: the step can be replayed from what it has left behind. Of an average ``m = m' + w (x - m')`` the
old m' is gone, but its derivatives are known: ``dm/dw = (x - m) / (1 - w)`` and ``dm/dx = w``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .rule import Rule, State

Average: TypeAlias = tuple[Tensor, ...]
"""What is averaged, the weight of the new, and where that is a product, its other factor."""


@dataclass(frozen=True)
class Averages(Rule):
    """A rule whose state is exponential averages, and whose parameters move by what these say.

    In the place of `update` it has `averages` and `displacement`. The step can be replayed where every weight that is tuned
    is one of the coefficients.
    """

    def gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        """`grad`, at `param`, with its penalty: what is averaged."""
        return self.penalized(param, grad)

    @abstractmethod
    def averages(self, grad: Tensor, c: tuple[Tensor, ...]) -> dict[str, Average]:
        """What of `grad` is averaged, and how; `c`: `coefficients`. ``(x, weight)``: ``state = (1 - weight) state + weight x``.

        A square is written ``(grad, weight, grad)``: it may be too large a number where weight times it is not.
        """
        raise NotImplementedError

    @abstractmethod
    def displacement(self, state: State, c: tuple[Tensor, ...]) -> Tensor:
        """How far a parameter moves, from the `state` after the step and the coefficients `c`."""
        raise NotImplementedError

    def decay(self, c: tuple[Tensor, ...]) -> Tensor | None:
        """The factor by which a parameter shrinks before it moves, one of the coefficients `c`; None: it does not."""
        return None

    def follows(self, others: State, averages: State) -> State:
        """What else is remembered, such as the greatest of all averages: from `others`, what it was, and the `averages`."""
        return {}

    # ------------------------------------------------------------------------------------------- the step

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        state = self.advance(self.gradient(param, grad), state, c)
        return self.apply(param, state, c), state

    def advance(self, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> State:
        """The state after one step, along a gradient with its penalty."""
        new = {n: self.average(state[n], *average) for n, average in self.averages(grad, c).items()}
        return {**new, **self.follows({n: x for n, x in state.items() if n not in new}, new)}

    def average(self, old: Tensor, x: Tensor, weight: Tensor, other: Tensor | None = None) -> Tensor:
        return torch.lerp(old, x, weight) if other is None else torch.addcmul(old * (1 - weight), x * weight, other)

    def apply(self, param: Tensor, state: State, c: tuple[Tensor, ...]) -> Tensor:
        """The parameter after one step, from the state after it."""
        decay = self.decay(c)
        return (param if decay is None else param * decay) - self.displacement(state, c)
