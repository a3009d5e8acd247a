"""The kit's decoders and priors against closed forms, and every part with every other."""

import copy
import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import nn
from torch.distributions import kl_divergence

import vae_helpers as lab
from tools import EVENTS, Fixed, case, log_prob_of, scale_of, within
from vae_kit import parts
from vae_kit.diagnostics import log_marginal
from vae_kit.networks import mlp

LOGITS = [0.0, 1e-6, 1e-3, 0.03, 0.19, 0.21, 1, 4, 15.9, 16, 30, 100, 999]


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
def test_the_continuous_bernoulli_is_exact_in_density_gradient_and_mean(dtype, off):
    for logit in (*LOGITS, *(-size for size in LOGITS)):
        given = torch.tensor([logit], dtype=dtype, requires_grad=True)
        exact, p = mpmath.mpf(given.item()), parts.ContinuousBernoulli(given)
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
    assert parts.MAX_LOGIT == 1 / 1e-3  # a mean as near to an end as the least scale
    for sign in (1, -1):
        logits = torch.tensor([1e4 * sign, 1e3 * sign], requires_grad=True)
        p = parts.ContinuousBernoulli(logits)
        found = p.log_prob(torch.tensor([0.3, 0.3]))
        assert found[0] == found[1]
        (slope,) = torch.autograd.grad(found[0], logits)
        mean = 1 - 1e-3 if sign > 0 else 1e-3
        assert slope[0] == pytest.approx(0.3 - mean)  # and the way back is known
        likely = torch.full((2,), float(sign > 0))
        assert p.log_prob(likely)[0].item() == pytest.approx(math.log(1e3), rel=1e-6)
        assert p.mean.tolist() == pytest.approx([mean, mean])


@pytest.mark.parametrize("logit", [1e-3, 0.19, 0.21, -4.0, 100.0])
def test_the_continuous_bernoulli_integrates_to_one_and_draws_what_it_says(logit):
    logits = torch.full((20_000,), logit, dtype=torch.float64, requires_grad=True)
    p = parts.ContinuousBernoulli(logits)
    x = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    mass = parts.ContinuousBernoulli(logits[:1].detach()).log_prob(x).exp() / 100_000
    mean, second = (mass @ x).item(), (mass @ x**2).item()
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    drawn = p.rsample()
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert within(drawn.detach(), mean) and within(drawn.detach() ** 2, second)
    drawn.sum().backward()  # dE[x]/dl is the variance, in an exponential family
    assert within(logits.grad, second - mean**2)


def categorical(event=(2, 3), components=3):
    """A ``DecoderCategorical``, its probabilities ``(B, *event, 256)`` by NumPy, and z."""
    rng, logits, z = case((components * event[0], *event[1:]))
    decoder = parts.DecoderCategorical(Fixed(logits), components).double()
    nn.init.normal_(decoder.histograms, std=0.1)
    weights = np.moveaxis(logits.reshape(4, components, *event), 1, -1)
    histograms = 10 * decoder.histograms.detach().numpy()
    weights = np.exp(weights - logsumexp(weights, axis=-1, keepdims=True))
    histograms = np.exp(histograms - logsumexp(histograms, axis=-1, keepdims=True))
    return decoder, weights @ histograms, z, rng


@pytest.mark.parametrize("event", EVENTS[1:])
def test_decoder_categorical_is_a_mixture_of_histograms(event):
    decoder, p, z, rng = categorical(event)
    level = rng.integers(256, size=(4, *event))
    expected = np.log(np.take_along_axis(p, level[..., None], -1)).reshape(4, -1).sum(1)
    assert np.allclose(log_prob_of(decoder, level / 255, z), expected, rtol=1e-12)
    assert np.allclose(decoder(z).mean.detach(), p @ (np.arange(256) / 255), rtol=1e-12)
    assert decoder(z).event_shape == event


def test_decoder_categorical_draws_each_level_as_often_as_it_says_and_pixels_by_themselves():
    decoder, p, z, _ = categorical()
    x = 255 * decoder(z).sample((5_000,))
    level = x.round()
    assert (x - level).abs().max() < 1e-9
    # Sixteen bins of sixteen levels: of a single level too few are drawn.
    drawn = (level // 16)[..., None] == torch.arange(16)
    assert within(drawn.double(), p.reshape(*p.shape[:-1], 16, 16).sum(-1))
    off = level.double() - torch.from_numpy(p @ np.arange(256))
    assert within(off[..., 0, 0] * off[..., 1, 2], 0)


@pytest.mark.parametrize("components", [1, 2, 3, 4])
def test_histograms_begin_as_bumps_side_by_side(components):
    decoder = parts.DecoderCategorical(nn.Identity(), *[components] * (components != 4))
    centres = np.linspace(0, 1, components)[:, None]
    widths = np.full((components, 1), 1 / components)
    if components > 2:  # narrow ones at black and at white
        widths[0] = widths[-1] = 1 / 256
    bumps = np.exp(-np.abs(np.linspace(0, 1, 256) - centres) / widths)
    x, one = torch.arange(256).view(256, 1) / 255, torch.full((components, components), -1e4)
    for bump, weights in zip(bumps, one.fill_diagonal_(0), strict=True):
        found = decoder.log_prob(x, weights.expand(256, -1)).detach()
        assert np.allclose(found, np.log(bump / bump.sum()), atol=1e-4)


@pytest.mark.parametrize("bad", [0.5, 1e-5, -1 / 255, 256 / 255, math.nan])
def test_what_is_no_grey_level_is_refused_and_so_is_what_is_beyond_black_and_white(bad):
    grey = parts.DecoderCategorical(nn.Identity(), 1)
    x, logits = torch.tensor([[0.0, 1.0, 128 / 255]]), torch.zeros(1, 3)
    assert grey.log_prob(x, logits).isfinite()
    x[0, 1] = bad
    with pytest.raises(ValueError, match="SharedHistograms"):
        grey.log_prob(x, logits)
    if not 0 <= bad <= 1:
        with pytest.raises(ValueError, match="ContinuousBernoulli"):
            parts.DecoderContinuousBernoulli(nn.Identity()).log_prob(x, logits)


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (2, 3), (20, 100)])
def test_prior_mixture_is_a_weighted_sum_of_normals(dim, components):
    prior = parts.PriorMixture(dim, components).double()
    assert components == 1 or prior.loc.std() > 0.1  # components that begin alike would stay alike
    for parameter in prior.parameters():
        nn.init.normal_(parameter)
    z = np.random.default_rng(0).normal(size=(7, dim))
    logits, loc, raw = (p.detach().numpy() for p in (prior.logits, prior.loc, prior.raw_scale))
    terms = norm(loc, scale_of(raw)).logpdf(z[:, None]).sum(2)
    expected = logsumexp(terms + logits - logsumexp(logits), axis=1)
    assert np.allclose(prior.log_prob(torch.from_numpy(z)).detach(), expected, rtol=1e-12)


def test_prior_mixture_begins_with_equal_weights_and_draws_from_every_component():
    prior = parts.PriorMixture(1, 2)
    assert prior().mixture_distribution.probs.tolist() == [0.5, 0.5]
    spread = prior().component_distribution.stddev.flatten().tolist()
    assert spread == pytest.approx([math.log(2) + 1e-3] * 2)
    prior.loc.data = torch.tensor([[-50.0], [50.0]])
    prior.logits.data = torch.tensor([0, math.log(3)])
    assert within((prior().sample((20_000,)) > 0).double(), 0.75)


def autoregressive(dim, **options):
    prior = parts.PriorAutoregressive(dim, **options).double()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.5)
    return prior


@pytest.mark.parametrize(("dim", "hidden"), [(1, 32), (2, 32), (6, 32), (6, 5), (20, 5), (7, 2)])
def test_each_factor_of_the_autoregressive_prior_sees_the_earlier_variables_only(dim, hidden):
    prior, z = autoregressive(dim, hidden=hidden, components=3), torch.randn(1, dim).double()
    means = torch.autograd.functional.jacobian(lambda z: prior.factors(z).mean[0], z)[:, 0]
    assert not means.triu().any()  # neither its own nor a later one
    if hidden >= dim - 1:
        assert means.count_nonzero() == dim * (dim - 1) / 2  # and it does see every earlier one
    else:  # few hidden units are spread over all dimensions
        assert means[-1, : dim - dim // hidden].all()


def test_the_autoregressive_prior_integrates_to_one_and_samples_what_it_says():
    prior = autoregressive(2, hidden=8, components=2)
    line = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid, z = torch.cartesian_prod(line, line), prior().sample((50_000,))
    mass = (prior.log_prob(grid).exp() * (line[1] - line[0]) ** 2).detach()
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    assert not z.requires_grad and prior().sample().shape == (2,)
    assert within(z, mass @ grid)
    assert within(z[:, :, None] * z[:, None], torch.einsum("n,ni,nj->ij", mass, grid, grid))


def test_the_autoregressive_prior_begins_wide_and_with_components_side_by_side():
    prior = parts.PriorAutoregressive(3)
    assert sum(p.numel() for p in prior.parameters()) == 256 * 4 + 257 * 3 * 3 * 4
    # The first factor sees nothing: what it gives are the biases.
    loc = prior.factors(torch.zeros(1, 3)).component_distribution.loc[0, 0]
    assert loc.tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    z = prior().sample((4000,))
    assert z.mean(0).abs().max() < 0.3 and 0.8 < z.std(0).min() <= z.std(0).max() < 1.4
    assert prior.last.weight.abs().max().item() == pytest.approx(0.3 / 16, rel=1e-2)


def test_logits_that_are_no_multiple_of_the_histograms_are_refused_with_the_decoder_s_name():
    with pytest.raises(RuntimeError, match=r"DecoderCategorical, given \(4, 3, 2\).*\[2, -1\]"):
        parts.DecoderCategorical(nn.Identity(), 2)(torch.zeros(4, 3, 2))


DECODERS = {  # with the channels that the network gives for each of the data's
    "one sigma": (lab.DecoderGaussian, 1),
    "fixed": (lambda net: lab.DecoderGaussian(net, 0.1), 1),
    "net": (lambda net: lab.DecoderGaussian(net, "net"), 2),
    "Bernoulli": (lab.DecoderBernoulli, 1),
    "continuous Bernoulli": (parts.DecoderContinuousBernoulli, 1),
    "categorical": (lambda net: parts.DecoderCategorical(net, 3), 3),
}
PRIORS = [
    lab.PriorGaussian,
    lambda dim: parts.PriorMixture(dim, 3),
    lambda dim: parts.PriorAutoregressive(dim, 8, 2),
]


def vae_of(name, event, dim=3, prior=PRIORS[0], **options):
    make, channels = DECODERS[name]
    out = (channels * event[0], *event[1:]) if event else ()
    encoder = lab.EncoderGaussian(mlp(event, [8], 2 * dim))
    return lab.VAE(encoder, make(mlp(dim, [8], out)), prior(dim), **options)


def suitable(name, x):
    """Real numbers brought into what the decoder takes."""
    if name == "Bernoulli":
        return (x > 0).to(x.dtype)
    if name == "categorical":
        return (255 * x.sigmoid()).round() / 255
    return x.sigmoid() if name == "continuous Bernoulli" else x


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", DECODERS)
def test_numbers_are_finite_and_of_the_right_kind_for_every_event_prior_and_size(name, device):
    # The meta device holds no numbers: what was created on a fixed device shows up as an error.
    fewer = zip(EVENTS[1:], PRIORS, [1, 1, 1], strict=True)  # it is slow
    every = product(EVENTS, PRIORS, [1e-6, 1, 1e6]) if device == "cpu" else fewer
    for i, (event, prior, size) in enumerate(every):
        event = event or ((2,) if DECODERS[name][1] > 1 else ())  # a scalar has no channels
        dtype, dim = (torch.float32, torch.float64)[i % 2], (1, 3, 64)[i // 2 % 3]
        vae = vae_of(name, event, dim, prior, beta=1e3 * (i % 4), analytic_kl=i % 5 > 0)
        vae = vae.to(device, dtype)
        x = suitable(name, size * torch.randn(4, *event, dtype=dtype)).to(device)
        numbers, loss = [*vae.elbo(x), log_marginal(vae, x, 5, chunk=7)], vae.loss(x)
        loss.backward()
        drawn = [vae.sample(4, True), vae.sample(4), vae.reconstruct(x), vae.reconstruct(x, False)]
        assert {t.shape for t in numbers} == {(4,)} and {t.shape for t in drawn} == {(4, *event)}
        found = [*numbers, *drawn, loss, *(p.grad for p in vae.parameters())]
        assert {(t.device.type, t.dtype) for t in found} == {(device, dtype)}
        assert device == "meta" or all(t.isfinite().all() for t in found)
        with torch.autocast("cpu", torch.bfloat16):
            assert vae.elbo(x).value.shape == (4,)


def calls_of(module):
    """What the module is given from now on, and what it gives."""
    calls = []
    module.register_forward_hook(lambda _, given, out: calls.append((given[0], out)))
    return calls


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
def test_sixteen_bits_make_the_networks_coarse_and_nothing_else(how, name):
    """What follows the outputs of the networks agrees with the same in float64."""
    event, autocast = (12, 8, 8), how == "autocast"
    dtype = torch.bfloat16 if autocast else getattr(torch, how)
    for prior in PRIORS if autocast else PRIORS[:2]:  # the third has a network, itself in 16 bits
        vae = vae_of(name, event, prior=prior)
        vae = vae if autocast else vae.to(dtype)
        exact = copy.deepcopy(vae).double()
        exact.encoder.net = exact.decoder.net = nn.Identity()
        decoded, *nets = map(calls_of, (vae.decoder, vae.encoder.net, vae.decoder.net))
        x = suitable(name, torch.randn(5, *event))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            elbo, loss = vae.elbo(x), vae.loss(x)
            assert torch.is_autocast_enabled("cpu") == autocast
        truth = []
        for (z, _), (_, to_q), (_, to_p) in zip(decoded, *nets, strict=True):
            assert to_q.dtype == to_p.dtype == dtype
            z, q, p = z.double(), exact.encoder(to_q.double()), exact.decoder(to_p.double())
            truth.append([p.log_prob(x.double()), q.log_prob(z) - exact.prior.log_prob(z)])
            if prior is lab.PriorGaussian:
                truth[-1][1] = kl_divergence(q, exact.prior())
        wanted = (*truth[0], (truth[1][1] - truth[1][0]).mean())
        for number, exactly in zip((*elbo, loss), wanted, strict=True):
            assert number.dtype == torch.float32
            torch.testing.assert_close(number.double(), exactly, rtol=1e-5, atol=2e-4)
