"""Prepared clips and sequences: gaps, alignment, augmentation, what a folder must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mssync.config import AugmentationConfig
from mssync.data.clips import read_clips
from mssync.data.offsets import MAX_LAG, lag_curve
from mssync.data.prepare import prepare
from mssync.data.sequences import (
    FaceMotion,
    Sequence,
    SequenceBatches,
    _aligned,
    augmented,
    jitter,
)
from mssync.errors import InputError


def test_late_sound_is_moved_back() -> None:
    motion, audio = np.arange(10)[:, None], np.arange(40)[:, None]
    for late in (-2, 0, 3):
        moved, _, sound = _aligned(motion, motion, audio, late=late)
        assert len(sound) == 4 * len(moved)
        assert (sound[::4, 0] == 4 * (moved[:, 0] + late)).all()


def sequence(name: str, frames: int) -> Sequence:
    motion = torch.arange(frames * 60.0).reshape(frames, 60)
    audio = torch.arange(frames * 4.0)[:, None].expand(-1, 26)
    return Sequence(name, name, "corpus", False, "nobody", "logfbank", motion, -motion, audio)


def test_batches_are_aligned_and_a_function_of_their_number() -> None:
    batches = SequenceBatches([sequence("a", 30), sequence("b", 50)], frames=20, batch=6, seed=3)
    motion, audio, other, clips = batches(7)
    assert motion.shape == (6, 20, 60)
    assert audio.shape == (6, 80, 26)
    assert other.shape == (6, 60)
    assert set(clips.tolist()) <= {0, 1}
    torch.testing.assert_close(audio[:, ::4, 0], motion[:, :, 0] / 60 * 4)
    for one, two in zip(batches(7), batches(7), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(batches(8)[0], motion)


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig()])
def test_what_a_live_generator_hears_has_sound_before_it(augmentation: AugmentationConfig | None) -> None:
    clip = sequence("a", 30)
    clip.heard = (clip.audio.clone(),)
    batches = SequenceBatches([clip], 20, batch=30, seed=0, augmentation=augmentation, before=7)
    _, audio, _, _, heard = batches(0)
    assert heard.shape == (30, 4 * 27, 26)
    if augmentation is None:  # a row says which one it is; the average sound lies where the clip has none
        assert torch.equal(heard[:, 28:], audio)
        rows = torch.arange(4.0 * 27) - 28 + audio[:, :1, 0]
        torch.testing.assert_close(heard[..., 0], torch.where(rows >= 0, rows, clip.audio.mean()))


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig()])
def test_pieces_of_faces(augmentation: AugmentationConfig | None) -> None:
    """Motion of face-1, then what tells its keypoints: a face at rest, and where the body is."""
    clip = sequence("a", 30)
    clip.heard = (clip.audio,)
    motion = torch.arange(30.0)[:, None].expand(30, 50) / 100
    clip.faces = tuple(
        FaceMotion(sign * motion, torch.full((478, 3), sign), motion[0], torch.zeros(478, 3)) for sign in (1.0, -1.0)
    )
    batches = SequenceBatches([clip], 20, batch=30, seed=0, augmentation=augmentation, before=7)
    found, _, other, _, _, rest, body = batches(0)
    assert (found.shape, other.shape, rest.shape, body.shape) == ((30, 20, 50), (30, 50), (30, 478, 3), (30, 6))
    side = rest[:, 0, 0]
    assert set(side.tolist()) == ({1.0} if augmentation is None else {1.0, -1.0})
    expected = side[:, None] * (torch.arange(20) / 100 + found[:, :1, 20].abs())
    torch.testing.assert_close(found[..., 20], expected)
    if augmentation is None:
        torch.testing.assert_close(found[..., 4], expected)
        torch.testing.assert_close(body, clip.motion[(100 * found[:, 0, 20]).round().long(), 54:])
    else:
        factor = (found[:, :, 5] - expected).exp()
        torch.testing.assert_close(factor, factor[:, :1].expand(30, 20))
        shift = found[:, :, 3] - factor * expected
        torch.testing.assert_close(shift, shift[:, :1].expand(30, 20), atol=1e-5, rtol=0)


def test_augmentation_is_one_scale_and_one_shift_an_axis() -> None:
    settings, rng = AugmentationConfig(), np.random.default_rng(1)
    motion = torch.randn(12, 10, 6)
    changed = augmented(motion.flatten(1), settings, rng).unflatten(1, (10, 6))
    factor = float(changed[0, 0, 2] / motion[0, 0, 2])
    assert abs(factor - 1) <= settings.scale
    torch.testing.assert_close(changed[..., 2:], motion[..., 2:] * factor)
    shift = (changed[..., :2] - motion[..., :2] * factor).flatten(0, 1)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-5, rtol=0)
    assert shift.abs().max() <= settings.shift
    assert all(abs(jitter(20.0, settings, rng)) <= 20 * settings.energy for _ in range(50))


def test_folders_that_are_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mssync preprocess"):
        read_clips(tmp_path, "train")
    with pytest.raises(InputError, match="no videos in this folder"):
        prepare([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_late_sound_is_measured(late: int) -> None:
    rng = np.random.default_rng(0)
    speech = np.convolve(rng.standard_normal(320), np.ones(5) / 5, "same")
    mouth, loudness = speech[20:280], np.roll(speech, late)[20:280] + 0.3 * rng.standard_normal(260)
    assert int(lag_curve(mouth, loudness).argmax()) - MAX_LAG == late
