"""The mesh of a face: 478 points, numbered as MediaPipe numbers them, irises included, from an upright view of it.

Points are what a face's parts are seen at: a network looks for POINTS places of its own choice (each the centre of mass
of a softmax over a map of 32 × 32, which moves as the picture does), and a linear map of these places, and of what else
it saw, makes the mesh. Trained on meshes of a teacher, see docs/training.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.faces import N_LANDMARKS

SIZE = 192  # pixels of a view
GRID = 32  # cells of the maps, to a side
POINTS = 96  # places that are looked for
WIDTHS = (32, 32, 64, 80, 96)  # channels at 64, 32, 16, 8 and 4 cells
FINE = 48  # channels of the maps' input
FOLD = 3  # pixels to a side that are one cell of the first layer
SEEN, MIXED = 64, 96  # numbers of what else is seen, and of all that makes the mesh


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 × 3, normalised over the batch, without what is below zero."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity: (B, channels, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class MeshNet(nn.Module):
    """Upright views of faces (B, 3, 192, 192) in [-1, 1] -> meshes (B, 478, 3) in the views' [-1, 1], and logits (B,)
    of there being a face at all."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = WIDTHS
        self.stem = nn.Sequential(nn.PixelUnshuffle(FOLD), convolution(3 * FOLD**2, a))
        self.down1 = nn.Sequential(convolution(a, b, 2), Residual(b))
        self.down2 = nn.Sequential(convolution(b, c, 2), Residual(c), Residual(c))
        self.down3 = nn.Sequential(convolution(c, d, 2), Residual(d), Residual(d))
        self.down4 = nn.Sequential(convolution(d, e, 2), Residual(e))
        self.up3, self.up2, self.up1 = nn.Conv2d(e, d, 1), nn.Conv2d(d, c, 1), nn.Conv2d(c, FINE, 1)
        self.side = nn.Conv2d(b, FINE, 1)
        self.fine2, self.fine1 = Residual(c), Residual(FINE)
        self.maps = nn.Conv2d(FINE, POINTS, 1)
        self.code = nn.Sequential(nn.Linear(e, SEEN), nn.ReLU())
        self.mix, self.out = nn.Linear(2 * POINTS + SEEN, MIXED), nn.Linear(MIXED, 3 * N_LANDMARKS)
        self.score = nn.Linear(e, 1)
        self.register_buffer("grid", (torch.arange(GRID) + 0.5) * (2 / GRID) - 1, persistent=False)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        at32 = self.down1(self.stem(views))
        at16 = self.down2(at32)
        at8 = self.down3(at16)
        at4 = self.down4(at8)
        at8 = F.relu(at8 + twice(self.up3(at4)))
        at16 = self.fine2(F.relu(at16 + twice(self.up2(at8))))
        at32 = self.fine1(F.relu(self.side(at32) + twice(self.up1(at16))))
        seen = at4.mean((2, 3))
        numbers = torch.cat([self._places(at32), self.code(seen)], 1)
        return self.out(self.mix(numbers)).unflatten(1, (N_LANDMARKS, 3)), self.score(seen)[:, 0]

    def _places(self, features: Tensor) -> Tensor:
        """Where the maps of features (B, FINE, 32, 32) have their mass: x of all, then y of all, (B, 2 POINTS)."""
        mass = self.maps(features).flatten(2).softmax(-1).unflatten(-1, (GRID, GRID))
        return torch.cat([mass.sum(2) @ self.grid, mass.sum(3) @ self.grid], 1)


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
