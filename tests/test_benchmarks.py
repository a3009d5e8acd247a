"""The benchmarks run, and their committed tables say what their numbers say."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vae_helpers as lab

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def likelihood(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("likelihood", None)
    import likelihood

    monkeypatch.setattr(likelihood, "HERE", tmp_path)
    monkeypatch.setattr(likelihood, "TRAINED", tmp_path / "trained")
    return likelihood


def test_the_likelihood_table_is_what_the_numbers_give(likelihood, tmp_path):
    likelihood.report(json.loads((BENCHMARKS / "likelihood.json").read_text()))
    committed = (BENCHMARKS / "likelihood.md").read_text(encoding="utf-8")
    assert (tmp_path / "likelihood.md").read_text(encoding="utf-8") == committed


def test_the_tables_of_speed_are_what_the_numbers_give(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("training_speed", None)
    import training_speed

    monkeypatch.setattr(training_speed, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["training_speed.py", "--only", "report"])
    shutil.copy(BENCHMARKS / "training_speed.json", tmp_path)
    training_speed.main()
    committed = (BENCHMARKS / "training_speed.md").read_text(encoding="utf-8")
    assert (tmp_path / "training_speed.md").read_text(encoding="utf-8") == committed


@pytest.mark.parametrize("name", ["plain", "best", "levels"])
def test_every_configuration_trains_and_its_bounds_are_in_order(likelihood, monkeypatch, name):
    kinds = torch.arange(24)
    ramps = torch.arange(784).view(1, 1, 28, 28) * kinds.view(-1, 1, 1, 1) % 256
    split = lab.ImageSet(ramps.to(torch.uint8), kinds)
    images = lab.Images("ramps", split, split)
    quick = replace(likelihood.CONFIGURATIONS[name], epochs=4, samples=200, batch_size=8)
    monkeypatch.setitem(likelihood.CONFIGURATIONS, name, quick)
    run = likelihood.measure(name, 0, images)
    assert run["epochs"] == 4
    assert likelihood.measure(name, 0, images) == run, "the model that was kept is the same"
    # The same model and images evaluated twice: the tighter bound is the lower one.
    assert run["log_p"] < run["elbo"]
    likelihood.report({f"{name}-0": run, f"{name}-1": run})
    table = (likelihood.HERE / "likelihood.md").read_text(encoding="utf-8")
    assert f"| {name} | 1 | 4 |" in table


def test_the_numbers_of_readme_are_those_of_the_benchmark():
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## How good")[2].partition("\n## ")[0]
    goals = (BENCHMARKS / "likelihood.md").read_text(encoding="utf-8").partition("## Protocol")[0]
    rows = re.findall(r"^\| (?!model|---)(.*) \|$", section, re.M)
    nats, bits = re.findall(r"on top, ± (\S+) nats of −ELBO or (\S+) bits", section)[0]
    assert f"{nats} nats (plain), {nats} nats (best), {bits} bits (levels)" in goals
    assert "(plain: 3, best: 3, levels: 3)" in goals
    assert len(rows) >= 2
    for row in rows:
        _, measured, training, _ = row.split(" | ")
        numbers = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", measured)
        (minutes,) = re.findall(r"\d+\.\d", training)
        assert numbers
        assert [n for n in (*numbers, minutes) if f" | {n} | " not in goals] == []


def test_the_speed_in_readme_is_that_of_the_benchmark():
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## How fast")[2].partition("\n## ")[0]
    tables = (BENCHMARKS / "training_speed.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\d+\.\d+", section)
    assert len(numbers) >= 3
    assert [n for n in numbers if not re.search(rf"\| {re.escape(n)} [|(]", tables)] == []
