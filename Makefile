# Each target does all the set-up it needs: Python 3.11+ is the only thing that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_EXTRA ?=
# Test processes at once; with 0 parity tests print their differences.
JOBS ?= 3
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(PIP_EXTRA)

.PHONY: install live test soak lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Zoetrope needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,lint]'
	# The peer that parity tests compare with; its own pins are three years old, hence without its dependencies.
	$(PIP_INSTALL) --no-deps streamdiffusion==0.1.1
	@touch $@

live: install
	$(BIN)/zoetrope live $(ARGS)

# pytest's status 5: ARGS has chosen no such test.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not soak and not alone" --numprocesses $(JOBS) --dist loadfile --max-worker-restart 0 $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "alone and not soak" $(ARGS) || [ $$? = 5 ]

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info
