"""Figure 4: taller towers are less sensitive to where they start.

4a, 4b: SGD towers of an MLP on MNIST, 30 epochs. 4c: ResNet-20 on CIFAR-10 under SGD with momentum. 4d: the LSTM on War and
Peace under Adam. In 4a every level starts at the same step size α; in the others the levels above have step sizes of their
own, as the paper's text has them, and are SGD. Beyond the paper: 4a for heights 5, 10 and 20. 4e, in the paper a ResNet-152
from ImageNet on Caltech-256, has a stand-in: a ResNet-20 from five classes of CIFAR-10 on the other five.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hypergradient import Rule, Tower

from .paper import adam, sgd, stack
from .results import HOLDS, IN_PART, NOT, Claim, Experiment, Line, at, frame, mean, places, seeds, spread, styles, table
from .runner import Plan, Settings, Store
from .trial import Trial

Paper = Mapping[float, Sequence[float]]
"""What was read off the paper's plot: by initial step size, a result per height."""
Make = Callable[[float, int], Rule | Tower]
"""Of the initial step size and the height."""


def same(alpha: float, height: int) -> Rule | Tower:
    """4a: SGD, every level at α."""
    return stack(*(sgd(alpha) for _ in range(height + 1)))


def above(alpha: float, height: int) -> list[Rule]:
    """The levels above in 4b–d."""
    lrs = [alpha * 1e2, alpha, alpha * 1e-2] if alpha <= 1e-4 else [alpha * 1e-3, alpha * 1e-4, 1e-8]
    return [sgd(lr) for lr in lrs[:height]]


def graded(bottom: Callable[[float], Rule], alpha: float, height: int) -> Rule | Tower:
    """4b–d: a rule at α below levels that have step sizes of their own."""
    return stack(bottom(alpha), *above(alpha, height))


def grid(
    name: str,
    task: str,
    make: Make,
    alphas: Sequence[float],
    heights: Sequence[int],
    steps: int,
    few: tuple[Sequence[float], Sequence[int], int],
    tall: Sequence[int] = (),
    compiled: int = 5,
) -> Plan:
    """Every initial step size with every height.

    Args:
        few: step sizes, heights and steps of the quick protocol.
        tall: heights beyond the paper's.
        compiled: the least height at which compiling pays, in a training that is not short.
    """

    def plan(settings: Settings, store: Store) -> list[Trial]:
        some, high, short = few if settings.quick else (alphas, [*heights, *tall], steps)
        return [
            Trial(
                name,
                task,
                make(alpha, h),
                short,
                seed,
                {"alpha": alpha, "height": h},
                compile=h >= compiled and not settings.quick,
            )
            for h in high
            for seed in seeds(settings, 1)
            for alpha in some
        ]

    return plan


def tables(paper: Paper, unit: str, lines: Sequence[Line]) -> str:
    """A row per initial step size, a column per height; in brackets what was read off the paper's plot."""
    heights, rows = places(lines, "height"), []
    for alpha in places(lines, "alpha"):
        row = [f"{alpha:g}"]
        for h in heights:
            said = paper.get(alpha, ())
            row.append(spread(at(lines, alpha=alpha, height=h)) + (f" ({said[h]:g})" if h < len(said) else ""))
        rows.append(row)
    brackets = "; in brackets the paper's, read off its plot" if paper else ""
    about = f"{unit[:1].upper()}{unit[1:]}{brackets}.\n\n"
    return about + table(["α", *(f"height {h}" for h in heights)], rows, left=0)


def picture(unit: str, logarithmic: bool, lines: Sequence[Line], figure: Figure) -> None:
    """A curve per height."""
    axes = figure.subplots()
    for h, style in zip(places(lines, "height"), styles(), strict=False):
        alphas = places(at(lines, height=h), "alpha")
        axes.plot(alphas, [mean(at(lines, height=h, alpha=a)) for a in alphas], label=f"height {h}", **style)
    scale = {"yscale": "log"} if logarithmic else {}
    frame(axes, xscale="log", xlabel="initial step size α", ylabel=unit, **scale)
    if logarithmic:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=4, frameon=False)


def widths(lines: Sequence[Line], good: float) -> dict[int, int]:
    """By height: from how many initial step sizes the result is `good` or better."""
    return {
        h: sum(mean(at(lines, height=h, alpha=a)) <= good for a in places(at(lines, height=h), "alpha"))
        for h in places(lines, "height")
    }


def rises(numbers: Sequence[float]) -> str:
    """Whether they rise: holds where none falls and the last is greater than the first, in part where only this is so."""
    more = numbers[-1] > numbers[0]
    return HOLDS if more and all(b >= a for a, b in pairwise(numbers)) else IN_PART if more else NOT


def claims(name: str, good: float, unit: str, paper: Paper, lines: Sequence[Line]) -> list[Claim]:
    """What the figure is there to show; for the paper's heights, and for those beyond."""
    alphas, heights = places(lines, "alpha"), places(lines, "height")
    found = widths(lines, good)
    known = [row for row in paper.values() if len(row) >= len([h for h in heights if h <= 3])]
    theirs = [f"height {h}: {sum(row[h] <= good for row in known)} of {len(known)}" for h in heights if h <= 3 and known]
    result = []
    for some, whose in (([h for h in heights if h <= 3], theirs), ([h for h in heights if h >= 3], [])):
        if len(some) < 2:
            continue
        told = ", ".join(f"height {h}: {found[h]} of {len(alphas)}" for h in some)
        wide = f"{name}: the taller the tower, the more initial step sizes end at a {unit} of at most {good:g}"
        result.append(Claim(wide, ", ".join(whose) or "–", told, rises([found[h] for h in some])))
        errors = [mean(at(lines, height=h, alpha=alphas[0])) for h in some]
        stated = " → ".join(f"{x:g}" for x in paper.get(alphas[0], ())) if some[0] == 0 else ""
        low = f"{name}: from α = {alphas[0]:g}, far too small, each further level does better"
        told = " → ".join(f"{x:.1f}" for x in errors) + (f" (heights {', '.join(map(str, some))})" if some[0] else "")
        result.append(Claim(low, stated or "–", told, rises([-x for x in errors])))
    return result


def figure(
    title: str, name: str, plan: Plan, paper: Paper, unit: str, good: float, logarithmic: bool = False, stands_in: str = ""
) -> Experiment:
    """One of the panels; `stands_in`: what to add to its name where it is not the paper's."""
    return Experiment(
        title,
        plan,
        partial(tables, paper, unit),
        partial(picture, unit, logarithmic),
        partial(claims, name[3:] + stands_in, good, unit.split(",")[0], paper),
    )


DECADES = [10.0**k for k in range(-8, 3)]
PAPER_4A = {
    1e-8: (88.5, 77.7, 13.5, 10.1),
    1e-6: (87.3, 16.3, 8.7, 7.7),
    1e-4: (36.1, 8.3, 5.8, 5.2),
    1e-2: (9.1, 4, 4, 3.9),
    1e0: (2.4, 4, 4, 4.2),
    1e1: (3.1, 6.9, 4, 4.0),
    1e2: (55, 58, 58.8, 29.1),
}
FIG4A = figure(
    "Figure 4a: SGD towers on MNIST, every level at α",
    "fig4a",
    grid("fig4a", "mnist", same, DECADES, range(4), 30 * 235, ([1e-4, 1e-2], [0, 1, 2], 235), tall=(5, 10, 20)),
    PAPER_4A,
    "test error, %",
    10,
    logarithmic=True,
)
FIG4B = figure(
    "Figure 4b: SGD towers on MNIST, step sizes by level",
    "fig4b",
    grid("fig4b", "mnist", partial(graded, sgd), DECADES, range(4), 30 * 235, ([1e-4, 1e-2], [0, 1], 30), compiled=2),
    {},
    "test error, %",
    10,
    logarithmic=True,
)
FIG4C = figure(
    "Figure 4c: ResNet-20 on CIFAR-10, SGD towers (reduced protocol: 3 epochs, and not from 1e-8)",
    "fig4c",
    grid(
        "fig4c",
        "cifar10",
        partial(graded, partial(sgd, momentum=0.9, weight_decay=1e-4)),
        [1e-6, 1e-4, 1e-2, 1.0],
        range(4),
        3 * 391,
        ([1e-4], [0, 1], 3),
    ),
    {1e-6: (79, 20, 14, 14), 1e-4: (41, 18, 14, 13), 1e-2: (13, 12.5, 15.5, 13), 1.0: (59, 39, 21, 14)},
    "test error, %",
    50,
)
FIG4D = figure(
    "Figure 4d: LSTM on War and Peace, Adam under SGD towers (reduced protocol: 3,000 steps)",
    "fig4d",
    grid("fig4d", "text", partial(graded, adam), [1e-7, 1e-5, 1e-3, 1e-2], range(4), 3000, ([1e-5, 1e-3], [0, 1], 10)),
    {1e-7: (65, 27, 9.2, 6.2), 1e-5: (33, 10.7, 7, 6.8), 1e-3: (7.3, 6.9, 6.5, 7.5)},
    "test perplexity",
    12,
    logarithmic=True,
)

PRETRAINED = "fig4e-pretrained{}.pt"


def fine_tuning(settings: Settings, store: Store) -> list[Trial]:
    """4e: a model of classes 0–4, and when there is one, towers that train it on classes 5–9 with a new last layer."""
    epoch = 1 if settings.quick else 196
    weights = PRETRAINED.format(".quick" if settings.quick else "")
    bottom = partial(sgd, momentum=0.9, weight_decay=1e-4)
    first = Trial("fig4e", "cifar10, classes 0–4", bottom(0.1), 10 * epoch, 0, drops=(0.5, 0.75), keep=weights)
    if first not in store:
        return [first]
    heights, alphas = ([0, 1], [1e-4]) if settings.quick else (range(3), [1e-6, 1e-4, 1e-2])
    return [first] + [
        Trial(
            "fig4e",
            "cifar10, classes 5–9",
            graded(bottom, alpha, h),
            (1 if settings.quick else 5) * epoch,
            seed,
            {"alpha": alpha, "height": h},
            start=weights,
        )
        for h in heights
        for seed in seeds(settings, 1)
        for alpha in alphas
    ]


FIG4E = figure(
    "Figure 4e, a stand-in: ResNet-20, pretrained on five classes of CIFAR-10, fine-tuned on the other five",
    "fig4e",
    fine_tuning,
    {},
    "test error, %",
    30,
    stands_in=" (a stand-in)",
)
