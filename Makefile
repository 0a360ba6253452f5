# Everything here works on a fresh machine with python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test notebooks lint format parity clean

quickstart: $(VENV)/lm  ## train a first model, show its figures and a sample
	$(BIN)/lm train quickstart

test: $(VENV)/dev  ## pass the tests; those of a file share what they compiled
	$(BIN)/python -m pytest -n auto --dist loadfile $(TESTS)

notebooks: $(VENV)/dev  ## run the notebooks again, and keep their outputs
	$(BIN)/python notebooks/run.py

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: $(VENV)/dev  ## torch, transformers and the evaluation harness, to compare with
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt "transformers==$(TRANSFORMERS)"
	$(BIN)/python -m pip install --quiet -c constraints.txt "lm-eval==$(LM_EVAL)" accelerate "trl==$(TRL)"

TRANSFORMERS := 5.23.0
LM_EVAL := 0.4.13
TRL := 1.16.0

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lm needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages, made anew when what they are made from changes.
$(VENV)/lm: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/lm

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
