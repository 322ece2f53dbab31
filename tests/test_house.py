"""The order of the house: who may import whom, how long a rule may be, that the contract tells the truth."""

import ast
import re
import sys
from pathlib import Path

import pytest
from cases import RULES

import hypergradient

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hypergradient"
ORDER = [
    ["numerics"],
    ["tape", "compiled"],
    ["normalize", "charts", "layout"],
    ["rule", "sample"],
    ["averages", "schedule_free", "evaluation", "edits"],
    ["rules", "probe"],
    ["tower", "sensitivity", "objective"],
    ["auto", "level", "bucket"],
    ["engine", "group"],
    ["memory", "report", "watch"],
    ["optimizer"],
    ["history", "convert"],
    ["callbacks"],
]
"""The modules of the package, as CONTRIBUTING has them: each imports from those above its line alone."""
RANK = {name: i for i, names in enumerate(ORDER) for name in names}
MODULES = sorted(PACKAGE.glob("*.py")) + sorted((PACKAGE / "rules").glob("*.py"))
OUTSIDE = {"rules", "schedule_free", "auto", "history", "callbacks", "convert", "__init__"}
"""What is no part of the kernel."""


def types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def within(node):
    """The names of what of the package a piece of code imports."""
    for x in ast.walk(node):
        if isinstance(x, ast.ImportFrom) and x.level:
            yield from [x.module.split(".")[0]] if x.module else [alias.name for alias in x.names]


def imports(path):
    """Those of a file when it is run: not for types alone."""
    for node in ast.parse(path.read_text()).body:
        if not types_only(node):
            yield from within(node)


def layer(path):
    return "rules" if path.parent.name == "rules" else path.stem


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    for name in imports(path):
        inside = path.parent.name == "rules" and (PACKAGE / "rules" / f"{name}.py").exists()
        assert inside or RANK[name] < RANK[layer(path)], f"{path.name} imports {name}"
        assert name != "rules" or path.stem == "auto", "only __init__ and the default name a concrete rule"


def test_no_function_imports_from_the_package():
    """That would hide a circle."""
    late = [(path.name, f.name) for path in MODULES for f in functions(ast.parse(path.read_text())) if [*within(f)]]
    assert not late


def test_contributing_says_the_order_of_imports():
    said = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    assert [[name.strip() for name in line.split(",")] for line in said.strip().splitlines()] == ORDER


BESIDE = {"examples": set(), "experiments": set(), "benchmarks": {"experiments"}}
BESIDE["tests"] = set(BESIDE)
"""The folders beside the package, and which of the others each may import."""


def imported(path):
    """The first names of what a file imports, also within functions; not from its own folder."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    "path", [p for folder in BESIDE for p in sorted((ROOT / folder).glob("*.py"))], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_folders_beside_the_package_import_one_way(path):
    """And no test file another one: what several need is in a module that is none, which pytest finds by its name."""
    others, tests = BESIDE.keys() - BESIDE[path.parent.name], {p.stem for p in (ROOT / "tests").glob("*.py")}
    forbidden = others | {name for name in tests if path.parent.name != "tests" or name.startswith("test_")}
    assert not forbidden & set(imported(path))


def lines_of_code(tree):
    """Lines that are neither blank, comment, import nor docstring."""
    code = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        if isinstance(node, (ast.stmt, ast.arg)):
            code.add(node.lineno)
            if not hasattr(node, "body"):
                code.update(range(node.lineno, node.end_lineno + 1))
    return len(code)


@pytest.mark.parametrize("path", sorted((PACKAGE / "rules").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_rule_has_at_most_forty_lines_of_code(path):
    assert 1 < lines_of_code(ast.parse(path.read_text())) <= 40


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_function_has_fewer_than_25_lines_of_code_and_at_most_five_parameters(path):
    """Lines from `def` to the end; parameters besides self, cls, and what takes all others."""
    for f in functions(ast.parse(path.read_text())):
        a = f.args
        named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg])]
        assert lines_of_code(f) < 25, f.name
        assert len([x for x in named if x.arg not in ("self", "cls")]) <= 5, f.name


def test_the_kernel_does_not_grow():
    """Lines that are not blank. Fewer is better."""
    kernel = [path for path in MODULES if layer(path) not in OUTSIDE]
    assert sum(bool(line.strip()) for path in kernel for line in path.read_text().splitlines()) <= 4905


def test_every_rule_is_in_the_table_of_the_tests():
    rules = {c for c in vars(hypergradient).values() if isinstance(c, type) and issubclass(c, hypergradient.Rule)}
    assert {case.rule for case in RULES} == rules - {hypergradient.Rule, hypergradient.Averages}


LATE = {"history": {"matplotlib"}, "callbacks": {"lightning", "transformers"}}
"""What a module may import when somebody asks for it: inside functions, or for types."""


def test_the_package_depends_on_torch_alone():
    allowed = {"torch", *sys.stdlib_module_names}
    for path in MODULES:
        tree, late = ast.parse(path.read_text()), LATE.get(path.stem, set())
        inner = {n for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or types_only(node) for n in ast.walk(node)}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {n.split(".")[0] for n in names} <= allowed | (late if node in inner else set()), path


def test_every_row_of_the_contract_names_tests_that_exist():
    """The table is the docstring of test_contract.py. A test without a module is one of that file; one after :: alone is of
    the module named last.
    """
    trees = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "tests").glob("test_*.py")}
    known = {name: {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} for name, tree in trees.items()}
    named, file = [], "test_contract"
    for line in ast.get_docstring(trees["test_contract"]).splitlines():
        if row := re.match(r"\|( \d+)? \|.*\|(.*)\|$", line):
            number, tests = row.groups()
            named += [[]] if number else []
            assert not number or int(number) == len(named), "the rows are in order"
            for module, after, test in re.findall(r"(?:(test_\w+)?(::))?(test_\w+)", tests):
                file = module or (file if after else "test_contract")
                assert test in known[file], f"{file}::{test}"
                named[-1].append(test)
    assert len(named) == 40
    assert all(named)
