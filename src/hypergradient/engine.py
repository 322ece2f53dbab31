"""How the arithmetic of a step is run: as it stands, or compiled."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

_count = itertools.count()


class Engine:
    """Runs functions of tensors.

    Args:
        compile: compile each function with `torch.compile` when it is first called, once for all lengths. Where there is
            no compiler, says so in one warning and goes on without.
    """

    def __init__(self, compile: bool) -> None:
        self.compile = compile
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any, dynamic: bool | None = True) -> Any:
        """``function(*arguments)``.

        Args:
            function: one that depends on nothing else that changes, but for the values of tensors.
            arguments: tensors, lists of them, and whatever stays the same from call to call.
            dynamic: whether the sizes of the tensors vary from call to call; None: perhaps, found out when they do.
        """
        if not self.compile:
            return function(*arguments)
        tensors: list[Tensor] = []
        form = _form(arguments, tensors)
        if (function, form) not in self._compiled:
            self._compiled[function, form] = _compiled(function, form, dynamic)
        try:
            return self._compiled[function, form](*tensors)
        except (torch._dynamo.exc.BackendCompilerFailed, torch._dynamo.exc.Unsupported) as error:
            self.compile = False  # before anything has run, so nothing is done twice
            inner = getattr(error, "inner_exception", error)
            cause = f"{type(inner).__name__}: {inner}".splitlines()[0]
            warnings.warn(f"compile=True: no working compiler, going on without ({cause})", RuntimeWarning, stacklevel=2)
            return function(*arguments)


def _form(x: Any, tensors: list[Tensor]) -> Any:
    """`x` without its tensors, which go to `tensors`: for a function of tensors alone is called in half the time."""
    if isinstance(x, Tensor):
        return tensors.append(x)
    return tuple([_form(y, tensors) for y in x]) if isinstance(x, (list, tuple)) else x


def _filled(form: Any, tensors: Iterator[Tensor]) -> Any:
    """What `_form` has taken apart."""
    if form is None:
        return next(tensors)
    return [_filled(y, tensors) for y in form] if isinstance(form, tuple) else form


def _compiled(function: Callable[..., Any], form: Any, dynamic: bool | None) -> Callable[..., Any]:
    def flat(*tensors: Tensor) -> Any:
        return function(*_filled(form, iter(tensors)))

    # The compiler keeps what it has compiled with the code object. Since it checks nothing but tensors before it uses that
    # again, no two functions may share one. By its name it remembers which sizes vary: those of another optimizer do not.
    name = f"{function.__name__}_{next(_count)}"
    own = FunctionType(flat.__code__.replace(co_name=name), flat.__globals__, name, None, flat.__closure__)
    options: dict[str, Any] | None = (
        {"guard_filter_fn": _tensors} if hasattr(torch.compiler, "keep_tensor_guards_unsafe") else None
    )
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=dynamic, options=options)
    return compiled


def _tensors(guards: Sequence[Any]) -> list[bool]:
    """Which of its checks before each call the compiler needs: those of what tensors look like, and which are
    the same. All else stays as it is, and checking it takes longer than a small step. (In torch since 2.8.)
    """
    return [guard.guard_type in ("TENSOR_MATCH", "SHAPE_ENV", "DUPLICATE_INPUT") for guard in guards]
