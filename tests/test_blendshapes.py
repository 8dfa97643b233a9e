"""Blendshapes: named as ARKit names them, moved by what they are named after, on the person's own side."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mssync import face1
from mssync.animate import load
from mssync.audio import SAMPLE_RATE, load_audio
from mssync.blendshapes import NAMES, ROTATIONS, blendshapes, rotations, save_blendshapes, timecode
from mssync.cli import app
from mssync.cli.common import DEMO_SPEECH
from mssync.errors import InputError


def changed(mesh: np.ndarray) -> dict[str, float]:
    """Blendshapes of a mesh (478, 3) from the front, by name."""
    return dict(zip(NAMES, blendshapes(face1.read(mesh, face1.mean_rest())).tolist(), strict=True))


def test_names_are_those_of_arkit():
    assert len(NAMES) == len(set(NAMES)) == 52
    assert len(ROTATIONS) == 9


def test_a_face_at_rest_does_nothing():
    assert max(changed(face1.mean_rest()).values()) < 0.1


def test_the_left_eye_is_the_persons_own():
    mesh = face1.mean_rest().copy()
    middle = (mesh[386] + mesh[374]) / 2  # lids of the eye on the right of the picture
    for point in (384, 385, 386, 387, 388, 374, 380, 381, 373, 390):
        mesh[point] = 0.15 * mesh[point] + 0.85 * np.array([mesh[point, 0], middle[1], mesh[point, 2]])
    found = changed(mesh)
    assert found["EyeBlinkLeft"] > 0.3 > found["EyeBlinkRight"]


def test_jaws_open_with_the_mouth():
    motion = load().speak(DEMO_SPEECH)
    mesh = face1.FaceSpace().mesh(torch.from_numpy(motion), torch.from_numpy(face1.mean_rest())).numpy()
    opening = np.linalg.norm(mesh[:, 13] - mesh[:, 14], axis=1)
    found = blendshapes(motion)
    assert np.corrcoef(found[:, NAMES.index("JawOpen")], opening)[0, 1] > 0.8


@pytest.mark.parametrize(("axis", "sign", "name"), [(1, -1, "HeadYaw"), (0, -1, "HeadPitch"), (2, 1, "HeadRoll")])
def test_heads_turn_as_rotation_vectors_say(axis, sign, name):
    motion = np.zeros((3, 50), np.float32)
    motion[:, axis] = (-0.3, 0.0, 0.3)
    motion[:, face1.GAZE] = face1.straight()
    found = rotations(motion)
    np.testing.assert_allclose(found[:, ROTATIONS.index(name)], sign * motion[:, axis], atol=1e-6)
    others = [k for k, other in enumerate(ROTATIONS) if other != name]
    np.testing.assert_allclose(found[:, others], 0, atol=1e-6)


def test_eyes_turn_to_where_they_look():
    motion = np.zeros((1, 50), np.float32)
    motion[0, face1.GAZE] = face1.straight() + np.float32(
        [0.1, 0, 0.1, 0.05]
    )  # aside in the picture, one of them down, too
    found = dict(zip(ROTATIONS, rotations(motion)[0].tolist(), strict=True))
    assert found["LeftEyeYaw"] == pytest.approx(0.242, abs=0.01)
    assert found["RightEyeYaw"] == pytest.approx(found["LeftEyeYaw"])
    assert found["LeftEyePitch"] < -0.1
    assert found["RightEyePitch"] == 0


def test_timecodes_count_25_frames_a_second():
    assert timecode(0) == "00:00:00:00.000"
    assert timecode(25 * 3661 + 7) == "01:01:01:07.000"


def test_other_motion_is_refused(tmp_path):
    with pytest.raises(InputError, match="face-1"):
        save_blendshapes(tmp_path / "a.csv", np.zeros((3, 10, 6), np.float32))
    assert not list(tmp_path.iterdir())


def test_a_recording_moves_an_avatar(tmp_path):
    result = CliRunner().invoke(app, ["motion", str(DEMO_SPEECH), "-o", str(tmp_path / "a.csv"), "--format", "arkit"])
    assert result.exit_code == 0, result.output
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["Timecode", "BlendshapeCount", *NAMES, *ROTATIONS]
    assert {row[1] for row in rows} == {"61"}
    values = np.array([row[2:] for row in rows], float)
    assert values[:, :52].min() >= 0
    assert values[:, :52].max() <= 1
    moved = dict(zip(header[2:], np.ptp(values, 0), strict=True))
    assert min(moved[name] for name in ("JawOpen", "MouthPucker", "EyeBlinkLeft", "HeadYaw")) > 0.1
    spoken = load().speak(DEMO_SPEECH)
    np.testing.assert_allclose(values[:, :52], blendshapes(spoken), atol=2e-5)


def test_what_a_video_shows_is_read_back(tmp_path):
    talker = load()
    sound = load_audio(DEMO_SPEECH)[: 3 * SAMPLE_RATE]
    portrait = talker.portrait(DEMO_SPEECH.with_name("demo_portrait.jpg"))
    frames = talker.animate(portrait, sound, sample_rate=SAMPLE_RATE, size=384)
    frames.save(tmp_path / "a.mp4")
    found = talker.motion(tmp_path / "a.mp4")
    assert found.shape == frames.motion.shape == (75, 50)
    made, read = (blendshapes(motion)[:, NAMES.index("JawOpen")] for motion in (frames.motion, found))
    assert np.corrcoef(made, read)[0, 1] > 0.8
    with pytest.raises(InputError, match="this model knows 'compact-1' and 'face-1'"):
        talker.motion(tmp_path / "a.mp4", space="face-2")


def test_a_recording_has_no_motion_of_a_face(tmp_path):
    result = CliRunner().invoke(app, ["motion", str(DEMO_SPEECH), "-o", str(tmp_path / "a.npz")])
    assert result.exit_code == 2
    assert "shows nobody" in result.output
    assert not list(tmp_path.iterdir())
