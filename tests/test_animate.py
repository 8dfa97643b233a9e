"""The pipeline: with small stand-ins for the models, and whole once the package ships weights."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech

import mssync
from mssync import animate as A
from mssync import motion as M
from mssync.errors import InputError
from mssync.face1 import PLACE
from mssync.video import VideoReader, write_video

SHIPPED = all((A.MODELS["compact"] / name).is_file() for name in (A.REENACTOR_FILE, A.GENERATOR_FILE))
needs_weights = pytest.mark.skipif(not SHIPPED, reason="mssync/checkpoints holds no weights yet")


@pytest.fixture
def talker() -> A.Pipeline:
    return A.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 1.333, 2.019])
def test_frames_are_as_many_as_the_sound_is_long(talker, picture, seconds) -> None:
    frames = talker.animate(picture, speech(seconds), sample_rate=16000)
    made = list(frames)
    assert len(frames) == len(made) == len(frames.motion) == round(25 * seconds)
    assert all(f.shape == (512, 512, 3) and f.dtype == np.uint8 for f in made)
    assert max(talker.reenactor.batches) <= A.BATCH


def test_frames_are_made_when_asked_for(talker, picture) -> None:
    frames = talker.animate(picture, speech(4), sample_rate=16000)
    assert talker.reenactor.batches == []
    next(frames)
    assert set(talker.reenactor.batches) == {A.BATCH}
    assert len(talker.reenactor.batches) <= talker.cores.count + 1  # no more than the cores are busy with
    assert not torch.is_inference_mode_enabled()


def test_what_goes_wrong_is_told_to_all_who_ask() -> None:
    def parts():
        yield np.zeros((3, 10, 6), np.float32)
        raise InputError("the video ends here")

    motion = A.GrowingMotion(parts(), 10, (10, 6))
    assert len(motion[:3]) == 3
    for _ in range(2):
        with pytest.raises(InputError, match="ends here"):
            motion[4:8]
    assert len(motion[1:3]) == 2


def test_still_head_and_full_motion(talker, picture) -> None:
    still = talker.animate(picture, speech(1), sample_rate=16000, head_motion=0).motion
    np.testing.assert_allclose(still, np.tile(still[:1], (25, 1, 1)), atol=1e-5)
    moving = talker.animate(picture, speech(1), sample_rate=16000).motion
    np.testing.assert_allclose(moving[:, 0, 0] - moving[0, 0, 0], 0.01 * np.arange(25), atol=1e-5)


@pytest.mark.parametrize("size", [64, 320])
def test_size(talker, picture, size) -> None:
    assert next(talker.animate(picture, speech(0.4), sample_rate=16000, size=size)).shape == (size, size, 3)


def test_paste_back_keeps_the_picture(talker, picture) -> None:
    frame = next(talker.animate(picture, speech(0.4), sample_rate=16000, paste_back=True))
    assert frame.shape == picture.shape
    np.testing.assert_array_equal(frame[:, :5], picture[:, :5])  # outside the crop


def test_huge_pictures_are_pasted_into_small_videos(talker) -> None:
    huge = np.full((900, 4000, 3), 90, np.uint8)
    portrait = talker.portrait(huge)
    assert portrait.picture.shape == (486, 2160, 3)
    assert portrait.size == (900, 4000)
    box = talker.portrait(huge).box
    assert box.x0 + box.side / 2 == pytest.approx(1080, abs=22)  # the face is in the middle


def test_a_portrait_is_prepared_once(talker, picture) -> None:
    portrait = talker.portrait(picture)
    assert talker.portrait(portrait) is portrait
    first, second = (
        talker.animate(portrait, speech(0.4), sample_rate=16000),
        talker.animate(picture, speech(0.4), sample_rate=16000),
    )
    np.testing.assert_array_equal(next(first), next(second))


def test_silence_is_quiet_and_warned_of(talker, picture) -> None:
    with pytest.warns(UserWarning, match="silent"):
        motion = talker.animate(picture, np.zeros(16000, np.float32), sample_rate=16000).motion
    assert len(motion) == 25


def test_several_faces_are_warned_of(picture) -> None:
    talker = A.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh(3))
    with pytest.warns(UserWarning, match="3 faces"):
        talker.portrait(picture)


def test_another_seed_turns_the_head_elsewhere() -> None:
    talker, picture = A.load(), Path(mssync.__file__).parent / "assets" / "demo_portrait.jpg"
    first, again, other = (
        talker.animate(picture, speech(4.0), sample_rate=16000, seed=seed).motion[:] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert first.shape == (100, 50)
    assert np.abs(first - other)[:, PLACE].max() > 0.01


def test_saved_motion_is_drawn_again(tmp_path) -> None:
    """Motion of the space face-1 makes the same frames from its file; what draws keypoints alone refuses it."""
    talker, picture = A.load(), Path(mssync.__file__).parent / "assets" / "demo_portrait.jpg"
    portrait = talker.portrait(picture)
    frames = talker.animate(portrait, speech(0.4), sample_rate=16000, size=128)
    frames.save_motion(tmp_path / "m.npz")
    assert M.load_motion(tmp_path / "m.npz").space == frames.space == "face-1"
    for given in (tmp_path / "m.npz", frames.motion):
        again = talker.render(portrait, given, size=128)
        for one, two in zip(talker.animate(portrait, speech(0.4), sample_rate=16000, size=128), again, strict=True):
            np.testing.assert_array_equal(one, two)
    flat = A.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())
    with pytest.raises(InputError, match="motion of the space 'face-1'"):
        flat.render(np.full((300, 300, 3), 99, np.uint8), tmp_path / "m.npz")


@pytest.mark.parametrize(
    "options",
    [
        {"head_motion": -0.1},
        {"head_motion": float("nan")},
        {"expression": 2.5},
        {"smooth": -1},
        {"smooth": 26},
        {"seed": -1},
        {"size": 62},
        {"size": 129},
        {"size": 2162},
        {"size": 128.5},
        {"seed": "7"},
        {"head_motion": None},
    ],
)
def test_options_out_of_range(talker, picture, options) -> None:
    with pytest.raises(InputError, match=next(iter(options)).replace("_", " ")):
        talker.animate(picture, speech(1), sample_rate=16000, **options)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros(1600, np.float32), "0.2 s"),
        (np.zeros(0, np.float32), "no samples"),
        (np.full(16000, np.nan, np.float32), "NaN"),
    ],
)
def test_audio_of_no_use(talker, picture, audio, words) -> None:
    with pytest.raises(InputError, match=words):
        talker.animate(picture, audio, sample_rate=16000)


def test_no_face_is_an_error(talker) -> None:
    with pytest.raises(InputError, match="no face"):
        talker.animate(np.zeros((50, 50, 3), np.uint8), speech(1), sample_rate=16000)


def test_a_reenactor_alone_does_not_speak(picture) -> None:
    with pytest.raises(InputError, match=r"generator\.safetensors"):
        A.Pipeline(FakeReenactor(), None, face_mesh=FakeMesh()).animate(picture, speech(1), sample_rate=16000)


@pytest.fixture
def driving(tmp_path):
    """A video of 31 frames that grows brighter, with sound."""
    path = tmp_path / "driving.mp4"
    frames = [np.full((120, 160, 3), 20 + 6 * t, np.uint8) for t in range(31)]
    write_video(path, iter(frames), speech(31 / 25))
    return path


def test_motion_of_a_video_is_that_of_its_crops(talker, driving) -> None:
    motion = talker.motion(driving)
    assert motion.shape == (31, 10, 6)
    brightness = np.array([frame.mean() / 255 for frame in VideoReader(driving)])
    np.testing.assert_allclose(motion[:, 0, 0], 0.3 + brightness - 0.5, atol=1e-3)


def test_reenact(talker, picture, driving) -> None:
    frames = talker.reenact(picture, driving)
    source = talker.portrait(picture).pose
    seen = talker.motion(driving)
    start = M.best_start(seen, source)
    np.testing.assert_allclose(frames.motion[start], source, atol=1e-5)
    assert len(list(frames)) == 31
    assert frames.audio is not None
    assert abs(len(frames.audio.speech) - 31 * 640) < 2000
    first = talker.reenact(picture, driving, best_frame=False)
    np.testing.assert_allclose(first.motion[0], source, atol=1e-5)
    absolute = talker.reenact(picture, driving, absolute=True)
    np.testing.assert_array_equal(absolute.motion, seen)


def test_saved_motion_renders_the_same(talker, picture, tmp_path) -> None:
    frames = talker.animate(picture, speech(1), sample_rate=16000)
    frames.save_motion(tmp_path / "m.npz")
    again = talker.render(picture, tmp_path / "m.npz")
    np.testing.assert_array_equal(again.motion, frames.motion)
    np.testing.assert_array_equal(np.stack(list(again)), np.stack(list(frames)))
    assert M.load_motion(tmp_path / "m.npz").source_size == (301, 400)
    reenactor = FakeReenactor()
    reenactor.space = "another"
    other = A.Pipeline(reenactor, None, face_mesh=FakeMesh())
    with pytest.raises(InputError, match="the space 'fake'; this model draws 'another'"):
        other.render(picture, tmp_path / "m.npz")
    with pytest.raises(InputError, match="motion"):
        talker.render(picture, np.zeros((5, 60), np.float32))


def test_load_names_the_models_it_knows(tmp_path) -> None:
    with pytest.raises(InputError, match="compact"):
        mssync.load("huge")
    with pytest.raises(InputError, match="compact"):
        mssync.load(tmp_path)
    with pytest.raises(InputError, match="device"):
        mssync.load(device="abacus")
    with pytest.raises(InputError, match="device"):
        mssync.load(device="meta")
    with pytest.raises(InputError, match="not as int"):
        mssync.load(3)  # type: ignore[arg-type]


@needs_weights
def test_the_shipped_model_speaks() -> None:
    data = pytest.importorskip("skimage.data")
    talker = mssync.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = talker.animate(data.astronaut(), speech(1), sample_rate=16000)
    made = np.stack(list(frames))
    assert made.shape == (25, 512, 512, 3)
    assert np.isfinite(frames.motion).all()
    assert made.std() > 20  # a picture, not a grey field


@needs_weights
def test_eight_threads_share_a_pipeline() -> None:
    """Forty calls, three of them bad: each gets what it would get alone, and after an error all goes on."""
    picture = pytest.importorskip("skimage.data").astronaut()
    talker = mssync.load()
    voices = [speech(0.24 + 0.04 * k) for k in range(4)]
    alone = [np.stack(list(talker.animate(picture, voice, sample_rate=16000))) for voice in voices]
    nobody = np.zeros_like(picture)
    bad = {5: (nobody, voices[0]), 17: (picture, voices[0][:100]), 30: (picture.astype(int), voices[0])}

    def call(k: int) -> np.ndarray | str:
        given = bad.get(k, (picture, voices[k % len(voices)]))
        try:
            return np.stack(list(talker.animate(*given, sample_rate=16000)))
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(call, range(40)))
    for k, result in enumerate(found):
        if k in bad:
            assert isinstance(result, str)
        else:
            np.testing.assert_array_equal(result, alone[k % len(voices)])
    assert "no face found" in str(found[5])
    assert "at least 0.2 s" in str(found[17])
    assert "the image is an array of int64" in str(found[30])
