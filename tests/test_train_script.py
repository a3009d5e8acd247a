"""``python -m vae_kit.train``: what it leaves, what it says, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_helpers as lab
from tools import ROOT
from vae_kit import data, parts, train
from vae_kit.history import History
from vae_kit.networks import mlp

COMMAND = [sys.executable, "-m", "vae_kit.train"]
SMALL = ["--dataset=digits", "--hidden", "16", "--latents=2", "--epochs=4", "--batch-size=128"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):  # a folder of a run in a process of its own, and what it said
    folder = tmp_path_factory.mktemp("run") / "a" / "b"
    options = folder.parents[1] / "options.txt"
    given = [*SMALL, "--prior=mixture", "--samples=10"]
    options.write_text("\n".join(given), encoding="utf-8")
    run = subprocess.run(
        [*COMMAND, *given, f"--out={folder}"],
        capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder, run


def test_lines_and_results_agree_with_the_history(finished):
    folder, run = finished
    first, *epochs, last = run.stdout.splitlines()
    assert "1,500 train" in first and last.startswith("4 epochs") and run.stderr == ""
    said = [rf"epoch {k}/4: -ELBO train -?\d+\.\d+, test -?\d+\.\d+" for k in range(1, 5)]
    assert len(epochs) == 4 and all(map(re.fullmatch, said, epochs))
    curve = [f"learning_curve{end}" for end in (".png", ".svg", "_narrow.png")]
    assert set(os.listdir(folder)) - {*curve} == {"checkpoint.pt", "history.npz", "results.json"}
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    history, results = History.load(folder / "history.npz"), results_of(folder)
    assert history.train.values.shape == (4, 1500)
    for split, ends in (("train", history.train_end), ("test", history.test)):
        values = ends.values[-1].astype(float)
        told = results["negative_elbo"][split]
        assert told["mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert told["se"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=1e-5)
        assert results["images"][split] == len(values) == {"train": 1500, "test": 297}[split]
    assert "converge" not in json.dumps(results), "one curve cannot tell"
    assert results["settings"]["epochs"] == 4
    assert results["settings"]["batch_size"] == 128
    assert results["seconds"] == pytest.approx(history.seconds.sum())
    assert (results["dataset"], results["processes"]) == ("digits", 1)
    assert results["versions"]["torch"] == torch.__version__
    # Ten samples give a tighter bound than one.
    bound, estimate = results["negative_elbo"]["test"], results["test_negative_log_p"]
    assert bound["mean"] - 3 < estimate["mean"] < bound["mean"]
    assert 0 < estimate["se"] < 2 * bound["se"]


@pytest.fixture
def unseen(monkeypatch):  # no figure is drawn, which takes longer than the run
    monkeypatch.setattr(train, "plot_learning_curve", lambda *_: None)
    monkeypatch.setattr(train, "save_figure", lambda *_: None)


@pytest.mark.usefixtures("unseen")
def test_the_same_command_or_its_file_goes_on_or_makes_the_same_run(finished, tmp_path, capsys):
    folder, _ = finished
    options = f"@{folder.parents[1] / 'options.txt'}"
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert train.main([options, f"--out={folder}"]) == 0
    assert "epoch " not in capsys.readouterr().out
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before
    assert train.main([options, f"--out={tmp_path}", "--samples=0"]) == 0
    again, first = results_of(tmp_path), results_of(folder)
    assert again["settings"] == first["settings"] | {"samples": 0}, "the command line wins"
    assert again["negative_elbo"] == first["negative_elbo"]
    assert "test_negative_log_p" not in again
    assert train.main([options, f"--out={folder}", "--lr=0.5"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"vae_kit\.train: .*checkpoint\.pt .*lr \(0\.\d+ there, 0\.5 here\).*\n", said
    )


class HandedError(Exception):
    """Stands for training: it carries what ``fit`` was handed."""


def handed(monkeypatch, folder, *options):
    """The model, the splits and the settings with which ``fit`` is called."""

    def fit(model, *splits, **settings):
        raise HandedError(model, splits, settings)

    monkeypatch.setattr(train, "fit", fit)
    with pytest.raises(HandedError) as found:
        train.main(["--dataset=digits", f"--out={folder}", "--hidden", "8", *options])
    return found.value.args


def test_every_option_is_handed_to_fit_or_makes_the_model(monkeypatch, tmp_path):
    options = {
        "epochs": 7, "batch_size": 32, "lr": 0.5, "precision": "bfloat16", "seed": 5,
        "kl_warmup": 3, "keep_points": 9, "device": "cpu",
    }  # fmt: skip
    _, _, plain = handed(monkeypatch, tmp_path)
    for option, value in options.items():
        given = f"--{option.replace('_', '-')}={value}"
        _, splits, settings = handed(monkeypatch, tmp_path, given)
        assert settings[option] == value != plain[option]
        assert all(settings[name] == plain[name] for name in options if name != option)
    assert [len(split) for split in splits] == [1500, 297]
    assert settings["checkpoint"] == tmp_path / "checkpoint.pt"
    given = ["--beta=0.5", "--latents=3", "--hidden", "7", "5", "--seed=5", "--prior=mixture"]
    model, _, _ = handed(monkeypatch, tmp_path, *given)
    assert (model.beta, model.prior.loc.shape) == (0.5, (100, 3))
    torch.manual_seed(5)
    nets = mlp((1, 8, 8), [7, 5], 6), mlp(3, [5, 7], (1, 8, 8))
    for part, net in zip((model.encoder, model.decoder), nets, strict=True):
        found, wanted = part.net.state_dict(), net.state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in found.keys() | wanted.keys())
    for decoder, kind, transform in (
        ("gaussian", lab.DecoderGaussian, data.dequantize),
        ("bernoulli", lab.DecoderBernoulli, data.binarize),
        ("continuous-bernoulli", parts.DecoderContinuousBernoulli, data.scale),
        ("categorical", parts.DecoderCategorical, data.scale),
    ):
        model, _, settings = handed(monkeypatch, tmp_path, f"--decoder={decoder}")
        assert type(model.decoder) is kind
        assert settings["transform"] is transform


def run_away(raw):
    return raw / 0.0


MISTAKES = {  # arguments, after --dataset=digits, and a word of what is said
    "": "--out",
    "--out=x --epochs=0": "epochs must be",
    "--out=x --epochs=many": "--epochs",
    "--out=x --decoder=poisson": "'poisson'",
    "--out=x --epoch=3": "--epoch",
    "--out=x --lr=-1": "lr must be",
    "--out=x --beta=nan": "beta must be",
    "--out=x --device=mps": "mps",
    "--out=x --dataset=mnist --root=/nowhere/at/all": "MNIST",
    "--out=taken": "taken",
    "--out=x @none.txt": "none.txt",
    "--out=x @unknown.txt": "--colour=red",
    "--out=x --decoder=gaussian": "not finite",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_bad_input_is_told_in_a_line(arguments, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setitem(train.DECODERS, "gaussian", (lab.DecoderGaussian, run_away))
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    Path("unknown.txt").write_text("--colour=red")
    try:
        code = train.main(["--dataset=digits", *arguments.split()])
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("vae_kit.train: ") and said.count("\n") == 1
    assert MISTAKES[arguments] in said


@pytest.mark.usefixtures("unseen")
@pytest.mark.skipif(os.name != "posix", reason="needs a Ctrl-C from outside")
def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_goes_on(tmp_path):
    arguments = [*SMALL, "--epochs=60", f"--out={tmp_path}"]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, **given) as process:
        while not process.stdout.readline().startswith("epoch 2/60"):
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "vae_kit.train: interrupted; the same command continues\n"
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]["train_values"]
    assert 2 <= len(saved) < 60
    assert train.main(arguments) == 0
    history = History.load(tmp_path / "history.npz")
    np.testing.assert_array_equal(history.train.values[: len(saved)], saved)
    assert len(history) == 60
