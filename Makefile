# `make demo` and `make test` need only Python >= 3.11 and make: they install what they use into .venv, once.

PYTHON ?= python3
# Options for pip, such as where to get another build of PyTorch; see the README.
PIP_OPTIONS ?=
# Options for pytest, such as -k history.
PYTEST_OPTIONS ?=

BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED) ## train sick runs on real images, untreated and treated
	@OMP_NUM_THREADS=1 $(BIN)/trainmedic demo

# Here and in the demo the models are small: one thread for each process is faster than many in one.
test: $(INSTALLED) ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_OPTIONS)

lint: $(INSTALLED) ## check style, types and the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# Written last, so that an installation that broke off is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON); name a Python: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: trainmedic needs Python 3.11 or newer, and $(PYTHON) is older; name another: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[demo,dev]'
	@touch $@
