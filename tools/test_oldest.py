"""Run tests and notebook on the oldest versions that requirements.txt admits.

``python tools/test_oldest.py``, with Python 3.10 or 3.11, the newest for which those versions were
published; with arguments, pytest gets them, and nothing else is run. The notebook takes the digits.
The environment stays in ``build/oldest-3.x`` and is made again only when requirements.txt changes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The tests take warnings as errors: pyparsing 3.3 deprecates what matplotlib of that age calls.
COMPANIONS = ["pyparsing<3.3", "hypothesis"]
NOTEBOOK = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=1800", "vae_lab.ipynb"]


def oldest(requirements: str) -> str:
    """Every lower bound as the only version: ``torch>=2.4`` → ``torch==2.4``."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    bounds = [line for line in lines if line]
    for line in bounds:
        if not re.fullmatch(r"[\w-]+>=[\d.]+", line):
            raise SystemExit(f"requirements.txt: {line!r} is not a lower bound, name>=version")
    return "".join(line.replace(">=", "==") + "\n" for line in bounds)


def main() -> int:
    """Make the environment if need be, and return 0 if all passes."""
    if not (3, 10) <= sys.version_info < (3, 12):
        raise SystemExit("the oldest versions exist for Python 3.10 and 3.11: run me with one")
    folder = ROOT / "build" / f"oldest-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins = folder / "requirements.txt"
    wanted = oldest((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    if not pins.exists() or pins.read_text(encoding="utf-8") != wanted:
        venv.create(folder, clear=True, with_pip=True)
        constraints = folder / "wanted.txt"
        constraints.write_text(wanted, encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "-r", constraints]
        subprocess.run([*install, *COMPANIONS], check=True)
        constraints.rename(pins)  # only a finished environment has the file
    tests = subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT)
    if sys.argv[1:]:
        return tests.returncode
    environment = os.environ | {"VAE_LAB_DATASET": "digits", "TQDM_DISABLE": "1"}
    notebook = subprocess.run([python, "-m", "pytest", *NOTEBOOK], cwd=ROOT, env=environment)
    return tests.returncode or notebook.returncode


if __name__ == "__main__":
    raise SystemExit(main())
