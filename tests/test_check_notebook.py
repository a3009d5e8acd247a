"""What must keep a notebook from being committed, one fault at a time."""

import base64
import hashlib

import check_notebook
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PICTURE, NARROW = b"a picture", b"a narrow one"


def printed(text):
    return new_output("stream", name="stdout", text=text)


def shown(**data):
    data = {mime.replace("_", "/"): text for mime, text in data.items()}
    return new_output("display_data", data=data)


def encoded(data):
    return base64.b64encode(data).decode()


@pytest.fixture
def folder(tmp_path):
    for name, text in {"vae_b.py": "2", "vae_a.py": "1", "explorer.html": "0"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "curve.png").write_bytes(PICTURE)
    (figures / "curve_narrow.png").write_bytes(NARROW)
    (figures / "curve.svg").write_text("<svg/>")
    return tmp_path


def sound():
    """A notebook without fault: its cells are title, imports, settings, data, figure, results."""
    digest = hashlib.sha256(b"012").hexdigest()[:12]
    picture = shown(image_png=encoded(PICTURE))
    picture.data[check_notebook.NARROW] = encoded(NARROW)
    cells = [
        new_code_cell("import torch", outputs=[printed(f"modules {digest} · PyTorch 2.14.1")]),
        new_code_cell("EPOCHS = 1000", metadata={"tags": ["parameters"]}),
        new_code_cell("images", outputs=[shown(text_plain="MNIST: 60,000 train + 10,000 test")]),
        new_code_cell("save_figure(curve)", outputs=[picture]),
        new_code_cell("history", outputs=[printed("1,163 ± 12 and −873.32 ± 2.11 nats, ±0.5")]),
    ]
    for number, cell in enumerate(cells, 1):
        cell.execution_count = number
    text = "`-1` and $-1000$, by [X](https://arxiv.org/abs/1312.6114) in 2014, arXiv 2203.15945"
    return new_notebook(cells=[new_markdown_cell(f"# T\n\n{text}"), *cells])


def faults(notebook, folder, page=None):
    path, html = folder / "n.ipynb", folder / "n.html"
    nbformat.write(notebook, path)
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    html.write_text(page or f"<meta content='{source}'>", encoding="utf-8")
    return check_notebook.faults(path, html)


def test_a_sound_notebook_has_no_fault(folder):
    assert faults(sound(), folder) == []


def spoil(change):
    """The sound notebook after ``change(cells)``."""
    notebook = sound()
    change(notebook.cells)
    return notebook


def output(result, at=5):
    return lambda cells: cells[at].outputs.append(result)


def source(text, at=5):
    return lambda cells: cells[at].update(source=text)


def many(count, text="x"):
    return lambda cells: cells.extend(
        new_code_cell(text, execution_count=6 + n) for n in range(count)
    )


def prose(text):
    return lambda cells: cells[0].update(source=f"# T\n\n{text}")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda cells: cells[3].update(execution_count=7), "not executed top to bottom"),
        (output(new_output("error", ename="E", evalue="")), "holds an error, in cell 'history'"),
        (output(new_output("stream", name="stderr", text="!")), "a warning or a progress bar"),
        (output(shown(**{"application_x-widget-view+json": "{}"})), "holds a widget"),
        (output(printed("see /home/me/x.py")), "shows a path of a machine: /home/me/x.py"),
        (lambda cells: cells[3].update(outputs=[]), "was not executed on MNIST"),
        (output(shown(image_png=encoded(b"another"))), "a figure that is not in figures/, in"),
        (lambda cells: cells[4].outputs[0].data.pop(check_notebook.NARROW), "curve_narrow.png"),
        (lambda cells: cells[2].metadata.clear(), 'no cell with the tag "parameters"'),
        (many(41), "has 46 code cells; 45 at most"),
        (many(6, "\n\n".join("x" * 9)), "has a median of 9 lines"),
        (source("\n".join("x" * 21)), "has 21 lines in cell 'x'; 20 at most"),
        (source(f'f"{"word " * 26}"'), "composes sentences"),
        (output(printed("1163 nats")), "writes 1163 without a comma"),
        (output(shown(text_html="<td>1163</td>")), "writes 1163 without a comma"),
        (output(shown(text_plain="1163")), "writes 1163 without a comma"),
        (output(printed("it is -0.5")), "writes -0.5 with a hyphen"),
        (output(printed("1.0±0.1")), "writes 0±0, not as in 1.2 ± 0.3"),
        (output(printed("1.0 +/- 0.1")), "writes 0 +/- 0, not as"),
        (output(printed("1.25 ± 0.1")), "writes 1.25 ± 0.1: unequal decimals"),
        (prose("It has 60000 images."), "writes 60000 without a comma"),
    ],
)
def test_faults(folder, change, fault):
    (found,) = faults(spoil(change), folder)
    assert fault in found


def test_words(folder):
    """Formulas are one word, alternative texts and tables of HTML none."""
    notebook = sound()
    before = 17 + 17 + 8  # prose, results and code, counted by hand
    notebook.cells += [
        new_markdown_cell("one $x_1 + x_2$ three well-known $$a \\ b$$"),  # 5
        new_code_cell(
            "f(x)",  # 2
            execution_count=6,
            outputs=[
                printed("one two"),  # 2
                shown(text_markdown="```\nclass A\n```"),  # 2
                shown(text_html="<td>not counted</td>"),
            ],
        ),
    ]
    fill = check_notebook.MAX_WORDS - before - 11
    notebook.cells[0].source += " a" * fill
    assert faults(notebook, folder) == []
    notebook.cells[0].source += " a"
    assert faults(notebook, folder) == [
        f"has {check_notebook.MAX_WORDS + 1} words (prose {17 + 5 + fill + 1}, "
        f"results and displayed source {17 + 4}, code {8 + 2}); {check_notebook.MAX_WORDS} at most"
    ]


def test_other_files(folder):
    assert faults(sound(), folder, page="another") == ["is not what n.html was exported from"]
    (folder / "vae_a.py").write_text("3")
    assert faults(sound(), folder) == ["was not made with the present vae_*.py and explorer.html"]
    (folder / "vae_a.py").write_text("1")
    (folder / "explorer.html").write_text("3")
    assert faults(sound(), folder) == ["was not made with the present vae_*.py and explorer.html"]
    (folder / "explorer.html").write_text("0")
    (folder / "figures" / "old.png").write_bytes(b"old")
    assert faults(sound(), folder) == ["does not show figures/old.png: remove it, or run again"]
    notebook = sound()
    notebook.metadata["widgets"] = {}
    assert "holds widget state" in faults(notebook, folder)
