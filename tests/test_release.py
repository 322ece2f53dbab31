"""What is released: wheel and sdist as ``make dist`` builds them, their metadata, and a first run of the wheel alone."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution

import pytest
import tomlkit
from conftest import ROOT
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import parse_sdist_filename, parse_wheel_filename
from trove_classifiers import classifiers

import hypergradient


def built(folder, source, *kinds):
    """What hatchling makes of `source`, offline, in `folder`."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *(x for kind in kinds for x in ("-t", kind))]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist and the wheel."""
    wheel, sdist = sorted(
        built(tmp_path_factory.mktemp("dist"), ROOT, "wheel", "sdist"), key=lambda path: path.suffix != ".whl"
    )
    return sdist, wheel


def metadata(dist):
    """Of the wheel; reading it validates every field, and raises where one is not as PyPI wants it."""
    with zipfile.ZipFile(dist[1]) as wheel:
        return Metadata.from_email(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))), validate=True)


def test_the_metadata_is_as_pypi_wants_it(dist):
    found = metadata(dist)
    assert (found.name, str(found.version)) == ("hypergradient", hypergradient.__version__)
    assert set(found.classifiers) <= classifiers
    assert found.description_content_type == "text/markdown"
    assert found.description.rstrip() == (ROOT / "README.md").read_text().rstrip()
    assert found.license_expression == "MIT"
    assert found.license_files == ["LICENSE"]
    assert all(url.startswith("https://") for url in found.project_urls.values())
    assert parse_wheel_filename(dist[1].name)[:2] == parse_sdist_filename(dist[0].name) == (found.name, found.version)


def test_it_needs_torch_alone(dist):
    found = [r for r in metadata(dist).requires_dist if r.marker is None]
    assert [r.name for r in found] == ["torch"]
    assert metadata(dist).provides_extra


def test_every_extra_is_pinned():
    """Where the requirement of an extra names no version, constraints.txt does."""
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]
    pinned = {r.name.lower() for r in pins}
    wanted = {Requirement(r).name.lower() for extra in project["optional-dependencies"].values() for r in extra}
    assert wanted - pinned <= {"hypergradient"}
    installed = [r for r in pins if r.name in ("timm", "peft", "transformers", "lightning")]
    assert installed
    assert all(distribution(r.name).version in r.specifier for r in installed)
    assert len(pins) == len(pinned)
    assert {r.name.lower() for r in map(Requirement, lines)} == pinned  # none is for other Pythons alone


def test_the_pythons_of_the_classifiers_are_those_that_are_allowed(dist):
    found = metadata(dist)
    said = sorted(
        int(c.rpartition(".")[2]) for c in found.classifiers if re.fullmatch(r"Programming Language :: .* :: 3\.\d+", c)
    )
    assert said
    assert said == list(range(said[0], said[-1] + 1))
    assert str(found.requires_python) == f">=3.{said[0]}"


def test_the_changelog_and_the_citation_say_the_version_and_the_day():
    """Of a release; between two, the changelog begins with what is unreleased."""
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0][0] in ("Unreleased", hypergradient.__version__)
    assert all(date for version, date in headings if version != "Unreleased")
    cited = dict(re.findall(r"^(version|date-released): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited in ({}, {"version": hypergradient.__version__, "date-released": dict(headings)[hypergradient.__version__]})


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    with zipfile.ZipFile(dist[1]) as wheel:
        names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    package = ROOT / "src"
    assert names == {str(p.relative_to(package)) for p in (package / "hypergradient").rglob("*") if p.suffix == ".py"} | {
        "hypergradient/py.typed"
    }


def test_the_sdist_builds_the_same_wheel(dist, tmp_path):
    """It also holds all that its tests need."""
    with tarfile.open(dist[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for needed in ("tests", "benchmarks", "experiments", "examples", "docs", "Makefile", "constraints.txt", "CONTRIBUTING.md"):
        assert (folder / needed).exists(), needed
    assert not (folder / ".venv").exists()
    (wheel,) = built(tmp_path / "again", folder, "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(dist[1]) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def closure(name, seen):
    """The names of a distribution and of all that it needs here, without extras."""
    if name not in seen:
        seen[name] = distribution(name)
        for line in seen[name].requires or ():
            r = Requirement(line)
            if r.marker is None or r.marker.evaluate({"extra": ""}):
                try:
                    closure(r.name, seen)
                except ModuleNotFoundError:  # of another build of torch
                    continue
    return seen


FIRST = """
import sys
try:
    import numpy, sklearn, matplotlib, rich
except ImportError:
    pass
else:
    sys.exit("the environment holds more than torch")
import hypergradient
print(hypergradient.__file__)
exec(sys.argv[1])
"""


def test_the_wheel_alone_runs_the_first_example_of_the_readme(dist, tmp_path):
    """In an environment with this wheel, and of this environment torch with its dependencies alone, by links."""
    target = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
    (site,) = target.glob("lib/python*/site-packages")
    for found in closure("torch", {}).values():
        for path in {p.parts[0] for p in found.files if p.parts[0] != ".."}:
            source, link = found.locate_file(path), site / path
            if not link.exists():
                link.symlink_to(source)
    install = [sys.executable, "-m", "pip", "--python", target, "install", "--no-index", "--no-deps", "--quiet", dist[1]]
    subprocess.run([str(x) for x in install], check=True, capture_output=True)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    env = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
    command = [target / "bin" / "python", "-I", "-c", FIRST, block]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(site))


SCRIPTS = {"demo": ["experiments/demo.py"], "examples": ["examples/history.py", "examples/weight_decay.py"]}


@pytest.mark.parametrize("extra", SCRIPTS)
def test_scripts_import_what_their_extra_installs_and_leave_tracked_files_alone(extra):
    """`make demo` installs no more than that; pictures go to demo/, which git ignores."""
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]
    names = {r.replace("scikit-learn", "sklearn") for r in project["optional-dependencies"][extra]}
    for text in ((ROOT / script).read_text() for script in SCRIPTS[extra]):
        imported = {name.partition(".")[0] for name in re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE)}
        assert imported <= {*names, *sys.stdlib_module_names, "torch", "hypergradient"}
        (out,) = re.findall(r'Path\("(.*?)"\)', text)
        assert out.partition("/")[0] == "demo"
    assert "demo/" in (ROOT / ".gitignore").read_text().split()
