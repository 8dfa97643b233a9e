"""Videos, in and out: any common video to 8-bit RGB, and RGB with sound to an MP4; what any media file holds.

Everything streams: a reader or a writer holds a few frames at a time, however long the video is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from mssync import provenance
from mssync.colour import to_srgb
from mssync.errors import InputError, PathLike, input_file, written_whole
from mssync.pictures import MAX_SIDE, RGB, displayed_size, of_another_format, open_image
from mssync.provenance import Provenance

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from mssync.signing import Signer
    from mssync.soundtrack import Sound

T = TypeVar("T")

FPS = 25
FRAME = Fraction(1, FPS)  # seconds
MAX_FRAME = 8192 * 4320  # pixels: 8K; a small file can claim far more, and every frame takes three bytes a pixel
MAX_STILL = 60  # seconds that one frame may be shown: a damaged time stamp asks for years of it
BACK = 1  # seconds by which time stamps run back at most, but where recordings were joined
# x264's constant quality, visually close to the input, and its effort: less than half the time of what it does unless
# told, for a file an eighth larger and 0.9 dB below.
QUALITY = {"crf": "17", "preset": "veryfast"}
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz; other sound becomes 48 kHz
CHANNEL_BITS, BITS_A_SAMPLE = 96000, 4  # a second of one channel of AAC at most, and of slow sound
PLAYED = {".mp4": {"aac", "mp3", "ac3", "eac3", "opus", "alac"}}  # an MP4 holds more than most players play
BT709 = 1  # the number of this colour space, its primaries and its transfer curve in H.264


# Containers


def open_media(path: PathLike) -> InputContainer:
    """Open a video or sound file; the caller closes it (it is a context manager).

    Raises InputError: missing, unreadable or empty file, not media, a truncated MP4.
    """
    path = input_file(path)
    _check_complete(path)
    try:
        # An absolute path, since ffmpeg would take "a:b.mp4" for a protocol. A playlist must not reach the network.
        local = {"protocol_whitelist": "file"}
        container = av.open(str(path.absolute()), options=local, metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{path} is not a video or sound file that can be read") from error
    name = container.format.name
    # ffmpeg also "plays" text, single pictures and lists of other files.
    if name in ("tty", "image2", "concat", "hls", "dash") or name.endswith("_pipe"):
        container.close()
        raise InputError(f"{path} is not a video or sound file")
    return container


def packets(container: InputContainer, *streams: Stream) -> Iterator[Any]:
    """Packets of some streams, and at last an empty one for each, which flushes its decoder."""
    try:
        yield from container.demux(*streams)
    except IndexError:  # of PyAV, at the very end, where another stream began on the way (FLV, MPEG-TS)
        return


def decode(container: InputContainer, stream: Stream, path: PathLike, whole: bool = True) -> Iterator[Any]:
    """Decode the frames of one stream, passing over parts that are damaged.

    Warns at the end if there was damage or, with `whole`, if the stream stopped well before its declared length.
    Raises InputError if nothing can be decoded.
    """
    count = damaged = 0
    begin, end = time_of_start(stream), Fraction(0)  # seconds
    try:
        for packet in packets(container, stream):
            try:
                frames: list[Any] = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                if frame.pts is not None:
                    begin = time_of(frame) if begin is None else begin
                    end = (frame.pts + (frame.duration or 0)) * frame.time_base
                count += 1
                yield frame
    except av.FFmpegError:  # the file structure itself is broken: nothing more to read
        damaged += 1
    if count == 0:
        raise InputError(f"{path} cannot be decoded: its {stream.type} is empty or damaged")
    if damaged:
        warnings.warn(f"{path} is damaged: {damaged} of its parts could not be decoded", stacklevel=2)
    elif whole and end - (begin or 0) < Fraction(9, 10) * declared_seconds(container, stream) - Fraction(1, 2):
        seconds = float(end - (begin or 0))
        warnings.warn(f"{path} ends early, after {seconds:.1f} seconds of {stream.type}", stacklevel=2)


def declared_seconds(container: InputContainer, stream: Stream) -> Fraction:
    """Length of a stream by the header of the file; 0 where the header does not say."""
    # For bare MP3 and AAC streams ffmpeg only guesses a length from the bit rate.
    if stream.duration is None or stream.time_base is None or container.format.name in ("mp3", "aac"):
        return Fraction(0)
    return stream.duration * stream.time_base


def _check_complete(path: Path) -> None:
    """Raise InputError if `path` is an MP4 or QuickTime file of which the end is missing.

    ffmpeg plays what is there of such a file without a word. Its top-level boxes tell how long it has to be:
    each starts with its length (4 bytes, big-endian) and its type (4 bytes), ISO/IEC 14496-12, 4.2.
    """
    size = path.stat().st_size
    has_index = False
    position = 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if position == 0 and kind != b"ftyp":
                return  # another format, or a QuickTime file too old to check
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if length < 8:  # 0: the box reaches to the end of the file
                break
            has_index = has_index or kind in (b"moov", b"meta")
            position += length
    if position > size:
        raise InputError(f"{path} is truncated: it has {size} of {position} bytes; copy or export it again")
    if not has_index:
        raise InputError(f"{path} is truncated: its index (moov) is missing; copy or export it again")


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The stream of moving pictures that is meant: the cover of an album is a video stream too, but no video."""
    cover = Disposition.attached_pic | Disposition.timed_thumbnails
    return _meant([s for s in container.streams.video if not s.disposition & cover])


def has_picture(path: PathLike) -> bool:
    """Whether a file is a video, and not sound alone. Raises InputError as `open_media`."""
    with open_media(path) as container:
        return picture_stream(container) is not None


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The sound track that is meant: of those that can be decoded the one marked default, or else the first."""
    return _meant(list(container.streams.audio))


def _meant(streams: list[T]) -> T | None:
    known: list[Any] = [s for s in streams if s.codec_context is not None]  # type: ignore[attr-defined]
    return next((s for s in known if s.disposition & Disposition.default), next(iter(known), None))


# Time


def time_of(piece: Any) -> Fraction | None:
    """When a packet or a frame is presented, in seconds by the clock of its file; None where nobody knows."""
    return None if piece.pts is None or piece.time_base is None else piece.pts * piece.time_base


def time_of_start(stream: Stream) -> Fraction | None:
    """When a stream begins by the header of its file, whether what it begins with can be shown or not."""
    return None if stream.start_time is None or stream.time_base is None else stream.start_time * stream.time_base


def first_shown(path: PathLike) -> Fraction | None:
    """When the first picture of a video is shown, by the clock of its file. That is time 0 of everything in it.

    None for a file without pictures. Packets that come before it, in a recording that was cut in the middle of a group
    of pictures, are not shown. Raises InputError: nothing decodes.
    """
    with open_media(path) as container:
        stream = picture_stream(container)
        if stream is None:
            return None
        first = next(decode(container, stream, path, whole=False))
    return time_of(first) or Fraction(0)


class Clock:
    """When the pieces of a stream are presented, in seconds after `zero`, a time of the file's clock.

    A piece without a time stamp follows the one before it. Where time stamps run back by more than BACK seconds, or
    ahead by more than `ahead`, recordings were joined: what comes follows what came.
    """

    def __init__(self, zero: Fraction, ahead: Fraction | None = None) -> None:
        self.zero, self.ahead = zero, ahead
        self.end: Fraction | None = None

    def place(self, stamp: Fraction | None, duration: Fraction) -> Fraction:
        """The start of the next piece, in order of presentation."""
        start = (self.end or Fraction(0)) if stamp is None else stamp - self.zero
        if self.end is not None:
            jump = start - self.end
            if jump < -BACK or (self.ahead is not None and jump > self.ahead):
                self.zero += jump
                start = self.end
        self.end = start + duration
        return start


# Reading videos


class VideoReader:
    """The frames of a video at exactly 25 fps, as they are displayed; iterate it, as often as needed.

    Yields uint8 RGB of shape (height, width, 3). Frame k shows the video at k/25 seconds after its first
    frame: the nearest source frame, though none earlier than half a frame before its time. There are
    round(25 x duration) frames, give or take one; a video of 25 fps gives its own frames, no more and no
    fewer.

    Args:
        path: the file
        start: read from here on alone, in seconds from its first frame
        stop: read up to here alone; None for its end
        threads: whether to decode with several; what they make of damaged parts differs from time to time

    Attributes:
        path: the file
        width, height: pixels, after the rotation that the file asks for and with square pixels
        duration: seconds of picture, of the whole file
        has_audio: whether there is a sound track

    Raises InputError: missing, unreadable or empty file, not a video, no picture (also sound with cover art),
    truncated, nothing decodes, frames beyond 8K. Warns, when iterated, if parts are damaged.
    """

    def __init__(self, path: PathLike, start: float = 0.0, stop: float | None = None, threads: bool = True) -> None:
        self.path = input_file(path)
        self.threads = threads
        self.start = Fraction(start).limit_denominator(1000)
        self.count = None if stop is None else max(0, round((Fraction(stop) - self.start) * FPS))
        with open_media(path) as container:
            stream = _require_picture(container, self.path)
            self.has_audio = sound_stream(container) is not None
            first = next(decode(container, stream, self.path))
            self._origin = time_of(first)
            self._matrix = _display_matrix(first)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            self._size = (max(1, round(first.width * aspect)), first.height)
            if self._size[0] * self._size[1] > MAX_FRAME or max(self._size) > MAX_SIDE:
                width, height = self._size
                raise InputError(f"{path} has frames of {width}x{height} pixels; scale it to 8192x4320 or less")
            self.height, self.width = orient(self._rgb(first), self._matrix).shape[:2]
        with open_media(path) as container:
            self.duration = _scan(container, _require_picture(container, self.path), self._origin)[1]

    def __iter__(self) -> Iterator[RGB]:
        with open_media(self.path) as container:
            stream = _require_picture(container, self.path)
            if self.threads:
                stream.thread_type = "AUTO"
            else:
                stream.codec_context.thread_count = 1
            frames = decode(container, stream, self.path, whole=not self.start)
            if self.start and self._origin is not None and stream.time_base is not None:
                # To the keyframe before it; frames that end before the start are passed over by `on_grid`.
                container.seek(int((self._origin + self.start) / stream.time_base), stream=stream)
            timed = _timed(frames, stream, self._origin, self.start, self.path)
            for frame in islice(on_grid(timed), self.count):
                yield orient(self._rgb(frame), self._matrix)

    def _rgb(self, frame: VideoFrame) -> RGB:
        """One frame in sRGB, in the size of the first one: streams may change it half-way."""
        return to_srgb(frame, *self._size)


def on_grid(frames: Iterable[tuple[Fraction, Fraction, T]]) -> Iterator[T]:
    """Resample frames (start, duration in seconds, frame) to 25 a second, the first frame being at time 0.

    A frame is taken for the nearest grid time, so that no constant lag arises between 30 and 25 fps, but at
    most half a grid step early: a frame that lasts for seconds is shown until the next one starts.
    """
    count = 0
    end = Fraction(0)
    shown: T | None = None
    shown_at = Fraction(0)
    for start, duration, frame in frames:
        if shown is not None:
            turn = max((shown_at + start) / 2, start - FRAME / 2)
            while count * FRAME <= turn:
                yield shown
                count += 1
        shown, shown_at, end = frame, start, start + duration
    if shown is not None:
        for _ in range(count, max(1, round(end * FPS))):
            yield shown


def _timed(
    frames: Iterable[VideoFrame], stream: VideoStream, origin: Fraction | None, zero: Fraction, path: Path
) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
    """Give each frame its start, relative to `zero` seconds after the first frame (at `origin`), and its duration.

    Raises InputError: a frame is shown for more than a minute.
    """
    step = 1 / (stream.average_rate or Fraction(FPS))
    clock = Clock((origin or Fraction(0)) + zero)
    before = None
    for frame in frames:
        duration = frame.duration * frame.time_base if frame.duration and frame.time_base else step
        start = clock.place(time_of(frame), duration)
        start = start if before is None else max(start, before)
        if max(duration, start - (start if before is None else before)) > MAX_STILL:
            raise InputError(
                f"{path} shows one picture for more than {MAX_STILL} s; it is damaged, or no video of speech"
            )
        before = start
        yield start, duration, frame


def orient(picture: NDArray[Any], matrix: NDArray[np.int32] | None) -> NDArray[Any]:
    """Turn a picture (height, width, ...) as a display matrix asks for.

    The matrix (3, 3) of ISO/IEC 14496-12, 6.2.2 maps a pixel (x, y) to (a x + c y, b x + d y), where its
    first two rows begin with a, b and c, d. Phones write the four right angles, some of them mirrored.
    """
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(b) > abs(a):  # x and y change places
        picture, a, d = picture.swapaxes(0, 1), c, b
    picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(picture)


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32] | None:
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it there is something that ffmpeg knows and PyAV does not
        return rotation_matrix(frame.rotation)
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def rotation_matrix(degrees: int) -> NDArray[np.int32] | None:
    """The display matrix of what PyAV calls a rotation by so much; None for no turn."""
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.int32) if degrees else None


def _require_picture(container: InputContainer, path: Path) -> VideoStream:
    stream = picture_stream(container)
    if stream is None:
        found = "holds only sound" if sound_stream(container) else "holds no pictures that can be decoded"
        raise InputError(f"{path} {found}; give a video")
    return stream


def _scan(container: InputContainer, stream: Stream, zero: Fraction | None = None) -> tuple[int, float]:
    """Count the packets of a stream and measure its seconds, by reading the whole file without decoding.

    zero: a time before which nothing is presented; the first packet's unless given.
    Headers are no substitute: recordings of browsers declare no length, videos of variable rate a wrong one, joined
    ones that of a part.
    """
    count = 0
    clock, first, last = Clock(Fraction(0)), zero, zero
    with suppress(av.FFmpegError):  # a damaged end
        for packet in packets(container, stream):
            count += packet.size > 0
            if packet.pts is not None and packet.time_base is not None:
                duration = (packet.duration or 0) * packet.time_base
                start = clock.place(time_of(packet), duration)
                first = start if first is None else first if zero is not None else min(first, start)
                last = start + duration if last is None else max(last, start + duration)
    return count, float(last - first) if first is not None and last is not None else 0.0


# Writing videos


def write_video(
    path: PathLike,
    frames: Iterable[RGB],
    audio: NDArray[np.float32] | Sound | None,
    sample_rate: int = 16000,
    comment: str | None = None,
    generated: bool = True,
    model: str | None = None,
    precision: str | None = None,
    signer: Signer | None = None,
) -> int:
    """Write frames and sound to an MP4 (H.264 yuv420p, 25 fps, AAC, fast start); return the number of frames.

    The sound is cut, or filled up with silence, to the length of the picture; that of a file is kept as it is, see
    `mssync.soundtrack`. Frames are taken one at a time.
    The file appears under its name only when it is complete. Its metadata mark it as generated (see
    `mssync.provenance`): the description and an XMP packet do, and the comment unless you give another one.

    Args:
        path: must end in .mp4; an existing file is replaced
        frames: uint8 RGB (height, width, 3), all of one size; an odd height or width is made even by
            repeating the last row or column
        audio: `Frames.audio` or another `Sound`; or samples in [-1, 1], shape (n,) or (n, channels) with one or two
            channels; None for no sound track
        sample_rate: of samples, in Hz
        comment: the comment in the metadata, instead of the statement that the video is generated
        generated: whether the pictures were made by a model; where not, nothing marks them so
        model: the name of the model, for the metadata; None to ask the frames for theirs (`Frames.model`)
        precision: in which it drew, likewise
        signer: signs the file as generated (C2PA); None for no signature

    Raises InputError: the output cannot be written (noticed before the first frame is asked for), no frames.
    """
    made = provenance.made_now(
        model or str(getattr(frames, "model", "")), precision or str(getattr(frames, "precision", ""))
    )
    words = provenance.statement(made)
    with written_whole(path, ".mp4") as temporary:
        frames = iter(frames)
        first = next(frames, None)
        if first is None:
            raise InputError(f"there are no frames to write to {path}")
        try:
            options = {"movflags": "+faststart"}
            with av.open(str(temporary.absolute()), "w", format="mp4", options=options) as container:
                if generated:
                    container.metadata.update(comment=comment or words, description=words)
                picture = _PictureTrack(container, first.shape)
                sound = None if audio is None else _sound_track(container, audio, sample_rate)
                for frame in chain([first], frames):
                    picture.write(frame)
                    if sound is not None:
                        sound.write_until(picture.count)
                picture.finish()
                if sound is not None:
                    sound.finish()
        except av.FFmpegError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        if generated:
            provenance.add_xmp(temporary, made)
        if signer is not None:
            unsigned = temporary.rename(temporary.with_suffix(".unsigned.mp4"))
            try:
                signer.sign(unsigned, temporary, made, Path(path).name)
            finally:
                unsigned.unlink()
        return picture.count


class _PictureTrack:
    """Encodes frames to H.264 and counts them."""

    def __init__(self, container: OutputContainer, shape: tuple[int, ...]) -> None:
        self.container = container
        self.shape = shape
        self.count = 0
        self.stream = container.add_stream("libx264", rate=FPS, options=QUALITY)
        self.stream.height, self.stream.width = (side + side % 2 for side in shape[:2])
        self.stream.pix_fmt = "yuv420p"
        # Say which colours are meant; players guess otherwise, and differently for small and large pictures.
        context = self.stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG

    def write(self, picture: RGB) -> None:
        if picture.shape != self.shape or picture.dtype != np.uint8:
            found = f"{picture.dtype} {picture.shape}"
            raise ValueError(f"frame {self.count} is {found}, but uint8 {self.shape} is expected")
        height, width = self.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = self.count, FRAME
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))


def _sound_track(container: OutputContainer, audio: NDArray[np.float32] | Sound, sample_rate: int) -> Any:
    if not isinstance(audio, np.ndarray):
        return audio.track(container)
    return encoded_array(container, np.asarray(audio, np.float32), sample_rate)


def encoded_array(container: OutputContainer, samples: NDArray[np.float32], rate: int) -> EncodedSound:
    """Sound (n,) or (n, channels), for `write_video`. Raises ValueError: more than two channels."""
    channels = samples[:, None] if samples.ndim == 1 else samples
    layout = {1: "mono", 2: "stereo"}.get(channels.shape[1])
    if layout is None:
        raise ValueError(f"sound must have one or two channels, not {channels.shape[1]}")
    return EncodedSound(container, iter([channels.T]), layout, rate)


class EncodedSound:
    """Encodes samples to AAC, in step with the picture, which it lasts as long as.

    blocks: (channels, n) in [-1, 1] each, one after the other; layout: ffmpeg's name of the channels; rate: Hz;
    opened: closed at the end.
    """

    def __init__(
        self,
        container: OutputContainer,
        blocks: Iterator[NDArray[np.float32]],
        layout: str,
        rate: int,
        opened: ExitStack | None = None,
    ) -> None:
        self.container, self.blocks, self.layout, self.rate = container, blocks, layout, rate
        self.opened = ExitStack() if opened is None else opened
        self.written = 0
        self.waiting = np.zeros((av.AudioLayout(self.layout).nb_channels, 0), np.float32)
        output = rate if rate in AAC_RATES else AAC_RATES[-1]
        self.stream = container.add_stream("aac", rate=output, layout=self.layout)
        self.stream.bit_rate = len(self.waiting) * min(CHANNEL_BITS, BITS_A_SAMPLE * output)

    def write_until(self, count: int) -> None:
        """Write the sound of the first `count` video frames, as far as it is not written yet."""
        end = round(count * self.rate * FRAME)
        while self.waiting.shape[1] < end - self.written:
            block = next(self.blocks, None)
            if block is None:
                missing = end - self.written - self.waiting.shape[1]
                block = np.zeros((len(self.waiting), missing), np.float32)
            self.waiting = np.concatenate([self.waiting, block], 1)
        block, self.waiting = np.split(self.waiting, [end - self.written], 1)
        if block.size:
            samples = np.ascontiguousarray(block.clip(-1, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.rate, self.written
            frame.time_base = Fraction(1, self.rate)
            self.container.mux(self.stream.encode(frame))
        self.written = end

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
        self.opened.close()


# Looking at files


@dataclass(frozen=True)
class MediaInfo:
    """What a media file holds; fields that do not apply to its kind are None.

    Attributes:
        kind: "image", "video" (with or without sound) or "audio"
        width, height: pixels as displayed
        fps: frames a second in the file, on average; frames: their number, also that of an image
        seconds: length of the picture of a video or a moving GIF, of the sound otherwise
        sample_rate, channels: of the sound, in Hz and 1, 2, ...
        provenance: what the metadata of a video or sound file tell of its origin
        format: of an image: "JPEG", "GIF", ...
        generated: whether they mark it as made by MS-Sync
    """

    kind: Literal["image", "video", "audio"]
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    seconds: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    provenance: Provenance | None = None
    format: str | None = None

    @property
    def generated(self) -> bool:
        return self.provenance is not None and self.provenance.tool == "MS-Sync"


def probe(path: PathLike) -> MediaInfo:
    """Say what a picture, video or sound file holds.

    Raises InputError: missing, unreadable or empty file, not media, nothing in it that decodes.
    """
    path = input_file(path)
    image = open_image(path, str(path))
    if image is not None:
        with image:
            return _probe_image(path, image)
    if words := of_another_format(path, str(path)):
        raise InputError(words)
    with open_media(path) as container:
        origin = provenance.read(path, container.metadata)
        sound = sound_stream(container)
        rate, channels = (sound.rate, sound.channels) if sound is not None else (None, None)
        picture = picture_stream(container)
        if picture is None:
            if sound is None:
                raise InputError(f"{path} holds neither pictures nor sound")
            seconds = _sound_seconds(container, sound)
            return MediaInfo("audio", None, None, None, None, seconds, rate, channels, origin)
        fps = None if picture.average_rate is None else float(picture.average_rate)
        frames = picture.frames or _scan(container, picture)[0]
    video = VideoReader(path)
    return MediaInfo("video", video.width, video.height, fps, frames, video.duration, rate, channels, origin)


def _sound_seconds(container: InputContainer, stream: Stream) -> float:
    """The length of a recording. What an MP4 declares is exact, its last packet is not."""
    declared = float(declared_seconds(container, stream)) if "mp4" in container.format.name else 0.0
    return declared or _scan(container, stream)[1]


def _probe_image(path: Path, image: Image.Image) -> MediaInfo:
    height, width = displayed_size(image, str(path))
    name = str(image.format)
    if name == "MPO":  # a phone's JPEG, with a depth map and the like behind the picture
        return MediaInfo("image", width=width, height=height, frames=1, format="JPEG")
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # what follows the first one is damaged
        raise InputError(f"{path} is damaged and cannot be decoded ({error})") from error
    seconds = VideoReader(path).duration if name == "GIF" and frames > 1 else None  # one may drive a portrait
    return MediaInfo("image", width=width, height=height, frames=frames, seconds=seconds, format=name)
