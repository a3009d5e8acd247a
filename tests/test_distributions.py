"""Encoders, decoders, priors and networks against closed forms in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, logsumexp
from scipy.stats import norm
from torch import nn

import vae_distributions
import vae_helpers as lab
from tools import (
    EVENTS,
    LOGITS,
    Fixed,
    assert_mean_is_that_of_samples,
    case,
    log_prob_of,
    raised,
    summed,
    within,
)


def softplus(raw):
    return np.logaddexp(0, raw) + vae_distributions.MIN_SCALE


# -------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("dim", [1, 2, 17])
def test_encoder_log_prob_is_that_of_a_diagonal_normal(dim):
    rng, z, x = case((dim,))
    w = rng.normal(size=(4, 2 * dim))
    loc, scale = w[:, :dim], softplus(w[:, dim:])
    expected = norm(loc, scale).logpdf(z).sum(1)
    assert np.allclose(log_prob_of(lab.EncoderGaussian(Fixed(w)), z, x), expected, rtol=1e-12)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("scale", [None, 0.3, 1e-6])
def test_decoder_gaussian_log_prob_has_one_sigma(event, scale):
    rng, x, z = case(event)
    loc = rng.normal(size=x.shape)
    decoder = lab.DecoderGaussian(Fixed(loc), scale).double()
    # A fixed scale was rounded to float32, the model's first precision.
    sigma = decoder.scale.item() if scale is None else np.float32(scale).item()
    expected = summed(norm(loc, sigma).logpdf(x))
    assert np.allclose(log_prob_of(decoder, x, z), expected, rtol=1e-12)


@pytest.mark.parametrize("event", EVENTS[1:])
def test_decoder_gaussian_takes_its_scale_from_the_second_half_of_the_channels(event):
    rng, x, z = case(event)
    loc, raw = rng.normal(size=(2, *x.shape))
    decoder = lab.DecoderGaussian(Fixed(np.concatenate([loc, raw], axis=1)), "net")
    expected = summed(norm(loc, softplus(raw)).logpdf(x))
    assert np.allclose(log_prob_of(decoder, x, z), expected, rtol=1e-12)


def scale_raw(raw):
    return lambda net: lab.DecoderGaussian(nn.Sequential(net, Fixed([[0.2, raw]])), "net")


@pytest.mark.parametrize(
    ("decoder", "out", "places"),
    [
        (lab.DecoderGaussian, 0.2, (0.2, 1)),
        (lambda net: lab.DecoderGaussian(net, 0.3), -100.0, (-100, 0.3)),
        *((scale_raw(r), 0.0, (0.2, softplus(r))) for r in (-100.0, -5.0, 3.0, 100.0)),
        *((lab.DecoderContinuousBernoulli, out, None) for out in LOGITS),
    ],
)
def test_a_decoder_density_integrates_to_one_and_its_mean_is_that_of_its_samples(
    decoder, out, places
):
    decoder = decoder(Fixed(torch.tensor([out], dtype=torch.float64))).double()
    z = torch.zeros(1, 1, dtype=torch.float64)
    shape = (1, *decoder(z).event_shape)
    if places:
        low, high = places[0] - 10 * places[1], places[0] + 10 * places[1]
    else:
        low, high = 0, 1

    def density(x):
        with torch.no_grad():
            return decoder.log_prob(torch.full(shape, x, dtype=torch.float64), z).exp().item()

    steep = None if places else [0.02, 0.98]  # where an exponential of l = ±100 begins and ends
    assert quad(density, low, high, points=steep)[0] == pytest.approx(1, abs=1e-6)
    assert_mean_is_that_of_samples(decoder(z))


@pytest.mark.parametrize("dim", [1, 3, 50])
def test_prior_gaussian_log_prob_is_that_of_the_standard_normal(dim):
    z = np.random.default_rng(0).normal(size=(7, dim))
    got = lab.PriorGaussian(dim).double().log_prob(torch.from_numpy(z))
    assert np.allclose(got, norm.logpdf(z).sum(1), rtol=1e-12)


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (2, 3), (20, 100)])
def test_prior_mixture_log_prob_is_that_of_a_weighted_sum_of_normals(dim, components):
    prior = lab.PriorMixture(dim, components).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter)
    z = np.random.default_rng(0).normal(size=(7, dim))
    logits, loc, raw = (p.detach().numpy() for p in (prior.logits, prior.loc, prior.raw_scale))
    parts = norm(loc, softplus(raw)).logpdf(z[:, None]).sum(2)
    expected = logsumexp(parts + logits - logsumexp(logits), axis=1)
    assert np.allclose(prior.log_prob(torch.from_numpy(z)).detach(), expected, rtol=1e-12)


def autoregressive(dim, **options):
    prior = lab.PriorAutoregressive(dim, **options).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.5)
    return prior


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_no_factor_of_the_autoregressive_prior_sees_its_own_or_a_later_variable(dim):
    prior = autoregressive(dim, hidden=32, components=3)
    z = torch.randn(1, dim, dtype=torch.float64)
    means = torch.autograd.functional.jacobian(lambda z: prior.factors(z).mean[0], z)[:, 0]
    assert not means.triu().any()
    assert means.count_nonzero() == dim * (dim - 1) / 2  # and it does see every earlier one


def test_few_hidden_units_of_the_autoregressive_prior_look_at_all_dimensions():
    prior, z = autoregressive(20, hidden=5, components=2), torch.randn(1, 20, dtype=torch.float64)
    means = torch.autograd.functional.jacobian(lambda z: prior.factors(z).mean[0], z)[:, 0]
    assert not means.triu().any()
    assert means[-1, :17].all()


def test_the_autoregressive_prior_integrates_to_one_and_samples_what_it_says():
    prior = autoregressive(2, hidden=8, components=2)
    line = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        mass = prior.log_prob(grid).exp() * (line[1] - line[0]) ** 2
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    z = prior().sample((100_000,))
    moments = torch.cat([grid, grid[:, :1] * grid[:, 1:], grid**2], 1)
    drawn = torch.cat([z, z[:, :1] * z[:, 1:], z**2], 1)
    assert within(drawn, mass @ moments)


def test_float32_log_densities_agree_with_float64():
    rng, x, z = case((3, 5, 7))
    decoder = lab.DecoderGaussian(Fixed(rng.normal(size=x.shape))).double()
    exact = log_prob_of(decoder, x, z)
    single = decoder.float().log_prob(torch.from_numpy(x).float(), z.float())
    assert np.allclose(single.detach(), exact, rtol=1e-5)


# ------------------------------------------------------------------- gradients and scales


def test_rsample_carries_the_exact_gradient_of_an_expectation():
    # E z² = μ² + σ², and so its gradient is (2μ, 2σ σ′(raw)).
    mu, sigma = 0.7, 0.4
    net = Fixed(torch.tensor([[mu, raised(sigma)]], dtype=torch.float64))
    encoder = lab.EncoderGaussian(net).double()
    gradients = []
    for _ in range(100):
        z = encoder(torch.zeros(1000, 1, dtype=torch.float64)).rsample()
        gradients.append(torch.autograd.grad(z.square().mean(), net.out)[0][0].numpy())
    assert within(gradients, [2 * mu, 2 * sigma * expit(raised(sigma))])


def test_every_latent_point_is_drawn_from_its_own_normal():
    w = torch.tensor([[1.0, -2.0, raised(0.5), raised(2.0)]]).expand(100_000, 4)
    with torch.no_grad():
        z = lab.EncoderGaussian(nn.Identity())(w).rsample().numpy()
    assert within(z, [1, -2])
    assert within((z - [1, -2]) ** 2, [0.25, 4])


@pytest.mark.parametrize("raw", [-1e30, -200.0, 0.0, 1e30])
def test_no_scale_falls_below_the_floor(raw):
    out = torch.tensor([[0.0, raw]], requires_grad=True)
    for part in (lab.EncoderGaussian(nn.Identity()), lab.DecoderGaussian(nn.Identity(), "net")):
        p = part(out)
        assert p.stddev.item() >= np.float32(vae_distributions.MIN_SCALE)
        (gradient,) = torch.autograd.grad(p.log_prob(torch.ones(1, 1)).sum(), out)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [1e-2, 1.0, 300.0])
def test_the_learned_scale_begins_at_the_residuals_and_only_if_nobody_moved_it(size):
    decoder = lab.DecoderGaussian(nn.Identity())
    assert decoder.scale.item() == pytest.approx(1.0, rel=2e-3)
    residuals = size * torch.randn(1000, 7)
    truth = residuals.square().mean().sqrt().item()
    decoder.start_from(residuals)
    assert decoder.scale.item() == pytest.approx(truth + vae_distributions.MIN_SCALE, rel=1e-5)
    decoder.start_from(5 * residuals)
    assert decoder.scale.item() == pytest.approx(truth + vae_distributions.MIN_SCALE, rel=1e-5)
    fixed = lab.DecoderGaussian(nn.Identity(), 0.3)
    fixed.start_from(residuals)
    assert fixed.scale.item() == pytest.approx(0.3)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float64])
def test_the_network_alone_computes_in_reduced_precision(out_dtype):
    seen = []
    net = nn.Linear(3, 4).to(out_dtype)
    net.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    encoder = lab.EncoderGaussian(net)
    encoder.precision = torch.bfloat16
    q = encoder(torch.ones(2, 3, dtype=out_dtype))
    assert seen == [torch.bfloat16 if out_dtype == torch.float32 else torch.float64]
    assert q.log_prob(q.rsample()).dtype == out_dtype


def test_a_rule_is_all_that_another_likelihood_takes():
    class DecoderLaplace(lab.Conditional):
        def distribution(self, out):
            return torch.distributions.Independent(torch.distributions.Laplace(out, 0.5), 1)

    x = torch.tensor([[1.0, -1.0]])
    expected = sum(math.log(1 / (2 * 0.5)) - abs(v) / 0.5 for v in x[0].tolist())
    assert DecoderLaplace(nn.Identity()).log_prob(x, torch.zeros(1, 2)).item() == expected


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 3, 2)])
def test_an_odd_encoder_output_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match="2C") as error:
        lab.EncoderGaussian(nn.Identity())(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4,)])
def test_an_odd_number_of_channels_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match="twice the numbers") as error:
        lab.DecoderGaussian(nn.Identity(), "net")(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.nan, math.inf, "Net", ""])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be"):
        lab.DecoderGaussian(nn.Identity(), scale)


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "3"])
def test_a_prior_has_at_least_one_dimension_and_component(number):
    for make in (
        lab.PriorGaussian,
        lab.PriorAutoregressive,
        lambda n: lab.PriorMixture(n, 2),
    ):
        with pytest.raises(ValueError, match="dim must be"):
            make(number)
    with pytest.raises(ValueError, match="components must be"):
        lab.PriorMixture(2, number)
