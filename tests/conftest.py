"""Quiet surroundings, and fixtures that several test files need."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch

from tools import ROOT, LinearGaussian, missing

NODE_PACKAGES = ROOT / "build" / "node"

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
# A shell's background jobs ignore Ctrl-C, and so would the tests of it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet_surroundings(tmp_path, monkeypatch):
    """One seed, no bars, figures that go where nobody keeps them, and no choice of data."""
    torch.manual_seed(0)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.delenv("VAE_LAB_DATASET", raising=False)
    monkeypatch.setenv("VAE_LAB_FIGURES", str(tmp_path / "figures"))
    # Tests of two workers also run on one core, where PyTorch would warn that they are too many.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.fixture
def linear():
    return LinearGaussian()


@pytest.fixture(scope="session")
def browse():
    """A function that runs a script of ``tests/browser`` on a page, with Chromium and further
    arguments, and returns what it found."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if not chromium or not shutil.which("node") or not shutil.which("npm"):
        missing("needs Chromium, node and npm")
    packages = ["playwright-core@^1.50", "axe-core@^4.10"]
    if not all((NODE_PACKAGES / "node_modules" / p.partition("@")[0]).is_dir() for p in packages):
        npm = [shutil.which("npm"), "install", "--no-audit", "--no-fund"]
        install = [*npm, "--prefix", str(NODE_PACKAGES), *packages]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            missing(f"npm could not install playwright-core and axe-core: {done.stderr[-300:]}")

    def run(script, page, *arguments, timeout=300):
        done = subprocess.run(
            ["node", str(ROOT / "tests" / "browser" / script), str(page), chromium, *arguments],
            cwd=NODE_PACKAGES, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
