"""The matte: which pixels are the person's, hair included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.faces import CHIN
from mssync.render.field import eased
from mssync.render.plate import grown
from mssync.unet import UNet

SIZE = 384  # pixels of the square in which a portrait is seen
WIDTHS = (24, 40, 72, 112, 144)  # channels at 1/2 … 1/32
WHOLE = 0.5  # mean alpha of a cell of COARSE from which on it is the person's
COARSE = 4  # pixels of SIZE: of a cell in which ways around the person are looked for
HOLES = 8  # pixels of SIZE: half the width of gaps that are filled
FAR = 2.4  # sides of the box: of the square that is seen from afar
SURE = (0.2, 0.8)  # alpha seen from afar that counts as none, and as all
RIM = 0.1  # side of the box, over which the one goes over to the other
AROUND = 1.15  # of the face's ellipse, in its own size: the hint who is meant

Square = tuple[float, float, float]  # x, y, side in pixels


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
    def alpha(self, picture: Tensor, landmarks: Tensor, box: Square) -> Tensor:
        """Alpha (1, 1, H, W) of a picture (1, 3, H, W) whose face has landmarks (478, 2 or 3) in pixels.

        box: the square that is looked at closely; what is around it is seen from afar.
        """
        near = self._seen(picture, landmarks, box)
        x0, y0, side = box
        height, width = picture.shape[-2:]
        if x0 <= 0 and y0 <= 0 and x0 + side >= width and y0 + side >= height:
            return near
        more = (FAR - 1) / 2 * side
        far = eased(self._seen(picture, landmarks, (x0 - more, y0 - more, FAR * side)), *SURE)
        rim = (torch.minimum(at - start, start + side - at) for at, start in zip(_axes(picture), (x0, y0), strict=True))
        inside = [eased(away / side, 0.0, RIM) for away in rim]
        return torch.lerp(far, near, inside[1][:, None] * inside[0])

    def _seen(self, picture: Tensor, landmarks: Tensor, box: Square) -> Tensor:
        """`alpha` as a square alone tells; beside and above it nothing is the person, below it what is between the
        outermost that its edge shows of them."""
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
        alpha = without_holes(closed(alpha, HOLES), float(points[CHIN, 1]))
        alpha[..., -1, :] = without_gaps(alpha[..., -1, :])
        x, y = ((axis - start) * (2 / side) - 1 for axis, start in zip(_axes(picture), (x0, y0), strict=True))
        back = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        alpha = F.grid_sample(alpha, back[None], mode="bicubic", padding_mode="border", align_corners=False)
        return alpha.clamp(0, 1) * ((x.abs() <= 1) & (y[:, None] >= -1))


def _axes(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Where the centres of columns and rows are, from the picture's left and upper edge."""
    return torch.arange(picture.shape[-1]) + 0.5, torch.arange(picture.shape[-2]) + 0.5


def closed(alpha: Tensor, reach: int) -> Tensor:
    """Morphological closing: gaps in alpha (B, 1, s, s) narrower than twice `reach` are filled."""
    around = grown(F.pad(alpha, (reach,) * 4, mode="replicate"), reach)
    shrunk = -grown(-around, reach)
    return torch.maximum(alpha, shrunk[..., reach:-reach, reach:-reach])


def without_holes(alpha: Tensor, chin: float) -> Tensor:
    """Alpha (1, 1, s, s) whose gaps below the chin (pixels from above) are filled where no way leads around the person.

    The way around begins at the upper and the lateral edges: clothes reach the lower one.
    """
    size = alpha.shape[-1]
    free = (F.avg_pool2d(alpha, COARSE) < WHOLE).float()
    way = torch.zeros_like(free)
    way[..., 0, :], way[..., :, 0], way[..., :, -1] = free[..., 0, :], free[..., :, 0], free[..., :, -1]
    for _ in range(size):
        farther = F.max_pool2d(way, 3, 1, 1) * free
        if torch.equal(farther, way):
            break
        way = farther
    holes = F.interpolate(grown(free - way, 1) * (1 - way), (size, size), mode="nearest")
    return torch.maximum(alpha, holes * (torch.arange(size)[:, None] > chin))


def without_gaps(row: Tensor) -> Tensor:
    """Alpha (..., w) that rises from its ends up to its largest value."""
    return torch.minimum(row.cummax(-1).values, row.flip(-1).cummax(-1).values.flip(-1))


def face_hint(points: Tensor, size: int) -> Tensor:
    """A soft ellipse around the points (B, 478, 2) of a face in pixels -> (B, 1, size, size)."""
    low, high = points.amin(1), points.amax(1)
    centre, half = (low + high) / 2, (high - low) / 2 * AROUND
    at = torch.arange(size).to(points) + 0.5
    x = (at[None] - centre[:, :1]) / half[:, :1]
    y = (at[None] - centre[:, 1:]) / half[:, 1:]
    return torch.sigmoid(8 * (1 - (x.square()[:, None, :] + y.square()[:, :, None])))[:, None]
