"""README and site: every block of code runs as printed, every public name is in the reference, every link leads somewhere."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import loss, parameters, train, weights
from frameworks import lightning_advises, without_torchvision
from helpers import clones, resumed
from oracle import Oracle

import hypergradient
from hypergradient import SGD, Hyperoptimizer

ROOT = Path(__file__).parent.parent
WRITTEN = {"battery", "benchmarks", "results", "sensitivity", "contributing"}
"""Pages that commands write, without code, and CONTRIBUTING, which `test_contributing` follows."""
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "results" and p.stem not in WRITTEN),
]
SCRIPTS = sorted(p.stem for p in (ROOT / "examples" / "start").glob("[a-z]*.py"))


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.fixture
def elsewhere(float32, tmp_path, monkeypatch):
    """A user's precision, in a folder that may be written to."""
    monkeypatch.chdir(tmp_path)


# torch's TensorBoard writer and the paper's code, about themselves
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_in_order(path, elsewhere):
    names = {"__name__": "page"}
    for block in blocks(path):
        exec(compile(block, f"{path.name}: {block[:60]!r}", "exec"), names)


def test_every_block_of_python_is_run():
    """It begins at the margin and says nothing but python, or is a script of examples/start."""
    for path in PAGES:
        text = path.read_text()
        scripts = re.findall(r'```python title="examples/start/(\w+)\.py"\n--8<--\nexamples/start/\1\.py\n--8<--\n```', text)
        assert set(scripts) <= set(SCRIPTS)
        assert len(re.findall(r"```\s*py", text)) == len(blocks(path)) + len(scripts), path
    assert sorted(re.findall(r'title="examples/start/(\w+)', (ROOT / "docs" / "start.md").read_text())) == SCRIPTS


def runs(name):
    return runpy.run_module(f"examples.start.{name}", run_name="__main__")


@pytest.mark.parametrize("name", ["plain_loop", "from_torch_optimizer"])
def test_scripts_of_torch(name, elsewhere, capsys):
    names = runs(name)
    assert names["torch"].nn.functional.cross_entropy(names["model"](names["x"]), names["y"]) < 0.15
    assert "lr=" in capsys.readouterr().out or name == "plain_loop"


def test_script_of_the_trainer(elsewhere):
    names = runs("with_trainer")
    logged = names["trainer"].state.log_history
    assert [line["eval_loss"] for line in logged if "eval_loss" in line][-1] < 0.1
    assert any("hyperparameters/0.AdamWScheduleFree.lr" in line for line in logged)
    assert names["optimizer"].hyperparameters()[0]["lr"] > 1e-3


def test_script_of_accelerate(elsewhere):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    try:
        assert runs("with_accelerate")["loss"] < 0.1
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


@lightning_advises
def test_script_of_lightning(elsewhere):
    names = runs("with_lightning")
    assert names["trainer"].callback_metrics["error"] < 0.1
    assert names["optimizer"].hyperparameters()[0]["lr"] > 1e-3


def test_script_of_timm(elsewhere):
    with without_torchvision():
        import timm  # noqa: F401
    assert runs("with_timm")["loss"] < 0.5


def test_script_of_fsdp2(tmp_path):
    """With torchrun, as it says itself."""
    said = (ROOT / "examples" / "start" / "with_fsdp2.py").read_text()
    command = re.search(r"\n    torchrun (.*)\n", said)[1].split()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"AdamWScheduleFree\(lr=0\.\d+, r=4\) / Tuner\(lr=1\.3\)\n", done.stdout)


# ------------------------------------------------------------------------ README


def test_the_readme_has_at_most_1200_words():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\((.*?)\)", (ROOT / "README.md").read_text()) if not link.startswith("http")]
    assert len(links) > 15
    for link in links:
        name, _, anchor = link.partition("#")
        assert (ROOT / name).exists(), link
        assert not anchor or anchor in anchors(ROOT / name), link


# -------------------------------------------------------------------------- site


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert not fetched, page


def test_every_public_name_is_in_the_reference_with_an_example():
    pages = [p.read_text() for p in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    code = [ast.parse(block) for p in (ROOT / "docs" / "reference").glob("*.md") for block in blocks(p)]
    nodes = [node for tree in code for node in ast.walk(tree)]
    used = {x.id for x in nodes if isinstance(x, ast.Name)} | {x.attr for x in nodes if isinstance(x, ast.Attribute)}
    text = "\n".join(pages)
    for name in set(hypergradient.__all__) - {"callbacks"}:
        entry = "auto.auto" if name == "auto" else name  # its module has the same name
        assert f"::: hypergradient.{entry}\n" in text or f"| `{name}` |" in text, name
        assert name in used, name
    for name in ("current", "for_lightning", "for_trainer"):
        assert f"::: hypergradient.callbacks.{name}\n" in text


# ------------------------------------------------------------- a rule of one's own


def own_rule():
    return next(b for b in blocks(ROOT / "docs" / "rules.md") if "(Rule)" in b)


def test_the_rule_of_the_page_has_fifteen_lines():
    lines = [line for line in own_rule().splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 15


def test_the_rule_of_the_page_passes_the_contract():
    names = {"torch": torch}
    exec(own_rule(), names)
    mine, oracle = parameters(), Oracle(tower := names["SoftSign"](lr=0.01) / SGD(lr=1e-3), weights())
    optimizer = Hyperoptimizer(mine, tower)
    for t in range(5):
        value = loss(oracle.weights, t)
        assert train(optimizer, mine, 1, t) == pytest.approx([value.item()], rel=1e-10)
        oracle.step(value)
    for name in ("lr", "momentum"):
        assert optimizer.hypergradients()[0][name] == pytest.approx(oracle.gradients[0][name, None], rel=1e-9)
    train(twin := resumed(optimizer, copies := clones(mine)), copies, 3, 5)
    train(optimizer, mine, 3, 5)
    torch.testing.assert_close(copies, mine, rtol=0, atol=0)
    assert twin.hyperparameters() == optimizer.hyperparameters()
