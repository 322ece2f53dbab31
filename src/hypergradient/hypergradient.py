"""The method: how the result of one step depends on the hyperparameters it was taken with.

The hypergradient of a hyperparameter h is ``dL/dh = <dL/dw, dU/dh>`` where ``w = U(w', g', state'; h)`` is the last
step and everything but h is held constant. ``dL/dw`` is the gradient of the next backward pass, so all that has to be
differentiated is the update rule. The *sensitivity* ``dU/dh`` is taken with the step; one step later it meets ``dL/dw``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from .numerics import ratio
from .rule import Rule, State

Sensitivity = dict[str, Tensor]


def differentiate(
    rule: Rule,
    values: Mapping[str, Tensor],
    names: tuple[str, ...],
    count: Tensor,
    param: Tensor,
    grad: Tensor,
    state: State,
    spread: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, State, Sensitivity]:
    """One step of `rule`, and its derivative with respect to the hyperparameters `names`.

    Args:
        values: every hyperparameter of the rule. shape: () or (segments,)
        count: the number of this step, from 1. shape: ()
        param, grad: what is moved, and along what. shape: (elements,) or any
        spread: from segments to elements. shape: (segments,), that of `param` -> that of `param`

    Returns:
        the new parameter, the new state, and ``dU/dh`` by name, each shaped like `param`.
    """
    step = _Step(rule, values, count, param, grad, state, lambda x: x if x.ndim == 0 else spread(x, param))
    if not names:
        return *step.taken(), {}
    return _reverse(step, names) if rule.elementwise else _twice(step, names)


@dataclass
class _Step:
    """The arguments of one step."""

    rule: Rule
    values: Mapping[str, Tensor]
    count: Tensor
    param: Tensor
    grad: Tensor
    state: State
    spread: Callable[[Tensor], Tensor]

    def coefficients(self, **changed: Tensor) -> tuple[Tensor, ...]:
        return self.rule.at({**self.values, **changed}).coefficients(self.count)

    def update(self, c: tuple[Tensor, ...], **changed: Tensor) -> tuple[Tensor, State]:
        values = {n: self.spread(v) for n, v in self.values.items() if n not in changed}
        return self.rule.at({**values, **changed}).update(self.param, self.grad, self.state, c)

    def taken(self, **changed: Tensor) -> tuple[Tensor, State]:
        return self.update(tuple(map(self.spread, self.coefficients(**changed))), **changed)


def pullback(
    function: Callable[..., tuple[Sequence[Tensor], Any]], inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Any, Any]:
    """The value of ``function(*inputs)``, its second output, and the map from a cotangent of output i to the inputs'.

    Plain autograd, for `torch.func` costs twice as much in dispatch; but the compiler takes `torch.func` alone.
    """
    if torch.compiler.is_compiling():
        if not function(*inputs)[0]:
            return (), (), None
        outputs, pull, extra = vjp(function, *inputs, has_aux=True)  # type: ignore[misc]
        return outputs, extra, lambda i, u: pull(tuple(u if j == i else torch.zeros_like(y) for j, y in enumerate(outputs)))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs, extra = function(*leaves)

    def pull_back(i: int, u: Tensor) -> Sequence[Tensor | None]:
        if not outputs[i].requires_grad:
            return [None] * len(leaves)
        return torch.autograd.grad(outputs[i], leaves, u, allow_unused=True, retain_graph=True)

    return [y.detach() for y in outputs], extra, pull_back


def _reverse(step: _Step, names: tuple[str, ...]) -> tuple[Tensor, State, Sensitivity]:
    """One reverse pass for all: each element depends on its own copy of the numbers that enter `update`.

    The chain has two links, ``dU/dh = dU/dh|c + sum_c dU/dc dc/dh``; the second is arithmetic of a few numbers.
    """

    def copies(x: Tensor) -> Tensor:
        return x.expand_as(step.param) if x.ndim == 0 else step.spread(x)

    def named(values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(names, values, strict=True))

    def update(*x: Tensor) -> tuple[Sequence[Tensor], State]:
        new, state = step.update(x[len(names) :], **named(x[: len(names)]))
        return (new,), state

    h = [step.values[n] for n in names]
    c, _, inner = pullback(lambda *x: (step.coefficients(**named(x)), ()), h)
    (new,), state, outer = pullback(update, [copies(x) for x in (*h, *c)])
    slopes = outer(0, torch.ones_like(new))
    total = named(slopes[: len(names)])
    for i, partial in enumerate(slopes[len(names) :]):
        if partial is not None:
            for name, link in zip(names, inner(i, torch.ones_like(c[i])), strict=True):
                if link is not None:
                    term, rest = partial * step.spread(link), total[name]
                    total[name] = term if rest is None else rest + term
    sensitivity = {n: torch.zeros_like(new) if x is None else x for n, x in total.items()}
    return new, {k: v.detach() for k, v in state.items()}, sensitivity


@torch.enable_grad()
def _twice(step: _Step, names: tuple[str, ...]) -> tuple[Tensor, State, Sensitivity]:
    """Right for every rule: ``u -> (dU/dh)^T u`` is linear, so its derivative with respect to u is ``dU/dh``."""
    h = {n: step.values[n].detach().requires_grad_() for n in names}
    new, state = step.taken(**h)
    u = torch.zeros_like(new, requires_grad=True)
    pulled = torch.autograd.grad(new, list(h.values()), u, create_graph=True, materialize_grads=True)
    slopes = (torch.autograd.grad(x, u, retain_graph=True)[0] if x.requires_grad else torch.zeros_like(new) for x in pulled)
    return new.detach(), {k: v.detach() for k, v in state.items()}, dict(zip(names, slopes, strict=True))


def cosine(product: Tensor, gradient: Tensor, sensitivity: Tensor) -> Tensor:
    """``<g, T> / (|g| |T|)`` from ``<g, T>``, ``|g|^2`` and ``|T|^2``; 0 where one of them vanishes."""
    return ratio(product, gradient.sqrt() * sensitivity.sqrt())
