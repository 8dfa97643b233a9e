"""The motion space face-1: meshes to numbers and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mssync import face1
from mssync.face1 import COLUMNS, EXPRESSION, EXPRESSIONS, GAZE, HEAD, NUMBERS, POSE, FaceSpace
from mssync.faces import INNER_LIPS
from mssync.metrics.frontal import frontalised
from mssync.reenact.mesh import mesh_motion

SPACE = FaceSpace()
MEAN = torch.from_numpy(face1._constants()["mean"])


def drawn(seed: int, count: int = 1) -> torch.Tensor:
    """Motion as people's: (count, 50)."""
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, NUMBERS, generator=rng)
    return numbers * torch.tensor([0.1, 0.2, 0.1, 0.1, 0.1, 0.05, *[0.05] * 4, *[1.0] * EXPRESSIONS]) + torch.tensor(
        [0, 0, 0, 0, -0.2, -0.6, *[0.0] * (4 + EXPRESSIONS)]
    )


def solid(motion: torch.Tensor) -> np.ndarray:
    """Meshes (n, 478, 3) of motion (n, 50) of the mean face, with the depth that `FaceSpace.mesh` leaves out."""
    flat = SPACE.mesh(motion, MEAN)
    sideways = motion.clone()
    sideways[:, :3] = torch.from_numpy(
        (Rotation.from_rotvec([0, np.pi / 2, 0]) * Rotation.from_rotvec(motion[:, :3].numpy())).as_rotvec()
    ).float()
    depth = SPACE.mesh(sideways, MEAN)[..., :1] - sideways[:, None, 3:4]
    return torch.cat([flat, depth], -1).numpy()


def test_columns_have_names():
    assert len(COLUMNS) == len(set(COLUMNS)) == NUMBERS == 50
    assert COLUMNS[POSE][-1] == "size"
    assert COLUMNS[GAZE][0] == "left gaze x"
    assert COLUMNS[EXPRESSION][0] == "expression 1"
    assert EXPRESSION.start == HEAD


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_read_undoes_mesh(seed):
    motion = drawn(seed, 3)
    motion[:, EXPRESSION] *= 0.5
    found = face1.read(solid(motion), MEAN.numpy())
    # The rigid points are fitted, and expressions move them a little.
    np.testing.assert_allclose(found[:, :HEAD], motion[:, :HEAD], atol=0.03)
    again = SPACE.mesh(torch.from_numpy(found), MEAN)
    assert (again - SPACE.mesh(motion, MEAN)).norm(dim=-1).mean() < 0.004  # half a pixel of 256


def test_rotation_is_rodrigues():
    vectors = torch.randn(20, 3, dtype=torch.float64)
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(face1.rotation(vectors), expected, atol=1e-6)
    still = torch.zeros(3, requires_grad=True)
    face1.rotation(still)[0, 1].backward()
    assert torch.isfinite(still.grad).all()


def test_an_open_mouth_is_an_expression():
    basis = face1._constants()["basis"]
    gap = np.linalg.norm(basis[:, INNER_LIPS[1]] - basis[:, INNER_LIPS[0]], axis=-1)
    widest = int(gap.argmax())
    motion = drawn(0)
    motion[:, EXPRESSION] = 0
    sign = np.sign(basis[widest, INNER_LIPS[1], 1] - basis[widest, INNER_LIPS[0], 1])
    motion[:, EXPRESSION.start + widest] = 2 * float(sign)
    mesh = solid(motion)[0]
    rest = face1.neutral(mesh)

    def opening(face):
        return np.linalg.norm(face[INNER_LIPS[1]] - face[INNER_LIPS[0]])

    assert opening(rest) < 0.25 * opening(frontalised(mesh))


def test_a_start_gives_the_portrait_back():
    mesh = solid(drawn(3))[0]
    rest = face1.neutral(mesh)
    again = SPACE.mesh(torch.from_numpy(face1.read(mesh, rest)), torch.from_numpy(rest)).numpy()
    np.testing.assert_allclose(again, mesh[:, :2], atol=0.004)


def test_keypoints_are_those_of_the_mesh():
    motion, body = drawn(5, 4), torch.tensor([0.0, 0.8, 1, 0, 0, 1])
    found = SPACE.keypoints(motion, MEAN, motion[0], body)
    expected = mesh_motion(SPACE.mesh(motion, MEAN).numpy()).reshape(4, -1)
    np.testing.assert_allclose(found[:, :54], expected, atol=1e-5)
    np.testing.assert_allclose(found[0, 54:], body)
    lower = motion[:1].clone()
    lower[:, 4] += 0.1
    assert 0.03 < float(SPACE.keypoints(lower, MEAN, motion[0], body)[0, 55] - body[1]) < 0.1


def test_gaze_moves_irises_alone():
    still, moved = drawn(7), drawn(7)
    moved[:, GAZE] += 0.1
    apart = (SPACE.mesh(moved, MEAN) - SPACE.mesh(still, MEAN))[0].norm(dim=-1)
    assert apart[:468].max() == 0
    assert apart[468:].min() > 0.003


@pytest.mark.parametrize(("head", "expression"), [(0, 1), (1, 0), (0.5, 2)])
def test_control(head, expression):
    motion, start = drawn(1, 5).numpy(), drawn(2)[0].numpy()
    found = face1.control(start, motion, head=head, expression=expression)
    np.testing.assert_allclose(found[:, POSE], start[POSE] + head * (motion - start)[:, POSE], atol=1e-6)
    np.testing.assert_allclose(found[:, GAZE], motion[:, GAZE], atol=1e-6)
    wanted = start[EXPRESSION] + expression * (motion - start)[:, EXPRESSION]
    np.testing.assert_allclose(found[:, EXPRESSION], wanted, atol=1e-5)
    np.testing.assert_allclose(face1.control(start, motion), motion, atol=1e-6)
