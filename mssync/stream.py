"""Live: a portrait that speaks while the speech is still arriving.

A frame is made as soon as the sound that it hears is there: its own 40 ms and `lookahead` frames more. Everything is
carried from frame to frame (windows of sound, convolutions, keys and values), nothing is computed twice, and nothing
grows. The same generator run over a whole recording (`Pipeline.animate`) gives the same motion.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import torch

from mssync.animate import DRAWN, Pipeline, Portrait, check_options
from mssync.audio import SAMPLE_RATE
from mssync.errors import InputError
from mssync.inputs import MAX_CHANNELS, Array, Picture, array_of, checked_rate, samples_of, type_name
from mssync.video import FPS


class StreamingAnimator:
    """One portrait, one stream of speech.

    Args:
        pipeline: of `mssync.load(live=True)`
        portrait: a picture as `Pipeline.animate` takes it, or a `Pipeline.portrait`
        sample_rate: of what is pushed, in Hz
        head_motion: as in `Pipeline.animate`
        expression: as in `Pipeline.animate`
        seed: as in `Pipeline.animate`
        size: as in `Pipeline.animate`

    Attributes:
        lookahead: frames of sound beyond its own start that a frame waits for; `latency` the same in seconds
        made: frames of motion so far. Frame t belongs to the sound from t / 25 s on

    Raises InputError: the pipeline's generator cannot speak live, values out of range, no face in the picture.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        portrait: Picture | Portrait,
        *,
        sample_rate: int,
        head_motion: float = 1.0,
        expression: float = 1.0,
        seed: int = 0,
        size: int = DRAWN,
    ) -> None:
        check_options(head_motion=head_motion, expression=expression, seed=seed, size=size)
        self._resampled = Resampler(sample_rate)
        generator = pipeline.live_generator()
        self.pipeline, self.portrait, self.size = pipeline, pipeline.portrait(portrait), size
        if pipeline.sized is not None:
            pipeline.sized.ready(self.portrait.state, size)
        self.head_motion, self.expression = head_motion, expression
        assert pipeline.ears is not None
        self.lookahead = 1 + pipeline.ahead * FPS // 1000
        self.latency = self.lookahead / FPS
        self.made = 0
        self._features = pipeline.ears.start(pipeline.ahead)
        first = torch.from_numpy(pipeline.first(self.portrait)).flatten()[None].to(pipeline.device)
        self._listener = generator.listen(first, seed)
        self._flushed = False

    def push(self, samples: Array) -> list[np.ndarray]:
        """Take the next samples of the speech -> the frames that are complete now, uint8 (size, size, 3) RGB.

        samples: (n,) or (n, channels), any n, also 0: floating point with full scale at 1, int16, int32 or uint8.
        Frames come in order, none is left out; in the end there are round(25 × seconds).
        Raises InputError: another shape or type, samples that are not finite, after `flush`.
        """
        return self.draw(self.push_motion(samples))

    def flush(self) -> list[np.ndarray]:
        """The speech has ended: the last frames."""
        return self.draw(self.flush_motion())

    def push_motion(self, samples: Array) -> np.ndarray:
        """As `push`, but the motion alone, for callers that need not draw every frame: (n, 10, 6), or (n, 50) of the
        space face-1."""
        if self._flushed:
            raise InputError("this stream has ended; make a new StreamingAnimator for the next one")
        return self._motion(self._hear(self._resampled.push(_mono(samples))))

    def flush_motion(self) -> np.ndarray:
        """As `flush`, but the motion alone."""
        if self._flushed:
            return self._motion([])
        self._flushed = True
        last = self._hear(self._resampled.flush())
        last += self._listener.push(self._features.flush()[None].to(self.pipeline.device))
        return self._motion(last)

    def draw(self, motion: np.ndarray) -> list[np.ndarray]:
        """Frames for motion that `push_motion` made."""
        return list(self.pipeline.draw(self.portrait, motion, self.size)) if len(motion) else []

    def picture(self, motion: np.ndarray) -> np.ndarray:
        """The frame of one frame's motion, drawn in this thread."""
        return self.pipeline.draw_here(self.portrait, motion[None], self.size)[0]

    def _hear(self, waveform: np.ndarray) -> list[torch.Tensor]:
        return self._listener.push(self._features.push(waveform)[None].to(self.pipeline.device))

    def _motion(self, frames: list[torch.Tensor]) -> np.ndarray:
        if not frames:
            return np.zeros((0, *self.pipeline.first(self.portrait).shape), np.float32)
        motion = self.pipeline.moves(torch.cat(frames))
        self.made += len(motion)
        return self.pipeline.controlled(self.portrait, motion, self.head_motion, self.expression)


class Resampler:
    """Mono sound of any rate to 16 kHz while it arrives; how it is cut into pieces does not matter.

    Sound of 16 kHz stays as it is; all other comes a millisecond later, as a filter needs what follows.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = checked_rate(sample_rate)
        self._received = 0
        self._converter = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) float32, any n -> those at 16 kHz that are complete, (m,)."""
        if self.sample_rate == SAMPLE_RATE or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = self.sample_rate, self._received
        frame.time_base = Fraction(1, self.sample_rate)
        self._received += len(samples)
        return _joined(self._converter.resample(frame))

    def flush(self) -> np.ndarray:
        """The rest, as if silence followed."""
        return _joined(self._converter.resample(None)) if self._received else np.zeros(0, np.float32)


def _joined(frames: list[av.AudioFrame]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames if frame)])


def _mono(samples: Array) -> np.ndarray:
    """Pushed samples (n,) or (n, channels) as float32 (n,). Raises InputError: another type or shape, NaN."""
    if not isinstance(samples, np.ndarray | torch.Tensor):
        raise InputError(f"samples cannot be of the type {type_name(samples)}; give a numpy or torch array")
    array = array_of(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise InputError(f"the samples have the shape {array.shape}; give (n,) or (n, channels)")
    values = samples_of(array, "the sound")
    return values if values.ndim == 1 else values.mean(1)
