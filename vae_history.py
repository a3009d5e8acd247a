"""The record of a training run: every data point's −ELBO in every epoch."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["History"]


class History:
    """The record of one run: every data point's −ELBO in every epoch, in nats.

    A training point's value is what the training pass itself computed for it, so the average
    belongs to the middle of its epoch, k − ½. The test set is evaluated before the first epoch and
    at the end of each, always with the same noise. Averages and standard errors are over all
    points, even where ``keep_points`` made the record keep the values of a random sample only.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        train_points: int,
        test_points: int,
        keep_points: int | None = None,
    ) -> None:
        self.settings = settings
        """What defines the run: ``fit``'s arguments, the model, digests of data and weights."""
        self._train = _Curve(settings["epochs"], train_points, keep_points)
        self._test = _Curve(settings["epochs"] + 1, test_points, keep_points)
        self._epochs: list[tuple[float, float, int]] = []  # seconds, rate, bounded steps

    def __len__(self) -> int:
        return len(self._epochs)

    @property
    def train(self) -> np.ndarray:
        """−ELBO of the kept training points, float32 ``(epochs, kept)``."""
        return self._train.values[: self._train.rows]

    @property
    def test(self) -> np.ndarray:
        """−ELBO of the kept test points, float32 ``(epochs + 1, kept)``."""
        return self._test.values[: self._test.rows]

    @property
    def train_index(self) -> np.ndarray:
        """Which training points are kept, int64 ``(kept,)``, ascending."""
        return self._train.index

    @property
    def test_index(self) -> np.ndarray:
        """Which test points are kept, int64 ``(kept,)``, ascending."""
        return self._test.index

    @property
    def train_points(self) -> int:
        """How many training points there are, kept or not."""
        return self._train.points

    @property
    def test_points(self) -> int:
        """How many test points there are, kept or not."""
        return self._test.points

    @property
    def train_mean(self) -> np.ndarray:
        """Average over all training points, ``(epochs,)``."""
        return self._train.mean[: self._train.rows]

    @property
    def train_se(self) -> np.ndarray:
        """Standard error of that average over data points, ``(epochs,)``."""
        return self._train.se[: self._train.rows]

    @property
    def test_mean(self) -> np.ndarray:
        """Average over all test points, ``(epochs + 1,)``."""
        return self._test.mean[: self._test.rows]

    @property
    def test_se(self) -> np.ndarray:
        """Standard error of that average over data points, ``(epochs + 1,)``."""
        return self._test.se[: self._test.rows]

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each epoch, its evaluation included, ``(epochs,)``."""
        return np.array([seconds for seconds, _, _ in self._epochs])

    @property
    def lr(self) -> np.ndarray:
        """Average learning rate of each epoch, ``(epochs,)``."""
        return np.array([lr for _, lr, _ in self._epochs])

    @property
    def bounded(self) -> np.ndarray:
        """In how many steps of each epoch the gradient was bounded, ``(epochs,)``."""
        return np.array([bounded for _, _, bounded in self._epochs], dtype=int)

    def __repr__(self) -> str:  # in ASCII, which every console can show
        if not len(self):
            return "History of 0 epochs"
        train, test = (
            f"{mean[-1]:,.2f} +/- {se[-1]:.2f}"
            for mean, se in ((self.train_mean, self.train_se), (self.test_mean, self.test_se))
        )
        bounded = int(self.bounded.sum())
        steps = "1 step" if bounded == 1 else f"{bounded} steps"
        return (
            f"{len(self)} epochs in {self.seconds.sum():.0f} s: -ELBO train {train}, test {test} "
            "nats per data point" + f"; gradient bounded in {steps}" * (bounded > 0)
        )

    def _repr_markdown_(self) -> str:  # what Jupyter shows
        return repr(self).replace("+/-", "±").replace("-", "−")

    def last(self) -> str:
        """The averages of the last epoch, in a few words."""
        return f"-ELBO train {self.train_mean[-1]:,.2f}, test {self.test_mean[-1]:,.2f}"

    def add_test(self, nats: Tensor) -> None:
        """Record the −ELBO of all test points before training, ``(N_test,)``."""
        self._test.append(nats)

    def add_epoch(
        self, train: Tensor, test: Tensor, seconds: float, lr: float, bounded: int
    ) -> None:
        """Record an epoch: the −ELBO of all points, ``(N_train,)`` and ``(N_test,)``."""
        self._train.append(train)
        self._test.append(test)
        self._epochs.append((seconds, lr, bounded))

    def state(self) -> dict[str, Any]:
        """The record as plain numbers, strings and arrays."""
        names = (
            *("train", "train_mean", "train_se", "train_index", "train_points"),
            *("test", "test_mean", "test_se", "test_index", "test_points"),
            *("seconds", "lr", "bounded"),
        )
        return {"settings": json.dumps(self.settings)} | {n: getattr(self, n) for n in names}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """The history whose ``state()`` this is; ``KeyError`` or the like for anything else."""
        points = {split: int(state[f"{split}_points"]) for split in ("train", "test")}
        history = cls(json.loads(str(state["settings"])), points["train"], points["test"])
        for name, curve in (("train", history._train), ("test", history._test)):
            curve.restore(*(state[f"{name}{part}"] for part in ("", "_mean", "_se", "_index")))
        columns = (np.asarray(state[name]).tolist() for name in ("seconds", "lr", "bounded"))
        history._epochs = list(zip(*columns, strict=True))
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of plain arrays."""
        with open(path, "wb") as file:
            np.savez(file, **self.state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what ``save`` wrote, executing nothing; ``ValueError`` if it is something else."""
        try:
            # Opened here, since NumPy leaves a file open that turns out to be broken.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls.from_state(dict(arrays))
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(f"{path} is not a history that History.save wrote") from error


class _Curve:
    """A split's share of a ``History``: room for ``length`` rows of −ELBO, filled one by one."""

    def __init__(self, length: int, points: int, keep_points: int | None) -> None:
        self.points, self.rows = points, 0
        self.index = np.arange(points)
        if keep_points is not None and keep_points < points:
            # A generator of its own: the same sample in each run, and no other stream is disturbed.
            chosen = np.random.default_rng(0).choice(points, keep_points, replace=False)
            self.index = np.sort(chosen)
        self.values = np.empty((length, len(self.index)), np.float32)
        self.mean, self.se = np.empty(length), np.empty(length)

    def append(self, nats: Tensor) -> None:
        values = nats.cpu().numpy().astype(np.float64)
        row, self.rows = self.rows, self.rows + 1
        self.values[row] = values[self.index]
        self.mean[row] = values.mean()
        n = len(values)
        self.se[row] = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan

    def restore(self, values: Any, mean: Any, se: Any, index: Any) -> None:
        self.rows, self.index = len(mean), np.asarray(index)
        room = len(self.mean) - self.rows
        self.values = np.pad(np.asarray(values, np.float32), ((0, room), (0, 0)))
        self.mean, self.se = np.pad(np.asarray(mean), (0, room)), np.pad(np.asarray(se), (0, room))
