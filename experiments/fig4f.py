"""Figure 4f: what a level costs. Whole training iterations on the paper's three models, for towers of heights 0 to 3.

The MLP and the CNN are under SGD towers (the CNN with momentum), the RNN under Adam and SGD above. Everybody runs in turn in
one process; a ratio is taken within each round, to the same rule of `torch.optim`. The paper's own code cannot train
`torch.nn.LSTM`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from matplotlib.figure import Figure
from torch import nn

from .paper import adam, sgd, stack
from .results import Claim, Experiment, Line, frame, styles, table, verdict
from .runner import Settings, Store
from .tasks import Task
from .timing import PROBLEMS, Maker, Reference, interleave, ours, quartiles, ratio, training
from .trial import Result, Tick, Trial, about

HEIGHTS = range(4)
ABOVE = 1e-12
"""Step size above: nothing moves so far that it matters."""
MODELS = {"MLP": "mlp", "CNN": "resnet", "RNN": "lstm"}
TORCH: dict[str, Callable[[nn.Module], Any]] = {
    "MLP": lambda module: torch.optim.SGD(module.parameters(), lr=1e-2),
    "CNN": lambda module: torch.optim.SGD(module.parameters(), lr=1e-2, momentum=0.9),
    "RNN": lambda module: torch.optim.Adam(module.parameters(), lr=1e-3),
}
BOTTOM = {"MLP": partial(sgd, 1e-2), "CNN": partial(sgd, 1e-2, momentum=0.9), "RNN": partial(adam, 1e-3)}
MOMENTUM = {"MLP": 0.0, "CNN": 0.9}
BASE, EAGER, COMPILED, CODE = "torch.optim", "ours, eager", "ours, compiled", "the paper's code"
PAPER = {"MLP": (0.5, 2.8, 3.4), "CNN": (1.5, 1.8, 6.2), "RNN": (2.0, 3.7, 5.0)}
"""Percent more than at height 0."""


def reference(momentum: float, height: int) -> Maker:
    """The paper's code."""

    def make(module: nn.Module) -> Reference:
        above = gdtuo.NoOpOptimizer()
        for _ in range(height):
            above = gdtuo.SGD(ABOVE, optimizer=above)
        return Reference(module, gdtuo.SGD(1e-2, momentum, optimizer=above))

    return make


def contestants(model: str, compiled: bool) -> dict[tuple[str, int], Maker]:
    """By name and height; with ours `compiled` or without."""
    makers: dict[tuple[str, int], Maker] = {(BASE, 0): TORCH[model]}
    for h in HEIGHTS:
        tower = stack(BOTTOM[model](), *(sgd(ABOVE) for _ in range(h)))
        makers[EAGER, h] = ours(tower, compile=False)
        if compiled:
            makers[COMPILED, h] = ours(tower, compile=True)
        if model in MOMENTUM:
            makers[CODE, h] = reference(MOMENTUM[model], h)
    return makers


def run(trial: Trial, task: Task | None, device: str, folder: Path, tick: Tick) -> Result:
    """Time all contestants on one model; a step of the trial is a second."""
    makers = contestants(trial.at["model"], trial.compile)
    begin = time.monotonic()
    problem = PROBLEMS[MODELS[trial.at["model"]]]
    runs = {f"{name}, {h}": training(make, problem) for (name, h), make in makers.items()}
    times = interleave(runs, trial.steps, min(10, trial.steps), lambda part: tick(int(part * trial.steps)))
    base = [time.iteration for time in times[f"{BASE}, 0"]]
    rows = []
    for name, h in makers:
        found = [time.iteration for time in times[f"{name}, {h}"]]
        level = ratio(found, [time.iteration for time in times[f"{name}, 0"]])
        row = {"name": name, "height": h, "ms": quartiles(found), "× torch": ratio(found, base), "× height 0": level}
        rows.append(row)
    return {**about(device), "seconds": round(time.monotonic() - begin, 1), "rounds": len(base), "rows": rows}


def plan(settings: Settings, store: Store) -> list[Trial]:
    """One per model; the quick protocol has the first."""
    seconds, models = (1, [*MODELS][:1]) if settings.quick else (120, [*MODELS])
    compiled = not settings.quick
    return [Trial("fig4f", "none", BOTTOM[model](), seconds, 0, {"model": model}, compile=compiled) for model in models]


def cells(lines: Sequence[Line], column: str) -> dict[tuple[str, str, int], list[float]]:
    """Quartiles by model, name and height."""
    return {(line["at"]["model"], row["name"], row["height"]): row[column] for line in lines for row in line["rows"]}


def tables(lines: Sequence[Line]) -> str:
    """A row per model and contestant."""
    torches, levels = cells(lines, "× torch"), cells(lines, "× height 0")
    rows = []
    for model in MODELS:
        for name in (EAGER, COMPILED, CODE):
            if (model, name, 0) in torches:
                ratios = [f"{torches[model, name, h][1]:.2f}" for h in HEIGHTS]
                more = [f"{100 * (levels[model, name, h][1] - 1):+.1f}" for h in HEIGHTS if h]
                rows.append([model, name, *ratios, *more])
        rows.append([model, "the paper", *[""] * 4, *(f"{x:+g}" for x in PAPER[model])])
    header = ["model", "", *(f"height {h}, × torch.optim" for h in HEIGHTS), *(f"height {h}, % over 0" for h in HEIGHTS if h)]
    return "Whole training iterations, medians of ratios within a round.\n\n" + table(header, rows, left=2)


def picture(lines: Sequence[Line], figure: Figure) -> None:
    """Ratio to torch.optim by height, a panel per model."""
    torches = cells(lines, "× torch")
    models = [model for model in MODELS if any(model == key[0] for key in torches)]
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for name, style in zip((CODE, EAGER, COMPILED), styles(), strict=False):
            if (model, name, 0) in torches:
                axes.plot(HEIGHTS, [torches[model, name, h][1] for h in HEIGHTS], label=name, **style)
        axes.axhline(1, color="#999999", linewidth=1)
        frame(axes, title=model, xlabel="height", ylabel="iteration, × torch.optim", xticks=list(HEIGHTS))
        axes.set_ylim(0.8, axes.dataLim.y1 + 0.03)  # the marker of the highest is not to be cut
        axes.legend(frameon=False)


def claims(lines: Sequence[Line]) -> list[Claim]:
    """Section 4.5 of the paper."""
    levels, torches = cells(lines, "× height 0"), cells(lines, "× torch")
    result = []
    for name in dict.fromkeys(name for _, name, h in levels if h and name != CODE):
        found = {m: 100 * (levels[m, name, 3][1] - 1) / 3 for m in MODELS}
        first = ", ".join(f"{m} {torches[m, name, 1][1]:.2f}" for m in MODELS)
        result.append(
            Claim(
                f"4f: a further level costs 1–2 % of an iteration ({name})",
                ", ".join(f"{model} {PAPER[model][-1] / 3:.1f}" for model in MODELS) + " (a third of height 3)",
                ", ".join(f"{model} {x:.1f}" for model, x in found.items()) + f"; height 1 × torch.optim: {first}",
                verdict(x <= 2 for x in found.values()),
            )
        )
    return result


FIG4F = Experiment("Figure 4f: what a level costs", plan, tables, picture, claims, (9.0, 3.4), run, timed=True)
