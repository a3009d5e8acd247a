"""The notebook as people run it, on the digits: a plain script, with papermill, in JupyterLab."""

import ast
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest

from tools import ROOT

VERDICT = re.compile(r"^\W*(Yes|No|Cannot tell)\b", re.MULTILINE)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def home(tmp_path):
    """A folder that holds the notebook, without outputs, and what it needs: that is all."""
    home = tmp_path / "home"
    home.mkdir()
    for file in [*ROOT.glob("vae_*.py"), ROOT / "explorer.html"]:
        shutil.copy(file, home)
    notebook = json.loads((ROOT / "vae_lab.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    (home / "vae_lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return home


@pytest.fixture
def surroundings(tmp_path):
    """Environment variables: the digits, figures that nobody keeps, nobody's settings."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
              "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    settings = {name: str(tmp_path / name.lower()) for name in places}
    settings |= {"VAE_LAB_DATASET": "digits", "VAE_LAB_FIGURES": str(tmp_path / "figures")}
    return os.environ | settings


def run(home, surroundings, *command):
    """What the command printed on both streams; it must succeed."""
    done = subprocess.run([sys.executable, *command], cwd=home, env=surroundings, timeout=900,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_as_a_plain_script(home, surroundings):
    # Not vae_lab.py: the notebook prints a digest of vae_*.py.
    command = ["-m", "nbconvert", "--to", "script", "--output", "report", "vae_lab.ipynb"]
    run(home, surroundings, *command)
    printed, warned = run(home, surroundings, "report.py")
    assert VERDICT.search(printed), "the answer is printed where no display can be updated"
    assert re.search(r"^modules [0-9a-f]{12}\b", printed, re.MULTILINE)
    assert warned == ""


def test_with_papermill(home, surroundings):
    """Each number of epochs is halved, to one that can be halved twice; the histories have it."""
    notebook = nbformat.read(home / "vae_lab.ipynb", as_version=4)
    (settings,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    asked = {
        node.targets[0].id: 4 * math.ceil(node.value.value / 8)
        for node in ast.parse(settings.source).body
        if isinstance(node, ast.Assign) and node.targets[0].id.startswith("EPOCHS")
    }
    assert asked
    parameters = [part for name in asked for part in ("-p", name, str(asked[name]))]
    run(home, surroundings, "-m", "papermill", "vae_lab.ipynb", "out.ipynb", *parameters)
    cells = [c for c in nbformat.read(home / "out.ipynb", as_version=4).cells if "source" in c]
    (injected,) = (c for c in cells if "injected-parameters" in c.metadata.get("tags", []))
    assert all(f"{name} = {epochs}" in injected.source for name, epochs in asked.items())
    shown = str([c.outputs for c in cells if c.cell_type == "code"])
    assert VERDICT.search(shown.replace("\\n", "\n").replace("'", "\n"))
    assert all(re.search(rf"\b{epochs} epochs\b", shown) for epochs in asked.values())


@pytest.fixture
def server(home, surroundings, tmp_path):
    """A JupyterLab on the notebook; gives the notebook's address."""
    # A reader has the bars that the other tests switch off.
    surroundings.pop("TQDM_DISABLE")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
               "--allow-root", f"--ServerApp.port={free_port()}", f"--ServerApp.root_dir={home}",
               "--ServerApp.ip=127.0.0.1"]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=home, env=surroundings, stdout=out, stderr=out)
    try:
        server_file = tmp_path / "jupyter_runtime_dir" / f"jpserver-{process.pid}.json"
        for _ in range(600):
            if server_file.exists() and "is running at" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        running = json.loads(server_file.read_text())
        yield f"{running['url']}lab/tree/vae_lab.ipynb?token={running['token']}"
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_in_jupyterlab(server, browse):
    """All cells run, and what is interactive lives."""
    found = browse("lab.mjs", server, timeout=600)
    code = [cell for cell in found["notebook"]["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [o for o in outputs if o.get("name") == "stderr"] == []
    assert "jupyter.widget-view" in str(outputs), "a bar while it trains"
    assert VERDICT.search(str(code[0]["outputs"]).replace("'", "\n")), "the answer comes first"
    assert found["errors"] == []

    which, chosen, before, stayed = found["cloud"]
    assert re.fullmatch(r"Test image [\d,]+, label \d", which)
    assert chosen != before, "the curve of the image, an epoch earlier"
    assert stayed, "the arrow keys are the cloud's while it has the focus"

    numbers = [
        [float(n) for n in re.findall(r"-?\d+\.\d+", found[name].replace("−", "-"))]
        for name in ("pointed", "clicked", "keys", "again")
    ]
    (left, up), middle, (right, down), again = numbers
    assert left < -1 and up > 0.7
    assert middle == [0, 0]
    assert right > 0 > down
    assert right == pytest.approx(-2 * down, abs=0.011)
    assert again == [0, -down], "the cell was run once more"
    assert found["stayed"], "the arrow keys are the explorer's while it has the focus"
    assert found["followed"], "the table's links lead to their cells"
