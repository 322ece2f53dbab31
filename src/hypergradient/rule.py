"""Rules: immutable values whose fields are hyperparameters and whose one job is a pure update.

A rule is a frozen dataclass. It says what its hyperparameters are, what state it keeps, and how a parameter moves:

    init(param) -> state                                      what is remembered of each element
    coefficients(step) -> c                                   arithmetic of hyperparameters alone
    update(param, grad, state, c) -> (param, state)           arithmetic of elements

Inside `coefficients` and `update` every hyperparameter (``self.lr``) is a tensor, so that everything can be
differentiated with respect to it. Both are pure: they return new tensors and change none. That is all a rule needs to be
stacked in towers, checkpointed and differentiated.

For the derivative of a step, ``dU/dh``, an optimizer has to keep one tensor per tuned hyperparameter until the next
gradient arrives. A rule whose state is exponential averages, such as Adam, spares it that: its step can be replayed from
what it has left behind. Such a rule is written as `averages` and `displacement` in the place of `update`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from .charts import REAL, UNIT, Chart, describe, nonnegative, positive, real, unit_interval

if TYPE_CHECKING:
    from .tower import Tower

__all__ = ["Number", "Rule", "State", "hyperparameter", "nonnegative", "positive", "real", "unit_interval"]

Number: TypeAlias = Any
"""A hyperparameter: a float, or on an upper level a dict of floats; a tensor inside `coefficients` and `update`."""
State: TypeAlias = dict[str, Tensor]
"""What a rule remembers: tensors shaped like the parameter."""
Self = TypeVar("Self", bound="Rule")


def hyperparameter(default: float, constraint: Constraint, tuned: bool | None = True) -> Any:
    """A field of a rule that is a number.

    Args:
        default: its default value.
        constraint: what it must satisfy, at construction and ever after.
        tuned: whether the level above moves it by default (a value of 0 means "switched off" and is then left alone,
            unless it is ``lr``); None: it enters `init` only and cannot be tuned.
    """
    return field(default=default, metadata={"constraint": constraint, "tuned": tuned})


def check(owner: str, name: str, value: Any, constraint: Constraint) -> float:
    """`value` as a float. Raises ValueError where it is not a number that satisfies `constraint`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()):
        known = torch.tensor(float(value), dtype=torch.float64)
        if known.isfinite() and constraint.check(known):
            return known.item()
    raise ValueError(f"{owner}: {name}={value!r} is not allowed; it must be {describe(constraint)}")


@dataclass(frozen=True)
class Rule:
    """An update rule and its hyperparameters.

    Every rule has four keyword-only fields that say how its hyperparameters are tuned by a rule above it:

    Args:
        tune: the names of those that are moved. Default: step size and momentum-like coefficients.
        charts: by name, the coordinate in which one is moved. Default: coefficients in (0, 1) by logit (`UNIT`),
            all others as they are (`REAL`).
        horizon: over how many steps a hyperparameter's effect is followed, in steps; at least 1, which is the paper's.
        normalize: None, or ``"cosine"``: the hypergradient in a chart's coordinate is divided by the norms of the
            gradient and of the sensitivity, and so lies in [-1, 1].

    Raises:
        ValueError: a value outside its constraint, an unknown name.
    """

    tune: tuple[str, ...] | None = field(default=None, kw_only=True)
    charts: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    horizon: float = field(default=1, kw_only=True)
    normalize: str | None = field(default=None, kw_only=True)

    off: ClassVar[frozenset[str]] = frozenset()
    """Hyperparameters that are 0 and not tuned, whose terms may be left out; but not of `displacement` and `decay`, for the
    next step replays them, and may have others."""
    in_place: ClassVar[bool] = False
    """Whether parameters and averages are written over; who has an `update` of its own need not know of it."""
    elementwise: ClassVar[bool] = True
    """Whether each element moves by itself; otherwise the rule is run parameter by parameter, in its shape."""

    def init(self, param: Tensor) -> State:
        """The state before the first step."""
        return {}

    def coefficients(self, step: Tensor) -> tuple[Tensor, ...]:
        """Numbers (not truth values) for `update` that depend on hyperparameters and the step count (1, 2, …) alone."""
        return ()

    def update(self, param: Tensor, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        """The parameter and the state after one step; elementwise unless the class says otherwise."""
        state, decay = self.advance(self.gradient(param, grad), state, c), self.decay(c)
        times, less = (Tensor.mul_, Tensor.sub_) if self.in_place else (Tensor.mul, Tensor.sub)
        return less(param if decay is None else times(param, decay), self.displacement(state, c)), state

    # --------------------------------------------- a rule of averages has these in the place of `update`

    def gradient(self, param: Tensor, grad: Tensor) -> Tensor:
        """The gradient with its penalty."""
        return self.penalized(param, grad)

    def averages(self, grad: Tensor, c: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
        """What is averaged over time, and the weight of the new: ``state = (1 - weight) state + weight x``.

        The step can be replayed where every weight that is tuned is one of `c` and the gradient has no penalty.
        """
        return {}

    def advance(self, grad: Tensor, state: State, c: tuple[Tensor, ...]) -> State:
        """The state after one step: its averages, and what follows from them."""
        lerp = Tensor.lerp_ if self.in_place else Tensor.lerp
        new = {n: lerp(state[n], x, weight) for n, (x, weight) in self.averages(grad, c).items()}
        return {**new, **self.follows({n: x for n, x in state.items() if n not in new}, new)}

    def follows(self, others: State, averages: State) -> State:
        """What else is remembered, such as the greatest of all averages: from what that was before and the averages after."""
        return {}

    def displacement(self, state: State, c: tuple[Tensor, ...]) -> Tensor:
        """How far a parameter moves, from the state after the step."""
        raise NotImplementedError

    def decay(self, c: tuple[Tensor, ...]) -> Tensor | None:
        """The factor by which a parameter shrinks before it moves; None: it does not."""
        return None

    # ------------------------- what these two are derived to, in closed form: if a class has them it saves time

    def coefficients_slopes(self, step: Tensor, c: tuple[Tensor, ...]) -> dict[tuple[int, str], Tensor]:
        """``dc[i]/dh`` under ``(i, h)``, where it is not 0 for every value; shaped like a hyperparameter."""
        raise NotImplementedError

    def displacement_slopes(
        self, u: Tensor | float, state: State, c: tuple[Tensor, ...], wanted: Collection[int | str]
    ) -> dict[int | str, Tensor]:
        """``u`` times the derivatives of `displacement`, at least those that are `wanted` and not 0 for every value: under i
        with respect to ``c[i]``, under its name to an average. Hyperparameters must enter it by these alone.
        """
        raise NotImplementedError

    @classmethod
    def closed(cls, name: str) -> bool:
        """Whether there is a closed form for the method `name`: in the class that defines it, or in one derived from that."""
        own = next(c for c in cls.__mro__ if {name, f"{name}_slopes"} & vars(c).keys())
        return own is not Rule and f"{name}_slopes" in vars(own)

    def penalized(self, param: Tensor, grad: Tensor) -> Tensor:
        """The gradient of the loss with its penalty ``weight_decay / 2 |param|^2``."""
        if "weight_decay" in self.off or not hasattr(self, "weight_decay"):
            return grad
        return torch.addcmul(grad, self.weight_decay, param)

    # ------------------------------------------------------------------------------------------------------

    @classmethod
    def accepts(cls, param: Tensor) -> str | None:
        """None, or why this rule cannot move `param` and what to do about it."""
        return None

    @classmethod
    def hyperparameters(cls) -> dict[str, Field[Any]]:
        """The fields that are numbers, by name."""
        return {f.name: f for f in fields(cls) if "constraint" in f.metadata}

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        """The names of those that can be tuned, and can differ between groups."""
        return tuple(n for n, f in cls.hyperparameters().items() if f.metadata["tuned"] is not None)

    @classmethod
    def constraint(cls, name: str) -> Constraint:
        """What the hyperparameter `name` must satisfy."""
        constraint: Constraint = cls.hyperparameters()[name].metadata["constraint"]
        return constraint

    def tuned(self) -> tuple[str, ...]:
        """The names that a rule above moves."""
        if self.tune is not None:
            return tuple(n for n in self.numbers() if n in self.tune)
        marked = [n for n, f in self.hyperparameters().items() if f.metadata["tuned"]]
        return tuple(n for n in marked if n == "lr" or getattr(self, n) != 0)

    def chart(self, name: str) -> Chart:
        """The coordinate in which the hyperparameter `name` is moved."""
        if name in self.charts:
            return Chart.of(self.charts[name])
        value = getattr(self, name)
        inside = all(0 < v < 1 for v in (value.values() if isinstance(value, Mapping) else [value]))
        return UNIT if inside and self.constraint(name) is unit_interval else REAL

    def at(self: Self, values: Mapping[str, Tensor], **options: Any) -> Self:
        """This rule with tensors in the place of its numbers.

        Args:
            options: `off`, `in_place`.
        """
        rule = object.__new__(type(self))
        rule.__dict__.update(self.__dict__, **values, **options)
        return rule

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = Rule.__repr__  # type: ignore[method-assign]  # or the dataclass would make another

    def __truediv__(self, above: Rule | Tower) -> Tower:
        from .tower import Tower

        return Tower((self,)) / above

    def __post_init__(self) -> None:
        owner, known = type(self).__name__, self.hyperparameters()
        if type(self).update is Rule.update and type(self).displacement is Rule.displacement:
            raise TypeError(f"{owner} has no update: a rule has `update`, or `averages` and `displacement`")
        for name in known:
            value = getattr(self, name)
            if isinstance(value, Mapping) and value and known[name].metadata["tuned"] is not None:
                checked: Any = {k: check(owner, f"{name}[{k!r}]", v, self.constraint(name)) for k, v in value.items()}
            else:
                checked = check(owner, name, value, self.constraint(name))
            object.__setattr__(self, name, checked)
        tunable = self.numbers()
        if not isinstance(self.tune, (Iterable, type(None))):
            raise TypeError(f"{owner}: tune={self.tune!r} is not allowed; it must be names of hyperparameters, or None")
        if not isinstance(self.charts, Mapping):
            raise TypeError(f"{owner}: charts={self.charts!r} is not allowed; it must be a dict of charts by name")
        if self.tune is not None:  # one name may stand for itself
            object.__setattr__(self, "tune", (self.tune,) if isinstance(self.tune, str) else tuple(self.tune))
        for argument, names in {"tune": self.tune or (), "charts": self.charts}.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{owner}: {argument}={names!r} names a hyperparameter twice")
            if unknown := [n for n in names if n not in tunable]:
                raise ValueError(
                    f"{owner}: {argument} names {unknown[0]!r}, which is not one of its hyperparameters; "
                    f"allowed: {', '.join(tunable)}"
                )
        object.__setattr__(self, "charts", {n: Chart.of(c) for n, c in self.charts.items()})
        for name in self.tuned():
            self.check_chart(owner, name, getattr(self, name))
        if not (isinstance(self.horizon, (int, float)) and 1 <= self.horizon < math.inf):
            raise ValueError(f"{owner}: horizon={self.horizon!r} is not allowed; it must be a number of steps in [1, inf)")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{owner}: {f.name}={value!r} is not allowed; it must be True or False")
        if self.normalize not in (None, "cosine"):
            raise ValueError(f"{owner}: normalize={self.normalize!r} is not allowed; it must be None or 'cosine'")

    def check_chart(self, owner: str, name: str, value: Any) -> None:
        """Raise ValueError where the chart of the hyperparameter `name` has no place for `value`."""
        for v in value.values() if isinstance(value, Mapping) else [value]:
            if not self.chart(name).holds(v):
                raise ValueError(f"{owner}: the chart {self.chart(name)!r} cannot hold {name}={v!r}; give another in `charts`")

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name), f) for f in sorted(fields(self), key=lambda f: bool(f.kw_only))]
        body = (f"{n}={v!r}" for n, v, f in shown if n == "lr" or v != (f.default if n != "charts" else {}))
        return f"{type(self).__name__}({', '.join(body)})"
