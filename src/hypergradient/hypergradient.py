"""The method: how the result of one step depends on the hyperparameters it was taken with.

The hypergradient of a hyperparameter h is ``dL/dh = <dL/dw, dU/dh>`` where ``w = U(w', g', state'; h)`` is the last
step and everything but h is held constant. ``dL/dw`` is the gradient of the next backward pass, so all that has to be
differentiated is the update rule. The *sensitivity* ``dU/dh`` is taken with the step; one step later it meets ``dL/dw``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from .numerics import ratio
from .rule import Rule, State

Sensitivity = dict[str, Tensor]


class Numbers(NamedTuple):
    """What a step needs besides the elements: few numbers, the same for all elements of a segment.

    Attributes:
        values: every hyperparameter of the rule. shape of each: () or (segments,)
        c: what `Rule.coefficients` makes of them. shape of each: () or (segments,)
        links: for each of `c`, its derivative with respect to each tuned hyperparameter; None where it is 0.
    """

    values: dict[str, Tensor]
    c: Sequence[Tensor]
    links: Sequence[Sequence[Tensor | None]]


def prepare(rule: Rule, values: dict[str, Tensor], names: tuple[str, ...], count: Tensor) -> Numbers:
    """The numbers of step `count` (from 1), with their derivatives with respect to the hyperparameters `names`.

    Apart from `differentiate`, for it is arithmetic of a few numbers, and the compiler would repeat it for each element.
    """

    def coefficients(*x: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
        at = rule.at({**values, **dict(zip(names, x, strict=True))})
        return tuple(c if isinstance(c, Tensor) else count.new_tensor(c) for c in at.coefficients(count)), ()

    if not (names and rule.elementwise):
        return Numbers(values, coefficients(*(values[n] for n in names))[0], ())
    c, _, back = pullback(coefficients, [values[n] for n in names])
    return Numbers(values, c, [back(i, torch.ones_like(x)) for i, x in enumerate(c)])


def differentiate(
    rule: Rule,
    numbers: Numbers,
    names: tuple[str, ...],
    count: Tensor,
    param: Tensor,
    grad: Tensor,
    state: State,
    spread: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, State, Sensitivity]:
    """One step of `rule`, and its derivative with respect to the hyperparameters `names`.

    One reverse pass gives all: each element depends on its own copy of the numbers that enter `update`, and
    ``dU/dh = dU/dh|c + sum_c dU/dc dc/dh``.

    Args:
        param, grad: what is moved, and along what. shape: (elements,) or any
        spread: from segments to elements. shape: (segments,), that of `param` -> that of `param`

    Returns:
        the new parameter, the new state, and ``dU/dh`` by name, each shaped like `param`.
    """
    if not rule.elementwise:
        return _differentiate_any(rule, numbers.values, names, count, param, grad, state)

    def each(x: Tensor) -> Tensor:
        return x if x.ndim == 0 else spread(x, param)

    fixed = {n: each(v) for n, v in numbers.values.items() if n not in names}
    if not names:
        return *rule.at(fixed).update(param, grad, state, tuple(map(each, numbers.c))), {}

    c = list(map(each, numbers.c))
    linked = [i for i, links in enumerate(numbers.links) if any(x is not None for x in links)]

    def update(*x: Tensor) -> tuple[Sequence[Tensor], State]:
        at = rule.at({**fixed, **dict(zip(names, x[: len(names)], strict=True))})
        for i, y in zip(linked, x[len(names) :], strict=True):
            c[i] = y
        new, new_state = at.update(param, grad, state, tuple(c))
        return (new,), new_state

    copies = [each(numbers.values[n]) for n in names] + [c[i] for i in linked]
    (new,), new_state, back = pullback(update, [x.expand_as(param) for x in copies])
    slopes = back(0, torch.ones_like(new))
    total = dict(zip(names, slopes, strict=False))
    for i, partial in zip(linked, slopes[len(names) :], strict=True):
        for name, link in zip(names, numbers.links[i], strict=True):
            if partial is not None and link is not None:
                term, rest = partial * each(link), total[name]
                total[name] = term if rest is None else rest + term
    sensitivity = {n: torch.zeros_like(new) if x is None else x for n, x in total.items()}
    return new, {k: v.detach() if v.requires_grad else v for k, v in new_state.items()}, sensitivity


@torch.enable_grad()
def _differentiate_any(
    rule: Rule, values: dict[str, Tensor], names: tuple[str, ...], count: Tensor, param: Tensor, grad: Tensor, state: State
) -> tuple[Tensor, State, Sensitivity]:
    """Right for every rule: ``u -> (dU/dh)^T u`` is linear, so its derivative with respect to u is ``dU/dh``."""
    h = {n: values[n].detach().requires_grad_() for n in names}
    at = rule.at({**values, **h})
    new, state = at.update(param, grad, state, at.coefficients(count))
    u = torch.zeros_like(new, requires_grad=True)
    pulled: Sequence[Tensor] = ()
    if names:
        pulled = torch.autograd.grad(new, list(h.values()), u, create_graph=True, materialize_grads=True)
    slopes = (torch.autograd.grad(x, u, retain_graph=True)[0] if x.requires_grad else torch.zeros_like(new) for x in pulled)
    kept = {k: v.detach() if v.requires_grad else v for k, v in state.items()}
    return new.detach(), kept, dict(zip(names, slopes, strict=True))


def pullback(
    function: Callable[..., tuple[Sequence[Tensor], Any]], inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Any, Callable[[int, Tensor], Sequence[Tensor | None]]]:
    """The value of ``function(*inputs)``, its second output, and what takes a cotangent of output i to the inputs.

    Plain autograd, for `torch.func` costs twice as much in dispatch; but the compiler takes `torch.func` alone.
    """
    if torch.compiler.is_compiling():
        if not function(*inputs)[0]:
            return (), (), lambda i, u: ()
        outputs, pull, extra = vjp(function, *inputs, has_aux=True)  # type: ignore[misc]
        return outputs, extra, lambda i, u: pull(tuple(u if j == i else torch.zeros_like(y) for j, y in enumerate(outputs)))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs, extra = function(*leaves)

    def back(i: int, u: Tensor) -> Sequence[Tensor | None]:
        if not outputs[i].requires_grad:
            return [None] * len(leaves)
        return torch.autograd.grad(outputs[i], leaves, u, allow_unused=True, retain_graph=True)

    return [y.detach() for y in outputs], extra, back


def cosine(product: Tensor, gradient: Tensor, sensitivity: Tensor) -> Tensor:
    """``<g, T> / (|g| |T|)`` from ``<g, T>``, ``|g|^2`` and ``|T|^2``; 0 where one of them vanishes."""
    return ratio(product, gradient.sqrt() * sensitivity.sqrt()).clamp(-1, 1)  # beyond it the squares have underflown
