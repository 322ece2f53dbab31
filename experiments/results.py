"""What an experiment is, and the words and pictures for its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import trial
from .runner import Plan, Run, Settings

Line = dict[str, Any]
"""A stored result: the trial's configuration and what came of it."""
Picture = Callable[[Sequence[Line], Figure], None]
"""Draws results."""

HOLDS, IN_PART, NOT = "holds", "holds in part", "does not hold"


class Claim(NamedTuple):
    """A claim of the paper beside what was found here."""

    claim: str
    paper: str
    ours: str
    verdict: str


class Experiment(NamedTuple):
    """One table or figure of the paper.

    Args:
        title: of its section on the results page.
        plan: the trials.
        tables: the results in Markdown.
        picture: draws them.
        claims: what of the paper's they bear out.
        size: of the picture, in inches.
        run: what carries out a trial.
        timed: whether trials are run one after the other, for their times.
        needs: other experiments, whose results it shows, too.
    """

    title: str
    plan: Plan
    tables: Callable[[Sequence[Line]], str]
    picture: Picture
    claims: Callable[[Sequence[Line]], list[Claim]]
    size: tuple[float, float] = (6.4, 4.0)
    run: Run = trial.run
    timed: bool = False
    needs: tuple[str, ...] = ()


class Study(NamedTuple):
    """What has a page of its own.

    Args:
        title: of the page.
        plan: the trials.
        run: what carries out a trial.
        text: the page below its head, in Markdown, of the results and of the addresses of the pictures by name.
        pictures: what draws them, and their sizes in inches.
        timed, needs: as of an experiment.
    """

    title: str
    plan: Plan
    run: Run
    text: Callable[[Sequence[Line], Mapping[str, str]], str]
    pictures: Mapping[str, tuple[Picture, tuple[float, float]]]
    timed: bool = False
    needs: tuple[str, ...] = ()


def at(lines: Iterable[Line], **place: Any) -> list[Line]:
    """The results at a place: those whose `at` has these values."""
    return [line for line in lines if all(line["at"].get(name) == value for name, value in place.items())]


def places(lines: Iterable[Line], name: str) -> list[Any]:
    """The different values of a coordinate, in order."""
    return sorted({line["at"][name] for line in lines if name in line["at"]})


def tests(lines: Iterable[Line]) -> list[float]:
    """The tests at the end; inf where a training has diverged."""
    return [inf if line["test"] is None else line["test"] for line in lines]


def mean(lines: Iterable[Line]) -> float:
    """The mean test at the end, over the seeds."""
    return statistics.fmean(tests(lines))


def spread(lines: Sequence[Line], digits: int = 2) -> str:
    """Mean and standard deviation over the seeds, as the paper writes them."""
    found = tests(lines)
    if not found:
        return "–"
    if inf in found:
        return "diverged"
    more = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.{digits}f}{more}"


def verdict(cases: Iterable[bool]) -> str:
    """Of how many of the cases a claim is true: all, some, none."""
    true = list(cases)
    return HOLDS if all(true) else IN_PART if any(true) else NOT


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Markdown; the first `left` columns are text."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(map(line, (header, rule, *rows))) + "\n"


STYLES = [
    {"color": "#222222", "marker": "s", "linestyle": ":"},
    {"color": "#E69F00", "marker": "^", "linestyle": "--"},
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (1, 1))},
    {"color": "#D55E00", "marker": "P", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "X", "linestyle": (0, (3, 1, 1, 1))},
]
"""To be told apart by marker and line where there is no colour."""


def styles() -> Iterator[dict[str, Any]]:
    """One after the other."""
    return iter([{**style, "linewidth": 1.6, "markersize": 5} for style in STYLES])


def frame(axes: Axes, **labels: Any) -> None:
    """The common look."""
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def seeds(settings: Settings, default: int) -> range:
    """The seeds to run for."""
    return range(default if settings.seeds is None else settings.seeds)
