"""Tables and pictures, from stored results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .catalogue import EXPERIMENTS
from .results import Claim, Experiment, Line, Picture, Study, table
from .runner import Settings, Store


def write_page(settings: Settings) -> Path:
    """The page, beside the folder of the results and named like it, and the pictures in the folder.

    Claims are judged where nothing is missing, and not by the quick protocol. A file ``<experiment>.md`` in the folder is
    what there is to say about the results; it comes after the table.

    Raises:
        FileNotFoundError: there are none.
    """
    suffix = ".quick" if settings.quick else ""
    sections, claims = [], []
    for name, experiment in EXPERIMENTS.items():
        lines, missing = current(experiment, Store(name, settings), settings)
        if not lines:
            continue
        others = [current(EXPERIMENTS[other], Store(other, settings), settings) for other in experiment.needs]
        shown = [*lines, *(line for more, _ in others for line in more)]
        image = settings.out / f"{name}{suffix}.png"
        draw(experiment.picture, experiment.size, shown, image)
        whole = not missing and not any(lacking for _, lacking in others)
        claims += experiment.claims(shown) if whole and not settings.quick else []
        remarks = settings.out / f"{name}.md"
        said = remarks.read_text(encoding="utf-8") if remarks.exists() and not settings.quick else ""
        link = f"![{experiment.title}]({settings.out.name}/{image.name})\n"
        parts = [f"## {experiment.title}\n", made(lines, missing, settings), link, experiment.tables(shown), said]
        sections.append("\n".join(parts).rstrip() + "\n")
    if not sections:
        raise FileNotFoundError(
            f"there are no results{' of --quick' * settings.quick} in {settings.out}; run some, or name another --out"
        )
    intro = settings.out / "introduction.md"
    head = "# Results\n" if settings.quick or not intro.exists() else intro.read_text(encoding="utf-8")
    table_of_claims = ["## The paper's claims\n", listed(claims)] if claims else []
    page = settings.out.parent / f"{settings.out.name}{suffix}.md"
    page.write_text("\n".join([head, *table_of_claims, *sections]), encoding="utf-8")
    return page


def write_study(name: str, study: Study, settings: Settings) -> Path | None:
    """The page of a study, beside the folder of the results, and its pictures beside it; none where there are no results."""
    lines, missing = current(study, Store(name, settings), settings)
    if not lines:
        return None
    stem = f"{name}{'.quick' * settings.quick}"
    pictures = {picture: f"{stem}{'-' * bool(picture)}{picture}.png" for picture in study.pictures}
    for picture, (drawn, size) in study.pictures.items():
        draw(drawn, size, lines, settings.out.parent / pictures[picture])
    page = settings.out.parent / f"{stem}.md"
    parts = [f"# {study.title}\n", made(lines, missing, settings), study.text(lines, pictures)]
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def current(experiment: Experiment | Study, store: Store, settings: Settings) -> tuple[list[Line], int]:
    """The results of the experiment as it is now planned, for all seeds there are; and how many are missing."""
    found = [line["seed"] for line in store.results.values()] or [0]
    seeds = 1 + max(found) - min(found)
    planned = experiment.plan(settings._replace(seeds=seeds), store)
    lines = [store[trial] for trial in planned if trial in store]
    return lines, len(planned) - len(lines)


def draw(picture: Picture, size: tuple[float, float], lines: Sequence[Line], path: Path) -> None:
    """A picture of results."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    picture(lines, figure)
    figure.savefig(path)


def listed(claims: Sequence[Claim]) -> str:
    """Claims as a table."""
    return table(["claim", "paper", "here", ""], [[*claim[:3], f"**{claim.verdict}**"] for claim in claims], left=4)


def made(lines: Sequence[Line], missing: int, settings: Settings) -> str:
    """How much was run, on what, when."""
    seconds = sum(line["seconds"] for line in lines)
    time = f"{seconds / 3600:.1f} process hours" if seconds > 3600 else f"{seconds / 60:.1f} process minutes"
    dates = sorted(line["date"][:10] for line in lines)
    machines = " and ".join(sorted({line["machine"] for line in lines}))
    versions = ", ".join(sorted({f"torch {line['versions']['torch']}" for line in lines}))
    computed = "".join(f", {name}" for name in sorted({line["precision"] for line in lines if "precision" in line}))
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    command = f"`python -m experiments run {lines[0]['experiment']}{' --quick' * settings.quick}`"
    more = f" of {len(lines) + missing}, so far" if missing else ""
    return f"*{command}: {len(lines)} trainings{more}, {time}; {machines}; {versions}{computed}; {when}.*\n"
