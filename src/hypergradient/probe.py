"""What is found out about a rule before its first step, by steps of two elements on the host."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .averages import Averages
from .charts import POSITIVE, UNIT
from .normalize import NORMALIZATIONS
from .numerics import on_host, storage
from .rule import Age, Rule, State, each

STEPS = 2.0, 1.0, 1000.0
"""The numbers of the steps in which a rule is looked at."""
RESERVED = "step", "numbers", "training"
"""Names that the state of a rule cannot have, besides those that begin with `KEPT` or "level "."""
KEPT = "last_"
"""How the names begin under which is remembered what is kept of the last step."""
_found: dict[Any, bool] = {}


def remembered(rule: Rule) -> tuple[str, ...]:
    """The names of what `rule` remembers. TypeError where it is not shaped like the parameter, ValueError for a taken name."""
    owner, like = type(rule).__name__, torch.zeros((1, 1))
    for name, x in (state := _mapping(rule, "init", rule.init(like))).items():
        if not isinstance(x, Tensor) or x.shape != like.shape:
            raise TypeError(
                f"{owner}: the state {name!r} is {x!r}; it must be shaped like the parameter: torch.zeros_like(param); "
                "one number of all, where elementwise = False: param.new_zeros((1,) * param.ndim)"
            )
        if not isinstance(name, str) or name in RESERVED or name.startswith((KEPT, "level ")):
            raise ValueError(
                f"{owner}: the state {name!r} has a name that is kept for the optimizer ({', '.join(RESERVED)}, and all that "
                f"begin with {KEPT!r} or 'level '), or that is no string"
            )
    return tuple(state)


def begun(rule: Rule, names: Sequence[str], param: Tensor) -> State:
    """What is remembered of `param` before its first step. ValueError where that has not these `names`."""
    if (state := rule.init(param)).keys() != {*names}:
        raise ValueError(
            f"{type(rule).__name__}: init returns a state of {sorted(state)} for a parameter of shape {tuple(param.shape)}, of "
            f"{sorted(names)} for one of (1, 1); it must have the same names for every shape, also where one is not used"
        )
    return state


def sums(rule: Rule) -> tuple[str, ...]:
    """The names of the numbers that `rule` adds up."""
    with on_host():
        one = torch.ones((), dtype=torch.float64)
        return tuple(rule.at(dict.fromkeys(rule.hyperparameters(), one)).summed(one))


def prepared(rule: Any, step: Tensor, before: Mapping[str, Tensor]) -> tuple[Any, tuple[Any, ...], dict[str, Tensor]]:
    """`rule` with its sums, its coefficients, and these sums, after the step number `step`; `before`: the sums before it."""
    sums = sums_after(rule, step, before)
    at = rule.at(sums) if sums else rule
    c = _several(rule, "coefficients", at.coefficients(step), "(x,), also of a single one")
    return at, tuple(x if isinstance(x, Tensor) else step.new_tensor(x) for x in c), sums


def sums_after(rule: Rule, step: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums of `rule` after the step number `step`, from those `before` it; what is not there is 0."""
    return {n: before.get(n, 0.0) + x for n, x in rule.at(before).summed(step).items()}


class Unlike(ValueError):
    """A rule does not do what every rule does."""


UNFIT = RuntimeError, IndexError, ValueError, AssertionError
"""What a rule raises that needs another shape than the one it is looked at in."""


def once(ask: Callable[[Rule], bool]) -> Callable[[Rule], bool]:
    """`ask` once of a class, its normalization and its settings."""

    @wraps(ask)
    def known(rule: Rule) -> bool:
        kind = ask, type(rule), rule.normalize, *(getattr(rule, n) for n in rule.settings())
        if kind not in _found:
            with on_host(), torch.no_grad():
                _found[kind] = ask(rule)
        return _found[kind]

    return known


@once
def elementwise(rule: Rule) -> bool:
    """Whether each element moves by itself: together, in whatever shape, they move as they do apart."""
    return rule.elementwise and _moves_apart(rule)


PARAMS = 0.7, -30.0, 4e-3, 8.0
GRADS = (
    ((50.0, -2e-3, 1e-6, 1e9), (-1e2, -4e-3, 2e-6, -2e9), (1e2, 6e-3, -3e-6, -3e9), (1.0, 2.0, 3.0, 4.0)),
    ((0.0, 1e-15, 1e20, 1.0), (1.0, 0.0, -1e-15, 1e20), (math.inf, 1.0, 2.0, math.nan), (0.0, 0.0, 1.0, 1.0)),
)
"""Elements and their gradients in some steps: of all sizes, with other signs in other steps, and what is not finite."""
SHAPES = (4,), (2, 2), (2, 1, 1, 2)
"""Of vectors, matrices, and kernels of a convolution."""
ASKED = {
    *(getattr(Tensor, n) for n in ("size", "dim", "ndimension", "numel", "nelement", "stride", "__len__")),
    *(getattr(Tensor, n).__get__ for n in ("shape", "ndim")),
    torch.numel,
}
"""By what a rule asks for a shape: it may do one thing from some size on."""


OTHERS = "to", "type_as", "new_tensor", "new_zeros", "new_ones", "new_full", "new_empty", "unbind"
MADE_LIKE = {getattr(Tensor, n) for n in OTHERS}
"""What makes other tensors, not of the elements that it is given."""


NUMBERS = "bool", "int", "float", "complex", "index", "array", "contains", "format", "repr"
VALUES = "item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "nonzero"
READ = {getattr(Tensor, n) for n in (*(f"__{n}__" for n in NUMBERS), *VALUES)}
READ |= {getattr(torch, n) for n in VALUES[3:]}
"""By what a number is read, as `if` does."""


class Asks(TorchFunctionMode):
    """Notes whether a shape is asked for, or fewer numbers are made of all elements: perhaps for a step to come."""

    found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, least = function(*args, **(kwargs or {})), len(PARAMS)
        sizes = [[x.numel() for x in tree_leaves(y) if isinstance(x, Tensor)] for y in ((args, kwargs), made)]
        fewer = max(sizes[0], default=0) >= least > min(sizes[1], default=least)
        self.found |= function in ASKED or (fewer and function not in MADE_LIKE)
        return made


def _moves_apart(rule: Rule) -> bool:
    """With its values, and with others and every term: what is switched off now may be on in another group."""
    remembered(rule)
    params = torch.tensor(PARAMS, dtype=torch.float64)
    own = {n: torch.tensor(next(each(getattr(rule, n))), dtype=torch.float64) for n in rule.hyperparameters()}

    def walk(param: Tensor, grads: Tensor, given: Mapping[str, Any]) -> Tensor:
        at, state, sums, metrics = rule.at(given), rule.init(param), dict[str, Tensor](), list[Tensor]()
        for count, grad in zip((1.0, 2.0, 3.0, 1000.0), grads, strict=True):
            at, c, sums = prepared(at, params.new_tensor(count), sums)
            with asks if param.numel() > 1 else nullcontext():
                usual = _usual(at, grad.view_as(param), state, params.new_tensor(count), c)
                param, state = updated(at, param, grad.view_as(param), _apart(state), c)
            metrics += [usual] if isinstance(usual, Tensor) else []
        return torch.stack([x.expand_as(param).flatten() for x in (param, *state.values(), *metrics)])

    def alike(given: Mapping[str, Any], grads: Tensor) -> bool:
        apart = torch.cat([walk(p, g, given) for p, g in zip(params.split(1), grads.split(1, dim=1), strict=True)], dim=1)
        together = (walk(params.view(shape), grads, given) for shape in SHAPES)
        return all(torch.allclose(x, apart, rtol=1e-9, atol=0, equal_nan=True) for x in together)

    asks, values = Asks(), (own, {**dict.fromkeys(own, params.new_tensor(0.5)), "off": frozenset()})
    try:
        return all(alike(given, params.new_tensor(grads)) for given in values for grads in GRADS) and not asks.found
    except Unlike:
        raise
    except UNFIT:
        return False


def _usual(at: Rule, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor | None:
    """`Rule.preconditioner` where it is asked for."""
    return at.preconditioner(grad, _apart(state), step, c) if NORMALIZATIONS[at.normalize].metric else None


def updated(at: Rule, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
    """`Rule.update`. Raises TypeError or ValueError where it writes to what it is given, or returns something else."""
    owner, given = type(at).__name__, {"the parameter": param, "the gradient": grad}
    given |= {f"the state {n!r}": x for n, x in state.items()}
    versions = [x._version for x in given.values()]
    found = _several(at, "update", at.update(param, grad, {**state}, c), "new_param, new_state")
    for (name, x), version in zip(given.items(), versions, strict=True):
        if x._version != version:
            raise TypeError(f"{owner}.update writes to {name}; it must return new tensors: x + y, not x.add_(y) or x += y")
    if len(found) != 2 or not isinstance(found[0], Tensor):
        raise TypeError(f"{owner}.update returns {found!r}; it must return a tuple: new_param, new_state")
    if _mapping(at, "update", found[1]).keys() != state.keys():
        raise Unlike(f"{owner}: init returns a state of {sorted(state)}, update one of {sorted(found[1])}")
    for name, x in found[1].items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{owner}.update returns the state {name!r} as {x!r}; it must be a tensor like the one it is given")
    _check_views(owner, given, {"the parameter": found[0]} | {f"the state {n!r}": x for n, x in found[1].items()})
    return found[0], found[1]


def _apart(state: State) -> State:
    """Each in memory of its own, as in a step."""
    return {n: x.clone() for n, x in state.items()}


def _check_views(owner: str, given: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> None:
    """Raise TypeError where something is made that changes when something else is written to. (A gradient is not.)"""
    pairs = ((n, m, x, y) for n, x in made.items() for m, y in given.items() if m != "the gradient" and x is not y)
    for name, of, x, y in pairs:
        same = name == of and x.storage_offset() == y.storage_offset() and x.is_contiguous()
        if storage(x) == storage(y) and not same:
            raise TypeError(f"{owner}.update returns {name} as a view of {of}, which is written to: .clone() it")


def _several(rule: Rule, method: str, found: Any, instead: str) -> Any:
    """What a method has returned. Raises TypeError where that is not several things."""
    if not isinstance(found, (tuple, list)):
        what = "a tensor" if isinstance(found, Tensor) else repr(found)
        raise TypeError(f"{type(rule).__name__}.{method} returns {what}; it must return a tuple: {instead}")
    return found


def _mapping(rule: Rule, method: str, found: Any) -> Any:
    """What a method has returned of a state. Raises TypeError where that is no dict."""
    if not isinstance(found, Mapping):
        raise TypeError(f"{type(rule).__name__}.{method} returns the state {found!r}; it must be a dict of tensors")
    return found


NUMBER = "takes the value of", "torch.sqrt(x) for math.sqrt(x), x - lr * y for x.sub(y, alpha=lr), no float(lr), no lr.item()"
READS = {"ambiguous": ("branches on", "torch.where in the place of `if`"), "converted to": NUMBER, "must be Number": NUMBER}
"""By what an error says: what a rule does with the value of a hyperparameter, and what to write."""


@on_host()
def branches(rule: Rule, names: Sequence[str], above: bool = False) -> None:
    """Raise TypeError where a step asks for the value of what is tuned: there may be one for each element. On a level that
    moves several hyperparameters, where it is `above`, there is a number of the step for each of these, too.
    """
    values = {n: torch.tensor([0.4, 0.6] if n in names else [0.5], dtype=torch.float64) for n in rule.hyperparameters()}
    at, param = rule.at(values), torch.ones(2, dtype=torch.float64)
    try:
        at, c, _ = prepared(at, param if above else param.sum(), {})
        at.update(param, param, rule.init(param), c)
    except (RuntimeError, TypeError, ValueError) as error:
        if not (said := [words for words in READS if words in str(error)]):
            raise
        (does, write), owner = READS[said[0]], type(rule).__name__
        what = f"a hyperparameter that is tuned, {' or '.join(names)}: write {write}, or leave it out of tune"
        if above:
            what = f"the number of the step, or a hyperparameter, of which there are several above others: write {write}"
        raise TypeError(f"{owner} {does} {what}") from error


def check_multiplier(rule: Rule) -> None:
    """Raise ValueError where a first step does not go twice as far with twice of what multiplies all that moves a parameter."""
    name, half = str(rule.multiplier), torch.tensor(0.5, dtype=torch.float64)
    values = {n: next(each(getattr(rule, n))) for n in rule.hyperparameters()}
    own = {n: half.new_tensor(x if x or n in rule.off else 0.5) for n, x in values.items()}  # a group may have another
    param = half.new_ones(2, 2)

    def moved(x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)  # of the host alone
        at, c, _ = prepared(rule.at({**own, name: x}), 2 * half, {})
        return updated(at, param, param.clone(), _apart(rule.init(param)), c)[0] - param

    once, twice = half, half.new_tensor(math.nan)
    with suppress(*UNFIT), torch.random.fork_rng(devices=()):
        once, twice = moved(half / 2), moved(half)
    if twice.isfinite().all() and not torch.allclose(twice, 2 * once, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"{type(rule).__name__}: multiplier={name!r} does not multiply all that moves a parameter: with twice of it a "
            f"first step goes {(twice.norm() / once.norm()).item():.3g} times as far. Write multiplier = None: {name} is tuned "
            "without it"
        )


def reached(rule: Rule, names: Sequence[str], count: float, held: bool = False) -> set[str]:
    """Which of `names` have a derivative in the step number `count`; with coefficients `held`, other than by way of them."""
    (at, c), one = example(rule, names, count), torch.ones((2, 2), dtype=torch.float64)
    moved, after = updated(at, one, one.clone(), _apart(rule.init(one)), tuple(x.detach() for x in c) if held else c)
    return _depends([x for x in (moved, *after.values()) if x.requires_grad], at, names)


def metric(rule: Rule) -> bool:
    """Whether `rule` has a preconditioner. TypeError where that is no tensor."""
    if type(rule).preconditioner is Rule.preconditioner:
        return False
    found: Any = (one := torch.ones((2, 2), dtype=torch.float64))
    with suppress(*UNFIT), on_host(), torch.no_grad():
        at, c = example(rule, ())
        found = at.preconditioner(one, rule.init(one), one.sum() / 2, c)
    if found is not None and not isinstance(found, Tensor):
        raise TypeError(f"{type(rule).__name__}.preconditioner returns {found!r}; it must return a tensor like grad, or None")
    return found is not None


def warn_of_idle(rule: Rule, names: Sequence[str]) -> None:
    """Say which of `names` have no derivative in any of some steps, so that nothing would ever move them."""
    if ours(rule) or switches(rule):
        return
    found = {*names}
    with suppress(*UNFIT), on_host(), torch.enable_grad():
        found = set().union(*(reached(rule, names, count) for count in STEPS))
    if left := [n for n in names if n not in found]:
        warnings.warn(
            f"{type(rule).__name__}: no step depends on {' or '.join(left)}, which is tuned, and so stays as it is. Is it used "
            "under torch.no_grad, detached, or read by .item()? If it has no effect, leave it out of tune",
            RuntimeWarning,
            stacklevel=2,
        )


def rehearse(rule: Rule, p: Tensor, param: Tensor, state: State) -> None:
    """Make a step of `p` along a gradient of 0 that nobody sees, of a rule that needs its shape; `param`: its elements.

    Raises:
        ValueError: `rule` does not accept it; another shape comes out, or another state; besides what `rule` itself raises.
    """
    if (why := rule.accepts(p)) is not None:
        raise ValueError(f"a parameter has shape {tuple(p.shape)}: {why}")
    at = rule.at({n: param.new_tensor(next(each(getattr(rule, n)))) for n in rule.hyperparameters()})
    with torch.random.fork_rng([param.device] if param.is_cuda else []):  # it may draw
        at, c, _ = prepared(at, param.new_ones(()), {})
        moved, after = updated(at, param.clone(), torch.zeros_like(param), _apart(state), c)
    results = {"param": moved, **after}, {"param": param, **state}
    shapes, expected = ({n: tuple(x.shape) for n, x in found.items()} for found in results)
    if shapes != expected:
        raise ValueError(f"{type(rule).__name__}: update returns {shapes}; init and the parameter have {expected}")


def ours(rule: Rule) -> bool:
    """Whether `rule` is one of this package, in charts of torch.distributions."""
    mine = type(rule).__module__.startswith(f"{__package__}.")
    return mine and all(_plain(rule.chart(n).transform) for n in rule.tuned())


def _plain(transform: Any) -> bool:
    parts = getattr(transform, "parts", ())
    known = type(transform).__module__ == "torch.distributions.transforms"
    return known and all(map(_plain, parts)) and not any(isinstance(x, Tensor) for x in vars(transform).values())


def example(rule: Rule, names: Sequence[str], count: float = 2.0) -> tuple[Any, tuple[Tensor, ...]]:
    """`rule` with values for step number `count`, of which `names` are tuned, and the coefficients made of them."""
    one = torch.ones((), dtype=torch.float64)
    values = {n: (one / 2).requires_grad_(n in names) for n in rule.hyperparameters()}
    at, c, _ = prepared(rule.at(values), count * one, {})
    if wrong := [x for x in c if x.dtype == torch.bool or x.numel() != 1]:
        raise TypeError(
            f"{type(rule).__name__}.coefficients returns {wrong[0]!r}; each must be one number: return step, compare in update"
        )
    return at, c


def _depends(made: Sequence[Tensor], at: Rule, names: Sequence[str]) -> set[str]:
    """On which of `names` depends what was `made` with the values of `at`."""
    asked, ones = [getattr(at, n) for n in names], list(map(torch.ones_like, made))
    found = torch.autograd.grad(made, asked, ones, allow_unused=True, retain_graph=True) if made and names else []
    return {n for n, slope in zip(names, found, strict=False) if slope is not None}


@once
def switches(rule: Rule) -> bool:
    """Whether a step reads its number, by `if` perhaps, so that other steps may do other things."""

    class Count(Tensor):
        """The number of a step, and all that is made of it."""

        read = False

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Count.read |= function in READ
            return super().__torch_function__(function, types, args, kwargs)

    one = torch.ones((2, 2), dtype=torch.float64)
    given = {**dict.fromkeys(rule.hyperparameters(), one[0, 0] / 2), "off": frozenset()}
    with suppress(Exception):  # what is wrong is told elsewhere
        step = (2 * one[0, 0]).as_subclass(Count)
        at, c, _ = prepared(rule.at(given), step, {})
        _usual(at, one, rule.init(one), step, c)
        at.update(one, one.clone(), _apart(rule.init(one)), c)
    return Count.read


def links(rule: Rule, names: Sequence[str]) -> list[tuple[int, str]]:
    """Which coefficient depends on which of `names`, in any of some steps; where a rule `switches`, any on any."""
    if switches(rule):
        return [(i, n) for i in range(len(example(rule, names)[1])) for n in names]
    each = (example(rule, names, count) for count in STEPS)
    links = {(i, n) for at, c in each for i, x in enumerate(c) if x.requires_grad for n in _depends([x], at, names)}
    return sorted(links, key=lambda link: (link[0], names.index(link[1])))


def keeps(rule: Rule, names: Sequence[str], at: Any, c: tuple[Tensor, ...]) -> tuple[str, dict[str, int]]:
    """What has to be kept of a step until its hypergradient is read: "sensitivity", "movement", "gradient" or "nothing".

    Returns:
        that; and for a replay, of which averages the weight depends on what is tuned: which coefficient it is.
    """
    unbounded = isinstance(rule.horizon, Age) or rule.horizon == math.inf
    if unbounded and (*names,) == (rule.multiplier,) and rule.chart(names[0]) == POSITIVE:  # over the whole run
        return "movement", {}
    made = isinstance(rule, Averages) and all(getattr(type(rule), n) is getattr(Averages, n) for n in MADE)
    weights = _weights(rule, at, c) if made and names and rule.one_step and not rule.normalize else None
    if not weights:
        return "sensitivity" if weights is None else "nothing", {}
    undone = all(rule.chart(n) == UNIT for i, n in links(rule, names) if i in weights.values())
    return ("gradient", weights) if undone else ("sensitivity", {})


def _weights(rule: Rule, at: Any, c: tuple[Tensor, ...]) -> dict[str, int] | None:
    """See `keeps`; None where the state depends on what is tuned otherwise."""
    one = torch.ones((1, 1), dtype=torch.float64)
    averages = at.averages(gradient := at.gradient(one, one), c)
    others = {n: x for n, x in rule.init(one).items() if n not in averages}
    handed = [n for n, x in at.follows(others, dict.fromkeys(averages, one)).items() if x is others.get(n)]
    if handed or switches(rule) or _draws(at, rule.init(one), c):  # what it was is not known afterwards
        return None
    tuned = {n: w for n, (_, w, *_) in averages.items() if isinstance(w, Tensor) and w.requires_grad}
    weights = {n: i for n, w in tuned.items() for i, x in enumerate(c) if w is x}
    if any(x.requires_grad for x in at.advance(gradient, rule.init(one), c).values()):
        fixed = not any(x.requires_grad for x, _, *other in averages.values() for x in (x, *other))
        plain = averages.keys() == rule.init(one).keys() and weights.keys() == tuned.keys() != set()
        if not (plain and fixed) or at.follows({}, dict.fromkeys(averages, one)):
            return None
    return weights


def _draws(at: Any, state: State, c: tuple[Tensor, ...]) -> bool:
    """Whether random numbers take part in how far a rule of averages moves."""
    before = torch.default_generator.get_state()
    at.displacement(state, c)
    return not torch.equal(torch.default_generator.get_state(), before)


MADE = "update", "advance", "average", "apply", "summed"
"""What makes a step of averages one, made of these alone."""
