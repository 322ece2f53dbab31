"""Edits: what others write to parameters between two steps, such as a mask, a projection, or weights of before.

What is remembered of an element says how the past has moved it. Where somebody else has moved it since, that is no longer true:
a path that has been undone would point to where its gradient points for ever, and the step size would grow and grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .layout import address
from .numerics import readable, same, wide
from .sample import Sample

FEW = 16
"""Of the rows that are read of a large parameter, one in so many is looked at where torch counts no write."""


class Edits:
    """Notices what others have written to some parameters since the last step.

    Args:
        members: the parameters.

    Attributes:
        seen: how often the members had been written to after the last step; None where that is not known.
        glimpse: what the last step has left of what is read of a large member.
    """

    seen: Sequence[int] | None = None
    glimpse: Tensor | None = None

    def __init__(self, members: Sequence[Tensor]) -> None:
        self.members, self.homes = members, list(map(address, members))
        self.spread = any(hasattr(p, "placements") for p in members)

    def marks(self) -> list[int]:
        """How often the members have been written to. (What is written through ``.data``, torch does not count; of a shard and
        its part that is here, it counts each by itself.)
        """
        return [p._version + getattr(p, "_local_tensor", p)._version for p in self.members]

    def marked(self) -> bool:
        return self.seen is not None and self.marks() != self.seen

    def changed(self) -> list[bool]:
        """Which of the members have been written to, or have been given other memory, as far as that is known."""
        seen = self.seen if self.seen else [None] * len(self.members)
        return [old != new for old, new in zip(seen, self.marks(), strict=True)]

    def look(self, known: Mapping[int, int]) -> None:
        """See whether the members have been given other memory; what is `known` of them, others have found out before."""
        if self.seen is None and any(id(p) in known for p in self.members):
            self.seen = [known.get(id(p), n) for p, n in zip(self.members, self.marks(), strict=True)]
        if self.homes != (homes := list(map(address, self.members))):
            self.homes, self.seen = homes, None if self.seen is None else []

    def written(self, left: Tensor | None, now: Tensor, sample: Sample | None) -> bool:
        """Whether there may have been something. Where the host need not wait, it looks at the elements; of shards all
        processes have to find the same.

        Args:
            left: what the last step has left, where that is known.
            now: what there is now. shape: (elements,), as `left`
            sample: what is read of it, if not all.
        """
        if self.spread:  # after a checkpoint, what is left is known
            return self.marked() or (self.seen is None and left is not None)
        here = now.is_cpu and readable(now)
        if here and left is not None:
            return not same(left, now.to(left.dtype))
        if here and sample is not None and self.glimpse is not None:
            part, old = sample.view(now), self.glimpse.to(now.dtype)
            each = 1 if self.marked() else FEW
            return not same(part[::each].contiguous(), old[::each].contiguous())
        return left is not None or self.marked()


def between(before: Tensor | None, left: Tensor | None, now: Tensor) -> tuple[Tensor, Tensor]:
    """Which elements begin anew, for no hyperparameter has had a part in where they are now; and by how much all have been
    moved. Where a part is left of how the last step has moved an element, it goes on.

    Args:
        before: what they were before the last step, and what that has `left`; NaN where nobody watched. None: likewise of all;
            where it is not known what is left, all begin anew.
        now: what they are. shape: (elements,), as of all others
    """
    if left is None:
        return torch.ones_like(now, dtype=torch.bool), torch.zeros_like(now)
    old = left.to(wide(left.dtype))
    shift = torch.where(old.isnan(), 0.0, now.to(old.dtype) - old)
    anew = shift != 0
    return anew if before is None else anew & ~(shift.abs() < (old - before).abs()), shift
