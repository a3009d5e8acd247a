"""How a training step is taken: rate, batch, bounded gradient; and which settings make sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vae_runtime import whole_number

__all__ = ["SCHEDULES", "bound_gradient", "checked_settings", "default_batch_size"]


def bound_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Scale the gradient of the weights down to three times its usual norm, if it is longer.

    One batch far out of the ordinary can throw a model so far off that it does not come back. Very
    deep VAEs skip such steps (Child 2021, section 4); here they are shortened. A gradient that is
    not finite, though the loss is, becomes zero. The usual norm is the mean of what is left of
    finite ones, over all steps so far and later over some hundred. It lives in the optimizer's
    group beside the number of bounded steps, and so in its checkpoints. The optimizer has one
    group of parameters.
    """
    group = optimizer.param_groups[0]
    steps, usual = group.get("steps", 0), group.get("usual_norm", math.inf)
    everything = [p.grad for p in group["params"] if p.grad is not None]
    # Not a single number such as σ, whose gradient has a size of its own.
    gradients = [gradient for gradient in everything if gradient.ndim]
    if not gradients:
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in everything]).tolist()
    finite, limit = all(map(math.isfinite, norms)), _LONGEST * usual
    norm = math.hypot(*(n for n, gradient in zip(norms, everything, strict=True) if gradient.ndim))
    group["bounded"] = group.get("bounded", 0) + (norm > limit or not finite)
    if not finite:
        for gradient in everything:
            gradient.zero_()
        return
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    before = usual if steps else 0.0
    group["steps"] = steps + 1
    group["usual_norm"] = before + (min(norm, limit) - before) / min(steps + 1, _USUAL)


_LONGEST = 3  # times the usual norm
_USUAL = 100  # steps


def default_batch_size(points: int) -> int:
    """A power of two that grows with the data: 32 up to some 10,000 points, 256 from some 43,000.

    An epoch then has enough steps on a table of a few hundred rows, and few enough on images.
    """
    return 2 ** min(8, max(5, round(math.log2(points / 240))))


def _one_cycle(done: np.ndarray) -> np.ndarray:
    """Share of the peak rate after a fraction of the run: linear up, then cosine to 0.

    After Smith & Topin (2019).
    """
    warm_up = 0.1
    cosine = 0.5 + 0.5 * np.cos(np.pi * (done - warm_up) / (1 - warm_up))
    return np.where(done < warm_up, (done + 0.01) / (warm_up + 0.01), cosine)


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one-cycle": _one_cycle,
    "constant": np.ones_like,
}


def checked_settings(*, lr: float, schedule: str, **others: Any) -> dict[str, Any]:
    """``fit``'s settings by name, whole numbers as int; the rest is checked where it is used.

    Raises ``ValueError`` for a rate, a schedule or a number that makes no sense.
    """
    if not 0 < lr < math.inf or schedule not in SCHEDULES:
        raise ValueError(
            f'lr must be positive and schedule "one-cycle" or "constant"; got {lr!r}, {schedule!r}'
        )
    least = {"epochs": 1, "batch_size": 1, "kl_warmup": 0, "seed": 0, "keep_points": 1}
    for name, lowest in least.items():
        left_open = others[name] is None and name in ("batch_size", "keep_points")
        if not left_open:
            others[name] = whole_number(name, others[name], lowest)
    return {"lr": lr, "schedule": schedule, **others}
