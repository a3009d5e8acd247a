"""Checkpoints: whatever ends a run costs the running epoch and nothing else."""

import errno
import hashlib
import os
import pickle
import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_checkpoint
import vae_helpers as lab
from tools import Executed, figures, quick_processes, run, tiny_vae

SETTINGS = {"epochs": 5, "batch_size": 16, "lr": 0.01}
POINTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
TICKS = 2 + 5 * (4 + 1)  # a look at the data, an evaluation; per epoch 4 steps and an evaluation

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and permissions")


class Noisy:
    """A transform that draws random numbers, and sends this process a SIGINT at a call of it."""

    def __init__(self, interrupt_at=None):
        self.calls, self.interrupt_at = 0, interrupt_at

    def __call__(self, x):
        if self.calls == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        self.calls += 1
        return x + 0.1 * torch.rand_like(x)

    def __repr__(self):  # whatever it counts, a checkpoint takes it for the same transform
        return "Noisy()"


def mixture_vae(seed=1):
    torch.manual_seed(seed)
    return tiny_vae(prior=lab.PriorMixture(2, 3))


def train(path, model=None, data=POINTS, **settings):
    given = SETTINGS | {"transform": Noisy()} | settings
    return run(model or mixture_vae(), data, checkpoint=path, **given)


def content(path):
    """All that a checkpoint holds but the durations."""
    state = torch.load(path, weights_only=True)
    del state["history"]["seconds"]
    return state


def same(a, b):
    """Bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "checkpoint.pt"
    train(path)
    return content(path)


@pytest.fixture
def started(tmp_path):
    """A checkpoint of two epochs."""
    path = tmp_path / "checkpoint.pt"
    train(path, transform=Noisy(interrupt_at=2 + 2 * 5))
    return path


# ------------------------------------------------------------------------------- interruption


interrupted = set()


@pytest.mark.parametrize("tick", range(TICKS))
def test_ctrl_c_at_any_step_loses_the_running_epoch_only(tick, tmp_path, uninterrupted, capsys):
    path, model = tmp_path / "checkpoint.pt", mixture_vae()
    history = train(path, model, transform=Noisy(interrupt_at=tick))
    finished = max(0, (tick - 2) // 5)
    assert len(history) == finished
    assert f"holds {finished} of {SETTINGS['epochs']} epochs" in capsys.readouterr().out
    assert model.elbo(POINTS).value.isfinite().all()
    interrupted.add(tick)
    # "Running the cell again" meets the half-trained model, a new session a fresh one.
    # Before anything was written, only untrained weights could be met.
    train(path, mixture_vae(seed=tick) if tick and tick % 2 == 0 else model)
    assert same(content(path), uninterrupted)
    figures["Ctrl-C"] = f"at {len(interrupted)} of {TICKS} steps, continued to the same bits"


def test_ctrl_c_between_two_epochs(tmp_path, uninterrupted):
    def stop(history):
        if len(history) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.pt"
    assert len(train(path, progress=stop)) == 3
    assert len(content(path)["history"]["train"]) == 3
    train(path)
    assert same(content(path), uninterrupted)


def test_a_finished_run_is_not_trained_again(tmp_path):
    path, model = tmp_path / "checkpoint.pt", mixture_vae(seed=2)
    first = train(path)
    before = path.read_bytes()
    again = train(path, model, transform=Noisy(interrupt_at=0))  # no batch is drawn
    assert path.read_bytes() == before
    assert same(dict(model.state_dict()), dict(content(path)["model"]))
    np.testing.assert_array_equal(again.train, first.train)
    assert again.train_points == first.train_points == len(POINTS)


# -------------------------------------------------------------------- what is not to be resumed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": tiny_vae(latents=3, prior=lab.PriorMixture(3, 3))}, "model"),
        ({"model": tiny_vae(prior=lab.PriorMixture(2, 4))}, "parameters"),
        ({"model": tiny_vae(prior=lab.PriorMixture(2, 3), beta=2)}, r"beta \(1.0 there, 2.0 here"),
        (
            {"model": tiny_vae(prior=lab.PriorMixture(2, 3), analytic_kl=False)},
            r"analytic_kl \(True there, False here",
        ),
        ({"data": POINTS[:49], "test": POINTS}, r"train \(50 points \w+ there, 49 points"),
        ({"test": POINTS[:49]}, r"test \(50 points \w+ there, 49 points"),
        ({"data": 100 * POINTS, "test": POINTS}, r"train \(50 points"),
        ({"test": POINTS.flip(0)}, r"test \(50 points"),
        ({"kl_warmup": 2}, "kl_warmup"),
        ({"epochs": 6}, r"epochs \(5 there, 6 here\)"),
        ({"batch_size": 17}, "batch_size"),
        ({"lr": 0.02}, "lr"),
        ({"schedule": "constant"}, "schedule"),
        ({"seed": 1}, "seed"),
        ({"keep_points": 10}, "keep_points"),
        ({"transform": None}, "transform"),
        ({"precision": "bfloat16"}, "precision"),
        ({"lr": 0.02, "seed": 1}, r"lr .*, seed"),
    ],
)
def test_another_run_is_refused_with_what_differs(started, change, named):
    before = started.read_bytes()
    model = change.pop("model", None) or mixture_vae(seed=2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is .* another run.* in {named}"):
        train(started, model, **change)
    assert started.read_bytes() == before
    assert same(dict(model.state_dict()), weights)


PARTS = {  # pairs that have parameters of the same shapes
    "scales": [partial(lab.DecoderGaussian, scale=scale) for scale in (0.1, 0.5)],
    "a fixed scale and a learned one": [
        partial(lab.DecoderGaussian, scale=scale) for scale in (1.0, None)
    ],
    "decoders": [lab.DecoderBernoulli, lab.DecoderContinuousBernoulli],
    "layers": [
        lambda net: lab.DecoderGaussian(torch.nn.Sequential(net, torch.nn.Softplus(1)), 1.0),
        lambda net: lab.DecoderGaussian(torch.nn.Sequential(net, torch.nn.Softplus(2)), 1.0),
    ],
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_checkpoint_of_one_part_is_not_continued_with_another(kind, tmp_path):
    data = (POINTS > 0).float()
    first, second = (tiny_vae(decoder=decoder) for decoder in PARTS[kind])
    run(first, data, checkpoint=tmp_path / "run.pt")
    before = {name: value.clone() for name, value in second.state_dict().items()}
    with pytest.raises(ValueError, match="another run, which differs in model"):
        run(second, data, checkpoint=tmp_path / "run.pt")
    assert same(dict(second.state_dict()), before)


def test_damaged_files_are_refused_by_name_and_left_in_place(started):
    """1,000 flipped bits, and 100 files cut or grown."""
    whole, rng = started.read_bytes(), random.Random(0)
    damaged = [b"", whole[:-1], *(whole[: rng.randrange(len(whole))] for _ in range(58))]
    damaged += [whole + rng.randbytes(rng.randrange(1, 100)) for _ in range(40)]
    for _ in range(1000):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    model = mixture_vae()
    refused = 0
    for file in damaged:
        started.write_bytes(file)
        with pytest.raises(ValueError, match="is not a readable checkpoint") as error:
            train(started, model)
        refused += str(started) in str(error.value) and started.read_bytes() == file
    assert refused == len(damaged) == 1100
    figures["damaged checkpoints"] = f"{len(damaged):,}, of which {refused:,} refused"


def sealed(content):
    """With the checksum that ends a checkpoint, so that the rest alone can be to blame."""
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    "stranger",
    [
        {},
        [],
        torch.zeros(3),
        {"settings": 1, "history": {}},
        {"settings": {}, "history": {"train": 1}},
        {"settings": {}, "history": {"nobody": torch.zeros(1)}},
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, stranger):
    path = tmp_path / "checkpoint.pt"
    torch.save(stranger, path)
    path.write_bytes(sealed(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        train(path)


@pytest.mark.parametrize("writer", [pickle.dumps, torch.save])
def test_a_crafted_checkpoint_is_not_executed(tmp_path, writer):
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "executed"
    if writer is torch.save:
        torch.save({"settings": Executed(mark), "history": {}}, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(Executed(mark)))
        pickle.loads(path.read_bytes())
    mark.rmdir()  # so it was there: the file is a weapon indeed
    path.write_bytes(sealed(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        train(path)
    assert not mark.exists()


def test_a_crafted_history_is_not_executed(tmp_path):
    path, mark = tmp_path / "history.npz", tmp_path / "executed"
    np.savez(path, train=np.array([Executed(mark)], dtype=object))
    with np.load(path, allow_pickle=True) as arrays:
        arrays["train"]
    mark.rmdir()
    with pytest.raises(ValueError, match=r"history\.npz is not a history"):
        lab.History.load(path)
    assert not mark.exists()


# ----------------------------------------------------------------------------- failing disks


class Limited:
    """A file that does something else after ``left`` bytes."""

    def __init__(self, path, mode, left, then):
        self.file, self.left, self.then = open(path, mode), left, then  # noqa: SIM115

    def write(self, data):
        self.file.write(data[: self.left])
        if len(data) > self.left:
            self.file.flush()
            self.then()
        self.left -= len(data)
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("room", [0, 1, 3000, -1])
def test_a_disk_that_fills_up_during_the_write(room, started, monkeypatch, uninterrupted):
    before, model = started.read_bytes(), mixture_vae()
    limit = room if room >= 0 else len(before) - 1
    with monkeypatch.context() as patch:
        patch.setattr(vae_checkpoint, "open", lambda *a: Limited(*a, limit, full), raising=False)
        with pytest.raises(OSError, match=r"checkpoint\.pt .*No space left.* trained for 3 epochs"):
            train(started, model)
    assert started.read_bytes() == before
    assert os.listdir(started.parent) == [started.name]
    assert model.elbo(POINTS).value.isfinite().all()
    train(started, model)  # space was made
    assert same(content(started), uninterrupted)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_kernel_says_that_the_disk_is_full(started):
    before = started.read_bytes()
    started.with_name(started.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"checkpoint\.pt .*No space left"):
        train(started)
    assert started.read_bytes() == before


@posix
def test_a_read_only_folder(started, monkeypatch):
    before, model = started.read_bytes(), mixture_vae()
    # Root may write everywhere; another user could not even get here, so stand in the folder.
    monkeypatch.chdir(started.parent)
    started.parent.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with pytest.raises(OSError, match=r"checkpoint\.pt .*Permission denied.* 3 epochs"):
            train(Path(started.name), model)
    finally:
        if root:
            os.seteuid(0)
        started.parent.chmod(0o755)
    assert started.read_bytes() == before
    assert model.elbo(POINTS).value.isfinite().all()


def test_all_of_a_file_lies_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name with half of the content, or with none."""
    calls, fsync, rename = [], os.fsync, os.replace

    def noted_fsync(file):
        fsync(file)
        calls.append(("fsync", os.fstat(file).st_size))

    def noted_rename(source, target):
        calls.append(("rename", os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_rename)
    train(tmp_path / "checkpoint.pt", epochs=2)
    assert [name for name, _ in calls] == ["fsync", "rename"] * 3
    assert [size for _, size in calls[::2]] == [size for _, size in calls[1::2]]


# ------------------------------------------------------------------------------------ SIGKILL

KILLED = {"epochs": 40, "batch_size": 32}
MANY = torch.randn(800, 6, generator=torch.Generator().manual_seed(0))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def child(path, moment, pipe):
    """Train and tell each finished epoch; at a moment of the first write, if there is one, die."""
    if isinstance(moment, int):
        vae_checkpoint.open = lambda *a: Limited(*a, moment, die)
    elif moment == "before fsync":
        os.fsync = lambda _: die()
    elif moment == "before rename":
        os.replace = lambda *_: die()
    elif moment == "after rename":
        rename = os.replace
        os.replace = lambda *a: (rename(*a), die())
    pipe.send(0)
    train(path, data=MANY, **KILLED, progress=lambda history: pipe.send(len(history)))


def finished(pipe):
    """The last epoch that a child, now gone, said it had finished."""
    epoch = 0
    try:
        while pipe.poll():
            epoch = pipe.recv()
    except EOFError:
        pass
    return epoch


@posix
def test_20_kills_at_random_moments_lose_the_running_epoch_only(tmp_path):
    context = quick_processes()

    def start(path, moment=None):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(path, moment, there))
        process.start()
        there.close()
        here.recv()  # it begins
        return process, here

    reference, path = tmp_path / "reference.pt", tmp_path / "checkpoint.pt"
    process, _ = start(reference)
    process.join()
    assert process.exitcode == 0
    duration = torch.load(reference, weights_only=True)["history"]["seconds"].mean().item()

    rng, finished_epochs, saved, lost, kills = random.Random(0), 0, 0, 0, 0
    in_the_write = [rng.randrange(reference.stat().st_size // 2) for _ in range(7)]
    moments = [*in_the_write, "before fsync", "before rename", "after rename", *[None] * 10]
    rng.shuffle(moments)
    for moment in moments:
        process, pipe = start(path, moment)
        if moment is None:  # at any moment of an epoch
            time.sleep(rng.uniform(0, 2 * duration))
            process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        finished_epochs = max(finished_epochs, finished(pipe))
        before, saved = saved, 0
        if path.exists():  # whole, whatever was going on
            saved = len(torch.load(path, weights_only=True)["history"]["seconds"])
        lost += max(0, max(finished_epochs, before) - saved)
        assert saved <= max(finished_epochs, before) + 1
    assert lost == 0
    assert 3 <= saved < KILLED["epochs"]
    process, _ = start(path)
    process.join()
    assert process.exitcode == 0
    assert same(content(path), content(reference))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "reference.pt"]
    figures["SIGKILL"] = (
        f"{kills} kills, {kills - moments.count(None)} of them during the write, {lost} finished "
        f"epochs lost; the run then went on from epoch {saved}, to the same bits"
    )
