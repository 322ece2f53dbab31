"""Rules: immutable values whose fields are hyperparameters and whose one job is a pure update.

A rule is a frozen dataclass. It says what its hyperparameters are, what state it keeps, and how a parameter moves:

    init(param) -> state                                      what is remembered of each element
    coefficients(step) -> c                                   arithmetic of hyperparameters alone
    update(param, grad, state, c) -> (param, state)           arithmetic of elements

Inside `coefficients` and `update` every hyperparameter (``self.lr``) is a tensor, so that everything can be
differentiated with respect to it. Both are pure: they return new tensors and change none. That is all a rule needs to be
stacked in towers, checkpointed and differentiated. One whose state is exponential averages is better written as
`averages.Averages`, which spares the memory of its derivatives.
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache, cached_property
from inspect import Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from .charts import REAL, UNIT, Chart, describe
from .normalize import NORMALIZATIONS

if TYPE_CHECKING:
    from .tower import Tower

Number: TypeAlias = Any
"""A hyperparameter: a float, or on an upper level a dict of floats; a tensor inside `coefficients` and `update`."""
State: TypeAlias = dict[str, Tensor]
"""What a rule remembers: tensors shaped like the parameter."""
Self = TypeVar("Self", bound="Rule")

real = constraints.real
nonnegative = constraints.nonnegative
positive = constraints.positive
unit_interval = constraints.half_open_interval(0.0, 1.0)
closed_unit_interval = constraints.interval(0.0, 1.0)


class OpenUnitInterval(type(unit_interval)):  # type: ignore[misc]
    """The numbers between 0 and 1, without both."""

    def check(self, value: Any) -> Any:
        return (value > 0) & super().check(value)


open_unit_interval = OpenUnitInterval(0.0, 1.0)


@dataclass(frozen=True)
class Age:
    """A horizon in proportion to the age of the run: after t steps, `times` t steps, and at least 1.

    Raises:
        ValueError: `times` is no positive number.
    """

    times: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", check("Age", "times", self.times, positive))

    def __repr__(self) -> str:
        return f"Age({repr(self.times).removesuffix('.0')})"


GROUP = "params", "param_names", "rule", "betas", "maximize", "learned"
"""What the dict of a group holds besides what its rule is made of."""


def hyperparameter(default: float, constraint: Constraint, tuned: bool | None = True) -> Any:
    """A field of a rule that is a number.

    Args:
        default: its default value.
        constraint: what it must satisfy, at construction and ever after.
        tuned: whether the level above moves it by default: True (a value of 0 means "switched off" and is then left alone,
            unless it is ``lr``); False; or None: it enters `init` only and cannot be tuned.

    Raises:
        TypeError: `constraint` is none.
    """
    if not isinstance(constraint, Constraint):
        raise TypeError(
            f"hyperparameter: constraint={constraint!r} is not allowed; it must be real, nonnegative, positive, unit_interval, "
            "closed_unit_interval, open_unit_interval, or one of torch.distributions.constraints"
        )
    return field(default=default, metadata={"constraint": constraint, "tuned": tuned})


def hides(cls: type[Rule], field: Field[Any]) -> bool:
    """Whether a field of `cls` hides what is no field of its bases, and nothing that a class says of itself."""
    if field.name in {f.name for f in fields(Rule)} | {"elementwise", "points", "multiplier"}:
        return "constraint" in field.metadata
    bases = (base for base in cls.__mro__[1:] if field.name not in getattr(base, "__dataclass_fields__", ()))
    return hasattr(Rule, field.name) or any(callable(getattr(base, field.name, None)) for base in bases)


def check(owner: str, name: str, value: Any, constraint: Constraint) -> float:
    """`value` as a float. Raises ValueError where it is not a number that satisfies `constraint`."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        known = float(value)
        if math.isfinite(known) and constraint.check(known):
            return known
    more = f"; it would be read once: write a number, and change group[{name!r}]" if isinstance(value, Tensor) else ""
    raise ValueError(f"{owner}: {name}={value!r} is not allowed; it must be {describe(constraint)}{more}")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Raise ValueError where `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: {name}={value!r} is not allowed; it must be True or False")


class Notation(type):
    """The class of rule classes: says what to write where an operation or an argument is not one of a rule's."""

    def __truediv__(cls, above: Any) -> Any:
        raise TypeError(f"{cls.__name__} is a class; a tower is made of rules: write {cls.__name__}() / …")

    __rtruediv__ = __truediv__

    @property
    def __signature__(cls) -> Signature:
        """The arguments, for `help` and editors, in the place of those of `__call__`."""
        own = signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:], return_annotation=cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A rule. Raises TypeError where the class is no dataclass or an argument is unknown."""
        if "__dataclass_fields__" not in vars(cls) and any(isinstance(x, Field) for x in vars(cls).values()):
            raise TypeError(f"{cls.__name__} has fields but is no dataclass: write @dataclass(frozen=True) above the class")
        if args and isinstance(args[0], (Iterator, list)):
            raise TypeError(
                f"{cls.__name__} is a rule, which is given no parameters: write Hyperoptimizer(params, {cls.__name__}())"
            )
        known = [f.name for f in sorted(fields(cls), key=lambda f: bool(f.kw_only))]  # type: ignore[arg-type]
        if taken := [n for n in known if n in GROUP or n.removeprefix("initial_") in {*known} - {n}]:
            hint = ": write beta1, beta2, …, each a hyperparameter" if taken[0] == "betas" else ""
            raise TypeError(f"{cls.__name__} has a field {taken[0]!r}, a name that is kept for the dict of a group{hint}")
        if taken := [f.name for f in fields(cls) if hides(cls, f)]:  # type: ignore[arg-type]
            raise TypeError(f"{cls.__name__} has a field {taken[0]!r}, a name that is kept for every rule")
        if unknown := [n for n in kwargs if n not in known]:
            hint = "betas=(b1, b2) is written beta1=b1, beta2=b2; " if unknown[0] == "betas" and "beta1" in known else ""
            raise TypeError(f"{cls.__name__} has no argument {unknown[0]!r}; {hint}allowed: {', '.join(known)}")
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Rule(metaclass=Notation):
    """An update rule and its hyperparameters.

    Every rule has five keyword-only fields that say how its hyperparameters are tuned by a rule above it:

    Args:
        tune: the names of those that are moved. Default: step size and momentum-like coefficients.
        charts: by name, the coordinate in which one is moved. Default: coefficients in (0, 1) by logit (`UNIT`),
            all others as they are (`REAL`).
        horizon: over how many steps a hyperparameter's effect is followed; at least 1, the default and the paper's;
            ``math.inf``: over the whole run; ``Age(4)``: over four times the age of the run.
        normalize: None (default), or ``"cosine"``: the hypergradient in a chart's coordinate is divided by the norms of the
            gradient and of the sensitivity, and so lies in [-1, 1]; ``"metric cosine"``: of both in the metric
            of `preconditioner`, at first as a mean over tensors; of a rule that has none, divided also by the size of
            recent gradients (on levels above the weights the same as ``"cosine"``).
        sample: of a large parameter, hypergradients are read off one in so many elements, or fewer. Default 1: off all.

    Raises:
        ValueError: a value outside its constraint, an unknown name.
        TypeError: an unknown argument.
    """

    tune: tuple[str, ...] | None = field(default=None, kw_only=True)
    charts: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    horizon: float | Age = field(default=1, kw_only=True)
    normalize: str | None = field(default=None, kw_only=True)
    sample: int = field(default=1, kw_only=True)

    off: ClassVar[frozenset[str]] = frozenset()
    """Hyperparameters that are 0 and that nothing tunes; see `uses`."""
    _held: ClassVar[tuple[str, ...]] = ()
    """The names of all that it has, of one that `at` has made: not every compiler can ask for them."""
    elementwise: ClassVar[bool] = True
    """Whether each element moves by itself; otherwise the rule is run parameter by parameter, in its shape."""
    points: ClassVar[tuple[str, ...]] = ()
    """The names of states that are values of the parameter, such as one that is averaged: where others write to the parameter,
    they follow."""
    multiplier: ClassVar[str | None] = None
    """The hyperparameter that multiplies all that moves a parameter. A whole run under it, times 1 + x, goes 1 + x times as
    far along the same gradients: the sensitivity to its logarithm is the movement itself, and nothing need be derived."""

    def init(self, param: Tensor) -> State:
        """What is remembered of `param` before the first step: tensors shaped like it, by name."""
        return {}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        """Numbers (not truth values) for `update` that depend on hyperparameters and the step count (1, 2, …) alone.

        They are computed in double precision, so that ``1 - beta`` belongs here.
        """
        return ()

    def summed(self, step: Tensor) -> dict[str, Tensor]:
        """By name, numbers that are added up over the steps, for each parameter. The sum has that name: ``self.weight_sum``;
        here without this step's, in `coefficients` with it. A class that looks at it here says what it is at first.
        """
        return {}

    @abstractmethod
    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        """`param` and `state` after a step along `grad`, elementwise unless the class says otherwise; `c`: `coefficients`."""
        raise NotImplementedError

    def preconditioner(self, grad: Tensor, state: State, step: Tensor, c: tuple[Tensor, ...]) -> Tensor | None:
        """By what each element of the gradient is divided: the size that it usually has, `grad` included; at least 0, shaped
        like `grad` or one for all. None: a rule that has none, or one that has none with its settings.

        Args:
            state: that before a step along `grad`.
            step: the number of that step, from 1; `c`: its coefficients.
        """
        return None

    def evaluated(self, param: Tensor, state: State) -> Tensor:
        """What `param` is to be evaluated with, from its `state`: for a rule that averages, the average."""
        return param

    def trained(self, average: Tensor, state: State) -> Tensor:
        """The inverse of `evaluated`: the parameter, from its `average` and `state`."""
        return average

    def uses(self, name: str) -> bool:
        """Whether there is a term of the hyperparameter `name`: not where that is 0 and untuned, for 0 * inf is not 0."""
        if not hasattr(self, name):
            raise TypeError(f"{type(self).__name__}: uses({name!r}) names none of {', '.join(self.hyperparameters())}")
        return name not in self.off

    def penalized(self, param: Tensor, grad: Tensor) -> Tensor:
        """`grad`, that of the loss at `param`, with the gradient of its penalty ``weight_decay / 2 |param|^2``."""
        own: Any = self
        decays = hasattr(self, "weight_decay") and self.uses("weight_decay")
        return torch.addcmul(grad, own.weight_decay, param) if decays else grad

    @classmethod
    def accepts(cls, param: Tensor) -> str | None:
        """None, or why this rule cannot move `param` and what to do about it."""
        return None

    # ------------------------------------------------------------- its fields

    @classmethod
    @cache  # asked in every step
    def hyperparameters(cls) -> dict[str, Field[Any]]:
        """The fields that are numbers, by name."""
        return {f.name: f for f in fields(cls) if "constraint" in f.metadata}

    @classmethod
    @cache  # asked in every step
    def tunable(cls) -> tuple[str, ...]:
        """The names of those that can be tuned."""
        return tuple(n for n, f in cls.hyperparameters().items() if f.metadata["tuned"] is not None)

    @classmethod
    @cache  # asked in every step
    def settings(cls) -> tuple[str, ...]:
        """The names of all that cannot be tuned and has no number to be moved: flags, and what enters `init` only."""
        options = {f.name for f in fields(Rule)}
        return tuple(f.name for f in fields(cls) if f.name not in options and f.name not in cls.tunable())

    @classmethod
    def constraint(cls, name: str) -> Constraint:
        return cast(Constraint, cls.hyperparameters()[name].metadata["constraint"])

    def tuned(self) -> tuple[str, ...]:
        """The names that a rule above moves."""
        if self.tune is not None:
            return tuple(n for n in self.tunable() if n in self.tune)
        marked = [n for n, f in self.hyperparameters().items() if f.metadata["tuned"]]
        return tuple(n for n in marked if n == "lr" or getattr(self, n) != 0)

    @property
    def one_step(self) -> bool:
        """Whether the effect of a hyperparameter is followed over a single step."""
        return not isinstance(self.horizon, Age) and self.horizon == 1  # no old compiler compares an `Age` with a number

    def fading(self, step: Tensor | float) -> Any:
        """What is left of a sensitivity after the step number `step`."""
        if isinstance(self.horizon, Age):
            left = 1 - 1 / (self.horizon.times * step)
            return left.clamp_min(0) if isinstance(left, Tensor) else max(left, 0.0)
        return 1 - 1 / self.horizon

    def chart(self, name: str) -> Chart:
        """The coordinate in which the hyperparameter `name` is moved."""
        if name in self.charts:
            return Chart.of(self.charts[name])
        inside = all(0 < v < 1 for v in each(getattr(self, name)))
        return UNIT if inside and self.constraint(name) in (unit_interval, closed_unit_interval, open_unit_interval) else REAL

    def at(self: Self, values: Mapping[str, Any]) -> Self:
        """This rule with `values`, tensors above all, in the place of its own."""
        rule = object.__new__(type(self))
        held = self._held or dict.fromkeys((*vars(self), *(f.name for f in fields(self))))  # some may be in slots
        names = *(n for n in held if n not in values and not isinstance(getattr(type(self), n, None), cached_property)), *values
        for n in names:
            object.__setattr__(rule, n, values[n] if n in values else getattr(self, n))
        object.__setattr__(rule, "_held", names)
        return rule

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Rule.__repr__  # type: ignore[method-assign]  # or the dataclass would make another

    if TYPE_CHECKING:  # tower.py gives it

        def __truediv__(self, above: Rule | Tower) -> Tower: ...

    # ------------------------------------------------------------- validation

    def __post_init__(self) -> None:
        needed = {n: getattr(type(self), n, None) for n in ("update", "averages", "displacement")}
        if missing := [n for n, method in needed.items() if getattr(method, "__isabstractmethod__", False)]:
            name = type(self).__name__
            raise TypeError(f"{name} has no {missing[0]}: a rule has `update`, one of `Averages` `averages` and `displacement`")
        self._check_values()
        self._check_options()
        for name in self.tuned():
            self.check_chart(type(self).__name__, name, getattr(self, name))

    def _check_values(self) -> None:
        """Raise ValueError for a number or a flag that is not allowed; keep numbers as floats."""
        owner = type(self).__name__
        for name, f in self.hyperparameters().items():
            value, constraint = getattr(self, name), self.constraint(name)
            if isinstance(value, Mapping) and value and f.metadata["tuned"] is not None:
                checked: Any = {k: check(owner, f"{name}[{k!r}]", v, constraint) for k, v in value.items()}
            else:
                checked = check(owner, name, value, constraint)
            object.__setattr__(self, name, checked)
        for f in fields(self):
            if isinstance(f.default, bool):
                check_flag(owner, f.name, getattr(self, f.name))
        for name, x in ((n, getattr(self, n)) for n in self.settings()):
            if isinstance(x, Tensor) or getattr(type(x), "__hash__", None) is None:
                raise TypeError(f"{owner}: {name}={x!r} is not allowed; it must be hashable, such as a tuple, and no tensor")

    def _check_options(self) -> None:
        """Raise ValueError or TypeError for an option of tuning that is not allowed; keep names as a tuple."""
        owner = type(self).__name__
        for name, (allowed, words) in ALLOWED.items():
            if not allowed(getattr(self, name)):
                error = TypeError if name in ("tune", "charts") else ValueError
                raise error(f"{owner}: {name}={getattr(self, name)!r} is not allowed; it must be {words}")
        if self.tune is not None:  # one name may stand for itself
            object.__setattr__(self, "tune", (self.tune,) if isinstance(self.tune, str) else tuple(self.tune))
            if len(set(self.tune)) < len(self.tune):
                raise ValueError(f"{owner}: tune={self.tune!r} names a hyperparameter twice")
        for argument, names in {"tune": self.tune or (), "charts": self.charts}.items():
            if unknown := [n for n in names if n not in self.tunable()]:
                raise ValueError(
                    f"{owner}: {argument} names {unknown[0]!r}, which is not one of its hyperparameters; "
                    f"allowed: {', '.join(self.tunable())}"
                )
        if self.multiplier is not None and self.multiplier not in self.tunable():
            raise ValueError(
                f"{owner}: multiplier={self.multiplier!r} is not one of its hyperparameters: {', '.join(self.tunable())}"
            )
        object.__setattr__(self, "charts", {n: Chart.of(c) for n, c in self.charts.items()})

    def check_chart(self, owner: str, name: str, value: Any) -> None:
        """Raise ValueError where the chart of the hyperparameter `name` has no place for `value`."""
        for v in each(value):
            if not self.chart(name).holds(v):
                raise ValueError(f"{owner}: the chart {self.chart(name)!r} cannot hold {name}={v!r}; give another in `charts`")

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name), f) for f in sorted(fields(self), key=lambda f: bool(f.kw_only))]
        body = (
            f"{n}={'math.inf' if v == math.inf else repr(v)}"
            for n, v, f in shown
            if n == "lr" or v != (f.default if n != "charts" else {})
        )
        return f"{type(self).__name__}({', '.join(body)})"


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tune": (lambda x: isinstance(x, (Iterable, type(None))), "names of hyperparameters, or None"),
    "charts": (lambda x: isinstance(x, Mapping), "a dict of charts by name"),
    "horizon": (
        lambda x: isinstance(x, Age) or (isinstance(x, (int, float)) and x is not True and x >= 1),
        "a number of steps in [1, inf], or Age",
    ),
    "normalize": (lambda x: x in list(NORMALIZATIONS), " or ".join(map(repr, NORMALIZATIONS))),
    "sample": (lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1, "an integer of at least 1"),
}
"""What the options of every rule may be: a test, and the words for it."""


def each(value: Any) -> Iterator[float]:
    """The values of a hyperparameter: of a dict all, else the one."""
    yield from value.values() if isinstance(value, Mapping) else (value,)
