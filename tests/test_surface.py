"""The surface behind a motion, and windows of a picture: against direct formulas and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mssync.data.pairs import CELLS, WINDOW_CELLS, _view
from mssync.reenact.compact import CompactReenactor
from mssync.reenact.geometry import coordinate_grid, warp, windowed
from mssync.reenact.mesh import MESH_KEYPOINTS, OPENINGS, canonical_face, fit_reading, mesh_motion
from mssync.reenact.surface import SPREADS, Surface, openings, spread


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


def test_spread_is_a_weighted_mean() -> None:
    g = torch.Generator().manual_seed(0)
    points, values = torch.rand(1, 40, 2, generator=g) - 0.5, torch.randn(1, 40, 2, generator=g)
    field, near = spread(points, values, 16)
    assert field.shape == (1, 16, 16, 2)
    for row, column in [(8, 8), (0, 0), (11, 4)]:
        z = coordinate_grid(16, points)[row, column]
        total, weights, finest = torch.zeros(2), 0.0, 0.0
        for n, (deviation, weight, stride) in enumerate(SPREADS):
            for p, v in zip(points[0, ::stride], values[0, ::stride], strict=True):
                w = weight * float(torch.exp(-(z - p).square().sum() / (2 * deviation**2)))
                total, weights = total + w * v, weights + w
                finest += w if n == 0 else 0.0
        torch.testing.assert_close(field[0, row, column], total / weights, atol=1e-4, rtol=1e-3)
        assert float(near[0, 0, row, column]) == pytest.approx(1 - np.exp(-finest), abs=1e-5)


def test_spread_carries_a_shift_everywhere() -> None:
    points = torch.from_numpy(canonical_face())[None]
    field, near = spread(points, torch.tensor([0.1, -0.05]).expand_as(points), 64)
    torch.testing.assert_close(field, torch.tensor([0.1, -0.05]).expand_as(field), atol=1e-4, rtol=1e-3)
    column, row = ((canonical_face()[4] + 1) * 32).astype(int)  # the tip of the nose, and a corner
    assert near[0, 0, row, column] > 0.9
    assert near[0, 0, 0, 0] < 1e-3


def open_face(mouth: float, turn: float = 0.0) -> torch.Tensor:
    """The canonical face (1, 478, 2), its lower lip dropped by `mouth` in the middle, turned in the plane."""
    mesh = canonical_face().copy()
    upper, lower = OPENINGS["mouth"]
    middle = (mesh[list(upper), 1] + mesh[list(lower), 1]) / 2
    arch = 1 - np.linspace(-1, 1, len(upper)) ** 2
    mesh[list(upper), 1] = middle
    mesh[list(lower), 1] = middle + mouth * arch
    c, s = np.cos(turn), np.sin(turn)
    return torch.from_numpy((mesh @ np.array([[c, s], [-s, c]])).astype(np.float32))[None]


@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_openings_are_as_large_as_what_is_open(turn: float) -> None:
    areas = [float(openings(open_face(gap, turn), 128)[0, 0].sum()) for gap in (0.0, 0.05, 0.1, 0.2)]
    corners = open_face(0)[0, [OPENINGS["mouth"][0][0], OPENINGS["mouth"][0][-1]]]
    width = float((corners[0] - corners[1]).norm()) * 64
    assert areas == sorted(areas)
    for area, gap in zip(areas[2:], (0.1, 0.2), strict=True):  # under a parabola: two thirds of the rectangle
        assert area - areas[0] == pytest.approx(2 / 3 * width * gap * 64, rel=0.25)
    assert float(openings(open_face(0.2, turn), 128)[0, 0].max()) > 0.9


def test_a_window_is_a_part_of_the_whole() -> None:
    torch.manual_seed(0)
    view = torch.tensor([[-0.25, 0.125, 0.5], [0.5, -0.5, 0.5]])
    image, offset = torch.rand(2, 3, 64, 64), 0.2 * torch.randn(2, 32, 32, 2)
    cut = windowed(offset.permute(0, 3, 1, 2), view).permute(0, 2, 3, 1)
    part, whole = warp(image, cut, view), windowed(warp(image, offset), view)
    torch.testing.assert_close(part[..., 2:-2, 2:-2], whole[..., 2:-2, 2:-2])  # offsets are not resized across the cut
    model = CompactReenactor(8, 8, 8, 1).eval()
    motion = torch.cat([motion_of(canonical_face() * s) for s in (1.0, 1.05)])
    with torch.no_grad():
        state = model.prepare(torch.rand(2, 3, 256, 256), motion.flip(0))
        whole, part = model.render_parts(state, motion), model.render_parts(state, motion, view)
    assert part["frame"].shape == (2, 3, 128, 128)
    for name in ("warped", "frame"):
        wanted = windowed(whole[name], view)
        assert float((part[name] - wanted)[..., 16:-16, 16:-16].abs().mean()) < 1e-2, name


def test_windows_lie_on_cells_and_inside() -> None:
    rng = np.random.default_rng(0)
    for shift in (-1.0, 0.0, 0.7):
        x, y, scale = _view(canonical_face() + shift, rng)
        for centre in (x, y):
            corner = (centre + 1) / 2 * CELLS - WINDOW_CELLS / 2
            assert corner == pytest.approx(round(corner))
            assert 0 <= corner <= CELLS - WINDOW_CELLS
        assert scale == WINDOW_CELLS / CELLS
    assert MESH_KEYPOINTS == 9
