"""``fit`` and ``evaluate``: what the history says is what happened, for every kind of data."""

import copy
import functools
import math
import shutil
import time
import tracemalloc

import numpy as np
import pandas
import psutil
import pytest
import torch
from sklearn import datasets
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import vae_batches
import vae_data
import vae_helpers as lab
import vae_networks
from tools import StillEncoder, figures, generator_states, quick_processes, run, tiny_vae
from vae_distributions import MIN_SCALE

STILL = {"lr": 1e-12}  # training that changes nothing to speak of


def points(n=20, dims=6):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(0))


# ----------------------------------------------------------- what the history is made of


class Spied(lab.VAE):
    """A VAE that keeps what each pass in training mode was given and what it computed."""

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        self.seen = []

    def elbo(self, x):
        result = super().elbo(x)
        if self.training:
            self.seen.append((x, -result.value.detach()))
        return result


def test_the_train_row_is_what_the_training_pass_computed_in_the_order_of_the_data():
    plain = tiny_vae()
    vae = Spied(plain.encoder, plain.decoder, plain.prior)
    data = points(10)
    data[:, 0] = torch.arange(10)  # each point carries its place
    history = run(vae, data, epochs=3, batch_size=4)
    assert len(vae.seen) == 9  # the curve costs no further pass
    for epoch in range(3):
        x, values = (torch.cat(parts) for parts in zip(*vae.seen[3 * epoch :][:3], strict=True))
        row = torch.empty(10)
        row[x[:, 0].long()] = values
        assert np.array_equal(history.train[epoch], row.numpy())
    orders = [vae.seen[3 * epoch][0][:, 0].tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_each_epoch_visits_every_point_once():
    plain = tiny_vae()
    vae = Spied(plain.encoder, plain.decoder, plain.prior)
    data = points(11)
    run(vae, data, batch_size=4)
    visited = torch.cat([x for x, _ in vae.seen])
    assert sorted(map(tuple, visited.tolist())) == sorted(map(tuple, data.tolist()))
    assert [len(x) for x, _ in vae.seen] == [4, 4, 3]


def test_the_history_has_a_row_per_epoch_and_one_before_the_first():
    history = run(tiny_vae(), points(10), test=points(7), epochs=3)
    assert (history.train.shape, history.test.shape) == ((3, 10), (4, 7))
    assert history.train.dtype == history.test.dtype == np.float32
    assert len(history) == len(history.seconds) == 3
    assert (history.seconds > 0).all()
    assert np.allclose(history.train_mean, history.train.mean(1), rtol=1e-5)
    assert np.allclose(history.test_mean, history.test.mean(1), rtol=1e-5)
    assert np.allclose(history.test_se, history.test.std(1, ddof=1) / math.sqrt(7), rtol=1e-5)


def test_the_row_before_the_first_epoch_is_of_the_untrained_model():
    vae, data = tiny_vae(decoder=functools.partial(lab.DecoderGaussian, scale=0.5)), points()
    untrained = lab.evaluate(copy.deepcopy(vae), data, device="cpu", precision="float32")
    history = run(vae, data, epochs=2)
    assert np.array_equal(history.test[0], -untrained.value.numpy())
    trained = lab.evaluate(vae, data, device="cpu", precision="float32")
    assert np.array_equal(history.test[-1], -trained.value.numpy())
    assert not np.array_equal(history.test[0], history.test[-1])


def test_evaluation_meets_the_same_noise_in_each_epoch():
    history = run(tiny_vae(), points(), epochs=3, **STILL)
    assert np.allclose(history.test, history.test[0], atol=1e-5)
    assert not np.allclose(history.train[0], history.train[1], atol=1e-2)  # training does not


def test_the_curve_shows_the_elbo_whatever_beta_is():
    vae, histories = tiny_vae(), []
    for vae.beta in (1, 0, 50):
        histories.append(run(copy.deepcopy(vae), points(), **STILL))
    for history in histories[1:]:
        assert np.allclose(history.train, histories[0].train, atol=1e-5)
        assert np.allclose(history.test, histories[0].test, atol=1e-5)


class Weighted(vae_batches.Batches):
    """Batches whose parts count threefold, as if other processes had much smaller ones."""

    def load(self, batches):
        for batch in super().load(batches):
            yield batch._replace(share=3.0)


def test_a_part_of_a_batch_weighs_in_the_gradient_by_its_share_and_not_in_the_curve(monkeypatch):
    found = []
    for kind in (vae_batches.Batches, Weighted):
        monkeypatch.setattr(lab, "Batches", kind)
        torch.manual_seed(0)
        vae = tiny_vae()
        history = run(vae, points(), **STILL)
        found.append((history.train, [p.grad for p in vae.parameters() if p.ndim]))
    (curve, gradients), (same, larger) = found
    assert np.allclose(curve, same, rtol=1e-6)
    for one, three in zip(gradients, larger, strict=True):
        torch.testing.assert_close(three, 3 * one)


# -------------------------------------------------------------------------- a loss of one's own


class Squared(lab.VAE):
    """A loss that neither is the −ELBO nor has its gradient's direction."""

    def loss(self, x):
        return self.elbo(x).value.square().mean() / 10


class ImportanceWeighted(lab.VAE):
    """The bound of Burda et al. (2016) with five samples, which noise makes no estimate here."""

    def loss(self, x):
        q = self.encoder(x)
        z = q.rsample() + torch.linspace(-0.2, 0.2, 5).view(5, 1, 1)
        terms = [self.decoder(part).log_prob(x) + self.prior().log_prob(part) for part in z]
        weights = torch.stack(terms) - q.log_prob(z)
        return math.log(5) - weights.logsumexp(0).mean()


def own_loss(kind, **options):
    torch.manual_seed(0)
    plain = tiny_vae(decoder=functools.partial(lab.DecoderGaussian, scale=0.8))
    return kind(StillEncoder(plain.encoder.net), plain.decoder, plain.prior, **options)


@pytest.mark.parametrize("compile_it", [False, True])
@pytest.mark.parametrize("kind", [Squared, ImportanceWeighted])
def test_an_overridden_loss_is_trained_on_and_the_curve_still_tells_the_elbo(kind, compile_it):
    model, x = own_loss(kind), points()
    twin = copy.deepcopy(model)
    elbo = -twin.elbo(x).value.detach()
    optimizer = torch.optim.Adam(twin.parameters(), 0.01, (0.9, 0.99))
    ends = []
    for _ in range(3):  # an epoch is one step here, of which the order does not matter
        optimizer.zero_grad()
        ends.append(-twin.elbo(x).value.detach())
        twin.loss(x).backward()
        optimizer.step()
    if compile_it:
        model.compile(backend="eager")
    history = run(model, x, batch_size=20, epochs=3, lr=0.01, schedule="constant")
    torch.compiler.reset()
    for (name, mine), its in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5, msg=name)
        assert (mine - dict(own_loss(kind).named_parameters())[name]).abs().max() > 0.005
    assert np.allclose(history.test[0], elbo, rtol=1e-5)
    assert np.allclose(history.train, torch.stack(ends), rtol=1e-4)
    assert np.allclose(history.test[1:-1], history.train[1:], rtol=1e-4)


def test_the_loss_of_a_method_put_on_the_object_is_trained_on_too():
    model = own_loss(lab.VAE)
    model.loss = lambda x: (model.decoder.net[0].weight - 3).square().sum()
    run(model, points(), batch_size=20, epochs=60, lr=0.2)
    assert torch.allclose(model.decoder.net[0].weight, torch.tensor(3.0), atol=0.5)


def test_batch_norm_s_averages_move_once_a_step_though_the_loss_is_one_s_own():
    class Own(lab.VAE):
        def loss(self, x):
            return -self.elbo(x).value.mean()

    plain = tiny_vae()
    model = Own(plain.encoder, plain.decoder, plain.prior)
    model.encoder.net.insert(0, nn.BatchNorm1d(6, momentum=None))
    data = points(30)
    run(model, data, epochs=2, batch_size=10)
    norm = model.encoder.net[0]
    assert norm.num_batches_tracked == 6
    torch.testing.assert_close(norm.running_mean, data.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [lambda elbo: -elbo.value, lambda elbo: -elbo.value[:1]])
def test_a_loss_that_is_no_single_number_is_refused_in_words(wrong):
    class Wrong(lab.VAE):
        def loss(self, x):
            return wrong(self.elbo(x))

    with pytest.raises(
        ValueError, match=r"train, epoch 1, step 1: loss\(x\) must return one number.*got \(\d+,\)"
    ):
        run(own_loss(Wrong), points(), batch_size=5)


# -------------------------------------------------------------------------- β that warms up


class Rising(lab.VAE):
    """A VAE that keeps the β of every training step and of every evaluation."""

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        self.in_steps, self.in_evaluations = [], []

    def objective(self, elbo):
        self.in_steps.append(self.beta)
        return super().objective(elbo)

    def elbo(self, x):
        if not self.training:
            self.in_evaluations.append(self.beta)
        return super().elbo(x)


def rising(**options):
    torch.manual_seed(0)
    plain = tiny_vae()
    return Rising(plain.encoder, plain.decoder, plain.prior, **options)


@pytest.mark.parametrize("beta", [1.0, 4.0, 0.0])
def test_beta_rises_linearly_over_the_epochs_of_its_warm_up_and_then_stays(beta):
    model = rising(beta=beta)
    run(model, points(), batch_size=5, epochs=5, kl_warmup=3)  # four steps an epoch
    expected = [beta * min(1, step / 12) for step in range(1, 21)]
    assert model.in_steps == pytest.approx(expected)
    assert model.beta == beta
    plain = rising(beta=beta)
    run(plain, points(), batch_size=5, epochs=2)
    assert plain.in_steps == [beta] * 8


def test_while_beta_warms_up_the_gradient_follows_and_the_curve_is_of_the_elbo():
    histories = [run(rising(), points(), kl_warmup=k, epochs=3, **STILL) for k in (0, 3)]
    assert np.allclose(histories[0].train, histories[1].train, atol=1e-5)
    assert np.allclose(histories[0].test, histories[1].test, atol=1e-5)
    # A model whose KL term alone has a gradient: under β = 1/8 the step's gradient is an eighth.
    for warm, share in ((0, 1.0), (8, 1 / 8)):
        model = rising()
        model.decoder.net[0].weight.data.zero_()
        run(model, points(), batch_size=20, kl_warmup=warm, **STILL)
        mine = model.encoder.net[-1].bias.grad.clone()
        other = rising()
        other.load_state_dict(model.state_dict())
        other.zero_grad()
        other.elbo(points()).kl.mean().backward()
        assert torch.allclose(mine, share * other.encoder.net[-1].bias.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("end", ["Ctrl-C", "an error"])
def test_beta_is_the_model_s_own_again_after_an_interruption_in_the_warm_up(end):
    model, calls = rising(beta=2.0), []

    def stop(x):
        calls.append(model.beta)
        if len(calls) == 10:  # in the second epoch
            raise KeyboardInterrupt if end == "Ctrl-C" else RuntimeError
        return x

    try:
        run(model, points(), batch_size=5, epochs=5, kl_warmup=5, transform=stop)
    except RuntimeError:
        assert end == "an error"
    assert 0 < calls[-1] < 2
    assert model.beta == 2.0


@pytest.mark.parametrize("at", [4, 9, 12, 17])
def test_a_warm_up_that_is_resumed_ends_as_one_that_was_not_interrupted(at, tmp_path):
    settings = {"batch_size": 5, "epochs": 4, "kl_warmup": 3}
    whole, parts = rising(), rising()
    expected = run(whole, points(), **settings)

    left = []

    def stop(epochs=None):
        left.append(1)
        if len(left) == at:
            raise KeyboardInterrupt

    parts.register_forward_pre_hook(lambda *_: stop())
    path = tmp_path / "run.pt"
    interrupted = run(parts, points(), checkpoint=path, **settings)
    assert len(interrupted) < 4
    found = rising()
    history = run(found, points(), checkpoint=path, **settings)
    assert np.array_equal(history.train, expected.train)
    assert np.array_equal(history.test, expected.test)
    for mine, its in zip(found.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, its)
    with pytest.raises(ValueError, match=r"differs in kl_warmup \(3 there, 2 here\)"):
        run(rising(), points(), checkpoint=path, **settings | {"kl_warmup": 2})


def test_beta_decides_between_rate_and_distortion():
    kl = []
    for beta in (0.01, 1, 100):
        torch.manual_seed(0)
        vae = tiny_vae(beta=beta)
        run(vae, points(), epochs=40, lr=0.03)
        kl.append(lab.evaluate(vae, points(), device="cpu").kl.mean())
    assert kl[0] > kl[1] > 10 * kl[2]


# ------------------------------------------------------------------ every kind of data set


class Mapped(Dataset):
    """A map-style dataset that serves one item at a time."""

    def __init__(self, x, item=lambda row, i: row):
        self.x, self.item = x, item

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.item(self.x[i], i)


class Lists(Mapped):
    """One that serves whole index lists as well, as items."""

    def __getitems__(self, index):
        return [self[i] for i in index]


class Batches(Mapped):
    """One that serves whole index lists as a batch."""

    def __getitems__(self, index):
        return self.x[index], index


class Shifted(TensorDataset):
    """A TensorDataset that gives other items than its tensors hold."""

    def __getitem__(self, i):
        return (self.tensors[0][i] + 1,)


DATASETS = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "TensorDataset": lambda x: TensorDataset(x),
    "TensorDataset with labels": lambda x: TensorDataset(x, torch.arange(len(x))),
    "its subclass": lambda x: Shifted(x - 1),
    "map-style": Mapped,
    "map-style with labels": lambda x: Mapped(x, lambda row, i: (row, i)),
    "map-style of lists": lambda x: Mapped(x, lambda row, i: [row, i]),
    "map-style of arrays": lambda x: Mapped(x, lambda row, i: (row.numpy(), "a name")),
    "index lists": Lists,
    "index lists with labels": lambda x: Lists(x, lambda row, i: (row, i)),
    "whole batches": Batches,
    "subset": lambda x: Subset(Mapped(x), range(len(x))),
    "list": list,
    "a DataFrame": lambda x: pandas.DataFrame(x.numpy()),
    "single precision": lambda x: x.float(),
    "an array that is read-only": lambda x: np.frombuffer(x.numpy().tobytes()).reshape(x.shape),
    "an array backwards": lambda x: x.flip(0).numpy()[::-1],
    "an array of the other byte order": lambda x: x.numpy().astype(">f8"),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_data_set_gives_each_point_its_own_value(linear, kind):
    # With the posterior as q a point's −ELBO is −log p(x), so the truth of each row is known.
    x = linear.data(11)
    history = run(linear.vae(analytic_kl=False), DATASETS[kind](x), batch_size=4, **STILL)
    assert np.allclose(history.train, -linear.log_p(x), rtol=1e-5)
    assert np.allclose(history.test, -linear.log_p(x), rtol=1e-5)


@pytest.mark.parametrize("kind", ["map-style with labels", "whole batches"])
def test_workers_load_the_same(linear, kind):
    x = linear.data(11)
    data = DATASETS[kind](x)
    history = run(linear.vae(analytic_kl=False), data, batch_size=4, workers=2, **STILL)
    assert np.allclose(history.train, -linear.log_p(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "batch_size"), [(1, 1), (1, 128), (8, 8), (8, 9), (8, 7), (8, 3), (8, 1)]
)
def test_the_curve_does_not_depend_on_the_batch_size(linear, n, batch_size):
    x = linear.data(n)
    history = run(linear.vae(analytic_kl=False), x, batch_size=batch_size, **STILL)
    assert np.allclose(history.train, -linear.log_p(x), rtol=1e-5)
    assert history.train.shape == (1, n)


def test_a_transform_takes_raw_batches_into_the_model_s_space():
    raw, vae = torch.randint(0, 256, (10, 6), dtype=torch.uint8), tiny_vae()
    first = run(copy.deepcopy(vae), raw, transform=vae_data.scale)
    second = run(vae, raw / 255)
    assert np.array_equal(first.test, second.test)
    assert np.array_equal(first.train, second.train)


# ---------------------------------------------------------------------------- randomness


def curve(seed, **settings):
    torch.manual_seed(0)
    return run(tiny_vae(), points(), epochs=3, batch_size=6, seed=seed, **settings)


def test_the_same_seed_gives_the_same_curve_and_another_another():
    first, again, other = curve(0), curve(0), curve(1)
    assert np.array_equal(first.train, again.train)
    assert np.array_equal(first.test, again.test)
    assert not np.array_equal(first.train, other.train)
    assert not np.array_equal(first.test, other.test)


def fixed_vae(kind=lab.VAE):
    torch.manual_seed(0)
    plain = tiny_vae(decoder=functools.partial(lab.DecoderGaussian, scale=1.0))
    return kind(plain.encoder, plain.decoder, plain.prior)


def test_the_noise_of_training_is_new_in_each_epoch_and_with_each_seed():
    # Of a single point the order cannot differ, and the weights stay: only the noise is left.
    values = [run(fixed_vae(), points(1), epochs=3, seed=s, **STILL).train for s in (0, 1, 2, 0)]
    assert np.array_equal(values[0], values[3])
    assert len({round(float(value), 4) for value in np.concatenate(values[:3]).flat}) == 9


def test_the_order_of_training_is_new_in_each_epoch_and_with_each_seed():
    data, orders = points(12), []
    data[:, 0] = torch.arange(12)
    for seed in (0, 1, 2, 0):
        vae = fixed_vae(Spied)
        run(vae, data, epochs=3, batch_size=12, seed=seed)
        orders.append([tuple(x[:, 0].tolist()) for x, _ in vae.seen])
    assert orders[0] == orders[3]
    assert len({order for run in orders[:3] for order in run}) == 9
    assert all(sorted(order) == list(range(12)) for run in orders for order in run)


def test_the_curve_does_not_depend_on_what_was_drawn_before():
    vae = tiny_vae()
    histories = []
    for draws in (1, 100):
        torch.rand(draws)
        histories.append(run(copy.deepcopy(vae), points()))
    assert np.array_equal(histories[0].train, histories[1].train)


def test_training_and_evaluation_leave_the_global_generators_alone():
    vae = tiny_vae()
    before = generator_states()
    run(vae, Mapped(torch.zeros(9, 6, dtype=torch.uint8)), transform=vae_data.dequantize, epochs=2)
    lab.evaluate(vae, points(), device="cpu")
    assert generator_states() == before


# ------------------------------------------------------------------ precision, schedule


@pytest.mark.parametrize(
    ("decoder", "transform", "nats"),
    # The density falls by hundreds of nats in these epochs, and steeply.
    [
        (lab.DecoderGaussian, vae_data.dequantize, 1.0),
        (lab.DecoderBernoulli, vae_data.binarize, 0.1),
    ],
)
def test_the_bfloat16_curve_is_that_of_float32(decoder, transform, nats):
    digits = vae_data.load_images("digits")
    vae = tiny_vae((1, 8, 8), decoder=decoder)
    single, half = (
        run(
            copy.deepcopy(vae),
            digits.train,
            test=digits.test,
            epochs=3,
            transform=transform,
            precision=precision,
        )
        for precision in ("float32", "bfloat16")
    )
    assert not np.array_equal(single.train, half.train)  # it really is another precision
    assert single.test_mean[0] - single.test_mean[-1] > 5 * nats
    assert np.abs(single.train_mean - half.train_mean).max() < nats
    assert np.abs(single.test_mean - half.test_mean).max() < nats


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_float64_models_stay_float64(linear, precision):
    vae, x = linear.vae(analytic_kl=False), linear.data(5)
    run(vae, x, precision=precision, **STILL)
    assert {p.dtype for p in vae.parameters()} == {torch.float64}
    assert np.allclose(vae.elbo(x).value.detach(), linear.log_p(x), rtol=1e-6)


def test_after_training_the_networks_compute_in_float32_again_in_evaluation_mode():
    vae = tiny_vae()
    run(vae, points(), precision="bfloat16")
    seen = []
    vae.encoder.net[-1].register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    vae.elbo(points())
    assert seen == [torch.float32]
    assert not vae.training


class Climber(lab.VAE):
    """A model whose objective is one parameter: its gradient is constant, and so Adam moves it by
    the learning rate itself."""

    def __init__(self):
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity())
        self.height = nn.Parameter(torch.zeros(()))

    def elbo(self, x):
        return lab.Elbo(self.height.expand(len(x)), torch.zeros(len(x)))


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_learning_rate_follows_its_schedule(schedule):
    model, path = Climber(), [0.0]
    settings = {"epochs": 40, "batch_size": 20, "lr": 0.1, "schedule": schedule}
    run(model, points(), progress=lambda _: path.append(model.height.item()), **settings)
    moves = np.diff(path)
    if schedule == "constant":
        assert np.allclose(moves, 0.1, rtol=1e-4)
    else:
        peak = moves.argmax()
        assert moves[peak] == pytest.approx(0.1, rel=0.02)
        assert 0 < peak < 10
        assert (np.diff(moves[: peak + 1]) > 0).all()
        assert (np.diff(moves[peak:]) < 0).all()
        assert 0 < moves[-1] < 0.001


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_history_tells_the_mean_rate_of_each_epoch(schedule):
    model, path = Climber(), [0.0]
    settings = {"epochs": 10, "batch_size": 5, "lr": 0.1, "schedule": schedule}
    history = run(model, points(), progress=lambda _: path.append(model.height.item()), **settings)
    assert np.allclose(np.diff(path) / 4, history.lr, rtol=1e-3, atol=1e-6)  # four steps an epoch


class Jolted(lab.VAE):
    """A model whose gradient is a hundredfold at some of its steps, counted from 1."""

    def __init__(self, jolts):
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity())
        self.heights, self.jolts, self.steps = nn.Parameter(torch.ones(3)), jolts, 0

    def elbo(self, x):
        self.steps += self.training
        size = 100.0 if self.training and self.steps in self.jolts else 1.0
        return lab.Elbo(size * self.heights.sum().expand(len(x)), torch.zeros(len(x)))


def test_the_history_counts_the_bounded_steps_of_each_epoch():
    history = run(Jolted({7, 10, 12}), points(), batch_size=5, epochs=5)
    assert history.bounded.tolist() == [0, 1, 2, 0, 0]
    assert "gradient bounded in 3 steps" in repr(history)


def test_many_bounded_steps_are_told_and_few_are_not():
    run(Jolted({7}), points(), batch_size=5, epochs=5)  # a warning would be an error
    with pytest.warns(UserWarning, match=r"in 6 of 20 steps.* a lower lr may end better"):
        run(Jolted({3, 6, 9, 12, 15, 18}), points(), batch_size=5, epochs=5)


def shifted(x):
    return 30 * x + 7


def test_a_learned_sigma_begins_at_the_residuals_in_the_model_s_space():
    vae, data = tiny_vae(), points(200)
    x = shifted(data)
    residual = (x - vae.reconstruct(x)).square().mean().sqrt().item()
    run(vae, data, transform=shifted, **STILL)
    assert vae.decoder.scale.item() == pytest.approx(residual, rel=2e-3)
    assert residual == pytest.approx(30, rel=0.2)


def test_the_history_knows_the_first_weights():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(run(tiny_vae(), points()).settings["weights"])
    assert weights[0] == weights[1] != weights[2]
    assert len(weights[0].split()) == len(tiny_vae().state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_and_curve_stay_float32_where_weights_have_sixteen_bits(dtype):
    vae = tiny_vae(decoder=functools.partial(lab.DecoderGaussian, scale="net"))
    vae.decoder.net = vae_networks.mlp(2, [8], 12)
    vae.to(dtype)
    for parameter in vae.decoder.net.parameters():  # μ = 0 and σ = softplus(0) + floor, exactly
        nn.init.zeros_(parameter)
    data = 100 + points()
    sigma = math.log(2) + MIN_SCALE
    expected = -0.5 * (data.double() / sigma).square().sum(1) - 6 * math.log(
        sigma * math.sqrt(2 * math.pi)
    )
    elbo = lab.evaluate(vae, data, device="cpu")
    assert elbo.kl.dtype == elbo.log_likelihood.dtype == torch.float32
    assert np.allclose(elbo.log_likelihood, expected, rtol=1e-6)


def test_training_lowers_the_curve():
    history = run(tiny_vae(), points(50), epochs=30, lr=0.02, batch_size=10)
    assert history.train_mean[-1] < history.train_mean[0] - 0.5
    assert history.test_mean[-1] < history.test_mean[0] - 0.5


# ----------------------------------------------------------------------------- progress


def test_progress_is_a_bar_or_nothing_or_a_function_of_the_history(capsys, monkeypatch):
    run(tiny_vae(), points(), epochs=2)
    assert capsys.readouterr() == ("", "")
    lengths = []
    run(tiny_vae(), points(), epochs=3, progress=lambda history: lengths.append(len(history)))
    assert lengths == [1, 2, 3]
    run(tiny_vae(), points(), progress=True)  # TQDM_DISABLE is set in tests
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("TQDM_DISABLE")
    run(tiny_vae(), points(), progress=True)
    assert "step" in capsys.readouterr().err
    run(tiny_vae(), points(), progress=lengths.append)  # a function takes the place of the bar
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("no", [False, np.False_, np.bool_(0)])
def test_a_progress_function_that_returns_false_ends_training_after_that_epoch(no, tmp_path):
    def until(epoch):
        return lambda history: no if len(history) == epoch else None

    settings = {"epochs": 4, "checkpoint": tmp_path / "run.pt"}
    first, second = tiny_vae(), tiny_vae()
    second.load_state_dict(first.state_dict())
    whole = run(second, points(), epochs=4)
    history = run(first, points(), progress=until(2), **settings)
    assert (len(history), len(history.train), len(history.test)) == (2, 2, 3)
    assert not first.training
    assert len(run(first, points(), progress=until(3), **settings)) == 3
    history = run(first, points(), **settings)  # the same call goes on
    assert np.array_equal(history.train, whole.train)
    assert np.array_equal(history.test, whole.test)


@pytest.mark.parametrize(
    "answer", [None, 0, 0.0, "", [], (), np.int64(0), True, np.True_, "no", float("nan")], ids=repr
)
def test_no_other_answer_of_a_progress_function_ends_training(answer):
    assert len(run(tiny_vae(), points(), epochs=3, progress=lambda _: answer)) == 3


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"batch_size": -3},
        {"lr": 0},
        {"lr": -1e-3},
        {"lr": math.nan},
        {"lr": math.inf},
        {"schedule": "cosine"},
        {"seed": -1},
        {"seed": 1.0},
        {"seed": True},
        {"keep_points": 0},
        {"kl_warmup": -1},
        {"precision": "float16"},
        {"precision": torch.bfloat16},
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_name_before_anything_happens(setting):
    vae = tiny_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=next(iter(setting))):
        run(vae, points(), **setting)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_whole_numbers_of_numpy_are_numbers_too():
    settings = {"epochs": 2, "batch_size": 6, "seed": 3, "keep_points": 9, "kl_warmup": 1}
    histories = []
    for kind in (int, np.int64, np.uint8):
        torch.manual_seed(0)
        given = {name: kind(value) for name, value in settings.items()}
        histories.append(run(tiny_vae(), points(), **given))
        assert {k: histories[-1].settings[k] for k in settings} == settings
        assert all(type(histories[-1].settings[name]) is int for name in settings)
    assert np.array_equal(histories[0].train, histories[1].train)
    assert np.array_equal(histories[0].train, histories[2].train)


@pytest.mark.parametrize("empty", [torch.zeros(0, 6), [], Mapped(torch.zeros(0, 6))], ids=type)
def test_an_empty_data_set_is_refused_by_name(empty):
    with pytest.raises(ValueError, match="train holds no data points"):
        run(tiny_vae(), empty, test=points())
    with pytest.raises(ValueError, match="test holds no data points"):
        run(tiny_vae(), points(), test=empty)
    with pytest.raises(ValueError, match="no data points"):
        lab.evaluate(tiny_vae(), empty, device="cpu")


@pytest.fixture
def compiled():
    """Models whose forward pass is one graph, or an error, and the graphs that they ran as."""
    graphs = []

    def backend(graph, inputs):  # in place of a C++ compiler
        graphs.append(graph)
        return graph

    def model(decoder):
        torch.manual_seed(0)
        vae = tiny_vae(decoder=decoder)
        vae.elbo(torch.ones(2, 6))  # PyTorch looks up the formula of the KL term once, uncompiled
        vae.compile(backend=backend, fullgraph=True)
        return vae

    torch.compiler.reset()
    yield model, graphs
    torch.compiler.reset()


@pytest.mark.parametrize("decoder", [lab.DecoderGaussian, lab.DecoderBernoulli])
def test_a_compiled_model_is_one_graph_and_trains_on_the_same_curve(compiled, decoder):
    model, graphs = compiled
    data = (points() > 0).float()
    torch.manual_seed(0)
    plain = run(tiny_vae(decoder=decoder), data, epochs=2)
    assert np.allclose(run(model(decoder), data, epochs=2).train, plain.train, rtol=1e-4)
    assert len(graphs) == 2  # with gradients and without


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_compiled_with_the_option_of_fit_the_model_meets_the_same_noise(request):
    request.addfinalizer(torch.compiler.reset)
    vae = tiny_vae(decoder=lab.DecoderBernoulli)
    twin = copy.deepcopy(vae)
    twin.compile(options={"fallback_random": True})
    data = (points() > 0).float()
    plain, compiled = (run(model, data, epochs=2) for model in (vae, twin))
    assert np.allclose(compiled.train, plain.train, rtol=1e-4)


def test_a_compiled_model_refuses_data_with_the_same_words(compiled):
    model, _ = compiled
    words = r"epoch 1, step 2: .*transform=torch.bernoulli"
    data = torch.ones(8, 6)
    for vae in (tiny_vae(decoder=lab.DecoderBernoulli), model(lab.DecoderBernoulli)):
        seen = []

        def grey_at_the_second_batch(batch, seen=seen):
            seen.extend([len(batch)] * torch.is_grad_enabled())  # in training
            return batch * (0.5 if len(seen) == 2 else 1.0)

        with pytest.raises(ValueError, match=words):
            lab.fit(
                vae, data, torch.ones(2000, 6), epochs=1, batch_size=4, device="cpu",
                transform=grey_at_the_second_batch, progress=False,
            )  # fmt: skip


def test_data_of_another_shape_than_the_decoder_s_are_refused_with_both():
    vae = tiny_vae()
    vae.decoder = lab.DecoderGaussian(vae_networks.mlp(2, [], (2, 3)))
    with pytest.raises(ValueError, match=r"\(8, 6\).*\(2, 3\)"):
        run(vae, points(8))


def place(number):
    """Data of which the fifth point holds this number."""
    data = points(20)
    data[4, 3] = number
    return data


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_training_with_epoch_step_and_term(number):
    steps = []

    def spy(x):
        if torch.is_grad_enabled():  # training
            steps.append(bool(x.isfinite().all()))
        return x

    with pytest.raises(FloatingPointError) as error:
        run(tiny_vae(), place(number), test=points(), batch_size=3, transform=spy)
    assert steps[-1] is False
    expected = (
        f"train, epoch 1, step {len(steps)}: x holds 1 values that are NaN or infinite, in 1 of 3"
    )
    assert str(error.value).startswith(expected)


def test_a_number_that_is_not_finite_in_the_test_set_is_found_before_training():
    with pytest.raises(FloatingPointError, match=r"test set, before training: x .* 1 of 20 data"):
        run(tiny_vae(), points(), test=place(math.nan))


class Blowing(nn.Module):
    """A network whose output is no number any more from its nth training pass on."""

    def __init__(self, net, n):
        super().__init__()
        self.net, self.passes = net, n

    def forward(self, condition):
        out = self.net(condition)
        self.passes -= self.training
        return out * math.inf if self.passes <= 0 else out


@pytest.mark.parametrize(("part", "term"), [("decoder", "log_likelihood"), ("prior", "kl")])
def test_a_loss_that_is_not_finite_names_its_epoch_step_and_term(part, term):
    vae = tiny_vae()
    if part == "decoder":
        vae.decoder.net = Blowing(vae.decoder.net, 7)  # five steps an epoch: epoch 2, step 2
    else:
        vae.prior = BlowingPrior(7)
    with pytest.raises(FloatingPointError, match=f"epoch 2, step 2: {term} is not finite for 4 of"):
        run(vae, points(), epochs=3, batch_size=4)


class BlowingPrior(Blowing):
    def __init__(self, n):
        super().__init__(lab.PriorGaussian(2), n)

    def forward(self):
        self.passes -= self.training
        loc = torch.full((2,), math.inf if self.passes <= 0 else 0.0)
        normal = torch.distributions.Normal(loc, torch.ones(2), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)


# ------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(("calls", "epochs"), [(2, 0), (3, 0), (7, 0), (8, 1), (12, 1), (13, 2)])
def test_ctrl_c_leaves_a_usable_model_and_the_epochs_so_far(calls, epochs, capsys):
    # A look at the data and each evaluation are a call of the transform, an epoch of training four.
    left = iter(range(calls - 1))

    def press(x):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return x

    vae = tiny_vae()
    history = run(vae, points(), epochs=5, batch_size=5, transform=press, precision="bfloat16")
    assert (len(history), len(history.train), len(history.test_mean)) == (
        (epochs, epochs, epochs + 1) if calls > 2 else (0, 0, 0)
    )
    assert f"the history holds {epochs} of 5 epochs" in capsys.readouterr().out
    assert not vae.training
    assert vae.encoder.precision is None
    assert vae.elbo(points()).value.isfinite().all()
    assert repr(history).startswith(f"{epochs} epochs" if epochs else "History of 0 epochs")
    assert len(run(vae, points())) == 1


def test_ctrl_c_between_epochs_keeps_the_epoch_that_is_finished():
    def press(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    history = run(tiny_vae(), points(), epochs=5, progress=press)
    assert (len(history), len(history.train), len(history.test)) == (2, 2, 3)


def test_other_errors_are_not_swallowed_and_leave_the_model_in_float32():
    def fail(history):
        raise RuntimeError("mine")

    vae = tiny_vae()
    with pytest.raises(RuntimeError, match="mine"):
        run(vae, points(), progress=fail, precision="bfloat16")
    assert vae.encoder.precision is None


# ------------------------------------------------------------------------------ evaluate


def test_evaluate_gives_both_terms_for_every_point_in_order(linear):
    x = linear.data(2345)  # several evaluation batches, the last one smaller
    elbo = lab.evaluate(linear.vae(analytic_kl=False), x, device="cpu", precision="float32")
    assert elbo.kl.shape == elbo.log_likelihood.shape == (2345,)
    assert np.allclose(elbo.value, linear.log_p(x), rtol=1e-5)
    assert not elbo.value.requires_grad


def test_evaluate_repeats_itself_with_a_seed_and_varies_with_another():
    vae = tiny_vae()
    first, again, other = (
        lab.evaluate(vae, points(), device="cpu", seed=seed).value for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("data", "evaluation: x holds 1 values that are NaN or infinite, in 1 of 20 data points"),
        ("decoder", "evaluation: log_likelihood is not finite for 20 of 20 data points"),
        ("encoder", "evaluation: .*is not finite for 20 of 20 data points"),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_evaluate_names_what_is_not_finite(kind, words, bad):
    vae, data = tiny_vae(), points()
    if kind == "data":
        data = place(bad)
    else:
        with torch.no_grad():
            getattr(vae, kind).net[-1].bias[0] = bad
    with pytest.raises(FloatingPointError, match=words):
        lab.evaluate(vae, data, device="cpu")


class Sizes(nn.Module):
    """A decoder that notes how many points it is asked to decode, and in which mode."""

    def __init__(self, part):
        super().__init__()
        self.part, self.seen = part, []

    def forward(self, z):
        self.seen.append((self.training, len(z)))
        return self.part(z)


@pytest.mark.parametrize(("batch_size", "most"), [(4, 32), (10, 80), (300, 1000)])
def test_evaluation_in_fit_takes_a_few_training_batches_at_once(batch_size, most):
    vae, data = tiny_vae(), points(1100)
    vae.decoder = Sizes(vae.decoder)
    run(vae, data[:300], test=data, batch_size=batch_size)
    evaluated = [size for training, size in vae.decoder.seen if not training]
    assert sum(evaluated) == 2 * 1100  # before and after the epoch
    assert max(evaluated) == most
    assert max(size for training, size in vae.decoder.seen if training) == batch_size


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 8, 4]), (20, [20]), (99, [20])])
def test_evaluate_takes_as_many_points_at_once_as_it_is_told(batch_size, sizes):
    vae = tiny_vae()
    vae.decoder = Sizes(vae.decoder)
    elbo = lab.evaluate(vae, points(), device="cpu", batch_size=batch_size)
    assert [size for _, size in vae.decoder.seen] == sizes
    assert elbo.kl.shape == (20,)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size must be a whole number"):
            lab.evaluate(vae, points(), device="cpu", batch_size=wrong)


# ------------------------------------------------------------------------- the long run


EPOCHS = 500


def long_run():
    """Per epoch of a long training: resident bytes, CPU seconds, bytes traced."""
    measured = np.zeros((EPOCHS, 3))

    def measure(history):
        resident = psutil.Process().memory_info().rss
        traced = tracemalloc.get_traced_memory()[0]
        measured[len(history) - 1] = resident, time.process_time(), traced

    # Points large enough that a batch which is kept cannot hide in what the process has free.
    run(tiny_vae((64,)), points(100, 64), epochs=EPOCHS, keep_points=1, progress=measure)
    return measured.T


def long_runs(speaking):
    """In a process of its own, whose memory and CPU time nothing else takes."""
    torch.set_num_threads(1)
    resident, clock, _ = long_run()
    tracemalloc.start()  # which itself takes memory and time
    _, _, traced = long_run()
    speaking.send((resident, np.diff(clock), traced))


def test_five_hundred_epochs_neither_grow_in_memory_nor_slow_down():
    context = quick_processes()
    heard, speaking = context.Pipe(duplex=False)
    process = context.Process(target=long_runs, args=(speaking,))
    process.start()
    speaking.close()  # so that a process that fails is heard
    resident, seconds, traced = heard.recv()
    process.join()
    # What is kept of an epoch beyond the rows, whose room is taken at the start: three numbers.
    assert traced[-1] - traced[99] < 400 * 200 + 20_000
    assert resident[-1] - resident[99] < 500_000  # counted in pages, so less exact
    drift = np.median(seconds[-100:]) / np.median(seconds[50:150])
    assert drift <= 1.5
    figures[f"{EPOCHS} epochs"] = (
        f"memory +{(traced[-1] - traced[99]) / 1e3:.0f} kB traced, "
        f"{(resident[-1] - resident[99]) / 1e3:+.0f} kB resident; time per epoch x {drift:.2f}"
    )


def test_a_loss_that_is_not_finite_beside_an_elbo_that_is_stops_training():
    class Blown(lab.VAE):
        def loss(self, x):
            return super().loss(x) * math.inf

    with pytest.raises(FloatingPointError, match=r"step 1: the loss is (-?inf|nan), while the ELB"):
        run(own_loss(Blown), points(), batch_size=5)


@pytest.mark.parametrize(("name", "times"), [("wine", 1), ("iris", 10), ("diabetes", 0.1)])
def test_the_learned_sigma_does_as_well_as_the_best_of_fixed_ones(name, times):
    """A standardised table of scikit-learn, and a multiple of it: 0.05 nats per dimension."""
    rows = getattr(datasets, f"load_{name}")().data
    rows = np.random.default_rng(0).permutation(rows)
    cut, dims = len(rows) * 2 // 3, rows.shape[1]
    rows = times * (rows - rows[:cut].mean(0)) / rows[:cut].std(0)

    def fitted(scale):
        torch.manual_seed(0)
        encoder = lab.EncoderGaussian(vae_networks.mlp(dims, [64], 8))
        decoder = lab.DecoderGaussian(vae_networks.mlp(4, [64], dims), scale)
        vae = lab.VAE(encoder, decoder, lab.PriorGaussian(4))
        end = lab.fit(vae, rows[:cut], rows[cut:], epochs=30, progress=False).test_mean[-1]
        return end / dims, decoder.scale.item()

    learned, sigma = fitted(None)
    fixed = [fitted(sigma * 1.25**k)[0] for k in range(-3, 4)]
    assert 0 < np.argmin(fixed) < 6, "the best lies within the grid"
    assert learned < min(fixed) + 0.05


@pytest.mark.parametrize(("n", "size"), [(40, 32), (12_000, 64)])
def test_without_a_batch_size_the_one_of_the_data_is_taken_and_recorded(n, size, monkeypatch):
    sizes = []
    train = vae_batches.Batches.indices
    monkeypatch.setattr(
        vae_batches.Batches,
        "indices",
        lambda self, size, *seed: sizes.append(size) or train(self, size, *seed),
    )
    history = run(tiny_vae(), torch.zeros(n, 6), test=torch.zeros(4, 6), batch_size=None, lr=1e-9)
    assert history.settings["batch_size"] == size
    assert size in sizes
