"""Keypoints of faces: their geometry against direct formulas, and the detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mssync.errors import InputError
from mssync.faces import mirror_points, mirrored_landmarks
from mssync.reenact.detector import BODY, KeypointDetector, find_landmarks, read_keypoints
from mssync.reenact.geometry import inverse
from mssync.reenact.mesh import ANCHORS, MESH_KEYPOINTS, canonical_face, mesh_motion, neighbourhoods


@pytest.fixture(scope="module")
def detector() -> KeypointDetector:
    torch.manual_seed(0)
    return KeypointDetector(8).eval().requires_grad_(False)


def test_inverse_is_the_inverse_and_never_infinite() -> None:
    matrices = torch.eye(2) + 0.2 * torch.randn(3, 10, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))
    assert inverse(torch.zeros(2, 2)).isfinite().all()


def test_keypoints_of_a_face(detector: KeypointDetector) -> None:
    marks = torch.from_numpy(canonical_face()).expand(2, -1, -1)
    pictures = torch.rand(2, 3, 256, 256)
    motion = detector(pictures, marks)
    assert motion.shape == (2, 10, 6)
    assert motion[..., :2].abs().max() < 1
    np.testing.assert_allclose(motion[0, :MESH_KEYPOINTS], mesh_motion(canonical_face()), atol=1e-5)
    assert torch.equal(motion[:, BODY:], detector.body(pictures))


def test_a_learned_keypoint_is_where_its_heat_is() -> None:
    heat, jacobian = torch.full((1, 1, 64, 64), -9.0), torch.zeros(1, 4, 64, 64)
    heat[0, 0, 20, 30] = 9.0
    jacobian[0, 1, 20, 30] = 0.5
    found = read_keypoints(heat, jacobian)
    wanted = [(2 * 30 + 1) / 64 - 1, (2 * 20 + 1) / 64 - 1, 1, 0.5, 0, 1]
    torch.testing.assert_close(found, torch.tensor([[wanted]]))


def test_geometry_is_exact_under_autocast(detector: KeypointDetector) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert detector.body(torch.rand(1, 3, 256, 256)).dtype == torch.float32


def test_a_picture_without_a_face_has_no_landmarks() -> None:
    with pytest.raises(InputError, match="no face"):
        find_landmarks(torch.full((1, 3, 256, 256), 0.5))


def test_an_affine_face_has_that_affine_jacobian() -> None:
    matrix, shift = np.array([[0.8, 0.2], [-0.1, 1.1]], np.float32), np.array([0.1, -0.05], np.float32)
    motion = mesh_motion((canonical_face() @ matrix.T + shift)[None])
    np.testing.assert_allclose(motion[0, :, 2:], np.tile(matrix.flatten(), (MESH_KEYPOINTS, 1)), atol=1e-4)
    for k, (anchor, _) in enumerate(ANCHORS.values()):
        wanted = canonical_face()[list(anchor)].mean(0) @ matrix.T + shift
        np.testing.assert_allclose(motion[0, k, :2], wanted, atol=1e-5)


def test_mesh_motion_is_the_direct_least_squares_fit() -> None:
    marks = canonical_face() + np.random.default_rng(0).normal(0, 0.02, (478, 2)).astype(np.float32)
    motion = mesh_motion(marks[None])[0]
    for k, near in enumerate(neighbourhoods()):
        reference, here = (x[near] - x[near].mean(0) for x in (canonical_face(), marks))
        jacobian = np.linalg.lstsq(reference, here, rcond=None)[0].T
        np.testing.assert_allclose(motion[k, 2:].reshape(2, 2), jacobian, atol=1e-4)


def test_mirroring_is_its_own_inverse_and_swaps_the_sides() -> None:
    index = mirror_points()
    np.testing.assert_array_equal(index[index], np.arange(478))
    marks = np.random.default_rng(0).normal(size=(2, 478, 2))
    np.testing.assert_array_equal(mirrored_landmarks(mirrored_landmarks(marks)), marks)
    motion, turned = (mesh_motion(x) for x in (marks, mirrored_landmarks(marks)))
    np.testing.assert_allclose(turned[:, 0, 0], -motion[:, 1, 0], atol=1e-5)  # left eye, right eye
    np.testing.assert_allclose(turned[:, 2, [2, 3, 4, 5]], motion[:, 2, [2, 3, 4, 5]] * [1, -1, -1, 1], atol=0.05)
