"""``fit`` and ``evaluate``: what the history says is what happened, and nothing else reaches in."""

import contextlib
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import Subset

import vae_helpers as lab
from tools import FullCovariance, generator_states, run, tiny_vae
from vae_kit import training
from vae_kit.batches import Batches
from vae_kit.evaluation import evaluate
from vae_kit.history import History
from vae_kit.networks import mlp
from vae_kit.optimization import GradientClipping, decay_start, learning_rates
from vae_kit.settings import Settings, default_batch_size
from vae_kit.training import fit

FIXED = functools.partial(lab.DecoderGaussian, scale=0.8)


def points(n=20, dims=6):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(0))


def vae(kind=lab.VAE, decoder=FIXED, **options):
    """A small model, the same each time."""
    torch.manual_seed(0)
    plain = tiny_vae(decoder=decoder)
    return kind(plain.encoder, plain.decoder, plain.prior, **options)


def noted(module):
    """A list that grows by the size of each batch, and the mode in which the module met it."""
    seen = []
    module.register_forward_hook(lambda m, given, _: seen.append((len(given[0]), m.training)))
    return seen


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def curves(history):
    return [curve.values for curve in (history.train, history.test, history.train_end)]


def seed_of(*key):
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def shuffled(n, *key):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*key)))


def plain_rate(lr, epochs, steps, step):
    """Up within 100 steps or an epoch; down over the last quarter of the epochs, one at least."""
    down = (epochs * steps - step) / (max(1, epochs // 4) * steps)
    return lr * min(1, (step + 1) / min(100, steps), down)


class PlainClipping:
    """Norms above three times the mean norm so far, or that of some hundred steps, are cut."""

    def __init__(self):
        self.usual, self.steps, self.clipped = 0.0, 0, 0

    def __call__(self, parameters):
        norms = [float(torch.linalg.vector_norm(p.grad)) for p in parameters]
        norm = math.hypot(*(n for n, p in zip(norms, parameters, strict=True) if p.ndim))
        longest = 3 * self.usual if self.steps else math.inf
        if norm > longest:
            self.clipped += 1
            for p in parameters:
                if p.ndim:
                    p.grad *= longest / norm
        self.steps += 1
        self.usual += (min(norm, longest) - self.usual) / min(self.steps, 100)


def plain_fit(model, x, test, *, epochs, batch_size, lr, seed=0, kl_warmup=0):
    """Rows of train, test and train after the run; rates of epochs; how many steps were clipped."""
    most = min(1000, 8 * batch_size)

    def evaluated(rows):
        torch.manual_seed(seed_of(seed, 0, 1))
        model.eval()
        with torch.no_grad():
            return torch.cat([-model.elbo(part).value for part in rows.split(most)])

    if getattr(model.decoder, "given_scale", None) == "learned":
        some = x[shuffled(len(x), seed)[:most]]
        torch.manual_seed(seed_of(seed))
        with torch.no_grad():
            size = some - model.eval().decoder(model.encoder(some).rsample()).mean
            model.decoder.raw_scale.copy_(size.square().mean().sqrt().log() / 20)
    adam = torch.optim.Adam(model.parameters(), lr, (0.9, 0.99), fused=True)
    clip, step, found = PlainClipping(), 0, ([], [evaluated(test)], [])
    for epoch in range(1, epochs + 1):
        batches = list(shuffled(len(x), seed, epoch).split(batch_size))
        if len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        row = torch.empty(len(x))
        torch.manual_seed(seed_of(seed, epoch, 1))
        model.train()
        for rows in batches:
            elbo = model.elbo(x[rows])
            row[rows] = -elbo.value.detach()
            beta = model.beta * min(1, (step + 1) / (kl_warmup * len(batches) or 1))
            loss = (beta * elbo.kl - elbo.log_likelihood).mean()
            if type(model).loss is not lab.VAE.loss:
                loss = model.loss(x[rows])
            adam.zero_grad()
            loss.backward()
            clip(list(model.parameters()))
            adam.param_groups[0]["lr"] = plain_rate(lr, epochs, len(batches), step)
            adam.step()
            step += 1
        found[0].append(row)
        found[1].append(evaluated(test))
    found[2].append(evaluated(x))
    rates = [plain_rate(lr, epochs, step // epochs, k) for k in range(step)]
    rates = np.reshape(rates, (epochs, -1)).mean(1)
    return [torch.stack(rows).numpy() for rows in found], rates, clip.clipped


class Squared(lab.VAE):  # a loss that neither is the −ELBO nor has its gradient's direction
    def loss(self, x):
        return self.elbo(x).value.square().mean() / 10


def with_dropout(kind=lab.VAE, **options):
    model = vae(kind, **options)
    model.encoder.net.append(nn.Dropout(0.3))
    return model


OUTLIER = points(60)
OUTLIER[7] *= 100
LOOPS = {  # the model, the points, the settings, and whether steps are clipped
    "a learned σ": (
        functools.partial(with_dropout, decoder=lab.DecoderGaussian), points(50),
        {"epochs": 5, "batch_size": 16, "lr": 0.01}, False,
    ),
    "a warm-up, and a last batch of one": (
        functools.partial(vae, decoder=lab.DecoderBernoulli, beta=2.0), (points(49) > 0).float(),
        {"epochs": 8, "batch_size": 16, "lr": 0.02, "seed": 3, "kl_warmup": 3}, False,
    ),
    "a loss of one's own": (
        functools.partial(with_dropout, Squared), points(40),
        {"epochs": 3, "batch_size": 8, "lr": 0.01, "seed": 1}, None,
    ),
    "an outlier": (vae, OUTLIER, {"epochs": 4, "batch_size": 4, "lr": 0.01}, True),
    "many steps": (vae, points(230), {"epochs": 2, "batch_size": 2, "lr": 0.005}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOPS)
def test_fit_is_a_plain_loop_to_the_last_bit(kind):
    make, x, settings, clips = LOOPS[kind]
    ours, theirs, test = make(), make(), x[: len(x) // 2]
    history = run(ours, x, test=test, **settings)
    plain, rates, clipped = plain_fit(theirs, x, test, **settings)
    assert all(map(np.array_equal, curves(history), plain))
    assert torch.equal(weights_of(ours), weights_of(theirs))
    np.testing.assert_allclose(history.lr, rates, rtol=1e-12)
    assert (history.seconds > 0).all()
    assert history.clipped.sum() == clipped
    assert clips is None or clips == (clipped > 0)
    assert history.kl[0] != history.kl[-1]
    seed = settings.get("seed", 0)
    kl = evaluate(ours, test, device="cpu", precision="float32", seed=seed).kl
    assert history.kl[-1] == pytest.approx(kl.mean().item(), rel=1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (3, 250), (4, 30), (8, 100), (23, 101)])
def test_the_rate_rises_stays_and_falls_to_zero_over_the_last_quarter(epochs, steps):
    rates = learning_rates(0.5, epochs, steps)
    truth = [plain_rate(0.5, epochs, steps, k) for k in range(epochs * steps)]
    np.testing.assert_allclose(rates, truth, rtol=1e-12)
    assert decay_start(epochs) == epochs - max(1, epochs // 4)
    constant = decay_start(epochs) * steps  # until it decays, it is the beginning of longer ones
    again = learning_rates(0.5, 2 * epochs, steps)
    np.testing.assert_array_equal(again[:constant], rates[:constant])


def clipped(norms, clip):
    """The norms that are left of gradients of these norms, one after the other."""
    weight, scalar, left = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(())), []
    for norm in norms:
        weight.grad, scalar.grad = torch.full((4,), norm / 2), torch.tensor(1e6)
        clip([weight, scalar])
        # A single number has a size of its own.
        assert scalar.grad == (1e6 if math.isfinite(norm) else 0)
        left.append(weight.grad.norm().item())
    return left


def test_gradients_longer_than_three_times_the_usual_norm_are_cut_to_that():
    rng = np.random.default_rng(0)
    for norms in (
        [2.0] * 5 + [6.0, 6.002, 1000.0, 100.0, 2.0],
        [1.0] * 300 + [20.0] * 400,  # a lasting change is followed
        [50.0, *rng.uniform(1, 2.5, 300)],
        list(rng.lognormal(0, 2, 400)),
    ):
        clip, plain, resumed = GradientClipping(), PlainClipping(), GradientClipping()
        truth = clipped(norms, plain)
        left = clipped(norms[:150], clip)
        vars(resumed).update(vars(clip))
        assert left + clipped(norms[150:], resumed) == pytest.approx(truth, rel=1e-5)
        assert (resumed.clipped, resumed.steps) == (plain.clipped, len(norms))
        assert resumed.usual_norm == pytest.approx(plain.usual, rel=1e-5)
    left = clipped([2.0] * 5 + [1000.0, 100.0], GradientClipping())
    assert left[5:] == pytest.approx([6.0, 3 * (5 * 2 + 6) / 6])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_becomes_zero_and_is_counted_but_not_remembered(bad):
    for before in (0, 10):
        clip = GradientClipping()
        left = clipped([2.0] * before + [bad] + [2.0] * 3, clip)
        assert left == pytest.approx([2.0] * before + [0.0] + [2.0] * 3)
        assert (clip.clipped, clip.usual_norm) == (1, pytest.approx(2))
        weight, scalar = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(()))
        weight.grad, scalar.grad = torch.ones(4), torch.tensor(bad)
        clip([weight, nn.Parameter(torch.zeros(2)), scalar])
        assert not weight.grad.any() and scalar.grad == 0
        assert clip.clipped == 2


class Jolted(lab.VAE):
    """A model whose gradient is a hundredfold at some of its steps, counted from 1."""

    def __init__(self, jolts):
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity())
        self.heights, self.jolts, self.steps = nn.Parameter(torch.ones(3)), jolts, 0

    def elbo(self, x):
        self.steps += self.training
        size = 100.0 if self.training and self.steps in self.jolts else 1.0
        return lab.Elbo(size * self.heights.sum().expand(len(x)), torch.zeros(len(x)))


def test_clipped_steps_are_counted_by_epoch_and_told_where_they_are_many():
    history = run(Jolted({7, 10, 12}), points(), batch_size=5, epochs=5)  # few: no warning
    assert history.clipped.tolist() == [0, 1, 2, 0, 0]
    with pytest.warns(UserWarning, match="6 of 20 steps.* lower lr") as told:
        run(Jolted({3, 6, 9, 12, 15, 18}), points(), batch_size=5, epochs=5)
    assert told[0].filename.endswith("tools.py"), "where fit was called"


class Weighted(Batches):
    """Batches whose parts count threefold, as if other processes had much smaller ones."""

    def load(self, batches):
        for batch in super().load(batches):
            yield batch._replace(share=3.0)


def test_a_part_of_a_batch_weighs_in_the_gradient_by_its_share_and_not_in_the_curve(monkeypatch):
    found = []
    for kind in (Batches, Weighted):
        monkeypatch.setattr(training, "Batches", kind)
        model = vae()
        found.append((run(model, points(), lr=1e-12).train.values, model))
    assert np.allclose(found[0][0], found[1][0], rtol=1e-6)
    for one, three in zip(*(model.parameters() for _, model in found), strict=True):
        torch.testing.assert_close(three.grad, 3 * one.grad)


@pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 1), (1, 128), (8, 8), (8, 9), (8, 7), (8, 3), (8, 1)]
)
def test_every_point_gets_its_own_value_whatever_the_batch_size(linear, n, batch_size):
    # With the posterior as q a point's −ELBO is −log p(x), so the truth of each row is known.
    x, model = linear.data(n), linear.vae(analytic_kl=False)
    history = run(model, Subset(x, range(n)), test=x, batch_size=batch_size, lr=1e-12)
    for rows in curves(history):
        assert np.allclose(rows, -linear.log_p(x), rtol=1e-5)
    assert history.train.values.shape == (1, n)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


AROUND = {
    "an autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients switched off": lambda: torch.set_grad_enabled(False),
    "float64 by default": float64_by_default,
    "a device by default": lambda: torch.device("meta"),
}
MIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))


def mixed(x):
    return x @ MIX + 0.1 * torch.randn(x.shape, dtype=x.dtype)


def surroundings():
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.get_default_device(), torch.is_autocast_enabled("cpu"), *generator_states(),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", AROUND)
def test_what_surrounds_the_call_changes_no_bit_and_is_left_as_it_was(kind, precision):
    found, data = [], points(40)
    for around in (contextlib.nullcontext, AROUND[kind]):
        model = vae(decoder=lab.DecoderGaussian)
        with around():
            before = surroundings()
            given = {"transform": mixed, "precision": precision, "device": "cpu"}
            history = fit(model, data, data[:9], epochs=2, lr=0.01, progress=False, **given)
            elbo = evaluate(model, data, **given)
            assert surroundings() == before
        found.append([*curves(history), *(t.numpy() for t in elbo), weights_of(model).numpy()])
    assert all(map(np.array_equal, *found))


def test_data_with_a_graph_train_as_without_and_their_network_gets_no_gradient():
    network = nn.Linear(6, 6)
    with torch.inference_mode():
        data = [network(points())]
    data += [network(points()), network(points()).detach()]
    first, *others = (curves(run(vae(), x, epochs=2)) for x in data)
    assert all(np.array_equal(a, b) for rows in others for a, b in zip(rows, first, strict=True))
    assert network.weight.grad is None


def test_frozen_weights_stay_and_a_model_of_them_alone_is_refused():
    model = vae()
    model.encoder.requires_grad_(False)
    before = vae()
    run(model, points(), epochs=2)
    assert torch.equal(weights_of(model.encoder), weights_of(before.encoder))
    assert not torch.equal(weights_of(model.decoder), weights_of(before.decoder))
    with pytest.raises(ValueError, match="gradient"):
        run(vae().requires_grad_(False), points())


def own_method(model):
    model.loss = lambda x: (model.decoder.net[0].weight - 3).square().sum()
    return model


@pytest.mark.parametrize("make", [lambda: vae(Squared), lambda: own_method(vae())])
def test_a_warm_up_is_refused_where_the_loss_is_one_s_own(make):
    with pytest.raises(ValueError, match="kl_warmup"):
        run(make(), points(), epochs=3, kl_warmup=1)


@pytest.mark.parametrize(
    ("error", "words", "wrong"),
    [
        (RuntimeError, "grad can be .*scalar", lambda elbo: -elbo.value),
        (FloatingPointError, "the loss is (-?inf|nan)", lambda elbo: elbo.value.mean() * math.inf),
    ],
)
def test_a_loss_that_is_no_finite_number_is_refused(error, words, wrong):
    class Wrong(lab.VAE):
        def loss(self, x):
            return wrong(self.elbo(x))

    with pytest.raises(error, match=f"^train, epoch 1, step 1: {words}"):
        run(vae(Wrong), points(), batch_size=5)


def test_a_sigma_that_has_moved_is_not_begun_anew():
    moved = vae(decoder=lab.DecoderGaussian)
    moved.decoder.raw_scale.data.fill_(0.1)
    run(moved, points(), lr=1e-12)
    assert moved.decoder.scale.item() == pytest.approx(math.exp(2) + lab.MIN_SCALE, rel=1e-5)


FAR = torch.cat([points(200)[:, :1] / 200, points(200)[:, 1:]], 1)
SIZES = {  # data, and the word of the warning, or None
    "ordinary": (points(200), None),
    "far from zero": (0.01 * points(200) + 0.2, "far"),
    "not so far": (100 * points(200) + 500, None),
    "one column small": (FAR, None),
    "one column large": (0.001 * points(200) * torch.tensor([500.0, 1, 1, 1, 1, 1]), "columns"),
    "columns small and large": (10 * FAR, "columns"),
    "a constant column": (points(200) * torch.tensor([1.0, 1, 0, 1, 1, 1]), None),
    "images": (500 * points(200).view(200, 2, 3) * torch.tensor([0.001, 1, 1]), None),
}


@pytest.mark.parametrize("kind", SIZES)
def test_data_that_one_sigma_cannot_fit_are_warned_of(kind, recwarn):
    data, word = SIZES[kind]
    run(tiny_vae(tuple(data.shape[1:])), data, batch_size=100)
    assert [word in str(w.message) for w in recwarn] == [True] * bool(word)
    assert all(w.filename.endswith("tools.py") for w in recwarn), "where fit was called"


@pytest.mark.parametrize(("scale", "warns"), [("learned", True), ("net", True), (0.001, False)])
def test_a_sigma_at_its_floor_is_warned_of(scale, warns, recwarn):
    model, last = vae(), nn.Linear(2, 12 if scale == "net" else 6)
    model.decoder = lab.DecoderGaussian(last, scale)
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.0] * 6 + [-20.0] * 6)[: len(last.bias)]
    run(model, torch.zeros(20, 6), epochs=3)
    told = ["floor" in str(w.message) and w.filename.endswith("tools.py") for w in recwarn]
    assert told == [True] * warns


class Exported(nn.Identity):  # it refuses to change its mode, as modules made by torch.export do
    def train(self, mode=True):
        raise NotImplementedError


def test_parts_from_elsewhere_train_and_what_is_no_part_is_told_in_words():
    model = vae()
    model.encoder.net.append(Exported())
    seen = noted(model.encoder)
    assert all(map(np.array_equal, curves(run(model, points())), curves(run(vae(), points()))))
    assert {training for _, training in seen} == {True, False}
    assert not model.training
    foreign = vae(decoder=lab.DecoderGaussian)  # whose σ begins at the residuals
    foreign.encoder = FullCovariance(mlp((6,), [8], 6), 2)
    assert len(run(foreign, points())) == 1
    for part in ("encoder", "decoder"):
        model = vae(decoder=lab.DecoderGaussian)
        setattr(model, part, getattr(model, part).net)
        with pytest.raises(TypeError, match=f"the {part} must give"):
            run(model, points())


def test_progress_is_a_bar_or_nothing_or_a_function_of_the_history(capsys, monkeypatch):
    lengths = []
    run(vae(), points(), epochs=3, progress=lambda history: lengths.append(len(history)))
    assert lengths == [1, 2, 3]
    run(vae(), points(), progress=True)  # TQDM_DISABLE is set in tests
    monkeypatch.delenv("TQDM_DISABLE")
    run(vae(), points(), progress=lengths.append)  # a function takes the place of the bar
    run(vae(), points(), progress=False)
    assert capsys.readouterr() == ("", "")
    run(vae(), points(), batch_size=5, epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "8/8" in shown and "-ELBO" in shown


@pytest.mark.parametrize("no", [False, np.False_])
def test_a_progress_function_that_returns_false_ends_training_after_that_epoch(no, tmp_path):
    def until(epoch):
        return lambda history: no if len(history) == epoch else None

    settings = {"epochs": 4, "checkpoint": tmp_path / "run.pt"}
    model = vae()
    whole = run(vae(), points(), epochs=4)
    history = run(model, points(), progress=until(2), **settings)
    assert (len(history), len(history.train), len(history.test)) == (2, 2, 3)
    assert len(history.train_end) == 0
    assert not model.training
    for answer in (None, 0, "", [], np.int64(0), True, np.True_, "no"):  # which are no False
        assert len(run(vae(), points(), epochs=2, progress=lambda _, given=answer: given)) == 2
    history = run(model, points(), **settings)  # the same call goes on
    assert all(map(np.array_equal, curves(history), curves(whole)))


SENSELESS = {
    "epochs": (0, -1, 1.5, None, "3"), "batch_size": (0, -3, 2.0),
    "lr": (0, -1e-3, math.nan, math.inf, "1e-3", None, True, 1j), "seed": (-1, 1.0, True, None),
    "kl_warmup": (-1, None, 3, 4), "keep_points": (0, 2.5), "precision": ("float16", torch.half),
}  # fmt: skip


@pytest.mark.parametrize("name", SENSELESS)
def test_a_setting_that_makes_no_sense_is_refused_by_name_before_anything_happens(name):
    model = vae()
    before = weights_of(model)
    for value in SENSELESS[name]:
        with pytest.raises(ValueError, match=name):
            run(model, points(), **{"epochs": 3, name: value})
    assert torch.equal(weights_of(model), before)


def test_numbers_of_numpy_and_pytorch_are_settings_and_end_in_the_file_as_pythons(tmp_path):
    settings = {"epochs": 3, "batch_size": 6, "seed": 3, "keep_points": 9, "kl_warmup": 2}
    histories = []
    for kind, number in ((int, float), (np.int64, np.float32), (torch.tensor, torch.tensor)):
        given = {name: kind(value) for name, value in settings.items()}
        run(vae(), points(), lr=number(0.25), **given).save(tmp_path / "history.npz")
        histories.append(History.load(tmp_path / "history.npz"))
        assert histories[-1].settings == Settings(lr=0.25, precision="float32", **settings)
        assert {type(getattr(histories[-1].settings, name)) for name in settings} == {int}
        assert all(map(np.array_equal, curves(histories[0]), curves(histories[-1])))


def test_without_a_batch_size_the_one_of_the_data_is_taken_and_recorded():
    sizes = {1: 32, 150: 32, 10_000: 32, 11_000: 64, 60_000: 256, 10**7: 256}
    assert {n: default_batch_size(n) for n in sizes} == sizes
    for n in (1, 70):
        history = run(vae(), points(n), test=points(4), batch_size=None)
        assert history.settings == Settings(epochs=1, batch_size=32, precision="float32", lr=4e-3)


def test_evaluate_gives_both_terms_for_every_point_in_order(linear):
    x, model = linear.data(2345), linear.vae(analytic_kl=False)  # more than two batches
    elbo = evaluate(model, x, device="cpu", precision="float32")
    assert elbo.kl.shape == elbo.log_likelihood.shape == (2345,)
    assert np.allclose(elbo.value, linear.log_p(x), rtol=1e-5)
    assert not elbo.value.requires_grad
    first, again, other = (evaluate(vae(), points(), device="cpu", seed=s).value for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("batch_size", "most"), [(4, 32), (10, 80), (300, 1000)])
def test_evaluation_in_fit_takes_a_few_training_batches_at_once(batch_size, most):
    model, data = vae(decoder=lab.DecoderGaussian), points(1100)
    seen = noted(model.encoder)
    run(model, data[:300], test=data, batch_size=batch_size)
    first, *evaluated = [size for size, training in seen if not training]
    assert first == min(most, 300), "where σ begins"
    # Before and after the epoch, and train and a look at σ in the end.
    assert sum(evaluated) == 2 * 1100 + 300 + most
    assert max(evaluated) == most
    assert max(size for size, training in seen if training) == batch_size


def test_evaluate_takes_as_many_points_at_once_as_it_is_told():
    model = vae().train()
    seen = noted(model.decoder)
    assert evaluate(model, points(), device="cpu", batch_size=8).kl.shape == (20,)
    assert seen == [(8, False), (8, False), (4, False)]
    assert model.training and model.decoder.training
    for wrong in ({"batch_size": 0}, {"batch_size": 2.0}, {"precision": "float16"}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            evaluate(model, points(), device="cpu", **wrong)


def place(number):  # data of which the fifth point holds this number
    data = points(20)
    data[4, 3] = number
    return data


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_told_with_place_and_term(number):
    steps = []

    def spy(x):
        if torch.is_grad_enabled():  # training
            steps.append(bool(x.isfinite().all()))
        return x

    with pytest.raises(FloatingPointError) as error:
        run(vae(), place(number), test=points(), batch_size=3, transform=spy)
    assert steps[-1] is False
    assert str(error.value).startswith(f"train, epoch 1, step {len(steps) - 1}: x ")  # a look first
    assert "1 of 3" in str(error.value)
    with pytest.raises(FloatingPointError, match=r"^test set, before training: x .* 1 of 20"):
        run(vae(decoder=lab.DecoderGaussian), points(), test=place(number))
    with pytest.raises(FloatingPointError, match=r"^evaluation: x .* 1 of 20"):
        evaluate(vae(), place(number), device="cpu")


@pytest.mark.parametrize(("part", "term"), [("decoder.net", "log_likelihood"), ("prior", "kl")])
def test_a_term_that_is_not_finite_is_named_with_epoch_and_step(part, term):
    model, passes = vae(), []
    nowhere = Normal(torch.full((2,), math.inf), torch.ones(2), validate_args=False)

    def blow(module, given, out):  # from the second step of the second epoch on
        passes.extend([1] * module.training)
        prior = Independent(nowhere, 1, validate_args=False)
        return None if len(passes) < 7 else prior if part == "prior" else out * math.inf

    model.get_submodule(part).register_forward_hook(blow)
    with pytest.raises(FloatingPointError, match=f"epoch 2, step 2: {term} .* 4 of"):
        run(model, points(), epochs=3, batch_size=4)


class Silent(lab.VAE):  # as a compiled model: its forward says with NaN what elbo says in words
    def forward(self, x):
        return lab.Elbo(torch.full((len(x),), math.nan), torch.zeros(len(x)))

    def elbo(self, x):
        raise ValueError("these data do not fit")


def test_what_a_compiled_model_cannot_say_is_said_in_words():
    with pytest.raises(ValueError, match=r"^test set, before training: these data do not fit"):
        run(vae(Silent), points())
