"""One optimizer step, without forward and backward: ours beside torch.optim and the reference implementation.

    python -m benchmarks.step [--quick]

All contestants of a case run in one process, in turn, so that what disturbs the machine disturbs them alike. Prints the
median in ms, its ratio to torch's foreach Adam and the quartiles.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hypergradient import POSITIVE, SGD, Adam, Hyperoptimizer

Step = Callable[[], Any]
FULL = Adam(tune="lr", charts={"lr": POSITIVE}, horizon=100, normalize="cosine") / SGD(lr=0.1)


def mlp() -> list[tuple[int, ...]]:
    """The paper's: 102k elements in 4 tensors."""
    return [(128, 784), (128,), (10, 128), (10,)]


def resnet() -> list[tuple[int, ...]]:
    """ResNet-20: 270k elements in 65 tensors."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    before = 16
    for width in (16, 32, 64):
        for _ in range(3):
            shapes += [(width, before, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            before = width
    return [*shapes, (10, 64), (10,)]


def gpt() -> list[tuple[int, ...]]:
    """The blocks of a GPT, 12 of width 768: 85M elements in 144 tensors."""
    w = 768
    norms = [(w,), (w,)]
    block = [*norms, (3 * w, w), (3 * w,), (w, w), (w,), *norms, (4 * w, w), (4 * w,), (w, 4 * w), (w,)]
    return [shape for _ in range(12) for shape in block]


CASES = {
    "MLP, 4 tensors": mlp,
    "ResNet-20, 65 tensors": resnet,
    "1000 tensors of 100": lambda: [(100,)] * 1000,
    "GPT, 85M": gpt,
}


def parameters(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Random parameters with random gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).mul_(0.02).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).mul_(0.01)
    return params


def reference(shapes: list[tuple[int, ...]], above: Any) -> Step:
    """A step of the reference implementation, and the backward pass through its update that it needs before the next."""
    params = {str(i): p.detach() for i, p in enumerate(parameters(shapes))}
    grads = {n: torch.randn_like(p).mul_(0.01) for n, p in params.items()}
    optimizer = gdtuo.Adam(optimizer=above)

    def step() -> None:
        for p in params.values():
            if not p.requires_grad:
                p.requires_grad_()
        optimizer.begin()
        for p in params.values():
            p.retain_grad()
        optimizer.zero_grad()
        torch.autograd.backward(list(params.values()), [grads[n] for n in params])
        optimizer.step(params)

    return step


def contestants(shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, Step]]:
    """Everybody, with parameters of their own; of a large model those that fit 24 GB together."""
    large = sum(math.prod(shape) for shape in shapes) > 1e7
    for name, options in (("foreach", {"foreach": True}), ("fused", {"fused": True}), ("single tensor", {"foreach": False})):
        yield f"torch Adam, {name}", torch.optim.Adam(parameters(shapes), **options).step
    towers = {
        "Adam (lr) / SGD": Adam(tune="lr") / SGD(lr=1e-5),
        "Adam (lr) / SGD, horizon 100, cosine": FULL,
        "Adam / SGD": Adam() / SGD(lr=1e-5),
    }
    if not large:
        towers["Adam / Adam"] = Adam() / Adam(lr=1e-5)
        towers["Adam / Adam / Adam"] = Adam() / Adam(lr=1e-5) / Adam(lr=1e-8)
        yield "ours, Adam", Hyperoptimizer(parameters(shapes), Adam()).step
        yield "reference, Adam / SGD", reference(shapes, gdtuo.SGD(1e-5))
    for name, tower in towers.items():
        yield f"ours, {name}", Hyperoptimizer(parameters(shapes), tower).step
        yield f"ours compiled, {name}", Hyperoptimizer(parameters(shapes), tower, compile=True).step


def measure(shapes: list[tuple[int, ...]], seconds: float) -> dict[str, list[float]]:
    """Times of single steps in ms, everybody in turn."""
    steps = dict(contestants(shapes))
    for step in steps.values():
        step(), step(), step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["torch Adam, fused"]) < 5:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main() -> None:
    """Run all cases and print them."""
    parser = argparse.ArgumentParser(description="Time one optimizer step.")
    parser.add_argument("--quick", action="store_true", help="two seconds a case, without the large one")
    quick = parser.parse_args().quick
    console = Console()
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    )
    for name, shapes in CASES.items():
        if quick and name.startswith("GPT"):
            continue
        times = measure(shapes(), 2 if quick else 20)
        base = statistics.median(times["torch Adam, foreach"])
        table = Table(
            "contestant", "median ms", "x foreach", "quartiles", title=f"{name}, {len(times['torch Adam, fused'])} runs"
        )
        for who, sample in times.items():
            low, median, high = statistics.quantiles(sample, n=4)
            table.add_row(who, f"{median:.3g}", f"{median / base:.2f}", f"{low:.3g}–{high:.3g}")
        console.print(table)


if __name__ == "__main__":
    main()
