"""Nine scripts of others, on small stand-ins of their data: each runs with each line, and has its row on the page."""

import json
from math import inf

import pytest
import torch
from experiments.__main__ import app
from experiments.runner import Settings, task
from experiments.scripts import SCRIPTS, Script, Timm, Words, frechet
from experiments.scripts_study import LIMIT, LINES, MORE, counted, plan, ratios, run, text
from experiments.trial import Trial
from frameworks import lightning_advises
from helpers import EVERY
from torch import nn
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def single_thread(float32):
    """As in a process of the tool."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@lightning_advises
def test_every_script_runs_with_every_line(small, tmp_path):
    """In the quick protocol; what it writes down is what the page is made of."""
    out = tmp_path / "results"
    command = ["run", "scripts", "--quick", "--workers", "1", "--out", str(out)]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in (out / "scripts.quick.jsonl").read_text().splitlines()]
    assert {(name, line) for name in SCRIPTS for line in LINES} < {(line["task"], line["tower"]) for line in lines}
    for line in lines:
        assert [step for step, *_ in line["notes"]] == [1, 2, 3]
        assert line["test"] is not None
        assert (line["average"] is None) == (line["tower"] in ("author", "from_torch"))
    told = CliRunner().invoke(app, ["report", "--quick", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    page = (tmp_path / "scripts.quick.md").read_text()
    assert all(f"| {name} | {script.measure} | 1 | " in page for name, (_, script) in SCRIPTS.items())
    assert " of 9 | " in page


@lightning_advises
@pytest.mark.parametrize("name", [*SCRIPTS][::EVERY])
def test_a_training_depends_on_its_seed_alone(name, small, tmp_path, monkeypatch):
    monkeypatch.setattr(Words, "epoch", 1)  # it validates
    trials = [Trial("t", name, "default", 2, seed, {"rows": 100}) for seed in (1, 1, 2)]
    found = [run(trial, task(name, "cpu"), "cpu", tmp_path, lambda step: None) for trial in trials]
    first, again, other = ([one["test"], one["average"], one["notes"]] for one in found)
    assert first == again
    assert first != other


class Straight(Script):
    """A parabola."""

    def model(self):
        return nn.Linear(1, 1, bias=False)

    def author(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def batch(self, seed, step):
        return torch.ones(1, 1), torch.zeros(1, 1)

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def test(self, model):
        return model.weight.item()


def test_what_diverges_is_written_down_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(Straight, "author", lambda self, model: torch.optim.SGD(model.parameters(), lr=1e30))
    result = run(Trial("t", "straight", "author", 5, 0), Straight(), "cpu", tmp_path, lambda step: None)
    assert result["test"] is None


def test_schedule_of_timm():
    """Constant within an epoch: 1e-5, then a cosine, as if there had been no warm-up."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.05)
    write = Timm.schedule(Timm.__new__(Timm), optimizer, nn.Linear(1, 1), 240)
    lrs = [optimizer.param_groups[0]["lr"]]
    for epoch in (1, 2, 3, 4):
        write(epoch)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs == pytest.approx([1e-5, 0.05 * (0.5 + 0.5**1.5), 0.025, 0.05 * (0.5 - 0.5**1.5), 0], abs=1e-12)


def test_frechet_distance_of_normal_distributions():
    """With diagonal covariances: of the means, plus of the standard deviations."""
    x = torch.randn(4000, 3, dtype=torch.float64)
    x = (x - x.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, 3 * x + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(3 * 4 + 5)
    assert frechet(x * inf, x) == inf


def test_ratios_are_of_means_over_the_seeds_that_both_have(tmp_path):
    def line(seed, tower, test, average=None):
        return {"task": "nanoGPT", "seed": seed, "tower": tower, "test": test, "average": average, "notes": []}

    lines = [line(1, "author", 1.0), line(2, "author", 3.0), line(1, "default", 1.1, 1.0), line(3, "default", 9.0, 9.0)]
    assert ratios(lines) == pytest.approx({"default": 1.1, "its average": 1.0})
    lines += [line(2, "default", 2.5, None), line(2, "from_torch", 3.0)]
    assert ratios(lines) == pytest.approx({"default": 0.9, "its average": inf, "from_torch": 1.0})
    assert "| nanoGPT | test loss | 2 | 2 | 0.900 (0.833 … 1.100) | diverged (1.000 … diverged) | 1.000 | default |" in text(
        lines, {}
    )
    assert f"at most {LIMIT} ×" in counted(lines)
    assert "| its average | 0 of 1 | 0 of 1 | 1 of 1 |" in counted(lines)


def test_the_plan_goes_seed_by_seed(tmp_path):
    one, both = (plan(Settings(tmp_path, seeds=seeds), None) for seeds in (1, None))
    whole = len(SCRIPTS) * len(LINES)
    assert both[:whole] == one[:whole]
    assert {trial.seed for trial in both[whole : 2 * whole]} == {2}
    assert len({trial.key for trial in both}) == len(both) == 2 * len(one)
    assert {(trial.task, trial.tower) for trial in one[whole:]} == {(name, line) for name in MORE for line in MORE[name]}
