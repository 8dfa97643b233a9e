"""The face behind a motion of the space compact-1, before a picture is drawn: lips, shape, and the head's place."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mssync.faces import (
    INNER_LIPS,
    LEFT_EYE_LIDS,
    LEFT_EYE_WIDTH,
    LEFT_LIDS,
    MOUTH_CORNERS,
    RIGHT_EYE_LIDS,
    RIGHT_EYE_WIDTH,
    RIGHT_LIDS,
)
from mssync.metrics.frontal import mean_face, view_reading
from mssync.reenact import N_VALUES
from mssync.reenact.mesh import LOWER_LIP, MESH_KEYPOINTS, UPPER_LIP, face_reading

OPEN = 0.75  # quantile of the opening of eyes at which they are open: the others are in blinks, or tired
SHUT = 0.45  # how far eyes close in a blink, at least: motion is smoothed, which leaves them open a little
SACCADE, SACCADE_FRAMES = 0.03, 3  # widths of an eye that both move in a saccade, at least, and frames that it takes
CONTACT = 0.15  # of the range of a mouth's opening, below which lips touch
EVERY = 6  # points of the mesh between two at which the face's shape is compared, lids apart, which all count


class Face(nn.Module):
    """Motion (..., 60), of which the nine keypoints on the face tell the whole mesh -> points, linearly.

    All are in a crop's [-1, 1] coordinates.
    """

    to_lips: Tensor  # (1 + 54, 2 points)
    to_shape: Tensor  # (1 + 54, 2 points)
    to_view: Tensor  # (1 + 54, 2 · 4)
    to_eyes: Tensor  # (1 + 54, 8 · 2): of each eye upper and lower lid, and corners

    def __init__(self) -> None:
        super().__init__()
        reading = torch.from_numpy(face_reading().astype(np.float32)).unflatten(1, (-1, 2))  # (55, 478, 2)
        mouth = sorted({*UPPER_LIP, *LOWER_LIP})
        self.inner = [mouth.index(n) for n in INNER_LIPS]
        self.corners = [mouth.index(n) for n in MOUTH_CORNERS]
        self.register_buffer("to_lips", (reading[:, mouth] - reading[:, mouth].mean(1, keepdim=True)).flatten(1))
        eyes = [*LEFT_EYE_LIDS, *LEFT_EYE_WIDTH, *RIGHT_EYE_LIDS, *RIGHT_EYE_WIDTH]
        self.register_buffer("to_eyes", reading[:, eyes].flatten(1))
        view = torch.from_numpy(view_reading())
        self.register_buffer("to_view", view.flatten(1))
        bent = reading - torch.einsum("pj,nij->npi", torch.from_numpy(mean_face()), view[..., :3]) - view[:, None, :, 3]
        points = sorted({*LEFT_LIDS, *RIGHT_LIDS, *range(0, reading.shape[1], EVERY)})
        self.register_buffer("to_shape", bent[:, points].flatten(1))

    def lips(self, motion: Tensor) -> Tensor:
        """The points of the lips less their mean, (..., n, 2)."""
        return _read(self.to_lips, motion, 2)

    def shape(self, motion: Tensor) -> Tensor:
        """Points of the whole face, all of the lids, less the affine view of the mean face that fits best, (..., n, 2).

        It is the same wherever the face is, however large and turned.
        """
        return _read(self.to_shape, motion, 2)

    def view(self, motion: Tensor) -> Tensor:
        """That view, [A t] (..., 2, 4): a point p of the mean face in space is seen at A p + t."""
        return _read(self.to_view, motion, 4)

    def opening(self, motion: Tensor) -> Tensor:
        """How far the mouth is open, (...)."""
        upper, lower = self.lips(motion)[..., self.inner, :].unbind(-2)
        return (lower - upper).norm(dim=-1)

    def width(self, motion: Tensor) -> Tensor:
        """How wide the mouth is, (...)."""
        left, right = self.lips(motion)[..., self.corners, :].unbind(-2)
        return (right - left).norm(dim=-1)

    def eyes(self, motion: Tensor) -> Tensor:
        """How far the eyes are open, (...), as `faces.eye_opening`."""
        points = _read(self.to_eyes, motion, 2).unflatten(-2, (2, 2, 2))  # eyes, lids or corners, two of them
        gaps, widths = (points[..., 0, :] - points[..., 1, :]).norm(dim=-1).unbind(-1)
        return (gaps / widths).mean(-1)

    def closed(self, motion: Tensor) -> Tensor:
        """How far eyes are closed along a motion (T, 60), (T,): from 0, open as usual, to 1; below 0 when wide open."""
        opening = self.eyes(motion)
        return 1 - opening / opening.quantile(OPEN)

    def pose(self, motion: Tensor) -> Tensor:
        """Across, down, size, roll, yaw and pitch of the head, (..., 6), linear in motion.

        The last four by how much they move a point an eye distance away.
        """
        (xx, xy, xz, x), (yx, yy, yz, y) = (row.unbind(-1) for row in self.view(motion).unbind(-2))
        return torch.stack([x, y, (xx + yy) / 2, (yx - xy) / 2, xz, yz], dim=-1)


def _read(reading: Tensor, motion: Tensor, size: int) -> Tensor:
    return (motion[..., : MESH_KEYPOINTS * N_VALUES] @ reading[:-1] + reading[-1]).unflatten(-1, (-1, size))
