"""Does a model converge? Runs of E/4, E/2 and E epochs answer, compared point by point.

One curve cannot: its learning rate was annealed, so its end is flat whatever was left to learn. The
test average alone cannot either: it also stands still where a model only memorises. All numbers are
nats per data point, and changes are signed like the −ELBO: negative is better.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from .checks import positive_number
from .displays import html_table, true_minus
from .history import Curve, History

__all__ = ["Convergence", "Estimate", "convergence"]

Verdict = Literal["converged", "still improving", "overfitting", "cannot tell"]


# For those who have not met a term of it yet.
_ANSWERS: dict[Verdict, str] = {
    "converged": "**Yes, it converges.** Training twice as long changes how well the model "
    "explains the data, seen or new, by less than the tolerance set beforehand.",
    "still improving": "**No, not yet.** Trained twice as long, the model may still explain new "
    "data noticeably better.",
    "overfitting": "**No, it overfits.** The longer it is trained, the better the model knows the "
    "data that it learns from, and new data gain nothing by it.",
    "cannot tell": "**Cannot tell.** These runs do not show it.",
}


class Estimate(NamedTuple):
    """A number, its standard error and the ends of its interval of 95 %, in nats per data point."""

    value: float
    se: float
    low: float
    high: float


class Convergence:
    """What runs of doubled length say about a model; ``convergence`` makes it.

    histories                    the runs, shortest first
    tolerance                    how much a doubling may change the averages of a converged model
    test_ends, train_ends        −ELBO after each run, train evaluated as test is
    test_changes, train_changes  what each doubling changed
    gaps                         test minus train after each run
    verdict, why                 see ``convergence``; why it cannot tell, otherwise ""
    answer                       the verdict in plain words, as Markdown
    keep                         epochs of the run whose model is the one to keep
    """

    def __init__(self, histories: Sequence[History], tolerance: float) -> None:
        self.histories, self.tolerance = tuple(histories), tolerance
        test, train = [run.test for run in histories], [run.train_end for run in histories]
        self.test_ends, self.train_ends = list(map(_end, test)), list(map(_end, train))
        self.test_changes = [_change(a, b) for a, b in pairwise(test)]
        self.train_changes = [_change(a, b) for a, b in pairwise(train)]
        self.gaps = [_gap(run) for run in histories]
        self.verdict, self.why = self._judge()
        self.answer = _ANSWERS[self.verdict]
        self.keep = len(self.histories[self._best()])

    def _judge(self) -> tuple[Verdict, str]:
        """The rule, as ``convergence`` states it."""
        tolerance, test, train = self.tolerance, self.test_changes[-1], self.train_changes[-1]
        learned = _change(self.histories[-1].test, self.histories[-1].test, before=0)
        may_fall, may_rise = test.low <= -tolerance, test.high >= tolerance
        too_few = f"too few test points ({self.histories[-1].test.points})"
        if not math.isfinite(test.se) or (may_fall and may_rise):
            return "cannot tell", too_few
        if may_fall:
            return "still improving", ""
        lowest = self.test_ends[self._lowest()].value
        if may_rise or self.test_ends[-1].value - lowest > tolerance:
            if self._since_lowest().low <= 0:
                return "cannot tell", too_few
            if train.high < 0:
                return "overfitting", ""
            return "cannot tell", "test rose, but train did not fall: try a lower learning rate"
        if train.high <= -tolerance:
            return "overfitting", ""
        if train.low <= -tolerance or train.high >= tolerance:
            return "cannot tell", "train may still change by more than the tolerance"
        if -learned.value < max(tolerance, -4 * test.value):
            return "cannot tell", "training brought little so far: try a higher learning rate"
        if len(self.test_changes) > 1 and test.high < min(0, self.test_changes[-2].low):
            return "cannot tell", "the gains grow: double the training once more"
        return "converged", ""

    def _lowest(self) -> int:
        return int(np.argmin([end.value for end in self.test_ends]))

    def _since_lowest(self) -> Estimate:
        return _change(self.histories[self._lowest()].test, self.histories[-1].test)

    def _best(self) -> int:
        """Which run to keep: where train only memorises, the shortest that is good enough."""
        if self.verdict != "overfitting":
            return self._lowest()
        enough = self.test_ends[self._lowest()].value + self.tolerance
        return next(i for i, end in enumerate(self.test_ends) if end.value <= enough)

    def __repr__(self) -> str:  # in ASCII, which every console can show
        answer = {"converged": "Yes, converged", "cannot tell": f"Cannot tell, {self.why}"}
        said = answer.get(self.verdict, f"No, {self.verdict}")
        said += f": doubling to {len(self.histories[-1])} epochs changed the -ELBO by "
        said += f"{self._show(self.test_changes[-1])} nats on test and by "
        said += f"{self._show(self.train_changes[-1])} on train, tolerance {self.tolerance:.3g}"
        if self.verdict == "overfitting":
            said += f"; keep the run of {self.keep} epochs"
        return said

    def _repr_html_(self) -> str:
        head = ["epochs", "train -ELBO", "change (95 %)", "test -ELBO", "change (95 %)"]
        rows = []
        for i, run in enumerate(self.histories):
            row = [f"{len(run)}"]
            for ends, changes in (
                (self.train_ends, self.train_changes),
                (self.test_ends, self.test_changes),
            ):
                row += [self._number(ends[i].value), self._show(changes[i - 1]) if i else ""]
            rows.append([*row, self._number(self.gaps[i].value)])
        table = html_table([*head, "test - train"], rows)
        page = f"<p>{html.escape(repr(self))}</p>{table}"
        return true_minus(page)

    def _number(self, nats: float) -> str:  # two digits of the tolerance: finer does not matter
        return f"{nats:,.{max(0, 1 - math.floor(math.log10(self.tolerance)))}f}"

    def _show(self, found: Estimate) -> str:
        value = self._number(found.value)
        if not math.isfinite(found.se):  # of a single point
            return value
        return f"{value} ({self._number(found.low)} to {self._number(found.high)})"


def convergence(*histories: History, tolerance: float) -> Convergence:
    """Judge whole runs of one experiment whose lengths double, shortest first; two at least.

    State beforehand, and with a reason, the ``tolerance``: by how many nats per data point a
    doubling may change the averages of a converged model. Each average is one of evaluations after
    the run, and "may" means that the interval of 95 % reaches so far.

    ===============  =======================================================================
    converged        neither average may change by more than the tolerance
    still improving  the test average may still fall by more than that
    overfitting      it does not, but train falls by more than that; or test ends more than that
                     above the lowest end of any run, while train falls
    cannot tell      there are too few points for the tolerance; or train may still change; or
                     training brought less than a tolerance, or less than four times what the last
                     doubling did; or the gains grow; or test rose, and train did not fall
    ===============  =======================================================================

    Raises ``ValueError`` unless the runs are whole and differ in their epochs only, and for a
    tolerance that is not positive.
    """
    if len(histories) == 1 and isinstance(histories[0], (list, tuple)):
        histories = tuple(histories[0])
    tolerance = positive_number("tolerance", tolerance)
    asked = [run.settings.epochs for run in histories]
    if any(not len(run.train_end) for run in histories):
        raise ValueError(f"some of the runs of {asked} epochs were stopped before their end")
    if len(asked) < 2 or any(2 * a != b for a, b in pairwise(asked)):
        raise ValueError(
            f"expected runs of E/4, E/2 and E epochs, shortest first, got {asked or 'none'}: "
            "fit_doubling trains them"
        )
    first, *others = (vars(run.settings) | run.identity | {"epochs": 0} for run in histories)
    differ = {name for run in others for name in first if run.get(name) != first[name]}
    if differ:
        raise ValueError(
            f"the runs differ in {', '.join(sorted(differ))}, so their length alone explains "
            "nothing: train them by fit_doubling"
        )
    return Convergence(histories, tolerance)


def _end(curve: Curve) -> Estimate:
    return _estimate(curve.mean[-1], curve.se[-1], curve.points)


def _change(earlier: Curve, later: Curve, before: int = -1) -> Estimate:
    """How the average changed from row ``before`` of one curve to the end of another."""
    changes = later.values[-1].astype(np.float64) - earlier.values[before]
    spread = changes.std(ddof=1) if len(changes) > 1 else math.nan
    mean = later.mean[-1] - earlier.mean[before]
    return _estimate(mean, spread / math.sqrt(later.points), len(changes))


def _gap(run: History) -> Estimate:
    se = math.hypot(run.test.se[-1], run.train_end.se[-1])  # different points: not paired
    value = run.test.mean[-1] - run.train_end.mean[-1]
    return _estimate(value, se, min(run.test.points, run.train_end.points))


def _estimate(value: float, se: float, points: int) -> Estimate:
    width = float(stats.t.ppf(0.975, points - 1)) * se if points > 1 else math.inf
    return Estimate(float(value), float(se), float(value - width), float(value + width))
