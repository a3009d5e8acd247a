"""``pip install .`` and ``pip install git+file://…``: everything that an import needs, no more."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tools import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings its forerunner
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = sorted(path.stem for path in ROOT.glob("vae_*.py"))

# Run outside the repository: what is imported, from where, and a page that needs explorer.html.
USE = f"""
import importlib, pathlib, sysconfig, torch
site = pathlib.Path(sysconfig.get_paths()["purelib"])
for name in {MODULES}:
    assert pathlib.Path(importlib.import_module(name).__file__).parent == site, name
from vae_explorer import explore_plane
from vae_helpers import VAE, DecoderBernoulli, EncoderGaussian, PriorGaussian
from vae_networks import mlp
shape = (1, 8, 8)
vae = VAE(EncoderGaussian(mlp(shape, [4], 4)), DecoderBernoulli(mlp(2, [4], shape)),
          PriorGaussian(2))
page = explore_plane(vae, torch.zeros(30, *shape), torch.arange(30) % 10)
print(len(page.data))
"""


def bounds(lines):
    """Name and lower bound of each requirement: {"torch": ">=2.4"}."""
    lines = (line.partition("#")[0].strip() for line in lines)
    return dict(re.fullmatch(r"([\w-]+)(>=[\d.]+)", line).groups() for line in lines if line)


def requirements():
    return bounds((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())


def test_requirements_are_lower_bounds_and_those_of_pip_are_among_them():
    """``bounds`` refuses a line that is anything else, such as a pin."""
    assert {"torch", "torchvision", "jupyter"} <= requirements().keys()
    depends = bounds(PROJECT["dependencies"])
    depends.pop("ipython")  # which comes with Jupyter
    assert depends.items() <= requirements().items()


def test_what_the_modules_import_is_what_pip_brings():
    """Beside the standard library: a dependency, or what PyTorch and torchvision depend on."""
    packages = {"sklearn": "scikit-learn", "IPython": "ipython"}
    found = set()
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    found -= {*sys.stdlib_module_names, *MODULES, "numpy", "PIL"}
    assert {packages.get(name, name) for name in found} == bounds(PROJECT["dependencies"]).keys()


def test_the_version_is_the_one_that_changes_are_listed_for():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert PROJECT["version"] == re.search(r"^## \[?(\d+\.\d+\.\d+)", changes, re.M)[1]


# ----------------------------------------------------------- installed, which takes a minute


@pytest.fixture
def checkout(tmp_path):
    """The working tree as a repository of its own, everything in it committed."""
    folder = tmp_path / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "All"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def python(tmp_path):
    """The Python of a new environment that has the packages of this one, not the lab."""
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    said = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()
    # Nothing as large as PyTorch is downloaded again.
    Path(site, "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


@pytest.mark.pip
@pytest.mark.parametrize("source", ["{}", "git+file://{}"])
def test_after_pip_install_everything_is_imported_from_anywhere(
    source, checkout, python, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "anywhere").mkdir()
    options = {"cwd": tmp_path / "anywhere", "capture_output": True, "text": True, "check": False}
    alone = subprocess.run([python, "-c", "import vae_helpers"], **options)
    assert "No module named 'vae_helpers'" in alone.stderr

    install = [python, "-m", "pip", "install", "--quiet", source.format(checkout)]
    done = subprocess.run(install, **options)
    assert done.returncode == 0, done.stderr

    files = [python, "-c", "import importlib.metadata as m; print(*m.files('vae-lab'), sep='\\n')"]
    names = subprocess.run(files, **options).stdout.split()
    installed = {name for name in names if ".dist-info/" not in name and "__pycache__" not in name}
    assert installed == {"explorer.html"} | {f"{name}.py" for name in MODULES}

    used = subprocess.run([python, "-c", USE], **options)
    assert used.returncode == 0, used.stderr
    page = (ROOT / "explorer.html").stat().st_size
    assert int(used.stdout) > page  # the page and the numbers in it
