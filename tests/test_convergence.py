"""The verdict: what whole runs say, what they cannot say, and what trains them."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

import vae_helpers as lab
from tools import history_of, tiny_vae
from vae_convergence import convergence, fit_doubling


def runs(ends, spread=0.5, train_ends=None, epochs=4, n=400, start=200.0, asked=None, **options):
    """Runs of doubled length whose curves fall straight to these ends.

    Points differ by 20 nats from each other. From run to run each point changes by the difference
    of the ends, plus or minus ``spread``, exactly.
    """
    rng = np.random.default_rng(0)
    offsets = 20 * rng.normal(size=n)
    offsets -= offsets.mean()
    made = []
    for k, (end, train_end) in enumerate(zip(ends, train_ends or ends, strict=True)):
        wobble = np.resize([0.0, 0.0], n) if k % 2 else spread * np.resize([1.0, -1.0], n)
        length = epochs * 2**k
        fall = np.linspace(0, 1, length + 1)[:, None]
        test = (1 - fall) * start + fall * end + offsets + fall * wobble
        train = (1 - fall[1:]) * start + fall[1:] * train_end + offsets + fall[1:] * wobble
        made.append(history_of(test, train, **({"epochs": asked} if asked else {}), **options))
    return made


# ------------------------------------------------------------------------ gains and intervals


@pytest.mark.parametrize("n", [6, 12, 50, 3000])
def test_a_gain_is_paired_and_its_interval_is_students(n):
    rng = np.random.default_rng(n)
    before = rng.normal(100, 30, n)
    after = before - rng.normal(2, 0.7, n)
    found = convergence(*(history_of(np.stack([before, *[end] * k])) for k, end in
                          ((1, before), (2, after))), tolerance=1).gain  # fmt: skip
    drop = before - after
    low, high = stats.t.interval(0.95, n - 1, drop.mean(), stats.sem(drop))
    assert found.value == pytest.approx(drop.mean(), rel=1e-5)
    assert found.se == pytest.approx(stats.sem(drop), rel=1e-4)
    assert found.low == pytest.approx(found.value - (found.value - low), abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))
    assert found.se < 0.2 * np.hypot(stats.sem(before), stats.sem(after)), "paired"


def test_a_sample_of_points_that_was_kept_stands_for_the_spread_and_all_for_the_mean():
    whole = convergence(*runs([50, 40, 36], spread=2.0), tolerance=1).gain
    sample = convergence(*runs([50, 40, 36], spread=2.0, keep_points=100), tolerance=1)
    assert sample.histories[-1].test.shape == (17, 100)
    assert sample.gain.value == whole.value
    assert sample.gain.se == pytest.approx(whole.se, rel=0.1), "of 400 points, not of 100"


def test_every_doubling_the_ratio_the_gaps_and_the_best_length_are_told():
    found = convergence(*runs([50, 40, 36], train_ends=[48, 36, 30]), tolerance=1)
    assert [gain.value for gain in found.gains] == pytest.approx([10, 4])
    assert found.gain is found.gains[-1]
    assert found.train_gain.value == pytest.approx(6)
    assert found.ratio == pytest.approx(0.4)
    assert [gap.value for gap in found.gaps] == pytest.approx([2, 4, 6])
    assert found.gaps[0].se == pytest.approx(
        math.sqrt(2) * found.histories[0].test_se[-1], rel=0.02
    )
    assert (found.best, found.rise.value) == (16, 0)
    assert found.tolerance == 1
    assert [len(run) for run in found.histories] == [4, 8, 16]


# ------------------------------------------------------------------------------- the verdict

# The gain's interval is ± 1.97 · spread / 20 of 400 points.


@pytest.mark.parametrize(
    ("ends", "spread", "verdict"),
    [
        ([60, 52, 48], 1.0, "still improving"),  # gains 4 ± 0.1, tolerance 1
        ([60, 52, 50.8], 1.0, "still improving"),
        ([60, 52, 51.05], 1.0, "still improving"),  # 0.95 ± 0.1: not shown to be below it
        ([60, 52, 51.2], 1.0, "converged"),  # 0.8 ± 0.1
        ([60, 52, 51.2], 4.0, "still improving"),  # 0.8 ± 0.4: a gain, perhaps of more than 1
        ([60, 52, 51.2], 12.0, "cannot tell"),  # 0.8 ± 1.2: none, or more than 1
        ([60, 52, 52], 1.0, "converged"),
        ([60, 52, 52], 12.0, "cannot tell"),
        ([60, 52, 52.5], 1.0, "converged"),  # a rise within the tolerance
        ([60, 52, 56], 1.0, "cannot tell"),  # train rises as well
    ],
)
def test_every_verdict_follows_from_the_interval_of_the_last_gain(ends, spread, verdict):
    assert convergence(*runs(ends, spread), tolerance=1).verdict == verdict


def test_the_same_gain_has_converged_by_one_tolerance_and_not_by_another():
    histories = runs([60, 52, 48], spread=1.0)
    assert convergence(*histories, tolerance=5).verdict == "converged"
    assert convergence(*histories, tolerance=3).verdict == "still improving"


def test_two_runs_give_a_verdict_without_a_ratio_or_forecast():
    found = convergence(*runs([52, 51.5]), tolerance=1)
    assert (found.verdict, found.ratio, found.forecast) == ("converged", None, {})


def test_flat_ends_of_curves_do_not_hide_what_doubling_gains():
    # As with an annealed rate: each curve is level for the second half of its run.
    flat = []
    for k, end in enumerate([60.0, 52.0, 46.0]):
        length = 8 * 2**k
        fall = np.minimum(np.linspace(0, 2, length + 1), 1)[:, None]
        flat.append(history_of((1 - fall) * 200 + fall * end + np.linspace(-1, 1, 50)))
    assert convergence(*flat, tolerance=1).verdict == "still improving"


def test_a_test_curve_that_rises_while_train_falls_is_overfitting():
    found = convergence(*runs([50, 45, 49], train_ends=[48, 40, 33]), tolerance=1)
    assert found.verdict == "overfitting"
    assert (found.best, found.rise.value) == (8, pytest.approx(4))
    assert found.forecast == {}


def test_a_rise_that_so_few_points_cannot_resolve_is_no_convergence():
    found = convergence(*runs([60, 52, 54], 25.0, train_ends=[50, 40, 30]), tolerance=1)
    assert found.gain.high < 1  # −2 ± 2.5
    assert (found.verdict, found.why) == ("cannot tell", "too few test points (400)")


def test_a_minimum_within_the_longest_run_is_found_though_the_ends_agree():
    level = np.linspace(-1, 1, 50)
    curves = [np.r_[90, 40, 44, np.full(k, 50.0)][:, None] + level for k in (2, 6, 14)]
    trains = [np.linspace(80, 60 - 10 * k, 4 * 2**k)[:, None] + level for k in range(3)]
    found = convergence(*map(history_of, curves, trains), tolerance=1)
    assert (found.verdict, found.best, found.rise.value) == ("overfitting", 1, pytest.approx(10))


def test_the_lowest_value_may_be_a_shorter_runs():
    level = np.linspace(-1, 1, 50)[:, None].T
    curves = [np.r_[90.0, low, np.full(k, end)][:, None] + level
              for low, k, end in ((30, 3, 60), (45, 7, 55), (45, 15, 50))]  # fmt: skip
    trains = [np.linspace(80, 60 - 10 * k, 4 * 2**k)[:, None] + level for k in range(3)]
    found = convergence(*map(history_of, curves, trains), tolerance=10)
    assert (found.best, found.rise.value) == (1, pytest.approx(20))
    assert found.verdict == "overfitting"


def test_a_test_curve_that_rises_from_the_first_epoch_on_never_converges():
    rising = runs([30, 34, 36], train_ends=[20, 15, 12], start=20.0)
    found = convergence(*rising, tolerance=5)
    assert (found.verdict, found.best) == ("overfitting", 0)
    assert "after 0 epochs" in repr(found)


def test_a_longer_run_that_ends_worse_on_train_too_is_not_overfitting():
    found = convergence(*runs([50, 45, 49]), tolerance=1)
    assert found.verdict == "cannot tell"
    assert "lower learning rate" in found.why


def test_gains_below_the_tolerance_that_grow_are_no_convergence():
    found = convergence(*runs([50, 49.9, 49.2]), tolerance=1)
    assert (found.verdict, found.forecast) == ("cannot tell", {})
    assert "double the training" in found.why


@pytest.mark.parametrize(("train", "verdict"), [(38.0, "still improving"), (34.0, "cannot tell")])
def test_a_gap_that_exceeds_the_gain_forbids_to_recommend_more(train, verdict):
    # Test gains 8 and ends at 44: test - train is 6, or 10.
    ends = runs([60, 52, 44], train_ends=[58, 50, train], n=20_000)
    found = convergence(*ends, tolerance=1)
    assert (found.verdict, found.memorises) == (verdict, verdict == "cannot tell")
    assert (
        "test - train, 10.0 (9.6 to 10.4), grows and exceeds the gain: doubling" in repr(found)
    ) is found.memorises
    # A gap below zero, as that of short runs, is none: train is measured before its epoch ends.
    early = convergence(*runs([60, 52, 60], train_ends=[70, 65, 64], n=20_000), tolerance=1)
    assert early.gaps[-1].low > early.gain.value
    assert not early.memorises
    # Nor does one that shrinks or grows slowly forbid anything, however large it is.
    for last in (26.0, 20.2):  # test - train was 20 and is 18 or 23.8, train gained 6 or 11.8
        large = convergence(*runs([60, 52, 44], train_ends=[40, 32, last], n=20_000), tolerance=1)
        assert (large.verdict, large.memorises) == ("still improving", False)


def test_nothing_is_foretold_where_the_gap_exceeds_what_test_gains():
    # Test gains 0.5 and ends at 49.5: test - train is 0.1, or 2.5.
    for train, memorises in ((49.4, False), (47.0, True)):
        ends = runs([52, 50, 49.5], train_ends=[50, 49.6, train], n=20_000)
        found = convergence(*ends, tolerance=1)
        assert found.verdict == "converged"
        assert found.gap_growth == pytest.approx(2.1 if memorises else -0.3)
        assert found.memorises is memorises
        assert (found.forecast == {}) is memorises
        assert ("and test - train grew from 0.4 to 2.5" in repr(found)) is memorises


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_test_points_tell_nothing(n):
    found = convergence(*runs([50, 45, 45], n=n), tolerance=1)
    assert found.verdict == "cannot tell"
    assert f"too few test points ({n})" in repr(found)


# ------------------------------------------------------------------------------ the forecast


def test_halving_gains_foretell_their_own_ends():
    found = convergence(*runs([60, 52, 48], spread=0.0), tolerance=1)
    assert {k: v.value for k, v in found.forecast.items()} == pytest.approx({2: 46, 8: 44.5})
    for end in found.forecast.values():
        assert end.low < end.value < end.high < 48
    assert found.forecast[8].high < found.forecast[2].high


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.65, 0.9])
def test_ends_of_other_ratios_lie_in_the_interval(ratio):
    found = convergence(*runs([60, 52, 52 - 8 * ratio]), tolerance=1)
    gain = 8 * ratio
    for factor, gained in ((2, ratio), (8, ratio + ratio**2 + ratio**3)):
        assert found.forecast[factor].low < 52 - gain - gain * gained < found.forecast[factor].high


def test_the_forecast_is_as_uncertain_as_the_gain():
    certain, unsure = (convergence(*runs([60, 52, 48], s), tolerance=1) for s in (0.1, 10.0))
    assert unsure.forecast[8].low < certain.forecast[8].low - 1
    assert unsure.forecast[8].high > certain.forecast[8].high + 1


@pytest.mark.parametrize("ends", [[60, 56, 48], [60, 52, 54]])
def test_gains_that_do_not_shrink_and_rises_foretell_no_limit(ends):
    found = convergence(*runs(ends), tolerance=1)
    assert found.forecast == {}
    assert "8 times" not in repr(found)


# ----------------------------------------------------------------------------- how it is told


@pytest.mark.parametrize(
    ("ends", "train_ends", "answer"),
    [
        ([-60, -68, -68.5], None, "Yes, converged: doubling to 16 epochs gained 0.5 (0.5 to 0.5)"),
        ([-60, -68, -72], None, "No, still improving: doubling to 16 epochs gained 4.0 (4.0 to"),
        ([-60, -68, -64], [-70, -80, -85], "No, overfitting: doubling to 16 epochs gained -4.0"),
        ([-60, -68, -64], None, "Cannot tell, train got no better either"),
    ],
)
def test_its_repr_answers_in_one_line_that_every_console_can_show(ends, train_ends, answer):
    found = convergence(*runs(ends, train_ends=train_ends, spread=0.1), tolerance=1)
    line = repr(found)
    assert line.startswith(answer)
    assert line.isascii()
    assert "\n" not in line
    assert len(line) < 300


def test_beside_converged_it_is_said_what_train_still_gained():
    falls = convergence(*runs([60, 52, 51.8], train_ends=[50, 40, 33]), tolerance=1)
    level = convergence(*runs([60, 52, 51.8], train_ends=[50, 40, 40]), tolerance=1)
    assert (falls.verdict, level.verdict) == ("converged", "converged")
    assert "; train still gained 7.0" in repr(falls)
    assert "train still gained" not in repr(level)


@pytest.mark.parametrize(
    ("tolerance", "shown"), [(7.84, "4.0 (4.0"), (0.02, "4.000 (3.9"), (50, "4 (4")]
)
def test_numbers_have_two_digits_of_the_tolerance(tolerance, shown):
    assert f"gained {shown}" in repr(convergence(*runs([60, 52, 48]), tolerance=tolerance))


def test_jupyter_shows_a_table_of_the_runs_and_of_what_is_foretold():
    found = convergence(*runs([-60, -68, -72], spread=0.1), tolerance=1)
    page = found._repr_html_()
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    assert [row[0] for row in rows] == ["epochs", "4", "8", "16", "32, foretold", "128, foretold"]
    assert {len(row) for row in rows} == {5}
    gained = "4.0 (4.0\N{NBSP}to\N{NBSP}4.0)"
    assert rows[3][2:4] == ["−72.0", gained]
    assert not re.search(r"-\d|-ELBO| - ", page), "true minus signs"
    assert "(95\N{NBSP}%)" in page
    assert f"gained {gained} nats" in page
    assert "No, still improving" in page


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("histories", "words"),
    [
        ([], "E/4, E/2 and E.*fit_doubling.*none"),
        (runs([5]), "E/4, E/2 and E.*fit_doubling"),
        (runs([5, 4, 3])[::-1], "shortest first"),
        (runs([5, 4, 3])[::2], "E/4, E/2 and E"),
        ([*runs([5, 4], epochs=1), *runs([3], epochs=3)], r"\[1, 2, 3\]"),
        ([*runs([5]), *runs([4], epochs=8, seed=1)], "differ in seed"),
        ([*runs([5]), *runs([4], epochs=8, weights="v")], "differ in weights.*fit_doubling"),
        ([*runs([5]), *runs([4], epochs=8, **{"test data": "e"})], "differ in test data"),
        ([*runs([5]), *runs([4], epochs=8, lr=1, beta=2)], "differ in beta, lr"),
        (runs([5, 4, 3], schedule="constant"), "annealed to its own end.*one-cycle"),
        (runs([5, 4, 3], kl_warmup=4), "after its warm-up.*kl_warmup below E/4"),
        ([*runs([5]), *runs([4], epochs=8, asked=20)], r"\[4, 20\] epochs were stopped.*let each"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(histories, words):
    with pytest.raises(ValueError, match=words):
        convergence(*histories, tolerance=1)


@pytest.mark.parametrize("tolerance", [0, -1, math.nan, math.inf])
def test_a_tolerance_is_a_positive_number(tolerance):
    with pytest.raises(ValueError, match="tolerance must be a positive number of nats"):
        convergence(*runs([5, 4, 3]), tolerance=tolerance)


def test_a_tolerance_has_no_default():
    with pytest.raises(TypeError, match="tolerance"):
        convergence(*runs([5, 4, 3]))


# ------------------------------------------------------------------------ what trains the runs

QUICK = {"batch_size": 20, "lr": 1e-2, "device": "cpu", "precision": "float32", "progress": False}


@pytest.fixture
def data():
    return torch.randn(60, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(60, 6)


def judged(model, data, epochs, **options):
    return fit_doubling(model, data, data, epochs=epochs, tolerance=0.1, **(QUICK | options))


def same(a, b):
    return np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test)


def test_one_call_trains_three_runs_from_the_same_weights_and_leaves_the_longest(data):
    model = tiny_vae()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    found = judged(model, data, 8)
    for length, run in zip((2, 4, 8), found.histories, strict=True):
        other = tiny_vae()
        other.load_state_dict(first)
        assert same(run, lab.fit(other, data, data, epochs=length, **QUICK))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert found.verdict == convergence(*found.histories, tolerance=0.1).verdict


class Interrupting:
    """A transform that is Ctrl-C at its nth batch, and counts."""

    def __init__(self, after=math.inf):
        self.after, self.batches = after, 0

    def __call__(self, x):
        self.batches += 1
        if self.batches == self.after:
            raise KeyboardInterrupt
        return x

    def __repr__(self):
        return "Interrupting"


def batches_of(data, epochs):
    counted = Interrupting()
    lab.fit(tiny_vae(), data, data, epochs=epochs, transform=counted, **QUICK)
    return counted.batches


def test_it_goes_on_where_it_was_interrupted_whatever_the_weights_then(data, tmp_path):
    torch.manual_seed(1)
    whole = judged(tiny_vae(), data, 8, transform=Interrupting())
    path = tmp_path / "run"
    stop = Interrupting(batches_of(data, 2) + batches_of(data, 4) - 2)
    torch.manual_seed(1)
    with pytest.raises(
        ValueError, match=r"\[2, 4\] epochs were stopped after \[2, 3\].*checkpoint"
    ):
        judged(tiny_vae(), data, 8, transform=stop, checkpoint=path)
    again = Interrupting()
    found = judged(tiny_vae(), data, 8, transform=again, checkpoint=path)
    assert all(map(same, found.histories, whole.histories))
    assert again.batches < batches_of(data, 8) + 8, "of the run of 4 only the last epoch"


def test_twice_the_epochs_train_the_longest_run_only(data, tmp_path):
    judged(tiny_vae(), data, 4, transform=Interrupting(), checkpoint=tmp_path / "run")
    more = Interrupting()
    model = tiny_vae()
    found = judged(model, data, 8, transform=more, checkpoint=tmp_path / "run")
    assert [len(run) for run in found.histories] == [2, 4, 8]
    assert more.batches < batches_of(data, 8) + 4
    nats = -lab.evaluate(model, data, device="cpu", precision="float32", batch_size=160).value
    assert nats.mean().item() == pytest.approx(found.histories[-1].test_mean[-1], rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 0])
def test_epochs_that_cannot_be_quartered_are_refused(data, epochs):
    with pytest.raises(ValueError, match="epochs must be a multiple of 4"):
        judged(tiny_vae(), data, epochs)


@pytest.mark.parametrize("wrong", [{"tolerance": 0}, {"schedule": "constant"}, {"kl_warmup": 1}])
def test_what_would_be_refused_in_the_end_is_refused_before_training(data, wrong):
    counted = Interrupting()
    given = {"tolerance": 0.1, "transform": counted} | QUICK | wrong
    with pytest.raises(ValueError, match=r"tolerance|annealed"):
        fit_doubling(tiny_vae(), data, data, epochs=4, **given)
    assert counted.batches == 0


def test_training_for_as_little_as_four_epochs_is_no_convergence(data):
    assert judged(tiny_vae(), data, 4).verdict in ("still improving", "cannot tell")


def test_progress_is_shown_over_all_runs(data, monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    judged(tiny_vae(), data, 4, progress=True)
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert "run of 4" in shown
