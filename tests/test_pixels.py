"""Distributions of pixels against closed forms, high precision and their own samples."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, logsumexp
from torch import nn

import vae_helpers as lab
from tools import (
    EVENTS,
    LOGITS,
    Fixed,
    assert_mean_is_that_of_samples,
    case,
    log_prob_of,
    summed,
    within,
)
from vae_pixels import MAX_LOGIT, ContinuousBernoulli


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


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize("logit", [*LOGITS, 999.0, -999.0])
def test_the_continuous_bernoulli_is_exact_in_density_gradient_and_mean(logit, dtype, off):
    given = torch.tensor([logit], dtype=dtype, requires_grad=True)
    exact, p = mpmath.mpf(given.item()), ContinuousBernoulli(given)
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
    bound = MAX_LOGIT
    logits = torch.tensor([1e4, bound], requires_grad=True)
    p = ContinuousBernoulli(logits)
    log_prob = p.log_prob(torch.tensor([0.3, 0.3]))
    assert log_prob[0] == log_prob[1]
    (slope,) = torch.autograd.grad(log_prob[0], logits)
    assert slope[0] == pytest.approx(0.3 - 1 + 1 / bound)  # and the way back is known
    assert p.log_prob(torch.ones(2))[0].item() == pytest.approx(math.log(bound), rel=1e-6)


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


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4,)])
def test_channels_that_are_no_multiple_of_the_components_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match="channels") as error:
        lab.DecoderCategorical(nn.Identity(), 2)(torch.zeros(shape))
    assert str(shape) in str(error.value)
