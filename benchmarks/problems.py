"""The models, as modules that return logits, and the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from experiments.models import MLP, CharLSTM, ResNet20
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Shapes = list[torch.Size]


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
