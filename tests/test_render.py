"""The layered renderer: its geometry against slow formulas, its layers, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mssync.faces import Box, mirrored_landmarks
from mssync.metrics.frontal import mean_face
from mssync.pixels import filled
from mssync.render import residual
from mssync.render.carry import carried
from mssync.render.field import RIGID, Hiding, seen, thin_plate, view, view_solver
from mssync.render.matte import MatteNet, closed, without_gaps, without_holes
from mssync.render.organs import (
    EYE,
    FACE,
    MOUTH,
    between,
    face_window,
    framed,
    grid,
    inside,
    mirror_mesh,
    opened,
    placed,
    source_frame,
)
from mssync.render.painter import Painter, Prompt
from mssync.render.plate import completed, fill, parted
from mssync.render.renderer import LayeredRenderer, Scene
from mssync.render.scene import Part, View, _cut


def face(size: int = 256) -> torch.Tensor:
    """A mean face (478, 3) in pixels of a picture."""
    return torch.from_numpy(mean_face() * size / 4 + np.array([size / 2, size * 0.42, 0], np.float32)).float()


def turned(points: torch.Tensor, yaw: float) -> torch.Tensor:
    angle, centre = torch.tensor(np.radians(yaw)), points[:, :3].mean(0)
    rotation = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    return (points - centre) @ rotation.T.float() + centre


def test_a_spline_is_bookstein_s():
    rng = np.random.default_rng(0)
    at, values, where = rng.normal(size=(9, 2)), rng.normal(size=(9, 2)), rng.normal(size=(5, 2))

    def bending(a, b):
        r = np.linalg.norm(a - b)
        return 0.0 if r == 0 else r**2 * np.log(r**2)

    system = np.zeros((12, 12))
    for i in range(9):
        for j in range(9):
            system[i, j] = bending(at[i], at[j]) + (0.01 if i == j else 0)
        system[i, 9:], system[9:, i] = [1, *at[i]], [1, *at[i]]
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2))]))
    slow = [sum(weights[i] * bending(p, at[i]) for i in range(9)) + weights[9] + p @ weights[10:] for p in where]
    fast = thin_plate(*(torch.from_numpy(x).float()[None] for x in (at, values)), torch.from_numpy(where).float(), 0.01)
    assert np.allclose(fast[0].numpy(), slow, atol=1e-4)


def test_a_spline_keeps_what_is_affine_and_ignores_what_does_not_count():
    torch.manual_seed(0)
    at, linear = torch.randn(1, 30, 2), torch.randn(2, 2)
    stiffness = torch.full((30,), 1e-6)
    stiffness[0] = 1e6
    values = at @ linear + 0.5
    values[0, 0] = 99
    where = torch.randn(2000, 2)
    assert torch.allclose(thin_plate(at, values, where, stiffness)[0], where @ linear + 0.5, atol=2e-3)


def test_a_view_finds_how_a_head_turned():
    source = face()
    moved = turned(source, 12)
    head = view(view_solver(source[None]), moved[None, :, :2])
    assert torch.allclose(seen(source[None], head)[0], moved[:, :2], atol=1e-2)


def test_what_a_turn_hides():
    """Of a half sphere: nothing at rest; turned to the side, the points of one side, not the other's."""
    torch.manual_seed(0)
    points = torch.randn(300, 3)
    points = points / points.norm(dim=1, keepdim=True)
    points = points[points[:, 2] < -0.2]
    hiding, rest = Hiding(points, 0.5), torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]])
    angle = torch.tensor(0.9)
    side = torch.tensor([[angle.cos(), 0], [0, 1], [angle.sin(), 0], [0, 0]])
    still, hidden = hiding(rest[None])[0], hiding(side[None])[0]
    normal = points @ torch.tensor([angle.sin(), 0, -angle.cos()])  # towards the camera
    assert still.max() == 0
    assert hidden[normal < -0.1].mean() > 0.8
    assert hidden[normal > 0.5].mean() < 0.1


def test_windows_are_fixed_to_the_skull():
    source = face()
    for organ in (MOUTH, EYE):
        frame = source_frame(organ, source[None])
        for yaw in (0, 10):
            moved = turned(source, yaw)
            window = framed(frame, view(view_solver(source[None]), moved[None, :, :2]))
            uv = inside(window, moved[None, :, :2])
            at_rest = inside(frame[..., :2], source[None, :, :2])
            near = organ.depth_points
            assert (uv - at_rest)[0, list(near)].abs().max() < 0.05
            assert torch.allclose(placed(window, uv)[0], moved[:, :2], atol=1e-3)


def test_what_is_open_is_the_polygon():
    points = face()[None, :, :2]
    uv = inside(source_frame(MOUTH, face()[None])[..., :2], points)
    uv[0, 14:15, 1] += 0.2  # the mouth opens
    gap = opened(MOUTH, uv)[0, 0].numpy()
    height, width = MOUTH.size
    outline = [*MOUTH.upper, *MOUTH.lower[::-1]]
    corners = (uv[0, outline].numpy() + np.array([1, height / width])) * width / 2 * 16
    mask = filled(corners.astype(int), width * 16, height * 16)
    area = mask.reshape(height, 16, width, 16).mean((1, 3))
    assert abs(gap.sum() - area.sum()) < 0.15 * area.sum()
    assert np.abs(gap - area).mean() < 0.01


def test_edges_between():
    at = grid((48, 64))
    edge = torch.tensor([[[-0.5, -0.2], [0.0, -0.4], [0.5, -0.2]]])
    inside_it = between(edge, -edge * torch.tensor([-1.0, 1.0]), at, 0.05)[0]
    assert inside_it[24, 32] > 0.99
    assert inside_it[2, 32] < 0.01
    assert inside_it[24, 2] < 0.01


def test_person_over_plate_is_the_picture():
    torch.manual_seed(0)
    picture, matte = torch.rand(1, 3, 64, 80), torch.zeros(1, 1, 64, 80)
    matte[..., 20:50, 30:60] = 1
    matte[..., 15:20, 30:60] = 0.4
    own, plate = parted(picture, matte)
    assert torch.allclose(own[:, :3] + (1 - own[:, 3:]) * plate, picture, atol=1e-5)
    assert (own[:, :3] <= own[:, 3:] + 0.061).all()
    assert (own >= -0.061).all()
    assert own[..., :5, :5].abs().max() == 0  # far away all is plate


def test_a_person_leaves_no_trace_on_the_plate():
    """Someone who hardly differs from the wall, by as little as noise does, before a wall with noise."""
    generator = torch.Generator().manual_seed(0)
    picture = 0.9 + 0.02 * torch.rand(1, 3, 96, 96, generator=generator)
    matte = torch.zeros(1, 1, 96, 96)
    matte[..., 30:70, 30:70] = 1
    picture = torch.where(matte > 0, picture + 0.04, picture)
    own, plate = parted(picture, matte)
    assert torch.allclose(own[:, :3] + (1 - own[:, 3:]) * plate, picture, atol=1e-5)
    assert plate[..., 35:65, 35:65].max() < 0.93  # the wall goes on, without them
    assert own[:, 3, 25:75, :25].max() < 0.05  # and its noise hides nothing
    assert torch.allclose(own[:, :3, 35:65, 35:65], picture[..., 35:65, 35:65])


def test_filling_goes_on_with_what_is_around():
    picture = torch.linspace(0, 1, 64)[None, None, None].expand(1, 3, 64, 64)
    known = torch.ones(1, 1, 64, 64)
    known[..., 20:44, 20:44] = 0
    filled = fill(torch.where(known > 0, picture, torch.zeros(())), known)
    assert torch.equal(filled * known, picture * known)
    assert (filled - picture).abs().max() < 0.15


def test_a_plate_has_the_structure_of_what_is_around():
    """A horizon and a fence go on behind the person; what is known stays."""
    picture = torch.zeros(1, 3, 120, 160)
    picture[..., :50, :] = torch.tensor([0.4, 0.6, 0.9])[:, None, None]
    picture[..., 50:, :] = torch.tensor([0.2, 0.5, 0.2])[:, None, None]
    known = torch.ones(1, 1, 120, 160)
    known[..., 20:, 55:105] = 0
    done, plain = completed(picture * known, known), fill(picture * known, known)
    assert torch.allclose(done * known, picture * known, atol=1e-6)
    hidden = 1 - known
    errors = [float(((x - picture).abs() * hidden).sum() / hidden.sum() / 3) for x in (done, plain)]
    assert errors[0] < 0.4 * errors[1]
    nothing = torch.zeros_like(known)
    nothing[..., 0, 0] = 1
    assert completed(picture, nothing).isfinite().all()  # too little is known for patches


def test_carried_motion():
    rng = np.random.default_rng(0)
    driving = rng.normal(size=(4, 478, 2)).astype(np.float32)
    assert np.allclose(carried(driving[1], driving, 1), driving, atol=1e-5)
    turn = np.array([[0, 0.5], [-0.5, 0]], np.float32)  # half as large, a quarter of a turn
    assert np.allclose(carried(driving[1] @ turn, driving, 1), driving @ turn, atol=1e-4)


@pytest.fixture(scope="module")
def renderer() -> LayeredRenderer:
    torch.manual_seed(0)
    made = LayeredRenderer((16, 16, 16, 16), (16, 16, 16, 16), (8, 8, 8, 8, 8), (8, 8, 8)).eval()
    for painter in (made.mouth, made.eye):
        painter.head[0].weight.data.normal_(0, 0.05)
    return made


def window_of(picture: torch.Tensor, mesh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = (picture[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    window, points, _ = face_window(pixels, mesh.numpy())
    return torch.from_numpy(window).permute(2, 0, 1)[None] / 255, torch.from_numpy(points)


def scene_of(size: int = 200) -> Scene:
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(1, 3, size // 8, size // 8, generator=generator)
    picture = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic").clamp(0, 1)
    mesh = face(size)
    away = torch.linspace(-1, 1, size)
    matte = torch.sigmoid(20 * (0.6 - (away[None].square() + (away[:, None] + 0.1).square()).sqrt()))[None, None]
    return Scene(picture, matte, mesh, (0.0, 0.0, float(size)), *window_of(picture, mesh))


def drawn_by(renderer: LayeredRenderer, scene: Scene, meshes: torch.Tensor, size: int | None) -> torch.Tensor:
    """(B, 3, h, w) in [0, 1]"""
    return renderer.draw_mesh(scene, meshes, size).permute(0, 3, 1, 2) / 255


@torch.inference_mode()
def test_a_face_that_does_not_move_is_the_picture(renderer):
    """But for what is painted anew: mouth and eyes."""
    scene = scene_of()
    for size in (None, 200, 120):
        at = scene.view(size)
        drawn = drawn_by(renderer, scene, scene.mesh[None, :, :2], size)[0]
        real = _cut(scene.picture, (0.0, 0.0), (size or 200) / 200, at.height, at.width, 0, "border")[0].clamp(0, 1)
        near = torch.zeros(at.height, at.width, dtype=torch.bool)
        for organ in at.organs:
            window = organ.turned_window(organ.window(organ.turned(at.mesh[..., :2])))[0]
            rows, columns = organ.reach(window, slice(0, at.height), slice(0, at.width))
            near[rows, columns] = True
        error = (drawn - real).abs().amax(0)[~near]
        assert error.max() < 0.05
        assert error.mean() < 0.005


@torch.inference_mode()
def test_batches_and_order_do_not_matter(renderer):
    scene = scene_of()
    meshes = torch.stack([turned(face(200), yaw)[:, :2] for yaw in (0, 8, -5)])
    together = drawn_by(renderer, scene, meshes, 128)
    for k in (2, 0, 1):
        assert torch.allclose(drawn_by(renderer, scene, meshes[k : k + 1], 128)[0], together[k], atol=4.1e-3)


@torch.inference_mode()
def test_left_and_right_are_treated_alike(renderer):
    """The mirrored portrait under the mirrored mesh is the mirrored frame, but for the mouth, whose network differs.

    All is person here: the plate is filled in cells that have no mirror.
    """
    scene, size = scene_of(), 200
    scene.matte = torch.ones_like(scene.matte)
    mesh = scene.mesh.clone()
    mesh[..., :2] = turned(face(size), 10)[:, :2]
    drawn = drawn_by(renderer, scene, mesh[None, :, :2], None)[0]
    flipped = Scene(
        scene.picture.flip(3), scene.matte.flip(3), mirror_mesh(scene.mesh, size - 1.0), scene.box,
        *window_of(scene.picture.flip(3), mirror_mesh(scene.mesh, size - 1.0)),
    )  # fmt: skip
    mirrored = drawn_by(renderer, flipped, mirror_mesh(mesh, size - 1.0)[None, :, :2], None)[0].flip(2)
    rows = slice(0, int(mesh[2, 1]))  # above the mouth
    assert (drawn - mirrored)[:, rows].abs().mean() < 2e-3


@torch.inference_mode()
def test_what_the_residual_sees_is_mirrored_with_the_picture():
    scene, size = scene_of(), 200
    flipped = Scene(
        scene.picture.flip(3), scene.matte.flip(3), mirror_mesh(scene.mesh, size - 1.0), scene.box,
        *window_of(scene.picture.flip(3), mirror_mesh(scene.mesh, size - 1.0)),
    )  # fmt: skip
    mesh = turned(face(size), 10)
    given = []
    for one, points in ((scene, mesh), (flipped, mirror_mesh(mesh, size - 1.0))):
        at = one.view(128)
        points = at.placed(points[None, :, :2])
        head = view(at.solver, points)
        given.append(at.look.given(at.field(points, head, None), head))
    assert given[0].shape[1] == residual.INPUTS
    mirrored = given[1].flip(3) * torch.tensor(residual.MIRRORED)[:, None, None]
    for one, other in zip(given[0][0], mirrored[0], strict=True):
        assert (one - other).abs().mean() < 0.02 + 0.02 * one.abs().mean()


@torch.inference_mode()
def test_the_residual_is_the_same_in_the_whole_picture(renderer):
    """The network sees the box in either; what it tells fades out at the box's edge."""
    scene = scene_of(256)
    scene.box = (32.0, 24.0, 192.0)
    mesh = turned(face(256), 10)[None, :, :2]
    changes = []
    for size in (192, None):
        at = scene.view(size)
        points = at.placed(mesh)
        head = view(at.solver, points)
        changes.append(at.look.given(at.field(points, head, None), head))
    assert (changes[0] - changes[1]).abs().mean() < 0.01
    at = scene.view(None)
    carried_over = at.look.carried(torch.ones(1, 5, 64, 64))
    assert carried_over[0, 4].max() > 0.99
    assert carried_over[0, 4, 0].abs().max() == 0
    assert carried_over[0, 0].max() == pytest.approx(192 / 64, rel=1e-3)


def everything(at: View) -> Part:
    whole = (slice(0, at.height), slice(0, at.width))
    return Part(*whole, [whole])


@torch.inference_mode()
def test_what_is_not_drawn_does_not_change(renderer, monkeypatch):
    scene = scene_of()
    scene.matte = scene.matte * (torch.arange(200) > 60)  # a person in a part of the picture
    mesh = turned(face(200), 10)[None, :, :2] + torch.tensor([6.0, 3.0])
    at = scene.view(200)
    drawn = drawn_by(renderer, scene, mesh, 200)
    head = view(at.solver, mesh)
    assert at.changed(at.field(mesh, head, None)).columns.start > 0
    monkeypatch.setattr(View, "changed", lambda at, _: everything(at))
    assert (drawn - drawn_by(renderer, scene, mesh, 200)).abs().max() < 0.005


@torch.inference_mode()
def test_what_the_picture_cuts_off_is_held():
    """Hair at the left edge stays there; without hair at the edge nothing is held."""
    scene, mesh = scene_of(), face(200)[None, :, :2] + torch.tensor([12.0, 0.0])
    free = scene.view(200)
    assert free.free.min() == 1
    scene = scene_of()
    scene.matte[..., 40:160, :90] = 1
    held = scene.view(200)
    moved = []
    for at in (free, held):
        field = at.field(mesh, view(at.solver, mesh), None)
        moved.append(-field[0, 0, 30])  # to the right, in a row through the face
    assert moved[0][0] > 3
    assert moved[1][0].abs() < 1.5
    assert moved[1][32] == pytest.approx(12, abs=1)  # the face itself


@torch.inference_mode()
def test_sizes_agree(renderer):
    scene = scene_of()
    mesh = turned(face(200), 10)[None, :, :2]
    large, small = (drawn_by(renderer, scene, mesh, size) for size in (256, 128))
    reduced = torch.nn.functional.interpolate(large, size=(128, 128), mode="area")
    assert (reduced - small).abs().mean() < 0.02


def test_a_new_painter_leaves_the_warp_as_it_is():
    painter = Painter("mouth", (16, 16, 16, 16)).eval()
    channels, gap = torch.rand(2, 16, *MOUTH.size), torch.zeros(2, 1, *MOUTH.size)
    warped = channels[:, :3]
    painted = painter(Prompt(channels, warped, gap, gap, torch.zeros(2, *MOUTH.size, 2)))
    assert torch.allclose(painted, warped)


@torch.inference_mode()
def test_the_matte_has_the_picture_s_size():
    net = MatteNet((8, 8, 8, 8, 8)).eval()
    picture = torch.rand(1, 3, 90, 140)
    alpha = net.alpha(picture, face(90), (25.0, 0.0, 90.0))
    assert alpha.shape == (1, 1, 90, 140)
    assert 0 <= alpha.min() <= alpha.max() <= 1


@torch.inference_mode()
def test_who_reaches_out_of_the_box_is_seen_from_afar():
    """Alpha is 1 wherever this network looks: far beyond the box nothing is the person, but below it."""

    class Everything(MatteNet):
        def forward(self, picture, face):
            return torch.ones_like(face)

    net = Everything((8, 8, 8, 8, 8)).eval()
    alpha = net.alpha(torch.rand(1, 3, 300, 500), face(100) + torch.tensor([200.0, 50.0, 0.0]), (200.0, 50.0, 100.0))
    assert alpha[0, 0, 100, 250] == pytest.approx(1)
    assert alpha[0, 0, 100, 150] == pytest.approx(1)  # in the square that is seen from afar
    assert alpha[0, 0, 100, [50, 450]].max() == 0
    assert alpha[0, 0, 299, 250] == pytest.approx(1)


def test_holes_below_the_chin_are_filled_and_ways_around_are_not():
    alpha = torch.zeros(1, 1, 96, 96)
    alpha[..., 10:, 20:76] = 1  # a person that reaches the lower edge
    alpha[..., 20:30, 40:50] = 0  # a gap in the hair
    alpha[..., 60:, 40:52] = 0  # a hole in the clothes, down to the edge
    alpha[..., 60:70, 70:] = 0  # a gap beside an arm
    filled = without_holes(alpha, 50.0)
    assert float(filled[..., 64:92, 43:49].min()) > 0.95
    torch.testing.assert_close(filled[..., :56, :], alpha[..., :56, :])
    assert float(filled[..., 61:69, 72:].max()) == 0
    assert float((filled - alpha).min()) >= 0


def test_what_is_below_a_square_has_no_gaps():
    row = torch.tensor([[0.0, 0.2, 1.0, 0.1, 0.6, 0.9, 0.3, 0.0]])
    torch.testing.assert_close(without_gaps(row), torch.tensor([[0.0, 0.2, 1.0, 0.9, 0.9, 0.9, 0.3, 0.0]]))


def test_gaps_of_a_matte_are_closed():
    alpha = torch.zeros(1, 1, 40, 40)
    alpha[..., 5:35, 5:35] = 1
    alpha[..., 15:19, 15:19] = 0
    filled = closed(alpha, 3)
    assert filled[..., 5:35, 5:35].min() == 1
    assert filled.sum() == 900


def test_a_face_window_is_upright_and_of_one_size():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (300, 400, 3)).astype(np.uint8)
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32)
    points = mean_face() * 80 @ turn.T + np.array([200, 120, 0], np.float32)
    window, found, pixel = face_window(image, points.astype(np.float32))
    assert window.shape == (*FACE.size, 3)
    assert np.linalg.norm(found[263, :2] - found[33, :2]) == pytest.approx(120, rel=0.02)
    assert found[33, 1] == pytest.approx(found[263, 1], abs=0.5)
    assert pixel == pytest.approx(80 / 120, rel=0.01)


def test_mirrored_meshes_are_those_of_faces():
    mesh = face()[None] / 128 - 1
    assert np.allclose(mirror_mesh(mesh).numpy(), mirrored_landmarks(mesh.numpy()))
    assert len(set(RIGID)) == len(RIGID)
    assert Box(0, 0, 1).side == 1
