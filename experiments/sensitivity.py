"""How the default does beside fixed step sizes, schedules and other optimizers that choose their own, on twenty-three tasks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from hypergradient import Hyperoptimizer

from .methods import AVERAGED, DECAYED, DEFAULT, GRIDS, METHODS, OURS, PEERS, STARTS, TUNED, VARIANTS, grid
from .results import Study
from .runner import Settings, Store
from .sensitivity_report import PICTURES, text
from .sensitivity_tasks import LONG, NAMES, SMALL, Measure, Supervised, Surface
from .trial import Result, Tick, Trial, about, due, learned, short

SEEDS = range(10, 13)
"""None of those that anything was tuned on."""
SHORT, MANY = 600, 6000
"""Lengths of a training, in steps."""
ROWS, FEW = 3000, 300
"""Of the data: what a model is measured on at the end, and for its curve."""
QUICK = [DEFAULT, *(f"Adam {lr:g}" for lr in (1e-3, 3e-3, 1e-2)), "Adam(1e-3) / SGD(1e-5)", "Prodigy"]

Task = Supervised | Surface


def trials(tasks: Iterable[str], methods: Iterable[str], seed: int, steps: int = SHORT) -> Iterator[Trial]:
    """Every task with every method; AdamW, which is there for its weight decay, on some alone."""
    methods = list(methods)
    for task in tasks:
        for method in methods:
            if not method.startswith("AdamW ") or task in ("gpt-text", "lstm-text"):
                yield Trial("sensitivity", task, method, steps, seed, {"task": task, "method": method})


def plan(settings: Settings, store: Store) -> list[Trial]:
    """Seed by seed, and what matters most first; from other starts and with other numbers with all seeds, however many are
    asked for, as one changes more than these are to change.
    """
    if settings.quick:
        return list(trials(["mlp-mnist", "quadratic"], QUICK, SEEDS[0], SHORT // 2))
    found: list[Trial] = []
    last = SEEDS[0] + (len(SEEDS) if settings.seeds is None else settings.seeds) - 1
    for seed in range(SEEDS[0], last + 1):
        found += trials(NAMES, [DEFAULT, *grid("Adam")], seed)
        found += [*trials(NAMES, PEERS, seed), *trials(SMALL, [TUNED], seed)]
        found += trials(NAMES, [*OURS, *(name for family in GRIDS if family != "Adam" for name in grid(family))], seed)
        found += trials(NAMES, [*STARTS, *VARIANTS], seed)
        found += trials(LONG, [DEFAULT, DECAYED, *PEERS, *grid("Adam")], seed, MANY)
        found += trials((name for name in LONG if name in SMALL), [TUNED], seed, MANY)
    for seed in range(last + 1, SEEDS.stop):
        found += trials(NAMES, [DEFAULT, *STARTS, *VARIANTS], seed)
    return found


def run(trial: Trial, task: Task, device: str, folder: Path, tick: Tick) -> Result:
    """Train from beginning to end; where the default is tuned on other data, they are a fifth of those to train on.

    Returns:
        `final`: training loss, validation loss and error as trained; `average`: the same at the average, if there is one;
        both None where it has `diverged`. `curve`: steps, validation loss as trained and at the average, on a part of the
        data. `ms`: of a step, and the optimizer's share. `learned`: by the levels of a tower.
    """
    begin, times = time.monotonic(), []
    torch.set_num_threads(1)  # more only wait for each other, on models as small as these
    torch.manual_seed(trial.seed)
    model = task.model().to(device)
    optimizer, scheduler = METHODS[trial.tower](list(model.parameters()), trial.steps)
    if hasattr(optimizer, "train"):
        optimizer.train()
    averaged, noting = trial.tower in AVERAGED, due(trial.steps, trial.noted)
    rows = trial.at.get("rows", ROWS)
    few = min(FEW, rows)
    source, other = task.parted() if trial.tower == TUNED else (task, None)
    curve = [[0, short(task.measure(model, few).loss)]]
    for step in range(trial.steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = task.loss(model, source.batch(trial.seed, step))
        if not isfinite(loss.item()):
            break
        loss.backward()
        if other is not None:
            optimizer.tune_on(task.loss(model, other.batch(trial.seed, step)))
        middle = time.perf_counter()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        times.append((time.perf_counter() - start, time.perf_counter() - middle))
        if step + 1 in noting:
            curve.append([step + 1, *(one["loss"] for one in measured(task, model, optimizer, averaged, trial.seed, few))])
        tick(step + 1)
    final, *average = measured(task, model, optimizer, averaged, trial.seed, rows)
    diverged = len(times) < trial.steps or None in (final["loss"], final["train"])
    return {
        **about(device),
        "seconds": round(time.monotonic() - begin, 1),
        "final": None if diverged else final,
        "average": None if diverged or not average else average[0],
        "diverged": diverged,
        "ms": [short(1000 * statistics.median(part)) for part in zip(*times, strict=True)],
        "learned": learned(optimizer) if isinstance(optimizer, Hyperoptimizer) else [],
        "curve": curve,
    }


def measured(
    task: Task, model: nn.Module, optimizer: Optimizer, averaged: bool, seed: int, rows: int = ROWS
) -> list[dict[str, float | None]]:
    """As trained; then at the average, with batch-norm statistics anew, of 20 batches. All is as it was afterwards."""
    found = [task.measure(model, rows)]
    if averaged:
        before = [buffer.clone() for buffer in model.buffers()]
        optimizer.eval()
        update_bn((task.batch(seed, step)[0] for step in range(20)), model)
        found.append(task.measure(model, rows))
        optimizer.train()
        for buffer, old in zip(model.buffers(), before, strict=True):
            buffer.copy_(old)
    return [rounded(one) for one in found]


def rounded(found: Measure) -> dict[str, float | None]:
    """As it is stored."""
    return {name: None if x is None else short(x) for name, x in found._asdict().items()}


SENSITIVITY = Study("Without choosing a step size", plan, run, text, PICTURES)
