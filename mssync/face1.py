"""Motion space `face-1`: where a head is, where its eyes look, and what its face expresses, in 50 named numbers.

A face is a mesh (478, 3) in a crop's [-1, 1] (x right, y down, z away), and

    mesh = scale · R (neutral + expression · basis + irises(gaze)) + place

where `neutral` (478, 3) is the person's own face at rest, from the front, in outer eye distances of the mean face; the
basis is linear, in the head's frame. A neutral face belongs to a portrait, motion to nobody: put on another person's
neutral face it is the same expression there.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.faces import N_LANDMARKS, N_SKIN
from mssync.metrics.frontal import fit
from mssync.motion import FACE, smooth
from mssync.reenact.detector import read_mesh
from mssync.reenact.mesh import mesh_map

SPACE = FACE
EXPRESSIONS = 40
# What a motion's columns are. A rotation is a vector (rad) about x, y and z; the place is that between the outer eye
# corners in the crop's [-1, 1], the size log of the distance of the mean face's; gaze is where an iris is between the
# corners of its eye, across and down, in their distance.
COLUMNS = (
    "rotation x", "rotation y", "rotation z", "place x", "place y", "size",
    "left gaze x", "left gaze y", "right gaze x", "right gaze y",
    *(f"expression {n}" for n in range(1, EXPRESSIONS + 1)),
)  # fmt: skip
NUMBERS = len(COLUMNS)
POSE, GAZE, EXPRESSION = slice(0, 6), slice(6, 10), slice(10, NUMBERS)
TURN, PLACE, SIZE = slice(0, 3), slice(3, 5), 5  # in a pose
HEAD = 10  # numbers of pose and gaze together, which come first

FILE = Path(__file__).parent / "assets" / "face_1.npz"  # what `training.face1.fit_space` makes
EYES = ((33, 133), (362, 263))  # corners of each eye, left and right as seen in the picture
IRISES = (slice(468, 473), slice(473, 478))
TINY = 1e-8


@lru_cache(maxsize=1)
def _constants() -> dict[str, NDArray[np.float32]]:
    with np.load(FILE) as arrays:
        return {name: arrays[name].astype(np.float32) for name in arrays}


def mean_rest() -> NDArray[np.float32]:
    """The mean of people's faces at rest, (478, 3)."""
    return _constants()["mean"]


# From meshes


def neutral(landmarks: NDArray) -> NDArray[np.float32]:
    """The face at rest (..., 478, 3) of people of whom one mesh each (..., 478, 3) is known.

    The most probable sum of a shape, as of people's faces at rest, and an expression, both normally distributed
    (`training.face1`); what neither tells is the person's own. A smile, or an open mouth, is read as an expression.
    """
    found, front = _constants(), fit(landmarks).frontal(landmarks)
    said = (front - found["mean"]).reshape(*front.shape[:-2], -1) @ found["single"]
    rest = front - (said @ found["basis"].reshape(EXPRESSIONS, -1)).reshape(front.shape)
    return rest.astype(np.float32)


def read(landmarks: NDArray, rest: NDArray) -> NDArray[np.float32]:
    """Motion (..., 50) of meshes (..., 478, 3) of one person, whose face at rest is (478, 3)."""
    found, view = _constants(), fit(landmarks)
    front = view.frontal(landmarks)
    expression = (front - rest).reshape(*front.shape[:-2], -1) @ found["reading"]
    pose = [_vector(view.rotation), view.centre[..., :2], np.log(view.scale)[..., None]]
    return np.concatenate([*pose, *_gaze(front), expression], -1).astype(np.float32)


def both_eyes(gaze: Tensor) -> Tensor:
    """Where both eyes look together, (..., 2), of gaze (..., 4): the mean of both."""
    return gaze.unflatten(-1, (2, 2)).mean(-2)


@lru_cache(maxsize=1)
def straight() -> NDArray[np.float32]:
    """The gaze (4,) of the mean face at rest, which looks straight ahead."""
    return np.concatenate(_gaze(mean_rest())).astype(np.float32)


def _gaze(front: NDArray) -> list[NDArray]:
    found = []
    for (a, b), iris in zip(EYES, IRISES, strict=True):
        middle, width = (front[..., a, :2] + front[..., b, :2]) / 2, front[..., b, 0] - front[..., a, 0]
        found.append((front[..., iris, :2].mean(-2) - middle) / width[..., None])
    return found


def _vector(rotation: NDArray) -> NDArray:
    """Rotation vectors (..., 3), rad, of matrices (..., 3, 3) that turn by less than pi."""
    across = np.stack([rotation[..., a, b] - rotation[..., b, a] for a, b in ((2, 1), (0, 2), (1, 0))], -1) / 2
    sine = np.linalg.norm(across, axis=-1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    return across * np.where(sine < TINY, 1, angle / np.maximum(sine, TINY))[..., None]


def clip_motion(landmarks: NDArray, taps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Motion (T, 50) along a clip's meshes (T, 478, 3), smoothed over `taps` frames, and the face at rest (478, 3): the
    mean of those of all frames."""
    rest = neutral(landmarks).mean(0)
    return smooth(read(landmarks, rest), taps), rest


def control(start: NDArray, motion: NDArray, *, head: float = 1.0, expression: float = 1.0) -> NDArray[np.float32]:
    """Scale how far the head moves away from a start (50,), and how strongly the face is expressed: motion (T, 50).

    0 leaves either as it is in the start, 1 as it is in the motion; eyes look where they look.
    """
    factors = np.ones(NUMBERS, np.float32)
    factors[POSE], factors[EXPRESSION] = head, expression
    return (start + factors * (motion - start)).astype(np.float32)


# To meshes


class FaceSpace(nn.Module):
    """Motion (..., 50) and faces at rest (..., 478, 3) -> meshes, differentiable."""

    basis: Tensor
    body: Tensor
    mesh_map: Tensor

    def __init__(self) -> None:
        super().__init__()
        found = _constants()
        self.register_buffer("basis", torch.from_numpy(found["basis"]).flatten(1), persistent=False)
        self.register_buffer("body", torch.from_numpy(found["body"]), persistent=False)
        self.register_buffer("mesh_map", torch.from_numpy(mesh_map()), persistent=False)

    def mesh(self, motion: Tensor, rest: Tensor) -> Tensor:
        """Motion (..., 50), faces at rest (..., 478, 3) -> meshes (..., 478, 2) in the crop's [-1, 1]."""
        front = rest + (motion[..., EXPRESSION] @ self.basis).unflatten(-1, (N_LANDMARKS, 3))
        front = torch.cat([front[..., :N_SKIN, :], front[..., N_SKIN:, :] + self._irises(motion, rest)], -2)
        turned = front @ rotation(motion[..., TURN])[..., :2, :].transpose(-1, -2)
        return turned * motion[..., SIZE, None, None].exp() + motion[..., None, PLACE]

    def _irises(self, motion: Tensor, rest: Tensor) -> Tensor:
        """How far the points of both irises are from where they are at rest, (..., 10, 3)."""
        found = []
        for eye, ((a, b), iris) in enumerate(zip(EYES, IRISES, strict=True)):
            width = rest[..., b, :1] - rest[..., a, :1]
            own = (rest[..., iris, :2].mean(-2) - (rest[..., a, :2] + rest[..., b, :2]) / 2) / width
            moved = (motion[..., GAZE].unflatten(-1, (2, 2))[..., eye, :] - own) * width
            found.append(F.pad(moved, (0, 1))[..., None, :].expand(*moved.shape[:-1], iris.stop - iris.start, 3))
        return torch.cat(found, -2)

    def keypoints(self, motion: Tensor, rest: Tensor, first: Tensor, body: Tensor) -> Tensor:
        """The same as motion of the space compact-1, (..., 60).

        motion: (..., 50); rest: (..., 478, 3); first: (..., 50), in which the keypoint of neck and shoulders is body
        (..., 6). It moves with the head as it does on average.
        """
        return self.seen(self.mesh(motion, rest), motion, first, body)

    def seen(self, mesh: Tensor, motion: Tensor, first: Tensor, body: Tensor) -> Tensor:
        """`keypoints`, where the meshes (..., 478, 2) of the motion are known."""
        face = read_mesh(self.mesh_map, mesh.flatten(0, -3)).unflatten(0, motion.shape[:-1])
        moved = body + (motion - first)[..., POSE] @ self.body
        return torch.cat([face.flatten(-2), moved.expand(*motion.shape[:-1], moved.shape[-1])], -1)


def rotation(vectors: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3), rad (Rodrigues)."""
    square = vectors.square().sum(-1)[..., None, None] + TINY  # the root has no slope at nothing
    angle = square.sqrt()
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    one = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return one + (angle.sin() / angle) * cross + ((1 - angle.cos()) / square) * (cross @ cross)
