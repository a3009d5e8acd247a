"""What README, the overviews and the tables tell a newcomer must be so."""

import re
from pathlib import Path

import nbformat

import vae_helpers as lab

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "20 epochs" in said
    assert "torch.Size([5, 8])" in said


def test_every_file_that_is_named_exists():
    table = README.partition("## What is where")[2].partition("\n## ")[0]
    names = re.findall(
        r"`([^`]+)`", "".join(row.split("|")[1] for row in re.findall(r"^\|.*$", table, re.M))
    )
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name


def test_its_numbers_are_those_of_the_report():
    notebook = nbformat.read(ROOT / "vae_lab.ipynb", as_version=4)
    (answers,) = (cell for cell in notebook.cells if cell.id == "answers")
    told = re.findall(r"\*\*(−?\d+\.\d+ ± \d+\.\d+)\*\*", README)
    assert len(told) == 2
    for number in told:
        assert f"**{number}**" in answers.outputs[0].data["text/markdown"]


def test_the_overview_of_the_module_names_all_that_is_public():
    own = {n for n, thing in vars(lab).items() if getattr(thing, "__module__", "") == lab.__name__}
    constants = {n for n in vars(lab) if n.isupper()} - {"F", "TYPE_CHECKING"}
    public = {n for n in own | constants if not n.startswith("_")}
    overview = lab.__doc__.partition("=====")[2].rpartition("=====")[0]
    assert public - set(re.findall(r"\w+", overview)) == set()
    assert len(public) > 35


def test_the_assignment_is_answered_by_cells_of_the_notebook():
    """Each row of the table leads to cells, among them, but for prose, one that has run."""
    cells = {c.id: c for c in nbformat.read(ROOT / "vae_lab.ipynb", as_version=4).cells}
    rows = re.findall(r"^\| (?!asked for)([^|]+) \| (.*) \|$", cells["assignment"].source, re.M)
    assert len(rows) >= 25
    for sentence, links in rows:
        ids = re.findall(r"\]\(#cell-id=([\w-]+)\)", links)
        assert ids, sentence
        assert any(cells[i].cell_type == "code" for i in ids), sentence


def test_code_cells_are_short():
    cells = nbformat.read(ROOT / "vae_lab.ipynb", as_version=4).cells
    lengths = sorted(len(c.source.splitlines()) for c in cells if c.cell_type == "code")
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[-1] < 25
