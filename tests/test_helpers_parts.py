"""Every part with every other, the lab's and foreign ones, on every kind of data."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Binomial, Independent, Laplace
from torchvision.models import resnet18

import vae_helpers as lab
import vae_networks
from tools import ForeignPrior, FullCovariance, run, tiny_vae

LATENTS = 2
KINDS = {"images": (1, 8, 8), "signals": (2, 12), "table": (7,), "points": (2,)}


class DecoderBinomial(lab.Conditional):
    """Another likelihood in three lines: a proper distribution over the levels 0 … 255."""

    def distribution(self, out):
        levels = Binomial(255, logits=out, validate_args=False)
        return Independent(levels, out.ndim - 1, validate_args=False)


# ---------------------------------------------------------------------------- the parts


def convolutional(shape, outputs):
    """A network for images or for 1-D signals."""
    if len(shape) == 3:
        return vae_networks.conv_encoder(shape, outputs, width=4)
    first = nn.Conv1d(shape[0], 4, 4, stride=2, padding=1)
    return nn.Sequential(first, nn.SiLU(), nn.Flatten(), nn.Linear(4 * shape[1] // 2, outputs))


ENCODERS = {
    "mlp": lambda shape: lab.EncoderGaussian(vae_networks.mlp(shape, [16], 2 * LATENTS)),
    "conv": lambda shape: lab.EncoderGaussian(convolutional(shape, 2 * LATENTS)),
    "full covariance": lambda shape: FullCovariance(
        vae_networks.mlp(shape, [16], LATENTS + LATENTS**2), LATENTS
    ),
}
PRIORS = {
    "Gaussian": lambda encoder, shape: lab.PriorGaussian(LATENTS),
    "mixture": lambda encoder, shape: lab.PriorMixture(LATENTS, 3),
    "autoregressive": lambda encoder, shape: lab.PriorAutoregressive(LATENTS, 8, 2),
}
DECODERS = {
    "Gaussian": lab.DecoderGaussian,
    "Gaussian, fixed": lambda net: lab.DecoderGaussian(net, 0.3),
    "Gaussian, net": lambda net: lab.DecoderGaussian(net, "net"),
    "Binomial": DecoderBinomial,
} | {  # all others of the lab, those to come included
    name: part
    for name, part in vars(lab).items()
    if name.startswith("Decoder") and part is not lab.DecoderGaussian
}


def decoder_of(name, shape):
    """The decoder with the network that it needs: some ask for several channels per channel."""
    for channels in range(1, 9):
        decoder = DECODERS[name](vae_networks.mlp(LATENTS, [16], (channels * shape[0], *shape[1:])))
        try:
            fits = decoder(torch.zeros(3, LATENTS)).event_shape == shape
        except ValueError:  # it says that it needs more
            continue
        if fits:
            return decoder
    raise AssertionError(f"no number of channels suits {name}")


def data_of(decoder, shape, n=48):
    """Data with two degrees of freedom, in the decoder's support."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(n, 2, generator=generator)
    x = torch.tanh(factors @ torch.randn(2, int(np.prod(shape)), generator=generator))
    x = x.view(n, *shape)
    support = decoder(torch.zeros(1, LATENTS)).support
    # From the narrowest kind to the widest: bits, levels in [0, 1], whole levels, [0, 1], reals.
    levels = ((x + 1) * 127.5).round()
    kinds = ((x > 0).float(), levels / 255, levels, (x + 1) / 2, x)
    outside = (0.5 + 0 * x, 0.5 + 0 * x, 255.5 + 0 * x, 1.5 + 0 * x, None)
    for data, beyond in zip(kinds, outside, strict=True):
        if support.check(data).all() and (beyond is None or not support.check(beyond).any()):
            return data
    raise AssertionError(f"no data for {support}")


# ------------------------------------------------------------------------------ the matrix


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("kind", "encoder"),
    sorted({*product(KINDS, ENCODERS)} - {*product(["table", "points"], ["conv"])}),
)
def test_every_encoder_decoder_and_prior_work_together(kind, encoder, decoder, prior):
    shape = KINDS[kind]
    q = ENCODERS[encoder](shape)
    vae = lab.VAE(q, decoder_of(decoder, shape), PRIORS[prior](q, shape))
    x = data_of(vae.decoder, shape)
    history = run(vae, x, epochs=6, batch_size=16, lr=0.01)
    assert history.test_mean[-1] < history.test_mean[0]
    assert vae.sample(3).shape == (3, *shape)
    assert vae.reconstruct(x).shape == x.shape
    some = x[:12]
    bound = vae.log_marginal(some, 30)
    assert bound.shape == (12,)
    elbo = vae.elbo(some.repeat(20, *[1] * len(shape))).value.detach().view(20, 12).mean(1)
    assert elbo.mean() <= bound.mean() + 4 * elbo.std() / 20**0.5


def test_every_prior_of_the_lab_is_in_the_matrix():
    # A new one may be built in a way of its own: then PRIORS wants a line.
    made = {type(make(ENCODERS["mlp"]((3,)), (3,))) for make in PRIORS.values()}
    assert {p for name, p in vars(lab).items() if name.startswith("Prior")} <= made


@pytest.mark.parametrize(
    ("decoder", "remedy"),
    [
        ("DecoderBernoulli", "DecoderGaussian"),
        ("DecoderContinuousBernoulli", r"bring them into \[0, 1\]"),
        ("DecoderCategorical", "DecoderGaussian"),
        ("Binomial", "DecoderGaussian"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_for_other_data_is_refused_with_the_remedy(kind, decoder, remedy):
    shape = KINDS[kind]
    vae = lab.VAE(ENCODERS["mlp"](shape), decoder_of(decoder, shape), lab.PriorGaussian(LATENTS))
    real = data_of(lab.DecoderGaussian(nn.Identity()), shape)
    with pytest.raises(
        ValueError, match=f"test set, before training: .*support.*{remedy}"
    ) as error:
        run(vae, real)
    assert len(str(error.value)) < 250  # and not the bounds of every pixel


@pytest.mark.parametrize("kind", ["table", "points"])
def test_a_convolutional_network_for_data_that_are_no_images_is_refused(kind):
    with pytest.raises(ValueError, match=r"channels, height, width"):
        vae_networks.conv_encoder(KINDS[kind], 4)


# ---------------------------------------------------------------- foreign parts, exchanged


class DecoderLaplace(nn.Module):
    """A decoder that inherits nothing from the lab."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        loc = self.net(z)
        return Independent(Laplace(loc, 0.1), loc.ndim - 1)


def residual_encoder():
    net = resnet18(weights=None, num_classes=2 * LATENTS)
    net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)  # one channel, not three
    return lab.EncoderGaussian(net)


def generator_decoder():
    """The generator of a GAN, which asks for (B, D, 1, 1)."""
    return lab.DecoderGaussian(
        nn.Sequential(
            nn.Unflatten(1, (LATENTS, 1, 1)),
            nn.ConvTranspose2d(LATENTS, 8, 4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
        )
    )


@pytest.mark.parametrize(
    ("attribute", "part"),
    [
        ("encoder", residual_encoder),
        ("encoder", lambda: ENCODERS["full covariance"]((1, 8, 8))),
        ("decoder", generator_decoder),
        ("decoder", lambda: DecoderLaplace(vae_networks.mlp(LATENTS, [16], (1, 8, 8)))),
        ("decoder", lambda: lab.DecoderGaussian(vae_networks.conv_decoder(LATENTS, (1, 8, 8), 4))),
        ("prior", lambda: ForeignPrior(LATENTS)),
        ("prior", lambda: lab.PriorMixture(LATENTS, 5)),
    ],
)
def test_a_part_is_replaced_by_one_assignment_even_after_training(attribute, part):
    vae = tiny_vae((1, 8, 8), LATENTS)
    x = data_of(vae.decoder, (1, 8, 8))
    run(vae, x, epochs=2, batch_size=16)
    replacement = part()
    setattr(vae, attribute, replacement)
    assert getattr(vae, attribute) is replacement
    before = [p.detach().clone() for p in replacement.parameters()]
    history = run(vae, x, epochs=15, batch_size=16, lr=0.005)
    assert history.test_mean[-1] < history.test_mean[0]
    assert all((p != q).any() for p, q in zip(before, replacement.parameters(), strict=True))
    assert vae.sample(2).shape == (2, 1, 8, 8)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.log_marginal(x, 3).shape == (len(x),)


def test_beta_and_the_estimator_are_replaced_by_assignment_too():
    vae, x = tiny_vae(), torch.randn(4, 6)
    losses = []
    for vae.beta, vae.analytic_kl in ((1, True), (5, True), (1, False)):
        torch.manual_seed(0)
        losses.append(vae.loss(x).item())
    assert len(set(losses)) == 3
