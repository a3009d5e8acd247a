"""A second device computes what the CPU computes, for every decoder and every prior.

The device is the one that ``VAE_LAB_DEVICE`` names ("cuda", "mps"), else XLA where ``torch_xla`` is
installed, which with ``PJRT_DEVICE=CPU`` is a device of its own with real numbers. Where there is
neither, nothing here is run.

Weights are the same on both devices. Noise is drawn on the CPU and moved, so that both meet the
same numbers; where the device draws for itself, statistics are compared, or two runs on it.
"""

import copy
import functools
import importlib
import itertools
import os
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import vae_helpers as lab
from vae_kit import networks, parts
from vae_kit.diagnostics import latent_units, log_marginal
from vae_kit.evaluation import evaluate
from vae_kit.seeds import seeded
from vae_kit.training import fit

KIND = os.environ.get("VAE_LAB_DEVICE") or ("xla" if find_spec("torch_xla") else "")
if not KIND:
    pytest.skip("no second device: no torch_xla, and no VAE_LAB_DEVICE", allow_module_level=True)
if KIND == "xla":
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    # Thousands of small programs are compiled and run a few times each: no need to polish them.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what it deprecates in itself
        torch_xla = importlib.import_module("torch_xla")
    # One operation at a time: whole graphs, XLA's other way, take long to compile.
    torch_xla.experimental.eager_mode(True)

DEVICE = torch.device(KIND)
# PyTorch counts its devices at the first backward pass, and one that wakes later has no queue.
torch.zeros((), device=DEVICE)
torch.set_num_threads(1)

SHAPE, LATENTS, POINTS, BATCH, DRAWS = (1, 4, 4), 3, 80, 32, 400
DECODERS = {
    "Gaussian, learned σ": (lab.DecoderGaussian, 1),
    "Gaussian, σ = 0.3": (functools.partial(lab.DecoderGaussian, scale=0.3), 1),
    "Gaussian, σ from the network": (functools.partial(lab.DecoderGaussian, scale="net"), 2),
    "Bernoulli": (lab.DecoderBernoulli, 1),
    "continuous Bernoulli": (parts.DecoderContinuousBernoulli, 1),
    "categorical": (parts.DecoderCategorical, 4),
}
PRIORS = {
    "Gaussian": lab.PriorGaussian,
    "mixture": functools.partial(parts.PriorMixture, components=5),
    "autoregressive": functools.partial(parts.PriorAutoregressive, hidden=16),
}
# The largest deviation that is allowed: sums in float32 differ in their order, a step of Adam
# divides a gradient by its own size and so enlarges that, and training repeats it.
CLOSE, STEP, RUN = 1e-5, 1e-4, 1e-3
pairs = pytest.mark.parametrize(("decoder", "prior"), list(itertools.product(DECODERS, PRIORS)))


@pytest.fixture
def same_noise(monkeypatch):  # normal noise is drawn by the CPU, wherever it is needed
    def rsample(self, sample_shape=()):
        noise = torch.randn(torch.Size(sample_shape) + self.batch_shape)
        return self.loc + self.scale * noise.to(self.loc)

    monkeypatch.setattr(Normal, "rsample", rsample)
    monkeypatch.setattr(Normal, "sample", lambda *given: rsample(*given).detach())


def data(decoder, n=POINTS):  # points ``(n, *SHAPE)`` in the decoder's support
    levels = torch.randint(256, (n, *SHAPE), generator=torch.Generator().manual_seed(1)) / 255
    return levels.round() if decoder == "Bernoulli" else levels


def on_both(decoder, prior="Gaussian", **options):
    """The same model twice: on the CPU, and on the device."""
    torch.manual_seed(0)
    rule, channels = DECODERS[decoder]
    model = lab.VAE(
        lab.EncoderGaussian(networks.mlp(SHAPE, [16], 2 * LATENTS)),
        rule(networks.mlp(LATENTS, [16], (channels * SHAPE[0], *SHAPE[1:]))),
        PRIORS[prior](LATENTS),
        **options,
    )
    with torch.no_grad():  # first weights are small: nearly the same for all x and z
        for parameter in [*model.encoder.net.parameters(), *model.decoder.net.parameters()]:
            parameter *= 3
    return model, copy.deepcopy(model).to(DEVICE)


def fitted(model, x, device, **settings):  # rows of train and test of a short run
    given = {"epochs": 2, "batch_size": BATCH, "precision": "float32", "progress": False}
    history = fit(model, x, x[: len(x) // 2], device=device, **(given | settings))
    return [history.train.values, history.test.values, history.train_end.values]


def deviation(theirs, ours):
    """The largest difference, as a part of the largest value on the CPU, or of 1."""
    theirs, ours = (
        torch.cat([torch.as_tensor(t).detach().cpu().double().flatten() for t in parts])
        for parts in (theirs, ours)
    )
    assert theirs.isfinite().all() and ours.isfinite().all()
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1))


@pairs
def test_elbo_loss_gradient_and_a_step_are_those_of_the_cpu(decoder, prior, same_noise):
    x, found = data(decoder), []
    for model in on_both(decoder, prior, beta=0.7):
        x = x.to(next(model.parameters()).device)
        torch.manual_seed(3)
        terms, loss = model.elbo(x), model.loss(x)
        loss.backward()
        assert loss.device.type == terms.kl.device.type == x.device.type
        gradient = [p.grad.clone() for p in model.parameters()]
        torch.optim.Adam(model.parameters(), 1e-3).step()
        found.append(([*terms, loss], gradient, list(model.parameters())))
    for most, ours, theirs in zip((CLOSE, STEP, STEP), *found, strict=True):
        assert deviation(theirs, ours) < most


@pairs
def test_what_is_read_off_a_model_is_that_of_the_cpu(decoder, prior, same_noise):
    x = data(decoder)
    ours, theirs = on_both(decoder, prior)
    there = x.to(DEVICE)
    log_p = []
    for model, points in ((theirs, there), (ours, x)):
        torch.manual_seed(3)
        log_p.append(log_marginal(model, points, 30, chunk=512))
    assert deviation(*([part] for part in log_p)) < CLOSE
    assert deviation([theirs.reconstruct(there)], [ours.reconstruct(x)]) < CLOSE
    assert deviation(latent_units(theirs, there)[:2], latent_units(ours, x)[:2]) < CLOSE
    given = {"precision": "float32", "batch_size": 33}
    terms = [evaluate(m, x, device=on, **given) for m, on in ((theirs, DEVICE), (ours, "cpu"))]
    assert deviation(*terms) < CLOSE


@pairs
def test_a_run_is_that_of_the_cpu(decoder, prior, same_noise):
    x = data(decoder)
    ours, theirs = on_both(decoder, prior)
    assert deviation(fitted(theirs, x, DEVICE), fitted(ours, x, "cpu")) < RUN
    assert {p.device.type for p in theirs.parameters()} == {DEVICE.type}


@pairs
def test_samples_and_reconstructions_have_the_moments_of_the_cpu(decoder, prior):
    models = on_both(decoder, prior)
    x = data(decoder, 1).expand(DRAWS, *SHAPE)
    for draw in (
        lambda model: model.sample(DRAWS, mean=True),
        lambda model: model.sample(DRAWS),
        lambda model: model.reconstruct(x.to(next(model.parameters()).device), mean=False),
    ):
        drawn = [draw(model).cpu().double() for model in models]
        for power in (1, 2):
            moments = [(d**power).mean(0) for d in drawn]
            error = sum((d**power).var(0) / DRAWS for d in drawn).sqrt()
            # Six errors, since there are 16 numbers in each of many comparisons.
            assert ((moments[0] - moments[1]).abs() <= 6 * error + 1e-6).all()
    one, other = (models[1].sample(5).cpu() for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.skipif(KIND == "xla", reason="XLA has a generator of its own")
def test_the_seed_decides_what_the_device_draws_and_its_generator_is_given_back():
    with seeded(1):
        before, after = torch.rand((), device=DEVICE), torch.rand((), device=DEVICE)
    x, found, models = data("Bernoulli"), [], [on_both("Bernoulli", "mixture")[1] for _ in "123"]
    with seeded(1):
        assert torch.rand((), device=DEVICE) == before
        for model, seed in zip(models, (5, 5, 6), strict=True):
            found.append(fitted(model, x, DEVICE, seed=seed))
        assert torch.rand((), device=DEVICE) == after
    assert all(map(np.array_equal, *found[:2]))
    assert not any(map(np.array_equal, *found[1:]))


def test_an_autocast_around_the_call_changes_nothing(same_noise):
    found = []
    for around in (False, True):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=around):
            found.append(fitted(on_both("Gaussian, learned σ")[1], data("Gaussian"), DEVICE))
    assert all(map(np.array_equal, *found))


def test_a_resumed_run_is_the_whole_run(same_noise, tmp_path):
    x, given = data("Gaussian"), {"epochs": 3, "checkpoint": tmp_path / "run.pt"}
    models = [on_both("Gaussian, learned σ", "mixture")[1] for _ in range(3)]
    whole = fitted(models[0], x, DEVICE, epochs=3)
    fitted(models[1], x, DEVICE, **given, progress=lambda h: len(h) < 2)
    assert all(map(np.array_equal, fitted(models[2], x, DEVICE, **given), whole))
    # A checkpoint of one device goes on upon another.
    fitted(on_both("Gaussian, learned σ", "mixture")[0], x, "cpu", **given)


def test_faulty_data_are_refused_on_the_device():
    model = on_both("Bernoulli")[1]
    with pytest.raises(ValueError, match="only 0 and 1"):
        model.loss(torch.full((4, *SHAPE), 0.5, device=DEVICE))
    bad = torch.cat([torch.full((1, *SHAPE), torch.nan), data("Gaussian")])
    with pytest.raises(FloatingPointError, match="1 of 40 data points"):
        fitted(on_both("Gaussian, σ = 0.3")[1], bad, DEVICE)
