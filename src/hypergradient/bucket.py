"""Buckets: many tensors as few flat ones.

A step on a thousand small tensors is a thousand times the dispatch of one. Small parameters of the same kind and history
are therefore gathered into flat buckets; a large one is a bucket by itself and is read and written in place.

What is remembered of a parameter stands in `optimizer.state`, which belongs to the user: a bucket puts views there, and when
somebody has put something else in their place, another bucket is made from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten

from .edits import Edits, between
from .layout import Layout, address, wrapper
from .numerics import alike, exact, owns_memory, readable, same, storage, wide
from .probe import KEPT, begun, rehearse
from .sample import Samples
from .sensitivity import Step

Memory = MutableMapping[Tensor, dict[str, Any]]
"""`optimizer.state`."""
SMALL = 1 << 14
"""Elements up to which a single member is copied, too: so it is known what the last step has left."""
TRAIL = KEPT + "before", KEPT + "left"
"""The names under which `state` holds what a parameter was before the last step, and after, where others write to it."""
COUNTED = 1 << 24
"""As far as single precision counts."""


class Bucket:
    """Parameters of one dtype, device, layout, group and history.

    Args:
        step: what is done with them.
        members: the parameters. A rule that is not elementwise gets one at a time, in its shape.
        sets: which set of hyperparameters each of them uses, where there are several; else nothing.
        count: how many steps they have made.
        memory: what is remembered of parameters; that of the members is put there.

    Attributes:
        layout: how they are spread over processes; the bucket holds the parts that are here.
        index: `sets` on the device, or None. shape: (members,)
        uniform: whether all members use one set.
        state: what the rule remembers of the elements.
        kept: what is kept of the last step until its hypergradient is read.
        trail: what the elements were before it, and after, once others have written to them.
        room: a copy of the members, if they are worked on in one, and its parts.
        steps: `count`, for each member, as the user can change it. shape: (members,)
        sums: of each number that the rule adds up, the sum, for each member. shape: (sums, members)
        scalars: those of the last step, where it is replayed, in the dtype to work in. shape: (rows, segments)
        sample: what is read of the elements, if not all; `samples`: with the first of some, that of all of them side by side.
        clock: `count` in the dtype of hyperparameters, and the sums; the same tensor for buckets with the same history.
            shape: (1 + sums, sets or 1)
        common: what the members have in common but for their history.
        positions: the positions of the members among the parameters of their group.
        live: whether what the last step has left behind can be read.
        edits: what notices what others write to the members.
        shared: whether others share memory with the member: these move one after the other.
        cuts: how many elements belong to each of the readings that are taken of it; nothing: there is one.
        readings: which these are of those of their hyperparameters; None: all, in order. shape: (cuts or 1,)
        entries: what `memory` holds of each member, by name.
    """

    room: tuple[Tensor, list[Tensor]] | None = None
    places: list[Tensor]
    clock: Tensor
    common: Sequence[Any]
    positions: Sequence[int]
    live = False
    shared = False
    samples: Samples | None = None
    cuts: tuple[int, ...] = ()
    readings: Tensor | None = None

    def __init__(self, step: Step, members: Sequence[Tensor], sets: Sequence[int], count: int, memory: Memory) -> None:
        self.step, self.members, self.sets, self.count = step, list(members), list(sets), count
        self.layout = Layout.of(members[0], whole=not step.elementwise)
        self.complex, self.dtype = members[0].is_complex(), wide(members[0].dtype)
        parts = self.layout.parts(self.members)
        real = [torch.view_as_real(x.resolve_conj()) for x in parts] if self.complex else parts
        self.shapes, self.sizes = [x.shape for x in real], [x.numel() for x in real]
        apart = len(members) == 1 and step.elementwise
        self.order = sorted(range(real[0].ndim), key=real[0].stride, reverse=True) if apart else None
        self.sample = step.sample(members[0])
        device, self.uniform = real[0].device, not sets or len(members) == 1
        self.counts, self.index = (torch.tensor(x, device=device) if x else None for x in (self.sizes, self.sets))
        shape = step.rows["jacobian"].stop if step.replays else 0, 1 if self.uniform else len(members)
        self.scalars = torch.zeros(shape, dtype=self.dtype, device=device)
        self.edits, self.memory, self.places = Edits(self.members), memory, []
        self.entries: list[dict[str, Any]] = [{} for _ in members]
        self._recall(parts, [memory.get(p, {}) for p in members])
        if not step.elementwise:
            rehearse(step.rule, members[0], self._flat(parts).to(self.dtype), dict(zip(step.state, self.state, strict=True)))
        self.kinds, self.versions = [_kind(p) for p in members], self._versions()
        self.given = [[(n, x, place(x)) for n, x in entry.items()] for entry in self.entries]
        for p, entry in zip(members, self.entries, strict=True):
            memory.setdefault(p, {}).update(entry)

    # ------------------------------------------------------------------ what is remembered

    def _recall(self, parts: Sequence[Tensor], known: Sequence[Mapping[str, Any]]) -> None:
        """Take the state from what is `known` of the members, and from the rule where nothing is."""
        watched = TRAIL if any(TRAIL[1] in mine for mine in known) else ()
        names = (*self.step.state, *self.step.kept, *watched)
        flat = {n: x for n in names if (x := self._adopted(n, known)) is not None}
        if len(flat) < len(names):
            like = self._flat(parts).to(self.dtype)
            zero = torch.zeros_like(like) if self.sample is None else self.sample.room(like)
            fresh = begun(self.step.rule, self.step.state, like) | dict.fromkeys(self.step.kept, zero)
            fresh |= {n: torch.full_like(like, torch.nan) for n in watched}
            taken = {address(like)}
            for n in (n for n in names if n not in flat):
                flat[n] = fresh[n].clone() if address(fresh[n]) in taken else fresh[n]
                taken.add(address(flat[n]))
                self._fill(n, flat[n], known)
        self.state = [flat[n] for n in self.step.state]
        self.kept = [flat[n] for n in self.step.kept]
        self.trail = [flat[n] for n in watched]
        self._recall_numbers(known, parts[0].device)

    def _recall_numbers(self, known: Sequence[Mapping[str, Any]], here: torch.device) -> None:
        """Put the number of steps into the entries, and what is added up over them."""
        step, alone = known[0].get("step"), len(self.members) == 1
        kind = torch.float32, 0, here
        own = alone and isinstance(step, Tensor) and (step.dtype, step.ndim, step.device) == kind and owns_memory(step)
        fresh = torch.full((len(self.members),), float(self.count), device=here, dtype=torch.float32)
        self.steps = cast(Tensor, step).view(1) if own else fresh
        like: Any = {"dtype": exact(here), "device": here}
        zero = torch.zeros((), **like)
        each = [torch.as_tensor(mine.get(n, zero), **like).reshape(1) for n in self.step.sums for mine in known]
        self.sums = torch.cat([torch.empty(0, **like), *each]).view(len(self.step.sums), len(self.members))
        for n, numbers in zip(("step", *self.step.sums), (self.steps, *self.sums), strict=True):
            for entry, mine in zip(self.entries, numbers.unbind(), strict=True):
                entry[n] = mine
        if own:
            self.entries[0]["step"] = step

    def _adopted(self, name: str, known: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """Of a single member: what is known, where it can be worked on as it is."""
        x, (p, *others) = known[0].get(name), self.members
        if others or not isinstance(x, Tensor) or x.requires_grad:
            return None
        dtype = self.dtype.to_complex() if self.complex else self.dtype
        shape = torch.Size(self.sample.shape) if self.sample and name in self.step.kept else p.shape
        if (x.shape, x.dtype, x.device, Layout.of(x)) != (shape, dtype, p.device, self.layout):
            return None
        part = self.layout.local(x)
        flat = self._flat([part]) if x.shape == p.shape else part.detach().reshape(-1)
        if address(flat) != address(part) or not part.numel() or not owns_memory(part):
            return None
        self.entries[0][name] = x
        return flat

    def _fill(self, name: str, flat: Tensor, known: Sequence[Mapping[str, Any]]) -> None:
        """Put what is known into elements that begin anew, and views of these into the entries."""
        for p, view, entry, old in zip(self.members, self._views(name, flat), self.entries, known, strict=True):
            entry[name] = view
            if isinstance(x := old.get(name), Tensor) and x.shape == view.shape:
                own = Layout.of(view)
                own.local(view).copy_(own.local(x))
            elif x is not None and name not in (*self.step.kept, *TRAIL):
                raise ValueError(
                    f"the state {name!r} of a parameter of shape {tuple(p.shape)} is {_brief(x)}; it must be a tensor of that "
                    "shape, or not there: then it begins anew"
                )

    def _views(self, name: str, flat: Tensor) -> list[Tensor]:
        """Of what is remembered under this name, that of each member."""
        if self.sample is None or name not in self.step.kept:
            return [self.layout.join(view, p) for view, p in zip(self.views(flat), self.members, strict=True)]
        part = flat.view(-1, *self.sample.shape[1:])
        return [self.layout.join(part, torch.empty(self.sample.shape, device="meta"))]

    def intact(self, memory: Memory, still: bool = False) -> bool:
        """Whether the members and what is remembered of them are as this bucket has left them; `still`: all is where it was."""
        same, still = self.untouched() and self.kinds == [_kind(p) for p in self.members], still and not self.written()
        return same and all(self.own(i, memory, still) for i in range(len(self.members)))

    def untouched(self) -> bool:
        """Whether nobody has written to the steps. Where the host need not wait, it sees that also of ``.data``."""
        if [self.steps._version, self.sums._version] != self.versions[:2]:
            return False
        left = [float(min(self.count, COUNTED))] * len(self.members)
        return self.steps.device.type != "cpu" or not readable(self.steps) or self.steps.tolist() == left

    def summed(self, sums: Tensor) -> Tensor:
        """From the sums of every set to those of each member. shape: (sums, sets) -> (sums, members or 1)"""
        return sums if self.index is None else sums.to(self.index.device).index_select(1, self.index)

    def tick(self) -> None:
        """Know that the steps have been counted."""
        self.count, self.live, self.versions, self.edits.seen = self.count + 1, True, self._versions(), self.edits.marks()

    def _versions(self) -> list[int]:
        names = (*self.step.state, *self.step.kept) if self.layout.mesh is not None else ()
        apart = (mine[n] for mine in self.entries for n in names)  # each has a counter of its own, and its local part another
        parts = (x for whole in apart for x in (whole, whole._local_tensor))
        return [x._version for x in (self.steps, self.sums, *self.state, *self.kept, *parts)]

    def written(self) -> bool:
        """Whether somebody has written to what the last step has left behind, of any member: views have one counter."""
        return self._versions()[2:] != self.versions[2:]

    def own(self, i: int, memory: Memory, still: bool = False) -> bool:
        """Whether `memory` holds of the member `i` what this bucket has put there; `still`: where that is has not changed."""
        found = memory.get(self.members[i], {})
        return all(found.get(n) is x and (still or place(x) == where) for n, x, where in self.given[i])

    def changed(self, memory: Memory) -> list[Tensor]:
        """The members of which `memory` holds other numbers than this bucket has put there, in the same place or elsewhere."""
        names = (*self.step.state, *self.step.kept)
        views = [self._views(n, x) for n, x in zip(names, (*self.state, *self.kept), strict=True)]

        others = [(i, p) for i, p in enumerate(self.members) if not self.own(i, memory)]
        found = ((p, memory.get(p, {}), [x[i] for x in views]) for i, p in others)
        spread = self.layout.mesh is not None
        return [p for p, mine, left in found if spread or not all(map(alike, map(mine.get, names), left))]

    # ------------------------------------------------------------- members and elements

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parts of the members, or tensors of their shapes, as elements; of a single one no copy."""
        real = [torch.view_as_real(t.resolve_conj()) for t in tensors] if self.complex else tensors
        if len(real) > 1:
            return cast(Tensor, flatten(real))
        alone = real[0].detach().resolve_neg()  # the compiler does not see that bit
        if self.order is None:
            return alone
        return (alone if self.order == [*range(alone.ndim)] else alone.permute(self.order)).reshape(-1)

    def views(self, flat: Tensor) -> list[Tensor]:
        """What of a flat tensor belongs to each member, in the shape of its part."""
        if len(self.members) > 1:
            parts = [x.view(shape) for x, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]
        elif self.order is None:
            parts = [flat]
        else:
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            parts = [flat.view([self.shapes[0][d] for d in self.order]).permute(back)]
        return [torch.view_as_complex(x) for x in parts] if self.complex else parts

    def gather(self, grads: list[Tensor], maximize: bool, cotangents: Mapping[Tensor, Tensor]) -> None:
        """Read the members and their gradients: a single one where it is, several into a place that is kept for them.

        Args:
            grads: of the members.
            cotangents: the gradients of another loss that is to be made smaller by tuning, if there is one; 0 for a
                parameter that it does not name.
        """
        anew, grads = self.read(), self.layout.parts(grads)
        if len(grads) > 1:
            if not self.places:
                self.grad = self._flat(grads)
                self.places = self.views(self.grad)
            torch._foreach_copy_(self.places, grads)
            self.grad = self.grad.neg_() if maximize else self.grad
        else:
            grad = self._flat(grads)
            grad = grad.clone() if address(grad) == address(self.param) else grad  # somebody has set ``p.grad = p``
            self.grad = -grad if maximize else grad
        self.u = self.grad
        if cotangents:
            u = self._flat(self.layout.parts([cotangents[p] if p in cotangents else torch.zeros_like(p) for p in self.members]))
            self.u = -u if maximize else u
        if anew is not None and self.step.replays:
            self.u = self.u.masked_fill(anew, 0.0)
        if self.trail:
            self.trail[0].copy_(self.param)

    def left(self, memory: Memory, intact: bool) -> Iterator[tuple[int, Tensor]]:
        """By id, what the last step has left of members, if `memory` holds of them what it has put there; `intact`: of all."""
        for i, x in enumerate(self.room[1] if self.room else ()):
            if intact or self.own(i, memory):
                yield id(self.members[i]), x

    def share(self, shared: bool, left: Mapping[int, Tensor]) -> None:
        """Know whether others share memory with the member: then it is worked on where it is; and what the last step has `left`
        of the members, by id, if they are still like that.
        """
        if self.shared != shared:
            self.shared, self.room = shared, None
        if self.room or not self.copied:
            return
        parts = self.layout.parts(self.members)
        known = [left.get(id(p), x) for p, x in zip(self.members, parts, strict=True)]  # of one not known, as it is
        like = [(x.shape, x.dtype, x.device) for x in parts]
        if any(id(p) in left for p in self.members) and like == [(x.shape, x.dtype, x.device) for x in known]:
            flat = self._flat(known).clone()
            self.room = flat, self.views(flat)

    @property
    def copied(self) -> bool:
        """Whether the members are worked on in copies."""
        p = self.members[0]
        large = self.layout.size(p) > SMALL or (self.layout.mesh is not None and not self.step.elementwise)
        return len(self.members) > 1 or not (large or self.shared or wrapper(p) or p.is_neg() or p.is_conj())

    def read(self) -> Tensor | None:
        """Read the members, and follow what others have written to them. Returns which elements that has had begin anew."""
        parts, left = self.layout.parts(self.members), self.trail[1] if self.trail else None
        known = self.edits.seen is not None and (parts[0].is_cpu or self.edits.marked())  # else a GPU would be waited for
        if not self.copied:
            self.param = self._flat(parts)
        elif not self.room:
            self.param = self._flat(parts).clone()
            self.room = self.param, self.views(self.param)
        else:
            self.param, places = self.room  # as the last step has left it
            here = self.param.is_cpu and readable(self.param) and not self.edits.spread
            if here and not self.trail and all(map(same, parts, places)):
                return None
            left = self.param.clone() if known and not self.trail else left
            torch._foreach_copy_(places, parts)
        if self.shared or not self.edits.written(left, self.param, self.sample):
            if not (self.copied or self.trail or self.shared) and self.edits.marked():  # perhaps where nothing is read
                self._watch()
            return None
        return self._follow(left)

    def _follow(self, left: Tensor | None) -> Tensor:
        """Have what is remembered of the members follow what others have written to them; `left`: see `between`."""
        anew, shift = between(self.trail[0] if self.trail else None, left, self.param)
        if left is None and len(self.members) > 1:  # of each by itself it is known whether somebody has written
            written = torch.tensor(self.edits.changed(), device=anew.device)
            anew &= written.repeat_interleave(cast(Tensor, self.counts), output_size=anew.numel())
        for n, x in zip(self.step.state, self.state, strict=True):
            if n in self.step.rule.points:
                x.copy_(torch.where(anew, self.param.to(x.dtype), x + shift))
        view, kept = (self.sample.view, self.sample.kept) if self.sample is not None else (lambda x: x, lambda x: x)
        for x in () if self.step.replays else map(kept, self.kept):
            x.copy_((x + view(shift) if self.step.follows else x).masked_fill(view(anew), 0.0))
        if not self.trail:
            self._watch()
        return anew

    def begin_anew(self, where: Tensor) -> None:
        """Have paths and averages begin where the members are, if that is so; what was left can be read no more. shape: (1,)"""
        here, param = where.to(self.steps.device), self._flat(self.layout.parts(self.members))
        for x in (x for n, x in zip(self.step.state, self.state, strict=True) if n in self.step.rule.points):
            x.copy_(torch.where(here, param.to(x.dtype), x))
        for x in self.kept:
            x.masked_fill_(here, 0.0)
        self.live = False

    def _watch(self) -> None:
        """Remember from here on what the members were before the last step, and what that has left."""
        self.trail = [torch.full_like(self.param, torch.nan, dtype=self.dtype) for _ in TRAIL]
        for n, flat in zip(TRAIL, self.trail, strict=True):
            for p, x, entry, given in zip(self.members, self._views(n, flat), self.entries, self.given, strict=True):
                entry[n] = self.memory[p][n] = x
                given.append((n, x, place(x)))

    def settle(self) -> None:
        """Follow what others have written until now."""
        if not self.shared and self.count and self.intact(self.memory):
            before = self._versions()
            self.read()
            if self.trail:
                self.trail[1].copy_(self.param)
            self.versions = [x + y - z for x, y, z in zip(self.versions, self._versions(), before, strict=True)]
            self.edits.seen = self.edits.marks()
            self.param = self.param if self.copied else self.param.new_empty(0)  # the user's is let go of

    def scatter(self) -> None:
        """Write the members, in place: the end of a step."""
        del self.u
        if self.trail:
            self.trail[1].copy_(self.param)
        if self.copied:
            torch._foreach_copy_(self.layout.parts(self.members), cast(Any, self.room)[1])
            self.grad = self.grad if len(self.members) > 1 else self.param  # the user's is let go of
            return
        (p,) = self.members
        if self.complex or p.is_neg() or self.layout.mesh is not None or not self.param._is_view():  # perhaps a copy
            own = Layout.of(p)
            here = own.local(p)
            if storage(here) != storage(self.param):
                here.copy_(own.local(self.layout.join(self.views(self.param)[0], p)))
        del self.param, self.grad

    def rest(self) -> None:
        """Let a step pass in which these elements did not move: of a single step that counts, nothing is left."""
        self.live = self.live and not self.step.rule.one_step
        for kept in self.kept:
            kept.mul_(self.step.rule.fading(max(self.count, 1)))
        self.versions = self._versions()

    # ---------------------------------------------------------------- elements and segments

    def use(self, rows: Tensor) -> Tensor:
        """From the scalars of every set to those of each segment, in the dtype to work in. shape: (rows, sets or segments)"""
        rows = rows.to(self.steps.device, self.dtype)
        return rows if self.index is None else rows.index_select(1, self.index)

    def spread(self, rows: Tensor) -> Tensor:
        """From segments to elements. shape: (rows, segments) -> (rows, elements)"""
        return rows.repeat_interleave(cast(Tensor, self.counts), dim=1, output_size=sum(self.sizes))


def _brief(x: Any) -> str:
    return f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)


def _kind(p: Tensor) -> tuple[Any, ...]:
    return p.shape, p.stride(), p.dtype, p.device, Layout.of(p)


def place(x: Any) -> tuple[Any, ...]:
    return address(x), x.shape, x.stride()
