"""What a hypergradient is divided by: an entry in `NORMALIZATIONS` is all there is to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .numerics import ratio


class Normalization(NamedTuple):
    """How a hypergradient is put together.

    Args:
        products: of gradient u, sensitivity T and `Rule.preconditioner` P of each element, what is added up.
        combine: from these and the derivative of the value with respect to its coordinate (None: 1) to the
            hypergradient in the coordinate. The first sum is ``<u, T>``, the hypergradient in natural units; where there
            are more, the second is the square of u, the last that of T.
        metric: whether P is needed, which is None otherwise, and where the rule has none. What has a metric is also read
            tensor by tensor.
    """

    products: tuple[Callable[[Tensor, Tensor, Tensor | None], Tensor], ...]
    combine: Callable[..., Tensor]
    metric: bool = False


def _plain(product: Tensor, slope: Tensor | None) -> Tensor:
    return product if slope is None else product * slope


def _cosine(product: Tensor, gradient: Tensor, sensitivity: Tensor, slope: Tensor | None) -> Tensor:
    """``<u, T> / (|u| |T|)``; 0 where one of them vanishes."""
    cosine = ratio(product, gradient.sqrt() * sensitivity.sqrt()).clamp(-1, 1)  # beyond it the squares have underflown
    return cosine if slope is None else cosine * slope.sign()


def _metric_cosine(product: Tensor, own: Tensor, usual: Tensor, sensitivity: Tensor, slope: Tensor | None) -> Tensor:
    """That of u / P and T in the metric P. The square of u, and in equal parts that of a gradient of the usual size P: where
    hardly anything is left of the gradient, there is nothing to be said about the step size, and a cosine of u alone would
    say 1.
    """
    return _cosine(product, (own + usual) / 2, sensitivity, slope)


def _product(u: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
    return u * t


def _square(u: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
    return u * u if p is None else u * (u / p)


def _usual(u: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
    """The square of a gradient of the usual size; where there is no metric, see `Level.sized`."""
    return u * u if p is None else p


def _path(u: Tensor, t: Tensor, p: Tensor | None) -> Tensor:
    return t * t if p is None else t * (t * p)


NORMALIZATIONS: dict[str | None, Normalization] = {
    None: Normalization((_product,), _plain),
    "cosine": Normalization((_product, _square, _path), _cosine),
    "metric cosine": Normalization((_product, _square, _usual, _path), _metric_cosine, metric=True),
}
