"""What the default does in nine scripts of others when nothing but the optimizer's line is changed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hypergradient import Hyperoptimizer, auto, from_torch

from .results import Line, Study, table
from .runner import Settings, Store
from .scripts import SCRIPTS, Script
from .trial import Result, Tick, Trial, about, due, short

SEEDS = range(1, 3)
"""Seed 0 is for trying."""
QUICK = 3
"""Steps of the quick protocol, which tests on fewer rows, too."""
LIMIT = 1.03
"""How many times the author's value it may be."""

LINES: dict[str, Callable[[Script, nn.Module], Optimizer]] = {
    "author": lambda script, model: script.author(model),
    "default": lambda script, model: Hyperoptimizer(model.parameters()),
    "from_torch": lambda script, model: from_torch(script.author(model)),
}
"""What stands in the place of the optimizer's line."""
MORE: dict[str, dict[str, Callable[[Script, nn.Module], Optimizer]]] = {
    "pytorch/examples dcgan": {"auto(beta1=0.5)": lambda script, model: Hyperoptimizer(model.parameters(), auto(beta1=0.5))},
}
"""What explains a result: of some scripts, other lines, which average as the default does."""


def plan(settings: Settings, store: Store) -> list[Trial]:
    """Seed by seed; then what explains."""
    count = 1 if settings.quick else len(SEEDS) if settings.seeds is None else settings.seeds
    steps = {name: QUICK if settings.quick else script.steps for name, (_, script) in SCRIPTS.items()}
    seeds = range(SEEDS[0], SEEDS[0] + count)
    few = {"rows": 300} if settings.quick else {}
    pairs = [(name, line) for name in SCRIPTS for line in LINES]
    more = [(name, line) for name, others in MORE.items() for line in others]
    chosen = [(seed, *pair) for seed in seeds for pair in pairs] + [(seed, *pair) for seed in seeds for pair in more]
    return [Trial("scripts", name, line, steps[name], seed, few) for seed, name, line in chosen]


def run(trial: Trial, script: Script, device: str, folder: Path, tick: Tick) -> Result:
    """Train from beginning to end.

    Returns:
        `test`: as trained; `average`: at the average, if there is one; None where they are not finite. `notes`: of the first
        optimizer, triples of step, the lr that the schedule says and the one in force.
    """
    begin = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    lines = LINES | MORE.get(trial.task, {})
    script.rows = trial.at.get("rows", type(script).rows)
    model, optimizers, notes, noting = script.model(), list[Optimizer](), list[Any](), due(trial.steps, trial.noted)

    def made(module: nn.Module) -> Optimizer:
        optimizer = lines[trial.tower](script, module)
        if not optimizers:
            optimizer.register_step_post_hook(note)
        optimizers.append(optimizer)
        return optimizer

    def note(optimizer: Optimizer, *_: object) -> None:
        nonlocal step
        step += 1
        if step in noting:
            lr = float(optimizer.param_groups[0]["lr"])
            force = optimizer.hyperparameters()[0]["lr"] if isinstance(optimizer, Hyperoptimizer) else lr
            notes.append([step, short(lr), short(force)])
        tick(step)

    step = 0
    script.train(model, made, trial.seed, trial.steps)
    test = short(script.tested(model))
    average = short(script.at_average(model, optimizers, trial.seed)) if trial.tower not in ("author", "from_torch") else None
    return {
        **about("cpu"),
        "seconds": round(time.monotonic() - begin, 1),
        "test": test,
        "average": average,
        "notes": notes,
    }


COLUMNS = {
    "default": ("default", "test"),
    "its average": ("default", "average"),
    "from_torch": ("from_torch", "test"),
}
"""By what the page calls them: the line, and where it is tested."""


def of(lines: Sequence[Line], name: str) -> list[Line]:
    """The results of a script, by seed."""
    return sorted((line for line in lines if line["task"] == name), key=lambda line: line["seed"])


def values(lines: Sequence[Line], line: str, where: str = "test") -> dict[int, float]:
    """Of a script, by seed; inf where it has diverged."""
    return {one["seed"]: inf if one[where] is None else one[where] for one in lines if one["tower"] == line}


def each(lines: Sequence[Line], place: tuple[str, str]) -> dict[int, tuple[float, float]]:
    """Of a script: by seed what a line has come to, and the author's."""
    author = values(lines, "author")
    return {seed: (x, author[seed]) for seed, x in values(lines, *place).items() if seed in author}


def ratios(lines: Sequence[Line]) -> dict[str, float]:
    """Of a script: each column's mean over the seeds in times of the author's, for the same seeds."""
    found = {column: [*zip(*pairs.values(), strict=True)] for column, place in COLUMNS.items() if (pairs := each(lines, place))}
    return {column: sum(ours) / sum(theirs) for column, (ours, theirs) in found.items()}


def cell(lines: Sequence[Line], place: tuple[str, str]) -> str:
    """The same of a place, and the least and the greatest of the seeds."""
    pairs = each(lines, place).values()
    if not pairs:
        return "–"
    ours, theirs = map(sum, zip(*pairs, strict=True))
    apart = sorted(mine / author for mine, author in pairs)
    return number(ours / theirs) + (f" ({number(apart[0])} … {number(apart[-1])})" if len(apart) > 1 else "")


def number(x: float | None, digits: str = ".3f") -> str:
    """As the page has it."""
    return "–" if x is None else "diverged" if x == inf else f"{x:{digits}}"


def tests(lines: Sequence[Line]) -> str:
    """A row per script."""
    rows = []
    for name, (_, script) in SCRIPTS.items():
        if author := values(of(lines, name), "author"):
            found = {"author": 1.0, **ratios(of(lines, name))}
            mean = number(statistics.fmean(author.values()), ".4g")
            cells = (cell(of(lines, name), place) for place in COLUMNS.values())
            rows.append([name, script.measure, str(len(author)), mean, *cells, min(found, key=found.__getitem__)])
    header = ["script", "measure", "seeds", "author's", *(f"{column} ÷ author's" for column in COLUMNS), "lowest"]
    return table(header, rows, left=2)


def counted(lines: Sequence[Line]) -> str:
    """How often a column is within the limit, below the author's value, and diverged."""
    rows = []
    for column in COLUMNS:
        found = [x for name in SCRIPTS if (x := ratios(of(lines, name)).get(column)) is not None]
        counts = sum(x <= LIMIT for x in found), sum(x < 1 for x in found), sum(x == inf for x in found)
        rows.append([column, *(f"{count} of {len(found)}" for count in counts)])
    return table(["", f"at most {LIMIT} × the author's", "below it", "diverged"], rows)


def others(lines: Sequence[Line]) -> str:
    """A row per line that explains something."""
    rows = []
    for name, line in ((name, line) for name, more in MORE.items() for line in more):
        rows.append([name, f"`{line}`", *(cell(of(lines, name), (line, where)) for where in ("test", "average"))])
    return table(["script", "line", "÷ author's", "its average ÷ author's"], rows, left=2)


def sizes(lines: Sequence[Line]) -> str:
    """A row per script: step sizes in force."""
    rows = []
    for name in SCRIPTS:
        first = {one["tower"]: one["notes"] for one in reversed(of(lines, name))}
        notes = ([force for *_, force in first.get(line, [])] for line in LINES)
        cells = (" / ".join(number(x, ".2g") for x in (max(lrs), lrs[len(lrs) // 2], lrs[-1])) if lrs else "–" for lrs in notes)
        rows.append([name, *cells])
    return table(["script", *LINES], rows)


ABOUT = """The model, the optimizer's line, the schedule, clipping and the loop are the script's, restated. Data are those of
the other experiments, and trainings are shorter, so that each takes one or two minutes of one core. `default` has
`Hyperoptimizer(model.parameters())` in the place of the optimizer's line, `from_torch` has `from_torch(…)` around it; nothing
else is changed, schedules least of all. Tested at the end, as the script tests, on data that were not trained on; less is
better. `default` is tested as training leaves it, which is what a script has that never calls `optimizer.eval()`, and at its
average, between `eval()` and `train()`; with batch-norm statistics anew from 20 batches where the script tests with those it
has gathered. Ratios are of means over the seeds; in brackets the least and the greatest of a seed.
"""
WHY = """**dcgan** has a beta1 of 0.5, the default 0.9, with which Adam fails, too; below is the default with the author's.
On **word_language_model** `from_torch` keeps the author's SGD and his step size of 20, which it makes smaller; the default,
another rule, ends far below both.

These scripts are no untouched test of everything: that what is learned stands still while a schedule holds the lr at half
of its highest, and that a group shows the usual lr of its rule, was found on mnist, the Trainer and timm, with these seeds;
that the cosine of all tensors comes to count more than the mean of theirs, on nanoGPT and the Trainer, with another seed; how
soon the usual size of gradients counts for SGD, on word_language_model, with these seeds and others.
"""
SIZES = """In force, with the schedule in it: the highest, in the middle of the training, and at its end; of the first seed, and
the first optimizer of the script.
"""


def text(lines: Sequence[Line], pictures: Mapping[str, str]) -> str:
    """The page below its head."""
    told = "\n".join(f"- **{name}**: {' '.join((script.__doc__ or '').split())}" for name, (_, script) in SCRIPTS.items())
    sizes_too = ["## Step sizes\n", SIZES, sizes(lines)]
    return "\n".join([ABOUT, tests(lines), counted(lines), WHY, others(lines), *sizes_too, "## The scripts\n", f"{told}\n"])


SCRIPTS_STUDY = Study("Scripts of others, one line changed", plan, run, text, {})
