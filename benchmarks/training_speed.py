"""How fast ``fit`` trains, against peers and against the machine: see README.md beside this file.

``python benchmarks/training_speed.py [--quick] [--only speed|scaling|overheads] [--device cuda]``
writes training_speed.json, .md, .svg and .png. With ``--quick``, a smoke test on 2,000 images, they
go to build/benchmarks, so that numbers without meaning do not replace those that have one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

from _common import HERE, ROOT, machine, table

WORKERS = HERE / "_workers.py"
REQUIREMENTS = HERE / "requirements.txt"
BENCH_VENV = ROOT / "build" / "bench-venv"

# name: (task of _workers.py, its settings, the floor that it stands on)
CONTESTANTS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "ours, float32": ("ours", {"precision": "float32", "compile": False}, "float32"),
    "ours, bfloat16": ("ours", {"precision": "bfloat16", "compile": False}, "bfloat16"),
    "ours, float32, compiled": ("ours", {"precision": "float32", "compile": True}, "float32"),
    "ours, bfloat16, compiled": ("ours", {"precision": "bfloat16", "compile": True}, "bfloat16"),
    "ours, bfloat16, batch 256": (
        "ours", {"precision": "bfloat16", "compile": False, "batch": 256}, "bfloat16, batch 256"
    ),
    "textbook loop": ("textbook", {}, "float32"),
    "pythae": ("pythae", {}, "float32"),
    "pyro, DataLoader": ("pyro", {"loader": True}, "float32"),
    "pyro, best case": ("pyro", {"loader": False}, "float32"),
    "floor, float32": ("floor", {"precision": "float32", "adam": False}, None),
    "floor, float32, with Adam": ("floor", {"precision": "float32", "adam": True}, None),
    "floor, bfloat16": ("floor", {"precision": "bfloat16", "adam": False}, None),
    "floor, bfloat16, with Adam": ("floor", {"precision": "bfloat16", "adam": True}, None),
    "floor, bfloat16, batch 256": (
        "floor", {"precision": "bfloat16", "adam": False, "batch": 256}, None
    ),
}  # fmt: skip
PROTOCOL = """\
All contestants in one run, one process each; their epochs alternate (one epoch of each, in an
order drawn anew each time), and while one trains the others sleep. All train the same network,
784–400–20–400–784 with ReLU from the same first weights, with Adam at 10⁻³ and batches of
{batch}, where no other is named, on {points} images of MNIST, with float32 weights and one sample
of z. All see the same kind of data, binarised anew in each epoch, each in the way that is
natural, and cheap, in its own loop. The time is the median of {epochs} epochs after a warm-up
epoch (in brackets: fastest and slowest), training only: nobody's evaluation is in it. The test
−ELBO (nats per image, after {all} epochs) comes from one evaluator for all: float32, the same
black and white test images, the same noise. "×" is the median over epochs of the ratio of two
times from the same round, so that a slow minute meets both.

The floor is the matrix products of forward and backward alone, without and with a fused Adam step;
× floor compares with the products in the contestant's own precision. "pyro, best case" gets its
batches by index from memory, so that it pays for nothing but itself.
"""


def bench_python() -> Path:
    """The interpreter of the peers' own environment, which is made where it is missing.

    It sees the packages of the interpreter that runs this, so that all contestants compute with
    the same torch, and nothing is installed into the lab's environment.
    """
    python = BENCH_VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp, wanted = BENCH_VENV / "installed", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(BENCH_VENV, with_pip=True, clear=True)
        query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = Path(subprocess.check_output(query, text=True).strip())
        (site / "lab.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.check_call([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS])
        stamp.write_text(wanted)
    return python


def peer_versions() -> dict[str, str]:
    """What is installed of the peers."""
    site = [str(p) for p in BENCH_VENV.glob("lib/python*/site-packages")] or [
        str(BENCH_VENV / "Lib" / "site-packages")
    ]
    found = importlib.metadata.distributions(path=site)
    return {d.name: d.version for d in found if d.name in ("pythae", "pyro-ppl")}


def run(task: str, **settings: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, str(WORKERS), task, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} {settings} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Contestant:
    """A worker process that trains for a turn, mostly an epoch, whenever it is asked to."""

    def __init__(self, name: str, python: str | Path, task: str, settings: dict[str, Any]) -> None:
        command = [str(python), str(WORKERS), task, json.dumps(settings)]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
        )
        self.about = self._hear()  # also waits until it is ready, so that start-ups do not overlap

    def _hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early: run _workers.py by hand to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> dict[str, Any]:
        """Its seconds, its test −ELBO afterwards, and its peak of memory so far."""
        print("go", file=self.process.stdin, flush=True)
        return self._hear()

    def end(self) -> None:
        """An empty line is the sign to leave."""
        self.process.stdin.close()
        self.process.wait()


def race(field: list[Contestant], rounds: int) -> dict[str, dict[str, list[Any]]]:
    """Let all take turns; what they answered, by name and by key, round by round."""
    found: dict[str, Any] = {contestant.name: {} for contestant in field}
    for number in range(rounds):
        # In another order each time: what one leaves behind, a warm processor say, meets all alike.
        for contestant in random.Random(number).sample(field, len(field)):
            answer = contestant.turn()
            for key, value in answer.items():
                found[contestant.name].setdefault(key, []).append(value)
            print(f"round {number} {contestant.name}: {answer['seconds']:.2f} s", flush=True)
    for contestant in field:
        contestant.end()
    return found


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per epoch and test −ELBO of every contestant, epoch by epoch in turn."""
    epochs = 2 if options.quick else 17
    settings = {
        "points": 2000 if options.quick else None, "batch": 128,
        "epochs": epochs + 1, "device": options.device,
    }  # fmt: skip
    peers = bench_python()
    field = []
    for name, (task, own, _) in CONTESTANTS.items():
        python = peers if task in ("pythae", "pyro") else sys.executable
        field.append(Contestant(name, python, task, settings | own))
    found = race(field, epochs + 1)
    about = machine(field[0].about["threads"], field[0].about["gpu"]) | peer_versions()
    return {"machine": about, "settings": settings, "contestants": found}


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per epoch and peak memory of ``fit`` as one thing at a time grows."""
    full = 60_000 if not options.quick else 1000
    usual = {
        "points": full, "batch": 128, "hidden": 400, "threads": None, "test": 2,
        "precision": "auto", "device": options.device,
    }  # fmt: skip
    sizes = [full // 4, full // 2, full, 2 * full, 4 * full, 8 * full]
    values = {
        "batch": [32, 128, 512, 2048, 4096],
        "hidden": [128, 400, 1024, 4096],
        "threads": [1, 2],
    }
    rounds = 17
    if options.quick:
        rounds, sizes = 3, [sizes[0], sizes[-1]]
        values = {key: [few[0], few[-1]] for key, few in values.items()}
    field = []
    for size in sizes:
        settings = usual | {"points": size, "turn": full, "epochs": 2 + rounds * full // size}
        field.append(Contestant(f"{size}", sys.executable, "growth", settings))
    found: dict[str, Any] = {"points": race(field, rounds)}
    found |= {key: {str(v): [] for v in few} for key, few in values.items()}
    # There and back again: what drifts while this runs meets large and small alike.
    for direction in (1, -1):
        for key, few in values.items():
            for value in few[::direction]:
                answer = run("scaling", **usual | {key: value, "epochs": 3})
                found[key][str(value)].append(answer)
                print(f"{key} {value}: {answer['seconds']}, {answer['memory']:.0f} MB", flush=True)
    return {"machine": machine(), "settings": usual, "points": found}


def overheads(options: argparse.Namespace) -> dict[str, Any]:
    """What is not computing: bookkeeping, evaluation, first epochs, imports, log_marginal."""
    points, repeats = (2000, 1) if options.quick else (60_000, 5)
    common = {"device": options.device, "batch": 128, "points": points, "repeats": repeats}
    found: dict[str, Any] = {"machine": machine(), "settings": common}
    for precision in ("float32", "bfloat16"):
        both = common | {"precision": precision}
        first = both | {"hidden": 400, "threads": None, "test": None, "epochs": 4}
        found[precision] = {
            "overhead": run("overhead", **both),
            "evaluation": run("evaluation", **both | {"repeats": 2 * repeats + 1}),
            "first": [run("scaling", **first) for _ in range(min(repeats, 3))],
        }
        print(precision, "done", flush=True)
    few = common | {"points": 100, "repeats": min(repeats, 3)}
    counts = (50, 500) if options.quick else (50, 500, 5000)
    found["log_marginal"] = {str(k): run("log_marginal", **few | {"samples": k}) for k in counts}
    return found


# ---------------------------------------------------------------------------------- reporting


def median(contestants: dict[str, Any], name: str) -> float:
    """Seconds per epoch, the warm-up epoch left out."""
    return statistics.median(contestants[name]["seconds"][1:])


def ratio(contestants: dict[str, Any], name: str, other: str) -> float:
    """Median over rounds of the one's time over the other's: a slow minute meets both."""
    rounds = (contestants[key]["seconds"][1:] for key in (name, other))
    return statistics.median(one / two for one, two in zip(*rounds, strict=True))


def about(section: dict[str, Any]) -> str:
    """Machine, versions and date in one line."""
    return "*" + " · ".join(f"{k} {v}" for k, v in section["machine"].items()) + "*\n\n"


def report_speed(found: dict[str, Any]) -> str:
    """Protocol and table of the race."""
    race, settings = found["contestants"], found["settings"]
    points = settings["points"] or 60_000
    rows = []
    for name, (_, _, own) in CONTESTANTS.items():
        seconds, later = median(race, name), race[name]["seconds"][1:]
        floor = f"{ratio(race, name, f'floor, {own}'):.2f}" if own else "—"
        elbo = race[name]["elbo"][-1]
        rows.append([
            name, f"{seconds:.2f} ({min(later):.2f}–{max(later):.2f})", f"{points / seconds:,.0f}",
            f"{ratio(race, name, 'ours, float32'):.2f}",
            f"{ratio(race, name, 'ours, bfloat16'):.2f}", floor,
            f"{race[name]['seconds'][0]:.1f}", "—" if elbo is None else f"{elbo:.2f}",
        ])  # fmt: skip
    head = ["contestant", "seconds per epoch", "images/s", "× ours, float32", "× ours, bfloat16",
            "× floor", "warm-up epoch, s", "test −ELBO"]  # fmt: skip
    numbers = {"points": f"{points:,}", "batch": settings["batch"], "all": settings["epochs"]}
    protocol = PROTOCOL.format(epochs=settings["epochs"] - 1, **numbers)
    return f"## Time per epoch\n\n{about(found)}{protocol}\n{table(head, rows)}\n"


def later(answers: list[dict[str, Any]]) -> float:
    """Median of all epochs but the first of each process."""
    return statistics.median(s for answer in answers for s in answer["seconds"][1:])


def linearity(found: dict[str, Any]) -> float:
    """The largest deviation from time proportional to N, as a fraction.

    Each turn trained as many images, whatever N. The sum over turns holds whole epochs of every N,
    and with them what comes at an epoch's end.
    """
    totals = [sum(answer["seconds"][1:]) for answer in found["points"]["points"].values()]
    return max(abs(total / statistics.mean(totals) - 1) for total in totals)


def extra_memory(found: dict[str, Any]) -> float:
    """The largest peak above importing torch and the data set itself, as N grows, in MB."""
    sizes = found["points"]["points"]
    return max(max(answer["memory"]) - data_size(n) for n, answer in sizes.items())


def data_size(points: int | str) -> float:
    """MNIST's images, in MB."""
    return int(points) * 784 / 1e6


def report_scaling(found: dict[str, Any]) -> str:
    """Table of ``fit`` as one thing at a time grows."""
    usual, rows = found["settings"], []
    names = {"points": "N", "batch": "batch", "hidden": "hidden width", "threads": "threads"}
    for key, name in names.items():
        for value, answers in found["points"][key].items():
            points = int(value) if key == "points" else usual["points"]
            if key == "points":
                seconds = statistics.mean(answers["seconds"][1:]) * points / usual["points"]
                peak = max(answers["memory"])
            else:
                seconds = later(answers)
                peak = max(answer["memory"] for answer in answers)
            rows.append([
                f"{name} = {int(value):,}", f"{seconds:.2f}", f"{1e6 * seconds / points:.1f}",
                f"{peak:.0f}", f"{peak - data_size(points):.0f}",
            ])  # fmt: skip
    rounds = len(next(iter(found["points"]["points"].values()))["seconds"]) - 1
    head = ["", "seconds per epoch", "µs per image", "peak memory, MB", "less the data, MB"]
    text = (
        f"`fit` with precision {usual['precision']} on MNIST, cut or repeated to N; where nothing "
        f"else is said, N = {usual['points']:,}, batch {usual['batch']}, hidden width "
        f"{usual['hidden']}. A line for another N is one process; they take turns of "
        f"{usual['points']:,} images, in an order drawn anew each time, and the time is the mean "
        f"of {rounds} turns after the first, scaled to N. Each other line is two processes, its "
        "time the median of their epochs after the first. Memory is the peak above importing "
        "torch.\n\n"
    )
    deviation = (
        f"\nAs N grows, the time of an image differs by {linearity(found):.1%} at most from the "
        "mean of all N.\n\n"
    )
    return f"## Scaling\n\n{about(found)}{text}{table(head, rows)}{deviation}"


def overhead_share(found: dict[str, Any]) -> float:
    """Median over pairs of what ``fit`` takes beyond the bare loop beside it."""
    pairs = found["overhead"]["fit and bare loop"]
    return statistics.median(1 - bare / fit for fit, bare in pairs)


def report_overheads(found: dict[str, Any]) -> str:
    """Table of what is not computing."""
    both = [found[precision] for precision in ("float32", "bfloat16")]
    rows = [
        ["loading, bookkeeping, bar, directly", *(f"{f['overhead']['gaps']:.1%}" for f in both)],
        ["`fit` against a bare loop", *(f"{overhead_share(f):+.1%}" for f in both)],
        ["evaluation of 10,000 images, s", *(f"{evaluation(f):.3f}" for f in both)],
        ["first epoch / later ones, fresh process", *(f"{first(f):.2f}" for f in both)],
    ]  # fmt: skip
    text = f"## Overheads\n\n{about(found)}{table(['', 'float32', 'bfloat16'], rows)}\n"
    rows = [
        [f"{int(k):,}", f"{marginal(answer)[0]:,.0f}", f"{marginal(answer)[1]:.2f}",
         f"{answer['memory']:.0f}"]
        for k, answer in found["log_marginal"].items()
    ]  # fmt: skip
    speed = marginal(list(found["log_marginal"].values())[-1])[0]
    return (
        f"{text}Importing `vae_helpers` takes {imports(found):.2f} s beyond torch.\n\n"
        f"`log_marginal`, decoder 64–512–512–784, float32, {found['settings']['device']}, "
        "100 images:\n\n"
        + table(["samples", "latent points/s", "× matrix products", "peak memory, MB"], rows)
        + f"\n10,000 images × 5,000 samples at that speed: {5e7 / speed / 60:.0f} minutes.\n\n"
    )


def evaluation(found: dict[str, Any]) -> float:
    """Seconds for 10,000 images, the first time left out."""
    seconds = found["evaluation"]["seconds"]
    return statistics.median(seconds[1:] or seconds)


def first(found: dict[str, Any]) -> float:
    """First epoch of a process over its later ones."""
    return statistics.median(
        run["seconds"][0] / statistics.median(run["seconds"][1:]) for run in found["first"]
    )


def imports(found: dict[str, Any]) -> float:
    """Seconds that ``vae_helpers`` takes to import after torch."""
    runs = [run for precision in ("float32", "bfloat16") for run in found[precision]["first"]]
    return statistics.median(run["lab import"] for run in runs)


def marginal(answer: dict[str, Any]) -> tuple[float, float]:
    """Latent points per second, and time over that of the matrix products."""
    seconds = statistics.median(own for own, _ in answer["pairs"])
    return 1 / seconds, statistics.median(own / products for own, products in answer["pairs"])


def report_goals(results: dict[str, Any]) -> str:
    """What was to be reached, and what was."""
    text, rows = "## Goals\n\n", []
    if race := results.get("speed", {}).get("contestants"):
        ours = {name: own for name, (task, _, own) in CONTESTANTS.items() if task == "ours"}
        # Peers have the common batch: those of ours that have another come last, without a ratio.
        alike = [name for name in ours if "batch" not in CONTESTANTS[name][1]]
        peers = [name for name, (task, _, _) in CONTESTANTS.items() if task in ("pythae", "pyro")]
        head = ["", *ours, "at least", "aim"]
        ratios = [
            ["textbook loop / ours", *(ratio(race, "textbook loop", name) for name in alike)],
            ["fastest peer / ours", *(min(ratio(race, p, name) for p in peers) for name in alike)],
            ["ours / its floor", *(ratio(race, name, f"floor, {p}") for name, p in ours.items())],
        ]
        steps = ["≤ 2, bfloat16 ≤ 2.5, batch 256 ≤ 2", "1.3, bfloat16 2, batch 256 1.6"]
        asked = [["≥ 3", "5"], ["≥ 2", "3.5"], steps]
        measured = [[what, *(f"{x:.2f}" for x in few), *["–"] * (len(ours) - len(few))]
                    for what, *few in ratios]  # fmt: skip
        text += table(head, [a + b for a, b in zip(measured, asked, strict=True)]) + "\n"
    if found := results.get("overheads"):
        for p in ("float32", "bfloat16"):
            rows.append([f"overhead, {p}", f"{overhead_share(found[p]):.1%}", "≤ 5 %", "2 %"])
        for p in ("float32", "bfloat16"):
            seconds = f"{evaluation(found[p]):.3f}"
            rows.append([f"evaluation of 10,000 images, {p}, s", seconds, "≤ 0.2", "0.1"])
        for p in ("float32", "bfloat16"):
            rows.append([f"first epoch / later, {p}", f"{first(found[p]):.2f}", "≤ 1.5", ""])
        rows.append(["import beyond torch, s", f"{imports(found):.2f}", "≤ 1", ""])
        largest = list(found["log_marginal"].values())[-1]
        rows.append(["log_marginal / products", f"{marginal(largest)[1]:.2f}", "", "1.5"])
    if found := results.get("scaling"):
        memory = f"{extra_memory(found):.0f}"
        rows.append(["memory beyond torch and data as N grows, MB", memory, "≤ 300", ""])
        rows.append(["deviation from linear in N", f"{linearity(found):.1%}", "≤ 5 %", ""])
    return f"{text}{table(['', 'measured', 'at least', 'aim'], rows)}\n" if rows else text


def draw(found: dict[str, Any], folder: Path, stem: str) -> None:
    """Time per epoch over the floor, and test −ELBO against the time that training took."""
    sys.path.insert(0, str(ROOT))
    import vae_figures as figures

    race = found["contestants"]
    names = [name for name, (_, _, own) in CONTESTANTS.items() if own]
    # Okabe and Ito's palette: one hue per library, dashes where it is compiled or at its best.
    hues = {"ours, float32": "#0072B2", "ours, bfloat16": "#56B4E9", "textbook": "#D55E00",
            "pythae": "#009E73", "pyro": "#CC79A7"}  # fmt: skip
    colors = {name: next(c for key, c in hues.items() if name.startswith(key)) for name in names}
    figure, (left, right) = figures.new_figure(1, 2, figsize=(12, 5.2))
    for y, name in enumerate(reversed(names)):
        seconds, own = median(race, name), CONTESTANTS[name][2]
        left.barh(y, seconds, color=colors[name], height=0.7)
        left.barh(y, median(race, f"floor, {own}"), color="#222222", height=0.7, alpha=0.55)
        left.text(seconds, y, f" {seconds:.2f} s", va="center", fontsize=10)
    left.set_yticks(range(len(names)), reversed(names))
    left.set(xlabel="seconds per epoch (dark: matrix products alone)")
    left.set_xlim(0, 1.12 * max(median(race, name) for name in names))
    for name in names:
        clock = [sum(race[name]["seconds"][: k + 1]) for k in range(len(race[name]["seconds"]))]
        styles = {"compiled": "--", "best": "--", "batch": ":"}
        style = next((line for word, line in styles.items() if word in name), "-")
        marks = {"marker": "o", "ms": 3.5, "lw": 1.6, "ls": style, "color": colors[name]}
        right.plot(clock, race[name]["elbo"], label=name, **marks)
    right.set(xlabel="seconds of training, log scale", ylabel="test −ELBO (nats per image)")
    right.set_xscale("log")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=10)  # fmt: skip
    os.environ["VAE_LAB_FIGURES"] = str(folder)
    figure.alt = "Seconds per epoch of every contestant, and its test −ELBO over time."
    figures.save_figure(figure, stem)


def main() -> None:
    """Measure what was asked for, keep the rest of the last results, and write the report anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke test, into build/benchmarks")
    parser.add_argument("--only", choices=("speed", "scaling", "overheads", "report"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    folder = ROOT / "build" / "benchmarks" if options.quick else HERE
    folder.mkdir(parents=True, exist_ok=True)
    stem = "training_speed" if options.device == "cpu" else f"training_speed_{options.device}"
    path = folder / f"{stem}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for section in (speed, scaling, overheads):
        if options.only in (None, section.__name__):
            results[section.__name__] = section(options)
            path.write_text(json.dumps(results, indent=1) + "\n")
    text = "# Training speed\n\nWritten by training_speed.py; all numbers are of its last run.\n\n"
    text += report_goals(results)
    for name, report in (
        ("speed", report_speed), ("scaling", report_scaling), ("overheads", report_overheads)
    ):  # fmt: skip
        if name in results:
            text += report(results[name])
    if "speed" in results:
        draw(results["speed"], folder, stem)
        text += f"![Seconds per epoch, and test −ELBO over time]({stem}.svg)\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
