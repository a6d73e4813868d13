# `make demo` and `make test` do all the set-up: each creates .venv if needed and installs only what it uses.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# Stamps of the installed extras. They depend on pyproject.toml, so a changed dependency reinstalls.
BASE := .venv/.base
DEV := .venv/.dev
DOCS := .venv/.docs

.PHONY: help demo test test-fast test-wheel lint docs docs-serve house weights clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(BASE): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 14) else "Fusioner needs Python 3.11 to 3.14: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

$(DEV): $(BASE) constraints.txt
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS): $(BASE)
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(BASE)  ## segment the sample photographs with the bundled model
	$(BIN)/fusioner predict samples/chelsea.jpg --labels "cat, dog" --out demo
	$(BIN)/fusioner predict samples/astronaut.jpg --labels "person, helmet, flag" --out demo
	$(BIN)/fusioner predict samples/coffee.jpg --labels "cup, table" --out demo
	@echo "Look at $(CURDIR)/demo/chelsea.overlay.png, astronaut.overlay.png and coffee.overlay.png"

test: $(DEV)  ## run all tests
	$(PYTEST)

test-fast: $(DEV)  ## run the tests that take at most ten seconds each
	$(PYTEST) -m "not slow"

test-wheel: $(DEV)  ## build the wheel and test it in an empty environment of every Python there is (network)
	FUSIONER_TEST_WHEEL=1 $(BIN)/python -m pytest tests/test_wheel.py

lint: $(DEV)  ## ruff, import-linter and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: $(DOCS)  ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(DOCS)  ## serve the documentation at http://127.0.0.1:8001
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

house: $(DEV)  ## print size, import cycles and start-up time of the package
	$(BIN)/python tools/house.py

weights: $(DEV)  ## rebuild the bundled encoders and graphs and check that they equal the shipped ones
	$(BIN)/python tools/build_weights.py
	$(BIN)/python tools/build_graphs.py --check

clean:
	rm -rf .venv demo runs site
