"""The paper's own code on the seeds and batches of the experiments, to compare with what is stored.

python -m experiments.reference "SGD / Adam(0.1)" [--seeds 3]                                         Table 1
python -m experiments.reference "SGD(1) / SGD(1)" --seeds 1                                           Figure 4a
python -m experiments.reference "SGD(1, 0.9) / SGD(alpha=1e-3, mu=1e-5)" --task cifar10 --steps 40     Figure 2
python -m experiments.reference "Adam(1e-4) / SGD(alpha=1e-6, beta1=1e-4, beta2=2e-4)" --task text     Figure 3
python -m experiments.reference "SGD(1e-4, 0.9) / SGD(1e-2) / SGD(1e-4)" --task cifar10 --steps 60     Figure 4c
python -m experiments.reference "Adam(1e-7) / SGD(1e-5) / SGD(1e-7)" --task text --steps 3000         Figure 4d
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import typer
from gradient_descent_the_ultimate_optimizer import gdtuo
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_

from .models import CharLSTM
from .table1 import EPOCH, EPOCHS
from .tasks import TASKS, Task

PLAIN: dict[str, Callable[..., Any]] = {
    "SGD": partial(gdtuo.SGD, 1e-2),
    "Adam": partial(gdtuo.Adam, 1e-3),
    "Adam(lr)": partial(gdtuo.AdamBaydin, 1e-3),
    "AdaGrad": partial(gdtuo.AdaGrad, 1e-2),
    "RMSprop": partial(gdtuo.RMSProp, 1e-2),
    "RMSprop(lr)": partial(gdtuo.RMSPropAlpha, 1e-2),
}


def rule(name: str) -> Callable[..., Any]:
    """One of `PLAIN`, with other numbers where there are some in brackets: the step size, SGD's momentum; or SGD with a step
    size for each that it moves.
    """
    base, _, given = name.rstrip(")").partition("(")
    try:
        if base == "SGD" and "=" in given:
            pairs = [pair.split("=") for pair in given.replace(" ", "").split(",")]
            return partial(gdtuo.SGDPerParam, [(of, float(lr)) for of, lr in pairs])
        return PLAIN[name] if name in PLAIN else partial(PLAIN[base].func, *map(float, given.split(",")))
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{name}: no such rule; there are {', '.join(PLAIN)}, SGD(0.1), …") from None


class Unrolled(nn.Module):
    """A `CharLSTM` step by step, with its weights: that code cannot train a `torch.nn.LSTM`."""

    def __init__(self, model: CharLSTM) -> None:
        super().__init__()
        self.embedding, self.head, self.layers = model.embedding, model.head, model.lstm.num_layers
        for name, weight in model.lstm.named_parameters():
            self.register_parameter(name, weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, sequence) to (batch, sequence, vocabulary)."""
        x = self.embedding(x)
        for layer in range(self.layers):
            w, r, b, c = (getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            h = memory = x.new_zeros(len(x), r.shape[1])
            steps = []
            for at in (x @ w.T + b + c).unbind(1):
                into, keep, new, out = (at + h @ r.T).chunk(4, -1)
                memory = keep.sigmoid() * memory + into.sigmoid() * new.tanh()
                h = out.sigmoid() * memory.tanh()
                steps.append(h)
            x = torch.stack(steps, dim=1)
        return self.head(x)


def train(stack: str, seed: int, steps: int, task: Task, weight_decay: float = 0.0) -> tuple[float, list[float]]:
    """Train with that code; where gradients are clipped, its hypergradients are those before, ours those after.

    It knows no weight decay: that is added to the gradients that a step takes.

    Returns: the test, and the step size of each step.
    """
    torch.manual_seed(seed)
    model, optimizer = task.model(), gdtuo.NoOpOptimizer()
    if isinstance(model, CharLSTM):
        model = Unrolled(model)
    for name in reversed(stack.split(" / ")):
        optimizer = rule(name)(optimizer=optimizer)
    wrapper = gdtuo.ModuleWrapper(model, optimizer=optimizer)
    wrapper.initialize()
    sizes = []
    for step in range(steps):
        wrapper.begin()
        loss = task.loss(model, task.batch(seed, step))
        wrapper.zero_grad()
        loss.backward()
        if task.clip < float("inf"):
            clip_grad_value_([p for _, p in model.named_parameters()], task.clip)
        for _, p in model.named_parameters():
            p.grad.add_(p.detach(), alpha=weight_decay)
        wrapper.step()
        sizes.append(optimizer.parameters["alpha"].item())
    wrapper.begin()
    return task.test(model), sizes


def main(
    stacks: Annotated[list[str], typer.Argument(help="As Table 1 names them: SGD / Adam(0.1)")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    task: Annotated[str, typer.Option(help="mnist, cifar10 or text")] = "mnist",
    weight_decay: Annotated[float, typer.Option(min=0, help="As Figure 4c has it: 1e-4")] = 0.0,
    steps: Annotated[int | None, typer.Option(min=1, help="As long as in Table 1, if not given")] = None,
) -> None:
    """Train with the paper's own code. RMSprop's step size is shown as its square root."""
    if task not in TASKS:
        raise typer.BadParameter(f"--task {task}: no such task; there are {', '.join(TASKS)}")
    what, console = TASKS[task].make("cpu"), Console()
    assert what is not None
    for stack in stacks:
        for seed in range(seeds):
            test, sizes = train(stack, seed, steps or EPOCHS[stack.split("(")[0].split(" ")[0]] * EPOCH, what, weight_decay)
            told = f"step size at the end {sizes[-1]:.4g}, from {min(sizes):.4g} to {max(sizes):.4g}"
            console.print(f"{stack}, seed {seed}: {test:.2f}; {told}")


if __name__ == "__main__":
    typer.run(main)
