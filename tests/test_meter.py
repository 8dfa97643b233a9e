"""The sync meter: what its networks see, distances and offsets against slow formulas, watching, training."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mssync import meter as m
from mssync.audio import load_audio
from mssync.config import Config, load_config
from mssync.data import shards
from mssync.data.clips import Entry, write_index
from mssync.errors import InputError
from mssync.faces import CANONICAL_FILE, mirrored_landmarks
from mssync.metrics import recovery
from mssync.pyramid import pyramid
from mssync.training import meter as training
from mssync.video import write_video
from mssync.weights import save_model


def faces(frames: int, seed: int = 0) -> np.ndarray:
    """(T, 478, 3): a frontal face with some depth, whose points shake."""
    rng = np.random.default_rng(seed)
    flat = np.load(CANONICAL_FILE).astype(np.float32)
    depth = (flat[:, :1] - flat[:, 0].mean()) ** 2 + 0.1 * flat[:, 1:]
    still = np.concatenate([flat, depth], 1)
    return (still + 0.01 * rng.standard_normal((frames, 478, 3))).astype(np.float32)


def turned(landmarks: np.ndarray, seed: int = 1) -> np.ndarray:
    """Every frame rotated, scaled and moved at random."""
    rng = np.random.default_rng(seed)
    moved = []
    for frame in landmarks:
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        moved.append(rng.uniform(20, 300) * frame @ turn + 100 * rng.standard_normal(3))
    return np.stack(moved).astype(np.float32)


# What the networks see


def test_running_mean():
    x = np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)
    slow = np.stack([x[t] - x[max(0, t - 4) : t + 5].mean(0) for t in range(23)])
    np.testing.assert_allclose(m.without_mean(x, 4), slow, atol=1e-6)


def test_mouth_motion_ignores_pose_size_and_place():
    marks = faces(40)
    skull = m.mean_skull(marks)
    motion = m.mouth_motion(marks, skull)
    np.testing.assert_allclose(m.mouth_motion(turned(marks), skull), motion, atol=2e-4)
    np.testing.assert_allclose(m.mouth_motion(marks[:, list(m.POINTS)], skull), motion)  # of the points alone
    assert motion.shape == (40, 3 * len(m.MOUTH))


def test_mean_skull_is_frontal_symmetric_and_of_size_1():
    skull = m.mean_skull(turned(faces(60)))
    left, right = (m.SKULL.index(corner) for corner in m.EYE_CORNERS)
    np.testing.assert_allclose(skull[left] * [-1, 1, 1], skull[right], atol=1e-6)
    assert np.linalg.norm(skull[left] - skull[right]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("points", [m.MOUTH, m.HEAD], ids=["mouth", "head"])
def test_mirrored_motion(points):
    marks = faces(30)
    skull = m.mean_skull(np.concatenate([marks, mirrored_landmarks(marks)]))
    see = m.head_motion if points is m.HEAD else lambda x: m.mouth_motion(x, skull)
    np.testing.assert_allclose(see(mirrored_landmarks(marks)), m.mirrored_motion(see(marks), points), atol=1e-3)


# Distances


@pytest.fixture
def net() -> m.Syncer:
    torch.manual_seed(0)
    return m.Syncer(6, 16, 8).eval()


@torch.no_grad()
def test_long_sequences_give_what_their_windows_give(net):
    motion, sound = torch.randn(1, 30, 6), torch.randn(1, 120, 26)
    seen, heard = net.embed_motion(motion), net.embed_audio(sound)
    assert seen.shape[1] == heard.shape[1] == 26
    torch.testing.assert_close(seen[0, 7], net.embed_motion(motion[:, 7:12])[0, 0])
    torch.testing.assert_close(heard[0, 7], net.embed_audio(sound[:, 28:48])[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("length", [20, 22, 80, 121, 4 * 1024 * 2 + 31])
def test_every_position_of_the_sound(net, length):
    sound = torch.randn(1, length, 26)
    heard = m._every_position(net, sound)
    assert len(heard) == length - 19
    for start in {0, length - 20, min(4097, length - 20)}:
        torch.testing.assert_close(heard[start], net.embed_audio(sound[:, start : start + 20])[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("level", [1, 2])
def test_distances_against_loops(net, level):
    motion = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    sound = np.random.default_rng(1).standard_normal((240, 26)).astype(np.float32)
    found = np.ones(60, bool)
    found[20] = False
    (sums,) = [s for s in m.level_sums([net] * level, motion, sound, found, 5) if s.level == level]
    moves, sounds, seen = (
        pyramid(torch.from_numpy(x)[None], level)[-1] for x in (motion, sound, found[:, None].astype(np.float32))
    )
    centred, mean, count = np.zeros((3, 41)), np.zeros(3), np.zeros(3)
    for n in range(moves.shape[1] - 4):
        if seen[0, n : n + 5].min() < 0.999:
            continue
        here = net.embed_motion(moves[:, n : n + 5])[0, 0]
        row = np.full(41, np.nan)
        for k, offset in enumerate(range(-20, 21)):
            start = 4 * n - offset
            if 0 <= start <= sounds.shape[1] - 20:
                row[k] = (here - net.embed_audio(sounds[:, start : start + 20])[0, 0]).norm()
        second = (n + 2) * 2 ** (level - 1) // 25
        centred[second] += np.nan_to_num(row - np.nanmean(row))
        mean[second] += np.nanmean(row)
        count[second] += 1
    np.testing.assert_allclose(sums.centred, centred, atol=1e-4)
    np.testing.assert_allclose(sums.mean, mean, atol=1e-4)
    np.testing.assert_array_equal(sums.count, count)


class Echo(nn.Module):
    """Embeds a window as the direction of what it holds, where motion and sound show the same numbers."""

    def embed_motion(self, motion):
        return nn.functional.normalize(motion.unfold(1, 5, 1).flatten(2), dim=-1)

    def embed_audio(self, sound):
        return nn.functional.normalize(sound.unfold(1, 20, 4)[..., ::4].flatten(2), dim=-1)


@pytest.mark.parametrize("lead", [-7, 0, 4])
def test_sign_offset_and_confidence(lead):
    """Sound that leads by n frames gives offset +n; the confidence is median minus minimum."""
    common = np.cumsum(np.random.default_rng(0).standard_normal((400, 3)), 0).astype(np.float32)
    common -= common.mean(0)
    motion = common[50:150]
    sound = common[50 + lead : 150 + lead].repeat(4, 0)  # frame t holds what is seen at t + lead
    sums = m.level_sums([Echo()], motion, sound, np.ones(100, bool))
    comparison = m.Comparison({"lips": sums, "head": sums})
    (score,) = comparison.lips
    assert score.offset == lead
    assert score.offset_ms == 40 * lead
    assert score.confidence == pytest.approx(np.median(score.curve) - score.curve.min())
    assert (score.offsets[0], score.offsets[-1], len(score.curve)) == (-15, 15, 31)
    assert comparison.reading().milliseconds == pytest.approx(40 * lead, abs=40)  # each frame sounds four times
    assert len(comparison.over_time(2)) == 3


def test_located_by_hand():
    """Three seconds that speak for +20 ms (index 32 of ±300 ms) against a rival at -200 ms."""
    evidence = np.zeros((3, 61))
    evidence[:, 32] = [4, 5, 6]
    evidence[:, 31] = evidence[:, 33] = 2
    evidence[:, 10] = [1, 1, 1]
    offset, clearness = m.located(evidence, expected=2.0)
    lead = np.array([3, 4, 5])
    variance = (2 + m.PRIOR_SECONDS * 4) / (3 + m.PRIOR_SECONDS)
    assert offset == 20
    assert clearness == pytest.approx(lead.sum() / np.sqrt(3 * variance))


def test_vertex():
    at = np.arange(7)
    assert m._vertex(-((at - 3.3) ** 2.0), 3) == pytest.approx(0.3)
    assert m._vertex(np.arange(7.0), 6) == 0


def test_long_clips_are_compared_in_pieces(monkeypatch):
    """The same distances, but for the loudness by which a piece's sound is normalised."""
    made = m.SyncMeter(lips_width=8, head_width=8, embedding=4).eval()
    marks, sound = faces(1100), 0.1 * np.random.default_rng(0).standard_normal(1100 * 640).astype(np.float32)
    made.skull.copy_(torch.from_numpy(m.mean_skull(marks)))
    whole = made.compare(marks, sound)
    monkeypatch.setattr(m, "PIECE", 400)
    pieces = made.compare(marks, sound)
    for one, two in zip(whole.sums["lips"], pieces.sums["lips"], strict=True):
        np.testing.assert_array_equal(one.count, two.count)
        np.testing.assert_allclose(one.centred, two.centred, atol=0.02)


def test_too_short_clips(tmp_path):
    with pytest.raises(InputError, match="too few"):
        m.SyncMeter().compare(faces(4), np.zeros(4 * 640, np.float32))
    with pytest.raises(InputError, match="in a row"):
        m.SyncMeter().compare(faces(20), np.ones(20 * 640, np.float32), np.arange(20) % 2 > 0)


def test_model_file(tmp_path):
    made = m.SyncMeter(lips_width=8, head_width=8, embedding=4)
    save_model(tmp_path / "meter.safetensors", made, "meter", {"lips_width": 8, "head_width": 8, "embedding": 4})
    loaded = m.SyncMeter.load(tmp_path / "meter.safetensors")
    marks, sound = faces(60), np.random.default_rng(0).standard_normal(60 * 640).astype(np.float32)
    lips, head = loaded.lips(marks, sound), loaded.head(marks, sound)
    assert [(s.level, s.milliseconds) for s in lips] == [(1, 200), (2, 400), (3, 800), (4, 1600)]
    assert [s.level for s in head] == [1, 2, 3]
    with pytest.raises(InputError, match="meter is needed"):
        m.SyncMeter.load("generator")


# The shipped meter on a real clip


def test_shipped_meter_follows_a_shift(data_dir: Path):
    meter, seen = m.SyncMeter.load(), m.watch(data_dir / "clips" / "lrs3_003.mp4", m.POINTS)
    own = meter.offset(seen.landmarks, seen.waveform)
    for shift in (-6, 5):
        found = meter.offset(*recovery.shifted(seen.landmarks, seen.waveform, shift))
        assert found.milliseconds - own.milliseconds == pytest.approx(40 * shift, abs=40)


# Watching


def test_watching(film, tmp_path):
    path = film(tmp_path / "a.mp4", seconds=2.4)
    seen = m.watch(path)
    assert seen.landmarks.shape == (60, 478, 3)
    assert seen.landmarks.dtype == seen.waveform.dtype == np.float32
    assert seen.found.all()
    np.testing.assert_allclose(seen.waveform, load_audio(path)[: 60 * 640])
    few = m.watch(path, m.POINTS)
    np.testing.assert_array_equal(few.landmarks, seen.landmarks[:, list(m.POINTS)])


def test_videos_of_no_use(film, tmp_path, portrait):
    grey = [np.full((96, 128, 3), 5 * t, np.uint8) for t in range(40)]
    noise = 0.1 * np.random.default_rng(0).standard_normal(40 * 640).astype(np.float32)
    write_video(tmp_path / "mute.mp4", grey, None)
    write_video(tmp_path / "silent.mp4", grey, 0 * noise)
    write_video(tmp_path / "empty.mp4", grey, noise)
    write_video(tmp_path / "short.mp4", [portrait] * 12 + [np.zeros_like(portrait)] * 30, noise)
    for name, words in [("mute", "no sound"), ("silent", "silent"), ("empty", "no face"), ("short", "only")]:
        with pytest.raises(InputError, match=words):
            m.watch(tmp_path / f"{name}.mp4")


def test_two_people(tmp_path, portrait):
    small = portrait[::2, ::2][:160, :160]
    pictures = [np.concatenate([np.roll(portrait, t % 5, 1), np.roll(portrait, -t % 5, 1)], 1) for t in range(60)]
    noise = 0.1 * np.random.default_rng(0).standard_normal(60 * 640).astype(np.float32)
    write_video(tmp_path / "two.mp4", pictures, noise)
    sides = []
    for right in (True, False):  # whichever fits is followed

        def fit(marks, sound, right=right):
            return float(marks[..., 0].mean() * (1 if right else -1))

        with pytest.warns(UserWarning, match="several faces"):
            sides.append(m.watch(tmp_path / "two.mp4", fit=fit).landmarks[..., 0].mean())
    assert sides[0] > small.shape[1] * 2 > sides[1]


# Training


def test_window_and_stretch_loss_against_loops():
    torch.manual_seed(0)
    moves, sounds = (nn.functional.normalize(torch.randn(2, 9, 4), dim=-1) for _ in range(2))
    cosines, there = training.scores(moves, sounds, 3)
    total, losses = [], []
    for b in range(2):
        rows = np.zeros((9, 7))
        for n in range(9):
            logits = {k: float(moves[b, n] @ sounds[b, n + k]) for k in range(-3, 4) if 0 <= n + k < 9}
            for k, value in logits.items():
                assert float(cosines[b, n, k + 3]) == pytest.approx(value, abs=1e-6)
                rows[n, k + 3] = value - np.mean(list(logits.values()))
            others = [v for k, v in logits.items() if abs(k) > 1]
            losses.append(-np.log(np.exp(logits[0] / 0.1) / np.exp(np.array([logits[0], *others]) / 0.1).sum()))
        for part in np.array_split(rows, 3):
            logits = 2 * part.sum(0)
            log = logits - np.log(np.exp(logits).sum())
            total.append(-(0.7 * log[3] + 0.15 * (log[2] + log[4])))
    assert float(training.window_loss(cosines, there, 0.1)) == pytest.approx(np.mean(losses), rel=1e-4)
    loss, _ = training.stretch_loss(cosines, there, 3, torch.tensor(2.0))
    assert float(loss) == pytest.approx(np.mean(total), rel=1e-4)


def test_triplet_loss_against_loops():
    torch.manual_seed(0)
    moves, sounds = (nn.functional.normalize(torch.randn(2, 6, 4), dim=-1) for _ in range(2))
    loss, share = training.triplet_loss(*training.scores(moves, sounds, 5), 0.3)
    leads = [
        float((moves[b, n] - sounds[b, k]).norm() - (moves[b, n] - sounds[b, n]).norm())
        for b in range(2) for n in range(6) for k in range(6) if abs(n - k) > 1
    ]  # fmt: skip
    assert float(loss) == pytest.approx(np.mean([max(0, 0.3 - lead) for lead in leads]), abs=1e-4)
    assert float(share) == pytest.approx(np.mean([lead > 0 for lead in leads]))


def test_resampled():
    x = np.arange(10, dtype=np.float32)[:, None] ** 2
    np.testing.assert_allclose(training.resampled(x, 1.5, 1.0, 3)[:, 0], [2.5, 6.5, 12.5])
    np.testing.assert_allclose(training.resampled(x, 8.0, 1.0, 3)[:, 0], [64, 81, 81])


def test_pieces_mend_late_sound_and_repeat():
    ramp = np.arange(120, dtype=np.float32)[:, None]
    sound = (np.arange(480, dtype=np.float32) / 4 - 3)[:, None].repeat(26, 1)  # 3 frames late
    example = training.Example("a", "a", ramp, ramp, sound, late=3.0)
    pieces = training.Pieces([example], Config().meter_training, seed=1, augment=False)
    motion, heard = pieces(5)
    torch.testing.assert_close(motion[..., 0], heard[:, ::4, 0])
    torch.testing.assert_close(pieces(5)[0], motion)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A prepared folder of six shaking faces with noise for sound; no pictures."""
    folder = tmp_path_factory.mktemp("prepared")
    entries = []
    for split, people in {"train": "abcd", "val": "xy"}.items():
        with shards.create(folder / f"{split}.tar") as archive:
            for number, person in enumerate(people):
                sound = np.random.default_rng(number).normal(0, 3000, 90 * 640).astype(np.int16)
                content = shards.npz(landmarks=faces(90, number).astype(np.float16), waveform=sound)
                shards.add_bytes(archive, f"{person}.npz", content)
                entries.append(Entry(person, split, person, "made", 90, False, "", f"{split}.tar"))
    write_index(folder, entries)
    return folder


SMALL = [
    "meter.lips_width=8", "meter.head_width=8", "meter.embedding=4", "meter_training.batch=2",
    "meter_training.steps=3", "meter_training.head_steps=2",
]  # fmt: skip


@pytest.mark.slow
def test_training_stops_and_goes_on_exactly(prepared, tmp_path, monkeypatch):
    from mssync.training.common import Run

    config = load_config("compact", [*SMALL, "meter_training.measure_steps=0"])
    whole = training.train(config, prepared, tmp_path / "whole")
    steps = Run.steps
    monkeypatch.setattr(Run, "steps", lambda self, start, stop: steps(self, start, min(stop, start + 2)))
    with pytest.raises(InputError, match="2 of 3 steps of lips; start again"):
        training.train(config, prepared, tmp_path / "parts")
    parts = training.train(config, prepared, tmp_path / "parts")
    one, two = load_file(whole), load_file(parts)
    assert all(torch.equal(one[name], two[name]) for name in one | two)


def test_measured_offsets_come_from_the_other_half(tmp_path):
    """Networks see one half of the people and measure the other; the median over people counts as zero."""
    rng = np.random.default_rng(0)
    halves: dict[int, list[str]] = {0: [], 1: []}
    for letter in "abcdefghij":
        halves[zlib.crc32(letter.encode()) % 2].append(letter)
    people = halves[0][:2] + halves[1][:2]
    examples = []
    for number, person in enumerate(people):
        common = np.cumsum(rng.standard_normal((400, 3)), 0).astype(np.float32)
        common -= common.mean(0)
        late = (1, 2, 2, 5)[number]
        sound = common[100 - late : 300 - late].repeat(4, 0)
        examples.append(training.Example(person, person, common[100:300], common[100:300], sound))
    seen = []

    def fit(stage):
        seen.append({e.identity for e in stage.train})
        return [Echo()]

    late = training._measured(examples, [], load_config("compact").meter_training, fit, tmp_path)
    assert seen == [set(halves[0][:2]), set(halves[1][:2])]
    assert [round(late[p]) for p in people] == [-1, 0, 0, 3]
    assert json.loads((tmp_path / training.OFFSETS).read_text(encoding="utf-8")) == late


def test_logistic():
    rng = np.random.default_rng(0)
    x = rng.uniform(-4, 4, 20000)
    right = rng.random(20000) < 1 / (1 + np.exp(-(1.5 * x - 0.5)))
    slope, base = training._logistic(x, right.astype(float))
    assert (slope, base) == (pytest.approx(1.5, abs=0.1), pytest.approx(-0.5, abs=0.1))


def test_weights_favour_the_level_that_knows():
    rng = np.random.default_rng(0)
    evidence = []
    for _ in range(20):
        found = rng.standard_normal((4, 6, 31))
        found[1, :, 20] += 3
        evidence.append(found)
    weights = training._fitted_weights(evidence, [50.0] * 20)
    assert weights.argmax() == 1
    assert weights[1] > 3 * np.delete(weights, 1).max()
