# make quickstart   set everything up and run all four stages on the embedded world
# make test         set everything up and run the tests
# make check        formatting, lint and types
#
# Needs only make and a Python >= 3.11. Another one: make test PYTHON=/path/to/python3.12
# Where pip should find torch is pip's own business (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf).

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test check format clean

quickstart: $(VENV)/.installed
	$(BIN)/fourstage run quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/ty check --python $(VENV)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

# uv makes the environment where it is present (with pip in it); Python's own venv otherwise.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; say which with PYTHON=..." >&2; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
		|| uv venv --quiet --seed --allow-existing --python "$(PYTHON)" $(VENV) 2>/dev/null \
		|| "$(PYTHON)" -m venv $(VENV)
	@touch $@

# A stamp remembers what is installed: a second call installs nothing until a version changes.
# torch goes first and alone, so that its pin is settled before anything else is resolved.
$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing fourstage into $(VENV)"
	$(PIP) torch
	$(PIP) -e '.[data]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
