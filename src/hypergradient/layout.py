"""Shards: tensors of which each process holds a part (`torch.distributed.tensor.DTensor`, so FSDP2 and tensor parallelism).

A step works on the part that is here, and needs only two things of the others: a rule that mixes elements needs them
all, and the products that a hypergradient is made of are sums over all elements.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .numerics import on_host

Key = TypeVar("Key")
Processes = tuple[Any, ...]


class Layout(NamedTuple):
    """How a tensor is spread over processes.

    Args:
        mesh: the processes; None for a tensor that is not spread, and all of which is here.
        placements: by dimension of the mesh, whether its processes hold shards or replicas.
    """

    mesh: Any = None
    placements: tuple[Any, ...] = ()

    @classmethod
    def of(cls, x: Any, whole: bool = False) -> Layout:
        """The layout in which `x` is worked on: its own, or, where its elements need each other, the `whole` everywhere."""
        if not hasattr(x, "placements"):
            return cls()
        from torch.distributed.tensor import Replicate

        return cls(x.device_mesh, tuple(Replicate() for _ in x.placements) if whole else tuple(x.placements))

    def local(self, x: Any) -> Tensor:
        """The part of `x` that is here; it shares the memory of `x` if that has this layout."""
        if self.mesh is None:
            return cast(Tensor, x)
        if not hasattr(x, "placements"):
            from torch.distributed.tensor import DTensor, Replicate

            x = DTensor.from_local(x, self.mesh, [Replicate() for _ in self.placements], run_check=False)
        if tuple(x.placements) != self.placements:  # also gradients that are still to be summed
            x = x.redistribute(self.mesh, self.placements)
        return cast(Tensor, x.detach().to_local())

    def first(self, rows: int) -> int:
        """The number of the first of so many rows that is here; 0 where there are none."""
        if self.mesh is None:
            return 0
        with on_host():
            here = self.local(torch.arange(rows))
        return int(here[0]) if here.numel() else 0

    def size(self, x: Tensor) -> int:
        """How many elements of `x` are in each process, about: the same number in all of them."""
        sizes = [self.mesh.size(i) for i, kind in enumerate(self.placements) if not kind.is_replicate()]
        return -(-x.numel() // int(prod(sizes)))

    def parts(self, tensors: list[Any]) -> list[Tensor]:
        """`local` of each."""
        return tensors if self.mesh is None else [self.local(x) for x in tensors]

    def join(self, part: Tensor, like: Tensor) -> Tensor:
        """The tensor, shaped like `like`, of which `part` is here; it shares the memory of `part`."""
        if self.mesh is None:
            return part
        from torch.distributed.tensor import DTensor

        if offset := part.storage_offset() * part.element_size():  # `copy.deepcopy` fails where a DTensor has one
            rest = part.untyped_storage()[offset:]
            part = part.new_empty(0).set_(cast(Any, rest), 0, part.shape, part.stride())
        return DTensor.from_local(part, self.mesh, self.placements, shape=like.shape, stride=like.stride())

    @property
    def processes(self) -> Processes:
        """Those among which the elements are spread: replicas count once."""
        return tuple(self.mesh.get_group(i) for i, x in enumerate(self.placements) if not x.is_replicate())


def total(parts: Iterable[tuple[Key, Processes, Tensor]]) -> dict[Key, Tensor]:
    """For each key the sum, each part over the processes of its groups; one all-reduce per group in all."""
    sums: dict[tuple[Key, Processes], Tensor] = {}
    for key, groups, x in parts:  # processes may cut differently into parts what is spread alike
        sums[key, groups] = sums[key, groups] + x if (key, groups) in sums else x
    for group in dict.fromkeys(chain.from_iterable(groups for _, groups in sums)):
        mine = [k for k in sums if group in k[1]]
        flat = torch.cat([sums[k].flatten() for k in mine])
        torch.distributed.all_reduce(flat, group=group)
        for k, x in zip(mine, flat.split([sums[k].numel() for k in mine]), strict=True):
            sums[k] = x.view_as(sums[k])
    found: dict[Key, Tensor] = {}
    for (key, _), x in sums.items():
        found[key] = found[key] + x if key in found else x
    return found


def wrapper(x: Tensor) -> bool:
    """Whether a tensor only stands for others, and is no shard: a part of one cannot be copied or saved."""
    return type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not hasattr(x, "placements")


def address(x: Any) -> int:
    """Where the elements of `x` that are here begin; 0 where there are none."""
    here = getattr(x, "_local_tensor", x)
    known = isinstance(here, Tensor) and not is_lazy(here) and type(here).__name__ != "FakeTensor"
    return cast(int, here.data_ptr()) if known and here.layout == torch.strided else 0


def shapes(params: Sequence[Tensor]) -> tuple[list[int], list[bool]]:
    """How many elements they have, and which are contiguous; without those that a lazy module has not made yet."""
    try:
        return list(map(Tensor.numel, params)), list(map(Tensor.is_contiguous, params))
    except ValueError:
        return shapes([p for p in params if not is_lazy(p)])


def overlapping(tensors: Iterable[Any]) -> set[int]:
    """The ids of those whose elements share memory, or may. One of them twice is two."""
    spans = []
    for x in tensors:
        here = getattr(x, "_local_tensor", x)
        if (begin := address(x)) and here.numel():
            reach = sum((n - 1) * step for n, step in zip(here.shape, here.stride(), strict=True))
            spans.append((begin, begin + (reach + 1) * here.element_size(), id(x)))
    found, last, end = set(), 0, 0
    for begin, stop, name in sorted(spans):
        if begin < end:
            found |= {last, name}
        if stop > end:
            last, end = name, stop
    return found


def reshard() -> None:
    """Have FSDP2 let go of what it has gathered for a forward pass, as it keeps that of the root until a backward pass."""
    known = sys.modules.get("torch.distributed._composable_state")  # there, where FSDP2 is
    for module in [*getattr(known, "_module_state_mapping", ())]:
        if hasattr(module, "reshard"):
            module.reshard()
