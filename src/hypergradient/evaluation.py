"""Evaluation: for rules that average, the average in the place of the parameters, and these again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .numerics import readable, wide
from .rule import Rule, State

ROUNDED = 2.0**-7
"""The part of an average by which it differs at the most where all of it has only been rounded, to half precision."""
TRAINING = "training"
"""The name under which `state` holds what a parameter was in training, while the average is in its place."""


def inside(entry: Any) -> bool:
    """Whether `entry`, what is remembered of a parameter, is of one in whose place the average is."""
    return isinstance(entry, dict) and isinstance(entry.get(TRAINING), Tensor)


def enter(rule: Rule, p: Tensor, entry: dict[str, Any]) -> None:
    """Put the average into `p`; `entry`: what is remembered of it."""
    here, state = _parts(rule, p, entry, wide(p.dtype))
    if inside(entry) or state is None:
        return
    average = rule.evaluated(here.to(wide(p.dtype), copy=True), state)
    entry[TRAINING] = p.detach().clone()
    here.copy_(average)


def leave(rule: Rule, p: Tensor, entry: dict[str, Any]) -> None:
    """Put back what `p` was in training, to the bit. If somebody has rounded it since, what belongs to that average; if
    somebody has written something else, that is the average where it differs, and the parameter, which begins anew.
    """
    if not inside(entry):
        return
    old = _real(Layout.of(p).local(entry[TRAINING]))
    dtype = wide(old.dtype)  # of the average as it was made; `p` may have become another since
    here, state = _parts(rule, p, entry, dtype)
    if state is not None:
        average = rule.evaluated(old.to(dtype, copy=True), state).to(old.dtype).to(here.dtype)
        apart = (here - average).abs() > ROUNDED * average.abs()  # of what is NaN, nothing is
        written = (here != average) & apart.any()
        changed = torch.where(written, here, rule.trained(here.to(dtype, copy=True), state).to(here.dtype))
        old = torch.where(here == average, old.to(here.dtype), changed)
        for x in map(entry.__getitem__, rule.points if readable(written) and written.any() else ()):
            z = _real(Layout.of(x).local(x))
            z.copy_(torch.where(written, here.to(z.dtype), z))
    here.copy_(old)
    del entry[TRAINING]


def resume(rule: Rule, p: Tensor, entry: dict[str, Any]) -> None:
    """Know that the average is in the place of `p`, where a checkpoint has left out what that was in training."""
    if _parts(rule, p, entry, wide(p.dtype))[1] is not None:
        entry.setdefault(TRAINING, torch.full_like(p.detach(), torch.nan))  # no average of anything: see `leave`


def averages(rule: Rule) -> bool:
    """Whether a rule averages."""
    return type(rule).evaluated is not Rule.evaluated


def _parts(rule: Rule, p: Tensor, entry: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, State | None]:
    """What is here of a parameter, and of its state in `dtype`, in real numbers; None where somebody has taken some away."""
    own, state = Layout.of(p), {n: entry.get(n) for n in rule.init(torch.zeros((1,)))}
    known = {n: _real(own.local(x)).to(dtype) for n, x in state.items() if isinstance(x, Tensor) and x.shape == p.shape}
    return _real(own.local(p)), known if known.keys() == state.keys() else None


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
