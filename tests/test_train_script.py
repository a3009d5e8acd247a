"""``train.py`` from the command line: what it leaves, what it says, and how it ends."""

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
import vae_data
import vae_helpers as lab
from vae_networks import mlp

SCRIPT = Path(train.__file__)
SMALL = ["--dataset=digits", "--decoder=bernoulli", "--hidden", "16", "--latents=2", "--epochs=4"]
SMALL += ["--batch-size=128"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
ENVIRONMENT.pop("TQDM_DISABLE", None)  # whoever set it, a terminal gets its bar here


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of a run in a process of its own, and what it said."""
    folder = tmp_path_factory.mktemp("run") / "a" / "b"
    options = folder.parents[1] / "options.txt"
    given = [*SMALL, "--prior=mixture", "--components=5", "--samples=10"]
    options.write_text("\n".join(given), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, SCRIPT, *given, f"--out={folder}"],
        capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder, run


def test_a_log_file_gets_plain_lines(finished):
    _, run = finished
    assert run.stderr == ""
    first, *epochs, last = run.stdout.splitlines()
    assert first == "digits: 1,500 train + 297 test images, 1 × 8 × 8"
    number = r"-?\d+\.\d+"
    for k, line in enumerate(epochs, 1):
        said = rf"epoch {k}/4: -ELBO train {number}, test {number} \+/- {number}, {number} s"
        assert re.fullmatch(said, line)
    assert len(epochs) == 4
    assert re.match(r"4 epochs, \d+ s", last)
    assert not re.search(r"[\r\x1b]", run.stdout)


def test_results_agree_with_the_history(finished):
    folder, _ = finished
    curve = [f"learning_curve{end}" for end in (".png", ".svg", "_narrow.png")]
    files = ["checkpoint.pt", "history.npz", *curve, "results.json"]
    assert sorted(os.listdir(folder)) == files
    history, results = lab.History.load(folder / "history.npz"), results_of(folder)
    assert history.train.shape == (4, 1500)
    for split, cloud in (("train", history.train), ("test", history.test)):
        values = cloud[-1].astype(float)
        told_of_split = results[f"{split}_negative_elbo"]
        assert told_of_split["mean"] == pytest.approx(values.mean(), abs=1e-5)
        error = values.std(ddof=1) / len(values) ** 0.5
        assert told_of_split["se"] == pytest.approx(error, rel=1e-5)
    assert "converge" not in json.dumps(results), "one curve cannot tell"
    assert results["epochs"] == results["settings"]["epochs"] == 4
    assert results["seconds"] == pytest.approx(history.seconds.sum())
    assert results["dataset"] == "digits"
    assert results["train_images"] + results["test_images"] == 1797
    assert results["versions"]["torch"] == torch.__version__
    assert results["processes"] == 1
    assert results["likelihood"] == "probability"
    # Ten samples give a tighter bound than one.
    bound, estimate = results["test_negative_elbo"], results["test_negative_log_p"]
    assert bound["mean"] - 3 < estimate["mean"] < bound["mean"]
    assert 0 < estimate["se"] < 2 * bound["se"]


def test_the_figure_is_one(finished):
    folder, _ = finished
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "learning_curve.svg").read_text(encoding="utf-8")
    assert "(nats per image)" in svg


def test_options_from_a_file_make_the_same_run(finished, tmp_path):
    folder, _ = finished
    options = f"@{folder.parents[1] / 'options.txt'}"
    assert train.main([options, f"--out={tmp_path}", "--samples=0"]) == 0
    again, first = results_of(tmp_path), results_of(folder)
    assert again["settings"] == first["settings"] | {"samples": 0}, "the command line wins"
    assert again["test_negative_elbo"] == first["test_negative_elbo"]
    assert "test_negative_log_p" not in again


def test_the_same_command_again_trains_no_more(finished, capsys):
    folder, _ = finished
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    options = f"@{folder.parents[1] / 'options.txt'}"
    assert train.main([options, f"--out={folder}"]) == 0
    assert "epoch" not in capsys.readouterr().out.replace("4 epochs", "")
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("decoder", "likelihood"),
    [
        ("gaussian", "density"),
        ("continuous-bernoulli", "density"),
        ("categorical", "probability"),
    ],
)
@pytest.mark.parametrize("prior", ["gaussian", "autoregressive"])
def test_other_parts(decoder, likelihood, prior, tmp_path):
    chosen = [f"--decoder={decoder}", f"--prior={prior}", "--network=conv"]
    chosen += ["--epochs=1", "--kl=sampled", "--keep-points=50"]
    assert train.main([*SMALL, *chosen, "--beta=0.5", f"--out={tmp_path}"]) == 0
    assert results_of(tmp_path)["likelihood"] == likelihood
    assert lab.History.load(tmp_path / "history.npz").train.shape == (1, 50)


class HandedError(Exception):
    """Stands for training: it carries what ``fit`` was handed."""


def handed(monkeypatch, folder, *options):
    """The model, the splits and the settings with which ``train.py`` calls ``fit``."""

    def fit(model, *splits, **settings):
        raise HandedError(model, splits, settings)

    monkeypatch.setattr(lab, "fit", fit)
    with pytest.raises(HandedError) as found:
        train.main(["--dataset=digits", f"--out={folder}", *options])
    return found.value.args


OPTIONS = {  # of fit, each with another value than its default
    "epochs": 7,
    "batch_size": 32,
    "lr": 0.5,
    "schedule": "constant",
    "precision": "bfloat16",
    "seed": 5,
    "kl_warmup": 3,
    "keep_points": 9,
    "device": "cpu",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_fit_is_handed_to_it(option, monkeypatch, tmp_path):
    value, small = OPTIONS[option], ["--hidden", "8"]
    given = [f"--{option.replace('_', '-')}={value}", *small]
    _, splits, settings = handed(monkeypatch, tmp_path, *given)
    _, _, plain = handed(monkeypatch, tmp_path, *small)
    assert settings[option] == value != plain[option]
    assert all(settings[name] == plain[name] for name in OPTIONS if name != option)
    assert [len(split) for split in splits] == [1500, 297]
    assert settings["checkpoint"] == tmp_path / "checkpoint.pt"


def test_every_option_of_the_model_makes_it(monkeypatch, tmp_path):
    given = ["--kl=sampled", "--beta=0.5", "--latents=3", "--hidden", "7", "5", "--seed=5"]
    model, _, _ = handed(monkeypatch, tmp_path, *given, "--prior=mixture", "--components=4")
    assert (model.analytic_kl, model.beta) == (False, 0.5)
    assert model.prior.loc.shape == (4, 3)
    torch.manual_seed(5)
    nets = mlp((1, 8, 8), [7, 5], 6), mlp(3, [5, 7], (1, 8, 8))
    for part, net in zip((model.encoder, model.decoder), nets, strict=True):
        found, wanted = part.net.state_dict(), net.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    plain, _, _ = handed(monkeypatch, tmp_path, "--hidden", "8")
    assert (plain.analytic_kl, plain.beta) == (True, 1.0)


@pytest.mark.parametrize(
    ("decoder", "kind", "transform"),
    [
        ("gaussian", lab.DecoderGaussian, vae_data.dequantize),
        ("bernoulli", lab.DecoderBernoulli, vae_data.binarize),
        ("continuous-bernoulli", lab.DecoderContinuousBernoulli, vae_data.scale),
        ("categorical", lab.DecoderCategorical, vae_data.scale),
    ],
)
def test_each_decoder_meets_the_data_that_it_describes(
    decoder, kind, transform, monkeypatch, tmp_path
):
    model, _, settings = handed(monkeypatch, tmp_path, f"--decoder={decoder}", "--hidden", "8")
    assert type(model.decoder) is kind
    assert settings["transform"] is transform


def test_help_is_complete(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        train.main(["--help"])
    text = capsys.readouterr().out
    source = SCRIPT.read_text(encoding="utf-8")
    options = re.findall(r'add\("(--[\w-]+)"', source)
    assert len(options) > 15
    for option in options:
        assert re.search(rf"^  {option}\b.*(\n {{5,}}.*)*[a-z|]{{2}}", text, re.MULTILINE), option
    assert "torchrun" in text
    assert "Exit codes" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --out"),
        (["--out=x", "--epochs=0"], "--epochs: must be at least 1, got 0"),
        (["--out=x", "--epochs=many"], "--epochs: invalid"),
        (["--out=x", "--hidden", "16", "-1"], "--hidden: must be at least 1"),
        (["--out=x", "--decoder=poisson"], "--decoder: invalid choice: 'poisson'"),
        (["--out=x", "--epoch=3"], "unrecognized arguments: --epoch"),
        (["--out=x", "--lr=-1"], "lr must be positive"),
        (["--out=x", "--beta=nan"], "beta must be a finite number"),
        (["--out=x", "--device=mps"], "--device mps is not there"),
        (["--out=x", "--dataset=mnist", "--root=/nowhere/at/all"], "MNIST is not in"),
        (["--out=taken"], "taken"),
        (["--out=x", "@none.txt"], "none.txt"),
        (["--out=x", "@unknown.txt"], "unrecognized arguments: --colour=red"),
        (["--out=x", "@wrong.txt"], "--prior: invalid choice: 'none'"),
    ],
)
def test_bad_input_is_told_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    Path("unknown.txt").write_text("--colour=red")
    Path("wrong.txt").write_text("--prior=none")
    try:
        # The given arguments last: they win.
        code = train.main(["--dataset=digits", *arguments])
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("train.py: ")
    assert said.count("\n") == 1
    assert message in said


def test_a_checkpoint_of_other_settings_is_told_in_a_line(finished, capsys):
    folder, _ = finished
    options = f"@{folder.parents[1] / 'options.txt'}"
    assert train.main([options, f"--out={folder}", "--lr=0.5"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"train\.py: .*checkpoint\.pt .*lr \(0\.00\d there, 0\.5 here\).*\n", said)


def run_away(raw):
    return raw / 0.0


def test_numbers_that_run_away_are_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(train.DECODERS, "gaussian", (lab.DecoderGaussian, run_away))
    arguments = ["--dataset=digits", "--decoder=gaussian", "--epochs=1", f"--out={tmp_path}"]
    assert train.main(arguments) == 1
    assert re.fullmatch(r"train\.py: .* NaN or infinite.*\n", capsys.readouterr().err)


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal and its Ctrl-C")
def test_ctrl_c_on_a_terminal_keeps_the_checkpoint(tmp_path):
    """A bar on the terminal; exit code 130; the same command continues to the same numbers."""
    import fcntl
    import pty
    import termios

    arguments = [*SMALL, "--epochs=300", f"--out={tmp_path}"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a window has a size
    with subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], stdout=theirs, stderr=theirs, env=ENVIRONMENT
    ) as run:
        os.close(theirs)
        shown, pressed = b"", False
        with contextlib.suppress(OSError):  # once the other end is closed
            while part := os.read(ours, 4096):
                shown += part
                if shown.count(b"\r") >= 20 and not pressed:  # once: a second would end it anyway
                    run.send_signal(signal.SIGINT)
                    pressed = True
        assert run.wait(60) == 130, shown
    os.close(ours)
    assert "step/s" in shown.decode()
    assert "epoch 1/" not in shown.decode()
    assert "interrupted; the same command continues" in shown.decode()
    assert "Traceback" not in shown.decode()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]
    assert 0 <= len(saved["seconds"]) < 300
    assert train.main(arguments) == 0
    history = lab.History.load(tmp_path / "history.npz")
    np.testing.assert_array_equal(history.train[: len(saved["seconds"])], saved["train"])
    assert len(history) == 300
