# `make demo` merges the example adapters, `make test` runs the tests; each sets up all it needs in $(VENV).

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test style quality bench torture clean

demo: $(VENV)/.plot
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

style: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

torture: $(VENV)/.dev
	$(BIN)/python -m tests.torture

clean:
	rm -rf $(VENV) demo build dist

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.plot: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.plot
