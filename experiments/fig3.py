"""Figure 3: a character LSTM on War and Peace under Adam, its step size and betas fixed and tuned.

The rule above is SGD with a step size for each: α · 1e-2 for the step size, 1e-4 for beta1, 2e-4 for beta2. The model is
`torch.nn.LSTM`, which the paper's own code cannot train. Beside it, what the paper does not have: the library's default,
which is given no step size, and the same with a weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hypergradient import Rule, Tower, auto

from .paper import adam, sgd, stack
from .results import Claim, Experiment, Line, at, frame, mean, places, seeds, spread, styles, table, verdict
from .runner import Settings, Store
from .trial import Trial

PAPER = {1e-4: ("8.71 ± 0.91", "6.51 ± 0.88"), 2e-3: ("5.27 ± 0.31", "5.41 ± 0.26"), 1e-2: ("5.77 ± 0.34", "5.45 ± 0.76")}
"""Fixed and tuned, by α."""
STEPS = {1e-4: 50_000, 2e-3: 50_000, 1e-2: 10_000}
KINDS = FIXED, TUNED = "fixed", "tuned"
DEFAULTS = {"default": auto(), "auto(weight_decay=0.1)": auto(weight_decay=0.1)}


def tower(alpha: float, kind: str) -> Rule | Tower:
    """Adam, and Adam under SGD."""
    above = [sgd({"lr": alpha * 1e-2, "beta1": 1e-4, "beta2": 2e-4})] if kind == TUNED else []
    return stack(adam(alpha), *above)


def plan(settings: Settings, store: Store) -> list[Trial]:
    """Every α, fixed and tuned; and the default, without and with a weight decay."""

    def trial(optimizer: Rule | Tower, steps: int, seed: int, at: Mapping[str, Any]) -> Trial:
        steps, tested = (10, 2) if settings.quick else (steps, 25)
        return Trial("fig3", "text", optimizer, steps, seed, at, tested=tested, noted=100)

    of_the_paper = [
        trial(tower(alpha, kind), steps, seed, {"alpha": alpha, "kind": kind})
        for alpha, steps in STEPS.items()
        for seed in seeds(settings, 1)
        for kind in KINDS
        if not settings.quick or alpha == 2e-3
    ]
    ours = [trial(made, 50_000, seed, {"kind": kind}) for kind, made in DEFAULTS.items() for seed in seeds(settings, 1)]
    return of_the_paper + ours


def tables(lines: Sequence[Line]) -> str:
    """A row per α."""
    rows = []
    for alpha in places(lines, "alpha"):
        kinds = [at(lines, alpha=alpha, kind=kind) for kind in KINDS]
        if all(kinds):
            learned = ", ".join(f"{x:.4g}" for x in kinds[1][0]["learned"][0].values())
            rows.append([f"{alpha:g}", f"{kinds[0][0]['steps']:,}", *map(spread, kinds), learned, *PAPER[alpha]])
    for kind in DEFAULTS:
        for line in at(lines, kind=kind)[:1]:
            learned = f"{line['learned'][0]['lr']:.4g}"
            rows.append([kind, f"{line['steps']:,}", "", spread(at(lines, kind=kind)), learned, "", ""])
    header = ["α", "steps", "fixed", "tuned", "learned lr, beta1, beta2 (seed 0)", "paper: fixed", "paper: tuned"]
    return "Test perplexity; the paper's after 50,000 steps.\n\n" + table(header, rows, left=0)


def picture(lines: Sequence[Line], figure: Figure) -> None:
    """Perplexity, and what is learned, over time; a panel per α."""
    alphas = places(lines, "alpha")
    panels = figure.subplots(2, len(alphas), squeeze=False)
    for (top, bottom), alpha in zip(panels.T, alphas, strict=True):
        shown = [at(lines, alpha=alpha, kind=kind)[:1] for kind in KINDS] + [at(lines, kind=kind)[:1] for kind in DEFAULTS]
        for found, style in zip(shown, styles(), strict=False):
            for line in found:
                steps = STEPS[alpha]
                tests = [point for point in line["tests"] if point[0] <= steps]
                top.plot(*zip(*tests, strict=True), label=line["at"]["kind"], **{**style, "markersize": 3})
                lrs = [(step, levels[0]["lr"] if levels else alpha) for step, _, levels in line["notes"] if step <= steps]
                bottom.plot(*zip(*lrs, strict=True), label=line["at"]["kind"], **{**style, "marker": ""})
        frame(top, title=f"α = {alpha:g}", ylabel="test perplexity", yscale="log")
        top.yaxis.set(major_formatter="{x:.3g}", minor_formatter="{x:.3g}")
        frame(bottom, xlabel="step", ylabel="step size", yscale="log")
    panels[0][0].legend(frameon=False)


def claims(lines: Sequence[Line]) -> list[Claim]:
    """Section 4.3 of the paper."""
    pairs = {}
    for alpha in places(lines, "alpha"):
        kinds = [at(lines, alpha=alpha, kind=kind) for kind in KINDS]
        if all(kinds):
            pairs[alpha] = tuple(mean(kind) for kind in kinds)
    told = {alpha: f"α = {alpha:g}: {before:.2f} → {after:.2f}" for alpha, (before, after) in pairs.items()}
    bad = [alpha for alpha in pairs if alpha != 2e-3]
    result = []
    if bad:
        result.append(
            Claim(
                "3: from a step size that is too small or too large, tuning gives a better perplexity",
                "1e-4: 8.71 → 6.51; 1e-2: 5.77 → 5.45",
                "; ".join(told[alpha] for alpha in bad),
                verdict(pairs[alpha][1] < pairs[alpha][0] for alpha in bad),
            )
        )
    if 2e-3 in pairs:
        before, after = pairs[2e-3]
        result.append(
            Claim(
                "3: from a good step size, tuning does about as well (within 5 %)",
                "2e-3: 5.27 → 5.41",
                told[2e-3],
                verdict([after < 1.05 * before]),
            )
        )
    return result


FIG3 = Experiment(
    "Figure 3: LSTM on War and Peace (10,000 instead of 50,000 steps from 1e-2)", plan, tables, picture, claims, (9.0, 5.0)
)
