# install is what the others need; it does nothing when it is up to date.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test explore lint bench help

help:
	@echo "make demo      train on scikit-learn's digits with 2 workers"
	@echo "make test      run the tests"
	@echo "make explore   the tests of properties on examples that no run before has seen"
	@echo "make lint      ruff and mypy"
	@echo "make bench     print the figures of docs/performance.md"
	@echo "make install   what all of them need, into .venv"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install
	@$(BIN)/python -m pipelines.train

test: install
	@$(BIN)/python -m pytest

explore: install
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=explore

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.views
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.step --compare
	$(BIN)/python -m benchmarks.step --compare --weak-precision bfloat16
	$(BIN)/python -m benchmarks.label
	$(BIN)/python -m benchmarks.mistakes
	$(BIN)/python -m benchmarks.pool_rates
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.pool
