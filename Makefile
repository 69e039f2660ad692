# make sweep   the comparison of the README       make test   the tests       make lint   style and types
# Each makes the virtual environment and installs first, once. Another interpreter or place: make PYTHON=python3.12 VENV=~/tokred

VENV ?= .venv
PYTHON ?= python3.13 python3.12 python3.11 python3 python
BIN = $(VENV)/bin

.PHONY: sweep test lint
.NOTPARALLEL:

sweep: $(VENV)/installed
	$(BIN)/python sweep.py "methods=[vid_tldr,tome]"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy tokred tests

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --editable . --constraint constraints.txt
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --editable ".[dev]" --constraint constraints.txt
	@touch $(VENV)/installed $@

# hydra-core is what keeps 3.14 out; Debian's python3 comes without ensurepip.
$(BIN)/pip:
	@for python in $(PYTHON); do \
	  if "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then echo "$$python -m venv $(VENV)"; exec "$$python" -m venv "$(VENV)"; fi; \
	done; \
	echo "tokred needs Python 3.11, 3.12 or 3.13 with venv; none among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
