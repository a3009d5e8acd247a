# make report | test | lab: set up by themselves, the first time. README tells what to expect.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := vae_lab.ipynb
# Bars and times of execution do not belong into a stored notebook.
EXECUTE := TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=1800
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=1800 $(NOTEBOOK)
OLDEST := build/oldest-$(notdir $(PYTHON))

.PHONY: report test test-oldest test-device test-pip lint lab publish bench

report: .venv/installed
	$(EXECUTE) $(NOTEBOOK) --output-dir build --output $(NOTEBOOK)
	$(BIN)/python tools/export.py build/$(NOTEBOOK) build/vae_lab.html

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	TQDM_DISABLE=1 $(BIN)/python -m pytest $(NBVAL)

# The lowest versions that requirements.txt admits, with Python 3.10 or 3.11, for which they exist.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest
	VAE_LAB_DATASET=digits TQDM_DISABLE=1 $(OLDEST)/bin/python -m pytest $(NBVAL)

# A second device with real numbers: XLA on the CPU. PyTorch and torch_xla must be of one version.
test-device: build/device-env/installed
	PJRT_DEVICE=CPU build/device-env/bin/python -m pytest tests/device

# pip install, into an environment that has only what the lab needs.
test-pip: .venv/installed-dev
	$(BIN)/python -m pytest -m pip

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
	$(BIN)/python benchmarks/time_to_quality.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/convergence.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

# The tests take warnings as errors: pyparsing 3.3 deprecates what matplotlib 3.9 calls.
$(OLDEST)/installed: requirements-dev.txt requirements.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python \
		--resolution lowest-direct --requirement $< "pyparsing>=3.1,<3.3"
	touch $@

build/device-env/installed:
	$(PYTHON) -m venv build/device-env
	build/device-env/bin/python -m pip install --quiet "torch==2.9.*" "torch_xla==2.9.*" \
		"torchvision==0.24.*" numpy scikit-learn scipy matplotlib tqdm pytest
	touch $@
