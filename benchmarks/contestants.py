"""Who is measured: by name, what makes an optimizer of a module's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from experiments.timing import Maker, Optimizer, Reference, ours
from gradient_descent_the_ultimate_optimizer import gdtuo
from prodigyopt import Prodigy
from prodigyplus import ProdigyPlusScheduleFree
from schedulefree import AdamWScheduleFree
from torch import nn

from hypergradient import POSITIVE, SGD, Adam, Rule, Tower, Tuner, auto

FOREACH, FUSED = "torch Adam, foreach", "torch Adam, fused"

# Step sizes above are small: the values stay where they are, and a step takes as long in the last run as in the first.
DEFAULT, SGD_SGD = "the default", "SGD / SGD"
LR, BETAS, LONG, ADAM_ADAM = "Adam(lr) / SGD", "Adam(lr, betas) / SGD", "Adam(lr, horizon 100, cosine) / SGD", "Adam / Adam"
TOWERS: dict[str, Rule | Tower] = {
    DEFAULT: auto().rules[0] / Tuner(lr=1e-10),
    "Adam": Adam(),
    LR: Adam(tune="lr") / SGD(lr=1e-10),
    BETAS: Adam() / SGD(lr=1e-10),
    LONG: Adam(tune="lr", charts={"lr": POSITIVE}, horizon=100, normalize="cosine") / SGD(lr=1e-3),
    ADAM_ADAM: Adam() / Adam(lr=1e-6),
    SGD_SGD: SGD() / SGD(lr=1e-10),
}


def tall(height: int) -> Rule | Tower:
    """Adam under `height` levels of Adam."""
    tower: Any = Adam()
    for level in range(height):
        tower = tower / Adam(lr=1e-8 if level else 1e-6)
    return tower


def reference(above: Callable[[], gdtuo.Optimizable]) -> Maker:
    """The reference implementation's Adam under what `above` makes."""
    return lambda module: Reference(module, gdtuo.Adam(optimizer=above()))


def adams(height: int) -> gdtuo.Optimizable:
    """The upper `height` levels of `tall` in the reference implementation."""
    tower = gdtuo.NoOpOptimizer()
    for level in reversed(range(height)):
        tower = gdtuo.Adam(1e-8 if level else 1e-6, optimizer=tower)
    return tower


def schedule_free(module: nn.Module) -> Optimizer:
    """AdamW-ScheduleFree, in its mode for training."""
    optimizer = AdamWScheduleFree(module.parameters())
    optimizer.train()
    return optimizer


BASELINES: dict[str, Maker] = {
    FOREACH: lambda module: torch.optim.Adam(module.parameters(), foreach=True),
    FUSED: lambda module: torch.optim.Adam(module.parameters(), fused=True),
}
REFERENCES: dict[str, Maker] = {
    "reference, Adam / SGD": reference(lambda: gdtuo.SGD(1e-10)),
    "reference, Adam / Adam": reference(lambda: adams(1)),
    "reference, SGD / SGD": lambda module: Reference(module, gdtuo.SGD(1e-3, optimizer=gdtuo.SGD(1e-10))),
}
OTHERS: dict[str, Maker] = {
    "torch SGD": lambda module: torch.optim.SGD(module.parameters()),
    "torch Adam, single tensor": lambda module: torch.optim.Adam(module.parameters(), foreach=False),
    "Prodigy": lambda module: Prodigy(module.parameters()),
    "AdamW-ScheduleFree": schedule_free,
    "ProdigyPlusScheduleFree": lambda module: ProdigyPlusScheduleFree(module.parameters()),
    **REFERENCES,
}
OURS: dict[str, Maker] = {f"eager, {name}": ours(tower, compile=False) for name, tower in TOWERS.items()}
COMPILED: dict[str, Maker] = {f"compiled, {name}": ours(tower, compile=True) for name, tower in TOWERS.items()}
ALL = {**BASELINES, **OTHERS, **OURS, **COMPILED}
HEIGHTS = (0, 1, 2, 3, 5, 10, 50)
