"""A second device computes what the CPU computes, for every decoder and every prior.

The device is the one that ``VAE_LAB_DEVICE`` names ("cuda", "mps"), else XLA where ``torch_xla`` is
installed, which with ``PJRT_DEVICE=CPU`` is a device of its own with real numbers. Where there is
neither, nothing here is run. A run in which all passes writes its part of benchmarks/devices.md.

Weights are the same on both devices. Noise is drawn on the CPU and moved, so that both meet the
same numbers; where the device draws for itself, statistics are compared, or two runs on it.
"""

import copy
import importlib
import itertools
import os
import platform
import random
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import vae_data
import vae_diagnostics
import vae_helpers as lab
import vae_networks
import vae_runtime

ROOT = Path(__file__).resolve().parent.parent.parent
KIND = os.environ.get("VAE_LAB_DEVICE") or ("xla" if find_spec("torch_xla") else "")
if not KIND:
    pytest.skip("no second device: no torch_xla, and no VAE_LAB_DEVICE", allow_module_level=True)
if KIND == "xla":
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    # Thousands of small programs are compiled and run a few times each: no need to polish them.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what it deprecates in itself
        torch_xla = importlib.import_module("torch_xla")
    # One operation at a time: whole graphs, XLA's other way, take long to compile. Two tests do it.
    torch_xla.experimental.eager_mode(True)

DEVICE = torch.device(KIND)
# PyTorch counts its devices at the first backward pass, and one that wakes later has no queue.
torch.zeros((), device=DEVICE)
torch.set_num_threads(1)

SHAPE, LATENTS, POINTS, BATCH, DRAWS = (1, 4, 4), 3, 80, 32, 400

DECODERS = {
    "Gaussian, learned σ": (lab.DecoderGaussian, 1),
    "Gaussian, σ = 0.3": (lambda net: lab.DecoderGaussian(net, scale=0.3), 1),
    "Gaussian, σ from the network": (lambda net: lab.DecoderGaussian(net, scale="net"), 2),
    "Bernoulli": (lab.DecoderBernoulli, 1),
    "continuous Bernoulli": (lab.DecoderContinuousBernoulli, 1),
    "categorical": (lab.DecoderCategorical, 4),
}
PRIORS = {
    "Gaussian": lab.PriorGaussian,
    "mixture": lambda dim: lab.PriorMixture(dim, components=5),
    "autoregressive": lambda dim: lab.PriorAutoregressive(dim, hidden=16),
}
# The largest deviation that is allowed, as a part of the largest value, or of 1 where it is less.
# Sums in float32 differ in their order. A step of Adam divides a gradient by its own size, and so
# enlarges that; training repeats it.
TOLERANCE = {
    "ELBO": 1e-5,
    "gradient": 1e-4,
    "step": 1e-4,
    "log p(x)": 1e-5,
    "reconstruct": 1e-5,
    "evaluate": 1e-5,
    "latent units": 1e-5,
    "fit": 1e-3,
}
pairs = pytest.mark.parametrize(("decoder", "prior"), list(itertools.product(DECODERS, PRIORS)))


@pytest.fixture(scope="module")
def measured(request):
    """(decoder, prior) → quantity → deviation; once all are there, they are written down."""
    found = {pair: {} for pair in itertools.product(DECODERS, PRIORS)}
    yield found
    complete = all(set(row) == set(TOLERANCE) for row in found.values())
    if complete and not request.session.testsfailed:
        write_table(ROOT / "benchmarks" / "devices.md", found)


@pytest.fixture
def same_noise(monkeypatch):
    """Normal noise is drawn by the CPU, wherever it is needed."""

    def rsample(self, sample_shape=()):
        noise = torch.randn(torch.Size(sample_shape) + self.batch_shape)
        return self.loc + self.scale * noise.to(self.loc)

    monkeypatch.setattr(Normal, "rsample", rsample)
    monkeypatch.setattr(Normal, "sample", lambda *given: rsample(*given).detach())


def data(decoder, n=POINTS):
    """Points ``(n, *SHAPE)`` in the decoder's support."""
    levels = torch.randint(256, (n, *SHAPE), generator=torch.Generator().manual_seed(1)) / 255
    return levels.round() if decoder == "Bernoulli" else levels


def on_both(decoder, prior, **options):
    """The same model twice: on the CPU, and on the device."""
    torch.manual_seed(0)
    rule, channels = DECODERS[decoder]
    model = lab.VAE(
        lab.EncoderGaussian(vae_networks.mlp(SHAPE, [16], 2 * LATENTS)),
        rule(vae_networks.mlp(LATENTS, [16], (channels * SHAPE[0], *SHAPE[1:]))),
        PRIORS[prior](LATENTS),
        **options,
    )
    with torch.no_grad():  # first weights are small: nearly the same for all x and z
        for parameter in [*model.encoder.net.parameters(), *model.decoder.net.parameters()]:
            parameter *= 3
    return model, copy.deepcopy(model).to(DEVICE)


def seeded(function, *given, **options):
    """The function's result, its noise being drawn from the CPU's generator at one place."""
    torch.manual_seed(3)
    return function(*given, **options)


def fitted(model, x, device, **settings):
    given = {"epochs": 2, "batch_size": BATCH, "precision": "float32", "progress": False}
    return lab.fit(model, x, x[: len(x) // 2], device=device, **(given | settings))


def deviation(theirs, ours):
    """The largest difference, as a part of the largest value on the CPU, or of 1."""
    theirs, ours = (
        torch.cat([torch.as_tensor(t).detach().cpu().double().flatten() for t in parts])
        for parts in (theirs, ours)
    )
    assert theirs.isfinite().all() and ours.isfinite().all()
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1))


class Compare:
    """Notes and judges deviations of one pair of decoder and prior."""

    def __init__(self, measured, decoder, prior):
        self.row = measured[decoder, prior]

    def __call__(self, quantity, theirs, ours):
        self.row[quantity] = deviation(theirs, ours)
        assert self.row[quantity] <= TOLERANCE[quantity], quantity


@pytest.fixture
def compare(measured, decoder, prior):
    return Compare(measured, decoder, prior)


# ---------------------------------------------------------------------- each decoder, each prior


@pairs
def test_elbo_loss_gradient_and_a_step_are_those_of_the_cpu(decoder, prior, same_noise, compare):
    x, found = data(decoder), []
    for model in on_both(decoder, prior, beta=0.7):
        x = x.to(next(model.parameters()).device)
        terms = seeded(model.elbo, x)
        loss = seeded(model.loss, x)
        loss.backward()
        assert loss.device.type == terms.kl.device.type == x.device.type
        gradient = [p.grad.clone() for p in model.parameters()]
        torch.optim.Adam(model.parameters(), 1e-3).step()
        found.append(([*terms, loss], gradient, list(model.parameters())))
    for quantity, ours, theirs in zip(("ELBO", "gradient", "step"), *found, strict=True):
        compare(quantity, theirs, ours)


@pairs
def test_what_is_read_off_a_model_is_that_of_the_cpu(decoder, prior, same_noise, compare):
    x = data(decoder)
    ours, theirs = on_both(decoder, prior)
    log_p = [seeded(model.log_marginal, x, 30, chunk=512) for model in (theirs, ours)]
    compare("log p(x)", *([part] for part in log_p))
    assert log_p[0].device.type == DEVICE.type
    compare("reconstruct", [theirs.reconstruct(x)], [ours.reconstruct(x)])
    units = [vae_diagnostics.latent_units(model, x) for model in (theirs, ours)]
    compare("latent units", *units)
    terms = [
        lab.evaluate(model, x, device=device, precision="float32", batch_size=33)
        for model, device in ((theirs, DEVICE), (ours, "cpu"))
    ]
    compare("evaluate", *terms)


@pairs
def test_a_run_is_that_of_the_cpu(decoder, prior, same_noise, compare):
    x = data(decoder)
    ours, theirs = on_both(decoder, prior)
    histories = [fitted(theirs, x, DEVICE), fitted(ours, x, "cpu")]
    compare("fit", *([history.train, history.test] for history in histories))
    assert {p.device.type for p in theirs.parameters()} == {DEVICE.type}


@pairs
def test_samples_have_the_moments_of_the_cpu(decoder, prior):
    ours, theirs = on_both(decoder, prior)
    for mean in (True, False):
        drawn = [model.sample(DRAWS, mean=mean).cpu().double() for model in (ours, theirs)]
        for power in (1, 2):
            moments = [(x**power).mean(0) for x in drawn]
            error = sum((x**power).var(0) / DRAWS for x in drawn).sqrt()
            # Six errors, since there are 16 numbers in each of 72 comparisons.
            assert ((moments[0] - moments[1]).abs() <= 6 * error + 1e-6).all()
    one, other = (theirs.sample(5).cpu() for _ in range(2))
    assert not torch.equal(one, other)


@pairs
def test_reconstructions_vary_around_those_of_the_cpu(decoder, prior):
    """``reconstruct(x, mean=False)`` draws z and x on the device."""
    x = data(decoder, 1).expand(DRAWS, *SHAPE)
    drawn = [model.reconstruct(x, mean=False).cpu().double() for model in on_both(decoder, prior)]
    error = sum(d.var(0) / DRAWS for d in drawn).sqrt()
    assert ((drawn[0].mean(0) - drawn[1].mean(0)).abs() <= 6 * error + 1e-6).all()


@pairs
def test_the_seed_decides_what_a_run_on_the_device_draws(decoder, prior):
    x = data(decoder)
    once, again, otherwise = (
        fitted(on_both(decoder, prior)[1], x, DEVICE, seed=seed, epochs=1) for seed in (5, 5, 6)
    )
    for split in ("train", "test"):
        assert np.array_equal(getattr(once, split), getattr(again, split))
        assert not np.array_equal(getattr(once, split), getattr(otherwise, split))
    terms = [
        lab.evaluate(on_both(decoder, prior)[1], x, device=DEVICE, seed=seed).value
        for seed in (5, 5, 6)
    ]
    assert torch.equal(terms[0], terms[1]) and not torch.equal(terms[0], terms[2])


# ----------------------------------------------------------------------- once, for what all share


def drawn():
    """A number from each generator that data or a model may draw from."""
    device = float(torch.rand((), device=DEVICE))
    return device, float(torch.rand(())), float(np.random.rand()), random.random()


def test_every_generator_is_seeded_and_given_back():
    with vae_runtime.seeded(1):
        before = drawn()
        with vae_runtime.seeded(2, 3):
            inside = drawn()
        after = drawn()
    with vae_runtime.seeded(1):
        assert (before, after) == (drawn(), drawn())
    with vae_runtime.seeded(2, 3):
        assert inside == drawn()
    with vae_runtime.seeded(2, 4):
        assert not set(inside) & set(drawn())


@pytest.mark.parametrize("name", ["scale", "dequantize", "binarize"])
def test_transforms_on_the_device(name):
    raw = torch.arange(256, dtype=torch.uint8).repeat(400, 1)
    ours, theirs = (getattr(vae_data, name)(raw.to(device)) for device in ("cpu", DEVICE))
    assert theirs.device.type == DEVICE.type and theirs.dtype == torch.float32
    theirs = theirs.cpu()
    if name == "scale":
        assert torch.allclose(theirs, ours, rtol=0, atol=1e-7)
    if name == "dequantize":
        noise = theirs * 256 - raw
        assert noise.min() >= 0 and noise.max() <= 1
        assert abs(noise.mean() - 0.5) < 6 * 12**-0.5 / raw.numel() ** 0.5
    if name == "binarize":
        p = raw[0].double() / 255
        assert set(theirs.unique().tolist()) == {0, 1}
        error = (p * (1 - p) / len(raw)).sqrt()
        assert ((theirs.double().mean(0) - p).abs() <= 6 * error + 1e-6).all()


def test_convolutions_and_a_residual_network(same_noise):
    torch.manual_seed(0)
    ours = lab.VAE(
        lab.EncoderGaussian(vae_networks.conv_encoder(SHAPE, 2 * LATENTS, width=4)),
        lab.DecoderGaussian(vae_networks.conv_decoder(LATENTS, SHAPE, width=4)),
        lab.PriorGaussian(LATENTS),
        analytic_kl=False,
    )
    wide = vae_networks.residual_mlp(SHAPE, 16, 2, 2 * LATENTS)
    for encoder in (ours.encoder, lab.EncoderGaussian(wide)):
        ours.encoder = encoder
        theirs = copy.deepcopy(ours).to(DEVICE)
        x = data("Gaussian")
        found = [seeded(m.elbo, x.to(next(m.parameters()).device)) for m in (theirs, ours)]
        assert deviation(*found) < TOLERANCE["ELBO"]
        histories = [fitted(theirs, x, DEVICE), fitted(copy.deepcopy(ours), x, "cpu")]
        assert deviation(*([h.train, h.test] for h in histories)) < TOLERANCE["fit"]


def test_bfloat16_networks(same_noise):
    x = data("Bernoulli")
    ours, theirs = on_both("Bernoulli", "Gaussian")
    terms = [
        lab.evaluate(model, x, device=device, precision=precision)
        for model, device, precision in ((theirs, DEVICE, "bfloat16"), (ours, "cpu", "float32"))
    ]
    assert terms[0].log_likelihood.dtype == torch.float32
    assert 1e-6 < deviation(*terms) < 2e-2  # 8 bits of each product are left
    history = fitted(theirs, x, DEVICE, precision="bfloat16")
    assert deviation([history.test], [fitted(ours, x, "cpu").test]) < 2e-2


@pytest.mark.parametrize("decoder", ["Gaussian, learned σ", "continuous Bernoulli"])
def test_a_resumed_run_is_the_whole_run(tmp_path, decoder):
    x, file = data(decoder), tmp_path / "run.pt"
    whole = fitted(on_both(decoder, "mixture")[1], x, DEVICE, epochs=3)
    first = on_both(decoder, "mixture")[1]
    fitted(first, x, DEVICE, epochs=3, checkpoint=file, progress=lambda h: len(h) < 2)
    assert file.exists()
    model = on_both(decoder, "mixture")[1]
    resumed = fitted(model, x, DEVICE, epochs=3, checkpoint=file)
    assert np.array_equal(resumed.train, whole.train) and np.array_equal(resumed.test, whole.test)
    # A checkpoint of one device goes on upon another.
    fitted(on_both(decoder, "mixture")[0], x, DEVICE, epochs=3, checkpoint=file)


class Items(torch.utils.data.Dataset):
    """A dataset whose points are not in one tensor."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_loaded_onto_the_device(same_noise, workers):
    x = data("Bernoulli")
    rows = []
    for points in (x, Items(x)):
        model = on_both("Bernoulli", "Gaussian")[1]
        settings = {"epochs": 1, "precision": "float32", "workers": workers, "progress": False}
        rows.append(lab.fit(model, points, points, device=DEVICE, **settings).train)
    assert deviation([rows[0]], [rows[1]]) < TOLERANCE["fit"]


def test_faulty_data_are_refused_on_the_device():
    model = on_both("Bernoulli", "Gaussian")[1]
    with pytest.raises(ValueError, match="outside the decoder's support"):
        model.loss(torch.full((4, *SHAPE), 0.5, device=DEVICE))
    with pytest.raises(FloatingPointError, match="in 1 of 40 data points"):
        fitted(model, torch.cat([torch.full((1, *SHAPE), torch.nan), data("Bernoulli")]), DEVICE)


@pytest.fixture
def whole_graphs():
    """As people use XLA: what is computed between two looks at a number is compiled as one."""
    if KIND != "xla":
        pytest.skip("only XLA compiles whole graphs")
    torch_xla.experimental.eager_mode(False)
    yield
    torch_xla.experimental.eager_mode(True)


def test_whole_graphs_train_like_the_cpu(whole_graphs, same_noise):
    x = data("Bernoulli", 2 * BATCH)
    ours, theirs = on_both("Bernoulli", "Gaussian")
    histories = [fitted(theirs, x, DEVICE), fitted(ours, x, "cpu")]
    assert deviation(*([h.train, h.test] for h in histories)) < TOLERANCE["fit"]


def test_the_seed_decides_what_whole_graphs_draw(whole_graphs):
    x = data("Bernoulli", 2 * BATCH)
    once, again, otherwise = (
        fitted(on_both("Bernoulli", "Gaussian")[1], x, DEVICE, seed=seed).train
        for seed in (5, 5, 6)
    )
    assert np.array_equal(once, again) and not np.array_equal(once, otherwise)


# -------------------------------------------------------------------------------------- the table


def device_name():
    """The device with the versions that ran on it."""
    versions = f"PyTorch {torch.__version__.partition('+')[0]}"
    if KIND == "xla":
        return f"XLA ({os.environ['PJRT_DEVICE']}), {versions}, torch_xla {torch_xla.__version__}"
    if KIND.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"{KIND.upper()}, {versions}"


def section(found):
    """What this run measured, as Markdown."""
    rows = [
        f"## {device_name()}, Python {platform.python_version()}",
        "",
        f"| decoder | {' | '.join(f'{prior} prior' for prior in PRIORS)} |",
        "|---|" + "---|" * len(PRIORS),
    ]
    for decoder in DECODERS:
        worst = (max(found[decoder, prior].values()) for prior in PRIORS)
        rows.append(f"| {decoder} | {' | '.join(f'{number:.0e}' for number in worst)} |")
    rows += ["", "| quantity | largest deviation | allowed |", "|---|---|---|"]
    for quantity, allowed in TOLERANCE.items():
        worst = max(row[quantity] for row in found.values())
        rows.append(f"| {quantity} | {worst:.0e} | {allowed:.0e} |")
    return "\n".join(rows).replace("e-0", "e−").replace("e-", "e−") + "\n"


HEAD = """# Devices

`make test-device` compares a second device with the CPU: the same weights, data and noise, networks
in float32. A number is the largest deviation of any value from the CPU's, as a part of the largest
value (or of 1): over the ELBO, its gradient, an optimiser step, log p(x), reconstructions,
`evaluate`, `latent_units` and every point's −ELBO in a run of `fit`, which repeats the steps and so
enlarges the differences. Besides, not in the table: samples have the CPU's moments, the same seed
gives the same run bit for bit, and a run resumed from a checkpoint is the whole run.

With `VAE_LAB_DEVICE=cuda`, `pytest tests/device` does the same on a GPU and adds its part here.
"""


def write_table(path, found):
    """Put this run's section in the place of the device's former one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    others = [f"## {part}" for part in text.split("\n## ")[1:]]
    kind = device_name().split(",")[0]
    other_parts = [part.rstrip() + "\n" for part in others if not part.startswith(f"## {kind},")]
    path.write_text("\n".join([HEAD, *sorted([*other_parts, section(found)])]), encoding="utf-8")
