"""The matte: which pixels are the person's, hair included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.faces import Silhouette
from mssync.render.painter import UNet

SIZE = 384  # pixels of the square in which a portrait is seen
WIDTHS = (24, 40, 72, 112, 144)  # channels at 1/2 … 1/32
DOUBT = 0.3  # what the silhouette is surer of than this is the person, more the surer
HOLES = 8  # pixels of SIZE: half the width of gaps that are filled
AROUND = 1.15  # of the face's ellipse, in its own size: the hint who is meant


class MatteNet(UNet):
    """U-Net: a picture and where the face is -> alpha. Trained on labels of a teacher, see docs/training.md."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__(4, widths)
        self.coarse = nn.Sequential(nn.Conv2d(widths[0], 4, 3, padding=1), nn.PixelShuffle(2))
        self.fine = nn.Sequential(nn.Conv2d(5, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, picture: Tensor, face: Tensor) -> Tensor:
        """picture (B, 3, s, s) in [0, 1], face (B, 1, s, s): `face_hint` -> alpha (B, 1, s, s); s a multiple of 32."""
        given = torch.cat([picture * 2 - 1, face], 1)
        logits = self.coarse(self.features(given))
        return torch.sigmoid((logits + self.fine(torch.cat([given, torch.tanh(logits)], 1))).float())

    @torch.inference_mode()
    def alpha(
        self, picture: Tensor, landmarks: Tensor, box: tuple[float, float, float], silhouette: Silhouette | None = None
    ) -> Tensor:
        """Alpha (1, 1, H, W) of a picture (1, 3, H, W) whose face has landmarks (478, 2 or 3) in pixels.

        box: x, y, side of the square that is looked at; outside of it alpha is that of its border. silhouette: finds
        the bulk of hair that the network loses; what either takes for the person is the person.
        """
        height, width = picture.shape[-2:]
        x0, y0, side = box
        scale = SIZE / side
        at = (torch.arange(SIZE) + 0.5) / scale
        places = torch.stack(
            torch.meshgrid((at + x0) * (2 / width) - 1, (at + y0) * (2 / height) - 1, indexing="xy"), -1
        )
        source = picture
        if scale < 0.75:
            small = (max(1, round(height * scale)), max(1, round(width * scale)))
            source = F.interpolate(picture, size=small, mode="bilinear", antialias=True, align_corners=False)
        part = F.grid_sample(source, places[None], padding_mode="border", align_corners=False)
        points = (landmarks[:, :2] - torch.tensor([x0, y0])) * scale
        alpha = self(part, face_hint(points[None], SIZE))
        if silhouette is not None:
            seen = silhouette((part[0].permute(1, 2, 0) * 255).round().byte().numpy())
            alpha = torch.maximum(alpha, ((torch.from_numpy(seen) - DOUBT) / (1 - 2 * DOUBT)).clamp(0, 1))
        alpha = closed(alpha, HOLES)
        x = ((torch.arange(width) + 0.5 - x0) / side) * 2 - 1
        y = ((torch.arange(height) + 0.5 - y0) / side) * 2 - 1
        back = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        return F.grid_sample(alpha, back[None], mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def closed(alpha: Tensor, reach: int) -> Tensor:
    """Morphological closing: gaps in alpha (B, 1, s, s) narrower than twice `reach` are filled."""
    window = 2 * reach + 1
    around = F.pad(alpha, (reach,) * 4, mode="replicate")
    grown = F.max_pool2d(around, window, 1, reach)
    shrunk = -F.max_pool2d(-grown, window, 1, reach)
    return torch.maximum(alpha, shrunk[..., reach:-reach, reach:-reach])


def face_hint(points: Tensor, size: int) -> Tensor:
    """A soft ellipse around the points (B, 478, 2) of a face in pixels -> (B, 1, size, size)."""
    low, high = points.amin(1), points.amax(1)
    centre, half = (low + high) / 2, (high - low) / 2 * AROUND
    at = torch.arange(size).to(points) + 0.5
    x = (at[None] - centre[:, :1]) / half[:, :1]
    y = (at[None] - centre[:, 1:]) / half[:, 1:]
    return torch.sigmoid(8 * (1 - (x.square()[:, None, :] + y.square()[:, :, None])))[:, None]
