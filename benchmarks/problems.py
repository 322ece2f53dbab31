"""The models, as modules that return logits, and the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, scaled_dot_product_attention

Shapes = list[torch.Size]


class MLP(nn.Sequential):
    """The paper's, on MNIST: 784–128–10 with tanh on the hidden layer and on the outputs; 102k elements in 4 tensors."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh())


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, before: int, width: int, projection: bool) -> None:
        super().__init__()
        self.stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.projection = None
        if projection and width != before:
            self.projection = nn.Sequential(nn.Conv2d(before, width, 1, self.stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, before, height, width) to (batch, width, height / stride, width / stride)."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        if self.projection is not None:
            return relu(y + self.projection(x))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        new = y.shape[1] - x.shape[1]
        return relu(y + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, new)) if new else y + shortcut)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, on CIFAR-10.

    Args:
        projection: whether shortcuts between sizes are 1 × 1 convolutions (their option B; 272k elements in 65 tensors)
            or pad with zeros (option A, theirs on CIFAR-10; 270k in 59).
    """

    def __init__(self, projection: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, projection) for a, b in pairwise(widths)))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 3, 32, 32) to (batch, 10)."""
        return self.head(self.blocks(relu(self.norm(self.conv(x)))).mean(dim=(2, 3)))


class CharLSTM(nn.Module):
    """Two layers of `nn.LSTM` over an embedding of characters."""

    def __init__(self, vocabulary: int, embedding: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, sequence) to (batch, sequence, vocabulary)."""
        return self.head(self.lstm(self.embedding(x))[0])


class GPTBlock(nn.Module):
    """Causal attention and a two-layer network, each after a norm and added to its input; 12 tensors."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, sequence, width) to the same."""
        q, k, v = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """A decoder of characters."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, sequence: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(sequence, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, sequence) to (batch, sequence, vocabulary)."""
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.tokens(x) + places)))


def shapes(make: Callable[[], nn.Module]) -> Shapes:
    """The shapes of a model's parameters, without making them."""
    with torch.device("meta"):
        return [p.shape for p in make().parameters()]


class Task(NamedTuple):
    """A model to train on random data: both made from the present seed."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    """Inputs and the classes of all outputs."""


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of all outputs."""
    return cross_entropy(logits.flatten(0, -2), target.flatten())


def characters(batch: int, sequence: int) -> tuple[Tensor, Tensor]:
    """Random text and, for each character, the next one."""
    text = torch.randint(VOCABULARY, (batch, sequence + 1))
    return text[:, :-1], text[:, 1:]


def images(batch: int) -> tuple[Tensor, Tensor]:
    """Random images of 32 × 32, channels last, and their classes."""
    return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (batch,))


VOCABULARY = 82
"""Different characters in War and Peace."""

TASKS = {
    "mlp": Task(MLP, lambda: (torch.rand(256, 1, 28, 28), torch.randint(10, (256,)))),
    "resnet": Task(lambda: ResNet20(projection=True).to(memory_format=torch.channels_last), lambda: images(128)),
    "lstm": Task(lambda: CharLSTM(VOCABULARY), lambda: characters(50, 50)),
    "gpt": Task(lambda: GPT(VOCABULARY, layers=4, width=128, heads=4, sequence=64), lambda: characters(12, 64)),
}
