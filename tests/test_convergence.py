"""The verdict: what whole runs say, what they cannot say, and the runs that share a trunk."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from tools import history_of, tiny_vae
from vae_kit.convergence import convergence
from vae_kit.doubling import fit_doubling
from vae_kit.training import fit


def runs(ends, train_ends=None, spread=0.0, epochs=4, n=400, start=200.0, **options):
    """Runs of doubled length that end in these averages, exactly.

    From run to run each point changes by the difference of the ends, plus or minus ``spread``.
    Points differ from each other, by multiples of an eighth, for which sums have no rounding.
    """
    offsets = np.random.default_rng(0).integers(-300, 300, n // 2) / 8
    offsets = np.concatenate([offsets, -offsets, np.zeros(n % 2)])
    made = []
    for k, (end, train_end) in enumerate(zip(ends, train_ends or ends, strict=True)):
        wobble = spread * np.resize([1.0, -1.0], n) * (1 - k % 2)
        test, train = end + offsets + wobble, train_end + offsets + wobble
        length = epochs * 2**k
        rows = [np.full(n, start) + offsets, *[test] * length]
        made.append(history_of(rows, [train + 3] * length, train, **options))
    return made


@pytest.mark.parametrize("n", [6, 13, 3000])
def test_a_change_is_paired_signed_and_its_interval_is_students(n):
    rng = np.random.default_rng(n)
    before = rng.normal(100, 30, n)
    after = before - rng.normal(2, 0.7, n)
    shorter = history_of([before, before], end=np.roll(before, 1))  # the same in another order
    longer = history_of([before, after, after], end=np.roll(after, 1))
    found = convergence(shorter, longer, tolerance=1)

    def truth(values):
        interval = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        return pytest.approx((values.mean(), stats.sem(values), *interval), rel=1e-4)

    for estimate in (*found.test_changes, *found.train_changes):
        assert estimate == truth(after - before)
    for estimates in (found.test_ends, found.train_ends):
        assert estimates[0] == truth(before)
        assert estimates[1] == truth(after)


def test_a_sample_of_points_that_was_kept_stands_for_the_spread_and_all_for_the_mean():
    whole = convergence(runs([50, 40, 36], spread=2.0), tolerance=1).test_changes[-1]
    sample = convergence(runs([50, 40, 36], spread=2.0, keep_points=100), tolerance=1)
    assert sample.histories[-1].test.values.shape == (17, 100)
    found = sample.test_changes[-1]
    assert found.value == whole.value == -4
    assert found.se == pytest.approx(whole.se, rel=0.1), "of 400 points, not of 100"
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 99) * found.se)


STILL, OVER, CANNOT = "still improving", "overfitting", "cannot tell"
# Test ends, train ends (None: the same), spread (the interval is ± 0.098 times that), and the
# verdict with the epochs to keep, or a word of the reason why it cannot be told.
VERDICTS = [
    ([60, 52, 51.05], None, 1.0, STILL, 16),  # −0.95 ± 0.1: not shown to be less
    ([60, 52, 51], None, 0.0, STILL, 16),  # the tolerance itself
    ([60, 52, 51.2], None, 1.0, "converged", 16),
    ([60, 52, 52], None, 12.0, CANNOT, "too few"),
    ([60, 52, 52.5], None, 1.0, "converged", 8),  # a rise within the tolerance
    ([60, 52, 56], None, 1.0, CANNOT, "rose"),  # train rises as well
    ([60, 52, 53], [50, 42, 42], 0.0, CANNOT, "rose"),  # and train stands
    ([60, 52, 54], [57, 49, 48.75], 25.0, CANNOT, "too few"),  # 2 ± 2.5
    ([60, 52, 54], [50, 40, 30], 25.0, OVER, 8),  # the same, but test − train is 24 ± 4
    ([60, 52, 53], [50, 40, 39.9], 0.0, OVER, 8),  # train falls, however little
    ([50, 50.7, 51.4], [45, 40, 36], 1.0, OVER, 4),  # each rise is small, both are not
    ([50, 50.5, 51], [45, 40, 39.5], 1.0, "converged", 4),  # no more than the tolerance
    ([60, 52, 51.9], [58, 50, 44], 1.0, OVER, 8),  # within a tolerance of the lowest: shorter
    ([60, 52, 51], [58, 50, 40], 0.0, OVER, 8),  # test − train, 11 ± 3, is what remains
    ([60, 52, 48], [58, 50, 40], 0.0, STILL, 16),  # 8 ± 3: two such gains may be worth it
    ([60, 52, 48], [58, 50, 37], 0.0, STILL, 16),  # 11 ± 3.06
    ([60, 52, 48], [58, 50, 36], 0.0, OVER, 16),  # 12 ± 3
    ([60, 52, 48], [58, 30, 30], 0.0, STILL, 16),  # 18 ± 3, but train stands
    ([52.5, 52, 51.5], [58, 50, 44], 0.0, OVER, 4),
    ([60, 52, 52], [58, 50, 49], 0.0, OVER, 8),  # the tolerance itself
    ([60, 52, 52], [58, 50, 49.05], 1.0, CANNOT, "train may"),
    ([60, 52, 52], [58, 50, 50.95], 1.0, CANNOT, "train may"),
    ([60, 52, 52], [58, 50, 51], 0.0, CANNOT, "train may"),
    ([199.5, 199.3, 199.2], None, 0.0, CANNOT, "little"),  # the start is 200
    ([199.375, 199.1875, 199], None, 0.0, "converged", 16),  # a tolerance in all
    ([199, 197.6, 196.9], None, 0.0, "converged", 16),  # 3.1 in all, 0.7 by doubling
    ([199, 197.6, 196.75], None, 0.0, CANNOT, "little"),  # 3.25 in all, 0.85 by doubling
    ([50, 49.9, 49.2], None, 1.0, CANNOT, "grow"),
    ([50, 49.4, 48.75], None, 1.0, "converged", 16),  # −0.6 ± 0.1, then −0.65 ± 0.1
    ([52, 51.5], None, 1.0, "converged", 8),  # two runs
]  # fmt: skip


@pytest.mark.parametrize(("ends", "train_ends", "spread", "verdict", "told"), VERDICTS)
def test_every_verdict_follows_from_the_intervals(ends, train_ends, spread, verdict, told):
    found = convergence(*runs(ends, train_ends, spread), tolerance=1)
    assert found.verdict == verdict
    if verdict == CANNOT:
        assert told in found.why and found.why in repr(found)
        assert found.keep == len(found.histories[int(np.argmin(ends))])
    else:
        assert (found.keep, found.why) == (told, "")
    line, begins = repr(found), {"converged": "Yes, converged: ", CANNOT: "Cannot tell, "}
    assert line.startswith(begins.get(verdict, f"No, {verdict}: ")) and line.isascii()
    assert (f"keep the run of {found.keep} epochs" in line) == (verdict == OVER)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_test_points_tell_nothing(n):
    found = convergence(*runs([50, 45, 45], n=n, spread=0.5), tolerance=1)
    assert (found.verdict, found.why) == (CANNOT, f"too few test points ({n})")
    # A list will do as well; and by another tolerance the same change is convergence.
    assert convergence(runs([60, 52, 48], spread=1.0), tolerance=5).verdict == "converged"
    assert n > 1 or (found.test_changes[-1].low, found.test_ends[-1].high) == (-math.inf, math.inf)


def test_numbers_have_two_digits_of_the_tolerance_and_jupyter_shows_a_table():
    for tolerance, shown in ((7.84, "-4.0 (-4.0"), (0.02, "-4.000 (-4.0"), (50, "-4 (-4")):
        assert f"by {shown}" in repr(convergence(*runs([-60, -68, -72]), tolerance=tolerance))
    page = convergence(*runs([-60, -68, -72], [-61, -70, -75]), tolerance=1)._repr_html_()
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    assert rows[1:] == [
        ["4", "−61.0", "", "−60.0", "", "1.0"],
        ["8", "−70.0", "−9.0 (−9.0 to −9.0)", "−68.0", "−8.0 (−8.0 to −8.0)", "2.0"],
        ["16", "−75.0", "−5.0 (−5.0 to −5.0)", "−72.0", "−4.0 (−4.0 to −4.0)", "3.0"],
    ]
    assert not re.search(r"-\d|-ELBO| - ", page), "true minus signs"


def test_what_cannot_be_compared_is_refused_with_what_differs():
    def second(**options):
        return [*runs([5]), *runs([4], epochs=8, **options)]

    for words, histories in {
        "of no run": [],
        r"E/4, E/2 and E.*4 of 4": runs([5]),
        "16 of 16, 8 of 8": runs([5, 4, 3])[::-1],
        "4 of 4, 16 of 16": runs([5, 4, 3])[::2],
        "differ in batch_size, lr": second(lr=1.0, batch_size=9),
        "first weights": second(identity={"first weights": "v"}),
        "4 of 4, 2 of 8": [*runs([5]), history_of(np.zeros((3, 400)), epochs=8)],
        "whole.*4 of 4, 8 of 8": [*runs([5]), history_of(np.zeros((9, 400)))],
    }.items():
        with pytest.raises(ValueError, match=words):
            convergence(*histories, tolerance=1)
    for tolerance in (0, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            convergence(*runs([5, 4, 3]), tolerance=tolerance)


QUICK = {"batch_size": 20, "lr": 1e-2, "device": "cpu", "precision": "float32"}
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(60, 2)) @ RNG.normal(size=(2, 6)) + 0.3 * RNG.normal(size=(60, 6))


def model(seed=0):
    torch.manual_seed(seed)
    return tiny_vae()


def judged(vae, epochs, data=DATA, progress=None, **options):
    """The verdict, and after which epochs of which run ``progress`` was called."""
    calls = []

    def watch(history):
        calls.append((history.settings.epochs, len(history)))
        return progress(len(calls)) if progress else None

    given = QUICK | {"tolerance": 0.1, "progress": watch} | options
    try:
        return fit_doubling(vae, data, DATA, epochs=epochs, **given), calls
    except ValueError as error:
        return error, calls


def same(history, other):
    splits = ("train", "test", "train_end")
    pairs = ([getattr(run, split).values for run in (history, other)] for split in splits)
    return all(np.array_equal(*pair) for pair in pairs)


def alone(epochs, data=DATA, **options):
    vae = model()
    return fit(vae, data, DATA, epochs=epochs, progress=False, **QUICK | options), vae


OTHERS = {"kl_warmup": 2, "seed": 3, "keep_points": 7, "transform": torch.neg, "lr": 0.02}
OVERFITS = {"data": 0.1 * DATA}  # σ shrinks to what is dear on the test set


@pytest.mark.parametrize("options", [{}, OTHERS, OVERFITS])
def test_runs_that_share_a_trunk_are_runs_made_alone_to_the_bit_and_cost_less(options):
    vae = model()
    found, calls = judged(vae, 16, **options)
    ends = []
    for length, history in zip((4, 8, 16), found.histories, strict=True):
        whole, end = alone(length, **options)
        assert same(history, whole)
        assert history.settings == whole.settings and history.identity == whole.identity
        ends.append(end)
    assert len(calls) == 1.1875 * 16
    assert calls == [(4, 1), (4, 2), (4, 3), (4, 4), *((8, k) for k in range(4, 9)),
                     *((16, k) for k in range(7, 17))]  # fmt: skip
    kept = ends[(4, 8, 16).index(found.keep)].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in vae.state_dict().items())
    assert found.verdict == convergence(*found.histories, tolerance=0.1).verdict
    assert options is not OVERFITS or (found.verdict, found.keep) == (OVER, 8)


@pytest.fixture(scope="module")
def uninterrupted():
    return judged(model(), 16)


@pytest.mark.parametrize("at", [3, 4, 7, 18])
def test_it_goes_on_where_it_was_interrupted_in_trunk_or_decay(at, tmp_path, uninterrupted):
    (whole, calls), path = uninterrupted, tmp_path / "run"

    def stop(calls):
        if calls == at == 7:
            raise KeyboardInterrupt
        return calls < at

    error, before = judged(model(), 16, progress=stop, checkpoint=path)
    assert isinstance(error, ValueError)
    found, after = judged(model(), 16, checkpoint=path)
    assert len(before) == at
    assert before + after == calls, "no epoch is trained twice"
    assert all(map(same, found.histories, whole.histories))
    third, none = judged(model(), 16, checkpoint=path)
    assert none == [] and third.verdict == whole.verdict
    with pytest.warns(UserWarning, match="run .*other weights"):
        judged(model(seed=1), 16, checkpoint=path)


def test_twice_the_epochs_train_what_is_new_only(tmp_path):
    path, vae = tmp_path / "run", model()
    judged(vae, 8, checkpoint=path)
    found, calls = judged(vae, 16, checkpoint=path)
    assert [len(run) for run in found.histories] == [4, 8, 16]
    assert calls == [(16, k) for k in range(7, 17)]
    whole, _ = alone(16)
    assert same(found.histories[-1], whole)
    # Half as many: the trunk lies beyond the run of one epoch, which begins anew.
    found, calls = judged(model(), 4, checkpoint=path)
    assert calls == [(1, 1)]
    assert same(found.histories[0], alone(1)[0])


def test_files_that_are_no_trunk_are_refused_by_name_and_kept(tmp_path):
    path, of_fit = tmp_path / "doubled.pt", tmp_path / "of_fit.pt"
    judged(model(), 4, checkpoint=path)
    alone(4, checkpoint=of_fit)
    for content, options in ((of_fit.read_bytes(), {}), (path.read_bytes(), {"lr": 0.5})):
        path.write_bytes(content)
        error, calls = judged(model(), 4, checkpoint=path, **options)
        assert isinstance(error, ValueError) and "doubled.pt" in str(error) and not calls
        assert path.read_bytes() == content


def test_what_would_be_refused_in_the_end_is_refused_before_training():
    for given in [{"epochs": n} for n in (1, 6, 0, 4.0)] + [{"lr": -1}, {"tolerance": 0}]:
        error, calls = judged(model(), **{"epochs": 4} | given)
        assert isinstance(error, ValueError) and next(iter(given)) in str(error)
        assert calls == []
    with pytest.raises(TypeError, match="schedule"):
        judged(model(), 4, schedule="constant")


def test_progress_is_shown_over_all_runs(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    judged(model(), 16, progress=None)
    assert capsys.readouterr().err == "", "a function takes the place of the bar"
    fit_doubling(model(), DATA, DATA, epochs=16, tolerance=0.1, **QUICK)
    shown = capsys.readouterr().err
    assert "19/19" in shown and "run of 16" in shown
