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

from mssync.errors import InputError, PathLike, as_path, input_file, output_file, written_whole
from mssync.meter import SyncMeter
from mssync.soundtrack import AAC_LAYOUTS
from mssync.sync.score import IN_SYNC_MS, failure, find_videos, score, shipped_meter
from mssync.syncer import MAX_OFFSET
from mssync.video import PLAYED, first_shown, open_media, packets, picture_stream, sound_stream

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
SOUND = {".mp4": "aac", ".mov": "aac", ".mkv": "libopus", ".webm": "libopus"}  # where the sound cannot be copied
MAX_GIVEN_MS = 60_000  # by which sound is moved by hand; more is no offset but another recording
RATE = 48000  # Hz, of sound that is encoded: the only common one that libopus takes


@dataclass(frozen=True)
class Mended:
    """What was done to a video, or would be.

    file: the video. output: what was written; None: nothing.
    offset_ms: by how much the sound led (negative: was late). probability: that this is right; None where it was given.
    says: what was done, in words.
    """

    file: str
    output: str | None
    offset_ms: float
    probability: float | None
    says: str


def resync(
    video: PathLike,
    output: PathLike | None,
    meter: SyncMeter | None = None,
    max_offset: int | None = None,
    *,
    offset: float | None = None,
    dry_run: bool = False,
) -> Mended:
    """Measure a video and write it with its sound moved into place; the picture is copied.

    output: the video to write, .mp4, .mov, .mkv or .webm; may be None with `dry_run`.
    meter: the shipped one unless given.
    max_offset: frames of 40 ms to both sides that are tried; 15 unless given.
    offset: ms by which the sound leads (negative: is late), to be taken instead of measuring it.
    dry_run: tell what would be done, write nothing.
    Raises InputError: the offset cannot be told, is no number of up to a minute, or comes with what measures; and as
    `score.score` and `shift_sound`.
    """
    if output is None and not dry_run:
        raise InputError("give the output, a video to write")
    source = input_file(video)
    if output is not None and check_output(output).resolve() == source.resolve():
        raise InputError(f"{output} is also an input; give the output another name")
    if offset is None:
        found = score(video, meter, MAX_OFFSET if max_offset is None else max_offset)
        if not found.reading.sure:
            raise InputError(f"{video}: {found.says}; nothing is written")
        offset, probability, says = found.reading.milliseconds, found.reading.probability, found.says
        move = 0.0 if abs(offset) <= IN_SYNC_MS else offset
    else:
        if meter is not None or max_offset is not None:
            raise InputError("an offset that is given is not measured: leave out the meter and max_offset")
        if not abs(offset) <= MAX_GIVEN_MS:  # true for NaN, too
            raise InputError(f"the offset must be between -{MAX_GIVEN_MS} and {MAX_GIVEN_MS} ms, got {offset:g}")
        move, probability, says = offset, None, f"offset given as {offset:+g} ms"
    if dry_run:
        check_movable(source)
        done = f"its sound would be moved by {move:+.0f} ms" if move else "would be copied as it is"
    elif shift_sound(source, str(output), move) == "encoded":
        done = "moved, sound encoded" if move else "not moved, sound encoded"
    else:
        done = "moved, picture and sound copied" if move else "copied as it was"
    return Mended(str(video), None if dry_run else str(output), offset, probability, f"{says}: {done}")


def resync_all(
    folder: PathLike,
    output: PathLike | None,
    meter: SyncMeter | None = None,
    max_offset: int | None = None,
    *,
    offset: float | None = None,
    dry_run: bool = False,
) -> Iterator[Mended | Failed]:
    """`resync` every video of a folder into another one, under its name (.mkv where no such file can be written).

    Gives what was done with each as soon as it is done; a video that cannot be mended does not keep the others back.
    output: made where it is missing; may be None with `dry_run`. All else as in `resync`.
    Raises InputError: no videos, the output cannot be a folder or is the input.
    """
    files = find_videos([as_path(folder)])
    if output is None and not dry_run:
        raise InputError("give the output, a folder to write to")
    target = as_path(folder if output is None else output)
    if output is not None and target.resolve() == as_path(folder).resolve():
        raise InputError(f"{target} is also the input; give the output another name")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; give a folder to write to")
    if not dry_run:
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the folder {target} cannot be made: {error.strerror}") from error
    if offset is None and meter is None:
        meter = shipped_meter()
    taken: set[Path] = set()
    for file in files:
        path = target / (file.name if file.suffix.lower() in FORMATS else f"{file.stem}.mkv")
        try:
            if path in taken:
                raise InputError(f"{file}: {path} is written of another video of this name already; rename one")
            taken.add(path)
            yield resync(file, None if dry_run else path, meter, max_offset, offset=offset, dry_run=dry_run)
        except Exception as error:
            yield Failed(str(file), failure(file, error))


@dataclass(frozen=True)
class Failed:
    """A video that could not be worked on, and why."""

    file: str
    error: str


def as_row(done: Mended | Failed) -> dict[str, Any]:
    """One line of a table of files."""
    if isinstance(done, Failed):
        return {"file": done.file, "error": done.error}
    probability = None if done.probability is None else round(done.probability, 4)
    row = {"file": done.file, "error": "", "output": done.output, "offset_ms": round(done.offset_ms, 1)}
    return row | {"probability": probability, "says": done.says}


def check_movable(path: PathLike) -> None:
    """Raises InputError: no video, or one without sound."""
    with open_media(path) as source:
        _picture_with_sound(source, path)


def _picture_with_sound(source: InputContainer, path: PathLike) -> Any:
    picture = picture_stream(source)
    if picture is None or sound_stream(source) is None:
        raise InputError(f"{path} has no {'sound' if picture is not None else 'picture'}; nothing can be moved")
    return picture


def check_output(output: PathLike) -> Path:
    """Raises InputError when it cannot be written, or no container of that name is known."""
    suffix = as_path(output).suffix.lower()
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
        picture = _picture_with_sound(source, path)
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
            layout = AAC_LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
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
    for packet in _timed(packets(source, *chosen)):
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
