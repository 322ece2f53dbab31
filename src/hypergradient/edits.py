"""Edits: what others write to parameters between two steps, such as a mask, a projection, or weights of before.

What is remembered of an element says how the past has moved it. Where somebody else has moved it since, that is no longer true:
a path that has been undone would point to where its gradient points for ever, and the step size would grow and grow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import address
from .numerics import readable, same, wide
from .sample import SPARSE, Sample


class Edits:
    """Notices what others have written to some parameters since the last step.

    Args:
        members: the parameters.

    Attributes:
        watched: whether there has been something, so that it is kept what the elements were `before` the last step, and what
            that has `left`.
        seen: how often the members had been written to after the last step; None before there was one.
        glimpse: what the last step has left of what is read of a large member.
    """

    watched = False
    seen: Sequence[int] | None = None
    before: Tensor | None = None
    left: Tensor | None = None
    glimpse: Tensor | None = None

    def __init__(self, members: Sequence[Tensor]) -> None:
        self.members, self.homes = members, list(map(address, members))

    def marks(self) -> list[int]:
        """How often the members have been written to. (What is written through ``.data``, torch does not count.)"""
        return [getattr(p, "_local_tensor", p)._version for p in self.members]

    def look(self) -> None:
        """See whether the members have been given other memory."""
        if self.homes != (homes := list(map(address, self.members))):
            self.homes, self.seen = homes, None if self.seen is None else []

    def between(self, left: Tensor | None, now: Tensor, sample: Sample | None) -> tuple[Tensor, Tensor] | None:
        """None where nothing is to be seen; else which elements begin anew, for no hyperparameter has had a part in where they
        are now; and by how much all have been moved. Where a part is left of how the last step moved an element, it goes on.

        Args:
            left: what the last step has left; None where that is not known, so that all begin anew.
            now: what there is now. shape: (elements,), as `left` and what is returned
            sample: what is read of it, if not all.
        """
        if not self._written(left, now, sample):
            return None
        self.watched = True
        if left is None:
            return torch.ones_like(now, dtype=torch.bool), torch.zeros_like(now)
        old = left.to(wide(left.dtype))
        shift = now.to(old.dtype) - old
        anew = shift != 0
        return anew if self.before is None else anew & ~(shift.abs() < (old - self.before).abs()), shift

    def _written(self, left: Tensor | None, now: Tensor, sample: Sample | None) -> bool:
        """Whether there may have been something. Where the host need not wait, it looks at the elements."""
        here = now.is_cpu and readable(now)
        if here and left is not None:
            return not same(left, now)
        marked = self.marks() != self.seen
        if here and sample is not None and self.glimpse is not None:
            part, old = sample.view(now), self.glimpse
            return not (same(part, old) if marked else same(part[::SPARSE], old[::SPARSE]))
        return self.watched or marked
