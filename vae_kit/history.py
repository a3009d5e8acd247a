"""The record of a training run: every data point's −ELBO in every epoch."""

from __future__ import annotations

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


class Curve:
    """Every data point's −ELBO of one split, in nats: a row for each time it was computed.

    Averages and standard errors are over all points, even where the record keeps the values of a
    random sample only.
    """

    def __init__(self, points: int, keep_points: int | None = None) -> None:
        self.points = points
        """How many data points there are, kept or not."""
        self.index = np.arange(points)
        """Which of them are kept, int64 ``(kept,)``, ascending."""
        if keep_points is not None and keep_points < points:
            # A generator of its own: the same sample in each run, and no other stream is disturbed.
            chosen = np.random.default_rng(0).choice(points, keep_points, replace=False)
            self.index = np.sort(chosen)
        self._rows: list[tuple[np.ndarray, float, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def values(self) -> np.ndarray:
        """−ELBO of the kept points, float32 ``(rows, kept)``."""
        empty = np.empty((0, len(self.index)), np.float32)
        return np.vstack([empty, *(values for values, _, _ in self._rows)])

    @property
    def mean(self) -> np.ndarray:
        """Average over all points, ``(rows,)``."""
        return np.array([mean for _, mean, _ in self._rows], float)

    @property
    def se(self) -> np.ndarray:
        """Standard error of that average over data points, ``(rows,)``; NaN for a single point."""
        return np.array([se for _, _, se in self._rows], float)

    def append(self, nats: Tensor) -> None:
        """Add the −ELBO of all points, ``(N,)``."""
        x = nats.cpu().numpy().astype(np.float64)
        se = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
        self._rows.append((x[self.index].astype(np.float32), float(x.mean()), float(se)))

    def state(self) -> dict[str, np.ndarray]:
        """The record as arrays."""
        names = ("values", "mean", "se", "index")
        return {name: getattr(self, name) for name in names} | {"points": np.array(self.points)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Curve:
        """The curve whose ``state()`` this is."""
        curve = cls(int(state["points"]))
        curve.index = np.asarray(state["index"])
        columns = (np.asarray(state[name]) for name in ("values", "mean", "se"))
        curve._rows = [(x, float(m), float(s)) for x, m, s in zip(*columns, strict=True)]
        return curve


class History:
    """The record of one run: every data point's −ELBO in every epoch, in nats.

    A training point's value is what the training pass itself computed for it, so the average
    belongs to the middle of its epoch, k − ½. The test set is evaluated before the first epoch and
    at the end of each, always with the same noise, and the training set once more, in the same
    way, at the end of the run.
    """

    def __init__(
        self, settings: Settings, identity: dict[str, str], train_points: int, test_points: int
    ) -> None:
        self.settings = settings
        """What ``fit`` was asked for."""
        self.identity = identity
        """What tells this experiment from others: model, data, transform, first weights."""
        self.train = Curve(train_points, settings.keep_points)
        """A row for each epoch, from the training pass."""
        self.test = Curve(test_points, settings.keep_points)
        """A row before training, and one after each epoch."""
        self.train_end = Curve(train_points, settings.keep_points)
        """Training points evaluated as test points are: one row once the run has ended."""
        self._kl: list[float] = []
        self._epochs: list[tuple[float, float, int]] = []  # seconds, rate, clipped steps

    def __len__(self) -> int:
        return len(self._epochs)

    @property
    def kl(self) -> np.ndarray:
        """Average KL term of the test points, as often as they were evaluated, ``(epochs + 1,)``.

        What the −ELBO has beside it is the reconstruction term, −log p(x|z).
        """
        return np.array(self._kl, float)

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each epoch, its evaluation included, ``(epochs,)``."""
        return np.array([seconds for seconds, _, _ in self._epochs])

    @property
    def lr(self) -> np.ndarray:
        """Average learning rate of each epoch, ``(epochs,)``."""
        return np.array([lr for _, lr, _ in self._epochs])

    @property
    def clipped(self) -> np.ndarray:
        """In how many steps of each epoch the gradient was clipped, ``(epochs,)``."""
        return np.array([clipped for _, _, clipped in self._epochs], dtype=int)

    def __repr__(self) -> str:  # in ASCII, which every console can show
        if not len(self):
            return "History of 0 epochs"
        train = self.train_end if len(self.train_end) else self.train
        ends = (f"{c.mean[-1]:,.2f} +/- {c.se[-1]:.2f}" for c in (train, self.test))
        words = "-ELBO train {}, test {} nats per data point".format(*ends)
        if clipped := int(self.clipped.sum()):
            words += f"; gradient clipped in {clipped} step{'s' * (clipped > 1)}"
        return f"{len(self)} epochs in {self.seconds.sum():.0f} s: {words}"

    def _repr_markdown_(self) -> str:  # what Jupyter shows
        return true_minus(repr(self).replace("+/-", "±"))

    def last(self) -> str:
        """The averages of the last epoch, in a few words."""
        return f"-ELBO train {self.train.mean[-1]:,.2f}, test {self.test.mean[-1]:,.2f}"

    def add_test(self, nats: Tensor, kl: float = math.nan) -> None:
        """Record the −ELBO of all test points, ``(N_test,)``, and their average KL term."""
        self.test.append(nats)
        self._kl.append(float(kl))

    def add_epoch(
        self, train: Tensor, test: Tensor, seconds: float, lr: float, clipped: int,
        kl: float = math.nan,
    ) -> None:  # fmt: skip
        """Record an epoch: the −ELBO of all points, ``(N_train,)`` and ``(N_test,)``."""
        self.train.append(train)
        self.add_test(test, kl)
        self._epochs.append((seconds, lr, clipped))

    def end(self, train: Tensor) -> None:
        """Record the −ELBO of all training points after the run, ``(N_train,)``."""
        self.train_end.append(train)

    def state(self) -> dict[str, Any]:
        """The record as strings and arrays."""
        curves = {
            f"{split}_{name}": array
            for split in ("train", "test", "train_end")
            for name, array in getattr(self, split).state().items()
        }
        words = {"settings": json.dumps(asdict(self.settings))}
        words["identity"] = json.dumps(self.identity)
        columns = {name: getattr(self, name) for name in ("kl", "seconds", "lr", "clipped")}
        return words | curves | columns

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """The history whose ``state()`` this is; ``KeyError`` or the like for anything else."""
        settings = Settings(**json.loads(str(state["settings"])))
        history = cls(settings, json.loads(str(state["identity"])), 0, 0)
        for split in ("train", "test", "train_end"):
            names = ("values", "mean", "se", "index", "points")
            part = {name: state[f"{split}_{name}"] for name in names}
            setattr(history, split, Curve.from_state(part))
        history._kl = np.asarray(state["kl"]).tolist()
        columns = (np.asarray(state[name]).tolist() for name in ("seconds", "lr", "clipped"))
        history._epochs = list(zip(*columns, strict=True))
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of plain arrays."""
        with open(Path(path).expanduser(), "wb") as file:
            np.savez(file, **self.state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
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
