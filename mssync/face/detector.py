"""Where faces are in a picture: a map of how likely each cell is the middle of a face, how large it is, how tilted.

The picture is seen in 256 pixels, in cells of 8: faces from 9 of these pixels to all of them. Trained on faces of
frames whose meshes a teacher has seen, shrunk, turned and put elsewhere (`training.finder`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.face.geometry import ROOM, Views
from mssync.face.mesh import Residual, convolution, twice

SIZE, CELL = 256, 8  # pixels
FOLD = 4  # pixels to a side that are one cell of the first layer
WIDTHS = (24, 40, 64, 96, 112)  # channels at 64, 32, 16, 8 and 4 cells
UNIT = 32  # pixels of the side of a face whose logarithm is 0
SURE = 0.5  # probability from which on there is a face
APART = 0.45  # sides of the larger of two faces that their middles are apart, at least
RARE = -4.0  # logit of a face before anything is learned


@dataclass(frozen=True)
class Detection:
    """A face in a picture: middle (2,) and side of its mesh's bounds in pixels, roll in rad, probability."""

    x: float
    y: float
    side: float
    roll: float
    probability: float


class FinderNet(nn.Module):
    """Pictures (B, 3, h, w) in [-1, 1], sides multiples of 64 -> maps (B, 6, h / 8, w / 8): logit of a face's middle;
    where that is in cells from the cell's own, across and down; logarithm of the side in UNIT; cosine and sine of the
    roll."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = WIDTHS
        self.stem = nn.Sequential(convolution(3, a, cell=FOLD), Residual(a))
        self.down1 = nn.Sequential(convolution(a, b, 2), Residual(b), Residual(b))
        self.down2 = nn.Sequential(convolution(b, c, 2), Residual(c), Residual(c))
        self.down3 = nn.Sequential(convolution(c, d, 2), Residual(d))
        self.down4 = nn.Sequential(convolution(d, e, 2), Residual(e))
        self.up3, self.up2, self.up1 = nn.Conv2d(e, d, 1), nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1)
        self.fine2, self.fine1 = Residual(c), Residual(b)
        self.out = nn.Conv2d(b, 6, 1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias[:1], RARE)

    def forward(self, pictures: Tensor) -> Tensor:
        at32 = self.down1(self.stem(pictures))
        at16 = self.down2(at32)
        at8 = self.down3(at16)
        at8 = F.relu(at8 + twice(self.up3(self.down4(at8))))
        at16 = self.fine2(F.relu(at16 + twice(self.up2(at8))))
        return self.out(self.fine1(F.relu(at32 + twice(self.up1(at16)))))


def decoded(maps: Tensor, sure: float = SURE) -> list[list[Detection]]:
    """Faces of maps (B, 6, h, w), each once, the surest first."""
    probability = torch.sigmoid(maps[:, :1])
    peak = (probability == F.max_pool2d(probability, 3, 1, 1)) & (probability > sure)
    found = []
    for picture, there, chance in zip(maps, peak[:, 0], probability[:, 0], strict=True):
        faces: list[Detection] = []
        rows, columns = torch.nonzero(there, as_tuple=True)
        order = chance[rows, columns].argsort(descending=True)
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            _, across, down, size, cos, sin = picture[:, row, column].tolist()
            place = (column + 0.5 + across) * CELL - 0.5, (row + 0.5 + down) * CELL - 0.5
            turn = torch.atan2(torch.tensor(sin), torch.tensor(cos))
            face = Detection(*place, UNIT * float(torch.tensor(size).exp()), float(turn), float(chance[row, column]))
            if all(apart(face, other) for other in faces):
                faces.append(face)
        found.append(faces)
    return found


def apart(one: Detection, two: Detection) -> bool:
    """Whether two detections are of two faces."""
    return bool(((one.x - two.x) ** 2 + (one.y - two.y) ** 2) ** 0.5 > APART * max(one.side, two.side))


def views(faces: list[Detection]) -> Views:
    """Upright views of detected faces, for the mesh network."""
    centre = torch.tensor([[face.x, face.y] for face in faces])
    return Views(centre, ROOM * torch.tensor([f.side for f in faces]), torch.tensor([f.roll for f in faces]))
