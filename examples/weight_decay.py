"""A weight decay tuned on a validation loss, and what becomes of it when the training loss tunes it.

    python -m examples.weight_decay [--quick] [--seeds 3] [--steps 600] [--right] [--out demo/weight_decay.png]

Few handwritten digits, a fifth of their labels wrong: a small network learns them by heart unless its weights decay.
From several starts the weight decay is tuned on the loss of a second split, and on the training loss itself; beside that
stands a grid of fixed values, of which the second split chooses the best. All are judged on a third split, with the right
labels, which nothing else looks at. Prints a table, saves a picture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hypergradient import POSITIVE, SGD, Hyperoptimizer, Rule, Tower

STARTS = (1e-5, 1e-3, 1e-1)
GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WRONG = 0.2
"""Of so many labels is the truth not asked: a random one stands in its place."""
OUT = Path("demo/weight_decay.png")
OBJECTIVES = {"validation": "#0072B2", "training": "#D55E00"}


class Split(NamedTuple):
    """Images, shape (samples, 64), pixels in [0, 1]; labels, shape (samples,)."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """What the weights are trained on, what the weight decay is tuned or chosen on, what all are judged on."""

    training: Split
    validation: Split
    test: Split


class Result(NamedTuple):
    """A training: the weight decay in force after 0, 1, 2, … steps; losses, and the test error in percent, at its end."""

    path: list[float]
    validation: float
    test: float
    error: float


def digits(seed: int, right: bool = False) -> Splits:
    """200 images to train on, 400 for validation, 1197 to test on, at random.

    Args:
        right: whether all labels of the validation split are; else as many of them are wrong as in training.
    """
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    training, validation, test = torch.randperm(len(y), generator=generator).split([200, 400, len(y) - 600])
    noise = torch.randint(10, y.shape, generator=generator)
    noisy = torch.where(torch.rand(y.shape, generator=generator) < WRONG, noise, y)
    seen = y if right else noisy
    return Splits(Split(x[training], noisy[training]), Split(x[validation], seen[validation]), Split(x[test], y[test]))


def fixed(weight_decay: float) -> Rule:
    """A rule whose weight decay stays."""
    return SGD(lr=0.3, momentum=0.9, weight_decay=weight_decay)


def tuned(weight_decay: float) -> Tower:
    """A tower that tunes the weight decay alone: its logarithm, by at most 0.3 per step."""
    how: dict[str, Any] = {"tune": ("weight_decay",), "charts": {"weight_decay": POSITIVE}, "normalize": "cosine"}
    return SGD(lr=0.3, momentum=0.9, weight_decay=weight_decay, **how) / SGD(lr=0.3)


def train(tower: Rule | Tower, splits: Splits, seed: int, steps: int, objective: str = "training") -> Result:
    """Train from scratch on all of the training split at once, what is tuned on the loss of the split `objective`."""
    torch.manual_seed(seed)  # everybody starts from the same weights
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = Hyperoptimizer(model.parameters(), tower)

    def loss(split: Split) -> Tensor:
        return cross_entropy(model(split.x), split.y)

    path = [optimizer.hyperparameters()[0]["weight_decay"]]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(splits.training).backward()
        if objective == "validation":
            optimizer.tune_on(loss(splits.validation))
        optimizer.step()
        path.append(optimizer.hyperparameters()[0]["weight_decay"])
    with torch.inference_mode():
        wrong = (model(splits.test.x).argmax(dim=1) != splits.test.y).double().mean().item()
        return Result(path, loss(splits.validation).item(), loss(splits.test).item(), 100 * wrong)


class Runs(NamedTuple):
    """The results of all seeds, by fixed weight decay, and by objective and start."""

    grid: dict[float, list[Result]]
    towers: dict[tuple[str, float], list[Result]]

    def best(self) -> float:
        """The weight decay of the grid with the smallest validation loss, in the mean over the seeds."""
        return min(self.grid, key=lambda value: mean(r.validation for r in self.grid[value]))


def mean(numbers: Any) -> float:
    """The mean over the seeds."""
    return statistics.fmean(numbers)


def run(seeds: int, steps: int, right: bool = False, tick: Callable[[], None] = lambda: None) -> Runs:
    """Every training; `tick` is called after each."""
    runs = Runs({value: [] for value in GRID}, {(o, start): [] for o in OBJECTIVES for start in STARTS})
    for seed in range(seeds):
        splits = digits(seed, right)
        for value, results in runs.grid.items():
            results.append(train(fixed(value), splits, seed, steps))
            tick()
        for (objective, start), results in runs.towers.items():
            results.append(train(tuned(start), splits, seed, steps, objective))
            tick()
    return runs


def table(runs: Runs) -> Table:
    """A row for each way to come by a weight decay."""
    best = runs.best()
    result = Table(title=f"Weight decay: mean of {len(runs.grid[best])}, at the end also least and greatest")
    for name in ("weight decay", "at the start", "at the end", "validation\nloss", "test\nloss", "test\nerror %"):
        result.add_column(name, justify="left" if name == "weight decay" else "right")

    def add(name: str, start: str, end: str, results: Sequence[Result]) -> None:
        numbers = (mean(r.validation for r in results), mean(r.test for r in results), mean(r.error for r in results))
        result.add_row(name, start, end, f"{numbers[0]:.3f}", f"{numbers[1]:.3f}", f"{numbers[2]:.1f}")

    for value, results in runs.grid.items():
        add("fixed, best on validation" if value == best else "fixed", f"{value:g}", f"{value:g}", results)
    for (objective, start), results in runs.towers.items():
        ends = [r.path[-1] for r in results]
        low, high = f"{min(ends):.2g}", f"{max(ends):.2g}"
        add(f"tuned on {objective} loss", f"{start:g}", "below 1e-12" if max(ends) < 1e-12 else f"{low} … {high}", results)
    return result


def picture(runs: Runs, path: Path) -> None:
    """Left, the weight decay over time, of the first seed; right, what it is worth at the end, in the mean over the seeds."""
    theme: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    best, low = runs.best(), 1e-8
    with matplotlib.rc_context(theme):
        figure = Figure(figsize=(8, 3.8), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
        for (objective, start), results in runs.towers.items():
            color, name = OBJECTIVES[objective], f"tuned on {objective} loss"
            left.plot(results[0].path, color=color, linewidth=1.5, label=name if start == STARTS[0] else None)
            if objective == "training":
                left.plot(0, start, "o", color="#222222", markersize=4, zorder=4, clip_on=False)
            end, off = statistics.median(r.path[-1] for r in results), max(r.path[-1] for r in results) < low
            marker: dict[str, Any] = {"marker": "v" if off else "o", "color": color, "markersize": 7, "zorder": 4}
            right.plot(mean(r.test for r in results), max(end, low), clip_on=False, linestyle="", **marker)
        losses = [mean(r.test for r in runs.grid[value]) for value in GRID]
        right.plot(losses, GRID, color="#222222", linewidth=1.2, marker="s", markersize=3.5, label="fixed, a grid")
        for axes in (left, right):
            label = "best of the grid on validation" if axes is left else None
            axes.axhline(best, color="#222222", linewidth=1, linestyle=":", label=label)
            axes.grid(color="#e6e6e6", linewidth=0.6)
            axes.set_axisbelow(True)
        left.set(yscale="log", ylim=(low, 1), xlabel="training step", ylabel="weight decay")
        left.margins(x=0.01)
        left.set_title("three starts, one seed", fontsize=10, color="#555555")
        right.set(xlabel="test loss at the end")
        right.set_title(f"at the end, mean of {len(runs.grid[best])} seeds", fontsize=10, color="#555555")
        right.annotate("far below", (mean(r.test for r in runs.towers["training", STARTS[0]]), low), (0, 8), **_above())
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9, columnspacing=1.2)
        figure.savefig(path)


def _above() -> dict[str, Any]:
    return {"textcoords": "offset points", "ha": "center", "fontsize": 9, "color": OBJECTIVES["training"]}


def main() -> None:
    """Train, print the table, save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="splits and initial weights (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="of each training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture (default: %(default)s)")
    parser.add_argument("--right", action="store_true", help="no wrong labels in the validation split; no picture")
    parser.add_argument("--quick", action="store_true", help="one seed, 200 steps; no picture")
    args = parser.parse_args()
    if min(args.seeds, args.steps) < 1:
        parser.error("--seeds and --steps must be at least 1")
    seeds, steps = (1, 200) if args.quick else (args.seeds, args.steps)
    torch.set_num_threads(1)  # the network is too small to be worth sharing out
    console, begin = Console(), time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("trainings,"), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=seeds * (len(GRID) + len(OBJECTIVES) * len(STARTS)))
        runs = run(seeds, steps, args.right, lambda: progress.advance(task))
    console.print(table(runs))
    console.print(repr(tuned(STARTS[0])), highlight=False, soft_wrap=True)
    seconds = f"{time.perf_counter() - begin:.0f} s"
    if args.quick or args.right:
        console.print(seconds)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        picture(runs, args.out)
        console.print(f"{seconds}; picture in {args.out}")


if __name__ == "__main__":
    main()
