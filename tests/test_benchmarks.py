"""The benchmarks' own arithmetic: what is counted as right, chosen, reached."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from tools import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import convergence
import fits
import likelihood
import races

from vae_kit.training import fit

SMALL = replace(fits.SHAPED["iris"], epochs=4, seed=1)


def test_every_fit_of_the_catalogue_can_be_trained():
    assert not fits.SHAPED.keys() & fits.FRESH.keys()
    for asked in (fits.SHAPED | fits.FRESH).values():
        train, test = asked.data(asked.draw)
        x = asked.settings.get("transform", torch.Tensor.float)(train[:3]).float()
        assert asked.model().elbo(x).value.isfinite().all()
        assert asked.epochs % 4 == 0 and train.shape[1:] == test.shape[1:]


def test_tolerances_are_a_hundredth_of_sigma_or_of_independent_coding():
    assert fits.tolerance(SMALL, SMALL.data(0)[0]) == pytest.approx(0.04)
    coins, p = fits.SHAPED["coins"], torch.linspace(0.1, 0.9, 30, dtype=torch.float64)
    nats = torch.distributions.Bernoulli(p).entropy().sum().item()
    assert fits.tolerance(coins, coins.data(0)[0]) == pytest.approx(0.01 * nats, rel=0.01)


@pytest.mark.parametrize(
    ("verdict", "right", "wrong"),
    [
        ("converged", (-2.9, 2.9), (-3.1, 3.1)),
        ("still improving", (-0.4, -90), (-0.3, 0, 5)),
        ("overfitting", (-0.3, 0, 90), (-0.4, -5)),
    ],
)
def test_a_verdict_is_right_if_eight_times_the_training_agrees(verdict, right, wrong):
    for changed in right + wrong:
        result = {"verdict": verdict, "tolerance": 2, "test": [9, 8, 7]}
        result["longer"] = {"test": 7 + 2 * changed}
        assert convergence.is_right(result) is (changed in right)


def test_a_fit_is_measured_once_and_judged_again_from_its_runs(monkeypatch, tmp_path):
    for name in ("RESULTS", "REPORT", "RUNS"):
        monkeypatch.setattr(convergence, name, tmp_path / name.lower())
    monkeypatch.setattr(convergence, "CATALOGUE", {"a, b": SMALL})
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--only", "a, b"])
    convergence.main()
    (result,) = map(json.loads, convergence.RESULTS.read_text().splitlines())
    torch.manual_seed(1)
    longer = fit(SMALL.model(), *SMALL.data(0), epochs=32, seed=1, progress=False, **SMALL.settings)
    assert result["longer"]["test"] == pytest.approx(longer.test.mean[-1], rel=1e-6)
    monkeypatch.setattr(convergence, "measure", None)  # nothing is trained any more
    convergence.main()
    assert convergence.judge_again(result | {"verdict": "?"}) == result
    monkeypatch.setattr(convergence, "CATALOGUE", {"a, b": replace(SMALL, epochs=8)})
    assert not convergence.read()


def test_validation_images_choose_among_candidates_that_are_all_there():
    names = [name for name in likelihood.CANDIDATES if name.startswith("plain")]
    runs = [{"name": n, "images": 50_000, "log_p": [80 + i, 0]} for i, n in enumerate(names)]
    runs.append({"name": names[-1], "images": 60_000, "log_p": [1, 0]})
    assert likelihood.chosen("plain", runs) == names[0]
    assert likelihood.chosen("plain", runs[1:]) is None


def test_a_goal_is_reached_by_whole_runs_and_time_is_compared_round_by_round():
    other = {"seconds": [99, 6, 8], "elbo": [103, 101, 101.5]}
    ours = {"seconds": [1, 2, 4, 2], "elbo": [104, 101, 90, 102], "length": 2, "runs": 2}
    assert races.times_as_fast(ours, other) == "2.5 × (2 for 2 epochs)"
    assert races.times_as_fast(ours | {"elbo": [1, 101, 1, 103]}, other) == "not reached"
