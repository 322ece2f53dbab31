# Everything is set up in .venv, from pinned versions. PYTHON=python3.12 make test uses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

demo: $(READY) ## Train on handwritten digits from seven step sizes; table and picture in demo/
	$(BIN)/python -m experiments.demo

test: lint ## Lint, types and all tests
	$(BIN)/python -m pytest

lint: $(READY) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## The documentation as a site; leaves site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo open site/index.html

bench: $(READY) ## Time and memory beside torch.optim and others, half an hour; leaves bench/
	$(BIN)/python -m benchmarks

# torch first: its CPU build where it can be had, without the gigabytes of an accelerator's libraries
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	@touch $(READY)

clean: ## Remove what the other targets made
	rm -rf .venv bench demo build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
