# `make demo` and `make test` do all their own set-up: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= demo-out
# Parallel tests share the cores: threads spinning inside each process would only fight. Three, for some of them wait.
test: export OMP_NUM_THREADS ?= 1
# Hundreds of processes of the tests would each compile all modules again.
test: export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test nightly check dist docs clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "specslide needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/specslide demo --out $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

nightly: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m nightly $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache
