"""Does a model converge? Runs of E/4, E/2 and E epochs answer, compared point by point.

One curve cannot: its learning rate was annealed, so its end is flat whatever was left to learn. The
test average alone cannot either: it also stands still where a model only memorises. All numbers are
nats per data point, and changes are signed like the −ELBO: negative is better.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

from .checks import positive_number
from .displays import html_table, true_minus
from .history import Curve, History

__all__ = ["Convergence", "Estimate", "convergence"]

# For those who have not met a term of it yet.
_ANSWERS = {
    "converged": "**Yes, it converges.** Training twice as long changes how well the model "
    "explains the data, seen or new, by less than the tolerance set beforehand.",
    "still improving": "**No, not yet.** Trained twice as long, the model may still explain new "
    "data noticeably better.",
    "overfitting": "**No, it overfits.** The longer it is trained, the better the model knows the "
    "data that it learns from, and new data gain little or nothing by it.",
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
    verdict, why                 see ``convergence``; why it cannot tell, otherwise ""
    answer                       the verdict in plain words, as Markdown
    keep                         epochs of the run to keep: that of the lowest test end or, where
                                 the model overfits, the shortest within a tolerance of it
    """

    def __init__(self, histories: Sequence[History], tolerance: float) -> None:
        self.histories, self.tolerance = tuple(histories), tolerance
        test, train = [run.test for run in histories], [run.train_end for run in histories]
        self.test_ends, self.train_ends = list(map(_end, test)), list(map(_end, train))
        self.test_changes = [_change(a, b) for a, b in pairwise(test)]
        self.train_changes = [_change(a, b) for a, b in pairwise(train)]
        self.verdict, self.why = self._judge()
        self.answer = _ANSWERS[self.verdict]
        ends = [end.value for end in self.test_ends]
        enough = min(ends) + (tolerance if self.verdict == "overfitting" else 0)
        best = next(i for i, end in enumerate(ends) if end <= enough)
        self.keep = len(histories[best])

    def _judge(self) -> tuple[str, str]:
        """The rule, as ``convergence`` states it."""
        tolerance, test, train = self.tolerance, self.test_changes[-1], self.train_changes[-1]
        last, ends = self.histories[-1].test, [end.value for end in self.test_ends]
        may_fall, may_rise = test.low <= -tolerance, test.high >= tolerance
        risen = may_rise or ends[-1] - min(ends) > tolerance
        train_may = train.low <= -tolerance or train.high >= tolerance
        too_few = f"too few test points ({last.points})"
        if not math.isfinite(test.se):
            return "cannot tell", too_few
        if (may_fall or risen or train_may) and train.value < 0 and self._memorises():
            return "overfitting", ""
        if may_fall:
            return ("cannot tell", too_few) if may_rise else ("still improving", "")
        if risen:
            if _change(self.histories[int(np.argmin(ends))].test, last).low <= 0:
                return "cannot tell", too_few
            if train.high < 0:
                return "overfitting", ""
            return "cannot tell", "test rose, but train did not fall: try a lower learning rate"
        if train.high <= -tolerance:
            return "overfitting", ""
        if train_may:
            return "cannot tell", "train may still change by more than the tolerance"
        if last.mean[0] - last.mean[-1] < max(tolerance, -4 * test.value):
            return "cannot tell", "training brought little so far: try a higher learning rate"
        if len(self.test_changes) > 1 and test.high < min(0, self.test_changes[-2].low):
            return "cannot tell", "the gains grow: double the training once more"
        return "converged", ""

    def _memorises(self) -> bool:
        """Whether test − train is, beyond doubt, more than twice what the last doubling gained."""
        test, train, gain = self.test_ends[-1], self.train_ends[-1], -self.test_changes[-1].value
        sure = test.value - train.value - 2 * math.hypot(test.se, train.se)
        return sure > max(self.tolerance, 2 * gain)

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
        rows = []
        for i, run in enumerate(self.histories):
            ends = [self.train_ends[i].value, self.test_ends[i].value]
            train, test, gap = map(self._number, [*ends, ends[1] - ends[0]])
            both = (self.train_changes, self.test_changes)
            changed = [self._show(changes[i - 1]) if i else "" for changes in both]
            rows.append([str(len(run)), train, changed[0], test, changed[1], gap])
        head = ["epochs", "train -ELBO", "change (95 %)", "test -ELBO", "change (95 %)"]
        return true_minus(f"<p>{self!r}</p>{html_table([*head, 'test - train'], rows)}")

    def _number(self, nats: float) -> str:  # two digits of the tolerance: finer does not matter
        return f"{nats:,.{max(0, 1 - math.floor(math.log10(self.tolerance)))}f}"

    def _show(self, found: Estimate) -> str:
        value = self._number(found.value)
        interval = f" ({self._number(found.low)} to {self._number(found.high)})"
        return value + interval * math.isfinite(found.se)  # a single point has none


def convergence(*histories: History, tolerance: float) -> Convergence:
    """Judge whole runs of one experiment whose lengths double, shortest first; two at least.

    State beforehand, and with a reason, the ``tolerance``: by how many nats per data point a
    doubling may change the averages of a converged model. Each average is one of evaluations after
    the run, and "may" means that the interval of 95 % reaches so far.

    ===============  =======================================================================
    converged        neither average may change by more than the tolerance
    overfitting      train falls, and test does not by more than that, or has risen by more from its
                     lowest; or test − train is, beyond doubt, more than that and more than twice
                     what the last doubling gained on test
    still improving  otherwise, the test average may still fall by more than that
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
    whole = all(len(run.train_end) for run in histories)
    if not whole or len(histories) < 2 or any(2 * len(a) != len(b) for a, b in pairwise(histories)):
        got = ", ".join(f"{len(run)} of {run.settings.epochs}" for run in histories)
        raise ValueError(
            "expected runs of E/4, E/2 and E epochs, whole and shortest first: fit_doubling trains "
            f"them; got epochs {got or 'of no run'}"
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


def _change(earlier: Curve, later: Curve) -> Estimate:
    """How the average changed from the end of one run to that of another, point by point."""
    changes = later.values[-1].astype(np.float64) - earlier.values[-1]
    spread = changes.std(ddof=1) if len(changes) > 1 else math.nan
    mean = later.mean[-1] - earlier.mean[-1]
    return _estimate(mean, spread / math.sqrt(later.points), len(changes))


def _estimate(value: float, se: float, points: int) -> Estimate:
    width = float(stats.t.ppf(0.975, points - 1)) * se if points > 1 else math.inf
    return Estimate(float(value), float(se), float(value - width), float(value + width))
