"""What a person does that speech does not tell: where the head turns for the next seconds, blinks, saccades (ours).

A generator that has nothing else to go by learns the mean of what people do, which is to stay in the middle with open
eyes that stare. So turns, blinks and saccades are drawn, and added to what it makes of the speech, linearly, as they
look in real motion (`training.spontaneous` measures that): nine numbers a frame, of which six say where the head is, in
units of what people do, the seventh how far the eyes are closed, from 0 to 1, and two how far they look aside and down,
in widths of an eye. A place is held for some seconds, then another one is taken; eyes blink, and jump from one thing
that they look at to the next, most often back to the viewer.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

PLACE = 6  # numbers that say where the head is: across, down, size, roll, yaw and pitch, mixed
GAZE = slice(PLACE + 1, PLACE + 3)  # numbers that say where the eyes look
NUMBERS = GAZE.stop
HOLD = 50  # frames that a place is held on average: poses 1 s apart share half of their variance, 3 s apart little
TURN = 3.5  # frames that each of STAGES first-order lags takes: a turn lasts about 0.6 s
STAGES = 3
DEVIATION = 1.3  # of places, by the root mean square of people: so heads go about as far as theirs (on `val`)
FARTHEST = 1.5  # deviations: few portraits can be drawn farther from where they were
# How far the eyes are closed in a blink, frame by frame: the median of 1,700 real ones, a little deeper, as their
# motion was smoothed. People blink 20 to 30 times a minute, and often as they turn.
BLINK = np.array([0.07, 0.36, 0.64, 0.77, 0.62, 0.41, 0.23, 0.15, 0.1, 0.05, 0])
BETWEEN = 150  # frames on average from the time that the next blink may come until it does, where nobody turns
REST = 20  # frames from the beginning of a blink until the next one may come
BLINKING = (0.5, 1.0)  # the share of their turns in which people blink: they differ
LOOK = 22  # frames that a gaze is held on average
AWAY = 0.6744897501960817  # what a standard normal number exceeds where the next gaze is elsewhere: one in four
ELSEWHERE = (0.085, 0.035)  # deviation of where that is, aside and down
AT = (0.012, 0.008)  # the same of gazes at the viewer
JUMP = 0.65  # share of its way that a saccade takes in a frame: it lasts for two or three


# What a standard normal number exceeds once in HOLD, BETWEEN and LOOK frames.
TURNS, BLINKS, LOOKS = 2.053748910631823, 2.4747396492194813, 1.6906216295848984


class Spontaneous:
    """Turns, blinks and saccades of B people, at random; the same for a seed, however many frames are drawn at a time.

    Everybody begins in the middle, with open eyes that look at the viewer.
    """

    def __init__(self, batch: int, seed: int) -> None:
        # RandomState's numbers are the same in every version of numpy; those of default_rng's generator need not be.
        self.random = np.random.RandomState(np.random.MT19937(seed))
        # The place that is held, and what follows it ever more smoothly.
        self.stages = [np.zeros((batch, PLACE)) for _ in range(STAGES + 1)]
        self.since = np.full(batch, len(BLINK))  # frames since a blink began
        self.blinking = self.random.uniform(*BLINKING, batch)
        self.target, self.gaze = np.zeros((batch, 2)), np.zeros((batch, 2))

    def draw(self, frames: int) -> Tensor:
        """The numbers of the next frames, (frames, B, NUMBERS) float32."""
        numbers = np.empty((frames, len(self.since), NUMBERS), np.float32)
        for t in range(frames):
            numbers[t, :, :PLACE] = self.stages[-1]
            numbers[t, :, PLACE] = BLINK[np.minimum(self.since, len(BLINK) - 1)]
            numbers[t, :, GAZE] = self.gaze
            self._move()
            self._look()
        return torch.from_numpy(numbers)

    def _move(self) -> None:
        """Heads and lids to the next frame."""
        turns, blinks = (self.random.standard_normal(len(self.since)) > rare for rare in (TURNS, BLINKS))
        places = self.random.standard_normal(self.stages[0].shape).clip(-FARTHEST, FARTHEST)
        self.stages[0] = np.where(turns[:, None], DEVIATION * places, self.stages[0])
        for k in range(STAGES):
            self.stages[k + 1] = self.stages[k + 1] + (self.stages[k] - self.stages[k + 1]) / TURN
        blinks |= turns & (self.random.uniform(size=len(turns)) < self.blinking)
        self.since = np.where(blinks & (self.since >= REST), 0, self.since + 1)

    def _look(self) -> None:
        """Eyes to the next frame."""
        looks, away = (self.random.standard_normal(len(self.since)) > rare for rare in (LOOKS, AWAY))
        reach = np.where(away[:, None], ELSEWHERE, AT)
        new = reach * self.random.standard_normal(self.gaze.shape).clip(-FARTHEST, FARTHEST)
        self.target = np.where(looks[:, None], new, self.target)
        self.gaze = self.gaze + JUMP * (self.target - self.gaze)


def own_seed(name: str) -> int:
    """A seed for every clip of an evaluation, so that heads do not turn alike in all of them."""
    return zlib.crc32(name.encode())
