"""Samples: the hypergradients of a large parameter can be read off a part of its elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import proxy

import torch
from torch import Tensor

from .layout import Layout

if TYPE_CHECKING:
    from .bucket import Bucket

LARGE = 1 << 17
"""From so many elements on, in all processes together, a parameter is sampled."""
ENOUGH = 1 << 13
"""Of a parameter no more elements than so many are read, but a line of each row, or of one row in `SPARSE`."""
SPARSE = 4
"""Of so many rows one is read at least: those of an embedding are not alike."""
LINE = 16
"""Elements of a cache line: to read a part of one takes as long."""
LONG = 1 << 12
"""Elements in a block at the most."""


class Sample(NamedTuple):
    """Of some rows of a tensor (dimension 0), some elements in the middle of each of some equal parts.

    Rows stay whole rows: shards of them are cut the same way, on any number of processes. So there is room for all of them in
    what is kept.

    Args:
        shape: of what is kept.
        skip: one row in so many is read; `first`: the first of them that is here.
        columns: the elements of a row.
        blocks: how many parts of it are read.
        size: how many elements of each.
        times: for how many elements each one stands that is read.
    """

    shape: tuple[int, ...]
    skip: int
    first: int
    columns: int
    blocks: int
    size: int
    times: float

    @classmethod
    def of(cls, p: Tensor, every: int) -> Sample | None:
        """That of a parameter, off one in `every` elements or fewer; None where all of it is read."""
        layout = Layout.of(p)
        whole = every == 1 or p.numel() < LARGE or p.is_complex() or not layout.local(p).is_contiguous()
        if whole or not all(x.is_replicate() or (getattr(x, "dim", None) == 0 and p.ndim > 1) for x in layout.placements):
            return None
        rows, columns = (p.shape[0], prod(p.shape[1:])) if p.ndim > 1 else (1, p.numel())
        read = min(max(1, columns // every), LINE * max(1, ENOUGH // (rows * LINE)))
        if read == columns:
            return None
        blocks, skip = -(-read // LONG), min(SPARSE, max(1, rows * read // ENOUGH))
        size, first = read // blocks, -layout.first(rows) % skip
        times = rows * columns / (len(range(0, rows, skip)) * blocks * size)
        return cls((*p.shape[: p.ndim > 1], blocks * size), skip, first, columns, blocks, size, times)

    def view(self, flat: Tensor) -> Tensor:
        """What is read of the elements that are here. shape: (elements,) -> (rows, blocks, size)"""
        part, step = self.columns // self.blocks, flat.stride(0)
        begin = self.first * self.columns + (part - self.size) // (2 * LINE) * LINE
        shape = len(range(self.first, flat.numel() // self.columns, self.skip)), self.blocks, self.size
        strides = self.skip * self.columns * step, part * step, step
        return flat.as_strided(shape, strides, flat.storage_offset() + begin * step)

    def kept(self, flat: Tensor) -> Tensor:
        """The same of what is kept of them. shape: (rows * blocks * size,) -> (rows, blocks, size)"""
        return flat.view(-1, self.blocks, self.size)[self.first :: self.skip]

    def room(self, flat: Tensor) -> Tensor:
        """For what is kept of the elements that are here: zeros. shape: (elements,) -> (rows * blocks * size,)"""
        return flat.new_zeros(flat.numel() // self.columns * self.blocks * self.size)


class Samples:
    """What is read of some large parameters, side by side: to work on each by itself takes longer, and longer yet where its
    elements lie apart. A step is made of these copies, too, for what is kept of it.

    Args:
        buckets: of one parameter each; alike in all but their size, and with each element read for as many others.

    Attributes:
        param, grad, u, state, kept: as those of a bucket, from `gather` on.
        sizes: how many elements are read of each; `cuts`, `readings`: as those of a bucket.
    """

    cuts: tuple[int, ...] = ()
    readings: Tensor | None = None

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets: list[Bucket] = [proxy(b) for b in buckets]  # in a circle, all would live until somebody collects it
        self._places: dict[Any, tuple[Tensor, list[Tensor]]] = {}
        self._state = [self._views(each) for each in zip(*(b.state for b in buckets), strict=True)]
        self._kept = [[*x] for x in zip(*([b.sample.kept(x) for x in b.kept] for b in buckets if b.sample), strict=True)]
        self.sizes = [x.numel() for x in self._kept[0]]

    def gather(self) -> None:
        """Copy what a step begins with."""
        params, grads, other = zip(*((b.param, b.grad, b.u) for b in self.buckets), strict=True)
        self.param, self.grad = self._put("param", self._views(params)), self._put("grad", self._views(grads))
        for b, view in zip(self.buckets, self._places["param"][1], strict=True):
            b.edits.glimpse = view
        self.u = self.grad if all(map(is_, grads, other)) else self._put("u", self._views(other))
        self.state = [self._put(("state", i), views) for i, views in enumerate(self._state)]
        self.kept = [self._put(("kept", i), views) for i, views in enumerate(self._kept)]

    def scatter(self) -> None:
        """Put what is kept of this step where it is remembered."""
        for i, views in enumerate(self._kept):
            torch._foreach_copy_(views, self._places["kept", i][1])

    def _views(self, elements: Sequence[Tensor]) -> list[Tensor]:
        return [b.sample.view(x) for b, x in zip(self.buckets, elements, strict=True) if b.sample]

    def _put(self, name: Any, parts: list[Tensor]) -> Tensor:
        """`parts` side by side, in a place that is kept for them."""
        if name not in self._places:
            sizes = [x.numel() for x in parts]
            dtype = self.buckets[0].dtype if parts[0].is_floating_point() else parts[0].dtype
            flat = parts[0].new_empty(sum(sizes), dtype=dtype)
            self._places[name] = flat, [x.view(part.shape) for x, part in zip(flat.split(sizes), parts, strict=True)]
        flat, places = self._places[name]
        torch._foreach_copy_(places, parts)
        return flat
