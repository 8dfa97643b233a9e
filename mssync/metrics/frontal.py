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
from mssync.reenact import N_VALUES
from mssync.reenact.mesh import MESH_KEYPOINTS, face_reading

RIGID = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 8, 9, 151, 10)  # eye corners, nose, forehead
RIGID_FILE = Path(__file__).parents[1] / "assets" / "rigid_face.npy"
MEAN_FILE = RIGID_FILE.with_name("mean_face.npy")
VIEW_FILE = RIGID_FILE.with_name("view_reading.npy")  # `fit_view_reading`


@dataclass(frozen=True)
class Fit:
    """landmark = scale * rotation @ frontal + centre, for each of (...) faces.

    rotation: (..., 3, 3); scale: (...,) landmark units in one unit of the frontal face, which is the distance of the
    mean face's outer eye corners; centre: (..., 3), between these corners, in landmark units, or (..., 2) where a
    motion is all that is known.
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


@lru_cache(maxsize=1)
def view_reading() -> np.ndarray:
    """From the keypoints on the face to the affine view of the mean face that fits best: (55, 2, 4) float32.

    [54 numbers of the nine mesh keypoints, 1] times it is [A t], A (2, 3), t (2, 1), in a crop's [-1, 1] coordinates: a
    point p of `mean_face` is seen at A p + t.
    """
    return np.load(VIEW_FILE)


def fit_view_reading() -> np.ndarray:
    """What VIEW_FILE holds: least squares on the points of the mean face."""
    face = np.concatenate([mean_face(), np.ones((len(mean_face()), 1), np.float32)], 1)
    points = face_reading().reshape(-1, len(face), 2)
    return np.einsum("jp,npi->nij", np.linalg.pinv(face), points).astype(np.float32)


def fit_motion(motion: np.ndarray) -> Fit:
    """`fit` of the faces behind motion (..., 60) of the space compact-1; their third dimension follows from two.

    The rotation's first two rows are those nearest to the view's. centre: (..., 2).
    """
    view = motion[..., : MESH_KEYPOINTS * N_VALUES] @ view_reading()[:-1].reshape(-1, 8) + view_reading()[-1].ravel()
    view = view.reshape(*motion.shape[:-1], 2, 4).astype(np.float64)
    u, values, vt = np.linalg.svd(view[..., :3], full_matrices=False)
    rows = u @ vt
    rotation = np.concatenate([rows, np.cross(rows[..., 0, :], rows[..., 1, :])[..., None, :]], -2)
    return Fit(rotation, values.mean(-1), view[..., 3])


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
