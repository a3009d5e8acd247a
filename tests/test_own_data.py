"""The recipes for people with data of their own run as they stand, and do what they say."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Independent, Poisson
from torch.utils.data import TensorDataset

import vae_data
import vae_helpers as lab
from tools import ROOT, run, tiny_vae
from vae_networks import conv_decoder, conv_encoder, mlp

PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
SHARED = ("Your own data", "A table")  # sections whose code all the others go on from


def recipes():
    """The code blocks of every section that has any, by its title."""
    sections = (part.partition("\n") for part in re.split(r"^##? ", PAGE, flags=re.M)[1:])
    blocks = {title: re.findall(r"```python\n(.*?)```", text, re.S) for title, _, text in sections}
    return {title: found for title, found in blocks.items() if found}


RECIPES = recipes()


def execute(titles, known):
    for title in titles:
        for block in RECIPES[title]:
            exec(compile(block, f"own_data.md, {title}", "exec"), known)
    return known


def improved(history):
    return history.test_mean[-1] < history.test_mean[0] and np.isfinite(history.test_mean).all()


# What must be so after a recipe, by title; ``before`` are the weights that it found.


def a_table(done, before):
    parts = [done[name] for name in ("train", "valid", "test")]
    assert sum(map(len, parts)) == 569 and len({row.tobytes() for row in np.vstack(parts)}) == 569
    np.testing.assert_allclose(done["train"].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(done["train"].std(0), 1)
    assert improved(done["history"])
    # Better than a normal distribution without any model, which the data's own scale allows.
    assert done["history"].test_mean[-1] < 30 * 0.5 * np.log(2 * np.pi * np.e)


def counts(done, before):
    assert improved(done["history"])
    drawn = done["vae"].sample(200)
    assert drawn.shape == (200, 12)
    assert (drawn == drawn.round()).all() and drawn.min() >= 0


def colour_images(done, before):
    assert improved(done["history"])
    assert done["history"].train_points == 32 and done["history"].test_points == 8
    assert done["vae"].sample(2).shape == (2, 3, 16, 16)


def time_windows(done, before):
    assert done["train"].shape == (372, 2, 32)
    again = done["train"][0] * done["std"][:, None] + done["mean"][:, None]
    torch.testing.assert_close(again, done["series"][:32].T)
    assert improved(done["history"])
    # Better than white noise of the data's own size: the model has found the waves.
    assert done["history"].test_mean[-1] < 64 * 0.5 * np.log(2 * np.pi * np.e)


def save(done, before):
    assert done["loaded"] is not done["vae"] and done["codes"].shape == (len(done["test"]), 4)
    wanted, found = (done[m].reconstruct(done["test"]) for m in ("vae", "loaded"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    np.testing.assert_allclose(done["saved"]["std"].numpy(), done["std"])


def stop_early(done, before):
    history = done["history"]
    assert len(history) == history.test_mean.argmin() + 5 < 300
    now = -lab.evaluate(done["vae"], done["valid"]).value.mean()
    assert float(now) == pytest.approx(history.test_mean.min(), abs=1e-4)


def go_on(done, before):
    first, second = done["first"], done["second"]
    assert second.test_mean[0] == pytest.approx(first.test_mean[-1], abs=1e-4)
    assert second.lr.argmax() > 0, "the schedule begins anew"
    assert first.settings["weights"] != second.settings["weights"]


def freeze(done, before):
    after = done["vae"].state_dict()
    frozen = [name for name in before if name.startswith("encoder.")]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    assert after["decoder.net.0.weight"].shape == (128, 4)
    assert improved(done["history"])


def own_loop(done, before):
    untrained = -lab.evaluate(done["build"](), done["valid"]).value.mean()
    assert -lab.evaluate(done["vae"], done["valid"]).value.mean() < untrained
    assert done["optimizer"].param_groups[0]["steps"] == 20 * 12


def anomalies(done, before):
    assert done["ordinary"] < 0.2
    assert done["found"] > 2 * done["ordinary"] + 0.1


def warm_up(done, before):
    assert done["vae"].beta == 1 and done["history"].settings["kl_warmup"] == 5
    assert improved(done["history"])


CHECKS = {
    "A table": a_table,
    "Counts": counts,
    "Colour images": colour_images,
    "Time windows": time_windows,
    "Save a model, and load it elsewhere": save,
    "Stop early": stop_early,
    "Go on for more epochs": go_on,
    "Freeze a pretrained encoder": freeze,
    "Your own optimiser and loop": own_loop,
    "Anomaly scores": anomalies,
    "β, and its warm-up": warm_up,
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Forty pictures in a folder, of one colour each, wider than high."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "some").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (40, 3))
    for number, colour in enumerate(colours):
        picture = Image.new("RGB", (24, 20), tuple(map(int, colour)))
        picture.save(tmp_path / "photos" / "some" / f"{number}.png")


def test_every_recipe_has_a_check_and_at_most_a_dozen_lines():
    assert set(RECIPES) == {SHARED[0], *CHECKS}
    for title, blocks in RECIPES.items():
        for block in blocks:
            lines = [line for line in block.splitlines() if line.strip()]
            assert len(lines) <= 12, title
            assert max(map(len, lines)) <= 92, title


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("title", CHECKS)
def test_a_recipe_does_what_it_says(title, capsys):
    known = execute(SHARED, {})
    before = {name: value.clone() for name, value in known["vae"].state_dict().items()}
    capsys.readouterr()
    if title not in SHARED:
        execute([title], known)
        assert capsys.readouterr().out, "a recipe ends in something to be seen"
    CHECKS[title](known, before)


# ------------------------------------------------------------- what is said beside the recipes


def test_the_plain_poisson_is_a_decoder_too():
    class DecoderPoisson(lab.Conditional):
        def distribution(self, out):
            return Independent(Poisson(torch.nn.functional.softplus(out)), 1)

    x = torch.poisson(torch.full((64, 6), 3.0))
    assert "DecoderPoisson" not in PAGE and "Independent(Poisson(F.softplus(out)), 1)" in PAGE
    assert improved(run(tiny_vae(decoder=DecoderPoisson), x, epochs=5))


def test_the_probability_of_the_very_bytes_of_a_colour_image():
    array = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    images, shape = torch.from_numpy(array).permute(0, 3, 1, 2), (3, 8, 8)
    assert (images[5, 2].numpy() == array[5, :, :, 2]).all()
    decoder = lab.DecoderCategorical(conv_decoder(2, (4 * 3, 8, 8)))
    vae = lab.VAE(lab.EncoderGaussian(conv_encoder(shape, 4)), decoder, lab.PriorGaussian(2))
    history = run(vae, images, transform=vae_data.scale)
    assert 0 < history.test_mean[-1] < 2 * 192 * np.log(256)


def test_the_weights_of_a_checkpoint_fill_a_model(tmp_path):
    x, path = torch.randn(20, 6), tmp_path / "run.pt"
    trained, other = tiny_vae(), tiny_vae()
    run(trained, x, checkpoint=path)
    other.load_state_dict(torch.load(path, "cpu", weights_only=True)["model"])
    torch.testing.assert_close(other.reconstruct(x), trained.reconstruct(x), rtol=0, atol=0)


def test_a_frozen_network_with_a_layer_on_top():
    network = mlp(6, [8], 5).requires_grad_(False)
    vae = tiny_vae()
    vae.encoder = lab.EncoderGaussian(torch.nn.Sequential(network, torch.nn.Linear(5, 4)))
    frozen, layer = network[0].weight.clone(), vae.encoder.net[1].weight.clone()
    run(vae, torch.randn(40, 6))
    assert torch.equal(network[0].weight, frozen)
    assert not torch.equal(vae.encoder.net[1].weight, layer)


@pytest.mark.parametrize("scale", ["net", 1.0])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RAdam])
def test_a_loop_with_steps_of_another_size_than_adam_s(kind, scale):
    outputs = 12 if scale == "net" else 6
    decoder = lab.DecoderGaussian(mlp(2, [8], outputs), scale=scale)
    vae = lab.VAE(lab.EncoderGaussian(mlp(6, [8], 4)), decoder, lab.PriorGaussian(2))
    x = torch.randn(200, 1) * torch.ones(6) + 0.3 * torch.randn(200, 6)
    optimizer, before = kind(vae.parameters(), lr=3e-3), vae.loss(x).item()
    for _ in range(200):
        optimizer.zero_grad()
        vae.loss(x).backward()
        optimizer.step()
    assert vae.loss(x) < before - 0.5


def test_labels_are_ignored():
    x = torch.randn(20, 6)
    histories = []
    for data in (x, TensorDataset(x, torch.arange(20))):
        torch.manual_seed(0)
        histories.append(run(tiny_vae(), data, epochs=2).train)
    np.testing.assert_array_equal(*histories)


def test_missing_values_are_refused_and_the_remedies_work():
    x = torch.randn(20, 6)
    x[3, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="missing values"):
        run(tiny_vae(), x)
    for whole in (x.nan_to_num(), x[x.isfinite().all(1)]):
        run(tiny_vae(), whole)


def test_what_can_only_be_iterated_is_refused_and_the_remedies_work(tmp_path):
    x = torch.randn(20, 6)
    with pytest.raises(TypeError, match="iterated"):
        run(tiny_vae(), iter(x))
    np.save(tmp_path / "x.npy", x.numpy())
    for data in (list(x), np.load(tmp_path / "x.npy", mmap_mode="r")):
        run(tiny_vae(), data)


def test_links_within_the_page_and_to_its_neighbours_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in
               re.findall(r"^##? (.*)$", PAGE, re.M)}  # fmt: skip
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        else:
            assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
