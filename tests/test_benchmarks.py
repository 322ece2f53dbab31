"""The benchmarks run, count bytes as they should, and measure the models they name. Nothing is timed here."""

import json

import pytest
import torch
from benchmarks import cases
from benchmarks.__main__ import main
from benchmarks.contestants import ALL, BASELINES, BETAS, FUSED, REFERENCES
from benchmarks.measure import peak_bytes
from benchmarks.problems import PROBLEMS, shapes
from experiments.models import MLP, ResNet20, loss

from hypergradient import SGD, Adam, Hyperoptimizer

pytestmark = pytest.mark.usefixtures("float32")


def test_a_case_leaves_numbers_text_and_a_picture(monkeypatch, tmp_path):
    names = [*BASELINES, *REFERENCES, f"eager, {BETAS}"]
    monkeypatch.setattr(cases, "ALL", {name: ALL[name] for name in names})
    monkeypatch.setattr(cases, "GROUPS", 2)
    monkeypatch.setattr(cases, "QUICK", 0.01)
    main(["--quick", "--only", "step-mlp", "train-mlp", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "benchmarks.json").read_text())["results"]
    for case in ("step-mlp", "train-mlp"):
        assert [row["contestant"] for row in results[case]["rows"]] == names
        for row in results[case]["rows"]:
            assert row["runs"] >= 3
            assert row["ms"][0] > 0
            assert (row["× (b)"] == [1, 1, 1]) == (row["contestant"] == FUSED)
    assert "| torch Adam, fused | " in (tmp_path / "benchmarks.md").read_text()
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000


def test_cases_of_the_cpu_alone_are_refused_elsewhere(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "memory", "step-mlp", "--device", "cuda"])
    assert "--only memory with --device cuda: there are step-mlp" in capsys.readouterr().err


def test_bytes_of_what_is_known():
    """Adam keeps two averages, and a count per tensor; the gradients are there twice when they come in."""
    sizes = [torch.Size([100, 100])] * 3
    said = peak_bytes(ALL[FUSED], sizes)
    assert said == pytest.approx({"iteration": 16, "step": 12, "kept": 8}, abs=0.01)


def test_state_is_made_where_it_stays():
    """Of one large parameter, in its first step too: 16 bytes as torch's Adam, and some for the pieces that are worked on."""
    said = peak_bytes(lambda m: Hyperoptimizer(m.parameters(), Adam(tune="lr") / SGD(lr=1e-5)), [torch.Size([20_000_000])])
    assert said["iteration"] <= 16.5
    assert said["kept"] == pytest.approx(8, abs=0.01)


def test_the_default_takes_little_more_than_adam():
    """z and the average of squares, what is kept of 8,192 elements, and copies of these."""
    said = peak_bytes(lambda m: Hyperoptimizer(m.parameters()), [torch.Size([20_000_000])])
    assert said["iteration"] <= 17
    assert said["kept"] == pytest.approx(8.008, abs=0.002)


def test_of_small_tensors_five_numbers_are_kept():
    """z, the average of squares and the path; a copy of the parameters, and room for their gradients."""
    said = peak_bytes(lambda m: Hyperoptimizer(m.parameters()), [torch.Size([100, 100])] * 100)
    assert said["kept"] == pytest.approx(20, abs=0.1)


def test_the_models_have_the_sizes_they_are_named_for():
    count = {name: (len(s), sum(map(torch.Size.numel, s))) for name, s in cases.SHAPES.items()}
    assert count["mlp"] == (4, 101_770)
    assert count["resnet"] == (65, 272_474)
    assert count["gpt"] == (144, 85_054_464)
    assert [s.numel() for s in shapes(ResNet20)][-2:] == [640, 10]
    assert len(shapes(ResNet20)) == 59
    assert shapes(MLP)[0] == (128, 784)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_output_of_a_model_has_a_class(problem):
    model, (x, y) = PROBLEMS[problem].model(), PROBLEMS[problem].batch()
    assert model(x[:2]).shape[:-1] == y[:2].shape
    loss(model(x[:2]), y[:2]).backward()
    assert all(p.grad is not None for p in model.parameters())
