"""Functions of tensors, compiled, and called without what the compiler does before each call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from .numerics import storage

_count = itertools.count()

OPTIONS: dict[str, Any] = {"realize_reads_threshold": 32, "realize_opcount_threshold": 256, "size_asserts": False}
"""What sums are made of, such as a metric, is worked out anew for each: to write it takes longer. Sizes have been looked at."""
MOST = 1 << 12
"""Kinds of inputs that are remembered: of sizes that never come again, there is no end."""


class Compiled:
    """A function, compiled by `torch.compile` when it is first called.

    To look up what it has compiled, and to check whether it may be used, takes the compiler four times as long as to run it on
    a small model. So a program is called by itself where tensors look as they did when the compiler chose it.

    Args:
        function: one that depends on nothing else that changes, but for the values of tensors.
        form: its arguments, without the tensors; see `taken_apart`.
        dynamic: whether the sizes of the tensors vary from call to call; None: perhaps, found out when they do.
    """

    def __init__(self, function: Callable[..., Any], form: Any, dynamic: bool | None) -> None:
        flat = of_tensors(function, form)
        # The compiler keeps what it has compiled with the code object. Since it checks nothing but tensors before it uses that
        # again, no two functions may share one. By its name it remembers which sizes vary: those of another do not.
        name = f"{function.__name__}_{next(_count)}"
        own = FunctionType(flat.__code__.replace(co_name=name), flat.__globals__, name, None, flat.__closure__)
        options: Any = {"guard_filter_fn": _tensors} if torch.__version__ >= "2.9" else None
        self._function = torch.compile(own, fullgraph=True, dynamic=dynamic, backend=self._backend, options=options)
        self._programs: dict[Any, Callable[..., Any] | None] = {}
        self._ran: list[tuple[Callable[..., Any], Sequence[Any], Sequence[Any]]] = []

    def program(self, tensors: Sequence[Tensor]) -> Callable[..., Any] | None:
        """What has been compiled for such `tensors`, to be called with them in the place of this, which looks for it."""
        return self._programs.get(_looks(tensors))

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if program := self.program(tensors):
            return program(tensors)
        if len(self._programs) == MOST:
            self._programs.clear()
        try:
            found = self._function(*tensors)
            self._programs[_looks(tensors)] = self._program(tensors, found)
        finally:
            self._ran.clear()
        return found

    def _backend(self, graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
        """That of torch, which notes what it runs."""
        inductor: Any = torch._dynamo.lookup_backend("inductor")
        program = inductor(graph, inputs, **options, config_patches=OPTIONS)

        def noted(*given: Any) -> Any:
            made = program(*given)
            self._ran.append((program, given, made))
            return made

        return noted

    def _program(self, tensors: Sequence[Tensor], found: Any) -> Callable[..., Any] | None:
        """What has just been run, and returned `found`, to be called by itself; None where that is not all that was done."""
        leaves = list[Tensor]()
        form = taken_apart(found, leaves)
        if len(self._ran) != 1:
            return None
        ((program, given, made),) = self._ran
        own = set(map(id, tensors))
        others = [x for x in given if id(x) not in own]  # sizes, and what the function knew
        places = {id(x): i for i, x in enumerate((*tensors, *others))}
        results = {id(x): i for i, x in enumerate(made)}
        mine, theirs = ({storage(x) for x in some if isinstance(x, Tensor)} for some in (tensors, others))
        if mine & theirs or not all(id(x) in results for x in leaves):
            return None
        order, back = [places[id(x)] for x in given], [results[id(x)] for x in leaves]

        def alone(tensors: Sequence[Tensor]) -> Any:
            known = *tensors, *others
            made = program(*[known[i] for i in order])
            return put_together(form, iter([made[i] for i in back]))

        return alone


def _looks(tensors: Sequence[Tensor]) -> Any:
    """What the compiler chooses by: which of `tensors` are the same, and how each looks."""
    first = dict[int, int]()
    return tensors[0].device, *[(first.setdefault(id(x), i), x.shape, x.stride(), x.dtype) for i, x in enumerate(tensors)]


def taken_apart(x: Any, tensors: list[Tensor]) -> Any:
    """`x` without its tensors, which go to `tensors`: for a function of tensors alone is called in half the time."""
    if isinstance(x, tuple):
        return tuple([taken_apart(y, tensors) for y in x])
    if isinstance(x, list):  # of tensors alone
        tensors += x
        return (Tensor,) * len(x)
    if isinstance(x, Tensor):
        tensors.append(x)
        return Tensor
    return x


def put_together(form: Any, tensors: Iterator[Tensor]) -> Any:
    """What has been taken apart, with these `tensors`."""
    if form is Tensor:
        return next(tensors)
    return [put_together(y, tensors) for y in form] if isinstance(form, tuple) else form


def of_tensors(function: Callable[..., Any], form: Any) -> FunctionType:
    """`function` of the tensors alone that are in its arguments."""

    def flat(*tensors: Tensor) -> Any:
        return function(*put_together(form, iter(tensors)))

    return cast(FunctionType, flat)


def _tensors(guards: Sequence[Any]) -> list[bool]:
    """Which of its checks before each call the compiler needs: those of what tensors look like, and which are
    the same. All else stays as it is. (Torch 2.8 fails with it where an attribute is not there, and before there was none.)
    """
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV", "DUPLICATE_INPUT") for guard in guards]
