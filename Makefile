# make demo and make test need nothing but Python 3.11+, pip and make; on Debian also: apt install python3-venv
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "fivefold needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv || { echo "No venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,parity]'
	touch $@

.venv/.ready-demo: pyproject.toml constraints.txt
	test -e $(READY) || $(PYTHON) -m venv .venv || { echo "No venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	test -e $(READY) || $(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

demo: .venv/.ready-demo
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

clean:
	rm -rf .venv demo
