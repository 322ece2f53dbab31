"""Gradients of another loss than the one the weights follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .numerics import owns_memory


def gradients(loss: Tensor, params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The gradient of `loss`, by a backward pass that leaves every ``grad`` as it was.

    `torch.autograd.grad` would pass by the hooks by which DDP averages, FSDP2 finds its shards, and reentrant checkpoints
    reach what is inside them.

    Args:
        params: leaves of which the gradient is asked for.

    Returns:
        by parameter, of those that `loss` depends on.
    """
    leaves = list({id(p): p for p in (*params, *_leaves(loss))}.values())
    before = [p.grad for p in leaves]
    held = [_held(g) for g in before]
    for p in leaves:
        p.grad = None
    try:
        with torch.enable_grad():
            loss.backward()
        return {p: found for p in params if (found := _held(p.grad)) is not None}
    finally:
        for p, g in zip(leaves, before, strict=True):
            p.grad = g
        for g, kept in zip(before, held, strict=True):
            if g is not None and kept is not None and kept is not g:
                g.copy_(kept)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaves in the graph of `loss`: also those that another optimizer moves."""
    found, seen, ahead = [], {loss.grad_fn}, [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        more = {n for n, _ in (node.next_functions if node is not None else ()) if n is not None} - seen
        seen |= more
        ahead += more
    return found


def _held(grad: Tensor | None) -> Tensor | None:
    """`grad`; a copy where it is a part or all of other memory, such as a bucket of DDP that the next backward pass fills."""
    here = getattr(grad, "_local_tensor", grad)
    if grad is None or here is None or here.layout != torch.strided or 0 in here.stride():  # nothing fills what is expanded
        return grad
    return grad.clone() if here._is_view() or not owns_memory(here) else grad
