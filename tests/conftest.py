"""Shared fixtures: the folder of real recordings, and small media files made on the spot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray


def shared(name: str, variable: str) -> Path:
    """A folder that is not in the repository: that of an environment variable, or one in ../shared beside it."""
    default = Path(__file__).parents[1] / ".." / "shared" / name
    folder = Path(os.environ.get(variable, default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no files in {folder} (set {variable})")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real clips, portraits and recordings."""
    return shared("data", "MSSYNC_DATA")


@pytest.fixture(scope="session")
def failing_dir() -> Path:
    """Files of faults that were found."""
    return shared("failing", "MSSYNC_FAILING")


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A smooth picture (40, 64, 3) with different corners."""
    y, x = np.mgrid[:40, :64]
    return np.stack([4 * x, 6 * y, 255 - 2 * x - 3 * y], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def tone() -> Callable[..., NDArray[np.float32]]:
    """tone(seconds, rate, silence=0): a 440 Hz sine of amplitude 0.5 after some seconds of silence."""

    def make(seconds: float, rate: int, silence: float = 0) -> NDArray[np.float32]:
        time = np.arange(round(seconds * rate)) / rate
        return np.where(time >= silence, 0.5 * np.sin(2 * np.pi * 440 * (time - silence)), 0).astype(np.float32)

    return make


@pytest.fixture
def make_sound(tmp_path: Path) -> Callable[..., Path]:
    """make_sound(name, samples (n,) or (n, channels), rate, codec="pcm_s16le") writes a sound file."""

    def make(name: str, samples: NDArray[np.float32], rate: int, codec: str = "pcm_s16le") -> Path:
        channels = samples[:, None] if samples.ndim == 1 else samples
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels.shape[1]]
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=rate, layout=layout)
            _encode_sound(container, stream, channels.T, rate, layout, start=0)
            container.mux(stream.encode(None))
        return tmp_path / name

    return make


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """make_video(name, pictures, times, ...) writes a video whose pictures start at the given seconds.

    A picture is a grey level or an array (height, width, 3); the last one lasts for 1/rate seconds. Sound
    (n,) at 48 kHz starts at `sound_start` seconds.
    """

    def make(
        name: str,
        pictures: Sequence[int | NDArray[np.uint8]],
        times: Sequence[float | Fraction],
        sound: NDArray[np.float32] | None = None,
        sound_start: float = 0,
        codec: str = "libx264",
        sound_codec: str = "aac",
        rate: int | Fraction = 25,
    ) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = time_base = Fraction(1, 30000)
            track = None if sound is None else container.add_stream(sound_codec, rate=48000, layout="mono")
            arrays = [p if isinstance(p, np.ndarray) else np.full((48, 64, 3), p, np.uint8) for p in pictures]
            stream.height, stream.width = arrays[0].shape[:2]
            for array, time in zip(arrays, times, strict=True):
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts, frame.time_base = round(time / time_base), time_base
                container.mux(stream.encode(frame))
            if track is not None:
                _encode_sound(container, track, sound[None], 48000, "mono", start=round(sound_start * 48000))
            container.mux(stream.encode(None))
            if track is not None:
                container.mux(track.encode(None))
        return tmp_path / name

    return make


def _encode_sound(container, stream, samples: NDArray, rate: int, layout: str, start: int) -> None:
    for begin in range(0, samples.shape[1], 1000):
        block = np.ascontiguousarray(samples[:, begin : begin + 1000], np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start + begin, Fraction(1, rate)
        container.mux(stream.encode(frame))


@pytest.fixture(scope="session")
def portrait() -> NDArray[np.uint8]:
    """A real face (320, 320, 3): the astronaut, about 130 pixels from forehead to chin, right of the middle."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:320, 60:380])


@pytest.fixture(scope="session")
def film(portrait: NDArray[np.uint8]) -> Callable[..., Path]:
    """film(path, seconds=2.4, pictures=None) writes a video with noise for speech.

    pictures: (H, W, 3) uint8, one a frame; the portrait, moving a little, unless given.
    """
    from mssync.video import write_video

    def make(path: Path, seconds: float = 2.4, pictures: Sequence[NDArray[np.uint8]] | None = None) -> Path:
        if pictures is None:
            shifts = [round(4 * np.sin(t / 5)) for t in range(round(25 * seconds))]
            pictures = [np.roll(portrait, shift, 1) for shift in shifts]
        sound = 0.1 * np.random.default_rng(len(pictures)).standard_normal(640 * len(pictures))
        write_video(path, pictures, sound.astype(np.float32))
        return path

    return make


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that may be listed only, and a user whom permissions bind (tests may run as root)."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    locked = Path(tempfile.mkdtemp())  # unlike those above tmp_path, its parents may be entered by anyone
    (locked / "file.wav").write_bytes(b"RIFF")
    (locked / "file.wav").chmod(0)
    locked.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield locked
    finally:
        os.seteuid(user)
        locked.chmod(0o700)
        shutil.rmtree(locked)
