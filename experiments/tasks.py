"""What is trained: a model, its batches, its loss and its test.

The batch of a step depends on the seed and the step alone. So a training that goes on from a checkpoint sees what it would
have seen, and all towers of an experiment see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from . import data
from .models import MLP, CharLSTM, ResNet20, loss

Batch = tuple[Tensor, Tensor]
"""Inputs, and the classes of all outputs."""


class Task(Protocol):
    """A model and what it is trained on."""

    clip: float
    """Gradients are clipped to this value."""
    precision: torch.dtype
    """What the model is computed in."""

    def model(self) -> nn.Module:
        """An untrained model, of the present seed of torch."""

    def batch(self, seed: int, step: int) -> Batch:
        """What step 0, 1, 2, … is trained on."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over all outputs."""

    def test(self, model: nn.Module) -> float:
        """How well it does on what it has not seen; less is better."""


def half(device: str) -> torch.dtype:
    """bfloat16 where the device computes in it. A CPU without AVX-512 would only imitate it, thirty times slower."""
    slow = torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512"
    return torch.float32 if slow else torch.bfloat16


def generator(*seeds: int) -> torch.Generator:
    """Random numbers that depend on `seeds` alone."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def shuffled(samples: int, size: int, seed: int, step: int) -> Tensor:
    """Whose turn it is: every sample once an epoch, and the last batch of an epoch may be smaller. shape: (size,)"""
    epoch, turn = divmod(step, -(-samples // size))
    return order(samples, seed, epoch)[turn * size : (turn + 1) * size]


@lru_cache(maxsize=1)
def order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch. shape: (samples,)"""
    return torch.randperm(samples, generator=generator(seed, epoch))


def cropped(x: Tensor, draw: torch.Generator) -> Tensor:
    """Each image from a border of 4, mirrored or not. shape: (n, channels, 32, 32), as what is returned"""
    n, ends = len(x), torch.arange(32)
    down, right = (torch.randint(9, (n, 1), generator=draw) + ends for _ in range(2))
    flip = torch.rand(n, 1, generator=draw) < 0.5
    right = torch.where(flip, right.flip(1), right)
    rows = torch.arange(n).view(n, 1, 1)
    return pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[rows, down.unsqueeze(2), right.unsqueeze(1)].permute(0, 3, 1, 2)


@torch.inference_mode()
def error(model: nn.Module, x: Iterator[Tensor], y: Tensor) -> float:
    """Wrong answers in percent."""
    model.eval()
    answers = torch.cat([model(part).argmax(dim=-1) for part in x])
    model.train()
    return 100 * (answers != y).float().mean().item()


@dataclass
class Digits:
    """The MLP of Table 1 on MNIST: batches of 256, pixels in [0, 1]."""

    device: str = "cpu"
    clip = float("inf")
    precision = torch.float32

    def __post_init__(self) -> None:
        found = data.mnist()
        self.x, self.test_x = (x.to(self.device).float() / 255 for x in (found.x, found.test_x))
        self.y, self.test_y = found.y.to(self.device), found.test_y.to(self.device)

    def model(self) -> nn.Module:
        return MLP()

    def batch(self, seed: int, step: int) -> Batch:
        chosen = shuffled(len(self.y), 256, seed, step).to(self.device)
        return self.x[chosen], self.y[chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    def test(self, model: nn.Module) -> float:
        return error(model, iter(self.test_x.split(2000)), self.test_y)


@dataclass
class Objects:
    """ResNet-20 on CIFAR-10 as in He et al. 2016: batches of 128, cropped from a border of 4 and flipped.

    Args:
        classes: which classes; they are numbered anew.
    """

    device: str = "cpu"
    classes: range = range(10)
    clip = float("inf")

    def __post_init__(self) -> None:
        self.precision = half(self.device)
        found = data.cifar10()
        mean = torch.tensor([125.3, 123.0, 113.9], device=self.device).view(3, 1, 1)  # of the training images
        std = torch.tensor([63.0, 62.1, 66.7], device=self.device).view(3, 1, 1)
        self.normal = lambda x: (x.to(self.device) - mean) / std
        ours, ours_test = (torch.isin(y, torch.tensor(list(self.classes))) for y in (found.y, found.test_y))
        self.x, self.y = found.x[ours], found.y[ours].to(self.device) - self.classes.start
        self.test_x, self.test_y = found.test_x[ours_test], found.test_y[ours_test].to(self.device) - self.classes.start

    def model(self) -> nn.Module:
        return ResNet20(classes=len(self.classes)).to(memory_format=torch.channels_last)

    def batch(self, seed: int, step: int) -> Batch:
        chosen = shuffled(len(self.y), 128, seed, step)
        x = cropped(self.x[chosen], generator(seed, step, 1))
        return self.normal(x), self.y[chosen.to(self.device)]

    def autocast(self) -> torch.autocast:
        """Computes in `precision`."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.autocast():
            logits = model(batch[0])
        return loss(logits.float(), batch[1])

    def test(self, model: nn.Module) -> float:
        with self.autocast():
            return error(model, (self.normal(x) for x in self.test_x.split(1000)), self.test_y)


@dataclass
class Characters:
    """The two-layer LSTM on War and Peace, as in torch-rnn: batches of 50 pieces of 50 characters, gradients clipped at 5.

    Pieces are taken at random, and each begins with a state of 0.
    """

    device: str = "cpu"
    clip = 5.0
    precision = torch.float32

    def __post_init__(self) -> None:
        self.text = data.text()
        self.train = self.text.train.to(self.device)

    def model(self) -> nn.Module:
        return CharLSTM(self.text.vocabulary)

    def batch(self, seed: int, step: int) -> Batch:
        starts = torch.randint(len(self.train) - 50, (50, 1), generator=generator(seed, step))
        piece = self.train[(starts + torch.arange(51)).to(self.device)]
        return piece[:, :-1], piece[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return loss(model(batch[0]), batch[1])

    @torch.inference_mode()
    def test(self, model: nn.Module) -> float:
        pieces = self.text.test[: len(self.text.test) // 51 * 51].view(-1, 51).to(self.device)
        parts = pieces.split(500)
        total = sum(loss(model(part[:, :-1]), part[:, 1:]) * len(part) for part in parts)
        return float((total / len(pieces)).exp())


class Entry(NamedTuple):
    """The data set of a task, if there is one, and what makes the task on a device."""

    data: str
    make: Callable[[str], Task | None]


TASKS = {
    "mnist": Entry("mnist", Digits),
    "cifar10": Entry("cifar10", Objects),
    "cifar10, classes 0–4": Entry("cifar10", partial(Objects, classes=range(5))),
    "cifar10, classes 5–9": Entry("cifar10", partial(Objects, classes=range(5, 10))),
    "text": Entry("text", Characters),
    "none": Entry("", lambda device: None),
}
