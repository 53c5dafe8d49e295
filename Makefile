# Everything happens in .venv at the root; nothing else need be set up.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUTPUT ?= runs/demo

# `make` alone is `make demo`: the two commands of the README are all that a reader types.
.DEFAULT_GOAL := demo

.PHONY: help demo test test-all test-gpu test-environments lint docs wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/.demo ## sample the demo serially and jointly; table, pictures, report.html
	$(BIN)/fixedpoint run configs/demo.yaml --output $(OUTPUT)

test: .venv/.dev ## everything but the slow suites
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: .venv/.dev ## the slow suites, too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu"

test-gpu: .venv/.dev ## what requires CUDA, on a machine that has it
	$(BIN)/python -m pytest -m gpu

test-environments: ## lowest and highest versions, on every Python that is here
	$(PYTHON) tools/environments.py

lint: .venv/.dev ## formatting, style, types, arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.dev ## the documentation, into site/
	$(BIN)/mkdocs build --strict

wheel: .venv/.dev ## a wheel, into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove .venv, dist, site and runs
	rm -rf .venv dist site runs

# torch first, so that nothing installed later can bring another build of it.
.venv/.torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml
	$(INSTALL) --editable ".[report,diffusion]"
	touch $@

.venv/.dev: .venv/.demo
	$(INSTALL) --editable ".[dev]"
	touch $@
