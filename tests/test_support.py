"""Data and parts that do not fit: each error says what was wrong, and its remedy works."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    NegativeBinomial,
    Normal,
    Poisson,
)

import vae_data
import vae_helpers as lab
from tools import run, tiny_vae
from vae_networks import mlp

GREY = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
COUNTS = torch.arange(72).view(12, 6) % 7


class DecoderPoisson(lab.Conditional):
    def distribution(self, out):
        return Independent(Poisson(out.exp(), validate_args=False), out.ndim - 1)


class DecoderNegativeBinomial(lab.Conditional):
    def distribution(self, out):
        return Independent(NegativeBinomial(3.0, logits=out, validate_args=False), out.ndim - 1)


DECODERS = {
    "Gaussian": lab.DecoderGaussian,
    "Bernoulli": lab.DecoderBernoulli,
    "continuous Bernoulli": lab.DecoderContinuousBernoulli,
    "categorical": functools.partial(lab.DecoderCategorical, components=1),
    "Poisson": DecoderPoisson,
    "negative binomial": DecoderNegativeBinomial,
}
DATA = {
    "grey floats": GREY,
    "floats in double precision": GREY.double(),
    "real numbers": torch.randn(12, 6, generator=torch.Generator().manual_seed(0)),
    "one negative number": torch.where(torch.arange(12)[:, None] == 3, -0.5, GREY),
    "a constant beyond 1": torch.full((12, 6), 3.0),
    "raw 8-bit images": (GREY * 255).to(torch.uint8),
    "8-bit zeros and ones": (GREY > 0.5).to(torch.uint8),
    "booleans": GREY > 0.5,
    "counts": COUNTS,
    "counts as floats": COUNTS.float(),
    "negative whole numbers": COUNTS - 3,
    "an array of counts": COUNTS.numpy(),
    "an array of booleans": (GREY > 0.5).numpy(),
    "levels": (GREY * 255).round() / 255,
}


def apply(remedy, x, decoder):
    """The remedies that an error names, each as (data, settings of fit, decoder)."""
    found = []
    floats = x.astype("float32") if isinstance(x, np.ndarray) else x.float()
    numbers = torch.as_tensor(floats)
    other = "Gaussian" if "such as DecoderGaussian" in remedy else decoder
    if transform := re.search(r"transform=(scale|dequantize|binarize)", remedy):
        found.append((x, {"transform": getattr(vae_data, transform[1])}, decoder))
    if "x.float()" in remedy:
        found.append((floats, {}, other))
    elif "DecoderGaussian" in remedy:
        found.append((x, {}, "Gaussian"))
    if "torch.bernoulli" in remedy:
        found.append((x, {"transform": torch.bernoulli}, decoder))
    if "DecoderContinuousBernoulli" in remedy:
        found.append((x, {}, "continuous Bernoulli"))
    if "(x - x.min()) / (x.max() - x.min())" in remedy:
        found.append(((numbers - numbers.min()) / (numbers.max() - numbers.min()), {}, decoder))
    if "(x * 255).round() / 255" in remedy:
        found.append(((numbers * 255).round() / 255, {}, decoder))
    return found


def fitted(x, decoder, **settings):
    return run(tiny_vae(decoder=DECODERS[decoder]), x, batch_size=5, **settings)


FITS = {
    ("Gaussian", name)
    for name, x in DATA.items()
    if isinstance(x, torch.Tensor) and x.is_floating_point()
} | {
    *(("continuous Bernoulli", n) for n in ("grey floats", "floats in double precision", "levels")),
    ("categorical", "levels"),
    ("Poisson", "counts as floats"),
    ("Poisson", "a constant beyond 1"),
    ("negative binomial", "counts as floats"),
    ("negative binomial", "a constant beyond 1"),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_remedy_works_on_the_very_data_that_were_refused(decoder, name):
    x = DATA[name]
    if (decoder, name) in FITS:
        assert np.isfinite(fitted(x, decoder).test_mean).all()
        return
    with pytest.raises((TypeError, ValueError)) as error:
        fitted(x, decoder)
    assert str(error.value).startswith("test set, before training: ")
    remedies = apply(str(error.value), x, decoder)
    assert remedies, str(error.value)
    for data, settings, other in remedies:
        assert np.isfinite(fitted(data, other, **settings).test_mean).all()


def test_data_in_the_middle_of_training_are_named_with_their_step():
    data = torch.ones(20, 6)
    data[13] = 0.5
    with pytest.raises(ValueError, match=r"train, epoch 1, step \d: data outside .*Boolean"):
        run(tiny_vae(decoder=lab.DecoderBernoulli), data, test=torch.ones(4, 6), batch_size=5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_points_that_are_not_finite_are_counted_and_both_remedies_work(bad):
    x = torch.randn(12, 6)
    x[2, 1] = x[2, 3] = x[7, 0] = bad
    with pytest.raises(FloatingPointError, match=r"3 values .* in 2 of 12 data points") as error:
        run(tiny_vae(), x, batch_size=12)
    assert "x.nan_to_num()" in str(error.value)
    assert len(run(tiny_vae(), x.nan_to_num(posinf=0.0))) == 1
    assert "x[x.isfinite().reshape(len(x), -1).all(1)]" in str(error.value)
    left = x[x.isfinite().reshape(len(x), -1).all(1)]
    assert len(left) == 10
    assert len(run(tiny_vae(), left)) == 1


@pytest.mark.parametrize("look", ["reconstruct", "log_marginal"])
def test_looking_refuses_numbers_that_are_not_finite(look):
    x = torch.randn(5, 6)
    x[1, 1] = math.nan
    arguments = (3,) if look == "log_marginal" else ()
    with pytest.raises(FloatingPointError, match="1 values that are NaN"):
        getattr(tiny_vae(), look)(x, *arguments)


def test_weights_that_are_not_finite_are_named_by_log_marginal():
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.net[0].weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="no number for 5 of 5"):
        vae.log_marginal(torch.randn(5, 6), 3)


def test_values_outside_the_support_are_refused_also_where_x_minus_its_square_sums_to_0():
    data = torch.tensor([[0.5, 0.5, 0.5, -0.5]])
    assert (data - data**2).sum() == 0
    with pytest.raises(ValueError, match="outside the decoder's support, Boolean"):
        lab.DecoderBernoulli(nn.Identity()).log_prob(data, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("x", "out"), [((4, 3), (4, 5)), ((4, 3), (4, 3, 1)), ((4, 1, 4, 4), (4, 16)), ((4, 3), (2, 3))]
)
def test_an_event_that_is_not_the_data_s_is_refused_with_both_shapes(x, out):
    with pytest.raises(ValueError, match="shape") as error:
        lab.DecoderGaussian(nn.Identity()).log_prob(torch.zeros(x), torch.zeros(out))
    assert all(str(part) in str(error.value) for part in (x, out[:1], out[1:]))


# ------------------------------------------------------------------- parts that do not fit


class Gives(nn.Module):
    """A part that gives whatever it was told."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, *condition):
        return self.make(*condition)


def mixture_posterior(x):
    components = Independent(Normal(torch.zeros(len(x), 3, 2), torch.ones(())), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(x), 3)), components)


@pytest.mark.parametrize(
    ("part", "make", "words"),
    [
        ("encoder", lambda x: x, "encoder gave a Tensor, .* EncoderGaussian"),
        ("encoder", mixture_posterior, "MixtureSameFamily, which has no rsample"),
        ("decoder", lambda z: (z, z), "decoder gave a tuple, .* DecoderGaussian"),
        ("prior", lambda: torch.zeros(2), "prior gave a Tensor, .* PriorGaussian"),
    ],
)
def test_a_part_that_gives_no_usable_distribution_is_named(part, make, words):
    vae = tiny_vae()
    setattr(vae, part, Gives(make))
    with pytest.raises(TypeError, match=words):
        vae.elbo(torch.randn(4, 6))


class Heads(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.loc, self.scale = nn.Linear(6, outputs), nn.Linear(6, outputs)

    def forward(self, x):
        return self.loc(x), self.scale(x)


class EncoderOfHeads(lab.Conditional):
    def distribution(self, out):
        loc, log_scale = out
        assert loc.dtype == torch.float32
        return Independent(Normal(loc, log_scale.exp()), 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_of_two_heads_needs_a_rule_of_its_own_and_may_have_one(precision):
    vae = tiny_vae()
    vae.encoder = lab.EncoderGaussian(Heads(2))
    with (
        lab.networks_in(vae, precision),
        pytest.raises(TypeError, match=r"gave a tuple.*torch\.cat"),
    ):
        vae.elbo(torch.randn(4, 6))
    vae.encoder = EncoderOfHeads(Heads(2))
    assert len(run(vae, torch.randn(20, 6), precision=precision)) == 1


def test_a_rule_s_own_error_is_not_hidden():
    class Wrong(lab.Conditional):
        def distribution(self, out):
            return out.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        Wrong(mlp(2, [], 2))(torch.zeros(1, 2))
