"""The face behind a motion, and what the generator's training asks of it beside the paper's losses (ours).

The sum over 60 numbers of eq. 14 is mostly where the head is, of which speech tells little. What a viewer looks at
first are the lips, that the rest of the face keeps its shape, and that the head is alive.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mssync.faces import INNER_LIPS
from mssync.metrics.frontal import mean_face, view_reading
from mssync.reenact import N_VALUES
from mssync.reenact.mesh import LEFT_LIDS, LOWER_LIP, MESH_KEYPOINTS, RIGHT_LIDS, UPPER_LIP, face_reading
from mssync.video import FPS

UNIT = 0.02  # in [-1, 1] coordinates: about what the points of speaking lips deviate from their mean
POSE_WINDOWS = (16, 32, 64)  # frames of the spectra of head motion, where roll-outs are as long
POSE_BAND = 5.0  # Hz; above, it is mostly the mesh that trembles
TINY = 1e-10  # a root has a slope at nothing
SKEW = 0.1  # weight of a skewed view in `Face.shape_loss`
EVERY = 6  # points of the mesh between two at which the face's shape is compared, lids apart, which all count


class Face(nn.Module):
    """The face behind the motion of the compact reenactor, whose keypoints tell the whole mesh, linearly."""

    lips: Tensor  # (1 + 54, 2 points): from the mesh keypoints to the points of the lips, less their mean
    shape: Tensor  # (1 + 54, 2 points): to points of the whole face, less the view of the mean face that fits best
    view: Tensor  # (1 + 54, 2 · 4): to that view, [A t] with A (2, 3): point = A @ point of the mean face + t

    def __init__(self) -> None:
        super().__init__()
        reading = torch.from_numpy(face_reading().astype(np.float32)).unflatten(1, (-1, 2))  # (55, 478, 2)
        mouth = sorted({*UPPER_LIP, *LOWER_LIP})
        self.inner = [mouth.index(n) for n in INNER_LIPS]
        self.register_buffer("lips", (reading[:, mouth] - reading[:, mouth].mean(1, keepdim=True)).flatten(1))
        view = torch.from_numpy(view_reading())
        self.register_buffer("view", view.flatten(1))
        bent = reading - torch.einsum("pj,nij->npi", torch.from_numpy(mean_face()), view[..., :3]) - view[:, None, :, 3]
        points = sorted({*LEFT_LIDS, *RIGHT_LIDS, *range(0, reading.shape[1], EVERY)})
        self.register_buffer("shape", bent[:, points].flatten(1))

    def lips_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """Eq. 14 of the lips: squared distances of sequences (B, T, 60), mean over points and batch, in UNIT."""
        return _apart(_points(self.lips, motion), _points(self.lips, generated))

    def shape_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """The same of the face as a whole, wherever it is, however large and turned, and SKEW times `skew_loss`.

        Points are compared less the affine view of the mean face, in space, that fits each frame best.
        """
        apart = _apart(_points(self.shape, motion), _points(self.shape, generated))
        return apart + SKEW * self.skew_loss(motion, generated)

    def pose_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """How the head moves, whenever: distance of the magnitudes of `pose_spectra`, relative to the real ones.

        Speech hardly tells where a head is, so squared distances of positions (eq. 14) are least for a head at rest.
        Magnitudes have no phase: they are least for a head that moves as much as real ones at every frequency, and
        leave to the synchrony losses when. Half of the distance is of each piece to its own, half of the batch's root
        mean squares: people differ in how much they move, and the mean person moves less than most.
        Sequences (B, T, 60) -> scalar, about 1 for a still head.
        """
        losses = []
        for length in (n for n in POSE_WINDOWS if n <= motion.shape[1]):
            real, made = (pose_spectra(self.pose(x), length) for x in (motion, generated))
            power, made_power = (x.square().mean((0, 1)) for x in (real, made))
            own = (real - made).square().mean((0, 1))
            together = (power.sqrt() - made_power.sqrt()).square()
            losses.append(((own + together) / (2 * power)).mean())
        return torch.stack(losses).mean()

    def pose(self, motion: Tensor) -> Tensor:
        """Motion (..., 60) -> (..., 6): across, down, size, roll, yaw and pitch of the head, linear in motion.

        In [-1, 1] coordinates; of the last four, by how much they move a point an eye distance away.
        """
        (xx, xy, xz, x), (yx, yy, yz, y) = (row.unbind(-1) for row in _points(self.view, motion, 4).unbind(-2))
        return torch.stack([x, y, (xx + yy) / 2, (yx - xy) / 2, xz, yz], dim=-1)

    def skew_loss(self, motion: Tensor, generated: Tensor) -> Tensor:
        """What turning a head cannot do to its picture: rows of A of other lengths, or not at right angles.

        Squared differences to the real sequence's (B, T, 60), in UNIT; as `shape_loss`.
        """
        a, b = (_skew(_points(self.view, x, 4)[..., :3]) for x in (motion, generated))
        return ((a - b) / UNIT).square().sum(-1).sum(1).mean()

    def opening(self, motion: Tensor) -> Tensor:
        """How far the mouth is open, of motion (..., 60) -> (...), in [-1, 1] coordinates."""
        upper, lower = _points(self.lips, motion)[..., self.inner, :].unbind(-2)
        return (lower - upper).norm(dim=-1)

    def closing_loss(self, generated: Tensor) -> Tensor:
        """Squared openings of mouths that should be closed, (B, T, 60) -> scalar; summed over time as `lips_loss`."""
        return (self.opening(generated) / UNIT).square().sum(1).mean()


def _points(reading: Tensor, motion: Tensor, size: int = 2) -> Tensor:
    """Motion (..., 60) -> points (..., n, size), in [-1, 1] coordinates."""
    return (motion[..., : MESH_KEYPOINTS * N_VALUES] @ reading[:-1] + reading[-1]).unflatten(-1, (-1, size))


def _skew(view: Tensor) -> Tensor:
    """(..., 2, 3) -> (..., 2): difference of the rows' lengths, and how far they are from right angles."""
    across, down = view.unbind(-2)
    sizes = across.norm(dim=-1), down.norm(dim=-1)
    return torch.stack([sizes[0] - sizes[1], 2 * (across * down).sum(-1) / (sizes[0] + sizes[1])], dim=-1)


def pose_spectra(poses: Tensor, length: int) -> Tensor:
    """Magnitudes of the spectra of poses (B, T, n) up to POSE_BAND -> (B, windows, 1 + frequencies, n).

    Windows of `length` frames, half of it apart, under a Hann window, without their means. In place of 0 Hz stands the
    deviation over the window, which slower motion has, too.
    """
    pieces = poses.unfold(1, length, length // 2)  # (B, windows, n, length)
    pieces = pieces - pieces.mean(-1, keepdim=True)
    spectra = torch.fft.rfft(pieces * torch.hann_window(length, device=poses.device))
    spectra = spectra[..., 1 : 1 + int(POSE_BAND * length / FPS)]
    power = torch.cat([pieces.square().mean(-1, keepdim=True), spectra.real.square() + spectra.imag.square()], dim=-1)
    return (power + TINY).sqrt().transpose(2, 3)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) / UNIT).square().sum(-1).mean(-1).sum(1).mean()
