"""Figure 2: ResNet-20 on CIFAR-10 under SGD with momentum, its step size and momentum fixed and tuned.

2a: from nine starts, too low to too high. 2b: from (0.1, 0.9), beside a schedule made by hand: ÷10 at 50 % and 75 %. The
rule above is SGD with a step size for each: α² · 1e-3 for the step size, 1e-6 / (1 - μ) for the momentum.

What 2b trains from (0.1, 0.9) is one of the nine starts, and what is trained for 20 epochs has been trained for 5 on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hypergradient import Rule, Tower

from .paper import sgd, stack
from .results import (
    HOLDS,
    IN_PART,
    NOT,
    Claim,
    Experiment,
    Line,
    at,
    frame,
    mean,
    seeds,
    spread,
    styles,
    table,
    verdict,
)
from .runner import Settings, Store
from .trial import Trial

EPOCH = 391
ALPHAS, MUS = (0.01, 0.1, 1.0), (0.09, 0.9, 0.99)
MIDDLE, HIGH = (0.1, 0.9), (1.0, 0.9)
"""The start of 2b, and the other one that is trained for longer."""
LENGTHS = {5: [(a, m) for a in ALPHAS for m in MUS], 20: [MIDDLE, HIGH]}
"""After how many epochs errors are compared, and from which starts."""
PAPER = {
    (0.01, 0.09): (16.5, 16.8),
    (0.01, 0.9): (12.4, 12.4),
    (0.01, 0.99): (12.0, 11.3),
    (0.1, 0.09): (13.8, 12.3),
    (0.1, 0.9): (13.3, 9.5),
    (0.1, 0.99): (28.5, 16.3),
    (1.0, 0.09): (18.0, 11.2),
    (1.0, 0.9): (33.4, 9.5),
    (1.0, 0.99): (87.4, 19.5),
}
"""Errors after 200 epochs, fixed and tuned, read off the plot."""
FIXED, DROPPED, TUNED = "fixed", "÷10 at 50 % and 75 %", "tuned"


def fixed(alpha: float, mu: float) -> Rule:
    """SGD with momentum and the weight decay of He et al."""
    return sgd(alpha, momentum=mu, weight_decay=1e-4)


def tuned(alpha: float, mu: float) -> Rule | Tower:
    """The same under SGD."""
    return stack(fixed(alpha, mu), sgd({"lr": alpha**2 * 1e-3, "momentum": 1e-6 / (1 - mu)}))


def starts(settings: Settings, store: Store) -> list[Trial]:
    """2a, without what is trained for 2b."""
    trials = []
    for alpha, mu in [HIGH] if settings.quick else [start for start in LENGTHS[5] if start != MIDDLE]:
        epochs = 1 if settings.quick else 20 if (alpha, mu) == HIGH else 5
        steps = 4 if settings.quick else epochs * EPOCH
        for kind, tower in ((FIXED, fixed(alpha, mu)), (TUNED, tuned(alpha, mu))):
            where = {"alpha": alpha, "mu": mu, "kind": kind, "epochs": epochs}
            trials += [Trial("fig2a", "cifar10", tower, steps, seed, where, tested=epochs) for seed in seeds(settings, 1)]
    return trials


def schedules(settings: Settings, store: Store) -> list[Trial]:
    """2b."""
    epochs = 1 if settings.quick else 30
    steps = 4 if settings.quick else epochs * EPOCH
    towers = {FIXED: fixed(0.1, 0.9), DROPPED: fixed(0.1, 0.9), TUNED: tuned(0.1, 0.9)}
    return [
        Trial("fig2b", "cifar10", tower, steps, seed, {"kind": kind}, epochs, 10 * epochs, (0.5, 0.75) * (kind == DROPPED))
        for seed in seeds(settings, 1)
        for kind, tower in towers.items()
    ]


def trained(lines: Iterable[Line], alpha: float, mu: float, kind: str, epochs: int = 1) -> list[Line]:
    """The trainings from a start, as they were after so many epochs; none where they are shorter."""
    tower = repr({FIXED: fixed, TUNED: tuned}[kind](alpha, mu))
    found = [line for line in lines if line["tower"] == tower and not line["drops"] and line["tested"] >= epochs]
    result = []
    for line in found:
        step, test = line["tests"][epochs - 1]
        notes = {step: levels for step, _, levels in line["notes"]}
        result.append({**line, "test": test, "learned": notes[step]})
    return result


def starts_table(lines: Sequence[Line]) -> str:
    """A row per start and length."""
    rows = []
    lengths = LENGTHS if any(line["tested"] > 1 for line in lines) else {1: LENGTHS[5]}
    for epochs, chosen in lengths.items():
        for alpha, mu in chosen:
            kinds = [trained(lines, alpha, mu, kind, epochs) for kind in (FIXED, TUNED)]
            if all(kinds):
                learned = kinds[1][0]["learned"][0]
                theirs = [f"{x:g}" for x in PAPER[alpha, mu]]
                values = f"{learned['lr']:.3g}, {learned['momentum']:.4g}"
                rows.append([str(epochs), f"{alpha:g}", f"{mu:g}", *map(spread, kinds), values, *theirs])
    header = ["epochs", "α", "μ", "fixed", "tuned", "learned α, μ (seed 0)", "paper: fixed", "paper: tuned"]
    return "Test error in %; the paper's after 200 epochs, read off its plot.\n\n" + table(header, rows, left=0)


def starts_picture(lines: Sequence[Line], figure: Figure) -> None:
    """Test error over time from each start."""
    panels = figure.subplots(len(ALPHAS), len(MUS), sharex=False, sharey=True)
    for row, alpha in zip(panels, ALPHAS, strict=True):
        for axes, mu in zip(row, MUS, strict=True):
            for kind, style in zip((FIXED, TUNED), styles(), strict=False):
                for line in trained(lines, alpha, mu, kind)[:1]:
                    errors = [test for _, test in line["tests"]]
                    axes.plot(range(1, len(errors) + 1), errors, label=kind, **{**style, "markersize": 3})
            frame(axes, title=f"α = {alpha:g}, μ = {mu:g}", ylim=(0, 95))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for row in panels:
        row[0].set_ylabel("test error, %")
    panels[1][1].legend(frameon=False)


def starts_claims(lines: Sequence[Line]) -> list[Claim]:
    """Section 4.2 of the paper."""
    result = []
    cases = {
        epochs: {start: [mean(trained(lines, *start, kind, epochs)) for kind in (FIXED, TUNED)] for start in chosen}
        for epochs, chosen in LENGTHS.items()
    }
    for epochs, pairs in cases.items():
        better = [after <= before + 0.5 for before, after in pairs.values()]
        claim = f"2a, {epochs} epochs: tuning never does much worse (0.5 points) than the fixed values, from any start"
        result.append(Claim(claim, "9 of 9", f"{sum(better)} of {len(better)}", verdict(better)))
    gains = {start: before - after for start, (before, after) in cases[5].items()}
    theirs = {start: before - after for start, (before, after) in PAPER.items()}
    high = [start for start in PAPER if start[0] == 1.0 or start[1] == 0.99]
    rest = [start for start in PAPER if start not in high]
    means = [[fmean(found[start] for start in chosen) for chosen in (high, rest)] for found in (theirs, gains)]
    told = f"mean gain {means[1][0]:.1f} points from the five high starts, {means[1][1]:.1f} from the others"
    said = f"{means[0][0]:.1f} and {means[0][1]:.1f} points"
    better = [gains[start] > max(0.0, means[1][1]) for start in high]
    most = HOLDS if means[1][0] > max(0.0, means[1][1]) and all(gains[start] > 0 for start in high) else verdict(better)
    result.append(Claim("2a: it helps most where step size or momentum start too high", said, told, most))
    return result


def schedules_table(lines: Sequence[Line]) -> str:
    """A row per schedule."""
    paper = {FIXED: 12.8, DROPPED: 8.3, TUNED: 8.6}
    rows = []
    for kind, error in paper.items():
        found = at(lines, kind=kind)
        learned = found[0]["learned"] if found else []
        rows.append([kind, spread(found), f"{error:g}", f"{learned[0]['lr']:.4g}" if learned else ""])
    header = ["step size", "test error, %", "paper, 500 epochs", "step size at the end"]
    return table(header, rows) + "\nThe paper's drops are at 20 % and 30 % of its training.\n"


def schedules_picture(lines: Sequence[Line], figure: Figure) -> None:
    """Test error and step size over time."""
    left, right = figure.subplots(1, 2)
    for kind, style in zip((FIXED, DROPPED, TUNED), styles(), strict=False):
        style = {**style, "markersize": 3}
        for line in at(lines, kind=kind)[:1]:
            steps, errors = zip(*line["tests"], strict=True)
            left.plot([step / EPOCH for step in steps], errors, label=kind, **style)
            paths = [(step / EPOCH, levels[0]["lr"]) for step, _, levels in line["notes"] if levels]
            if kind == TUNED:
                right.plot(*zip(*paths, strict=True), label=kind, **{**style, "marker": ""})
            else:
                drops = [0, *(part * steps[-1] / EPOCH for part in line["drops"]), steps[-1] / EPOCH]
                sizes = [0.1 / 10**i for i in range(len(drops) - 1)]
                right.stairs(sizes, drops, baseline=None, color=style["color"], linestyle=style["linestyle"], label=kind)
    frame(left, xlabel="epoch", ylabel="test error, %")
    frame(right, xlabel="epoch", ylabel="step size", yscale="log")
    left.legend(frameon=False)


def schedules_claims(lines: Sequence[Line]) -> list[Claim]:
    """Figure 2b."""
    errors = {kind: mean(found) for kind in (FIXED, DROPPED, TUNED) if (found := at(lines, kind=kind))}
    if len(errors) < 3:
        return []
    end = fmean(line["learned"][0]["lr"] for line in at(lines, kind=TUNED))
    told = ", ".join(f"{kind} {error:.1f}" for kind, error in errors.items())
    near = errors[TUNED] - errors[DROPPED] < 0.25 * (errors[FIXED] - errors[DROPPED])
    decays = HOLDS if 0 < end <= 0.01 else IN_PART if 0 < end < 0.1 else NOT
    return [
        Claim(
            "2b: from (0.1, 0.9) the tower does better than fixed values, and about as well as the schedule made by hand",
            "fixed 12.8, ÷10 8.3, tuned 8.6",
            told,
            HOLDS if near and errors[TUNED] < errors[FIXED] else IN_PART if errors[TUNED] < errors[FIXED] else NOT,
        ),
        Claim("2b: the step size learns to decay by itself", "0.1 → 0.002", f"0.1 → {end:.3g}", decays),
    ]


FIG2A = Experiment(
    "Figure 2a: ResNet-20 on CIFAR-10 from nine starts (reduced protocol: 5 and 20 epochs)",
    starts,
    starts_table,
    starts_picture,
    starts_claims,
    (7.5, 7.0),
    needs=("fig2b",),
)
FIG2B = Experiment(
    "Figure 2b: the learned schedule beside one made by hand (reduced protocol: 30 epochs)",
    schedules,
    schedules_table,
    schedules_picture,
    schedules_claims,
    (8.0, 3.6),
)
