# make report | test | lab: set up by themselves, the first time. README tells what to expect.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := vae_lab.ipynb
# Bars and times of execution do not belong into a stored notebook.
EXECUTE := TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=1800

.PHONY: report test test-oldest lint lab publish bench

report: .venv/installed
	$(EXECUTE) $(NOTEBOOK) --output-dir build --output $(NOTEBOOK)
	$(BIN)/python tools/export.py build/$(NOTEBOOK) build/vae_lab.html

test: .venv/installed-dev
	$(BIN)/python -m pytest
	TQDM_DISABLE=1 $(BIN)/python -m pytest --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=1800 $(NOTEBOOK)

test-oldest:
	$(PYTHON) tools/test_oldest.py

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python tools/check_notebook.py $(NOTEBOOK) vae_lab.html

lab: .venv/installed
	$(BIN)/jupyter lab $(NOTEBOOK)

# For maintainers: what is committed shows real MNIST, never the stand-in.
publish: .venv/installed-dev
	VAE_LAB_DATASET=mnist VAE_LAB_FIGURES=figures $(EXECUTE) --inplace $(NOTEBOOK)
	$(BIN)/python tools/export.py $(NOTEBOOK) vae_lab.html
	$(BIN)/python tools/check_notebook.py $(NOTEBOOK) vae_lab.html

bench: .venv/installed
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/likelihood.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@
