"""The longer trainings, on small stand-ins of their data: every network runs, and has its table and its panel."""

import json

from experiments.__main__ import app
from experiments.long_study import CROPPED, PLAN, RESNET
from experiments.methods import AVERAGED, DEFAULT
from helpers import EVERY
from PIL import Image
from typer.testing import CliRunner


def test_the_quick_protocol_runs_and_is_reported(float32, small, tmp_path, monkeypatch):
    if EVERY > 1:  # the other ResNet-20 goes the same way, and other methods do
        monkeypatch.delitem(PLAN, CROPPED)
        steps, rows, (first, *_) = PLAN[RESNET]
        monkeypatch.setitem(PLAN, RESNET, (steps, rows, (first,)))
    out = tmp_path / "results"
    told = CliRunner().invoke(app, ["run", "long", "--quick", "--workers", "1", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in (out / "long.quick.jsonl").read_text().splitlines()]
    assert {(line["task"], line["tower"]) for line in lines} == {
        (n, m) for n, (*_, methods) in PLAN.items() for m in methods[:2]
    }
    assert all(not line["diverged"] and (line["average"] is not None) == (line["tower"] in AVERAGED) for line in lines)
    told = CliRunner().invoke(app, ["report", "--quick", "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    page = (tmp_path / "long.quick.md").read_text()
    for name, (steps, _, methods) in PLAN.items():
        table = page.partition(f"## {name}, {steps:,} steps")[2]
        assert all(f"| {method} | " in table for method in (*methods[:2], f"{DEFAULT}, average"))
    with Image.open(tmp_path / "long.quick.png") as image:
        assert min(image.size) > 300
