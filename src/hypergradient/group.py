"""A param group: its hyperparameters, its schedule, and its parameters in buckets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from .bucket import Bucket, Memory
from .layout import Layout, wrapper
from .level import Hyperparameters, title
from .numerics import readable, sent
from .rule import Rule, check, check_flag
from .sample import Samples
from .sensitivity import Step

ALONE = 1 << 17
"""From so many elements on a parameter is a bucket by itself."""
BUCKET = 1 << 20
"""Elements gathered at the most."""
NOUGHT = 1e-12
"""What is so little below 0 is 0: torch's `LinearLR` ends there by rounding."""
OVERRUN = 0.05
"""The part of its start by which a step size may end below 0: its schedule has been asked for more steps than it has."""
FAINT = 1e-4
"""The part of its start up to which a step size that a schedule sets is as good as 0."""
SAID = float, int, str, tuple, type(None)
"""What a group mostly says."""
LEARNED = "learned"
"""The key under which the dict of a group holds what `memory` saves of it."""


def values_of(entry: MutableMapping[str, Any], rule: Rule, where: str) -> None:
    """Fill in and check what the dict of a group says of `rule`: its numbers, its settings, and `betas` for schedulers; and
    where to go.

    Raises:
        ValueError: a value that is not allowed.
    """
    main, start = rule.multiplier or "lr", (entry.get(LEARNED) or {}).get("start", 0.0)
    for n in rule.hyperparameters():
        value = entry.setdefault(n, getattr(rule, n))
        checked = number(where, n, value, rule.constraint(n), OVERRUN * start if n == main else NOUGHT)
        entry[n] = value if isinstance(value, Tensor) else checked
    pair(where, entry.get("betas", (0.0, 0.0)))
    check_flag(where, "maximize", entry.get("maximize", False))
    for n in rule.settings():
        given = entry.setdefault(n, getattr(rule, n))
        entry[n] = tuple(given) if isinstance(given, list) else given  # as a checkpoint may have it
    if {"beta1", "beta2"} <= rule.hyperparameters().keys():
        entry["betas"] = float(entry["beta1"]), float(entry["beta2"])


def number(where: str, name: str, value: Any, constraint: Constraint, nought: float = NOUGHT) -> float:
    """What the dict of a group says of a hyperparameter; what is less than `nought` below 0 is 0. Raises ValueError where that
    is no number, or not allowed.
    """
    known = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return check(where, name, 0.0 if isinstance(known, float) and -max(nought, NOUGHT) < known < 0 else known, constraint)


def pair(where: str, betas: Any) -> tuple[Any, Any]:
    """What the dict of a group says under "betas". Raises ValueError where that is not two."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{where}: betas={betas!r} is not allowed; it must be two numbers")
    return betas[0], betas[1]


def settled(rule: Rule, entry: Mapping[str, Any]) -> Rule:
    """`rule` with the settings that the dict of a group says; what is tuned, and in which coordinate, stays.

    Raises:
        ValueError: settings that do not go together with the values.
    """
    if all(entry[n] == getattr(rule, n) for n in rule.settings()):
        return rule
    charts = {n: rule.chart(n) for n in rule.tuned()}
    said = {n: float(entry[n]) for n in rule.hyperparameters()}
    held = {n: x for n, x in said.items() if n not in charts or charts[n].holds(x)}  # a 0 of this group is a factor
    settings = {n: entry[n] for n in rule.settings()}
    return replace(rule, **{**held, **settings}, tune=rule.tuned(), charts={**rule.charts, **charts})


class Group:
    """One dict of `param_groups`, which belongs to the user, and what follows from it.

    Args:
        entry: the dict.
        rule: the rule it was given; it gets the settings that are in force.
        bases: by name, what a tuned hyperparameter was at the start, which is what schedules are relative to: groups that
            share their hyperparameters share it.
        begins: by name, what one is learned from, where that is not its base.
        steps: those that there are already: alike groups share one, so that it is compiled once.
    """

    owner: Hyperparameters  # what the parameters are moved with
    step: Step  # what is done with them
    schedule: Tensor  # of what is tuned a factor, the values of all others, ordered as the owner's. shape: (hyperparameters, 1)
    alone = True  # whether it shares its hyperparameters with no other

    def __init__(
        self, entry: dict[str, Any], rule: Rule, bases: dict[str, float], begins: dict[str, float], steps: dict[Any, Step]
    ) -> None:
        self.entry, self.rule, self.bases, self.begins, self.steps = entry, rule, bases, begins, steps
        self.learned = entry[LEARNED]  # the object, which belongs to this group
        self.saved: dict[str, Any] = dict(self.learned)  # by `memory.learned`, until there are levels to take it over
        self.params: list[Tensor] = list(entry["params"])  # those that the buckets are made of
        self.said = {n: float(entry[n]) for n in rule.hyperparameters()}  # by the user
        self.heard: list[Any] = []  # what the dict said last
        self.fresh: set[str] = set()  # which of the hyperparameters that are tuned begin anew
        self.raised: set[str] = set()  # which of them have been raised from 0, and no step has been made with
        self.main = rule.multiplier or "lr"  # the name of its step size
        self.start = float(self.saved.get("start", entry.get(f"initial_{self.main}", entry.get(self.main, 0.0))))
        # The highest step size that the user has given it since, and how many times `start` that is, from the first step on;
        # in `heights`, what they are if a step is made now.
        self.highest, self.rise = self.heights = self.saved.get("highest", (0.0, 1.0))
        self.followed: int = self.saved.get("followed", 0)  # steps one after the other, each of which could read the one before
        self.marks = dict[int, int]()  # by id, how often a parameter had been written to after its last step
        known = rule.one_step or "start" in self.saved  # else of 0.1.0, where a trace could be read all the same
        self.resting = {i for i, rests in enumerate(self.saved.get("resting", ())) if rests and known}  # cannot be read
        there = zip(self.params, self.saved.get("waiting", [1] * len(self.params)), strict=False)
        self.waiting = {id(p) for p, waits in there if waits}  # were there in the last step, and have never moved
        self.waits = self.waiting  # the same, if a step is made now
        self.buckets: list[Bucket] = []
        self.moving: list[Bucket] = []  # those that move in this step
        last = self.saved.get("last")  # scalars of the last step by its number; of a checkpoint at 0. shape: (rows, sets)
        self.last = {0: torch.tensor(last, dtype=torch.float64, device="cpu")} if last and any(last[0]) else {}

    # ------------------------------------------------------------ what the user says

    def listen(self, where: str) -> None:
        """Take over what the dict says of the hyperparameters, where it says something new.

        Raises:
            ValueError: it says what is not allowed. Nothing has changed then.
        """
        entry, rule, old = self.entry, self.rule, self.said
        heard = [entry.get(n) for n in (*old, "betas", "maximize", *rule.settings())]
        if len(heard) == len(self.heard) and all(map(is_, heard, self.heard)):
            return
        check_flag(where, "maximize", entry["maximize"])
        nought = {self.main: OVERRUN * (self.start or self.bases.get(self.main, 0.0))}
        said = {n: number(where, n, entry[n], rule.constraint(n), nought.get(n, NOUGHT)) for n in old}
        names = ("beta1", "beta2") if {"beta1", "beta2"} <= said.keys() else ()
        if names and (betas := pair(where, entry["betas"])) != (old["beta1"], old["beta2"]):
            said.update({n: number(where, n, x, rule.constraint(n)) for n, x in zip(names, betas, strict=True)})
        fresh = {n for n, base in self.bases.items() if (base == 0 or n in self.raised) and said[n] != base}
        for n in fresh:
            rule.check_chart(where, n, said[n])
        self.rule, self.said = settled(rule, entry), said
        self.bases.update({n: said[n] for n in fresh})
        self.fresh, self.raised = self.fresh | fresh, self.raised | fresh
        if names and said != old:
            entry["betas"] = said["beta1"], said["beta2"]
            entry.update({n: said[n] for n in names if said[n] != entry[n]})
        if said != old and hasattr(self, "owner"):
            self._schedule()
        self.heard = heard if all(isinstance(x, SAID) for x in heard) else []  # others may change in place

    @torch.inference_mode(False)  # used in training, also if said in a validation loop
    def _schedule(self) -> None:
        """What the dict says, as the step needs it. A step size that starts at 0 is frozen until it is raised."""
        bases, owner = self.bases, self.owner
        fixed = {n: self.said[n] for n in owner.order[len(owner.names) :]}
        off = frozenset(n for n, value in fixed.items() if value == 0 and n != self.main)
        kind = type(owner.rule), title(owner.rule, owner.names), off, *(getattr(owner.rule, n) for n in owner.rule.settings())
        if kind not in self.steps:
            self.steps[kind] = Step(owner.rule, owner.names, off)
        self.step = self.steps[kind]
        owner.moves = self.step.follows
        factors = [self.said[n] / bases[n] if bases[n] else float(n != self.main) for n in owner.names]
        if owner.moves:
            self.heights = self._heights()  # taken over by a step; to look at an optimizer changes nothing
            factors[0] /= self.heights[1]
        self.schedule = sent([*factors, *fixed.values()], owner.given).unsqueeze(1)

    def _heights(self) -> tuple[float, float]:
        """`highest` and `rise` if a step is made now. What is FAINT beside its start is as 0: it is no height yet."""
        lr, highest, rise = self.said[self.main], self.highest, self.rise
        if self.followed == 0 or highest <= FAINT * self.start:
            first = self.start or (self.bases.get(self.main, 0.0) if self.alone else 0.0)
            return lr, max(1.0, lr / first if first else 1.0)
        return (lr, rise * lr / highest) if lr > highest else (highest, rise)

    @property
    def freedom(self) -> float:
        """How much of what it wants to a step size may move, from 0 to 1, that learns so fast that it would undo its schedule:
        all where the user's lr is the highest so far, nothing where it is no more than half of that. (Nor may it fall: what a
        small step size does says nothing of that which it is a part of.) Nothing either where it has been FAINT until now.

        Such a step size is that of the highest. So a warm-up is left to it, which has its own: and it does not
        matter what a schedule takes for the lr of the rule.
        """
        if not self.owner.moves:
            return 1.0
        highest, _ = self.heights
        said = min(highest, self.highest if self.followed else highest) > FAINT * self.start
        return max(0.0, 2 * self.said[self.main] / highest - 1) if said else 0.0

    # ----------------------------------------------------------- its hyperparameters

    def own(self, like: Tensor, tuned: bool, tensor: bool) -> Hyperparameters:
        """Its hyperparameters anew, in dtype and on the device of `like`, which go on with what was learned.

        Args:
            tuned: whether there is a level above.
            tensor: whether each parameter has a set of its own.
        """
        params = list(self.entry["params"])
        sets = len(params) if tensor else 1
        first = {**self.said, **self.bases, **self.begins}
        initial = {n: [first[n]] * sets for n in self.rule.hyperparameters()}
        owner, old = Hyperparameters(self.rule, initial, like, tuned), getattr(self, "owner", None)
        columns = [*self._columns(params)] if tensor else [0]
        if self.saved.get("levels"):
            owner.memory = like.new_tensor(next(iter(self.saved["levels"].values()))["memory"])
        elif old is not None and old.names == owner.names:
            owner.memory = old.memory
        if tensor:
            here = [column or 0 for column in columns]
            self.last = {count: rows[:, here] for count, rows in self.last.items() if rows.shape[1]}
        before = 0 if owner.memory is None else owner.memory.shape[1] // max(1, len(owner.names))  # perhaps fewer parameters
        owner.source = {
            k * sets + i: k * before + column
            for k, n in enumerate(owner.names)
            for i, column in enumerate(columns)
            if column is not None and column < before and n not in self.fresh
        }
        return owner

    def use(self, owner: Hyperparameters) -> None:
        """Use these hyperparameters, from here on or from where a checkpoint left them."""
        self.params = list(self.entry["params"])
        self.last = {count: rows.to(owner.given) for count, rows in self.last.items()}
        self.owner, self.fresh, self.saved = owner, set(), {}
        self._schedule()

    def _columns(self, params: Sequence[Tensor]) -> Iterator[int | None]:
        """For each parameter, whose set it goes on with: its own, or that of one whose place it has taken."""
        before, now = {id(p): i for i, p in enumerate(self.params)}, set(map(id, params))
        for i, p in enumerate(params):
            gone = i < len(self.params) and id(self.params[i]) not in now
            yield before.get(id(p), i if gone else None)

    # ------------------------------------------------------------------ its buckets

    def fill(self, memory: Memory, present: Sequence[bool], shared: Collection[int], still: bool) -> None:
        """Put the parameters that have moved or will move into buckets, alike in dtype, device, layout, number of steps made,
        whether they have a gradient, and whether the last step can be read. Which go together follows from that alone, as it
        has to for an exact resume.

        Args:
            memory: `optimizer.state`.
            present: which have a gradient.
            shared: the ids of parameters that share memory with others.
            still: whether all tensors are where they were after the last step.
        """
        intact = [b for b in self.buckets if b.intact(memory, still)]
        before, self.params, clocks = self.params, list(self.entry["params"]), dict[Any, Tensor]()
        past = dict(self.past(memory, intact))
        here = {i: (*past.get(i, (0, False)), *x) for i, x in enumerate(zip(present, self._sums(memory, intact), strict=True))}
        alike = self._alike({i: mine for i, mine in here.items() if present[i] or i in past}, shared)
        known = {(b.step, b.count, *b.sets, *map(id, b.members)): b for b in intact}
        left = self._left(before, memory, intact)
        buckets = list[Bucket]()
        for (_, *common, count, live, _, sums), positions in alike.items():
            members, sets = [self.params[i] for i in positions], positions if self.owner.sets > 1 else []
            key = self.step, count, *sets, *map(id, members)
            bucket = known.get(key) or Bucket(self.step, members, sets, count, memory)
            bucket.common, bucket.live, bucket.positions = common, live, positions
            bucket.edits.look(self.marks)
            bucket.clock = clocks[count, sums] = self._clock(bucket, clocks.get((count, sums)))
            if key not in known and live and self.step.replays:
                bucket.scalars = bucket.use(self._scalars(bucket))
            bucket.share(any(id(p) in shared for p in bucket.members), left)
            buckets.append(bucket)
        self.buckets, self.resting = buckets, set()
        self.waits = {*map(id, self.params)} - {id(p) for b in buckets for p in b.members} if any(present) else self.waits
        self.last.pop(0, None)
        self._sample(buckets, present)

    def keeps(self, present: Sequence[bool]) -> bool:
        """Whether `fill` would find the same buckets, where nobody has changed anything but which have a gradient; they are
        ready then.
        """
        here, clocks = [{present[i] for i in b.positions} for b in self.buckets], dict[Any, Tensor]()
        ages = [(b.count, *(b.sums[:, 0].tolist() if self.owner.sets == 1 and readable(b.sums) else ())) for b in self.buckets]
        kinds = {(*b.common, b.live, *age, *x) for b, age, x in zip(self.buckets, ages, here, strict=True)}
        moving = [(b, age) for b, age, x in zip(self.buckets, ages, here, strict=True) if True in x]
        whole = all(len(x) == 1 for x in here) and sum(len(b.positions) for b, _ in moving) == sum(present)  # none is new
        if not whole or len(kinds) < len(self.buckets) or any(b.shared for b in self.buckets):
            return False
        for bucket, age in moving:
            bucket.clock = clocks[age] = self._clock(bucket, clocks.get(age))
        self._sample([b for b, _ in moving], present)
        return True

    def joins(self, memory: Memory, present: Sequence[bool]) -> tuple[int, int]:
        """How many elements have moved before, and how many were there and move for the first time."""
        moves = [p for p, moves in zip(self.entry["params"], present, strict=True) if moves and id(p) in self.waiting]
        known = [p for p in self.params if id(p) not in self.waiting or _made(memory.get(p))]
        return sum(p.numel() for p in known), sum(p.numel() for p in moves if not _made(memory.get(p)))

    def _left(self, before: Sequence[Tensor], memory: Memory, intact: Sequence[Bucket]) -> dict[int, Tensor]:
        """By id, what the last step has left of the parameters that stay, where there are copies; and know how often they have
        been written to. Of one that has gone, another may have the id.

        Args:
            before: the parameters that there were.
            intact: the buckets of which all is as they have left it.
        """
        stay = {*map(id, before)} & {*map(id, self.params)}
        for edits in (b.edits for b in self.buckets):
            self.marks.update(zip(map(id, edits.members), edits.seen or (), strict=False))
        self.marks = {i: n for i, n in self.marks.items() if i in stay}
        return {i: x for b in self.buckets for i, x in b.left(memory, b in intact) if i in stay}

    def _readings(self, buckets: Sequence[Bucket], sizes: Sequence[int]) -> tuple[tuple[int, ...], Tensor | None]:
        """`Bucket.cuts` and `Bucket.readings` of what is read side by side; `sizes`: how many elements of each member."""
        members, sets, owner = [p for b in buckets for p in b.members], buckets[0].sets, self.owner
        each = sets or [owner.apart.get(id(p), owner.readings - 1) for p in members]
        runs = [(i, sum(n for _, n in run)) for i, run in groupby(zip(each, sizes, strict=True), key=itemgetter(0))]
        order, cuts = [i for i, _ in runs], tuple([n for _, n in runs])
        place = None if order == [*range(owner.readings)] else torch.tensor(order, device=buckets[0].steps.device)
        return cuts if len(cuts) > 1 else (), place

    def _sample(self, buckets: Sequence[Bucket], present: Sequence[bool]) -> None:
        """Know how each bucket is read: what is read of large parameters, side by side."""
        sampled = defaultdict[Any, list[Bucket]](list)
        for b in buckets:
            b.samples = None
            b.cuts, b.readings = self._readings([b], b.sizes)
            if b.sample:
                alike = b.dtype, b.steps.device, b.layout.processes, id(b.clock), b.live, tuple(b.sets), present[b.positions[0]]
                sampled[(b.sample.times, b.shared and id(b), *alike)].append(b)
        for mine in sampled.values():
            mine[0].samples = samples = Samples(mine)
            samples.cuts, samples.readings = self._readings(mine, samples.sizes)

    def _alike(self, known: Mapping[int, tuple[Any, ...]], shared: Collection[int]) -> dict[Any, list[int]]:
        """The positions that go together, by what they have in common: last, what is `known` of each."""
        apart, bound = not self.step.elementwise, BUCKET if self.owner.sets == 1 else ALONE
        alike, filled = defaultdict[Any, list[int]](list), Counter[Any]()
        first = self.owner.apart
        for i, mine in sorted(known.items(), key=lambda x: first.get(id(self.params[x[0]]), len(first))):
            p = self.params[i]
            size = Layout.of(p).size(p)
            alone = size >= ALONE or apart or id(p) in shared or self.step.sample(p) or wrapper(p)
            kind = p.dtype, p.device, Layout.of(p, whole=apart), i if alone else None, *mine
            filled[kind] += size
            alike[(filled[kind] // bound, *kind)].append(i)
        return alike

    def _sums(self, memory: Memory, intact: Sequence[Bucket]) -> Iterator[tuple[float, ...]]:
        """What each parameter has added up, where all use the same hyperparameters: those with other sums are others. Of a
        bucket that is `intact`, all are read at once.
        """
        alike, names = self.owner.sets == 1, self.step.sums
        known = [(b.members, b.sums.T.tolist()) for b in intact if alike and names and readable(b.sums)]
        read = {id(p): x for members, rows in known for p, x in zip(members, rows, strict=True)}
        for p in self.params:
            found = read.get(id(p)) or [(memory.get(p) or {}).get(n, 0.0) for n in names if alike]
            yield tuple(float(x) for x in found if not isinstance(x, Tensor) or readable(x))

    def _clock(self, bucket: Bucket, known: Tensor | None) -> Tensor:
        """What counts the steps of a bucket, and of others with the same history; `known`: that of these."""
        sums = len(self.step.sums)
        clock = self.owner.given.new_zeros(1 + sums, self.owner.sets if sums else 1) if known is None else known
        clock[0] = bucket.count
        if sums:
            here = slice(None) if bucket.index is None else bucket.index.to(clock.device)
            clock[1:, here] = (bucket.sums if bucket.sets else bucket.sums[:, :1]).to(clock)
        return clock

    def recent(self) -> Tensor:
        """The scalars of the last step, of any parameters that moved, if it needs them; 0 before there was one.

        shape: (rows, sets)
        """
        rows = self.step.rows["jacobian"].stop if self.step.replays else 0
        known = next(iter([*self.last.values()]), None)  # at once: another thread may be at a step
        return self.owner.given.new_zeros(rows, self.owner.sets) if known is None else known[:rows]

    def _scalars(self, bucket: Bucket) -> Tensor:
        """The scalars of the last step of a bucket. shape: (rows, sets)"""
        count, step = bucket.count, self.step
        if count not in self.last:  # after a checkpoint, which keeps those of one count
            rows = self.recent()
            values, scale = rows[step.rows["values"]], rows[step.rows["scale"]]
            self.last[count] = rows if rows[0].eq(count).all() else step.prepare(values, scale, bucket.clock)
        return self.last[count]

    def past(self, memory: Memory, intact: Sequence[Bucket] | None = None) -> Iterator[tuple[int, tuple[int, bool]]]:
        """Of each parameter that has moved before: how many steps it has made, and whether the last can be read; `intact`: the
        buckets that are, where that is known.
        """
        found, lost, times = dict[int, tuple[int, bool]](), set[int](), Counter[int]()
        resting = self.resting.union(*(b.positions for b in self.buckets if not b.live))
        for bucket in self.buckets:
            if self.step.replays and bucket.written():
                bucket.live = False
            if bucket.intact(memory) if intact is None else bucket in intact:
                found.update((id(p), (bucket.count, bucket.live)) for p in bucket.members)
            else:
                lost.update(map(id, bucket.changed(memory) if bucket.live else bucket.members))
        for i, p in enumerate(self.entry["params"]):
            times[id(p)] += 1
            if (entry := memory.get(p)) and id(p) not in found:
                found[id(p)] = self._remembered(p, entry, i in resting, id(p) in lost)
            count, live = found.get(id(p), (0, False))
            count += times[id(p)] - 1  # one parameter twice moves twice
            if id(p) in found or count:
                yield i, (count, live and (times[id(p)] == 1 or count in self.last or not self.step.replays))

    def _remembered(self, p: Tensor, entry: Mapping[str, Any], rests: bool, lost: bool) -> tuple[int, bool]:
        """As `past`, of a parameter that is in no bucket; `rests`: what the last step has left could not be read; `lost`:
        that cannot be replayed.
        """
        count = int(entry.get("step", any(n in entry for n in self.step.state)))  # a momentum of torch has none
        shape = p.shape if (sample := self.step.sample(p)) is None else sample.shape
        left = all(getattr(entry.get(n), "shape", None) == shape for n in self.step.kept)
        known = not self.step.replays or (not lost and (count in self.last or 0 in self.last))
        return count, count > 0 and left and known and not rests

    def gather(self, grads: Sequence[Tensor | None], cotangents: Mapping[Tensor, Tensor]) -> list[Bucket]:
        """Read the parameters that have a gradient. Returns their buckets."""
        self.last, self.moving = {}, [b for b in self.buckets if grads[b.positions[0]] is not None]
        for bucket in self.moving:
            bucket.gather([grads[i] for i in bucket.positions], self.entry["maximize"], cotangents)  # type: ignore[misc]
        for samples in (b.samples for b in self.moving if b.samples):
            samples.gather()
        return self.moving

    def count(self) -> None:
        """The end of a step."""
        (self.highest, self.rise), self.waiting = self.heights, self.waits
        self.raised.clear()
        if moved := self.moving:
            self.followed = self.followed + 1 if any(b.live for b in moved) else 1
            torch._foreach_add_([b.steps for b in moved], 1)
            if self.step.sums:
                torch._foreach_copy_([b.sums for b in moved], [b.summed(b.clock[1:]) for b in moved])
        for bucket in moved:
            bucket.tick()


def _made(entry: Mapping[str, Any] | None) -> bool:
    """Whether a parameter of which that is remembered has made a step."""
    return bool(entry and entry.get("step", 1))
