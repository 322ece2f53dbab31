"""The method: how the result of one step depends on the hyperparameters it was taken with.

The hypergradient of a hyperparameter h is ``dL/dh = <dL/dw, dU/dh>`` where ``w = U(w', g', state'; h)`` is the last
step and everything but h is held constant. ``dL/dw`` is the gradient of the next backward pass, so all that has to be
differentiated is the update rule. Its derivative, the *sensitivity* ``dU/dh``, is taken with the step and kept until
``dL/dw`` is known; where the rule can be replayed from what the step has left behind, it is taken only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import threshold

from .charts import UNIT
from .numerics import added, finite_or_zero, ratio
from .rule import Rule, State

Tensors: TypeAlias = Sequence[Tensor]
Map: TypeAlias = Callable[[Tensor], Tensor]
Pieces: TypeAlias = Sequence[tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]]
"""Elements to work on one part after the other: parameter, gradient, state, and what is kept of the last step."""
Function: TypeAlias = Callable[..., tuple[Tensors, Any]]

KEPT = "last_"
"""How the names begin under which is saved what is kept of the last step."""


class Numbers(NamedTuple):
    """What a step needs besides the elements, few numbers, the same for all elements of a segment.

    Attributes:
        step: which step of these elements this is, from 1; 0 where there was none.
        values: every hyperparameter of the rule.
        scale: for each that is tuned, the factor of its schedule.
        c: what `Rule.coefficients` makes of them.
        jacobian: the derivatives of `c` with respect to what is tuned, times the scale. shape: (tuned * coefficients, …)
    """

    step: Tensor
    values: dict[str, Tensor]
    scale: dict[str, Tensor]
    c: tuple[Tensor, ...]
    jacobian: Tensor


class Step:
    """One step of a rule on the elements of a model, and its derivative; all that is known before any number is.

    The functions of elements work in place on lists of flat tensors, so that they can be run as they are or compiled.

    Args:
        rule: the rule; its numbers do not matter.
        names: which hyperparameters are tuned.
        off: which are 0 and stay so.

    Attributes:
        state: the names of what the rule remembers.
        order: all hyperparameters, the tuned ones first.
        links, linked: which coefficient depends on which tuned hyperparameter; which depend on any.
        jacobian: at which row of `prepare` their derivatives begin.
        keeps: what is kept of a step until its hypergradient is read: "sensitivity", "gradient" or "nothing".
        replays, left: whether it is read by a replay; the names under which is saved what a step leaves behind for it.
        averaging: whether the rule is one of averages.
        weights: of which averages the weight depends on what is tuned; which coefficient it is.
        closed_numbers, closed_elements: whether the derivatives of coefficients and of elements are had in closed form.
    """

    closed_elements = False

    def __init__(self, rule: Rule, names: tuple[str, ...], off: frozenset[str] = frozenset()) -> None:
        self.rule, self.names = rule.at({}, off=off), names
        self.order = (*names, *(n for n in rule.hyperparameters() if n not in names))
        self.fading = 1 - 1 / rule.horizon
        self.pairs = 3 if rule.normalize else 1
        self.state = tuple(rule.init(torch.zeros((1, 1))))
        if reserved := [n for n in self.state if n in ("step", "numbers") or n.startswith((KEPT, "level "))]:
            raise ValueError(f"{type(rule).__name__}: the state {reserved[0]!r} has a name that is kept for the optimizer")
        self.links, self.coefficients = self._links()
        self.linked = sorted({i for i, _ in self.links})
        self.closed_numbers = rule.closed("coefficients")
        self.jacobian = 1 + len(self.order) + len(names) + self.coefficients
        self.rows = self.jacobian + self.coefficients * len(names)
        self.averaging = all(getattr(type(rule), n) is getattr(Rule, n) for n in ("update", "advance"))
        self.keeps = self._kept() if names and rule.elementwise else "sensitivity"
        self.kept = {"sensitivity": names, "gradient": ("gradient",), "nothing": ()}[self.keeps]
        self.replays = self.keeps != "sensitivity"
        self.left = {KEPT + n for n in self.kept} | ({"numbers"} if self.replays else set())

    def _probe(self) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """Values for a step of one element, and the coefficients made of them."""
        one = torch.ones((), dtype=torch.float64)
        values = {n: (one / 2).requires_grad_(n in self.names) for n in self.order}
        c = self.rule.at(values).coefficients(2 * one)
        return values, tuple(x if isinstance(x, Tensor) else one.new_tensor(x) for x in c)

    @torch.enable_grad()
    def _links(self) -> tuple[tuple[tuple[int, str], ...], int]:
        """Which coefficient depends on which tuned hyperparameter, and how many coefficients there are."""
        values, c = self._probe()
        tuned, links = [values[n] for n in self.names], []
        for i, x in enumerate(c):
            if x.requires_grad:
                found = torch.autograd.grad(x, tuned, allow_unused=True, retain_graph=True)
                links += [(i, n) for n, slope in zip(self.names, found, strict=True) if slope is not None]
        return tuple(links), len(c)

    @torch.enable_grad()
    def _kept(self) -> str:
        """What has to be kept for the derivative. Found by a step of one element: what the hyperparameters reach in it."""
        if not self.averaging:
            return "sensitivity"
        values, c = self._probe()
        at, one = self.rule.at(values), torch.ones((), dtype=torch.float64)
        gradient = at.gradient(one, one)
        averages, decay, tuned = at.averages(gradient, c), at.decay(c), [values[n] for n in self.names]
        weights = {n: w for n, (_, w) in averages.items() if isinstance(w, Tensor) and w.requires_grad}
        self.weights = {n: i for n, w in weights.items() for i in self.linked if w is c[i]}
        if any(x.requires_grad for x in at.advance(gradient, self.rule.init(one), c).values()):
            plain = gradient is one and averages.keys() == set(self.state) and self.weights.keys() == weights.keys() != set()
            if not plain or at.follows({}, dict.fromkeys(averages, one)) or any(x.requires_grad for x, _ in averages.values()):
                return "sensitivity"
        self.closed_elements = self.rule.closed("displacement") and (decay is None or any(decay is x for x in c))
        if self.fading or self.rule.normalize:
            return "sensitivity"
        if not weights:
            return "nothing"
        reach = torch.autograd.grad(list(weights.values()), tuned, [one] * len(weights), allow_unused=True)
        undone = all(self.rule.chart(n) == UNIT for n, x in zip(self.names, reach, strict=True) if x is not None)
        return "gradient" if undone else "sensitivity"

    # ---------------------------------------------------------------- few numbers

    def prepare(self, values: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        """The numbers of step `count` (from 1), with their derivatives; one row each.

        Apart from the functions of elements, for the compiler would repeat it for each of them.

        Args:
            values: every hyperparameter, in the order of `order`. shape: (hyperparameters, segments)
            scale: for each that is tuned, the factor of its schedule. shape: (tuned, 1)
            count: shape: ()
        """
        t, k, sets = len(self.names), self.coefficients, values.shape[1]
        tuned, fixed = values[:t], values[t:]
        scale = scale.expand_as(tuned)
        rows = [count.expand_as(values[:1]), values, scale]
        if not k:
            return torch.cat(rows)

        def made(h: Tensor) -> tuple[Rule, list[Tensor]]:
            at = self.rule.at(dict(zip(self.order, [*h.unbind(), *fixed.unbind()], strict=True)))
            return at, [x if isinstance(x, Tensor) else values.new_tensor(x) for x in at.coefficients(count)]

        slope: Tensor | None
        if self.linked and not self.closed_numbers:
            # one reverse pass gives all derivatives: each coefficient is made of a copy of its own
            own = torch.eye(k, dtype=values.dtype, device=values.device).unsqueeze(2).expand(k, k, sets)

            def copies(h: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
                return (torch.stack([x.expand(k, sets) for x in made(h)[1]]),), ()

            (c,), _, (slope,) = slopes(copies, [tuned.unsqueeze(1).expand(t, k, sets)], [own])
            assert slope is not None
            rows.append(c.select(1, 0))
        else:
            at, every = made(tuned)
            known, zero = at.coefficients_slopes(count, tuple(every)) if self.linked else {}, torch.zeros_like(values[0])
            rows.append(torch.stack([x.expand(sets) for x in every]))
            slope = torch.stack([known.get((i, n), zero) for n in self.names for i in range(k)] or [zero[:0]])
        return torch.cat([*rows, (slope.view(t, k, sets) * scale.unsqueeze(1)).view(t * k, sets)])

    def numbers(self, rows: Tensor) -> Numbers:
        """The rows of `prepare` by name. shape: (rows, elements or 1) -> (elements,) or () each"""
        rows = rows.squeeze(1) if rows.shape[1] == 1 else rows
        it = iter(rows[: self.jacobian].unbind())
        count = next(it)
        values, scale = ({n: next(it) for n in names} for names in (self.order, self.names))
        return Numbers(count, values, scale, tuple(it), rows[self.jacobian :])

    # ------------------------------------------------------------------- elements

    def differentiate(
        self, numbers: Numbers, function: Function, cotangents: Tensors = (), copy: Map = lambda x: x, more: Tensors = ()
    ) -> tuple[Tensors, Any, list[Tensor | None]]:
        """As `slopes` of ``function(rule, c, *more)``: with respect to what is tuned, all coefficients, and `more`.

        Args:
            copy: what is differentiated with respect to: the numbers themselves, or a copy of them for each element.
        """
        t, linked = len(self.names), self.linked

        def step(*x: Tensor) -> tuple[Sequence[Tensor], Any]:
            made = dict(zip(linked, x[t:], strict=False))
            at = self.rule.at({**numbers.values, **dict(zip(self.names, x, strict=False))})
            return function(at, tuple(made.get(i, y) for i, y in enumerate(numbers.c)), *x[t + len(linked) :])

        inputs = [copy(x) for x in (*(numbers.values[n] for n in self.names), *(numbers.c[i] for i in linked))]
        values, second, found = slopes(step, [*inputs, *more], cotangents)
        partial = dict(zip(linked, found[t:], strict=False))
        return values, second, [*found[:t], *map(partial.get, range(self.coefficients)), *found[len(inputs) :]]

    def advance(self, numbers: Numbers, param: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State, list[Tensor]]:
        """One elementwise step, and of each of `names` its sensitivity ``dU/dh = dU/dh|c + sum_c dU/dc dc/dh``.

        Without closed forms one reverse pass gives all: each element depends on its own copy of the numbers.
        """

        def step(at: Rule, c: tuple[Tensor, ...]) -> tuple[Sequence[Tensor], State]:
            new, new_state = at.update(param, grad, state, c)
            return (new,), new_state

        t = len(self.names)
        if self.closed_elements:
            at = self.rule.at(numbers.values)
            (new,), new_state = step(at.at({}, in_place=not self.weights and at.decay(numbers.c) is None), numbers.c)
            moved = self.moved(at, -1.0, param, new_state, numbers.c)
            averages = at.averages(grad, numbers.c) if self.weights else {}
            for n, i in ((n, i) for n, i in self.weights.items() if n in moved):
                moved[i] = moved.get(i, 0.0) + moved[n] * (averages[n][0] - state[n])
            found = [None] * t + [moved.get(i) for i in range(self.coefficients)]
        else:
            (new,), new_state, found = self.differentiate(numbers, step, copy=lambda x: x.expand_as(param))
        terms = {n: [] if x is None else [x * numbers.scale[n]] for n, x in zip(self.names, found, strict=False)}
        for i, n in self.links:
            if (slope := found[t + i]) is not None:
                terms[n].append(slope * numbers.jacobian[self.names.index(n) * self.coefficients + i])
        add = added if self.rule.normalize else sum
        return new, new_state, [add(x[1:], x[0]) if x else torch.zeros_like(new) for x in terms.values()]

    def moved(self, at: Rule, u: Tensor | float, before: Tensor, state: State, c: tuple[Tensor, ...]) -> dict[Any, Tensor]:
        """As `Rule.displacement_slopes`, of ``displacement - decay * before``: of the whole step, given the averages."""
        found: dict[Any, Tensor] = dict(at.displacement_slopes(u, state, c, (*self.linked, *self.weights)))
        decay = at.decay(c)
        for i in [i for i in self.linked if c[i] is decay]:
            found[i] = found.get(i, 0.0) - u * before
        return found

    def replay(
        self, numbers: Numbers, cotangent: Tensor, param: Tensor, state: State, last: Tensor | None = None
    ) -> Iterator[Tensor | None]:
        """``-<u, dU/d.>`` of the last step, from what it has left behind: with respect to each of `names`, with coefficients
        and averages held, then to each coefficient, and once more where that is the weight of an average, by way of it and
        times 1 less the weight.

        Of an average ``m = m' + w (x - m')`` the old m' is not known, but its derivatives are: ``dm/dw = (x - m) / (1 - w)``
        and ``dm/dx = w``.

        Args:
            numbers: those of that step.
            param, state: after it.
            last: the gradient in it, or None where the state does not depend on what is tuned.

        Returns:
            by element, or the sum over all.
        """
        at, c, t = self.rule.at(numbers.values), numbers.c, len(self.names)
        before, decay = param, at.decay(c)
        if decay is not None:
            before = torch.where(decay == 0, param, (param + at.displacement(state, c)) / decay)
        found: Sequence[Tensor | None]
        if self.closed_elements:
            moved = self.moved(at, cotangent, before, state, c)
            found = [*[None] * t, *(moved.get(x) for x in (*range(self.coefficients), *self.weights))]
        else:
            held = [state[n] for n in self.weights]

            def taken(at: Rule, c: tuple[Tensor, ...], *then: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
                moved = at.displacement({**state, **dict(zip(self.weights, then, strict=True))}, c)
                return (moved,) if (shrunk := at.decay(c)) is None else (moved, shrunk), ()

            cotangents = [cotangent] if decay is None else [cotangent, -(cotangent * before).sum_to_size(decay.shape)]
            found = self.differentiate(numbers, taken, cotangents, more=held)[2]
        yield from found[: t + self.coefficients]
        averages = {} if last is None else at.averages(last, c)
        through: list[Tensor | None] = [None] * self.coefficients
        for (n, i), slope in zip(self.weights.items(), found[t + self.coefficients :], strict=True):
            if slope is not None:
                slope = (averages[n][0] - state[n]) * slope
                through[i] = slope if (others := through[i]) is None else others + slope
        yield from through

    def products(self, u: Tensor, kept: Tensors) -> Iterator[Tensor]:
        """``u T`` with each sensitivity T of the last step, and where the rule normalizes ``u u`` and ``T T``; by element."""
        yield from (u * t for t in kept)
        if self.pairs == 3:
            yield from [u * u] * len(kept)
            yield from (t * t for t in kept)

    def read(self, pieces: Pieces, last: Tensor, *maps: Map) -> Tensor:
        """``<u, T>`` with each sensitivity T of the last step, and where the rule normalizes ``<u, u>`` and ``<T, T>``.

        Args:
            pieces: of the elements; in the place of the gradient u, the gradient of what is to become smaller by tuning.
            last: the numbers of the last step. shape: (rows, segments)
            maps: where there are several segments. From segments to elements; from elements to segments, by summation.
                shapes: (rows, segments) -> (rows, elements); (elements,) -> (segments,)

        Returns:
            shape: (1 or 3, tuned, segments)
        """
        spread, total = maps or (lambda x: x, lambda x: (x.sum() if x.ndim else x).view(1))
        numbers, zero, sums = self.numbers(spread(last)) if self.replays else None, last.new_zeros(last.shape[1]), []
        for param, u, state, kept in pieces:
            u, param, old = u.to(last.dtype), param.to(last.dtype), dict(zip(self.state, state, strict=True))
            terms = self.replay(numbers, u, param, old, *kept) if numbers else self.products(u, kept)
            sums.append(torch.stack([zero if x is None else total(x) for x in terms]))
        found = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        t, k = len(self.names), self.coefficients
        if not self.replays:
            return found.view(self.pairs, t, -1)
        direct, partial, through = found.split([t, k, k])
        if self.weights:
            rest = 1 - last[self.jacobian - k : self.jacobian]
            rest = threshold(rest, torch.finfo(rest.dtype).eps ** 0.5, math.inf)  # of hardly anything, nothing can be said
            partial = partial + through / rest
        chained = (partial * last[self.jacobian :].view(t, k, -1)).sum(1)
        rows = torch.addcmul(chained, direct, last[1 + len(self.order) :][:t])
        return torch.where(last[0] > 0, -rows, torch.zeros_like(rows)).unsqueeze(0)

    def move(self, pieces: Pieces, now: Tensor) -> None:
        """One step in place: of the parameter, its state, and the sensitivities ``T = fading T + dU/dh`` where they are kept.

        Args:
            pieces: of the elements.
            now: the numbers of this step. shape: (rows, elements or 1)
        """
        numbers = self.numbers(now)
        for param, grad, state, kept in pieces:
            old, p, g = dict(zip(self.state, state, strict=True)), param.to(now.dtype), grad.to(now.dtype)
            sensitivity: list[Tensor] = []
            if self.keeps == "gradient":
                kept[0].copy_(g)
            if self.replays or not self.names:
                new, new_state = self.rule.at(numbers.values, in_place=self.averaging).update(p, g, old, numbers.c)
            elif self.rule.elementwise:
                new, new_state, sensitivity = self.advance(numbers, p, g, old)
            else:
                new, new_state, sensitivity = differentiate_any(self.rule, numbers, self.names, p, g, old)
            if new_state.keys() != old.keys():
                raise ValueError(
                    f"{type(self.rule).__name__}: init returns a state of {sorted(old)}, update one of {sorted(new_state)}"
                )
            for t, slope in zip(kept, sensitivity, strict=False):  # what is not finite would stay for ever
                t.copy_(finite_or_zero(t * self.fading + slope) if self.fading else slope)
            pairs = [(t, x) for t, x in ((param, new), *((old[n], x) for n, x in new_state.items())) if x is not t]
            for target, x in [(t, x.clone() if any(x is y for y, _ in pairs) else x) for t, x in pairs]:
                target.copy_(x)  # what is handed on from one to the other was read before it is written


@torch.enable_grad()
def differentiate_any(
    rule: Rule, numbers: Numbers, names: tuple[str, ...], param: Tensor, grad: Tensor, state: State
) -> tuple[Tensor, State, list[Tensor]]:
    """Right for every rule: ``u -> (dU/dh)^T u`` is linear, so its derivative with respect to u is ``dU/dh``."""
    h = {n: numbers.values[n].detach().requires_grad_() for n in names}
    at = rule.at({**numbers.values, **h})
    new, new_state = at.update(param, grad, state, at.coefficients(numbers.step))
    u = torch.zeros_like(new, requires_grad=True)
    pulled = torch.autograd.grad(new, list(h.values()), u, create_graph=True, materialize_grads=True)
    found = [torch.autograd.grad(x, u, retain_graph=True)[0] if x.requires_grad else torch.zeros_like(new) for x in pulled]
    return new, new_state, [t * numbers.scale[n] for n, t in zip(names, found, strict=True)]


def slopes(function: Function, inputs: Tensors, cotangents: Tensors = ()) -> tuple[Tensors, Any, Sequence[Tensor | None]]:
    """The values of ``function(*inputs)``, its second output, and the derivative of the first times `cotangents`, or 1.

    Plain autograd, for `torch.func` costs twice as much in dispatch; but the compiler takes `torch.func` alone.
    """
    if not inputs:
        return *function(), ()
    if torch.compiler.is_compiling():
        values, pull, second = vjp(function, *inputs, has_aux=True)  # type: ignore[misc]
        return values, second, pull(tuple(cotangents or [torch.ones_like(x) for x in values]))
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        values, second = function(*leaves)
    cotangents = cotangents or [torch.ones_like(x) for x in values]
    pairs = [(x, u) for x, u in zip(values, cotangents, strict=True) if x.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        found = torch.autograd.grad([x for x, _ in pairs], leaves, [u for _, u in pairs], allow_unused=True)
    return [x.detach() for x in values], second, found


def cosine(product: Tensor, gradient: Tensor, sensitivity: Tensor) -> Tensor:
    """``<g, T> / (|g| |T|)`` from ``<g, T>``, ``|g|^2`` and ``|T|^2``; 0 where one of them vanishes."""
    return ratio(product, gradient.sqrt() * sensitivity.sqrt()).clamp(-1, 1)  # beyond it the squares have underflown
