"""Does a model converge? Runs of E/4, E/2 and E epochs answer, compared point by point.

One curve cannot: its learning rate was annealed, so its end is flat whatever was left to learn. All
numbers are nats per data point; a gain is a fall of the −ELBO.
"""

from __future__ import annotations

import copy
import html
import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vae_displays import html_table, unbroken
from vae_helpers import VAE, History, fit
from vae_runtime import progress_bar

__all__ = ["Convergence", "Estimate", "convergence", "fit_doubling"]

Verdict = Literal["converged", "still improving", "overfitting", "cannot tell"]


class Estimate(NamedTuple):
    """A number, its standard error and the ends of its interval, in nats per data point."""

    value: float
    se: float
    low: float
    high: float


class Convergence:
    """What runs of doubled length say about a model; ``convergence`` makes it.

    ===================  ===================================================================
    histories            the runs, shortest first
    tolerance            what a doubling may still gain of a model that has converged
    verdict, why         see ``convergence``; why it cannot tell, otherwise ""
    gains, gain          what each doubling gained on the test set, the last one; intervals of 95 %
    train_gain           what the last doubling gained on the training set
    ratio                the last gain over the one before, if that was a gain, else None
    forecast             {2: …, 8: …}, the test −ELBO that as many times the longest run would end
                         at, intervals of 80 %; {} where none can be foretold
    gaps, gap_growth     test minus train at the end of each run; what the last doubling added
    memorises            whether the last gap exceeds ``gain``, and took a third of ``train_gain``
    best, rise           epochs to the lowest test −ELBO of any run; how far the end lies above it
    ===================  ===================================================================
    """

    def __init__(self, histories: Sequence[History], tolerance: float) -> None:
        self.histories, self.tolerance = tuple(histories), float(tolerance)
        self.gains = [_fall(a, b, "test") for a, b in pairwise(histories)]
        self.gain, self.train_gain = self.gains[-1], _fall(histories[-2], histories[-1], "train")
        before = self.gains[-2].value if len(self.gains) > 1 else 0
        self.ratio = self.gain.value / before if before > 0 else None
        self.gaps = [_gap(run) for run in histories]
        self.gap_growth = self.gaps[-1].value - self.gaps[-2].value
        grows = 3 * self.gap_growth > max(self.train_gain.value, 0)
        self.memorises = grows and self.gaps[-1].value > max(self.gain.value, 0)
        end = float(histories[-1].test_mean[-1])
        self.forecast = {} if self.memorises else _foretell(end, self.gains)
        lowest = min(histories, key=lambda run: float(run.test_mean.min()))
        self.best = int(lowest.test_mean.argmin())
        self.rise = _fall(histories[-1], lowest, "test", self.best)
        self.verdict, self.why = self._judge()

    def _judge(self) -> tuple[Verdict, str]:
        gain = self.gain
        if gain.low > 0 and gain.high >= self.tolerance:
            if self.memorises:
                gap = self._show(self.gaps[-1])
                return "cannot tell", f"test - train, {gap}, grows and exceeds the gain"
            return "still improving", ""
        if gain.high < self.tolerance and self.rise.value <= self.tolerance:
            if len(self.gains) > 1 and gain.low > max(self.gains[-2].high, 0):
                return "cannot tell", "the gains grow, so double the training once more"
            return "converged", ""
        if gain.high < self.tolerance and self.rise.low > 0:
            if self.train_gain.low > 0:
                return "overfitting", ""
            return "cannot tell", "train got no better either, so try a lower learning rate"
        return "cannot tell", f"too few test points ({self.histories[-1].test_points})"

    def __repr__(self) -> str:  # in ASCII, which every console can show
        answer = {"converged": "Yes, converged", "cannot tell": f"Cannot tell, {self.why}"}
        said = answer.get(self.verdict, f"No, {self.verdict}")
        said += f": doubling to {len(self.histories[-1])} epochs gained {self._show(self.gain)} "
        said += f"nats on the test set, tolerance {self.tolerance:g}"
        if self.verdict == "overfitting":
            said += f"; train still gained {self._show(self.train_gain)}; the lowest test -ELBO, "
            said += f"after {self.best} epochs, was lower by {self._show(self.rise)}"
        if self.verdict == "converged" and self.train_gain.low > 0:
            said += f"; train still gained {self._show(self.train_gain)}"
            if self.memorises:
                before, gap = (self._number(gap.value) for gap in self.gaps[-2:])
                said += f", and test - train grew from {before} to {gap}"
        if self.forecast:
            now = self._number(self.histories[-1].test_mean[-1])
            said += f"; 8 times as long would bring -ELBO {now} to {self._show(self.forecast[8])}"
        return said

    def _repr_html_(self) -> str:
        head = ["epochs", "train -ELBO", "test -ELBO", "gained by doubling (95 %)", "test - train"]
        rows, gained = [], ["", *map(self._show, self.gains)]
        for run, gain, gap in zip(self.histories, gained, self.gaps, strict=True):
            ends = (self._number(mean[-1]) for mean in (run.train_mean, run.test_mean))
            rows.append([f"{len(run)}", *ends, gain, self._show(gap)])
        for factor, end in self.forecast.items():
            length = factor * len(self.histories[-1])
            rows.append([f"{length}, foretold", "", self._show(end), "", ""])
        page = f"<p>{html.escape(repr(self))}</p>{html_table(head, rows)}"
        return re.sub(r"(?<!\w)-(?=[\dE ])", "−", unbroken(page))

    def _number(self, nats: float) -> str:  # two digits of the tolerance: finer does not matter
        return f"{nats:,.{max(0, 1 - math.floor(math.log10(self.tolerance)))}f}"

    def _show(self, found: Estimate) -> str:
        value, low, high = map(self._number, (found.value, found.low, found.high))
        return f"{value} ({low} to {high})"


def convergence(*histories: History, tolerance: float) -> Convergence:
    """Judge whole runs of one experiment whose lengths double, shortest first; two at least.

    State beforehand, and with a reason, the ``tolerance``: how many nats per data point a doubling
    may gain of a converged model. (A Gaussian decoder gains 0.01 per dimension from errors smaller
    by 1 %, once its σ follows them.)

    ===============  =======================================================================
    converged        the interval of the last doubling's gain ends below the tolerance, and the end
                     lies no more than that above the lowest test −ELBO of any epoch
    still improving  it reaches the tolerance and lies above 0
    overfitting      it ends below the tolerance, but the longest run ends more than the tolerance
                     above the lowest test −ELBO of any epoch, and train still falls
    cannot tell      there are too few test points for the tolerance; or gains lie below it, but
                     grow; or test rose, and train did not clearly gain; or test still gains, but
                     test − train exceeds that gain and takes a third of what train gains, so that
                     test may soon rise
    ===============  =======================================================================

    Raises ``ValueError`` unless the runs are whole, annealed and differ in their epochs only, and
    for a tolerance that is not positive.
    """
    lengths, asked = [len(run) for run in histories], [run.settings["epochs"] for run in histories]
    if lengths != asked:
        raise ValueError(
            f"runs of {asked} epochs were stopped after {lengths}, before their learning rate was "
            "annealed: let each end, from its checkpoint or anew"
        )
    if len(lengths) < 2 or any(2 * a != b for a, b in pairwise(lengths)):
        raise ValueError(
            "give runs of E/4, E/2 and E epochs, shortest first, or the last two; fit_doubling "
            f"trains them. Got {lengths or 'none'}"
        )
    first = histories[0].settings
    differ = {name for run in histories for name in first | run.settings
              if name != "epochs" and run.settings.get(name) != first.get(name)}  # fmt: skip
    if differ:
        raise ValueError(
            f"the runs differ in {', '.join(sorted(differ))}, so their length alone explains "
            "nothing: train them anew, all else the same, as fit_doubling does"
        )
    _check(tolerance, lengths[0], first)
    return Convergence(histories, tolerance)


def _check(tolerance: float, shortest: int, settings: dict[str, Any]) -> None:
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number of nats, got {tolerance!r}")
    if settings.get("schedule") == "constant" or settings.get("kl_warmup", 0) >= shortest:
        raise ValueError(
            'each run must be annealed to its own end, after its warm-up: train with "one-cycle" '
            "and kl_warmup below E/4"
        )


def _fall(before: History, after: History, split: str, row: int = -1) -> Estimate:
    """How much lower ``row`` of ``after`` is than the end of ``before``, each point by itself."""
    falls = getattr(before, split)[-1].astype(np.float64) - getattr(after, split)[row]
    mean = getattr(before, f"{split}_mean")[-1] - getattr(after, f"{split}_mean")[row]
    spread = falls.std(ddof=1) if len(falls) > 1 else math.nan
    return _estimate(mean, spread / math.sqrt(getattr(after, f"{split}_points")), len(falls))


def _gap(run: History) -> Estimate:
    se = math.hypot(run.test_se[-1], run.train_se[-1])  # different points: not paired
    return _estimate(run.test_mean[-1] - run.train_mean[-1], se, run.test.shape[1])


def _estimate(value: float, se: float, points: int) -> Estimate:
    # Student's t has the variance ν/(ν − 2): that widens 1.96 nearly as its own quantiles do.
    width = 1.96 * math.sqrt((points - 1) / (points - 3)) * se if points > 3 else math.inf
    return Estimate(float(value), float(se), float(value - width), float(value + width))


# What a doubling gains, as a share of the gain before: least, middle, most. Chosen on early runs of
# benchmarks/convergence.py, which tells how often the interval holds.
_SHARES = (0.1, 0.5, 1.1)


def _foretell(end: float, gains: Sequence[Estimate]) -> dict[int, Estimate]:
    """−ELBO by factor. Gains that grow foretell no limit, and neither does a rise."""
    gain, found = gains[-1], {}
    if len(gains) < 2 or gain.low > gains[-2].high or gain.high < 0:
        return {}
    for doublings in (1, 3):
        least, middle, most = (sum(s**k for k in range(1, doublings + 1)) for s in _SHARES)
        noise = gain.high - gain.value
        low, high = end - most * gain.high - noise, end - least * max(gain.low, 0) + noise
        # An interval of 80 % of a normal is 2 × 1.28 standard errors wide.
        found[2**doublings] = Estimate(end - middle * gain.value, (high - low) / 2.56, low, high)
    return found


def fit_doubling(
    model: VAE,
    train: Any,
    test: Any,
    *,
    epochs: int,
    tolerance: float,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Convergence:
    """Train ``model`` for E/4, E/2 and E epochs from the same first weights, and judge the runs.

    ``settings`` are ``fit``'s. The model is left as the longest run leaves it, whose history is
    ``.histories[-1]``. With a ``checkpoint``, that file keeps the first weights and one beside it
    each run: the same call goes on where it was interrupted, and a call for twice the epochs
    trains the longest run only. Raises ``ValueError`` after Ctrl-C, and if E is no multiple of 4.
    """
    if epochs < 4 or epochs % 4:
        raise ValueError(f"epochs must be a multiple of 4, for runs of E/4, E/2, E; got {epochs}")
    _check(tolerance, epochs // 4, settings)
    path = None if checkpoint is None else Path(checkpoint)
    if path and path.exists():
        model.load_state_dict(torch.load(path, "cpu", weights_only=True))
    elif path:
        torch.save(model.state_dict(), path)
    first = copy.deepcopy(model.state_dict())
    histories: list[History] = []
    with progress_bar(progress, 7 * epochs // 4, 0) as bar:

        def show(*runs: History) -> None:
            bar.n = sum(map(len, runs))
            bar.set_postfix_str(f"run of {runs[-1].settings['epochs']}, {runs[-1].last()}")

        bar.unit = "epoch"
        for length in (epochs // 4, epochs // 2, epochs):
            model.load_state_dict(first)
            run = fit(
                model, train, test, epochs=length, progress=lambda run: show(*histories, run),
                checkpoint=path and path.with_name(f"{path.name}-{length}"), **settings,
            )  # fmt: skip
            histories.append(run)
            show(*histories)
            if len(run) < length:
                break
    return convergence(*histories, tolerance=tolerance)
