"""The VAE against models whose every number is known."""

import contextlib
import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from torch import nn
from torch.distributions import (
    AffineTransform,
    Gamma,
    Independent,
    LogNormal,
    Normal,
    Pareto,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

import vae_diagnostics
import vae_distributions
import vae_helpers as lab
import vae_networks
from tools import ForeignPrior, FullCovariance, LinearGaussian, tiny_vae, within

WRONG = {"shift": 0.4, "widen": 1.5}  # a q that is not the posterior


def repeated(x, n):
    """The same data point n times: n independent estimates in one batch."""
    return x.expand(n, *x.shape[-1:])


def posterior_gap(model, shift, widen):
    """KL(q ‖ p(z|x)) in closed form: by how much the ELBO falls short of log p(x)."""
    per_dim = (widen**2 + shift**2 / model.variance - 1 - 2 * math.log(widen)) / 2
    return per_dim.sum()


# --------------------------------------------------------------------------- ELBO and KL


def test_with_the_posterior_as_q_every_single_sample_gives_log_p_exactly(linear):
    x = linear.data(50)
    value = linear.vae(analytic_kl=False).elbo(x).value.detach()
    assert np.allclose(value, linear.log_p(x), rtol=1e-10)


@pytest.mark.parametrize("analytic_kl", [True, False])
def test_the_elbo_falls_short_of_log_p_by_the_kl_to_the_posterior(linear, analytic_kl):
    x = linear.data(1)
    vae = linear.vae(**WRONG, analytic_kl=analytic_kl)
    value = vae.elbo(repeated(x, 100_000)).value.detach()
    expected = linear.log_p(x) - posterior_gap(linear, **WRONG)
    assert within(value, expected)
    assert value.mean() < linear.log_p(x)


def test_the_analytic_kl_is_the_closed_form_and_monte_carlo_agrees(linear):
    x = linear.data(1)
    exact, estimated = (
        linear.vae(**WRONG, analytic_kl=kind).elbo(repeated(x, 50_000)).kl.detach()
        for kind in (True, False)
    )
    mean = (x.numpy() - linear.b) @ linear.gain.T + WRONG["shift"]
    variance = linear.variance * WRONG["widen"] ** 2
    expected = (0.5 * (mean**2 + variance - np.log(variance) - 1)).sum()
    assert np.allclose(exact, expected, rtol=1e-10)
    assert (exact >= 0).all()
    assert within(estimated, expected)


def test_the_kl_to_a_mixture_is_the_integral_that_defines_it():
    prior = lab.PriorMixture(1, 3)
    vae = tiny_vae(latents=1, prior=prior).double()
    x = torch.ones(1, 6, dtype=torch.float64)
    q = vae.encoder(x)
    mean, deviation = q.mean.item(), q.stddev.item()
    loc = prior.loc.detach().numpy()[:, 0]
    spread = np.logaddexp(0, prior.raw_scale.detach().numpy()[:, 0]) + vae_distributions.MIN_SCALE

    def integrand(z):
        log_q, log_p = norm(mean, deviation).logpdf(z), logsumexp(norm(loc, spread).logpdf(z))
        return np.exp(log_q) * (log_q - log_p + math.log(3))

    expected = quad(integrand, mean - 12 * deviation, mean + 12 * deviation)[0]
    assert within(vae.elbo(repeated(x, 20_000)).kl.detach(), expected)


def test_a_full_covariance_posterior_has_its_own_kl():
    vae = tiny_vae().double()
    vae.encoder = FullCovariance(vae_networks.mlp(6, [8], 6), 2).double()
    x = torch.ones(1, 6, dtype=torch.float64)
    q = vae.encoder(x)
    mean, covariance = q.mean[0].detach().numpy(), q.covariance_matrix[0].detach().numpy()
    # KL(N(m, S) ‖ N(0, I)) = ½ (tr S + m·m − D − log det S)
    expected = (np.trace(covariance) + mean @ mean - 2 - np.linalg.slogdet(covariance)[1]) / 2
    assert within(vae.elbo(repeated(x, 20_000)).kl.detach(), expected)


def test_calling_the_model_is_its_elbo_in_train_and_in_eval_mode_alike():
    vae, x = tiny_vae(), torch.randn(5, 6)
    results = []
    for call in (vae, vae.elbo, vae.train(), vae.eval()):
        torch.manual_seed(1)
        results.append(call(x))
    assert all(torch.equal(torch.stack(r), torch.stack(results[0])) for r in results)
    assert torch.equal(results[0].value, results[0].log_likelihood - results[0].kl)
    assert not torch.equal(vae(x).log_likelihood, vae(x).log_likelihood)  # it samples, always


@pytest.mark.parametrize("copies", [1, 2, 7, 64])
def test_the_loss_does_not_depend_on_the_batch_size(linear, copies):
    x = linear.data(3)
    loss = linear.vae(analytic_kl=False).loss(x.repeat(copies, 1))
    assert loss.item() == pytest.approx(-linear.log_p(x).mean(), rel=1e-10)


@pytest.mark.parametrize("event", [(4,), (2, 3), (1, 8, 8)])
def test_the_log_likelihood_is_summed_over_the_event_and_not_averaged(event):
    x = torch.randn(3, *event)
    net = vae_networks.mlp(2, [], event)
    nn.init.zeros_(net[0].weight), nn.init.zeros_(net[0].bias)
    vae = tiny_vae(event)
    vae.decoder = lab.DecoderGaussian(net, scale=1.0)
    expected = norm.logpdf(x.numpy()).reshape(3, -1).sum(1)
    assert np.allclose(vae.elbo(x).log_likelihood.detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("off", [0.0, -2e-6, 2e-6])
def test_every_grey_level_is_told_from_its_neighbours_whatever_its_rounding(dtype, off):
    # One histogram that all pixels share, of which level k has the logit −k/4.
    decoder = lab.DecoderCategorical(nn.Identity(), 1).to(dtype)
    logits = -torch.arange(256, dtype=dtype) / 4
    decoder.histograms.data = logits[None] / 10
    x = (torch.arange(256).to(dtype) / 255 + off).clamp(0, 1)
    found = decoder.log_prob(x[:, None], torch.zeros(256, 1, dtype=dtype)).detach()
    expected = logits.numpy() - logsumexp(logits.numpy())
    assert np.allclose(found, expected, atol=1e-3)


# -------------------------------------------------------------------------------- β


@pytest.mark.parametrize("beta", [0, 0.5, 1, 4, 1000.0])
def test_beta_weights_the_kl_in_the_loss_and_nothing_else(beta):
    vae, x = tiny_vae(beta=beta), torch.randn(5, 6)
    results = {}
    for name, call in {"loss": vae.loss, "elbo": vae.elbo}.items():
        torch.manual_seed(1)
        results[name] = call(x)
    vae.beta = 1.0
    torch.manual_seed(1)
    plain = vae.elbo(x)
    assert torch.equal(torch.stack(results["elbo"]), torch.stack(plain))
    expected = -plain.log_likelihood.mean() + beta * plain.kl.mean()
    assert results["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("beta", [-1, -1e-9, math.nan, math.inf, "1", True])
def test_a_beta_that_is_no_weight_is_refused_at_once(beta):
    with pytest.raises(ValueError, match="beta must be"):
        tiny_vae(beta=beta)
    vae = tiny_vae(beta=2)
    with pytest.raises(ValueError, match="beta must be"):
        vae.beta = beta
    assert vae.beta == 2.0


# --------------------------------------------------------------------------- gradients


def encoder_gradients(vae, x, replicates, batch):
    """Independent estimates of ∂loss/∂(encoder's parameters), one row each."""
    rows = []
    for _ in range(replicates):
        gradient = torch.autograd.grad(vae.loss(repeated(x, batch)), [*vae.encoder.parameters()])
        rows.append(torch.cat([g.flatten() for g in gradient]).numpy())
    return np.array(rows)


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("analytic_kl", [True, False])
def test_both_gradients_of_the_loss_are_unbiased(linear, analytic_kl, beta):
    x = linear.data(1)
    vae = linear.vae(**WRONG, analytic_kl=analytic_kl, beta=beta)
    # The expected loss in closed form, written out once more, and its gradient by autograd.
    out = vae.encoder.net(x)[0]
    mean, scale = out[:2], nn.functional.softplus(out[2:]) + vae_distributions.MIN_SCALE
    w, residual = torch.from_numpy(linear.w), x[0] - torch.from_numpy(linear.b)
    error = (residual - w @ mean).square().sum() + (w.square().sum(0) * scale.square()).sum()
    kl = 0.5 * (mean.square() + scale.square() - 2 * scale.log() - 1).sum()
    expected_loss = error / (2 * linear.s**2) + beta * kl
    exact = torch.autograd.grad(expected_loss, [*vae.encoder.parameters()])
    expected = torch.cat([g.flatten() for g in exact]).numpy()
    assert within(encoder_gradients(vae, x, 100, 500), expected)


def test_the_path_gradient_has_no_variance_where_q_is_the_posterior(linear):
    x = linear.data(1)
    sticking = encoder_gradients(linear.vae(analytic_kl=False), x, 20, 1)
    assert np.abs(sticking).max() < 1e-10
    assert encoder_gradients(linear.vae(), x, 20, 1).std(0).max() > 0.1  # the usual one has


def test_the_path_gradient_of_a_full_covariance_posterior_is_without_variance_too():
    # A decoder that ignores z leaves the prior as the posterior, and q is made equal to it.
    vae = tiny_vae(prior=ForeignPrior(2), analytic_kl=False).double()
    net = nn.Linear(6, 6).double()
    nn.init.zeros_(net.weight)
    with torch.no_grad():
        one = math.log(math.expm1(1 - 0.01))
        net.bias.copy_(torch.tensor([0, 0, one, 0, 0, one], dtype=torch.float64))
    vae.encoder = FullCovariance(net, 2)
    nn.init.zeros_(vae.decoder.net[0].weight)
    x = torch.ones(1, 6, dtype=torch.float64)
    assert np.abs(encoder_gradients(vae, x, 20, 1)).max() < 1e-10


class Learned(nn.Module):
    """An encoder that gives one distribution of a parameter to every data point."""

    def __init__(self, make, value):
        super().__init__()
        self.make = make
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x):
        return Independent(self.make(self.value.expand(len(x), 1)), 1)


def scaled_uniform(width):
    unit = Uniform(torch.zeros_like(width), torch.ones_like(width))
    return TransformedDistribution(unit, AffineTransform(0, width))


def sigmoid_times(width):
    normal = Normal(torch.zeros_like(width), torch.ones_like(width))
    return TransformedDistribution(normal, [SigmoidTransform(), AffineTransform(0, width)])


# q, its parameter w, and the derivative by w of KL(q ‖ N(0, 1)) = −entropy + E z²/2 + const.
MOVING = {
    "uniform on [−w, w]": (  # −log 2w + w²/6
        lambda w: Uniform(-w, w), 1.3, lambda w: -1 / w + w / 3,
    ),
    "uniform on [0, 1], times w": (  # −log w + w²/6
        scaled_uniform, 1.3, lambda w: -1 / w + w / 3,
    ),
    "sigmoid of a normal, times w": (  # −log w + w² E s²/2, where s = σ(ε)
        sigmoid_times, 1.3, lambda w: -1 / w + 0.29337904 * w,
    ),
    "Pareto from w on, of index 9": (  # −log w + 9 w²/14
        lambda w: Pareto(w, torch.full_like(w, 9.0)), 0.7, lambda w: -1 / w + 9 * w / 7,
    ),
    "gamma of shape 3 and rate w": (  # log w + 6/w²
        lambda w: Gamma(torch.full_like(w, 3.0), w), 2.0, lambda w: 1 / w - 12 / w**3,
    ),
    "log-normal of σ = 1/2 and μ = w": (  # −w + e^(2w + 1/2)/2
        lambda w: LogNormal(w, torch.full_like(w, 0.5)), -0.5,
        lambda w: -1 + math.exp(2 * w + 0.5),
    ),
    "normal of σ = w": (  # −log w + w²/2
        lambda w: Normal(torch.zeros_like(w), w), 1.3, lambda w: -1 / w + w,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVING)
def test_the_gradient_of_the_estimated_kl_is_true_also_where_the_support_moves(name):
    make, value, truth = MOVING[name]
    vae = tiny_vae(latents=1, analytic_kl=False).double()
    vae.encoder = Learned(make, value)
    x = torch.zeros(500, 6, dtype=torch.float64)
    gradients = [torch.autograd.grad(vae.elbo(x).kl.mean(), vae.encoder.value) for _ in range(100)]
    assert within(torch.stack([g for (g,) in gradients]), truth(value))
    score = 1 / value if name.startswith("uniform") else 0
    assert not within(torch.stack([g for (g,) in gradients]), truth(value) + score) or not score


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_the_gradient_of_a_learned_width_is_exact_under_a_uniform_prior(width):
    # KL(U(−w, w) ‖ U(−9, 9)) = log 9/w whatever the sample, so one sample tells the gradient.
    vae = tiny_vae(latents=1, analytic_kl=False).double()
    vae.encoder = Learned(lambda w: Uniform(-w, w), width)
    vae.prior.forward = lambda: Independent(Uniform(torch.tensor([-9.0]), torch.tensor([9.0])), 1)
    kl = vae.elbo(torch.zeros(1, 6, dtype=torch.float64)).kl
    assert kl.item() == pytest.approx(math.log(9 / width))
    (gradient,) = torch.autograd.grad(kl, vae.encoder.value)
    assert gradient.item() == pytest.approx(-1 / width)


def test_the_path_gradient_of_a_log_normal_posterior_is_without_variance_too():
    # q is the prior, and a decoder without z makes that the posterior.
    vae = tiny_vae(latents=1, analytic_kl=False).double()
    vae.encoder = Learned(lambda w: LogNormal(w, torch.full_like(w, 0.5)), 0.3)
    loc, scale = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    vae.prior.forward = lambda: Independent(LogNormal(loc, scale), 1)
    nn.init.zeros_(vae.decoder.net[0].weight)
    x = torch.ones(1, 6, dtype=torch.float64)
    assert np.abs(encoder_gradients(vae, x, 20, 1)).max() < 1e-10


@pytest.mark.parametrize("prior", [lab.PriorGaussian(2), lab.PriorMixture(2, 3)])
def test_every_parameter_receives_a_finite_gradient(prior):
    vae = tiny_vae(prior=prior)
    vae.loss(torch.randn(5, 6)).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in vae.parameters())


# ------------------------------------------------------------------------- log_marginal


@pytest.mark.parametrize("samples", [1, 3])
def test_log_marginal_is_exact_where_q_is_the_posterior(linear, samples):
    x = linear.data(20)
    assert np.allclose(linear.vae().log_marginal(x, samples), linear.log_p(x), rtol=1e-10)


@pytest.mark.parametrize("samples", [1, 10, 200])
def test_log_marginal_estimates_p_without_bias_whatever_the_number_of_samples(linear, samples):
    x = linear.data(1)
    estimates = linear.vae(0.1, 1.3).log_marginal(repeated(x, 10_000), samples).numpy()
    assert within(np.exp(estimates - linear.log_p(x)), 1)


def test_log_marginal_has_the_known_bias():
    # The logarithm of the average weight falls short of log p(x) by var/2K to first order. The
    # weights' variance is ∫ p(z|x)² / q(z|x) dz − 1.
    model, samples, widen = LinearGaussian(dims=3, latents=1), 200, 4
    x, deviation, z = model.data(1), math.sqrt(model.variance.item()), np.linspace(-9, 9, 100_001)
    density, other = norm(0, deviation).pdf(z), norm(0, widen * deviation).pdf(z)
    variance = (density**2 / other).sum() * (z[1] - z[0]) - 1  # both ends are all but zero
    estimates = model.vae(widen=widen).log_marginal(repeated(x, 20_000), samples).numpy()
    assert within(estimates, model.log_p(x) - variance / (2 * samples))
    assert not within(estimates, model.log_p(x))  # the bias is large enough to be seen


def test_the_bound_tightens_with_the_number_of_samples(linear):
    x = linear.data(1)
    vae = linear.vae(**WRONG)
    estimates = [vae.log_marginal(repeated(x, 4000), k).numpy() for k in (1, 4, 16, 64)]
    means = [e.mean() for e in estimates]
    errors = [e.std() / math.sqrt(len(e)) for e in estimates]
    assert within(estimates[0], linear.log_p(x) - posterior_gap(linear, **WRONG))  # the ELBO
    for k in range(3):
        assert means[k + 1] - means[k] > 2 * math.hypot(errors[k], errors[k + 1])
    assert means[-1] < linear.log_p(x) + 3 * errors[-1]


class Recording(nn.Module):
    """A decoder that notes how many latent points it was given at once."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.sizes = decoder, []

    def forward(self, z):
        self.sizes.append(len(z))
        return self.decoder(z)


@pytest.mark.parametrize(
    ("points", "samples", "chunk"), [(5, 40, 16), (5, 3, 1000), (7, 10, 3), (1, 100, 7), (4, 5, 1)]
)
def test_log_marginal_never_decodes_more_than_a_chunk(linear, points, samples, chunk):
    vae = linear.vae()
    vae.decoder = Recording(vae.decoder)
    x = linear.data(points)
    assert np.allclose(vae.log_marginal(x, samples, chunk), linear.log_p(x), rtol=1e-10)
    assert max(vae.decoder.sizes) <= chunk
    assert sum(vae.decoder.sizes) == points * samples


@pytest.mark.parametrize("chunk", [1, 37, 800, 4096])
def test_log_marginal_is_the_same_whatever_the_chunk(linear, chunk):
    x = linear.data(1)
    estimates = linear.vae(0.1, 1.2).log_marginal(repeated(x, 40), 100, chunk)
    assert within(np.exp(estimates.numpy() - linear.log_p(x)), 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_log_marginal_computes_the_networks_in_the_precision_asked_for(precision):
    vae, seen = tiny_vae(), []
    for part in (vae.encoder, vae.decoder):
        part.net.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
        part.precision = torch.bfloat16  # somebody's own choice, which comes back
    x = torch.randn(4, 6)
    assert vae.log_marginal(x, 3, precision=precision).dtype == torch.float32
    assert seen == [getattr(torch, precision)] * 2
    assert vae.encoder.precision is vae.decoder.precision is torch.bfloat16


# ------------------------------------------------------------------ sampling, reconstruction


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
    noisy = vae.reconstruct(repeated(x, 50_000), mean=False).numpy() - predicted
    covariance = (linear.w * linear.variance) @ linear.w.T + linear.s**2 * np.eye(5)
    assert within(noisy, np.zeros(5))
    assert within(noisy[:, :, None] * noisy[:, None, :], covariance)


def test_samples_of_a_mixture_prior_come_from_every_component():
    prior = lab.PriorMixture(1, 2)
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[-50.0], [50.0]]))
        prior.logits.copy_(torch.tensor([0.0, math.log(3)]))
    vae = lab.VAE(nn.Identity(), lab.DecoderGaussian(nn.Identity(), 0.1), prior)
    assert within((vae.sample(20_000) > 0).double(), 0.75)


# --------------------------------------------------------- shapes, devices, dtypes, state

DECODERS = {
    "one sigma": (lab.DecoderGaussian, 1),
    "fixed": (lambda net: lab.DecoderGaussian(net, 0.1), 1),
    "net": (lambda net: lab.DecoderGaussian(net, "net"), 2),
    "Bernoulli": (lab.DecoderBernoulli, 1),
    "continuous Bernoulli": (lab.DecoderContinuousBernoulli, 1),
    "categorical": (lambda net: lab.DecoderCategorical(net, 3), 3),
}


PRIORS = [lab.PriorGaussian, lambda d: lab.PriorMixture(d, 3), lab.PriorAutoregressive]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("event", "name"),
    # A scalar has no channels to double.
    sorted(
        {*product([(), (1,), (5,), (2, 3), (3, 5, 7)], DECODERS)}
        - {((), "net"), ((), "categorical")}
    ),
)
def test_shapes_are_right_for_every_event_on_every_device(event, name, device, prior):
    # The meta device holds no numbers: what was created on a fixed device shows up as an error.
    make, channels = DECODERS[name]
    out = (channels * event[0], *event[1:]) if event else ()
    vae = lab.VAE(
        lab.EncoderGaussian(vae_networks.mlp(event, [4], 6)),
        make(vae_networks.mlp(3, [4], out)),
        prior(3),
    ).to(device)
    x = torch.ones(4, *event, device=device)
    elbo = vae.elbo(x)
    assert elbo.log_likelihood.shape == elbo.kl.shape == elbo.value.shape == (4,)
    assert vae.loss(x).shape == ()
    assert vae.log_marginal(x, 5, chunk=7).shape == (4,)
    for mean in (True, False):
        assert vae.sample(3, mean=mean).shape == (3, *event)
        assert vae.reconstruct(x, mean=mean).shape == (4, *event)
    everything = [*elbo, vae.loss(x), vae.log_marginal(x, 5), vae.sample(3), vae.reconstruct(x)]
    assert {tensor.device.type for tensor in everything} == {device}


@pytest.mark.parametrize("name", DECODERS)
def test_float64_is_kept(name):
    make, channels = DECODERS[name]
    for prior in PRIORS:
        vae = tiny_vae((6,), decoder=make, prior=prior(2))
        vae.decoder.net = vae_networks.mlp(2, [8], 6 * channels)
        vae.double()
        x = torch.ones(4, 6, dtype=torch.float64)
        values = (*vae.elbo(x), vae.loss(x), vae.sample(2), vae.log_marginal(x, 3))
        assert {value.dtype for value in values} == {torch.float64}


class Watched(nn.Module):
    """A part that keeps what it was given and what its network gave."""

    def __init__(self, part):
        super().__init__()
        self.part, self.given, self.out = part, [], []
        part.net.register_forward_hook(lambda *args: self.out.append(args[-1]))

    def forward(self, condition):
        self.given.append(condition)
        return self.part(condition)


@pytest.mark.parametrize("prior", PRIORS[:2])  # the third has a network, itself in 16 bits
@pytest.mark.parametrize(
    "name", ["one sigma", "net", "fixed", "categorical", "Bernoulli", "continuous Bernoulli"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_give_float32_that_only_their_networks_make_coarse(dtype, name, prior):
    """What follows the outputs of the networks agrees with the same in float64."""
    make, channels = DECODERS[name]
    event = (12, 8, 8)
    vae = lab.VAE(
        lab.EncoderGaussian(vae_networks.mlp(event, [4], 6)),
        make(vae_networks.mlp(3, [4], (12 * channels, 8, 8))),
        prior(3),
    ).to(dtype)
    exact = copy.deepcopy(vae).double()
    exact.encoder.net = exact.decoder.net = nn.Identity()
    vae.encoder, vae.decoder = Watched(vae.encoder), Watched(vae.decoder)
    x = torch.rand(5, *event)
    x = x.round() if name == "Bernoulli" else (255 * x).round() / 255
    value = {"elbo": vae.elbo(x), "log_marginal": vae.log_marginal(x, 1), "loss": vae.loss(x)}
    assert all(out.dtype == dtype for part in (vae.encoder, vae.decoder) for out in part.out)
    found, truth = [], []
    for i, z in enumerate(vae.decoder.given):
        q = exact.encoder(vae.encoder.out[i].double())
        p, z = exact.decoder(vae.decoder.out[i].double()), z.double()
        terms = [p.log_prob(x.double()), q.log_prob(z) - exact.prior.log_prob(z)]
        if i != 1 and prior is lab.PriorGaussian:
            terms[1] = torch.distributions.kl_divergence(q, exact.prior())
        truth.append(terms)
    found = [*value["elbo"], value["log_marginal"], value["loss"]]
    wanted = [*truth[0], truth[1][0] - truth[1][1], (truth[2][1] - truth[2][0]).mean()]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-4)


def test_the_tensors_of_a_prior_are_part_of_the_state():
    vae = tiny_vae((6,), decoder=lambda net: lab.DecoderGaussian(net, 0.3))
    state = vae.state_dict()
    assert {"prior.loc", "prior.unit", "decoder.fixed_scale"} <= state.keys()
    assert {t.device.type for t in vae.to("meta").state_dict().values()} == {"meta"}
    assert not [*vae.prior.parameters()]  # N(0, I) is not learned


def test_a_state_restores_the_model():
    x = torch.randn(4, 6)
    first, second = (tiny_vae(prior=lab.PriorMixture(2, 3)) for _ in range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    values = []
    for vae in (first, second):
        torch.manual_seed(1)
        values.append(vae.elbo(x).value)
    assert torch.equal(*values)


def test_evaluation_methods_keep_no_graph():
    vae, x = tiny_vae(), torch.randn(3, 6)
    for result in (vae.sample(2), vae.reconstruct(x), vae.log_marginal(x, 2)):
        assert not result.requires_grad


LOOKS = {
    "sample": lambda vae, x: vae.sample(3),
    "sample, means": lambda vae, x: vae.sample(3, mean=True),
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "reconstruct, samples": lambda vae, x: vae.reconstruct(x, mean=False),
    "log_marginal": lambda vae, x: vae.log_marginal(x, 3),
    "evaluate": lambda vae, x: lab.evaluate(vae, x, device="cpu"),
    "latent_units": lambda vae, x: vae_diagnostics.latent_units(vae, x),
    "whole numbers, refused": lambda vae, x: vae.loss(x.long()),
    "NaN, refused": lambda vae, x: vae.log_marginal(x * math.nan, 3),
}


@pytest.mark.parametrize("modes", ["training", "evaluation", "mixed"])
@pytest.mark.parametrize("look", LOOKS)
def test_to_look_changes_neither_modes_nor_running_averages(look, modes):
    vae = tiny_vae()
    for part, size in ((vae.encoder, 8), (vae.decoder, 8)):
        part.net.insert(1, nn.BatchNorm1d(size))
        part.net.append(nn.Dropout(0.5))
    vae.train(modes == "training")
    if modes == "mixed":  # a frozen encoder, say, of which one layer is trained on
        vae.decoder.net[1].train(), vae.encoder.net[3].train()
    before = [module.training for module in vae.modules()]
    assert modes != "mixed" or 0 < sum(before) < len(before)
    state = copy.deepcopy(vae.state_dict())
    with contextlib.suppress(TypeError, FloatingPointError):
        LOOKS[look](vae, 20 * torch.randn(50, 6) + 5)
        assert "refused" not in look
    assert [module.training for module in vae.modules()] == before
    assert all(torch.equal(state[name], value) for name, value in vae.state_dict().items())
    assert {p.requires_grad for p in vae.parameters()} == {True}


def test_what_is_looked_at_is_what_the_model_computes_in_evaluation_mode():
    vae, x = tiny_vae(), torch.randn(50, 6)
    for part in (vae.encoder, vae.decoder):
        part.net.append(nn.Dropout(0.5))
    alone = copy.deepcopy(vae).eval()
    with torch.no_grad():
        expected = alone.decoder(alone.encoder(x).mean).mean
    assert torch.equal(vae.train().reconstruct(x), expected)
    torch.testing.assert_close(vae_diagnostics.latent_units(vae, x).mean, alone.encoder(x).mean)
    for call in (lambda v: v.log_marginal(x, 3), lambda v: v.sample(5)):
        torch.manual_seed(1)
        found = call(vae)
        torch.manual_seed(1)
        assert torch.equal(call(alone), found)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_samples_below_one_is_refused(number):
    vae, x = tiny_vae(), torch.zeros(2, 6)
    calls = {
        "n must": lambda: vae.sample(number),
        "n_samples must": lambda: vae.log_marginal(x, number),
        "chunk must": lambda: vae.log_marginal(x, 1, chunk=number),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_decoder_whose_event_is_not_the_data_s_is_refused_with_both_shapes():
    vae = tiny_vae()
    vae.decoder = lab.DecoderGaussian(vae_networks.mlp(2, [], 5))
    for call in (vae.elbo, lambda x: vae.log_marginal(x, 1)):
        with pytest.raises(ValueError, match=r"\(4, 6\).*\(5,\)"):
            call(torch.zeros(4, 6))


@pytest.mark.parametrize("dim", [1, 3])
def test_a_prior_of_other_dimension_is_refused_with_both_shapes(dim):
    vae = tiny_vae(prior=lab.PriorGaussian(dim))
    for call in (vae.elbo, lambda x: vae.log_marginal(x, 2)):
        with pytest.raises(ValueError, match=rf"prior.*\({dim},\).*\(2,\)"):
            call(torch.zeros(4, 6))


def test_an_encoder_that_mixes_up_the_batch_is_refused_with_both_shapes():
    vae = tiny_vae()
    vae.encoder = ForeignEncoder()
    for call in (vae.elbo, vae.reconstruct, lambda x: vae.log_marginal(x, 1)):
        with pytest.raises(ValueError, match=r"\(4,\).*\(4, 2\)"):
            call(torch.zeros(4, 6))


class ForeignEncoder(nn.Module):
    """A mistake that is easily made: two numbers per data point, not one event of two."""

    def forward(self, x):
        return torch.distributions.Normal(x[:, :2], 1.0)


def test_scipy_and_the_exactly_solvable_model_agree(linear):
    # The truth of this file, checked against itself: Bayes' rule at a few latent points.
    x, z = linear.data(1).numpy()[0], np.random.default_rng(2).normal(size=(5, 2))
    joint = [
        multivariate_normal(linear.w @ point + linear.b, linear.s**2).logpdf(x)
        + norm.logpdf(point).sum()
        for point in z
    ]
    posterior = norm(linear.gain @ (x - linear.b), np.sqrt(linear.variance)).logpdf(z).sum(1)
    assert np.allclose(joint - posterior, linear.log_p(x))
