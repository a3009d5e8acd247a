"""The recipes for data of one's own run as they stand, and the tables tell the truth."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.lib.recfunctions import unstructured_to_structured as to_structured
from PIL import Image
from scipy.sparse import csr_matrix
from scipy.stats import nbinom
from torch.distributions import Distribution, Independent, Normal
from torch.utils.data import DataLoader, TensorDataset

import vae_helpers as lab
from tools import ROOT, run, tiny_vae
from vae_kit.evaluation import evaluate
from vae_kit.networks import mlp

PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
SHARED = ("Your own data", "A table")  # sections whose code all the others go on from
PHOTOS = "A pretrained network of torchvision"  # goes on from the colour images as well


def recipes():
    """The code blocks of every section that has any, by its title."""
    sections = (part.partition("\n") for part in re.split(r"^#{1,3} ", PAGE, flags=re.M)[1:])
    blocks = {title: re.findall(r"```python\n(.*?)```", text, re.S) for title, _, text in sections}
    return {title: found for title, found in blocks.items() if found}


RECIPES = recipes()


def execute(titles, known):
    for title in titles:
        for block in RECIPES[title]:
            assert len(re.findall(r"^.*\S", block, re.M)) <= 12, "a recipe fits on a card"
            offline = block.replace('weights="DEFAULT"', "weights=None")
            exec(compile(offline, f"own_data.md, {title}", "exec"), known)
    return known


def package(name):
    """The package, where it is installed, whatever it warns of when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


# What must be so after a recipe, beside a finite −ELBO that fell: in the names that it defined.
WHITE_NOISE = 0.5 * np.log(2 * np.pi * np.e)  # nats per standardised number, without any model
AFTER = {
    "A table": "history.test.mean[-1] < 30 * WHITE_NOISE and abs(train.std(0) - 1).max() < 1e-6",
    "Counts": "(vae.sample(200) % 1 == 0).all() and vae.sample(200).min() >= 0",
    "Colour images": "history.train.points == 32 and vae.sample(2).shape == (2, 3, 16, 16)",
    "Time windows": "history.test.mean[-1] < 64 * WHITE_NOISE",
    "Save a model, and load it elsewhere": (
        "loaded is not vae and torch.equal(loaded.reconstruct(x), vae.reconstruct(x))"
    ),
    "Stop early": (
        "len(history) == history.test.mean.argmin() + 5 < 300 and history.lr[-1] == max(history.lr)"
        " and abs(evaluate(vae, valid).value.mean() + history.test.mean.min()) < 1e-3"
    ),
    "Go on for more epochs": (
        "[len(run) for run in second.histories] == [10, 20, 40]"
        " and (first.histories[2].test.values == second.histories[1].test.values).all()"
    ),
    "Freeze a pretrained encoder": (
        "all(torch.equal(a, b) for a, b in zip(vae.encoder.parameters(), before.parameters()))"
    ),
    "Your own optimiser and loop": (
        "clip.steps == 20 * 12"
        " and evaluate(vae, valid).value.mean() > evaluate(build(), valid).value.mean()"
    ),
    "Anomaly scores": "ordinary < 0.2 and found > 2 * ordinary + 0.1",
    "β, and its warm-up": "vae.beta == 1 and history.settings.kl_warmup == 5",
    "A Gaussian process of gpytorch": "0.1 < vae.prior().covariance_matrix[0, 8] < 0.999",
    PHOTOS: "network.fc.weight.grad is not None and network.conv1.weight.grad is None",
}


@pytest.fixture(scope="module")
def shared():
    return execute(SHARED, {})


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Forty pictures in a folder, of one colour each, wider than high."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "some").mkdir(parents=True)
    for number, colour in enumerate(np.random.default_rng(0).integers(0, 256, (40, 3))):
        picture = Image.new("RGB", (24, 20), tuple(map(int, colour)))
        picture.save(tmp_path / "photos" / "some" / f"{number}.png")


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("title", list(RECIPES)[1:])
def test_a_recipe_does_what_it_says(title, shared, capsys):
    if found := re.search(r" of (zuko|gpytorch)", title):
        package(found[1])
    known = shared | {"vae": copy.deepcopy(shared["vae"]), "before": shared["vae"].encoder}
    if title not in SHARED:
        execute(["Colour images", title] if title == PHOTOS else [title], known)
        assert capsys.readouterr().out, "a recipe ends in something to be seen"
    mean = known["history"].test.mean
    assert mean[-1] < mean[0] and np.isfinite(mean).all()
    assert eval(AFTER.get(title, "True"), {"WHITE_NOISE": WHITE_NOISE, "abs": abs} | known)


@pytest.mark.parametrize(("size", "told"), [(1e4, 0.002), (1e5, 0.03), (1e6, 0.4)])
def test_float32_ends_at_large_counts_where_the_page_says_so(shared, size, told):
    known = dict(shared)
    exec(RECIPES["Counts"][0], known)
    log_prob = known["DecoderNegativeBinomial"](torch.nn.Identity()).log_prob
    x = torch.poisson(torch.full((2000, 1), size))
    out = torch.tensor([[10.0, float(np.log(size / 10))]]).expand(2000, 2)
    total, logits = np.log1p(np.exp(10)) + 0.01, out[0, 1].item()
    truth = nbinom.logpmf(x[:, 0].numpy(), total, 1 / (1 + np.exp(logits)))
    assert told / 2 < np.abs(log_prob(x, out).numpy() - truth).mean() < 2 * told
    np.testing.assert_allclose(log_prob(x.double(), out.double()).numpy(), truth, atol=1e-6)


# ------------------------------------------------------------------ the table of containers

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).half().float()
N = X.numpy()


def in_hdf5(folder):
    file = package("h5py").File(folder / "x.h5", "w")
    return file.create_dataset("x", data=N, chunks=(7, 6), compression="gzip")


def mapped(folder):
    np.save(folder / "x.npy", N)
    return np.load(folder / "x.npy", mmap_mode="r")


def frame(numbers, **options):
    return package("pandas").DataFrame(numbers, columns=list("abcdef"), **options)


GAPS = np.where(np.arange(240).reshape(40, 6) == 9, np.nan, N)
WINDOWS = np.lib.stride_tricks.sliding_window_view(N, (1, 6))[:, 0, 0]

TAKEN = {
    "a tensor": X,
    "an array": N.astype("float64"),
    "floats of half the width": N.astype("float16"),
    "a read-only array": WINDOWS,
    "a memory-mapped file": mapped,
    "a DataFrame of pandas": lambda _: frame(N),
    "a DataFrame of polars": lambda _: package("polars").DataFrame(N),
    "a DataArray of xarray": lambda _: package("xarray").DataArray(N, dims=("time", "kind")),
    "a masked array without gaps": np.ma.masked_array(N),
    "a list of lists of numbers": N.astype("float64").tolist(),
    "a list of tensors": list(X),
    "a list of arrays": list(N),
    "a list of pairs": [(row, 0) for row in X],
    "a map-style dataset": TensorDataset(X, torch.arange(40)),
    "a dataset of h5py": in_hdf5,
    "an array of zarr": lambda _: package("zarr").array(N, chunks=(7, 6)),
}
REFUSED = {  # what is said, and the remedy
    "whole numbers": ((9 * N).astype(int), "int64.*floats", lambda d: d.astype("float32")),
    "text in a DataFrame": (lambda _: frame(N.astype(str)), "columns a, b, c, d, e, f", None),
    "durations in a DataFrame": (lambda _: frame(N.astype("m8[s]")), "columns a", None),
    "a DataFrame with gaps": (lambda _: frame(GAPS), "not finite", lambda d: d.dropna()),
    "a masked array": (np.ma.masked_invalid(GAPS), "not finite", lambda d: d.filled(0)),
    "a list of dicts": ([{"x": x} for x in X], "dicts of 'x'", lambda d: [i["x"] for i in d]),
    "a sparse matrix": (csr_matrix(N), "toarray", lambda d: d.toarray()),
    "a sparse tensor": (X.to_sparse(), "to_dense", lambda d: d.to_dense()),
    "a structured array": (to_structured(N), "to_unstructured", structured_to_unstructured),
    "complex numbers": (torch.complex(X, X), "as_real", lambda d: torch.view_as_real(d)[..., 0]),
    "durations": (N.astype("m8[s]"), "timedelta64", lambda d: d / np.timedelta64(1, "s")),
    "a tuple": ((X, torch.arange(40)), "tuple", lambda d: d[0]),
    "a dict": ({"x": X}, "dict", lambda d: d["x"]),
    "a DataLoader": (DataLoader(X), r"loader\.dataset", lambda d: d.dataset),
    "a generator": (map(torch.clone, X), "__getitem__", list),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_what_the_table_takes_is_taken_as_the_numbers_it_holds(kind, tmp_path):
    model, data = tiny_vae(), TAKEN[kind]
    data = data(tmp_path) if callable(data) else data
    assert torch.equal(evaluate(model, data).value, evaluate(model, X).value)
    assert np.isfinite(run(model, data).test.values).all()


def test_truth_values_are_zeros_and_ones_and_a_frame_of_whole_numbers_is_numbers():
    ones, model = (X > 0).float(), tiny_vae()
    for data in (N > 0, X > 0, frame(N > 0), frame((N > 0).astype(int))):
        assert torch.equal(evaluate(model, data).value, evaluate(model, ones).value)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_table_refuses_is_refused_by_name_and_the_remedy_works(kind, tmp_path):
    data, words, remedy = REFUSED[kind]
    data = data(tmp_path) if callable(data) else data
    with pytest.raises((TypeError, ValueError, FloatingPointError), match=words):
        evaluate(tiny_vae(), data)
    if remedy:
        evaluate(tiny_vae(), remedy(data))


# -------------------------------------------------------------------------- the table of parts


class Bare(Distribution):
    """A distribution with nothing but what is asked of one."""

    arg_constraints, has_rsample = {}, True

    def __init__(self, loc):
        self.normal = Independent(Normal(loc, 1.0), 1)
        super().__init__(self.normal.batch_shape, self.normal.event_shape, validate_args=False)

    def log_prob(self, x):
        return self.normal.log_prob(x)


class WithSamples(Bare):
    def rsample(self, sample_shape=()):
        return self.normal.rsample(sample_shape)


class Part(torch.nn.Module):
    def __init__(self, kind, net=None):
        super().__init__()
        self.kind, self.net = kind, net

    def forward(self, condition=None):
        return self.kind(torch.zeros(2) if self.net is None else self.net(condition))


def test_parts_that_give_no_more_than_the_table_asks_for():
    vae = lab.VAE(Part(WithSamples, mlp(6, [8], 2)), Part(Bare, mlp(2, [8], 6)), Part(Bare))
    history = run(vae, X, epochs=5)
    assert history.test.mean[-1] < history.test.mean[0]
    for draw in (lambda: vae.sample(3), lambda: vae.reconstruct(X, mean=False)):
        with pytest.raises(NotImplementedError):
            draw()
    with pytest.raises(ValueError, match="has no mean"):
        vae.reconstruct(X)
    vae.prior, vae.decoder.kind = Part(WithSamples), WithSamples
    assert vae.sample(3).shape == vae.reconstruct(X[:3], mean=False).shape == (3, 6)


# ------------------------------------------------------------- what is said beside the recipes


def test_the_weights_of_a_checkpoint_fill_a_model(tmp_path):
    trained, other = tiny_vae(), tiny_vae()
    run(trained, X, checkpoint=tmp_path / "run.pt")
    other.load_state_dict(torch.load(tmp_path / "run.pt", "cpu", weights_only=True)["model"])
    assert torch.equal(other.reconstruct(X), trained.reconstruct(X))


def test_links_within_the_page_and_to_its_neighbours_lead_somewhere():
    titles = (title.lower() for title in re.findall(r"^#{1,3} (.*)$", PAGE, re.M))
    anchors = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert link[1:] in anchors or link.startswith("https://"), link
