"""Handwritten digits: Adam from seven initial step sizes, alone and under the paper's tower, and the default, which needs none.

    python -m experiments.demo [--seeds 2] [--epochs 30]

Prints a table of test errors and learned step sizes; leaves a picture and the numbers in ``demo/``. The network is the
paper's: one hidden layer of 128, tanh on it and on the ten outputs, so that a step far too large saturates every output
and leaves no gradient to recover with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import sklearn
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import nll_loss

import hypergradient
from hypergradient import SGD, Adam, Hyperoptimizer, Rule, Tower, auto

STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
BATCH = 64
OUT = Path("demo")


class Digits(NamedTuple):
    """Images, shape (samples, 64), pixels in [0, 1]; labels, shape (samples,)."""

    x: Tensor
    y: Tensor


@dataclass
class Contender:
    """A tower for every initial step size, how it is drawn, and the results by initial step size and seed.

    Args:
        starts: those that it is trained from; the default chooses its own.
    """

    name: str
    tower: Callable[[float], Rule | Tower]
    style: dict[str, Any]
    starts: Sequence[float] = STARTS
    errors: dict[float, list[float]] = field(default_factory=dict)
    """Test error after training, in percent."""
    paths: dict[float, list[list[float]]] = field(default_factory=dict)
    """The step size in force after 0, 1, 2, … steps."""

    @property
    def tuned(self) -> bool:
        """Whether there is a rule above."""
        return isinstance(self.tower(STARTS[0]), Tower)

    def error(self, start: float) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.errors[start])

    def learned(self, start: float) -> float:
        """The last step size; the median over the seeds."""
        return statistics.median(path[-1] for path in self.paths[start])


def contenders() -> list[Contender]:
    """Plain Adam, a tower of the paper, and the default.

    The paper's form has the step size that the paper's Table 1 gives Adam / SGD on this network, and like there moves the
    step size and both betas.
    """
    return [
        Contender("Adam", lambda lr: Adam(lr=lr), {"color": "#222222", "marker": "s", "linestyle": ":"}),
        Contender(
            "Adam / SGD, paper's form",
            lambda lr: Adam(lr=lr) / SGD(lr=1e-5),
            {"color": "#E69F00", "marker": "^", "linestyle": "--"},
        ),
        Contender("the default", lambda lr: auto(), {"color": "#0072B2", "marker": "", "linestyle": "-"}, STARTS[:1]),
    ]


def digits() -> tuple[Digits, Digits]:
    """scikit-learn's handwritten digits: 1437 to train on, 360 to test on, always the same."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=360, stratify=labels, random_state=0)
    return Digits(x[train], y[train]), Digits(x[test], y[test])


def train(
    tower: Rule | Tower, data: Digits, test: Digits, epochs: int, seed: int, tick: Callable[[], None]
) -> tuple[float, list[float]]:
    """Train from scratch; `tick` is called after every epoch.

    Returns:
        the test error in percent, at the average where there is one, and the step size in force after 0, 1, 2, … steps.
    """
    torch.manual_seed(seed)  # every contender starts from the same weights and sees the same batches
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh(), nn.LogSoftmax(dim=1))
    optimizer = Hyperoptimizer(model.parameters(), tower)
    path = [optimizer.hyperparameters()[0]["lr"]]
    for _ in range(epochs):
        for batch in torch.randperm(len(data.y)).split(BATCH):
            optimizer.zero_grad()
            nll_loss(model(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
            path.append(optimizer.hyperparameters()[0]["lr"])
        tick()
    optimizer.eval()
    with torch.inference_mode():
        wrong = model(test.x).argmax(dim=1) != test.y
    return 100 * wrong.double().mean().item(), path


def run(entries: Sequence[Contender], seeds: int, epochs: int, console: Console) -> None:
    """Every training, under a progress bar."""
    data, test = digits()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs,"), TimeRemainingColumn(), TextColumn("left"))
    with Progress(TextColumn("{task.description:<22}"), *columns, console=console) as progress:
        task = progress.add_task("training", total=seeds * epochs * sum(len(entry.starts) for entry in entries))
        for seed in range(seeds):
            for start in STARTS:
                progress.update(task, description=f"seed {seed}, from {start:g}")
                for entry in (entry for entry in entries if start in entry.starts):
                    error, path = train(entry.tower(start), data, test, epochs, seed, lambda: progress.advance(task))
                    entry.errors.setdefault(start, []).append(error)
                    entry.paths.setdefault(start, []).append(path)
        progress.update(task, description="trained")


def table(entries: Sequence[Contender]) -> Table:
    """Test error by initial step size; for the towers the learned step size beside it. The default has a row of its own."""
    seeds = len(entries[0].errors[STARTS[0]])
    result = Table(title=f"Test error in %, mean of {seeds}; learned step size, median of {seeds}")
    result.add_column("initial\nstep size", justify="right")
    *several, default = entries
    for entry in several:
        result.add_column(entry.name.replace(", ", "\n", 1), justify="right")
        if entry.tuned:
            result.add_column("learned\nstep size", justify="right")
    for start in STARTS:
        row = [f"{start:g}"]
        for entry in several:
            row.append(f"{entry.error(start):.1f}")
            if entry.tuned:
                row.append(f"{entry.learned(start):.2g}")
        result.add_row(*row)
    (own,) = default.starts
    result.add_section()
    result.add_row(default.name, "", f"{default.error(own):.1f}", f"{default.learned(own):.2g}")
    return result


def picture(entries: Sequence[Contender], path: Path) -> None:
    """Left, error against initial step size; right, the step size over time, of the first seed."""
    theme: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.constrained_layout.wspace": 0.06,
    }
    with matplotlib.rc_context(theme):
        figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        for entry, size in zip(entries, (9, 7, 4.5), strict=True):  # the smallest on top: coinciding points stay visible
            errors = [entry.error(start if start in entry.starts else entry.starts[0]) for start in STARTS]
            left.plot(STARTS, errors, label=entry.name, linewidth=1.8, markersize=size, **entry.style)
            for start in entry.starts if entry.tuned else ():
                over = 3 if entry.style["linestyle"] == "--" else 2  # dashes over what they coincide with
                right.plot(entry.paths[start][0], **{**entry.style, "marker": ""}, linewidth=1.2, zorder=over)
        left.set(xscale="log", yscale="log", xlabel="initial step size", ylabel="test error (%)", xticks=STARTS)
        left.set_yticks([2, 5, 10, 20, 50, 100], labels=["2", "5", "10", "20", "50", "100"])
        left.minorticks_off()
        right.set(yscale="log", xlabel="training step", ylabel="step size", yticks=STARTS, ylim=(4e-7, 2))
        right.minorticks_off()
        left.margins(y=0.08)
        right.margins(x=0.01)
        for axes in (left, right):
            axes.grid(color="#e6e6e6", linewidth=0.6)
        figure.legend(loc="outside upper center", ncols=len(entries), frameon=False)
        figure.savefig(path)


def record(entries: Sequence[Contender], args: argparse.Namespace, seconds: float, path: Path) -> None:
    """The numbers behind the picture, and what they were made with."""
    results = [
        {
            "name": entry.name,
            "tower": repr(entry.tower(start)),
            "start": start,
            "test error %": entry.errors[start],
            "learned step size": [path[-1] for path in entry.paths[start]],
        }
        for entry in entries
        for start in entry.starts
    ]
    versions = {m.__name__: m.__version__ for m in (hypergradient, torch, sklearn)}
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **versions},
        "seconds": round(seconds, 1),
        "batch": BATCH,
        **vars(args),
    }
    path.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


def main() -> None:
    """Train, print the table, save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default: %(default)s)")
    args = parser.parse_args()
    if min(args.seeds, args.epochs) < 1:
        parser.error("--seeds and --epochs must be at least 1")
    torch.set_num_threads(1)  # the network is too small to be worth sharing out
    console, entries, begin = Console(), contenders(), time.perf_counter()
    run(entries, args.seeds, args.epochs, console)
    seconds = time.perf_counter() - begin
    OUT.mkdir(exist_ok=True)
    picture(entries, OUT / "demo.png")
    record(entries, args, seconds, OUT / "demo.json")
    console.print(table(entries))
    for entry in entries:
        console.print(repr(entry.tower(STARTS[0])), highlight=False, soft_wrap=True)
    console.print(f"{seconds:.0f} s; picture in {OUT / 'demo.png'}, numbers in {OUT / 'demo.json'}")


if __name__ == "__main__":
    main()
