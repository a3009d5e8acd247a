"""How a training step is taken: its learning rate, and a bound on its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["SCHEDULES", "bound_gradient", "check_rate"]


def bound_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Scale the gradient of the weights down to three times its usual norm, if it is longer.

    One batch far out of the ordinary can throw a model so far off that it does not come back: very
    deep VAEs skip such steps (Child 2021, section 4). The usual norm is a running mean over a
    hundred steps, and bounds nothing before it has seen as many. It lives in the optimizer's group
    beside the number of bounded steps, and so in its checkpoints.
    """
    group = optimizer.param_groups[0]
    steps, usual = group.get("steps", 0), group.get("usual_norm", 0.0)
    # Not a single number such as σ, whose gradient has a size of its own.
    gradients = [p.grad for p in group["params"] if p.ndim and p.grad is not None]
    if not gradients:
        return
    limit = 3 * usual if steps >= _USUAL else math.inf
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    norm = float(torch.linalg.vector_norm(norms.double()))
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    group["bounded"] = group.get("bounded", 0) + (norm > limit)
    if math.isfinite(norm):
        group["steps"] = steps + 1
        group["usual_norm"] = usual + (min(norm, limit) - usual) / min(steps + 1, _USUAL)


_USUAL = 100  # steps


def _one_cycle(done: np.ndarray) -> np.ndarray:
    """Learning rate after a fraction of the run: linear up, cosine to 0 (Smith & Topin 2019)."""
    warm_up = 0.1
    cosine = 0.5 + 0.5 * np.cos(np.pi * (done - warm_up) / (1 - warm_up))
    return np.where(done < warm_up, (done + 0.01) / (warm_up + 0.01), cosine)


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one-cycle": _one_cycle,
    "constant": np.ones_like,
}


def check_rate(lr: float, schedule: str) -> None:
    """Raise ``ValueError`` for a rate that is not positive or a schedule that is not known."""
    if not 0 < lr < math.inf or schedule not in SCHEDULES:
        raise ValueError(
            f'lr must be positive and schedule "one-cycle" or "constant"; got {lr!r}, {schedule!r}'
        )
