"""The notebook as people run it, on the digits: a plain script, with papermill, in JupyterLab."""

import json
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

VERDICT = re.compile(r"(Yes|No), |Cannot tell")
FEW = 4  # epochs, and that many can be halved twice


@pytest.fixture
def home(tmp_path):
    """A folder that holds the lab, and its notebook without outputs and with few epochs."""
    home = tmp_path / "home"
    shutil.copytree(ROOT / "vae_kit", home / "vae_kit")
    shutil.copy(ROOT / "vae_helpers.py", home)
    notebook = nbformat.read(ROOT / "vae_lab.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"^(EPOCHS\w*) = \d+", rf"\1 = {FEW}", cell.source, flags=re.M)
            assert f" = {FEW}" in cell.source
    nbformat.write(notebook, home / "vae_lab.ipynb")
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
    done = subprocess.run([sys.executable, *command], cwd=home, env=surroundings, timeout=600,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_as_a_plain_script(home, surroundings):
    """The script has the name that jupytext gives it, beside the modules."""
    run(home, surroundings, "-m", "nbconvert", "--to", "python", "vae_lab.ipynb")
    printed, warned = run(home, surroundings, "vae_lab.py")
    assert VERDICT.search(printed), "the answer is printed where no display can be updated"
    assert len(printed) < 100_000, "a picture's repr is its words"
    assert warned == ""


def test_with_papermill(home, surroundings):
    notebook = nbformat.read(home / "vae_lab.ipynb", as_version=4)
    (settings,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    names = re.findall(r"^(EPOCHS\w*) =", settings.source, re.M)
    parameters = [part for name in names for part in ("-p", name, str(2 * FEW))]
    run(home, surroundings, "-m", "papermill", "vae_lab.ipynb", "out.ipynb", *parameters)
    cells = nbformat.read(home / "out.ipynb", as_version=4).cells
    shown = str([cell.get("outputs") for cell in cells])
    assert VERDICT.search(shown) and f"{2 * FEW} epochs" in shown


@pytest.fixture
def server(home, surroundings, tmp_path):
    """A JupyterLab on the notebook; gives the notebook's address."""
    # A reader has the bars that the other tests switch off.
    surroundings.pop("TQDM_DISABLE")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
               "--allow-root", f"--ServerApp.port={port}", f"--ServerApp.root_dir={home}",
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
    assert VERDICT.search(str(code[0]["outputs"])), "the answer comes first"
    assert found["errors"] == []

    chosen, before, stayed = found["cloud"]
    assert chosen != before, "the curve of the image, an epoch earlier"
    assert stayed, "the arrow keys are the cloud's while it has the focus"
    assert found["pointed"] != found["clicked"] != found["keys"]
    assert found["stayed"], "the arrow keys are the explorer's while it has the focus"
    assert found["again"], "run once more, the cell has a new explorer"
