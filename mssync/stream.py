"""Live: a portrait that speaks while the speech is still arriving.

A frame is made as soon as the sound that it hears is there: its own 40 ms and `lookahead` frames more. Everything is
carried from frame to frame (windows of sound, convolutions, keys and values), nothing is computed twice, and nothing
grows. The same generator run over a whole recording (`Pipeline.animate`) gives the same motion.
"""

from __future__ import annotations

import numpy as np
import torch

from mssync.animate import Pipeline, Portrait, check_options
from mssync.audio import FeatureStream
from mssync.errors import InputError, PathLike
from mssync.motion import KEYPOINTS, VALUES, control, idle
from mssync.reenact import SIZE
from mssync.video import FPS


class StreamingAnimator:
    """One portrait, one stream of speech.

    Args:
        pipeline: of `mssync.load(live=True)`
        portrait: a picture file, uint8 (H, W, 3) RGB, or a `Pipeline.portrait`
        head_motion: as in `Pipeline.animate`, like those that follow
        expression: 0 to 2
        seed: of turns of the head and blinks
        size: side of the frames in pixels

    Attributes:
        lookahead: frames of sound beyond its own start that a frame waits for; `latency` the same in seconds
        made: frames of motion so far. Frame t belongs to the sound from t / 25 s on

    Raises InputError: the pipeline's generator cannot speak live, values out of range, no face in the picture.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        portrait: PathLike | np.ndarray | Portrait,
        *,
        head_motion: float = 1.0,
        expression: float = 1.0,
        seed: int = 0,
        size: int = SIZE,
    ) -> None:
        check_options(head_motion=head_motion, expression=expression, seed=seed, size=size)
        generator = pipeline.live_generator()
        self.pipeline, self.portrait, self.size = pipeline, pipeline.portrait(portrait), size
        self.head_motion, self.expression = head_motion, expression
        self.lookahead = generator.follow
        self.latency = self.lookahead / FPS
        self.made = 0
        self._features = FeatureStream(pipeline.audio_kind)
        first = torch.from_numpy(self.portrait.pose).flatten()[None].to(pipeline.device)
        self._listener = generator.listen(first, seed)
        self._flushed = False

    def push(self, samples: np.ndarray) -> list[np.ndarray]:
        """Take the next samples of the speech -> the frames that are complete now, uint8 (size, size, 3) RGB.

        samples: floating point (n,), 16 kHz mono, any n, also 0. Frames come in order, none is left out; in the end
        there are round(25 × seconds).
        Raises InputError: another shape or type, samples that are not finite, after `flush`.
        """
        return self.draw(self.push_motion(samples))

    def flush(self) -> list[np.ndarray]:
        """The speech has ended: the last frames."""
        return self.draw(self.flush_motion())

    def push_motion(self, samples: np.ndarray) -> np.ndarray:
        """As `push`, but the motion (n, 10, 6) alone, for callers that need not draw every frame."""
        if self._flushed:
            raise InputError("this stream has ended; make a new StreamingAnimator for the next one")
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating) or not np.isfinite(samples).all():
            raise InputError("samples must be one-dimensional, finite floating-point numbers: 16 kHz mono in [-1, 1]")
        return self._motion(self._listener.push(self._features.push(samples)[None].to(self.pipeline.device)))

    def flush_motion(self) -> np.ndarray:
        """As `flush`, but the motion (n, 10, 6) alone."""
        if self._flushed:
            return self._motion([])
        self._flushed = True
        last = self._listener.push(self._features.flush()[None].to(self.pipeline.device))
        return self._motion(last + self._listener.flush())

    def draw(self, motion: np.ndarray) -> list[np.ndarray]:
        """Frames for motion (n, 10, 6) that `push_motion` made."""
        return list(self.pipeline.draw(self.portrait, motion, self.size)) if len(motion) else []

    def picture(self, motion: np.ndarray) -> np.ndarray:
        """The frame of motion (10, 6), drawn in this thread."""
        return self.pipeline.draw_here(self.portrait, motion[None], self.size)[0]

    def _motion(self, frames: list[torch.Tensor]) -> np.ndarray:
        if not frames:
            return np.zeros((0, KEYPOINTS, VALUES), np.float32)
        made = torch.cat(frames).unflatten(1, (KEYPOINTS, VALUES)).cpu().numpy()
        motion = idle(self.portrait.pose, made, start=self.made)
        self.made += len(motion)
        rigid = self.pipeline.reenactor.rigid
        return control(self.portrait.pose, motion, rigid, head=self.head_motion, expression=self.expression)
