"""Detector and mesh network: views, what they are trained on, and what is made of what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_render_training import write_clip

from mssync.config import MeshTraining, load_config
from mssync.data.views import SIZE as SQUARE
from mssync.data.views import Squares
from mssync.errors import InputError
from mssync.face.analyser import FaceNets, Follower
from mssync.face.detector import CELL, SIZE, FinderNet, decoded
from mssync.face.geometry import ROOM, Views, cut, views_of
from mssync.face.mesh import MeshNet, places
from mssync.faces import LEFT_LIDS, LIPS, RIGHT_LIDS, Box, head_pose, mirror_points
from mssync.metrics.frontal import mean_face
from mssync.training.finder import Composer, asked, finding_loss, train_finder
from mssync.training.perception import Batches, disturbed, eye_distances, frame_weights, train_mesh, warped
from mssync.weights import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("frames")
    for k, split in enumerate(("train", "train", "val", "val")):
        write_clip(made, f"person{k}", split, 5, k)
    return made


# ---- views


@settings(deadline=None)
@given(roll=st.floats(-3, 3), scale=st.floats(5, 300), x=st.floats(-50, 500), y=st.floats(-50, 500))
def test_views_stand_upright_around_a_mesh(roll, scale, x, y):
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    mesh = torch.from_numpy((mean_face() @ turn.T * scale + [x, y, 0]).astype(np.float32))[None]
    views = views_of(mesh)
    inside = views.from_picture(mesh)
    torch.testing.assert_close(views.to_picture(inside), mesh, atol=2e-3, rtol=1e-4)
    assert float(inside[..., :2].abs().max()) == pytest.approx(1 / ROOM, abs=0.01)
    assert float((views.roll - roll + np.pi) % (2 * np.pi) - np.pi) == pytest.approx(0, abs=1e-3)
    left, right = inside[0, 33], inside[0, 263]
    assert float(right[1] - left[1]) == pytest.approx(0, abs=1e-3)
    assert right[0] > left[0]


def test_a_view_shows_what_is_there():
    picture = torch.zeros(1, 3, 60, 80)
    picture[..., 30, 50] = 1  # a pixel
    for roll in (0.0, 0.7):
        view = Views(torch.tensor([[48.0, 28.0]]), torch.tensor([20.0]), torch.tensor([roll]))
        seen = cut(picture, view, 40)[0, 0]
        y, x = divmod(int(seen.argmax()), 40)
        at = view.from_picture(torch.tensor([[[50.0, 30.0]]]))[0, 0]
        np.testing.assert_allclose([(x + 0.5) / 20 - 1, (y + 0.5) / 20 - 1], at, atol=0.05)


def test_large_pictures_are_shrunk_first():
    stripes = (torch.arange(600) % 2).float().expand(1, 3, 600, 600)
    view = Views(torch.tensor([[300.0, 300.0]]), torch.tensor([580.0]), torch.zeros(1))
    assert float((cut(stripes, view, 64) - 0.5).abs().max()) < 0.1


# ---- what networks learn from


def test_squares_hold_faces_in_the_middle(folder):
    squares = Squares(folder, "train")
    assert squares.images.shape == (10, SQUARE, SQUARE, 3)
    low, high = squares.meshes[..., :2].amin(1), squares.meshes[..., :2].amax(1)
    torch.testing.assert_close((low + high) / 2, torch.full((10, 2), (SQUARE - 1) / 2), atol=0.01, rtol=0)
    np.testing.assert_allclose((high - low).amax(1), SQUARE / 2.4, rtol=1e-3)
    again = Squares(folder, "train")
    np.testing.assert_array_equal(again.images, squares.images)


def test_a_batch_is_the_same_each_time_and_shows_some_strangers(folder):
    batches = Batches(Squares(folder, "train"), MeshTraining(batch=32, steps=10))
    one, two, other = batches(3), batches(3), batches(4)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
    views, meshes, faces = one
    assert views.shape == (32, 3, 192, 192)
    assert float(views.abs().max()) <= 1
    assert 0.5 < float(faces.float().mean()) < 1
    assert float(meshes[faces][..., :2].abs().median()) < 1
    away = meshes[~faces][..., :2].mean(1).abs().amax(1)  # beside the view, or half out of it
    assert float(away.min()) > 0.7


def test_turned_heads_are_drawn_more_often_and_nobody_for_many_frames_alone():
    angles = np.radians([0, 0, 0, 0, 20, 40])
    turns = np.array([[[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]] for a in angles])
    meshes = torch.from_numpy((mean_face() @ turns.transpose(0, 2, 1)).astype(np.float32))
    np.testing.assert_allclose(np.abs(head_pose(meshes.numpy())[:, 0]), np.degrees(angles), atol=1)
    squares = SimpleNamespace(meshes=meshes, identities=np.array(["a", "b", "b", "b", "c", "d"]))
    weights = frame_weights(squares)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights / weights[0], [1, 3**-0.5, 3**-0.5, 3**-0.5, 2, 5], rtol=0.1)


def test_points_of_warped_views_stay_on_what_they_marked(monkeypatch):
    monkeypatch.setattr("mssync.training.perception.WARPED", 1.0)
    at = torch.tensor([(x, y) for x in (30, 60, 96, 130, 160) for y in (40, 90, 150)])
    axis = torch.arange(192) - 0.0
    spots = torch.exp(-((axis[None] - at[:, :1]) ** 2)[:, None] / 8 - ((axis[None] - at[:, 1:]) ** 2)[:, :, None] / 8)
    views = spots[:, None].expand(-1, 3, -1, -1)  # one spot a view
    meshes = torch.cat([(at + 0.5) / 96 - 1, torch.ones(len(at), 1)], 1)[:, None]
    seen, moved = warped(views, meshes, np.random.default_rng(0))
    mass = seen[:, 0] / seen[:, 0].sum((1, 2), keepdim=True)
    places = torch.stack([(mass.sum(1) * axis).sum(1), (mass.sum(2) * axis).sum(1)], 1)
    torch.testing.assert_close((moved[:, 0, :2] + 1) * 96 - 0.5, places, atol=0.4, rtol=0)
    assert float((moved - meshes)[..., :2].norm(dim=-1).mean()) > 0.02
    torch.testing.assert_close(moved[..., 2], meshes[..., 2])


def test_disturbed_views_stay_pictures():
    views = torch.rand(40, 3, 96, 96)
    seen = disturbed(views.clone(), np.random.default_rng(0))
    assert 0 <= float(seen.min()) < float(seen.max()) <= 1
    assert not torch.allclose(seen, views, atol=0.05)


def test_composed_pictures_show_their_faces_where_they_say(folder):
    composer = Composer(Squares(folder, "train"), None, 0)
    counts = [len(composer(n)[1]) for n in range(60)]
    assert 0 in counts
    assert 1 in counts
    assert max(counts) > 1
    picture, faces = composer(2)
    again, same = composer(2)
    assert torch.equal(picture, again)
    assert faces == same
    for n in range(20):
        for x, y, side, _ in composer(n)[1]:
            assert 0 < x < SIZE
            assert 0 < y < SIZE
            assert 8.9 < side < 231


# ---- the detector


def test_what_is_asked_is_decoded_as_it_was():
    faces = [(60.0, 70.0, 80.0, 0.3), (200.0, 30.0, 12.0, -0.9), (190.0, 200.0, 40.0, 1.0)]
    wanted, counts = asked(faces)
    assert counts.sum() >= 3
    maps = wanted.clone()
    maps[0] = torch.logit(wanted[0].clamp(1e-4, 1 - 1e-4))
    found = decoded(maps[None], 0.9)[0]
    assert len(found) == 3
    for x, y, side, roll in faces:
        near = min(found, key=lambda f: abs(f.x + 0.5 - x) + abs(f.y + 0.5 - y))
        assert (near.x + 0.5, near.y + 0.5) == pytest.approx((x, y), abs=0.01)
        assert (near.side, near.roll) == pytest.approx((side, roll), abs=0.01)


def test_the_loss_is_least_where_the_right_is_said():
    wanted, counts = (x[None] for x in asked([(60.0, 70.0, 80.0, 0.3)]))
    right = wanted.clone()
    right[:, 0] = torch.where(wanted[:, 0] > 0.99, 9.0, -9.0)
    wrong = right.clone()
    wrong[:, 0] = -9.0
    elsewhere = right.clone()
    elsewhere[:, 1:] += 0.5
    best = finding_loss(right, wanted, counts)
    assert float(best["peaks"]) < 0.01
    assert float(best["numbers"]) == 0
    assert finding_loss(wrong, wanted, counts)["peaks"] > 5
    assert finding_loss(elsewhere, wanted, counts)["numbers"] > 1


def test_networks_have_the_shapes_they_say():
    assert FinderNet()(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 6, SIZE // CELL, SIZE // CELL)
    meshes, score = MeshNet()(torch.zeros(2, 3, 192, 192))
    assert meshes.shape == (2, 478, 3)
    assert score.shape == (2,)


def test_places_are_centres_of_mass():
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    found = places(maps)
    for k in range(2):
        for n in range(3):
            mass = maps[k, n].exp() / maps[k, n].exp().sum()
            x = sum(float(mass[i, j]) * (2 * (j + 0.5) / 6 - 1) for i in range(4) for j in range(6))
            y = sum(float(mass[i, j]) * (2 * (i + 0.5) / 4 - 1) for i in range(4) for j in range(6))
            assert (float(found[k, n]), float(found[k, 3 + n])) == pytest.approx((x, y), abs=1e-5)


def test_closer_looks_move_eyes_and_lips_alone():
    torch.manual_seed(0)
    network, views = MeshNet().eval(), torch.rand(2, 3, 192, 192) * 2 - 1
    meshes = torch.from_numpy(mean_face())[None].repeat(2, 1, 1) * 0.7
    closer = network.closely(views, meshes)
    moved = (closer != meshes).any(2).any(0)
    assert set(moved.nonzero()[:, 0].tolist()) == {*LIPS, *LEFT_LIDS, *RIGHT_LIDS, *range(468, 478)}
    torch.testing.assert_close(closer[..., 2], meshes[..., 2])
    mirror, turn = torch.from_numpy(mirror_points()), torch.tensor([-1.0, 1, 1])
    back = network.closely(views.flip(3), meshes[:, mirror] * turn)[:, mirror] * turn
    eyes = [*LEFT_LIDS, *RIGHT_LIDS, *range(468, 478)]
    torch.testing.assert_close(back[:, eyes], closer[:, eyes], atol=1e-4, rtol=0)  # one network sees both
    aside = network.closely(views.roll(8, 3), meshes + torch.tensor([8 / 96, 0, 0]))
    torch.testing.assert_close(aside, closer + torch.tensor([8 / 96, 0, 0]), atol=1e-4, rtol=0)


def test_no_network_sees_a_face_in_nothing():
    nets = FaceNets().eval()
    image = np.zeros((90, 160, 3), np.uint8)
    assert nets.faces(image, nets.detections(image)) == []
    follower = Follower(nets)
    follower.start(Box(20, 20, 60))
    assert follower(image) is None


# ---- training


@pytest.mark.slow
def test_both_train_and_are_put_together(folder, tmp_path, monkeypatch):
    config = load_config("compact", ["mesh_training.steps=3", "mesh_training.batch=4", "finder_training.steps=3",
                                     "finder_training.batch=4"])  # fmt: skip
    for train, kind, data in ((train_mesh, "mesh", folder), (train_finder, "finder", [folder, folder])):
        file = train(config, data, tmp_path / kind)
        network, about = load_model(file, kinds=(kind,))
        assert about["training"]["steps"] == 3
        assert sum(p.numel() for p in network.parameters()) < 1.2e6
    script = Path(__file__).parents[1] / "scripts" / "assemble_faces.py"
    out = tmp_path / "faces.safetensors"
    made = [tmp_path / kind / f"{kind}.safetensors" for kind in ("finder", "mesh")]
    put_together = runpy.run_path(str(script))["main"]
    with pytest.raises(InputError, match="train it longer"):
        put_together(*made, out, folder, pictures=4)
    monkeypatch.setattr("mssync.training.finder.DOUBTFUL", 0.0)  # after three steps it is sure of nothing
    put_together(*made, out, folder, pictures=4)
    nets, about = load_model(out, kinds=("faces",))
    assert about["training"] == {"finder": 3, "mesh": 3}
    found = load_model(made[1])[0].state_dict()
    same = [torch.equal(value, found[name]) for name, value in nets.mesh.state_dict().items() if "score" not in name]
    assert all(same)


def test_eye_distances_are_those_of_the_outer_corners():
    mesh = torch.from_numpy(mean_face())[None]
    assert float(eye_distances(mesh)) == pytest.approx(1, abs=0.01)
