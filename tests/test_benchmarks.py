"""The benchmarks run, and their committed tables say what their numbers say."""

import importlib
import inspect
import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_data
import vae_diagnostics
import vae_helpers
from tools import history_of, tiny_vae
from vae_steps import default_batch_size

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def benchmark(name, monkeypatch, tmp_path):
    """The script as a module that writes elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop(name, None)
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


@pytest.fixture
def speed(monkeypatch, tmp_path):
    return benchmark("training_speed", monkeypatch, tmp_path)


@pytest.fixture
def likelihood(monkeypatch, tmp_path):
    module = benchmark("likelihood", monkeypatch, tmp_path)
    monkeypatch.setattr(module, "TRAINED", tmp_path / "trained")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "likelihood.json")
    monkeypatch.setattr(module, "TUNING", tmp_path / "likelihood_tuning.json")
    return module


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    module = benchmark("convergence", monkeypatch, tmp_path)
    fits = importlib.import_module("_fits")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    tiny = fits.Configuration(
        lambda: fits.drawn(fits.moons, 40, 30), fits.plain(2, [4], 2), epochs=(4,)
    )
    monkeypatch.setattr(module, "CONFIGURATIONS", {"tiny": tiny, "twin": replace(tiny, lr=1e-3)})
    return module


def test_the_table_of_verdicts_is_what_the_numbers_give(monkeypatch, tmp_path):
    verdicts = benchmark("convergence", monkeypatch, tmp_path)
    shutil.copy(BENCHMARKS / "convergence_rates.json", tmp_path)
    verdicts.report(json.loads((BENCHMARKS / "convergence.json").read_text()))
    committed = (BENCHMARKS / "convergence.md").read_text(encoding="utf-8")
    assert (tmp_path / "convergence.md").read_text(encoding="utf-8") == committed


@pytest.mark.parametrize(
    ("verdict", "gained", "right"),
    [
        ("converged", -50.0, True), ("converged", 2.9, True), ("converged", 3.1, False),
        ("still improving", 0.4, True), ("still improving", 0.3, False),
        ("overfitting", -0.1, True), ("overfitting", 0.1, False),
        ("cannot tell", 100.0, None),
    ],
)  # fmt: skip
def test_a_verdict_is_right_if_eight_times_the_training_agrees(verdicts, verdict, gained, right):
    fit = {"verdict": verdict, "gained": 0.02 * gained, "settings": {"tolerance": 0.02}}
    assert verdicts.is_right(fit) is right


def judged(verdict, gained, width=None, held=True, memorises=False, train_gain=-0.1):
    """A fit that gained so many tolerances, of 2 nats; its forecast is as wide in tolerances."""
    low = 0.0 if held else 0.5
    return {
        "verdict": verdict, "gained": 2.0 * gained, "settings": {"tolerance": 2.0},
        "test_longer": 0.0, "memorises": memorises, "train_gain": {"low": train_gain},
        "forecast": {"8": {"low": low, "high": low + 2.0 * width}} if width else {},
    }  # fmt: skip


def test_goals_that_are_missed_are_bold(verdicts):
    right = [("converged", -1), ("still improving", 5), ("overfitting", -9), ("converged", 2)]
    good = [judged(*fit, width=0.9) for fit in 10 * right]
    poor = [judged(*fit, width=3.0, held=False) for fit in 2 * right]
    poor += [judged("converged", 4), judged("still improving", -2)]
    poor += 5 * [judged("cannot tell", 5)]
    found = verdicts.goals({"good": dict(enumerate(good)), "poor": dict(enumerate(poor))})
    assert found.splitlines()[0] == "|  | good | poor | asked for |"
    assert found.splitlines()[2:] == [
        "| fits | 40 | **15** | ≥ 40 |",
        "| verdicts that are right | 100.0 % of 40 | **80.0 % of 10** | ≥ 95 % |",
        "| “cannot tell” | 0.0 % of 40 | **33.3 % of 15** | ≤ 10 % |",
        "| right: “converged” | 20 of 20 | **4 of 5** | ≥ 8 |",
        "| right: “still improving” | 10 of 10 | **2 of 3** | ≥ 8 |",
        "| right: “overfitting” | 10 of 10 | **2 of 2** | ≥ 8 |",
        "| forecasts within their interval | 100.0 % of 40 | **0.0 % of 8** | ≥ 80 % |",
        "| median width of it, tolerances | 0.90 | **3.00** | ≤ 1 |",
    ]


def test_verdicts_are_counted_by_what_became_of_them(verdicts):
    fits = [judged("converged", gained) for gained in (3.1, 3, 0.4, 0.3, 0, -2.9, -3, -99)]
    fits += [judged("converged", -5, memorises=True), judged("converged", -5, train_gain=0.1)]
    fits += [judged("converged", 1, memorises=True, train_gain=0.1)]
    fits += [judged("overfitting", -5, memorises=True, train_gain=0.1)]
    assert verdicts.confusion(fits) == [
        ["converged", 1, 2, 1, 2, 4],
        ["converged, test − train grew", 0, 1, 0, 0, 0],
        ["still improving", 0, 0, 0, 0, 0],
        ["overfitting", 0, 0, 0, 0, 1],
        ["cannot tell", 0, 0, 0, 0, 0],
    ]


def test_a_forecast_holds_if_the_longer_run_ends_within_it(verdicts):
    ends = {"8": {"low": -3.0, "high": -1.0}}
    for end, held in ((-2.0, True), (-3.1, False), (-0.9, False)):
        assert verdicts.within({"forecast": ends, "test_longer": end}) is held
    assert verdicts.within({"forecast": {}, "test_longer": -2.0}) is None


def test_the_benchmark_of_verdicts_goes_on_fit_by_fit(verdicts, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["convergence.py"])
    monkeypatch.setattr(verdicts, "draw", lambda fits: None)
    first = json.loads(json.dumps({"tiny | 4 epochs | seed 0": verdicts.measure("tiny", 0, 4)}))
    (tmp_path / "convergence.json").write_text(json.dumps(first))
    measured = []
    measure = verdicts.measure
    monkeypatch.setattr(verdicts, "measure", lambda *fit: measured.append(fit) or measure(*fit))
    verdicts.main()
    assert measured == [("twin", 0, 4)]
    results = json.loads((tmp_path / "convergence.json").read_text())
    assert results["tiny | 4 epochs | seed 0"] == first["tiny | 4 epochs | seed 0"]
    for fit in results.values():
        assert fit["gained"] == pytest.approx(fit["test"] - fit["test_longer"])
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name.split("-")[2] for name in runs] == ["1", "2", "32", "4"] * 2


def test_the_peak_rate_of_the_report_is_doubled_and_halved(verdicts, monkeypatch, tmp_path):
    tiny = verdicts.CONFIGURATIONS["tiny"]
    report = {"tiny": tiny, "notebook": replace(tiny, lr=None)}
    monkeypatch.setattr(verdicts, "CONFIGURATIONS", report)
    monkeypatch.setattr(verdicts, "draw", lambda fits: None)
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--only", "notebook"])
    verdicts.main()
    found = json.loads((tmp_path / "convergence_rates.json").read_text())
    assert [run["lr"] for run in found.values()] == [0.002, 0.004, 0.008]
    assert len({run["test"] for run in found.values()}) == 3
    gained = found["the report's"]["test"] - found["twice"]["test"]
    text = (tmp_path / "convergence.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| 0.008, twice |"))
    shown = line.split("|")[-2].partition(" ± ")[0]
    assert float(shown.replace("−", "-")) == pytest.approx(gained, abs=6e-4)
    monkeypatch.setattr(verdicts, "measure_rates", None)  # what is measured is kept
    verdicts.main()
    (tmp_path / "convergence_rates.json").unlink()
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--only", "notebook", "--report"])
    verdicts.main()
    assert "peak rate of the" not in (tmp_path / "convergence.md").read_text(encoding="utf-8")


def test_the_second_seed_of_a_long_configuration_is_judged_alone(verdicts, monkeypatch):
    asked = replace(verdicts.CONFIGURATIONS["tiny"], long=True, seeds=(0, 1))
    monkeypatch.setitem(verdicts.CONFIGURATIONS, "tiny", asked)
    first, second = (verdicts.measure("tiny", seed, 4) for seed in (0, 1))
    assert first["gained"] == pytest.approx(first["test"] - first["test_longer"])
    assert first.keys() - second.keys() == {"gained", "test_longer", "train_longer"}
    assert verdicts.is_right(second) is None
    assert verdicts.within(second | {"forecast": {"8": {"low": -9.0, "high": 9.0}}}) is None
    assert verdicts.row("tiny | 4 epochs | seed 1", second)[-3:] == ["–", "–", "–"]
    counted = sum(sum(row[1:]) for row in verdicts.confusion([first, second]))
    assert counted == 1


def test_a_run_is_found_again_by_another_process(verdicts, monkeypatch):
    """Where a transform lies in memory differs from process to process."""
    first, second = (lambda: lambda x: 2 * x)(), (lambda: lambda x: 2 * x)()
    assert str(first) != str(second)
    trained = []
    monkeypatch.setattr(
        verdicts.lab, "fit", lambda *_, **__: trained.append(1) or history_of([[1.0]] * 3)
    )
    for transform in (first, second):
        asked = replace(verdicts.CONFIGURATIONS["tiny"], transform=transform)
        monkeypatch.setitem(verdicts.CONFIGURATIONS, "tiny", asked)
        verdicts.run_of("tiny", 0, 2)
    assert trained == [1]


def likelihood_numbers():
    """Those that are committed: of the final runs, and of the candidates."""
    names = ("likelihood", "likelihood_tuning")
    return [json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in names]


def test_the_likelihood_table_is_what_the_numbers_give(likelihood, tmp_path):
    likelihood.report(*likelihood_numbers())
    committed = (BENCHMARKS / "likelihood.md").read_text(encoding="utf-8")
    assert (tmp_path / "likelihood.md").read_text(encoding="utf-8") == committed


def test_the_tables_of_speed_are_what_the_numbers_give(speed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["training_speed.py", "--only", "report"])
    shutil.copy(BENCHMARKS / "training_speed.json", tmp_path)
    speed.main()
    committed = (BENCHMARKS / "training_speed.md").read_text(encoding="utf-8")
    assert (tmp_path / "training_speed.md").read_text(encoding="utf-8") == committed


def ramps(points):
    """Images that differ."""
    kinds = torch.arange(points).view(-1, 1, 1, 1)
    return (torch.arange(784).view(1, 1, 28, 28) * kinds % 256).to(torch.uint8)


def shorten(likelihood, monkeypatch):
    """Four epochs for every candidate."""
    for name, candidate in likelihood.CANDIDATES.items():
        quick = replace(candidate, epochs=4, batch_size=8)
        monkeypatch.setitem(likelihood.CANDIDATES, name, quick)


CANDIDATES = ["plain", "plain, convolutions", "best, 2 blocks", "levels", "levels, convolutions"]


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_kind_of_model_trains_and_its_bounds_are_in_order(likelihood, monkeypatch, name):
    shorten(likelihood, monkeypatch)
    images, candidate = ramps(24), likelihood.CANDIDATES[name]
    run = likelihood.measure(name, 0, images, images, 200)
    assert likelihood.measure(name, 0, images, images, 200) == run, "the model is kept"
    if candidate.family != "levels":
        # The same model and images evaluated twice: the tighter bound is the lower one.
        assert run["log_p"] < run["elbo"]
    likelihood.report({f"{name}-0": run, f"{name}-1": run}, {name: run})
    table = (likelihood.HERE / "likelihood.md").read_text(encoding="utf-8")
    assert f"| {name} | {candidate.decoder} | 1 | 4 | 8 |" in table


def test_validation_images_choose_and_the_test_set_is_looked_at_once(likelihood, monkeypatch):
    shorten(likelihood, monkeypatch)
    monkeypatch.setattr(likelihood, "VALIDATION", 8)
    train, test = ramps(24), ramps(30)[24:]
    split = vae_data.Images("ramps", vae_data.ImageSet(train, train), vae_data.ImageSet(test, test))
    monkeypatch.setattr(likelihood.data, "load_images", lambda *_, **__: split)
    winners = {asked.family: name for name, asked in likelihood.CANDIDATES.items()}  # the last
    looks = []

    def measure(name, seed, points, looked_at, samples):
        looks.append((name, seed, points, looked_at, samples))
        worse = name not in winners.values()
        what = "elbo" if name.startswith("levels") else "log_p"
        return {"settings": likelihood.settings(name), what: 80.0 + worse}

    monkeypatch.setattr(likelihood, "measure", measure)
    monkeypatch.setattr(likelihood, "report", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["likelihood.py"])
    likelihood.main()
    tuned = [name for name, _, points, looked_at, _ in looks if looked_at is not test]
    for _, _, points, looked_at, samples in looks[: len(tuned)]:
        assert torch.equal(torch.cat([points, looked_at]), train)
        assert (len(looked_at), samples) == (8, 100)
    assert tuned == list(likelihood.CANDIDATES)
    final = looks[len(tuned) :]
    assert [(name, seed) for name, seed, *_ in final] == [
        (winners[family], seed) for seed in range(3) for family in likelihood.FAMILIES
    ]
    assert all(p is train and x is test and k == 5000 for _, _, p, x, k in final)
    likelihood.main()
    assert len(looks) == len(tuned) + 9, "finished runs are kept"


def test_a_run_of_other_settings_is_neither_chosen_nor_counted(likelihood, monkeypatch):
    results, tuning = likelihood_numbers()
    winner = likelihood.chosen(tuning)["plain"]
    assert len(likelihood.finals(results, tuning)["plain"]) == 3
    results[f"{winner}-0"]["settings"] = results[f"{winner}-0"]["settings"] | {"lr": 1e-3}
    assert len(likelihood.finals(results, tuning)["plain"]) == 2
    tuning[winner]["settings"] = tuning[winner]["settings"] | {"lr": 1e-3}
    assert "plain" not in likelihood.chosen(tuning), "it has to be measured anew first"
    likelihood.report(results, tuning)
    tables = (likelihood.HERE / "likelihood.md").read_text(encoding="utf-8").split("## ")
    for table in (part for part in tables if part.startswith(("Runs", "What was tried"))):
        assert f"| {winner} (no longer a candidate) |" in table


def test_growth_counts_whole_epochs_and_the_data_are_not_counted_as_memory(speed):
    # Turns of as many images; with the large N the last one ends an epoch, which costs 4 s.
    small = {"seconds": [9.0, 11.0, 11.0, 11.0, 11.0], "memory": [300.0] * 5}
    large = {
        "seconds": [9.0, 10.0, 10.0, 10.0, 14.0],
        "memory": [300.0, 500.0, 500.0, 500.0, 500.0],
    }
    found = {"points": {"points": {"60000": small, "480000": large}}}
    assert speed.linearity(found) == 0
    assert speed.extra_memory(found) == pytest.approx(300 - 60_000 * 784e-6)
    small["seconds"][1:] = [9.0] * 4
    assert speed.linearity(found) == pytest.approx(0.1)


@pytest.mark.parametrize("points", [64, 640])
def test_growth_hands_over_after_as_many_images_for_every_n(speed, monkeypatch, points):
    import _workers

    class Turns:
        def __init__(self):
            self.images = []

        def start(self, *_):
            pass

        def done(self):
            self.images.append(seen[0])
            if len(self.images) == 3:
                sys.exit()  # as at the end of a race

    seen, binarize = [0], vae_data.binarize

    def counted(raw):
        seen[0] += len(raw)
        return binarize(raw)

    digits = torch.zeros(points, 784, dtype=torch.uint8)
    monkeypatch.setattr(_workers, "images", lambda _: (digits, digits))
    monkeypatch.setattr(_workers, "binarize", counted)
    turns = Turns()
    settings = {"points": points, "turn": 320, "epochs": 20, "batch": 32, "hidden": 8, "test": 2}
    with pytest.raises(SystemExit):
        _workers.growth(settings | {"precision": "float32", "device": "cpu"}, turns)
    # To a batch; the two images of the test set are evaluated after every epoch.
    each = [b - a for a, b in itertools.pairwise([0, *turns.images])]
    assert all(abs(images - 320) <= 32 for images in each)


def section_of_readme(title):
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    return readme.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_numbers_of_readme_are_those_of_the_benchmark(likelihood):
    families = likelihood.finals(*likelihood_numbers())
    assert list(families) == list(likelihood.FAMILIES)
    section = section_of_readme("How good")
    nats, bits = re.findall(r"test images, ± (\S+) nats of −log p\(x\) or (\S+) bits", section)[0]
    errors = {max(run["log_p_se"] for run in families[name]) for name in ("plain", "best")}
    assert {f"{error:.2f}" for error in errors} == {nats}
    to_bits = vae_diagnostics.bits_per_dim(1.0, 784)
    assert f"{to_bits * max(run['elbo_se'] for run in families['levels']):.4f}" == bits
    rows = re.findall(r"^\| (?!model|---)(.*) \|$", section, re.M)
    for row, (family, found) in zip(rows, families.items(), strict=True):
        _, measured, training, _ = row.split(" | ")
        quoted = dict(re.findall(r"(−log p\(x\)|−ELBO) (\d+\.\d+(?: ± \d+\.\d+)?)", measured))
        assert ("one seed" in measured) == (len(found) == 1) and len(found) in (1, 3)
        for what, key in (("−log p(x)", "log_p"), ("−ELBO", "elbo")):
            if what in quoted:
                nats = [run[key] for run in found]
                assert quoted[what] == likelihood.shown(family, nats), (family, what)
        assert ("−ELBO" if family == "levels" else "−log p(x)") in quoted
        minutes = max(run["seconds"] for run in found) / 60
        assert re.findall(r"\d+\.\d", training) == [f"{minutes:.1f}"]


def test_the_speed_in_readme_is_that_of_the_benchmark(speed):
    numbers = re.findall(r"\d+\.\d+", section_of_readme("How fast").split("\n\n")[0])
    race = json.loads((BENCHMARKS / "training_speed.json").read_text())["speed"]["contestants"]
    others = ["textbook loop", "pyro, best case", "pythae"]
    ours = ["ours, bfloat16", "ours, bfloat16, compiled"]
    plain, compiled = ([speed.ratio(race, other, name) for other in others] for name in ours)
    seconds = [speed.median(race, name) for name in (ours[0], "floor, bfloat16")]
    expected = [seconds[0], *plain, *compiled, seconds[1]]
    assert numbers == [f"{number:.2f}" for number in expected]
    assert speed.median(race, "pyro, best case") < speed.median(race, "pyro, DataLoader")


# ------------------------------------------------------------------------------ time to quality


@pytest.fixture
def race(monkeypatch, tmp_path):
    return benchmark("time_to_quality", monkeypatch, tmp_path)


def of(elbo, seconds):
    return {"elbo": elbo, "seconds": seconds}


def test_the_times_to_quality_in_readme_are_those_of_the_race(race):
    (told,) = [p for p in section_of_readme("How fast").split("\n\n") if "waits for" in p]
    runs = json.loads((BENCHMARKS / "time_to_quality.json").read_text())["runs"]
    lines = {line[0]: line[1:] for line in race.rows(runs)}
    ours = [f"ours, {what}" for what in ("defaults", "defaults in float32", "best setting")]
    cells = [*(lines[name][0] for name in ours), lines[ours[0]][1], lines[ours[2]][1]]
    ratios = [re.findall(r"\((\S+) ×\)", cell)[0] for cell in cells]
    goal = f"{runs['textbook loop'][0]['elbo'][-1]:.2f}"
    assert re.findall(r"\d+\.\d+", told) == [goal, *ratios]


def test_the_recipe_of_the_race_is_what_fit_does_by_default(race):
    given = inspect.signature(vae_helpers.fit).parameters
    assert race.RECIPE["batch"] == default_batch_size(60_000)
    assert race.RECIPE["lr"] == given["lr"].default
    assert race.RECIPE["schedule"] == given["schedule"].default


def test_the_rates_of_the_recipe_are_those_of_fit(race):
    import _workers

    settings = {"epochs": 3, "points": 50, "batch": 8, "schedule": "one-cycle"}
    share = _workers.share_of_rate(settings)
    history = vae_helpers.fit(
        tiny_vae(), torch.randn(50, 6), torch.randn(4, 6), epochs=3, batch_size=8, lr=1e-3,
        progress=False,
    )  # fmt: skip
    by_epoch = np.reshape([1e-3 * share(step) for step in range(21)], (3, 7)).mean(1)
    assert np.allclose(by_epoch, history.lr)


def test_the_time_to_a_goal_is_that_of_the_fastest_run_to_it(race):
    short, long = of([110, 101], [2, 2]), of([108, 104, 99.5], [1, 1, 1])
    assert race.until([short, long], 101) == (3, 3, 3)
    assert race.until([short, long], 108) == (3, 1, 1)
    assert race.until([short], 101) == (2, 2, 4)
    assert race.until([short], 100) is None


def test_a_line_of_the_race_tells_seconds_and_how_many_times_longer_the_owner_took(race):
    runs = {name: [of([110, 100 + n], [10, 10 * (n + 1)])] for n, name in enumerate(race.PEERS)}
    runs["ours"] = [of([105, 101, 100.5], [2, 2, 2])]
    *_, line = race.rows(runs)
    assert line == ["ours", "not reached", "4.0 s, 2 of 3 epochs (7.5 ×)",
                    "4.0 s, 2 of 3 epochs (10.0 ×)"]  # fmt: skip


def test_the_table_of_the_race_is_what_the_numbers_give(race, tmp_path):
    race.report(json.loads((BENCHMARKS / "time_to_quality.json").read_text()))
    committed = (BENCHMARKS / "time_to_quality.md").read_text(encoding="utf-8")
    assert (tmp_path / "time_to_quality.md").read_text(encoding="utf-8") == committed
