"""Tracks: scene cuts, faces followed one by one, and what drops them; on a real face in made-up films."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mssync.data import tracks
from mssync.data.tracks import Limits, Track, centred_boxes, fill_gaps, find_tracks, fixed_boxes, objection, scenes
from mssync.face.analyser import FaceMesh
from mssync.pixels import Places, resampled

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


def spans(found: Sequence[Track]) -> list[tuple[int, int]]:
    return [(track.start, track.stop) for track in found]


def moving(portrait: Picture, count: int) -> list[Picture]:
    return [np.roll(portrait, round(6 * np.sin(t / 6)), 1) for t in range(count)]


def cuts(frames: Sequence[Picture]) -> list[int]:
    return [t for t, (_, cut) in enumerate(scenes(frames)) if cut]


def test_cuts_are_found_and_every_frame_comes_through(portrait: Picture) -> None:
    frames = moving(portrait, 20) + moving(portrait[:, ::-1], 9) + moving(portrait // 2, 30)
    assert cuts(frames) == [20, 29]
    assert [frame.tobytes() for frame, _ in scenes(frames)] == [frame.tobytes() for frame in frames]
    assert list(scenes([])) == []


def test_flashes_and_fades_and_fast_motion_are_no_cuts(portrait: Picture) -> None:
    flash = moving(portrait, 40)
    flash[20] = flash[20] // 2 + 127
    assert cuts(flash) == []
    assert cuts([(portrait * (t / 40)).astype(np.uint8) for t in range(40)]) == []
    assert cuts([np.roll(portrait, 12 * max(0, t - 20), 1) for t in range(40)]) == []
    assert cuts([portrait] * 30) == []


def test_one_face_is_one_track_and_a_cut_makes_two(portrait: Picture, mesh: FaceMesh) -> None:
    frames = moving(portrait, 30) + moving(np.ascontiguousarray(portrait[:, ::-1]), 25)
    found, count = find_tracks(frames, mesh)
    assert (spans(found), count) == ([(0, 30), (30, 55)], 55)
    assert all(100 < track.face < 160 and track.missing == track.others == 0 for track in found)
    # the first half looks to one side, the second one to the other
    assert abs(found[0].landmarks[:, 1, 0].mean() + found[1].landmarks[:, 1, 0].mean() - 320) < 6
    again, _ = find_tracks(frames, mesh)
    assert all((one.landmarks == two.landmarks).all() for one, two in zip(found, again, strict=True))


def test_what_came_before_does_not_change_a_track(portrait: Picture, mesh: FaceMesh) -> None:
    first, _ = find_tracks(moving(portrait, 20), mesh)
    find_tracks(moving(np.roll(portrait, 40, 0), 15), mesh)
    second, _ = find_tracks(moving(portrait, 20), mesh)
    fresh, _ = find_tracks(moving(portrait, 20), FaceMesh())
    assert (first[0].landmarks == second[0].landmarks).all()
    assert (first[0].landmarks == fresh[0].landmarks).all()


def test_a_short_gap_is_filled_and_a_long_one_ends_the_track(portrait: Picture, mesh: FaceMesh) -> None:
    def hidden(frame: Picture, t: int, stop: int) -> Picture:
        """A grey patch before the face from frame 40 on; it comes and goes slowly, for that is no cut."""
        share = np.clip(min(t - 34, stop + 6 - t) / 6, 0, 1)
        out = frame.copy()
        patch = out[50:200, 90:240]
        patch[:] = (1 - share) * patch + share * patch.mean((0, 1))
        return out

    frames = moving(portrait, 140)
    (track,), _ = find_tracks([hidden(f, t, 46) for t, f in enumerate(frames[:90])], mesh)
    assert (track.start, track.stop) == (0, 90)
    assert track.missing == pytest.approx(8 / 90, abs=0.05)
    assert np.isfinite(track.landmarks).all()
    found, _ = find_tracks([hidden(f, t, 90) for t, f in enumerate(frames)], mesh)
    first, last = found[0], found[-1]
    assert first.stop <= 42
    assert 88 <= last.start <= 100
    assert last.stop == 140


def test_two_faces_are_two_tracks_and_may_both_be_the_speakers(portrait: Picture, mesh: FaceMesh) -> None:
    frames = [np.concatenate([frame, frame[:, ::-1]], 1) for frame in moving(portrait, 60)]
    found, _ = find_tracks(frames, mesh)
    assert spans(found) == [(0, 60), (0, 60)]
    assert [track.others for track in found] == [1.0, 1.0]
    assert {track.landmarks[0, 1, 0] < 320 for track in found} == {True, False}
    assert objection(found[0], Limits()) == ("more than one face", "100 % of frames")
    assert objection(found[0], Limits(single=False)) is None


def test_no_face(mesh: FaceMesh) -> None:
    assert find_tracks([np.full((64, 64, 3), 128, np.uint8)] * 10, mesh) == ([], 10)
    assert find_tracks([], mesh) == ([], 0)


def test_blur_is_measured_whatever_the_size_of_the_picture(portrait: Picture, mesh: FaceMesh) -> None:
    twice = Places(-0.25, 0.5, 2 * len(portrait))
    large = resampled(portrait, twice, twice, cubic=True)
    blurred = gaussian_filter(portrait, (4, 4, 0))
    sharp, same, soft = (find_tracks([p] * 14, mesh)[0][0].sharpness for p in (portrait, large, blurred))
    assert 0.6 < same / sharp < 1.6
    assert soft < sharp / 10
    assert sharp > Limits().min_sharpness > soft


def track(frames: int, height: float = 100, start: int = 0, **values: float) -> Track:
    points = np.random.default_rng(0).uniform(0, 1, (478, 3))
    points[0], points[1] = 0, 1
    landmarks = np.tile(points * height + 50, (frames, 1, 1)).astype(np.float32)
    return Track(start, landmarks, **{"missing": 0.0, "sharpness": 99.0, **values})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (track(60), None),
        (track(49), "too short"),
        (track(60, missing=0.11), "face often missing"),
        (track(60, height=47), "face too small"),
        (track(60, sharpness=14), "not sharp"),
        (track(60, others=0.3), "more than one face"),
        (track(60, others=0.1), None),
    ],
)
def test_objections(made: Track, reason: str | None) -> None:
    found = objection(made, Limits())
    assert (found and found[0]) == reason


def test_sound_that_is_off_is_an_objection_where_asked() -> None:
    late = track(60, offset=-3.2)
    assert objection(late, Limits()) is None
    assert objection(late, Limits(max_offset=4)) is None
    assert objection(late, Limits(max_offset=3)) == ("sound not in time", "-3.2 frames")


def test_another_face_counts_while_it_is_there_and_when_it_is_large() -> None:
    one, small, later = track(100), track(100, height=40), track(50, start=75)
    assert tracks._others(one, [one, small, later]) == 0.25
    assert tracks._others(small, [one, small]) == 1.0


def test_long_tracks_are_parted_evenly() -> None:
    parts = tracks._parted(track(6001, start=10))
    assert spans(parts) == [(10, 2010), (2010, 4010), (4010, 6011)]
    assert sum(map(len, parts)) == 6001


def test_gaps_are_interpolated() -> None:
    points: list[np.ndarray | None] = [np.full((478, 3), float(t), np.float32) for t in range(40)]
    points[0] = points[10] = points[11] = points[39] = None
    np.testing.assert_allclose(fill_gaps(points)[:, 0, 0], [1, *range(1, 39), 38])


def test_boxes_stand_still_or_follow() -> None:
    walking = track(100)
    walking.landmarks[..., 0] += np.arange(100, dtype=np.float32)[:, None]
    fixed = fixed_boxes(walking, 640, 480)
    assert (fixed == fixed[0]).all()
    assert fixed[0, 0] <= 50
    assert fixed[0, 0] + fixed[0, 2] >= 249
    centred = centred_boxes(walking, 640, 480)
    middle = centred[:, 0] + centred[:, 2] / 2 - (100 + np.arange(100))
    assert np.abs(middle[25:75]).max() < 0.1
    np.testing.assert_allclose(centred[:, 2], 190, atol=0.5)
