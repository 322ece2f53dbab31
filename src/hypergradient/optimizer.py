"""Hyperoptimizer: a tower of rules as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # as torch.compiler.disable, without a second's import of the compiler

from .bucket import Bucket, Family
from .engine import Engine
from .hypergradient import Step
from .level import COUNT, RAW, READ, Hyperparameters, Level, Levels, numbers, upper
from .numerics import wide
from .rule import Rule, check
from .shards import total
from .tower import Tower

BASE = "constructed_"
"""Groups keep under this prefix what a tuned hyperparameter was when the group was made: what schedules are relative to."""
STEPS, SINCE = "steps_made", "read_since"
"""Under these names groups keep how many steps the optimizer has made, and how many of them before the first that left
something behind to be read."""


class Hyperoptimizer(torch.optim.Optimizer):
    """An optimizer that tunes its own hyperparameters by gradient descent while it trains.

    The leftmost rule of the tower adjusts the weights, and every rule tunes the one on its left, along the derivative
    of the loss with respect to the hyperparameters of the last step (Chandra, Xie, Ragan-Kelley & Meijer 2022,
    *Gradient Descent: The Ultimate Optimizer*, arXiv 1909.13371).

        optimizer = Hyperoptimizer(model.parameters(), Adam(lr=1e-3) / SGD(lr=1e-5))

    A group may override values of the leftmost rule (``{"params": …, "lr": 1e-4}``), or the rule itself
    (``{"params": …, "rule": AdamW(lr=3e-4)}``). ``group["lr"]`` belongs to the user and to schedulers: the value in force
    is the learned one times ``group["lr"]`` over what it was at construction; likewise for every tuned hyperparameter.

    Args:
        params: parameters, named parameters, or groups, as for every optimizer of torch.
        tower: a tower of rules; a rule alone is an optimizer whose hyperparameters stay.
        per: how many sets of hyperparameters the leftmost rule has: one for ``"all"`` parameters, one per ``"group"``,
            one per ``"tensor"``. Levels above have one set.
        maximize: climb instead of descending.
        compile: compile the step with `torch.compile`. The first two steps then take seconds, the others much less than
            without. Rules that are not elementwise, and small parameters under ``per="tensor"``, are not compiled.

    Raises:
        ValueError, TypeError: bad input, before anything has changed.
    """

    def __init__(
        self, params: Any, tower: Rule | Tower, per: str = "group", maximize: bool = False, compile: bool = False
    ) -> None:
        self.tower, self.compile = Tower.of(tower), compile
        if per not in ("all", "group", "tensor"):
            raise ValueError(f"per={per!r} is not allowed; it must be 'all', 'group' or 'tensor'")
        self.per = per
        self.rules: list[Rule] = []
        self._cotangents: dict[Tensor, Tensor] = {}
        self._forget()
        values = {n: getattr(self.tower.rules[0], n) for n in self.tower.rules[0].hyperparameters()}
        betas = {"betas": (values["beta1"], values["beta2"])} if {"beta1", "beta2"} <= values.keys() else {}
        super().__init__(params, {**values, **betas, "maximize": maximize})

    def _forget(self) -> None:
        """Drop what follows from `param_groups` and `state`; it is made again when it is needed."""
        self._engine = Engine(self.compile)
        self._families: list[Family] = []
        self._steps: dict[Any, Step] = {}
        self._levels = Levels([], torch.empty(0))
        self._mask: tuple[tuple[int, ...], Tensor, Tensor] = (), torch.empty(0), torch.empty(0)
        self._marks: list[Any] = []

    # ------------------------------------------------------------------ groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, also in mid-training; their hyperparameters are fresh, the levels above go on.

        Raises:
            ValueError: an integer parameter, a value outside its constraint, a parameter the rule cannot move.
        """
        where = f"group {len(self.param_groups)}"
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{where}: a group is a dict with 'params', got {param_group!r}")
        group = dict(param_group)
        rule = group.pop("rule", self.tower.rules[0])
        Tower((rule, *self.tower.rules[1:]))
        params = group["params"]
        group["params"] = [params] if isinstance(params, Tensor) else params if isinstance(params, set) else list(params)
        for i, entry in enumerate(group["params"]):
            name, p = entry if isinstance(entry, tuple) else (f"parameter {i} of {where}", entry)
            if isinstance(p, Tensor) and not (p.is_floating_point() or p.is_complex()):
                raise ValueError(f"{name} has dtype {p.dtype}; only floating-point and complex parameters can be optimized")
            if isinstance(p, Tensor) and (why := rule.accepts(p)) is not None:
                raise ValueError(f"{name} has shape {tuple(p.shape)}: {why}")
        for n, default in vars(rule).items():
            if n in rule.hyperparameters():
                group[n] = check(where, n, group.get(n, default), rule.constraint(n))
            if n not in rule.numbers() and group.get(n, default) != default:
                raise ValueError(f"{where}: {n}={group[n]!r} differs from the rule's {default!r}; give the group a rule")
        if "betas" in group:
            raise ValueError(f"{where}: betas={group['betas']!r} is not allowed; give beta1 and beta2")
        siblings = [g for g, r in zip(self.param_groups, self.rules, strict=False) if self.per == "all" and r == rule]
        for n in rule.tuned() if self.tower.height else ():
            rule.check_chart(where, n, group[n])
            group[BASE + n] = siblings[0][BASE + n] if siblings else group[n]
            if group[n] != 0 == group[BASE + n]:
                raise ValueError(f"{where}: {n}={group[n]!r} would have to be a multiple of a shared value that starts at 0")
        if {"beta1", "beta2"} <= group.keys():
            group["betas"] = group[BASE + "betas"] = group["beta1"], group["beta2"]  # schedulers know this name; see `_listen`
        group[STEPS], group[SINCE] = self.made(), 0
        known = set(group)
        super().add_param_group(group)
        for n in self.defaults.keys() - known - {"maximize"}:  # of the leftmost rule, where this group has one of its own
            del group[n]
        self.rules.append(rule)

    @torch.inference_mode(False)  # what is made in a validation loop is used in training
    def _assemble(self) -> list[Family]:
        """The parameters of each group in buckets, with the hyperparameters that move them, and the levels above."""
        if len(self.param_groups) != len(self.rules):
            raise ValueError(
                f"param_groups has {len(self.param_groups)} groups, of which {len(self.rules)} were added; "
                "add them with add_param_group, and empty those that are to go"
            )
        params = [group["params"] for group in self.param_groups]
        before, now = [family.params for family in self._families], self._remembered()
        same = [list(map(id, ps)) for ps in before] == [list(map(id, ps)) for ps in params]
        if not (same and len(now) == len(self._marks) and all(map(is_, now, self._marks))):  # somebody has put others there
            for family, new in zip(self._families, params, strict=False):
                self._replace(family, new)
            everything = list(chain.from_iterable(params))
            device = everything[0].device if everything else None
            double = any(wide(p.dtype) == torch.float64 for p in everything)
            like = torch.empty((), dtype=torch.float64 if double else torch.float32, device=device)
            self._forget()
            for i, group in enumerate(params):
                self._families.append(Family(self._owner(i, like), group, self.state))
            below = list(dict.fromkeys(f.owner for f in self._families))
            levels: list[Level] = []
            for own in upper(self.tower, like):
                levels.append(Level(own, below))
                below = [own]
            self._levels = Levels(levels, like)
            for name, h, mine in self._rows():
                if (saved := self.state.get(self._home(name, h), {}).get(name)) is not None:
                    if saved.shape != mine.shape:
                        raise ValueError(
                            f"{name!r} has shape {tuple(saved.shape)}, and {tuple(mine.shape)} is needed; "
                            "under per='tensor' no parameter of a group can come or go"
                        )
                    mine.copy_(saved)
            if levels:
                self._levels.bound()
            if any(self.state.values()):
                self._remember()
            self._marks = self._remembered()
        for i, (group, family) in enumerate(zip(self.param_groups, self._families, strict=True)):
            self._listen(i, group, family)
        return self._families

    def _owner(self, i: int, like: Tensor) -> Hyperparameters:
        """The hyperparameters that move group `i`."""
        group, rule = self.param_groups[i], self.rules[i]
        if self.per == "all":
            for other, family in zip(self.rules, self._families, strict=False):
                if other == rule:
                    return family.owner
        sets = len(group["params"]) if self.per == "tensor" else 1
        initial = {n: [group.get(BASE + n, group[n])] * sets for n in rule.hyperparameters()}
        return Hyperparameters(rule, initial, like, tuned=self.tower.height > 0)

    def _home(self, name: str, h: Hyperparameters) -> Tensor:
        """The parameter under which `state` remembers `name`, which concerns `h`: one of those that it moves."""
        everything = [p for f in self._families for p in f.params]
        mine = [p for f in self._families for p in f.params if f.owner is h] or everything
        return next(chain((p for p in mine if name in self.state.get(p, {})), (p for p in mine if p.requires_grad), mine))

    def _rows(self) -> Iterator[tuple[str, Hyperparameters, Tensor]]:
        """What is remembered of each level, where there is a parameter to do so: a name, whose hyperparameters, a view."""
        moving = {f.owner for f in self._families if f.params}
        for k, level in enumerate(self._levels.levels, 1):
            for h in level.below:
                if h in moving or (moving and k > 1):
                    yield key(k, level, h), h, self._levels.of(level)[:, h.place]

    def _remember(self) -> None:
        """Let `state` remember every level. Not before the first step: who finds any state takes it for the whole."""
        for name, h, mine in self._rows():
            self.state[self._home(name, h)][name] = mine

    def _replace(self, family: Family, new: list[Tensor]) -> None:
        """Take what is remembered of parameters that somebody has replaced by others over to those, place by place; and what
        those that have only gone remember of the levels, to who stays.
        """
        gone, come = set(map(id, family.params)) - set(map(id, new)), set(map(id, new)) - set(map(id, family.params))
        for p, q in zip(family.params, new, strict=False):
            if id(p) in gone and id(q) in come and p in self.state:
                self.state[q] = self.state.pop(p)
        stay = [(f, p) for f, group in zip(self._families, self.param_groups, strict=False) for p in group["params"]]
        mine = [p for f, p in stay if f.owner is family.owner]
        for memory in [self.state[p] for p in family.params if id(p) in gone and p in self.state]:
            for name in [n for n in memory if n.startswith("level ")]:
                left, heirs = memory.pop(name), mine if name.startswith("level 1:") else [p for _, p in stay]
                if heirs:
                    self.state[heirs[0]].setdefault(name, left)

    def _remembered(self) -> list[Any]:
        """All that is in `state`."""
        return [x for memory in self.state.values() for x in memory.values()]

    def _listen(self, i: int, group: dict[str, Any], family: Family) -> None:
        """Take over what group `i` says of the hyperparameters of its rule, where it says something new."""
        owner = family.owner
        if "betas" in group:
            if tuple(group["betas"]) != tuple(group[BASE + "betas"]):
                group["beta1"], group["beta2"] = group["betas"]
            group["betas"] = group[BASE + "betas"] = group["beta1"], group["beta2"]
        said = {n: float(group[n]) for n in owner.order}
        if said == family.said:
            return
        bases = {n: group[BASE + n] for n in owner.names}
        for n, value in said.items():
            if not math.isfinite(value):
                raise ValueError(f"group {i}: {n}={value!r} is not allowed; it must be a finite number")
            if value != 0 == bases.get(n):
                raise ValueError(f"group {i}: {n}={value!r} would have to be a multiple of a learned value that starts at 0")
        factors = [said[n] / base if base else 1.0 for n, base in bases.items()]
        fixed = {n: min(max(said[n], low), high) for n, (low, high) in zip(said, owner.ends, strict=True) if n not in bases}
        off = frozenset(n for n in fixed if said[n] == 0)
        family.said = said
        family.use(self._step(owner, off), owner.given.new_tensor([*factors, *fixed.values()]).unsqueeze(1))

    def _step(self, owner: Hyperparameters, off: frozenset[str]) -> Step:
        """What a step with these hyperparameters is; one object for all that are alike, so that it is compiled once."""
        start = [getattr(owner.rule, n) for n in owner.order if n not in owner.rule.numbers()]  # what enters `init` only
        what = type(owner.rule), str(owner), off, *start
        if what not in self._steps:
            self._steps[what] = Step(owner.rule, owner.names, off)
        return self._steps[what]

    # -------------------------------------------------------------------- step

    @_disable_dynamo  # traced with the model, it would compile again and again
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every level, along the gradients that are in ``p.grad`` now.

        Returns:
            what `closure` returned, if there is one; it is called first, with gradients enabled.

        Raises:
            RuntimeError: a sparse gradient, before anything has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for i, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                if p.grad is not None and p.grad.layout is not torch.strided:
                    name = group["param_names"][k] if "param_names" in group else f"parameter {k} of group {i}"
                    raise RuntimeError(
                        f"{name} has a gradient of layout {p.grad.layout}; only dense gradients can be used: "
                        "construct the embedding with sparse=False, or give it to torch.optim.SparseAdam"
                    )
        if not (params := [p for group in self.param_groups for p in group["params"]]):
            return loss
        device = params[0].device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            self._move(self._assemble())
        return loss

    def _move(self, families: Sequence[Family]) -> None:
        """Move everything: what `step` does when all is as it should be."""
        if not self._marks:
            self._remember()
        active: list[tuple[Family, Bucket]] = []
        for family, group in zip(families, self.param_groups, strict=True):
            moving = family.active()
            group[SINCE] = group[STEPS] if family.lost else group[SINCE]
            family.lost, family.readable = False, group[STEPS] - group[SINCE]
            for bucket in moving:
                bucket.gather(group["maximize"], self._cotangents)
                active.append((family, bucket))
        if any(family.filled for family in families):
            self._marks = self._remembered()
        if self._rehearsal(active):
            return
        levels, run = self._levels, self._engine
        pairs = {(id(f), id(b.clock)): (f, b.clock) for f, b in active}
        asks = tuple((f.owner, f.step) for f, _ in pairs.values())
        scopes, clocks = [f.scope for f, _ in pairs.values()], [clock for _, clock in pairs.values()]
        if run.compile and len(active) == 1 and self._alone(active[0][1]):
            (_, bucket), known = active[0], self._known(active)
            elements = bucket.param, bucket.grad, bucket.state, bucket.cotangents
            run(levels.whole, asks, elements, bucket.kept, bucket.numbers, known, *scopes, *clocks, dynamic=None)
        else:
            if levels.levels:
                found = run(levels.tune, asks, self._read(active), self._known(active), scopes, clocks, dynamic=False)
            else:
                found = run(numbers, asks, levels.memory[RAW], scopes, clocks, dynamic=False)
            now = dict(zip(pairs, found, strict=True))
            for family, bucket in active:
                bucket.move(run, now[id(family), id(bucket.clock)])
        for _, bucket in active:
            bucket.scatter()
        for group in self.param_groups:
            group[STEPS] += 1
        self._cotangents = {}

    @_disable_dynamo  # its gradient is not for the compiler to take
    def tune_on(self, loss: Tensor) -> None:
        """Take the hypergradients of the next step from another loss, for example on data held out for validation.

            loss_fn(model(x), y).backward()
            optimizer.tune_on(loss_fn(model(x_val), y_val))
            optimizer.step()

        The weights still follow ``p.grad``, which is not touched. What is tuned follows the gradient of `loss` at the
        present weights, so that a weight decay can be learned, which a training loss alone drives to 0.

        Args:
            loss: of the present weights, with a graph of its own, which is freed; in no other scale than it is meant (of no
                `GradScaler`). With several processes it is that of this one: where their gradients are to be averaged,
                average the loss's. With `maximize` it is climbed too. Parameters without a gradient in the next step do not
                take part.
                shape: ()

        Raises:
            TypeError: it is not a tensor.
            ValueError: it has more than one element or no graph, or depends on none of the parameters.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss={loss!r} is not allowed; it must be a tensor with a graph")
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss has shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}; it must be one number with a graph"
            )
        found = torch.autograd.grad(loss, params, allow_unused=True) if params else ()
        if all(g is None for g in found):
            raise ValueError(
                "loss depends on none of the optimizer's parameters; those that FSDP2 shards are in no graph of a loss"
            )
        self._cotangents = {p: g for p, g in zip(params, found, strict=True) if g is not None}

    def _read(self, active: Sequence[tuple[Family, Bucket]]) -> list[Tensor]:
        """What the last step says of each of the hyperparameters that the first level moves."""
        like, below = self._levels.memory, self._levels.levels[0].below
        found = total((f.owner, b.layout.groups, b.read(self._engine).to(like)) for f, b in active)
        return [found[h] if h in found else like.new_zeros(3 if h.rule.normalize else 1, *h.shape) for h in below]

    def _alone(self, bucket: Bucket) -> bool:
        """Whether a step in which only `bucket` moves can be one function: its numbers are those of the levels."""
        if not self._levels.levels or len(self._levels.levels[0].below) != 1:
            return False
        like = self._levels.memory
        alike = bucket.numbers.dtype == like.dtype and bucket.numbers.device == like.device
        return alike and bucket.compiles and bucket.index is None and not bucket.layout.groups

    def _rehearsal(self, active: Sequence[tuple[Family, Bucket]]) -> bool:
        """Whether this is no step at all: before every other, along gradients of 0, with a step size of 0.

        That is how `torch.distributed.checkpoint` makes an optimizer have a state; it must not count.
        """
        if any(b.made for f in self._families for b in f.buckets) or any(g.get("lr") for g in self.param_groups):
            return False
        moves = [(None, b.layout.groups, b.grad.any().to(f.owner.given)) for f, b in active]
        return not any(x.item() for x in total(moves).values())

    def _known(self, active: Sequence[tuple[Family, Bucket]]) -> Tensor:
        """Which of all that the levels move has moved anything in this step and before.

        What moves nothing in this step sees it pass: the sensitivities to the levels above fade.
        """
        first, made = self._levels.levels[0], defaultdict[Any, int](lambda: -1)
        for f, b in active:
            for i in b.positions:
                made[id(f.owner), i] = max(made[id(f.owner), i], min(b.made, f.readable, self.tower.height))
        pattern = tuple(made[id(h), i] for h in first.below for _ in h.names for i in range(h.sets))
        if pattern != self._mask[0]:
            masks = [n >= 0 for n in pattern], self._levels.known(pattern)
            here, known = (torch.tensor(mask, device=self._levels.memory.device) for mask in masks)
            self._mask = pattern, here, known
        _, here, known = self._mask
        if min(pattern) < 0:
            self._levels.fade(here)
        return known

    # ------------------------------------------------------------ what it does

    def hyperparameters(self, group: int = 0) -> list[dict[str, Any]]:
        """The values in force now, in natural units, of every level; level 0 moves the weights.

        The last step was made with them, unless a group has been changed since. The next one tunes them first.

        Returns:
            a dict of floats by level; on level 0 with ``per="tensor"``, a dict of lists with an entry per parameter of
            the group; on a level with a value per hyperparameter of the level below, a dict of dicts.
        """
        self._assemble()
        return self.snapshot().hyperparameters(group)

    def hypergradients(self, group: int = 0) -> list[dict[str, Any]]:
        """``dL/dvalue`` as read in the last step, for what is tuned, in the shape of `hyperparameters`.

        In natural units, with respect to the learned value (a schedule's factor is part of the derivative), before any
        normalization; NaN where none has been read. With `maximize`, L is what is minimized: the negative.
        """
        self._assemble()
        return self.snapshot().hypergradients(group)

    def snapshot(self) -> Snapshot:
        """What the last step was made with and what was read in it, to be looked at later; does not wait for the device."""
        groups = [(f.owner, f.scope, f.said) for f in self._families]
        return Snapshot(self.per, groups, self._levels, self._levels.memory[:COUNT].clone())

    def made(self) -> int:
        """How many steps have been made."""
        return self.param_groups[0][STEPS] if self.param_groups else 0

    def __repr__(self) -> str:
        lines = []
        for i, rule in enumerate(self.rules):
            text = []
            for r, values in zip((rule, *self.tower.rules[1:]), self.hyperparameters(i), strict=True):
                defaults = {n: f.default for n, f in r.hyperparameters().items() if n != "lr" and n not in r.tuned()}
                shown = (f"{n}={_brief(v)}" for n, v in values.items() if n not in defaults or _brief(v) != _brief(defaults[n]))
                text.append(f"{type(r).__name__}({', '.join(shown)})")
            lines.append(" / ".join(text))
        return lines[0] if len(lines) == 1 else "\n".join(f"group {i}: {line}" for i, line in enumerate(lines))

    # ------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer; what parameters share, each has for itself: it may be loaded in place."""
        if self.state:
            self._assemble()
        found = super().state_dict()
        own = {k: {n: x.clone() if n in ("step", "numbers") else x for n, x in m.items()} for k, m in found["state"].items()}
        return {**found, "state": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the last bit.

        Raises:
            ValueError: the `state_dict` of another tower; says which level differs. Nothing has changed then.
        """
        adapted: dict[str, Any] = {}

        def look(_: Any, found: dict[str, Any]) -> None:
            self._check(found)
            adapted.update(found)

        hook = self.register_load_state_dict_pre_hook(look)  # the last one, that sees what others have made of it
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        state_dict = adapted
        counted = max((int(memory.get("step", 0)) for memory in state_dict["state"].values()), default=0)
        for group in self.param_groups:  # those of torch do not count
            group.setdefault(STEPS, counted)
            group.setdefault(SINCE, 0)
        # torch has cast the state to the dtypes of the parameters; what it remembers of half-precision ones is wider.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for p, key in zip(chain.from_iterable(group["params"] for group in self.param_groups), saved, strict=True):
            if key in state_dict["state"]:
                theirs = state_dict["state"][key]  # perhaps those of a living optimizer
                self.state[p] = {n: x.clone() if isinstance(x, Tensor) else x for n, x in theirs.items()}

    def _check(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError where `state_dict` is not that of an optimizer with the same tower."""
        counts = len(self.param_groups), len(state_dict["param_groups"])
        if counts[0] != counts[1]:
            raise ValueError(f"state_dict has a different number of parameter groups: {counts[1]}, this optimizer {counts[0]}")
        self._assemble()
        mine = _towers({name: x} for name, _, x in self._rows())
        theirs = _towers(state_dict["state"].values())
        if state_dict["state"] and mine.keys() != theirs.keys():
            here, there = (", ".join(sorted(a.keys() - b.keys())) or "nothing" for a, b in ((mine, theirs), (theirs, mine)))
            raise ValueError(f"state_dict of another tower: it has {there} where this optimizer has {here}")
        for level in theirs:
            if theirs[level] != mine[level]:
                raise ValueError(
                    f"state_dict of another optimizer: the shapes of {level} are {theirs[level]}, here {mine[level]}; "
                    "`per` and the groups have to be the same"
                )
        for i, (group, saved) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=False)):
            needed = {n for n in group if n.removeprefix(BASE) in self.rules[i].hyperparameters()}
            if missing := sorted(needed - saved.keys()):
                raise ValueError(
                    f"state_dict of another optimizer: its group {i} has no {', '.join(missing)}; "
                    "an optimizer of torch.optim is taken over by from_torch"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "tower": self.tower, "per": self.per, "compile": self.compile, "rules": self.rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._cotangents = {}
        self._forget()


class Snapshot(NamedTuple):
    """What an optimizer says of itself at one moment.

    Attributes:
        per: as the optimizer's.
        groups: of each, the hyperparameters, and what the user says of them; see `Hyperparameters.values`.
        levels: those above.
        memory: what they remember; see `Levels`.
    """

    per: str
    groups: list[tuple[Hyperparameters, Tensor, dict[str, float]]]
    levels: Levels
    memory: Tensor

    @property
    def above(self) -> list[Hyperparameters]:
        """The hyperparameters of every level above."""
        return [level.own for level in self.levels.levels]

    def hyperparameters(self, group: int) -> list[dict[str, Any]]:
        """See `Hyperoptimizer.hyperparameters`."""
        owner, scope, said = self.groups[group]
        fixed: list[dict[str, Any]] = [{n: getattr(h.rule, n) for n in h.rule.hyperparameters()} for h in self.above]
        fixed.insert(0, {n: [said[n]] * owner.sets if self.per == "tensor" else said[n] for n in owner.rule.hyperparameters()})
        learned = self.levels.learned(self.memory)
        tuned = self._tell(group, [owner.values(learned[0], scope)[: len(owner.names)], *learned[1:]] if learned else [])
        return [{**f, **t} for f, t in zip(fixed, tuned, strict=True)]

    def hypergradients(self, group: int) -> list[dict[str, Any]]:
        """See `Hyperoptimizer.hypergradients`."""
        moved = self.groups[group][0], *self.above
        read = self.memory[READ].split(self.levels.sizes)
        return self._tell(group, [x[h.place] for x, h in zip(read, moved, strict=False)])

    def _tell(self, group: int, said: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Of each level what is `said` of its tuned hyperparameters, as numbers in the shape of `hyperparameters`."""
        levels: list[dict[str, Any]] = []
        for k, h in enumerate((self.groups[group][0], *self.above)):
            numbers = dict(zip(h.names, said[k].view(h.shape).tolist(), strict=True)) if h.names else {}
            if k or self.per != "tensor":
                numbers = {n: dict(zip(h.below, row, strict=True)) if h.below else row[0] for n, row in numbers.items()}
            levels.append(numbers)
        return levels


def key(number: int, level: Level, h: Hyperparameters) -> str:
    """The name under which `state` remembers what a level does to `h`. (Distributed checkpoints split names at dots.)"""
    return f"level {number}: {level.own} moves {h}".replace(".", "_")


def _towers(memories: Iterable[Mapping[str, Tensor]]) -> dict[str, list[tuple[int, ...]]]:
    """What is remembered of each level of a tower: the shapes, one entry per group where they have their own."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for memory in memories:
        for name, tensor in memory.items():
            if name.startswith("level "):
                found.setdefault(name, []).append(tuple(tensor.shape))
    return {level: sorted(shapes) for level, shapes in found.items()}


def _brief(value: Any) -> str:
    """A value with four digits; of many, the range."""
    if isinstance(value, list) and value:
        low, high = _brief(min(value)), _brief(max(value))
        return low if low == high else f"{low}…{high}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_brief(v)}" for k, v in value.items()) + "}"
    return f"{value:.4g}" if value != [] else "none"
