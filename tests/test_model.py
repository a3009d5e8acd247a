"""The assignment's file against closed forms, quadrature and a model that is solvable exactly."""

import contextlib
import copy
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.integrate import quad
from scipy.special import expit, log_expit
from scipy.stats import norm
from torch import nn
from torch.distributions import Independent, Normal

import vae_helpers as lab
from tools import EVENTS, Fixed, Gives, case, log_prob_of, scale_of, summed, tiny_vae, within
from tools import generator_states as states
from vae_kit.diagnostics import latent_units, log_marginal
from vae_kit.evaluation import evaluate
from vae_kit.networks import mlp

FLOOR = 1e-3
SQUARE = 0.5 * math.log(2 * math.pi)  # −log N(z; 0, 1) = SQUARE + z²/2
WRONG = {"shift": 0.4, "widen": 1.5}  # a q that is not the posterior


def seeded(call, *given):
    torch.manual_seed(1)
    return call(*given)


@pytest.mark.parametrize("event", [(1,), (17,), (2, 3), (3, 4, 4)])
def test_location_is_the_first_half_of_the_channels_and_scale_the_second(event):
    rng, value, condition = case(event)
    loc, raw = 3 * rng.normal(size=(2, *value.shape))
    net = Fixed(np.concatenate([loc, raw], axis=1))
    expected = summed(norm(loc, scale_of(raw)).logpdf(value))
    for part in (lab.EncoderGaussian(net), lab.DecoderGaussian(net, "net")):
        assert np.allclose(log_prob_of(part, value, condition), expected, rtol=1e-12)
        assert (part(condition).batch_shape, part(condition).event_shape) == ((4,), event)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("scale", ["learned", 0.3, 1e-6])
def test_one_sigma_is_that_of_all_data(event, scale):
    rng, x, z = case(event)
    decoder = lab.DecoderGaussian(Fixed(rng.normal(size=x.shape)), scale).double()
    sigma = math.exp(-0.07 * 20) + FLOOR if scale == "learned" else scale
    if scale == "learned":
        assert decoder.scale.item() == 1 + FLOOR  # at first
        nn.init.constant_(decoder.raw_scale, -0.07)
    assert decoder.scale.item() == pytest.approx(sigma, rel=1e-14)
    loc = decoder.net.out.detach().numpy()
    expected = summed(norm(loc, sigma).logpdf(x))
    assert np.allclose(log_prob_of(decoder, x, z), expected, rtol=1e-12)
    p = decoder(z)
    assert (p.batch_shape, p.event_shape) == ((4,), event)
    assert np.allclose(p.mean.detach(), loc) and np.allclose(p.stddev.detach(), sigma)


@pytest.mark.parametrize("scale", [0.3, 1, np.float64(0.7), torch.tensor(0.3, dtype=torch.float64)])
def test_a_fixed_sigma_is_exact_whatever_the_weights_are_cast_to(scale):
    expected = -784 * (SQUARE + math.log(scale))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        decoder = lab.DecoderGaussian(Fixed(torch.zeros(1, 784)), scale).to(dtype)
        assert decoder.scale.item() == float(scale)
        found = decoder.log_prob(torch.zeros(1, 784), torch.zeros(1, 1))
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_learned_sigma_moves_by_twenty_rates_in_a_step():
    decoder = lab.DecoderGaussian(Fixed(torch.zeros(1, 3)))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    (-decoder.log_prob(torch.full((1, 3), 100.0), torch.zeros(1, 1))).sum().backward()
    optimizer.step()
    assert (decoder.scale - FLOOR).log().item() == pytest.approx(20 * 0.01, rel=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-2, 1.0, 300.0])
def test_the_learned_sigma_begins_at_the_residuals_and_only_if_nobody_moved_it(size):
    residuals = size * torch.randn(1000, 7)
    truth = residuals.double().square().mean().sqrt().item()
    decoder = lab.DecoderGaussian(nn.Identity())
    for again in (1, 5):
        decoder.start_from(again * residuals)
        assert decoder.scale.item() == pytest.approx(max(truth, FLOOR) + FLOOR, rel=1e-5)
    for scale, kept in (("learned", 1 + FLOOR), (0.3, 0.3)):  # frozen, and fixed
        decoder = lab.DecoderGaussian(nn.Identity(), scale).requires_grad_(False)
        decoder.start_from(residuals)
        assert decoder.scale.item() == pytest.approx(kept)
    lab.DecoderGaussian(nn.Identity(), "net").start_from(residuals)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("size", [0.01, 3.0, 1e4])
def test_bernoulli_is_that_of_coin_flips_and_so_is_its_gradient(event, size):
    rng, logits, z = case(event)
    given = torch.from_numpy(size * logits).float().requires_grad_()
    x, exact = rng.random(logits.shape) < 0.5, given.detach().double().numpy()
    decoder = lab.DecoderBernoulli(nn.Identity())
    found = decoder.log_prob(torch.from_numpy(x).float(), given)
    expected = summed(np.where(x, log_expit(exact), log_expit(-exact)))
    assert np.allclose(found.detach(), expected, rtol=1e-5, atol=1e-7 * x[0].size)
    found.sum().backward()
    assert np.allclose(given.grad, x - expit(exact), atol=1e-6)
    double = lab.DecoderBernoulli(Fixed(exact))
    assert np.allclose(log_prob_of(double, x.astype(float), z), expected, rtol=1e-12)
    assert np.allclose(double(z).mean.detach(), expit(exact), rtol=1e-12)


@pytest.mark.parametrize("raw", [-1e30, -200.0, 0.0, 1e15])
def test_no_scale_falls_below_the_floor(raw):
    assert lab.MIN_SCALE == FLOOR
    out = torch.tensor([[0.0, raw]], requires_grad=True)
    for part in (lab.EncoderGaussian(nn.Identity()), lab.DecoderGaussian(nn.Identity(), "net")):
        p = part(out)
        assert p.stddev.item() == pytest.approx(scale_of(raw), rel=1e-6)
        (gradient,) = torch.autograd.grad(p.log_prob(torch.ones(1, 1)).sum(), out)
        assert gradient.isfinite().all()
    learned = lab.DecoderGaussian(nn.Identity())
    nn.init.constant_(learned.raw_scale, -10.0)
    p = learned(torch.zeros(1, 4))
    assert p.stddev.unique().item() == np.float32(FLOOR)
    highest = -4 * (SQUARE + math.log(FLOOR))
    assert p.log_prob(torch.zeros(1, 4)).item() == pytest.approx(highest, rel=1e-6)


@pytest.mark.parametrize("shape", EVENTS)
def test_the_gaussian_prior_has_any_shape_and_is_standard(shape):
    for dtype, off in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
        prior = lab.PriorGaussian(shape[0] if len(shape) == 1 else shape).to(dtype)
        z, wide = torch.randn(7, *shape).double(), torch.promote_types(dtype, torch.float32)
        found = prior.log_prob(z.to(wide))
        assert found.dtype == wide
        assert np.allclose(found, summed(norm.logpdf(z)), rtol=off)
        assert (prior().batch_shape, prior().event_shape) == ((), shape)
        draws = prior().sample((20_000,)).numpy()
        assert within(draws, 0) and within(draws**2, 1)
        assert not [*prior.parameters()]  # N(0, I) is not learned
        assert {t.device.type for t in prior.to("meta").state_dict().values()} == {"meta"}


def test_a_condition_takes_the_dtype_of_the_weights_and_whole_numbers_stay_whole():
    assert lab.EncoderGaussian(nn.Linear(3, 4).double())(torch.ones(2, 3)).mean.dtype.itemsize == 8
    p = lab.DecoderGaussian(nn.Embedding(5, 3), 1.0)(torch.tensor([4, 0]))
    assert p.event_shape == (3,)
    assert lab.DecoderBernoulli(nn.Identity())(torch.ones(2, 3).half()).mean.dtype == torch.float32
    assert lab.DecoderBernoulli(nn.Identity())(torch.ones(2, 3).double()).mean.dtype.itemsize == 8


class DecoderLaplace(lab.Conditional):
    def distribution(self, out):
        loc, (scale, whole) = out
        assert (loc.dtype, scale.dtype, whole) == (torch.float32, torch.float32, 3)
        return Independent(D.Laplace(loc, 0.5), 1)


def test_a_rule_is_all_that_another_likelihood_takes_and_networks_may_have_two_heads():
    decoder = DecoderLaplace(Gives(lambda z: (z.bfloat16(), (z.half(), 3))))
    # Each number costs |x| / 0.5, and log 2 · 0.5 = 0.
    assert decoder.log_prob(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2)).item() == -4
    with pytest.raises(NotImplementedError):
        lab.Conditional(nn.Identity())(torch.zeros(1, 2))


# --------------------------------------------------------------------------- ELBO and KL


def test_with_the_posterior_as_q_every_single_sample_gives_log_p_exactly(linear):
    vae, x = linear.vae(analytic_kl=False), linear.data(50)
    assert np.allclose(vae.elbo(x).value.detach(), linear.log_p(x), rtol=1e-10)
    for copies in (1, 7):  # the loss does not depend on the size of the batch
        loss = vae.loss(x.repeat(copies, 1)).item()
        assert loss == pytest.approx(-linear.log_p(x).mean(), rel=1e-10)


@pytest.mark.parametrize("analytic_kl", [True, False])
def test_the_elbo_falls_short_of_log_p_by_the_kl_to_the_posterior(linear, analytic_kl):
    x = linear.data(1)
    elbo = linear.vae(**WRONG, analytic_kl=analytic_kl).elbo(x.expand(50_000, 5))
    gap = (1.5**2 + 0.4**2 / linear.variance - 1 - 2 * math.log(1.5)).sum() / 2
    assert within(elbo.value.detach(), linear.log_p(x) - gap)
    mean = (x.numpy() - linear.b) @ linear.gain.T + WRONG["shift"]
    variance = linear.variance * WRONG["widen"] ** 2
    kl = (0.5 * (mean**2 + variance - np.log(variance) - 1)).sum()
    assert within(elbo.kl.detach(), kl)
    assert np.allclose(elbo.kl.detach(), kl, rtol=1e-10) == analytic_kl


@pytest.mark.parametrize("analytic_kl", [True, False])
def test_latents_may_be_maps(analytic_kl):
    encoder = lab.EncoderGaussian(nn.Conv2d(1, 4, 4, 4))
    decoder = lab.DecoderBernoulli(nn.ConvTranspose2d(2, 1, 4, 4))
    vae = lab.VAE(encoder, decoder, lab.PriorGaussian((2, 2, 2)), analytic_kl=analytic_kl)
    x = torch.ones(20_000, 1, 8, 8).double()
    elbo, q = vae.double().elbo(x), vae.encoder(x[:1])
    mean, variance = q.mean.detach(), q.variance.detach()
    assert within(elbo.kl.detach(), 0.5 * (mean**2 + variance - variance.log() - 1).sum())
    assert elbo.value.shape == (20_000,)
    assert vae.sample(3).shape == vae.reconstruct(x[:3]).shape == (3, 1, 8, 8)


# q with one parameter w, ``(N, 1)``, a prior, w, and KL(w) in closed form or by quadrature.

STANDARD = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
TO_UNIT = [D.SigmoidTransform()]
UNIFORM = Independent(D.Uniform(torch.zeros(1), torch.ones(1)), 1)


def sigmoid_normal(w):
    return D.TransformedDistribution(Normal(w, 0.1 + 0 * w), TO_UNIT)


def expectation(function):
    return quad(lambda e: norm.pdf(e) * function(e), -12, 12)[0]


def logit_normal_kl(loc):
    """KL from the uniform distribution, σ of the logit being 0.1."""
    log_slope = expectation(lambda e: log_expit(loc + 0.1 * e) + log_expit(-loc - 0.1 * e))
    return -SQUARE - 0.5 - np.log(0.1) - log_slope


def relaxed_kl(w, own, prior):
    """KL between two binary concrete distributions of these temperatures, the other of logit 0.3,
    in the space of logits (Maddison et al. 2017)."""

    def integrand(noise):
        log_q = math.log(own) - noise + 2 * log_expit(noise)
        d = 0.3 - prior * (w + noise) / own
        return expit(noise) * expit(-noise) * (log_q - math.log(prior) - d - 2 * log_expit(-d))

    return quad(integrand, -50, 50, points=[-w, 0], limit=500)[0]


def relaxed(own, prior, pair=False):
    """A case of SAMPLED: single numbers, or pairs of them on a simplex, which is the same."""

    def make(temperature, logits):
        temperature = torch.tensor(temperature)
        if not pair:
            return Independent(D.RelaxedBernoulli(temperature, logits=logits), 1)
        return D.RelaxedOneHotCategorical(temperature, logits=torch.cat([logits, 0 * logits], -1))

    p = make(prior, torch.tensor([0.3]))
    return lambda w: make(own, w), p, 0.7, lambda w: relaxed_kl(w, own, prior)


def each(make):
    return lambda w: Independent(make(w), 1)


def full_covariance(w):
    zero, one = torch.zeros_like(w), torch.ones_like(w)
    rows = [torch.cat([w, zero], 1), torch.cat([0.5 * one, one], 1)]
    return D.MultivariateNormal(torch.cat([w, one], 1), scale_tril=torch.stack(rows, 1))


ONE = torch.ones(1)
SAMPLED = {
    "normal": (
        each(lambda w: Normal(0 * w, w)), STANDARD, 1.3, lambda w: -np.log(w) + w**2 / 2 - 0.5,
    ),
    "normal of full covariance": (  # ½ (tr S + m·m − D − log det S)
        full_covariance, Independent(Normal(torch.zeros(2), torch.ones(2)), 1), 1.3,
        lambda w: (w**2 + 0.25 + 1 + w**2 + 1 - 2 - 2 * np.log(w)) / 2,
    ),
    "uniform on [-w, w]": (
        each(lambda w: D.Uniform(-w, w)), STANDARD, 1.3,
        lambda w: -np.log(2 * w) + w**2 / 6 + SQUARE,
    ),
    "gamma": (
        each(lambda w: D.Gamma(3 + 0 * w, w)), each(lambda w: D.Gamma(2 * w, 1.5))(ONE), 2.0,
        lambda w: 1.5 - np.euler_gamma - np.log(2) + 2 * np.log(w / 1.5) + 4.5 / w - 3,
    ),
    "log-normal": (
        each(lambda w: D.LogNormal(w, 0.5 + 0 * w)), each(lambda w: D.LogNormal(0 * w, w))(ONE),
        -300.0, lambda w: (w**2 + 0.25 - 1) / 2 - np.log(0.5),
    ),
    "three logit-normals": (
        each(lambda w: sigmoid_normal(w.expand(-1, 3))),
        Independent(D.TransformedDistribution(Normal(torch.zeros(3), 1.0), TO_UNIT), 1), 40.0,
        lambda w: 3 * ((w**2 + 0.01 - 1) / 2 - np.log(0.1)),
    ),
    "logit-normal, transformed as a vector": (
        lambda w: D.TransformedDistribution(Independent(Normal(w, 0.1 + 0 * w), 1), TO_UNIT),
        D.TransformedDistribution(STANDARD, TO_UNIT), -40.0,
        lambda w: (w**2 + 0.01 - 1) / 2 - np.log(0.1),
    ),
    "logit-normal, uniform prior": (each(sigmoid_normal), UNIFORM, 2.0, logit_normal_kl),
    "Kumaraswamy, uniform prior": (
        each(lambda w: D.Kumaraswamy(w, 3 + 0 * w)), UNIFORM, 2.0,
        lambda w: np.log(3 * w) - 2 / 3 - (1 - 1 / w) * 11 / 6,
    ),
    **{f"relaxed Bernoulli at {t}": relaxed(*t) for t in ((0.5, 0.5), (0.1, 0.5), (0.01, 0.01))},
    **{f"relaxed one-hot at {t}": relaxed(*t, pair=True) for t in ((0.5, 0.2), (0.02, 0.5))},
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sampled_kl_is_right_in_value_and_gradient(name):
    make, prior, value, truth = SAMPLED[name]
    vae = tiny_vae(latents=1, analytic_kl=False, prior=Gives(lambda: prior))
    w = torch.full((50_000, 1), value, requires_grad=True)
    q = make(w)
    kl = vae.kl(q, q.rsample())
    assert kl.shape == (50_000,)
    assert within(kl.detach(), truth(value))
    kl.sum().backward()
    assert within(w.grad[:, 0], (truth(value + 1e-4) - truth(value - 1e-4)) / 2e-4)


@pytest.mark.parametrize("loc", [8.0, 15.0, 17.0, 100.0, -80.0, -100.0])
def test_a_logit_normal_near_an_end_is_right_or_refused(loc):
    # In float32, a sigmoid of more than 17 is 1 to rounding, one of less than −87 is 0.
    vae = tiny_vae(latents=1, prior=Gives(lambda: UNIFORM))
    q = Independent(sigmoid_normal(torch.full((5000, 1), loc)), 1)
    with contextlib.suppress(*[] if loc in (8, -80) else [ValueError]):
        assert within(vae.kl(q, q.rsample()), logit_normal_kl(loc))


def test_samples_that_are_rounded_to_an_end_are_refused():
    tiny = torch.full((5, 1), 1e-3)
    for q in (  # to 0, to 0 and to 1
        D.LogNormal(tiny - 300, 0.1), D.Kumaraswamy(tiny, 1.0), D.Kumaraswamy(1.0, tiny),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="rounded"):
            tiny_vae(latents=1).kl(Independent(q, 1), q.rsample())


def test_a_discrete_posterior_has_its_exact_kl_or_none():
    vae = tiny_vae(latents=3)
    logits = torch.tensor([0.2, -1.0, 0.5], dtype=torch.float64)
    vae.encoder = Gives(lambda w: D.OneHotCategoricalStraightThrough(logits=w), mlp(6, [8], 3))
    vae.prior = Gives(lambda: D.OneHotCategorical(logits=logits))
    vae.double()
    x = torch.randn(4, 6, dtype=torch.float64)
    kl = vae.elbo(x).kl
    log_q, log_p = vae.encoder.net(x).log_softmax(1), logits.log_softmax(0)
    expected = (log_q.exp() * (log_q - log_p)).sum(1)
    assert torch.allclose(kl, expected, rtol=1e-12)
    weights = [*vae.encoder.parameters()]
    found, truth = (torch.autograd.grad(k.sum(), weights) for k in (kl, expected))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, truth, strict=True))
    vae.loss(x).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in vae.parameters())
    for prior, analytic in ((vae.prior, False), (lab.PriorGaussian(3), True)):  # without a formula
        vae.prior, vae.analytic_kl = prior, analytic
        with pytest.raises(ValueError, match="discrete"):
            vae.elbo(x)


@pytest.mark.parametrize("beta", [0, 0.5, np.float32(4), torch.tensor(1000.0)])
def test_beta_weights_the_kl_in_the_loss_and_nothing_else(beta):
    vae, x = tiny_vae(beta=beta), torch.randn(5, 6)
    assert type(vae.beta) is float
    elbo, loss = seeded(vae.elbo, x), seeded(vae.loss, x)
    vae.beta = 1.0
    plain = seeded(vae, x)  # calling the model is its elbo
    assert torch.equal(torch.stack(elbo), torch.stack(plain))
    expected = -plain.log_likelihood.mean() + float(beta) * plain.kl.mean()
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain.objective(float(beta)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(plain.value, plain.log_likelihood - plain.kl)
    assert seeded(vae.loss, x).item() == pytest.approx(-plain.value.mean().item(), rel=1e-5)
    assert torch.equal(seeded(vae.eval(), x).value, plain.value)
    assert not torch.equal(vae(x).log_likelihood, plain.log_likelihood)  # it samples, always


@pytest.mark.parametrize("number", [-1, -1e-9, math.nan, math.inf, "1", True, None])
def test_what_is_no_weight_or_scale_is_refused_at_once(number):
    with pytest.raises(ValueError, match="beta"):
        tiny_vae(beta=number)
    with pytest.raises(ValueError, match="scale"):
        lab.DecoderGaussian(nn.Identity(), number)
    with pytest.raises(ValueError, match="scale"):
        lab.DecoderGaussian(nn.Identity(), 0)
    assert tiny_vae(beta=0).beta == 0


def encoder_gradients(vae, x, replicates, batch):
    """Independent estimates of ∂loss/∂(encoder's parameters), one row each."""
    rows = []
    for _ in range(replicates):
        gradient = torch.autograd.grad(vae.loss(x.expand(batch, 5)), [*vae.encoder.parameters()])
        rows.append(torch.cat([g.flatten() for g in gradient]).numpy())
    return np.array(rows)


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("analytic_kl", [True, False])
def test_both_gradients_of_the_loss_are_unbiased(linear, analytic_kl, beta):
    x = linear.data(1)
    vae = linear.vae(**WRONG, analytic_kl=analytic_kl, beta=beta)
    # The expected loss in closed form, written out once more, and its gradient by autograd.
    out = vae.encoder.net(x)[0]
    mean, scale = out[:2], nn.functional.softplus(out[2:]) + FLOOR
    w, residual = torch.from_numpy(linear.w), x[0] - torch.from_numpy(linear.b)
    error = (residual - w @ mean).square().sum() + (w.square().sum(0) * scale.square()).sum()
    kl = 0.5 * (mean.square() + scale.square() - 2 * scale.log() - 1).sum()
    loss = error / (2 * linear.s**2) + beta * kl
    exact = torch.autograd.grad(loss, [*vae.encoder.parameters()])
    expected = torch.cat([g.flatten() for g in exact]).numpy()
    assert within(encoder_gradients(vae, x, 100, 200), expected)


def test_the_path_gradient_has_no_variance_where_q_is_the_posterior(linear):
    x = linear.data(1)
    sticking = encoder_gradients(linear.vae(analytic_kl=False), x, 20, 1)
    assert np.abs(sticking).max() < 1e-10
    assert encoder_gradients(linear.vae(), x, 20, 1).std(0).max() > 0.1  # the usual one has


def test_gradients_by_functions_are_those_of_autograd():
    decoder = lab.DecoderBernoulli(mlp(2, [8], 6))
    z, x = torch.randn(2), torch.tensor([0.0, 1, 1, 0, 1, 0])

    def log_prob(x, z):
        return decoder.log_prob(x[None], z[None])[0]

    by_x, by_z = torch.func.grad(log_prob, (0, 1))(x, z)
    assert torch.allclose(by_x, decoder.net(z[None])[0], atol=1e-6)  # the logits
    z.requires_grad_()
    assert torch.allclose(by_z, torch.autograd.grad(log_prob(x, z), z)[0], rtol=1e-6)


def test_samples_have_the_mean_and_covariance_of_the_model(linear):
    vae = linear.vae()
    for mean, covariance in ((False, linear.covariance()), (True, linear.w @ linear.w.T)):
        centred = vae.sample(50_000, mean=mean).numpy() - linear.b
        assert within(centred, np.zeros(5))
        assert within(centred[:, :, None] * centred[:, None, :], covariance)


def test_reconstructions_are_the_posterior_s_prediction(linear):
    vae, x = linear.vae(), linear.data(1)
    predicted = (x.numpy() - linear.b) @ linear.gain.T @ linear.w.T + linear.b
    assert np.allclose(vae.reconstruct(x), predicted)
    noisy = vae.reconstruct(x.expand(50_000, 5), mean=False).numpy() - predicted
    covariance = (linear.w * linear.variance) @ linear.w.T + linear.s**2 * np.eye(5)
    assert within(noisy, np.zeros(5))
    assert within(noisy[:, :, None] * noisy[:, None, :], covariance)


class Nameless(Independent):
    """A standard normal that says nothing of its mean or support."""

    mean, support = D.Distribution.mean, D.Distribution.support

    def __init__(self, *shape):
        super().__init__(Normal(torch.zeros(shape), 1.0), 1)

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        assert type(sample_shape) is torch.Size  # some distributions take nothing else
        return super().sample(sample_shape)


def test_distributions_without_mean_or_support_serve_all_that_needs_neither():
    vae, x = tiny_vae(prior=Gives(lambda: Nameless(2))), torch.randn(4, 6)
    vae.encoder = Gives(lambda x: Nameless(len(x), 2))
    vae.decoder = Gives(lambda z: Nameless(len(z), 6))
    assert np.allclose(vae.elbo(x).value, norm.logpdf(x).sum(1))
    assert vae.sample(3).shape == (3, 6)
    assert vae.reconstruct(x, mean=False).shape == (4, 6)
    for look in (lambda: vae.sample(3, mean=True), lambda: vae.reconstruct(x)):
        with pytest.raises(ValueError, match="Normal has no mean"):
            look()
    vae.decoder = Gives(lambda z: Independent(D.Categorical(logits=z.new_zeros(len(z), 6, 5)), 1))
    assert vae.sample(3).shape == (3, 6)
    with pytest.raises(ValueError, match="Categorical has no mean"):  # PyTorch gives NaN for it
        vae.sample(3, mean=True)


@pytest.mark.parametrize(
    ("part", "make", "words"),
    [
        ("encoder", lambda x: x, "encoder .* Tensor"),
        ("decoder", lambda z: (z, z), "decoder .* tuple"),
        ("prior", lambda: torch.zeros(2), "prior .* Tensor"),
        ("encoder", lambda x: D.Binomial(3, x[:, 0].sigmoid()), "Binomial.*rsample"),
    ],
)
def test_a_part_that_gives_no_usable_distribution_is_named(part, make, words):
    vae = tiny_vae()
    setattr(vae, part, Gives(make))
    with pytest.raises(TypeError, match=words):
        vae.elbo(torch.randn(4, 6))


def test_a_batch_shape_that_is_not_the_part_s_own_is_refused():
    x = torch.zeros(4, 6)
    vae = tiny_vae()
    vae.encoder = Gives(lambda x: Normal(x[:, :2], 1.0))  # two numbers, not one event of two
    for call in (vae.elbo, vae.reconstruct):
        with pytest.raises(ValueError, match=r"encoder .*\(4,\).*\(4, 2\)"):
            call(x)
    vae = tiny_vae(decoder=lambda net: Gives(lambda out: Normal(out, 1.0), net))
    with pytest.raises(ValueError, match=r"decoder .*\(4,\).*\(4, 6\)"):
        vae.elbo(x)
    vae = tiny_vae(prior=Gives(lambda: Normal(torch.zeros(2), 1.0)))
    for call in (lambda: vae.elbo(x), lambda: vae.sample(3)):
        with pytest.raises(ValueError, match="prior"):
            call()


def test_events_that_do_not_meet_are_refused_with_both_shapes():
    x = torch.zeros(4, 6)
    for dim in (1, 3):
        with pytest.raises(ValueError, match=rf"prior.*\({dim},\).*\(2,\)"):
            tiny_vae(prior=lab.PriorGaussian(dim)).elbo(x)
    vae = tiny_vae(prior=lab.PriorGaussian(3))
    with pytest.raises(RuntimeError, match=r"DecoderGaussian.*\(5, 3\)"):
        vae.sample(5)
    vae.decoder = lab.DecoderGaussian(mlp(2, [], 5))
    with pytest.raises(ValueError, match=r"decoder.*\(5,\).*\(6,\)"):
        vae.elbo(x)
    with pytest.raises(RuntimeError, match=r"EncoderGaussian.*\(4, 7\)"):
        vae.elbo(torch.zeros(4, 7))
    for out in ((4, 5), (4, 3, 1), (2, 3)):
        with pytest.raises(ValueError, match="shape"):
            lab.DecoderGaussian(nn.Identity()).log_prob(torch.zeros(4, 3), torch.zeros(out))


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 3, 2)])
def test_an_odd_number_of_channels_is_refused_with_its_shape(shape):
    for part in (lab.EncoderGaussian(nn.Identity()), lab.DecoderGaussian(nn.Identity(), "net")):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            part(torch.zeros(shape))
    with pytest.raises(ValueError, match="tuple"):
        lab.EncoderGaussian(Gives(lambda x: (x, x)))(torch.zeros(shape))


@pytest.mark.parametrize("x", [torch.zeros(4, 6).long(), [[0.0] * 6], np.zeros((4, 6))])
def test_what_is_no_tensor_of_floats_is_refused(x):
    for call in (tiny_vae().elbo, tiny_vae().reconstruct):
        with pytest.raises(TypeError, match="x must be a tensor of floats"):
            call(x)


def test_a_coin_shows_0_or_1_and_nothing_else():
    decoder, logits = lab.DecoderBernoulli(nn.Identity()), torch.zeros(1, 4)
    fair = torch.tensor([-4 * math.log(2)])
    assert torch.allclose(decoder.log_prob(torch.tensor([[0.0, 1, 1, 0]]), logits), fair)
    for bad in (0.5, 2, -1, math.nan, math.inf, (0.5, 0.5, 0.5, -0.5)):  # Σ x − x² of these is 0
        x = bad if isinstance(bad, tuple) else (0, 1, bad, 1)
        with pytest.raises(ValueError, match="Bernoulli"):
            decoder.log_prob(torch.tensor([x], dtype=torch.float32), logits)


# ------------------------------------------------------------------- looking, exporting, alone


LOOKS = {
    "sample": lambda vae, x: vae.sample(3),
    "sample, means": lambda vae, x: vae.sample(3, mean=True),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "reconstruct, samples": lambda vae, x: vae.reconstruct(x, mean=False),
    "log_marginal": lambda vae, x: log_marginal(vae, x, 3),
    "evaluate": lambda vae, x: evaluate(vae, x, device="cpu").value,
    "latent_units": lambda vae, x: latent_units(vae, x).mean,
    "whole numbers, refused": lambda vae, x: vae.reconstruct(x.long()),
    "NaN, refused": lambda vae, x: log_marginal(vae, x * math.nan, 3),
}
DRAWS = {"sample", "sample, means", "reconstruct, samples", "log_marginal"}


@pytest.mark.parametrize("look", LOOKS)
def test_to_look_at_a_model_changes_nothing_in_it_and_is_done_in_evaluation_mode(look):
    vae, x = tiny_vae(), 20 * torch.randn(50, 6) + 5
    for part in (vae.encoder, vae.decoder):
        part.net.insert(1, nn.BatchNorm1d(8))
        part.net.append(nn.Dropout(0.5))
    vae.loss(x).backward()
    alone = copy.deepcopy(vae).eval()
    gradients = [p.grad.clone() for p in vae.parameters()]
    for mixed in (False, True):
        vae.train(not mixed)
        if mixed:  # a frozen encoder, say, of which one layer is trained on
            vae.decoder.net[1].train(), vae.encoder.net[3].train()
        modes, before = [module.training for module in vae.modules()], states()
        if "refused" in look:
            with pytest.raises((TypeError, FloatingPointError)):
                LOOKS[look](vae, x)
        else:
            LOOKS[look](vae, x)
            assert (states()[0] != before[0]) == (look in DRAWS)
            found, expected = (seeded(LOOKS[look], model, x) for model in (vae, alone))
            assert torch.equal(found, expected) and not found.requires_grad
        assert states()[1:] == before[1:]
        assert [module.training for module in vae.modules()] == modes
        same = zip(vae.state_dict().values(), alone.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
        assert all(map(torch.equal, gradients, (p.grad for p in vae.parameters())))
        assert {p.requires_grad for p in vae.parameters()} == {True}
        assert torch.is_grad_enabled()


def exported(module, x):
    batch = torch.export.Dim("batch", min=2, max=10_000)
    return torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of what it deprecates in itself
@pytest.mark.skipif(torch.__version__ < (2, 5), reason="export stops in torch.distributions")
def test_a_model_can_be_exported_and_compiled_for_any_size_of_batch():
    coins = tiny_vae(decoder=lab.DecoderBernoulli)
    fixed = tiny_vae(decoder=lambda net: lab.DecoderGaussian(net, 0.3))
    compiled = torch.compile(coins, backend="eager", fullgraph=True)
    x = torch.ones(5, 6)
    for vae, made in ((coins, exported(coins, x)), (fixed, exported(fixed, x)), (coins, compiled)):
        for n in (5, 9):
            x = (torch.rand(n, 6) > 0.5).float()
            found, expected = (torch.stack(tuple(seeded(m, x))) for m in (made, vae))
            torch.testing.assert_close(found, expected)
        x[2, 3] = 0.5  # a graph cannot branch on data: NaN marks the fault
        bad = made(x).log_likelihood.isnan()
        assert bad.tolist() == [vae is coins and i == 2 for i in range(9)]
    expected = fixed.reconstruct(x)  # and an exported network serves in a model
    fixed.encoder = lab.EncoderGaussian(exported(fixed.encoder.net, x))
    modes = [module.training for module in fixed.modules()]
    assert torch.allclose(fixed.reconstruct(x[:7]), expected[:7], atol=1e-6)
    assert [module.training for module in fixed.modules()] == modes


ALONE = """
import builtins, sys, torch
seen, real = set(), builtins.__import__
def spy(name, scope=None, *rest):
    if scope and scope.get("__name__") == "vae_helpers":
        seen.add(name.partition(".")[0])
    return real(name, scope, *rest)
builtins.__import__ = spy
sys.path.insert(0, sys.argv[1])
from vae_helpers import VAE, DecoderBernoulli, EncoderGaussian, PriorGaussian
assert seen - sys.stdlib_module_names == {"torch"}, seen
torch.manual_seed(0)
torch.set_num_threads(1)
x = (torch.randn(200, 1) > 0).float().expand(200, 6)
encoder = EncoderGaussian(torch.nn.Linear(6, 4))
vae = VAE(encoder, DecoderBernoulli(torch.nn.Linear(2, 6)), PriorGaussian(2))
for _ in range(300):
    loss = vae.loss(x)
    for weight, slope in zip(vae.parameters(), torch.autograd.grad(loss, [*vae.parameters()])):
        weight.data -= 0.01 * slope.sign()
assert vae.sample(3).shape == (3, 6)
print(loss.item())
"""


def test_the_file_alone_trains_and_samples_on_pytorch_and_nothing_else(tmp_path):
    shutil.copy(lab.__file__, tmp_path)
    run = [sys.executable, "-I", "-c", ALONE, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    # Six equal bits are one coin: no code of them costs less than log 2, six coins cost 4.2.
    assert math.log(2) < float(done.stdout) < 2
