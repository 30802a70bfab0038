# Needs Python 3.10 or newer with pip, nothing else: every target makes .venv itself when it has to.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The tests' tensors are too small to keep a second thread busy: several processes of one thread each
# are faster, and four of them bound the memory.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow acceptance parity coverage lint types docs-check bench lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(INSTALLED) ## make .venv with the locked dependencies and Tutelage itself

# uv is taken from the lock too, by its hash. It only makes the installation faster: where it can't
# work, pip does.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Tutelage needs Python 3.10 or newer; name one: make PYTHON=/path/to/python3 venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/# via/p' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.lock || true
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock || \
	  $(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED) ## distil on real digits and print the table
	$(BIN)/tutelage demo

test: $(INSTALLED) ## run the tests (TESTS: only these files or folders)
	$(PARALLEL) $(TESTS)

test-slow: $(INSTALLED) ## run the long checks that make test leaves out
	$(BIN)/python -m pytest -m slow

acceptance: $(INSTALLED) ## train on CIFAR-100 against published figures; hours (TUTELAGE_CIFAR100: its folder)
	$(BIN)/python -m pytest -s -m hours tests/acceptance

parity: $(INSTALLED) ## compare with the official implementations' numbers (TUTELAGE_GOLDEN: another folder of them)
	$(PARALLEL) -m "" tests/parity

coverage: $(INSTALLED) ## run the tests and show the lines they never reach
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

lint: $(INSTALLED) ## check the style
	$(BIN)/ruff check .

types: $(INSTALLED) ## check the types
	$(BIN)/mypy

docs-check: $(INSTALLED) ## check the links, code and commands in the documentation
	$(BIN)/python tools/check_docs.py

bench: $(INSTALLED) ## measure a training step against the research code's way
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/branches.py
	$(BIN)/python benchmarks/packd.py
	$(BIN)/python benchmarks/stream.py

# Old pins stay unless pyproject.toml forces them to move; delete requirements.lock to renew them all.
lock: ## pin the dependencies again
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
	  --no-emit-index-url --no-header --quiet --output-file requirements.lock
	@{ echo "# Made by 'make lock': what Tutelage and its dev extra need, on Python 3.10 and newer, pinned"; \
	   echo "# and hashed."; \
	   cat requirements.lock; } > requirements.lock.new && mv requirements.lock.new requirements.lock

clean: ## remove caches and builds (.venv and runs stay)
	rm -rf build dist src/*.egg-info .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
