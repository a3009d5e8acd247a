"""Networks to start from: perceptrons for data of any shape, convolutions for images.

An encoder or decoder takes any other module as well. The linear and convolutional layers keep
PyTorch's default initialisation.
"""

from __future__ import annotations

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
    widths = [math.prod(start), *hidden, math.prod(end)]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*_to_vector(start), *layers[:-1], *_from_vector(end))


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
    return nn.Sequential(*_to_vector(start), first, *body, nn.SiLU(), last, *_from_vector(end))


def conv_encoder(shape: Sequence[int], outputs: int, width: int = 16) -> nn.Sequential:
    """Two strided convolutions and a linear layer: ``(B, C, H, W)`` → ``(B, outputs)``.

    ``shape`` is (C, H, W); raises ``ValueError`` unless H and W are multiples of 4.
    """
    channels, rows, columns = _image_shape(shape)
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

    ``shape`` is (C, H, W); raises ``ValueError`` unless H and W are multiples of 4.
    """
    channels, rows, columns = _image_shape(shape)
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


def _to_vector(shape: tuple[int, ...]) -> list[nn.Module]:
    """The layers that turn ``(B, *shape)`` into vectors: none where they are vectors already."""
    if len(shape) == 1:
        return []
    return [nn.Flatten() if shape else nn.Unflatten(0, (-1, 1))]  # (B,) has no axis to flatten


def _from_vector(shape: tuple[int, ...]) -> list[nn.Module]:
    """The layers that turn vectors into ``(B, *shape)``."""
    if len(shape) == 1:
        return []
    return [nn.Unflatten(1, shape) if shape else nn.Flatten(0)]


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise ValueError(f"expected (channels, height, width), both multiples of 4, got {shape}")
    return shape[0], shape[1], shape[2]
