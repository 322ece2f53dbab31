"""What is saved, under which names; and how it comes back.

What the levels have learned is no part of `optimizer.state`. In a `state_dict` it stands in each param group under "learned",
as plain numbers and lists, which a distributed checkpoint can flatten and load on any number of processes; the group says
beside it what is in force, so that an optimizer of torch can go on from there. Pickles and copies go the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .bucket import TRAIL
from .evaluation import averages, inside
from .group import LEARNED, Group
from .level import title
from .numerics import readable
from .probe import KEPT, RESERVED, elementwise, ours, remembered, sums
from .rule import Rule
from .tower import Tower

if TYPE_CHECKING:
    from .optimizer import Hyperoptimizer

OLD = "constructed_"
"""Version 0.1.0 kept under this prefix what a tuned hyperparameter was at the start, and in `state` what levels remember."""


def signatures(tower: Tower, rule: Rule) -> list[str]:
    """What each level does, by which a checkpoint recognizes it. (Distributed checkpoints split names at dots.)

    Args:
        rule: that of the group, in the place of the leftmost.
    """
    titles = [title(r, r.tuned() if k < tower.height else ()) for k, r in enumerate((rule, *tower.rules[1:]))]
    return [f"level {k}: {titles[k]} moves {titles[k - 1]}".replace(".", "_") for k in range(1, len(titles))]


# ------------------------------------------------------------------------------ to be saved


def learned(optimizer: Hyperoptimizer, group: Group) -> dict[str, Any]:
    """All that belongs to `group` and stands neither in its dict nor in `state`; numbers, lists and dicts.

    Returns:
        `made`: how many steps the optimizer has made. `followed`, `highest` (and `rise`), `start`, `resting`, `waiting`: see
        `Group`.
        `evaluating`: whether averages are in the place of its parameters; `entered`: by name, the values that they were made
        with. `said`: under the name of the rule, of each hyperparameter its base, what the user says, what is learned, what
        is in force. `levels`: under the signature of each, its own hyperparameters and its memory. `last`: the scalars of the
        last step.
    """
    owners, learned = [group.owner, *(level.own for level in optimizer._own.levels.levels)], values(optimizer, group)
    tower, bases = optimizer.tower, group.bases
    said = {n: [bases.get(n, x), x, *learned.get(n, (x, x))] for n, x in group.said.items()}
    kept = zip(signatures(tower, group.rule), tower.rules[1:], [h.memory for h in owners], strict=False)
    past = dict(group.past(optimizer.state))
    return {
        "made": optimizer.made(),
        "followed": group.followed,
        "highest": [group.highest, group.rise],
        "start": group.start,
        "evaluating": int(any(inside(optimizer.state.get(p)) for p in group.entry["params"])),
        "entered": _entered(optimizer, group),
        "resting": [int(i in past and not past[i][1]) for i in range(len(group.entry["params"]))],
        "waiting": [int(id(p) in group.waiting) for p in group.entry["params"]],
        "watched": [int(TRAIL[1] in (optimizer.state.get(p) or {})) for p in group.entry["params"]],
        "said": {type(group.rule).__name__: said},
        "levels": {
            name: {"values": {n: getattr(rule, n) for n in rule.hyperparameters()}, "memory": known.tolist()}
            for name, rule, known in kept
            if known is not None and readable(known)
        },
        "last": group.recent().tolist() if readable(group.recent()) else [],
    }


def _entered(optimizer: Hyperoptimizer, group: Group) -> dict[str, list[float]]:
    """By name, of each set."""
    each = [optimizer._own.entered.get(p, group.rule) for p in group.entry["params"]]
    rules = each if group.owner.sets > 1 else sorted(each, key=lambda rule: rule is group.rule)[:1]
    return {n: [float(getattr(rule, n)) for rule in rules] for n in group.rule.hyperparameters() if averages(group.rule)}


def values(optimizer: Hyperoptimizer, group: Group) -> dict[str, tuple[float, float]]:
    """By name, what of the tuned hyperparameters is learned, and what is in force; of several sets the medians."""
    owner, levels = group.owner, optimizer._own.levels
    if not owner.names or not readable(levels.memory):
        return {}
    learned = levels.learned(levels.memory)[0]
    known, force = learned[owner.place].view(owner.shape).tolist(), owner.values(learned, group.schedule)[0].tolist()
    return {n: (median(k), median(f)) for n, k, f in zip(owner.names, known, force, strict=False) if k}


def refresh(optimizer: Hyperoptimizer, groups: Sequence[Group]) -> None:
    """Write down in the dicts of `groups` what has been learned."""
    for group in groups:
        found = learned(optimizer, group)
        group.entry[LEARNED].clear()
        group.entry[LEARNED].update(found)


def packed(state_dict: dict[str, Any]) -> dict[str, Any]:
    """`state_dict` with the values in force in its groups."""
    for entry in state_dict["param_groups"]:
        entry[LEARNED] = deepcopy(entry[LEARNED])
        entry.update({n: _like(entry[n], force) for n, (*_, force) in words(entry).items()})
        if "betas" in entry:
            entry["betas"] = entry["beta1"], entry["beta2"]
    return state_dict


def words(entry: Mapping[str, Any]) -> dict[str, list[float]]:
    """What the dict of a group has kept under `said`."""
    return next(iter((entry.get(LEARNED) or {}).get("said", {}).values()), {})


def _like(given: Any, value: float) -> Any:
    """`value`, in a tensor where what the user has `given` is one."""
    return torch.full_like(given, value) if isinstance(given, Tensor) else value


# ----------------------------------------------------------------------------- and to come back


def restore(entry: dict[str, Any], main: str) -> dict[str, float]:
    """Give the saved dict of a group the values that the user had said; where somebody has edited what was in force, such
    that the edited value is.

    Args:
        main: see `Group`.

    Returns:
        what the tuned hyperparameters were at the start.
    """
    said, (highest, rise) = words(entry), (entry.get(LEARNED) or {}).get("highest", (0.0, 1.0))
    if "betas" in entry:  # in a dict of torch, or edited
        for n, value in zip(("beta1", "beta2"), entry["betas"], strict=True):
            entry[n] = value if n not in entry or (n in said and entry[n] == said[n][3]) else entry[n]
    for n, (base, old, known, force) in said.items():
        given = entry.get(n, force)
        now, same = float(given), [float(_like(given, x)) for x in (old, force)]
        user = old if now in same else now * (base * rise / known) if known else now
        entry[n] = _like(given, user)
        if n == main and old and user != old:
            entry[LEARNED] = {**entry[LEARNED], "highest": [highest * user / old, rise]}
    entry.pop("betas", None)
    return {n: base for n, (base, *_) in said.items()}


def recalled(tower: Tower, saved: Mapping[str, Any]) -> Tower:
    """`tower` with the values above that a checkpoint says."""
    rules = list(tower.rules)
    for k, level in enumerate(saved.get("levels", {}).values(), 1):
        rules[k] = replace(rules[k], **level["values"])
    return Tower(tuple(rules))


def check(tower: Tower, rule: Rule, sets: int, where: str, saved: Mapping[str, Any]) -> None:
    """Raise ValueError where what was `saved` of a group is not that of the same tower, with as many sets of values."""
    mine, theirs = signatures(tower, rule), list(saved["levels"])
    if mine != theirs:
        here, there = (", ".join(n for n in a if n not in b) or "nothing" for a, b in ((mine, theirs), (theirs, mine)))
        raise ValueError(f"state_dict of another tower: in {where} it has {there} where this optimizer has {here}")
    for name in theirs[:1]:
        rows = saved["levels"][name]["memory"]
        shape, needed = (len(rows), len(rows[0])), (len(rows), sets * len(rule.tuned()))
        if shape != needed:
            raise ValueError(
                f"state_dict of another optimizer: the shapes of {name} are {shape}, here {needed}; "
                "`per` and the groups have to be the same"
            )


def check_form(state_dict: Any, needed: Sequence[str] = ("state", "param_groups")) -> None:
    """Raise TypeError where this is no `state_dict` of an optimizer."""
    if not isinstance(state_dict, Mapping) or (missing := [n for n in needed if n not in state_dict]):
        given = f" has no {missing[0]!r}" if isinstance(state_dict, Mapping) else f"={state_dict!r} is not allowed"
        raise TypeError(
            f"state_dict{given}; it must be what an optimizer's state_dict() returns, such as "
            "load_state_dict(checkpoint['optimizer'])"
        )


def check_decay(rule: Rule, where: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError where the dict of a group of torch decays weights as the other one of Adam and AdamW does."""
    mine = {"Adam": False, "AdamW": True}.get(type(rule).__name__)
    said = entry.get("decoupled_weight_decay", mine)
    if mine not in (None, said) and LEARNED not in entry and entry.get("weight_decay"):
        raise ValueError(
            f"state_dict of another rule: {where} has decoupled_weight_decay={said}, unlike {type(rule).__name__}; "
            f"load it into an optimizer of {'AdamW' if said else 'Adam'}"
        )


def check_state(rule: Rule, where: str, known: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Raise ValueError where what is `known` of all parameters that have moved is what another rule remembers; `saved`: what
    was learned beside it.
    """
    mine, others, own = {*remembered(rule)}, {*RESERVED, *sums(rule)}, type(rule).__name__
    way = "load it into an optimizer of its own rule, or with 'state': {} to begin anew"
    each = [[n for n, x in e.items() if isinstance(x, Tensor) and n not in others and not n.startswith(KEPT)] for e in known]
    found = [names for names in each if names]  # also what users have put there
    if found and all({*names} - mine and mine - {*names} for names in found):
        raise ValueError(
            f"state_dict of another rule: in {where} it has {', '.join(found[0])} of a parameter, where {own} "
            f"has {', '.join(sorted(mine))}; {way}"
        )
    if not saved.get("levels") and known and (other := next((n for n in saved.get("said", ()) if n not in ("", own)), None)):
        raise ValueError(f"state_dict of another rule: in {where} it has {other} where this optimizer has {own}; {way}")


def check_shapes(rule: Rule, where: str, known: Sequence[tuple[Tensor, Mapping[str, Any]]]) -> None:
    """Raise ValueError where what is `known` of a parameter, beside it, has not its shape; one number may stand for all."""
    names = remembered(rule) if elementwise(rule) or ours(rule) else ()  # others may remember a row of it
    for i, (p, mine) in enumerate(known):
        for n in names if not is_lazy(p) else ():
            shape = getattr(mine.get(n), "shape", p.shape)
            if shape and shape != p.shape:
                raise ValueError(
                    f"state_dict of another model: in {where} the state {n!r} of parameter {i} has shape {tuple(shape)}, the "
                    f"parameter {tuple(p.shape)}"
                )


def warn_of_lost(optimizer: Hyperoptimizer, groups: Sequence[Group]) -> None:
    """Say where a checkpoint knows of parameters that others write to, and has lost what these were: one of
    `torch.distributed.checkpoint` has only what a fresh optimizer has.
    """
    each = (x for group in groups for x in zip(group.entry["params"], group.saved.get("watched", ()), strict=False))
    if any(watched and (mine := optimizer.state.get(p)) and TRAIL[1] not in mine for p, watched in each):
        warnings.warn(
            f"the state_dict has lost {' and '.join(TRAIL)} of parameters that others write to, such as masks: what is written "
            "before the next step is not seen by what has been learned. With torch.distributed.checkpoint, save with "
            "StateDictOptions(full_state_dict=True), and load it on every rank, without broadcast_from_rank0",
            RuntimeWarning,
            stacklevel=4,
        )


def warn_of_nothing(optimizer: Hyperoptimizer, params: Sequence[Tensor]) -> None:
    """Say where the dict of a group has come with a state of more steps than have been made, so without what was learned."""
    steps = max((int((optimizer.state.get(p) or {}).get("step", 0)) for p in params), default=0)
    if optimizer.tower.height and steps > optimizer.made():
        warnings.warn(
            f"a group has come with a state of {steps} steps, but without what was learned in them, which begins anew. If that "
            "is from a checkpoint, save and load the state_dict of the Hyperoptimizer, not that of what is around it, such as "
            "SAM: base_optimizer.state_dict()",
            RuntimeWarning,
            stacklevel=10,
        )


def copied(value: Any, param: Tensor, spread: bool) -> Any:
    """A copy of what is remembered of `param`; to be `spread` over its elements, where it is a number of an optimizer of torch,
    such as NAdam's product.
    """
    if not isinstance(value, Tensor) or not spread or value.ndim:
        return value.to(param.device).clone() if isinstance(value, Tensor) else value
    value = value.to(param.device)  # as torch.optim
    if param.ndim and param.is_complex() and not value.is_complex():
        value = torch.complex(value, value)  # for both parts
    return value.expand(param.shape).clone()


def upgraded(state_dict: dict[str, Any]) -> dict[str, Any]:
    """`state_dict` as it would be today, if it is one of version 0.1.0."""
    groups = state_dict["param_groups"]
    if not any("steps_made" in group for group in groups):
        return state_dict
    state = state_dict["state"]
    everywhere = {n: x for memory in state.values() for n, x in memory.items() if n.startswith("level ")}
    found = [_upgraded(dict(group), [state.get(key, {}) for key in group["params"]], everywhere) for group in groups]
    kept = {k: {n: x for n, x in memory.items() if n != "numbers" and n not in everywhere} for k, memory in state.items()}
    return {**state_dict, "param_groups": found, "state": kept}


def _upgraded(group: dict[str, Any], mine: list[dict[str, Any]], everywhere: dict[str, Tensor]) -> dict[str, Any]:
    """One group; `mine`: what was remembered of each of its parameters."""
    bases = {n.removeprefix(OLD): group.pop(n) for n in list(group) if n.startswith(OLD)}
    bases.pop("betas", None)
    own = {n: x for memory in mine for n, x in memory.items() if n in everywhere}
    alone = any(n.startswith("level 1:") for n in own)  # what groups share is remembered in one of them
    theirs = {n: x for n, x in {**everywhere, **own}.items() if n in own or not (alone and n.startswith("level 1:"))}
    sets = next((x.shape[1] // len(bases) for n, x in theirs.items() if n.startswith("level 1:")), 1)
    made = group.pop("steps_made")
    group[LEARNED] = {
        "made": made,
        "followed": made - group.pop("read_since"),
        "resting": [int("numbers" in memory and not memory["numbers"][0] > 0) for memory in mine],
        "said": {"": {n: [base, group[n], group[n], group[n]] for n, base in bases.items()}},
        "levels": {
            n: {"values": {}, "memory": theirs[n].tolist()} for n in sorted(theirs, key=lambda n: int(n.split(":")[0][6:]))
        },
        "last": _last(mine, sets),
    }
    return group


def _last(mine: list[dict[str, Any]], sets: int) -> list[list[float]]:
    """The scalars of the last step, from those of each parameter."""
    moved = [(i, memory["numbers"].tolist()) for i, memory in enumerate(mine) if "numbers" in memory]
    last = [[0.0] * sets for _ in moved[0][1]] if moved else []
    for i, numbers in moved:
        for row, x in zip(last, numbers if numbers[0] > 0 else (), strict=False):
            row[i if sets > 1 else 0] = x
    return last
