"""Settings of a training run."""

import math
from dataclasses import dataclass
from typing import get_args

from .checks import positive_number, whole_number
from .devices import Precision

__all__ = ["Settings", "default_batch_size"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``fit`` was asked for; numbers of NumPy and PyTorch are converted.

    Raises ``ValueError``, which names the setting, for a value that makes no sense.
    """

    epochs: int
    batch_size: int | None = None
    """None lets it follow from the number of training points."""
    lr: float = 4e-3
    """The learning rate between its warm-up and its decay."""
    kl_warmup: int = 0
    """Epochs over which β rises from 0 to the model's own."""
    precision: Precision = "auto"
    seed: int = 0
    keep_points: int | None = None
    """How many points of each split the history keeps; None keeps all."""

    def __post_init__(self) -> None:
        checked: dict[str, int | float] = {"lr": positive_number("lr", self.lr)}
        least = {"epochs": 1, "batch_size": 1, "kl_warmup": 0, "seed": 0, "keep_points": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None or name not in ("batch_size", "keep_points"):
                checked[name] = whole_number(name, value, lowest)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ValueError(f"precision must be one of {known}; got {self.precision!r}")
        if self.kl_warmup >= self.epochs:
            raise ValueError(
                f"kl_warmup must be shorter than the run of {self.epochs} epochs, got "
                f"{self.kl_warmup}: else the model never trains at its own beta"
            )


def default_batch_size(points: int) -> int:
    """A power of two that grows with the data: 32 up to some 10,000 points, 256 from some 43,000.

    An epoch then has enough steps on a table of a few hundred rows, and few enough on images.
    """
    return 2 ** min(8, max(5, round(math.log2(points / 240))))
