"""The face's surface behind a motion: where its mesh is.

Nine keypoints are read linearly from the face mesh, and that reading can be undone (`mesh.fit_reading`). So the six
numbers of a keypoint need not stand for one affine motion alone: together they tell where every point of the mesh
goes, lids and lips included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mssync.reenact.geometry import exact_geometry
from mssync.reenact.mesh import MESH_KEYPOINTS, face_reading


class Surface(nn.Module):
    """Motion (B, 10, 6) -> mesh (B, 478, 2) in [-1, 1], to 0.4 pixels of 256 on faces that were never trained on."""

    reading: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reading", torch.from_numpy(face_reading().astype(np.float32)), persistent=False)

    def forward(self, motion: Tensor) -> Tensor:
        return _read(self.reading, motion[:, :MESH_KEYPOINTS])


@exact_geometry
def _read(reading: Tensor, motion: Tensor) -> Tensor:
    return (motion.flatten(1) @ reading[:-1] + reading[-1]).unflatten(1, (-1, 2))
