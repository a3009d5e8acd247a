"""The notebook alone in an empty folder, as Colab opens it: it finds, fetches or asks."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import nbformat
import pytest

from tools import ROOT

CODE = [
    cell.source
    for cell in nbformat.read(ROOT / "vae_lab.ipynb", as_version=4).cells
    if cell.cell_type == "code"
]
(SETUP,) = (source for source in CODE if re.search(r"^RELEASE = ", source, re.M))
(ADDRESS,) = re.findall(r'^RELEASE = "(.*?)"', SETUP, re.M)
TAG = re.search(r"v(\d+\.\d+\.\d+)\.zip$", ADDRESS)[1]
IMPORTS = next(source for source in CODE if "from vae_kit" in source)

# Colab imports its package before the first cell; its dialog returns the chosen files.
COLAB = """
import sys, types
google, colab, files = map(types.ModuleType, ("google", "google.colab", "google.colab.files"))
google.colab, colab.files = colab, files
files.upload = lambda: print("UPLOADED") or {{"lab.zip": open({archive!r}, "rb").read()}}
sys.modules.update({{module.__name__: module for module in (google, colab, files)}})
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What a repository's host makes of a tag: one folder with everything in it."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "vae_helpers.py", folder)
    shutil.copytree(ROOT / "vae_kit", folder / "vae_kit")
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    pack = ["archive", f"--prefix=vae-lab-{TAG}/", "--output=lab.zip", "HEAD"]
    subprocess.run([*git, *pack], cwd=folder, check=True)
    return folder / "lab.zip"


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
def empty(tmp_path):
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def start(folder, address, before="", after=""):
    """Run the set-up cell in a folder, with the lab published at an address."""
    source = f"{before}\n{SETUP.replace(ADDRESS, address)}\n{after}"
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=surroundings | {"no_proxy": "127.0.0.1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_release_is_fetched_once_and_everything_is_imported_from_it(empty, server, archive):
    folder, address, asked = server
    shutil.copy(archive, folder)
    told = "import vae_kit, vae_helpers; print(vae_kit.__path__[0], vae_helpers.__file__)"
    done = start(empty, f"{address}/lab.zip", after=f"{IMPORTS}\n{told}")
    assert done.returncode == 0, done.stderr
    assert asked == ["/lab.zip"]
    unpacked = empty / f"vae-lab-{TAG}"
    assert list(empty.iterdir()) == [unpacked]
    places = f"{unpacked / 'vae_kit'} {unpacked / 'vae_helpers.py'}"
    assert done.stdout.splitlines()[-1] == places
    assert (unpacked / "vae_kit" / "explorer.html").exists()


def test_beside_the_lab_nothing_is_fetched(server):
    _, address, asked = server
    done = start(ROOT, f"{address}/lab.zip")
    assert done.returncode == 0, done.stderr
    assert not asked


def test_where_nothing_is_published_colab_asks_for_the_archive(empty, server, archive):
    colab = COLAB.format(archive=str(archive))
    done = start(empty, f"{server[1]}/nowhere.zip", before=colab, after="import vae_kit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("UPLOADED") == 1


@pytest.mark.parametrize(("page", "message"), [(None, "404"), ("Log in", "not a zip file")])
def test_elsewhere_the_error_says_what_is_wrong(empty, server, page, message):
    if page:
        (server[0] / "lab.zip").write_text(page)
    done = start(empty, f"{server[1]}/lab.zip")
    assert message in done.stderr.splitlines()[-1]
    assert not list(empty.iterdir())


def test_one_address_and_one_version():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.*)"', project, re.M)
    (repository,) = re.findall(r'^Repository = "(.*)"', project, re.M)
    assert f"{repository}/archive/refs/tags/v{version}.zip" == ADDRESS
    colab = repository.replace("github.com", "colab.research.google.com/github")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"]({colab}/blob/v{version}/vae_lab.ipynb)" in readme
    changes = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[?(\d+\.\d+\.\d+)", changes, re.M)[1] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation


def test_nothing_is_installed_and_no_shell_is_asked():
    """Colab keeps its torch, and the notebook runs where there is no POSIX shell."""
    for source in CODE:
        assert not re.search(r"^\s*[!%]|\bpip\b|subprocess|os\.system|/tmp", source, re.M)
