"""The mesh of a face: 478 points, numbered as MediaPipe numbers them, irises included, from an upright view of it.

Points are what a face's parts are seen at: a network looks for POINTS places of its own choice (each the centre of mass
of a softmax over a map, which moves as the picture does), and a linear map of these places, and of what else it saw,
makes the mesh. Then eyes and lips, of which viewers see the most, are looked at more closely where that mesh has them.
Trained on meshes of a teacher, see docs/training.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.faces import LEFT_LIDS, LIPS, N_LANDMARKS, N_SKIN, mirror_points

SIZE = 192  # pixels of a view
POINTS = 96  # places that are looked for
WIDTHS = (24, 32, 64, 80, 96)  # channels at 48, 24, 12, 6 and 3 cells
FINE = 48  # channels of the maps' input
FOLD = 4  # pixels to a side that are one cell of the first layer
SEEN, MIXED = 64, 96  # numbers of what else is seen, and of all that makes the mesh

LEFT_EYE = (*LEFT_LIDS, *range(N_SKIN, N_SKIN + 5))  # with its iris
EYE_SIZE, LIPS_SIZE = (32, 48), (48, 64)  # height and width of a closer look, in pixels of the view over ZOOM
ZOOM = 1.25
DETAIL = (16, 32, 32)  # channels at 1/2, 1/4 and 1/8 of its size
DETAIL_POINTS, DETAIL_SEEN = 24, 48


def convolution(inputs: int, outputs: int, stride: int = 1, cell: int = 1) -> nn.Sequential:
    """3 × 3 cells of so many pixels to a side, normalised over the batch, without what is below zero."""
    layer = nn.Conv2d(inputs, outputs, 3 * cell, stride * cell, cell, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity: (B, channels, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Detail(nn.Module):
    """Points (B, points, 2) in the [-1, 1] of views (B, 3, s, s), from a closer look (height, width) at where they were
    thought to be (B, points, 2)."""

    grid: Tensor

    def __init__(self, points: int, size: tuple[int, int]) -> None:
        super().__init__()
        a, b, c = DETAIL
        self.down1 = nn.Sequential(convolution(3, a, cell=2), Residual(a))
        self.down2, self.down3 = convolution(a, b, 2), convolution(b, c, 2)
        self.maps = nn.Conv2d(a, DETAIL_POINTS, 1)
        self.code = nn.Sequential(nn.Flatten(), nn.Linear(c * size[0] * size[1] // 64, DETAIL_SEEN), nn.ReLU())
        self.mix = nn.Sequential(nn.Linear(2 * DETAIL_POINTS + DETAIL_SEEN + 2 * points, MIXED), nn.ReLU())
        self.out = nn.Linear(MIXED, 2 * points)
        self.reach = max(size) / SIZE / ZOOM  # half of the larger side, in the unit of the view
        y, x = ((2 * torch.arange(n) + 1 - n) / max(size) * self.reach for n in size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(x, y, indexing="xy"), -1), persistent=False)

    def forward(self, views: Tensor, thought: Tensor) -> Tensor:
        centre = (thought.amin(1, keepdim=True) + thought.amax(1, keepdim=True)) / 2
        seen = F.grid_sample(views, self.grid + centre[:, None], align_corners=False, padding_mode="border")
        features = self.down1(seen.contiguous(memory_format=torch.channels_last))
        code, maps = self.code(self.down3(self.down2(features))), self.maps(features)
        with exactly(views):
            known = ((thought - centre) / self.reach).flatten(1)
            moved = self.out(self.mix(torch.cat([places(maps), code.float(), known], 1)))
        return thought + self.reach * moved.unflatten(1, (-1, 2))


class MeshNet(nn.Module):
    """Upright views of faces (B, 3, 192, 192) in [-1, 1] -> meshes (B, 478, 3) in the views' [-1, 1], and logits (B,)
    of there being a face at all."""

    left_eye: Tensor
    right_eye: Tensor
    mouth: Tensor
    mirror: Tensor

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = WIDTHS
        self.stem = convolution(3, a, cell=FOLD)
        self.down1 = nn.Sequential(convolution(a, b, 2), Residual(b))
        self.down2 = nn.Sequential(convolution(b, c, 2), Residual(c))
        self.down3 = nn.Sequential(convolution(c, d, 2), Residual(d), Residual(d))
        self.down4 = nn.Sequential(convolution(d, e, 2), Residual(e))
        self.up3, self.up2, self.up1 = nn.Conv2d(e, d, 1), nn.Conv2d(d, c, 1), nn.Conv2d(c, FINE, 1)
        self.side = nn.Conv2d(b, FINE, 1)
        self.fine2, self.fine1 = Residual(c), convolution(FINE, FINE)
        self.maps = nn.Conv2d(FINE, POINTS, 1)
        self.code = nn.Sequential(nn.Linear(e, SEEN), nn.ReLU())
        self.mix, self.out = nn.Linear(2 * POINTS + SEEN, MIXED), nn.Linear(MIXED, 3 * N_LANDMARKS)
        self.score = nn.Linear(e, 1)
        self.eye, self.lips = Detail(len(LEFT_EYE), EYE_SIZE), Detail(len(LIPS), LIPS_SIZE)
        left = torch.tensor(LEFT_EYE)
        self.register_buffer("left_eye", left, persistent=False)
        self.register_buffer("right_eye", torch.from_numpy(mirror_points())[left], persistent=False)
        self.register_buffer("mouth", torch.tensor(LIPS), persistent=False)
        self.register_buffer("mirror", torch.tensor([-1.0, 1.0]), persistent=False)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        rough, score = self.roughly(views)
        return self.closely(views, rough), score

    def roughly(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the views as a whole."""
        at24 = self.down1(self.stem(views))
        at12 = self.down2(at24)
        at6 = self.down3(at12)
        at3 = self.down4(at6)
        at6 = F.relu(at6 + twice(self.up3(at3)))
        at12 = self.fine2(F.relu(at12 + twice(self.up2(at6))))
        at24 = self.fine1(F.relu(self.side(at24) + twice(self.up1(at12))))
        seen, maps = at3.mean((2, 3)), self.maps(at24)
        code, score = self.code(seen), self.score(seen)
        with exactly(views):
            mesh = self.out(self.mix(torch.cat([places(maps), code.float()], 1)))
        return mesh.unflatten(1, (N_LANDMARKS, 3)), score[:, 0]

    def closely(self, views: Tensor, meshes: Tensor) -> Tensor:
        """Meshes (B, 478, 3) whose eyes and lips are where closer looks at the views have them."""
        thought = meshes.detach()[..., :2]  # where a look is directed is nothing to be learned
        left, right = thought[:, self.left_eye], thought[:, self.right_eye]
        eyes = self.eye(torch.cat([views, views.flip(3)]), torch.cat([left, right * self.mirror]))
        closer = meshes.clone()
        closer[:, self.left_eye, :2], right = eyes.chunk(2)
        closer[:, self.right_eye, :2] = right * self.mirror
        closer[:, self.mouth, :2] = self.lips(views, thought[:, self.mouth])
        return closer


def exactly(x: Tensor) -> torch.autocast:
    """Where coordinates are computed: bfloat16 would round them to half a pixel."""
    return torch.autocast(x.device.type, enabled=False)


def places(maps: Tensor) -> Tensor:
    """Where the softmax over each of maps (B, n, h, w) has its mass: x of all, then y of all, (B, 2 n)."""
    height, width = maps.shape[2:]
    mass = maps.float().flatten(2).softmax(-1).unflatten(-1, (height, width))
    x, y = (((torch.arange(n, device=maps.device) + 0.5) * (2 / n) - 1) for n in (width, height))
    return torch.cat([mass.sum(2) @ x, mass.sum(3) @ y], 1)


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
