"""Offsets and confidences of motion and speech: against loops, and on pairs whose offset is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("scipy", reason="needs mssync[eval]")

from mssync.data.sequences import Sequence
from mssync.metrics import motions, synchrony
from mssync.metrics.face import Face
from mssync.reenact.mesh import canonical_face, mesh_motion
from mssync.syncer import Syncer, SyncerPyramid


def random_clip(name: str, frames: int, seed: int) -> Sequence:
    g = torch.Generator().manual_seed(seed)
    motion, audio = torch.randn(frames, 60, generator=g), torch.randn(4 * frames, 26, generator=g)
    return Sequence(name, name, "", False, "space", "logfbank", motion, motion, audio)


@pytest.fixture(scope="module")
def syncers() -> SyncerPyramid:
    torch.manual_seed(0)
    return SyncerPyramid([Syncer(60, width=8, embedding=8) for _ in range(4)]).eval()


def test_offset_curve_against_loops() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, (9, 9))
    distance = np.sqrt(2 - 2 * cosines)
    curve = synchrony.offset_curve(cosines)
    assert len(curve) == 9  # four frames to both sides: half of the windows still have sound
    for i, offset in enumerate(range(-4, 5)):
        terms = [distance[t, t - offset] - distance[t].mean() for t in range(9) if 0 <= t - offset < 9]
        assert curve[i] == pytest.approx(np.mean(terms) + distance.mean())


@pytest.mark.parametrize("lead", [-3, 0, 2])
def test_sound_that_leads_has_a_positive_offset(lead: int) -> None:
    """Motion at t fits what is heard at t - lead: the sound came `lead` frames too early."""
    n = 40
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(2 * n, 2 * n)))[0]
    motion, sound = vectors[10 : 10 + n], vectors[10 + lead : 10 + lead + n]
    curve = synchrony.offset_curve(motion @ sound.T)
    assert curve.argmin() - len(curve) // 2 == lead


def test_scores_of_every_level_that_fits(syncers: SyncerPyramid) -> None:
    clip = random_clip("a", 120, 0)
    found = synchrony.score(syncers, clip.motion, clip.audio, "real", "a")
    assert [s.level for s in found] == [1, 2, 3, 4]
    assert all(s.confidence >= 0 and abs(s.offset) <= s.reach <= synchrony.MAX_OFFSET for s in found)
    assert [s.level for s in synchrony.score(syncers, clip.motion[:20], clip.audio[:80], "real", "a")] == [1, 2]
    moved = synchrony.score_moved(syncers, clip.motion, clip.audio, "real", "a")
    assert {s.moved for s in moved if s.level == 1} == set(synchrony.SHIFTS)


def test_lines_hold_means_and_paired_tests(syncers: SyncerPyramid) -> None:
    clips = [random_clip(str(n), 60, n) for n in range(6)]
    scores = [*synchrony.conditions(syncers, clips), *synchrony.baselines(syncers, clips)]
    lines = synchrony.lines(scores)
    assert {line.system for line in lines} == {
        synchrony.REAL,
        synchrony.OTHER,
        synchrony.SILENCE,
        synchrony.STILL,
        synchrony.BORROWED,
    }
    real = next(line for line in lines if (line.system, line.level) == (synchrony.REAL, 1))
    offsets = [abs(s.offset) for s in scores if (s.system, s.level, s.moved) == (synchrony.REAL, 1, 0)]
    assert real.offset.value == pytest.approx(np.mean(offsets))
    assert real.milliseconds == 200
    assert 0 <= real.recovered.value <= 1
    assert np.isnan(next(line for line in lines if line.system == synchrony.OTHER).p_confidence)


def test_other_clips_are_of_other_people() -> None:
    clips = [random_clip(str(n), 10, n) for n in range(3)]
    clips[1].identity = clips[0].identity
    assert [c.name for c in synchrony._others(clips)] == ["2", "2", "0"]
    assert synchrony._as_long(torch.arange(3.0)[:, None], 8)[:, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]


def test_minutes_of_a_still_face_and_of_one_that_shakes(syncers: SyncerPyramid) -> None:
    frames = 2 * 60 * 25
    still = torch.zeros(frames, 60)
    shaking = still.clone()
    shaking[1::2] = 0.1
    audio = torch.randn(4 * frames, 26, generator=torch.Generator().manual_seed(0))
    rows = synchrony.minutes(syncers, still, audio)
    assert [row.minute for row in rows] == [0, 1]
    assert rows[0].spread == rows[0].jitter == rows[1].distance == 0
    assert rows[0].head is not None
    assert rows[0].head.speed == pytest.approx(0, abs=1e-6)
    assert synchrony.minutes(syncers, still, audio, mesh=False)[0].head is None
    assert synchrony.jitter(shaking) == pytest.approx(0.2)
    assert synchrony.minutes(syncers, shaking, audio)[1].largest_step == pytest.approx(0.1)


# Motion beside the real one


def test_motion_is_compared_with_the_real_one() -> None:
    random = torch.Generator().manual_seed(0)
    clips = []
    for n in range(3):
        clip = random_clip(str(n), 60, n)
        rest = torch.from_numpy(np.pad(mesh_motion(canonical_face()).reshape(54), (0, 6)))
        clip.motion = rest + 0.01 * torch.randn(60, 60, generator=random).cumsum(0)
        clips.append(clip)
    halved = [(clip.motion[:1] + 0.5 * (clip.motion - clip.motion[:1])) for clip in clips]
    systems = {s.name: s for s in motions.compare(clips, {"half": halved})}
    assert list(systems) == ["real", "still", "motion of another clip", "half"]
    real, still, half = (systems[name].figures for name in ("real", "still", "half"))
    assert (real["mouth_r"].value, real["lips"].value, real["jitter"].value) == pytest.approx((1, 0, 1))
    assert (real["width_r"].value, real["lag"].value, real["timely"].value, real["met"].value) == pytest.approx(
        (1, 0, 1, 1)
    )
    assert still["mouth_r"].clips == 0  # it has none
    assert (still["opening"].value, still["jitter"].value) == pytest.approx((0, 0), abs=1e-6)
    assert still["lips"].value == pytest.approx(2 * half["lips"].value, rel=1e-4)
    assert half["jitter"].value == pytest.approx(0.5, rel=1e-4)
    assert 0 < half["speed"].value < real["speed"].value
    assert systems["real"].pose_distance == pytest.approx(0, abs=1e-6)
    assert systems["half"].pose_distance < systems["still"].pose_distance


@pytest.mark.parametrize("late", [-8, -1, 0, 3])
def test_lips_are_late_by_frames(late: int) -> None:
    opening = np.random.default_rng(0).random(120).cumsum() % 3
    assert motions.lag(opening, np.roll(opening, late)) == late
    assert np.isnan(motions.lag(opening, np.zeros(120)))
    assert np.isnan(motions.lag(np.zeros(120), opening))


def test_contacts_of_lips_that_are_met() -> None:
    real = np.ones(200)
    for start, stop in ((20, 22), (50, 51), (80, 84), (120, 150)):  # the last of them is a pause
        real[start:stop] = 0
    assert motions.closures(real, real) == (1, 0)
    late = np.roll(real, 1)
    assert motions.closures(real, late) == (1, 0)  # by 40 ms
    missed = real.copy()
    missed[50] = 0.5
    missed[[170, 180, 190]] = 0
    met, false = motions.closures(real, missed)
    assert met == pytest.approx(2 / 3)
    assert false == pytest.approx(3 / 5)
    assert np.isnan(motions.closures(real, np.ones(200))[1])
    assert motions.closures(real, np.zeros(200))[0] == 0  # a mouth that never opens


def test_blinks_are_counted_a_minute() -> None:
    closed = torch.zeros(1500)  # a minute
    for start in (10, 400, 900):
        closed[start : start + 5] = torch.tensor([0.3, 0.6, 0.8, 0.5, 0.2])
    closed[1200:1210] = 0.4  # looks down
    assert motions.blinks(closed) == 3
    assert motions.blinks(closed[:750]) == 4
    face = Face()
    clip = torch.from_numpy(np.pad(mesh_motion(canonical_face()).reshape(54), (0, 6))).float().repeat(50, 1)
    lids = torch.zeros(10, 6)
    lids[:2, 5] = -1.2
    clip[20:23] += lids.flatten()
    shut = face.closed(clip)
    assert shut[:20].abs().max() < 1e-5
    assert shut[21] > 0.7
    assert motions.blinks(shut) == 30
