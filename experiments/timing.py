"""How long a training iteration takes: of whom, on what, and in turns. The data are random."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from torch import Tensor, nn

from hypergradient import Hyperoptimizer, Rule, Tower

from .models import MLP, CharLSTM, ResNet20, loss

WARM_UP = 4
"""Iterations before the first that counts: what is compiled is compiled in the first three."""
WARM_BYTES = 30 * 2**20
"""A block to allocate and free first. glibc returns freed memory to the system, at the price of page faults in every step,
above a threshold that grows with the largest block freed so far; in a training an activation has raised it long ago."""


# ------------------------------------------------------------------ of whom


class Optimizer(Protocol):
    """What the measurements need of an optimizer."""

    def zero_grad(self) -> None:
        """Called before the forward pass."""

    def step(self) -> Any:
        """Called after the backward pass."""


Maker = Callable[[nn.Module], Optimizer]
"""Makes an optimizer of a module's parameters."""


class Reference:
    """An optimizer of the reference implementation, with the interface of the others. It cannot train `nn.LSTM`.

    Its hypergradients are made in the backward pass, which goes on through the last update.
    """

    def __init__(self, module: nn.Module, optimizer: gdtuo.Optimizable) -> None:
        self.wrapper = gdtuo.ModuleWrapper(module, optimizer)
        self.wrapper.initialize()

    def zero_grad(self) -> None:
        """Make the parameters leaves of the next backward pass."""
        self.wrapper.begin()
        self.wrapper.zero_grad()

    def step(self) -> None:
        """Put new parameters into the module."""
        self.wrapper.step()


def ours(tower: Rule | Tower, compile: bool) -> Maker:
    """A tower, eager or compiled."""
    return lambda module: Hyperoptimizer(module.parameters(), tower, compile=compile)


# ------------------------------------------------------------------ on what


class Problem(NamedTuple):
    """A model to train on random data: both made from the present seed."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    """Inputs and the classes of all outputs."""


VOCABULARY = 82
"""Different characters in War and Peace."""


def characters(batch: int, sequence: int) -> tuple[Tensor, Tensor]:
    """Random text and, for each character, the next one."""
    text = torch.randint(VOCABULARY, (batch, sequence + 1))
    return text[:, :-1], text[:, 1:]


def images(batch: int) -> tuple[Tensor, Tensor]:
    """Random images of 32 × 32, channels last, and their classes."""
    return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (batch,))


PROBLEMS = {
    "mlp": Problem(MLP, lambda: (torch.rand(256, 1, 28, 28), torch.randint(10, (256,)))),
    "resnet": Problem(lambda: ResNet20(projection=True).to(memory_format=torch.channels_last), lambda: images(128)),
    "lstm": Problem(lambda: CharLSTM(VOCABULARY), lambda: characters(50, 50)),
}


# ----------------------------------------------------------------- in turns


class Time(NamedTuple):
    """Of one training iteration, in ms."""

    iteration: float
    step: float


Run = Callable[[], Time]
Backward = Callable[[nn.Module], Any]


def now() -> float:
    """Seconds, when an accelerator, if there is one, has done what it was asked for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()


def iterate(module: nn.Module, optimizer: Optimizer, backward: Backward) -> Time:
    """One training iteration; `backward` makes the gradients."""
    start = now()
    optimizer.zero_grad()
    backward(module)
    middle = now()
    optimizer.step()
    end = now()
    return Time(1e3 * (end - start), 1e3 * (end - middle))


def training(make: Maker, problem: Problem, batches: int = 8, device: str = "cpu") -> Run:
    """Whole iterations, on a few batches in turn."""
    torch.manual_seed(0)
    module = problem.model().to(device)
    data = [[x.to(device) for x in problem.batch()] for _ in range(batches)]
    optimizer = make(module)
    turn = 0

    def run() -> Time:
        nonlocal turn
        turn += 1
        x, y = data[turn % batches]
        return iterate(module, optimizer, lambda module: loss(module(x), y).backward())

    return run


def interleave(runs: dict[str, Run], seconds: float, least: int, tick: Callable[[float], None]) -> dict[str, list[Time]]:
    """Times of everybody in rounds, each in an order of its own; `tick` is told the part that is done.

    Args:
        seconds: how long, without the warm-up.
        least: of how many rounds at least.
    """
    torch.empty(WARM_BYTES, dtype=torch.uint8)
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    gc.collect()
    times: dict[str, list[Time]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    start, rounds, past = perf_counter(), 0, 0.0
    while past < seconds or rounds < least:
        shuffle(order)
        for name in order:
            times[name].append(runs[name]())
        rounds, past = rounds + 1, perf_counter() - start
        tick(min(past / seconds, rounds / least))
    return times


def quartiles(sample: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(sample, n=4, method="inclusive") if len(sample) > 1 else 3 * sample


def ratio(sample: list[float], base: list[float]) -> list[float]:
    """Quartiles of the ratios within each round: what disturbs a round disturbs both."""
    return quartiles([a / b for a, b in zip(sample, base, strict=True)])
