"""What a trained model tells about itself, against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import vae_helpers as lab
from tools import Gives, LinearGaussian, tiny_vae, within
from vae_kit.diagnostics import LatentUnits, bits_per_dim, latent_units, log_marginal
from vae_kit.parts import PriorAutoregressive


@pytest.mark.parametrize("chunk", [1, 2, 7, 9, 40])
@pytest.mark.parametrize(("points", "samples"), [(1, 1), (1, 20), (3, 7), (9, 1), (9, 20)])
def test_log_marginal_is_exact_on_the_posterior_and_decodes_no_more_than_a_chunk(
    chunk, points, samples
):
    linear, sizes = LinearGaussian(), []
    vae, x = linear.vae(), linear.data(points)
    vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = log_marginal(vae, x, samples, chunk)
    assert found.dtype == torch.float64 and not found.requires_grad
    assert np.allclose(found, linear.log_p(x), rtol=1e-10)
    assert max(sizes) <= chunk
    assert sum(sizes) == points * samples
    assert len(sizes) <= math.ceil(points / chunk) * math.ceil(samples / (max(1, chunk // points)))


@pytest.mark.parametrize("samples", [1, 10, 200])
def test_log_marginal_estimates_p_without_bias_whatever_the_number_of_samples(linear, samples):
    x = linear.data(1)
    for n, chunk in ((111, 37), (5000, 2048)):
        estimates = log_marginal(linear.vae(0.1, 1.3), x.expand(n, 5), samples, chunk).numpy()
        assert within(np.exp(estimates - linear.log_p(x)), 1)


def test_log_marginal_takes_latents_of_any_shape_and_computes_densities_in_full_precision():
    encoder = lab.EncoderGaussian(nn.Conv2d(1, 4, 4, 4))
    decoder = lab.DecoderBernoulli(nn.ConvTranspose2d(2, 1, 4, 4))
    vae = lab.VAE(encoder, decoder, lab.PriorGaussian((2, 2, 2)))
    other = tiny_vae((1, 8, 8), decoder=lab.DecoderBernoulli, prior=PriorAutoregressive(2, 16))
    for part in (encoder, decoder, other.encoder, other.decoder):
        for weights in part.parameters():
            nn.init.zeros_(weights)  # x is a row of fair coins
    nn.init.constant_(encoder.net.bias[2:], math.log(math.expm1(1 - 1e-3)))  # and q is the prior
    x, coins = torch.ones(3, 1, 8, 8), torch.full((3,), -64 * math.log(2))
    assert torch.allclose(log_marginal(vae, x, 20), coins, rtol=1e-5)
    results = []
    for autocast in (False, True):  # the networks give zeros in any precision
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(log_marginal(other, x, 20))
    assert torch.equal(*results) and not torch.allclose(results[0], coins)


def test_log_marginal_refuses_what_the_elbo_refuses():
    x = torch.rand(4, 6)
    for prior in (lab.PriorGaussian(1), lab.PriorGaussian(3), Gives(lambda: Normal(x[0, :2], 1.0))):
        with pytest.raises(ValueError, match="prior"):
            log_marginal(tiny_vae(prior=prior), x, 2)
    vae = tiny_vae()
    vae.encoder = Gives(lambda x: Normal(x[:, :2], 1.0))
    with pytest.raises(ValueError, match="encoder"):
        log_marginal(vae, x, 1)
    with pytest.raises(ValueError, match="Bernoulli"):
        log_marginal(tiny_vae(decoder=lab.DecoderBernoulli), x, 1)
    with pytest.raises(TypeError, match="bytes"):
        log_marginal(tiny_vae(), (255 * x).byte(), 1)


def test_numbers_that_are_not_finite_are_refused_and_counted():
    x = torch.randn(20, 6)
    x[3, 2] = x[3, 3] = x[5, 0] = math.nan
    with pytest.raises(FloatingPointError, match="no number for 2 of 20"):
        log_marginal(tiny_vae(), x, 3)
    for points in (x, torch.full((20, 6), math.inf)):
        with pytest.raises(FloatingPointError, match="20 points, or their variance"):
            latent_units(tiny_vae(), points)
    with (
        pytest.warns(UserWarning, match="degrees of freedom"),
        pytest.raises(FloatingPointError, match="1 points, or their variance"),
    ):
        latent_units(tiny_vae(), x[:1])
    with pytest.raises(TypeError, match="bytes"):
        latent_units(tiny_vae(), torch.zeros(4, 6, dtype=torch.uint8))


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_latent_units_know_which_of_them_vary_with_the_data(linear, batch_size):
    x = linear.data(3000)
    units = latent_units(linear.vae(), x.numpy(), batch_size)
    mean = (x.numpy() - linear.b) @ linear.gain.T
    assert np.allclose(units.mean, mean)
    assert np.allclose(units.variance, mean.var(0, ddof=1))
    kl = 0.5 * (mean**2 + linear.variance - np.log(linear.variance) - 1)
    assert np.allclose(units.kl, kl.mean(0))
    assert repr(units).startswith("2 of 2 latent")


def test_a_unit_is_active_beyond_a_variance_of_a_hundredth_and_the_line_says_how_many():
    variance, kl = torch.tensor([0.5, 0.0, 0.0099, 0.0101]), torch.tensor([1, 0, 0, 2.04])
    said = repr(LatentUnits(torch.zeros(9, 4), variance, kl))
    assert all(word in said for word in ("2 of 4", "3.0 nats", "2.0"))


@pytest.mark.parametrize(
    ("nats", "levels", "bits"),
    [
        (784 * math.log(256), 1, 8),  # uniform over 256 levels, as a mass
        (0, 256, 8),  # and as a density on [0, 1]
        (-784 * math.log(256), 256, 0),  # a density of 256 on one bin, which is certainty
    ],
)
def test_bits_per_dim(nats, levels, bits):
    for several in (float(nats), np.full(3, nats), torch.full((3,), nats)):
        found = bits_per_dim(several, 784, levels)
        assert type(found) is type(several)
        assert np.allclose(found, bits, atol=1e-5)
    assert bits_per_dim(math.log(2), 1) == pytest.approx(1), "a fair coin"
