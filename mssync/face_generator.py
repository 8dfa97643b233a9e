"""Generator of motion of the space face-1: the head is rolled out, expressions are told.

Speech hardly tells where a head goes, and where it is now decides where it can be next: pose and gaze are those of
the autoregressive `Generator`. What lips do speech tells frame by frame: an expression is what a small causal network
makes of what the speech encoder says about lips, at four time scales, and of the face's own habits (`Expression`).
Turns, blinks and saccades, of which speech tells nothing, are added to both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.config import GeneratorConfig
from mssync.errors import InputError
from mssync.face1 import EXPRESSION, EXPRESSIONS, GAZE, HEAD, NUMBERS, SIZE, straight
from mssync.generator import Generator, Listener, SpeechPyramid
from mssync.pyramid import LEVELS
from mssync.speech import COMPONENTS, LIPS, PER_VIDEO
from mssync.spontaneous import NUMBERS as SPONTANEOUS
from mssync.spontaneous import Spontaneous

HIDDEN = 4  # times the width: what levels and habits are brought together in
DROPOUT = 0.1  # in training: an hour of video is little
KEPT = 0.8  # of what the first frame has of its own, from frame to frame: a third of a second later there is nothing


class Expression(nn.Module):
    """What a face expresses while somebody speaks: expressions from what speech says of lips, and from another one.

    What lips do is nearly linear in what the encoder says about them, so that is where it begins (`direct`); a pyramid
    of causal levels and the face's habits are added.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pyramid = SpeechPyramid(width, LIPS)
        self.direct = nn.Conv1d(LIPS, EXPRESSIONS, self.pyramid.stem.kernel_size[0], stride=PER_VIDEO)
        self.habit = nn.Linear(EXPRESSIONS, EXPRESSIONS)
        self.manner = nn.Linear(EXPRESSIONS, width)
        self.hidden = nn.Linear((LEVELS + 1) * width, HIDDEN * width)
        self.out = nn.Linear(HIDDEN * width, EXPRESSIONS)
        for layer in (self.habit, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, usual: Tensor) -> Tensor:
        """Features (B, 2T, 104) and a face's usual expression (B, 40) -> expressions (B, T, 40).

        Before the features stands what they are on average. Frame t hears up to features 2t and 2t + 1.
        """
        lips = features[..., COMPONENTS:]
        levels = F.dropout(torch.cat([*self.pyramid(lips)], -1), DROPOUT, self.training)
        manner = F.gelu(self.manner(F.dropout(usual, DROPOUT, self.training)))
        both = torch.cat([levels, manner[:, None].expand(-1, levels.shape[1], -1)], -1)
        more = self.out(F.dropout(F.gelu(self.hidden(both)), DROPOUT, self.training))
        return self.linear(lips) + self.habit(usual)[:, None] + more

    def linear(self, lips: Tensor) -> Tensor:
        """What is linear in what speech says of lips: (B, 2T, 8) -> (B, T, 40)."""
        return self.direct(self.windows(lips)).transpose(1, 2)

    def windows(self, lips: Tensor) -> Tensor:
        """Lips (B, 2T, 8), standardised, as `direct` takes them, (B, 8, 2T + what frame 0 hears before)."""
        before = self.direct.kernel_size[0] - PER_VIDEO
        return F.pad(self.pyramid.norm(lips).transpose(1, 2), (before, 0))


class FaceGenerator(nn.Module):
    """Motion of the space face-1, 50 numbers a frame, from features of speech and a first frame.

    As `generator.Generator`, whose arguments and attributes have the same meaning here: it hears features of a
    `SpeechEncoder`, and can always speak live. Expressions go over from the first frame's into what is told.
    """

    spontaneous_motion: Tensor  # (9, 50), where config.spontaneous

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        if config.hears != "speech":
            raise InputError("generator.space=face-1 needs generator.hears=speech")
        self.config = config
        self.head = Generator(replace(config, space="keypoints", keypoints=HEAD, values=1, spontaneous=False))
        self.expression = Expression(config.expression_width)
        self.rows, self.live, self.lead = self.head.rows, True, self.head.lead
        if config.spontaneous:
            self.register_buffer("spontaneous_motion", torch.zeros(SPONTANEOUS, NUMBERS))

    def set_statistics(self, motion_mean: Tensor, motion_std: Tensor, audio_mean: Tensor, audio_std: Tensor) -> None:
        """Store mean and deviation of the training data: (50,), (50,), (104,), (104,)."""
        self.head.set_statistics(motion_mean[:HEAD], motion_std[:HEAD], audio_mean, audio_std)
        self.expression.pyramid.norm.set_statistics(audio_mean[COMPONENTS:], audio_std[COMPONENTS:])

    def forward(self, x0: Tensor, audio: Tensor, origin: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """Roll-out of the head, and expressions, differentiable, without turns, blinks and saccades.

        x0 (B, 50), audio (B, 2T, 104) -> motion (B, T, 50). origin (B, 50): another frame of the same person, which the
        head's way is counted from, and whose expression is the usual one; x0 unless given. before: as in `Generator`.
        Raises InputError: shapes that do not fit.
        """
        self._check(x0)
        origin = x0 if origin is None else origin
        head = self.head(x0[:, :HEAD], audio, origin[:, :HEAD], before)
        before = self.average_sound(len(audio), self.lead) if before is None else before
        told = self.expression(torch.cat([before, audio], 1), origin[:, EXPRESSION])[:, self.lead :]
        own = self.own(x0[:, EXPRESSION] - told[:, 0], torch.arange(told.shape[1], device=x0.device))
        return torch.cat([head, told + own], -1)

    @staticmethod
    def own(difference: Tensor, frames: Tensor) -> Tensor:
        """What frames number (n,) still have of the first one's difference (B, 40) from what is told: (B, n, 40)."""
        return difference[:, None] * (KEPT ** frames.to(difference))[:, None]

    def nobody(self) -> NDArray[np.float32]:
        """A first frame (50,) of a face of average size and expression in the middle that looks straight ahead."""
        start = np.zeros(NUMBERS, np.float32)
        start[SIZE], start[GAZE] = float(self.head.motion_norm.mean[SIZE]), straight()
        return start

    def average_sound(self, batch: int, frames: int) -> Tensor:
        """Features (B, 2 · frames, 104) that say nothing."""
        return self.head.average_sound(batch, frames)

    @torch.inference_mode()
    def stream(self, x0: Tensor, audio: Tensor, seed: int = 0) -> Iterator[Tensor]:
        """The frames of `forward`, with turns, blinks and saccades, one by one: as `Generator.stream`."""
        if x0.dim() == 1:
            yield from (frame[0] for frame in self.stream(x0[None], audio[None], seed))
            return
        listener = self.listen(x0, seed)
        for features in audio.split(self.rows * self.lead, dim=1):
            yield from listener.push(features)

    def listen(self, x0: Tensor, seed: int = 0) -> FaceListener:
        """The frames of `stream` while features are still arriving, from x0 (B, 50)."""
        self._check(x0)
        return FaceListener(self, x0, seed)

    def _check(self, x0: Tensor) -> None:
        if x0.shape[-1] != NUMBERS:
            raise InputError(f"the generator needs a first frame of {NUMBERS} numbers, got {x0.shape[-1]}")


class FaceListener:
    """Motion while features of speech arrive: a frame is made when both of its features are there.

    `FaceGenerator.listen` makes one.
    """

    def __init__(self, generator: FaceGenerator, x0: Tensor, seed: int) -> None:
        self.generator, self.x0 = generator, x0
        self.head = Listener(generator.head, x0[:, :HEAD], seed)
        self.spontaneous = Spontaneous(len(x0), seed) if generator.config.spontaneous else None
        self.difference: Tensor | None = None  # of the first frame from what is told of it

    @torch.inference_mode()
    def push(self, features: Tensor) -> list[Tensor]:
        """Features (B, n, 104), any number of them -> the frames (B, 50) that can be made now."""
        generator = self.generator
        heard, count = self.head.recent.push(features)
        if count == 0:
            return []
        first = self.head.recent.made - count
        head = torch.stack(self.head.frames(heard, first), 1)
        told = generator.expression(heard, self.x0[:, EXPRESSION])[:, generator.lead :]
        if self.difference is None:
            self.difference = self.x0[:, EXPRESSION] - told[:, 0]
        told = told + generator.own(self.difference, torch.arange(first, first + count, device=told.device))
        made = torch.cat([head, told], -1)
        if self.spontaneous is not None:
            numbers = self.spontaneous.draw(count).to(made).transpose(0, 1)
            made = made + numbers @ generator.spontaneous_motion
        return list(made.unbind(1))
