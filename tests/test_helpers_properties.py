"""Whatever the shapes, types and magnitudes: finite numbers of the right shape."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vae_data
import vae_distributions
import vae_helpers as lab
import vae_networks
from tools import LinearGaussian, figures, run, tiny_vae

thorough = settings(derandomize=True, deadline=None, database=None, max_examples=300)
brief = settings(thorough, max_examples=40)

events = st.lists(st.integers(1, 5), max_size=3).map(tuple)
batches = st.integers(1, 9)
latents = st.sampled_from([1, 2, 3, 7, 32, 512])
magnitudes = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
betas = st.sampled_from([0.0, 1.0, 1e3]) | st.floats(0, 1e3)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**32)

DECODERS = {  # with the data that suit it, made of standard normal numbers
    "one sigma": (lab.DecoderGaussian, lambda x, size: size * x),
    "fixed": (lambda net: lab.DecoderGaussian(net, 0.1), lambda x, size: size * x),
    "net": (lambda net: lab.DecoderGaussian(net, "net"), lambda x, size: size * x),
    "Bernoulli": (lab.DecoderBernoulli, lambda x, size: (x > 0).to(x.dtype)),
    "continuous Bernoulli": (lab.DecoderContinuousBernoulli, lambda x, size: x.sigmoid()),
    "levels": (
        lambda net: lab.DecoderCategorical(net, components=2),
        lambda x, size: (255 * (size * x).sigmoid()).round() / 255,
    ),
}
CHANNELS = {"net": 2, "levels": 2}  # that the network gives for each of the data's, if not one
PRIORS = {
    "Gaussian": lambda encoder, dim, x: lab.PriorGaussian(dim),
    "mixture": lambda encoder, dim, x: lab.PriorMixture(dim, 3),
    "autoregressive": lambda encoder, dim, x: lab.PriorAutoregressive(dim, 8, 2),
}
models = set()  # that were looked at


@thorough
@given(
    event=events, batch=batches, dim=latents, size=magnitudes, beta=betas, dtype=dtypes, seed=seeds,
    decoder=st.sampled_from(sorted(DECODERS)), prior=st.sampled_from(sorted(PRIORS)),
    analytic=st.booleans(),
)  # fmt: skip
def test_loss_and_gradients_are_finite_and_shapes_right_for_all_data_and_models(
    event, batch, dim, size, beta, dtype, seed, decoder, prior, analytic
):
    torch.manual_seed(seed)
    make, suit = DECODERS[decoder]
    out = event
    if decoder in CHANNELS:
        event = event or (2,)  # a scalar has no channels
        out = (CHANNELS[decoder] * event[0], *event[1:])
    x = suit(torch.randn(batch, *event, dtype=dtype), size)
    encoder = lab.EncoderGaussian(vae_networks.mlp(event, [8], 2 * dim)).to(dtype)
    vae = lab.VAE(
        encoder,
        make(vae_networks.mlp(dim, [8], out)),
        PRIORS[prior](encoder, dim, x),
        beta,
        analytic_kl=analytic,
    ).to(dtype)
    elbo = vae.elbo(x)
    for term in (*elbo, elbo.value):
        assert (term.shape, term.dtype) == ((batch,), dtype)
        assert term.isfinite().all()
    if analytic and prior == "Gaussian":
        assert (elbo.kl >= 0).all()
    loss = vae.loss(x)
    assert (loss.shape, loss.dtype) == ((), dtype)
    loss.backward()
    gradients = [p.grad for p in vae.parameters() if p.grad is not None]
    assert loss.isfinite()
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    for drawn, n in ((vae.sample(3), 3), (vae.reconstruct(x), batch)):
        assert (drawn.shape, drawn.dtype) == ((n, *event), dtype)
        assert drawn.isfinite().all()
    bound = vae.log_marginal(x, 3, chunk=5)
    assert (bound.shape, bound.dtype) == ((batch,), dtype)
    assert bound.isfinite().all()
    models.add((event, batch, dim, size, beta, dtype, decoder, prior, analytic))
    shapes = {model[:3] for model in models}
    figures["properties"] = (
        f"{len(models)} random models and data, of {len(shapes)} shapes: all numbers finite"
    )


@brief
@given(
    dims=st.integers(1, 8), dim=st.integers(1, 4), s=st.floats(0.05, 5), seed=seeds,
    shift=st.floats(-1, 1), widen=st.floats(0.5, 2),
)  # fmt: skip
def test_the_elbo_lies_below_log_p_on_solvable_models(dims, dim, s, seed, shift, widen):
    model = LinearGaussian(dims, min(dims, dim), s)
    torch.manual_seed(seed)
    x = model.data(1)
    value = model.vae(shift, widen).elbo(x.expand(4000, dims)).value.detach()
    error = value.std().item() / math.sqrt(4000)
    assert value.mean() <= model.log_p(x) + 5 * error + 1e-9
    exact = model.vae(analytic_kl=False).elbo(x).value.detach()
    assert np.allclose(exact, model.log_p(x), rtol=1e-7, atol=1e-6)


@brief
@given(n=st.integers(1, 12), batch_size=st.integers(1, 14), beta=betas, dtype=dtypes, seed=seeds)
def test_training_counts_every_point_once_whatever_the_batch_size(n, batch_size, beta, dtype, seed):
    torch.manual_seed(seed)
    data = torch.randn(n, 3, dtype=dtype)
    vae = tiny_vae((3,), beta=beta).to(dtype)
    history = run(vae, data, epochs=2, batch_size=batch_size, seed=seed)
    assert (history.train.shape, history.test.shape) == ((2, n), (3, n))
    assert np.isfinite(history.train).all()
    assert np.isfinite(history.test).all()
    assert (history.train != 0).all()
    assert {p.dtype for p in vae.parameters()} == {dtype}


@brief
@given(chunk=st.integers(1, 40), points=st.integers(1, 9), samples=st.integers(1, 20), seed=seeds)
def test_log_marginal_is_exact_on_the_posterior_whatever_the_chunk(chunk, points, samples, seed):
    model = LinearGaussian()
    torch.manual_seed(seed)
    x = model.data(points)
    assert np.allclose(model.vae().log_marginal(x, samples, chunk), model.log_p(x))


ONE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
EDGES = {
    "constant pixels": torch.full((16, 1, 8, 8), 0.7),
    "duplicated points": ONE.expand(16, 1, 8, 8),
    "one point": ONE,
    "all-black images": torch.zeros(16, 1, 8, 8),
    "all-white images": torch.ones(16, 1, 8, 8),
}


# A constant can be had ever more exactly, with ever larger gradients.
EVER_STEEPER = pytest.mark.filterwarnings("ignore:the gradient was more than three times")


@EVER_STEEPER
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("edge", EDGES)
def test_training_on_degenerate_images_stays_finite(edge, decoder, precision):
    make, _ = DECODERS[decoder]
    x = EDGES[edge].round() if decoder == "Bernoulli" else EDGES[edge]
    if decoder == "levels":
        x = vae_data.scale((255 * x).round().byte())
    vae = tiny_vae((1, 8, 8))
    vae.decoder = make(vae_networks.mlp(2, [8], (CHANNELS.get(decoder, 1), 8, 8)))
    history = run(vae, x, epochs=40, lr=0.05, batch_size=8, precision=precision)
    assert np.isfinite(history.train).all()
    assert np.isfinite(history.test).all()
    assert history.test_mean[-1] < history.test_mean[0]


@pytest.mark.parametrize("scale", [None, 1.0, "net"])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_data_in_the_millions_train_to_finite_numbers(scale, shift):
    data = 1e6 * torch.randn(32, 6) + shift
    vae = tiny_vae()
    vae.decoder = lab.DecoderGaussian(vae_networks.mlp(2, [8], 12 if scale == "net" else 6), scale)
    history = run(vae, data, epochs=20)
    assert np.isfinite(history.train).all()
    assert history.test_mean[-1] < history.test_mean[0]


@EVER_STEEPER
@pytest.mark.filterwarnings("ignore:the decoder's σ has reached its floor")
@pytest.mark.parametrize("scale", [None, "net"])
def test_a_sigma_driven_to_its_floor_stays_there_and_the_density_is_bounded(scale):
    # The same point again and again: without a floor its density would grow without end.
    data = torch.zeros(16, 6)
    vae = tiny_vae()
    vae.decoder = lab.DecoderGaussian(vae_networks.mlp(2, [8], 12 if scale == "net" else 6), scale)
    history = run(vae, data, epochs=300, lr=0.05)
    with torch.no_grad():
        sigma = vae.decoder(torch.zeros(1, 2)).stddev
    assert (sigma >= np.float32(vae_distributions.MIN_SCALE)).all()
    assert sigma.min() < 10 * vae_distributions.MIN_SCALE  # it was driven there, from 0.1 or more
    highest = 6 * math.log(1 / (vae_distributions.MIN_SCALE * math.sqrt(2 * math.pi)))
    assert -highest < history.test_mean[-1] < -0.5 * highest
    assert np.isfinite(history.train).all()


def test_a_learned_sigma_at_its_floor_is_told():
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.log_scale.fill_(-0.6)
    assert vae.decoder.scale.item() < 1.01 * vae_distributions.MIN_SCALE
    with pytest.warns(UserWarning, match=r"reached its floor, 0\.001"):
        run(vae, torch.zeros(64, 6), lr=1e-12)
