# make book and make test set up what they need. make help lists the rest.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PORT ?= 8000
DATA ?= digits
DEVICE ?= cpu

# Else each of some two hundred processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup book slides pdf widths test test-deep times notebooks figure results lint clean serve
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/installed ## install everything into .venv (the other targets do this when needed)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# (An interrupted build leaves a file where the next one wants the folder _static.)
book: .venv/installed ## execute every chapter and build the HTML
	@test -d _build/html/_static || rm -f _build/html/_static
	$(BIN)/jupyter-book build . --warningiserror --keep-going
	$(BIN)/python tests/check_html.py _build/html
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

slides: .venv/installed ## write the slides of two lectures, one file; executes only the chapters shown
	$(BIN)/python book/_ext/slides.py

pdf: .venv/installed ## print the whole book as one PDF; needs Chromium or Chrome
	$(BIN)/python book/_ext/browser.py
	rm -rf _build/singlehtml
	$(BIN)/jupyter-book build . --builder singlehtml
	$(BIN)/python book/_ext/paper.py

widths: .venv/installed ## measure that no built page is wider than a screen, if there is a Chromium
	$(BIN)/python tests/check_widths.py _build/html

test: .venv/installed ## run every check: unit and property tests, stored notebooks, consistency
	$(BIN)/python -m pytest -n auto

test-deep: export HYPOTHESIS_PROFILE := deep
test-deep: test ## the same with ten times the examples of each property

times: .venv/installed ## print each chapter's time; fail if one takes over 40 seconds of a processor
	$(BIN)/python book/_ext/chapters.py

notebooks: .venv/installed ## execute the chapters and store their text outputs for make test
	$(BIN)/python tests/notebooks/regenerate.py

figure: .venv/installed ## draw the picture that the README shows, from the landing page's cell
	$(BIN)/python book/overview.py

results: .venv/installed ## compute the tables of results/DATA, in stages that resume: make results DATA=cifar10 DEVICE=cuda
	$(BIN)/python -m fpmc.experiments --data "$(DATA)" --device "$(DEVICE)" $(ARGS)

lint: .venv/installed ## format and lint the code
	$(BIN)/ruff format .
	$(BIN)/ruff check . --fix

serve: book ## build the book and serve it on localhost
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean: ## remove everything that was built; keeps .venv
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
