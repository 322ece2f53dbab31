"""What CONTRIBUTING and the design promise to newcomers: the texts are followed to the letter, in a copy of the repository."""

import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from cases import loss, parameters

from hypergradient import POSITIVE, SGD, Hyperoptimizer
from hypergradient.normalize import NORMALIZATIONS, Normalization
from hypergradient.numerics import ratio

ROOT = Path(__file__).parent.parent
NEEDED = "src", "tests", "benchmarks", "experiments", "examples", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md"
BOUGHT = "battery", "docs", "faults", "help", "house", "hypergradient", "properties", "rules", "state", "validation"
"""The files of which a row of the table of rules buys tests; `test_house.py` is run as a whole."""
RUN = """
import sys, hypergradient, pytest
assert hypergradient.__file__.startswith(sys.argv[1]), hypergradient.__file__
sys.exit(pytest.main(sys.argv[2:]))
"""


def copied(folder):
    """What of the repository the tests need."""
    for name in NEEDED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / name)
    return folder


def follow(text, root):
    """Do what the section of CONTRIBUTING says. Returns the name of the new rule."""
    section = text.split("## Add a rule")[1].split("\n## ")[0]
    rule, export, _ = (textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    (root / re.search(r"`(src/hypergradient/rules/\w+\.py)`", section)[1]).write_text(rule)
    exports = root / re.search(r"\*\*One line\*\* in `(.*?)`", section)[1]
    lines = exports.read_text().splitlines(keepends=True)
    lines.insert(next(i for i, line in enumerate(lines) if line.startswith("from") and line > export), export)
    exports.write_text("".join(lines))
    table, row = re.search(r"\*\*One row\*\* in `RULES` of `(.*?)`: `(.*?)`", section).groups()
    before, after = (root / table).read_text().split("\n]\nABOVE")
    (root / table).write_text(f"{before}\n    {row}\n]\nABOVE{after}")
    page, entry = re.search(r"\*\*One entry\*\* in `(.*?)`.*?````markdown\n(.*?)````", section, re.DOTALL).groups()
    (root / page).write_text(f"{(root / page).read_text()}\n{textwrap.dedent(entry)}")
    return re.search(r"class (\w+)\(", rule)[1]


def test_the_rule_of_contributing_is_one_file_one_line_one_row_and_one_entry(tmp_path):
    root = copied(tmp_path)
    name = follow((ROOT / "CONTRIBUTING.md").read_text(), root)
    for check in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, "--no-cache", "src", "tests/cases.py"], cwd=root, check=True)
    options = ["-k", f"{name} or test_house or in_the_reference", "-p", "no:cacheprovider", "-o", "addopts="]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root), *(f"tests/test_{file}.py" for file in BOUGHT), *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-5_000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 150


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_a_normalization_is_one_entry(monkeypatch, per):
    """``sum(g T) / sum |g T|``, on two levels, of SGD and of what moves its step size; beside the same, literally."""
    share = Normalization(
        (lambda u, t, p: u * t, lambda u, t, p: (u * t).abs()),
        lambda product, size, slope: ratio(product, size) if slope is None else ratio(product, size) * slope.sign(),
    )
    monkeypatch.setitem(NORMALIZATIONS, "share", share)
    rule = SGD(lr=0.1, tune=("lr",), charts={"lr": POSITIVE}, horizon=5, normalize="share")
    mine = parameters()
    optimizer = Hyperoptimizer(mine, rule / SGD(lr=0.02, normalize="share") / SGD(lr=1e-3), per=per)
    sets = [[p] for p in mine] if per == "tensor" else [mine]
    traces, rates = [[torch.zeros_like(p) for p in own] for own in sets], [0.1] * len(sets)
    above, last = 0.02, None
    for t in range(6):
        optimizer.zero_grad()
        loss(mine, t).backward()
        grads = [[p.grad.clone() for p in own] for own in sets]
        optimizer.step()
        if t > 0:
            products = [
                torch.cat([(g * x).flatten() for g, x in zip(*own, strict=True)]) for own in zip(grads, traces, strict=True)
            ]
            slopes = [(x.sum() / x.abs().sum()).item() for x in products]
            if last is not None:  # the level above has moved each coordinate by -above * last
                terms = [-s * x for s, x in zip(slopes, last, strict=True)]
                above -= 1e-3 * sum(terms) / sum(map(abs, terms))
            rates, last = [x * math.exp(-above * s) for x, s in zip(rates, slopes, strict=True)], slopes
        traces = [[0.8 * x - g for x, g in zip(*own, strict=True)] for own in zip(traces, grads, strict=True)]
        found = optimizer.hyperparameters()
        assert found[0]["lr"] == pytest.approx(rates if per == "tensor" else rates[0], rel=1e-10)
        assert found[1]["lr"] == pytest.approx(above, rel=1e-10)
    assert len({round(x, 6) for x in rates}) == len(sets)
