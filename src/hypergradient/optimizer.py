"""Hyperoptimizer: a tower of rules as a `torch.optim.Optimizer`."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import is_
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # as torch.compiler.disable, without a second's import of the compiler

from . import evaluation, memory
from .auto import auto, beside, usual_lr
from .bucket import Bucket
from .engine import Engine
from .group import LEARNED, Group, number, pair, settled, values_of
from .layout import Layout, address, overlapping, reshard, shapes, total
from .level import COUNT, Hyperparameters, Level, Levels, upper
from .numerics import exact, plain, readable
from .objective import gradients
from .probe import remembered
from .report import Snapshot, printed
from .rule import Rule
from .sensitivity import Step
from .tower import Tower
from .watch import Watch

INSTEAD: tuple[tuple[Any, str, str], ...] = (
    (torch.optim.Optimizer, "an optimizer", "from_torch(optimizer, above=…)"),
    (torch.nn.Module, "a module", "Hyperoptimizer(model.parameters())"),
    (Callable, "a function or a class", "Hyperoptimizer(model.parameters())"),
    (Mapping, "a dict", "Hyperoptimizer([{'params': …}]) where it is a group, else Hyperoptimizer(model.parameters())"),
)
PASSED = (
    ". It finds the lr; other values belong to a rule: auto(weight_decay=0.1), Adam(lr=1e-3) / SGD(lr=1e-5). To what passes "
    "them by itself, give a function: lambda params, **_: Hyperoptimizer(params)"
)
MANY = 1000
"""Groups taken away of which the rule is known."""
MUCH = 8
"""One in so many of the elements that have moved before is much."""
LOCK = RLock()
"""Of what is made at first sight: another thread may read what is learned."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
Grads = list[list[Tensor | None]]


@dataclass
class Own:
    """What an optimizer has, and does not save as it is.

    All of it in one object: a wrapper, such as those of Lightning and Fabric, reads from the optimizer inside what it has not
    itself, but what it writes it keeps.
    """

    engine: Engine
    watch: Watch = field(default_factory=Watch)
    levels: Levels = field(default_factory=lambda: Levels([], torch.empty(0, device="cpu")))
    groups: list[Group] = field(default_factory=list)
    gone: list[tuple[Any, Rule]] = field(default_factory=list)  # of groups taken away, the object under "learned", and the rule
    steps: dict[Any, Step] = field(default_factory=dict)  # see `Group`
    made: int = 0  # how many steps it has made
    built: Any = None  # what the levels are made from
    basis: tuple[Any, Any, list[Any], Callable[[Any], int], array[int]] = None, None, [], address, array("Q")  # of the buckets
    cotangents: dict[Tensor, Tensor] = field(default_factory=dict)  # the gradients of `tune_on`
    entered: dict[Tensor, Rule] = field(default_factory=dict)  # with which a parameter became its average


class Hyperoptimizer(torch.optim.Optimizer):
    """An optimizer that tunes its own hyperparameters by gradient descent while it trains.

    The leftmost rule of the tower adjusts the weights, and every rule tunes the one on its left, along the derivative
    of the loss with respect to the hyperparameters of the last step (Chandra, Xie, Ragan-Kelley & Meijer 2022,
    *Gradient Descent: The Ultimate Optimizer*, arXiv 1909.13371).

        optimizer = Hyperoptimizer(model.parameters(), Adam(lr=1e-3) / SGD(lr=1e-5))

    A group may override values and flags of the leftmost rule (``{"params": …, "lr": 1e-4}``), or the rule itself
    (``{"params": …, "rule": AdamW(lr=3e-4)}``, under `auto` tuned likewise). ``group["lr"]`` belongs to the user and
    to schedulers: the value in force is the learned one times ``group["lr"]`` over what it was at construction
    (``group["initial_lr"]``, if a scheduler has put it there; under `auto`, over its highest so far); likewise for every
    tuned hyperparameter. A group whose lr is 0 is frozen until it is raised.

    `state` holds of each parameter what its rule remembers, and belongs to the user, as in torch: entries may be deleted,
    emptied, changed, or moved to other parameters. What has been learned is not in it: see `state_dict`.

    Args:
        params: parameters, named parameters, or groups, as for every optimizer of torch.
        tower: a tower of rules, by default ``auto()``, which averages: see `eval`; a rule alone tunes nothing.
        per: how many sets of hyperparameters the leftmost rule has: one for ``"all"`` parameters, one per ``"group"``
            (default), one per ``"tensor"``. Levels above have one set.
        maximize: climb instead of descending. Default False.
        compile: compile the step with `torch.compile`; default False. The first two steps then take seconds, the others
            less, most of all on large models. Rules that mix elements, and small parameters under ``per="tensor"``, are not.

    Raises:
        ValueError, TypeError: bad input, before anything has changed.
    """

    instead_of: torch.optim.Optimizer | None = None
    """That of torch in whose place it stands; a scheduler made for that finds the groups there. See `from_torch`."""

    def __init__(
        self,
        params: Any,
        tower: Rule | Tower | None = None,
        per: str = "group",
        maximize: bool = False,
        compile: bool = False,
        **others: Any,
    ) -> None:
        if others:
            raise TypeError(
                f"Hyperoptimizer has no argument {', '.join(others)}; allowed: params, tower, per, maximize, compile{PASSED}"
            )
        for kind, what, write in INSTEAD:
            if isinstance(params, kind) and not isinstance(params, torch.nn.ParameterList):
                raise TypeError(f"params={type(params).__name__} is {what}: write {write}")
        if per not in ("all", "group", "tensor"):
            raise ValueError(f"per={per!r} is not allowed; it must be 'all', 'group' or 'tensor'")
        self.tower, self.per, self.compile = auto() if tower is None else Tower.of(tower), per, compile
        self._own = Own(Engine(compile))
        usual = self._usual_lr(rule := self.tower.rules[0])
        defaults: dict[str, Any] = {} if usual is None else {"lr": usual}
        values_of(defaults, rule, "group 0")
        super().__init__(params, {**defaults, "maximize": maximize})

    # ------------------------------------------------------------------ groups

    @property
    def rules(self) -> list[Rule]:
        """The rule of each group."""
        return [group.rule for group in self._own.groups]

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the dict `param_group`, also in mid-training; its hyperparameters are fresh, the levels above go on.

        Raises:
            ValueError: a value outside its constraint, a parameter that the rule cannot move.
        """
        where = f"group {len(self.param_groups)}"
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{where}: a group is a dict with 'params', got {param_group!r}")
        entry, rule = {**self._agreed(param_group), LEARNED: {}}, self._rule_of(param_group)
        if rule is None and "rule" not in param_group:
            given = {"betas", *(("beta1", "beta2") if "betas" in param_group else ())}
            entry = {**{n: x for n, x in self._agreed(self.defaults).items() if n not in given}, **entry}
        rule, params = rule or self.tower.rules[0], entry["params"]
        entry["params"] = [params] if isinstance(params, Tensor) else params if isinstance(params, set) else list(params)
        group, known = self._group(entry, [rule], where), set(entry)
        super().add_param_group(entry)
        for n in self.defaults.keys() - known:  # of the leftmost rule, where this group has one of its own
            del entry[n]
        self._own.groups.append(group)
        group.listen(where)

    def _group(self, entry: dict[str, Any], rules: Sequence[Rule], where: str) -> Group:
        """The group of a dict, which is completed: with its own rule, or the first of `rules` that it may be one of."""
        saved = entry.setdefault(LEARNED, {})
        rule = self._bare(entry.pop("rule", None), where) or next(
            (r for r in rules if type(r).__name__ in saved.get("said", ())), rules[0]
        )
        self._check(entry["params"], rule, where)
        entry.setdefault("maximize", self.defaults["maximize"])
        group = Group(entry, *self._settle(entry, rule, where), self._own.steps)
        group.alone = self.per != "all"
        return group

    def _agreed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The dict of a group with `betas` for the two numbers, if these are as in the dict that it is a copy of."""
        if not {"betas", "beta1", "beta2"} <= entry.keys():
            return entry
        mine = (g.said for g in self._own.groups if g.learned is entry.get(LEARNED))
        said = next(mine, {n: force for n, (*_, force) in memory.words(entry).items()} or vars(self.tower.rules[0]))
        first, second = pair("group", entry["betas"])
        edited = any(entry[n] != said.get(n) for n in ("beta1", "beta2"))
        return entry if edited else {**entry, "beta1": first, "beta2": second}

    def _bare(self, rule: Any, where: str) -> Any:
        """The leftmost rule of a tower that a group is given, where that is under the same as the others; a rule as it is
        tuned there.
        """
        if not isinstance(rule, Tower):
            return beside(rule, self.tower.rules[0]) if isinstance(rule, Rule) else rule
        if rule.rules[1:] != self.tower.rules[1:]:
            raise ValueError(
                f"{where}: rule={rule!r} is under another tower than {self.tower!r}; all groups share what is above"
            )
        return rule.rules[0]

    def _check(self, params: Iterable[Any], rule: Rule, where: str) -> None:
        """Raise ValueError for a parameter that `rule` cannot move in this tower."""
        Tower((rule, *self.tower.rules[1:]))
        for i, named in enumerate(params):
            name, p = named if isinstance(named, tuple) else (f"parameter {i} of {where}", named)
            if not isinstance(p, Tensor) or not p.requires_grad:
                continue
            if (why := rule.accepts(p)) is not None:
                raise ValueError(f"{name} has shape {tuple(p.shape)}: {why}")
            if self.tower.height and (hasattr(p, "_is_flat_param") or getattr(p, "_fsdp_flattened", False)):
                raise ValueError(
                    f"{name} is sharded by FullyShardedDataParallel (FSDP 1), where no process can sum over all elements of a "
                    "parameter; use FSDP2, torch.distributed.fsdp.fully_shard"
                )

    def _usual_lr(self, rule: Rule) -> float | None:
        return usual_lr(rule) if self.tower.height else None

    def _settle(self, entry: dict[str, Any], rule: Rule, where: str) -> tuple[Rule, dict[str, float], dict[str, float]]:
        """Complete the dict of a group, and find its rule, the bases of its tuned hyperparameters, and what is learned from
        elsewhere.
        """
        values_of(written := {**entry}, rule, where)
        main = rule.multiplier or "lr"
        if main in entry and written[main] == 0:  # also where a schedule has ended below it
            entry[main] = written[main]
        saved, begins = memory.restore(entry, main), dict[str, float]()
        if usual := self._usual_lr(rule):
            start = float(getattr(rule, "lr"))  # noqa: B009
            if (given := entry.setdefault("lr", usual)) != start:
                saved, begins = {"lr": max(usual, float(given)), **saved}, {"lr": start}
        values_of(entry, rule, where)
        rule = settled(rule, entry)
        tuned = rule.tuned() if self.tower.height else ()
        first = {n: number(where, f"initial_{n}", entry.get(f"initial_{n}", entry[n]), rule.constraint(n)) for n in tuned}
        bases = {n: saved.get(n, value) for n, value in first.items()}
        for n, value in bases.items():
            rule.check_chart(where, n, value)
        siblings = (group.bases for group in self._own.groups if self.per == "all" and group.rule == rule)
        return rule, next(siblings, bases), begins

    def _reconcile(self) -> None:
        """See which groups there are: dicts may have been assigned, appended, taken away, and copied."""
        entries, before = self.param_groups, self._own.groups
        same = (g.entry is e and g.learned is e.get(LEARNED) for g, e in zip(before, entries, strict=False))
        if len(entries) == len(before) and all(same):
            return
        gone = [g for g in before if not any(g.entry is e for e in entries)]
        found = [self._found(e, [g for g in before if g.entry is e], gone) for e in entries]
        memory.refresh(self, [g for g in gone if hasattr(g, "owner")])
        for lost in gone:  # by the time that one comes back, the last step will be another
            lost.learned["last"] = []
        self._own.gone = [*self._own.gone[-MANY:], *((g.learned, g.rule) for g in gone)]
        rules, own = [self.tower.rules[0], *self.rules], [self._rule_of(e) for e in entries]
        self._own.gone = [x for x in self._own.gone if not any(x[0] is e.get(LEARNED) for e in entries)]
        self._own.groups = [g for g in found if g is not None]
        for i in (i for i, g in enumerate(found) if g is None):
            entry, rule = entries[i], own[i]
            entry.update(self._agreed(entry))
            if any(entry.get(LEARNED) is g.learned for g in before):  # a copy of the dict of another
                entry[LEARNED] = {}
            for n, said in memory.words(entry).items() if rule else ():
                said[1] = float(entry[n])  # the user's: not what was in force
            self._own.groups.insert(i, self._group(entry, [rule] if rule else rules, f"group {i}"))

    def _rule_of(self, entry: dict[str, Any]) -> Rule | None:
        """That of the group whose dict, or a copy of whose dict, `entry` is: also of one that has been taken away."""
        mine = (g.rule for g in self._own.groups if g.entry is entry)
        known = chain(((g.learned, g.rule) for g in self._own.groups), reversed(self._own.gone))
        return next(chain(mine, (rule for learned, rule in known if learned is entry.get(LEARNED))), None)

    def _found(self, entry: dict[str, Any], own: list[Group], gone: list[Group]) -> Group | None:
        """The group that goes on in `entry`: its own, or one of those that are gone, of whose dict this is a copy."""
        if own and own[0].learned is entry.get(LEARNED):
            return own[0]
        for group in gone:
            if group.learned is entry.get(LEARNED) or any(map(is_, entry["params"][:1], group.entry["params"])):
                gone.remove(group)
                if LEARNED in entry and entry[LEARNED] is not group.learned:
                    memory.warn_of_nothing(self, entry["params"])
                for n, x in group.entry.items():
                    entry.setdefault(n, x)
                group.entry, entry[LEARNED] = entry, group.learned
                return group
        return None

    def _assemble(self, device: torch.device | None = None) -> list[Group]:
        """All groups as the user has left them, with the hyperparameters that move them, and the levels above.

        Args:
            device: in a step, that of its gradients. Only there are these looked at: while they are made, another thread may
                read what is learned.
        """
        with LOCK:
            self._reconcile()
            groups = self._own.groups
            for i, group in enumerate(groups):
                group.listen(f"group {i}")
            device = device or self._device([p for group in groups for p in group.entry["params"]])
            sets = [list(map(id, group.entry["params"])) for group in groups] if self.per == "tensor" else []
            built = device, [*groups], self.rules, sets
            if groups and (any(group.fresh for group in groups) or built != self._own.built):
                self._build(device)
                self._own.built = built
            return groups

    def _device(self, params: Sequence[Tensor]) -> torch.device:
        """Where the levels are, if a parameter that may move is there too; else where the first one of these is."""
        may = [p.device for p in params if p.requires_grad] or [torch.device("cpu")]
        return self._own.built[0] if self._own.built and self._own.built[0] in may else may[0]

    @torch.inference_mode(False)  # what is made in a validation loop is used in training
    def _build(self, device: torch.device) -> None:
        """Make the hyperparameters of all groups and the levels anew; all that has been learned goes on."""
        like, groups = torch.empty((), dtype=exact(device), device=device), self._own.groups
        saved = next((list(group.saved["levels"].values()) for group in groups if group.saved.get("levels")), [])
        above = [level.own.memory for level in self._own.levels.levels] or [like.new_tensor(x["memory"]) for x in saved[1:]]
        for group in groups:
            group.fresh = set().union(*(other.fresh for other in groups if other.bases is group.bases))
        shared = [[g for g in groups if g is group or (self.per == "all" and g.rule == group.rule)] for group in groups]
        first = [min(alike, key=lambda g: not (hasattr(g, "owner") or g.saved.get("levels"))) for alike in shared]
        owners = {g: g.own(like, self.tower.height > 0, self.per == "tensor") for g in dict.fromkeys(first)}
        for group, known in zip(groups, first, strict=True):
            group.use(owners[known])
        below, levels = list(dict.fromkeys(group.owner for group in groups)), list[Level]()
        for own, rows in zip(upper(self.tower, like), chain(above, repeat(None)), strict=False):
            own.memory = rows
            levels.append(Level(own, below))
            below = [own]
        self._own.engine.forget(self._own.levels)
        self._own.levels, self._own.basis = Levels(levels, like), Own.basis

    # -------------------------------------------------------------------- step

    @_disable_dynamo  # traced with the model, it would compile again and again
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every level, along the gradients that are in ``p.grad`` now.

        Returns:
            what `closure` returned, if there is one (default: none); it is called first, with gradients enabled.

        Raises:
            RuntimeError: a sparse gradient, before anything has moved; or a CUDA graph is being captured.
            ValueError: a group says what is not allowed, likewise.
        """
        loss = None
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("step() cannot be part of a CUDA graph, as the host counts steps, too: call it after replay()")
        if closure is not None and not callable(closure):
            raise TypeError(f"closure={closure!r} is not allowed; it must be a function: write loss.backward(), then step()")
        if self._own.entered:
            self.train()
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if self._own.entered:
                self.train()
        grads = [[p.grad for p in group["params"]] for group in self.param_groups]
        given = [g for mine in grads for g in mine if g is not None]
        if {g.layout for g in given} - {torch.strided}:
            self._refuse(grads)
        if given:  # else nothing moves, so the last step stays the last
            with plain(given[0].device.type):
                self._move(self._assemble(given[0].device), grads)
        self._own.cotangents = {}
        return loss

    def _refuse(self, grads: Grads) -> None:
        """Raise RuntimeError for a sparse gradient."""
        each = ((i, k, g) for i, mine in enumerate(grads) for k, g in enumerate(mine) if g is not None)
        i, k, g = next(found for found in each if found[2].layout != torch.strided)
        name = self.param_groups[i].get("param_names", {k: f"parameter {k} of group {i}"})[k]
        raise RuntimeError(
            f"{name} has a gradient of layout {g.layout}; only dense gradients can be used: "
            "construct the embedding with sparse=False, or give it to torch.optim.SparseAdam"
        )

    def _move(self, groups: Sequence[Group], grads: Grads) -> None:
        """Move everything: what `step` does when all is as it should be."""
        self._fill(groups, [[g is not None for g in mine] for mine in grads])
        last, pairs = [(group, group.last) for group in groups], zip(groups, grads, strict=True)
        work = [(group, bucket) for group, mine in pairs for bucket in group.gather(mine, self._own.cotangents)]
        moving = {b for _, b in work}
        resting = [b for group in groups for b in group.buckets if b not in moving]
        for bucket in (b for b in resting if b.edits.seen is None):  # from here on it is known what others write
            bucket.settle()
        if self._rehearsal(work):
            return
        with self._taken_back(work, last):
            self._own.engine.step(self._own.levels, work, self._leave(groups) if self._own.levels.levels else None)
        for bucket in resting:
            bucket.rest()
        for group in groups:
            group.count()
        self._own.made += 1
        self._own.watch.look(groups, self._own.levels, self._own.made)

    @contextlib.contextmanager
    def _taken_back(self, work: Sequence[tuple[Group, Bucket]], last: Sequence[tuple[Group, Any]]) -> Iterator[None]:
        """Where somebody interrupts a step, or a rule raises, it is not counted; what has moved already stays so, as in torch.

        Args:
            last: of each group, the scalars of the last step.
        """
        learned, scalars = self._own.levels.memory.clone(), [(b, b.scalars) for _, b in work]
        try:
            yield
        except BaseException:
            self._own.levels.memory.copy_(learned)
            for bucket, rows in scalars:
                bucket.scalars = rows
            for group, known in last:
                group.last = known
            self._own.basis = Own.basis
            raise

    def _fill(self, groups: Sequence[Group], present: list[list[bool]]) -> None:
        """Put parameters into buckets, if the user has changed anything since the last step that these rest upon: which
        parameters there are, which have gradients, what `state` holds of them, and where it is.

        Args:
            present: of each group, which parameters have gradients.
        """
        params = [p for group in groups for p in group.entry["params"]]
        quiet = all(b.untouched() and b.step is g.step and not b.written() for g in groups for b in g.buckets)
        seen, sizes, (pattern, before, old, place, where) = self._objects(params), shapes(params), self._own.basis
        still = sizes == before and len(seen) == len(old) and all(map(is_, seen, old)) and array("Q", map(place, seen)) == where
        if still and quiet and (present, [b.live for g in groups for b in g.buckets]) == pattern:
            return
        if not self._own.entered and any(map(evaluation.inside, self.state.values())):  # put there by hand
            self.train()
        shared = overlapping(p for p, moves in zip(params, chain.from_iterable(present), strict=True) if moves)
        same = still and quiet and not shared and all(g.keeps(here) for g, here in zip(groups, present, strict=True))
        if not same:
            self._sort(groups, present, shared, still)
            seen = self._objects(params)
            plain = set(map(type, seen)) <= {Tensor, torch.nn.Parameter} and all(x.layout == torch.strided for x in seen)
            place = Tensor.data_ptr if plain else address
            where = array("Q", map(place, seen))
        self._own.basis = (present, [b.live for g in groups for b in g.buckets]), sizes, seen, place, where

    def _sort(self, groups: Sequence[Group], present: list[list[bool]], shared: set[int], still: bool) -> None:
        """See `Group.fill`."""
        owners = {h: [p for g in groups if g.owner is h for p in g.entry["params"]] for h in (g.owner for g in groups)}
        if sum(h.take_apart(mine) for h, mine in owners.items()):
            self._own.engine.forget(self._own.levels)
        joined = self._joined(groups, present)
        for group, here in zip(groups, present, strict=True):
            group.fill(self.state, here, shared, still)
        self._begin_anew(joined)

    def _joined(self, groups: Sequence[Group], present: list[list[bool]]) -> list[Hyperparameters]:
        """Whose step size is to begin anew, for much moves with it for the first time: a body that has been frozen while its
        head was trained is not to move as far as that has learned to.
        """
        found = []
        for owner in (h for h in dict.fromkeys(group.owner for group in groups) if h.moves and h.sets == 1):
            each = [g.joins(self.state, here) for g, here in zip(groups, present, strict=True) if g.owner is owner]
            moved, new = map(sum, zip(*each, strict=True))
            found += [owner] if 0 < moved < MUCH * new else []
        return found

    def _begin_anew(self, owners: Sequence[Hyperparameters]) -> None:
        for owner in owners:
            grown = self._own.levels.begin_anew(owner)
            for bucket in (b for group in self._own.groups if group.owner is owner for b in group.buckets):
                bucket.begin_anew(grown)

    def _objects(self, params: Sequence[Tensor]) -> list[Any]:
        """The parameters, and what `state` holds: users put other things there, too."""
        held = (mine.values() for mine in self.state.values() if isinstance(mine, dict))
        return [*params, *self.state, *chain.from_iterable(held)]

    def _rehearsal(self, work: Sequence[tuple[Group, Bucket]]) -> bool:
        """Whether this is no step at all: before every other, along gradients of 0, with a step size of 0.

        That is how `torch.distributed.checkpoint` makes an optimizer have a state; it must not count.
        """
        if any(b.count for g in self._own.groups for b in g.buckets) or any(g.get("lr") for g in self.param_groups):
            return False
        moves = [(None, b.layout.processes, b.grad.any().to(g.owner.given)) for g, b in work]
        return not any(x.item() for x in total(moves).values())

    def _leave(self, groups: Sequence[Group]) -> Tensor:
        """Which of all that the levels move has moved something in this step and before, and how freely it may move."""
        made, free = dict[Any, int](), dict[Any, float]()  # of each set, how many levels can read something
        for group in groups:
            for bucket in group.moving:
                owner = group.owner
                free[owner] = max(free.get(owner, 0.0), group.freedom)
                for i in bucket.sets or (0,):
                    made[owner, i] = max(made.get((owner, i), 0), min(group.followed, self.tower.height) if bucket.live else 0)
        each = [(h, i) for h in self._own.levels.levels[0].below for _ in h.names for i in range(h.sets)]
        return self._own.levels.leave([made.get(x, -1) for x in each], [free.get(h, 1.0) for h, _ in each])

    @_disable_dynamo  # its gradient is not for the compiler to take
    def tune_on(self, loss: Tensor) -> None:
        """Take the hypergradients of the next step from another loss, for example on data held out for validation.

            loss_fn(model(x), y).backward()
            optimizer.tune_on(loss_fn(model(x_val), y_val))
            optimizer.step()

        The weights still follow ``p.grad``, which is as it was afterwards. What is tuned follows the gradient of `loss` at
        the present weights, so that a weight decay can be learned, which a training loss alone drives to 0. That gradient is
        taken by a backward pass: DDP, FSDP2 and checkpointed layers do with it what they do with any other, in its place.

        Args:
            loss: of the present weights, with a graph of its own, which is freed; not scaled by a `GradScaler`. With
                `maximize` it is climbed too. Parameters without a gradient in the next step do not take part.
                shape: ()

        Raises:
            TypeError: it is not a tensor.
            ValueError: it has more than one element or no graph, or no gradient of it has reached any of the parameters.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss={loss!r} is not allowed; it must be a tensor with a graph")
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss has shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}; it must be one number with a graph"
            )
        found = gradients(loss, [p for group in self.param_groups for p in group["params"] if p.requires_grad])
        if not found:
            raise ValueError("loss depends on none of the optimizer's parameters, or FSDP2 does not reduce its gradients now")
        self._own.cotangents = found

    # -------------------------------------------------------------- evaluation

    def eval(self) -> None:
        """Put the averages into the parameters, if the rule averages; others stay as they are. A second call does nothing.

        Statistics of batch norm belong to the parameters of training: take them anew, with some batches through the model in
        training mode, without gradients.
        """
        self._exchange(evaluation.enter)

    def train(self) -> None:
        """Put the parameters of training back, to the bit. `step` does it by itself."""
        self._exchange(evaluation.leave)

    @_disable_dynamo
    @torch.inference_mode(False)
    @torch.no_grad()
    def _exchange(self, move: Callable[[Rule, Tensor, dict[str, Any]], None]) -> None:
        """Have `move` exchange parameters and averages, where a rule averages."""
        if not any(map(evaluation.averages, self.rules)):
            return
        known, told, moves = self._assemble(), self.snapshot(), list[tuple[Rule, Tensor, dict[str, Any]]]()
        buckets = [b for group in known for b in group.buckets]
        for bucket in buckets:  # what others have written is to be in the averages
            if not any(evaluation.inside(self.state.get(p)) for p in bucket.members):
                bucket.settle()
        quiet = [b.edits for b in buckets if b.edits.seen == b.edits.marks()]
        for i, group in enumerate(known):
            values = told.hyperparameters(i)[0] if evaluation.averages(group.rule) else {}
            for k, p in enumerate(group.entry["params"] if values else ()):
                if entry := self.state.get(p):
                    moves.append((group.rule.at({n: x[k] if isinstance(x, list) else x for n, x in values.items()}), p, entry))
        for rule, p, entry in moves if move is evaluation.enter else reversed(moves):  # some may share memory
            move(self._own.entered.setdefault(p, rule), p, entry)
        for edits in quiet:
            edits.seen = edits.marks()
        if move is evaluation.leave:
            self._own.entered.clear()
        if any(Layout.of(p).mesh is not None for group in known for p in group.entry["params"]):
            reshard()

    # ------------------------------------------------------------ what it does

    @_disable_dynamo
    def hyperparameters(self, group: int = 0) -> list[dict[str, Any]]:
        """The values in force now in group number `group`, by default 0, in natural units, by level; level 0 moves the weights.

        The last step was made with them, unless a group has been changed since. The next one tunes them first.

        Returns:
            a dict of floats by level; on level 0 with ``per="tensor"``, a dict of lists with an entry per parameter of
            the group; on a level with a value per hyperparameter of the level below, a dict of dicts.
        """
        self._assemble()
        return self.snapshot().hyperparameters(group)

    @_disable_dynamo
    def hypergradients(self, group: int = 0) -> list[dict[str, Any]]:
        """``dL/dvalue`` as read in the last step, for what is tuned, in the shape of `hyperparameters`.

        Of group number `group`, by default 0. In natural units, of the learned value (a schedule's factor is part of the
        derivative), not normalized; NaN where none has been read. With `maximize`, L is what is minimized: the negative.
        """
        self._assemble()
        return self.snapshot().hypergradients(group)

    def snapshot(self) -> Snapshot:
        """What the last step was made with and what was read in it, to be looked at later; does not wait for the device."""
        with LOCK:
            if not all(hasattr(group, "owner") for group in self._own.groups):  # one has come since; after a checkpoint, all
                self._assemble()
            groups = [(group.owner, group.schedule, group.said) for group in self._own.groups]
            return Snapshot(self.per, groups, self._own.levels, self._own.levels.memory[:COUNT].clone())

    def made(self) -> int:
        """How many steps have been made."""
        return self._own.made

    def __repr__(self) -> str:
        known, told = self._assemble(), self.snapshot()
        lines = [printed((g.rule, *self.tower.rules[1:]), told.hyperparameters(i)) for i, g in enumerate(known)]
        return lines[0] if len(lines) == 1 else "\n".join(f"group {i}: {line}" for i, line in enumerate(lines))

    # ------------------------------------------------------------- checkpoints

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer of torch. In its groups, the values are those in force, for an optimizer of torch to go on
        with; what has been learned stands beside them under "learned".
        """
        last = self.register_state_dict_pre_hook(lambda _: memory.refresh(self, self._assemble()))  # after what others do
        with last, self.register_state_dict_post_hook(lambda _, found: memory.packed(found), prepend=True):  # others see all
            return super().state_dict()

    @_disable_dynamo
    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the last bit; or from one of the optimizer of torch that is like the rule.

        What it says of settings and of the hyperparameters of levels above counts; where somebody has edited a value in one
        of its groups, that is in force.

        Raises:
            ValueError: the `state_dict` of another tower; says which level differs.
            TypeError: no `state_dict` of an optimizer. After these and all other errors, nothing has changed.
        """
        adapted: dict[str, Any] = {}
        memory.check_form(state_dict, ())

        def look(_: Any, found: dict[str, Any]) -> dict[str, Any]:
            memory.check_form(found)
            adapted.update(memory.upgraded(found))
            self._compare(adapted["param_groups"], adapted["state"])
            return adapted

        last = self.register_load_state_dict_pre_hook(look)  # that sees what others have made of it
        with last, self.register_load_state_dict_post_hook(lambda _: self._take(adapted), prepend=True):  # others may edit it
            before = {**vars(self)}
            try:
                super().load_state_dict(state_dict)
            except BaseException:
                vars(self).update(before)
                self._stand_in()
                raise

    def _stand_in(self) -> None:
        """Show the optimizer of torch in whose place this one stands the groups and their state."""
        if self.instead_of is not None:
            self.instead_of.param_groups, self.instead_of.state = self.param_groups, self.state

    def _take(self, adapted: dict[str, Any]) -> None:
        """Take over the state. (torch has cast it to the dtypes of the parameters; that of half precision is wider.)"""
        saved = chain.from_iterable(group["params"] for group in adapted["param_groups"])
        own = {n for rule in self.rules for n in remembered(rule)}
        for p, key in zip(chain.from_iterable(group["params"] for group in self.param_groups), saved, strict=True):
            if key in adapted["state"]:
                known = adapted["state"][key].items()  # perhaps of a living optimizer
                self.state[p] = {n: memory.copied(x, p, n in own) for n, x in known if x is not None}
        memory.warn_of_lost(self, self._own.groups)
        self._adopt()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _adopt(self) -> None:
        """Put what has come from elsewhere into buckets, which see what is done to it until the next step; and know where the
        average is in the place of a parameter, and what it was made with.
        """
        within = [g for g in self._own.groups if g.saved.get("evaluating")]
        for group, i, p in ((g, i, p) for g in within for i, p in enumerate(g.entry["params"])):
            evaluation.resume(group.rule, p, mine := self.state.get(p) or {})
            if evaluation.inside(mine):
                kept = group.saved.get("entered") or {}
                self._own.entered[p] = group.rule.at({n: x[i if len(x) > 1 else 0] for n, x in kept.items()})
        groups = self._assemble()
        with contextlib.suppress(ValueError, RuntimeError):  # what is wrong is perhaps mended by then
            self._fill(groups, [[False] * len(group.entry["params"]) for group in groups])

    def _compare(self, saved: Sequence[dict[str, Any]], state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Raise ValueError where these are not groups and `state` of an optimizer with the same tower and the same groups."""
        self._assemble()
        if (there := len(saved)) != (here := len(self._own.groups)):
            raise ValueError(f"state_dict has a different number of parameter groups: {there}, this optimizer {here}")
        first = dict[Hyperparameters, str]()
        for i, (group, entry) in enumerate(zip(self._own.groups, saved, strict=True)):
            copied = deepcopy({n: x for n, x in entry.items() if n != "params"})
            rule, *_ = self._settle(copied, group.rule, where := f"group {i}")
            memory.check_decay(rule, where, entry)
            pairs, learned = zip(group.entry["params"], entry["params"], strict=False), copied.get(LEARNED) or {}
            known = [(p, state[key]) for p, key in pairs if key in state]
            memory.check_shapes(rule, where, known)
            memory.check_state(rule, where, [mine for _, mine in known if LEARNED not in entry or "step" in mine], learned)
            if "levels" in learned and readable(self._own.levels.memory):
                memory.check(self.tower, rule, group.owner.sets, where, learned)
                memory.recalled(self.tower, learned)
                mine = repr([*learned["levels"].values()][:1])
                if first.setdefault(group.owner, mine) != mine:
                    raise ValueError(f"state_dict of another `per`: {where} has learned other values than those it shares here")

    def __getstate__(self) -> dict[str, Any]:
        memory.refresh(self, self._assemble())
        mine = {n: getattr(self, n) for n in ("tower", "per", "compile", "rules", "instead_of")}
        return {**super().__getstate__(), **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also what `load_state_dict` ends with; and of a living optimizer, how scripts have its `state` begin anew."""
        known = self._own.groups if "_own" in vars(self) else []
        if known:  # what has been learned since is in no dict yet
            memory.refresh(self, self._assemble())
        rules = state.get("rules") or self.rules
        super().__setstate__({n: x for n, x in state.items() if n != "rules"})
        self.defaults.pop("differentiable", None)  # of torch, which groups of before have not
        if known and all(any(group.entry is e for group in known) for e in self.param_groups):
            return
        self._stand_in()
        self._own = Own(Engine(self.compile))
        for i, (entry, rule) in enumerate(zip(self.param_groups, rules, strict=True)):
            self._own.groups.append(self._group(entry, [rule], f"group {i}"))
        saved = next((group.saved for group in self._own.groups if group.saved.get("levels")), {})
        self.tower = memory.recalled(self.tower, saved)
        made = [group.saved["made"] for group in self._own.groups if "made" in group.saved]
        steps = (int(mine.get("step", 1)) for mine in self.state.values() if isinstance(mine, dict))
        self._own.made = max(made or steps, default=0)  # one of torch says it of each parameter alone
        if "rules" in state:  # a copy, to which no more comes
            self._adopt()
