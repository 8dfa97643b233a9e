"""The surface behind a motion: cases whose answer is known."""

from __future__ import annotations

import numpy as np
import torch

from mssync.reenact.mesh import canonical_face, fit_reading, mesh_motion
from mssync.reenact.surface import Surface


def motion_of(mesh: np.ndarray) -> torch.Tensor:
    """Motion (1, 10, 6) of a mesh (478, 2); the learned keypoint does not matter here."""
    face = torch.from_numpy(mesh_motion(mesh))[None]
    return torch.cat([face, face[:, :1]], 1)


def test_the_reading_is_undone_wherever_the_face_is() -> None:
    for matrix, shift in [(np.eye(2), 0.0), (np.array([[0.8, 0.2], [-0.1, 1.1]]), 0.2)]:
        mesh = (canonical_face() @ matrix.T + shift).astype(np.float32)
        error = (Surface()(motion_of(mesh))[0] - torch.from_numpy(mesh)).norm(dim=-1)
        assert float(error.mean()) * 128 < 0.7  # pixels of 256


def test_fit_reading_finds_the_map_where_there_is_one() -> None:
    """Faces that are affine images of one shape: six numbers each, which the keypoints hold exactly."""
    rng = np.random.default_rng(0)
    meshes = canonical_face() @ (np.eye(2) + rng.normal(0, 0.2, (200, 2, 2))) + rng.normal(0, 0.2, (200, 1, 2))
    reading = fit_reading(meshes[:150].astype(np.float32))
    read = mesh_motion(meshes[150:]).reshape(50, -1)
    found = (np.concatenate([read, np.ones((50, 1))], 1) @ reading).reshape(50, 478, 2)
    np.testing.assert_allclose(found, meshes[150:], atol=2e-3)
