"""What README and CHANGELOG tell a newcomer must be so."""

import importlib
import re
import shlex

import nbformat
import pytest
import torch
from torch.distributions import MultivariateNormal

import train
from tools import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CELLS = {c.id: c for c in nbformat.read(ROOT / "vae_lab.ipynb", as_version=4).cells}
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def section(title):
    assert f"\n## {title}\n" in README, title
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def said_by(cell, beginning):
    """The first line of a cell's outputs that begins so: printed, or of an object shown."""
    for output in CELLS[cell].get("outputs", ()):
        shown = output.get("data", {})
        texts = [output.get("text"), shown.get("text/markdown"), shown.get("text/plain")]
        for line in "\n".join(filter(None, texts)).splitlines():
            if re.match(beginning, line):
                return line
    pytest.fail(f"no output of the cell {cell!r} begins with {beginning}")


# -------------------------------------------------------------------------------- its example


def run_example(**changes):
    source = EXAMPLE
    for name, value in changes.items():
        source, found = re.subn(rf"\b{name}=[\w.]+", f"{name}={value}", source)
        assert found == 1, name
    known = {}
    exec(compile(source, "README.md", "exec"), known)
    return known


def test_the_example_runs_and_its_yes_is_true(capsys):
    known = run_example()
    line, shape = capsys.readouterr().out.splitlines()
    assert line.startswith("Yes, converged: doubling to 80 epochs")
    assert "here with Yes" in README
    assert shape == "torch.Size([5, 8])"
    # The data are Gaussian, so the least −ELBO that any model could have is known.
    torch.manual_seed(0)
    plane = (torch.randn(2000, 3), torch.randn(3, 8))[1]
    truth = MultivariateNormal(torch.zeros(8), plane.T @ plane + 0.25 * torch.eye(8))
    least = -truth.log_prob(known["data"][1600:]).mean()
    end = -known["vae"].log_marginal(known["data"][1600:], n_samples=200).mean()
    assert end < least + known["tolerance"], "nothing beyond the tolerance was left to gain"


def test_with_fewer_epochs_the_example_says_no(capsys):
    (fewer,) = re.findall(r"`epochs=(\d+)`, with No", README)
    run_example(epochs=fewer)
    assert capsys.readouterr().out.startswith("No, still improving")


# ------------------------------------------------------------------- files, commands, numbers


def test_every_file_that_is_named_exists():
    table = section("What is where")
    rows = re.findall(r"^\|.*$", table, re.M)
    for name in re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in rows)):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    named = set(re.findall(r"`([\w./]+)`", table))
    modules = {path.name for path in [*ROOT.glob("*.py"), *ROOT.glob("*.html")]}
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()}
    assert modules | pages <= named, "a file that nobody is told of"


def test_every_target_of_make_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    shown = set(re.findall(r"(?:^|[`(\s])make ([a-z-]+)(?=[`\s])", README, re.M))
    assert shown <= targets, shown - targets
    assert targets <= shown, targets - shown


def test_every_command_that_trains_is_one_that_train_py_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.txt").write_text("--dataset=digits\n--epochs=7\n")
    commands = re.findall(
        r"\btrain\.py (--?[^`\n#]*|@[^`\n#]*)", section("Train without a notebook")
    )
    assert len(commands) >= 3
    parsed = [train.parse(shlex.split(command)) for command in commands]
    (from_file,) = (p for p, c in zip(parsed, commands, strict=True) if c.startswith("@"))
    assert (from_file.dataset, from_file.epochs) == ("digits", 7)


@pytest.mark.parametrize(
    ("cell", "beginning"),
    [("answers", r"(Yes|No|Cannot tell)\b"), ("bits", r"\d+ epochs in ")],
)
def test_what_to_expect_is_what_the_committed_report_says(cell, beginning):
    quoted = re.findall(r"^> (.*)$", section("What to expect"), re.M)
    assert len(quoted) == 2
    said = said_by(cell, beginning)
    assert said in quoted, f"write into README: > {said}"


def test_outside_code_quotations_and_benchmarks_there_is_no_number_of_its_own():
    """Only the lowest Python, which pyproject.toml gives, and the lengths of the example's runs."""
    benchmarks = (section("How good"), section("How fast"))
    text = README.replace(benchmarks[0], "").replace(benchmarks[1], "")
    for elsewhere in (r"```[^`]*```", r"`[^`]*`", r"\]\([^)]*\)", r"^>.*$", r"^\d\. "):
        text = re.sub(elsewhere, "", text, flags=re.M)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    python = re.findall(r'requires-python = ">=([\d.]+)"', project)
    epochs = int(re.findall(r"\bepochs=(\d+)", EXAMPLE)[0])
    lengths = [str(epochs // 4), str(epochs // 2), str(epochs)]
    assert re.findall(r"(?<!\w)\d[\d.,]*\d|(?<!\w)\d", text) == [*python, *lengths]


def test_what_moved_is_where_the_changelog_says():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = changes.partition("\n## ")[2].partition("\n## ")[0]
    found = []
    for old, new in re.findall(r"^\| (`.*) \| (`.*) \|$", latest, re.M)[1:]:
        names, module = re.findall(r"`(\w+)`", old), re.findall(r"`(vae_\w+)`", new)[0]
        found += names
        for name in names:
            assert name in importlib.import_module(module).__all__, (module, name)
    assert len(found) > 15
    removed = latest.partition("### Removed")[2]
    for name in ("PriorVamp", "Reshape"):
        assert f"`{name}`" in removed
        for path in ROOT.glob("vae_*.py"):
            assert not hasattr(importlib.import_module(path.stem), name)


# ------------------------------------------------------------------------------- the notebook


def test_the_assignment_is_answered_by_cells_of_the_notebook():
    """Each row of the table leads to cells, among them one that has run."""
    rows = re.findall(r"^\| (?!asked for)([^|]+) \| (.*) \|$", CELLS["assignment"].source, re.M)
    assert len(rows) >= 25
    for sentence, links in rows:
        ids = re.findall(r"\]\(#cell-id=([\w-]+)\)", links)
        assert ids, sentence
        assert set(ids) <= set(CELLS), sentence
        assert any(CELLS[i].cell_type == "code" for i in ids), sentence


def test_code_cells_are_few_and_short():
    sources = [cell.source for cell in CELLS.values() if cell.cell_type == "code"]
    lengths = sorted(len(source.splitlines()) for source in sources)
    assert len(lengths) <= 45
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[-1] < 25
