"""Is the verdict on convergence right? Fits of many kinds, each then trained 8 times as long.

    python benchmarks/convergence.py                    # what is missing, but for the long ones
    python benchmarks/convergence.py --only moons wine  # these; a long one where it is named
    python benchmarks/convergence.py --report           # table and figure of what is there

A fit that is finished is kept in convergence.json and not repeated; so an interrupted benchmark
goes on where it was. Runs that fits share, and unfinished ones, are kept in build/convergence, and
the runs with other peak rates in convergence_rates.json; delete all three to measure anew.
convergence.md tells the protocol.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import starmap
from typing import Any

import numpy as np
import torch
from _common import HERE, ROOT, machine, table
from _fits import AGAIN, CONFIGURATIONS, FIRST, OTHER_DATA, tolerance

sys.path.insert(0, str(ROOT))

import vae_helpers as lab
from vae_convergence import convergence
from vae_figures import new_figure, save_figure

RUNS = ROOT / "build" / "convergence"
LONGER = 8
KEEP = 2000  # points of each split whose values are kept: a standard error to 2 %
SETS = {"first fits": FIRST, "other data": OTHER_DATA, "again": AGAIN}
# The report's model with other peak rates: neither may gain more than the tolerance.
RATES = {"half": 2e-3, "the report's": None, "twice": 8e-3}

# -------------------------------------------------------------------------------------- fits


def run_of(name: str, seed: int, epochs: int, lr: float | None = None) -> lab.History:
    """A run of a configuration, trained once: its history is kept, and what is unfinished too."""
    asked = CONFIGURATIONS[name]
    asked = asked if lr is None else replace(asked, lr=lr)
    settings = {k: getattr(v, "__name__", str(v)) for k, v in asked.settings().items()}
    words = repr([name, seed, epochs, settings])
    path = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{epochs}"
    path = path.with_name(f"{path.name}-{hashlib.sha256(words.encode()).hexdigest()[:8]}.npz")
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        train, test = asked.data()
        torch.manual_seed(seed)
        slow = len(train) > 10_000  # else the file takes longer than the epoch
        history = lab.fit(
            asked.model(), train, test, epochs=epochs, seed=seed, keep_points=KEEP,
            checkpoint=path.with_suffix(".pt") if slow else None, progress=False,
            **asked.settings(),
        )  # fmt: skip
        if len(history) < epochs:
            raise KeyboardInterrupt
        history.save(path)
        path.with_suffix(".pt").unlink(missing_ok=True)
    return lab.History.load(path)


def key_of(name: str, seed: int, epochs: int) -> str:
    """Under which a fit is found in the results."""
    return f"{name} | {epochs} epochs | seed {seed}"


def recognised(name: str) -> dict[str, Any]:
    """Settings by which a result is recognised: one of others is not of this configuration."""
    asked = CONFIGURATIONS[name]
    transform = asked.transform.__name__ if asked.transform else None
    return {"batch_size": asked.batch_size, "lr": asked.lr, "transform": transform,
            "tolerance": round(tolerance(asked), 6)}  # fmt: skip


def measure(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Let the verdict speak, then train 8 times as long: a long one with its first seed only."""
    runs = [run_of(name, seed, length) for length in (epochs // 4, epochs // 2, epochs)]
    found = convergence(*runs, tolerance=tolerance(CONFIGURATIONS[name]))
    fit = {
        "settings": recognised(name),
        "data": f"{runs[-1].train_points:,} + {runs[-1].test_points:,}",
        "decoder": CONFIGURATIONS[name].kind,
        "verdict": found.verdict, "line": repr(found), "best": found.best,
        "test": runs[-1].test_mean[-1], "train": runs[-1].train_mean[-1],
        "gains": [gain._asdict() for gain in found.gains],
        "train_gain": found.train_gain._asdict(), "memorises": bool(found.memorises),
        "forecast": {str(k): v._asdict() for k, v in found.forecast.items()},
        "seconds": float(sum(run.seconds.sum() for run in runs)),
        "bounded": int(sum(run.bounded.sum() for run in runs)),
        "machine": machine(threads=torch.get_num_threads()),
    }  # fmt: skip
    if CONFIGURATIONS[name].long and seed > 0:
        return fit
    longer = run_of(name, seed, LONGER * epochs)
    return fit | {
        "test_longer": longer.test_mean[-1], "train_longer": longer.train_mean[-1],
        "gained": runs[-1].test_mean[-1] - longer.test_mean[-1],
        "seconds": fit["seconds"] + float(longer.seconds.sum()),
        "bounded": fit["bounded"] + int(longer.bounded.sum()),
    }  # fmt: skip


def measure_rates() -> dict[str, dict[str, float]]:
    """How the report's model ends with each of ``RATES``."""
    (epochs,) = CONFIGURATIONS["notebook"].epochs
    runs = {name: run_of("notebook", 0, epochs, lr) for name, lr in RATES.items()}
    own, unit = runs["the report's"], tolerance(CONFIGURATIONS["notebook"])
    return {
        name: {"lr": run.settings["lr"], "epochs": len(run), "tolerance": unit,
               "train": run.train_mean[-1],
               "test": run.test_mean[-1], "gained": own.test_mean[-1] - run.test_mean[-1],
               "gained_se": paired_error(own, run)}
        for name, run in runs.items()
    }  # fmt: skip


def paired_error(one: lab.History, other: lab.History) -> float:
    """Standard error of the difference of two runs' ends, each test point with itself."""
    assert np.array_equal(one.test_index, other.test_index)
    falls = one.test[-1].astype(np.float64) - other.test[-1]
    return float(falls.std(ddof=1) / np.sqrt(one.test_points))


def is_right(fit: dict[str, Any]) -> bool | None:
    """Whether the run 8 times as long agrees with the verdict; None where either is missing."""
    if "gained" not in fit:
        return None
    gained = fit["gained"] / fit["settings"]["tolerance"]
    return {
        "converged": gained <= 3,
        "still improving": gained > 1 / 3,
        "overfitting": gained <= 0,
        "cannot tell": None,
    }[fit["verdict"]]


def within(fit: dict[str, Any]) -> bool | None:
    """Whether the run 8 times as long ended where it was foretold; None where nothing was."""
    foretold = fit["forecast"].get(str(LONGER))
    if not foretold or "test_longer" not in fit:
        return None
    return bool(foretold["low"] <= fit["test_longer"] <= foretold["high"])


def wanted() -> Iterator[tuple[str, int, int]]:
    """Every fit: configuration, seed, epochs."""
    for name, asked in CONFIGURATIONS.items():
        for seed in asked.seeds:
            for epochs in asked.epochs:
                yield name, seed, epochs


def read() -> dict[str, dict[str, Any]]:
    """What has been measured so far, of the present configurations."""
    path = HERE / "convergence.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    keys = {key_of(*fit): recognised(fit[0]) for fit in wanted()}
    return {key: saved[key] for key in keys if key in saved and saved[key]["settings"] == keys[key]}


# ------------------------------------------------------------------------------------ report


VERDICTS = ("converged", "still improving", "overfitting", "cannot tell")
# What is asked of the fits, at least or at most; below 1 it is a share.
GOALS: dict[str, tuple[str, float]] = {
    "fits": ("≥", 40),
    "verdicts that are right": ("≥", 0.95),
    "“cannot tell”": ("≤", 0.10),
    "right: “converged”": ("≥", 8),
    "right: “still improving”": ("≥", 8),
    "right: “overfitting”": ("≥", 8),
    "forecasts within their interval": ("≥", 0.80),
    "median width of it, tolerances": ("≤", 1),
}


def share(values: list[bool]) -> tuple[float, str]:
    """How many are true: as a number, and as a percentage of how many."""
    part = sum(values) / max(1, len(values))
    return part, f"{100 * part:.1f} % of {len(values)}"


def measured(fits: list[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """What became of each of ``GOALS``, as a number and in words."""
    judged = [(fit["verdict"], right) for fit in fits if (right := is_right(fit)) is not None]
    foretold = [fit for fit in fits if within(fit) is not None]
    widths = [
        (ends["high"] - ends["low"]) / fit["settings"]["tolerance"]
        for fit in foretold for ends in [fit["forecast"][str(LONGER)]]
    ]  # fmt: skip
    width = statistics.median(widths or [math.nan])
    found = {
        "fits": (len(fits), f"{len(fits)}"),
        "verdicts that are right": share([right for _, right in judged]),
        "“cannot tell”": share([fit["verdict"] == "cannot tell" for fit in fits]),
        "forecasts within their interval": share([within(fit) is True for fit in foretold]),
        "median width of it, tolerances": (width, f"{width:.2f}"),
    }
    for verdict in VERDICTS[:-1]:
        rights = [right for given, right in judged if given == verdict]
        found[f"right: “{verdict}”"] = sum(rights), f"{sum(rights)} of {len(rights)}"
    return found


def goals(parts: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The table of goals, a column for each set of fits; what is missed is bold."""
    columns, rows = [measured(list(fits.values())) for fits in parts.values()], []
    for name, (sign, limit) in GOALS.items():
        cells = [name]
        for value, text in (found[name] for found in columns):
            missed = value < limit if sign == "≥" else value > limit
            cells.append(f"**{text}**" if missed else text)
        rows.append([*cells, f"{sign} {limit}" if limit >= 1 else f"{sign} {100 * limit:.0f} %"])
    return table(["", *parts, "asked for"], rows)


def confusion(fits: list[dict[str, Any]]) -> list[list[object]]:
    """Verdicts by what 8 times the training gained, in tolerances."""
    edges = [(3, np.inf), (1 / 3, 3), (0, 1 / 3), (-3, 0), (-np.inf, -3)]
    kinds: dict[str, list[float]] = {"converged": [], "converged, test − train grew": []}
    kinds |= {verdict: [] for verdict in VERDICTS[1:]}
    for fit in (fit for fit in fits if "gained" in fit):
        name = fit["verdict"]
        if name == "converged" and fit["memorises"] and fit["train_gain"]["low"] > 0:
            name = "converged, test − train grew"
        kinds[name].append(fit["gained"] / fit["settings"]["tolerance"])
    return [
        [name, *(sum(low < gained <= high for gained in found) for low, high in edges)]
        for name, found in kinds.items()
    ]


def nats(value: float, unit: float) -> str:
    """With two digits of the tolerance, and a true minus sign."""
    digits = max(0, 1 - int(np.floor(np.log10(unit))))
    return f"{value:,.{digits}f}".replace("-", "−")


HEAD = ("configuration", "decoder", "points", "seed", "epochs", "tolerance", "verdict",
        "gained by the last doubling", "test −ELBO", "foretold for 8 ×", "8 × trained", "gained",
        "right")  # fmt: skip


def row(key: str, fit: dict[str, Any]) -> list[object]:
    """A line of the table of fits."""
    name, epochs, seed = key.split(" | ")
    unit = fit["settings"]["tolerance"]
    gain, foretold = fit["gains"][-1], fit["forecast"].get(str(LONGER))
    last = f"{nats(gain['value'], unit)} ± {nats(gain['high'] - gain['value'], unit)}"
    ends = [nats(foretold[end], unit) for end in ("low", "high")] if foretold else []
    return [
        name, fit["decoder"], fit["data"], seed.split()[1], epochs.split()[0], nats(unit, unit),
        fit["verdict"], last, nats(fit["test"], unit), " … ".join(ends) or "–",
        *(nats(fit[end], unit) if end in fit else "–" for end in ("test_longer", "gained")),
        {True: "yes", False: "**no**", None: "–"}[is_right(fit)],
    ]  # fmt: skip


COLORS = dict(zip(VERDICTS, ("#009E73", "#0072B2", "#D55E00", "#777777"), strict=True))
MARKS = dict(zip(VERDICTS, "os^x", strict=True))


def draw(fits: list[dict[str, Any]]) -> None:
    """What the verdict saw, and what was foretold, against what 8 times the training gained."""
    figure, axes = new_figure(1, 2, figsize=(11, 5.4), sharey=True)
    ticks = [-1000, -100, -10, -1, 0, 1, 10, 100, 1000]
    for ax in axes:
        ax.set(xscale="symlog", yscale="symlog", xticks=ticks, yticks=ticks)
        ax.tick_params(which="minor", length=0)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
    axes[0].axvline(1, color="0.5", lw=0.8, ls=":")
    axes[0].axhline(3, color="0.5", lw=0.8, ls=":")
    axes[1].plot([-1000, 1000], [-1000, 1000], color="0.5", lw=0.8, ls=":", zorder=0)
    axes[0].set(xlabel="gained by the last doubling (tolerances)", title="What the verdict saw",
                ylabel="gained by 8 times the training (tolerances)")  # fmt: skip
    axes[1].set(xlabel="foretold to be gained by it (tolerances)", title="What was foretold")
    for verdict, color in COLORS.items():
        chosen = [fit for fit in fits if fit["verdict"] == verdict and "gained" in fit]
        units = np.array([fit["settings"]["tolerance"] for fit in chosen])
        style: Any = {"color": color, "marker": MARKS[verdict], "ls": "", "ms": 5, "alpha": 0.8}
        gained = np.array([fit["gained"] for fit in chosen]) / units
        seen = np.array([fit["gains"][-1]["value"] for fit in chosen]) / units
        axes[0].plot(seen, gained, label=f"{verdict} ({len(chosen)})", **style)
        for fit, unit in zip(chosen, units, strict=True):
            if ends := fit["forecast"].get(str(LONGER)):
                low, middle, high = (
                    (fit["test"] - ends[k]) / unit for k in ("high", "value", "low")
                )
                axes[1].plot([low, high], 2 * [fit["gained"] / unit], color=color, lw=1, alpha=0.5)
                axes[1].plot(middle, fit["gained"] / unit, **style)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4,
                  frameon=False)  # fmt: skip
    figure.alt = (
        f"Of {sum('gained' in fit for fit in fits)} fits, in tolerances: left, what 8 times the "
        "training gained against what the last doubling had gained, marked by verdict; right, "
        "against the forecast and its interval."
    )
    save_figure(figure, "convergence", HERE)


def unmeasured(results: dict[str, dict[str, Any]]) -> str:
    """What is still missing, in a sentence; "" if nothing is."""
    missing = [name for name, *rest in wanted() if key_of(name, *rest) not in results]
    if not missing:
        return ""
    return f"Not measured yet: {len(missing)} fits ({', '.join(dict.fromkeys(missing))}).\n\n"


def rates() -> str:
    """The section on the peak rate; "" if it was not measured."""
    path = HERE / "convergence_rates.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    epochs, unit = (found["half"][key] for key in ("epochs", "tolerance"))
    rows = [
        [f"{run['lr']:g}, {name}", nats(run["train"], unit), nats(run["test"], unit),
         f"{nats(run['gained'], unit)} ± {nats(1.96 * run['gained_se'], unit)}" if run["gained"]
         else "–"]
        for name, run in found.items()
    ]  # fmt: skip
    return f"""## The peak rate of the report's model

Its run of {epochs} epochs with other peak rates, seed 0. The goal: neither gains more than the
tolerance, {nats(unit, unit)} nats.

{table(["peak rate", "train −ELBO", "test −ELBO", "gained"], rows)}
"""


PROTOCOL = """\
The tolerances follow from rules that were fixed before any run. A density: 0.01 nats per dimension,
what errors smaller by one per cent gain once σ follows them (7.84 nats on MNIST). A probability:
one per cent of what the dimensions cost when each is coded by itself, by its frequencies in the
training set (2.06 nats on binary MNIST). Most of the first fits have 4, 16, 64 and 256 epochs.
These lengths, the rates and the forecast's shares come from earlier runs of the same kinds. What
counts as too large a gap between test and train was chosen among five rules by 112 fits, 110 of
which are among the first.

A seed sets the first weights, the order and the noise. ± and intervals: 95 % over test points, the
forecast's 80 %.
"""


def listed(title: str, fits: dict[str, dict[str, Any]]) -> str:
    """The section on a set of fits, each of them a line."""
    rows = [row(key, fit) for key, fit in fits.items()]
    return f"""## {title.capitalize()}

Nats per data point; “points” are training + test.

{table(HEAD, rows)}
"""


def report(results: dict[str, dict[str, Any]]) -> None:
    """Write the tables, and draw the figure."""
    fits = list(results.values())
    parts = {
        title: {key: fit for key, fit in results.items() if key.partition(" | ")[0] in names}
        for title, names in SETS.items()
    }
    where = {" · ".join(f"{k} {v}" for k, v in f["machine"].items() if k != "date") for f in fits}
    places = "\n".join(f"*{place}*" for place in sorted(where))
    draw(fits)
    (HERE / "convergence.md").write_text(
        f"""# Is the verdict on convergence right?

Written by convergence.py. Each fit is judged from its runs of E/4, E/2 and E epochs and then
trained anew, from the same first weights, for 8 E epochs. The notebook's second seed is judged
only, because 8 E epochs of it take the better part of an hour.

## Goals

{unmeasured(results)}{goals(parts)}
Bold: missed. The first fits are those by which rules were chosen; the protocol tells which. The
others were drawn up later and changed no rule: fits on other data or other numbers of points, and
the first ones again, but for those on MNIST, README's and the notebook's: on the same points, with
another seed and mostly other lengths. Fits of one configuration share some of their runs, so they
are no independent trials.

“Converged” is right if the run 8 times as long gains no more than three tolerances, “still
improving” if it gains more than a third of one, “overfitting” if it does not gain. A fit that has
converged may get worse: the verdict says that one may stop, not that more training does no harm.

## Verdicts, by what 8 times the training gained

In tolerances, of all fits that were trained 8 times as long. The verdict's line adds that test −
train grew where that difference exceeds what the test set gained, and grew by more than a third of
what train clearly gained.

{table(["verdict", "gains > 3", "⅓ to 3", "0 to ⅓", "loses 0 to 3", "loses > 3"], confusion(fits))}
![Foretold against actual](convergence.png)

## Protocol

{PROTOCOL}
{rates()}{"".join(starmap(listed, parts.items()))}{places}
""",
        encoding="utf-8",
    )


def main() -> None:
    """Measure what is missing, and write the tables in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="these configurations")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    for name, seed, epochs in [] if asked.report else wanted():
        chosen = name in asked.only if asked.only else not CONFIGURATIONS[name].long
        if chosen and key_of(name, seed, epochs) not in read():
            fit = measure(name, seed, epochs)
            print(
                f"{key_of(name, seed, epochs)}: {fit['line']} Gained: {fit.get('gained', '-')}",
                flush=True,
            )
            # Read again: another process may have measured another configuration meanwhile.
            results = json.dumps(read() | {key_of(name, seed, epochs): fit}, indent=1)
            (HERE / "convergence.json").write_text(results + "\n")
    rates_file = HERE / "convergence_rates.json"
    if "notebook" in (asked.only or ()) and not asked.report and not rates_file.exists():
        rates_file.write_text(json.dumps(measure_rates(), indent=1) + "\n")
    report(read())


if __name__ == "__main__":
    main()
