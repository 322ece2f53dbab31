"""Functions of tensors, compiled, and called without what `torch.compile` does before each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPTIONS: dict[str, Any] = {"realize_reads_threshold": 32, "realize_opcount_threshold": 256, "size_asserts": False}
"""What sums are made of, such as a metric, is worked out anew for each: to write it takes longer. Sizes have been looked at."""
MOST = 1 << 12
"""Kinds of inputs that are remembered: of sizes that never come again, there is no end."""


class Compiled:
    """A function, compiled by Inductor, the compiler of `torch.compile`, when it is first called.

    What it does to tensors is written down by calling it with some that have no numbers. `torch.compile` reads its code, which
    takes longer; and to look up what it has compiled takes it four times as long as to run that on a small model.

    Args:
        function: one that depends on nothing else that changes, but for the values of tensors.
        form: its arguments, without the tensors; see `taken_apart`.
        dynamic: whether the sizes of the tensors vary from call to call; None: perhaps, found out when they do.
    """

    def __init__(self, function: Callable[..., Any], form: Any, dynamic: bool | None) -> None:
        self._function, self._dynamic = of_tensors(function, form), dynamic
        self.made, self._known = list[Program](), dict[Any, Program]()

    def program(self, tensors: Sequence[Tensor]) -> Program | None:
        """What has been compiled for such `tensors`, to be called with them."""
        if (looks := _looks(tensors)) in self._known:
            return self._known[looks]
        if found := next((program for program in self.made if program.serves(tensors, looks[0])), None):
            if len(self._known) == MOST:
                self._known.clear()
            self._known[looks] = found
        return found

    def compile(self, tensors: Sequence[Tensor]) -> Program:
        """Compile it for such `tensors`. Raises what stands in the way; nothing has been done to them."""
        with _session():
            self.made.append(Program(self._function, tensors, bool(self.made) if self._dynamic is None else self._dynamic))
        return self.made[-1]


class Program:
    """What a function does to tensors, compiled.

    Args:
        function: of tensors alone.
        tensors: such as it is made for.
        varies: whether it is for other sizes, too.
    """

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor], varies: bool) -> None:
        from torch._inductor.compile_fx import compile_fx
        from torch.fx.experimental.proxy_tensor import make_fx

        self._kinds, *_ = _looks(tensors)
        self._first = sorted({k for k, *_ in self._kinds})  # where each of the tensors is for the first time

        def flat(*inputs: Tensor) -> list[Tensor]:
            leaves = list[Tensor]()
            with _Unread(), _Safe():
                self._form = taken_apart(function(*[inputs[self._first.index(k)] for k, *_ in self._kinds]), leaves)
            return leaves

        trace = make_fx(flat, tracing_mode="symbolic" if varies else "fake", _allow_non_fake_inputs=True)
        graph = trace(*[tensors[i].data for i in self._first])  # a view would bring along what it is a view of
        vars(graph).pop("shape_env", None)  # with that the compiler cannot keep what it makes of it
        self._inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        self._known, mode = _lifted(graph), self._inputs[0].fake_mode
        known = [mode.from_tensor(x.data, static_shapes=True) for x in self._known]
        with torch._guards.tracing(torch._guards.TracingContext(mode)):
            self._run: Any = compile_fx(graph, [*self._inputs, *known], config_patches=OPTIONS)

    def serves(self, tensors: Sequence[Tensor], kinds: Any) -> bool:
        """Whether it is for `tensors` of these kinds."""
        shapes, given = self._inputs[0].fake_mode.shape_env, [tensors[i] for i in self._first]
        return kinds == self._kinds and bool(shapes.evaluate_guards_for_args(self._inputs, given, ignore_static=False))

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        return put_together(self._form, iter(self._run(*[tensors[i] for i in self._first], *self._known)))


@contextmanager
def _session() -> Iterator[None]:
    """What `torch.compile` does around its work: other threads wait, and know, and the caches of the compiler can count."""
    from torch._dynamo.convert_frame import compile_lock
    from torch._dynamo.utils import dynamo_timed, get_metrics_context

    known, timed = getattr(torch.compiler, "_compile_session_context", nullcontext), dynamo_timed  # the first not in torch 2.6
    with compile_lock, known(), get_metrics_context(), timed("hypergradient", log_pt2_compile_event=True):
        yield


class _Safe(TorchDispatchMode):
    """Refuses what would be done, and not only written down; and to read what is known of the numbers of a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and not types:
            raise RuntimeError(f"{func} writes to a tensor that is none of the arguments")
        if isinstance(found := func(*args, **(kwargs or {})), (bool, int, float)):
            raise RuntimeError(f"{func} reads a tensor that is none of the arguments")
        return found


class _Unread(TorchFunctionMode):
    """The same, of what is no operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            raise RuntimeError("tolist reads the numbers of a tensor")
        return func(*args, **(kwargs or {}))


def _lifted(graph: Any) -> list[Tensor]:
    """The tensors that a function knew, which become inputs, as they may change; not those that it has made of numbers."""
    known, made = list[Tensor](), (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)
    held = [n for n in graph.graph.nodes if n.op == "get_attr" and not all(user.target in made for user in n.users)]
    last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
    for name in dict.fromkeys(node.target for node in held):
        known.append(getattr(graph, name))
        delattr(graph, name)  # it would be an input twice
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(name)
        for node in (n for n in held if n.target == name):
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    graph.recompile()
    return known


def _looks(tensors: Sequence[Tensor]) -> Any:
    """What a program is chosen by: which of `tensors` are the same, and of which kind; and their sizes."""
    first = dict[int, int]()
    kinds = tuple([(first.setdefault(id(x), i), x.ndim, x.dtype, x.device) for i, x in enumerate(tensors)])
    return kinds, *[(x.shape, x.stride()) for x in tensors]


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


def of_tensors(function: Callable[..., Any], form: Any) -> Callable[..., Any]:
    """`function` of the tensors alone that are in its arguments."""
    return lambda *tensors: function(*put_together(form, iter(tensors)))
