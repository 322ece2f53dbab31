"""The study of step sizes: every method moves every kind of model, what diverges is a result, and a page comes of any part."""

import os
from pathlib import Path

import pytest
import torch
from experiments import data, methods, runner, sensitivity
from experiments.__main__ import app
from experiments.data import FOLDER
from experiments.methods import AVERAGED, DEFAULT, DROPS, METHODS, TUNED
from experiments.runner import Settings, Store, carry_out
from experiments.sensitivity import QUICK, measured, plan, run, trials
from experiments.sensitivity_report import ADAM, AVERAGE, CROWDED, UNTIMED, Results, curves, text
from experiments.sensitivity_tasks import NAMES, SMALL
from experiments.trial import Trial
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

REAL = os.environ.get(FOLDER)
needs_mnist = pytest.mark.skipif(
    not (REAL and (Path(REAL) / "mnist.npz").exists()),
    reason=f"MNIST is in no package, and {FOLDER} names no folder that has it",
)


@pytest.fixture(autouse=True)
def single_thread(float32):
    """As in a process of the tool."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def carried_out(trials, out):
    return carry_out("sensitivity", lambda *_: trials, run, Settings(out, workers=1), Console(quiet=True))


def page_of(out, *options):
    told = CliRunner().invoke(app, ["report", *options, "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return (out.parent / f"sensitivity{'.quick' * bool(options)}.md").read_text()


@needs_mnist
def test_the_default_needs_no_step_size(tmp_path):
    """In the quick protocol: about as good as the best of three step sizes of Adam, and better than the paper's tower."""
    out = tmp_path / "results"
    command = ["run", "sensitivity", "--quick", "--workers", "1", "--out", str(out)]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    results = Results(list(Store("sensitivity", Settings(out, quick=True)).results.values()))
    assert len(results.rows) == 2
    for row in results.rows:
        for name in (DEFAULT, AVERAGE):
            assert results.ratio(row, name, ADAM) <= 1.1
            assert results.ratio(row, name, "Adam(1e-3) / SGD(1e-5)") < 1
    page = page_of(out, "--quick")
    assert all(f"| {task} |" in page for task, _ in results.rows)
    for name in ("sensitivity.quick.png", "sensitivity.quick-profile.png"):
        assert f"]({name})" in page
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_step(method, tmp_path):
    """And has been validated at its average, if it has one."""
    torch.manual_seed(0)
    task = runner.task("regression", "cpu")
    result = run(Trial("t", "regression", method, 3, 0), task, "cpu", tmp_path, lambda step: None)
    torch.manual_seed(0)
    before = task.measure(task.model())
    assert not result["diverged"]
    assert result["final"]["loss"] != pytest.approx(before.loss, rel=1e-12)
    assert (result["average"] is not None) == (method in AVERAGED)


def test_what_is_tuned_on_is_not_trained_on():
    task = runner.task("regression", "cpu")
    rows, first, second = ({tuple(x) for x in part.train[0].tolist()} for part in (task, *task.parted()))
    assert first | second == rows
    assert not first & second
    assert len(second) == len(rows) // 5


@pytest.mark.parametrize("method", sorted(AVERAGED))
def test_training_goes_on_where_it_was_after_the_average(method):
    task = runner.task("regression", "cpu")
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(10), task.model())
    optimizer, _ = METHODS[method](list(model.parameters()), 10)
    optimizer.train()
    for step in range(5):
        optimizer.zero_grad()
        task.loss(model, task.batch(0, step)).backward()
        optimizer.step()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained, averaged = measured(task, model, optimizer, True, 0)
    torch.testing.assert_close(model.state_dict(), before)
    assert trained != averaged


@pytest.mark.parametrize("method", ["SGD 1", "SGD(0.01) / SGD(1e-5)"])
def test_a_training_that_diverges_is_a_result(method, tmp_path):
    store = carried_out([*trials(["rosenbrock"], [method, "Adam 0.001"], 0, 30)], tmp_path)
    lines = list(store.results.values())
    assert "NaN" not in store.path.read_text()
    assert [(line["diverged"], line["final"] is None) for line in lines] == [(True, True), (False, False)]
    assert "| diverged |" in text(lines, {"": "curves.png", "profile": "profile.png"})


def test_there_is_a_page_of_any_part_of_the_results(tmp_path, monkeypatch):
    """In the order of the plan, beginning with the default alone."""
    monkeypatch.setattr(trials, "__defaults__", (60,))  # steps
    out = tmp_path / "results"
    first = [trial for trial in plan(Settings(out, seeds=1), None) if trial.seed == sensitivity.SEEDS[0]]
    everything = [trial for trial in first if trial.task == "quadratic"]
    few = [
        trial
        for trial in everything
        if trial.tower in (*QUICK, *methods.STARTS, *methods.VARIANTS, "Adam 0.003, cosine", "DoG")
    ]
    assert few[0].tower == DEFAULT
    for number in (1, len(few)):
        carried_out(few[:number], out)
        page = page_of(out)
        assert f"{number} trainings of {len(plan(Settings(out, seeds=1), None))}, so far" in page
    assert "| quadratic | 1 |" in page
    assert "| from 1e-8, 1e-6, 1e-2: at most 1.03 × its own | " in page
    assert "| gain × 4 or ÷ 4, horizon and r × 2 or ÷ 2: at most 1.05 × its own | " in page
    assert "Not run yet" not in page


def told(method, seed, loss, ms=None, machine="one"):
    """A line of the results; no loss: it has diverged."""
    final = None if loss is None else {"loss": loss}
    about = {"task": "quadratic", "steps": 600, "tower": method, "seed": seed, "machine": machine}
    return {**about, "diverged": loss is None, "final": final, "average": None, "ms": ms}


def test_the_best_of_a_grid_is_the_least_median_over_the_seeds():
    losses = {
        "Adam 0.001": [1.0, 1.1, 9.0],
        "Adam 0.01": [0.1, 3.0, 4.0],
        "Adam 0.1": [None, None, 0.1],
        DEFAULT: [2, 2.2, None],
    }
    results = Results([told(method, seed, x) for method, found in losses.items() for seed, x in enumerate(found)])
    row = ("quadratic", 600)
    assert results.best(row, ADAM) == (1.1, "Adam 0.001")
    assert results.ratio(row, DEFAULT) == pytest.approx(2.0)
    assert results.ratio(row, "Adam 0.1") == float("inf")
    assert results.ratio(row, DEFAULT, "Adam 0.1") == 0
    assert results.ratio(row, "Prodigy") is None


def test_ratios_are_of_the_same_seeds():
    """A method that has been run with one seed alone is compared there."""
    losses = {"Adam 0.001": [1.0, 5.0], "Adam 0.01": [2.0, 3.0], DEFAULT: [0.5]}
    results = Results([told(method, seed, x) for method, found in losses.items() for seed, x in enumerate(found)])
    row = ("quadratic", 600)
    assert results.best(row, ADAM) == (2.5, "Adam 0.01")
    assert results.ratio(row, DEFAULT) == 0.5


def test_costs_are_those_of_one_machine_with_nothing_beside():
    lines = [told("Adam 0.01", seed, 1.0, [2.0, 1.0]) for seed in (0, 1)]
    lines += [told(DEFAULT, 0, 1.0, [3.0, 2.0]), told(DEFAULT, 1, 1.0, [30.0, 20.0], "another")]
    lines += [told(DEFAULT, CROWDED, 1.0, [40.0, 30.0]), told(UNTIMED[0], 0, 1.0, [50.0, 40.0])]
    results = Results(lines)
    assert [results.cost(("quadratic", 600), DEFAULT, part) for part in (0, 1)] == [1.5, 2.0]
    assert results.cost(("quadratic", 600), UNTIMED[0], 0) is None


def test_pictures_are_of_the_same_seeds():
    losses = {"Adam 0.001": [1.0, 5.0], "Adam 0.01": [2.0, 3.0], DEFAULT: [0.5, 0.7, 0.1, 0.1, 0.1]}
    lines = [told(method, seed, x) for method, found in losses.items() for seed, x in enumerate(found)]
    figure = Figure()
    curves(lines, figure)
    shown = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()}
    assert shown["Adam"] == [3.0, 2.5]
    assert shown[DEFAULT] == pytest.approx([0.6, 0.6])


def test_the_plan_has_every_task_and_no_trial_twice(tmp_path):
    one, three = (plan(Settings(tmp_path, seeds=seeds), None) for seeds in (1, None))
    keys = [trial.key for trial in three]
    assert len(set(keys)) == len(keys)
    first = [trial.key for trial in one if trial.seed == sensitivity.SEEDS[0]]
    assert first == keys[: len(first)]
    assert {trial.key for trial in one} < set(keys)
    assert {trial.seed for trial in three} == set(sensitivity.SEEDS)
    for name in NAMES:
        expected = {method for method in METHODS if "AdamW 0" not in method} - {DROPS}
        expected -= set() if name in SMALL else {TUNED}
        assert {trial.tower for trial in one if trial.task == name} >= expected


def test_fashion_mnist_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(data, "PACKAGED", tmp_path / "packaged")
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.find(data.FASHION)
    (tmp_path / data.FASHION).mkdir()
    assert data.find(data.FASHION) == tmp_path / data.FASHION
