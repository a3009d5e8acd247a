#!/usr/bin/env bash
# jupytext turns a notebook into a script; the cell updates variables named mv, ls and rm.
# Expected: Python lines stay Python, and only magics and shell commands become comments.
# Seen: `mv *= 0.5`, `ls += [3]` and `rm -= 1` at the start of a line are commented out as if they
# were shell commands (indented, or written with a plain `=`, they stay), so the script runs through
# without an error and prints other numbers than the notebook.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet jupytext==1.19.6 nbclient==0.11.0 nbformat==5.11.1 ipykernel==7.4.0
env/bin/python - <<'PY'
import subprocess
from importlib.metadata import version

import nbformat
from nbclient import NotebookClient

print({name: version(name) for name in ("jupytext", "nbclient", "nbformat", "ipykernel")})
source = """mv = 1.0  # mean of the variance
ls = [1]  # losses
rm = 3  # rows missing
for loss in [2]:
    ls += [loss]
mv *= 0.5
ls += [3]
rm -= 1
print(mv, ls, rm)"""
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(notebook, "lab.ipynb")
inside = NotebookClient(notebook).execute().cells[0].outputs[0].text.strip()

subprocess.run(["env/bin/jupytext", "--quiet", "--to", "py:percent", "lab.ipynb"], check=True)
run = subprocess.run(["env/bin/python", "lab.py"], check=True, capture_output=True, text=True)
lines = open("lab.py").read().splitlines()
print("notebook:", inside, "\nscript:  ", run.stdout.strip(), "\n" + "\n".join(lines[-10:]))
assert inside == "0.5 [1, 2, 3] 2"
assert {"# mv *= 0.5", "# ls += [3]", "# rm -= 1", "    ls += [loss]"} <= set(lines)
assert run.stdout.strip() == "1.0 [1, 2] 3", "the script now does what the notebook does"
PY
