"""How the arithmetic of a step is run: as it stands, or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


class Engine:
    """Runs functions of tensors.

    Args:
        compile: compile each function with `torch.compile` when it is first called, once for all lengths. Where there is
            no compiler, says so in one warning and goes on without.
    """

    def __init__(self, compile: bool) -> None:
        self.compile = compile
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], dynamic: bool = True) -> Callable[..., Any]:
        """`function` as it is run here.

        Args:
            function: it must be equal to itself when it comes again.
            dynamic: whether the sizes of its tensors vary from call to call.
        """
        if not self.compile:
            return function
        if function not in self._compiled:
            self._compiled[function] = self._guarded(function, dynamic)
        return self._compiled[function]

    def _guarded(self, function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        fast = torch.compile(function, fullgraph=True, dynamic=dynamic)

        def run(*arguments: Any) -> Any:
            if not self.compile:
                return function(*arguments)
            try:
                return fast(*arguments)
            except torch._dynamo.exc.BackendCompilerFailed as error:  # before anything has run, so nothing is done twice
                self.compile = False
                cause = f"{type(error.inner_exception).__name__}: {error.inner_exception}".splitlines()[0]
                warnings.warn(f"compile=True: no working compiler, going on without ({cause})", RuntimeWarning, stacklevel=2)
                return function(*arguments)

        return run
