"""``python -m vae_kit.train``: what it leaves, what it says, and how it ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_helpers as lab
from tools import ROOT
from vae_kit import data, networks, parts, train
from vae_kit.history import History

COMMAND = [sys.executable, "-m", "vae_kit.train"]
SMALL = ["--dataset=digits", "--hidden", "16", "--latents=2", "--epochs=4", "--batch-size=128"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):  # a folder of a run in a process of its own, and what it said
    folder = tmp_path_factory.mktemp("run") / "a" / "b"
    run = subprocess.run(
        [*COMMAND, *SMALL, "--prior=mixture", f"--out={folder}"],
        capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder, run


def test_lines_and_files_tell_of_every_epoch(finished):
    folder, run = finished
    first, *epochs, last = run.stdout.splitlines()
    assert "1,500 train" in first and run.stderr == ""
    said = [rf"epoch {k}/4: -ELBO train -?\d+\.\d+, test -?\d+\.\d+" for k in range(1, 5)]
    assert len(epochs) == 4 and all(map(re.fullmatch, said, epochs))
    curve = [f"learning_curve{end}" for end in (".png", ".svg", "_narrow.png")]
    assert set(os.listdir(folder)) - {*curve} == {"checkpoint.pt", "history.npz"}
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    history = History.load(folder / "history.npz")
    assert history.train.values.shape == (4, 1500) and last == f"{history}: {folder}"


@pytest.fixture
def unseen(monkeypatch):  # no figure is drawn, which takes longer than the run
    monkeypatch.setattr(train, "plot_learning_curve", lambda *_: None)
    monkeypatch.setattr(train, "save_figure", lambda *_: None)


@pytest.mark.usefixtures("unseen")
def test_the_same_command_goes_on_or_makes_the_same_run(finished, tmp_path, capsys):
    (folder, _), options = finished, [*SMALL, "--prior=mixture"]
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert train.main([*options, f"--out={folder}"]) == 0
    assert "epoch " not in capsys.readouterr().out
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before
    assert train.main([*options, f"--out={tmp_path}"]) == 0
    again, first = (History.load(place / "history.npz") for place in (tmp_path, folder))
    np.testing.assert_array_equal(again.test.values, first.test.values)
    assert train.main([*options, f"--out={folder}", "--lr=0.5"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"vae_kit\.train: .*checkpoint\.pt .*lr \(0\.\d+ there, 0\.5 here\).*\n", said
    )


def handed(monkeypatch, folder, *options):
    """The model, the splits and the settings with which ``fit`` is called."""
    calls = []
    monkeypatch.setattr(train, "fit", lambda *given, **settings: calls.append((*given, settings)))
    with pytest.raises(TypeError, match="NoneType"):  # it gives no history
        train.train(train.parse(["--dataset=digits", f"--out={folder}", "--hidden=8", *options]))
    model, *splits, settings = calls[0]
    return model, splits, settings


def test_every_option_is_handed_to_fit(monkeypatch, tmp_path):
    options = {
        "epochs": 7, "batch_size": 32, "lr": 0.5, "precision": "bfloat16", "seed": 5,
        "kl_warmup": 3, "device": "cpu",
    }  # fmt: skip
    _, _, plain = handed(monkeypatch, tmp_path)
    for option, value in options.items():
        given = f"--{option.replace('_', '-')}={value}"
        _, splits, settings = handed(monkeypatch, tmp_path, given)
        assert settings[option] == value != plain[option]
        assert all(settings[name] == plain[name] for name in options if name != option)
    assert [len(split) for split in splits] == [1500, 297]
    assert settings["checkpoint"] == tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_option_makes_the_model(monkeypatch, tmp_path, network):
    given = ["--beta=0.5", "--latents=3", "--hidden", "7", "5", "--seed=5", f"--network={network}"]
    shape = (1, 8, 8)
    for decoder, kind, transform, channels in (
        ("gaussian", lab.DecoderGaussian, data.dequantize, 1),
        ("bernoulli", lab.DecoderBernoulli, data.binarize, 1),
        ("continuous-bernoulli", parts.DecoderContinuousBernoulli, data.scale, 1),
        ("categorical", parts.DecoderCategorical, data.scale, 4),
    ):
        chosen = [*given, f"--decoder={decoder}", "--prior=mixture"]
        model, _, settings = handed(monkeypatch, tmp_path, *chosen)
        assert type(model.decoder) is kind and settings["transform"] is transform
        assert (model.beta, model.prior.loc.shape) == (0.5, (100, 3))
        assert model.decoder(torch.zeros(2, 3)).event_shape == shape
        torch.manual_seed(5)
        out = (channels, 8, 8)
        nets = [networks.conv_encoder(shape, 6), networks.conv_decoder(3, out)]
        if network == "mlp":
            torch.manual_seed(5)
            nets = [networks.mlp(shape, [7, 5], 6), networks.mlp(3, [5, 7], out)]
        for part, net in zip((model.encoder, model.decoder), nets, strict=True):
            torch.testing.assert_close(part.net.state_dict(), net.state_dict(), rtol=0, atol=0)


def run_away(raw):
    return raw / 0.0


MISTAKES = {  # arguments, after --dataset=digits, with a word of what is said
    "": "--out",
    "--out=x --epochs=many": "--epochs",
    "--out=x --epochs=0": "epochs must be",
    "--out=x --beta=nan": "beta must be",
    "--out=x --device=mps": "mps",
    "--out=x --dataset=mnist": "MNIST",
    "--out=taken": "taken",
    "--out=x --decoder=gaussian": "not finite",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_bad_input_is_told_without_a_traceback(arguments, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.MNIST.download", refuse)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setitem(train.DECODERS, "gaussian", (lab.DecoderGaussian, run_away))
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    try:
        code = train.main(["--dataset=digits", *arguments.split()])
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vae_kit.train: ") and MISTAKES[arguments] in said
    assert code == (2 if "train: error: " in said else 1), "2 is what argparse finds"


def test_an_interrupted_run_says_that_the_same_command_continues(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "fit", lambda *_, **__: [])  # a history that lacks epochs
    assert train.main([*SMALL, f"--out={tmp_path}"]) == 130
    said = capsys.readouterr().err
    assert said == "vae_kit.train: interrupted; the same command continues\n"
