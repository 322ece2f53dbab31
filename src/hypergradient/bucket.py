"""Buckets: many tensors as few flat ones.

A step on a thousand small tensors is a thousand times the dispatch of one. Small parameters of the same kind and history
are therefore gathered into flat buckets; a large one is a bucket by itself and is read and written in place, in pieces
that fit the cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten
from torch._utils import _unflatten_dense_tensors as unflatten

from .engine import Engine
from .hypergradient import Step
from .numerics import wide

if TYPE_CHECKING:
    from .level import Hyperparameters

PIECE = 1 << 17
"""Elements worked on at a time: a few of float32 fit a second-level cache."""
BUCKET = 1 << 20
"""Elements gathered at the most."""
KEPT = "last_"
EAGER = Engine(compile=False)


class Bucket:
    """Parameters of one dtype, device, group and history.

    Args:
        step: what is done with them.
        members: the parameters. A rule that is not elementwise gets one at a time, in its shape.
        index: which set of hyperparameters each of them uses, or None where there is one for all. shape: (members,)
        made: how many steps they have made.
        live: whether the last step left behind what its hypergradient can be read of; without replay it always does.

    Attributes:
        state: what the rule remembers of the elements.
        kept: what is kept of the last step until its hypergradient is read; see `Step.keeps`.
        numbers: those of the last step, where it is replayed; without rows where it is not. shape: (rows, segments)
        clock: `made` as a tensor; the same one for buckets with the same history. shape: ()
    """

    def __init__(self, step: Step, members: Sequence[Tensor], index: Tensor | None, made: int, live: bool) -> None:
        self.step, self.members, self.index, self.made, self.live = step, list(members), index, made, live
        self.uniform = index is None or len(members) == 1
        real = [_real(p) for p in self.members]
        self.sizes = [p.numel() for p in real]
        alone = len(members) == 1 and step.rule.elementwise
        self.order = sorted(range(real[0].ndim), key=real[0].stride, reverse=True) if alone else None
        self.compute = wide(members[0].dtype)
        like = self._flat([p.detach() for p in members]).to(self.compute)
        self.state = [t.clone() for t in step.rule.init(like).values()]
        self.kept = [torch.zeros_like(like) for _ in step.kept]
        self.replays = bool(step.names) and step.keeps != "sensitivity"
        self.numbers = like.new_zeros(step.rows() if self.replays else 0, 1 if self.uniform else len(members))
        if not self.uniform:
            self.counts = torch.tensor(self.sizes, device=like.device)

    # ------------------------------------------------------------- members and elements

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """The members, or tensors of their shapes, as elements; of a single one no copy."""
        real = [_real(t) for t in tensors]
        if len(real) > 1:
            return flatten(real)
        if self.order is None:
            return real[0]
        return real[0].permute(self.order).reshape(-1)

    def views(self, flat: Tensor) -> Sequence[Tensor]:
        """The parts of a flat tensor that belong to each member, in its shape."""
        real = [_real(p) for p in self.members]
        if len(real) > 1:
            parts: Sequence[Tensor] = unflatten(flat, real)
        elif self.order is None:
            parts = [flat]
        else:
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            parts = [flat.view([real[0].shape[d] for d in self.order]).permute(back)]
        return [torch.view_as_complex(x) if p.is_complex() else x for x, p in zip(parts, self.members, strict=True)]

    def gather(self, maximize: bool) -> None:
        """Read the members and their gradients."""
        self.param = self._flat([p.detach() for p in self.members])
        grad = self._flat([p.grad for p in self.members if p.grad is not None])
        self.grad = -grad if maximize else grad

    def scatter(self) -> None:
        """Write the members, in place."""
        members = [p.detach() for p in self.members]
        if members[0].untyped_storage().data_ptr() != self.param.untyped_storage().data_ptr():
            torch._foreach_copy_(members, self.views(self.param))
        del self.param, self.grad

    def memory(self) -> list[dict[str, Tensor]]:
        """What is remembered of each member, by the name under which it is saved: views, shaped like it."""
        names = *self.step.state, *(KEPT + n for n in self.step.kept)
        views = [self.views(t) for t in (*self.state, *self.kept)]
        memory = [dict(zip(names, parts, strict=True)) for parts in zip(*views, strict=True)] or [{} for _ in self.members]
        for i, mine in enumerate(memory):
            if self.replays:
                mine["numbers"] = self.numbers[:, 0 if self.uniform else i]
        return memory

    # ------------------------------------------------------------------------- a step

    def total(self, x: Tensor) -> Tensor:
        """From elements to segments, by summation. shape: (elements,) -> (segments,)"""
        return torch.stack([part.sum() for part in x.split(self.sizes)])

    def spread(self, numbers: Tensor) -> Tensor:
        """From segments to elements. shape: (rows, segments) -> (rows, elements)"""
        return numbers.repeat_interleave(self.counts, dim=1, output_size=sum(self.sizes))

    def pieces(self, engine: Engine) -> Iterator[Any]:
        """Indices that cut the elements into parts to be worked on one after the other."""
        n = sum(self.sizes)
        if engine.compile or n <= PIECE or not (self.uniform and self.step.rule.elementwise):
            yield ...
        else:
            for start in range(0, n, PIECE):
                yield slice(start, start + PIECE)

    def read(self, engine: Engine, now: Tensor) -> Tensor:
        """What the last step says of what is tuned; see `Step.read`. shape: (1 or 3, tuned, sets)

        Args:
            now: the numbers of this step, where the state is advanced already; else any. shape: (rows, sets)
        """
        run = engine if self.uniform and self.step.rule.elementwise else EAGER
        now = self.numbers if not self.step.ahead else now if self.index is None else now.index_select(1, self.index)
        parts, now = [], now.to(self.numbers)
        spread, total = (_same, _whole) if self.uniform else (self.spread, self.total)
        for i in self.pieces(run):
            param, grad, state, kept = self.param[i], self.grad[i], [t[i] for t in self.state], [t[i] for t in self.kept]
            parts.append(run(self.step.read)(grad, param, grad, state, kept, self.numbers, now, spread, total))
        products = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        products = products if self.live else torch.zeros_like(products)
        if self.index is None:
            return products
        sets = products.new_zeros(*products.shape[:2], self.sets)
        return sets.index_add(2, self.index, products)

    def move(self, engine: Engine, numbers: Tensor) -> None:
        """One step but for counting it; see `Step.move`."""
        run = engine if self.uniform and self.step.rule.elementwise else EAGER
        numbers = numbers if self.index is None else numbers.index_select(1, self.index)
        now = numbers.to(self.numbers)
        now = now if self.uniform else self.spread(now)
        for i in self.pieces(run):
            state, kept = [t[i] for t in self.state], [t[i] for t in self.kept]
            run(self.step.move)(self.param[i], self.grad[i], state, kept, now)
        if self.replays:
            self.numbers.copy_(numbers)
        self.made, self.live = self.made + 1, True

    def fade(self) -> None:
        """Let a step pass in which these elements did not move."""
        self.live = self.live and not self.replays
        self.numbers.zero_()
        if self.step.keeps == "sensitivity":
            for sensitivity in self.kept:
                sensitivity.mul_(self.step.fading) if self.step.fading else sensitivity.zero_()


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _whole(x: Tensor) -> Tensor:
    return x.sum().view(1)


def _same(x: Tensor) -> Tensor:
    return x


class Family:
    """The parameters of one group, in buckets.

    Args:
        owner: the hyperparameters they are moved with.
        memory: what is remembered of each parameter, kept up to date.
    """

    def __init__(self, owner: Hyperparameters, params: Sequence[Tensor], memory: MutableMapping[Tensor, Any]) -> None:
        self.owner, self.params, self.memory = owner, list(params), memory
        self.said: dict[str, float] = {}
        self.buckets: list[Bucket] = []
        self.pattern: Any = None
        self.made = {p: int(memory[p]["step"]) for p in self.params if "step" in memory.get(p, {})}
        self.live = {p: "numbers" not in memory[p] or bool(memory[p]["numbers"][0] > 0) for p in self.made}

    def use(self, step: Step, scope: Tensor) -> None:
        """From now on do `step`, with what the user says: of what is tuned a factor, the values of all others.

        Args:
            scope: in the order of `Step.order`. shape: (hyperparameters, 1)
        """
        if self.buckets and step is not self.step:
            self.buckets, self.pattern = [], None
        self.step, self.scope = step, scope

    def active(self) -> list[Bucket]:
        """The buckets whose parameters have gradients; those of the others see a step pass."""
        present = [p.grad is not None for p in self.params]
        live = [self.live.get(p, False) for p in self.params]
        if (present, live) != self.pattern:
            self._fill(present, live)
        moving = [b for b in self.buckets if b.members[0].grad is not None]
        for bucket in self.buckets:
            if bucket.members[0].grad is None:
                bucket.fade()
            for p in bucket.members:
                self.made[p] += p.grad is not None
                self.live[p] = p.grad is not None or not bucket.replays
        return moving

    def _fill(self, present: list[bool], live: list[bool]) -> None:
        """Put the parameters that have moved or will move into buckets, alike in dtype, device, number of steps made and
        whether they have a gradient and had one before. Which go together follows from that alone, as it has to for an
        exact resume.
        """
        self.pattern = present, live
        alike: dict[Any, list[int]] = defaultdict(list)
        filled: dict[Any, int] = defaultdict(int)
        for i, p in enumerate(self.params):
            if present[i] or p in self.made:
                alone = p.numel() >= PIECE or not self.step.rule.elementwise
                kind = p.dtype, p.device, self.made.setdefault(p, 0), present[i], live[i], i if alone else None
                filled[kind] += p.numel()
                alike[kind, filled[kind] // (BUCKET if self.owner.sets == 1 else PIECE)].append(i)
        known = {tuple(map(id, b.members)): b for b in self.buckets}
        clocks: dict[Any, Tensor] = {}
        self.buckets = []
        for ((_, _, made, moves, alive, _), _), positions in alike.items():
            members = [self.params[i] for i in positions]
            clock = clocks.setdefault((made, moves), self.owner.like.new_tensor(float(made)))
            bucket = known.get(tuple(map(id, members)))
            if bucket is None:
                index = torch.tensor(positions, device=members[0].device) if self.owner.sets > 1 else None
                bucket = Bucket(self.step, members, index, made, alive)
                for p, mine in zip(members, bucket.memory(), strict=True):
                    for name in mine.keys() & self.memory[p].keys():
                        mine[name].copy_(self.memory[p][name])
                    self.memory[p].update(mine)
            bucket.clock, bucket.sets = clock, self.owner.sets
            for p in members:
                self.memory[p]["step"] = clock
            self.buckets.append(bucket)
