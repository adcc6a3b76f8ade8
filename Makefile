# Two commands: `make demo` (from nothing to a promoted, packaged model) and `make test`.
# Both make their own environment in .venv and keep all state in .radloop.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := serve,dev
WORKERS ?= 2  # processes that test; each trains small models and needs some 2 GB

.PHONY: demo test setup lint tiny-base clean

demo: setup
	@$(BIN)/radloop run

test: setup $(VENV)/.browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

setup: .radloop/.ready
	@test -d .zen || { rm .radloop/.ready; $(MAKE) --no-print-directory .radloop/.ready; }

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "radloop needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set it: make PYTHON=python3.11")'
	@echo "installing packages into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

.radloop/.ready: $(VENV)/.installed radloop/workspace.py stacks/local.py
	@$(BIN)/python -m radloop.workspace > /dev/null
	@test -d .zen || $(BIN)/zenml init > .radloop/setup.log 2>&1 || { cat .radloop/setup.log; exit 1; }
	@$(BIN)/python -m stacks.local >> .radloop/setup.log 2>&1 || { cat .radloop/setup.log; exit 1; }
	@touch $@

# Debian's Chromium, for the tests of the page; they skip with a word where it cannot be had.
$(VENV)/.browser: $(VENV)/.installed
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core > /dev/null; } \
	  || echo "no chromium here and no right to install it: the tests of the page will be skipped"
	@touch $@

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

tiny-base: setup
	@$(BIN)/python -m radloop.models.tiny radloop/models/tiny_base

clean:
	rm -rf .radloop .zen $(VENV)
