"""The paper's own code on the seeds and batches of Table 1, to compare with what is stored.

python -m experiments.reference "SGD / Adam(0.1)" [--seeds 3]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from gradient_descent_the_ultimate_optimizer import gdtuo
from rich.console import Console

from .table1 import EPOCH, EPOCHS
from .tasks import Digits

PLAIN: dict[str, Callable[..., Any]] = {
    "SGD": partial(gdtuo.SGD, 1e-2),
    "Adam": partial(gdtuo.Adam, 1e-3),
    "Adam(lr)": partial(gdtuo.AdamBaydin, 1e-3),
    "AdaGrad": partial(gdtuo.AdaGrad, 1e-2),
    "RMSprop": partial(gdtuo.RMSProp, 1e-2),
    "RMSprop(lr)": partial(gdtuo.RMSPropAlpha, 1e-2),
}


def rule(name: str) -> Callable[..., Any]:
    """One of `PLAIN`, with another step size where there is a number in brackets."""
    base, _, lr = name.rstrip(")").partition("(")
    try:
        return PLAIN[name] if name in PLAIN else partial(PLAIN[base].func, float(lr))
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{name}: no such rule; there are {', '.join(PLAIN)}, SGD(0.1), …") from None


def train(stack: str, seed: int, epochs: int, task: Digits) -> tuple[float, float, float]:
    """Returns: the test error, the step size at the end, and the least there was."""
    torch.manual_seed(seed)
    model, optimizer = task.model(), gdtuo.NoOpOptimizer()
    for name in reversed(stack.split(" / ")):
        optimizer = rule(name)(optimizer=optimizer)
    wrapper = gdtuo.ModuleWrapper(model, optimizer=optimizer)
    wrapper.initialize()
    sizes = []
    for step in range(epochs * EPOCH):
        x, y = task.batch(seed, step)
        wrapper.begin()
        loss = torch.nn.functional.cross_entropy(wrapper.forward(x), y)
        wrapper.zero_grad()
        loss.backward()
        wrapper.step()
        sizes.append(optimizer.parameters["alpha"].item())
    wrapper.begin()
    return task.test(model), sizes[-1], min(sizes)


def main(
    stacks: Annotated[list[str], typer.Argument(help="As Table 1 names them: SGD / Adam(0.1)")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Train with the paper's own code, as long as in Table 1. RMSprop's step size is shown as its square root."""
    task, console = Digits(), Console()
    for stack in stacks:
        for seed in range(seeds):
            error, last, least = train(stack, seed, EPOCHS[stack.split("(")[0].split(" ")[0]], task)
            console.print(f"{stack}, seed {seed}: {error:.2f} %; step size at the end {last:.4g}, least {least:.4g}")


if __name__ == "__main__":
    typer.run(main)
