"""How long until the model is good? Seconds until the test −ELBO that other loops reach.

    python benchmarks/time_to_quality.py            # measure, on a quiet machine
    python benchmarks/time_to_quality.py --report   # table and figure of the last numbers

The contestants and the evaluator are those of training_speed.py; each trains in a process of its
own, and epochs alternate in a random order. Writes time_to_quality.json, .md, .svg and .png; the
JSON keeps what was found on validation images, so an interrupted benchmark goes on with the race;
delete it to look for the best setting anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
from typing import Any

import torch
from _common import HERE, ROOT, machine, table
from training_speed import Contestant, bench_python, peer_versions

sys.path.insert(0, str(ROOT))

from vae_figures import new_figure, save_figure

EPOCHS = 18  # of each other loop: what it then ends at is the goal
COMMON = {"points": None, "batch": 128, "device": "cpu"}
OURS = {**COMMON, "compile": False}
PEERS = {
    "textbook loop": ("textbook", {}),
    "pythae": ("pythae", {}),
    "pyro": ("pyro", {"loader": False}),
}
# The lengths of ours, with fit's defaults: a run is annealed to its own end, so each is another.
LENGTHS = (7, 8, 9, 10)
# What is tried on validation images to find the best setting, and how many images those are.
BATCHES, RATES, TRIED_LENGTHS = (256, 512), (6e-3, 8e-3, 1.2e-2), (4, 5, 6, 7, 8, 10)
HELD_OUT = 10_000
# The batch and the rates that fit takes by default for 60,000 points, in the other loops.
RECIPE = {"batch": 256, "lr": 4e-3, "schedule": "one-cycle", "epochs": 10}
COLORS = {"ours": "#0072B2", "textbook loop": "#D55E00", "pythae": "#009E73", "pyro": "#CC79A7"}


def run_together(field: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Seconds and −ELBO by epoch of each (task, settings), epochs alternating in a random order."""
    contestants = {}
    for name, (task, settings) in field.items():
        python = bench_python() if task in ("pythae", "pyro") else sys.executable
        contestants[name] = Contestant(name, python, task, settings)
    found: dict[str, Any] = {name: {"seconds": [], "elbo": []} for name in field}
    order = random.Random(0)
    for epoch in range(max(settings["epochs"] for _, settings in field.values())):
        left = [name for name, (_, settings) in field.items() if epoch < settings["epochs"]]
        for name in order.sample(left, len(left)):
            answer = contestants[name].turn()
            for key, values in found[name].items():
                values.append(answer[key])
            print(f"epoch {epoch + 1} {name}: {answer['seconds']:.2f} s", flush=True)
            if epoch + 1 == field[name][1]["epochs"]:
                contestants[name].end()
    return found


def ours(epochs: int, precision: str = "auto", **fit: Any) -> tuple[str, dict[str, Any]]:
    """``fit`` for so many epochs, its defaults but for what is given."""
    return "ours", OURS | {"epochs": epochs, "precision": precision, "fit": fit}


def tune() -> dict[str, Any]:
    """Find the setting of ``fit`` that is fastest to the textbook loop's end, on validation images.

    Both train on the first 50,000 images, so the test set plays no part.
    """
    split = {"points": 60_000 - HELD_OUT, "held_out": HELD_OUT}
    textbook = "textbook", COMMON | split | {"epochs": EPOCHS}
    goal = run_together({"textbook": textbook})["textbook"]["elbo"][-1]
    tried = []
    for batch, lr, epochs in itertools.product(BATCHES, RATES, TRIED_LENGTHS):
        name = f"batch {batch}, rate {lr:g}"
        if any(one["name"] == name and one["elbo"] <= goal for one in tried):
            continue  # fewer epochs were enough
        task, settings = ours(epochs, batch_size=batch, lr=lr)
        run = run_together({name: (task, settings | split)})[name]
        tried.append({"name": name, "batch_size": batch, "lr": lr, "epochs": epochs,
                      "elbo": run["elbo"][-1], "seconds": sum(run["seconds"])})  # fmt: skip
    enough = [one for one in tried if one["elbo"] <= goal]
    if not enough:
        raise RuntimeError(f"no setting reached {goal:.2f}: try longer TRIED_LENGTHS")
    return {"goal": goal, "tried": tried, "best": min(enough, key=lambda one: one["seconds"])}


def measure(tuning: dict[str, Any]) -> dict[str, Any]:
    """Run the race."""
    fit = {name: tuning["best"][name] for name in ("batch_size", "lr")}
    fewest = tuning["best"]["epochs"]
    field = {name: (task, COMMON | own | {"epochs": EPOCHS}) for name, (task, own) in PEERS.items()}
    for name, (task, own) in PEERS.items():
        field[f"{name}, our recipe"] = task, COMMON | own | RECIPE
    field |= {f"ours, defaults, {n}": ours(n) for n in LENGTHS}
    field |= {f"ours, defaults in float32, {n}": ours(n, "float32") for n in LENGTHS}
    field |= {f"ours, best setting, {n}": ours(n, **fit) for n in (fewest, fewest + 1)}
    runs: dict[str, list[Any]] = {}
    for name, run in run_together(field).items():
        runs.setdefault(re.sub(r", \d+$", "", name), []).append(run)
    return {"machine": machine(torch.get_num_threads()) | peer_versions(), "runs": runs}


def until(runs: list[dict[str, Any]], goal: float) -> tuple[int, int, float] | None:
    """(length of the run, epochs, seconds) until a −ELBO; of several runs the fastest to it."""
    found = []
    for run in runs:
        for epoch, seconds in enumerate(itertools.accumulate(run["seconds"])):
            if run["elbo"][epoch] <= goal:
                found.append((len(run["elbo"]), epoch + 1, seconds))
                break
    return min(found, key=lambda one: one[2]) if found else None


def rows(runs: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """A line per contestant: its seconds to each goal, and how many times longer its owner took."""
    goals = {name: runs[name][0]["elbo"][-1] for name in PEERS}
    lines = []
    for name, own in runs.items():
        cells = []
        for peer, goal in goals.items():
            reached, owner = until(own, goal), until(runs[peer], goal)[2]
            if not reached:
                cells.append("not reached")
                continue
            length, epochs, seconds = reached
            of = f"{epochs} epochs" if epochs == length else f"{epochs} of {length} epochs"
            cells.append(f"{seconds:.1f} s, {of} ({owner / seconds:.1f} ×)")
        lines.append([name, *cells])
    return lines


def draw(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Test −ELBO against seconds; of ours the run that is first at the textbook loop's goal."""
    figure, ax = new_figure(1, 1, figsize=(11, 5.6))
    goal = runs["textbook loop"][0]["elbo"][-1]
    lowest = min(run["elbo"][-1] for own in runs.values() for run in own)
    for name, own in runs.items():
        reached = until(own, goal)
        run = next((one for one in own if reached and len(one["elbo"]) == reached[0]), own[-1])
        color = next(color for key, color in COLORS.items() if name.startswith(key))
        clock = list(itertools.accumulate(run["seconds"]))
        styles = {"recipe": "--", "best": "--", "float32": ":"}
        style = next((line for word, line in styles.items() if word in name), "-")
        ax.plot(clock, run["elbo"], style, marker="o", ms=3.5, lw=1.6, color=color, label=name)
    ax.axhline(goal, color="0.6", lw=0.8, zorder=0)
    ax.annotate("the textbook loop's end", (1.05, goal), (0, 3), textcoords="offset points")
    ax.set(xscale="log", ylim=(lowest - 1, lowest + 25), xlabel="seconds of training, log scale",
           ylabel="test −ELBO (nats per image)")  # fmt: skip
    ax.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
    ax.minorticks_off()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.alt = (
        "Test −ELBO of every contestant against the seconds that its training took; the line is "
        f"what the textbook loop reaches in {EPOCHS} epochs."
    )
    save_figure(figure, "time_to_quality", HERE)


def report(results: dict[str, Any]) -> None:
    """Write the tables, and draw the figure."""
    runs, tuning, best = results["runs"], results["tuning"], results["tuning"]["best"]
    goals = {name: runs[name][0]["elbo"][-1] for name in PEERS}
    about = " · ".join(f"{k} {v}" for k, v in results["machine"].items())
    heads = [f"until {goal:.2f}, {name}" for name, goal in goals.items()]
    lengths = ", ".join(map(str, LENGTHS))
    tried = [
        [f"{one['batch_size']}", f"{one['lr']:g}", one["epochs"], f"{one['elbo']:.2f}",
         f"{one['seconds']:.1f}"]
        for one in tuning["tried"]
    ]  # fmt: skip
    draw(runs)
    (HERE / "time_to_quality.md").write_text(
        f"""# Time to quality

Written by time_to_quality.py. *{about}*

All train the network 784–400–20–400–784 from the same first weights on MNIST, binarised anew in
each epoch. The other loops train with Adam at 10⁻³ and batches of 128, as in training_speed.md,
for {EPOCHS} epochs. What one ends at is a goal, and the table tells after how many seconds each
contestant has got there, its owner too. In brackets: how many times longer the owner took. Only
training is timed; the test −ELBO comes from one evaluator for all, in float32, outside the clock.
The epochs of all contestants alternate, one process each. A run with one cycle of the rate is
annealed to its own end, so each length is a run of its own: {lengths} epochs with `fit`'s defaults,
of which the fastest to the goal counts. “Our recipe” is the batch and the rates that `fit` takes
by default, in the other loops: batches of {RECIPE["batch"]}, and one cycle up to {RECIPE["lr"]:g}
over {RECIPE["epochs"]} epochs. What they still lack then is `fit` itself: bfloat16 where that is
fast, less work around each step, Adam's β₂ of 0.99 and bounded gradients.

{table(["", *heads], rows(runs))}
![Test −ELBO against seconds](time_to_quality.svg)

## The best setting

Found on validation images, the last {HELD_OUT:,} of the training set, after training on the
others: the fastest to what the textbook loop reaches there in {EPOCHS} epochs, which is
{tuning["goal"]:.2f}. It is a batch of {best["batch_size"]} with a peak rate of {best["lr"]:g} for
{best["epochs"]} epochs.

{table(["batch", "peak rate", "epochs", "validation −ELBO", "seconds"], tried)}""",
        encoding="utf-8",
    )


def main() -> None:
    """Measure, unless only the report is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="measure nothing")
    path = HERE / "time_to_quality.json"
    if not parser.parse_args().report:
        results = json.loads(path.read_text()) if path.exists() else {"tuning": tune()}
        path.write_text(json.dumps(results, indent=1) + "\n")
        results |= measure(results["tuning"])
        path.write_text(json.dumps(results, indent=1) + "\n")
    report(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
