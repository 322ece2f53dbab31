"""Buckets: many tensors as few flat ones.

A step on a thousand small tensors is a thousand times the dispatch of one. Small parameters of the same kind and history
are therefore gathered into flat buckets; a large one is a bucket by itself and is read and written in place, in pieces
that fit the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .engine import Engine
from .hypergradient import Numbers, Sensitivity, differentiate, prepare
from .numerics import all_finite, finite_or_zero, wide
from .rule import Rule, State

if TYPE_CHECKING:
    from .level import Hyperparameters, Scope

PIECE = 1 << 17
"""Elements worked on at a time: a few of float32 fit a second-level cache."""
PREFIX = "sensitivity_"
EAGER = Engine(compile=False)


def products(pairs: int, total: Callable[[Tensor], Tensor], grad: Tensor, traces: Sequence[Tensor]) -> Tensor:
    """See `Block.products`; of one piece."""
    terms = [[grad * t for t in traces]]
    if pairs == 3:
        terms += [[grad * grad] * len(traces), [t * t for t in traces]]
    return torch.stack([torch.stack([total(x) for x in row]) for row in terms])


def advance(
    rule: Rule,
    fading: float,
    numbers: Numbers,
    scale: dict[str, Tensor],
    step: Tensor,
    param: Tensor,
    grad: Tensor,
    state: State,
    traces: Sensitivity,
    spread: Callable[[Tensor, Tensor], Tensor],
    allowed: Tensor | None,
) -> Tensor | None:
    """One step of one piece, in place: of the parameter, of its state and of the sensitivities, ``T = fading T + dU/dh``.

    Returns:
        whether it was made: `allowed`, and the result is finite; None where all is allowed. shape: ()
    """
    new, new_state, slopes = differentiate(rule, numbers, tuple(traces), step + 1, param, grad, state, spread)
    if new_state.keys() != state.keys():
        raise ValueError(f"{type(rule).__name__}: init returns a state of {sorted(state)}, update one of {sorted(new_state)}")
    old = [param, *state.values()]
    pairs = [(param, new)]
    for n, x in new_state.items():  # what is handed on as it is must be read before it is written
        pairs.append((state[n], x.clone() if any(x is y for y in old) else x))
    for n, slope in slopes.items():
        slope = slope * scale[n] if n in scale else slope
        if fading:  # what is not finite would stay for ever
            slope = finite_or_zero(traces[n] * fading + slope)
        pairs.append((traces[n], slope))
    if allowed is not None:
        allowed = allowed & all_finite(x for _, x in pairs)
    for target, x in pairs:
        target.copy_(x if allowed is None else torch.where(allowed, x, target))
    return allowed


def _same(x: Tensor, like: Tensor) -> Tensor:
    return x


def _whole(x: Tensor) -> Tensor:
    return x.sum().view(1)


class Block(ABC):
    """Elements that one rule moves together.

    Attributes:
        owner: the hyperparameters they are moved with.
        param, grad: what is moved, and along what; both shaped alike.
        state: what the rule remembers of them. shape of each: that of `param`
        sensitivity: by hyperparameter, ``dU/dh`` of the past steps, faded by the horizon. shape: that of `param`
        step: how many steps they have made, of one element
    """

    index: Tensor | None = None
    uniform = False
    """Whether all elements use the same numbers, so that one compiled function serves all such blocks."""
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
        """From elements to segments, by summation. shape: that of a piece of `param` -> (segments,)"""

    def collect(self, x: Tensor) -> Tensor:
        """From segments to the sets of hyperparameters that they use. shape: (..., segments) -> (..., sets)"""
        return x

    def pieces(self, engine: Engine) -> Iterator[Any]:
        """Indices that cut the elements into parts to be worked on one after the other."""
        yield ...

    def tensors(self) -> dict[str, Tensor]:
        """All that this block remembers, by the name under which it is saved."""
        return {"step": self.step, **self.state, **{PREFIX + n: t for n, t in self.sensitivity.items()}}

    def products(self, engine: Engine) -> Tensor:
        """``<g, T>`` with each sensitivity T, and where the rule normalizes ``<g, g>`` and ``<T, T>``.

        Shape: (1 or 3, tuned, sets).
        """
        pairs, parts, run = 3 if self.owner.rule.normalize else 1, [], engine if self.uniform else EAGER
        for piece in self.pieces(engine):
            traces = [t[piece] for t in self.sensitivity.values()]
            parts.append(run(products)(pairs, self.total, self.grad[piece], traces))
        return self.collect(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))

    def fade(self) -> None:
        """Let a step pass in which these elements did not move."""
        for tensor in self.sensitivity.values():
            tensor.mul_(self.owner.fading) if self.owner.fading else tensor.zero_()

    def numbers(self, engine: Engine) -> Numbers:
        """What the next step needs besides the elements; the same for blocks of one scope, step count and index."""
        run = engine if self.uniform else EAGER
        values = {n: self.select(v.to(self.step)) for n, v in self.owner.values(self.scope).items()}
        arguments: Numbers = run(prepare, False)(self.owner.rule, values, tuple(self.sensitivity), self.step + 1)
        return arguments

    def move(self, engine: Engine, numbers: Numbers, allowed: Tensor | None = None) -> Tensor | None:
        """Make one step but for counting it, or none at all where `allowed` is false; says whether it was made. shape: ()"""
        run = engine if self.uniform else EAGER
        scale = {n: v.to(self.step) for n, v in self.scope.scale.items()}
        for piece in self.pieces(engine):
            param, grad = self.param[piece], self.grad[piece]
            state = {n: t[piece] for n, t in self.state.items()}
            traces = {n: t[piece] for n, t in self.sensitivity.items()}
            arguments = self.owner.rule, self.owner.fading, numbers, scale, self.step, param, grad, state, traces
            allowed = run(advance)(*arguments, self.spread, allowed)
        return allowed


class Matrix(Block):
    """The hyperparameters of a rule as what the rule above moves. shape of `param`: (tuned, sets)"""

    def __init__(self, owner: Hyperparameters, param: Tensor) -> None:
        self.owner, self.scope, self.param, self.grad = owner, owner.scope, param, torch.zeros_like(param)
        self.state = {n: t.clone() for n, t in owner.rule.init(param).items()}
        self.sensitivity = {name: torch.zeros_like(param) for name in owner.names}
        self.step = param.new_zeros((1, 1))  # not (): torch 2.13 compiles away what is written to a float64 scalar

    def select(self, values: Tensor) -> Tensor:
        return values.view(-1, 1).expand_as(self.param)

    def spread(self, x: Tensor, like: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.sum(1) if self.owner.sets > 1 else _whole(x)


class Bucket(Block):
    """Parameters of one dtype, device, group and history.

    Args:
        members: the parameters. A rule that is not elementwise gets one at a time, in its shape.
        index: which set of hyperparameters each of them uses, or None where there is one for all. shape: (members,)
        step: how many steps they have made; buckets with the same history have the same tensor. shape: ()
    """

    def __init__(
        self, owner: Hyperparameters, scope: Scope, members: Sequence[Tensor], index: Tensor | None, step: Tensor
    ) -> None:
        self.owner, self.scope, self.members, self.index, self.step = owner, scope, list(members), index, step
        self.sizes = [p.numel() * (2 if p.is_complex() else 1) for p in members]
        empty = self._flat(members).to(wide(members[0].dtype))
        self.state = {n: t.clone() for n, t in owner.rule.init(empty).items()}
        if reserved := [n for n in self.state if n in ("step", "tower") or n.startswith(PREFIX)]:
            raise ValueError(
                f"{type(owner.rule).__name__}: the state {reserved[0]!r} has a name that is kept for the optimizer"
            )
        self.sensitivity = {name: torch.zeros_like(empty) for name in owner.names}
        self.counts = torch.tensor(self.sizes, device=empty.device)
        if index is None or len(members) == 1:
            self.uniform = owner.rule.elementwise
            self.spread, self.total = _same, _whole  # type: ignore[method-assign]

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
        return torch.stack([part.sum() for part in x.split(self.sizes)])

    def collect(self, x: Tensor) -> Tensor:
        if self.index is None:
            return x
        return x.new_zeros(*x.shape[:-1], self.owner.sets).index_add(-1, self.index, x)

    def pieces(self, engine: Engine) -> Iterator[Any]:
        n = self.sizes[0]
        if engine.compile or len(self.members) > 1 or n <= PIECE or not self.owner.rule.elementwise:
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
        self.buckets: list[Bucket] = []
        self.present: list[bool] = []
        self.made = {p: int(memory[p]["step"]) for p in self.params if "step" in memory.get(p, {})}

    def active(self) -> list[Bucket]:
        """The buckets whose parameters have gradients; those of the others see a step pass."""
        present = [p.grad is not None for p in self.params]
        if present != self.present:
            self._fill(present)
        for bucket in self.buckets:
            if bucket.members[0].grad is None:
                bucket.fade()
        return [b for b in self.buckets if b.members[0].grad is not None]

    def count(self) -> None:
        """Count a step of those that were active."""
        for p, moves in zip(self.params, self.present, strict=True):
            if moves:
                self.made[p] += 1

    def _fill(self, present: list[bool]) -> None:
        """Put the parameters that have moved or will move into buckets, alike in dtype, device, number of steps made and
        whether they have a gradient. Which go together follows from that alone, as it has to for an exact resume.
        """
        self.present = present
        alike: dict[Any, list[int]] = defaultdict(list)
        filled: dict[Any, int] = defaultdict(int)
        for i, (p, moves) in enumerate(zip(self.params, present, strict=True)):
            if moves or p in self.made:
                alone = p.numel() >= PIECE or not self.owner.rule.elementwise
                kind = p.dtype, p.device, self.made.setdefault(p, 0), moves, i if alone else None
                filled[kind] += p.numel()
                alike[kind, filled[kind] // PIECE].append(i)
        before = {tuple(map(id, b.members)): b for b in self.buckets}
        clocks: dict[Any, Tensor] = {}
        self.buckets = []
        for ((dtype, device, made, moves, _), _), positions in alike.items():
            members = [self.params[i] for i in positions]
            clock = clocks.setdefault((dtype, device, made, moves), torch.full((), made, dtype=wide(dtype), device=device))
            bucket = before.get(tuple(map(id, members)))
            if bucket is None:
                index = torch.tensor(positions, device=device) if self.owner.sets > 1 else None
                bucket = Bucket(self.owner, self.scope, members, index, clock)
                for p, mine in bucket.memory():
                    for name in mine.keys() & self.memory[p].keys() - {"step"}:
                        mine[name].copy_(self.memory[p][name])
                    self.memory[p].update(mine)
            bucket.step = clock
            for p in members:
                self.memory[p]["step"] = clock
            self.buckets.append(bucket)
