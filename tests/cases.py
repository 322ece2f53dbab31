"""The tables of the test suite: rules, their twins in torch.optim, problems. A new rule is one row of `RULES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hypergradient as hg
from hypergradient import Rule

torch.set_default_dtype(torch.float64)
Options = dict[str, Any]
DECAY = {"weight_decay": 0.1}


@dataclass(frozen=True)
class Case:
    """A rule, and what is known of it.

    Args:
        options: those under which it is compared with its twin in torch.optim; none, if it has no twin there.
        lively: what derivatives are taken at: all hyperparameters matter, steps are large, an eps can be seen.
        matrix: whether it moves matrices only.
        flat: the hyperparameters whose hypergradient is 0 by nature.
    """

    rule: type[Rule]
    options: list[Options]
    lively: Options
    matrix: bool = False
    flat: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.rule.__name__

    @property
    def variants(self) -> list[Options]:
        """Options to try it with, as its own arguments."""
        return [ours(options) for options in self.options or [{}]]


RULES = [
    Case(
        hg.SGD,
        [{}, DECAY, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True, **DECAY}],
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.1},
    ),
    Case(
        hg.Adam,
        [{}, DECAY, {"amsgrad": True}, {"betas": (0.8, 0.9), "eps": 1e-3}],
        {"lr": 0.1, "beta2": 0.9, "eps": 0.1, **DECAY},
    ),
    Case(hg.AdamW, [{}, DECAY, {"amsgrad": True}, {"betas": (0.8, 0.9)}], {"lr": 0.1, "beta2": 0.9, "eps": 0.1, **DECAY}),
    Case(
        hg.RMSprop,
        [{}, DECAY, {"momentum": 0.9}, {"centered": True}, {"centered": True, "momentum": 0.5, "alpha": 0.9, **DECAY}],
        {"lr": 0.1, "alpha": 0.9, "eps": 0.1, "momentum": 0.5, "centered": True, **DECAY},
    ),
    Case(
        hg.Adagrad,
        [{}, DECAY, {"lr_decay": 0.1}, {"initial_accumulator_value": 0.1, "eps": 1e-3}],
        {"lr": 0.1, "lr_decay": 0.1, "eps": 0.1, "initial_accumulator_value": 0.1, **DECAY},
    ),
    Case(hg.Adadelta, [{}, DECAY, {"rho": 0.5, "eps": 1e-3}], {"lr": 1.0, "eps": 1e-3, **DECAY}),
    Case(hg.Adamax, [{}, DECAY, {"betas": (0.8, 0.9)}], {"lr": 0.1, "eps": 0.1, "beta2": 0.9, **DECAY}),
    Case(
        hg.NAdam,
        [{}, DECAY, {"momentum_decay": 0.1}, {"decoupled_weight_decay": True, **DECAY}],
        {"lr": 0.1, "beta2": 0.9, "eps": 0.1, "momentum_decay": 0.1, **DECAY},
    ),
    Case(hg.RAdam, [{}, DECAY, {"decoupled_weight_decay": True, **DECAY}], {"lr": 0.1, "eps": 0.1, "beta2": 0.9, **DECAY}),
    Case(hg.Lion, [], {"lr": 0.1, "beta2": 0.9, **DECAY}, flat=("beta1", "beta2")),
    Case(
        hg.Muon,
        [{}, {"nesterov": False}, {"momentum": 0.5, "weight_decay": 0.0}, {"adjust_lr_fn": "match_rms_adamw"}],
        {"lr": 0.1, "eps": 1e-7, **DECAY},
        matrix=True,
        flat=("eps",),
    ),
    Case(
        hg.AdamWScheduleFree,
        [],
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1, "r": 1.0, "weight_lr_power": 1.5, **DECAY},
    ),
    Case(hg.SGDScheduleFree, [], {"lr": 0.1, "momentum": 0.8, "r": 1.0, "weight_lr_power": 1.5, **DECAY}),
    Case(hg.Tuner, [], {"lr": 0.1, "fade": 0.5, "span": 100.0, "initial_accumulator_value": 0.5}, flat=("span",)),
]
ABOVE = [case for case in RULES if not case.matrix]
"""Those that can stand above another rule."""
TWINS = [case for case in RULES if case.options]
"""Those that have a twin in torch.optim."""


def ours(options: Options) -> Options:
    """Options of torch.optim as those of a rule."""
    options = dict(options)
    if "betas" in options:
        options["beta1"], options["beta2"] = options.pop("betas")
    return options


def counted(at: Rule, t: float, sums: dict[str, Tensor] | None = None) -> tuple[Rule, dict[str, Tensor]]:
    """A rule with tensors for its values in step t (from 1): with its sums, that were `sums` before. Also these sums."""
    sums = sums or {}
    now = {n: sums.get(n, 0.0) + x for n, x in at.at(sums).summed(torch.tensor(float(t))).items()}
    return at.at(now), now


def weights(matrix: bool = False, seed: int = 0) -> list[Tensor]:
    """Parameters of a problem; the same ones for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (4, 2)] if matrix else [(3, 4), (4,), (4, 2), ()]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def loss(params: list[Tensor], t: int = 0) -> Tensor:
    """A smooth loss that is different in each step and couples all parameters."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 + t))
    if len(params) == 2:
        y = torch.tanh(x @ params[0]) @ params[1]
    else:
        y = torch.tanh(x @ params[0] + params[1]) @ params[2] * (1 + params[3])
    return 0.1 * (y - torch.sin(3 * x[:, :2])).square().mean()


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: int, start: int = 0) -> list[float]:
    """Losses of `steps` steps on the problem."""
    losses = []
    for t in range(start, start + steps):
        optimizer.zero_grad()
        value = loss(params, t)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def parameters(matrix: bool = False) -> list[Tensor]:
    return [w.requires_grad_() for w in weights(matrix)]


__all__ = ["ABOVE", "RULES", "TWINS", "Case", "counted", "loss", "ours", "parameters", "train", "weights"]
