# `make demo` merges the example adapters, `make space` opens the page, `make test` runs the tests; each sets up all it
# needs in $(VENV).

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OF_EVAL = tests/test_eval_command.py tests/test_evaluate.py tests/test_tune.py tests/test_gguf_format.py tests/test_peft_format.py
ON_ALL_CORES = --numprocesses auto --dist loadfile
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo space test style quality bench torture docs lowest newest wheel clean

demo: $(VENV)/.plot
	$(BIN)/python examples/demo.py

space: $(VENV)/.space
	$(BIN)/hub-merge ui

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ON_ALL_CORES)

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

docs: $(VENV)/.dev
	$(BIN)/python -m docs.page

# The tests with the lowest versions that pyproject.toml allows and with the newest, and of the core alone from the wheel.

lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints/lowest.txt --editable '.[plot,space,test,zoo]'
	$(VENV)-lowest/bin/python -m pytest $(ON_ALL_CORES)
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints/lowest-eval.txt --editable '.[eval]'
	$(VENV)-lowest/bin/python -m pytest $(ON_ALL_CORES) $(OF_EVAL)

newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --editable '.[plot,space,test,zoo]'
	$(VENV)-newest/bin/python -m pytest $(ON_ALL_CORES)

wheel:
	rm -rf dist
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet build
	$(VENV)-wheel/bin/python -m build --outdir dist
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet "$$(ls dist/*.whl)[test]"
	mkdir dist/source && tar -xzf dist/*.tar.gz -C dist/source --strip-components 1
	rm -r dist/source/hub_merge
	cd dist/source && $(abspath $(VENV)-wheel)/bin/python -m pytest $(ON_ALL_CORES)

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-wheel demo build dist

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.plot: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[plot]'
	@touch $@

$(VENV)/.space: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[space]'
	@touch $@ $(VENV)/.plot

$(VENV)/.dev: $(VENV)/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.plot
