"""The studio's queue: few jobs at once, each in a process that is ended when it takes too long or is not wanted more.

Those who wait are told how many are before them and about how long that takes. A job's process is ended, not asked to
stop: so also what hangs inside a library ends, and a new process takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mssync.app.place import Place
from mssync.app.work import serve
from mssync.errors import InputError

AT_ONCE = 2  # jobs: each has about 600 MB of models and libraries
WAITING = 64  # jobs; more are refused
LIMIT = 900.0  # seconds that a job may take: twice what 5 minutes of speech take on two cores
GRACE = 20.0  # seconds that a page may be gone, for a reload or a bad network, before its jobs and files go
USUAL = 20.0  # seconds of a job, before any was measured
ASKED = 0.25  # seconds between two looks at the queue

Tell = Callable[[float | None, str], None]  # share that is done (None: unknown), in words

log = logging.getLogger(__name__)


class Worker:
    """A process that does one job at a time."""

    def __init__(self, model: str, device: str, precision: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of the server's is inherited: no sockets, no locks
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, model, device, precision, threads), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class Jobs:
    """The queue, its workers, and what they may leave in a `Place`. One event loop uses it."""

    def __init__(self, place: Place, model: str, device: str, precision: str, at_once: int = AT_ONCE) -> None:
        self.place, self.at_once = place, at_once
        self.loaded = (model, device, precision)  # what workers load
        self.idle: list[Worker] = []
        self.line: list[object] = []  # those who wait, the next one first
        self.stopped = False
        # One listens to each worker, or for a moment to one that has just been ended.
        self._listeners = ThreadPoolExecutor(2 * at_once, "mssync-jobs")
        self.took: deque[float] = deque(maxlen=20)  # seconds of the last jobs
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}  # by session
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    def start(self) -> None:
        """Start the workers; they load their models while nobody waits yet."""
        self.idle = [self._worker() for _ in range(self.at_once)]

    def stop(self) -> None:
        self.stopped = True
        for tasks in self._tasks.values():
            for task in tasks:
                task.cancel()
        for worker in self.idle:
            worker.end()
        self.idle = []
        self._listeners.shutdown(wait=False)

    async def sweep(self) -> None:
        """Remove old files, for ever."""
        while True:
            await asyncio.sleep(30)
            self.place.sweep()

    async def run(self, name: str, session: str, files: dict[str, Any], tell: Tell, **options: Any) -> dict[str, Any]:
        """Wait, then do a job of `work.JOBS`; return its answer.

        files: arguments of the job that name files. Cancelled, it leaves nothing behind.
        Raises InputError: a file that is not here, a full queue, too long a job, and what the job refuses.
        """
        given = {key: self.place.given(path, session) for key, path in files.items()}
        if len(self.line) >= WAITING:
            raise InputError(f"{WAITING} jobs are waiting already; try again in {in_words(self._wait(WAITING))}")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.setdefault(session, set()).add(task)
        folder, answer = self.place.new(session), None
        arguments = {**options, **{key: str(path) for key, path in given.items()}}
        try:
            with self.place.used([folder, *(path.parent for path in given.values())]):
                answer = await self._with(await self._turn(tell), name, folder, tell, arguments)
            return answer
        finally:
            if answer is None or not list(folder.iterdir()):
                self.place.remove(folder)
            self._tasks[session].discard(task)
            if not self._tasks[session]:
                del self._tasks[session]

    def arrive(self, session: str) -> None:
        """A page is open (again)."""
        if session in self._leaving:
            self._leaving.pop(session).cancel()

    def leave(self, session: str) -> None:
        """A page was closed: unless it comes back soon, its jobs and files go."""

        def gone() -> None:
            self._leaving.pop(session, None)
            for task in self._tasks.get(session, ()):
                task.cancel()
            asyncio.get_running_loop().call_later(1, self.place.leave, session)  # when its jobs have ended

        self.arrive(session)
        self._leaving[session] = asyncio.get_running_loop().call_later(GRACE, gone)

    def _worker(self) -> Worker:
        return Worker(*self.loaded, max(1, (os.cpu_count() or 1) // self.at_once))

    def _wait(self, before: int) -> float:
        """Seconds, about, until one who has so many before them begins."""
        usual = sum(self.took) / len(self.took) if self.took else USUAL
        return (before + 1) * usual / self.at_once

    async def _turn(self, tell: Tell) -> Worker:
        """Wait in line for a worker."""
        ticket = object()
        self.line.append(ticket)
        try:
            while self.line[0] is not ticket or not self.idle:
                before = self.line.index(ticket)
                tell(None, f"waiting: {before} before you, about {in_words(self._wait(before))}")
                await asyncio.sleep(ASKED)
            return self.idle.pop(0)
        finally:
            self.line.remove(ticket)

    async def _with(self, worker: Worker, name: str, folder: Path, tell: Tell, arguments: dict[str, Any]) -> Any:
        """Do a job with a worker, which is idle again after that; one that had to be ended has a successor."""
        begun = time.monotonic()
        try:
            kind, answer = await asyncio.wait_for(self._asked(worker, name, folder, tell, arguments), LIMIT)
        except BaseException as error:
            worker.end()
            if not self.stopped:
                self.idle.append(self._worker())
            if isinstance(error, asyncio.TimeoutError):
                raise InputError(f"this took more than {in_words(LIMIT)} and was ended; give less") from None
            if isinstance(error, EOFError | OSError):
                log.error("a job's process ended: %s", name)
                raise InputError("this job's process ended before it was done; try another file") from None
            raise
        self.idle.append(worker)
        if kind == "refused":
            raise InputError(answer)
        if kind == "broken":
            log.error("a job broke: %s\n%s", name, answer)
            raise InputError("this job broke; the server's messages tell why")
        self.took.append(time.monotonic() - begun)
        return answer

    async def _asked(
        self, worker: Worker, name: str, folder: Path, tell: Tell, arguments: dict[str, Any]
    ) -> tuple[str, Any]:
        tell(None, "starting")
        worker.pipe.send((name, str(folder), arguments))
        begun: float | None = None
        while True:
            kind, *content = await asyncio.get_running_loop().run_in_executor(self._listeners, worker.pipe.recv)
            if kind != "told":
                return kind, content[0]
            done, of, what = content
            if not of:
                tell(None, what)
                continue
            begun = begun or time.monotonic()
            left = (time.monotonic() - begun) / done * (of - done) if done else 0.0
            tell(done / of, f"{what}, about {in_words(left)} left" if done else what)


def in_words(seconds: float) -> str:
    """ "8 seconds", "3 minutes": as exact as such a guess is."""
    count, unit = (max(1, round(seconds)), "second") if seconds < 90 else (round(seconds / 60), "minute")
    return f"{count} {unit}{'s' * (count > 1)}"
