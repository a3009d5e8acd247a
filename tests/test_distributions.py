"""Encoders, decoders, priors and networks against closed forms in float64."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import norm
from torch import nn

import vae_distributions
import vae_helpers as lab
from tools import raised, within

EVENTS = [(), (5,), (2, 3), (1, 4, 4), (3, 5, 7)]


class Fixed(nn.Module):
    """A network that gives the same output, whatever the condition."""

    def __init__(self, out):
        super().__init__()
        self.out = nn.Parameter(torch.as_tensor(out))

    def forward(self, condition):
        return self.out.expand(len(condition), *self.out.shape[1:])


def softplus(raw):
    return np.logaddexp(0, raw) + vae_distributions.MIN_SCALE


def summed(log_density):
    return log_density.reshape(len(log_density), -1).sum(1)


def case(event, batch=4):
    """A network's output, twice its size along the channels, and a condition, in float64."""
    rng = np.random.default_rng(len(event))
    return rng, rng.normal(size=(batch, *event)), torch.zeros(batch, 2, dtype=torch.float64)


def log_prob_of(distribution, x, condition):
    return distribution.double().log_prob(torch.from_numpy(x), condition).detach().numpy()


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


@pytest.mark.parametrize("event", EVENTS)
def test_decoder_bernoulli_log_prob_is_that_of_coin_flips(event):
    rng, logits, z = case(event)
    x = (rng.random(logits.shape) < 0.5).astype(float)
    expected = summed(x * log_expit(logits) + (1 - x) * log_expit(-logits))
    assert np.allclose(log_prob_of(lab.DecoderBernoulli(Fixed(logits)), x, z), expected, rtol=1e-12)


@pytest.mark.parametrize("pixels", [1, 63, 64, 65, 784, 5000])
@pytest.mark.parametrize("size", [0.01, 3.0, 30.0, 1e4])
def test_decoder_bernoulli_is_exact_for_many_pixels_and_any_logits(pixels, size):
    rng = np.random.default_rng(0)
    given = torch.from_numpy(size * rng.normal(size=(3, pixels))).float().requires_grad_()
    x, logits = rng.random((3, pixels)) < 0.5, given.detach().double().numpy()
    terms = np.where(x, log_expit(logits), log_expit(-logits))
    found = lab.DecoderBernoulli(nn.Identity()).log_prob(torch.from_numpy(x).float(), given)
    assert np.allclose(found.detach(), terms.sum(1), rtol=1e-6, atol=1e-7 * pixels)
    found.sum().backward()
    assert np.allclose(given.grad, x - expit(logits), atol=1e-6)


def test_decoder_bernoulli_log_prob_in_half_precision_and_of_nothing():
    decoder = lab.DecoderBernoulli(nn.Identity())
    logits = torch.zeros(2, 640, dtype=torch.float16)  # a factor of 1/2 for each pixel
    assert torch.allclose(decoder.log_prob(logits, logits), torch.tensor(-640 * math.log(2)))
    assert decoder.log_prob(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).shape == (0,)


def test_decoder_bernoulli_log_prob_broadcasts_and_differentiates_by_x():
    rng = np.random.default_rng(0)
    logits, x = rng.normal(size=(4, 2, 5)), rng.random((3, 1, 2, 5))
    p = lab.DecoderBernoulli(nn.Identity())(torch.from_numpy(logits))
    value = torch.from_numpy(x).requires_grad_()
    found = p.log_prob(value)
    terms = x * log_expit(logits) + (1 - x) * log_expit(-logits)
    assert np.allclose(found.detach(), terms.sum((2, 3)), rtol=1e-12)
    found.sum().backward()
    assert np.allclose(value.grad, logits.sum(0), rtol=1e-12)


@pytest.mark.parametrize("event", EVENTS)
def test_decoder_continuous_bernoulli_log_prob_has_its_normaliser(event):
    rng, logits, z = case(event)
    x, p = rng.random(logits.shape), expit(logits)
    normaliser = np.log(2 * np.arctanh(1 - 2 * p) / (1 - 2 * p))
    expected = summed(x * np.log(p) + (1 - x) * np.log1p(-p) + normaliser)
    decoder = lab.DecoderContinuousBernoulli(Fixed(logits))
    assert np.allclose(log_prob_of(decoder, x, z), expected, rtol=1e-7)


LOGITS = [0, 1e-6, 9e-4, 1.1e-3, 0.03, 0.19, 0.21, 1, 4, 15.9, 16, 30, 100]
LOGITS = [float(sign * size) for size in LOGITS for sign in (1, -1)]


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize("logit", [*LOGITS, 999.0, -999.0])
def test_the_continuous_bernoulli_is_exact_in_density_gradient_and_mean(logit, dtype, off):
    given = torch.tensor([logit], dtype=dtype, requires_grad=True)
    exact, p = mpmath.mpf(given.item()), vae_distributions.ContinuousBernoulli(given)
    for x in (0.0, 0.001, 0.25, 0.5, 1.0):
        found = p.log_prob(torch.tensor([x], dtype=dtype))
        (slope,) = torch.autograd.grad(found.sum(), given)
        with mpmath.workdps(60):
            log_mass = mpmath.log((mpmath.exp(exact) - 1) / exact) if logit else mpmath.mpf(0)
            mean = 1 + 1 / (mpmath.exp(exact) - 1) - 1 / exact if logit else mpmath.mpf(0.5)
            truth = exact * mpmath.mpf(x) - log_mass
        # Relative to the size of the terms: nobody can know e^999 better.
        assert abs(found.item() - truth) <= off * max(1, abs(logit))
        assert abs(slope.item() - (x - mean)) <= off
        assert abs(p.mean.item() - mean) <= off


def test_beyond_its_bound_the_continuous_bernoulli_has_the_density_at_the_bound():
    bound = vae_distributions.MAX_LOGIT
    logits = torch.tensor([1e4, bound], requires_grad=True)
    p = vae_distributions.ContinuousBernoulli(logits)
    log_prob = p.log_prob(torch.tensor([0.3, 0.3]))
    assert log_prob[0] == log_prob[1]
    (slope,) = torch.autograd.grad(log_prob[0], logits)
    assert slope[0] == pytest.approx(0.3 - 1 + 1 / bound)  # and the way back is known
    assert p.log_prob(torch.ones(2))[0].item() == pytest.approx(math.log(bound), rel=1e-6)


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


@torch.no_grad()
def assert_mean_is_that_of_samples(p, draws=4000):
    torch.manual_seed(0)
    x = p.sample((draws,)).double()
    assert ((x.mean(0) - p.mean).abs() <= 5 * x.std(0) / draws**0.5 + 1e-6).all()


@pytest.mark.parametrize("logit", LOGITS)
def test_a_decoder_mass_sums_to_one_and_its_mean_is_that_of_its_samples(logit):
    z = torch.zeros(1, 1)
    coin = lab.DecoderBernoulli(Fixed([[logit]]))
    both = [coin.log_prob(torch.tensor([[x]]), z).exp() for x in (0.0, 1.0)]
    assert sum(both).item() == pytest.approx(1, abs=1e-6)
    assert both[1].item() == pytest.approx(expit(logit), rel=1e-5)
    assert_mean_is_that_of_samples(coin(z))
    grey = lab.DecoderCategorical(Fixed([[0.0, logit, -logit, 1.0]]))
    with torch.no_grad():
        grey.histograms *= logit
        levels = torch.arange(256.0) / 255
        mass = sum(grey.log_prob(level.view(1, 1), z).exp() for level in levels)
        assert mass.item() == pytest.approx(1, abs=1e-5)
        assert_mean_is_that_of_samples(grey(z))


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


def categorical(event=(2, 3), components=3):
    """A ``DecoderCategorical``, its probabilities ``(B, *event, 256)`` by NumPy, and z."""
    rng, logits, z = case((components * event[0], *event[1:]))
    decoder = lab.DecoderCategorical(Fixed(logits), components).double()
    nn.init.normal_(decoder.histograms, std=0.1)
    weights = np.moveaxis(logits.reshape(4, components, *event), 1, -1)
    histograms = 10 * decoder.histograms.detach().numpy()
    weights = np.exp(weights - logsumexp(weights, axis=-1, keepdims=True))
    histograms = np.exp(histograms - logsumexp(histograms, axis=-1, keepdims=True))
    return decoder, weights @ histograms, z, rng


@pytest.mark.parametrize("event", EVENTS[1:])
def test_decoder_categorical_log_prob_is_that_of_a_mixture_of_histograms(event):
    decoder, p, z, rng = categorical(event)
    level = rng.integers(256, size=(4, *event))
    expected = summed(np.log(np.take_along_axis(p, level[..., None], -1)))
    assert np.allclose(log_prob_of(decoder, level / 255, z), expected, rtol=1e-12)
    assert np.allclose(decoder(z).mean.detach(), p @ (np.arange(256) / 255), rtol=1e-12)


def test_decoder_categorical_draws_each_level_as_often_as_its_probability_says():
    decoder, p, z, _ = categorical()
    level = (decoder(z).sample((5_000,)) * 255).round()
    # Sixteen bins of sixteen levels: of a single level too few are drawn.
    drawn = (level // 16)[..., None] == torch.arange(16)
    assert within(drawn.double(), p.reshape(*p.shape[:-1], 16, 16).sum(-1))


@pytest.mark.parametrize("components", [1, 2, 3, 4, 8])
def test_decoder_categorical_starts_with_every_grey_level_in_reach(components):
    # Components that begin alike would stay alike, and a level out of reach would cost its data.
    x, logits = torch.arange(256).view(256, 1) / 255, torch.zeros(256, components)
    with torch.no_grad():
        log_p = lab.DecoderCategorical(nn.Identity(), components).log_prob(x, logits)
    assert log_p.min() > math.log(1e-3 / 256)


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


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4,)])
def test_channels_that_are_no_multiple_of_the_components_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match="channels") as error:
        lab.DecoderCategorical(nn.Identity(), 2)(torch.zeros(shape))
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
