"""Buckets: many tensors as few flat ones.

A step on a thousand small tensors is a thousand times the dispatch of one. Small parameters of the same kind and history
are therefore gathered into flat buckets; a large one is a bucket by itself and is read and written in place, in pieces
that fit the cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten

from .engine import Engine
from .hypergradient import KEPT, Pieces, Step
from .numerics import wide
from .shards import Layout

if TYPE_CHECKING:
    from .level import Hyperparameters

ALONE = 1 << 17
"""From so many elements on a parameter is a bucket by itself."""
PIECE = 1 << 18
"""Elements worked on at a time, about: enough for dispatch not to matter, few enough for a cache."""
BUCKET = 1 << 20
"""Elements gathered at the most."""
EAGER = Engine(compile=False)

# The allocator of glibc gives freed memory back to the system beyond a bound that follows the largest block it has seen
# freed. Where that is small, as in the training of a small network, a step spends most of its time on page faults.
torch.empty(16 * PIECE, dtype=torch.float32, device="cpu")


class Bucket:
    """Parameters of one dtype, device, layout, group and history.

    Args:
        step: what is done with them.
        members: the parameters. A rule that is not elementwise gets one at a time, in its shape.
        layout: how they are spread over processes; the bucket holds the parts that are here.
        positions: which set of hyperparameters each of them uses, where there are several.
        sets: how many sets of hyperparameters there are.
        made: how many steps they have made.
        live: whether the last step left behind what its hypergradient can be read of; without replay it always does.

    Attributes:
        state: what the rule remembers of the elements.
        kept: what is kept of the last step until its hypergradient is read; see `Step.keeps`.
        numbers: those of the last step, where it is replayed; without rows where it is not. shape: (rows, segments)
        clock: how many steps they have made; the same tensor for buckets with the same history. shape: ()
        index: `positions` on the device, or None where there is one set for all. shape: (members,)
        compiles: whether one compiled function serves all buckets like this one.
    """

    clock: Tensor

    def __init__(
        self, step: Step, members: Sequence[Tensor], layout: Layout, positions: list[int], sets: int, made: int, live: bool
    ) -> None:
        self.step, self.members, self.layout, self.sets = step, list(members), layout, sets
        self.made, self.live = made, live
        self.positions = positions if sets > 1 else [0]
        self.index = torch.tensor(positions, device=members[0].device) if sets > 1 else None
        self.uniform = self.index is None or len(members) == 1
        self.complex = members[0].is_complex()
        parts = layout.parts(self.members)
        real = [torch.view_as_real(x) for x in parts] if self.complex else parts
        self.shapes, self.sizes = [x.shape for x in real], [x.numel() for x in real]
        self.order = None
        if len(members) == 1 and step.rule.elementwise:
            self.order = sorted(range(real[0].ndim), key=real[0].stride, reverse=True)
        like = self._flat(parts).to(wide(members[0].dtype))
        self.state = [t.clone() for t in step.rule.init(like).values()]
        self.kept = [torch.zeros_like(like) for _ in step.kept]
        self.numbers = like.new_zeros(step.rows if step.replays else 0, 1 if self.uniform else len(members))
        self.places: list[Tensor] = []
        self.compiles = self.uniform and step.rule.elementwise
        self.counts = torch.tensor(self.sizes, device=like.device)

    # ------------------------------------------------------------- members and elements

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parts of the members, or tensors of their shapes, as elements; of a single one no copy."""
        real = [torch.view_as_real(t.resolve_conj()) for t in tensors] if self.complex else tensors
        if len(real) > 1:
            return cast(Tensor, flatten(real))
        return real[0] if self.order is None else real[0].permute(self.order).reshape(-1)

    def views(self, flat: Tensor) -> Sequence[Tensor]:
        """What of a flat tensor belongs to each member, in the shape of its part."""
        if len(self.members) > 1:
            parts = [x.view(shape) for x, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]
        elif self.order is None:
            parts = [flat]
        else:
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            parts = [flat.view([self.shapes[0][d] for d in self.order]).permute(back)]
        return [torch.view_as_complex(x) for x in parts] if self.complex else parts

    def gather(self, maximize: bool, cotangents: Mapping[Tensor, Tensor]) -> None:
        """Read the members and their gradients: a single one where it is, several into a place that is kept for them.

        Args:
            cotangents: the gradients of another loss that is to be made smaller by tuning, if there is one; 0 of whom it
                does not name.
        """
        parts, grads = self.layout.parts(self.members), self.layout.parts([p.grad for p in self.members])
        if len(parts) > 1:
            if not self.places:
                self.param, self.grad = self._flat(parts), self._flat(grads)
                self.places = [*self.views(self.param), *self.views(self.grad)]
            torch._foreach_copy_(self.places, [*parts, *grads])
            self.grad = self.grad.neg_() if maximize else self.grad
        else:
            self.param, grad = self._flat(parts), self._flat(grads)
            self.grad = -grad if maximize else grad
        self.cotangents = []
        if cotangents:
            u = self._flat(self.layout.parts([cotangents[p] if p in cotangents else torch.zeros_like(p) for p in self.members]))
            self.cotangents = [-u if maximize else u]

    def scatter(self) -> None:
        """Write the members, in place: the end of a step."""
        self.made, self.live, self.cotangents = self.made + 1, True, []
        if len(self.members) > 1:
            torch._foreach_copy_(self.layout.parts(self.members), self.places[: len(self.members)])
        else:
            own, (p,) = Layout.of(self.members[0]), self.members
            here = own.local(p)
            if here.untyped_storage().data_ptr() != self.param.untyped_storage().data_ptr():
                here.copy_(own.local(self.layout.join(self.views(self.param)[0], p)))
            del self.param, self.grad

    def memory(self) -> list[dict[str, Tensor]]:
        """What is remembered of each member, by the name under which it is saved: views, shaped like it."""
        names = *self.step.state, *(KEPT + n for n in self.step.kept)
        views = [map(self.layout.join, self.views(t), self.members) for t in (*self.state, *self.kept)]
        memory = [dict(zip(names, parts, strict=True)) for parts in zip(*views, strict=True)] or [{} for _ in self.members]
        for i, mine in enumerate(memory):
            if self.step.replays:
                mine["numbers"] = self.numbers[:, 0 if self.uniform else i]
        return memory

    # ------------------------------------------------------------------------- a step

    def total(self, x: Tensor) -> Tensor:
        """From elements to segments, by summation. shape: (elements,) -> (segments,)"""
        return torch.stack([part.sum() for part in x.view(-1).split(self.sizes)])

    def spread(self, numbers: Tensor) -> Tensor:
        """From segments to elements. shape: (rows, segments) -> (rows, elements)"""
        return numbers.repeat_interleave(self.counts, dim=1, output_size=sum(self.sizes))

    def pieces(self, engine: Engine, grad: Tensor) -> Pieces:
        """The elements, cut into parts to be worked on one after the other; with `grad` as their gradient."""
        n = sum(self.sizes)
        parts = max(1, round(n / PIECE)) if self.compiles and not engine.compile else 1
        if parts == 1:
            return [(self.param, grad, self.state, self.kept)]
        size = -(-n // parts)
        cuts = [t.detach().split(size) for t in (self.param, grad, *self.state, *self.kept)]
        k = len(self.state)
        return [(param, grad, rest[:k], rest[k:]) for param, grad, *rest in zip(*cuts, strict=True)]

    def read(self, engine: Engine) -> Tensor:
        """What the last step says of what is tuned; see `Step.read`. shape: (1 or 3, tuned, sets)"""
        run, (u, *_) = engine if self.compiles else EAGER, (*self.cotangents, self.grad)
        maps = () if self.uniform else (self.spread, self.total)
        products: Tensor = run(self.step.read, self.pieces(run, u), self.numbers, *maps)
        if self.index is None:
            return products
        sets = products.new_zeros(*products.shape[:2], self.sets)
        return sets.index_add(2, self.index, products)

    def move(self, engine: Engine, numbers: Tensor) -> None:
        """One step but for counting it; see `Step.move`."""
        run = engine if self.compiles else EAGER
        numbers = (numbers if self.index is None else numbers.index_select(1, self.index)).to(self.numbers)
        run(self.step.move, self.pieces(run, self.grad), numbers if self.uniform else self.spread(numbers))
        if self.step.replays:
            self.numbers.copy_(numbers)

    def fade(self) -> None:
        """Let a step pass in which these elements did not move."""
        self.live = self.live and not self.step.replays
        self.numbers.zero_()
        for kept in self.kept:
            kept.mul_(self.step.fading) if self.step.fading else kept.zero_()


class Family:
    """The parameters of one group, in buckets.

    Args:
        owner: the hyperparameters they are moved with.
        memory: what is remembered of each parameter, kept up to date.

    Attributes:
        lost: whether what the last step has left behind could not be read.
        readable: how many steps could be, one after the other, up to the last.
    """

    def __init__(self, owner: Hyperparameters, params: Sequence[Tensor], memory: MutableMapping[Tensor, Any]) -> None:
        self.owner, self.params, self.memory = owner, list(params), memory
        self.said: dict[str, float] = {}
        self.buckets: list[Bucket] = []
        self.pattern: Any = None
        self.lost = False
        self.readable = 0

    def use(self, step: Step, scope: Tensor) -> None:
        """From now on do `step`, with what the user says: of what is tuned a factor, the values of all others.

        Args:
            scope: in the order of `Step.order`. shape: (hyperparameters, 1)
        """
        if self.buckets and step is not self.step:
            self.buckets = []
        self.step: Step = step
        self.scope = scope

    def active(self) -> list[Bucket]:
        """The buckets whose parameters have gradients; those of the others see a step pass."""
        present = [p.grad is not None for p in self.params]
        self.filled = (present, [b.live for b in self.buckets]) != self.pattern
        if self.filled:
            self._fill(present)
            self.pattern = present, [b.live for b in self.buckets]
        for bucket in self.buckets:
            if bucket.members[0].grad is None:
                bucket.fade()
        return [b for b in self.buckets if b.members[0].grad is not None]

    def _fill(self, present: list[bool]) -> None:
        """Put the parameters that have moved or will move into buckets, alike in dtype, device, layout, number of steps
        made and whether they have a gradient and had one before. Which go together follows from that alone, as it has to
        for an exact resume.
        """
        past = {p: (bucket.made, bucket.live) for bucket in self.buckets for p in bucket.members}
        for p in self.params:
            if p not in past and "step" in (memory := self.memory.get(p, {})):  # from a checkpoint
                made, left = int(memory["step"]), self.step.left <= memory.keys()
                if not left:  # the last step was of another kind: nobody can read that
                    self.lost = self.lost or made > 0
                    for name in [n for n in memory if n == "numbers" or n.startswith(KEPT)]:
                        del memory[name]
                past[p] = made, made > 0 and (not self.step.replays or (left and bool(memory["numbers"][0] > 0)))
        alike: dict[Any, list[int]] = defaultdict(list)
        filled: dict[Any, int] = defaultdict(int)
        for i, p in enumerate(self.params):
            if present[i] or p in past:
                layout = Layout.of(p, whole=not self.step.rule.elementwise)
                size = Layout.of(p).local(p).numel()
                alone = size >= ALONE or not self.step.rule.elementwise
                kind = p.dtype, p.device, layout, past.get(p, (0, False)), present[i], i if alone else None
                filled[kind] += size
                alike[kind, filled[kind] // (BUCKET if self.owner.sets == 1 else ALONE)].append(i)
        known = {tuple(map(id, b.members)): b for b in self.buckets}
        clocks: dict[Any, Tensor] = {}
        self.buckets = []
        for ((_, _, layout, (steps, alive), moves, _), _), positions in alike.items():
            members = [self.params[i] for i in positions]
            clock = clocks.setdefault((steps, moves), self.owner.given.new_tensor(float(steps)))
            bucket = known.get(tuple(map(id, members)))
            if bucket is None:
                bucket = Bucket(self.step, members, layout, positions, self.owner.sets, steps, alive)
                for p, mine in zip(members, bucket.memory(), strict=True):
                    for name in mine.keys() & self.memory[p].keys():
                        own = Layout.of(mine[name])
                        own.local(mine[name]).copy_(own.local(self.memory[p][name]))
                    self.memory[p].update(mine)
            bucket.clock = clock
            for p in members:
                self.memory[p]["step"] = clock
            self.buckets.append(bucket)
