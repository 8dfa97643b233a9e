"""The keypoints of a face: ten with 2×2 Jacobians, as in FOMM (Siarohin et al. 2019), the motion space `compact-1`.

Nine are read from a face mesh, so they are exact on faces that were never trained on; the tenth is learned and follows
neck and shoulders.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.reenact import N_KEYPOINTS
from mssync.reenact.geometry import coordinate_grid, exact_geometry
from mssync.reenact.mesh import MESH_KEYPOINTS, mesh_map

if TYPE_CHECKING:
    from mssync.face.analyser import FaceMesh

BODY_SIZE = 128  # pictures are brought to this side for the learned keypoint
TEMPERATURE = 0.1  # of the soft-argmax (as FOMM)
RIGID = (0, 1, 2, 3, 4, 5)  # eyes, nose, cheeks, forehead: see mesh.ANCHORS
BODY = MESH_KEYPOINTS  # index of the learned keypoint


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Hourglass(nn.Module):
    """Encoder and decoder with skip connections.

    widths: channels at each resolution, halved from one to the next; the output has the first at the input's.
    """

    def __init__(self, inputs: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = conv(inputs, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(conv(b, a) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(conv(2 * a, a) for a, _ in reversed(pairs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = F.interpolate(up(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = merge(torch.cat([x, skips.pop()], 1))
        return x


class KeypointDetector(nn.Module):
    """Picture and face mesh -> nine keypoints on the face and one, learned, on the body.

    width: channels of the network that learned it.
    """

    mesh_map: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mesh_map", torch.from_numpy(mesh_map()), persistent=False)
        self.stem = conv(3, width, stride=2)
        self.hourglass = Hourglass(width, [width, 2 * width, 4 * width, 6 * width])
        self.heatmap = nn.Conv2d(width, N_KEYPOINTS - MESH_KEYPOINTS, 3, padding=1)
        self.jacobian = nn.Conv2d(width, 4 * (N_KEYPOINTS - MESH_KEYPOINTS), 3, padding=1)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1], (B, 478, >=2) in [-1, 1] -> (B, 10, 6)."""
        face = read_mesh(self.mesh_map, landmarks[..., :2].to(self.mesh_map))
        return torch.cat([face, self.body(image)], 1)

    def body(self, image: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> (B, 1, 6)."""
        if image.shape[-1] != BODY_SIZE:
            image = F.interpolate(image, size=(BODY_SIZE,) * 2, mode="area")
        features = self.hourglass(self.stem(image * 2 - 1))
        return read_keypoints(self.heatmap(features), self.jacobian(features))


@exact_geometry
def read_mesh(mesh_map: Tensor, landmarks: Tensor) -> Tensor:
    """mesh.mesh_motion for tensors: landmarks (B, 478, 2) -> (B, 9, 6)."""
    rows = torch.einsum("krn,bni->bkri", mesh_map, landmarks)
    return torch.cat([rows[:, :, 0], rows[:, :, 1:].transpose(-1, -2).flatten(2)], -1)


@exact_geometry
def read_keypoints(heat: Tensor, jacobian: Tensor) -> Tensor:
    """Soft-argmax: heat (B, K, h, w) and Jacobian maps (B, 4 K, h, w) -> (B, K, 6)."""
    grid = coordinate_grid(heat.shape[-1], heat).reshape(-1, 2)
    weight = (heat.flatten(2) / TEMPERATURE).softmax(-1)  # (B, K, h*w)
    values = torch.einsum("bkn,bkjn->bkj", weight, jacobian.unflatten(1, (-1, 4)).flatten(3))
    identity = torch.eye(2, device=heat.device).flatten()
    return torch.cat([weight @ grid, identity + values], -1)


@lru_cache(maxsize=1)
def _face_mesh() -> FaceMesh:
    from mssync.face.analyser import FaceMesh

    return FaceMesh()  # late: building it takes a second


def find_landmarks(image: Tensor) -> Tensor:
    """Face mesh (B, 478, 2) in [-1, 1] of pictures (B, 3, s, s) in [0, 1]; InputError where there is no face."""
    from mssync.face.analyser import largest_face

    frames = (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    faces = [largest_face(_face_mesh(), np.ascontiguousarray(frame), "the picture") for frame in frames]
    points = np.stack([face.landmarks[:, :2] for face in faces])
    return torch.from_numpy(points * 2 / image.shape[-1] - 1).to(image)
