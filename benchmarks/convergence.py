"""Is the verdict on convergence right? Fits of many kinds, each then trained 8 times as long.

    python benchmarks/convergence.py                 # what is missing of the small fits
    python benchmarks/convergence.py --mnist         # and the report's models, which take hours
    python benchmarks/convergence.py --only moons    # these
    python benchmarks/convergence.py --judge         # judge the kept runs anew, train nothing

Each finished fit is a line of convergence.jsonl, from which convergence.md is written; a line is
measured again if it is deleted or if the fit's settings change. The runs by which a fit is judged
are kept in build/convergence.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import HERE, ROOT, machine, table
from fits import FRESH, MNIST, SHAPED, Fit, tolerance

sys.path.insert(0, str(ROOT))

from vae_kit.convergence import Convergence, convergence
from vae_kit.displays import number, true_minus
from vae_kit.doubling import fit_doubling
from vae_kit.history import History
from vae_kit.training import fit

RESULTS, REPORT = HERE / "convergence.jsonl", HERE / "convergence.md"
RUNS = ROOT / "build" / "convergence"
LONGER = 8
KEEP = 4000  # points of each split whose values are kept
SETS = {"shaped the rule": SHAPED, "fresh": FRESH, "the report's models": MNIST}
CATALOGUE = SHAPED | FRESH | MNIST
Result = dict[str, Any]

# ---------------------------------------------------------------------------------------- fits


def recognised(asked: Fit) -> dict[str, Any]:
    """Settings by which a result is recognised as one of this fit."""
    settings = {k: getattr(v, "__name__", v) for k, v in asked.settings.items()}
    return {"epochs": asked.epochs, "seed": asked.seed} | settings


def measure(name: str) -> Result:
    """Let the verdict speak, then train 8 times as long, from the same first weights."""
    asked, start = CATALOGUE[name], time.perf_counter()
    train, test = asked.data(asked.draw)
    unit = tolerance(asked, train)
    file = RUNS / name.replace(",", "").replace(" ", "-")
    RUNS.mkdir(parents=True, exist_ok=True)

    def trained(how: Callable[..., Any], epochs: int, **more: Any) -> Any:
        torch.manual_seed(asked.seed)
        return how(
            asked.model(), train, test, epochs=epochs, seed=asked.seed, keep_points=KEEP,
            progress=False, **asked.settings, **more,
        )  # fmt: skip

    slow = len(train) > 10_000  # else the files take longer than the training
    files = {"checkpoint": file.with_suffix(".pt")} if slow else {}
    verdict = trained(fit_doubling, asked.epochs, tolerance=unit, **files)
    for run in verdict.histories:
        run.save(f"{file}-{len(run)}.npz")
    files = {"checkpoint": file.with_suffix(".longer.pt")} if slow else {}
    longer = trained(fit, LONGER * asked.epochs, **files)
    if len(longer) < LONGER * asked.epochs:
        raise KeyboardInterrupt
    changes = longer.test.values[-1].astype(np.float64) - verdict.histories[-1].test.values[-1]
    return {
        "name": name, "settings": recognised(asked), "tolerance": unit,
        "decoder": type(asked.model().decoder).__name__.removeprefix("Decoder"),
        "points": [longer.train.points, longer.test.points],
        **judged(verdict),
        "longer": {
            "train": longer.train_end.mean[-1], "test": longer.test.mean[-1],
            "se": float(changes.std(ddof=1) / len(changes) ** 0.5),
        },
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def judged(verdict: Convergence) -> Result:
    """What a result keeps of the verdict."""
    return {
        "verdict": verdict.verdict, "why": verdict.why, "line": repr(verdict),
        "keep": verdict.keep, "test": [end.value for end in verdict.test_ends],
        "train": [end.value for end in verdict.train_ends],
        "test_change": verdict.test_changes[-1]._asdict(),
        "train_change": verdict.train_changes[-1]._asdict(),
    }  # fmt: skip


def judge_again(result: Result) -> Result:
    """The same result, its verdict by the present rule; as it is where its runs are not kept."""
    epochs, stem = result["settings"]["epochs"], result["name"].replace(",", "").replace(" ", "-")
    files = [RUNS / f"{stem}-{length}.npz" for length in (epochs // 4, epochs // 2, epochs)]
    if not all(file.exists() for file in files):
        return result
    runs = [History.load(file) for file in files]
    return result | judged(convergence(*runs, tolerance=result["tolerance"]))


def read() -> dict[str, Result]:
    """What has been measured so far of the present catalogue, in its order."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found = {line["name"]: line for line in map(json.loads, lines)}
    return {
        name: found[name]
        for name, asked in CATALOGUE.items()
        if name in found and found[name]["settings"] == recognised(asked)
    }


# ------------------------------------------------------------------------------------ report

VERDICTS = ("converged", "still improving", "overfitting", "cannot tell")
FEWEST = 8  # of each verdict, that are right


def change(result: Result) -> float:
    """What 8 times the training changed the test average by, in tolerances."""
    return float(result["longer"]["test"] - result["test"][-1]) / result["tolerance"]


def is_right(result: Result) -> bool | None:
    """Whether the run 8 times as long agrees with the verdict; None where it cannot tell."""
    changed = change(result)
    return {
        "converged": abs(changed) <= 3,
        "still improving": changed < -1 / 3,
        "overfitting": changed >= -1 / 3,
        "cannot tell": None,
    }[result["verdict"]]


def goals(parts: dict[str, list[Result]]) -> str:
    """What is asked of the verdicts and what was measured, a column for each set of fits."""
    columns = []
    for fits in parts.values():
        rights = {v: [is_right(fit) for fit in fits if fit["verdict"] == v] for v in VERDICTS}
        silent = len(rights.pop("cannot tell"))
        told = [right for given in rights.values() for right in given]
        columns.append([
            f"{len(fits)}", share(sum(map(bool, told)), len(told)), share(silent, len(fits)),
            *(f"{sum(map(bool, given))} of {len(given)}" for given in rights.values()),
        ])  # fmt: skip
    names = ["fits", "right, of those that tell", "“cannot tell”", *VERDICTS[:-1]]
    asked = ["about 60", "≥ 92 %", "≤ 10 %", *[f"≥ {FEWEST} right"] * 3]
    rows = zip(names, *columns, asked, strict=True)
    return table(["", *parts, "asked of fresh fits"], list(rows))


def share(part: int, whole: int) -> str:
    """A percentage, and of what."""
    return f"{100 * part / max(1, whole):.0f} % ({part} of {whole})"


def nats(value: float, unit: float) -> str:
    """With two digits of the tolerance."""
    return number(value, max(0, 1 - int(np.floor(np.log10(unit)))))


def row(one: Result) -> list[object]:
    """A line of the table of fits; changes in nats, with their intervals of 95 %."""
    unit = one["tolerance"]
    changes = [
        f"{nats(c['value'], unit)} ({nats(c['low'], unit)} to {nats(c['high'], unit)})"
        for c in (one["test_change"], one["train_change"])
    ]
    return [
        one["name"], one["decoder"], " + ".join(f"{n:,}" for n in one["points"]),
        one["settings"]["epochs"], nats(unit, unit), *changes, one["verdict"],
        one["keep"], nats(one["longer"]["test"] - one["test"][-1], unit),
        number(change(one), 1),
        {True: "yes", False: "**no**", None: "–"}[is_right(one)],
    ]  # fmt: skip


HEAD = ("fit", "decoder", "points", "epochs", "tolerance", "test changed", "train changed",
        "verdict", "keep", "8 ×: test changed", "in tolerances", "right")  # fmt: skip

PROTOCOL = """\
Each fit is judged from its runs of E/4, E/2 and E epochs by `fit_doubling`, then trained for 8 E
epochs from the same first weights with the same settings. What that changed on the test set is
held against the verdict, in tolerances; negative is better:

- “converged” is right if test changed by no more than three tolerances either way,
- “still improving” if it fell by more than a third of one,
- “overfitting” if it did not: if it rose, or fell by no more than a third of a tolerance,
- “cannot tell” is neither right nor wrong.

Tolerances follow from a rule. A density: 0.01 nats per dimension, what errors smaller by one per
cent gain once σ follows them. A probability: one per cent of what the dimensions cost when each is
coded by itself, by its frequencies in the training set. By the fits that “shaped the rule” it may
be changed; the fresh ones, on other draws of the data and with other seeds and lengths, were drawn
up after its last change, and before any of their verdicts was looked at: two of three first, the
others, by the same rule, once these had been judged. Changes are in nats per data point with
intervals of 95 % over points; “keep” is the run, in epochs, whose model is kept.
"""


def report(results: dict[str, Result]) -> None:
    """Write convergence.md from what is there."""
    parts = {
        title: [results[name] for name in names if name in results]
        for title, names in SETS.items()
    }  # fmt: skip
    parts = {title: fits for title, fits in parts.items() if fits}
    missing = [name for name in [*SHAPED, *FRESH] if name not in results]
    text = f"# Is the verdict on convergence right?\n\n{PROTOCOL}\n## Right and wrong\n\n"
    if missing:
        text += f"Not measured yet: {', '.join(missing)}.\n\n"
    text += goals(parts) + "\n"
    text += "## What the verdict got wrong\n\n"
    for title, fits in parts.items():
        for wrong in (one for one in fits if is_right(one) is False):
            text += f"- {wrong['name']} ({title}): {true_minus(wrong['line'])}. "
            text += f"8 times: {number(change(wrong), 1)} tolerances.\n"
    for title, fits in parts.items():
        text += f"\n## {title.capitalize()}\n\n{table(HEAD, [row(one) for one in fits])}"
    text += f"\n*{machine(torch.get_num_threads())}*\n"
    REPORT.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CATALOGUE, metavar="NAME", help="these fits")
    parser.add_argument("--mnist", action="store_true", help="the report's models, too")
    parser.add_argument("--judge", action="store_true", help="judge anew, train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1 if not asked.mnist else torch.get_num_threads())
    wanted = asked.only or [*SHAPED, *FRESH, *(MNIST if asked.mnist else ())]
    if asked.judge:
        lines = [json.dumps(judge_again(result)) + "\n" for result in read().values()]
        RESULTS.write_text("".join(lines))
        wanted = []
    for name in (name for name in wanted if name not in read()):
        result = measure(name)
        with RESULTS.open("a") as file:  # at once: the run may be stopped
            file.write(json.dumps(result) + "\n")
        print(f"{name}: {result['seconds']} s", flush=True)
    report(read())


if __name__ == "__main__":
    main()
