# make demo   see the shipped network segment, then train a tiny one, on a CPU or a GPU
# make test   run all tests, in two processes
# make gpu    run the tests that need a GPU, then measure it, into docs/gpu.md. Uses .venv, or else
#             $(PYTHON) with the packages that it has
# make lint   format, lint and type-check
# make lock   renew requirements.lock from pyproject.toml
# Each first creates .venv and installs the locked versions, if not done yet.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo gpu test lint lock install

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

gpu: export PYTHONPATH = .
gpu:
	-$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -q -m gpu
	$(or $(wildcard $(BIN)/python),$(PYTHON)) scripts/benchmark.py --device cuda --output docs/gpu.md \
	  --against precision=fp32 --against compile=reduce-overhead

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "stma needs Python 3.10 or newer; give one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

# One file for all platforms and Python versions; see the markers in it.
lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
	  --upgrade --no-header --no-emit-index-url --output-file requirements.lock
