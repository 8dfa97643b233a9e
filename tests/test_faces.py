"""Faces: the crop against hand-worked boxes, paste-back, measures under rotation, detection on real portraits."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mssync.errors import InputError
from mssync.face.analyser import FaceMesh, _apart, _tiles, largest_face
from mssync.face.detector import Detection
from mssync.faces import (
    CROP_SCALE,
    MIN_CROP_SCALE,
    Box,
    Face,
    crop,
    crop_box,
    eye_opening,
    head_pose,
    mouth_opening,
    paste,
)
from mssync.pictures import read_image


def face(x0: float, y0: float, x1: float, y1: float) -> Face:
    rng = np.random.default_rng(0)
    points = rng.uniform([x0, y0, -5], [x1, y1, 5], (478, 3))
    points[0, :2], points[1, :2] = (x0, y0), (x1, y1)
    return Face(points.astype(np.float32))


def test_crop_of_a_still_is_as_wide_as_vox_faces() -> None:
    box = crop_box([face(400, 400, 500, 520)], 1000, 1000)
    assert box.side == pytest.approx(CROP_SCALE * 120)
    assert box.x0 + box.side / 2 == pytest.approx(450, abs=0.01)
    assert box.y0 + box.side / 2 == pytest.approx(460 - 0.04 * box.side, abs=0.01)


@given(st.floats(0, 180), st.floats(0, 180), st.floats(20, 200), st.integers(200, 500), st.integers(200, 500))
def test_crop_holds_the_face_and_stays_inside_when_it_can(
    x: float, y: float, h: float, width: int, height: int
) -> None:
    one = face(x, y, min(x + 0.8 * h, width), min(y + h, height))
    box = crop_box([one], width, height)
    x0, y0, x1, y1 = one.box
    assert box.x0 <= x0 + 1e-3
    assert box.y0 <= y0 + 1e-3
    assert box.x0 + box.side >= x1 - 1e-3
    assert box.y0 + box.side >= y1 - 1e-3
    if MIN_CROP_SCALE * max(x1 - x0, y1 - y0) <= min(width, height):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x0 + box.side <= width + 1e-3
        assert box.y0 + box.side <= height + 1e-3


def test_crop_of_a_clip_holds_every_position() -> None:
    faces = [face(100 + 5 * t, 100, 180 + 5 * t, 200) for t in range(20)]
    box = crop_box(faces, 640, 480)
    assert box.x0 < 100
    assert box.x0 + box.side > 275


def test_crop_at_full_size_is_the_picture_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop(image, Box(0, 0, 64), 64), image)
    np.testing.assert_array_equal(crop(image, Box(8, 16, 32), 32), image[16:48, 8:40])


def test_crop_outside_repeats_the_border() -> None:
    image = np.full((40, 40, 3), 7, np.uint8)
    assert (crop(image, Box(-20, -20, 80), 80) == 7).all()


def test_paste_of_the_own_crop_changes_next_to_nothing() -> None:
    x, y = np.meshgrid(np.arange(300), np.arange(200))
    image = np.stack([x * 0.8, y, (x + y) / 2], -1).astype(np.uint8)
    box = Box(60.3, 20.7, 128.0)
    back = paste(image, box, crop(image, box, 256))
    assert np.abs(back.astype(int) - image).max() <= 2
    outside = np.ones(image.shape[:2], bool)
    outside[20:150, 60:190] = False
    np.testing.assert_array_equal(back[outside], image[outside])


def test_paste_has_a_soft_edge() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    back = paste(image, Box(50, 50, 100), np.full((256, 256, 3), 200, np.uint8))
    row = back[100, 50:150, 0].astype(int)
    assert row[0] < 10
    assert row[50] == 200
    assert np.abs(np.diff(row)).max() < 60


def rotation(yaw: float, pitch: float) -> np.ndarray:
    """Turning to the picture's right by yaw and down by pitch (degrees), in x right, y down, z away."""
    a, b = np.radians([yaw, pitch])
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_x @ about_y


def flat_face() -> np.ndarray:
    points = np.zeros((478, 3))
    points[33], points[263] = (-30, 0, 0), (30, 0, 0)
    points[133], points[362] = (-10, 0, 0), (10, 0, 0)
    points[159], points[145], points[386], points[374] = (-20, -3, 0), (-20, 3, 0), (20, -3, 0), (20, 3, 0)
    points[10], points[2] = (0, -40, 0), (0, 25, 0)
    points[13], points[14] = (0, 40, 0), (0, 52, 0)
    return points


@pytest.mark.parametrize("yaw", [-30, 0, 25])
def test_yaw_is_measured_and_openings_do_not_depend_on_pose_or_scale(yaw: float) -> None:
    still = flat_face()
    turned = 2.5 * still @ rotation(yaw, 0).T + 40
    assert head_pose(turned)[0] == pytest.approx(yaw, abs=1e-6)
    assert mouth_opening(turned) == pytest.approx(12 / 60)
    assert eye_opening(turned) == pytest.approx(6 / 20)


@pytest.mark.parametrize("pitch", [-20, 15])
def test_pitch_grows_downwards(pitch: float) -> None:
    assert head_pose(flat_face() @ rotation(0, pitch).T)[1] == pytest.approx(pitch, abs=1e-6)


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


def test_finds_the_face_at_any_size(mesh: FaceMesh, astronaut: np.ndarray) -> None:
    (near,) = mesh(astronaut)
    large = np.zeros((2000, 2600, 3), np.uint8)
    large[900:1412, 1800:2312] = astronaut
    (far,) = mesh(large)
    np.testing.assert_allclose(far.landmarks[:, :2] - [1800, 900], near.landmarks[:, :2], atol=8)


@pytest.mark.parametrize(("height", "width", "side"), [(700, 1000, 500), (2000, 2600, 650), (300, 4000, 1000)])
def test_tiles_hold_any_face_of_half_their_side(height: int, width: int, side: int) -> None:
    tiles = list(_tiles(np.empty((height, width, 3), np.uint8), side))
    rng = np.random.default_rng(0)
    half = min(side // 2, height)
    for x, y in rng.integers(0, [width - half + 1, height - half + 1], (200, 2)):
        assert any(x0 <= x and x + half <= x0 + side and y0 <= y and y + half <= y0 + side for x0, y0 in tiles)


@pytest.mark.parametrize("name", ["brick", "coffee", "rocket"])
def test_tiles_take_no_texture_for_a_face(mesh: FaceMesh, name: str) -> None:
    picture = getattr(pytest.importorskip("skimage.data"), name)()
    colour = np.dstack([picture] * 3) if picture.ndim == 2 else picture
    assert mesh(np.tile(colour, (2, 2, 1))) == []


def test_threads_may_overlap_and_stderr_stays_what_it_is(astronaut: np.ndarray, capfd: pytest.CaptureFixture) -> None:
    mesh, (expected,) = FaceMesh(), FaceMesh()(astronaut)
    with ThreadPoolExecutor(4) as threads:
        stills = [threads.submit(mesh, astronaut) for _ in range(4)]
        videos = [threads.submit(lambda: list(mesh.track([astronaut] * 5))) for _ in range(3)]
        os.write(2, b"in between\n")
    os.write(2, b"afterwards\n")
    told = capfd.readouterr().err
    assert "in between\n" in told
    assert "afterwards\n" in told
    for still in stills:
        np.testing.assert_allclose(still.result()[0].landmarks, expected.landmarks, atol=1e-3)
    for video in videos:
        assert all(face is not None for face in video.result())


def test_largest_of_two_faces_with_a_warning(mesh: FaceMesh, astronaut: np.ndarray) -> None:
    head = astronaut[:320, 60:380]
    both = np.zeros((320, 576, 3), np.uint8)
    both[:, :320] = head
    both[:256, 320:] = crop(head, Box(0, 0, 320), 256)
    with pytest.warns(UserWarning, match="2 faces found"):
        found = largest_face(mesh, both, "both.png")
    assert found.box[2] < 320


def test_a_fold_of_a_shirt_is_no_face(mesh: FaceMesh, data_dir: Path) -> None:
    """One of the portraits has, beside its face, a larger "face" in her pullover, of which the detector is not sure."""
    (found,) = mesh(read_image(data_dir / "portraits" / "frontal_14.jpg"))
    assert found.box[3] < 300


def test_others_count_when_they_are_sure() -> None:
    near, far, same = (Detection(x, x, side, 0.0, 0.9) for x, side in ((50, 50), (340, 40), (55, 45)))
    surer, unsure = replace(near, probability=0.95), replace(far, probability=0.6)
    assert _apart([far, surer, same]) == [surer, far]
    assert _apart([unsure, near]) == [near]
    assert _apart([replace(near, probability=0.55), unsure]) == [unsure]
    assert _apart([]) == []


def test_no_face_is_one_clear_line(mesh: FaceMesh) -> None:
    with pytest.raises(InputError, match=r"wall\.png: no face found") as caught:
        largest_face(mesh, np.full((300, 300, 3), 128, np.uint8), "wall.png")
    assert "\n" not in str(caught.value)
