"""One thread that works for all live sessions, in turns.

A turn of a session takes all sound that has arrived, makes the motion of every frame of it (which is cheap, and keeps
the session in step with its sound), and draws at most TURN_FRAMES of these frames. So sessions share the cores evenly,
and when there is too much to do, frames are left out; none is ever late by more than one round of turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from mssync.stream import StreamingAnimator

TURN_FRAMES = 2  # frames drawn in one turn: more would be a little faster, and make others wait
JPEG_QUALITY = 88  # about 12 kB a frame, 2.5 Mbit/s


class Speaker:
    """One session. `hear` and `end` may be called from any thread; `deliver` is called from the engine's.

    deliver: gets the index of a frame and its JPEG, in order; at last `deliver(frames, None)` with the number of frames
    that the speech lasted for, or `deliver(-1, None)` where the session broke.
    """

    def __init__(self, animator: StreamingAnimator, deliver: Callable[[int, bytes | None], None]) -> None:
        self.animator, self.deliver = animator, deliver
        self._heard: deque[np.ndarray] = deque()
        self._ended = self._closed = False

    def hear(self, samples: np.ndarray) -> None:
        self._heard.append(samples)

    def end(self) -> None:
        self._ended = True

    def busy(self) -> bool:
        """Whether a turn would find something to do."""
        return not self._closed and (bool(self._heard) or self._ended)

    def turn(self) -> None:
        """All that has arrived: motion of every frame, pictures of some."""
        first, ended = self.animator.made, self._ended
        sounds = [self._heard.popleft() for _ in range(len(self._heard))]
        parts = [self.animator.push_motion(np.concatenate(sounds))] if sounds else []
        if ended:
            parts.append(self.animator.flush_motion())
            self._closed = True
        motion = np.concatenate(parts)
        chosen = drawn(len(motion))
        for index, frame in zip(chosen, self.animator.draw(motion[chosen]), strict=True):
            self.deliver(first + index, jpeg(frame))
        if ended:
            self.deliver(self.animator.made, None)

    def fail(self) -> None:
        self._closed = True
        self.deliver(-1, None)


def drawn(count: int) -> list[int]:
    """Which of `count` frames are drawn in one turn: all of a few, else the newest and others evenly before it."""
    number = min(count, TURN_FRAMES)
    return [count - 1 - (number - 1 - k) * count // number for k in range(number)]


def jpeg(frame: np.ndarray) -> bytes:
    """The JPEG of a frame (H, W, 3) uint8 RGB."""
    import cv2

    coded = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return coded.tobytes()


class Engine:
    """The thread. `start` it, `add` speakers, `wake` it when sound has arrived; `stop` joins it."""

    def __init__(self) -> None:
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
        """Do something between two turns: models are used by this thread alone."""
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
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._jobs or any(s.busy() for s in self._speakers))
                if self._stopped:
                    break
                jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
                speakers = [speaker for speaker in self._speakers if speaker.busy()]
            for future, job in jobs:
                _do(future, job)
            for speaker in speakers:
                try:
                    speaker.turn()
                except Exception:  # one session must not end the others
                    import logging

                    logging.getLogger(__name__).exception("a live session broke")
                    speaker.fail()
        for future, _ in self._jobs:
            future.cancel()


def _do(future: Future[Any], job: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)
