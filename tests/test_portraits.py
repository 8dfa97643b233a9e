"""Portraits: turned upright by the face found, and what is said of those that make bad videos, before any is made."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from fakes import FakeGenerator, FakeReenactor, speech
from PIL import Image

from mssync.animate import MAX_SEARCHED, Pipeline
from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import LEFT_EYE_LIDS, RIGHT_EYE_LIDS, Face, head_pose
from mssync.pictures import read_image
from mssync.portraits import doubts, find_face, turned


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def landmarks(mesh, portrait) -> np.ndarray:
    """Those of the astronaut (478, 3), who looks into the camera."""
    return mesh(portrait)[0].landmarks


# Turned pictures


@pytest.mark.parametrize(
    ("quarters", "words"),
    [(1, "on its side; the picture is turned to the right"), (2, "upside down"), (3, "on its side; .* to the left")],
)
def test_a_picture_on_its_side_is_turned_by_the_face(mesh, portrait, quarters, words):
    with pytest.warns(UserWarning, match=f"scan.png: the face (lies|is) {words}") as caught:
        upright, face = find_face(mesh, turned(portrait, quarters), "scan.png")
    assert len(caught) == 1
    np.testing.assert_array_equal(upright, portrait)
    assert abs(head_pose(face.landmarks)[2]) < 20


def test_a_good_portrait_is_left_alone_and_nothing_is_said(mesh, portrait):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upright, _ = find_face(mesh, portrait, "good.png")
    assert upright is portrait


@pytest.mark.parametrize("degrees", [-45, -30, 30, 45])
def test_a_tilted_head_is_no_picture_on_its_side(mesh, portrait, degrees):
    tilted = np.asarray(Image.fromarray(portrait).rotate(degrees, Image.Resampling.BICUBIC, center=(165, 125)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_face(mesh, tilted, "tilted.png")[0] is tilted


def test_the_sideways_picture_that_failed_is_upright(mesh, failing_dir):
    with pytest.warns(UserWarning, match="lies on its side"):
        picture, face = find_face(mesh, read_image(failing_dir / "19_sideways.jpg"), "19")
    assert picture.shape[:2] == read_image(failing_dir / "19_sideways.jpg").shape[1::-1]
    assert abs(head_pose(face.landmarks)[2]) < 20


@pytest.mark.slow
def test_real_portraits_are_turned_upright_and_only_bad_ones_warned_of(mesh, data_dir):
    wrong, warned, missed = [], [], []
    paths = sorted((data_dir / "portraits").glob("*.jpg"))
    for path in paths:
        picture = read_image(path)
        for quarters in range(4):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    upright, _ = find_face(mesh, turned(picture, quarters), path.name)
                except InputError:
                    missed.append(path.stem)
                    continue
            wrong += [] if np.array_equal(upright, picture) else [(path.name, quarters)]
            warned += [path.stem.rstrip("_0123456789") for _ in caught] if quarters == 0 else []
    assert len(wrong) <= len(paths) * 4 // 100
    assert set(warned) <= {"closed_eyes", "open_mouth", "profile"}
    assert set(missed) <= {"profile_32"}  # seen from behind the ear, nearly
    assert warned.count("profile") >= 2


def test_the_pipeline_pastes_into_the_turned_picture(mesh, portrait):
    talker = Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=mesh)
    wide = np.ascontiguousarray(portrait[:, :300])
    with pytest.warns(UserWarning, match="lies on its side"):
        given = talker.portrait(turned(wide, 1))
    assert given.size == (300, 320)  # as it came
    frame = next(talker.animate(given, speech(0.4), sample_rate=16000, paste_back=True))
    assert frame.shape == wide.shape == (320, 300, 3)
    np.testing.assert_array_equal(frame[-5:, :20], wide[-5:, :20])  # outside the crop


# Doubts


def said(landmarks: np.ndarray, width: int = 320, height: int = 320, count: int = 1) -> list[str]:
    return list(doubts([Face(landmarks)] * count, width, height, "a.png"))


def scaled(landmarks: np.ndarray, width: float) -> np.ndarray:
    """The same face so many pixels wide, well inside a picture."""
    return 100 + (landmarks - landmarks.min(0)) * width / np.ptp(landmarks[:, 0])


def yawed(landmarks: np.ndarray, degrees: float) -> np.ndarray:
    a, centre = np.radians(degrees), landmarks.mean(0)
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    return (landmarks - centre) @ about_y.T + centre


def test_a_face_from_the_front_raises_no_doubt(landmarks):
    assert said(landmarks) == []
    assert said(yawed(landmarks, 30)) == said(yawed(landmarks, -30)) == []


def test_doubts_are_named(landmarks):
    (several,) = said(landmarks, count=3)
    assert several.startswith("3 faces found; the largest")
    for degrees in (60, -60):
        assert "from the side" in said(yawed(landmarks, degrees))[0]
    (small,) = said(scaled(landmarks, 60))
    assert "only 60 pixels wide" in small
    assert said(scaled(landmarks, 80)) == []
    closed = landmarks.copy()
    for upper, lower in (LEFT_EYE_LIDS, RIGHT_EYE_LIDS):
        closed[upper] = closed[lower]
    assert "eyes are closed" in said(closed)[0]
    open_wide = landmarks.copy()
    open_wide[14, 1] += 0.5 * np.ptp(landmarks[:, 0])
    assert "mouth is wide open" in said(open_wide)[0]


@pytest.mark.parametrize("side", range(4))
def test_a_face_that_reaches_out_is_named_then_refused(landmarks, side):
    height = np.ptp(landmarks[:, 1])
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)

    def at(share: float) -> tuple[np.ndarray, int, int]:
        """The face with this share of its height outside one side of the picture."""
        if side < 2:
            shift = np.zeros(3)
            shift[side] = -low[side] - share * height
            return landmarks + shift, 320, 320
        size = [320, 320]
        size[side - 2] = round(float(high[side - 2] - share * height))
        return landmarks, size[0], size[1]

    assert said(*at(-0.05)) == []
    assert "reaches out of the picture" in said(*at(0.1))[0]
    with pytest.raises(InputError, match=r"a\.png: too much of the face"):
        said(*at(0.4))


def test_a_tiny_face_is_refused(landmarks):
    with pytest.raises(InputError, match="only 20 pixels wide"):
        said(scaled(landmarks, 20))


def test_two_people_are_named(mesh, portrait):
    both = np.concatenate([portrait, portrait], 1)
    with pytest.warns(UserWarning, match="2 faces found"):
        find_face(mesh, both, "both.png")


@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_what_is_no_face_in_any_direction_is_refused(mesh, name):
    data = pytest.importorskip("skimage.data")
    with pytest.raises(InputError, match="no face found"):
        find_face(mesh, getattr(data, name)(), "a.png")


# Large pictures


def test_a_portrait_knows_the_size_of_the_picture_as_it_came(mesh, portrait, tmp_path):
    large = Image.fromarray(portrait).resize((4800, 4800)).crop((0, 0, 4800, 4000))
    large.save(tmp_path / "a.jpg", quality=70)
    talker = Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=mesh)
    given = talker.portrait(tmp_path / "a.jpg")
    assert given.size == (4000, 4800)
    assert given.picture.shape == (1800, 2160, 3)
    middle = given.box.x0 + given.box.side / 2
    small = talker.portrait(portrait)
    assert middle / 2160 == pytest.approx((small.box.x0 + small.box.side / 2) / 320, abs=0.02)


READ = """
import resource, sys
from mssync.pictures import read_reduced
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_reduced(sys.argv[1], int(sys.argv[2]))[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "most"), [("a.jpg", (12000, 9000), 250), ("a.png", (8000, 6000), 300)])
def test_large_pictures_need_little_memory(tmp_path, portrait, name, size, most):
    """most: MB; decoded whole, both ways of holding the pixels take 756 and 336."""
    if not sys.platform.startswith("linux"):
        pytest.skip("counts in the kilobytes of Linux")
    Image.fromarray(portrait).resize(size).save(tmp_path / name)
    command = [sys.executable, "-c", READ, str(tmp_path / name), str(MAX_SEARCHED)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shape, grown = found.rsplit(" ", 1)
    assert shape == str(size[::-1])
    assert int(grown) / 1000 < most
