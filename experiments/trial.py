"""One training from beginning to end, and what is written down of it. It can be stopped and go on at any step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_value_
from torch.optim.lr_scheduler import MultiStepLR

import hypergradient
from hypergradient import Hyperoptimizer, Rule, Tower

from .machine import processor
from .tasks import Task

SAVE = 60.0
"""Seconds between two checkpoints of a training."""

Result = dict[str, Any]
Tick = Callable[[int], None]
"""Is told how many steps are done."""


@dataclass(frozen=True)
class Trial:
    """What is trained, how, for how long.

    Args:
        experiment: whose it is.
        task: a name in `tasks.TASKS`.
        tower: the optimizer, or the name of one in `methods.METHODS`.
        steps: how many.
        seed: of the weights and of the batches.
        at: its place in the experiment: row, column, abscissa.
        tested: how often to test, at equal distances; the last one is at the end.
        noted: how often to note the training loss and the learned values, likewise.
        drops: parts of the steps after which the step size is divided by 10.
        start: the experiment's file of weights to start from, without the last layer.
        keep: a file to keep the weights in at the end.
        compile: whether the step is compiled: for high towers.
    """

    experiment: str
    task: str
    tower: Rule | Tower | str
    steps: int
    seed: int
    at: Mapping[str, Any] = field(default_factory=dict)
    tested: int = 1
    noted: int = 20
    drops: tuple[float, ...] = ()
    start: str = ""
    keep: str = ""
    compile: bool = False

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides the result, in JSON."""
        return {**vars(self), "tower": str(self.tower), "at": dict(self.at), "drops": list(self.drops)}

    @property
    def key(self) -> str:
        """The same for the same configuration."""
        return key(self.configuration)


def key(line: Mapping[str, Any]) -> str:
    """The key of the trial with this configuration; a result has that of its trial."""
    default = Trial("", "", hypergradient.SGD(), 0, -1).configuration
    mine = {name: line[name] for name, value in default.items() if line.get(name, value) != value}  # may gain fields
    return hashlib.sha256(json.dumps(mine, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def run(trial: Trial, task: Task, device: str, folder: Path, tick: Tick, save: float = SAVE) -> Result:
    """Train, or go on training where a checkpoint in `folder` is.

    Returns:
        `test`: the last test; `tests`: pairs of step and test; `notes`: triples of step, training loss and the values of
        what is tuned, level by level; `learned`: the last of these.
    """
    torch.manual_seed(trial.seed)
    model = task.model().to(device)
    if trial.start:
        if not (folder / trial.start).exists():
            raise FileNotFoundError(f"{folder / trial.start} is missing; to make it anew, remove its training from the results")
        weights = torch.load(folder / trial.start, weights_only=True, map_location=device)
        model.load_state_dict({n: w for n, w in weights.items() if not n.startswith("head.")}, strict=False)
    optimizer = Hyperoptimizer(model.parameters(), trial.tower, compile=trial.compile)
    scheduler = MultiStepLR(optimizer, [round(part * trial.steps) for part in trial.drops])
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    result: Result = {"tests": [], "notes": []}
    step, seconds, checkpoint = 0, 0.0, folder / f"{trial.key}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        step, seconds, result = saved["step"], saved["seconds"], saved["result"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    testing, noting = (due(trial.steps, often) for often in (trial.tested, trial.noted))
    begin = last = time.monotonic()
    while step < trial.steps:
        optimizer.zero_grad()
        loss = task.loss(model, task.batch(trial.seed, step))
        loss.backward()
        if task.clip < float("inf"):
            clip_grad_value_(model.parameters(), task.clip)
        optimizer.step()
        scheduler.step()
        step += 1
        if step in noting:
            result["notes"].append([step, short(loss.item()), learned(optimizer)])
        if step in testing:
            optimizer.eval()
            result["tests"].append([step, short(task.test(model))])
            optimizer.train()
        tick(step)
        if time.monotonic() - last > save:
            last = time.monotonic()
            states = {name: part.state_dict() for name, part in parts.items()}
            write({**states, "step": step, "seconds": seconds + last - begin, "result": result}, checkpoint)
    optimizer.eval()
    if trial.keep:
        write(model.state_dict(), folder / trial.keep)
    seconds += time.monotonic() - begin
    last_test, last_note = result["tests"][-1][1], result["notes"][-1][2]
    made = {**about(device), "precision": str(task.precision).removeprefix("torch."), "seconds": round(seconds, 1)}
    return {**made, "test": last_test, "learned": last_note, **result}


def due(steps: int, often: int) -> set[int]:
    """The steps at the ends of `often` equal parts."""
    return {round(steps * part / often) for part in range(1, often + 1)}


def learned(optimizer: Hyperoptimizer) -> list[dict[str, float | None]]:
    """What each level lets be tuned, from the weights up."""
    values, rules = optimizer.hyperparameters(), optimizer.tower.rules
    return [{n: short(level[n]) for n in rule.tuned()} for level, rule in zip(values[:-1], rules, strict=False)]


def short(number: float) -> float | None:
    """Six digits: what a result is known to, and more. None where the number is not finite."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def write(content: Any, path: Path) -> None:
    """The whole file or, if this is stopped, the one that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def about(device: str) -> dict[str, Any]:
    """What it was made with."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores",
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "hypergradient": hypergradient.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def forget(trial: Trial, folder: Path) -> None:
    """Remove the checkpoint."""
    (folder / f"{trial.key}.pt").unlink(missing_ok=True)
