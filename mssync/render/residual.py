"""The residual layer: what a turn or a smile does to a person beyond the points that are known.

A small network looks at the warp at 64² and tells how hair, neck and body move besides, and how light on them changes.
Both are smooth: at most `FARTHEST` cells, none of it within the face, where geometry is known; colours are multiplied,
so that nothing is painted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.unet import UNet

CELLS = 64  # along the side of the part that is drawn
INPUTS = 18  # RGBA and face, warped; alpha at rest; field; (u, v) on the head; its view and shift: see `scene.Look`
WIDTHS = (20, 36, 60, 76)
FARTHEST = 2.5  # cells that a place may be moved
BRIGHTEST = 0.22  # logarithm of a gain; the shipped layer was trained with 0.35, of which `val` wants less
# What a mirrored picture's inputs are multiplied with, and its fields (x, y).
MIRRORED = (1.0,) * 6 + (-1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0)
MIRRORED_FIELD = (-1.0, 1.0)


class Residual(UNet):
    """U-Net at half the resolution of its input and below.

    widths: channels at 1/2, 1/4, 1/8, 1/16 of it.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__(INPUTS, widths)
        self.head = nn.Conv2d(widths[0], 5, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, given: Tensor) -> Tensor:
        """given (B, 18, 64, 64): the channels of `INPUTS` -> (B, 5, 64, 64): what is added to the field, x and y in
        cells, and the logarithm of the colours' gains."""
        x = self.head(self.features(given.to(self.head.weight.dtype))).float()
        x = torch.tanh(F.interpolate(x, scale_factor=2.0, mode="bicubic"))
        outside = 1 - given[:, 4:5].float().clamp(0, 1)
        return torch.cat([FARTHEST * x[:, :2] * outside, BRIGHTEST * x[:, 2:]], 1)
