# The commands of opd_jax. Each makes the environment it needs on first use; again they cost seconds.
#   make quickstart   distil the embedded task: runs/quickstart, about four minutes, install included
#   make test         everything the tests need, and the tests
#   make compare      OPD, POPD and TOPD on both embedded tasks, three seeds: table and curves
#   make lint         ruff

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test compare lint clean

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

quickstart: $(VENV)/.run
	$(BIN)/python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

compare: $(VENV)/.run
	$(BIN)/python -m benchmarks.compare --out=benchmarks/results/compare

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf runs .cache $(VENV)
