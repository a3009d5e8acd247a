"""`pip install .`: the assignment and the kit, importable from anywhere, and nothing else."""

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tools import ROOT

# Run outside the repository: every module, and the page that vae_kit.explorer fills.
USE = """
import importlib, pathlib, pkgutil, vae_helpers, vae_kit
for module in pkgutil.iter_modules(vae_kit.__path__, "vae_kit."):
    importlib.import_module(module.name)
assert pathlib.Path(vae_kit.__path__[0], "explorer.html").exists()
print(vae_helpers.__file__)
"""


def bounds(lines):
    """Name and lower bound of each requirement: {"torch": ">=2.4"}; nothing else is admitted."""
    lines = (line.partition("#")[0].strip() for line in lines)
    return dict(re.fullmatch(r"([\w-]+)(>=[\d.]+)", line).groups() for line in lines if line)


def test_requirements_are_lower_bounds_and_those_of_pip_are_among_them():
    required = bounds((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    assert {"torch", "torchvision", "jupyter"} <= required.keys()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)
    depends = bounds(re.findall(r'"(.*?)"', listed))
    depends.pop("ipython")  # which comes with Jupyter
    assert depends.items() <= required.items()


@pytest.mark.pip
def test_after_pip_install_everything_is_imported_from_anywhere(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    shutil.copytree(ROOT, source, ignore=lambda folder, names: {"build", "data"} & {*names} | {
        name for name in names if name.startswith(".")})  # fmt: skip
    (source / "vae_lab.py").write_text("raise SystemExit")  # what jupytext makes of the notebook
    elsewhere.mkdir()
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"

    def run(*command):
        surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run([python, *command], cwd=elsewhere, env=surroundings,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    site = run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])")
    # The packages of this environment are there: nothing as large as PyTorch is downloaded again.
    Path(site, "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run("-m", "pip", "install", "--quiet", str(source))
    listed = "import importlib.metadata as m; print(*m.files('vae-lab'), sep='\\n')"
    installed = {n for n in run("-c", listed).split() if not re.search("dist-info|__pycache__", n)}
    kit = {f"vae_kit/{path.name}" for path in (ROOT / "vae_kit").iterdir() if path.is_file()}
    assert installed == {"vae_helpers.py", *kit}
    assert run("-c", USE) == f"{site}/vae_helpers.py"
