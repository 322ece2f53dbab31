"""Time and memory of ours beside torch.optim, the reference implementation, Prodigy and AdamW-ScheduleFree.

    python -m benchmarks [--quick] [--only CASE …] [--device DEVICE] [--out DIR]

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
from functools import partial
from pathlib import Path

import torch
from experiments.machine import processor
from rich.console import Console
from rich.progress import Progress

import hypergradient

from .cases import ANYWHERE, CASES
from .report import Tables, goals, in_markdown, on_console, plot


def save(tables: Tables, out: Path, quick: bool, device: str) -> None:
    """Everything so far, as numbers, as text and as a picture."""
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hypergradient": hypergradient.__version__,
        "quick": quick,
    }
    shown = {**tables, "goals": goals(tables, quick)} if device == "cpu" else tables
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
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("bench"), help="directory (default: %(default)s)")
    parser.add_argument(
        "--device",
        default="cpu",
        help="as torch names it: cpu, cuda; on others than the CPU there are steps and iterations alone",
    )
    args = parser.parse_args(arguments)
    names = args.only or [name for name in CASES if args.device == "cpu" or name in ANYWHERE]
    if args.device != "cpu" and (others := {*names} - {*ANYWHERE}):
        parser.error(f"--only {' '.join(sorted(others))} with --device {args.device}: there are {', '.join(ANYWHERE)}")
    quick, out = args.quick, args.out
    out.mkdir(parents=True, exist_ok=True)
    console, tables = Console(width=None if sys.stdout.isatty() else 128), Tables()
    for name in names:
        case = partial(CASES[name], device=args.device) if name in ANYWHERE else CASES[name]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(name, total=1.0)
            found = case(quick, lambda part, task=task: progress.update(task, completed=part))
        for table in found.values():
            console.print(on_console(table))
        tables.update(found)
        save(tables, out, quick, args.device)
    if args.device == "cpu":  # for which they are set
        console.print(on_console(goals(tables, quick)))
    console.print(f"benchmarks.json, benchmarks.md and benchmarks.png are in {out}")


if __name__ == "__main__":
    main()
