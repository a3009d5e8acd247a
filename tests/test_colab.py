"""The notebook alone in an empty folder, as Colab opens it: it finds, fetches or asks."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

NOTEBOOK = json.loads((ROOT / "vae_lab.ipynb").read_text(encoding="utf-8"))
SOURCES = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
(ADDRESS,) = re.findall(r'^REPOSITORY = "(.*?)"', SOURCES["find-helpers"], re.M)
FILES = ("vae_helpers.py", "explorer.html")

# What Colab's dialog does: the chosen files appear in the working directory.
UPLOAD = """
import pathlib
def upload():
    for name in {names!r}:
        text = (pathlib.Path({source!r}) / name).read_text(encoding="utf-8")
        pathlib.Path(name).write_text(text, encoding="utf-8")
    print("UPLOADED")
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def published():
    """A server with the lab at a tag; gives its address and the paths it was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.path = self.path.removeprefix("/owner/lab/v1.0.0")
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(ROOT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/owner/lab/v1.0.0", asked
        server.shutdown()


@pytest.fixture
def colab(tmp_path):
    """The folder of a stand-in for ``google.colab``, to be put on the path."""
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "files.py").write_text(UPLOAD.format(names=FILES, source=str(ROOT)))
    return tmp_path / "site"


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def first_cell(folder, address, path=""):
    """Run the cell that looks for the files, with the lab published at an address."""
    source = SOURCES["find-helpers"].replace(ADDRESS, address)
    return subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def assert_complete(folder):
    for name in FILES:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_files_that_are_missing_are_fetched(empty, published):
    address, asked = published
    done = first_cell(empty, address)
    assert done.returncode == 0, done.stderr
    assert_complete(empty)
    assert asked == [f"/owner/lab/v1.0.0/{name}" for name in FILES]


def test_files_that_are_there_are_left_alone(empty, published):
    address, asked = published
    (empty / "vae_helpers.py").write_text("mine = 1\n")
    assert first_cell(empty, address).returncode == 0
    assert (empty / "vae_helpers.py").read_text() == "mine = 1\n"
    assert asked == ["/owner/lab/v1.0.0/explorer.html"]


def test_where_nothing_is_published_colab_asks_for_an_upload(empty, published, colab):
    address, _ = published
    done = first_cell(empty, f"{address}/nowhere", colab)
    assert done.returncode == 0, done.stderr
    assert "Please upload vae_helpers.py and explorer.html" in done.stdout
    assert "UPLOADED" in done.stdout
    assert_complete(empty)


def test_elsewhere_the_error_says_what_to_do(empty):
    done = first_cell(empty, "http://127.0.0.1:9/lab")  # nobody listens at "discard"
    assert done.returncode != 0
    assert "put vae_helpers.py and explorer.html beside this notebook" in done.stderr
    assert "http://127.0.0.1:9/lab gave:" in done.stderr
    assert list(empty.iterdir()) == []


def test_what_breaks_off_is_not_kept(empty):
    class Breaks(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half = 1\n")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = first_cell(empty, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "IncompleteRead" in done.stderr
    assert list(empty.iterdir()) == []


def test_the_notebook_alone_starts_and_explores(empty, published, colab):
    """In a kernel, from the first cell to the data, and then the explorer, on what was fetched."""
    address, asked = published
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    cells = NOTEBOOK["cells"][: ids.index("data") + 1]
    explore = (
        "flat = VAE(EncoderGaussian(mlp(shape, [4], 4)), DecoderBernoulli(mlp(2, [4], shape)),\n"
        "           PriorGaussian(2))\n"
        "lab.explore_plane(flat, binarize(test.images[:50]), test.labels[:50])"
    )
    last = {"cell_type": "code", "id": "last", "source": explore}
    cells = [*cells, last | {"metadata": {}, "outputs": [], "execution_count": None}]
    text = json.dumps(NOTEBOOK | {"cells": cells}).replace(ADDRESS, address)
    (empty / "vae_lab.ipynb").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--log-level", "WARN", "--to",
               "notebook", "--execute", "--output", "done.ipynb", "vae_lab.ipynb"]  # fmt: skip
    surroundings = {"PYTHONPATH": str(colab), "VAE_LAB_DATASET": "digits"}
    done = subprocess.run(command, cwd=empty, env=os.environ | surroundings, capture_output=True,
                          text=True, timeout=240, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_complete(empty)
    assert len(asked) == len(FILES)
    made = json.loads((empty / "done.ipynb").read_text(encoding="utf-8"))["cells"]
    assert "plane-explorer" in "".join(made[-1]["outputs"][0]["data"]["text/html"])


def test_nothing_is_installed_and_no_shell_is_asked():
    """Colab keeps its torch, and the notebook runs where there is no POSIX shell."""
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            source = SOURCES[cell["id"]]
            assert not re.search(r"^\s*[!%]|\bpip\b|subprocess|os\.system|/tmp", source, re.M)


def test_one_address_and_one_tag():
    """Wherever the repository is named, it is the one that the notebook names, at its tag."""
    owner, name, tag = re.fullmatch(
        r"https://raw\.githubusercontent\.com/([\w-]+)/([\w-]+)/(v\d+\.\d+\.\d+)", ADDRESS
    ).groups()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = f"https://colab.research.google.com/github/{owner}/{name}/blob/{tag}/vae_lab.ipynb"
    assert f"]({opened})" in readme
    tracked = ("README.md", "CHANGELOG.md", "explorer.html", "vae_helpers.py", "train.py")
    for text in [(ROOT / file).read_text(encoding="utf-8") for file in tracked]:
        for found in re.findall(r"github(?:usercontent)?\.com/(?!assets)([\w-]+/[\w-]+)", text):
            assert found == f"{owner}/{name}"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[?(\d+\.\d+\.\d+)", changes, re.M)[1] == tag.removeprefix("v")


def test_the_stand_in_is_used(colab):
    """The test above would prove nothing if another package of that name came first."""
    done = subprocess.run(
        [sys.executable, "-c", "from google.colab import files; print(files.__file__)"],
        env=os.environ | {"PYTHONPATH": str(colab)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert str(colab) in done.stdout
