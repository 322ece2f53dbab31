"""The method: how the result of one step depends on the hyperparameters it was taken with.

The hypergradient of a hyperparameter h is ``dL/dh = <dL/dw, dU/dh>`` where ``w = U(w', g', state'; h)`` is the last
step and everything but h is held constant. ``dL/dw`` is the gradient of the next backward pass, so all that has to be
differentiated is the update rule. Its derivative, the *sensitivity* ``dU/dh``, is taken with the step and kept until
``dL/dw`` is known; where the rule can be replayed from what the step has left behind, it is taken only then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import threshold

from . import probe
from .normalize import NORMALIZATIONS
from .numerics import added, copied, finite_or_zero, on_host, totals
from .probe import KEPT, prepared, sums_after
from .rule import Rule, State
from .sample import Sample

Tensors: TypeAlias = Sequence[Tensor]
Map: TypeAlias = Callable[[Tensor], Tensor]
Piece: TypeAlias = tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]
"""Elements to work on: parameter, gradient, state, and what is kept of the last step."""
Function: TypeAlias = Callable[..., tuple[Tensors, Any]]


class Scalars(NamedTuple):
    """What a step needs besides the elements, the same for all elements of a segment.

    Attributes:
        t: which step of these elements this is, from 1.
        values: every hyperparameter of the rule.
        scale: for each that is tuned, the derivative of its value in force with respect to what is learned.
        c: what `Rule.coefficients` makes of them.
        jacobian: the derivatives of `c` with respect to what is tuned, times the scale. shape: (tuned * coefficients, …)
    """

    t: Tensor
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
        sums: the names of the numbers that it adds up.
        elementwise: whether each element moves by itself.
        ours: whether the rule is one of this package, which are known to do nothing but to operate on tensors.
        order: all hyperparameters, the tuned ones first.
        rows: where in what `prepare` returns there is each field of `Scalars`.
        coefficients: how many there are.
        links: which of them depends on which tuned hyperparameter, where that is needed; `linked`: which on any.
        direct: on which tuned ones a step depends other than by way of coefficients.
        kept: under which names is remembered what is kept of each step until its hypergradient is read.
        replays: whether that is read by a replay.
        weights: for that, of which averages the weight depends on what is tuned; which coefficient it is.
        follows: whether what is kept is the movement of the elements.
    """

    def __init__(self, rule: Rule, names: tuple[str, ...], off: frozenset[str] = frozenset()) -> None:
        self.rule, self.names = rule.at({"off": off}), names
        self.order = (*names, *(n for n in rule.hyperparameters() if n not in names))
        self.normalization = NORMALIZATIONS[rule.normalize]
        with on_host(), torch.enable_grad():
            self.state, self.sums, self.ours = probe.remembered(self.rule), probe.sums(self.rule), probe.ours(self.rule)
            self.elementwise = probe.elementwise(self.rule) and not probe.switches(self.rule)  # in other steps, perhaps not
            at, c = probe.example(self.rule, names)
            if names and self.elementwise:
                probe.branches(self.rule, names)
            keeps, self.weights = probe.keeps(self.rule, names, at, c)
            if keeps != "movement":
                probe.warn_of_idle(self.rule, names)
            elif not self.ours:
                probe.check_multiplier(self.rule)
            self.links = probe.links(self.rule, names) if keeps != "movement" else []
            self.direct = names if not self.ours else [n for n in names if n in probe.reached(self.rule, names, 2.0, held=True)]
        t, k = len(names), len(c)
        ends = accumulate((1, len(self.order), t, k, t * k), initial=0)
        self.rows = dict(zip(Scalars._fields, (slice(*ends) for ends in pairwise(ends)), strict=True))
        self.coefficients, self.linked = k, sorted({i for i, _ in self.links})
        self.kept = tuple(KEPT + n for n in {"sensitivity": names, "nothing": ()}.get(keeps, (keeps,)))
        self.replays = keeps in ("gradient", "nothing")
        self.follows = keeps == "movement"

    def sample(self, p: Tensor) -> Sample | None:
        """What is read of a parameter; None: all."""
        return Sample.of(p, self.rule.sample) if self.kept and self.elementwise else None

    # -------------------------------------------------------------------- scalars

    def prepare(self, values: Tensor, scale: Tensor, clock: Tensor) -> Tensor:
        """The scalars of a step, one row each.

        Apart from the functions of elements, for the compiler would repeat it for each of them.

        Args:
            values: every hyperparameter, in the order of `order`. shape: (hyperparameters, segments)
            scale: see `Scalars`. shape: (tuned, segments)
            clock: which step it is, from 1; and the sums before it. shape: (1 + sums, segments or 1)
        """
        derived = self._derived(values, scale, clock) if self.coefficients else []
        return torch.cat([clock[:1].expand_as(values[:1]), values, scale, *derived])

    def summed(self, values: Tensor, clock: Tensor) -> Tensor:
        """The sums after a step; see `prepare`. shape: (sums, segments)"""
        before = dict(zip(self.sums, clock[1:], strict=True))
        rule = self.rule.at(dict(zip(self.order, values.unbind(), strict=True)))
        return torch.stack([*sums_after(rule, clock[0, 0], before).values()])

    def _derived(self, values: Tensor, scale: Tensor, clock: Tensor) -> list[Tensor]:
        """Coefficients and their derivatives times `scale`, by one reverse pass: each coefficient is made of a copy of its own.

        shapes: in all (coefficients, segments), (tuned * coefficients, segments)
        """
        t, k, sets = len(self.names), self.coefficients, values.shape[1]

        def made(tuned: Tensor) -> tuple[Tensor, ...]:
            at = self.rule.at(dict(zip(self.order, [*tuned.unbind(), *values[t:].unbind()], strict=True)))
            return prepared(at, clock[0, 0], dict(zip(self.sums, clock[1:], strict=True)))[1]

        def copies(tuned: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
            return (torch.stack([x.expand(k, sets) for x in made(tuned)]),), ()

        if not self.linked:
            return [*[x.expand(1, sets) for x in made(values[:t])], values.new_zeros(t * k, sets)]
        own = torch.eye(k, dtype=values.dtype, device=values.device).unsqueeze(2).expand(k, k, sets)
        (c,), _, (slope,) = slopes(copies, [values[:t].unsqueeze(1).expand(t, k, sets)], [own])
        slope = torch.zeros_like(own) if slope is None else slope  # in this step none depends on what is tuned
        return [c.select(1, 0), (slope * scale.unsqueeze(1)).view(t * k, sets)]

    def scalars(self, rows: Tensor) -> Scalars:
        """The rows of `prepare` by name. shape: (rows, elements or 1) -> (elements,) or () each"""
        rows = rows.squeeze(1) if rows.shape[1] == 1 else rows
        each = rows[: self.rows["jacobian"].start].unbind()
        (count,), values, scale, c = (each[self.rows[n]] for n in Scalars._fields[:-1])
        named, scales = dict(zip(self.order, values, strict=True)), dict(zip(self.names, scale, strict=True))
        return Scalars(count, named, scales, c, rows[self.rows["jacobian"]])

    # ------------------------------------------------------------------- elements

    def differentiate(
        self, scalars: Scalars, function: Function, cotangents: Tensors = (), copy: Map = lambda x: x, more: Tensors = ()
    ) -> tuple[Tensors, Any, list[Tensor | None]]:
        """As `slopes` of ``function(rule, c, *more)``: with respect to what is tuned, all coefficients, and `more`. Without
        `cotangents`, of elements that do not move by themselves, as `jacobians`.

        Args:
            copy: what is differentiated with respect to: the scalars themselves, or a copy of them for each element.
        """
        direct, linked = self.direct, self.linked
        d, k = len(direct), len(direct) + len(linked)

        def step(*x: Tensor) -> tuple[Sequence[Tensor], Any]:
            made = dict(zip(linked, x[d:k], strict=True))
            at = self.rule.at({**scalars.values, **dict(zip(direct, x[:d], strict=True))})
            return function(at, tuple(made.get(i, y) for i, y in enumerate(scalars.c)), *x[k:])

        inputs = [copy(x) for x in (*(scalars.values[n] for n in direct), *(scalars.c[i] for i in linked))]
        taken = slopes(step, [*inputs, *more], cotangents) if cotangents or self.elementwise else jacobians(step, inputs)
        values, second, found = taken
        own, partial = dict(zip(direct, found[:d], strict=True)), dict(zip(linked, found[d:k], strict=True))
        return values, second, [*map(own.get, self.names), *map(partial.get, range(len(scalars.c))), *found[k:]]

    def advance(self, scalars: Scalars, param: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State, list[Tensor]]:
        """One step, and of each of `names` its sensitivity ``dU/dh = dU/dh|c + sum_c dU/dc dc/dh``.

        One reverse pass gives all, where each element moves by itself: it depends on its own copy of the scalars.
        """

        def step(at: Rule, c: tuple[Tensor, ...]) -> tuple[Sequence[Tensor], State]:
            new, new_state = at.update(param, grad, state, c)
            return (new,), new_state

        t, k = len(self.names), len(scalars.c)
        (new,), new_state, found = self.differentiate(
            scalars, step, copy=lambda x: x.expand_as(param) if self.elementwise else x
        )
        terms = {n: [] if x is None else [x * scalars.scale[n]] for n, x in zip(self.names, found[:t], strict=True)}
        for i, n in self.links:
            if (slope := found[t + i]) is not None:
                terms[n].append(slope * scalars.jacobian[self.names.index(n) * k + i])
        add = added if self.rule.normalize and self.elementwise else sum
        return new, new_state, [add(x[1:], x[0]) if x else torch.zeros_like(new) for x in terms.values()]

    def replay(
        self, scalars: Scalars, cotangent: Tensor, param: Tensor, state: State, last: Tensor | None = None
    ) -> list[Tensor | None]:
        """``-<u, dU/d.>`` of the last step, from what it has left behind: with respect to each of `names`, with coefficients
        and averages held, then to each coefficient, and once more where that is the weight of an average, by way of it and
        times 1 less the weight; see `averages`.

        Args:
            scalars: those of that step.
            param, state: after it.
            last: the gradient in it, with its penalty, or None where the state does not depend on what is tuned.

        Returns:
            by element, or the sum over all.
        """
        at: Any = self.rule.at(scalars.values)
        c, t, k, weights = scalars.c, len(self.names), len(scalars.c), self.weights
        before, decay = param, at.decay(c)
        if decay is not None:
            before = torch.where(decay == 0, param, (param + at.displacement(state, c)) / decay)

        def taken(at: Any, c: tuple[Tensor, ...], *held: Tensor) -> tuple[Sequence[Tensor], tuple[()]]:
            moved = at.displacement({**state, **dict(zip(weights, held, strict=True))}, c)
            return (moved,) if (shrunk := at.decay(c)) is None else (moved, shrunk), ()

        cotangents = [cotangent] if decay is None else [cotangent, -(cotangent * before).sum_to_size(decay.shape)]
        found = self.differentiate(scalars, taken, cotangents, more=[state[n] for n in weights])[2]
        averages = {} if last is None else at.averages(last, c)
        through: dict[int, Tensor] = {}
        for (n, i), slope in zip(weights.items(), found[t + k :], strict=True):
            if slope is not None:
                x, _, *other = averages[n]
                slope = ((x * other[0] if other else x) - state[n]) * slope
                through[i] = sum_of(through[i], slope) if i in through else slope
        return [*found[: t + k], *map(through.get, range(k))]

    def read(self, piece: Piece, rows: Tensor, cuts: Sequence[int] = (), spread: Map = lambda x: x) -> Tensor:
        """The sums that the normalization asks for, of the sensitivities of the last step: the first is ``<u, T>``.

        Args:
            piece: of the elements; in the place of the gradient u, the gradient of what is to become smaller by tuning; that of
                the step behind what is kept, where it is another.
            rows: the scalars of the last step, where it is replayed, or of this one as they are expected, where its `metric` is
                needed; of the dtype to work in. shape: (rows, segments)
            cuts: how many elements each part has that is added up by itself; nothing: all are.
            spread: from segments to elements, where there are several. shape: (rows, segments) -> (rows, elements)

        Returns:
            shape: (products, tuned, parts)
        """
        scalars = self.scalars(spread(rows)) if self.replays or self.normalization.metric else None
        (param, u, state, kept), n = piece, len(self.kept)
        kept, (grad,) = kept[:n], kept[n:] or [u]
        u, old = u.to(rows.dtype), dict(zip(self.state, state, strict=True))
        if scalars and self.replays:
            zero = rows.new_zeros(u.shape if cuts else ())
            terms = [zero if x is None else x for x in self.replay(scalars, u, param.to(rows.dtype), old, *kept)]
            return self._chained(totals(terms, cuts), rows)
        metric = self.rule.at(scalars.values).preconditioner(grad.to(u.dtype), old, scalars.t, scalars.c) if scalars else None
        if metric is not None and not self.ours:  # it may be one number, and 0 where there has never been a gradient
            metric = metric.to(u.dtype).clamp_min(torch.finfo(u.dtype).tiny).expand_as(u)
        found = totals([product(u, t, metric) for product in self.normalization.products for t in kept], cuts)
        return found.view(-1, len(self.names), found.shape[1])

    def _chained(self, found: Tensor, last: Tensor) -> Tensor:
        """From what a replay says to hypergradients, by the chain rule."""
        t, k = len(self.names), self.coefficients
        direct, partial, through = found.split([t, k, k])
        if self.weights:
            rest = threshold(1 - last[self.rows["c"]], torch.finfo(last.dtype).eps ** 0.5, math.inf)
            partial = partial + through / rest  # of hardly anything, nothing can be said
        chained = (partial * last[self.rows["jacobian"]].view(t, k, last.shape[1])).sum(1)
        return -torch.addcmul(chained, direct, last[self.rows["scale"]]).unsqueeze(0)

    def move(self, piece: Piece, now: Tensor) -> None:
        """One step in place: of the parameter, its state, and what is kept of it: sensitivities ``T = fading T + dU/dh``.

        Args:
            piece: of the elements; where nothing of them is to be kept, with nothing that is.
            now: the scalars of this step, of the dtype to work in. shape: (rows, elements or 1)
        """
        scalars, (param, grad, state, kept) = self.scalars(now), piece
        places, p, g = dict(zip(self.state, state, strict=True)), param.to(now.dtype), grad.to(now.dtype)
        old = {**places}  # a rule may hand it on with other tensors in it
        if not kept or self.replays or self.follows:
            new, new_state, found = self._moved(scalars, p, g, old, kept)
        else:
            new, new_state, found = self.advance(scalars, p, g, old)
        exact = self.rule.one_step and (self.ours or self.replays)  # others' rules may have a root's slope at 0
        for t, x in zip(kept, found, strict=True):
            x = x if self.rule.one_step else t * self.rule.fading(scalars.t) + x
            t.copy_(x if exact else finite_or_zero(x))  # what is not finite would stay for ever
        pairs = [(t, x) for t, x in ((param, new), *((places[n], x) for n, x in new_state.items())) if x is not t]
        for target, x in [(t, copied(x) if any(x is y for y, _ in pairs) else x) for t, x in pairs]:
            target.copy_(x)  # what is handed on from one to the other was read before it is written

    def _moved(self, scalars: Scalars, p: Tensor, g: Tensor, state: State, kept: Tensors) -> tuple[Tensor, State, Tensors]:
        """One step without its derivative. Its gradient is kept where the replay needs it; else, how far it went."""
        at, c = cast(Any, self.rule.at(scalars.values)), scalars.c
        if not (kept and self.replays):
            new, after = at.update(p, g, state, c)
            return new, after, [new - p] if kept else []
        g = at.gradient(p, g)
        state = at.advance(g, state, c)
        return at.apply(p, state, c), state, [g]


def sum_of(x: Tensor, y: Tensor) -> Tensor:
    """`x` and `y` together, of which the sum over all elements is asked for."""
    return x + y if x.shape == y.shape else x.sum() + y.sum()


def slopes(function: Function, inputs: Tensors, cotangents: Tensors = ()) -> tuple[Tensors, Any, Sequence[Tensor | None]]:
    """The values of ``function(*inputs)``, its second output, and the derivative of the first times `cotangents`, or 1."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        values, second = function(*leaves)
    cotangents = cotangents or [torch.ones_like(x) for x in values]
    pairs = [(x, u) for x, u in zip(values, cotangents, strict=True) if x.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        found = torch.autograd.grad([x for x, _ in pairs], leaves, [u for _, u in pairs], allow_unused=True)
    return [x.detach() for x in values], second, found


@torch.enable_grad()
def jacobians(function: Function, inputs: Tensors) -> tuple[Tensors, Any, Sequence[Tensor | None]]:
    """As `slopes`, of each element: ``u -> (dU/dh)^T u`` is linear, so its derivative with respect to u is ``dU/dh``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    (value,), second = function(*leaves)
    u, takes = torch.zeros_like(value, requires_grad=True), value.requires_grad  # not where none takes part in this shape
    pulled = torch.autograd.grad(value, leaves, u, create_graph=True, allow_unused=True) if takes else [None] * len(leaves)
    known = (x if x is not None and x.requires_grad else None for x in pulled)  # of others it is 0
    found = [x if x is None else torch.autograd.grad(x, u, retain_graph=True, allow_unused=True)[0] for x in known]
    return [value.detach()], second, found
