"""Buckets: many tensors as few flat ones.

A step on a thousand small tensors is a thousand times the dispatch of one. Small parameters of the same kind and history
are therefore gathered into flat buckets; a large one is a bucket by itself and is read and written in place, in pieces
that fit the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .hypergradient import Sensitivity, differentiate
from .numerics import all_finite, wide
from .rule import State

if TYPE_CHECKING:
    from .level import Hyperparameters, Scope

PIECE = 1 << 17
"""Elements worked on at a time: a few of float32 fit a second-level cache."""
PREFIX = "sensitivity_"


class Block(ABC):
    """Elements that one rule moves together.

    Attributes:
        owner: the hyperparameters they are moved with.
        param, grad: what is moved, and along what; both shaped alike.
        state: what the rule remembers of them. shape of each: that of `param`
        sensitivity: by hyperparameter, ``dU/dh`` of the past steps, faded by the horizon. shape: that of `param`
        step: how many steps they have made. shape: ()
    """

    owner: Hyperparameters
    scope: Scope
    param: Tensor
    grad: Tensor
    state: State
    sensitivity: Sensitivity
    step: Tensor

    @abstractmethod
    def select(self, values: Tensor) -> Tensor:
        """The values that the segments of this block use. shape: (sets,) -> () or (segments,)"""

    @abstractmethod
    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        """From segments to elements. shape: (segments,) -> that of `like`, a piece of `param`"""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """Sums over the elements that use the same set of hyperparameters. shape: that of `param` -> (sets,)"""

    def pieces(self) -> Iterator[Any]:
        """Indices that cut the elements into parts to be worked on one after the other."""
        yield ...

    def tensors(self) -> dict[str, Tensor]:
        """All that this block remembers, by the name under which it is saved."""
        return {"step": self.step, **self.state, **{PREFIX + n: t for n, t in self.sensitivity.items()}}

    def products(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """``<g, T>``, ``<g, g>`` and ``<T, T>`` with the sensitivity T to hyperparameter `name`. shape of each: (sets,)"""
        terms = []
        for piece in self.pieces():
            g, t = self.grad[piece], self.sensitivity[name][piece]
            pairs = ((g, t), (g, g), (t, t)) if self.owner.rule.normalize else ((g, t),)
            terms.append([self.total(a * b) for a, b in pairs])
        sums = [torch.stack(x).sum(0) for x in zip(*terms, strict=True)]
        return (sums[0], sums[-2 if len(sums) > 1 else 0], sums[-1])

    def fade(self) -> None:
        """Let a step pass in which these elements did not move."""
        for tensor in self.sensitivity.values():
            tensor.mul_(self.owner.fading)

    def move(self, allowed: Tensor | None = None) -> None:
        """Make one step with the hyperparameters in force, or none at all where `allowed` is false. shape: ()"""
        owner, names = self.owner, tuple(self.sensitivity)
        values = {n: self.select(v.to(self.param)) for n, v in owner.values(self.scope).items()}
        count = self.step + 1
        for piece in self.pieces():
            old = {"": self.param[piece], **{n: t[piece] for n, t in self.state.items()}}
            state = {n: t for n, t in old.items() if n}
            step = owner.rule, values, names, count, old[""], self.grad[piece], state
            param, state, partial = differentiate(*step, self.spread)
            new = {"": param, **state}
            for n, slope in partial.items():
                old[PREFIX + n] = trace = self.sensitivity[n][piece]
                scale = self.scope.scale.get(n)
                new[PREFIX + n] = trace * owner.fading + (slope if scale is None else slope * scale.to(slope))
            if allowed is not None:
                allowed = allowed & all_finite(new.values())
            for n, tensor in old.items():
                tensor.copy_(new[n] if allowed is None else torch.where(allowed, new[n], tensor))
        self.step.add_(1 if allowed is None else allowed)


class Matrix(Block):
    """The hyperparameters of a rule as what the rule above moves. shape of `param`: (tuned, sets)"""

    def __init__(self, owner: Hyperparameters, param: Tensor) -> None:
        self.owner, self.scope, self.param = owner, owner.scope, param
        self.state = owner.rule.init(param)
        self.sensitivity = {name: torch.zeros_like(param) for name in owner.names}
        self.step = param.new_zeros(())

    def select(self, values: Tensor) -> Tensor:
        return values.view(-1, 1).expand_as(self.param)

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.sum(1) if self.owner.sets > 1 else x.sum().view(1)


class Bucket(Block):
    """Parameters of one dtype, device, group and history.

    Args:
        members: the parameters. A rule that is not elementwise gets one at a time, in its shape.
        index: which set of hyperparameters each of them uses, or None where there is one for all. shape: (members,)
    """

    def __init__(self, owner: Hyperparameters, scope: Scope, members: Sequence[Tensor], index: Tensor | None) -> None:
        self.owner, self.scope, self.members, self.index = owner, scope, list(members), index
        self.sizes = [p.numel() * (2 if p.is_complex() else 1) for p in members]
        empty = self._flat(members).to(wide(members[0].dtype))
        self.state = owner.rule.init(empty)
        self.sensitivity = {name: torch.zeros_like(empty) for name in owner.names}
        self.step = empty.new_zeros(())
        self.counts = torch.tensor(self.sizes, device=empty.device)

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
        if not self.owner.rule.elementwise:
            return real[0]
        return real[0].reshape(-1) if len(real) == 1 else torch.cat([t.reshape(-1) for t in real])

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat tensor that belong to each member, in its shape."""
        if not self.owner.rule.elementwise:
            return [flat]
        parts = flat.split(self.sizes)
        return [
            torch.view_as_complex(part.view(*p.shape, 2)) if p.is_complex() else part.view(p.shape)
            for part, p in zip(parts, self.members, strict=True)
        ]

    def gather(self, maximize: bool) -> None:
        """Read the members and their gradients."""
        compute = wide(self.members[0].dtype)
        self.param = self._flat([p.detach() for p in self.members]).to(compute)
        grad = self._flat([p.grad for p in self.members if p.grad is not None]).to(compute)
        self.grad = -grad if maximize else grad

    def scatter(self) -> None:
        """Write the members, in place."""
        members = [p.detach() for p in self.members]
        if members[0].untyped_storage().data_ptr() != self.param.untyped_storage().data_ptr():
            torch._foreach_copy_(members, self.views(self.param))
        del self.param, self.grad

    def memory(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Each member with what is remembered of it: views, shaped like it."""
        parts = {n: self.views(t) for n, t in self.tensors().items() if n != "step"}
        for i, p in enumerate(self.members):
            yield p, {"step": self.step, **{n: views[i] for n, views in parts.items()}}

    def select(self, values: Tensor) -> Tensor:
        if values.ndim and self.index is not None:
            values = values.index_select(0, self.index)
        return values if values.numel() > 1 else values.view(())

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        return x.repeat_interleave(self.counts, output_size=like.numel())

    def total(self, x: Tensor) -> Tensor:
        if self.index is None:
            return x.sum().view(1)
        parts = x.split(self.sizes) if len(self.members) > 1 else [x]
        sums = torch.stack([part.sum() for part in parts])
        return sums.new_zeros(self.owner.sets).index_add(0, self.index, sums)

    def pieces(self) -> Iterator[Any]:
        n = self.sizes[0]
        if len(self.members) > 1 or n <= PIECE or not self.owner.rule.elementwise:
            yield ...
        else:
            for start in range(0, n, PIECE):
                yield slice(start, start + PIECE)


class Family:
    """The parameters of one group, in buckets.

    Args:
        memory: what is remembered of each parameter, kept up to date.
    """

    def __init__(
        self, owner: Hyperparameters, scope: Scope, params: Sequence[Tensor], memory: MutableMapping[Tensor, Any]
    ) -> None:
        self.owner, self.scope, self.params, self.memory = owner, scope, list(params), memory
        self.position = {p: i for i, p in enumerate(self.params)}
        self.buckets: list[Bucket] = []
        moved = [p for p in self.params if "step" in memory.get(p, {})]
        steps: dict[float, Tensor] = {}
        for p in moved:
            step = memory[p]["step"]
            memory[p]["step"] = steps.setdefault(float(step), step)
        self._fill(moved)

    def _fill(self, params: Iterable[Tensor]) -> None:
        """Put parameters into buckets: alike in dtype, device and history, and not too many."""
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        filled: dict[Any, int] = defaultdict(int)
        for p in params:
            alone = p.numel() >= PIECE or not self.owner.rule.elementwise
            kind = p.dtype, p.device, id(self.memory.get(p, {}).get("step")), p if alone else None
            filled[kind] += p.numel()
            alike[kind, filled[kind] // PIECE].append(p)
        for members in alike.values():
            index = None
            if self.owner.sets > 1:
                index = torch.tensor([self.position[p] for p in members], device=members[0].device)
            bucket = Bucket(self.owner, self.scope, members, index)
            for p, mine in bucket.memory():
                theirs = self.memory[p]
                for name in mine.keys() & theirs.keys():
                    mine[name].copy_(theirs[name])
                theirs.update(mine)
            self.buckets.append(bucket)

    def active(self) -> list[Bucket]:
        """The buckets whose members have gradients; those of the others see a step pass."""
        present = {b: [p.grad is not None for p in b.members] for b in self.buckets}
        mixed = [b for b, have in present.items() if any(have) and not all(have)]
        self.buckets = [b for b in self.buckets if b not in mixed]
        for bucket in mixed:
            self._fill(p for p in bucket.members if p.grad is not None)
            self._fill(p for p in bucket.members if p.grad is None)
        if sum(len(b.members) for b in self.buckets) < len(self.params):
            placed = {p for b in self.buckets for p in b.members}
            self._fill(p for p in self.params if p.grad is not None and p not in placed)
        for bucket in self.buckets:
            if bucket.members[0].grad is None:
                bucket.fade()
        return [b for b in self.buckets if b.members[0].grad is not None]
