"""Many trainings in several processes. What is finished is stored at once, and nothing is run twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import data
from .tasks import TASKS, Task
from .trial import Result, Tick, Trial, forget, key


class Settings(NamedTuple):
    """How to run: for how many seeds, how long, where."""

    out: Path
    seeds: int | None = None
    workers: int = 2
    quick: bool = False
    device: str = "cpu"

    @property
    def scratch(self) -> Path:
        """The folder of checkpoints."""
        return self.out / "checkpoints"


class Store:
    """The results of an experiment: a JSON line for each, with the configuration; the quick protocol has its own."""

    def __init__(self, experiment: str, settings: Settings) -> None:
        self.path = settings.out / f"{experiment}{'.quick' if settings.quick else ''}.jsonl"
        whole = self.whole() if self.path.exists() else []
        self.results = {key(line): line for line in map(json.loads, whole)}

    def whole(self) -> list[str]:
        """The lines, without one that was being written when the machine stopped."""
        return [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def mend(self) -> None:
        """Remove a line that was cut short."""
        if self.path.exists() and not self.path.read_text().endswith("\n"):
            self.path.write_text("".join(self.whole()))

    def __len__(self) -> int:
        return len(self.results)

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self.results

    def __getitem__(self, trial: Trial) -> dict[str, Any]:
        return self.results[trial.key]

    def add(self, trial: Trial, result: Result) -> None:
        """Write it down."""
        line = self.results[trial.key] = {**trial.configuration, **result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


Run = Callable[[Trial, Any, str, Path, Tick], Result]
"""Carries out a trial on a task (None where a trial needs none) and a device, with a folder for checkpoints."""

tell: Any = None
"""In a worker: the queue to put the key of a trial and its steps in."""
owner = 0
"""In a worker: the process it works for."""

Plan = Callable[[Settings, Store], Sequence[Trial]]
"""The trials of an experiment; more of them when there are the results that they start from."""


@cache
def task(name: str, device: str) -> Task | None:
    """A task with its data, once per process."""
    return TASKS[name].make(device)


@contextmanager
def pool(settings: Settings, told: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that share out the cores. They end with this one, whatever ends it."""
    threads = max(1, (os.cpu_count() or 1) // settings.workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, context, prepare, (threads, told, os.getpid())) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def prepare(threads: int, told: Any, parent: int) -> None:
    """Begin a worker."""
    global tell, owner
    tell, owner = told, parent
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the process that hears it ends this one


def work(run: Run, trial: Trial, device: str, folder: Path) -> Result:
    """One trial in a worker."""

    def tick(step: int) -> None:
        if step % 20 == 0:
            if os.getppid() != owner:
                sys.exit("the process that was to store the result has ended")
            tell.put((trial.key, step))

    return run(trial, task(trial.task, device), device, folder, tick)


def carry_out(name: str, plan: Plan, run: Run, settings: Settings, console: Console) -> Store:
    """Run what is not stored yet, phase by phase: a result can be what other trials start from."""
    store = Store(name, settings)
    store.mend()
    while pending := [trial for trial in plan(settings, store) if trial not in store]:
        for needed in {TASKS[trial.task].data for trial in pending} - {""}:
            data.find(needed)  # fetch it, or fail, before there are processes
        with shown(console, name, pending) as advance:
            for trial, result in results(run, pending, settings, advance):
                store.add(trial, result)
                forget(trial, settings.scratch)
    return store


def results(
    run: Run, pending: Sequence[Trial], settings: Settings, advance: Callable[[str, int], None]
) -> Iterator[tuple[Trial, Result]]:
    """Results as they come; `advance` is told a trial's key and how many steps it has made."""
    if settings.workers == 1:
        for trial in pending:
            tick = lambda step, key=trial.key: advance(key, step)  # noqa: E731
            yield trial, run(trial, task(trial.task, settings.device), settings.device, settings.scratch, tick)
            advance(trial.key, trial.steps)
        return
    told = multiprocessing.get_context("spawn").Queue()
    with pool(settings, told) as executor:
        running = {executor.submit(work, run, trial, settings.device, settings.scratch): trial for trial in pending}
        while running:
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            while True:
                try:
                    advance(*told.get_nowait())
                except queue.Empty:
                    break
            for future in done:
                trial = running.pop(future)
                yield trial, future.result()
                advance(trial.key, trial.steps)


@contextmanager
def shown(console: Console, title: str, pending: Sequence[Trial]) -> Iterator[Callable[[str, int], None]]:
    """A bar over all steps, with the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("of which left"), TimeRemainingColumn(), console=console) as progress:
        bar: TaskID = progress.add_task(title, total=sum(trial.steps for trial in pending))
        done: dict[str, int] = {}
        totals = {trial.key: trial.steps for trial in pending}

        def advance(key: str, step: int) -> None:
            done[key] = max(step, done.get(key, 0))
            finished = sum(done[k] == totals[k] for k in done)
            description = f"{title}: {finished} of {len(pending)} trainings"
            progress.update(bar, completed=sum(done.values()), description=description)

        yield advance
