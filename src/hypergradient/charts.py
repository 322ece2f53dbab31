"""Charts: the coordinate in which a hyperparameter is moved.

A hyperparameter has a *value* in natural units and a *raw* coordinate in which the level above moves it,
``value = unit * transform(raw)``. The transforms and the constraints are those of `torch.distributions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, transforms
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from .numerics import REACH, on_host


def interval(constraint: Constraint, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest number of `dtype` that satisfy `constraint`, and elements can be computed with."""
    info, most = torch.finfo(dtype), REACH.max / 4
    low, high = getattr(constraint, "lower_bound", -most), getattr(constraint, "upper_bound", most)
    low += 0.0 if constraint.check(low) else max(REACH.tiny, abs(low) * info.eps)
    high -= 0.0 if constraint.check(high) else max(info.tiny, abs(high) * info.eps)
    return float(low), float(high)


def describe(constraint: Constraint) -> str:
    """`constraint` in the words of an error message: ``a finite number in [0, 1)``."""
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if low is None:
        return "a finite number"
    left = "[" if constraint.check(low) else "("
    right = ", inf)" if high is None else f", {high:g}]" if constraint.check(high) else f", {high:g})"
    return f"a finite number in {left}{low:g}{right}"


@dataclass(frozen=True)
class Chart:
    """A coordinate for a hyperparameter.

    Args:
        transform: an invertible elementwise transform, raw coordinate to value.
        relative: measure values in units of the initial one, so that the raw coordinate starts where
            ``transform(raw) = 1`` and a value that starts at 0 stays 0.
        name: what `repr` prints.
    """

    transform: Transform
    relative: bool = False
    name: str = ""

    @classmethod
    def of(cls, chart: Chart | Transform) -> Chart:
        """`chart` itself, or a transform of `torch.distributions` as a chart."""
        if isinstance(chart, Chart):
            return chart
        if isinstance(chart, Transform) and chart.bijective and chart.domain.event_dim == 0:
            return cls(chart)
        raise TypeError(
            f"charts: {chart!r} is not a chart; allowed: REAL, POSITIVE, UNIT, "
            "an elementwise bijective torch.distributions transform"
        )

    def __repr__(self) -> str:
        if self.name:
            return self.name
        return f"Chart({_spell(self.transform)}, relative=True)" if self.relative else _spell(self.transform)

    def holds(self, value: float) -> bool:
        """Whether some raw coordinate stands for `value`. Raises TypeError for a transform without some of its methods."""
        with on_host():
            number = torch.tensor(value, dtype=torch.float64)
            try:
                raw = self.raw(number)
                back, _ = self.unit(number) * self.transform(raw), self.slope(raw)
            except NotImplementedError as error:
                need = "_call, _inverse, log_abs_det_jacobian, and sign, which is 1 or -1"
                raise TypeError(f"charts: {self!r} lacks a method; a transform of one's own has {need}") from error
            return torch.allclose(back, number, rtol=1e-6, atol=0.0)

    def unit(self, value: Tensor) -> Tensor:
        """What values are measured in. shape: that of `value`"""
        return value if self.relative else torch.ones_like(value)

    def raw(self, value: Tensor) -> Tensor:
        """The coordinate at which a hyperparameter starts. shape: that of `value`"""
        return cast(Tensor, self.transform.inv(torch.ones_like(value) if self.relative else value))

    def slope(self, raw: Tensor) -> Tensor:
        """The derivative of the transform. shape: that of `raw`"""
        value: Tensor = self.transform(raw)
        if isinstance(self.transform, transforms.SigmoidTransform):
            return value * (1 - value)
        return cast(Tensor, self.transform.log_abs_det_jacobian(raw, value).exp() * self.transform.sign)

    def bounds(self, constraint: Constraint, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the raw coordinate: beyond them the value leaves `constraint` or is too large or small for elements.

        Shape of both: that of `unit`.
        """
        most, ends = torch.finfo(unit.dtype).max / 4, []
        for side, end in zip((-1, 1), interval(constraint, unit.dtype), strict=True):
            raw = self.transform.inv((torch.full_like(unit, end) / unit).clamp(-most, most))
            if end == 0:  # where the coordinate never reaches it (log 0): stop at the last number before
                last = self.transform.inv(torch.full_like(unit, REACH.tiny))
                raw = torch.where(raw.isfinite(), raw, last)
            ends.append(torch.where(raw.isnan(), side * 4 * most * unit.sign() * self.transform.sign, raw))
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        return torch.where(low.isfinite(), low, -4 * most), torch.where(high.isfinite(), high, 4 * most)


class Charts:
    """The charts of many hyperparameters, side by side.

    Attributes:
        kinds: those whose coordinate is not the value itself, and which of them all they are. shape: (n,)
    """

    def __init__(self, each: Sequence[Chart], device: torch.device) -> None:
        others = [chart for chart in each if chart.relative or chart.transform is not transforms.identity_transform]
        kinds = [chart for i, chart in enumerate(others) if others.index(chart) == i]
        self.kinds = [(kind, torch.tensor([chart == kind for chart in each], device=device)) for kind in kinds]
        self.relative = any(chart.relative for chart in each)

    def values(self, raw: Tensor, unit: Tensor) -> Tensor:
        """From coordinates, and what values are measured in. shape of all: (n,)"""
        value = raw
        for chart, here in self.kinds:
            value = torch.where(here, chart.transform(raw), value)
        return value * unit if self.relative else value

    def slope(self, raw: Tensor, unit: Tensor) -> Tensor | None:
        """The derivative of `values` with respect to the coordinates; None where it is 1. shape of all: (n,)"""
        if not self.kinds:
            return None
        slope = torch.ones_like(raw)
        for chart, here in self.kinds:
            slope = torch.where(here, chart.slope(raw), slope)
        return slope * unit if self.relative else slope


def _spell(transform: Transform) -> str:
    """`transform` with its arguments, which its own `repr` leaves out."""
    if isinstance(transform, transforms.ComposeTransform):
        return f"ComposeTransform([{', '.join(map(_spell, transform.parts))}])"
    if isinstance(transform, transforms._InverseTransform):
        return f"{_spell(transform.inv)}.inv"
    given = inspect.signature(type(transform)).parameters  # not what a transform has computed and kept since, as `sign`
    said = (f"{n}={text}" for n, x in vars(transform).items() if n in given and (text := _argument(x)))
    return f"{type(transform).__name__}({', '.join(said)})"


def _argument(x: Any) -> str:
    if isinstance(x, Distribution):
        return f"{type(x).__name__}({', '.join(f'{n}={_argument(getattr(x, n))}' for n in x.arg_constraints)})"
    x = x.tolist() if isinstance(x, Tensor) else x
    return repr(x) if isinstance(x, (int, float, list)) else ""


REAL = Chart(transforms.identity_transform, name="REAL")
POSITIVE = Chart(transforms.ExpTransform(), relative=True, name="POSITIVE")
UNIT = Chart(transforms.SigmoidTransform(), name="UNIT")
