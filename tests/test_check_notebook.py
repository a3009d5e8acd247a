"""What must keep a notebook from being committed, one fault at a time."""

import hashlib

import check_notebook
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def faults(folder, spoil=lambda notebook: None, page=None):
    """The faults of a sound notebook after `spoil`, beside its page or another one."""
    told = printed("MNIST: 60,000 train + 10,000 test images, see https://a.org/home/me")
    cells = [
        new_code_cell("import torch", execution_count=1),
        new_code_cell("images", execution_count=2, outputs=[told]),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# T"), *cells])
    spoil(notebook)
    path, html = folder / "n.ipynb", folder / "n.html"
    nbformat.write(notebook, path)
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    html.write_text(page or f"<meta content='{source}'>", encoding="utf-8")
    return check_notebook.faults(path, html)


def output(result):
    return lambda notebook: notebook.cells[2].outputs.append(result)


def test_a_sound_notebook_has_no_fault(tmp_path):
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda nb: nb.cells[2].update(execution_count=3), "not executed top to bottom"),
        (output(new_output("error", ename="E", evalue="")), "holds an error, in cell 'images'"),
        (output(printed("!", "stderr")), "a warning or a progress bar, in cell 'images'"),
        (output(printed("10/10 [00:01, 7.3it/s]")), "holds a progress bar"),
        (output(new_output("display_data", data={"application/x-widget": "{}"})), "holds a widget"),
        (lambda nb: nb.metadata.update(widgets={}), "holds widget state"),
        (output(printed("see /home/me/x.py")), "shows a path of a machine: /home/me/x.py"),
        (lambda nb: nb.cells[2].update(outputs=[]), "was not executed on MNIST"),
        (
            lambda nb: nb.cells[2].update(outputs=[printed("Fashion-MNIST: 60,000 train")]),
            "was not executed on MNIST",
        ),
    ],
)
def test_faults(tmp_path, spoil, fault):
    (found,) = faults(tmp_path, spoil)
    assert fault in found


def test_the_page_is_of_this_notebook(tmp_path):
    assert faults(tmp_path, page="another") == ["is not what n.html was exported from"]
