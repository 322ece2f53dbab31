"""The page of the study: its tables and pictures, from stored results alone, however many there are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import product
from math import inf
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .methods import AVERAGED, CALM, DEFAULT, GRIDS, OURS, PEERS, STARTS, TUNED, VARIANTS, grid
from .results import Line, frame, styles, table
from .sensitivity_tasks import HELD_OUT, NAMES

Row = tuple[str, int]
"""A task, and for how many steps."""
MEASURES = {"loss": "validation loss", "train": "training loss", "error": "validation error"}


class Contestant(NamedTuple):
    """One or several methods, of which the best on a task counts; validated as trained, or at the average."""

    methods: Sequence[str]
    where: str = "final"


AVERAGE = f"{DEFAULT}, average"
ADAM, COSINE, PEER = "best fixed Adam", "best Adam, cosine", "best peer"
CONTESTANTS = {
    f"{name}{', average' * (where == 'average')}": Contestant([name], where)
    for name in (DEFAULT, TUNED, *OURS, *PEERS)
    for where in ("final", "average")
    if where == "final" or name in AVERAGED
} | {
    f"best {'fixed ' * (not schedule)}{family}{schedule}": Contestant(grid(family, [schedule]))
    for family in GRIDS
    for schedule in ("", ", cosine")
}
"""By what the page calls them."""
CROWDED = 12
"""The seed whose times are not compared: it was trained while other work ran."""
UNTIMED = CALM, "auto(SGD(momentum=0.9))"
"""The methods of which the same is true."""
TARGETS = {ADAM: 1.03, COSINE: 1.05, PEER: 1.03}
"""How many times their validation loss the default's may be."""
OTHERS = (
    (STARTS, 1.03, f"from {', '.join(name.split()[-1] for name in STARTS)}"),
    (VARIANTS, 1.05, "gain × 4 or ÷ 4, horizon and r × 2 or ÷ 2"),
)
"""Other starts and other numbers of the default's: how many times its own loss it may then be."""


def contestant(name: str) -> Contestant:
    """By what the page calls it, or by the name of its method."""
    return CONTESTANTS.get(name, Contestant([name]))


def value(line: Line, where: str, what: str = "loss") -> float | None:
    """Of a result; inf where it has diverged."""
    return inf if line["diverged"] else (line[where] or {}).get(what)


def median(values: Sequence[float | None]) -> float | None:
    """None where there are none, or where one is."""
    return None if not values or None in values else statistics.median(values)


class Results:
    """Stored results, by task and method."""

    def __init__(self, lines: Sequence[Line]) -> None:
        names, self.found = list(NAMES), {}
        self.machine = statistics.mode(line["machine"] for line in lines)
        for line in lines:
            self.found.setdefault((line["task"], line["steps"]), {}).setdefault(line["tower"], []).append(line)
        self.rows: list[Row] = sorted(self.found, key=lambda row: (row[1], names.index(row[0])))

    def of(self, row: Row, method: str) -> list[Line]:
        """The results of a method on a task, a line per seed."""
        return self.found[row].get(method, [])

    def seeds(self, row: Row, name: str) -> set[int]:
        """Those that all of a contestant's methods have been run with that have been run."""
        methods = PEERS if name == PEER else contestant(name).methods
        each = [{line["seed"] for line in lines} for method in methods if (lines := self.of(row, method))]
        return set.intersection(*each) if each else set()

    def best(self, row: Row, name: str, what: str = "loss", seeds: Set[int] | None = None) -> tuple[float | None, str]:
        """The least of a contestant's methods, and which it is: of medians over its seeds, or over those that are given; inf
        where it has diverged, None where nothing is known. The best peer is the best of all of them.
        """
        seeds = self.seeds(row, name) if seeds is None else seeds
        if name == PEER:
            peers = (each for each in CONTESTANTS if contestant(each).methods[0] in PEERS)
            found = [(self.best(row, each, what, seeds)[0], each) for each in peers]
        else:
            methods, where = contestant(name)
            lines = {method: [line for line in self.of(row, method) if line["seed"] in seeds] for method in methods}
            found = [(median([value(line, where, what) for line in mine]), method) for method, mine in lines.items()]
        return min(((x, which) for x, which in found if x is not None), default=(None, ""))

    def ratio(self, row: Row, name: str, base: str = ADAM, what: str = "loss") -> float | None:
        """How many times the base's, for the same seeds; 0 where that has diverged alone, None where both have, or where it is
        0 or unknown.
        """
        seeds = self.seeds(row, name) & self.seeds(row, base)
        above, below = (self.best(row, each, what, seeds)[0] for each in (name, base))
        return None if above is None or not below or above == below == inf else above / below

    def ratios(self, name: str, base: str = ADAM) -> dict[Row, float]:
        """Of the tasks where both are known."""
        return {row: x for row in self.rows if (x := self.ratio(row, name, base)) is not None}

    def beside(self, methods: Iterable[str], where: str) -> dict[Row, dict[str, float]]:
        """The losses of methods in times of the default's, for the same seeds."""
        found: dict[Row, dict[str, float]] = {}
        for row in self.rows:
            for method in methods:
                theirs = {line["seed"]: value(line, where) for line in self.of(row, method)}
                ours = {line["seed"]: value(line, where) for line in self.of(row, DEFAULT) if line["seed"] in theirs}
                above, below = (median([values[seed] for seed in ours]) for values in (theirs, ours))
                if above is not None and below and below < inf:
                    found.setdefault(row, {})[method] = above / below
        return found

    def reached(self, row: Row, name: str) -> float | None:
        """The part of the steps after which the curve is where the best fixed Adam's ends; inf if it never is."""
        goals = {line["seed"]: line["curve"][-1][1] for line in self.of(row, self.best(row, ADAM)[1]) if not line["diverged"]}
        column, parts = 2 if contestant(name).where == "average" else 1, []
        for line in self.of(row, self.best(row, name)[1]):
            if goal := goals.get(line["seed"]):
                below = [point[0] for point in line["curve"][1:] if point[column] is not None and point[column] <= goal]
                parts.append(min(below, default=inf) / row[1])
        return median(parts)

    def cost(self, row: Row, name: str, part: int) -> float | None:
        """Of a step (0), or of the optimizer in it (1), in times of Adam's, on the machine that most were run on."""
        ours, adam = (
            [line["ms"][part] for one in contestant(each).methods for line in self.of(row, one) if self.timed(line)]
            for each in (name, ADAM)
        )
        return statistics.median(ours) / statistics.median(adam) if ours and adam else None

    def timed(self, line: Line) -> bool:
        """Whether its times can be compared with others."""
        alone = line["seed"] != CROWDED and line["tower"] not in UNTIMED
        return bool(line["ms"]) and line["machine"] == self.machine and alone


def label(row: Row) -> str:
    """A task as the page has it."""
    return f"{row[0]}{'†' * (row[0] in HELD_OUT)}{f', {row[1]:,} steps' * (row[1] > 600)}"


def number(x: float | None, digits: str = ".2f", infinite: str = "diverged") -> str:
    """As the page has it."""
    return "–" if x is None else infinite if x == inf else f"{x:{digits}}"


def start_of(method: str) -> str:
    """The step size in its name."""
    return method.rpartition(" ")[2]


def worst(ratios: Mapping[Row, float]) -> str:
    """The greatest, and on which task."""
    row = max(ratios, key=ratios.__getitem__)
    return f"{number(ratios[row])}, {label(row)}"


def counted(ratios: Mapping[Row, float], limit: float) -> list[str]:
    """On how many tasks it is met, on how many of those held out, and the worst."""
    if not ratios:
        return ["–", "–"]
    unseen = [x for (task, _), x in ratios.items() if task in HELD_OUT]
    held = f" (held out: {sum(x <= limit for x in unseen)} of {len(unseen)})" if unseen else ""
    return [f"{sum(x <= limit for x in ratios.values())} of {len(ratios)}{held}", worst(ratios)]


def targets(results: Results) -> str:
    """A row per target: how often it is met."""
    rows = []
    for base, limit in TARGETS.items():
        cells = [cell for name in (DEFAULT, AVERAGE) for cell in counted(results.ratios(name, base), limit)]
        rows.append([f"at most {limit} × {base}", *cells])
    for methods, limit, words in OTHERS:
        each = [results.beside(methods, where) for where in ("final", "average")]
        cells = [cell for found in each for cell in counted({row: max(mine.values()) for row, mine in found.items()}, limit)]
        rows.append([f"{words}: at most {limit} × its own", *cells])
    return table(["validation loss", "as trained", "worst", "at the average", "worst"], rows, left=5)


PAIRS = [(DEFAULT, ADAM), (AVERAGE, ADAM), (COSINE, ADAM), (PEER, ADAM), (AVERAGE, COSINE), (AVERAGE, PEER)]


def together(results: Results) -> str:
    """A row per task: three measures side by side."""
    rows = []
    for row in results.rows:
        counts = sorted(
            {len(lines) for method, lines in results.found[row].items() if method not in {**STARTS, **VARIANTS}}
        ) or [0]
        seeds = "–".join(map(str, counts if len(counts) < 2 else (counts[0], counts[-1])))
        absolute = " / ".join(number(results.best(row, ADAM, what)[0], ".4g") for what in MEASURES)
        ratios = (" / ".join(number(results.ratio(row, *pair, what)) for what in MEASURES) for pair in PAIRS)
        rows.append([label(row), seeds, absolute, start_of(results.best(row, ADAM)[1]), *ratios])
    names = {DEFAULT: "default", AVERAGE: "average", ADAM: "Adam"}
    header = ["task", "seeds", ADAM, "its lr", *(" ÷ ".join(names.get(name, name) for name in pair) for pair in PAIRS)]
    return table(header, rows)


def methods(results: Results) -> str:
    """A row per method: over all tasks."""
    rows = []
    for name in CONTESTANTS:
        if not (ratios := results.ratios(name)):
            continue
        against = [{} if name in (DEFAULT, AVERAGE) else results.ratios(ours, name) for ours in (DEFAULT, AVERAGE)]
        lower = [f"{sum(x < 1 for x in found.values())} of {len(found)}" if found else "" for found in against]
        parts = [part for row in results.rows if (part := results.reached(row, name)) is not None]
        steps = f"{number(median(parts), '.0%', 'never')} ({sum(x <= 1 for x in parts)} of {len(parts)})"
        costs = [[x for row in results.rows if (x := results.cost(row, name, part)) is not None] for part in (0, 1)]
        lines = [line for row in results.rows for method in CONTESTANTS[name].methods for line in results.of(row, method)]
        diverged = f"{sum(line['diverged'] for line in lines)} of {len(lines)}"
        middle = number(median(list(ratios.values())))
        rows.append([name, *lower, middle, worst(ratios), steps, *(number(median(part)) for part in costs), diverged])
    header = ["", "default lower", "average lower", "loss ÷ Adam, median", "worst", "reaches Adam's loss after"]
    return table([*header, "step ÷ Adam's", "optimizer ÷ Adam's", "diverged"], rows)


def everything(results: Results, what: str) -> str:
    """A row per task, a column per method."""
    rows = [row for row in results.rows if results.best(row, ADAM, what)[0] is not None]
    names = [name for name in CONTESTANTS if name != ADAM and any(results.ratio(row, name, what=what) for row in rows)]
    cells = ((number(results.ratio(row, name, what=what)) for name in names) for row in rows)
    least = (number(results.best(row, ADAM, what)[0], ".4g") for row in rows)
    return table(
        ["task", ADAM, *names], ([label(row), best, *rest] for row, best, rest in zip(rows, least, cells, strict=True))
    )


def others(results: Results, methods: Iterable[str]) -> str:
    """A row per task, a column per method."""
    final, average = (results.beside(methods, where) for where in ("final", "average"))
    rows = [
        [label(row), *(" / ".join(number(found[row].get(name), ".3f") for found in (final, average)) for name in methods)]
        for row in results.rows
        if row in final and row in average
    ]
    return table(["task", *(name.removeprefix(DEFAULT).lstrip(", ") for name in methods)], rows) if rows else "Not run yet.\n"


WHY = """Where the default falls behind, as far as is known: on small data that are seen many times (the regression; the MLP
for 6,000 steps) its training loss is among the lowest, and it overfits sooner than smaller steps do. On the quadratic, whose
noise is as large as its curvature, and where a loss can be driven to nearly nothing (sorting, adding, factorization, sines),
the best cosine begins at up to fifteen times the step size that the default ends with, and comes down from there; the default
finds one that can be held. There it differs from seed to seed by a factor of two and more. What is missing is not the end of
the cosine: to let the default's lr fall to 0 in the last fifth of the steps changes little there.

On reversing the step size overshoots within the first fifty steps. The loss falls the faster for it, so nothing tells, and the
network does not recover. A quarter of the tuner's gain would end at 0.6 times the best fixed Adam's loss there. Half of it,
which the tables have, too, leaves the median of all tasks where it is, but the loss is two to three times the default's where
that can be driven to nearly nothing (sorting, adding, sines).

A weight decay, `auto(weight_decay=0.1)`, helps on data that are seen many times, makes no difference to speak of on most, and
ruins what needs large weights (sorting, adding, factorization, sines): so the default has none.

To tune on a part of the data that is set aside (`tune_on`) has not helped here: of 331 patients the 66 that say what to do say
too little, and the step size overshoots; on the others it makes no difference that a seed does not.

The default's numbers (its start, r, its horizon, the gain, the fading and the span of its tuner, how much tensors and elements
count in its cosine) were chosen on the tasks without a †, with the seeds 0 to 2. llama-text and gpt2-text are models of the
package transformers, made small.
"""
OTHERS_SAID = """The default's validation loss, as trained / at the average, in times of that with its own, of three seeds the
median. Starts from 1e-8 and 1e-6 cost 2 and 1 % in the median of the tasks, and up to 6 % on real data, where seeds are as far
apart; higher ones than its own, 7.8e-5, are lowered to that. The gain is the lr of its tuner. Twice or half the horizon, or r,
changes no more than 5 % on 16 tasks, and up to 12 % on others with real data; four times or a quarter of the gain costs 5 to
7 % in the median, and up to 27 % on real data.
"""
ABOUT = """Each task is trained for 600 steps by every method, and five of them for 6,000 by most. Numbers are medians over the
seeds, and ratios of the seeds that both were run with. Where several methods or step sizes stand behind a name ("best …"), the
least median counts, for each measure by itself: what is called best has been chosen on the validation data, the default has
not. The training loss is that of 3,000 samples at the end. † nothing was tuned on these.

`default` is `Hyperoptimizer(model.parameters())`, validated as trained and, from the same training, at its average
(`optimizer.eval()`, batch-norm statistics anew from 20 batches), as are all methods that average. `tune_on`: where data are
few or seen many times, the same with a fifth of the training data set aside, which its step size follows. Fixed step sizes are
every half decade, from 1e-4 to 0.1 for Adam and AdamW (weight decay 0.01; on gpt-text and lstm-text alone), from 1e-3 to 1 for
SGD with momentum 0.9. "cosine" is, over the same step sizes, a linear warm-up in 5 % of the steps and half a cosine to 0.
Peers are as they are where nothing is set: Prodigy, D-Adaptation, schedule-free AdamW, ProdigyPlusScheduleFree, DoG (with its
authors' averaging) and Mechanic around AdamW.
"""


METHODS_SAID = """Of all tasks, by validation loss. Adam is the best fixed Adam, and where costs are compared all of its grid;
they were taken on the machine that most trainings were made on, of two seeds, on different days, those of the default
while other work ran, those of towers of the paper's form before steps were played from a tape: times side by side
are in [Benchmarks](benchmarks.md). When its loss is reached is seen at 20 points, on 300 samples.
"""


def text(lines: Sequence[Line], pictures: Mapping[str, str]) -> str:
    """The page below its head."""
    results = Results(lines)
    sections = [
        ABOUT,
        "## Targets\n",
        targets(results),
        WHY,
        f"![Validation loss against the step size, a panel per task]({pictures['']})\n",
        "## Validation loss / training loss / validation error\n",
        together(results),
        "## Methods\n",
        METHODS_SAID,
        methods(results),
        f"![Part of the tasks on which a method is within a factor of the best]({pictures['profile']})\n",
        "## Other starts, other numbers\n",
        OTHERS_SAID,
        *(others(results, methods) for methods, *_ in OTHERS),
        *(part for what in MEASURES for part in (f"## All: {MEASURES[what]} ÷ {ADAM}\n", everything(results, what))),
    ]
    return "\n".join(sections)


def curves(lines: Sequence[Line], figure: Figure) -> None:
    """Loss against Adam's step size, a panel per task; the others as lines across."""
    results = Results(lines)
    rows = [row for row in results.rows if row[1] == results.rows[0][1]]
    panels = figure.subplots(-(-len(rows) // 3), min(3, len(rows)), squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        panel(axes, results, row)
    for axes in panels[len(rows) :]:
        axes.remove()
    figure.supxlabel("Adam's step size")
    figure.supylabel("validation loss")
    handles = {name: handle for axes in figure.axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)


def panel(axes: Axes, results: Results, row: Row) -> None:
    """One task. What is more than twenty times the least is not shown."""
    looks, shown, seeds = styles(), [], results.seeds(row, ADAM) or None
    for name, schedule in (("Adam", ""), ("Adam, cosine", ", cosine")):
        points = [(lr, results.best(row, f"Adam {lr:g}{schedule}", seeds=seeds)[0]) for lr in GRIDS["Adam"][1]]
        points = [(lr, x) for lr, x in points if x is not None and x < inf]
        look = next(looks)
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **look)
            shown += [x for _, x in points]
    for name in (AVERAGE, DEFAULT, "Prodigy"):
        look, x = {**next(looks), "marker": ""}, results.best(row, name, seeds=seeds)[0]
        if x is not None and x < inf:
            axes.axhline(x, label=name, **look)
            shown.append(x)
    frame(axes, title=label(row), xscale="log", yscale="log")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 1.5, 2, 3, 5, 7)), major_formatter="{x:g}")
    axes.minorticks_off()
    if shown:
        axes.set_ylim(min(shown) / 1.1, 1.1 * min(max(shown), 20 * min(shown)))


SHOWN = (ADAM, COSINE, AVERAGE, "Adam 0.001", "Prodigy", "schedule-free AdamW, average", "ProdigyPlusScheduleFree, average")

FAR = 1e6
"""A factor as good as infinite."""


def profile(lines: Sequence[Line], figure: Figure) -> None:
    """For every factor the part of the tasks on which a method's validation loss is within it of the least."""
    results, axes = Results(lines), figure.subplots()
    losses: dict[Row, dict[str, float]] = {row: {} for row in results.rows}
    for row, name in product(results.rows, SHOWN):
        if (x := results.best(row, name, seeds=results.seeds(row, ADAM) or None)[0]) is not None:
            losses[row][name] = x
    for name, look in zip(SHOWN, styles(), strict=True):
        factors = sorted(min(FAR, found[name] / min(found.values())) for found in losses.values() if name in found)
        if factors:
            parts = [i / len(factors) for i in range(len(factors) + 1)]
            axes.step([1, *factors, FAR], [*parts, parts[-1]], where="post", label=name, **{**look, "marker": ""})
    ends = {"xscale": "log", "xlim": (1, 2), "ylim": (0, 1.02)}
    frame(axes, xlabel="factor", ylabel="part of the tasks within it of the least loss", **ends)
    axes.set_xticks(ticks := [1, 1.03, 1.1, 1.2, 1.5, 2], map(str, ticks))
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


PICTURES = {"": (curves, (9.0, 12.0)), "profile": (profile, (7.0, 4.5))}
