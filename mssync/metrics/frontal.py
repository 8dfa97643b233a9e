"""Turning faces to the front: the similarity that carries a mean face onto mesh landmarks, and its inverse.

It is fitted to points that speech does not move: eye corners, nose and forehead. As the fit is rigid in 3-D, turning
a face, moving it or scaling it changes the fit and leaves the frontal face as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mssync.faces import EYE_CORNERS, mirror_points

RIGID = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 8, 9, 151, 10)  # eye corners, nose, forehead
RIGID_FILE = Path(__file__).parents[1] / "assets" / "rigid_face.npy"
MEAN_FILE = RIGID_FILE.with_name("mean_face.npy")


@dataclass(frozen=True)
class Fit:
    """landmark = scale * rotation @ frontal + centre, for each of (...) faces.

    rotation: (..., 3, 3); scale: (...,) landmark units in one unit of the frontal face, which is the distance of the
    mean face's outer eye corners; centre: (..., 3), between these corners, in landmark units.
    """

    rotation: np.ndarray
    scale: np.ndarray
    centre: np.ndarray

    def frontal(self, landmarks: np.ndarray) -> np.ndarray:
        """Landmarks (..., n, 3) of these faces -> the same turned to the front, x right, y down, z away."""
        return (landmarks - self.centre[..., None, :]) @ self.rotation / self.scale[..., None, None]


@lru_cache(maxsize=1)
def rigid_face() -> np.ndarray:
    """The RIGID points (n, 3) of a mean face from the front: outer eye corners at x = -0.5 and 0.5, y = z = 0."""
    return np.load(RIGID_FILE).astype(np.float64)


@lru_cache(maxsize=1)
def mean_face() -> np.ndarray:
    """A whole mean face from the front (478, 3), as `rigid_face`: mean of the training people's, `frontalised`."""
    return np.load(MEAN_FILE).astype(np.float32)


def fit(landmarks: np.ndarray) -> Fit:
    """The least-squares similarity of the mean face to faces (..., 478, 3) (Umeyama 1991), z in the unit of x."""
    return _similarity(rigid_face(), landmarks[..., RIGID, :].astype(np.float64))


def frontalised(landmarks: np.ndarray) -> np.ndarray:
    """Each face of (..., 478, 3) turned to the front, in outer eye distances of the mean face."""
    return fit(landmarks).frontal(landmarks)


def _similarity(template: np.ndarray, points: np.ndarray) -> Fit:
    """The similarity from `template` (n, 3) to each of `points` (..., n, 3); never a mirror image."""
    middle, mean = template.mean(0), points.mean(-2)
    source, target = template - middle, points - mean[..., None, :]
    u, values, vt = np.linalg.svd(target.swapaxes(-1, -2) @ source)
    sign = np.ones_like(values)
    sign[..., 2] = np.linalg.det(u) * np.linalg.det(vt)
    rotation = (u * sign[..., None, :]) @ vt
    scale = (values * sign).sum(-1) / np.square(source).sum()
    return Fit(rotation, scale, mean - scale[..., None] * (rotation @ middle))


def mean_rigid_face(meshes: np.ndarray, rounds: int = 5) -> np.ndarray:
    """What RIGID_FILE holds: the mean of meshes (n, 478, 3) from about the front, symmetric.

    Generalised Procrustes analysis that starts from, and so is turned as, the plain mean.
    """
    mirror = [RIGID.index(int(mirror_points()[i])) for i in RIGID]
    left, right = (RIGID.index(i) for i in EYE_CORNERS)
    points = meshes[:, RIGID].astype(np.float64)
    scales = np.linalg.norm(points[:, right] - points[:, left], axis=-1)
    found = (points - points.mean(1, keepdims=True)) / scales[:, None, None]
    for _ in range(rounds):
        face = found.mean(0)
        face = (face + face[mirror] * [-1, 1, 1]) / 2
        face = (face - (face[left] + face[right]) / 2) / (face[right, 0] - face[left, 0])
        found = _similarity(face, points).frontal(points)
    return face.astype(np.float32)
