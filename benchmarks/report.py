"""Tables on the console and in Markdown, the goals, the plot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import rich.table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .cases import Table
from .contestants import ADAM_ADAM, BETAS, DEFAULT, LONG, LR

Tables = dict[str, Table]


COMPILE = tuple(f"compiled, {tower}" for tower in (DEFAULT, LR, BETAS, LONG, ADAM_ADAM))


class Goal(NamedTuple):
    """A figure that is to be reached: in a table, a column; the largest of the contestants counts."""

    text: str
    table: str
    column: str
    must: float
    contestants: tuple[str, ...]

    def measured(self, tables: Tables) -> float | None:
        """None where it has not been measured."""
        rows = [r for r in tables[self.table].rows if r["contestant"] in self.contestants] if self.table in tables else []
        return max((middle(r[self.column]) for r in rows), default=None) if len(rows) == len(self.contestants) else None


A, B = "× (a)", "× (b)"


def both(tower: str) -> tuple[str, str]:
    """A tower, eager and compiled."""
    return f"eager, {tower}", f"compiled, {tower}"


GOALS = [
    Goal("85M: plain Adam, compiled, × fused", "step-gpt", B, 1.1, ("compiled, Adam",)),
    Goal("85M: the default, compiled, × fused", "step-gpt", B, 1.25, (f"compiled, {DEFAULT}",)),
    Goal("85M: lr, compiled, × fused", "step-gpt", B, 1.8, (f"compiled, {LR}",)),
    Goal("85M: lr and betas, compiled, × fused", "step-gpt", B, 2.1, (f"compiled, {BETAS}",)),
    Goal("85M: lr, horizon 100, cosine, compiled, × fused", "step-gpt", B, 1.8, (f"compiled, {LONG}",)),
    Goal("85M: the default, eager, × foreach", "step-gpt", A, 1.0, (f"eager, {DEFAULT}",)),
    Goal("ResNet-20: the default, eager, × foreach", "step-resnet", A, 1.2, (f"eager, {DEFAULT}",)),
    Goal("ResNet-20: the default, compiled, × foreach", "step-resnet", A, 0.6, (f"compiled, {DEFAULT}",)),
    Goal("MLP: the default, eager, × foreach", "step-mlp", A, 2.5, (f"eager, {DEFAULT}",)),
    Goal("MLP: the default, compiled, × foreach", "step-mlp", A, 1.2, (f"compiled, {DEFAULT}",)),
    Goal("1000 tensors: the default, eager, × foreach", "step-1000", A, 0.45, (f"eager, {DEFAULT}",)),
    Goal("iteration, MLP: the default, eager, × foreach", "train-mlp", A, 1.3, (f"eager, {DEFAULT}",)),
    Goal("iteration, ResNet-20: the default, eager, × foreach", "train-resnet", A, 1.02, (f"eager, {DEFAULT}",)),
    Goal("iteration, LSTM: the default, eager, × foreach", "train-lstm", A, 1.03, (f"eager, {DEFAULT}",)),
    Goal("iteration, GPT: the default, eager, × foreach", "train-gpt", A, 1.04, (f"eager, {DEFAULT}",)),
    Goal("a further Adam level, eager, µs", "levels", "µs per further level", 200, ("eager",)),
    Goal("compiling cold, s, longest of the towers", "compile", "cold, s", 12, COMPILE),
    Goal("compiling warm, s, longest of the towers", "compile", "warm, s", 3.5, COMPILE),
    Goal("height 50, compiling cold, s", "compile", "cold, s", 60, ("compiled, height 50",)),
    Goal("bytes per parameter: the default", "memory", "peak", 17, both(DEFAULT)),
    Goal("bytes per parameter: lr", "memory", "peak", 16.5, both(LR)),
    Goal("bytes per parameter: lr and betas", "memory", "peak", 20.5, both(BETAS)),
]


def middle(value: Any) -> float:
    """The median of quartiles; a number is its own."""
    return value[1] if isinstance(value, list) else value


def goals(tables: Tables, quick: bool) -> Table:
    """Each goal of which something was measured beside that; judged unless it was in a hurry."""
    rows = []
    for goal in GOALS:
        if (measured := goal.measured(tables)) is not None:
            reached = "?" if quick else "yes" if measured <= goal.must else "no"
            rows.append({"goal": goal.text, "at most": goal.must, "measured": measured, "reached": reached})
    note = "Not judged: few runs, and some cases smaller than their names say." if quick else "Medians."
    return Table("What it must reach", note, rows)


def short(number: float) -> str:
    """Three digits."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def cell(value: Any) -> str:
    """A value of a table as text; quartiles as median (lower–upper)."""
    if isinstance(value, list):
        return f"{short(value[1])} ({short(value[0])}–{short(value[2])})"
    return short(value) if isinstance(value, float) else "" if value is None else str(value)


def columns(table: Table) -> list[str]:
    """All columns, those of the first row first."""
    return list(dict.fromkeys(name for row in table.rows for name in row))


def cells(table: Table) -> Iterator[list[str]]:
    """The rows as texts."""
    for row in table.rows:
        yield [cell(row.get(name)) for name in columns(table)]


def on_console(table: Table) -> rich.table.Table:
    """For `rich` to print."""
    result = rich.table.Table(title=table.title, caption=table.note)
    for i, name in enumerate(columns(table)):
        result.add_column(name, justify="right" if i else "left")
    for row in cells(table):
        result.add_row(*row)
    return result


def in_markdown(about: str, tables: Iterable[Table]) -> str:
    """A section for each table, after the picture that lies beside it."""
    picture = "![Ratios to torch's foreach Adam, and bytes per parameter](benchmarks.png)"
    parts = [f"# Benchmarks\n\n{about}\n\nMade with `make bench`.\n\n{picture}\n"]
    for table in tables:
        names = columns(table)
        lines = [names, ["---", *["---:"] * (len(names) - 1)], *cells(table)]
        parts.append(f"## {table.title}\n\n{table.note}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


COLOURS = {"torch": "#222222", "eager": "#0072B2", "compiled": "#E69F00", "reference": "#CC79A7"}


def colour(name: str) -> str:
    """By kind of contestant; grey for the rest."""
    return next((c for kind, c in COLOURS.items() if name.startswith(kind)), "#888888")


def draw_ratios(axes: Axes, table: Table, names: list[str], scale: str) -> None:
    """Times as multiples of torch's foreach Adam: medians with quartiles."""
    for row in table.rows:
        low, median, high = row[A]
        y = names.index(row["contestant"])
        style = {"color": colour(row["contestant"]), "linewidth": 1.5, "markersize": 5}
        axes.errorbar(median, y, xerr=[[median - low], [high - median]], fmt="o", **style)
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.set(xscale=scale, ylim=(len(names) - 0.5, -0.5), xlabel="× torch Adam, foreach")
    if scale == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_title("\n".join(textwrap.wrap(table.title, 34)), fontsize=9)
    axes.set_yticks(range(len(names)), labels=names)


def draw_heights(axes: Axes, table: Table) -> None:
    """Time of a step by height."""
    for kind in ("eager", "compiled", "reference"):
        rows = [r for r in table.rows if r["contestant"].startswith(kind)]
        levels = [int(r["contestant"].split()[-1]) for r in rows]
        axes.plot(levels, [r["ms"][1] for r in rows], "o-", color=COLOURS[kind], markersize=4, label=kind)
    axes.set(xlabel="levels above", ylabel="ms", xscale="symlog", yscale="log")
    axes.set_xticks(levels, labels=map(str, levels))
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.set_title("Step on the MLP by height", fontsize=9)


def draw_bars(axes: Axes, table: Table, column: str, title: str) -> None:
    """One column as bars."""
    names = [r["contestant"] for r in table.rows]
    axes.barh(names, [middle(r[column]) for r in table.rows], color=[colour(n) for n in names])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)


def plot(tables: Tables, path: Path) -> None:
    """All of it in one picture: times above, the rest below."""
    timed = [name for name in tables if name.startswith(("step", "train"))]
    names = list(dict.fromkeys(r["contestant"] for name in timed for r in tables[name].rows))
    rest = [name for name in ("heights", "memory", "compile") if name in tables]
    wide, tall = min(4, len(timed)), -(-len(timed) // 4)
    theme: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with matplotlib.rc_context(theme):
        size = (2.4 + max(2.8 * wide, 3.7 * len(rest)), 4 * (tall + bool(rest)))
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        heights = [tall, 1] if timed and rest else [1]
        parts = iter(figure.subfigures(len(heights), height_ratios=heights, squeeze=False).flat)
        if timed:
            grid = next(parts).subplots(tall, wide, sharey=True, squeeze=False).flat
            for name, axes in zip_longest(timed, grid):
                if name is None:
                    axes.set_axis_off()
                else:
                    draw_ratios(axes, tables[name], names, "log" if name.startswith("step") else "linear")
        if rest:
            for name, axes in zip(rest, next(parts).subplots(1, len(rest), squeeze=False).flat, strict=True):
                if name == "heights":
                    draw_heights(axes, tables[name])
                elif name == "memory":
                    draw_bars(axes, tables[name], "peak", "Peak bytes per parameter\nbeyond the weights")
                else:
                    draw_bars(axes, tables[name], "cold, s", "Seconds to compile, cold")
        figure.savefig(path)
