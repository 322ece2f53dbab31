"""What help() says: every public name, every argument of a rule, and what is missing where an extra is not installed."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit
from cases import RULES, parameters, train
from packaging.requirements import Requirement

import hypergradient
from hypergradient import Hyperoptimizer, callbacks

ROOT = Path(__file__).parent.parent


def test_all_public_names_are_exported():
    tree = ast.parse((ROOT / "src" / "hypergradient" / "__init__.py").read_text())
    imported = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(hypergradient.__all__) == {name for name in imported if not name.startswith("_")}
    rules = {case.rule.__name__ for case in RULES}  # of which help says some
    for name in set(hypergradient.__all__) - rules:
        assert re.search(rf"\b{name}\b", hypergradient.__doc__), f"help(hypergradient) names {name}"


def test_the_package_imports_no_framework():
    """Its callbacks are there all the same."""
    code = "import sys, hypergradient as h; h.callbacks; print({'lightning', 'transformers', 'matplotlib'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("extra", "install", "module", "call"),
    [
        ("lightning", "lightning", "lightning.pytorch", lambda history: hypergradient.callbacks.for_lightning()),
        ("transformers", "'transformers[torch]'", "transformers", lambda history: hypergradient.callbacks.for_trainer(None)),
        ("plot", "matplotlib", "matplotlib.figure", lambda history: history.plot()),
    ],
)
def test_what_is_missing_is_named_as_the_extra_has_it(extra, install, module, call, monkeypatch):
    optimizer = Hyperoptimizer(mine := parameters())
    history = hypergradient.History(optimizer)
    train(optimizer, mine, 2)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape(f"pip install {install}")):
        call(history)
    extras = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [Requirement(x).name for x in extras[extra]] == [Requirement(install.strip("'")).name]


def described(rule):
    """By name, what the docstring says of an argument."""
    section = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(rule), re.DOTALL)[1]
    return {
        n: re.sub(r"\s+", " ", said)
        for n, said in re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section, re.DOTALL | re.MULTILINE)
    }


@pytest.mark.parametrize("rule", list(dict.fromkeys(case.rule for case in RULES)), ids=lambda rule: rule.__name__)
def test_help_of_a_rule_names_its_source_and_every_argument_with_its_default(rule):
    said = described(rule)
    fields = {n: f.default for n, f in rule.__dataclass_fields__.items() if not f.kw_only}
    assert list(said) == list(fields)
    for n, default in fields.items():
        assert f"efault {default!r}" in said[n], n
    assert re.search(r"Source: .*\d{4}", rule.__doc__)
    lines = inspect.getdoc(rule).replace("\n", " ")
    tuned = re.search(r"Tuned by default: ([\w, ]+?)(?:,? and a momentum that is not 0)?\.", lines)[1]
    assert tuned.split(", ") == list(rule().tuned())


def public(owner):
    return [f for name, f in vars(owner).items() if inspect.isfunction(f) and not name.startswith("_")]


OWNERS = [hypergradient.Hyperoptimizer, hypergradient.History, hypergradient.Chart]
CALLS = [
    *(
        hypergradient.auto,
        hypergradient.from_torch,
        hypergradient.hyperparameter,
        *OWNERS,
        hypergradient.Age,
        hypergradient.Tower,
    ),
    *(f for owner in OWNERS for f in public(owner)),
    *(callbacks.current, callbacks.for_lightning, callbacks.for_trainer),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__qualname__)
def test_help_names_every_argument(call):
    said = inspect.getdoc(call)
    for name in inspect.signature(call).parameters.keys() - {"self", "cls"}:
        assert re.search(rf"\b{name}\b", said), name


@pytest.mark.parametrize("case", RULES, ids=str)
def test_a_rule_shows_its_arguments(case):
    assert inspect.signature(case.rule).parameters.keys() == {f.name for f in dataclasses.fields(case.rule)}
