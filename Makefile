# make reproduce   the default experiment, from nothing to tables, figures and page
# make test        fast and workflow tests, a short choice of fault tests
# make test-all    every test whose parts are installed
#
# PyTorch's CPU build (much smaller): see README.md, "Install".

PYTHON ?= python3.11
CONFIG ?= config.yaml
CORES ?= $(shell nproc)
PIP_OPTIONS ?=

BIN := .venv/bin
INSTALLED := .venv/installed.lock
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs

.PHONY: reproduce test test-all lint clean

reproduce: $(INSTALLED)
	@$(BIN)/python -m workflow reproduce --config $(CONFIG) --cores $(CORES)

test: $(INSTALLED)
	$(PYTEST) -m "not (vllm or slurm or gpu) and (not faults or faults(short=True))"

test-all: $(INSTALLED)
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow

# The stamp is a copy of the lock, made last: a cut install is begun again.
$(INSTALLED): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or give another with PYTHON=..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; } || { rm -rf .venv; echo "error: python3.11 has no venv module; install the package python3.11-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --requirement requirements.lock
	@cp requirements.lock $@

clean:
	rm -rf .venv results/*/ .snakemake
