"""Training of a VAE on its loss, with every data point's −ELBO on record."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import Dataset

from vae_helpers import VAE, DecoderGaussian, Elbo, evaluating

from . import checks, processes
from .batches import Batch, Batches, Transform
from .checkpoint import Checkpoint, describe, digest_of_weights
from .devices import Precision, autocast, caller_settings_ignored, data_dtype, pick_device
from .evaluation import EVALUATION_BATCH, elbo_of_all, refuse_non_finite
from .history import History
from .optimization import GradientClipping, decay_start, learning_rates
from .seeds import seeded
from .settings import Settings, default_batch_size

__all__ = ["Progress", "Run", "fit", "prepare_run", "train_epoch"]

Progress = bool | Callable[[History], Any]


def fit(
    model: VAE,
    train: Tensor | Dataset[Any],
    test: Tensor | Dataset[Any],
    *,
    epochs: int,
    batch_size: int | None = None,
    lr: float = Settings.lr,
    kl_warmup: int = 0,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    keep_points: int | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> History:
    """Train ``model`` on its loss with Adam; return every data point's −ELBO in every epoch.

    ``train`` and ``test`` are tensors, arrays, tables or map-style datasets; of an item ``(x, y)``
    only x is used. Under ``torch.distributed`` each process trains on its share of every batch.

    batch_size    by default 32 to 256, growing with the data set
    lr            learning rate between its warm-up and its decay over the last quarter of the run
    kl_warmup     epochs over which β rises from 0 to the model's own; the curve is at β = 1
    transform     takes a batch into the model's space
    device        by default CUDA, then MPS, then CPU; the model stays there
    precision     of the networks: "auto" is bfloat16 where that is fast
    seed          of order, noise and transform; the global generators are left as they were
    keep_points   how many points of each split the history keeps, all by default
    workers       processes that load a dataset which is no tensor or array
    checkpoint    file of the run so far; the same call continues from it, bit for bit
    progress      a bar, or a function of the history each epoch; fit ends if it returns False

    Ctrl-C returns the history so far. Raises ``ValueError`` for settings, data or a checkpoint that
    do not fit, ``TypeError`` for what is no data set and for integers without a transform,
    ``FloatingPointError`` for a term that is not finite, ``OSError`` for a file not to be written.
    """
    settings = Settings(
        epochs=epochs, batch_size=batch_size, lr=lr, kl_warmup=kl_warmup, precision=precision,
        seed=seed, keep_points=keep_points,
    )  # fmt: skip
    with prepare_run(model, train, test, settings, transform, device, workers) as run:
        run.resume(Checkpoint(checkpoint, run.identity))
        run.complete(progress)
    return run.history


@contextmanager
def prepare_run(
    model: VAE,
    train: Any,
    test: Any,
    settings: Settings,
    transform: Transform | None,
    device: str | torch.device | None,
    workers: int,
) -> Iterator["Run"]:
    """Make a run, whatever the caller has set in PyTorch; close the data afterwards."""
    device, dtype = pick_device(device), data_dtype(model)
    with caller_settings_ignored(device):
        training = Batches(train, "train", device, dtype, transform, workers)
        held_out = Batches(test, "test", device, dtype, transform, workers)
        if settings.batch_size is None:
            settings = replace(settings, batch_size=default_batch_size(len(training)))
        with closing(training), closing(held_out):
            yield Run(model.to(device), training, held_out, settings)


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    clip: GradientClipping,
    rates: Iterable[float],
    betas: Iterable[float],
    precision: Precision = "float32",
    own_loss: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Train on every batch once; return each point's −ELBO in nats, in the order of the batches."""
    nats = []
    for (_, x, share), rate, beta in zip(batches, rates, betas, strict=True):
        with autocast(precision, x.device):
            elbo = model(x)
            loss = own_loss(x) if own_loss else elbo.objective(beta)
        refuse_non_finite(model, x, elbo, loss)
        optimizer.zero_grad()
        (share * loss).backward()
        clip(model.parameters())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        nats.append(-elbo.value.detach())
    return torch.cat(nats)


class Run:
    """A training run, epoch by epoch: model, optimizer and history.

    Learning rate, order and noise follow from the settings and the number of the epoch, so a
    checkpoint holds no state of a schedule or of a generator.
    """

    def __init__(
        self, model: VAE, training: Batches, held_out: Batches, settings: Settings
    ) -> None:
        batch_size = settings.batch_size
        assert batch_size is not None  # it follows from the data by now
        self.model, self.training, self.held_out = model, training, held_out
        self.settings, self.batch_size = settings, batch_size
        self.evaluation_batch = min(EVALUATION_BATCH, 8 * batch_size)
        overridden = getattr(model.loss, "__func__", None) is not VAE.loss
        self.own_loss = model.loss if overridden else None
        if self.own_loss and settings.kl_warmup:
            raise ValueError("kl_warmup is for VAE.loss: this model has a loss of its own")
        weights = list(model.parameters())
        if not any(p.requires_grad for p in weights):
            raise ValueError("no weight of the model requires a gradient: nothing can be trained")
        experiment = {
            "model": describe(model, weights=False), "transform": describe(training.transform),
            "train data": training.fingerprint(), "test data": held_out.fingerprint(),
        }  # fmt: skip
        self.identity = {k: str(v) for k, v in asdict(settings).items()} | experiment
        experiment["first weights"] = digest_of_weights(model.state_dict())
        self.history = History(settings, experiment, len(training), len(held_out))
        # With β₂ = 0.999 a weight whose gradients were small for long takes a step of three rates
        # once they grow, which at times throws a model off for good; with 0.99 a step of one.
        fused = training.device.type in ("cpu", "cuda") and not any(map(torch.is_complex, weights))
        self.optimizer = torch.optim.Adam(weights, settings.lr, (0.9, 0.99), fused=fused)
        self.clipping = GradientClipping()
        self.steps = len(training.indices(batch_size, (0,)))
        self.rates = learning_rates(settings.lr, settings.epochs, self.steps)
        self.checkpoint = Checkpoint(None, {})

    def complete(self, progress: Progress, trunk: Callable[["Run"], None] | None = None) -> bool:
        """Train the missing epochs; False where ``progress`` or Ctrl-C stopped it early.

        ``trunk`` is called with the run where its rate begins to decay.
        """
        epochs = self.settings.epochs
        replicated, stopped = processes.data_parallel(self.model), False
        done = len(self.history) * self.steps
        with processes.progress_bar(progress is True, "step", len(self.rates), done) as bar:
            try:
                if not len(self.history.test):
                    self._begin()
                    self.checkpoint.write(self.state())
                while len(self.history) < epochs and not stopped:
                    if trunk and len(self.history) == decay_start(epochs):
                        trunk(self)
                    self._add_epoch(replicated, bar)
                    self.checkpoint.write(self.state())
                    stopped = _wants_to_stop(progress, self.history)
                self._warn()
            except KeyboardInterrupt:
                stopped = True
                print(f"interrupted: the history holds {len(self.history)} of {epochs} epochs")
        _set_mode(self.model, training=False)
        return not stopped

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors, numbers and strings."""
        record = {
            name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in self.history.state().items()
        }
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "clipping": dict(vars(self.clipping)), "history": record,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state of this run, or of one of another length from before its rate decays."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.clipping).update(state["clipping"])
        self.history = History.from_state(state["history"])
        self.history.settings = self.settings

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Load the checkpoint's file, if there is one, and save to it from now on.

        Warns where the model given is neither the one with which that run began nor the one in the
        file: its weights are replaced.
        """
        self.checkpoint = checkpoint
        if (state := checkpoint.read()) is None:
            return False
        given = digest_of_weights(self.model.state_dict())
        self.restore(state)
        now = digest_of_weights(self.model.state_dict())
        if given not in (self.history.identity["first weights"], now):
            checks.warn_of_other_weights(checkpoint.path)
        return True

    def set_first_weights(self, weights: dict[str, Any]) -> None:
        """Take these as the first weights."""
        self.model.load_state_dict(weights)
        self.history.identity["first weights"] = digest_of_weights(weights)

    def _begin(self) -> None:
        """Look at some data points, let a learned σ begin at the residuals, and evaluate."""
        decoder = self.model.decoder
        if isinstance(decoder, DecoderGaussian):
            # Single points may be large: as many as for an evaluation only where σ is learned.
            learned = decoder.given_scale == "learned"
            points = self.evaluation_batch if learned else self.batch_size
            x = self.training.first(points, self.settings.seed)
            # What does not fit together here, the evaluation tells in words.
            with suppress(AttributeError, NotImplementedError):
                if x.isfinite().all():
                    checks.warn_if_not_standardised(x)
                    if learned and (mean := self._decoded(x).mean).shape == x.shape:
                        decoder.start_from(x - mean)
        elbo = self._evaluate(self.held_out, "test set, before training")
        self.history.add_test(-elbo.value, elbo.kl.mean().item())

    def _add_epoch(self, replicated: nn.Module, bar: Any) -> None:
        """Train for an epoch, evaluate, and record both; at the end of the run train as well."""
        start, epoch = time.perf_counter(), len(self.history) + 1
        rates = self.rates[self.steps * (epoch - 1) : self.steps * epoch]
        before = self.clipping.clipped
        train = self._train(replicated, epoch, rates, bar)
        elbo = self._evaluate(self.held_out, f"test set, epoch {epoch}")
        seconds, clipped = time.perf_counter() - start, self.clipping.clipped - before
        lr, kl = float(rates.mean()), elbo.kl.mean().item()
        if epoch == self.settings.epochs:
            ended = self._evaluate(self.training, "train set, after the run")
            self.history.train_end.append(-ended.value)
        self.history.add_epoch(train, -elbo.value, seconds, lr, clipped, kl)
        bar.set_postfix_str(self.history.last())

    def _train(self, replicated: nn.Module, epoch: int, rates: np.ndarray, bar: Any) -> Tensor:
        """−ELBO of every training point in this epoch, ``(N_train,)``, in nats."""
        seed, warm_up = self.settings.seed, self.settings.kl_warmup * self.steps
        steps = np.arange(1, self.steps + 1) + (epoch - 1) * self.steps
        betas = self.model.beta * np.minimum(1, steps / max(1, warm_up))
        order: list[Tensor] = []

        def served(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                order.append(batch.rows)
                yield batch
                bar.update()

        _set_mode(self.model, training=True)
        batches = self.training.load(self.training.indices(self.batch_size, (seed, epoch)))
        # Closed at once: a traceback that is kept would keep the workers alive.
        with (
            seeded(seed, epoch, 1 + processes.rank_and_size()[0]),
            closing(batches),
            checks.error_prefix(lambda: f"train, epoch {epoch}, step {len(order)}"),
        ):
            nats = train_epoch(
                replicated, served(batches), self.optimizer, self.clipping, rates.tolist(),
                betas.tolist(), self.settings.precision, self.own_loss,
            )  # fmt: skip
        row = torch.zeros(len(self.training), dtype=torch.float32, device=nats.device)
        row[torch.cat(order)] = nats.float()
        return processes.sum_over_processes(row)

    def _evaluate(self, source: Batches, where: str) -> Elbo:
        precision, seed = self.settings.precision, self.settings.seed
        return elbo_of_all(self.model, source, self.evaluation_batch, precision, seed, where)

    def _decoded(self, x: Tensor) -> Distribution:
        """p(x|z) at one z ~ q(z|x) for each point, in evaluation mode."""
        with evaluating(self.model), seeded(self.settings.seed):
            return self.model.decoder(self.model.encoder(x).rsample())

    def _warn(self) -> None:
        """Warn of what the numbers of the run alone would not tell."""
        checks.warn_of_clipping(int(self.history.clipped.sum()), len(self.history) * self.steps)
        decoder = self.model.decoder
        if isinstance(decoder, DecoderGaussian) and decoder.given_scale in ("learned", "net"):
            x = self.held_out.first(self.evaluation_batch, self.settings.seed)
            checks.warn_if_scale_at_floor(self._decoded(x).stddev)


def _wants_to_stop(progress: Progress, history: History) -> bool:
    wish = progress(history) if callable(progress) and processes.rank_and_size()[0] == 0 else None
    return bool(processes.broadcast_from_first(isinstance(wish, (bool, np.bool_)) and not wish))


def _set_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)``, also where a part made by torch.export refuses it."""
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            module.training = training
