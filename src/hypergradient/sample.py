"""Samples: of a large parameter, a hypergradient can be read off one in so many blocks of neighbouring elements."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Layout

LARGE = 1 << 17
"""From so many elements on, in all processes together, a parameter is sampled."""


class Sample(NamedTuple):
    """Of each row of a tensor (dimension 0), the middle one of every `every` blocks of `size` elements.

    Rows stay whole rows: shards of them are cut the same way, on any number of processes.

    Args:
        shape: of what is kept of all rows.
        columns: the elements of a row.
        blocks: how many of it are read.
    """

    shape: tuple[int, ...]
    columns: int
    blocks: int
    every: int
    size: int

    @classmethod
    def of(cls, p: Tensor, every: int) -> Sample | None:
        """That of a parameter; None where all of it is read."""
        layout = Layout.of(p)
        whole = every == 1 or p.numel() < LARGE or p.is_complex() or not layout.local(p).is_contiguous()
        if whole or not all(x.is_replicate() or (x.is_shard(0) and p.ndim > 1) for x in layout.placements):
            return None
        columns = prod(p.shape[1:]) if p.ndim > 1 else p.numel()
        blocks = -(-columns // (4096 * every))  # long ones, so that memory that is left out is not touched
        size = columns // (blocks * every)
        if not size:
            return None
        return cls((*p.shape[: p.ndim > 1], blocks * size), columns, blocks, every, size)

    def __call__(self, flat: Tensor) -> Tensor:
        """A copy of what is read of the elements that are here: to work on them where they lie apart takes longer.

        shape: (elements,) -> (elements of the sample,)
        """
        rows = flat.view(-1, self.columns)[:, : self.blocks * self.every * self.size]
        read = rows.view(-1, self.blocks, self.every, self.size).select(2, self.every // 2)
        return read.clone(memory_format=torch.contiguous_format).view(-1)
