"""Checks of numbers, errors that name the place, and warnings of what results do not show."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from vae_helpers import MIN_SCALE, finite_number

__all__ = ["error_prefix", "positive_number", "warn", "warn_if_not_standardised"]
__all__ += ["warn_if_scale_at_floor", "warn_of_clipping", "warn_of_other_weights", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int; ``ValueError`` unless it is a whole number ≥ ``least``."""
    number = value.item() if hasattr(value, "item") else value  # of NumPy or PyTorch
    if type(number) is not int or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def positive_number(name: str, value: Any) -> float:
    """``value`` as a float; ``ValueError`` unless it is a finite number above 0."""
    if not (number := finite_number(name, value)):
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number


@contextlib.contextmanager
def error_prefix(where: str | Callable[[], str]) -> Iterator[None]:
    """Put ``where`` in front of the words of an error raised within; a function gives it then."""
    try:
        yield
    except (FloatingPointError, TypeError, ValueError, RuntimeError) as error:
        error.args = (f"{where() if callable(where) else where}: {error}",)
        raise


def warn(text: str) -> None:
    """Warn, and name the line outside of the lab that led here."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").startswith(("vae_kit.", "contextlib")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level + 1)


def warn_if_not_standardised(x: Tensor) -> None:
    """Warn of data ``(B, ...)`` far from zero or, in a table, of columns of very different size."""
    centre, spread = x.mean(0), x.std(0, unbiased=False)
    far = len(x) > 1 and centre.square().mean() > 100 * spread.square().mean()
    sizes = spread[spread > 0] if x.ndim == 2 else spread.new_ones(1)
    largest = sizes.max() if len(sizes) else 0
    uneven = largest > 100 * sizes.median() or (largest > 3 and largest > 100 * sizes.min())
    if far or uneven:
        what = "lie far from zero" if far else "have columns of very different size"
        warn(f"the data {what}: standardise them, so that σ fits all")


def warn_of_clipping(clipped: int, steps: int) -> None:
    """Warn where the gradient was clipped in many steps; on uneven data, some are ordinary."""
    if clipped > max(3, steps / 4):
        warn(
            f"the gradient was unusually large, or not finite, in {clipped} of {steps} steps and "
            "was clipped there: a lower lr may end better"
        )


def warn_if_scale_at_floor(scales: Tensor) -> None:
    """Warn where σ, ``(B, ...)``, is next to its floor for half of the points or more."""
    if scales.median(0).values.min() < 2 * MIN_SCALE:
        warn(
            f"the decoder's σ has reached its floor, {MIN_SCALE}, so the −ELBO says little: some "
            "of the data are constant, or all are very small"
        )


def warn_of_other_weights(path: Any) -> None:
    """Warn that a checkpoint's weights took the place of those of a model that is not its own."""
    warn(
        f"{path} holds a run that began with other weights than the model had: it was read, and "
        "the weights given are gone; for another model give another file"
    )
