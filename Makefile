# Every target does its own set-up. `make setup PIP_ARGS=...` passes arguments to pip (another index, no network).
PYTHON ?=
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/set-up
FONT := fonts-noto-color-emoji
FIND_FONT := $(BIN)/python -c "from lightgen.ports.nano.font import find_font; find_font()"

.PHONY: help setup font quickstart test test-slow check api nano-weights clean
.DEFAULT_GOAL := help

help: ## say what there is to make
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

setup: $(STAMP) font ## make .venv with everything in it, and find the emoji font

$(STAMP): pyproject.toml constraints.txt
	@python=; for each in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$each"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "setup: found no Python of 3.11 or newer (python3 is $$(python3 --version 2>&1)); make setup PYTHON=/path/to/it" >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "setup: making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@echo "setup: installing lightgen and what it needs into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# Debian's package is tried once per .venv; without the font, everything that draws no emoji still works.
font: $(STAMP)
	@if $(FIND_FONT) 2>/dev/null; then exit 0; fi; \
	if [ -z "$$LIGHTGEN_EMOJI_FONT" ] && [ ! -e $(VENV)/font-tried ] && command -v apt-get >/dev/null; then \
	  touch $(VENV)/font-tried; \
	  if [ "$$(id -u)" = 0 ]; then root=; else root="sudo -n"; fi; \
	  echo "setup: installing the emoji font (package $(FONT))"; \
	  { $$root apt-get -qq update; \
	    $$root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $(FONT); } >/dev/null 2>&1; \
	fi; \
	$(FIND_FONT) 2>&1 | tail -n 1 | sed 's/^[a-z.]*UserError/setup/' >&2

quickstart: setup ## see the whole paradigm run: teacher, student, preferences, report (15 minutes)
	$(BIN)/lightgen quickstart $(ARGS)

test: setup ## run the tests (minutes); ARGS="-k word" for some of them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: setup ## run the tests that take long
	$(BIN)/python -m pytest -q -m slow $(ARGS)

check: setup ## look for faults without running: ruff, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

api: setup ## write docs/api.md, the API reference, from the docstrings
	$(BIN)/python docs/build_api.py

nano-weights: setup ## train the shipped nano weights anew (hours); runs/nano-weights
	$(BIN)/lightgen train nano-weights --out runs/nano-weights $(ARGS)

clean: ## remove caches and build products; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find lightgen tests -name __pycache__ -type d -prune -exec rm -rf {} +
