"""What people hold: tables of pictures, sounds and videos, each with what becomes of it or the message."""

from __future__ import annotations

import gc
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

import mssync
from mssync import inputs
from mssync.audio import load_audio, mono
from mssync.errors import InputError
from mssync.stream import Resampler, StreamingAnimator
from mssync.video import write_video

RGB = np.random.default_rng(1).integers(1, 255, (40, 50, 3), np.uint8)
FACE = np.random.default_rng(3).integers(1, 255, (200, 250, 3), np.uint8)  # large enough to be animated
GREY = RGB[..., 0]
CLEAR = np.dstack([RGB, np.full((40, 50), 51, np.uint8)])  # an opacity of a fifth
TINTED = np.round(255 + (RGB.astype(float) - 255) / 5)


class Named:
    """An os.PathLike of somebody else's."""

    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.fixture
def talker() -> mssync.Pipeline:
    return mssync.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())


@pytest.fixture
def no_copies_left(tmp_path, monkeypatch):
    """Copies of what has no path go into a folder that must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


# Pictures


@pytest.mark.parametrize(
    ("given", "expected"),
    {
        "uint8": (RGB, RGB),
        "channels first": (RGB.transpose(2, 0, 1), RGB),
        "not contiguous": (RGB[:, ::-1], RGB[:, ::-1]),
        "grey": (GREY, GREY),
        "grey, a channel last": (GREY[..., None], GREY),
        "grey, a channel first": (GREY[None], GREY),
        "RGBA": (CLEAR, TINTED),
        "RGBA, channels first": (CLEAR.transpose(2, 0, 1), TINTED),
        "uint16": (RGB.astype(np.uint16) * 257, RGB),
        "uint16 of the other byte order": (RGB.astype(">u2") * 257, RGB),
        "float32": (RGB.astype(np.float32) / 255, RGB),
        "float64": (RGB / 255, RGB),
        "float16": (RGB.astype(np.float16) / 255, RGB),
        "float, a little beyond by resampling": (np.where(RGB > 250, 1.0019, RGB / 255), np.where(RGB > 250, 255, RGB)),
        "torch uint8": (torch.from_numpy(RGB), RGB),
        "torch float, channels first": (torch.from_numpy(RGB).permute(2, 0, 1) / 255, RGB),
        "torch bfloat16": (torch.ones(3, 40, 50, dtype=torch.bfloat16), np.full_like(RGB, 255)),
        "torch with a gradient": (torch.from_numpy(RGB / 255).requires_grad_(), RGB),
        "PIL RGB": (Image.fromarray(RGB), RGB),
        "PIL L": (Image.fromarray(GREY), GREY),
        "PIL RGBA": (Image.fromarray(CLEAR), TINTED),
        "PIL 1": (Image.fromarray(GREY > 128), 255 * (GREY > 128)),
        "PIL CMYK": (Image.new("CMYK", (50, 40)), np.full_like(RGB, 255)),
    }.values(),
)
def test_pictures(given, expected):
    found, _ = inputs.picture(given)
    assert (found.shape, found.dtype) == ((40, 50, 3), np.uint8)
    assert found.flags["C_CONTIGUOUS"]
    expected = expected[..., None] if expected.ndim == 2 else expected
    np.testing.assert_allclose(found.astype(float), np.broadcast_to(expected, found.shape), atol=1)
    assert np.abs(found - expected.astype(float)).mean() < 0.5


@pytest.mark.parametrize("turn", [1, 6])
def test_picture_files(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=exif)
    expected, content = mssync.read_image(path), path.read_bytes()
    assert expected.shape == ((40, 50, 3) if turn == 1 else (50, 40, 3))
    ways = [
        path, str(path), Named(str(path)), Named(os.fsencode(path)), content, bytearray(content), memoryview(content),
        io.BytesIO(content), Image.open(path),
    ]  # fmt: skip
    for way in ways:
        np.testing.assert_array_equal(inputs.picture(way)[0], expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(inputs.picture(file)[0], expected)
    opened = Image.open(path)
    inputs.picture(opened)
    opened.load()  # is still open: it is the user's


@pytest.mark.parametrize(
    ("given", "words"),
    {
        "nothing": (
            None,
            "the image cannot be of the type NoneType; give a path, bytes, a file opened in binary mode, a PIL",
        ),
        "a number": (3, "of the type int; give a path, bytes, .* a PIL image, or a numpy or torch array"),
        "a list": ([[1, 2], [3, 4]], "of the type list; give"),
        "int64": (RGB.astype(int), "an array of int64; give uint8, uint16, or floating point in"),
        "bool": (RGB > 9, "an array of bool"),
        "float to 255": (RGB.astype(float), r"floating-point values from \d+ to 25\d; they must be in \[0, 1\]"),
        "NaN": (np.full((40, 50, 3), np.nan), r"from nan to nan"),
        "a batch": (RGB[None], r"the shape \(1, 40, 50, 3\); an array must be one picture"),
        "five channels": (np.zeros((40, 50, 5), np.uint8), r"the shape \(40, 50, 5\)"),
        "one row": (np.zeros(50, np.uint8), r"the shape \(50,\)"),
        "empty": (np.zeros((0, 5, 3), np.uint8), "5x0 pixels; its sides must have 32 to 32000"),
        "tiny": (RGB[:20], "50x20 pixels"),
        "tiny PIL": (Image.fromarray(RGB[:20]), "the image is only 50x20 pixels"),
        "PIL F": (Image.fromarray(RGB[..., 0].astype(np.float32)), "floating-point samples"),
        "no bytes": (b"", "the image is empty"),
        "other bytes": (b"hello", "the image is not a picture that can be read"),
        "text": (io.StringIO("hello"), r'the image is opened as text; open it in binary mode: open\(\.\.\., "rb"\)'),
    }.values(),
)
def test_what_is_no_picture(given, words, talker):
    for take in (inputs.picture, talker.portrait):
        with pytest.raises(InputError, match=words) as caught:
            take(given)
        assert "\n" not in str(caught.value)


def test_files_are_called_by_their_name(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    with (tmp_path / "a.png").open("rb") as file, pytest.raises(InputError, match=r"a\.png is not a picture"):
        inputs.picture(file)


# Sound


def heard(given, sample_rate=None, min_seconds=0.0):
    with inputs.sound_file(given, sample_rate) as file:
        return load_audio(file.path, min_seconds)


VOICE = speech(0.5).clip(-0.9, 0.9)
PAIR = np.stack([VOICE, np.roll(VOICE, 9)], 1)


@pytest.mark.parametrize(
    ("given", "expected", "error"),
    {
        "float32": (VOICE, VOICE, 0),
        "float64": (VOICE.astype(float), VOICE, 0),
        "float16": (VOICE.astype(np.float16), VOICE, 1e-3),
        "int16": ((VOICE * 32767).astype(np.int16), VOICE, 1e-4),
        "int32": ((VOICE.astype(float) * 2**31).astype(np.int32), VOICE, 1e-7),
        "uint8": (np.round(VOICE * 128 + 128).astype(np.uint8), VOICE, 5e-3),
        "a column": (VOICE[:, None], VOICE, 0),
        "a row": (VOICE[None], VOICE, 0),
        "stereo, channels last": (PAIR, mono(PAIR.T), 1e-6),
        "stereo, channels first": (PAIR.T, mono(PAIR.T), 1e-6),
        "beyond full scale, as files are": (4 * VOICE / np.abs(VOICE).max(), VOICE / np.abs(VOICE).max(), 1e-6),
        "torch": (torch.from_numpy(VOICE), VOICE, 0),
        "torch stereo int16": (torch.from_numpy((PAIR.T * 32767).astype(np.int16)), mono(PAIR.T), 2e-4),
        "torch bfloat16": (torch.from_numpy(VOICE).bfloat16(), VOICE, 5e-3),
    }.values(),
)
def test_sounds(given, expected, error, no_copies_left):
    found = heard(given, 16000)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, atol=error)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("rate", [8000, 44100, 48000, np.int64(96000)])
def test_any_rate_and_number_of_channels(rate, channels, tone):
    found = heard(np.repeat(tone(1, rate)[:, None], channels, 1), rate)
    assert len(found) == pytest.approx(16000, abs=20)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert spectrum.argmax() == pytest.approx(440, abs=1)
    assert np.abs(found).max() > 0.1


def test_sound_files(make_sound, tone, no_copies_left):
    path = make_sound("a.wav", tone(1, 44100), 44100)
    expected, content = load_audio(path), path.read_bytes()
    for way in (
        path,
        str(path),
        Named(str(path)),
        content,
        bytearray(content),
        memoryview(content),
        io.BytesIO(content),
    ):
        np.testing.assert_array_equal(heard(way), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(heard(file), expected)


@pytest.mark.parametrize(
    ("given", "rate", "words"),
    {
        "no rate": (VOICE, None, r"give sample_rate=\.\.\., in Hz, with an array"),
        "a rate beside a file": ("a.wav", 16000, "sample_rate goes with an array"),
        "a rate beside bytes": (b"RIFF", 16000, "sample_rate goes with an array"),
        "half a rate": (VOICE, 44100.5, "a whole number from 2000 to 768000 Hz, not 44100.5"),
        "a rate in kHz": (VOICE, 44, "from 2000 to 768000 Hz, not 44"),
        "a rate in words": (VOICE, "48k", "not '48k'"),
        "nothing": (
            None,
            None,
            "the audio cannot be of the type NoneType; give a path, bytes, .*array with sample_rate=",
        ),
        "a list": ([0.0, 0.1], 16000, "of the type list"),
        "int64": (np.zeros(16000, int), 16000, "an array of int64; give floating point"),
        "complex": (np.zeros(16000, complex), 16000, "an array of complex128"),
        "NaN": (np.full(16000, np.nan), 16000, "NaN or infinite"),
        "infinite": (np.full(16000, np.inf), 16000, "NaN or infinite"),
        "a batch": (np.zeros((2, 1, 16000)), 16000, r"the shape \(2, 1, 16000\); sound is \(n,\)"),
        "nine channels": (np.zeros((16000, 9)), 16000, "up to 8 channels"),
        "no samples": (np.zeros(0), 16000, "no samples"),
        "short": (np.zeros(100), 16000, r"the audio has only 0\.01 s of sound; at least 0\.2 s"),
        "missing": ("nowhere.wav", None, r"nowhere\.wav does not exist"),
        "no bytes": (b"", None, "^the audio is empty"),
        "other bytes": (b"hello" * 99, None, "^the audio is not a video or sound file"),
        "text": (io.StringIO("hello"), None, "opened as text"),
    }.values(),
)
def test_what_is_no_sound(given, rate, words, talker, no_copies_left):
    with pytest.raises(InputError, match=words) as caught:
        talker.animate(FACE, given, sample_rate=rate)
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value)


def test_a_file_is_read_from_where_it_stands(make_sound, tone, tmp_path):
    path = make_sound("a.wav", tone(1, 16000), 16000)
    (tmp_path / "packed").write_bytes(b"header" + path.read_bytes())
    with (tmp_path / "packed").open("rb") as file:
        file.read(6)
        np.testing.assert_array_equal(heard(file), load_audio(path))


def test_the_same_speech_in_any_form_moves_the_face_alike(talker, make_sound, tone):
    voice = tone(1, 44100)
    path = make_sound("a.wav", voice, 44100, "pcm_f32le")
    expected = talker.animate(FACE, path)
    for given, rate in ((voice, 44100), (torch.from_numpy(voice), 44100), (path.read_bytes(), None)):
        frames = talker.animate(FACE, given, sample_rate=rate)
        assert len(frames) == len(expected) == 25
        np.testing.assert_array_equal(frames.audio.speech, expected.audio.speech)


# Videos and motion


@pytest.fixture
def driving(tmp_path) -> Path:
    path = tmp_path / "driving.mp4"
    write_video(path, [np.full((120, 160, 3), 20 + 6 * t, np.uint8) for t in range(31)], speech(31 / 25))
    return path


def test_videos(talker, driving, no_copies_left):
    expected = talker.motion(driving)
    content = driving.read_bytes()
    for way in (str(driving), Named(str(driving)), content, bytearray(content), io.BytesIO(content)):
        np.testing.assert_array_equal(talker.motion(way), expected)
    whole, copied = (talker.reenact(FACE, way) for way in (driving, content))
    np.testing.assert_array_equal(whole.motion, copied.motion)
    np.testing.assert_array_equal(whole.audio.speech, copied.audio.speech)
    del whole, copied  # copies are kept as long as somebody may write their sound
    gc.collect()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "the video cannot be of the type NoneType; give a path, bytes"),
        (np.zeros((5, 40, 50, 3), np.uint8), "the video cannot be of the type numpy.ndarray"),
        (torch.zeros(3), "of the type torch.Tensor"),
        (b"", "^the video is empty"),
        (b"hello" * 99, "^the video is not a video or sound file"),
        ("nowhere.mp4", "nowhere.mp4 does not exist"),
    ],
)
def test_what_is_no_video(given, words, talker, no_copies_left):
    for take in (talker.motion, lambda video: talker.reenact(FACE, video), mssync.score):
        with pytest.raises(InputError, match=words):
            take(given)


def test_motion(talker, tmp_path):
    frames = talker.animate(FACE, VOICE, sample_rate=16000)
    frames.save_motion(tmp_path / "m.npz")
    content = (tmp_path / "m.npz").read_bytes()
    for way in (tmp_path / "m.npz", content, io.BytesIO(content), frames.motion, torch.from_numpy(frames.motion)):
        np.testing.assert_array_equal(talker.render(FACE, way).motion, frames.motion)
    with pytest.raises(InputError, match="the motion cannot be of the type list"):
        talker.render(FACE, [[1.0]])
    with pytest.raises(InputError, match=r"^the motion: not a motion file"):
        talker.render(FACE, b"hello")


@pytest.mark.parametrize("read", [mssync.load_audio, mssync.read_image, mssync.probe, mssync.VideoReader])
@pytest.mark.parametrize("given", [None, 3, b"content"])
def test_what_reads_files_says_that_it_needs_a_path(read, given):
    with pytest.raises(InputError, match=f"by its path here, not as {type(given).__name__}"):
        read(given)


@pytest.mark.parametrize("given", [None, 3, b"a.mp4"])
def test_outputs_are_paths(given, talker, driving):
    frames = talker.animate(FACE, VOICE, sample_rate=16000)
    for write in (frames.save, frames.save_motion, lambda path: mssync.resync(driving, path, offset=0)):
        with pytest.raises(InputError, match=r"by its path here|give the output"):
            write(given)


# Live


@settings(max_examples=20, deadline=None)
@drawn(rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]), seed=st.integers(0, 100))
def test_rates_of_a_stream_do_not_depend_on_cuts(rate, seed):
    rng = np.random.default_rng(seed)
    voice = rng.standard_normal(rate).astype(np.float32) / 9
    whole = Resampler(rate)
    expected = np.concatenate([whole.push(voice), whole.flush()])
    cuts = np.sort(rng.integers(0, rate, rng.integers(0, 30)))
    pieces = Resampler(rate)
    found = [pieces.push(piece) for piece in np.split(voice, cuts)]
    np.testing.assert_allclose(np.concatenate([*found, pieces.flush()]), expected, atol=1e-6)
    assert len(expected) == pytest.approx(16000, abs=1)


def test_resampled_sound_is_that_of_a_file(tone):
    stream = Resampler(44100)
    found = np.concatenate([*(stream.push(piece) for piece in np.split(tone(1, 44100), 90)), stream.flush()])
    expected = heard(tone(1, 44100), 44100)
    np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-4)


@pytest.mark.parametrize("kind", ["float32", "int16", "stereo", "torch", "44.1 kHz"])
def test_streams_take_what_microphones_give(kind, portrait):
    """Half a second in pieces, with the motion that the same speech gives as a file."""
    talker = mssync.load(live=True)
    rate = 44100 if kind == "44.1 kHz" else 16000
    voice = (0.3 * np.sin(np.arange(rate // 2) * 2500 / rate)).astype(np.float32)
    kinds = {
        "int16": (voice * 32767).astype(np.int16),
        "stereo": np.stack([voice, voice], 1),
        "torch": torch.from_numpy(voice),
    }
    animator = StreamingAnimator(talker, portrait, sample_rate=rate)
    given = kinds.get(kind, voice)
    motion = [animator.push_motion(given[start : start + 441]) for start in range(0, len(given), 441)]
    motion = np.concatenate([*motion, animator.flush_motion()])
    expected = talker.animate(animator.portrait, voice, sample_rate=rate).motion
    np.testing.assert_allclose(motion, expected, atol=1e-3)


def test_a_stream_needs_its_rate(talker):
    with pytest.raises(TypeError, match="sample_rate"):
        StreamingAnimator(talker, FACE)
    with pytest.raises(InputError, match="a whole number from 2000"):
        StreamingAnimator(talker, FACE, sample_rate=16)
