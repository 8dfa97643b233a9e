"""Landmark guidance: what the ten keypoints of the compact reenactor are first taught to be.

Each keypoint has an anchor (a mean of mesh points) and a neighbourhood of mesh points. Its coordinates are the
anchor's; its Jacobian is the least-squares linear map from the neighbourhood in the canonical face to the
neighbourhood in the picture. So eyelids and lips move the Jacobians of their keypoints, and what FOMM learns
without supervision starts from something that is true of every face.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from mssync.faces import N_LANDMARKS

UPPER_LIP = (
    61,
    185,
    40,
    39,
    37,
    0,
    267,
    269,
    270,
    409,
    291,
    78,
    191,
    80,
    81,
    82,
    13,
    312,
    311,
    310,
    415,
    308,
)
LOWER_LIP = (
    146,
    91,
    181,
    84,
    17,
    314,
    405,
    321,
    375,
    95,
    88,
    178,
    87,
    14,
    317,
    402,
    318,
    324,
    61,
    291,
    78,
    308,
)
NEAREST = 40  # mesh points in a neighbourhood that is not listed

# name: (points whose mean is the anchor, neighbourhood or () for the NEAREST in the canonical face)
ANCHORS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "left eye": ((33, 133, 159, 145), ()),
    "right eye": ((263, 362, 386, 374), ()),
    "nose": ((1, 4), ()),
    "left cheek": ((234, 93, 132), ()),
    "right cheek": ((454, 323, 361), ()),
    "forehead": ((10, 151), ()),
    "chin": ((152, 175), ()),
    "upper lip": ((0, 13), UPPER_LIP),
    "lower lip": ((14, 17), LOWER_LIP),
    "mouth": ((13, 14, 61, 291), tuple(sorted({*UPPER_LIP, *LOWER_LIP}))),
}
FLIPPED = (1, 0, 2, 4, 3, 5, 6, 7, 8, 9)  # keypoint k of a mirrored picture is FLIPPED[k] of the picture

CANONICAL_FILE = Path(__file__).parent.parent / "assets" / "canonical_face.npy"


@lru_cache(maxsize=1)
def canonical_face() -> np.ndarray:
    """The mean frontal mesh (478, 2), symmetric, in a crop's [-1, 1] coordinates."""
    return np.load(CANONICAL_FILE)


@lru_cache(maxsize=1)
def neighbourhoods() -> list[np.ndarray]:
    """Mesh indices of each keypoint's neighbourhood."""
    canonical = canonical_face()
    found = []
    for anchor, listed in ANCHORS.values():
        distance = np.linalg.norm(canonical - canonical[list(anchor)].mean(0), axis=-1)
        found.append(np.array(listed) if listed else np.argsort(distance)[:NEAREST])
    return found


def landmark_motion(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (T, 478, >=2) in [-1, 1] -> motion (T, 10, 6) that the keypoint detector is guided to."""
    points, canonical = landmarks[..., :2], canonical_face()
    motion = np.empty((len(points), len(ANCHORS), 6), np.float32)
    for k, ((anchor, _), near) in enumerate(zip(ANCHORS.values(), neighbourhoods(), strict=True)):
        motion[:, k, :2] = points[:, list(anchor)].mean(1)
        reference = canonical[near] - canonical[near].mean(0)
        here = points[:, near] - points[:, near].mean(1, keepdims=True)
        # J minimises sum |J r_i - h_i|^2: J = H^T R (R^T R)^-1
        jacobian = np.einsum("tni,nj->tij", here, reference) @ np.linalg.inv(reference.T @ reference)
        motion[:, k, 2:] = jacobian.reshape(-1, 4)
    return motion


def fit_canonical(meshes: np.ndarray, mirror: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Mean shape of meshes (N, 478, 2) under similarity (generalised Procrustes), made symmetric by `mirror`.

    mirror: (478,) index of each point's mirror point. Size and place are the mean ones of the meshes.
    """
    centred = meshes - meshes.mean(1, keepdims=True)
    size = np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    shapes, mean = centred / size, (centred / size)[0]
    for _ in range(rounds):
        u, _, vt = np.linalg.svd(np.einsum("npi,pj->nij", shapes, mean))
        mean = np.einsum("npi,nij->npj", shapes, u @ vt).mean(0)
        mean = mean / np.linalg.norm(mean)
    mean = (mean + mean[mirror] * np.array([-1, 1])) / 2
    place = np.array([0.0, meshes[..., 1].mean()])  # on the vertical axis of the crop, as high as faces are in it
    return (mean * float(size.mean()) + place).astype(np.float32).reshape(N_LANDMARKS, 2)
