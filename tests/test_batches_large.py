"""More data than memory: files that are mapped, workers, and histories that stay small."""

import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset

from benchmarks.large_data import Mapped, write
from tools import ROOT, figures, run, tiny_vae

POINTS = torch.randn(103, 6, generator=torch.Generator().manual_seed(0))
SETTINGS = {"epochs": 2, "batch_size": 16}


class Items(Dataset):
    """One point at a time, with a label, as most datasets do."""

    def __len__(self):
        return len(POINTS)

    def __getitem__(self, index):
        return POINTS[index], 0


class Failing(Items):
    def __getitem__(self, index):
        if index == 50:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


class Missing(Items):
    def __getitem__(self, index):
        return super().__getitem__(index)[0] * (math.nan if index == 50 else 1)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "points.npy", POINTS.numpy())
    return Mapped(tmp_path / "points.npy")


def trained(data, **settings):
    """The history, and the weights in a row."""
    torch.manual_seed(0)
    model = tiny_vae()
    history = run(model, data, test=POINTS, **SETTINGS | settings)
    return history, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["mapped", "items"])
def test_where_the_points_lie_makes_no_difference(kind, workers, mapped):
    history, weights = trained(mapped if kind == "mapped" else Items(), workers=workers)
    again, same = trained(POINTS)
    assert torch.equal(weights, same)
    np.testing.assert_array_equal(history.train, again.train)


def children():
    return [p for p in psutil.Process().children() if "forkserver" not in " ".join(p.cmdline())]


ERRORS = {"failed": (Failing, OSError), "not finite": (Missing, FloatingPointError)}


@pytest.mark.parametrize("end", ["finished", "interrupted", *ERRORS])
def test_workers_shut_down(end):
    before, at_work = len(children()), []

    def look(history):
        at_work.append(len(history))
        if end == "interrupted":
            raise KeyboardInterrupt

    def count(x):
        at_work.append(len(children()) - before)
        return x

    if end in ERRORS:
        data, error = ERRORS[end]
        with pytest.raises(error) as caught:  # whose traceback knows all that was going on
            trained(data(), workers=2, transform=count)
        assert caught.tb
        if end == "failed":  # its traceback leads through the loader, which holds the workers
            del caught
            gc.collect()
    else:
        trained(Items(), workers=2, transform=count, progress=look)
    assert end == "failed" or max(at_work) >= 2, "there were workers"
    assert len(children()) == before
    assert not multiprocessing.active_children()


def test_a_sample_of_points_keeps_the_history_small_and_the_averages_whole():
    points = POINTS.repeat(20, 1)
    whole, weights = trained(points, epochs=6)
    thin, same = trained(points, epochs=6, keep_points=50)
    assert torch.equal(weights, same), "what is kept does not change what is learned"
    assert thin.train.shape == (6, 50)
    assert thin.test.shape == (7, 50)
    np.testing.assert_array_equal(thin.train_mean, whole.train_mean)
    np.testing.assert_array_equal(thin.test_se, whole.test_se)
    # The same points in every epoch, each once: columns of the whole.
    columns = [np.flatnonzero((whole.train == column[:, None]).all(0)) for column in thin.train.T]
    assert all(len(found) == 1 for found in columns)
    assert len({int(found[0]) for found in columns}) == 50


LARGE, WIDTH = 2_000_000, 800  # rows of bytes: a file of 1.6 GB
LIMIT = 1.5e9

# In a process of its own, whose memory is that of this run alone. Pages of the mapped file are not
# counted: the kernel maps as many around a row as it likes, and takes them back. A transform takes
# 16 numbers of each row to learn from, since it is reading, not learning, that is tested here.
LARGE_RUN = """
import json, sys, threading
import psutil
from test_batches_large import Mapped, tiny_vae, torch
import vae_helpers as lab

torch.set_num_threads(1)
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.02):
        memory = psutil.Process().memory_info()
        peak = max(peak, memory.rss - getattr(memory, "shared", 0))
watcher = threading.Thread(target=watch)
watcher.start()
data = Mapped(sys.argv[1])
history = lab.fit(
    tiny_vae((16,)), data, data.__getitems__(range(1000)), epochs=1, batch_size=256,
    keep_points=500, transform=lambda rows: rows[:, :16] / 255,
    device="cpu", precision="float32", progress=False,
)
over.set()
watcher.join()
print(json.dumps({"peak": peak, "points": history.train_points, "keep_points": history.train.shape,
                  "test": history.test_mean.tolist(), "seconds": history.seconds[0]}))
"""


def test_2_million_points_in_a_file_larger_than_the_limit_of_memory(tmp_path):
    path = tmp_path / "points.npy"
    write(path, LARGE, WIDTH)
    size = path.stat().st_size
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", LARGE_RUN, path],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        path.unlink()  # pytest keeps the folders of its last runs
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["peak"] < LIMIT < size
    assert answer["points"] == LARGE
    assert answer["keep_points"] == [1, 500]
    assert answer["test"][1] < answer["test"][0] - 1, "and it learns"
    figures["more data than memory"] = (
        f"{answer['points']:,} points of a file of {size / 1e9:.2f} GB in "
        f"{answer['seconds']:.0f} s, memory of its own at most {answer['peak'] / 1e9:.2f} GB"
    )
