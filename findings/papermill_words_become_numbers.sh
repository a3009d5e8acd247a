#!/usr/bin/env bash
# papermill's -p hands parameters to a notebook; here names of runs and of versions.
# Expected: 12 is read as a number, and what doesn't look like one stays a string, as `true`,
# `0x10` and `[1, 2]` do.
# Seen: `2026_11` arrives as the integer 202611, `1_0.5` as the float 10.5, `007` as 7 and the word
# `infinity` as float('inf'), though the notebook's own values are strings. It says nothing.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet papermill==2.7.0 nbformat==5.11.1 ipykernel==7.4.0
env/bin/python - <<'PY'
import ast
import subprocess
from importlib.metadata import version

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

print({name: version(name) for name in ("papermill", "nbformat", "ipykernel")})
given = {"run": "2026_11", "version": "1_0.5", "agent": "007", "horizon": "infinity", "flag": "true", "hexa": "0x10"}
cells = [
    new_code_cell("\n".join(f"{name} = 'a string'" for name in given), metadata={"tags": ["parameters"]}),
    new_code_cell("print([repr(value) for value in (" + ", ".join(given) + ")])"),
]
kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), "in.ipynb")


def run(option):
    words = [word for name, value in given.items() for word in (option, name, value)]
    subprocess.run(["env/bin/papermill", "in.ipynb", "out.ipynb", "--no-progress-bar", *words], check=True)
    printed = ast.literal_eval(nbformat.read("out.ipynb", 4).cells[-1].outputs[0].text)
    print(option, dict(zip(given.values(), printed, strict=True)))
    return printed


assert run("-r") == [repr(value) for value in given.values()]  # -r, raw, keeps every string
assert run("-p") == ["202611", "10.5", "7", "inf", "'true'", "'0x10'"], "-p reads these otherwise now"
PY
