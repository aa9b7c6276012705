# The commands of opd_jax. Each makes the environment it needs on first use; again they cost seconds.
#   make quickstart   distil the embedded task: runs/quickstart, about four minutes, install included
#   make test         everything the tests need, and the tests
#   make compare      OPD, POPD and TOPD on both embedded tasks, three seeds: table and curves
#   make test-aot     kernels and plans compiled for TPUs and an H200, which need not be there
#   make docs         the pages of docs/ as a site: docs/_build
#   make lint         ruff

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-aot compare docs lint clean

$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt docs/requirements.txt $(VENV)/.run
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

quickstart: $(VENV)/.run
	$(BIN)/python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

# In the order of their names: by their number of tests, the longest of all, quickstart, would begin last.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# TPU and GPU kernels compiled for real topologies, without the hardware. An environment of its own: 2 GB of compilers.
test-aot:
	test -x $(VENV)-aot/bin/python || $(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/pip install -q -r requirements-aot.txt
	$(VENV)-aot/bin/python -m pytest -q opd_jax/divergence/aot_test.py opd_jax/decode_attention/aot_test.py \
		tests/planning/test_plan.py tests/rollout/test_decode_aot.py -k "aot or tpu"

compare: $(VENV)/.run
	$(BIN)/python -m benchmarks.compare --out=benchmarks/results/compare

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf runs .cache docs/_build $(VENV)
