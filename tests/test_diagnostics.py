"""What a trained model tells about itself."""

import math

import numpy as np
import pytest
import torch

import vae_diagnostics as diagnostics
from tools import tiny_vae


@pytest.mark.parametrize(
    ("nats", "dims", "levels", "bits"),
    [
        (math.log(2), 1, 1, 1.0),  # a fair coin
        (28 * 28 * math.log(256), 784, 1, 8.0),  # uniform over 256 levels, as a mass
        (0.0, 784, 256, 8.0),  # and as a density on [0, 1]
        (-784 * math.log(256), 784, 256, 0.0),  # a density of 256 on one bin: certainty
    ],
)
def test_bits_per_dim(nats, dims, levels, bits):
    assert diagnostics.bits_per_dim(nats, dims, levels) == pytest.approx(bits)
    for several in (np.full(3, nats), torch.full((3,), nats)):
        found = diagnostics.bits_per_dim(several, dims, levels)
        assert type(found) is type(several)
        assert np.allclose(found, bits, atol=1e-5)


def test_latent_units_know_which_of_them_vary_with_the_data(linear):
    x = linear.data(3000)
    units = diagnostics.latent_units(linear.vae(), x)
    mean = (x.numpy() - linear.b) @ linear.gain.T
    assert np.allclose(units.mean, mean)
    assert np.allclose(units.variance, mean.var(0, ddof=1))
    kl = 0.5 * (mean**2 + linear.variance - np.log(linear.variance) - 1)
    assert np.allclose(units.kl, kl.mean(0))
    assert units.active.tolist() == [True, True]


def test_latent_units_are_told_in_a_line():
    variance, kl = torch.tensor([0.5, 0.0, 0.02]), torch.tensor([1, 0, 2.04])
    units = diagnostics.LatentUnits(torch.zeros(9, 3), variance, kl)
    assert repr(units) == (
        "2 of 3 latent dimensions are active, KL 3.0 nats in all; the largest has 2.0"
    )


def test_latent_units_warn_of_posterior_collapse():
    vae = tiny_vae(latents=3)
    with torch.no_grad():
        vae.encoder.net[-1].weight[1:] = 0  # one mean of three still varies
        vae.encoder.net[-1].weight[0] *= 10
    with pytest.warns(UserWarning, match="posterior collapse: 2 of 3"):
        units = diagnostics.latent_units(vae, torch.randn(200, 6))
    assert units.active.tolist() == [True, False, False]


def test_one_dead_unit_of_three_is_no_collapse():
    vae = tiny_vae(latents=3)
    with torch.no_grad():
        vae.encoder.net[-1].weight[:2] *= 10
        vae.encoder.net[-1].weight[2] = 0
    units = diagnostics.latent_units(vae, torch.randn(200, 6))  # a warning would be an error
    assert units.active.tolist() == [True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_and_no_collapse_is_told(bad):
    x = torch.randn(20, 6)
    x[3, 2] = bad
    with pytest.raises(FloatingPointError, match="1 values that are NaN or infinite"):
        diagnostics.latent_units(tiny_vae(), x)
    vae = tiny_vae()
    with torch.no_grad():
        vae.encoder.net[0].weight[0, 0] = bad
    with pytest.raises(FloatingPointError, match="encoder's output is not finite"):
        diagnostics.latent_units(vae, torch.randn(20, 6))


def test_one_point_does_not_tell_what_varies():
    with pytest.raises(ValueError, match="at least two"):
        diagnostics.latent_units(tiny_vae(), torch.randn(1, 6))
