# Both commands set up what they need in .venv: Python 3.11 or newer, make and git are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint clean

demo: .venv/geo
	@mkdir -p demo
	$(BIN)/eo-zoo embed examples/sahara -m smarties_vit_nano -o demo/sahara_embedding.tif \
		--preview demo/sahara_preview.png --overwrite
	@echo
	@echo "The embedding is in demo/sahara_embedding.tif, the picture in demo/sahara_preview.png."
	@echo "Next, with official weights (343 MB, downloaded once):"
	@echo "  $(BIN)/eo-zoo embed examples/sahara -m smarties_vit_base -o sahara.tif --preview sahara.png"

test: .venv/test
	$(BIN)/python -m pytest -n auto --maxprocesses 2

slow: .venv/test
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One environment, a stamp for each set of extras that is in it.
.venv/geo .venv/test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(notdir $@)]"
	@touch $@

clean:
	rm -rf .venv demo
