"""Networks to start from: perceptrons for data of any shape, convolutions for images."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Residual", "conv_decoder", "conv_encoder", "mlp", "residual_mlp"]


def mlp(
    inputs: int | Sequence[int], hidden: Sequence[int], outputs: int | Sequence[int]
) -> nn.Sequential:
    """A multilayer perceptron with SiLU between its layers.

    ``inputs`` and ``outputs`` are shapes of one data point (an int is a vector's length), so
    ``mlp((1, 28, 28), [512, 512], 100)`` maps ``(B, 1, 28, 28)`` to ``(B, 100)``.
    """
    start, end = _shape(inputs), _shape(outputs)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise([math.prod(start), *hidden, math.prod(end)]):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return _between(start, layers[:-1], end)


class Residual(nn.Sequential):
    """A residual block: x + f(x) for its layers f (He et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Add the layers' output to their input, ``(B, width)`` → ``(B, width)``."""
        return x + super().forward(x)


def residual_mlp(
    inputs: int | Sequence[int], width: int, blocks: int, outputs: int | Sequence[int]
) -> nn.Sequential:
    """A perceptron of ``blocks`` residual blocks x + W₂ SiLU(W₁ x); shapes as in ``mlp``."""
    start, end = _shape(inputs), _shape(outputs)
    body = [
        Residual(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
    ]
    first, last = nn.Linear(math.prod(start), width), nn.Linear(width, math.prod(end))
    return _between(start, [first, *body, nn.SiLU(), last], end)


def conv_encoder(shape: Sequence[int], outputs: int, width: int = 16) -> nn.Sequential:
    """Two strided convolutions and a linear layer: ``(B, C, H, W)`` → ``(B, outputs)``.

    ``shape`` is (C, H, W), with H and W of 4 at least.
    """
    channels, rows, columns = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (rows // 4) * (columns // 4), outputs),
    )


def conv_decoder(inputs: int, shape: Sequence[int], width: int = 16) -> nn.Sequential:
    """The mirror image of ``conv_encoder``: ``(B, inputs)`` → ``(B, C, H, W)``.

    ``shape`` is (C, H, W), with H and W multiples of 4: of others it gives the next smaller ones.
    """
    channels, rows, columns = shape
    start = (2 * width, rows // 4, columns // 4)
    return nn.Sequential(
        nn.Linear(inputs, math.prod(start)),
        nn.Unflatten(1, start),
        nn.SiLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
    )


def _shape(size: int | Sequence[int]) -> tuple[int, ...]:
    """A data point's shape; a NumPy integer, such as ``np.prod`` gives, counts as a length too."""
    return tuple(map(int, size)) if isinstance(size, Sequence) else (int(size),)


def _between(
    start: tuple[int, ...], layers: Sequence[nn.Module], end: tuple[int, ...]
) -> nn.Sequential:
    """Layers for vectors, made to map ``(B, *start)`` to ``(B, *end)``."""
    first = nn.Flatten() if start else nn.Unflatten(0, (-1, 1))  # (B,) has no axis to flatten
    last = nn.Unflatten(1, end) if end else nn.Flatten(0)
    return nn.Sequential(*[first] * (len(start) != 1), *layers, *[last] * (len(end) != 1))
