"""The learning rate of every step, and clipping of unusually large gradients."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

__all__ = ["GradientClipping", "decay_start", "learning_rates"]

_WARM_UP = 100  # steps, or an epoch where that is shorter: the same for runs of any length


def decay_start(epochs: int) -> int:
    """Epochs at a constant rate, before it decays over the last quarter of the run."""
    return epochs - max(1, epochs // 4)


def learning_rates(lr: float, epochs: int, steps: int) -> np.ndarray:
    """The rate of each step of a run, ``(epochs * steps,)``.

    Linear up to ``lr``, constant, and over the last quarter linear down to 0 (Hu et al. 2024, arXiv
    2404.06395; Hägele et al. 2024, arXiv 2405.18392). Until a run decays, it is the beginning of
    any longer one.
    """
    step = np.arange(epochs * steps)
    up = (step + 1) / min(_WARM_UP, steps)
    down = (len(step) - step) / (len(step) - decay_start(epochs) * steps)
    return lr * np.minimum(1, np.minimum(up, down))


class GradientClipping:
    """Scales a gradient down to three times its usual norm where it is longer.

    One batch far out of the ordinary can throw a model so far off that it does not come back; very
    deep VAEs skip such steps (Child 2021, section 4), here they are shortened. A gradient that is
    not finite, though the loss is, becomes zero. The usual norm is a running mean of norms after
    clipping: over all steps at first, later over some hundred. Single numbers such as σ are not
    clipped: their gradients have another size.
    """

    LONGEST = 3  # times the usual norm
    MEMORY = 100  # steps

    def __init__(self) -> None:
        self.steps, self.clipped, self.usual_norm = 0, 0, math.inf

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip the gradients of the parameters, in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).tolist()
        if not all(map(math.isfinite, norms)):
            self.clipped += 1
            for gradient in gradients:
                gradient.zero_()
            return
        longest = self.LONGEST * self.usual_norm
        norm = math.hypot(*(n for n, g in zip(norms, gradients, strict=True) if g.ndim))
        if norm > longest:
            self.clipped += 1
            for gradient in gradients:
                if gradient.ndim:
                    gradient.mul_(longest / norm)
        before = self.usual_norm if self.steps else 0.0
        self.steps += 1
        self.usual_norm = before + (min(norm, longest) - before) / min(self.steps, self.MEMORY)
