"""What is trained: the models of the paper and a GPT, as modules that return logits; and the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from experiments import timing
from experiments.timing import VOCABULARY, Problem, characters
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


PROBLEMS = {
    **timing.PROBLEMS,
    "gpt": Problem(lambda: GPT(VOCABULARY, layers=4, width=128, heads=4, sequence=64), lambda: characters(12, 64)),
}
