"""The U-Net of painters, mattes and the residual layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 × 3 convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Encoder and decoder with skip connections, at half the input's resolution and below.

    inputs: channels of what is given; widths: channels at 1/2, 1/4, … of its resolution.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.down = nn.ModuleList(block(i, o) for i, o in zip((4 * inputs, *widths), widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(block(deep + skip, skip) for deep, skip in pairs)

    def features(self, given: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, widths[0], h / 2, w / 2)."""
        x = F.pixel_unshuffle(given, 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for k, layer in enumerate(self.down):
            x = layer(x if k == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = skips.pop()
        x = x + self.summed_up(x.mean((2, 3)))[..., None, None]
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return x

    def summed_up(self, mean: Tensor) -> Tensor:
        """What is added everywhere where the resolution is lowest, from the mean (B, widths[-1]) there."""
        return mean
