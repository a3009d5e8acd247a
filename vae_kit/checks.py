"""Checks of numbers, and errors that name the place."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from vae_helpers import finite_number

__all__ = ["error_prefix", "positive_number", "whole_number"]


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
