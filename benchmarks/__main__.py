"""Time and memory of ours beside torch.optim, the reference implementation, Prodigy and AdamW-ScheduleFree.

    python -m benchmarks [--quick] [--only CASE …] [--out DIR]

Prints tables and leaves benchmarks.json, benchmarks.md and benchmarks.png in the directory. All of it takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from experiments.machine import processor
from rich.console import Console
from rich.progress import Progress

import hypergradient

from .cases import CASES
from .report import Tables, goals, in_markdown, on_console, plot


def save(tables: Tables, out: Path, quick: bool) -> None:
    """Everything so far, as numbers, as text and as a picture."""
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hypergradient": hypergradient.__version__,
        "quick": quick,
    }
    shown = {**tables, "goals": goals(tables, quick)}
    results = {name: table._asdict() for name, table in shown.items()}
    (out / "benchmarks.json").write_text(json.dumps({**about, "results": results}, indent=1, ensure_ascii=False) + "\n")
    text = ", ".join(f"{name} {value}" for name, value in about.items())
    (out / "benchmarks.md").write_text(in_markdown(text, shown.values()))
    plot(tables, out / "benchmarks.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases; print and save what there is after each."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds for a case, smaller cases: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("bench"), help="directory (default: %(default)s)")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    console, tables = Console(width=None if sys.stdout.isatty() else 128), Tables()
    for name in args.only:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(name, total=1.0)
            found = CASES[name](args.quick, lambda part, task=task: progress.update(task, completed=part))
        for table in found.values():
            console.print(on_console(table))
        tables.update(found)
        save(tables, args.out, args.quick)
    console.print(on_console(goals(tables, args.quick)))
    console.print(f"benchmarks.json, benchmarks.md and benchmarks.png are in {args.out}")


if __name__ == "__main__":
    main()
