"""Ears: sound in, what is said out: 104 numbers every 20 ms, of a recording or of sound that is still arriving.

The encoder is a causal network that may look a set time ahead. It learned to say what the encoder of Whisper-base says
(its principal components), and what lips do then, whoever speaks, whatever the language, microphone and room: see
docs/training.md. Samples become log-mel rows over a running level (`Rows`), two of them a frame, and eight blocks of
convolutions over time turn frames into features (`SpeechEncoder`). Frame k is the 20 ms from sample 320 k on. With a
look-ahead of L ms it is made of sound up to L ms after its end and nothing later, so it is ready then, live or not.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE, SAMPLES_PER_VIDEO, WIN_LENGTH, n_video_frames
from mssync.errors import InputError, PathLike

COMPONENTS, LIPS = 96, 8  # of the teacher; columns of `scripts/label_lips.py`
FEATURES = COMPONENTS + LIPS  # numbers a frame
FRAME = 2 * HOP_LENGTH  # samples a frame: 20 ms
FRAME_MS = 1000 * FRAME // SAMPLE_RATE
PER_VIDEO = SAMPLES_PER_VIDEO // FRAME  # 2 frames a video frame
ROWS = FRAME // HOP_LENGTH  # log-mel rows a frame
BANDS, LOWEST, HIGHEST = 64, 60.0, 7600.0  # mel bands, Hz
AHEAD = 4  # frames that each block can look ahead
LIVE_LOOKAHEAD = 160  # ms: what a conversation bears
LIVE_AHEAD, FILE_AHEAD = 120, 640  # ms that a generator's features look ahead: live, where a frame itself has 40 ms
FILE = "speech.safetensors"  # beside a generator's file: the encoder that it hears with
BEFORE = 2  # frames that the first layer sees before the current one
FEW = 8  # frames at once up to which products are quicker than a convolution
BLOCK = 60 * SAMPLE_RATE  # samples of a recording at once, so that memory does not grow with it

# Level: the mean energy of rows in which somebody speaks, those louder than GATE times the level so far.
USUAL_LEVEL, LEAST_LEVEL = 0.02**2, 0.002**2  # mean square of samples: before anything is heard; never less
PRIOR = 20  # rows that count for USUAL_LEVEL: a fifth of a second
LEVEL_ROWS, RELEASE_ROWS = 200, 500  # time constants: of the mean, and of a level at which nobody speaks any more
GATE = 0.03
FLOOR = 1e-7  # of the level: energies are told apart down to 70 dB below it
MEAN, SPREAD = -10.3, 3.8  # of log energies of speech over their level

BANK_FILE = Path(__file__).parent / "assets" / "speech_bank.npz"  # `mel`, `window`


# Rows


class Rows:
    """Log-mel rows of sound that is still arriving, over its running level; how it is cut into pieces does not matter.

    Row j is made of the 25 ms that end with sample 160 (j + 1); what lies before the first sample is silence.

    Args:
        count: recordings at once, for training
    """

    def __init__(self, count: int = 1) -> None:
        self._samples = torch.zeros(count, WIN_LENGTH - HOP_LENGTH, dtype=torch.float64)  # not used up yet
        self._level = np.full(count, USUAL_LEVEL)
        self._heard = np.full(count, float(PRIOR))  # rows that the level is a mean of

    def push(self, samples: Tensor) -> Tensor:
        """Take samples (B, n) at 16 kHz -> the rows (B, m, 64) that have become complete, float32.

        float32 samples are transformed in float32, which is quicker but not the same for all cuts.
        """
        self._samples = torch.cat([self._samples.to(samples.dtype), samples], 1)
        if self._samples.shape[1] < WIN_LENGTH:
            return torch.zeros(len(samples), 0, BANDS)
        windows = self._samples.unfold(1, WIN_LENGTH, HOP_LENGTH)
        self._samples = self._samples[:, HOP_LENGTH * windows.shape[1] :]
        energies = _energies(windows)
        levels = torch.from_numpy(self._levels(energies.sum(-1).double().numpy()))
        return ((energies / levels[..., None] + FLOOR).log().float() - MEAN) / SPREAD

    def _levels(self, energies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The running level at each row of energies (B, m)."""
        levels = np.empty_like(energies)
        for j, energy in enumerate(energies.T):
            speech = energy > GATE * self._level
            self._heard = np.minimum(self._heard + speech, LEVEL_ROWS)
            step = np.where(speech, 1 / self._heard, 1 / RELEASE_ROWS)
            self._level = np.maximum(self._level + step * (energy - self._level), LEAST_LEVEL)
            levels[:, j] = self._level
        return levels


def _energies(windows: Tensor) -> Tensor:
    """Windows (..., 400) -> energies of the mel bands (..., 64); their sum is the mean square of the samples."""
    window, mel = _bank(windows.dtype)
    spectrum = torch.fft.rfft(windows * window, N_FFT)
    return (spectrum.real.square() + spectrum.imag.square()) @ mel


@lru_cache(maxsize=2)
@torch.inference_mode(False)
def _bank(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    with np.load(BANK_FILE) as bank:
        return torch.from_numpy(bank["window"]).to(dtype), torch.from_numpy(bank["mel"]).to(dtype)


def filter_bank() -> dict[str, NDArray[np.float64]]:
    """What BANK_FILE holds: a Hann window (400,), and triangular filters (257, 64) equally wide in mel = 2595 log10(1 +
    Hz / 700), neighbours summing to one, scaled so that all of them together give the mean square of a window."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(WIN_LENGTH) + 0.5) / WIN_LENGTH)
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST, HIGHEST))
    corners = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    hz = np.arange(N_FFT // 2 + 1)[:, None] * (SAMPLE_RATE / N_FFT)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    mel = np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clip(min=0)
    # Parseval: half of the spectrum counts twice.
    return {"window": window, "mel": mel * 2 / (N_FFT * np.square(window).sum())}


# Network


class Block(nn.Module):
    """One step of the encoder: every channel over time, then all channels of a frame, added to what came in.

    Args:
        width: channels, a multiple of 32: others make convolutions in bfloat16 hang on some processors (oneDNN 3.12)
        hidden: channels between the two layers over a frame
        left: frames before the current one that are seen
    """

    def __init__(self, width: int, hidden: int, left: int) -> None:
        super().__init__()
        self.left, self.dropout = left, 0.0
        taps = left + 1 + AHEAD
        self.taps = nn.Parameter(torch.randn(width, taps) * taps**-0.5)
        self.ahead = nn.Embedding(AHEAD + 1, width)  # makes up for taps that are not used
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        nn.init.zeros_(self.ahead.weight)
        nn.init.normal_(self.contract.weight, std=0.02)

    def forward(self, x: Tensor, ahead: int) -> Tensor:
        """x (B, left + T + ahead, width) -> (B, T, width): the frames that have all their neighbours."""
        taps, count = self.taps[:, : self.left + 1 + ahead], x.shape[1] - self.left - ahead
        if count <= FEW:
            mixed = (x.unfold(1, taps.shape[1], 1) * taps).sum(-1) + self.ahead.weight[ahead]
        else:  # as a convolution of images: channels come last in memory, as the layers over a frame want them
            image, kernel = x.transpose(1, 2)[:, :, None], taps[:, None, None]
            mixed = F.conv2d(image, kernel, self.ahead.weight[ahead], groups=len(taps))[:, :, 0].transpose(1, 2)
        here = x[:, self.left : self.left + count]
        hidden = F.gelu(self.expand(self.norm(mixed)))
        if self.training and self.dropout:  # whole channels of a recording
            hidden = hidden * F.dropout(hidden.new_ones(len(hidden), 1, hidden.shape[2]), self.dropout)
        return here + self.contract(hidden)


class SpeechEncoder(nn.Module):
    """The encoder: rows of log-mel energies -> features, any look-ahead from 0 to 640 ms by the same weights.

    Args:
        width: channels, a multiple of 32: others make convolutions in bfloat16 hang on some processors (oneDNN 3.12)
        layers: blocks; each can look 80 ms ahead
        expansion: hidden channels of a block over `width`
        left: frames before the current one that a block sees
    """

    def __init__(self, width: int = 256, layers: int = 8, expansion: int = 3, left: int = 12) -> None:
        super().__init__()
        self.config = {"width": width, "layers": layers, "expansion": expansion, "left": left}
        self.stem = nn.Linear((BEFORE + 1) * ROWS * BANDS, width)
        self.blocks = nn.ModuleList(Block(width, expansion * width, left) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, FEATURES)

    @classmethod
    def load(cls, name_or_path: PathLike, device: str | torch.device = "cpu") -> SpeechEncoder:
        """An encoder from its model file, in eval mode and without gradients. Raises InputError as `load_model`."""
        from mssync.weights import load_model

        encoder, _ = load_model(Path(name_or_path), device, kinds=("speech",))
        assert isinstance(encoder, cls)
        return encoder

    @property
    def longest(self) -> int:
        """The longest look-ahead, ms."""
        return FRAME_MS * AHEAD * len(self.blocks)

    def forward(self, rows: Tensor, lookahead: int) -> Tensor:
        """Features of whole recordings, differentiable.

        Args:
            rows: (B, 2 T, 64) of `Rows`
            lookahead: ms, a multiple of 20

        Returns:
            (B, T, 104): principal components of the teacher, then lips, each in units of its deviation
        """
        shares = self.shares(lookahead)
        x = self._stem(F.pad(rows.unflatten(1, (-1, ROWS)).flatten(2), (0, 0, BEFORE, 0)))
        for block, ahead in zip(self.blocks, shares, strict=True):
            x = block(F.pad(x, (0, 0, self.config["left"], ahead)), ahead)
        return self._head(x)

    def shares(self, lookahead: int) -> list[int]:
        """How many frames each block looks ahead, so that all of them together look `lookahead` ms ahead."""
        if lookahead not in range(0, self.longest + 1, FRAME_MS):
            raise InputError(f"look-ahead is 0 to {self.longest} ms in steps of {FRAME_MS}, not {lookahead}")
        whole, rest = divmod(lookahead // FRAME_MS, len(self.blocks))
        return [whole + (k < rest) for k in range(len(self.blocks))]

    def start(self, lookahead: int) -> SpeechStream:
        """Features of sound that is still arriving, each `lookahead` ms after the end of its frame."""
        return SpeechStream(self, lookahead)

    def features(self, waveform: NDArray[np.float32], lookahead: int, n_video_frames: int | None = None) -> Tensor:
        """Features of a recording: what a stream gives, but for those that would hear beyond its end, of which nothing
        is said; the last repeated where the video is longer.

        Args:
            waveform: (n,) at 16 kHz, n > 0
            lookahead: ms, a multiple of 20
            n_video_frames: T; None for as many as the sound lasts for

        Returns:
            (2 T, 104)
        """
        frames = _n_video_frames(waveform, n_video_frames)
        stream = self.start(lookahead)
        parts = [stream.push(waveform[at : at + BLOCK]) for at in range(0, len(waveform), BLOCK)]
        found = torch.cat([*parts, stream._rest()])
        return found[torch.arange(PER_VIDEO * frames).clamp(max=len(found) - 1)]

    def _stem(self, frames: Tensor) -> Tensor:
        """Rows of BEFORE + T frames (B, BEFORE + T, 128) -> (B, T, width)."""
        return self.stem(frames.unfold(1, BEFORE + 1, 1).flatten(2))

    def _head(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


class SpeechStream:
    """What one listener has heard: `push` samples as they come, `flush` at the end. Made by `SpeechEncoder.start`.

    Args:
        encoder: in eval mode
        lookahead: ms, a multiple of 20
    """

    def __init__(self, encoder: SpeechEncoder, lookahead: int) -> None:
        self._encoder, self._shares = encoder, encoder.shares(lookahead)
        self._sounds = Rows()
        self._rows = torch.zeros(1, 0, BANDS)  # of a frame that is not complete
        width = encoder.head.in_features
        # What each layer still needs of what it was given: silence before the beginning, as `forward` pads.
        self._frames = torch.zeros(1, BEFORE, ROWS * BANDS)
        self._inputs = [torch.zeros(1, encoder.config["left"], width) for _ in encoder.blocks]
        self._received, self._given, self._ended = 0, 0, False

    def push(self, samples: NDArray[np.float32]) -> Tensor:
        """Take any number of samples (n,) at 16 kHz -> the features (m, 104) that have become ready.

        Raises InputError: not one channel, NaN or infinite samples, a stream that has ended.
        """
        samples = np.asarray(samples)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise InputError(f"sound is one channel of finite samples (n,), not an array of shape {samples.shape}")
        if self._ended:
            raise InputError("this stream has ended; start another one")
        self._received += len(samples)
        found = self._hear(samples, last=False)
        self._given += len(found)
        return found

    def flush(self) -> Tensor:
        """The last features, as if silence followed: with them there are two for each of `n_video_frames`."""
        missing = PER_VIDEO * n_video_frames(self._received) - self._given
        silence = np.zeros(self._silent(sum(self._shares)), np.float32)
        self._ended = True
        return self._hear(silence, last=False)[: max(0, missing)]

    def _rest(self) -> Tensor:
        """The last features, two for each video frame that has begun, of sound that goes on but nobody knows how."""
        silence = np.zeros(self._silent(0), np.float32)
        self._ended = True
        return self._hear(silence, last=True)

    def _silent(self, ahead: int) -> int:
        """Samples to the end of the last video frame that has begun, and of `ahead` frames more."""
        return FRAME * (PER_VIDEO * -(-self._received // SAMPLES_PER_VIDEO) + ahead) - self._received

    @torch.inference_mode()
    def _hear(self, samples: NDArray[np.float32], last: bool) -> Tensor:
        """Features that are ready after some samples. last: nothing follows, what layers wait for is zero."""
        rows = self._sounds.push(torch.from_numpy(samples.astype(np.float64))[None])
        rows = torch.cat([self._rows, rows], 1)
        whole = rows.shape[1] // ROWS
        self._rows = rows[:, ROWS * whole :]
        self._frames = torch.cat([self._frames, rows[:, : ROWS * whole].unflatten(1, (whole, ROWS)).flatten(2)], 1)
        x = self._encoder._stem(self._frames) if whole else self._inputs[0][:, :0]
        self._frames = self._frames[:, whole:]
        for k, (block, ahead) in enumerate(zip(self._encoder.blocks, self._shares, strict=True)):
            given = torch.cat([self._inputs[k], x], 1)
            if last:
                given = F.pad(given, (0, 0, 0, ahead))
            count = max(0, given.shape[1] - self._encoder.config["left"] - ahead)
            x = block(given, ahead) if count else given[:, :0]
            self._inputs[k] = given[:, count:]
        return self._encoder._head(x)[0]


def log_mel(waveform: NDArray[np.float32], n_video_frames: int | None = None) -> Tensor:
    """What the encoder is given of a recording (n,): rows (4 T, 64), the last repeated where the video is longer."""
    frames = _n_video_frames(waveform, n_video_frames)
    rows = Rows().push(torch.from_numpy(np.pad(waveform, (0, SAMPLES_PER_VIDEO)).astype(np.float64))[None])[0]
    return rows[torch.arange(PER_VIDEO * ROWS * frames).clamp(max=len(rows) - 1)]


def _n_video_frames(waveform: NDArray[np.float32], wanted: int | None) -> int:
    if len(waveform) == 0:
        raise InputError("there is no sound in it: 0 samples")
    return n_video_frames(len(waveform)) if wanted is None else wanted
