"""What README tells a newcomer to type must work."""

import re
import shlex

import pytest

from tools import ROOT
from vae_kit import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert re.match(r"(Yes|No), |Cannot tell", capsys.readouterr().out)


def test_files_that_are_named_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    names = re.findall(r"`([\w./]+/|[\w./]+\.(?:py|md|ipynb|html|txt|toml))`", README)
    for name in {*links, *names} - {"data/", ".venv/bin/"}:  # which a download and make bring
        assert (ROOT / name).exists(), name


def test_targets_of_make_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|[`(\s])make ([a-z-]+)(?=[`\s])", README, re.M))
    assert named == targets


def test_commands_that_train_are_taken():
    commands = re.findall(r"-m vae_kit\.train (--[^`\n#]*)", README)
    assert commands
    for command in commands:
        train.parse(shlex.split(command))
