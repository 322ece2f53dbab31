"""A watch over what is tuned: a step size that runs away or comes to rest at 0, or what cannot be read, is said once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .group import Group
from .level import READ, Levels
from .numerics import REACH, readable

EVERY = 8
"""The steps between two looks."""
FAR = 1e3
"""By what factor a step size may grow between two looks, and be more than 1, if its hypergradient is not normalized."""
HIGH, HIGHEST = 3e7, 1e11
"""How many times that of its rule by default a step size may be that `auto` tunes: with a metric, and without; FAR where
nothing can be read any more."""

NOTHING = 2 * REACH.tiny
"""As good as 0."""

EARLY = 12
"""The steps in which a step size has hardly been found."""

ADVICE = (
    ". Write a smaller lr above, such as … / SGD(lr=1e-9), or a tower that is free of the loss's scale: "
    "Hyperoptimizer(params), or auto(rule) for another rule"
)

MEMORY = (
    ". If the loss grows, too, p.grad is not its gradient alone: without zero_grad() before each backward(), or with momentum, "
    "Grokfast or error feedback in it, a longer path always looks better. Leave these out, or call optimizer.tune_on(loss) "
    "before each step, with a loss taken once more"
)


class Watch:
    """Looks at the step sizes of the leftmost rule now and then; what it sees it reads on the host only later, when the device
    has long been done with it, so that nothing waits.
    """

    def __init__(self) -> None:
        self._said = False
        self._seen: list[float] = []
        # What should have been read when that was looked at, was not, and was not the time before, either.
        self._reading, self._unread, self._lost = set[int](), set[int](), set[int]()
        self._coming: tuple[Tensor, torch.cuda.Event | None] | None = None

    def look(self, groups: Sequence[Group], levels: Levels, made: int) -> None:
        """To be called after each step; `made`: how many steps have been made."""
        if made == EARLY and not self._said:
            self._look_at_schedules(groups)
        if self._said or not levels.levels or made % EVERY not in (1, 2):
            return
        if made % EVERY == 1:
            moved = {(g.owner, i) for g in groups if g.followed > 1 for b in g.moving for i in b.sets or (0,)}
            self._reading = {h.place.start + k * h.sets + i for h, i in moved for k in range(len(h.names))}
            self._coming = self._copied(levels)
        elif self._coming is not None and (self._coming[1] is None or self._coming[1].query()):
            values, read = self._coming[0].tolist()
            before, self._unread = self._unread, {i for i, x in enumerate(read) if x != x and i in self._reading}
            self._lost = before & self._unread
            self._compare(groups, values)
            self._look_at_what_is_read(groups)
            self._coming = None

    @staticmethod
    def _copied(levels: Levels) -> tuple[Tensor, torch.cuda.Event | None] | None:
        if not readable(levels.memory) or levels.memory.device.type not in ("cpu", "cuda"):  # others would be waited for
            return None
        first = levels.levels[0]
        found = torch.stack([levels.learned(levels.memory)[0], levels.of(first)[READ]])
        there = torch.empty_like(found, device="cpu", pin_memory=found.is_cuda).copy_(found, non_blocking=True)
        event = torch.cuda.current_stream(found.device).record_event() if found.is_cuda else None
        return there, event

    def _compare(self, groups: Sequence[Group], now: list[float]) -> None:
        before, self._seen = self._seen, now
        for i, own in enumerate(group.owner for group in groups):
            if "lr" not in own.names or own.place.stop > len(now):
                continue
            k = own.place.start + own.names.index("lr") * own.sets
            for j, value in enumerate(now[k : k + own.sets]):
                start = own.initial["lr"][j]
                old = before[k + j] if len(before) == len(now) else start
                if start > NOTHING > max(old, value):
                    return self._say(f"group {i}: the learned lr has come to rest at 0, from {start:.3g} at the start{ADVICE}")
                if own.rule.normalize is None and value > max(1.0, old * FAR):
                    far = f"from {old:.3g} to {value:.3g} in {EVERY} steps"
                    return self._say(f"group {i}: the learned lr has run away, {far}{ADVICE}")
                usual = cast(float, own.rule.hyperparameters()["lr"].default)
                bound = FAR if k + j in self._lost else HIGHEST if own.lacks else HIGH
                if own.normalization.metric and value > usual * bound > 0:
                    return self._say(f"group {i}: the learned lr has grown from {start:.3g} to {value:.3g}{MEMORY}")

    def _look_at_what_is_read(self, groups: Sequence[Group]) -> None:
        """Of rules of one's own: where a derivative is not finite, nothing moves. (Of the others' it is the gradient's.)"""
        for i, group in enumerate(groups):
            if not group.step.ours and self._lost.intersection(range(group.owner.place.start, group.owner.place.stop)):
                return self._say(
                    f"group {i}: the hypergradients of {type(group.rule).__name__} are NaN, so nothing is tuned. Has a root in "
                    "it an infinite slope at 0? Write torch.sqrt(x.clamp_min(1e-38)) for torch.sqrt(x)"
                )

    def _look_at_schedules(self, groups: Sequence[Group]) -> None:
        for i, group in enumerate(groups):
            lr = group.said[group.main] if group.owner.moves else 0.0
            if group.highest > lr > 0 and group.freedom == 0:
                return self._say(
                    f"group {i}: its schedule has gone from lr={group.highest:.3g} to {lr:.3g} within {EARLY} steps, before "
                    "the step size that it is relative to has been found, which it now holds. Leave the schedule "
                    "out, or begin its decay later"
                )

    def _say(self, what: str) -> None:
        self._said = True
        warnings.warn(what, RuntimeWarning, stacklevel=10)
