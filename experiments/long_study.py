"""How the default does in longer trainings of larger networks, beside what one would take for them with a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from . import models, sensitivity
from .methods import DECAYED, DEFAULT, DROPS
from .results import Line, Study, frame, styles, table
from .runner import Settings, Store
from .sensitivity_tasks import GPT, Pixels, Supervised, objects, text
from .tasks import TASKS, Entry
from .trial import Result, Tick, Trial

SEED = 10
"""Nothing was tuned with it."""
RESNET, CROPPED, LARGE = "ResNet-20, CIFAR-10", "ResNet-20, CIFAR-10, cropped", "GPT of 2.7M, War and Peace"
EPOCHS = 20
PLAN: dict[str, tuple[int, int, Sequence[str]]] = {
    RESNET: (EPOCHS * 391, 3000, (DEFAULT, DECAYED, DROPS, "Adam 0.003, cosine", "Adam 0.001, cosine")),
    CROPPED: (EPOCHS * 391, 3000, (DEFAULT, "Adam 0.003, cosine", DROPS)),
    LARGE: (1000, 500, (DEFAULT, "AdamW 0.001, cosine", "AdamW 0.003, cosine", "Prodigy")),
}
"""For how many steps a network is trained, on how many samples it is measured, and with what it is trained."""


def resnet(device: str, crops: bool = False) -> Supervised:
    """ResNet-20 on CIFAR-10, with flips; with `crops`, from a border of 4, too, as in the paper."""
    return objects(lambda: nn.Sequential(Pixels(), models.ResNet20()), device, flips=True, crops=crops, size=128)


def gpt(device: str) -> Supervised:
    """Six blocks of a width of 192, on pieces of 128 characters."""
    return text(partial(GPT, length=128, width=192, heads=6, blocks=6), device, length=128, size=16)


TASKS.update(
    {RESNET: Entry("cifar10", resnet), CROPPED: Entry("cifar10", partial(resnet, crops=True)), LARGE: Entry("text", gpt)}
)


def plan(settings: Settings, store: Store) -> list[Trial]:
    """One seed, method by method; the quick protocol is two steps of two."""
    few, found = settings.quick, list[Trial]()
    for i in range(2 if few else max(len(methods) for *_, methods in PLAN.values())):
        for task, (steps, rows, methods) in PLAN.items():
            for method in methods[i : i + 1]:
                at = {"method": method, "rows": 20 if few else rows}
                found.append(Trial("long", task, method, 2 if few else steps, SEED, at, noted=1 if few else 10))
    return found


def run(trial: Trial, task: Supervised, device: str, folder: Path, tick: Tick) -> Result:
    """As those of the study of small tasks; from here, so that a process that runs it knows these, too."""
    return sensitivity.run(trial, task, device, folder, tick)


def text_of(lines: Sequence[Line], pictures: Mapping[str, str]) -> str:
    """The page below its head."""
    parts = [
        "One seed each. As in [the study of small tasks](sensitivity.md), the default is given nothing and is validated\n"
        "as trained and, from the same training, at its average; cosine is with a warm-up of 5 %. Losses are of 3,000\n"
        "images, or 500 pieces.\n\n"
        "On ResNet-20 with flips alone the average of the default reaches the final loss of Adam's cosine in a third of the\n"
        "steps, and overfits from there on: nothing shakes the weights once its step size is small, and a\n"
        "weight decay is no cure. With images cropped as well, as in the paper, there is little to overfit: it ends within\n"
        "half a point of both schedules, with the lowest training loss. On the GPT, whose text is seen once, it learns\n"
        "fastest.\n"
    ]
    for task, (steps, _, methods) in PLAN.items():
        mine = {line["tower"]: line for line in lines if line["task"] == task}
        rows = [each for name in methods if name in mine for each in measured(name, mine[name])]
        header = ["", "training loss", "validation loss", "validation error, %"]
        parts.append(f"## {task}, {steps:,} steps\n\n{table(header, rows)}")
    return "\n".join([*parts, f"![Validation loss against steps, a panel per network]({pictures['']})\n"])


def measured(name: str, line: Line) -> list[list[str]]:
    """The rows of a method: as trained, and at the average if there is one."""
    average = [row(f"{name}, average", line["average"])] if line.get("average") else []
    return [row(name, line["final"]), *average]


def row(name: str, found: Mapping[str, Any] | None) -> list[str]:
    """Of the table."""
    return [name, *("diverged" if found is None else f"{found[what]:.4g}" for what in ("train", "loss", "error"))]


def curves(lines: Sequence[Line], figure: Figure) -> None:
    """Validation loss on 300 samples along the way."""
    for axes, task in zip(figure.subplots(1, len(PLAN)), PLAN, strict=True):
        mine = [line for line in lines if line["task"] == task]
        for line, style in zip(mine, styles(), strict=False):
            steps, losses, *_ = zip(*(point[:2] for point in line["curve"]), strict=True)
            axes.plot(steps, losses, label=line["tower"], **style)
        frame(axes, title=task, xlabel="step", ylabel="validation loss", yscale="log")
        if mine:
            axes.legend(frameon=False, fontsize=8)


LONG_STUDY = Study("Longer and larger", plan, run, text_of, {"": (curves, (9.6, 4.0))})
