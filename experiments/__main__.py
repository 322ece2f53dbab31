"""The paper's experiments, and studies beyond it.

python -m experiments list
python -m experiments run table1 fig4a [--data DIR] [--seeds N] [--workers N] [--quick] [--device cpu] [--out DIR]
python -m experiments run sensitivity
python -m experiments run scripts
python -m experiments run long
python -m experiments report [--quick] [--out DIR]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .catalogue import EXPERIMENTS, STUDIES
from .data import FOLDER
from .report import write_page, write_study
from .runner import Settings, carry_out, fetch

app = typer.Typer(add_completion=False, help="The experiments of Gradient Descent: The Ultimate Optimizer.")
console = Console()
KNOWN = {**EXPERIMENTS, **STUDIES}
Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Quick = Annotated[bool, typer.Option("--quick", help="A smaller protocol of every experiment: minutes in all.")]


@app.command("list")
def names() -> None:
    """What there is to run."""
    for name, experiment in KNOWN.items():
        console.print(f"[bold]{name:<11}[/bold] {experiment.title}", soft_wrap=True)


@app.command()
def run(
    experiments: Annotated[list[str], typer.Argument(help=f"Some of {', '.join(KNOWN)}; or all of the paper's: all.")],
    out: Out = Path("results"),
    quick: Quick = False,
    data: Annotated[
        Path | None,
        typer.Option(help=f"Folder of the data sets; default: {FOLDER}, or fetch them.", exists=True, file_okay=False),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; default: the experiment's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share out the cores.")] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Run what is not in the results yet. A run that was stopped goes on where it was, in the middle of a training too."""
    chosen = list(EXPERIMENTS) if "all" in experiments else experiments
    if unknown := [name for name in chosen if name not in KNOWN]:
        raise typer.BadParameter(f"no experiment {', '.join(unknown)}; there are {', '.join(KNOWN)}, all")
    chosen = list(dict.fromkeys(each for name in chosen for each in (*KNOWN[name].needs, name)))
    if data:
        os.environ[FOLDER] = str(data.resolve())
    settings = Settings(out, seeds, workers, quick, device)
    try:
        for name in chosen:
            fetch(KNOWN[name].plan, name, settings)
        for name in chosen:
            experiment = KNOWN[name]
            here = settings._replace(workers=1) if experiment.timed else settings
            store = carry_out(name, experiment.plan, experiment.run, here, console)
            console.print(f"{name}: {len(store)} results in {store.path}")
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


@app.command()
def report(out: Out = Path("results"), quick: Quick = False) -> None:
    """Tables and pictures of the stored results: a page beside the folder for the paper's, and one for each study."""
    settings = Settings(out.resolve(), quick=quick)
    pages = [write_study(name, study, settings) for name, study in STUDIES.items()]
    try:
        pages.append(write_page(settings))
    except FileNotFoundError as error:
        if not any(pages):
            console.print(str(error), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from None
    for page in filter(None, pages):
        console.print(f"the results are in {page}")


if __name__ == "__main__":
    app()
