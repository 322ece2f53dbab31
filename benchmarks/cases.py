"""The cases: who is measured on what, in tables."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from experiments.models import MLP, ResNet20
from experiments.timing import Maker, Run, Time, interleave, ours, quartiles, ratio, training
from torch import nn

from .contestants import ALL, BASELINES, COMPILED, FOREACH, FUSED, HEIGHTS, REFERENCES, TOWERS, adams, reference, tall
from .measure import cold_and_warm, first_steps, fresh, gradients, peak_bytes, some, step_alone
from .problems import PROBLEMS, GPTBlock, shapes

Tick = Callable[[float], None]
"""Is told the part of a case that is done, from 0 to 1."""


class Table(NamedTuple):
    """Results: a row is a dict of texts, numbers and quartiles (lists of three) by column."""

    title: str
    note: str
    rows: list[dict[str, Any]]


SHAPES = {
    "mlp": shapes(MLP),
    "resnet": shapes(partial(ResNet20, projection=True)),
    "gpt": shapes(lambda: nn.Sequential(*(GPTBlock(width=768, heads=12) for _ in range(12)))),
    "1000": [torch.Size([100])] * 1000,
    "expert": [torch.Size(s) for s in ([64, 32], [64], [32, 64], [32])],
    "memory": [torch.Size([1000, 1000])] * 20,
}
GROUPS = len(COMPILED)
QUICK = 3.0
"""Seconds for a case that is only to be seen running."""
TIMES = f"Quartiles in ms; ratios are taken within a round: (a) is {FOREACH}, (b) {FUSED}."


def contest(
    start: Callable[[Maker], Run], makers: dict[str, Maker], groups: int, seconds: float, tick: Tick
) -> dict[str, dict[str, Any]]:
    """Rows of times by contestant.

    Everybody is measured in turn with the baselines, in groups: no more than fit the memory together, and one compiled
    contestant in each, as the compiler tells several of the same code apart at every call, which costs time.
    """
    rows: dict[str, dict[str, Any]] = {}
    shared: dict[str, list[Time]] = {name: [] for name in BASELINES}
    for i in range(groups):
        group = {**BASELINES, **{name: makers[name] for name in list(makers)[i::groups]}}
        runs = {name: start(make) for name, make in group.items()}
        times = interleave(runs, seconds / groups, 3, lambda part, i=i: tick((i + part) / groups))
        del runs  # before the next ones are made
        gc.collect()
        torch._dynamo.reset()
        for name, sample in shared.items():
            sample += times[name]
        rows.update((name, row(times[name], times)) for name in group if name not in BASELINES)
    return {**{name: row(sample, shared) for name, sample in shared.items()}, **rows}


def row(sample: list[Time], times: dict[str, list[Time]]) -> dict[str, Any]:
    """What is told of a sample, beside the baselines among `times`."""
    total = [t.iteration for t in sample]
    step = [t.step for t in sample]
    return {
        "runs": len(sample),
        "ms": quartiles(total),
        **({"of it the step": quartiles(step)} if step != total else {}),
        "× (a)": ratio(total, [t.iteration for t in times[FOREACH]]),
        "× (b)": ratio(total, [t.iteration for t in times[FUSED]]),
    }


def named(rows: dict[str, dict[str, Any]], order: Any) -> list[dict[str, Any]]:
    """The rows in an order, with the contestants' names."""
    return [{"contestant": name, **rows[name]} for name in order]


def steps(title: str, problem: str, seconds: float, quick: bool, tick: Tick, device: str = "cpu") -> dict[str, Table]:
    """The optimizer's step alone."""
    sizes = SHAPES[problem][:12] if quick and problem == "gpt" else SHAPES[problem]
    grads = gradients(sizes, device)
    makers = {name: make for name, make in ALL.items() if name not in BASELINES}
    rows = contest(lambda make: step_alone(make, sizes, grads, device), makers, GROUPS, QUICK if quick else seconds, tick)
    title = f"{title}: {sum(s.numel() for s in sizes):,} elements in {len(sizes)} tensors"
    return {f"step-{problem}": Table(title, TIMES, named(rows, ALL))}


def experts(quick: bool, tick: Tick, device: str = "cpu") -> dict[str, Table]:
    """The step alone of a layer of experts, of which each batch meets a few."""
    sizes = SHAPES["expert"] * 24
    grads = some(gradients(sizes, device), len(SHAPES["expert"]), 6)
    makers = {name: make for name, make in ALL.items() if name not in {**BASELINES, **REFERENCES, **COMPILED}}
    rows = contest(lambda make: step_alone(make, sizes, grads, device), makers, 1, QUICK if quick else 60, tick)
    note = f"{TIMES} Others of the experts every time."
    return {
        "step-experts": Table("Step alone, 24 experts of four tensors, of which six have a gradient", note, named(rows, rows))
    }


def iterations(title: str, problem: str, seconds: float, quick: bool, tick: Tick, device: str = "cpu") -> dict[str, Table]:
    """Whole training iterations."""
    skipped = REFERENCES if problem == "lstm" else {}
    makers = {name: make for name, make in ALL.items() if name not in {**BASELINES, **skipped}}
    rows = contest(
        lambda make: training(make, PROBLEMS[problem], device=device), makers, GROUPS, QUICK if quick else seconds, tick
    )
    note = TIMES + (" The reference implementation cannot train nn.LSTM." if skipped else "")
    return {f"train-{problem}": Table(title, note, named(rows, {**BASELINES, **makers}))}


KINDS: dict[str, Callable[[int], Maker]] = {
    "eager": lambda height: ours(tall(height), compile=False),
    "compiled": lambda height: ours(tall(height), compile=True),
    "reference": lambda height: reference(lambda: adams(height)),
}


def heights(quick: bool, tick: Tick) -> dict[str, Table]:
    """Towers of Adams: the time by height, and a line through it."""
    chosen = HEIGHTS[:4] if quick else HEIGHTS
    makers = {f"{kind}, height {height}": make(height) for kind, make in KINDS.items() for height in chosen}
    grads = gradients(SHAPES["mlp"])
    rows = contest(lambda make: step_alone(make, SHAPES["mlp"], grads), makers, len(chosen), QUICK if quick else 60, tick)
    lines = []
    for kind in KINDS:
        levels = [height for height in chosen if height > 0]
        medians = [rows[f"{kind}, height {height}"]["ms"][1] for height in levels]
        slope, start = statistics.linear_regression(levels, medians)
        off = max(abs(ms / (start + slope * level) - 1) for level, ms in zip(levels, medians, strict=True))
        lines.append({"contestant": kind, "µs per further level": 1e3 * slope, "largest distance from the line, %": 100 * off})
    note = f"Least squares through the medians of heights {', '.join(map(str, chosen[1:]))}."
    return {
        "heights": Table("Step on the MLP, Adam under so many levels of Adam", TIMES, named(rows, {**BASELINES, **makers})),
        "levels": Table("A further level of Adam, step on the MLP", note, lines),
    }


def memory_of(name: str, count: int) -> dict[str, float]:
    """`peak_bytes` of a contestant on so many millions of parameters."""
    return peak_bytes(ALL[name], SHAPES["memory"][:count])


def memory(quick: bool, tick: Tick) -> dict[str, Table]:
    """Bytes per parameter beyond the weights, each contestant in a process of its own."""
    rows, count = [], 2 if quick else len(SHAPES["memory"])
    for i, name in enumerate(ALL):
        said = fresh(memory_of, name, count)
        rows.append({"contestant": name, "peak": said["iteration"], "peak in the step": said["step"], "kept": said["kept"]})
        tick((i + 1) / len(ALL))
    note = (
        "Every allocation of torch's CPU allocator counts: gradients, state, whatever lives for a moment. Peak: of the "
        "training iteration, where the backward pass delivers the gradients of all parameters at once, so that they are there "
        "twice, as they come in and in p.grad. Kept: between iterations, without gradients."
    )
    return {"memory": Table(f"Bytes per parameter beyond the weights, {count} tensors of 1,000,000", note, rows)}


def compile_of(tower: str) -> float:
    """`first_steps` of a tower on ResNet-20."""
    return first_steps(ours(TOWERS[tower], compile=True), SHAPES["resnet"])


def compile_of_height(height: int) -> float:
    """`first_steps` of so many levels of Adam above Adam on the MLP."""
    return first_steps(ours(tall(height), compile=True), SHAPES["mlp"])


def compile_of_nothing() -> float:
    """Seconds to compile and run a negation: what everybody pays who compiles anything."""
    start = perf_counter()
    torch.compile(lambda x: -x)(torch.ones(8))
    return perf_counter() - start


def compiling(quick: bool, tick: Tick) -> dict[str, Table]:
    """Seconds until the third step is done, with the compiler's cache empty and filled."""
    work: list[tuple[str, int, Callable[..., float], tuple[Any, ...]]] = [
        (f"compiled, {name}", 2, compile_of, (name,)) for name in TOWERS if name != "Adam"
    ]
    work.append((f"compiled, height {HEIGHTS[-1]}", 1, compile_of_height, (HEIGHTS[-1],)))
    work.append(("torch.compile of a negation", 2, compile_of_nothing, ()))
    rows = []
    for i, (name, repeats, function, arguments) in enumerate(work[:1] if quick else work):
        cold, warm = zip(*(cold_and_warm(function, *arguments) for _ in range(1 if quick else repeats)), strict=True)
        rows.append({"contestant": name, "runs": len(cold), "cold, s": quartiles([*cold]), "warm, s": quartiles([*warm])})
        tick((i + 1) / len(work))
    note = (
        "Construction and three steps, each time in a new process; loading the compiler is part of it, importing torch is not."
    )
    return {"compile": Table("Compiling, seconds: towers on ResNet-20, height 50 on the MLP", note, rows)}


def bandwidth(quick: bool, tick: Tick) -> dict[str, Table]:
    """What the memory of the machine allows: how long it takes only to read some numbers per parameter."""
    sizes = [torch.Size([768, 3072])] * (4 if quick else 36)
    arrays = [[torch.rand(size) for size in sizes] for _ in range(4)]
    grads = gradients(sizes)

    def reader(count: int) -> Callable[[Maker], Run]:
        @torch.compile(dynamic=False)
        def read(*x: torch.Tensor) -> torch.Tensor:
            return torch.stack([(x[0] * y).sum() for y in (x[1:] or x)])

        def run() -> Time:
            start = perf_counter()
            for x in zip(*arrays[:count], strict=True):
                read(*x)
            return Time(*[1e3 * (perf_counter() - start)] * 2)

        return lambda _: run

    makers = {f"read {n} numbers": ALL[FUSED] for n in (1, 2, 3, 4)}
    starts = {FUSED: lambda make: step_alone(make, sizes, grads), **{name: reader(int(name[5])) for name in makers}}
    runs = {name: start(ALL[FUSED]) for name, start in starts.items()}
    times = interleave(runs, QUICK if quick else 20, 3, tick)
    rows = [{"what": name, "ms": quartiles([t.step for t in sample])} for name, sample in times.items()]
    for line, sample in zip(rows, times.values(), strict=True):
        line["× (b)"] = ratio([t.step for t in sample], [t.step for t in times[FUSED]])
    note = (
        f"Of {sum(s.numel() for s in sizes):,} parameters; (b) is {FUSED}, which reads 4 numbers per parameter and writes 3. "
        "A hypergradient of the lr has to read 3 before the step, of the betas 4."
    )
    return {"bandwidth": Table("What the memory of this machine allows", note, rows)}


Case = Callable[[bool, Tick], dict[str, Table]]
CASES: dict[str, Case] = {
    "step-mlp": partial(steps, "Step alone, MLP", "mlp", 60),
    "step-resnet": partial(steps, "Step alone, ResNet-20", "resnet", 60),
    "step-gpt": partial(steps, "Step alone, GPT blocks of width 768", "gpt", 200),
    "step-1000": partial(steps, "Step alone, small tensors", "1000", 90),
    "step-experts": experts,
    "train-mlp": partial(iterations, "Training iteration, MLP, batch 256", "mlp", 100),
    "train-resnet": partial(iterations, "Training iteration, ResNet-20, batch 128, channels last", "resnet", 240),
    "train-lstm": partial(iterations, "Training iteration, two-layer LSTM of 128, batch 50, sequence 50", "lstm", 180),
    "train-gpt": partial(iterations, "Training iteration, GPT of 4 layers, width 128, batch 12, sequence 64", "gpt", 180),
    "bandwidth": bandwidth,
    "heights": heights,
    "memory": memory,
    "compile": compiling,
}
ANYWHERE = [name for name in CASES if name.startswith(("step-", "train-"))]
"""What can be run on other devices than the CPU."""
