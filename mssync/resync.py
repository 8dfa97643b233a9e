"""Mending a video: the sound is moved by the measured offset, the picture is copied as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from mssync.errors import InputError, PathLike, output_file, written_whole
from mssync.meter import SyncMeter
from mssync.score import IN_SYNC_MS, score
from mssync.soundtrack import LAYOUTS
from mssync.syncer import MAX_OFFSET
from mssync.video import PLAYED, first_shown, open_media, picture_stream, sound_stream

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
SOUND = {".mp4": "aac", ".mov": "aac", ".mkv": "libopus", ".webm": "libopus"}  # where the sound cannot be copied
RATE = 48000  # Hz, of sound that is encoded: the only common one that libopus takes


def resync(path: PathLike, output: PathLike, meter: SyncMeter, max_offset: int = MAX_OFFSET) -> str:
    """Measure a video and write it with its sound moved into place; returns what was done, in words.

    Raises InputError: the offset cannot be told; and as `score.score` and `shift_sound`.
    """
    check_output(output)
    found = score(path, meter, max_offset)
    if not found.reading.sure:
        raise InputError(f"{path}: {found.says}; nothing is written")
    offset = found.reading.milliseconds
    if abs(offset) <= IN_SYNC_MS:
        shift_sound(path, output, 0.0)
        return f"{found.says}: copied as it was"
    how = shift_sound(path, output, offset)
    return (
        f"{found.says}: moved, picture and sound copied" if how == "copied" else f"{found.says}: moved, sound encoded"
    )


def check_output(output: PathLike) -> Path:
    """Raises InputError when it cannot be written, or no container of that name is known."""
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"the output {output} must end in one of {', '.join(FORMATS)}")
    return output_file(output, suffix)


def shift_sound(path: PathLike, output: PathLike, milliseconds: float) -> str:
    """Write a video whose sound comes `milliseconds` later (earlier, where negative); its picture is copied.

    Rotation, metadata, subtitles and further tracks are kept as far as the container holds them; all sound tracks are
    moved. The sound is copied too, unless the container cannot hold it; sound before the first picture is cut.
    Returns "copied" or "encoded": what happened to the sound.

    Raises InputError: no video, no sound, the picture does not fit into the container, the output cannot be written.
    """
    path, suffix = Path(path), check_output(output).suffix.lower()
    with written_whole(output, suffix) as temporary, open_media(path) as source:
        picture = picture_stream(source)
        if picture is None or sound_stream(source) is None:
            raise InputError(f"{path} has no {'sound' if picture is not None else 'picture'}; nothing can be moved")
        try:
            options = {"movflags": "+faststart"} if suffix in (".mp4", ".mov") else {}
            with av.open(str(temporary.absolute()), "w", format=FORMATS[suffix], options=options) as target:
                target.metadata.update(source.metadata)
                tracks = _tracks(source, target, picture, suffix, path)
                begin = first_shown(path) or Fraction(0)
                _write(source, target, tracks, Fraction(round(milliseconds * 1000), 1_000_000), begin)
        except av.FFmpegError as error:
            raise InputError(f"cannot write {output}: {error.strerror}") from error
    return "encoded" if any(track.encoder for track in tracks.values() if track) else "copied"


@dataclass
class _Track:
    """Where the packets of a stream go. encoder: of sound that is decoded and encoded again."""

    stream: Any
    encoder: Any = None


def _tracks(
    source: InputContainer, target: OutputContainer, picture: Any, suffix: str, path: Path
) -> dict[int, _Track]:
    """The track of each of the source's streams, by index. Those that cannot be read, or that the container cannot
    hold, are left out, with a warning that names them."""
    tracks: dict[int, _Track] = {}
    streams: Any = source.streams
    for stream in streams:
        name = stream.codec_context.codec.canonical_name if stream.codec_context else ""
        played = stream.type != "audio" or name in PLAYED.get(suffix, {name})
        if played and name in target.supported_codecs:
            with suppress(ValueError, av.FFmpegError):  # subtitles of some kinds, data
                tracks[stream.index] = _Track(target.add_stream_from_template(stream))
        if stream.index not in tracks and stream.type == "audio" and stream.codec_context:
            layout = LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
            encoder = target.add_stream(SOUND[suffix], rate=RATE, layout=layout)
            tracks[stream.index] = _Track(encoder, encoder)
        if stream.index in tracks:
            tracks[stream.index].stream.metadata.update(stream.metadata)
        elif stream is picture:
            raise InputError(f"{path}: {suffix[1:]} cannot hold its picture ({name}); let the output end in .mkv")
        else:
            why = f"{suffix[1:]} cannot hold {name}" if name else "its codec is not known"
            warnings.warn(f"{path}: track {stream.index + 1} ({stream.type}) is left out: {why}", stacklevel=2)
    return tracks


def _write(
    source: InputContainer, target: OutputContainer, tracks: dict[int, _Track], shift: Fraction, begin: Fraction
) -> None:
    """begin: when the first picture is shown, before which no sound is written."""
    chosen = [source.streams[index] for index in tracks]
    packet: Any
    for packet in _timed(source.demux(*chosen)):
        track = tracks[packet.stream.index]
        if track.encoder:
            for frame in packet.decode():
                end = frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate) + shift
                if end > begin:
                    frame.pts += round(shift / frame.time_base)
                    target.mux(track.encoder.encode(frame))
        elif packet.pts is not None:
            if packet.stream.type == "audio":
                # One more packet than is heard: a decoder needs what came before.
                if _seconds(packet.pts + 2 * packet.duration, packet) + shift <= begin:
                    continue
                moved = round(shift / packet.time_base)
                packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
            packet.stream = track.stream
            target.mux(packet)
    for track in tracks.values():
        if track.encoder:
            target.mux(track.encoder.encode(None))


def _timed(packets: Iterator[Any]) -> Iterator[Any]:
    """Packets with a decoding time each: Matroska leaves out those before the first picture is shown. The empty
    packets at the end, which flush decoders, are kept for sound alone."""
    waiting: dict[int, list[Any]] = {}
    for packet in packets:
        early = waiting.setdefault(packet.stream.index, [])
        if packet.pts is None:
            if packet.stream.type == "audio":
                yield packet
        elif packet.dts is None:
            early.append(packet)
        else:
            for back, held in enumerate(reversed(early), start=1):
                held.dts = min(packet.dts - back * (held.duration or 1), held.pts)
            yield from early
            early.clear()
            yield packet


def _seconds(time: int, clock: Any) -> Fraction:
    return time * clock.time_base if clock.time_base else Fraction(0)
