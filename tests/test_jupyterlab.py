"""The notebook in JupyterLab: it opens, all its cells run, and what is interactive lives."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """A JupyterLab on a copy of the notebook, without outputs; gives the notebook's address."""
    home = tmp_path / "lab"
    home.mkdir()
    for name in ("vae_helpers.py", "explorer.html"):
        shutil.copy(ROOT / name, home)
    notebook = json.loads((ROOT / "vae_lab.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    (home / "vae_lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
              "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    settings = {name: str(tmp_path / name.lower()) for name in places}
    settings |= {"VAE_LAB_DATASET": "digits", "VAE_LAB_FIGURES": str(tmp_path / "figures")}
    # A reader has the bars that the other tests switch off.
    surroundings = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
               "--allow-root", f"--ServerApp.port={free_port()}", f"--ServerApp.root_dir={home}",
               "--ServerApp.ip=127.0.0.1"]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=home, env=surroundings | settings, stdout=out,
                                   stderr=out)  # fmt: skip
    try:
        told = tmp_path / "jupyter_runtime_dir" / f"jpserver-{process.pid}.json"
        for _ in range(600):
            if told.exists() and "is running at" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        running = json.loads(told.read_text())
        yield f"{running['url']}lab/tree/vae_lab.ipynb?token={running['token']}"
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_all_cells_run_and_the_explorer_lives(server, browse):
    found = browse("lab.mjs", server, timeout=600)
    cells = {cell["id"]: cell for cell in found["notebook"]["cells"]}
    code = [cell for cell in cells.values() if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert [o for o in outputs if o.get("name") == "stderr"] == []
    assert "jupyter.widget-view" in str(cells["task1"]["outputs"]), "a bar while it trains"
    assert "does the model converge" in str(cells["answers"]["outputs"])
    assert found["errors"] == []

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
