"""Table 1: an MLP on MNIST under eighteen stacks, and the plain optimizer again at the values learned.

The network has one hidden layer of 128 with tanh on it *and* on the ten outputs; batches of 256. Stacks on SGD and AdaGrad
are trained for 30 epochs, those on Adam and RMSprop for 5. Every tuned stack is followed by two re-runs of the plain rule:
at the values printed in the paper, and at the values that this stack has learned, the mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.figure import Figure

from hypergradient import Rule, Tower

from .paper import adagrad, adam, rmsprop, sgd, stack
from .results import HOLDS, Claim, Experiment, Line, at, frame, mean, seeds, spread, table, verdict
from .runner import Settings, Store
from .trial import Trial, short

EPOCH = 235
EPOCHS = {"SGD": 30, "AdaGrad": 30, "Adam": 5, "RMSprop": 5}
PLAIN: dict[str, Callable[..., Rule]] = {"SGD": sgd, "AdaGrad": adagrad, "Adam": adam, "RMSprop": rmsprop}


class Row(NamedTuple):
    """A row of the paper's table, with what its own code gives on a CPU (3 seeds)."""

    name: str
    tower: Rule | Tower
    paper: float
    learned: Mapping[str, float] = MappingProxyType({})
    paper_again: float | None = None
    code: float | None = None
    code_again: float | None = None

    @property
    def base(self) -> str:
        """The rule on the weights."""
        return self.name.split(" / ")[0].split("(")[0]


LR = {"tune": ("lr",)}
ROWS = [
    Row("SGD", sgd(1e-2), 8.99, code=9.01),
    Row("SGD / SGD", stack(sgd(1e-2), sgd(1e-2)), 4.81, {"lr": 0.0769}, 5.44, 4.96, 5.32),
    Row("SGD / Adam(0.1)", stack(sgd(1e-2), adam(0.1, ahead=1)), 4.86, {"lr": 0.4538}, 2.80, 4.87, 2.71),
    Row("SGD / AdaGrad", stack(sgd(1e-2), adagrad(1e-2)), 4.85, {"lr": 0.0836}, 5.17, 4.93),
    Row("SGD / RMSprop(0.1)", stack(sgd(1e-2), rmsprop(0.1)), 4.52, {"lr": 0.5920}, 2.52, 4.37, 2.55),
    Row("Adam", adam(), 4.67, code=4.55),
    Row(
        "Adam / SGD(1e-5)",
        stack(adam(), sgd(1e-5)),
        3.03,
        {"lr": 0.0040, "beta1": 0.899, "beta2": 0.999},
        3.11,
        3.24,
        3.11,
    ),
    Row("Adam(lr) / SGD(1e-5)", stack(adam(**LR), sgd(1e-5)), 3.12, {"lr": 0.0021}, 3.47, 3.24, 3.56),
    Row("Adam / Adam", stack(adam(), adam(ahead=1)), 3.05, {"lr": 0.0038, "beta1": 0.870, "beta2": 0.999}, 3.24, 3.05, 3.26),
    Row("Adam(lr) / Adam", stack(adam(**LR), adam(ahead=1)), 3.04, {"lr": 0.0036}, 3.08, 2.97),
    Row("AdaGrad", adagrad(), 7.40, code=7.27),
    Row("AdaGrad / SGD", stack(adagrad(), sgd(1e-2)), 6.90, {"lr": 0.0080}, 7.75, 7.22, 7.60),
    Row("AdaGrad / AdaGrad", stack(adagrad(), adagrad()), 5.03, {"lr": 0.0151}, 6.67, 5.14, 6.50),
    Row("RMSprop", rmsprop(), 4.19, code=4.32),
    Row("RMSprop(lr) / SGD(1e-4)", stack(rmsprop(**LR), sgd(1e-4)), 3.55, {"lr": 0.0030}, 3.93, 3.39),
    Row("RMSprop / SGD(1e-4)", stack(rmsprop(), sgd(1e-4)), 3.33, {"lr": 0.0032, "alpha": 0.9899}, 3.25, 3.45, 3.29),
    Row("RMSprop(lr) / RMSprop(1e-4)", stack(rmsprop(**LR), rmsprop(1e-4)), 3.42, {"lr": 0.0021}, 3.60, 3.12),
    Row("RMSprop / RMSprop(1e-4)", stack(rmsprop(), rmsprop(1e-4)), 2.96, {"lr": 0.0020, "alpha": 0.9962}, 3.65, 3.09, 3.42),
]
QUICK = [row for row in ROWS if row.name in ("SGD", "SGD / SGD", "Adam", "Adam / Adam")]
TOWER, OWN, PAPER = "tower", "re-run at the values learned here", "re-run at the paper's values"


def plan(settings: Settings, store: Store) -> list[Trial]:
    """Every row; and the re-runs, those at the values learned as soon as they are."""
    trials = []
    for row in QUICK if settings.quick else ROWS:
        steps = EPOCH * (1 if settings.quick else EPOCHS[row.base])

        def again(tower: Rule | Tower, run: str, row: Row = row, steps: int = steps) -> list[Trial]:
            place = {"row": row.name, "run": run}
            return [Trial("table1", "mnist", tower, steps, seed, place) for seed in seeds(settings, 1 if settings.quick else 3)]

        first = again(row.tower, TOWER)
        trials += first
        if row.learned:
            trials += again(PLAIN[row.base](**row.learned), PAPER)
            if all(trial in store for trial in first):
                trials += again(PLAIN[row.base](**means([store[trial] for trial in first])), OWN)
    return trials


def means(lines: Sequence[Line]) -> dict[str, float]:
    """What was learned on the weights, the mean over the seeds."""
    found = [line["learned"][0] for line in lines if line["learned"]]
    return {name: short(fmean(values[name] for values in found)) for name in found[0]} if found else {}


def tables(lines: Sequence[Line]) -> str:
    """The paper's table, with what was found here beside it."""

    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.2f}"

    rows = []
    for row in ROWS:
        tower, own, again = (at(lines, row=row.name, run=run) for run in (TOWER, OWN, PAPER))
        if tower:
            here, learned = (", ".join(f"{x:.4g}" for x in values.values()) for values in (means(tower), row.learned))
            rows.append(
                [row.name, spread(tower), number(row.paper), number(row.code), here, learned]
                + ([spread(own), spread(again), number(row.paper_again), number(row.code_again)] if row.learned else [""] * 4)
            )
    header = ["stack", "here", "paper", "paper's code", "learned here", "in the paper"]
    more = ["re-run at values learned here", "re-run at the paper's values", "paper's re-run", "paper's code"]
    return "Test error in %, mean ± standard deviation.\n\n" + table([*header, *more], rows)


def picture(lines: Sequence[Line], figure: Figure) -> None:
    """Here against the paper, a point per stack and per re-run."""
    axes = figure.subplots()
    axes.axline((2.4, 2.4), slope=1, color="#999999", linewidth=1, label="equal")
    for label, run, marker in (("stacks", TOWER, "o"), ("re-runs at the paper's values", PAPER, "^")):
        both = [(row.paper if run == TOWER else row.paper_again, at(lines, row=row.name, run=run)) for row in ROWS]
        points = [(paper, mean(found)) for paper, found in both if paper is not None and found]
        axes.scatter(*zip(*points, strict=True), marker=marker, label=label, s=36, alpha=0.85) if points else None
    frame(axes, xlabel="test error in the paper (%)", ylabel="test error here (%)", aspect=1)
    axes.legend(frameon=False)


def claims(lines: Sequence[Line]) -> list[Claim]:
    """Section 4.1 of the paper."""
    errors = {row.name: mean(found) for row in ROWS if (found := at(lines, row=row.name, run=TOWER))}
    own = {row.name: mean(found) for row in ROWS if (found := at(lines, row=row.name, run=OWN))}
    tuned = [row for row in ROWS if row.learned and row.name in errors]
    better = [errors[row.name] < errors[row.base] for row in tuned]
    better_again = [own[row.name] < errors[row.base] for row in tuned if row.name in own]
    beaten = [errors[row.name] < own[row.name] for row in tuned if row.name in own]
    plain = {row.name: row.paper for row in ROWS}
    printed = [(row.paper, row.paper_again, plain[row.base]) for row in ROWS if row.paper_again is not None]
    again = {row.name: mean(found) for row in ROWS if (found := at(lines, row=row.name, run=PAPER))}

    def near(found: Mapping[str, float], stated: Mapping[str, tuple[float | None, float | None]]) -> Claim:
        cases = [min(abs(found[name] - x) for x in stated[name] if x is not None) <= 0.35 for name in found]
        what = "the stacks" if found is errors else "the re-runs at the paper's values"
        claim = f"Table 1: mean errors of {what}, within 0.35 points of the paper or of its code"
        return Claim(claim, "–", f"{sum(cases)} of {len(cases)}", verdict(cases))

    def counted(claim: str, theirs: Sequence[bool], ours: Sequence[bool]) -> Claim:
        most = HOLDS if sum(ours) >= sum(theirs) else verdict(ours)  # in as many cases as in the paper
        return Claim(claim, f"{sum(theirs)} of {len(theirs)}", f"{sum(ours)} of {len(ours)}", most)

    return [
        counted(
            "Table 1: the tuned stack has a lower error than the plain optimizer it starts from",
            [tower < plain for tower, _, plain in printed],
            better,
        ),
        counted(
            "Table 1: the values learned are better than the initial ones: the plain optimizer does better at them",
            [again < plain for _, again, plain in printed],
            better_again,
        ),
        counted(
            "Table 1: the tuned stack does better than the plain optimizer at the values learned",
            [tower < again for tower, again, _ in printed],
            beaten,
        ),
        near(errors, {row.name: (row.paper, row.code) for row in ROWS}),
        near(again, {row.name: (row.paper_again, row.code_again) for row in ROWS}),
    ]


TABLE1 = Experiment("Table 1: eighteen stacks on MNIST", plan, tables, picture, claims, (5.2, 5.2))
