"""The panels of a learning curve on which a verdict rests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from .displays import number
from .style import INK, TEST_COLOR, TRAIN_COLOR, beside, set_ticks

if TYPE_CHECKING:
    from .convergence import Convergence, Estimate

__all__ = ["draw_changes", "draw_ends"]


def draw_ends(train: Axes, test: Axes, verdict: Convergence) -> str:
    """The ends of the runs by their length, and where the last may end; also in words."""
    tolerance = verdict.tolerance
    digits = max(0, 1 - math.floor(math.log10(tolerance)))
    sides = (
        (train, "train", TRAIN_COLOR, verdict.train_ends, verdict.train_changes[-1]),
        (test, "test", TEST_COLOR, verdict.test_ends, verdict.test_changes[-1]),
    )
    windows = _windows([[end.value for end in ends] for _, _, _, ends, _ in sides], tolerance)
    said = []
    for (ax, name, color, ends, change), window in zip(sides, windows, strict=True):
        y = np.array([end.value for end in ends])
        _draw_band(ax, y, change, tolerance, color)
        ax.set(ylim=window, xlabel="epochs of the run")
        ax.set_xticks(range(len(y)), [str(len(run)) for run in verdict.histories])
        set_ticks(ax.yaxis, 4)
        ax.set_title(f"{name}, end of each run", color=color)
        shown = [number(value, digits) for value in y]
        kept = [name == "test" and len(run) == verdict.keep for run in verdict.histories]
        _name_ends(ax, y, [f"{text}, kept" if keep else text
                           for text, keep in zip(shown, kept, strict=True)], color)  # fmt: skip
        sign = "+" if change.value > 0 else ""
        beside(ax, y[-1], shown[-1], color=color, weight="bold", size=12)
        beside(ax, y[-1], sign + number(change.value, digits), down=14, color=color)
        said.append(f"{name} {', '.join(shown)}")
    place: Any = test.get_subplotspec()
    below = place.colspan.start == 0
    train.set_ylabel("−ELBO (nats)")
    test.set_ylabel("−ELBO (nats)" if below else "")
    test.tick_params(labelleft=below or windows[0] != windows[1])
    lengths = ", ".join(str(len(run)) for run in verdict.histories)
    return f"Runs of {lengths} epochs end at {' and at '.join(said)} nats."


def _draw_band(ax: Axes, y: np.ndarray, change: Estimate, tolerance: float, color: str) -> None:
    """The ends, and around the last but one where the last is within the tolerance."""
    x, before = np.arange(len(y)), y[-2]
    reach = [x[-2], x[-1] + 0.35]
    ax.fill_between(reach, before - tolerance, before + tolerance, color=color, alpha=0.18, lw=0)
    ax.plot(reach, [before, before], color=color, lw=0.9, ls=(0, (4, 3)))
    ax.plot(x, y, "o-", color=color, lw=2.2, ms=7, mec="white")
    if math.isfinite(change.high - change.low):
        ax.plot(x[[-1, -1]], [before + change.low, before + change.high], color=color, lw=1.3)
    ax.set_xlim(-0.35, reach[1])
    edge, align = (-tolerance, "top") if y[-1] > before else (tolerance, "bottom")
    said = f"tolerance ±{number(float(f'{tolerance:.3g}'))}"
    ax.text(reach[1], before + edge, said, color=color, ha="right", va=align)


def _windows(ends: list[list[float]], tolerance: float) -> list[tuple[float, float]]:
    """Ranges that show the last two ends of each side, and the tolerance as a band.

    Earlier ends too, and one range for both sides, where the band is a twelfth of it at least.
    """
    widest, windows = 24 * tolerance, []
    for *earlier, before, last in ends:
        seen = [last, before - tolerance, before + tolerance]
        for value in reversed(earlier):
            seen += [value] if np.ptp([*seen, value]) <= widest else []
        windows.append((min(seen), max(seen)))
    both = min(low for low, _ in windows), max(high for _, high in windows)
    if both[1] - both[0] <= widest:
        windows = [both, both]
    return [(low - 0.1 * (high - low), high + 0.26 * (high - low)) for low, high in windows]


def _name_ends(ax: Axes, y: np.ndarray, shown: list[str], color: str) -> None:
    """The values of all ends but the last, where the line from the left or to the right is not."""
    high = ax.get_ylim()[1]
    for at, (value, text) in enumerate(zip(y[:-1], shown[:-1], strict=True)):
        above = value >= y[1] if at == 0 else value > y[at - 1]
        place = (7, 4) if at == 0 else (-6, 4)
        if value > high:
            text, above, place = f"{text} ↑", False, (7, 4)
        ax.annotate(text, (at, min(value, high)), (place[0], place[1] if above else -place[1]),
                    textcoords="offset points", color=color, ha="left" if place[0] > 0 else "right",
                    va="bottom" if above else "top")  # fmt: skip


def draw_changes(ax: Axes, verdict: Convergence, unit: str) -> tuple[str, str]:
    """What the last doubling did to each test point; also in words, and what the axis lacks."""
    before, after = verdict.histories[-2:]
    _, at, to = np.intersect1d(before.test.index, after.test.index, return_indices=True)
    change = after.test.values[-1][to].astype(float) - before.test.values[-1][at]
    low, high = np.quantile(change, (0.004, 0.996))
    step = (max(high, 0) - min(low, 0)) / 36 or 1.0
    bins = step * np.arange(math.floor(min(low, 0) / step) - 1, math.ceil(max(high, 0) / step) + 2)
    moved = np.clip(change[change != 0], bins[0], bins[-1])
    counts = np.histogram(moved, bins)[0]
    zero = int(np.searchsorted(bins, 0))
    ax.stairs(counts[:zero], bins[: zero + 1], fill=True, color=TEST_COLOR, alpha=0.4)
    ax.stairs(counts[zero:], bins[zero:], fill=True, color=TEST_COLOR)
    top = max(1, counts.max())
    ax.plot([0, 0], [0, 1.05 * top], color=INK, lw=0.9)
    lengths, said = f"{len(before)} → {len(after)} epochs", []
    for name, found, place in (("better", change[change < 0], 0), ("worse", change[change > 0], 1)):
        if len(found):
            share, by = 100 * len(found) / len(change), number(abs(found.mean()), 1)
            said.append(f"{share:.0f} % {name} by {by}")
            ax.text(place, 1, f"{share:.0f} % {name}\nby {by}", va="top", linespacing=1.2,
                    ha="right" if place else "left", transform=ax.transAxes)  # fmt: skip
    ax.set(ylim=(0, 1.5 * top), yticks=[])
    ax.set_xlabel(f"nats per test {unit.split()[-1]}")
    ax.spines.left.set_visible(False)
    set_ticks(ax.xaxis, 4)
    ax.set_title(f"change, {lengths}", color=INK)
    beyond = change.min() < bins[0] or change.max() > bins[-1]
    words = f"Of the test {unit}s, {lengths}: {', '.join(said) or 'no change'} on average."
    return words, " Outermost bars: all beyond them." * bool(beyond)
