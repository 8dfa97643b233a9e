"""Time: whatever a file does to its clocks, a click is heard with the flash that is seen with it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mssync.audio import SAMPLE_RATE, load_audio
from mssync.video import FPS, VideoReader, first_shown, probe

FLASHES = (1.0, 2.4, 3.2)  # seconds from the first picture that is made
SECONDS = 4.0
RATE = 48000
CODECS = {  # of picture and sound, by container
    ".mp4": ("libx264", "aac"), ".mov": ("libx264", "aac"), ".mkv": ("libx264", "libopus"),
    ".webm": ("libvpx-vp9", "libopus"), ".ts": ("libx264", "aac"), ".flv": ("libx264", "aac"),
    ".avi": ("mpeg4", "pcm_s16le"),
}  # fmt: skip


def film(path: Path, picture_start: float = 0, sound_start: float = 0, options: dict[str, str] | None = None) -> Path:
    """A dark video of SECONDS with a click in silence at each flash. Starts: by the clock of the file."""
    picture_codec, sound_codec = CODECS[path.suffix]
    with av.open(str(path), "w", options=options or {}) as container:
        picture = container.add_stream(picture_codec, rate=FPS, options={"g": "30", "bf": "2", "sc_threshold": "0"})
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(sound_codec, rate=RATE, layout="mono")
        samples = np.zeros(round((SECONDS + picture_start - sound_start) * RATE), np.float32)
        for second in FLASHES:
            at = round((second + picture_start - sound_start) * RATE)
            if at >= 0:
                samples[at : at + RATE // 100] = 0.5 * np.sin(np.arange(RATE // 100) * 0.2)
        packets: list[Any] = []
        for k in range(round(SECONDS * FPS)):
            bright = any(0 <= k / FPS - second < 0.08 for second in FLASHES)
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 230 * bright + 16, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k + round(picture_start * FPS), Fraction(1, FPS)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        for begin in range(0, len(samples), 960):
            block = av.AudioFrame.from_ndarray(samples[None, begin : begin + 960], format="fltp", layout="mono")
            block.sample_rate, block.time_base = RATE, Fraction(1, RATE)
            block.pts = begin + round(sound_start * RATE)
            packets += sound.encode(block)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts if p.dts is not None else p.pts) * p.time_base)):
            container.mux(packet)
    return path


def copied(source: Path, target: Path, kept: Callable[[Any], bool], moved: float = 0) -> Path:
    """The packets of a file that are to be kept, all `moved` seconds later."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams, early = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}, 0
        for packet in old.demux():
            if packet.pts is None or not kept(packet):
                continue
            if packet.dts is None:  # Matroska leaves it out before the first picture
                early += 1
                packet.dts = early - round(0.08 / packet.time_base)
            shift = round(moved / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return target


def seen(path: Path) -> np.ndarray:
    """When flashes begin, in seconds."""
    light = np.array([frame.mean() for frame in VideoReader(path)]) > 120
    return np.flatnonzero(light & ~np.roll(light, 1)) / FPS


def heard(path: Path) -> np.ndarray:
    """When clicks begin, in seconds."""
    loud = np.flatnonzero(np.abs(load_audio(path)) > 0.1)
    return loud[np.diff(loud, prepend=-SAMPLE_RATE) > SAMPLE_RATE // 10] / SAMPLE_RATE


def check(path: Path, flashes: int = len(FLASHES), clicks: int | None = None) -> None:
    light, sound = seen(path), heard(path)
    assert len(light) == flashes
    assert len(sound) == (flashes if clicks is None else clicks)
    for click in sound:
        assert np.abs(light - click).min() < 0.006


@pytest.mark.parametrize(
    "suffix", [".mp4", ".mkv", ".ts", *(pytest.param(s, marks=pytest.mark.slow) for s in (".mov", ".webm", ".flv"))]
)
@pytest.mark.parametrize(("picture_start", "sound_start"), [(0, 0), (0.4, 0), (0, 0.4), (1.2, 1.0)])
def test_either_may_start_later(tmp_path: Path, suffix: str, picture_start: float, sound_start: float) -> None:
    path = film(tmp_path / f"a{suffix}", picture_start, sound_start)
    check(path)
    assert VideoReader(path).duration == pytest.approx(SECONDS, abs=0.05)


def test_avi_counts_from_the_first_picture_that_is_shown(tmp_path: Path) -> None:
    """It holds no time of presentation: ffmpeg shows the first picture when a second one has come."""
    path = film(tmp_path / "a.avi")
    with av.open(str(path)) as container:
        late = float(next(container.decode(video=0)).pts / FPS)
    assert late == pytest.approx(0.04)
    np.testing.assert_allclose(seen(path), FLASHES, atol=0.001)
    np.testing.assert_allclose(heard(path), np.array(FLASHES) - late, atol=0.006)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_a_gap_in_the_sound_is_silence(tmp_path: Path, suffix: str) -> None:
    whole = film(tmp_path / f"a{suffix}")
    start = first_shown(whole)

    def there(packet: Any) -> bool:
        return packet.stream.type == "video" or not 1.5 < float(packet.pts * packet.time_base - start) < 2.9

    check(copied(whole, tmp_path / f"b{suffix}", there), clicks=2)


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_recording_that_begins_between_keyframes(tmp_path: Path, suffix: str) -> None:
    whole = film(tmp_path / f"a{suffix}")
    begin = float(first_shown(whole) or 0)
    cut = copied(whole, tmp_path / f"b{suffix}", lambda p: float(p.pts * p.time_base) - begin > 0.5)
    check(cut, flashes=2)  # the first keyframe after that is at 1.2 s
    assert VideoReader(cut).duration == pytest.approx(SECONDS - 1.2, abs=0.05)


def test_the_clock_of_a_transport_stream_may_wrap(tmp_path: Path) -> None:
    path = film(tmp_path / "a.ts")
    wrapped = 2**33 / 90000
    check(copied(path, tmp_path / "b.ts", lambda _: True, moved=wrapped - 4.5))


def test_edit_lists_and_times_before_zero(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1.0, 0.5, {"use_editlist": "1", "movflags": "+faststart"})
    check(path)
    check(copied(path, tmp_path / "b.mkv", lambda _: True, moved=-0.7))


def test_joined_recordings_are_read_to_their_end(tmp_path: Path, make_sound: Any, tone: Any) -> None:
    one, two = (make_sound(f"{k}.ogg", tone(k, 48000), 48000, "libopus") for k in (2, 3))
    joined = tmp_path / "joined.ogg"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    assert len(load_audio(joined)) / SAMPLE_RATE == pytest.approx(5, abs=0.03)
    assert probe(joined).seconds == pytest.approx(5, abs=0.03)
    first, second = film(tmp_path / "a.ts"), film(tmp_path / "b.ts", 0.2, 0.2)
    both = tmp_path / "joined.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    light, sound = seen(both), heard(both)
    assert len(light) == len(sound) == 2 * len(FLASHES)
    np.testing.assert_allclose(light, sound, atol=0.1)  # packets at the seam are lost
