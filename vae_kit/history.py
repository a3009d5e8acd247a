"""The record of a training run: every data point's −ELBO in every epoch."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .displays import true_minus
from .settings import Settings

__all__ = ["Curve", "History"]

_CURVES, _COLUMNS = ("train", "test", "train_end"), ("kl", "seconds", "lr", "clipped")


class Curve:
    """Every data point's −ELBO of one split, in nats: a row for each time it was computed.

    points    how many data points there are, kept or not
    index     which of them are kept, int64 ``(kept,)``, ascending
    values    −ELBO of the kept points, float32 ``(rows, kept)``
    mean, se  average over all points and its standard error, NaN for a single point, ``(rows,)``
    """

    def __init__(self, points: int, keep_points: int | None = None) -> None:
        self.points, self.index = points, np.arange(points)
        if keep_points is not None and keep_points < points:
            # A generator of its own: the same sample in each run, and no other stream is disturbed.
            chosen = np.random.default_rng(0).choice(points, keep_points, replace=False)
            self.index = np.sort(chosen)
        self.values = np.empty((0, len(self.index)), np.float32)
        self.mean, self.se = np.empty(0), np.empty(0)

    def __len__(self) -> int:
        return len(self.mean)

    def append(self, nats: Tensor) -> None:
        """Add the −ELBO of all points, ``(N,)``."""
        x = nats.cpu().numpy().astype(np.float64)
        self.values = np.vstack([self.values, x[self.index].astype(np.float32)])
        self.mean = np.append(self.mean, x.mean())
        self.se = np.append(self.se, x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else math.nan)


class History:
    """The record of one run: every data point's −ELBO in every epoch, in nats.

    A training point's value is what the training pass itself computed for it, so the average
    belongs to the middle of its epoch, k − ½. The test set is evaluated before the first epoch and
    at the end of each, always with the same noise, and the training set once more, in the same
    way, at the end of the run.

    settings     what ``fit`` was asked for
    identity     what tells this experiment from others: model, data, transform, first weights
    train        a row for each epoch, from the training pass
    test         a row before training, and one after each epoch
    train_end    training points evaluated as test points are: one row once the run has ended
    kl           average KL term of the test points, a value for each row of ``test``; what the
                 −ELBO has beside it is the reconstruction term, −log p(x|z)
    seconds, lr  duration of each epoch with its evaluation, and its average learning rate
    clipped      in how many steps of each epoch the gradient was clipped
    """

    def __init__(
        self, settings: Settings, identity: dict[str, str], train_points: int, test_points: int
    ) -> None:
        self.settings, self.identity = settings, identity
        self.train = Curve(train_points, settings.keep_points)
        self.test = Curve(test_points, settings.keep_points)
        self.train_end = Curve(train_points, settings.keep_points)
        self.kl, self.seconds, self.lr = np.empty(0), np.empty(0), np.empty(0)
        self.clipped = np.empty(0, dtype=int)

    def __len__(self) -> int:
        return len(self.seconds)

    def __repr__(self) -> str:  # in ASCII, which every console can show
        if not len(self):
            return "History of 0 epochs"
        train = self.train_end if len(self.train_end) else self.train
        ends = (f"{c.mean[-1]:,.2f} +/- {c.se[-1]:.2f}" for c in (train, self.test))
        words = "-ELBO train {}, test {} nats per data point".format(*ends)
        if clipped := int(self.clipped.sum()):
            words += f"; gradient clipped in {clipped} step{'s' * (clipped > 1)}"
        epochs = f"{len(self)} epoch{'s' * (len(self) > 1)}"
        return f"{epochs} in {self.seconds.sum():.0f} s: {words}"

    def _repr_markdown_(self) -> str:  # what Jupyter shows
        return true_minus(repr(self).replace("+/-", "±"))

    def last(self) -> str:
        """The averages of the last epoch, in a few words."""
        return f"-ELBO train {self.train.mean[-1]:,.2f}, test {self.test.mean[-1]:,.2f}"

    def add_test(self, nats: Tensor, kl: float = math.nan) -> None:
        """Record the −ELBO of all test points, ``(N_test,)``, and their average KL term."""
        self.test.append(nats)
        self.kl = np.append(self.kl, kl)

    def add_epoch(
        self, train: Tensor, test: Tensor, seconds: float, lr: float, clipped: int,
        kl: float = math.nan,
    ) -> None:  # fmt: skip
        """Record an epoch: the −ELBO of all points, ``(N_train,)`` and ``(N_test,)``."""
        self.train.append(train)
        self.add_test(test, kl)
        self.seconds, self.lr = np.append(self.seconds, seconds), np.append(self.lr, lr)
        self.clipped = np.append(self.clipped, clipped)

    def state(self) -> dict[str, Any]:
        """The record as strings and arrays."""
        words = {"settings": json.dumps(asdict(self.settings))}
        words["identity"] = json.dumps(self.identity)
        curves = {
            f"{split}_{name}": np.asarray(array)
            for split in _CURVES
            for name, array in vars(getattr(self, split)).items()
        }
        return words | curves | {name: getattr(self, name) for name in _COLUMNS}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "History":
        """The history whose ``state()`` this is; ``KeyError`` or the like for anything else."""
        settings = Settings(**json.loads(str(state["settings"])))
        history = cls(settings, json.loads(str(state["identity"])), 0, 0)
        for split in _CURVES:
            curve = getattr(history, split)
            vars(curve).update({k: np.asarray(state[f"{split}_{k}"]) for k in vars(curve)})
            curve.points = int(curve.points)
        vars(history).update({name: np.asarray(state[name]) for name in _COLUMNS})
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of plain arrays."""
        with open(Path(path).expanduser(), "wb") as file:
            np.savez(file, **self.state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "History":
        """Read what ``save`` wrote, executing nothing; ``ValueError`` if it is something else."""
        path = Path(path).expanduser()
        try:
            # Opened here, since NumPy leaves a file open that turns out to be broken.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls.from_state(dict(arrays))
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(f"{path} is not a history that History.save wrote") from error
