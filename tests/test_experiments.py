"""The paper's experiments: what they claim, on MNIST where it is at hand; and the tool, on small stand-ins of the data.

A training that is stopped and goes on ends where it would have ended; nothing is run twice; every quick protocol runs and
has its section on the results page.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from experiments import data, fig2, fig3, reference, runner
from experiments.__main__ import app
from experiments.catalogue import EXPERIMENTS
from experiments.data import FOLDER, HOMES
from experiments.fig4 import graded
from experiments.paper import adam, rmsprop, sgd, stack
from experiments.report import current
from experiments.results import HOLDS, IN_PART, NOT, mean, places, spread
from experiments.runner import Settings, Store, carry_out
from experiments.table1 import OWN, PAPER, ROWS
from experiments.tasks import shuffled
from experiments.trial import Trial, due, key, run
from helpers import EVERY, everything
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

SILENT = Console(quiet=True)
REAL = os.environ.get(FOLDER)
here = bool(REAL) and (Path(REAL) / "mnist.npz").exists()
needs_mnist = pytest.mark.skipif(not here, reason=f"MNIST is in no package, and {FOLDER} names no folder that has it")


@pytest.fixture(autouse=True)
def single_thread(float32):
    """As in a process of the tool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def carried_out(name, settings):
    experiment = EXPERIMENTS[name]
    lines, missing = current(experiment, carry_out(name, experiment.plan, experiment.run, settings, SILENT), settings)
    assert not missing
    return lines


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(small, tmp_path):
    """At every step there is a checkpoint; it is stopped twice, between two notes and in the step of a test."""
    tower = stack(adam(0.01), adam(1e-3, ahead=1), sgd(1e-5))
    trial = Trial("t", "mnist", tower, 20, 3, tested=4, noted=6, drops=(0.5,))
    task = runner.task("mnist", "cpu")
    whole = run(trial, task, "cpu", tmp_path / "a", lambda step: None)
    begun = []

    def stop_at(last):
        def tick(step):
            begun.append(step)
            if step == last:
                raise Stopped

        return tick

    for last in (8, 15):
        with pytest.raises(Stopped):
            run(trial, task, "cpu", tmp_path / "b", stop_at(last), save=0)
    resumed = run(trial, task, "cpu", tmp_path / "b", stop_at(None), save=0)
    assert {n: resumed[n] for n in ("tests", "notes", "learned", "test")} == {
        n: whole[n] for n in ("tests", "notes", "learned", "test")
    }
    assert begun[:8] == list(range(1, 9))
    assert begun.count(1) == 1  # it went on, and did not start again
    assert len(whole["tests"]) == 4
    assert [step for step, *_ in whole["notes"]] == sorted(due(20, 6))


def test_nothing_is_run_twice_and_what_is_stored_survives_a_line_cut_short(small, tmp_path, monkeypatch):
    trials = [Trial("t", "mnist", sgd(lr), 4, seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    settings = Settings(tmp_path / "results", workers=1)
    ran = []

    def counted(trial, *rest):
        ran.append(trial.key)
        return run(trial, *rest)

    first = carry_out("t", lambda *_: trials[:3], counted, settings, SILENT)
    settings.scratch.mkdir()
    path = first.path
    path.write_bytes(path.read_bytes() + '{"experiment": "÷'.encode()[:-1])  # in the middle of a character
    (settings.scratch / f"{trials[0].key}.pt").write_bytes(b"it was stopped before this was removed")
    second = carry_out("t", lambda *_: trials, counted, settings, SILENT)
    assert ran == [trial.key for trial in trials]
    assert list(second.results) == ran
    assert [key(json.loads(line)) for line in path.read_text().splitlines()] == ran
    assert not list(settings.scratch.glob("*"))
    assert second[trials[3]]["steps"] == 4
    assert second[trials[3]]["versions"]["torch"] == torch.__version__


def test_processes_find_what_one_process_finds(small, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # a thread for each, as here
    trials = [Trial("t", "mnist", stack(rmsprop(tune="lr"), sgd(1e-4)), 40, seed) for seed in (0, 1, 2)]
    one, two = (carry_out("t", lambda *_: trials, run, Settings(tmp_path / str(n), workers=n), SILENT) for n in (1, 2))
    what = ("notes", "test")
    assert {k: one[t][k] for t in trials for k in what} == {k: two[t][k] for t in trials for k in what}


def test_a_training_that_fails_does_not_stop_the_others(small, tmp_path):
    trials = [Trial("t", "mnist", sgd(0.1), 4, seed) for seed in (0, 1, 2)]

    def failing(trial, *rest):
        if trial.seed == 1:
            raise ArithmeticError("so it is")
        return run(trial, *rest)

    settings = Settings(tmp_path, workers=1)
    with pytest.raises(RuntimeError, match=r"1 trainings failed:\nt, {}, seed 1: ArithmeticError\('so it is'\)"):
        carry_out("t", lambda *_: trials, failing, settings, SILENT)
    assert [trial in Store("t", settings) for trial in trials] == [True, False, True]


def test_workers_end_with_the_process_that_is_killed(small, tmp_path):
    """As soon as there is a first result."""
    command = [sys.executable, "-m", "experiments", "run", "fig4a", "--quick", "--workers", "2", "--out", str(tmp_path / "out")]
    root = Path(__file__).parent.parent
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)
    try:
        store = tmp_path / "out" / "fig4a.quick.jsonl"
        waited = wait_for(lambda: store.exists() and store.stat().st_size > 0, 240)
        assert waited, (tmp_path / "log").read_text()
    finally:
        started.kill()
        started.wait()
    assert wait_for(lambda: not members(started.pid), 60)


def members(group):
    """The processes of a group that are at work."""
    told = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in told.splitlines()]
    return [row for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def wait_for(done, seconds):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.2)
    return done()


def test_a_training_that_diverges_is_written_down_as_one(small, tmp_path):
    """No number that JSON does not know; and no error where it is averaged."""
    trials = [Trial("t", "text", sgd(1e30), 6, seed, {"alpha": 1}) for seed in (0, 1)]
    store = carry_out("t", lambda *_: trials, run, Settings(tmp_path, workers=1), SILENT)
    lines = list(store.results.values())
    assert "NaN" not in store.path.read_text()
    assert "Infinity" not in store.path.read_text()
    assert [line["test"] for line in lines] == [None, None]
    assert spread(lines) == "diverged"
    assert mean(lines) == float("inf")


def lines_of(results, **more):
    """Stored results, as far as claims look at them."""
    return [{"at": dict(place), "test": test, "learned": [], "notes": [], "steps": 1, **more} for place, test in results]


def grid(table):
    """Results by height of initial step sizes 1e-8, 1e-6, …"""
    return lines_of([({"alpha": 10.0 ** (2 * i - 8), "height": h}, x) for h, row in table.items() for i, x in enumerate(row)])


def verdicts(name, lines):
    return [claim.verdict for claim in EXPERIMENTS[name].claims(lines)]


def test_claims_of_figure_4_are_judged_by_height():
    better = {0: [90, 50, 9], 1: [60, 9, 9], 2: [20, 8, 8], 3: [9, 8, 8]}
    assert verdicts("fig4a", grid(better)) == [HOLDS, HOLDS]
    assert verdicts("fig4a", grid({**better, 2: [20, 8, 12]})) == [IN_PART, HOLDS]
    assert verdicts("fig4a", grid({**better, 2: [70, 11, 12]})) == [IN_PART, IN_PART]
    assert verdicts("fig4a", grid(dict(zip(better, list(better.values())[::-1], strict=True)))) == [NOT, NOT]
    assert verdicts("fig4a", grid({h: [90, 90, 90] for h in range(4)})) == [NOT, NOT]
    beyond = verdicts("fig4a", grid({**better, 5: [8, 8, 8], 10: [95, 95, 95]}))
    assert beyond == [HOLDS, HOLDS, NOT, NOT]
    claims = EXPERIMENTS["fig4b"].claims(grid(better))
    assert [claim.paper for claim in claims] == ["–", "–"]
    assert ["stand-in" in claim.claim for claim in EXPERIMENTS["fig4e"].claims(grid(better))] == [True, True]


def test_claims_of_figure_2_are_judged_by_what_is_gained():
    def results(gain):
        """Beside the test after 5 epochs, later ones where there are, which only 20 epochs look at."""
        lines = []
        for a, m in fig2.PAPER:
            epochs = {fig2.MIDDLE: 30, fig2.HIGH: 20}.get((a, m), 5)
            for kind, tower in (("fixed", fig2.fixed(a, m)), ("tuned", fig2.tuned(a, m))):
                error = 50 - (gain(a, m) if kind == "tuned" else 0)
                tests = [[epoch, error if epoch == 5 else 40] for epoch in range(1, epochs + 1)]
                notes = [[epoch, 0.0, []] for epoch in range(1, epochs + 1)]
                lines += lines_of([({}, -1)], tower=repr(tower), drops=[], tested=epochs, tests=tests)
                lines[-1]["notes"] = notes
        dropped = {**lines[0], "tower": repr(fig2.fixed(*fig2.MIDDLE)), "drops": [0.5], "tests": [[1, 0]] * 5}
        return [*lines, dropped]

    def high(a, m):
        return a == 1.0 or m == 0.99

    assert verdicts("fig2a", results(lambda a, m: 20 if high(a, m) else 1)) == [HOLDS, HOLDS, HOLDS]
    assert verdicts("fig2a", results(lambda a, m: 0.01 if high(a, m) else 10)) == [HOLDS, HOLDS, NOT]
    assert verdicts("fig2a", results(lambda a, m: -5)) == [NOT, HOLDS, NOT]

    def schedules(fixed, dropped, tuned, end):
        kinds = zip(("fixed", "÷10 at 50 % and 75 %", "tuned"), (fixed, dropped, tuned), strict=True)
        rows = lines_of([({"kind": kind}, test) for kind, test in kinds])
        return [{**row, "learned": [{"lr": end}]} for row in rows]

    assert verdicts("fig2b", schedules(13, 8, 8.5, 0.002)) == [HOLDS, HOLDS]
    assert verdicts("fig2b", schedules(13, 8, 12, 0.04)) == [IN_PART, IN_PART]
    assert verdicts("fig2b", schedules(13, 8, 14, -0.3)) == [NOT, NOT]


def test_claims_of_table_1_count():
    rows = {row.name: (row.paper, row.paper_again) for row in ROWS}

    def table(shift):
        return lines_of(
            [({"row": name, "run": "tower"}, paper + shift) for name, (paper, _) in rows.items()]
            + [({"row": name, "run": kind}, again) for name, (_, again) in rows.items() if again for kind in (OWN, PAPER)]
        )

    assert verdicts("table1", table(0.0)) == [HOLDS] * 5
    assert verdicts("table1", table(10.0))[2:] == [NOT, NOT, HOLDS]


def test_the_towers_are_those_of_the_paper():
    assert repr(graded(sgd, 1e-6, 3)).count("PaperSGD") == 4
    assert [rule.lr for rule in graded(sgd, 1e-6, 3)] == pytest.approx([1e-6, 1e-4, 1e-6, 1e-8])
    assert [rule.lr for rule in graded(adam, 1e-2, 3)] == pytest.approx([1e-2, 1e-5, 1e-6, 1e-8])
    low, above = fig2.tuned(0.1, 0.9)
    assert (low.lr, low.momentum, low.weight_decay) == (0.1, 0.9, 1e-4)
    assert above.lr == pytest.approx({"lr": 1e-5, "momentum": 1e-5})
    low, above = fig3.tower(2e-3, "tuned")
    assert (low.lr, low.beta1, low.beta2) == (2e-3, 0.9, 0.999)
    assert above.lr == pytest.approx({"lr": 2e-5, "beta1": 1e-4, "beta2": 2e-4})


def test_what_decides_a_result_decides_its_key():
    trial = Trial("t", "mnist", sgd(0.1), 4, 0)
    others = {"experiment": "u", "task": "text", "tower": sgd(0.2), "steps": 5, "seed": 1, "at": {"alpha": 1}, "tested": 2}
    others |= {"noted": 3, "drops": (0.5,), "start": "a", "keep": "b", "compile": True}
    keys = {replace(trial, **{name: value}).key for name, value in others.items()}
    assert set(others) == set(vars(trial))
    assert len(keys | {trial.key}) == len(others) + 1


def test_a_batch_depends_on_seed_and_step_alone(small):
    for name in ("mnist", "cifar10", "text"):
        task = runner.task(name, "cpu")
        first = task.batch(1, 2)
        task.batch(1, 30)
        again, other, late = task.batch(1, 2), task.batch(2, 2), task.batch(1, 3)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[0], late[0])


def test_an_epoch_has_every_image_once(small):
    task = runner.task("mnist", "cpu")
    rows = torch.cat([task.batch(0, step)[0] for step in range(2)]).flatten(1)
    assert torch.equal(torch.unique(rows, dim=0), torch.unique(task.x.flatten(1), dim=0))
    assert len(rows) == 500


def test_images_are_cropped_and_flipped_as_they_are(small):
    """Every image of a batch is in the padded original, as it is or mirrored."""
    task = runner.task("cifar10", "cpu")
    x, _ = task.batch(0, 0)
    chosen = shuffled(len(task.y), 128, 0, 0)
    padded = task.normal(torch.nn.functional.pad(task.x[chosen], (4, 4, 4, 4)))
    mirrored = 0
    for image, whole in zip(x, padded, strict=True):
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(81, 3, 32, 32)
        plain, flipped = ((windows == candidate).flatten(1).all(dim=1).any() for candidate in (image, image.flip(2)))
        assert plain or flipped
        mirrored += int(flipped)
    assert 40 < mirrored < 88


@pytest.mark.parametrize(
    ("tower", "name", "decay"),
    [
        (stack(adam(1e-3), sgd(1e-5)), "Adam(0.001) / SGD(1e-05)", 0.0),
        (fig3.tower(1e-3, "tuned"), "Adam(0.001) / SGD(alpha=1e-05, beta1=1e-4, beta2=2e-4)", 0.0),
        (stack(sgd(1e-2, 0.0, 0.5), sgd(1e-3)), "SGD(0.01) / SGD(0.001)", 0.5),
    ],
    ids=["Adam", "a step size for each", "a weight decay"],
)
def test_the_papers_own_code_has_the_same_model_and_batches(tower, name, decay, small, tmp_path):
    """The LSTM is written out for it; so is what it learns that of the tower."""
    torch.manual_seed(0)
    task = runner.task("text", "cpu")
    model, (x, _) = task.model(), task.batch(0, 0)
    torch.testing.assert_close(reference.Unrolled(model)(x), model(x), rtol=1e-5, atol=1e-6)
    test, sizes = reference.train(name, 0, 6, task, decay)
    found = run(Trial("t", "text", tower, 6, 0, noted=6), task, "cpu", tmp_path / "a", lambda step: None)
    learned = [levels[0]["lr"] for _, _, levels in found["notes"]]
    assert learned[0] in (1e-2, 1e-3)
    assert learned[0] != learned[1]
    assert learned == pytest.approx(sizes, rel=2e-5)
    assert found["test"] == pytest.approx(test, rel=1e-4)


def test_every_quick_protocol_runs_and_is_reported(small, tmp_path, monkeypatch):
    """Figure 2a shows what was trained for 2b, too."""
    if EVERY > 1:  # Figure 4a goes the same way
        monkeypatch.delitem(EXPERIMENTS, "fig4c")
    out = tmp_path / "results"
    told = CliRunner().invoke(app, ["run", "fig2a", "--quick", "--workers", "1", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert {path.name for path in out.iterdir() if path.is_file()} == {"fig2a.quick.jsonl", "fig2b.quick.jsonl"}
    told = CliRunner().invoke(app, ["run", "all", "--quick", "--workers", "1", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    before = {path.name: path.read_text() for path in out.glob("*.jsonl")}
    assert set(before) == {f"{name}.quick.jsonl" for name in EXPERIMENTS}
    told = CliRunner().invoke(app, ["run", "all", "--quick", "--workers", "1", "--out", str(out)], catch_exceptions=False)
    assert {path.name: path.read_text() for path in out.glob("*.jsonl")} == before
    told = CliRunner().invoke(app, ["report", "--quick", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0
    told = CliRunner().invoke(app, ["report", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 1
    assert "there are no results" in told.output
    page = (tmp_path / "results.quick.md").read_text()
    first = page.partition("## Figure 2b")[0]
    assert [line[:14] for line in first.splitlines() if line.startswith("| 1 |")] == ["| 1 | 0.1 | 0.", "| 1 | 1 | 0.9 "]
    for name, experiment in EXPERIMENTS.items():
        assert f"## {experiment.title}" in page
        assert f"](results/{name}.quick.png)" in page
        with Image.open(out / f"{name}.quick.png") as image:
            assert min(image.size) > 300


def test_list_and_bad_names(tmp_path):
    told = CliRunner().invoke(app, ["list"])
    assert all(name in told.output for name in EXPERIMENTS)
    told = CliRunner().invoke(app, ["run", "fig9", "--out", str(tmp_path / "out")])
    assert told.exit_code == 2
    assert "fig9" in told.output
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_asked_for_by_name(small, tmp_path):
    (small / "mnist.npz").unlink()
    told = CliRunner().invoke(app, ["run", "table1", "--quick", "--workers", "1", "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    said = " ".join(told.output.split())
    assert "put mnist.npz into a folder, and name it with --data DIR" in said
    assert not (tmp_path / "out").exists()


def test_without_a_folder_data_are_fetched_with_their_checksum(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    asked = []

    def retrieve(url, checksum, name, folder, progressbar):
        asked.append((url, checksum, name, progressbar))
        raise ConnectionError("no network")

    monkeypatch.setattr(data.pooch, "retrieve", retrieve)
    for name, home in HOMES.items():
        with pytest.raises(FileNotFoundError, match=f"{name}: cannot be fetched from {home.url}.*put {home.files[0]}"):
            data.find(name)
        assert asked[-1] == (home.url, f"sha256:{home.sha256}", home.files[0], True)


def test_an_archive_that_is_not_the_published_one_is_not_opened(small):
    (small / "cifar-10-python.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not the published archive"):
        data.cifar10()


class Pair(NamedTuple):
    stack: str
    plain: str


@needs_mnist
@everything
def test_table_1_in_small(tmp_path):
    """One epoch: each tuned stack beats the plain rule it starts from, and so does the plain rule at the values learned."""
    lines = carried_out("table1", Settings(tmp_path, workers=1, quick=True))
    errors = {(line["at"]["row"], line["at"]["run"]): line["test"] for line in lines}
    for pair in (Pair("SGD / SGD", "SGD"), Pair("Adam / Adam", "Adam")):
        for run_ in ("tower", OWN, PAPER):
            assert errors[pair.stack, run_] < errors[pair.plain, "tower"] - 0.5


@needs_mnist
@everything
def test_figure_4a_in_small(tmp_path):
    """One epoch, from a good step size and one far too small: the taller the tower, the less it matters."""
    lines = carried_out("fig4a", Settings(tmp_path, workers=1, quick=True))
    low, good = places(lines, "alpha")
    errors = {(line["at"]["alpha"], line["at"]["height"]): line["test"] for line in lines}
    for h in places(lines, "height")[1:]:
        assert errors[low, h] < errors[low, h - 1] - 1
        assert errors[good, h] < errors[good, 0]
    spread = [errors[low, h] - errors[good, h] for h in places(lines, "height")]
    assert spread == sorted(spread, reverse=True)
