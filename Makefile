# make report | test | lab: set up by themselves, the first time. README tells what to expect.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := vae_lab.ipynb
# Bars and times of execution do not belong into a stored notebook.
EXECUTE := TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=1800
# One process executes the notebook, the longest of all and so the first, while others take the test
# files; each has one thread.
TEST := OMP_NUM_THREADS=1 TQDM_DISABLE=1
PYTEST := -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	--nbval-lax --nbval-current-env --nbval-cell-timeout 1800 $(NOTEBOOK) tests
OLDEST := build/oldest-$(notdir $(PYTHON))
DEVICE := build/device-env

.PHONY: report test test-oldest test-device test-pip lint lab publish bench

report: .venv/installed
	$(EXECUTE) $(NOTEBOOK) --output-dir build --output $(NOTEBOOK)
	$(BIN)/python tools/export.py build/$(NOTEBOOK) build/vae_lab.html

test: .venv/installed-dev
	$(TEST) $(BIN)/python $(PYTEST)

# The lowest versions that requirements.txt admits, with Python 3.10 or 3.11, for which they exist.
test-oldest: $(OLDEST)/installed
	$(TEST) VAE_LAB_DATASET=digits $(OLDEST)/bin/python $(PYTEST)

# A second device with real numbers: CUDA where there is one, else XLA on the CPU.
ifneq ($(shell command -v nvidia-smi),)
test-device: .venv/installed-dev
	VAE_LAB_DEVICE=cuda $(BIN)/python -m pytest tests/device
else
test-device: $(DEVICE)/installed
	PJRT_DEVICE=CPU $(DEVICE)/bin/python -m pytest tests/device
endif

# pip install, into an environment that has only what the lab needs.
test-pip: .venv/installed-dev
	$(BIN)/python -m pytest -m pip

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_notebook.py $(NOTEBOOK) vae_lab.html

lab: .venv/installed
	$(BIN)/jupyter lab $(NOTEBOOK)

# For maintainers: what is committed shows real MNIST, never the stand-in.
publish: .venv/installed-dev
	VAE_LAB_DATASET=mnist VAE_LAB_FIGURES=figures $(EXECUTE) --inplace $(NOTEBOOK)
	$(BIN)/python tools/export.py $(NOTEBOOK) vae_lab.html
	$(BIN)/python tools/check_notebook.py $(NOTEBOOK) vae_lab.html

bench: .venv/installed
	$(BIN)/python benchmarks/races.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/convergence.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

.venv/installed-dev: tests/requirements.txt .venv/installed
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

# The tests take warnings as errors: pyparsing 3.3 deprecates what matplotlib 3.9 calls.
$(OLDEST)/installed: tests/requirements.txt requirements.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python \
		--resolution lowest-direct --requirement $< "pyparsing>=3.1,<3.3"
	touch $@

# PyTorch and torch_xla must be of one version.
$(DEVICE)/installed:
	$(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python -m pip install --quiet "torch==2.9.*" "torch_xla==2.9.*" \
		"torchvision==0.24.*" numpy scikit-learn scipy matplotlib tqdm pytest
	touch $@
