"""Multi-scale pyramid of a sequence (section 3.1, eq. 5): a moving average, then every second frame.

The same operator serves motion and audio, so level `i` of both runs at `2^(1-i)` times the rate of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 4
RADIUS = 3  # k of eq. 5: 2k + 1 = 7 taps
STRIDE = 2


def reflect_index(index: Tensor, length: int) -> Tensor:
    """Map any integer positions (n,) to 0 … length-1 of a sequence mirrored at both ends, endlessly.

    The end frames are not repeated: -1 is frame 1, `length` is frame `length - 2`. Mirroring goes on for
    positions more than one length outside, and a single frame is repeated, so that any length will do.
    """
    if length == 1:
        return torch.zeros_like(index)
    return (length - 1) - ((index % (2 * length - 2)) - (length - 1)).abs()


def downsample(x: Tensor) -> Tensor:
    """One level up the pyramid: `y_t = mean(x_{2t-3} … x_{2t+3})` (eq. 5).

    x: (B, T, D), T >= 1, any unit; mirrored at the ends (`reflect_index`). Returns (B, ceil(T / 2), D).
    Differentiable, one op for the whole batch.
    """
    length = x.shape[1]
    index = reflect_index(torch.arange(-RADIUS, length + RADIUS, device=x.device), length)
    return F.avg_pool1d(x[:, index].transpose(1, 2), 2 * RADIUS + 1, STRIDE).transpose(1, 2)


def pyramid(x: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """The input (B, T, D), then `downsample` of it again and again: lengths T, ceil(T/2), ceil(T/4), …"""
    out = [x]
    for _ in range(levels - 1):
        out.append(downsample(out[-1]))
    return out
