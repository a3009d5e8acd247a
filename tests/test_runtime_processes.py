"""Several processes: the same mathematics as one, each point once, and an end when one dies."""

import functools
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

import vae_batches
import vae_checkpoint
import vae_helpers
import vae_helpers as lab
import vae_runtime
from tools import StillEncoder, figures, quick_processes, run, tiny_vae

N = 101  # prime: no number of processes divides it
POINTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0)).double()
NOISY = {"epochs": 4, "batch_size": 16}
CALLS = 2 + 4 * (7 + 1)  # of the transform, in each process: a first look, evaluations, steps
STARTED = 2 + 2 * (7 + 1)  # calls in the first two epochs
TRAIN = Path(lab.__file__).with_name("train.py")


def still_vae():
    torch.manual_seed(0)
    model = tiny_vae(beta=2.5, decoder=functools.partial(lab.DecoderGaussian, scale=0.5))
    model.encoder = StillEncoder(model.encoder.net)
    return model.double()


class Squared(lab.VAE):
    """A loss of one's own, which is not the −ELBO."""

    def loss(self, x):
        return self.elbo(x).value.square().mean() / 10


def own_loss_vae():
    plain = still_vae()
    return Squared(plain.encoder, plain.decoder, plain.prior).double()


def normalising_vae():
    """One whose evaluation depends on buffers: the running averages of the points trained on."""
    model = still_vae()
    model.encoder.net.insert(0, torch.nn.BatchNorm1d(6, dtype=torch.float64))
    return model


def noisy_vae():
    torch.manual_seed(0)
    return tiny_vae().double()


class Drawing:
    """A transform that draws random numbers, keeps them, and can interrupt the run."""

    def __init__(self, interrupt_at=None):
        self.drawn, self.interrupt_at = [], interrupt_at

    def __call__(self, x):
        if len(self.drawn) == self.interrupt_at:
            raise KeyboardInterrupt
        self.drawn.append(torch.rand(()).item())
        return x + 0.1 * torch.rand_like(x)

    def __repr__(self):  # whatever it has drawn, a checkpoint takes it for the same transform
        return "Drawing()"


def scenarios(rank, world, folder):
    """What each process does; the same fits in the same order."""
    seen = {}

    def trained(name, model, data=POINTS, **settings):
        history = run(model, data, **settings)
        seen[name] = {
            "mean": history.train_mean, "train": history.train, "test": history.test,
            "weights": model.state_dict(),
            "gradient": {key: p.grad for key, p in model.named_parameters()},
        }  # fmt: skip

    # Processes that do not agree on the weights at first: the first one's hold.
    strangers = still_vae()
    if rank > 0:
        torch.nn.init.normal_(strangers.decoder.net[0].weight)
    trained("full batch", strangers, batch_size=N)
    # With so small a step the weights stay, and every batch meets the initial model.
    standing = {"lr": 1e-15, "schedule": "constant"}
    trained("batches", still_vae(), batch_size=16, **standing)
    trained("last batch of one", still_vae(), POINTS[:97], batch_size=16, **standing)
    trained("one test point", still_vae(), test=POINTS[:1], **standing)
    trained("loss of one's own", own_loss_vae(), batch_size=N)
    trained("buffers", normalising_vae(), batch_size=20, epochs=2)
    # Checkpoints in folders of their own, as on machines without a common disk.
    mine = folder / str(rank)
    mine.mkdir()
    drawing = Drawing()
    trained("whole", noisy_vae(), transform=drawing, checkpoint=mine / "whole.pt", **NOISY)
    seen["drawn"] = drawing.drawn
    for part, stop in (("started", STARTED), ("continued", None)):
        trained(part, noisy_vae(), transform=Drawing(stop), checkpoint=mine / "parts.pt", **NOISY)
        if rank == 0:
            shutil.copy(mine / "parts.pt", mine / f"{part}.pt")
    # Each has an opinion of its own; the first one's holds.
    ended = run(noisy_vae(), POINTS, progress=lambda h: rank > 0 or len(h) < 2, **NOISY)
    seen["ended"] = len(ended)
    if world == 3:  # go on with what two processes began
        started = folder.parent / "2" / "0" / "started.pt"
        trained("moved", noisy_vae(), transform=Drawing(), checkpoint=started, **NOISY)
    try:
        run(still_vae(), 1e200 * POINTS, test=POINTS, batch_size=16)
    except FloatingPointError as error:
        seen["error"] = str(error)
    return seen


def process(rank, world, folder):
    warnings.simplefilter("error")
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save(scenarios(rank, world, folder), folder / f"{rank}.seen")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left behind, and then three."""
    context, folder = quick_processes(), tmp_path_factory.mktemp("processes")
    for world in (2, 3):
        here = folder / str(world)
        here.mkdir()
        started = [context.Process(target=process, args=(r, world, here)) for r in range(world)]
        for child in started:
            child.start()
        for child in started:
            child.join(120)  # a process that waits for ever is a bug, not a reason to wait
            child.kill()
        assert [child.exitcode for child in started] == [0] * world
    return folder


@pytest.fixture(params=[2, 3])
def world(request):
    return request.param


@pytest.fixture
def seen(folder, world):
    """By process, by scenario."""
    ranks = range(world)
    return [torch.load(folder / f"{world}/{r}.seen", weights_only=False) for r in ranks]


def contributions(points):
    """Every point's −ELBO from the formula, under the initial weights."""
    with torch.no_grad():
        return -still_vae().elbo(points).value.numpy()


def test_a_full_batch_step_is_that_of_one_process(seen):
    model = still_vae()
    model.loss(POINTS).backward()
    errors = []
    for there in seen:
        there = there["full batch"]
        assert there["mean"] == pytest.approx(contributions(POINTS).mean(), abs=1e-5)
        for name, parameter in model.named_parameters():
            errors.append((there["gradient"][name] - parameter.grad).abs().max().item())
            assert parameter.grad.abs().max() > 1e-2, "too small a gradient proves nothing"
    assert max(errors) < 1e-5
    figures[f"gradient of {len(seen)} processes"] = f"that of one to {max(errors):.1e}"


def test_a_loss_of_one_s_own_is_trained_on_and_the_curve_is_of_the_elbo(seen):
    model = own_loss_vae()
    model.loss(POINTS).backward()
    for there in seen:
        there = there["loss of one's own"]
        np.testing.assert_allclose(there["train"][0], contributions(POINTS), rtol=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(there["gradient"][name], parameter.grad, rtol=0, atol=1e-5)
            assert parameter.grad.abs().max() > 1e-2


@pytest.mark.parametrize(
    ("scenario", "points"),
    [("batches", N), ("last batch of one", 97), ("one test point", N)],
)
def test_each_point_counts_once(seen, scenario, points):
    expected = contributions(POINTS[:points])[None]
    for there in seen:
        np.testing.assert_allclose(there[scenario]["train"], expected, atol=1e-5)
        ends = expected[:, : there[scenario]["test"].shape[1]]
        np.testing.assert_allclose(there[scenario]["test"], np.repeat(ends, 2, 0), atol=1e-5)


def test_processes_agree_on_weights_and_history(seen):
    first, *others = seen
    for other in others:
        for name in first.keys() - {"drawn", "ended", "error"}:
            np.testing.assert_array_equal(other[name]["train"], first[name]["train"])
            np.testing.assert_array_equal(other[name]["test"], first[name]["test"])
            for key, value in first[name]["weights"].items():
                assert torch.equal(other[name]["weights"][key], value)


def test_all_points_are_evaluated_by_one_model_buffers_included(seen):
    model = normalising_vae()
    model.load_state_dict(seen[0]["buffers"]["weights"])
    with torch.no_grad():
        alone = -model.eval().elbo(POINTS).value.numpy()
    for there in seen:
        np.testing.assert_allclose(there["buffers"]["test"][-1], alone, rtol=1e-6)


def test_randomness_is_independent(seen, world):
    drawn = [value for there in seen for value in there["drawn"]]
    assert len(drawn) == world * CALLS
    # Evaluation meets the same noise each time, and all processes start from the same look.
    repeated = world * NOISY["epochs"] + world - 1
    assert len(set(drawn)) == len(drawn) - repeated


def test_only_the_first_process_writes_and_all_continue(seen, world, folder):
    files = [sorted(os.listdir(folder / f"{world}/{rank}")) for rank in range(world)]
    assert files == [["continued.pt", "parts.pt", "started.pt", "whole.pt"], *[[]] * (world - 1)]
    for there in seen:
        np.testing.assert_array_equal(there["continued"]["train"], there["whole"]["train"])
        for name, value in there["whole"]["weights"].items():
            assert torch.equal(there["continued"]["weights"][name], value)


def test_the_first_process_s_progress_function_ends_training_in_all(seen):
    assert [there["ended"] for there in seen] == [2] * len(seen)


def test_each_process_says_where_a_number_is_not_finite(seen):
    words = "train, epoch 1, step 1: log_likelihood is not finite for"
    assert all(process["error"].startswith(words) for process in seen)


def test_another_number_of_processes_goes_on(folder):
    two = torch.load(folder / "2/0.seen", weights_only=False)["started"]["train"]
    three = torch.load(folder / "3/0.seen", weights_only=False)["moved"]["train"]
    path = folder / "3/0/started.pt"  # and one process, from what three began
    one = run(noisy_vae(), POINTS, transform=Drawing(), checkpoint=path, **NOISY).train
    assert two.shape == (2, N)
    assert one.shape == three.shape == (4, N)
    np.testing.assert_array_equal(three[:2], two)
    started = torch.load(folder / "3/0.seen", weights_only=False)["started"]["train"]
    np.testing.assert_array_equal(one[:2], started)


@pytest.fixture
def second_of_three(monkeypatch):
    """What can be seen without the others: the errors that come before any communication."""
    for module in (vae_batches, vae_helpers, vae_checkpoint, vae_runtime):
        monkeypatch.setattr(module, "process", lambda: (1, 3))
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda module, **_: module)


@pytest.mark.parametrize(("points", "batch_size"), [(POINTS[:2], 128), (POINTS, 2)])
def test_each_process_needs_a_point_of_each_batch(second_of_three, points, batch_size):
    with pytest.raises(ValueError, match="3 processes cannot share batches of 2"):
        run(still_vae(), points, batch_size=batch_size)


def test_a_killed_worker_ends_torchrun_and_the_checkpoint_goes_on(tmp_path):
    arguments = [
        "--dataset=digits", "--decoder=bernoulli", "--hidden=16", "--latents=2", "--epochs=150",
        "--batch-size=128", f"--out={tmp_path}",
    ]  # fmt: skip
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    started = subprocess.Popen(
        [*runner, "3", TRAIN, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    said = ""
    with started:
        for line in started.stdout:
            said += line
            if "epoch 3/150" in line:
                break
        workers = psutil.Process(started.pid).children(recursive=True)
        (second,) = [w for w in workers if w.environ().get("RANK") == "1"]
        second.kill()
        killed = time.monotonic()
        assert started.wait(60) != 0, said
        ended = time.monotonic() - killed
        assert not any(worker.is_running() for worker in workers)
    assert said.count("digits: ") == 1, "only the first process speaks"
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]["train"]
    assert 3 <= len(saved) < 150
    subprocess.run([sys.executable, TRAIN, *arguments], check=True, env=environment, timeout=120)
    history = lab.History.load(tmp_path / "history.npz")
    assert history.train.shape == (150, 1500)
    np.testing.assert_array_equal(history.train[: len(saved)], saved)
    figures["a worker killed"] = (
        f"the other two ended within {ended:.1f} s; one process went on from epoch {len(saved)}"
    )
