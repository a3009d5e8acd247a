"""Several processes: the same mathematics as one, each point once, and an end when one dies."""

import functools
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

import vae_helpers as lab
from tools import ROOT, StillEncoder, quick_processes, run, tiny_vae
from vae_kit import train
from vae_kit.history import History

N, WORLD = 101, 2  # prime: no number of processes divides it
POINTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0)).double()
SPLITS = ("train", "test", "train_end")
NOISY = {"epochs": 4, "batch_size": 16}
STARTED = 2 + 2 * (7 + 1)  # calls in the first two epochs


def still_vae():
    torch.manual_seed(0)
    model = tiny_vae(beta=2.5, decoder=functools.partial(lab.DecoderGaussian, scale=0.5))
    model.encoder = StillEncoder(model.encoder.net)
    return model.double()


class Squared(lab.VAE):  # a loss of one's own, which is not the −ELBO
    def loss(self, x):
        return self.elbo(x).value.square().mean() / 10


def own_loss_vae():
    plain = still_vae()
    return Squared(plain.encoder, plain.decoder, plain.prior).double()


def normalising_vae():  # one whose evaluation depends on running averages of the points trained on
    model = still_vae()
    model.encoder.net.insert(0, torch.nn.BatchNorm1d(6, dtype=torch.float64))
    return model


def noisy_vae():
    torch.manual_seed(0)
    return tiny_vae().double()


class Drawing:  # a transform that draws random numbers, and can interrupt the run
    __slots__ = ("calls", "interrupt_at")  # by a dictionary it would be told apart

    def __init__(self, interrupt_at=None):
        self.calls, self.interrupt_at = 0, interrupt_at

    def __call__(self, x):
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls += 1
        return x + 0.1 * torch.rand_like(x)

    def __repr__(self):
        return "Drawing()"


def scenarios(rank, folder):  # what each process does; the same fits in the same order
    seen = {}

    def trained(name, model, data=POINTS, **settings):
        history = run(model, data, **settings)
        seen[name] = {split: getattr(history, split).values for split in SPLITS}
        seen[name]["weights"] = model.state_dict()
        seen[name]["gradient"] = {key: p.grad for key, p in model.named_parameters()}

    # Processes that do not agree on the weights at first: the first one's hold.
    strangers = still_vae()
    if rank > 0:
        torch.nn.init.normal_(strangers.decoder.net[0].weight)
    trained("full batch", strangers, batch_size=N)
    trained("a run", still_vae(), batch_size=16, epochs=4, lr=0.01, kl_warmup=1)
    # With so small a step the weights stay, and every batch meets the initial model.
    trained("last batch of one", still_vae(), POINTS[:97], batch_size=16, lr=1e-15)
    trained("one test point", still_vae(), test=POINTS[:1], lr=1e-15)
    trained("loss of one's own", own_loss_vae(), batch_size=N)
    trained("buffers", normalising_vae(), batch_size=20, epochs=2)
    trained("twins", noisy_vae(), POINTS[:2].repeat(4, 1), test=POINTS, batch_size=8)
    # Checkpoints in folders of their own, as on machines without a common disk.
    mine = folder / str(rank)
    mine.mkdir()
    trained("whole", noisy_vae(), transform=Drawing(), checkpoint=mine / "whole.pt", **NOISY)
    for part, stop in (("started", STARTED), ("continued", None)):
        trained(part, noisy_vae(), transform=Drawing(stop), checkpoint=mine / "parts.pt", **NOISY)
        if rank == 0:
            shutil.copy(mine / "parts.pt", mine / f"{part}.pt")
    # Each has an opinion of its own; the first one's holds.
    ended = run(noisy_vae(), POINTS, progress=lambda h: rank > 0 or len(h) < 2, **NOISY)
    seen["ended"] = len(ended)
    errors = {"not finite": (POINTS * 1e200, 16), "too few": (POINTS, 1)}
    for name, (data, batch_size) in errors.items():
        with pytest.raises((FloatingPointError, ValueError)) as error:
            run(still_vae(), data, test=POINTS, batch_size=batch_size)
        seen[name] = str(error.value)
    return seen


def process(rank, folder):
    warnings.simplefilter("error")
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    torch.save(scenarios(rank, folder), folder / f"{rank}.seen")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):  # what the processes left behind
    context, folder = quick_processes(), tmp_path_factory.mktemp("processes")
    started = [context.Process(target=process, args=(rank, folder)) for rank in range(WORLD)]
    for child in started:
        child.start()
    for child in started:
        child.join(120)  # a process that waits for ever is a bug, not a reason to wait
        child.kill()
    assert [child.exitcode for child in started] == [0] * WORLD
    return folder


@pytest.fixture
def seen(folder):  # by process, by scenario
    return [torch.load(folder / f"{rank}.seen", weights_only=False) for rank in range(WORLD)]


def contributions(points):  # every point's −ELBO under the initial weights
    with torch.no_grad():
        return -still_vae().elbo(points).value.numpy()


@pytest.mark.parametrize(
    ("scenario", "make"), [("full batch", still_vae), ("loss of one's own", own_loss_vae)]
)
def test_a_full_batch_step_is_that_of_one_process(scenario, make, seen):
    model = make()
    model.loss(POINTS).backward()
    for there in seen:
        np.testing.assert_allclose(there[scenario]["train"][0], contributions(POINTS), rtol=1e-5)
        for name, parameter in model.named_parameters():
            found = there[scenario]["gradient"][name]
            torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-5)
            assert parameter.grad.abs().max() > 1e-2, "too small a gradient proves nothing"


def test_a_run_is_that_of_one_process(seen):
    model = still_vae()
    history = run(model, POINTS, batch_size=16, epochs=4, lr=0.01, kl_warmup=1)
    weights = model.state_dict()
    for there in seen:
        for name in SPLITS:
            truth = getattr(history, name).values
            np.testing.assert_allclose(there["a run"][name], truth, rtol=1e-5)
        for name, value in there["a run"]["weights"].items():
            torch.testing.assert_close(value, weights[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("scenario", "points"), [("last batch of one", 97), ("one test point", N)])
def test_each_point_counts_once(seen, scenario, points):
    expected = contributions(POINTS[:points])
    for rows in (there[scenario][split] for there in seen for split in SPLITS):
        np.testing.assert_allclose(rows, [expected[: rows.shape[1]]] * len(rows), atol=1e-5)


def test_processes_agree_on_weights_and_history(seen):
    first, second = seen
    assert second["ended"] == first["ended"] == 2, "the first one's progress function decides"
    for there in seen:
        assert there["not finite"].startswith("train, epoch 1, step 1: log_likelihood")
        assert "2 processes" in there["too few"]
    for name in first.keys() - {"ended", "not finite", "too few"}:
        for split in SPLITS:
            np.testing.assert_array_equal(second[name][split], first[name][split])
        for key, value in first[name]["weights"].items():
            assert torch.equal(second[name]["weights"][key], value)


def test_all_points_are_evaluated_by_one_model_buffers_included(seen):
    model = normalising_vae()
    model.load_state_dict(seen[0]["buffers"]["weights"])
    with torch.no_grad():
        alone = -model.eval().elbo(POINTS).value.numpy()
    for there in seen:
        for split in ("test", "train_end"):
            np.testing.assert_allclose(there["buffers"][split][-1], alone, rtol=1e-6)


def test_noise_differs_between_processes(seen):
    # Of points that are given several times, each draws noise of its own.
    rows = seen[0]["twins"]["train"]
    assert len(np.unique(rows[0])) == len(rows[0])


def test_only_the_first_process_writes_and_all_continue(seen, folder):
    files = [sorted(os.listdir(folder / str(rank))) for rank in range(WORLD)]
    assert files == [["continued.pt", "parts.pt", "started.pt", "whole.pt"], []]
    for there in seen:
        for split in SPLITS:
            np.testing.assert_array_equal(there["continued"][split], there["whole"][split])
        for name, value in there["whole"]["weights"].items():
            assert torch.equal(there["continued"]["weights"][name], value)
    # And another number of processes goes on with what these began.
    path = folder / "0" / "started.pt"
    one = run(noisy_vae(), POINTS, transform=Drawing(), checkpoint=path, **NOISY).train.values
    assert one.shape == (4, N)
    np.testing.assert_array_equal(one[:2], seen[0]["started"]["train"])
    assert len(seen[0]["started"]["train"]) == 2


def test_a_killed_worker_ends_torchrun_and_the_checkpoint_goes_on(tmp_path, monkeypatch):
    options = ["--dataset=digits", "--hidden=16", "--latents=2", "--epochs=40", "--batch-size=128"]
    options += [f"--out={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = ["torch.distributed.run", "--nproc-per-node=2", "-m", "vae_kit.train", *options]
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    said = ""
    with started:
        for line in started.stdout:
            said += line
            if "epoch 3/40" in line:
                break
        workers = psutil.Process(started.pid).children(recursive=True)
        (second,) = [w for w in workers if w.environ().get("RANK") == "1"]
        second.kill()
        assert started.wait(60) != 0, said
        assert not any(worker.is_running() for worker in workers)
    assert said.count("digits: ") == 1, "only the first process speaks"
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]["train_values"]
    assert 3 <= len(saved) < 40
    monkeypatch.setattr(train, "plot_learning_curve", lambda *_: None)
    monkeypatch.setattr(train, "save_figure", lambda *_: None)
    assert train.main(options) == 0
    history = History.load(tmp_path / "history.npz")
    assert history.train.values.shape == (40, 1500)
    np.testing.assert_array_equal(history.train.values[: len(saved)], saved)
