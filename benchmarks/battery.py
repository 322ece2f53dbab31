"""The battery of `benchmarks.probes` on our rules and on optimizers of others; writes the table of the documentation.

    python -m benchmarks.battery [--only NAME] [--out docs/battery.md]

A cell is what happened: nothing if the probe passed, else what failed it. Single process, CPU, float32.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree
from torch import nn

from .probes import PROBES, Contestant, ours, run

VERSIONS = ("torch", "prodigyopt", "schedulefree", "gradient-descent-the-ultimate-optimizer")
LEGEND = (
    "*refuses*: it has no meaning for the rule, and a clear error says so. A ✓ under sparse gradient: refused by a clear "
    "error, before anything has moved."
)


class Reference(gdtuo.ModuleWrapper):  # type: ignore[misc]
    """The reference implementation, used as its own examples do."""

    create_graph = True

    def __init__(self, model: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError("takes a module, not parameters or groups")
        super().__init__(model, gdtuo.Adam(0.01, optimizer=gdtuo.SGD(1e-5)))
        self.initialize()

    def zero_grad(self) -> None:
        self.begin()
        super().zero_grad()


def params(source: Any) -> Any:
    return source.parameters() if isinstance(source, nn.Module) else source


def schedule_free(source: Any) -> torch.optim.Optimizer:
    optimizer = AdamWScheduleFree(params(source), lr=0.01)
    optimizer.train()
    return optimizer


def peers() -> list[Contestant]:
    return [
        Contestant("torch AdamW", lambda source: torch.optim.AdamW(params(source), lr=0.01)),
        Contestant("Prodigy", lambda source: Prodigy(params(source))),
        Contestant("schedulefree AdamW", schedule_free),
        Contestant("reference, Adam / SGD", Reference),
    ]


def outcome(probe: str, contestant: Contestant) -> str:
    """Why the contestant fails the probe; "" where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(probe, contestant)
        except Exception as error:
            text = str(error).strip().split("\n")[0]
            return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
    return ""


def brief(text: str, most: int = 110) -> str:
    text = text.replace("|", "/").replace("`", "'")
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


def report(rows: dict[str, dict[str, str]], refusing: dict[str, set[str]]) -> str:
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in VERSIONS)
    names = list(PROBES)
    lines = [
        "# The battery",
        "",
        "Thirteen probes of what scripts and trainers do with their optimizer, one process: `benchmarks/probes.py` says what",
        "each asks. The tests run them on our rules; the others are here for the record, in their default settings.",
        f"Made with `python -m benchmarks.battery` on {datetime.date.today().isoformat()}, Python {platform.python_version()},",
        f"CPU, float32; {versions}.",
        "",
        "| | passed | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for name, cells in rows.items():
        marks = ["fails" if cells[p] else "refuses" if p in refusing[name] else "✓" for p in names]
        lines.append(f"| {name} | {sum(not c for c in cells.values())} | " + " | ".join(marks) + " |")
    lines += ["", LEGEND, "", "## What failed", ""]
    for name, cells in rows.items():
        lines += [f"- {name}, {probe}: {brief(text)}" for probe, text in cells.items() if text]
    if lines[-1] == "":
        lines.append("Nothing.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="contestants whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("docs/battery.md"))
    options = parser.parse_args()
    contestants = [c for c in [*ours(), *peers()] if options.only in c.name]
    rows: dict[str, dict[str, str]] = {}
    for contestant in contestants:
        rows[contestant.name] = {probe: outcome(probe, contestant) for probe in PROBES}
        print(f"{contestant.name}: {sum(not c for c in rows[contestant.name].values())} of {len(PROBES)}", flush=True)
    options.out.write_text(report(rows, {c.name: set(c.refuses) for c in contestants}))


if __name__ == "__main__":
    main()
