"""Checkpoints: whatever ends a run costs the running epoch, and another run is refused."""

import errno
import io
import os
import pickle
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

import vae_helpers as lab
from tools import Executed, quick_processes, run, tiny_vae
from vae_kit import checkpoint as checkpoint_module
from vae_kit.checkpoint import describe, digest, digest_of_weights
from vae_kit.data import scale
from vae_kit.parts import PriorMixture

SETTINGS = {"epochs": 5, "batch_size": 16, "lr": 0.01, "kl_warmup": 2}
POINTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and permissions")


def noise(x, std=0.1):
    return x + std * torch.randn_like(x)


def scaled(x, by=2.0, *, offset=0.0):
    return by * x + offset


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Noisy:
    """A transform that draws random numbers, and does something else at a call of it: Ctrl-C."""

    __slots__ = ("at", "calls", "then")  # by a dictionary it would be told apart

    def __init__(self, at=None, then=None):
        self.calls, self.at, self.then = 0, at, then

    def __call__(self, x):
        if self.calls == self.at:
            (self.then or press_ctrl_c)()
        self.calls += 1
        return x + 0.1 * torch.rand_like(x)

    def __repr__(self):  # whatever it counts, a checkpoint takes it for the same transform
        return "Noisy()"


def mixture_vae(seed=1):
    torch.manual_seed(seed)
    return tiny_vae(prior=PriorMixture(2, 3), beta=2.0)


def train(path=None, model=None, data=POINTS, **settings):
    given = SETTINGS | {"transform": Noisy(), "checkpoint": path} | settings
    return run(model or mixture_vae(), data, **given)


def content(path):  # all that a checkpoint holds but the durations
    state = torch.load(path, weights_only=True)
    del state["history"]["seconds"]
    return state


def same(a, b):  # bit for bit
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
def started(tmp_path):  # a checkpoint of two epochs
    path = tmp_path / "checkpoint.pt"
    assert len(train(path, progress=lambda history: len(history) < 2)) == 2
    return path


# A look at the data and an evaluation, per epoch 4 steps and an evaluation, train in the end.
@pytest.mark.filterwarnings("ignore:.*other weights")  # those of the epoch that was lost
@pytest.mark.parametrize("tick", [0, 1, 2, 4, 6, 7, 11, 12, 17, 22, 25, 26, 27])
def test_ctrl_c_at_any_step_loses_the_running_epoch_only(tick, tmp_path, uninterrupted, capsys):
    path, model = tmp_path / "checkpoint.pt", mixture_vae()
    history = train(path, model, transform=Noisy(tick))
    finished = min(4, max(0, (tick - 2) // 5))
    assert len(history) == finished
    assert f"holds {finished} of 5 epochs" in capsys.readouterr().out
    assert len(history.train_end) == 0 and not model.training
    # "Running the cell again" meets the half-trained model, a new session a fresh one.
    train(path, mixture_vae() if tick % 2 == 0 or tick < 2 else model)
    assert same(content(path), uninterrupted)


def test_a_finished_run_is_not_trained_again_and_other_weights_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path, model = tmp_path / "run.pt", mixture_vae()
    first = train("~/run.pt", model)  # a tilde is the home folder
    first.save("~/history.npz")
    assert sorted(os.listdir(tmp_path)) == ["history.npz", "run.pt"]
    before, trained = path.read_bytes(), digest_of_weights(model.state_dict())
    for given in (mixture_vae(), model):
        again = train(path, given, progress=pytest.fail)
        assert np.array_equal(again.train.values, first.train.values)
    other = mixture_vae(seed=2)
    with pytest.warns(UserWarning, match=r"run\.pt .*other weights"):
        train(path, other)
    assert digest_of_weights(other.state_dict()) == trained
    assert path.read_bytes() == before


class Counting(nn.Linear):  # a layer whose state is more than tensors
    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_a_state_that_is_more_than_tensors_is_kept(tmp_path):
    for epochs in (1, 3):
        model = mixture_vae()
        model.encoder.net.append(Counting(4, 4))
        train(tmp_path / "run.pt", model, progress=lambda h, last=epochs: len(h) < last)
        assert model.encoder.net[-1].calls == 4 * epochs


class FreeBits(lab.VAE):  # a subclass with a number of its own
    def __init__(self, *parts, floor=0.0, **options):
        super().__init__(*parts, **options)
        self.floor = floor

    def loss(self, x):
        elbo = self.elbo(x)
        return (elbo.kl.clamp_min(self.floor) - elbo.log_likelihood).mean()


def free_bits(floor):
    plain = mixture_vae()
    return FreeBits(plain.encoder, plain.decoder, plain.prior, floor=floor)


def other_parts(decoder=lab.DecoderGaussian, latents=2, components=3, **options):
    torch.manual_seed(2)
    prior = PriorMixture(latents, components)
    return tiny_vae(decoder=decoder, latents=latents, prior=prior, **{"beta": 2.0} | options)


CHANGES = {  # of a run, and the word by which the difference is named
    "latents": ({"model": other_parts(latents=3)}, "model"),
    "components": ({"model": other_parts(components=4)}, "model"),
    "beta": ({"model": other_parts(beta=3.0)}, "model"),
    "the KL": ({"model": other_parts(analytic_kl=False)}, "model"),
    "a scale": ({"model": other_parts(partial(lab.DecoderGaussian, scale=0.5))}, "model"),
    "a class of one's own": ({"model": free_bits(0.0), "kl_warmup": 0}, "model"),
    "fewer points": ({"data": POINTS[:49], "test": POINTS}, "train data"),
    "larger points": ({"data": 100 * POINTS, "test": POINTS}, "train data"),
    "another order": ({"test": POINTS.flip(0)}, "test data"),
    "kl_warmup": ({"kl_warmup": 1}, r"kl_warmup \(2 there, 1 here\)"),
    "epochs": ({"epochs": 6}, r"epochs \(5 there, 6 here\)"),
    "batch_size": ({"batch_size": 17}, "batch_size"),
    "keep_points": ({"keep_points": 10}, "keep_points"),
    "transform": ({"transform": partial(scaled, by=2.0)}, "transform"),
    "precision": ({"precision": "bfloat16"}, "precision"),
    "two at once": ({"lr": 0.02, "seed": 1}, "lr .*, seed"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_run_is_refused_with_what_differs(kind, started):
    change, word = CHANGES[kind]
    model = change.get("model") or mixture_vae(seed=2)
    before, weights = started.read_bytes(), digest_of_weights(model.state_dict())
    with pytest.raises(ValueError, match=rf"checkpoint\.pt .* differs in .*{word}"):
        train(started, model, **{k: v for k, v in change.items() if k != "model"})
    assert started.read_bytes() == before
    assert digest_of_weights(model.state_dict()) == weights


def test_models_with_the_same_weights_are_told_apart(tmp_path):
    settings = {"checkpoint": tmp_path / "run.pt", "kl_warmup": 0}
    train(model=free_bits(0.0), **settings)
    with pytest.raises(ValueError, match="differs in model"):
        train(model=free_bits(50.0), **settings)


def foreign_files(trace):
    strangers = {"nothing": {}, "a tensor": torch.zeros(3), "words": {"identity": {}}}
    strangers["a weapon"] = {"identity": Executed(trace)}
    files = {kind: partial(torch.save, stranger) for kind, stranger in strangers.items()}
    files["a pickle"] = lambda path: path.write_bytes(pickle.dumps(Executed(trace)))
    return files | {"an empty file": Path.touch}


@pytest.mark.parametrize("kind", foreign_files(None))
def test_files_of_another_kind_are_refused_by_name_left_alone_and_never_executed(kind, tmp_path):
    path, trace = tmp_path / "checkpoint.pt", tmp_path / "executed"
    foreign_files(trace)[kind](path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        train(path)
    assert path.read_bytes() == before
    assert not trace.exists()


def test_truncated_files_and_missing_folders_are_refused_by_name(started):
    whole, model = started.read_bytes(), mixture_vae()
    for length in (1, len(whole) // 3, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        started.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable"):
            train(started, model)
        assert started.read_bytes() == whole[:length]
    with pytest.raises(OSError, match=r"run\.pt .*No such file"):
        train(started.parent / "none" / "run.pt", progress=pytest.fail)


class Limited(io.FileIO):
    """A file that takes some bytes of what is written, and then does something else."""

    def __init__(self, path, mode, room, then):
        super().__init__(path, mode)
        self.room, self.then = room, then

    def write(self, data):
        super().write(data[: self.room])
        self.then()


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("room", [0, 3000, -1])
def test_a_disk_that_fills_up_during_the_write(room, started, monkeypatch, uninterrupted):
    before, model = started.read_bytes(), mixture_vae()
    limit = room if room >= 0 else len(before) - 1

    def small(*given):
        return Limited(*given, limit, full)

    monkeypatch.setattr(checkpoint_module, "open", small, raising=False)
    with pytest.raises(OSError, match=r"checkpoint\.pt .*No space left"):
        train(started, model)
    monkeypatch.delattr(checkpoint_module, "open")
    assert started.read_bytes() == before
    assert os.listdir(started.parent) == [started.name]
    with pytest.warns(UserWarning, match="other weights"):  # an epoch that no file knows
        train(started, model)
    assert same(content(started), uninterrupted)


def test_all_of_a_file_lies_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name with half of the content, or with none."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda file, _: sizes.append(-os.stat(file).st_size))
    train(tmp_path / "checkpoint.pt", epochs=3)
    assert sizes[::2] == [-size for size in sizes[1::2]]
    assert len(sizes) == 8 and min(sizes[::2]) > 0


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def child(path, moment):  # train, and die at a moment of the first write, or in the second epoch
    rename = os.replace
    if moment == "write":
        checkpoint_module.open = lambda *given: Limited(*given, 3000, die)
    elif moment == "renamed":
        os.replace = lambda *given: (rename(*given), die())
    elif moment != "training":
        setattr(os, moment, die)
    train(path, transform=Noisy(7, die) if moment == "training" else Noisy())


@posix
def test_kills_at_any_moment_lose_the_running_epoch_only(tmp_path, uninterrupted):
    path, context = tmp_path / "checkpoint.pt", quick_processes()
    context.set_forkserver_preload(["torch._dynamo", __name__])  # and all that it imports
    # What was trained until then is in the file, or the file is not there.
    for moment, saved in (
        ("write", None), ("renamed", 0), ("training", 1), ("fsync", 1), ("write", 1),
        ("replace", 1), ("renamed", 2),
    ):  # fmt: skip
        process = context.Process(target=child, args=(path, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        state = torch.load(path, weights_only=True) if path.exists() else None
        assert saved == (state and len(state["history"]["seconds"]))
    train(path)
    assert same(content(path), uninterrupted)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def called(function, x):
    return function(x)


class Shift:  # a callable object with settings, which its repr does not tell
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by

    shifted = __call__


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(6, 6)


def normalised(mean):
    net = nn.BatchNorm1d(6).eval()
    net.running_mean.fill_(mean)
    return net


traced = torch.fx.symbolic_trace
MEANS = np.arange(6.0)
DIFFERENT = {
    "None and a function": (None, noise),
    "functions": (noise, scaled),
    "an argument by name": (partial(noise, std=0.1), partial(noise, std=10)),
    "an argument and none": (noise, partial(noise, std=10)),
    "an argument by place": (partial(torch.mul, 2.0), partial(torch.mul, 3.0)),
    "names of arguments": (partial(scaled, by=2.0), partial(scaled, offset=2.0)),
    "functions of partials": (partial(noise, std=2.0), partial(scale, std=2.0)),
    "partials of partials": (partial(called, partial(scaled, by=2.0)), partial(called, scaled)),
    "arrays": (partial(torch.sub, other=MEANS), partial(torch.sub, other=MEANS + 1e-9)),
    "words": (Shift(np.array(["a", "b"])), Shift(np.array(["a", "c"]))),
    "tensors": (partial(torch.sub, other=POINTS), partial(torch.sub, other=POINTS.flip(0))),
    "objects": (Shift(1), Shift(2)),
    "numbers of two types": (Shift(1), Shift(1.0)),
    "objects that say their settings": (range(1), range(2)),
    "objects in objects": (Shift(Shift(1)), Shift(Shift(2))),
    "objects in lists": (Shift([1, {"a": Shift(2)}]), Shift([1, {"a": Shift(3)}])),
    "keys": (Shift({"a": 1}), Shift({"b": 1})),
    "methods": (Shift(1).shifted, Shift(2).shifted),
    "a method and its object": (Shift(1).shifted, Shift(1)),
    "weights": (linear(0), linear(1)),
    "weights of a method": (linear(0).forward, linear(1).forward),
    "weights in an object": (Shift(nn.Sequential(linear(0))), Shift(nn.Sequential(linear(1)))),
    "buffers": (normalised(0.0), normalised(1.0)),
    "kinds of modules": (nn.ReLU(), nn.SiLU()),
    "settings of modules": (nn.Softplus(1), nn.Softplus(2)),
    "traced modules": (traced(nn.Sequential(linear(0))), traced(nn.Sequential(linear(1)))),
    "traced code": (traced(nn.ReLU()), traced(nn.SiLU())),
    "built-in functions": (torch.bernoulli, torch.sigmoid),
    "torchvision's": (transforms.Normalize(0.1, 1.0), transforms.Normalize(0.2, 1.0)),
    "Compose": tuple(v2.Compose([v2.Normalize([m], [1.0])]) for m in (0.1, 0.2)),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_transforms_that_differ_are_told_apart_and_equal_ones_are_not(kind):
    first, second = map(describe, DIFFERENT[kind])
    assert first != second
    assert "? " not in first + second
    assert describe(DIFFERENT[kind][0]) == first


def test_equal_things_of_other_objects_are_described_alike():
    for make in (linear, Shift, normalised, lambda n: partial(torch.sub, other=MEANS.copy() * n)):
        assert describe(make(3)) == describe(make(3))
    circle = Shift(1)
    circle.by = [circle]
    assert describe(circle) == describe(circle)
    # Without the weights, which training changes: their shapes and kinds alone.
    assert describe(linear(0), weights=False) == describe(linear(1), weights=False)
    assert describe(linear(0), weights=False) != describe(nn.Linear(6, 7), weights=False)
    assert describe(linear(0), weights=False) != describe(linear(0).double(), weights=False)


UNCLEAR = {
    "a lambda": lambda x: 2 * x,
    "a function made by another": (lambda: lambda x: x)(),
    "an object without attributes": object(),
    "a lambda within a partial": partial(called, lambda x: 2 * x),
    "a lambda within an object": Shift([lambda x: x]),
    "torchvision's Lambda": transforms.Lambda(lambda x: x),
    "Compose of lambdas": transforms.Compose([transforms.Lambda(lambda x: x)]),
    "the newer Lambda": v2.Compose([v2.Lambda(lambda x: x)]),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_cannot_be_told_apart_is_refused_with_a_checkpoint_only(kind, tmp_path):
    said = describe(UNCLEAR[kind])
    assert said.startswith("? ") and "? " not in said[2:]
    with pytest.raises(ValueError, match="cannot tell the transform"):
        run(tiny_vae(), POINTS, transform=UNCLEAR[kind], checkpoint=tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    assert len(run(tiny_vae(), POINTS, transform=UNCLEAR["a lambda"])) == 1


def test_a_digest_is_of_numbers_order_type_and_shape_wherever_they_lie_in_memory():
    wide = torch.randn(2300, 12)
    last = wide + (torch.arange(2300) == 2299)[:, None]
    different = [
        wide, last, wide[:-1], wide.flip(0), wide.flip(1), 100 * wide, wide.double(), wide.half(),
        wide.view(2300, 2, 6), wide.view(6, 4600), torch.zeros(()), torch.ones(()),
        torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int32),
    ]  # fmt: skip
    assert len(set(map(digest, different))) == len(different)
    assert len(digest(wide)) == 16
    for x in (
        wide.clone(),
        wide.numpy(),
        wide.T.contiguous().T,
        torch.cat([wide, wide], 1)[:, :12],
    ):
        assert digest(x) == digest(nn.Parameter(wide))


def test_of_more_than_a_gibibyte_rows_from_all_over_count():
    # Windows into four megabytes of memory, each a byte further than the one before.
    base = torch.zeros(2**22, dtype=torch.uint8)
    rows = base.as_strided((2**22 - 300, 300), (1, 1))
    assert rows.nbytes > 2**30
    found = {digest(rows)}
    for place in (0, 2**21, 2**22 - 1000):
        base[place : place + 500] = 1  # every 419th row counts
        found.add(digest(rows))
        base[place : place + 500] = 0
    assert len(found) == 4
    assert digest(rows) in found
