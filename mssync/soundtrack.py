"""The sound of a video that is made: as it was given, while models hear 16 kHz mono.

Packets are copied where an MP4 can hold them and players play them; other sound is encoded at its own rate, up to
48 kHz, with its own channels.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mssync.audio import JITTER, Line, load_audio
from mssync.errors import PathLike
from mssync.inputs import Speech, sound_file
from mssync.video import (
    FRAME,
    PLAYED,
    Clock,
    EncodedSound,
    first_shown,
    open_media,
    packets,
    sound_stream,
    time_of,
)

if TYPE_CHECKING:
    from av.container import OutputContainer

AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}  # that AAC knows, by channels
MISSING = Fraction(1, 10)  # seconds between packets that do not tell how long they are, from which on some are missing


@dataclass(frozen=True)
class Sound:
    """Sound as it was given, and as models hear it.

    Attributes:
        speech: (n,) float32, mono, 16 kHz: see `audio.load_audio`
        path: the file that it is from
        name: what messages call it
    """

    speech: NDArray[np.float32]
    path: Path
    name: str

    @classmethod
    def read(cls, path: PathLike, min_seconds: float = 0.0, name: str | None = None) -> Sound:
        """Of a recording or a video. Raises InputError as `audio.load_audio`."""
        return cls(load_audio(path, min_seconds), Path(path), name or str(path))

    @classmethod
    def given(cls, speech: Speech, sample_rate: int | None = None, min_seconds: float = 0.0) -> Sound:
        """Of what people hold (see `inputs.sound_file`), of which a copy is kept as long as the sound.

        Raises InputError.
        """
        with ExitStack() as opened:
            file = opened.enter_context(sound_file(speech, sample_rate))
            return cls.read(file.path, min_seconds, file.name).keeping(opened)
        raise AssertionError("unreachable: the block above returns")

    def keeping(self, opened: ExitStack) -> Sound:
        """The same; what is opened stays so until nobody has it any more."""
        weakref.finalize(self, opened.pop_all().close)
        return self

    def track(self, target: OutputContainer) -> EncodedSound | CopiedSound:
        """A sound track of an MP4 that is written with it."""
        zero, copied = first_shown(self.path), _can_be_copied(self.path)
        with ExitStack() as opened:
            source = opened.enter_context(open_media(self.path))
            stream: Any = sound_stream(source)
            if copied:
                return CopiedSound(target, stream, zero, opened.pop_all())
            line = Line(source, stream, zero, self.path)
            given, rate = line.first.layout, line.first.sample_rate
            layout = AAC_LAYOUTS.get(given.nb_channels)
            if layout is None:
                warnings.warn(f"{self.name}: its {given.nb_channels} channels of sound are mixed to two", stacklevel=2)
                layout = "stereo"
            return EncodedSound(target, line.blocks(layout, rate), layout, rate, opened.pop_all())
        raise AssertionError("unreachable: the block above returns")


class CopiedSound:
    """Copies the packets of a sound track, in step with the picture.

    stream: of an open container; zero: time 0 by its clock, None for its first sample; opened: closed at the end.
    """

    def __init__(self, target: OutputContainer, stream: Any, zero: Fraction | None, opened: ExitStack) -> None:
        self._target, self._opened = target, opened
        self._track: Any = target.add_stream_from_template(stream)
        self._track.metadata.update({k: v for k, v in stream.metadata.items() if k in ("language", "title")})
        self._packets = self._on_time(stream, first_heard(stream) if zero is None else zero)
        self._next: tuple[Fraction, Any] | None = next(self._packets, None)

    def write_until(self, count: int) -> None:
        """Write what is heard during the first `count` video frames, as far as it is not written yet."""
        while self._next is not None and self._next[0] < count * FRAME:
            packet = self._next[1]
            packet.stream = self._track
            self._target.mux(packet)
            self._next = next(self._packets, None)

    def finish(self) -> None:
        self._opened.close()

    @staticmethod
    def _on_time(stream: Any, zero: Fraction) -> Iterator[tuple[Fraction, Any]]:
        """Packets with their start in seconds after time 0. One more comes before it than is heard: a decoder needs
        what came before."""
        for packet in packets(stream.container, stream):
            start = time_of(packet)
            if start is None or start + 2 * (packet.duration or 0) * packet.time_base <= zero:
                continue
            shift = round(zero / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            yield start - zero, packet


def first_heard(stream: Any) -> Fraction:
    """When the first sample of a sound track is heard, by the clock of its file: encoders put some before it that
    decoders leave out."""
    path = stream.container.name
    with open_media(path) as container:
        frames = container.decode(container.streams[stream.index])
        first: Any = next(frames)
    return time_of(first) or Fraction(0)


def _can_be_copied(path: Path) -> bool:
    """Whether the packets of a file's sound follow each other without gaps, and an MP4 can hold them."""
    with open_media(path) as container:
        stream: Any = sound_stream(container)
        if stream.codec_context.codec.canonical_name not in PLAYED[".mp4"]:
            return False
        clock, end = Clock(Fraction(0)), None
        for packet in packets(container, stream):
            if packet.pts is None or packet.time_base is None:
                continue
            duration = (packet.duration or 0) * packet.time_base
            zero = clock.zero
            start = clock.place(time_of(packet), duration)
            if end is not None and (abs(start - end) > (JITTER if duration else MISSING) or clock.zero != zero):
                return False
            end = start + duration
    return end is not None
