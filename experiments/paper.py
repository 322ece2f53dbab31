"""The paper's own form of its rules: the coordinates its code moves things in, and how it begins.

Step sizes and momentum of SGD, Adam and AdaGrad are moved as they are and may turn negative, where the library projects them
back; RMSprop's step size is moved as its square root; betas and RMSprop's alpha as ``(tanh + 1) / 2``. Adam's second moment
starts at 1e-8, AdaGrad's sum at 0.1; RMSprop divides by ``sqrt(s + 1e-8)``. One thing is not as there: a root of RMSprop's
step size that would turn negative stays at 0. In none of the paper's stacks one comes near.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ComposeTransform, PowerTransform, TanhTransform

import hypergradient
from hypergradient import Rule, Tower, hyperparameter, nonnegative, real

SQUARE = PowerTransform(2)
TANH = ComposeTransform([TanhTransform(), AffineTransform(0.5, 0.5)])
Number = Any
State = dict[str, Tensor]


@dataclass(frozen=True)
class PaperSGD(hypergradient.SGD):
    """SGD whose step size and momentum may be any numbers."""

    lr: Number = hyperparameter(1e-3, real)
    momentum: Number = hyperparameter(0.0, real)


@dataclass(frozen=True)
class PaperAdagrad(hypergradient.Adagrad):
    """AdaGrad that divides by ``sqrt(sum + 1e-10)``, its sum beginning at 0.1."""

    lr: Number = hyperparameter(1e-2, real)
    initial_accumulator_value: float = hyperparameter(0.1 + 1e-10, nonnegative, tuned=None)
    eps: Number = hyperparameter(0.0, nonnegative, tuned=False)


@dataclass(frozen=True)
class PaperAdam(hypergradient.Adam):
    """Adam with a second moment that starts at 1e-8.

    In the paper's code all levels move in the first step, along a gradient of 0 where nothing is known yet. As it takes a
    step for an effect to reach the next level, level k has made k such steps, `ahead`, before its first real one. They
    leave everything as it was, but they count, and the second moment decays in them.
    """

    lr: Number = hyperparameter(1e-3, real)
    ahead: int = 0

    def init(self, param: Tensor) -> State:
        return {**super().init(param), "exp_avg_sq": torch.full_like(param, 1e-8 * self.beta2**self.ahead)}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        return super().coefficients(step + self.ahead)


@dataclass(frozen=True)
class PaperRMSprop(hypergradient.RMSprop):
    """RMSprop with its eps inside the square root."""

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        s = self.alpha * state["square_avg"] + (1 - self.alpha) * grad * grad
        return param - self.lr * grad / torch.sqrt(s + self.eps), {**state, "square_avg": s}


def sgd(lr: float | Mapping[str, float], momentum: float = 0.0, weight_decay: float = 0.0) -> Rule:
    """SGD."""
    return PaperSGD(lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, **options: Any) -> Rule:
    """Adam; `ahead`: the level it is on."""
    return PaperAdam(lr=lr, beta1=beta1, beta2=beta2, charts={"beta1": TANH, "beta2": TANH}, **options)


def adagrad(lr: float = 1e-2) -> Rule:
    """AdaGrad."""
    return PaperAdagrad(lr=lr)


def rmsprop(lr: float = 1e-2, alpha: float = 0.99, **options: Any) -> Rule:
    """RMSprop."""
    return PaperRMSprop(lr=lr, alpha=alpha, charts={"lr": SQUARE, "alpha": TANH}, **options)


def stack(*rules: Rule) -> Rule | Tower:
    """A tower, from the weights up."""
    return Tower(rules) if len(rules) > 1 else rules[0]
