"""One thread that works for all live sessions, in turns, and the cores that draw for it.

A turn of a session takes all sound that has arrived, makes the motion of every frame of it (which is cheap, and keeps
the session in step with its sound), and has at most TURN_FRAMES of these frames drawn, each by a core. A turn begins
when a core is free. So sessions share the cores evenly, and when there is too much to do, frames are left out; none is
ever late by more than one round of turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch

from mssync.cores import Cores, use_one_core
from mssync.pixels import encode_jpeg
from mssync.stream import StreamingAnimator

TURN_FRAMES = 2  # frames drawn in one turn: more would make others wait
JPEG_QUALITY = 88  # about 12 kB a frame, 2.5 Mbit/s


class Speaker:
    """One session. `hear` and `end` may be called from any thread; `deliver` is called from the engine's.

    deliver: gets the index of a frame and its JPEG, in order; at last `deliver(frames, None)` with the number of frames
    that the speech lasted for, or `deliver(-1, None)` where the session broke.
    """

    def __init__(self, animator: StreamingAnimator, deliver: Callable[[int, bytes | None], None]) -> None:
        self.animator, self.deliver = animator, deliver
        self._heard: deque[np.ndarray] = deque()
        self._ended = self._closed = self._broken = False

    def hear(self, samples: np.ndarray) -> None:
        self._heard.append(samples)

    def end(self) -> None:
        self._ended = True

    def busy(self) -> bool:
        """Whether a turn would find something to do."""
        return not self._closed and (bool(self._heard) or self._ended)

    def turn(self) -> list[tuple[int, Callable[[], bytes] | None]]:
        """All that has arrived: motion of every frame; returns the pictures to draw, by their frames' indices.

        At the end of the speech comes the number of frames, with None.
        """
        first, ended = self.animator.made, self._ended
        sounds = [self._heard.popleft() for _ in range(len(self._heard))]
        parts = [self.animator.push_motion(np.concatenate(sounds))] if sounds else []
        if ended:
            parts.append(self.animator.flush_motion())
            self._closed = True
        motion = np.concatenate(parts)
        pictures: list[tuple[int, Callable[[], bytes] | None]] = [
            (first + k, partial(self._picture, motion[k])) for k in drawn(len(motion))
        ]
        return [*pictures, (self.animator.made, None)] if ended else pictures

    def _picture(self, motion: np.ndarray) -> bytes:
        return jpeg(self.animator.picture(motion))

    def tell(self, index: int, coded: bytes | None) -> None:
        """Deliver, unless the session broke."""
        if not self._broken:
            self.deliver(index, coded)

    def fail(self) -> None:
        self.tell(-1, None)
        self._closed = self._broken = True


def drawn(count: int) -> list[int]:
    """Which of `count` frames are drawn in one turn: all of a few, else the newest and others evenly before it."""
    number = min(count, TURN_FRAMES)
    return [count - 1 - (number - 1 - k) * count // number for k in range(number)]


def jpeg(frame: np.ndarray) -> bytes:
    """The JPEG of a frame (H, W, 3) uint8 RGB."""
    return encode_jpeg(frame, JPEG_QUALITY)


class Engine:
    """The thread. `start` it, `add` speakers, `wake` it when sound has arrived; `stop` joins it."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self._under_way: deque[tuple[Speaker, int, Future[bytes] | None]] = deque()
        self._speakers: list[Speaker] = []
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._wake:
            if self._thread is None:
                self._stopped = False
                self._thread = threading.Thread(target=self._run, name="mssync-engine", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the turn under way; sessions that are still there are told that they broke."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for speaker in self._speakers:
            speaker.fail()

    def call(self, job: Callable[[], Any]) -> Future[Any]:
        """Do something between two turns."""
        future: Future[Any] = Future()
        with self._wake:
            self._jobs.append((future, job))
            self._wake.notify()
        return future

    def add(self, speaker: Speaker) -> None:
        with self._wake:
            self._speakers.append(speaker)

    def remove(self, speaker: Speaker) -> None:
        with self._wake:
            if speaker in self._speakers:
                self._speakers.remove(speaker)

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        use_one_core(torch.get_num_threads())  # the others draw
        while True:
            with self._wake:
                self._wake.wait_for(self._anything_to_do)
                if self._stopped:
                    break
                jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
                speaker = self._next()
            for future, job in jobs:
                _do(future, job)
            self._hand_on()
            if speaker is not None:
                self._turn(speaker)
        for _, _, picture in self._under_way:
            if picture is not None:
                picture.cancel()
        self._under_way.clear()
        for future, _ in self._jobs:
            future.cancel()

    def _anything_to_do(self) -> bool:
        drawn = bool(self._under_way) and _ready(self._under_way[0][2])
        waiting = self._room() and any(speaker.busy() for speaker in self._speakers)
        return self._stopped or bool(self._jobs) or drawn or waiting

    def _room(self) -> bool:
        return len(self._under_way) < self.cores.count

    def _next(self) -> Speaker | None:
        """Who of those with something to do had no turn for the longest time, if a core is free; goes to the end."""
        speaker = next((s for s in self._speakers if s.busy()), None) if self._room() else None
        if speaker is not None:
            self._speakers.remove(speaker)
            self._speakers.append(speaker)
        return speaker

    def _turn(self, speaker: Speaker) -> None:
        try:
            for index, picture in speaker.turn():
                future = None if picture is None else self.cores.submit(picture)
                self._under_way.append((speaker, index, future))
                if future is not None:
                    future.add_done_callback(lambda _: self.wake())
        except Exception:
            _broke(speaker)

    def _hand_on(self) -> None:
        """Deliver what is ready, in order."""
        while self._under_way and _ready(self._under_way[0][2]):
            speaker, index, future = self._under_way.popleft()
            try:
                speaker.tell(index, None if future is None else future.result())
            except Exception:
                _broke(speaker)


def _ready(future: Future[bytes] | None) -> bool:
    return future is None or future.done()


def _broke(speaker: Speaker) -> None:
    """One session must not end the others."""
    import logging

    logging.getLogger(__name__).exception("a live session broke")
    speaker.fail()


def _do(future: Future[Any], job: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)
