from __future__ import annotations

import numpy as np
import pytest
import python_speech_features as psf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mssync import audio
from mssync.audio import features, is_silent, load_audio, logfbank, mfcc, n_video_frames
from mssync.errors import InputError

# Reading

FORMATS = [  # file name, codec, rate, channels
    ("a.wav", "pcm_s16le", 44100, 2),
    ("a.wav", "pcm_u8", 8000, 1),
    ("a.wav", "pcm_s24le", 96000, 1),
    ("a.wav", "pcm_s32le", 22050, 2),
    ("a.wav", "pcm_f32le", 16000, 1),
    ("a.wav", "pcm_f64le", 48000, 2),
    ("a.wav", "pcm_mulaw", 8000, 1),
    ("a.mp3", "libmp3lame", 44100, 2),
    ("a.m4a", "aac", 44100, 2),
    ("a.mp4", "aac", 16000, 1),
    ("a.flac", "flac", 48000, 2),
    ("a.ogg", "libopus", 48000, 2),
    ("a.webm", "libopus", 48000, 1),
    ("a.mka", "aac", 44100, 1),
    ("a.aiff", "pcm_s16be", 11025, 1),
]


@pytest.mark.parametrize(("name", "codec", "rate", "channels"), FORMATS)
def test_any_format_gives_the_same_sound(make_sound, tone, name, codec, rate, channels):
    source = np.repeat(tone(0.6, rate, silence=0.2)[:, None], channels, axis=1)
    waveform = load_audio(make_sound(name, source, rate, codec))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 9600) <= 400  # Matroska keeps the filling of the last AAC frame
    onset = np.argmax(np.abs(waveform) > 0.1)
    assert abs(onset - 3200) <= 16
    expected = tone(0.6, 16000, silence=0.2)
    middle = slice(4000, 9000)
    assert np.corrcoef(waveform[middle], expected[middle])[0, 1] > 0.99
    assert np.abs(waveform[middle]).max() == pytest.approx(0.5, abs=0.05)


def test_lossless_sound_is_exact(make_sound):
    source = np.random.RandomState(0).uniform(-1, 1, 3000).astype(np.float32)
    np.testing.assert_array_equal(load_audio(make_sound("a.wav", source, 16000, "pcm_f32le")), source)


def test_left_and_right_are_added_at_the_level_of_the_louder(make_sound):
    left, right = np.random.RandomState(0).uniform(-0.3, 0.3, (2, 3000)).astype(np.float32)
    path = make_sound("a.wav", np.stack([left, right], axis=1), 16000, "pcm_f32le")
    heard = load_audio(path)
    assert heard.std() == pytest.approx(max(left.std(), right.std()), rel=1e-3)
    np.testing.assert_allclose(heard / heard.std(), (left + right) / (left + right).std(), atol=1e-4)


def test_surround_sound_is_mixed_down(make_sound, tone):
    source = np.zeros((8000, 6), np.float32)
    source[:, 2] = tone(0.5, 16000)  # the centre, where voices are
    assert np.abs(load_audio(make_sound("a.wav", source, 16000))).max() == pytest.approx(0.35, abs=0.02)


def test_sound_beyond_full_scale_is_scaled_down(make_sound, tone):
    waveform = load_audio(make_sound("a.wav", 6 * tone(0.2, 16000), 16000, "pcm_f32le"))
    np.testing.assert_allclose(waveform, tone(0.2, 16000) / np.abs(tone(0.2, 16000)).max(), atol=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(("sound_start", "picture_start"), [(0, 0), (0.4, 0), (0, 0.4), (1, 1)])
def test_sound_track_starts_with_the_picture(make_video, tone, name, sound_start, picture_start):
    times = [picture_start + k / 25 for k in range(25)]
    sound = tone(1.2, 48000, silence=0.6)
    path = make_video(name, [128] * 25, times, sound, sound_start)
    onset = np.argmax(np.abs(load_audio(path)) > 0.1) / 16000
    assert onset == pytest.approx(0.6 + sound_start - picture_start, abs=0.003)


def test_missing_folder_empty_and_text(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("not a sound, but a text\n" * 50)
    (tmp_path / "text.txt").write_text("\x1b[31mcoloured text\x1b[0m\n" * 50)
    (tmp_path / "list.mp3").write_text("ffconcat version 1.0\nfile text.mp3\n")
    for name, words in [
        ("missing.wav", "does not exist"),
        ("", "is a directory"),
        ("empty.wav", "is empty"),
        ("text.mp3", "not a video or sound file"),
        ("text.txt", "not a video or sound file"),
        ("list.mp3", "not a video or sound file"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            load_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_permission(unprivileged):
    with pytest.raises(InputError, match="cannot be read: permission denied"):
        load_audio(unprivileged / "file.wav")


def test_video_without_sound(make_video):
    with pytest.raises(InputError, match="no sound"):
        load_audio(make_video("a.mp4", [10] * 5, [k / 25 for k in range(5)]))


def test_no_samples(make_sound):
    path = make_sound("a.wav", np.zeros(16, np.float32), 16000)
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"data") + 4] + bytes(4))
    with pytest.raises(InputError, match=r"empty or damaged|without samples"):
        load_audio(path)


def test_too_short(make_sound, tone):
    path = make_sound("a.wav", tone(0.1, 16000), 16000)
    assert len(load_audio(path)) == 1600
    with pytest.raises(InputError, match=r"only 0\.10 s of sound; at least 0\.2 s"):
        load_audio(path, min_seconds=0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_nan_samples(make_sound, tone, bad, rate):
    samples = tone(0.2, rate)
    samples[1000] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        load_audio(make_sound("a.wav", samples, rate, "pcm_f32le"))


def test_truncated(make_sound, tone):
    path = make_sound("a.m4a", tone(1, 16000), 16000, "aac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="is truncated"):
        load_audio(path)


def test_damage_in_the_middle_warns(make_sound):
    path = make_sound("a.flac", np.random.RandomState(0).uniform(-1, 1, 64000).astype(np.float32), 16000, "flac")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged|ends early"):
        assert load_audio(path).size > 16000


def test_silence_is_no_error(make_sound, tone):
    assert is_silent(load_audio(make_sound("a.wav", np.zeros(8000, np.float32), 16000)))
    assert is_silent(np.full(100, 0.25, np.float32))  # a constant offset cannot be heard
    assert not is_silent(tone(0.1, 16000))


def test_real_recordings(data_dir):
    paths = sorted((data_dir / "speech").iterdir())
    for path in [next(p for p in paths if p.suffix == s) for s in (".flac", ".mp3", ".m4a", ".ogg", ".wav")]:
        waveform = load_audio(path)
        assert len(waveform) > 16000
        assert not is_silent(waveform)
        assert_like_psf(waveform[: 16000 * 5])


# Features


def assert_like_psf(waveform: np.ndarray) -> None:
    """Compare with python_speech_features to 1e-4."""
    double, tensor = waveform.astype(np.float64), torch.from_numpy(waveform)
    np.testing.assert_allclose(logfbank(tensor), psf.logfbank(double, nfilt=26, nfft=512), atol=1e-4, rtol=0)
    expected = psf.mfcc(double, nfilt=26, nfft=512, numcep=26)
    np.testing.assert_allclose(mfcc(tensor), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [1, 399, 400, 401, 560, 561, 640 * 5, 16123])
def test_features_equal_python_speech_features(n):
    assert_like_psf(np.random.RandomState(n).standard_normal(n).astype(np.float32))


@pytest.mark.parametrize("level", [0, 1])
def test_constant_signals_equal_python_speech_features(level):
    assert_like_psf(np.full(4000, level, np.float32))


def test_speech_with_pauses_of_digital_silence(tone):
    assert_like_psf(np.concatenate([tone(0.5, 16000, silence=0.3), np.zeros(4000, np.float32)]))


def test_blocks_do_not_show(monkeypatch):
    waveform = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    whole = logfbank(waveform), mfcc(waveform)
    monkeypatch.setattr(audio, "BLOCK", 7)
    torch.testing.assert_close((logfbank(waveform), mfcc(waveform)), whole)


@pytest.mark.parametrize("kind", [logfbank, mfcc, features])
def test_batches_and_dtypes(kind):
    batch = torch.randn(2, 3, 6400, generator=torch.Generator().manual_seed(0))
    rows = kind(batch)
    assert rows.shape[:2] == (2, 3)
    assert rows.dtype == torch.float32
    assert kind(batch.double()).dtype == torch.float64
    torch.testing.assert_close(rows[1, 2], kind(batch[1, 2]))


@pytest.mark.parametrize("kind", ["logfbank", "mfcc"])
def test_gradients(kind):
    waveform = torch.randn(1100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(8, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(samples: torch.Tensor) -> torch.Tensor:
        return (features(samples, kind) * weights).sum()

    waveform.requires_grad_()
    loss(waveform).backward()
    direction = torch.randn(1100, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        numeric = (loss(waveform + 1e-6 * direction) - loss(waveform - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(waveform.grad @ direction, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [logfbank, mfcc])
def test_gradients_after_inference(kind):
    audio._bank.cache_clear()
    waveform = torch.randn(800)
    with torch.inference_mode():
        kind(waveform)
    kind(waveform.requires_grad_()).sum().backward()
    assert waveform.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["logfbank", "mfcc"])
def test_silence_has_finite_features_and_gradients(kind):
    silence = torch.zeros(3200, requires_grad=True)
    rows = features(silence, kind)
    rows.sum().backward()
    assert rows.isfinite().all()
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["logfbank", "mfcc"])
def test_loudness_and_offset_do_not_matter(tone, kind):
    waveform = tone(0.4, 16000) + 0.01 * np.random.RandomState(0).standard_normal(6400).astype(np.float32)
    torch.testing.assert_close(features(0.1 * waveform + 0.2, kind), features(waveform, kind), atol=2e-3, rtol=0)


def test_dither_is_not_made_loud():
    dither = np.random.RandomState(0).choice([-1, 0, 1], 6400).astype(np.float32) / 32768
    assert is_silent(dither)
    assert features(dither).mean() < features(100 * dither).mean() - 10


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 4000), frames=st.none() | st.integers(0, 12))
def test_four_feature_frames_a_video_frame(n, frames):
    waveform = torch.sin(torch.arange(n) * 0.3)
    rows = features(waveform, n_video_frames=frames)
    assert rows.shape == (4 * (n_video_frames(n) if frames is None else frames), 26)
    centred = waveform - waveform.mean()
    peak = float(centred.abs().max())
    direct = logfbank(centred / (peak if peak > audio.SILENCE else 1))
    for row, values in enumerate(rows):  # the last one stands for all that are missing
        torch.testing.assert_close(values, direct[min(row, len(direct) - 1)])


def test_unknown_kind():
    with pytest.raises(InputError, match="unknown audio features 'mel'; choose one of logfbank, mfcc"):
        features(torch.zeros(640), "mel")


def test_video_frames_are_rounded():
    assert [n_video_frames(n) for n in (0, 640, 959, 961, 16000, 160000)] == [0, 1, 1, 2, 25, 250]
