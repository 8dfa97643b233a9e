"""The sound of a video that is made: band, level, channels and time as in what was given."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from test_time import film, heard, seen

from mssync.audio import load_audio
from mssync.soundtrack import Sound
from mssync.sync.resync import shift_sound
from mssync.video import VideoReader, probe, write_video

SECONDS = 2.0
GIVEN = {  # codec, rate, whether it is copied into an MP4
    "a.wav": ("pcm_s16le", 44100, False), "b.wav": ("pcm_f32le", 96000, False), "a.flac": ("flac", 44100, False),
    "a.mp3": ("libmp3lame", 44100, True), "a.m4a": ("aac", 44100, True), "a.ogg": ("libopus", 48000, True),
    "a.opus": ("libopus", 48000, True), "a.mka": ("aac", 48000, True),
    "a.aac": ("aac", 44100, True), "c.wav": ("pcm_s16le", 8000, False),
}  # fmt: skip


def music(rate: int, seconds: float = SECONDS) -> np.ndarray:
    """Stereo (n, 2): bursts of noise on the left, a tone of an eighth of the rate on the right at times."""
    time = np.arange(round(seconds * rate)) / rate
    random = np.random.RandomState(0)
    bursts = np.repeat(random.uniform(0, 1, round(seconds * 20)) > 0.6, rate // 20)[: len(time)]
    noise = np.convolve(random.standard_normal(len(time)), np.ones(6) / 6, "same")
    left = 0.4 * noise * bursts
    right = 0.1 * np.sin(2 * np.pi * rate / 8 * time) * (time > seconds / 2)
    return np.stack([left, right], 1).astype(np.float32)


def decoded(path: Path) -> tuple[np.ndarray, int]:
    """All channels of the sound of a file (channels, n) as any player gets them, from the first picture on."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=stream.rate)
        frames = list(container.decode(stream))
        blocks = [b.to_ndarray() for f in [*frames, None] for b in resampler.resample(f) if b is not None]
        start = float(frames[0].pts * frames[0].time_base)
    samples = np.concatenate(blocks, 1)
    if not is_video(path):
        return samples, stream.rate
    lead = round(start * stream.rate)
    return (np.pad(samples, ((0, 0), (lead, 0))) if lead >= 0 else samples[:, -lead:]), stream.rate


def is_video(path: Path) -> bool:
    return path.suffix == ".mp4"


def delay(one: np.ndarray, two: np.ndarray, rate: int) -> float:
    """Seconds by which `two` is later, by cross-correlation."""
    size = 1 << (len(one) + len(two)).bit_length()
    product = np.fft.irfft(np.fft.rfft(two, size) * np.conj(np.fft.rfft(one, size)), size)
    at = int(product.argmax())
    return (at - size if at > size // 2 else at) / rate


def pictures(seconds: float = SECONDS) -> list[np.ndarray]:
    return [np.zeros((48, 64, 3), np.uint8)] * round(25 * seconds)


@pytest.mark.parametrize("name", GIVEN)
def test_sound_comes_out_as_it_went_in(make_sound: Any, tmp_path: Path, name: str) -> None:
    codec, rate, copied = GIVEN[name]
    path = make_sound(name, music(rate), rate, codec)
    write_video(tmp_path / "out.mp4", pictures(), Sound.read(path))
    before, after = decoded(path), decoded(tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").channels == 2
    assert after[1] == min(before[1], 48000)
    if copied:
        with av.open(str(path)) as one, av.open(str(tmp_path / "out.mp4")) as two:
            assert one.streams.audio[0].codec_context.name == two.streams.audio[0].codec_context.name
    if before[1] != after[1]:
        before = (before[0][:, ::2], after[1])
    for channel in range(2):
        assert abs(delay(before[0][channel], after[0][channel], after[1])) < 0.005
        levels = [float(np.sqrt(np.square(x[0][channel]).mean())) for x in (before, after)]
        assert levels[1] == pytest.approx(levels[0], rel=0.2)
    spectra = [np.abs(np.fft.rfft(x[0][1][: round(SECONDS * after[1])])) ** 2 for x in (before, after)]
    tone = round(rate / 8 * SECONDS)
    energies = [s[tone - 20 : tone + 20].sum() for s in spectra]
    assert 10 * np.log10(energies[1] / energies[0]) == pytest.approx(0, abs=3)


@pytest.mark.parametrize(
    "suffix", [".mp4", ".mkv", *(pytest.param(s, marks=pytest.mark.slow) for s in (".mov", ".webm", ".ts", ".flv"))]
)
@pytest.mark.parametrize(("picture_start", "sound_start"), [(0, 0), (0.6, 0), (0, 0.4)])
def test_sound_of_a_video_stays_with_its_picture(
    tmp_path: Path, suffix: str, picture_start: float, sound_start: float
) -> None:
    path = film(tmp_path / f"a{suffix}", picture_start, sound_start)
    write_video(tmp_path / "out.mp4", VideoReader(path), Sound.read(path))
    np.testing.assert_allclose(heard(tmp_path / "out.mp4"), heard(path), atol=0.005)
    np.testing.assert_allclose(seen(tmp_path / "out.mp4"), seen(path), atol=0.001)


def test_gaps_stay_where_they_are(failing_dir: Path, tmp_path: Path) -> None:
    path = failing_dir / "01_sound_gap.mp4"
    write_video(tmp_path / "out.mp4", pictures(10), Sound.read(path))
    before, after = load_audio(path)[: 10 * 16000], load_audio(tmp_path / "out.mp4")
    late = slice(round(4.6 * 16000), round(9.5 * 16000))
    assert abs(delay(before[late], after[late], 16000)) < 0.005
    assert np.abs(after[round(3.1 * 16000) : round(4.4 * 16000)]).max() < 0.01


def test_a_tone_above_speech_and_both_channels_survive(failing_dir: Path, tmp_path: Path) -> None:
    path = failing_dir / "12_stereo_44k.flac"
    seconds = probe(path).seconds
    assert seconds is not None
    write_video(tmp_path / "out.mp4", pictures(seconds), Sound.read(path))
    (before, rate), (after, _) = decoded(path), decoded(tmp_path / "out.mp4")
    high = []
    for samples in (before, after):
        spectrum = np.abs(np.fft.rfft(samples[1][: rate * 2])) ** 2
        high.append(spectrum[19000:].sum())  # from 9.5 kHz on
    assert 10 * np.log10(high[1] / high[0]) == pytest.approx(0, abs=3)


def test_a_voice_in_opposite_phase_is_heard(failing_dir: Path, make_sound: Any) -> None:
    loud = load_audio(failing_dir / "09_antiphase.wav")
    assert 20 * np.log10(loud.std()) == pytest.approx(-20, abs=1)
    voice = music(16000)[:, 0]
    for name, channels in {"both": (voice, voice), "left": (voice, 0 * voice), "opposite": (voice, -voice)}.items():
        heard = load_audio(make_sound(f"{name}.wav", np.stack(channels, 1), 16000))
        assert heard.std() == pytest.approx(voice.std(), rel=0.02)
        assert np.corrcoef(heard, voice)[0, 1] > 0.999


def test_more_channels_are_kept(make_sound: Any, tmp_path: Path) -> None:
    sound = np.zeros((48000, 6), np.float32)
    sound[:, 2] = music(48000, 1)[:, 0]  # the centre
    write_video(tmp_path / "out.mp4", pictures(1), Sound.read(make_sound("a.wav", sound, 48000)))
    samples, _ = decoded(tmp_path / "out.mp4")
    assert samples.shape[0] == 6
    assert samples[2].std() == pytest.approx(sound[:, 2].std(), rel=0.1)
    assert samples[0].std() < 0.01


# ---- several tracks


def two_tracks(path: Path, default: int, unknown: int | None = None) -> Path:
    """A video with a quiet and a loud tone as its two sound tracks; the codec of one may be unknown."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sounds: Any = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        for number, stream in enumerate(sounds):
            stream.disposition = Disposition(int(Disposition.default) * (number == default))
        for k in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(picture.encode(frame))
            for amplitude, stream in zip((0.05, 0.5), sounds, strict=True):
                tone = amplitude * np.sin(np.arange(1920) * 0.1, dtype=np.float32)
                block = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 48000, 1920 * k, Fraction(1, 48000)
                container.mux(stream.encode(block))
        for stream in (picture, *sounds):
            container.mux(stream.encode(None))
    if unknown is not None:
        content = path.read_bytes()
        entries = [match.start() + 16 for match in re.finditer(b"stsd............mp4a", content, re.DOTALL)]
        begin = entries[unknown]
        end = begin - 4 + int.from_bytes(content[begin - 4 : begin], "big")
        strange = content[begin:end].replace(b"mp4a", b"zzzz").replace(b"esds", b"sdse").replace(b"wave", b"evaw")
        path.write_bytes(content[:begin] + strange + content[end:])
    return path


def amplitude(tone: np.ndarray) -> float:
    return float(tone[4000:12000].std() * np.sqrt(2))


@pytest.mark.parametrize(("default", "peak"), [(0, 0.05), (1, 0.5)])
def test_the_track_marked_default_is_heard(tmp_path: Path, default: int, peak: float) -> None:
    path = two_tracks(tmp_path / "a.mkv", default)
    assert amplitude(load_audio(path)) == pytest.approx(peak, rel=0.1)
    write_video(tmp_path / "out.mp4", VideoReader(path), Sound.read(path))
    assert amplitude(load_audio(tmp_path / "out.mp4")) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(("unknown", "peak"), [(0, 0.5), (1, 0.05)])
def test_a_track_of_an_unknown_codec_hides_no_other_one(tmp_path: Path, unknown: int, peak: float) -> None:
    path = two_tracks(tmp_path / "a.mov", unknown, unknown)
    assert probe(path).channels == 1
    assert amplitude(load_audio(path)) == pytest.approx(peak, rel=0.1)
    for suffix in (".mov", ".mkv"):
        with pytest.warns(UserWarning, match=rf"track {unknown + 2} \(audio\) is left out: its codec is not known"):
            assert shift_sound(path, tmp_path / f"out{suffix}", 0.0) == "copied"
        assert amplitude(load_audio(tmp_path / f"out{suffix}")) == pytest.approx(peak, rel=0.1)


def test_unknown_tracks_of_others(failing_dir: Path, tmp_path: Path) -> None:
    for name in ("04_unknown_second_track.mov", "05_unknown_first_track.mov"):
        with pytest.warns(UserWarning, match="left out"):
            shift_sound(failing_dir / name, tmp_path / "out.mp4", 0.0)
        assert len(load_audio(tmp_path / "out.mp4")) == pytest.approx(5 * 16000, abs=800)
