"""How a step alone is timed, memory counted and compiling timed; whole iterations are timed by `experiments.timing`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch
from experiments.timing import Maker, Reference, Run, Time, iterate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from .problems import Shapes


class Bare(nn.Module):
    """Parameters without a model."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        torch.manual_seed(0)
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(0.02 * torch.randn(shape)))


def gradients(shapes: Shapes, device: str = "cpu") -> Iterator[list[Tensor]]:
    """Random gradients without end, new tensors every time, of random sign: so hypergradients have no direction."""
    generator = torch.Generator(device).manual_seed(0)
    first = [0.01 * torch.randn(shape, generator=generator, device=device) for shape in shapes]
    signs = random.Random(0)
    while True:
        sign = signs.choice((-1, 1))
        yield [sign * g for g in first]


def some(grads: Iterator[list[Tensor]], size: int, count: int) -> Iterator[list[Tensor | None]]:
    """The same, but of experts of `size` tensors each only `count` at random have a gradient, others every time."""
    chosen = random.Random(0)
    for given in grads:
        here = chosen.sample(range(len(given) // size), count)
        yield [g if i // size in here else None for i, g in enumerate(given)]


def step_alone(make: Maker, shapes: Shapes, grads: Iterator[Sequence[Tensor | None]], device: str = "cpu") -> Run:
    """A step without forward and backward: `iteration` and `step` are the same.

    The reference implementation makes its hypergradients in the backward pass, so to it `backward` belongs to the step.
    """
    module = Bare(shapes).to(device)
    optimizer = make(module)

    def run() -> Time:
        params, given = zip(*(x for x in zip(module.parameters(), next(grads), strict=True) if x[1] is not None), strict=True)
        time = iterate(module, optimizer, lambda _: torch.autograd.backward(params, given))
        for p in module.parameters():
            p.grad = None  # while the others run
        step = time.iteration if isinstance(optimizer, Reference) else time.step
        return Time(step, step)

    return run


def peak_bytes(make: Maker, shapes: Shapes, iterations: int = 4) -> dict[str, float]:
    """Bytes per parameter beyond the weights, from every allocation and release that torch's CPU allocator reports.

    The backward pass delivers the gradients of all parameters at once, so that its peak holds them twice: as they come in
    and in ``p.grad``. Both peaks hold all that is kept from earlier steps.

    Returns:
        the peaks of the training iteration and of the step in it, and what is kept between iterations without gradients.
    """
    live = 0
    objects: dict[str, Any] = {}

    def traced(call: Callable[[], Any]) -> int:
        """The peak of `live` during `call`; what is released has to have been allocated in such a call too."""
        nonlocal live
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            call()
        events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
        peak = live
        for event in sorted(events, key=lambda e: e.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return peak

    def backward() -> None:
        objects["optimizer"].zero_grad()
        torch.autograd.backward(list(objects["module"].parameters()), next(grads))

    grads = gradients(shapes)
    next(grads)  # the first ones stay; they are not part of a training
    traced(lambda: objects.update(module=Bare(shapes)))
    weights = live
    traced(lambda: objects.update(optimizer=make(objects["module"])))
    iteration = step = 0
    for _ in range(iterations):
        iteration = max(iteration, traced(backward))
        step = max(step, traced(objects["optimizer"].step))
    traced(objects["optimizer"].zero_grad)
    count = sum(shape.numel() for shape in shapes)
    peaks = {"iteration": max(iteration, step), "step": step, "kept": live}
    return {name: (peak - weights) / count for name, peak in peaks.items()}


def first_steps(make: Maker, shapes: Shapes) -> float:
    """Seconds from the construction of an optimizer to the end of its third step."""
    module, grads = Bare(shapes), gradients(shapes)
    start = perf_counter()
    optimizer = make(module)
    for _ in range(3):
        iterate(module, optimizer, lambda module: torch.autograd.backward(list(module.parameters()), next(grads)))
    return perf_counter() - start


def fresh(function: Callable[..., Any], *arguments: Any, cache: str | None = None) -> Any:
    """What `function` returns in a new process, by way of JSON.

    Args:
        arguments: what ``repr`` can write.
        cache: directory of the compiler's cache, in place of the usual one.
    """
    name = function.__name__
    code = f"import json; from {function.__module__} import {name}; print(json.dumps({name}(*{arguments!r})))"
    env = {**os.environ, **({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}{arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cold_and_warm(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """What `fresh` gives with an empty cache of the compiler, and again with the cache that this has filled."""
    with tempfile.TemporaryDirectory() as cache:
        return fresh(function, *arguments, cache=cache), fresh(function, *arguments, cache=cache)
