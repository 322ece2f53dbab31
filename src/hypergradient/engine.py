"""How a step is run, decided in one place: as it stands, in pieces that fit a cache, from a tape, or compiled."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from . import tape
from .bucket import Bucket
from .compiled import Compiled, Program, of_tensors, taken_apart
from .layout import total
from .level import RAW, UNIT, Ask, Levels, scalars
from .numerics import readable
from .rule import check_flag
from .sensitivity import Piece

if TYPE_CHECKING:
    from .group import Group

Call: TypeAlias = Callable[[], Any]

PIECE = 1 << 18
"""Elements worked on at a time, about: enough for dispatch not to matter, few enough for a cache."""
LAUNCH = 1 << 24
"""The same where there is no such cache, and each piece is a dozen launches."""
WHOLE = 1 << 20
"""Elements up to which a step of a single bucket is run as one: it reads them once, not first for what it learns."""
FORMS = 64
"""Forms of a function that are compiled; there is no end of them where gradients come and go, as those of experts do."""
TALL = 10
"""Levels up to which such a step is compiled as one: each of them takes seconds to compile, all together save a fifth of it."""

# The allocator of glibc gives freed memory back to the system beyond a bound that follows the largest block it has seen
# freed. Where that is small, as in the training of a small network, a step spends most of its time on page faults.
torch.empty(16 * PIECE, dtype=torch.float32, device="cpu")


class Engine:
    """Runs steps, and functions of tensors.

    Args:
        compile: compile each function when it is first called, once for all lengths. Where that is not possible, says so in
            one warning and goes on without.
    """

    def __init__(self, compile: bool) -> None:
        check_flag("Hyperoptimizer", "compile", compile)
        self.compile = compile
        self._compiled: dict[Any, Compiled] = {}
        self._plays = self._said = False
        self.tapes: dict[Any, Callable[..., Any]] = {}

    # -------------------------------------------------------------------- a step

    def step(self, levels: Levels, work: Sequence[tuple[Group, Bucket]], leave: Tensor | None) -> None:
        """Move all levels and the buckets; `leave`: see `Levels.tune`, None where there are no levels."""
        self._plays = self._may_play(levels, work)
        clocks = {id(b.clock): (g.owner, g.step, g.schedule, b.clock) for g, b in work}
        asks = tuple(clocks.values())
        if len(work) == 1 and leave is not None and self._alone(levels, work[0][1]):
            ((group, bucket),) = work
            instead = [] if bucket.u is bucket.grad else [bucket.u]
            elements = bucket.param, bucket.grad, bucket.state, bucket.kept, instead, bucket.cuts
            rows = self.ready(whole, levels, asks[0], elements, bucket.scalars, leave, dynamic=None)()
            group.last[bucket.count + 1], bucket.scalars = rows[0], rows[1] if bucket.step.replays else bucket.scalars
            return bucket.scatter()
        learned = levels.memory[RAW]
        if leave is not None:
            ahead = {k: ask for k, ask in clocks.items() if ask[1].normalization.metric}
            found = self._each(levels.expected, tuple(ahead.values()), levels.memory[: UNIT + 1]) if ahead else ()
            read = self._read(levels, work, dict(zip(ahead, found, strict=True)))
            learned = self.ready(levels.tune, read, leave, dynamic=False)()
        now = dict(zip(clocks, self._each(scalars, asks, learned), strict=True))
        self._move_all(work, now)

    def _move_all(self, work: Sequence[tuple[Group, Bucket]], now: Mapping[Any, Tensor]) -> None:
        """Move the buckets, and keep what is read of them next; `now`: the scalars, by clock."""
        used, buckets = dict[Any, Tensor](), [bucket for _, bucket in work]
        for group, bucket in work:
            group.last[bucket.count + 1] = rows = now[id(bucket.clock)]
            alike = id(bucket.clock), bucket.dtype, bucket.steps.device, *bucket.sets
            used[id(bucket)] = used[alike] = used[alike] if alike in used else bucket.use(rows)
        apart = any(b.shared or not b.uniform for b in buckets)  # one moves what the next one reads; or it takes memory
        for turn in [[b] for b in buckets] if apart else [buckets]:
            _done([call for b in turn for call in self._moves(b, used[id(b)])])
            for bucket in turn:
                bucket.scatter()
        for bucket, samples in ((b, b.samples) for b in buckets if b.samples):
            piece = samples.param, samples.grad, samples.state, samples.kept
            _done(self._calls(bucket, bucket.step.move, piece, used[id(bucket)]))
            samples.scatter()

    def _each(self, function: Callable[..., Any], asks: Sequence[Ask], learned: Tensor) -> list[Tensor]:
        """What is asked for. A tape for each serves whichever are asked for together; the compiler takes all at once."""
        if not self._plays:
            return cast(list[Tensor], self.ready(function, asks, learned, dynamic=False)())
        return [self.ready(function, (ask,), learned, dynamic=False)()[0] for ask in asks]

    def forget(self, levels: Levels) -> None:
        """Drop what belongs to `levels`, which are no more."""
        self.tapes.clear()
        self._compiled = {k: f for k, f in self._compiled.items() if levels not in (getattr(k[0], "__self__", None), *k[1])}

    def _may_play(self, levels: Levels, work: Sequence[tuple[Group, Bucket]]) -> bool:
        """Whether there can be tapes: on the CPU, of rules known to do nothing but to operate on tensors."""
        here = (x.is_cpu and readable(x) for x in (levels.memory, *(bucket.grad for _, bucket in work)))
        return levels.ours and all(group.step.ours for group, _ in work) and all(here)

    def _alone(self, levels: Levels, bucket: Bucket) -> bool:
        """Whether a step in which only this bucket moves can be one function."""
        tall, large = len(levels.levels) > TALL, bucket.param.numel() > WHOLE
        small = not (self._plays and tall) if self.compile else self._plays and not large
        one = len(levels.levels[0].below) == 1 and bucket.grad.device == levels.memory.device
        alike = bucket.index is None and bucket.readings is None and bucket.step.elementwise
        return small and one and alike and not bucket.layout.processes and not bucket.sample

    def _read(self, levels: Levels, work: Sequence[tuple[Group, Bucket]], expected: Mapping[Any, Tensor]) -> list[Tensor]:
        """What the last step says of each of the hyperparameters that the first level moves."""
        like, below, alike = levels.memory, levels.levels[0].below, defaultdict[Any, list[Tensor]](list)
        reads = [(g.owner, b) for g, b in work if b.samples or not b.sample]
        calls = [self._reads(b, expected.get(id(b.clock))) for _, b in reads]
        for (owner, bucket), found in zip(reads, [_done(mine) for mine in calls], strict=True):
            products = owner.unread(bucket.scalars)
            if found:  # the others take part: so do those of other processes
                read = found[0] if len(found) == 1 else torch.stack(found).sum(0)
                read, places = read * bucket.sample.times if bucket.sample else read, (bucket.samples or bucket).readings
                products = read if places is None else products.index_add(2, places, read)
            alike[owner, bucket.layout.processes, products.dtype, products.device].append(products)
        sums = total((owner, processes, torch.stack(x).to(like).sum(0)) for (owner, processes, *_), x in alike.items())
        return [sums[h] if h in sums else h.unread(like) for h in below]

    def _reads(self, bucket: Bucket, expected: Tensor | None) -> list[Call]:
        """Calls of what reads a bucket; none where there is nothing to be read."""
        if not bucket.live and (bucket.step.replays or bucket.step.normalization.metric):
            return []
        rows = bucket.scalars if expected is None else bucket.use(expected)
        own = bucket.samples or bucket
        piece = own.param, own.u, own.state, [*own.kept, *[own.grad] * (own.u is not own.grad)]
        if own.cuts and bucket.uniform:
            return [self.ready(bucket.step.read, piece, rows, own.cuts, dynamic=None)]
        return self._calls(bucket, bucket.step.read, piece, rows, *(() if bucket.uniform else (own.cuts, bucket.spread)))

    def _moves(self, bucket: Bucket, now: Tensor) -> list[Call]:
        """Calls of what moves a bucket."""
        if bucket.shared:  # another may have moved what it reads
            bucket.read()
            if bucket.samples:
                bucket.samples.gather()
        spread = now if bucket.uniform else bucket.spread(now)
        bucket.scalars = now if bucket.step.replays else bucket.scalars
        piece = bucket.param, bucket.grad, bucket.state, [] if bucket.sample else bucket.kept
        return self._calls(bucket, bucket.step.move, piece, spread)

    def _calls(self, bucket: Bucket, function: Callable[..., Any], piece: Piece, *more: Any) -> list[Call]:
        """Calls of `function` of a piece, of large ones part after part."""
        if not (bucket.uniform and bucket.step.elementwise):  # one function would not serve all buckets like this one
            return [partial(function, piece, *more)]
        (param, grad, state, kept), k, n = piece, len(piece[2]), piece[1].numel()
        if self.compile or (parts := round(n / (PIECE if grad.is_cpu else LAUNCH))) < 2:
            return [self.ready(function, piece, *more)]
        cuts = zip(*(t.split(-(-n // parts)) for t in (param, grad, *state, *kept)), strict=True)
        return [self.ready(function, (param, grad, rest[:k], rest[k:]), *more) for param, grad, *rest in cuts]

    # ----------------------------------------------------------------- a function

    def ready(self, function: Callable[..., Any], *arguments: Any, dynamic: bool | None = True) -> Call:
        """A call of ``function(*arguments)``. All is done that can be done before: between functions of large tensors, which
        leave nothing else in the cache, it takes three times as long.

        Args:
            function, dynamic: see `Compiled`; where `dynamic` is False, no argument is elements: a tape, if there can be one,
                spares the compiler.
            arguments: tensors, lists of them, and whatever stays the same from call to call.
        """
        if not (self.compile or self._plays):
            return partial(function, *arguments)
        tensors: list[Tensor] = []
        form = taken_apart(arguments, tensors)
        if self._plays and (not self.compile or dynamic is False):
            return partial(self._tape(function, form, tensors, dynamic is not False), *tensors)
        if program := self._program(function, form, tensors, dynamic):
            return partial(program, tensors)
        without = self._tape(function, form, tensors, True) if self._plays else of_tensors(function, form)
        return partial(without, *tensors)

    def _program(self, function: Callable[..., Any], form: Any, tensors: list[Tensor], dynamic: bool | None) -> Program | None:
        """Of `function` for such `tensors`, compiled where there is none; None where it goes on without."""
        compiled = self._compiled.get((function, form))
        if program := compiled.program(tensors) if compiled else None:
            return program
        if _observed() or self._many(function):
            return None
        compiled = self._compiled.setdefault((function, form), Compiled(function, form, dynamic))
        try:
            return compiled.compile(tensors)
        except Exception as error:
            self.compile = False
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"compile=True: the step cannot be compiled, going on without ({why})", RuntimeWarning, stacklevel=2)
            return None

    def _many(self, function: Callable[..., Any]) -> bool:
        """Whether so many forms of `function` have been compiled that it goes on without; says so once."""
        if sum(len(compiled.made) for (known, _), compiled in self._compiled.items() if known == function) < FORMS:
            return False
        if not self._said:
            self._said = True
            warnings.warn(
                f"compile=True: {FORMS} forms of a step have been compiled, each in seconds; others go on without. Are there "
                "many groups of parameters of different sizes, or parameters with a gradient in some steps only? One group, or "
                "a gradient of 0 in the place of None, makes them few",
                RuntimeWarning,
                stacklevel=2,
            )
        return True

    def _tape(self, function: Callable[..., Any], form: Any, tensors: list[Tensor], elements: bool) -> Callable[..., Any]:
        """A tape where there can be one; `elements`: whether tensors of one dimension are elements."""
        many = [elements and x.ndim == 1 and x.is_floating_point() for x in tensors]
        key = function, form, *(x.dtype for x, is_many in zip(tensors, many, strict=True) if is_many)
        if (played := self.tapes.get(key)) is None:
            played = of_tensors(function, form)
            with contextlib.suppress(tape.Unrecordable):
                played = tape.record(played, tensors, many)
            self.tapes[key] = played
        return played


def _observed() -> bool:
    """Whether the user has switched the compiler off, or has something look at operations, or at what they save."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # not in torch 2.6 and 2.7
    off = torch._dynamo.config.disable or torch._dynamo.eval_frame._stance.stance != "default"
    return bool(off or torch._C._len_torch_dispatch_stack() or hooks(False))


def _done(calls: Sequence[Call]) -> list[Any]:
    return [call() for call in calls]


def whole(levels: Levels, ask: Ask, elements: Any, last: Tensor, leave: Tensor) -> tuple[Tensor, Tensor]:
    """All of a step in which a single bucket moves: the parts of a small step take less time than to call them.

    Args:
        elements: parameter, gradient, state, what is kept, and in a list the gradient to tune along, if that is another;
            how they are cut, see `Step.read`.
        last: see `Step.read`.
        leave: see `Levels.tune`.

    Returns:
        the scalars of this step, as they are and in the dtype of `last`.
    """
    (_, step, *_), (param, grad, state, kept, instead, cuts) = ask, elements
    rows = last if not step.normalization.metric else levels.expected([ask], levels.memory)[0].to(last.dtype)
    found = step.read((param, (instead or [grad])[0], state, [*kept, *[grad] * len(instead)]), rows, cuts)
    (now,) = scalars([ask], levels.tune([found.to(levels.memory)], leave))
    used = now.to(last.dtype)
    step.move((param, grad, state, kept), used)
    return now, used
