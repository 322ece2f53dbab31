"""Many trainings in several processes. What is finished is stored at once, and nothing is run twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
        *whole, self.cut = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        self.results = {key(line): line for line in map(json.loads, whole)}

    def mend(self) -> None:
        """Remove a line that was being written when the machine stopped."""
        if self.cut:
            os.truncate(self.path, self.path.stat().st_size - len(self.cut))
            self.cut = b""

    def __len__(self) -> int:
        return len(self.results)

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self.results

    def __getitem__(self, trial: Trial) -> dict[str, Any]:
        return self.results[trial.key]

    def add(self, trial: Trial, result: Result) -> None:
        """Write it down."""
        file = TASKS[trial.task].data
        line = self.results[trial.key] = {**trial.configuration, "data": data.find(file).name if file else "", **result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


Run = Callable[[Trial, Any, str, Path, Tick], Result]
"""Carries out a trial on a task (None where a trial needs none) and a device, with a folder for checkpoints."""

tell: Any = None
"""In a worker: the queue to put the key of a trial and its steps in."""

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
    with ProcessPoolExecutor(settings.workers, context, prepare, (threads, told)) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def prepare(threads: int, told: Any) -> None:
    """Begin a worker."""
    global tell
    tell = told
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the process that hears it ends this one
    threading.Thread(target=follow, daemon=True).start()


def follow() -> None:
    """End when the parent has ended, however that was: nobody would store the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def work(run: Run, trial: Trial, device: str, folder: Path) -> Result:
    """One trial in a worker."""

    def tick(step: int) -> None:
        if step % 20 == 0:
            tell.put((trial.key, step))

    return run(trial, task(trial.task, device), device, folder, tick)


def carry_out(name: str, plan: Plan, run: Run, settings: Settings, console: Console) -> Store:
    """Run what is not stored yet, phase by phase: a result can be what other trials start from.

    Raises:
        RuntimeError: trainings failed; the others have been run.
    """
    store = Store(name, settings)
    store.mend()
    for trial in plan(settings, store):
        if trial in store:
            forget(trial, settings.scratch)  # if this was stopped between the two
    while pending := [trial for trial in plan(settings, store) if trial not in store]:
        failed = []
        with shown(console, name, pending) as advance:
            for trial, result in results(run, pending, settings, advance):
                if isinstance(result, Exception):
                    failed.append(f"{name}, {dict(trial.at)}, seed {trial.seed}: {result!r}")
                else:
                    store.add(trial, result)
                    forget(trial, settings.scratch)
        if failed:
            raise RuntimeError("\n".join([f"{len(failed)} trainings failed:", *failed]))
    return store


def fetch(plan: Plan, name: str, settings: Settings) -> None:
    """Find the data of an experiment, or fail, before anything runs."""
    store = Store(name, settings)
    for needed in {TASKS[trial.task].data for trial in plan(settings, store) if trial not in store} - {""}:
        data.find(needed)


def results(
    run: Run, pending: Sequence[Trial], settings: Settings, advance: Callable[[str, int], None]
) -> Iterator[tuple[Trial, Result | Exception]]:
    """Results, or why there are none, as they come; `advance` is told a trial's key and how many steps it has made."""
    if settings.workers == 1:
        for trial in pending:
            try:
                tick = partial(advance, trial.key)
                result = run(trial, task(trial.task, settings.device), settings.device, settings.scratch, tick)
            except Exception as error:
                result = error
            yield trial, result
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
                yield trial, future.exception() or future.result()
                advance(trial.key, trial.steps)


@contextmanager
def shown(console: Console, title: str, pending: Sequence[Trial]) -> Iterator[Callable[[str, int], None]]:
    """A bar over all steps, with the time that is left."""
    columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), BarColumn())
    columns += (TextColumn("{task.percentage:.1f} %"), TimeElapsedColumn(), TextColumn("past, left"), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        bar: TaskID = progress.add_task(title, total=sum(trial.steps for trial in pending))
        done: dict[str, int] = {}
        totals = {trial.key: trial.steps for trial in pending}

        def advance(key: str, step: int) -> None:
            done[key] = max(step, done.get(key, 0))
            finished = sum(done[k] == totals[k] for k in done)
            description = f"{title}: {finished} of {len(pending)} trainings"
            progress.update(bar, completed=sum(done.values()), description=description)

        yield advance
