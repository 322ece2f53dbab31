"""The optimizers that are compared, by name: each is made of parameters and the number of steps, with its schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import cos, pi

import torch
from dadaptation import DAdaptAdam
from dog import DoG
from mechanic_pytorch import mechanize
from prodigyopt import Prodigy
from prodigyplus import ProdigyPlusScheduleFree
from schedulefree import AdamWScheduleFree
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

import hypergradient
from hypergradient import Hyperoptimizer

Params = Sequence[torch.nn.Parameter]
Made = tuple[Optimizer, LambdaLR | None]
Method = Callable[[Params, int], Made]


class AveragedDoG(DoG):
    """DoG, and at `eval` the average that its authors find crucial: their polynomial decay averaging, γ = 8."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = super().step(closure)
        self.made = getattr(self, "made", 0) + 1
        with torch.no_grad():
            for p in self._params():
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p, 9 / (8 + self.made))
        return loss

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average in the place of the parameters, and these in its place."""
        for p in self._params():
            if "mean" in self.state[p]:
                p.data, self.state[p]["mean"] = self.state[p]["mean"], p.data

    train = eval


def plain(make: Callable[[Params], Optimizer], params: Params, steps: int) -> Made:
    """No schedule."""
    return make(params), None


def cosine(make: Callable[[Params], Optimizer], params: Params, steps: int) -> Made:
    """Warm-up over 5 % of the steps, then half a cosine to 0."""
    optimizer, rise = make(params), max(1, steps // 20)
    return optimizer, LambdaLR(
        optimizer, lambda i: (i + 1) / rise if i < rise else (1 + cos(pi * (i - rise) / (steps - rise))) / 2
    )


def cooled(make: Callable[[Params], Optimizer], params: Params, steps: int) -> Made:
    """As it is, but for the last fifth of the steps, in which the step size falls to 0 in a straight line."""
    optimizer, begin = make(params), steps - max(1, steps // 5)
    return optimizer, LambdaLR(optimizer, lambda i: 1.0 if i < begin else (steps - i) / (steps - begin))


def dropped(params: Params, steps: int) -> Made:
    """As He et al. 2016 train residual networks: SGD, whose step size is divided by 10 after 50 and 75 % of the steps."""
    optimizer = torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-4)
    return optimizer, MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])


def tower(make: Callable[[], object], params: Params, steps: int) -> Made:
    """A tower of the library; `make` is called when it is needed."""
    return Hyperoptimizer(params, make()), None


def started(lr: float) -> object:
    """The default, from another step size."""
    return hypergradient.auto(hypergradient.AdamWScheduleFree(lr=lr))


DEFAULT, TUNED, DROPS = "default", "default, tune_on", "SGD 0.1, ÷10 twice"
STARTS = {f"{DEFAULT} from {lr}": float(lr) for lr in ("1e-8", "1e-6", "1e-2")}
"""The default's step size at the beginning, by the name of the method."""


def varied() -> Iterator[tuple[str, hypergradient.Tower]]:
    """The default with another of its numbers, by what is done to it."""
    rule, tuner = hypergradient.auto()
    for words, times in (("× 4", 4.0), ("÷ 4", 1 / 4)):
        yield f"gain {words}", rule / replace(tuner, lr=times * tuner.lr)
    for words, times in (("× 2", 2.0), ("÷ 2", 1 / 2)):
        yield f"horizon {words}", replace(rule, horizon=hypergradient.Age(times * rule.horizon.times)) / tuner
    for words, times in (("× 2", 2.0), ("÷ 2", 1 / 2)):
        yield f"r {words}", replace(rule, r=times * rule.r) / tuner


VARIANTS = {f"{DEFAULT}, {what}": each for what, each in varied()}
"""Such defaults, by the name of the method."""
DECAYED, COOLED, CALM = "auto(weight_decay=0.1)", f"{DEFAULT}, lr to 0 in the last fifth", f"{DEFAULT}, gain ÷ 2"
OURS: dict[str, Method] = {
    DECAYED: partial(tower, lambda: hypergradient.auto(weight_decay=0.1)),
    COOLED: partial(cooled, Hyperoptimizer),
    CALM: partial(tower, lambda: hypergradient.auto().rules[0] / hypergradient.Tuner(lr=0.65)),
    "auto(Adam())": partial(tower, lambda: hypergradient.auto(hypergradient.Adam())),
    "auto(SGD(momentum=0.9))": partial(tower, lambda: hypergradient.auto(hypergradient.SGD(momentum=0.9))),
    "Adam(1e-3) / SGD(1e-5)": partial(tower, lambda: hypergradient.Adam(lr=1e-3) / hypergradient.SGD(lr=1e-5)),
    "Adam(1e-3) / Adam(1e-4)": partial(tower, lambda: hypergradient.Adam(lr=1e-3) / hypergradient.Adam(lr=1e-4)),
    "SGD(0.01) / SGD(1e-5)": partial(tower, lambda: hypergradient.SGD(lr=0.01) / hypergradient.SGD(lr=1e-5)),
}
"""Other towers: the library's own and the paper's."""
PEERS: dict[str, Method] = {
    "Prodigy": partial(plain, Prodigy),
    "DAdaptAdam": partial(plain, DAdaptAdam),
    "schedule-free AdamW": partial(plain, AdamWScheduleFree),
    "ProdigyPlusScheduleFree": partial(plain, partial(ProdigyPlusScheduleFree, split_groups=False)),  # there is one group
    "DoG": partial(plain, AveragedDoG),
    "Mechanic(AdamW)": partial(plain, partial(mechanize(torch.optim.AdamW), lr=1.0)),
}
"""Of others, as they are where nothing is set."""
AVERAGED = {DEFAULT, TUNED, DECAYED, COOLED, CALM, *STARTS, *VARIANTS, "schedule-free AdamW", "ProdigyPlusScheduleFree", "DoG"}
"""What is validated as trained, and at an average too."""

LRS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
GRIDS: dict[str, tuple[Callable[..., Optimizer], list[float]]] = {
    "Adam": (torch.optim.Adam, LRS),
    "AdamW": (torch.optim.AdamW, LRS),
    "SGD": (partial(torch.optim.SGD, momentum=0.9), [10 * lr for lr in LRS]),
}
"""What has a step size to choose, and the choice."""
SCHEDULES = {"": plain, ", cosine": cosine}
"""By what they add to a name."""


def grid(family: str, schedules: Iterable[str] = tuple(SCHEDULES)) -> list[str]:
    """The names of the methods of a family."""
    return [f"{family} {lr:g}{schedule}" for schedule in schedules for lr in GRIDS[family][1]]


METHODS: dict[str, Method] = {
    **dict.fromkeys((DEFAULT, TUNED), partial(plain, Hyperoptimizer)),
    **{name: partial(tower, partial(started, lr)) for name, lr in STARTS.items()},
    **{name: partial(tower, lambda each=each: each) for name, each in VARIANTS.items()},
    DROPS: dropped,
    **OURS,
    **PEERS,
    **{
        f"{family} {lr:g}{schedule}": partial(scheduled, partial(make, lr=lr))
        for family, (make, lrs) in GRIDS.items()
        for lr in lrs
        for schedule, scheduled in SCHEDULES.items()
    },
}
