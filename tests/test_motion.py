"""Motion arrays: smoothing, head and expression, relative transfer, files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync import motion as M
from mssync.errors import InputError

RIGID = (0, 1, 2, 3, 4)


def make_motion(seed: int, frames: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A pose and a plausible motion away from it: a moving head and a moving face."""
    r = np.random.default_rng(seed)
    pose = np.concatenate([r.uniform(-0.7, 0.7, (10, 2)), np.eye(2).reshape(4) + 0.2 * r.standard_normal((10, 4))], -1)
    angle, zoom = r.uniform(-0.5, 0.5, frames), r.uniform(0.8, 1.2, frames)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    turn = turn * zoom[:, None, None]
    inside = pose[:, :2] + 0.03 * r.standard_normal((frames, 10, 2))
    jacobian = M.jacobians(pose) + 0.05 * r.standard_normal((frames, 10, 2, 2))
    at = np.einsum("tij,tkj->tki", turn, inside) + r.uniform(-0.2, 0.2, (frames, 1, 2))
    return pose.astype(np.float32), M.join(at, turn[:, None] @ jacobian)


def test_smooth_is_the_direct_average() -> None:
    _, motion = make_motion(0)
    result = M.smooth(motion)
    for t in range(len(motion)):
        around = [motion[min(max(t + d, 0), len(motion) - 1)] for d in (-1, 0, 1)]
        np.testing.assert_allclose(result[t], np.mean(around, 0), atol=1e-6)
    np.testing.assert_array_equal(M.smooth(motion, 1), motion)
    with pytest.raises(InputError, match="odd"):
        M.smooth(motion, 2)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_gaussian_is_the_direct_formula(sigma: float) -> None:
    _, motion = make_motion(1, 12)
    result, radius = M.gaussian(motion, sigma), max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    for t in range(len(motion)):
        frames = motion[np.clip(t + offsets, 0, len(motion) - 1)]
        np.testing.assert_allclose(result[t], np.average(frames, 0, weights), atol=1e-6)
    assert M.gaussian(motion, 0) is motion


def test_fit_head_finds_an_affine_motion_exactly() -> None:
    pose, _ = make_motion(2)
    affine = np.array([[[1.1, -0.2, 0.05], [0.15, 0.9, -0.1]]])
    at = np.einsum("tij,kj->tki", affine[..., :2], M.points(pose)) + affine[:, None, :, 2]
    motion = M.join(at, np.broadcast_to(M.jacobians(pose), (1, 10, 2, 2)))
    np.testing.assert_allclose(M.fit_head(pose, motion, RIGID), affine, atol=1e-5)


def test_fit_head_is_least_squares() -> None:
    pose, motion = make_motion(3)
    system = np.c_[M.points(pose)[list(RIGID)], np.ones(len(RIGID))]
    for fitted, frame in zip(M.fit_head(pose, motion, RIGID), motion, strict=True):
        direct = np.linalg.lstsq(system, M.points(frame)[list(RIGID)], rcond=None)[0].T
        np.testing.assert_allclose(fitted, direct, atol=1e-5)


def test_fit_head_keeps_what_it_cannot_see() -> None:
    pose, motion = make_motion(4)
    pose[list(RIGID), 1] = 0.1  # all on one horizontal line: nothing tells how y maps
    head = M.fit_head(pose, motion, RIGID)
    np.testing.assert_allclose(head[:, :, 1], np.tile([0.0, 1.0], (len(motion), 1)), atol=1e-9)
    mirrored = motion.copy()
    mirrored[..., 0] *= -1
    head = M.fit_head(make_motion(4)[0], mirrored, RIGID)
    np.testing.assert_array_equal(head[..., :2], np.tile(np.eye(2), (len(motion), 1, 1)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_control_at_one_changes_nothing(seed: int) -> None:
    pose, motion = make_motion(seed)
    np.testing.assert_allclose(M.control(pose, motion, RIGID), motion, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_still_head_is_exactly_still(seed: int, expression: float) -> None:
    pose, motion = make_motion(seed)
    still = M.control(pose, motion, RIGID, head=0, expression=expression)
    identity = np.tile(np.eye(2, 3), (len(motion), 1, 1))
    np.testing.assert_allclose(M.fit_head(pose, still, RIGID), identity, atol=1e-5)


def test_control_at_zero_is_the_reference_and_frozen_faces_move_rigidly() -> None:
    pose, motion = make_motion(5)
    nothing = M.control(pose, motion, RIGID, head=0, expression=0)
    np.testing.assert_allclose(nothing, np.tile(pose, (len(motion), 1, 1)), atol=1e-6)
    head = M.fit_head(pose, motion, RIGID)
    frozen = M.control(pose, motion, RIGID, expression=0)
    expected = np.einsum("tij,kj->tki", head[..., :2], M.points(pose)) + head[:, None, :, 2]
    np.testing.assert_allclose(M.points(frozen), expected, atol=1e-6)
    np.testing.assert_allclose(M.jacobians(frozen), head[:, None, :, :2] @ M.jacobians(pose), atol=1e-6)


def test_split_composes_back() -> None:
    pose, motion = make_motion(6)
    head, offsets, jacobian = M.split(pose, motion, RIGID)
    for t in range(len(motion)):
        for k in range(10):
            at = head[t, :, :2] @ (M.points(pose)[k] + offsets[t, k]) + head[t, :, 2]
            np.testing.assert_allclose(at, M.points(motion)[t, k], atol=1e-6)
            np.testing.assert_allclose(head[t, :, :2] @ jacobian[t, k], M.jacobians(motion)[t, k], atol=1e-6)


def test_relative_is_the_direct_formula() -> None:
    (source, _), (_, driving) = make_motion(7), make_motion(8)
    result = M.relative(driving, driving[2], source)
    spread = [np.sqrt(((p[:, :2] - p[:, :2].mean(0)) ** 2).sum(1).mean()) for p in (source, driving[2])]
    for t in range(len(driving)):
        for k in range(10):
            at = source[k, :2] + spread[0] / spread[1] * (driving[t, k, :2] - driving[2, k, :2])
            jacobian = [pose[k, 2:].reshape(2, 2) for pose in (driving[t], driving[2], source)]
            np.testing.assert_allclose(result[t, k, :2], at, atol=1e-5)
            expected = jacobian[0] @ np.linalg.inv(jacobian[1]) @ jacobian[2]
            lengths = np.linalg.svd(jacobian[1], compute_uv=False)
            if lengths[1] < M.FLAT * lengths[0]:
                expected = jacobian[2] + spread[0] / spread[1] * (jacobian[0] - jacobian[1])
            np.testing.assert_allclose(result[t, k, 2:].reshape(2, 2), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result[2], source, atol=1e-4)


@given(st.integers(0, 10_000), st.integers(0, 6), st.floats(0.5, 2), st.floats(-0.3, 0.3))
@settings(max_examples=30, deadline=None)
def test_best_start_ignores_place_and_size(seed: int, frame: int, zoom: float, shift: float) -> None:
    _, motion = make_motion(seed)
    source = motion[frame].copy()
    source[:, :2] = zoom * source[:, :2] + shift
    assert M.best_start(motion, source) == frame


def test_files_round_trip(tmp_path) -> None:
    _, motion = make_motion(9)
    path = tmp_path / "m.npz"
    M.save_motion(path, motion, space="compact-1", source_size=(480, 640))
    loaded = M.load_motion(path)
    np.testing.assert_array_equal(loaded.motion, motion)
    assert (loaded.space, loaded.source_size) == ("compact-1", (480, 640))
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


@pytest.mark.parametrize("motion", [np.zeros((0, 10, 6)), np.zeros((3, 60)), np.full((3, 10, 6), np.nan)])
def test_malformed_motion_is_not_written(tmp_path, motion) -> None:
    with pytest.raises(InputError, match="motion"):
        M.save_motion(tmp_path / "m.npz", motion, space="compact-1", source_size=(1, 1))
    assert not list(tmp_path.iterdir())


def test_bad_files_are_one_line(tmp_path) -> None:
    good = {"motion": np.zeros((3, 10, 6)), "fps": 25, "reenactor": "compact", "source_size": (2, 2)}
    cases = {
        "nan.npz": {**good, "motion": np.full((3, 10, 6), np.nan)},
        "shape.npz": {**good, "motion": np.zeros((3, 9, 6))},
        "fps.npz": {**good, "fps": 30},
        "keys.npz": {"motion": good["motion"]},
        "object.npz": {**good, "motion": np.array([{}])},
        "size.npz": {**good, "source_size": 3},
    }
    for name, content in cases.items():
        np.savez(tmp_path / name, **content)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for path in [*tmp_path.iterdir(), tmp_path / "missing.npz", tmp_path]:
        with pytest.raises(InputError) as caught:
            M.load_motion(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_eye_that_opens_from_closed_does_not_tear_the_face() -> None:
    """The driving face begins with a closed eye, whose Jacobian is flat: what is added when it opens is bounded."""
    start, source = np.zeros((10, 6)), np.zeros((10, 6))
    start[:, :2] = source[:, :2] = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 2))
    start[:, 2:] = source[:, 2:] = np.eye(2).ravel()
    opened = start.copy()
    start[0, 5] = 0.02  # the height of eye 0
    moved = M.relative(opened[None], start, source)[0]
    np.testing.assert_allclose(moved[0, 2:], [1, 0, 0, 1.98], atol=1e-6)
    np.testing.assert_allclose(moved[1:], source[1:], atol=1e-6)
