"""What README tells a newcomer must work as it stands there."""

import re
from pathlib import Path

import nbformat

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
