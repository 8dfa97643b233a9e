"""Sound in: any common recording to a 16 kHz waveform, and the waveform to features for every video frame."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mssync.errors import InputError, PathLike
from mssync.video import FPS, MAX_STILL, Clock, declared_seconds, decode, first_shown, open_media, sound_stream, time_of

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SAMPLE_RATE = 16000  # Hz
WIN_LENGTH = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms
N_FFT = 512
N_FILTERS = 26  # mel filters from 0 to 8000 Hz; as many cepstral coefficients are kept
PREEMPHASIS = 0.97
CEPSTRAL_LIFTER = 22
AUDIO_PER_VIDEO = SAMPLE_RATE // (HOP_LENGTH * FPS)  # 4 audio frames a video frame
SAMPLES_PER_VIDEO = SAMPLE_RATE // FPS  # 640 samples a video frame
JITTER = Fraction(3, 100)  # seconds by which time stamps of sound without gaps are off: they are rounded, or of a clock
MIN_RATE, MAX_SECONDS = 2000, 4 * 3600  # Hz, s: what claims to be slower or longer would fill the memory, not speak
OPPOSITE = -0.5  # correlation of channels below which one is the other in opposite phase
SILENCE = 1e-4  # a peak of -80 dB, about 3 steps of 16-bit sound: nothing louder than dither
BLOCK = 1024  # audio frames transformed at once, so that memory does not grow with the recording
BANK_FILE = Path(__file__).parent / "assets" / "filter_bank.npz"  # `mel_filters` and `cepstral_transform`


# Reading


def load_audio(path: PathLike, min_seconds: float = 0.0) -> NDArray[np.float32]:
    """Read the sound of a recording or a video as float32 of shape (n,): mono, 16 kHz, in [-1, 1].

    This is what models hear: see `mono`; surround sound is mixed down to left and right first. A recording beyond full
    scale (floating-point files can be) is scaled down to it. Time 0 is the first picture that is shown, or else the
    first sample; sound lies at its time stamps, gaps are silence, what comes before time 0 is cut. Of several tracks
    the one marked default is read.

    Raises InputError: missing, unreadable or empty file, no sound in it, no samples, a truncated MP4, NaN or
    infinite samples, shorter than `min_seconds`, longer than 4 hours, sampled at less than 2000 Hz. Warns if parts
    are damaged or missing. Silence is no error: see `is_silent`.
    """
    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            raise InputError(
                f"{path} has no sound that can be decoded; give a recording, or a video with a sound track"
            )
        if len(container.streams.audio) > 1:
            number, count = list(container.streams.audio).index(stream) + 1, len(container.streams.audio)
            warnings.warn(f"{path} has {count} sound tracks; number {number} is read", stacklevel=2)
        try:
            waveform = _read(container, stream, first_shown(path), path)
        except av.FFmpegError as error:  # more channels than ffmpeg has names for
            raise InputError(f"{path} has sound that cannot be converted; export it in stereo") from error
    if waveform.size == 0:
        raise InputError(f"{path} has a sound track without samples; give a recording with sound")
    peak = float(max(waveform.max(), -waveform.min()))
    if not math.isfinite(peak):
        raise InputError(f"{path} has samples that are NaN or infinite; export the sound again")
    seconds = waveform.size / SAMPLE_RATE
    if seconds < min_seconds:
        raise InputError(f"{path} has only {seconds:.2f} s of sound; at least {min_seconds:g} s are needed")
    return waveform if peak <= 1 else waveform / np.float32(peak)


def is_silent(waveform: NDArray[np.float32]) -> bool:
    """Whether a waveform (n,) holds nothing louder than -80 dB of full scale, a constant offset aside."""
    return bool(np.abs(waveform - waveform.mean()).max() < SILENCE)


def _read(container: InputContainer, stream: AudioStream, zero: Fraction | None, path: PathLike) -> NDArray[np.float32]:
    """Decode a sound track to mono samples at 16 kHz from `zero` on, or from its own beginning."""
    line = Line(container, stream, zero, path)
    layout = "mono" if line.first.layout.nb_channels == 1 else "stereo"
    blocks, length = [], 0
    for block in line.blocks(layout, SAMPLE_RATE):
        blocks.append(block)
        length += block.shape[1]
        if length > MAX_SECONDS * SAMPLE_RATE:
            raise InputError(f"{path} has more than {MAX_SECONDS / 3600:g} hours of sound; cut it into parts")
    return mono(np.concatenate(blocks, 1)) if blocks else np.zeros(0, np.float32)


class Line:
    """A sound track on its line of time: sound at its time stamps from time 0 on, silence where there is none.

    zero: time 0 by the clock of the file; the first sample's unless given. `first` is the first frame of it.
    Raises InputError: nothing decodes, a rate of less than MIN_RATE, more than MAX_SECONDS until it begins.
    """

    def __init__(self, container: InputContainer, stream: AudioStream, zero: Fraction | None, path: PathLike) -> None:
        self._frames = decode(container, stream, path)
        self.first = next(self._frames)
        begin = time_of(self.first) or Fraction(0)
        if self.first.sample_rate < MIN_RATE or (zero is not None and abs(begin - zero) > MAX_SECONDS):
            rate = self.first.sample_rate
            raise InputError(f"{path} has sound at {rate} Hz, or long after its picture; export it again")
        self.zero = begin if zero is None else zero
        # Without pictures nobody misses the hours between recordings that were joined.
        self._clock = Clock(self.zero, Fraction(MAX_STILL) if zero is None else None)
        # The last AAC frame of an MP4 is filled up with silence; the declared length is exact.
        declared = declared_seconds(container, stream) if "mp4" in container.format.name else Fraction(0)
        self.end = begin + declared - self.zero if declared else None  # in seconds; None: nobody knows

    def blocks(self, layout: str, rate: int) -> Iterator[NDArray[np.float32]]:
        """Samples (channels, n) from time 0 to the end, in blocks of at most about a second; once."""
        length, last = 0, None if self.end is None else math.ceil(self.end * rate)
        for start, run in self._runs():
            at = round(start * rate)
            while length < at:
                silence = min(at - length, rate)
                length += silence
                yield np.zeros((len(av.AudioLayout(layout).channels), silence), np.float32)
            skip = length - at  # what lies before time 0, or where samples are already
            for block in _resample(run, layout, rate):
                rest = block[:, skip:] if last is None else block[:, skip : max(skip, skip + last - length)]
                skip = max(0, skip - block.shape[1])
                length += rest.shape[1]
                if rest.size:
                    yield rest

    def _runs(self) -> Iterator[tuple[Fraction, Iterator[AudioFrame]]]:
        """Frames in runs of one format without gaps, each with the seconds at which it starts. A run is to be used up
        before the next is asked for. Joined recordings change their format on the way; dropped packets leave gaps."""
        waiting = [(self._place(self.first), self.first)]

        def run(start: Fraction, frame: AudioFrame) -> Iterator[AudioFrame]:
            known, end = _format(frame), start + _seconds(frame)
            yield frame
            for following in self._frames:
                at = self._place(following)
                if _format(following) != known or abs(at - end) > JITTER:
                    waiting.append((at, following))
                    return
                end += _seconds(following)
                yield following

        while waiting:
            start, frame = waiting.pop()
            yield start, run(start, frame)

    def _place(self, frame: AudioFrame) -> Fraction:
        return self._clock.place(time_of(frame), _seconds(frame))


def _seconds(frame: AudioFrame) -> Fraction:
    return Fraction(frame.samples, frame.sample_rate)


def _format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _resample(frames: Iterator[AudioFrame], layout: str, rate: int) -> Iterator[NDArray[np.float32]]:
    """Frames of one format to blocks (channels, n)."""
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for frame in chain(frames, [None]):
        # A resampler with nothing to do hands the None of the end through.
        for block in filter(None, resampler.resample(frame)):
            yield block.to_ndarray().astype(np.float32, copy=False)


def mono(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (channels, n) as one channel (n,), as loud as the loudest of them.

    Channels are added; one that is in opposite phase to the first is turned before, or a voice in both would cancel
    itself. So a voice is heard whichever of them it is in.
    """
    if len(samples) == 1:
        return samples[0]
    centred = samples - samples.mean(1, keepdims=True)
    levels = np.sqrt(np.square(centred).mean(1))
    likeness = centred @ centred[0] / len(centred[0])
    added = np.where(likeness < OPPOSITE * levels * levels[0], -1, 1).astype(np.float32) @ samples
    level = float(added.std())
    return added * np.float32(levels.max() / level) if level > 0 else samples[0]


# Features


def n_video_frames(n_samples: int) -> int:
    """The number of video frames at 25 fps that sound of `n_samples` at 16 kHz lasts for, rounded."""
    return round(n_samples / SAMPLES_PER_VIDEO)


def logfbank(waveform: Tensor) -> Tensor:
    """Log energies of 26 mel filters, as python_speech_features' `logfbank(nfilt=26)`.

    Args:
        waveform: floating point (..., n) at 16 kHz, n > 0

    Returns:
        (..., frames, 26) in the waveform's dtype, frames = 1 + ceil((n - 400) / 160), at least 1: the last
        frame is filled up with zeros. Energies of exactly zero count as 2.2e-16. Computed in float64,
        differentiable.
    """
    return _log_filters(*_filter_energies(waveform)).to(waveform.dtype)


def mfcc(waveform: Tensor) -> Tensor:
    """Mel-frequency cepstral coefficients, as python_speech_features' `mfcc(nfilt=26, numcep=26)`.

    The coefficients are liftered (L = 22), and the first one is the log of the frame's total energy.

    Args and returns: as `logfbank`.
    """
    return _cepstra(*_filter_energies(waveform)).to(waveform.dtype)


def _log_filters(filters: Tensor, _: Tensor) -> Tensor:
    return filters.log()


def _cepstra(filters: Tensor, energy: Tensor) -> Tensor:
    cepstra = filters.log() @ _bank("cepstra", filters.device)
    return torch.cat([energy.log()[..., None], cepstra[..., 1:]], dim=-1)


# Rows of features from the energies of filters and frames; `logfbank` and `mfcc` compute them of a whole recording.
KINDS = {"logfbank": _log_filters, "mfcc": _cepstra}


def features(
    waveform: Tensor | NDArray[np.float32], kind: str = "logfbank", n_video_frames: int | None = None
) -> Tensor:
    """The model's view of a recording: normalised features, exactly four for each of T video frames.

    The waveform loses its mean and is divided by its peak, unless that is below -80 dB: silence stays so.
    Where the sound ends before the video the last feature frame is repeated; what goes beyond is cut.

    Args:
        waveform: (..., n) at 16 kHz, n > 0
        kind: "logfbank" or "mfcc"
        n_video_frames: T; None for as many as the sound lasts for

    Returns:
        (..., 4 T, 26), differentiable
    """
    _check_kind(kind)
    waveform = torch.as_tensor(waveform)
    if n_video_frames is None:
        n_video_frames = round(waveform.shape[-1] / SAMPLES_PER_VIDEO)
    waveform = waveform - waveform.mean(dim=-1, keepdim=True)
    peak = torch.maximum(waveform.amax(dim=-1, keepdim=True), -waveform.amin(dim=-1, keepdim=True))
    waveform = waveform / peak.masked_fill(peak < SILENCE, 1)
    rows = KINDS[kind](*_filter_energies(waveform)).to(waveform.dtype)
    index = torch.arange(AUDIO_PER_VIDEO * n_video_frames, device=rows.device)
    return rows[..., index.clamp(max=rows.shape[-2] - 1), :]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"unknown audio features {kind!r}; choose one of {', '.join(KINDS)}")


def _filter_energies(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Energies of the mel filters (..., frames, 26) and of the frames (..., frames): float64, above zero."""
    count = 1 + max(0, math.ceil((waveform.shape[-1] - WIN_LENGTH) / HOP_LENGTH))
    blocks = [
        _energies(_frames(waveform, start, min(start + BLOCK, count))) for start in range(0, count, BLOCK)
    ]  # fmt: skip
    filters, energy = zip(*blocks, strict=True)
    return torch.cat(filters, dim=-2), torch.cat(energy, dim=-1)


def _energies(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-emphasised frames (..., n, 400), float64 -> energies of the mel filters (..., n, 26) and of the frames."""
    spectrum = torch.fft.rfft(frames, N_FFT)
    power = (spectrum.real.square() + spectrum.imag.square()) / N_FFT
    return _above_zero(power @ _bank("mel", frames.device)), _above_zero(power.sum(dim=-1))


def _frames(waveform: Tensor, start: int, stop: int) -> Tensor:
    """Frames start to stop of the pre-emphasised waveform (..., n) as float64 (..., stop - start, 400)."""
    begin, end = start * HOP_LENGTH, (stop - 1) * HOP_LENGTH + WIN_LENGTH
    # The first difference needs one sample more to the left: zero at the start of the recording.
    samples = waveform[..., max(0, begin - 1) : end].double()
    samples = F.pad(samples, (int(begin == 0), 0))
    samples = samples[..., 1:] - PREEMPHASIS * samples[..., :-1]
    samples = F.pad(samples, (0, end - begin - samples.shape[-1]))
    return samples.unfold(-1, WIN_LENGTH, HOP_LENGTH)


def _above_zero(energy: Tensor) -> Tensor:
    """Replace exact zeros, of which the log would be infinite, by the smallest step of float64."""
    return energy.masked_fill(energy == 0, torch.finfo(torch.float64).eps)


# Constants that are first needed in inference mode must serve training as well.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bank(name: str, device: torch.device) -> Tensor:
    with np.load(BANK_FILE) as bank:
        return torch.from_numpy(bank[name]).to(device)


def mel_filters() -> NDArray[np.float64]:
    """Triangular filters (257, 26), equally wide in mel = 2595 log10(1 + Hz / 700), corners on FFT bins."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    mel = np.linspace(0, top, N_FILTERS + 2)
    corners = np.floor((N_FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(N_FFT // 2 + 1)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    return np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)


def cepstral_transform() -> NDArray[np.float64]:
    """The orthonormal type-II cosine transform with the lifter multiplied in: (filter, coefficient)."""
    k = np.arange(N_FILTERS)
    cosines = np.cos(math.pi / N_FILTERS * (k[:, None] + 0.5) * k) * math.sqrt(2 / N_FILTERS)
    # Coefficient 0 would have its own scale, but the energy takes its place.
    return cosines * (1 + CEPSTRAL_LIFTER / 2 * np.sin(math.pi / CEPSTRAL_LIFTER * k))
