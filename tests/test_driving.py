"""Who drives: cuts, several people, stretches without a face; what the portrait then does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mssync
from mssync.driving import crops, find_shots, joined
from mssync.face.analyser import FaceMesh
from mssync.faces import Box, crop
from mssync.motion import points

Picture = np.ndarray


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


def moving(picture: Picture, count: int) -> list[Picture]:
    return [np.roll(picture, round(4 * np.sin(t / 5)), 1) for t in range(count)]


def nearer(picture: Picture) -> Picture:
    """The same scene from nearer, the face twice as large."""
    return crop(picture, Box(90, 20, 170), 320)


def test_each_shot_has_its_own_crop(portrait: Picture, mesh: FaceMesh) -> None:
    frames = moving(portrait, 30) + moving(nearer(portrait), 25)
    with pytest.warns(UserWarning, match=r"v: cuts at 1\.2 s; each shot is taken by itself"):
        shots, count = find_shots(frames, mesh, 320, 320, "v")
    assert [(shot.start, shot.stop) for shot in shots] == [(0, 30), (30, 55)]
    assert count == 55
    heights = [np.ptp(marks[:, 1]) for _, _, marks in crops(frames, shots, 256)]
    assert np.mean(heights[30:]) == pytest.approx(np.mean(heights[:30]), rel=0.25)  # in the picture: twice as large
    pictures = [picture for _, picture, _ in crops(frames, shots, 256)]
    assert len(pictures) == 55
    assert pictures[0].shape == (256, 256, 3)


def test_the_largest_of_two_is_followed_and_said(portrait: Picture, mesh: FaceMesh) -> None:
    small = np.asarray(Image.fromarray(portrait).resize((224, 224)))
    frames = []
    for frame in moving(portrait, 20):
        both = np.full((320, 560, 3), 120, np.uint8)
        both[:224, :224], both[:, 240:] = small, frame
        frames.append(both)
    with pytest.warns(UserWarning, match="v: 2 faces are seen at once; the largest one, on the right, is followed"):
        (shot,), _ = find_shots(frames, mesh, 560, 320, "v")
    assert shot.landmarks[..., 0].mean() > 240


def test_the_portrait_rests_where_nobody_is_seen(portrait: Picture, mesh: FaceMesh) -> None:
    empty = np.full_like(portrait, 110)
    frames = [empty] * 40 + moving(portrait, 30) + [empty] * 45
    with pytest.warns(UserWarning, match=r"no face for 3\.\d s in all; the portrait rests there"):
        shots, count = find_shots(frames, mesh, 320, 320, "v")
    motions = [
        np.arange(shot.stop - shot.start, dtype=np.float32)[:, None, None] * np.ones((1, 10, 6)) for shot in shots
    ]
    whole = joined(motions, shots, count)
    assert len(whole) == 115
    assert not whole[: shots[0].start].any()
    assert (whole[shots[-1].stop :] == motions[-1][-1]).all()
    with pytest.raises(mssync.InputError, match="v: no face found"):
        find_shots([empty] * 10, mesh, 320, 320, "v")


@pytest.mark.slow
def test_a_cut_does_not_melt_the_face(failing_dir: Path, portrait: Picture) -> None:
    talker = mssync.load()
    with pytest.warns(UserWarning, match=r"cuts at 2\.5 s"):
        motion = talker.reenact(portrait, failing_dir / "14_jump_cut.mp4").motion
    sizes = points(motion)[:, :6].std(1).mean(-1)  # of the keypoints on the skull
    assert sizes[63:].mean() == pytest.approx(sizes[:62].mean(), rel=0.06)
    with pytest.warns(UserWarning, match="2 faces are seen at once"):
        talker.motion(failing_dir / "17_two_people.mp4")
