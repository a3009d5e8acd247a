"""The notebook alone in an empty folder, as Colab opens it: it finds, fetches or asks."""

import functools
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile

import pytest

from tools import ROOT

NOTEBOOK = json.loads((ROOT / "vae_lab.ipynb").read_text(encoding="utf-8"))
SOURCES = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"]}
(ADDRESS,) = re.findall(r'^RELEASE = "(.*?)"', SOURCES["find-helpers"], re.M)
FILES = {path.name: path.read_bytes() for path in [*ROOT.glob("vae_*.py"), ROOT / "explorer.html"]}

# What Colab's dialog does: the chosen files appear in the working directory, and are returned.
UPLOAD = """
import pathlib, shutil
def upload():
    print("UPLOADED")
    chosen = sorted(pathlib.Path({folder!r}).iterdir())
    return {{file.name: pathlib.Path(shutil.copy(file, ".")).read_bytes() for file in chosen}}
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def packed(files):
    """The archive that a repository's host makes of a tag: everything is in one folder."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as folder:
        for name, content in files.items():
            folder.writestr(f"lab-1.1.0/{name}", content)
    return archive.getvalue()


@pytest.fixture
def server(tmp_path):
    """A folder that is served, its address, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


@pytest.fixture
def published(server):
    """The address of the lab's archive at a tag, and the paths that were asked for."""
    folder, address, asked = server
    others = {"README.md": b"The lab", "tests/test_data.py": b"", "figures/explorer.svg": b""}
    (folder / "v1.1.0.zip").write_bytes(packed(FILES | others))
    return f"{address}/v1.1.0.zip", asked


@pytest.fixture
def colab(tmp_path):
    """The folder of a stand-in for ``google.colab``, to be put on the path, and that of the files
    that its user chooses; as in Colab, the package has been imported before the first cell."""
    package, chosen = tmp_path / "site" / "google" / "colab", tmp_path / "chosen"
    package.mkdir(parents=True)
    chosen.mkdir()
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "files.py").write_text(UPLOAD.format(folder=str(chosen)))
    (tmp_path / "site" / "sitecustomize.py").write_text("import google.colab")
    return tmp_path / "site", chosen


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def first_cell(folder, address, path=""):
    """Run the cell that looks for the files, with the lab published at an address."""
    source = SOURCES["find-helpers"].replace(ADDRESS, address)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=folder, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True,
    )  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_all_files_of_the_tag_are_fetched_in_one_go_and_nothing_else(empty, published):
    address, asked = published
    done = first_cell(empty, address)
    assert done.returncode == 0, done.stderr
    assert contents(empty) == FILES
    assert asked == ["/v1.1.0.zip"]


def test_one_of_them_missing_is_enough_and_those_that_are_there_are_left_alone(empty, published):
    address, asked = published
    mine = {"vae_data.py": b"mine = 1\n", "vae_convergence.py": b"mine = 2\n"}
    for name, content in mine.items():
        (empty / name).write_bytes(content)
    assert first_cell(empty, address).returncode == 0
    assert contents(empty) == FILES | mine
    assert len(asked) == 1


@pytest.mark.parametrize("installed", [False, True])
def test_where_the_lab_is_nothing_is_fetched(empty, published, tmp_path, installed):
    """Beside the notebook, or where pip put it."""
    address, asked = published
    folder = tmp_path / "site-packages" if installed else empty
    folder.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    done = first_cell(empty, address, folder)
    assert done.returncode == 0, done.stderr
    assert not asked
    assert set(contents(empty)) == (set() if installed else set(FILES))


def test_the_modules_that_the_cell_looks_for_need_all_others():
    (looked_for,) = re.findall(r"for module in (\(.*?\))", SOURCES["find-helpers"])
    code = (
        "import importlib, sys\n"
        f"for name in {looked_for}: importlib.import_module('vae_' + name)\n"
        "print(*(name for name in sys.modules if name.startswith('vae_')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert {f"{name}.py" for name in done.stdout.split()} == FILES.keys() - {"explorer.html"}


@pytest.mark.parametrize("kind", ["archive", "files"])
def test_where_nothing_is_published_colab_asks_for_an_upload_once(empty, server, colab, kind):
    site, chosen = colab
    files = FILES if kind == "files" else {"v1.1.0.zip": packed(FILES)}
    for name, content in files.items():
        (chosen / name).write_bytes(content)
    address = f"{server[1]}/nowhere.zip"
    done = first_cell(empty, address, site)
    assert done.returncode == 0, done.stderr
    assert "asks for an upload: the archive named in `RELEASE`" in SOURCES["setup"]
    assert done.stdout.count("UPLOADED") == 1
    assert contents(empty) == FILES | files


def test_elsewhere_the_text_says_what_to_do(empty):
    address = "http://127.0.0.1:9/lab.zip"  # nobody listens at "discard"
    done = first_cell(empty, address)
    assert done.returncode != 0
    assert "refused" in done.stderr
    assert "Elsewhere, unpack that archive, and open the notebook in it." in SOURCES["setup"]
    assert not contents(empty)


class Breaks(http.server.BaseHTTPRequestHandler):
    """Announces more than it sends."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(packed({"vae_data.py": b"half = 1\n"}))

    def log_message(self, *_):
        pass


def test_what_breaks_off_is_not_kept(empty):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = first_cell(empty, f"http://127.0.0.1:{server.server_port}/lab.zip")
        server.shutdown()
    assert "IncompleteRead" in done.stderr
    assert not contents(empty)


def test_a_page_instead_of_the_archive_is_not_taken_for_it(empty, server):
    folder, address, _ = server
    (folder / "lab.zip").write_text("<html>Please log in</html>")
    done = first_cell(empty, f"{address}/lab.zip")
    assert "not a zip file" in done.stderr
    assert not contents(empty)


def test_nothing_is_written_outside_the_folder_nor_under_another_name(empty, server, tmp_path):
    folder, address, _ = server
    wanted = ["../vae_a.py", "/vae_b.py", f"{tmp_path}/vae_c.py", "../../explorer.html"]
    others = ["vae_d.py/", "..\\vae_e.py", "vae_f.py.exe", "vae_.py", "vae_g.PY", "vae_h.py\n"]
    with zipfile.ZipFile(folder / "lab.zip", "w") as archive:
        for name in [*wanted, *others, "torch.py"]:
            archive.writestr(name, b"evil = 1\n")
    before = {path for path in tmp_path.rglob("*") if empty not in path.parents}
    done = first_cell(empty, f"{address}/lab.zip")
    assert done.returncode == 0, done.stderr
    assert {path for path in tmp_path.rglob("*") if empty not in path.parents} == before
    assert set(contents(empty)) == {"vae_a.py", "vae_b.py", "vae_c.py", "explorer.html"}


def test_the_notebook_alone_starts_and_explores(empty, published, colab):
    """In a kernel, from the first cell to the data, and then the explorer, on what was fetched."""
    address, asked = published
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    cells = NOTEBOOK["cells"][: ids.index("data") + 1]
    explore = (
        "from vae_data import binarize, load_images\n"
        "from vae_explorer import explore_plane\n"
        "from vae_helpers import VAE, DecoderBernoulli, EncoderGaussian, PriorGaussian\n"
        "from vae_networks import mlp\n"
        "test = load_images('digits').test\n"
        "flat = VAE(EncoderGaussian(mlp((1, 8, 8), [4], 4)),\n"
        "           DecoderBernoulli(mlp(2, [4], (1, 8, 8))), PriorGaussian(2))\n"
        "explore_plane(flat, binarize(test.images[:50]), test.labels[:50])"
    )
    last = {"cell_type": "code", "id": "last", "source": explore}
    cells = [*cells, last | {"metadata": {}, "outputs": [], "execution_count": None}]
    text = json.dumps(NOTEBOOK | {"cells": cells}).replace(ADDRESS, address)
    (empty / "vae_lab.ipynb").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--log-level", "WARN", "--to",
               "notebook", "--execute", "--output", "done.ipynb", "vae_lab.ipynb"]  # fmt: skip
    surroundings = {"PYTHONPATH": str(colab[0]), "VAE_LAB_DATASET": "digits"}
    done = subprocess.run(command, cwd=empty, env=os.environ | surroundings, capture_output=True,
                          text=True, timeout=240, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert FILES.items() <= contents(empty).items()
    assert len(asked) == 1
    made = json.loads((empty / "done.ipynb").read_text(encoding="utf-8"))["cells"]
    assert "text/html" in made[-1]["outputs"][0]["data"]


def test_nothing_is_installed_and_no_shell_is_asked():
    """Colab keeps its torch, and the notebook runs where there is no POSIX shell."""
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            source = SOURCES[cell["id"]]
            assert not re.search(r"^\s*[!%]|\bpip\b|subprocess|os\.system|/tmp", source, re.M)


def test_one_address_and_one_tag():
    """Wherever the repository is named, it is the one that the notebook names, at its tag."""
    owner, name, tag = re.fullmatch(
        r"https://github\.com/([\w-]+)/([\w-]+)/archive/refs/tags/(v\d+\.\d+\.\d+)\.zip", ADDRESS
    ).groups()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = f"https://colab.research.google.com/github/{owner}/{name}/blob/{tag}/vae_lab.ipynb"
    assert f"]({opened})" in readme
    tracked = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "explorer.html"]
    for text in [file.read_text(encoding="utf-8") for file in tracked]:
        for found in re.findall(r"github(?:usercontent)?\.com/(?!assets)([\w-]+/[\w-]+)", text):
            assert found == f"{owner}/{name}"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[?(\d+\.\d+\.\d+)", changes, re.M)[1] == tag.removeprefix("v")


def test_the_stand_in_is_used(colab):
    """The test above would prove nothing if another package of that name came first."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.modules['google.colab'].__file__)"],
        env=os.environ | {"PYTHONPATH": str(colab[0])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert str(colab[0]) in done.stdout
