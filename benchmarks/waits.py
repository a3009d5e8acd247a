"""What people wait for, in an older checkout and in this one, side by side.

    python benchmarks/waits.py OLD                       # an older checkout
    python benchmarks/waits.py OLD --only memory bytes   # the quick rows
    python benchmarks/waits.py OLD --repeats 3           # of the rows that take time

Repeats of both checkouts alternate, and medians count; what takes time wants a quiet machine. Rows
not measured are kept from the last time. Writes waits.json and waits.md.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import HERE, ROOT, machine, table

RESULTS, REPORT = HERE / "waits.json", HERE / "waits.md"
Rows = dict[str, float]

# ------------------------------------------------------------- memory, in a fresh process each


def megabytes(field: str) -> float:
    """Resident memory of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024 / 1e6


def lab() -> tuple[Any, Any, Any]:
    """``vae_helpers``, ``fit`` and ``mlp`` of the checkout, whatever its layout."""
    helpers = importlib.import_module("vae_helpers")
    if hasattr(helpers, "fit"):
        return helpers, helpers.fit, importlib.import_module("vae_networks").mlp
    kit = [importlib.import_module(f"vae_kit.{name}") for name in ("training", "networks")]
    return helpers, kit[0].fit, kit[1].mlp


def windows() -> Rows:
    """``fit`` on 200,000 overlapping windows of 1,024 samples, which share 0.8 MB.

    The peak above that of the same call on 2,000 of them, which needs its activations too.
    """
    import numpy as np

    helpers, fit, mlp = lab()
    series = np.random.default_rng(0).normal(size=201_023).astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(series, 1024)
    model = helpers.VAE(
        helpers.EncoderGaussian(mlp(1024, [32], 8)), helpers.DecoderGaussian(mlp(4, [32], 1024)),
        helpers.PriorGaussian(4),
    )  # fmt: skip
    peaks = []
    for points in (2000, 200_000):
        fit(model, views[:points], views[:1000], epochs=1, batch_size=500, device="cpu",
            precision="float32", progress=False)  # fmt: skip
        peaks.append(megabytes("VmHWM"))
    return {
        "`fit` on 200,000 windows of 1,024 samples, above 2,000 of them: MB": peaks[1] - peaks[0]
    }


def volumes(scale: float | None = None) -> Rows:
    """What ``fit`` does before its first step, on 300 volumes of 48³ in batches of two.

    The peak above that of a step.
    """
    import torch
    from torch import nn
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    helpers, fit, _ = lab()
    encoder = nn.Sequential(
        nn.Conv3d(1, 8, 4, 2, 1), nn.SiLU(), nn.Conv3d(8, 8, 4, 2, 1), nn.Flatten(),
        nn.Linear(8 * 12**3, 16),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(8, 8 * 12**3), nn.Unflatten(1, (8, 12, 12, 12)), nn.SiLU(),
        nn.ConvTranspose3d(8, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose3d(8, 1, 4, 2, 1),
    )  # fmt: skip
    model = helpers.VAE(
        helpers.EncoderGaussian(encoder),
        helpers.DecoderGaussian(decoder, **({} if scale is None else {"scale": scale})),
        helpers.PriorGaussian(8),
    )
    data = torch.randn(300, 1, 48, 48, 48)
    for _ in range(3):
        (-model.elbo(data[:2]).value.mean()).backward()
    torch.optim.Adam(model.parameters(), fused=True)  # the first one of a process imports a lot

    def stop(*_: Any) -> None:
        raise InterruptedError

    register_optimizer_step_pre_hook(stop)
    before, start = megabytes("VmHWM"), time.perf_counter()
    with contextlib.suppress(InterruptedError):
        fit(model, data, data[:2], epochs=1, batch_size=2, device="cpu", progress=False)
    what = f"before the first step, 300 volumes of 48³, σ {'learned' if scale is None else 'fixed'}"
    peak = megabytes("VmHWM") - before
    return {f"{what}: MB": peak, f"{what}: seconds": time.perf_counter() - start}


TASKS: dict[str, Callable[[], Rows]] = {
    "windows": windows, "volumes": volumes, "fixed": lambda: volumes(0.5),
}  # fmt: skip


def memory(root: Path) -> Rows:
    """The rows of memory; what is freed goes back at once, so that no holes in the heap count."""
    found: Rows = {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for task in TASKS:
        command = [python_of(root), __file__, str(root), "--task", task]
        found |= json.loads(subprocess.check_output(command, env=environment, text=True))
    return found


# --------------------------------------------------------------------------- time, and bytes


def python_of(root: Path) -> str:
    """The interpreter of a checkout's environment, or this one where it has none."""
    python = root / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    return str(python) if python.exists() else sys.executable


def run_all(root: Path) -> Rows:
    """The notebook, executed as ``make report`` does."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python_of(root), "-m", "nbconvert", "--to", "notebook", "--execute"]
        command += ["--output-dir", folder, "vae_lab.ipynb"]
        environment = os.environ | {"TQDM_DISABLE": "1", "VAE_LAB_FIGURES": folder}
        return {"Run all: minutes": minutes(command, root, environment)}


def tests(root: Path) -> Rows:
    """The tests, of an older checkout also where some fail; the set-up must be done before."""
    return {
        "`make test` after set-up: minutes": minutes(["make", "test"], root, succeeds=root == ROOT)
    }


def minutes(
    command: list[str], root: Path, environment: dict[str, str] | None = None, succeeds: bool = True
) -> float:
    """How long a command takes; its last words are shown."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    print(done.stdout[-2000:], flush=True)
    if succeeds:
        done.check_returncode()
    return seconds / 60


def size(root: Path) -> Rows:
    """What is committed for readers."""
    files = ("vae_lab.html", "vae_lab.ipynb")
    return {f"`{name}`: MB": (root / name).stat().st_size / 1e6 for name in files}


KINDS = {"bytes": size, "memory": memory, "run": run_all, "tests": tests}


def compare(old: Path, kinds: list[str], repeats: int) -> dict[str, Any]:
    """Old and new in turns; the medians of both, and of their ratio."""
    found: dict[str, Any] = {}
    for kind in kinds:
        pairs = [(KINDS[kind](old), KINDS[kind](ROOT)) for _ in range(repeats)]
        for row in pairs[0][0]:
            sides = [[pair[side][row] for pair in pairs] for side in (0, 1)]
            ratios = [a / max(b, 1e-9) for a, b in zip(*sides, strict=True)]
            medians = [statistics.median(values) for values in (*sides, ratios)]
            found[row] = {
                "numbers": medians,
                "repeats": repeats,
                "on": machine(os.cpu_count() or 1),
            }
            print(row, medians, flush=True)
    return found


def report(results: dict[str, Any]) -> None:
    """Write waits.md."""
    rows = [
        [row, *(f"{number:.3g}" for number in one["numbers"]), one["repeats"]]
        for row, one in results.items()
    ]
    where = "\n".join(sorted({f"*{one['on']}*" for one in results.values()}))
    text = "# What one waits for\n\nWritten by waits.py: an older checkout and this one, medians of"
    text += " repeats that alternate. Time to a good model is in races.md.\n\n"
    head = ["", "old", "new", "old / new", "repeats"]
    REPORT.write_text(f"{text}{table(head, rows)}\n{where}\n", encoding="utf-8")


def main() -> None:
    """Measure the rows that are asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="an older checkout")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        sys.path.insert(0, str(asked.old.resolve()))
        print(json.dumps(TASKS[asked.task]()))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= compare(asked.old.resolve(), asked.only, asked.repeats)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
