# Everything is set up in .venv, from pinned versions. PYTHON=python3.12 make test uses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
LIGHT := .venv/light
READY := .venv/ready
TORCH_oldest := 2.6.0
TORCH_newest := 2.15.0
OF_STEPS := compile compiled_models default hypergradient optimizer precision resume schedule_free schedulers tape
AND_newest := rules rules_by_finite_differences rules_of_ones_own state suites
# pip leaves it to the first import to compile what it installs: that is kept, or each process of the tests does it again
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --no-compile --disable-pip-version-check --no-input --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test everything lint docs suites oldest newest bench dist clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

demo: $(LIGHT) ## Train on handwritten digits from seven step sizes; table and picture in demo/
	$(BIN)/python -m experiments.demo

test: lint ## Lint, types and all tests, in a process for each core, up to 4
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(READY) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## The documentation as a site; leaves site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo open site/index.html

everything: lint ## The same tests, with every combination of what a fifth are tested of otherwise
	HYPERGRADIENT_ALL=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

suites: $(READY) ## torch's own tables of optimizer tests, with our rules in the place of theirs
	HYPERGRADIENT_ALL=1 $(BIN)/python -m pytest tests/test_suites.py

oldest: .venv/oldest/ready ## Steps, eager and compiled, with torch 2.6, which is the oldest; several gigabytes
newest: .venv/newest/ready ## Steps, rules and state with a torch that is newer than the pinned one; several gigabytes
oldest newest:
	PYTHONPATH=src .venv/$@/bin/python -m pytest --numprocesses auto --maxprocesses 4 -p no:cacheprovider \
		--override-ini "filterwarnings=error:compile=True" $(patsubst %,tests/test_%.py,$(OF_STEPS) $(AND_$@))

bench: $(READY) ## Time and memory beside torch.optim and others, half an hour; leaves bench/
	$(BIN)/python -m benchmarks

dist: $(LIGHT) ## Wheel and sdist, in dist/
	@rm -rf dist
	$(BIN)/python -m hatchling build

# What the demo, the examples and a build need. torch first: its CPU build where it can be had, without the gigabytes of an
# accelerator's libraries.
$(LIGHT): pyproject.toml constraints.txt
	@echo "1/3  an environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "2/3  torch, some 200 MB; several gigabytes where there is no build for the CPU alone"
	@$(PIP) torch hatchling editables
	@echo "3/3  hypergradient, and what the demo and the examples need"
	@$(PIP) --no-build-isolation --editable '.[demo,examples]'
	@touch $(LIGHT)

# timm without its dependencies: torchvision, which it wants, has no build for torch's CPU build on PyPI, and with another
# neither timm nor transformers can be imported
$(READY): $(LIGHT)
	@echo "the tools and frameworks of the tests, some 600 MB"
	@$(PIP) --no-build-isolation --editable '.[test]'
	@$(PIP) --no-deps timm
	@touch $(READY)

.venv/oldest/ready .venv/newest/ready: .venv/%/ready: pyproject.toml
	@$(PYTHON) -m venv .venv/$*
	@grep -E '^(expecttest|hypothesis|numpy|pytest|pytest-xdist|schedulefree)==' constraints.txt > .venv/$*/constraints.txt
	@.venv/$*/bin/python -m pip install --disable-pip-version-check --no-input --constraint .venv/$*/constraints.txt \
		torch==$(TORCH_$*) expecttest hypothesis numpy pytest pytest-xdist schedulefree
	@touch .venv/$*/ready

clean: ## Remove what the other targets made
	rm -rf .venv bench demo build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
