"""The compact reenactor: its geometry against direct formulas, its guidance, its file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mssync.data.pairs import MOUTH_WEIGHT, optical_flow, weight_map
from mssync.errors import InputError
from mssync.faces import mirror_points, mirrored_landmarks
from mssync.reenact.compact import (
    LID_SHARE,
    MOTION_SIZE,
    MOTIONS,
    CompactReenactor,
    DenseMotion,
    affine_offsets,
    gaussians,
    merged,
    steadied,
)
from mssync.reenact.geometry import coordinate_grid, inverse, warp
from mssync.reenact.mesh import ANCHORS, MESH_KEYPOINTS, canonical_face, mesh_motion, neighbourhoods
from mssync.weights import load_model, save_model


@pytest.fixture(scope="module")
def model() -> CompactReenactor:
    torch.manual_seed(0)
    return CompactReenactor(body_width=8, motion_width=8, painter_width=8, blocks=1).eval()


def random_motion(batch: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    jacobian = torch.eye(2).flatten() + 0.2 * torch.randn(batch, 10, 4, generator=g)
    return torch.cat([torch.rand(batch, 10, 2, generator=g) - 0.5, jacobian], -1)


def test_inverse_is_the_inverse_and_never_infinite() -> None:
    matrices = random_motion(3)[..., 2:].unflatten(-1, (2, 2))
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices))
    assert inverse(torch.zeros(2, 2)).isfinite().all()


def test_sparse_motion_is_equation_4_of_fomm() -> None:
    source, driving = random_motion(1, 1), random_motion(1, 2)
    offsets = DenseMotion.sparse_offsets(source, driving, MOTION_SIZE)
    assert offsets.shape == (1, 11, MOTION_SIZE, MOTION_SIZE, 2)
    assert (offsets[:, 0] == 0).all()
    for k, row, column in [(0, 0, 0), (4, 10, 50), (9, 63, 63)]:
        z = torch.tensor([(2 * column + 1) / MOTION_SIZE - 1, (2 * row + 1) / MOTION_SIZE - 1])
        j_s, j_d = (m[0, k, 2:].reshape(2, 2) for m in (source, driving))
        wanted = source[0, k, :2] + j_s @ torch.linalg.inv(j_d) @ (z - driving[0, k, :2])
        torch.testing.assert_close(offsets[0, k + 1, row, column] + z, wanted, atol=1e-5, rtol=1e-4)


def test_the_merged_field_is_the_weighted_sum_of_all_motions() -> None:
    source, driving = random_motion(1, 1), random_motion(2, 2)
    surface = 0.1 * torch.randn(2, MOTION_SIZE, MOTION_SIZE, 2)
    masks = torch.randn(2, MOTIONS, MOTION_SIZE, MOTION_SIZE).softmax(1)
    offset, farthest = merged(masks, affine_offsets(source, driving), surface)
    offsets = torch.cat([DenseMotion.sparse_offsets(source, driving, MOTION_SIZE), surface[:, None]], 1)
    torch.testing.assert_close(offset, (masks[..., None] * offsets).sum(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(farthest, offsets.norm(dim=-1).amax(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_a_closed_eye_can_be_warped() -> None:
    motion = random_motion(1)
    motion[:, :, 2:] = torch.eye(2).flatten()
    motion[:, 0, 2:] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # no height
    eye = steadied(motion)[0, 0, 2:]
    torch.testing.assert_close(eye, torch.tensor([1.0, 0.0, 0.0, 1 - LID_SHARE]))
    torch.testing.assert_close(steadied(motion)[:, 2:], motion[:, 2:])
    torch.testing.assert_close(steadied(motion)[..., :2], motion[..., :2])


def test_a_zero_offset_returns_the_picture_at_any_size() -> None:
    image = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(warp(image, torch.zeros(1, 32, 32, 2)), image, atol=1e-5, rtol=0)


def test_an_undriven_frame_is_the_source_itself(model: CompactReenactor) -> None:
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        frame = model.render(model.prepare(image, motion := random_motion(1)), motion)
    torch.testing.assert_close(frame, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, float("nan")])
def test_motion_of_no_use_draws_something(model: CompactReenactor, value: float) -> None:
    image, motion = torch.rand(1, 3, 256, 256), random_motion(1)
    with torch.no_grad():
        frame = model.render(model.prepare(image, motion), torch.full_like(motion, value))
    assert frame.shape == image.shape


def test_rendering_in_batches_equals_frame_by_frame(model: CompactReenactor) -> None:
    motion = random_motion(3)
    with torch.no_grad():
        state = model.prepare(torch.rand(1, 3, 256, 256), random_motion(1, 5))
        whole = model.render(state, motion)
        single = torch.cat([model.render(state, m[None]) for m in motion])
    assert whole.shape == (3, 3, 256, 256)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-4)


def test_gaussians_peak_at_their_keypoints() -> None:
    grid = coordinate_grid(64, torch.zeros(1))
    heat = gaussians(grid[20, 30][None, None], 64)
    assert heat[0, 0, 20, 30] == 1
    assert heat.argmax() == 20 * 64 + 30


def test_keypoints_interface(model: CompactReenactor) -> None:
    marks = torch.from_numpy(canonical_face()).expand(2, -1, -1)
    motion = model.keypoints(torch.rand(2, 3, 256, 256), marks)
    assert motion.shape == (2, 10, 6)
    assert motion[..., :2].abs().max() < 1
    np.testing.assert_allclose(motion[0, :MESH_KEYPOINTS].detach(), mesh_motion(canonical_face()), atol=1e-5)


def test_a_picture_without_a_face_has_no_keypoints(model: CompactReenactor) -> None:
    with pytest.raises(InputError, match="no face"):
        model.keypoints(torch.full((1, 3, 256, 256), 0.5))


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


def test_optical_flow_finds_a_shift() -> None:
    rng = np.random.default_rng(0)
    source = np.kron(rng.integers(0, 255, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    driving = np.roll(source, 6, axis=1)  # a pixel of it comes from 6 further left
    flow, trust = optical_flow(driving, source)
    np.testing.assert_allclose(flow[16:48, 16:48].reshape(-1, 2).mean(0), [-12 / 256, 0], atol=0.004)
    assert trust[16:48, 16:48].mean() > 0.5 > optical_flow(driving, 255 - source)[1].mean()


def test_weight_map_marks_mouth_over_face_over_background() -> None:
    weight = weight_map(canonical_face() * 0.9)
    column, row = ((canonical_face()[13] * 0.9 + 1) * 32).astype(int)
    assert weight[row, column] == weight.max() == MOUTH_WEIGHT
    assert weight[0, 0] == weight.min() == 1


def test_file_round_trip(model: CompactReenactor, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model, "compact", model.config, {"steps": 3})
    loaded, about = load_model(tmp_path / "m.safetensors", kinds=("compact",))
    assert about["training"] == {"steps": 3}
    image, marks = torch.rand(1, 3, 256, 256), torch.from_numpy(canonical_face())[None]
    with torch.no_grad():
        found, wanted = (m.keypoints(image, marks) for m in (loaded, model))
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=0)
    with pytest.raises(InputError, match="where generator is needed"):
        load_model(tmp_path / "m.safetensors", kinds=("generator",))
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="no shipped model of that name"):
        load_model("nobody")


def test_folded_batch_norms_draw_the_same(model: CompactReenactor) -> None:
    image, motion = torch.rand(1, 3, 256, 256), random_motion(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    folded = copy.deepcopy(model).for_rendering()
    folded.precision = "float32"
    with torch.no_grad():
        wanted, drawn = (m.render(m.prepare(image, motion[:1]), motion) for m in (model, folded))
    torch.testing.assert_close(drawn, wanted, atol=1e-4, rtol=1e-3)


def test_drawing_in_bfloat16_changes_less_than_a_grey_level(model: CompactReenactor) -> None:
    image, motion = torch.rand(1, 3, 256, 256), random_motion(2)
    fast = copy.deepcopy(model)
    fast.precision = "bfloat16"  # whatever this processor has
    with torch.no_grad():
        wanted, drawn = (m.render(m.prepare(image, motion[:1]), motion) for m in (model, fast))
    assert drawn.dtype == torch.float32
    assert float((drawn - wanted).abs().mean()) < 1 / 255
    torch.testing.assert_close(drawn[0], image[0], atol=1e-4, rtol=0)  # undriven: exact in any precision


def test_geometry_is_exact_under_autocast(model: CompactReenactor) -> None:
    source, driving = random_motion(1, 1), random_motion(1, 2)
    wanted = DenseMotion.sparse_offsets(source, driving, MOTION_SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DenseMotion.sparse_offsets(source, driving, MOTION_SIZE), wanted)
        assert model.detector.body(torch.rand(1, 3, 256, 256)).dtype == torch.float32
