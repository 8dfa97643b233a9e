"""The studio's queue: few jobs at once, each in a process that is ended when it takes too long or is not wanted more.

Visitors take turns, so somebody with one job does not wait for all of somebody else's, and nobody has more than a share
of the places. Those who wait are told how many are before them and about how long that takes. A job's process is ended,
not asked to stop: so also what hangs inside a library ends, and a new process takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mssync.app.limits import in_words, seconds_told
from mssync.app.place import Place
from mssync.app.visitors import Visitor
from mssync.app.work import serve
from mssync.errors import InputError

AT_ONCE = 2  # jobs: each has about 600 MB of models and libraries
WAITING = 64  # jobs; more are refused
OF_ADDRESS = 32  # of these places, at most, for one address: the others find half of them free
OF_SESSION = 8  # for one page or client
LIMIT = 900.0  # seconds that a job may take: twice what 5 minutes of speech take on two cores
GRACE = 20.0  # seconds that a page may be gone, for a reload or a bad network, before its jobs and files go
START = 1.0  # seconds of any job: reading, finding the face
PACE = 1.0  # seconds of work for a second of speech or video, before any was measured
LENGTH = 10.0  # seconds of speech or video, where a file does not say
ASKED = 0.25  # seconds between two looks at the queue

Tell = Callable[[float | None, str], None]  # share that is done (None: unknown), in words

log = logging.getLogger(__name__)


class Worker:
    """A process that does one job at a time."""

    def __init__(self, model: str, device: str, precision: str) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of the server's is inherited: no sockets, no locks
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, model, device, precision), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass(eq=False)
class Ticket:
    """A job that waits or runs."""

    visitor: Visitor
    length: float  # of what was given, in seconds
    begun: float = 0.0
    done: float = 0.0  # share of it, as the job itself tells
    arrived: float = field(default_factory=time.monotonic)


class Jobs:
    """The queue, its workers, and what they may leave in a `Place`. One event loop uses it."""

    def __init__(self, place: Place, model: str, device: str, precision: str, at_once: int = AT_ONCE) -> None:
        self.place, self.at_once = place, at_once
        self.loaded = (model, device, precision)  # what workers load
        self.idle: list[Worker] = []
        self.line: list[Ticket] = []  # those who wait, by their arrival
        self.running: list[Ticket] = []
        self.stopped = False
        # One listens to each worker, or for a moment to one that has just been ended.
        self._listeners = ThreadPoolExecutor(2 * at_once, "mssync-jobs")
        self.paces: deque[float] = deque(maxlen=20)  # of the last jobs, as PACE
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

    async def run(
        self, name: str, visitor: Visitor, files: dict[str, Any], tell: Tell, **options: Any
    ) -> dict[str, Any]:
        """Wait, then do a job of `work.JOBS`; return its answer.

        files: arguments of the job that name files. Cancelled, it leaves nothing behind.
        Raises InputError: a file that is not here, no place to wait, too long a job, and what the job refuses.
        """
        given = {key: self.place.given(path, visitor.session) for key, path in files.items()}
        lengths = await asyncio.to_thread(lambda: [seconds_told(path) for path in given.values()])
        ticket = self._ticket(visitor, max(lengths, default=0.0) or LENGTH)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.setdefault(visitor.session, set()).add(task)
        folder = answer = None
        try:
            folder = self.place.new(visitor.session)
            arguments = {**options, **{key: str(path) for key, path in given.items()}}
            with self.place.used([folder, *(path.parent for path in given.values())]):
                worker = await self._turn(ticket, tell)
                answer = await self._with(worker, ticket, name, folder, tell, arguments)
            return answer
        finally:
            if folder is not None and (answer is None or not list(folder.iterdir())):
                self.place.remove(folder)
            if ticket in self.line:
                self.line.remove(ticket)
            self._tasks[visitor.session].discard(task)
            if not self._tasks[visitor.session]:
                del self._tasks[visitor.session]

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
        return Worker(*self.loaded)

    def _ticket(self, visitor: Visitor, length: float) -> Ticket:
        """A place in the line. Raises InputError where there is none (for this visitor)."""
        ticket = Ticket(visitor, length)
        wait = in_words(self._wait(len(self.line), [*_in_turn(self.line, self.running), ticket]))
        of_address = sum(other.visitor.address == visitor.address for other in self.line)
        of_session = sum(other.visitor == visitor for other in self.line)
        if of_session >= OF_SESSION:
            raise InputError(f"{of_session} of your jobs are waiting already; give more when some are done")
        if of_address >= OF_ADDRESS:
            raise InputError(f"{of_address} jobs from your address are waiting already; give more when some are done")
        if len(self.line) >= WAITING:
            raise InputError(f"{len(self.line)} jobs are waiting already; try again in {wait}")
        self.line.append(ticket)
        return ticket

    def _takes(self, ticket: Ticket) -> float:
        """Seconds, about, that a job takes."""
        return START + ticket.length * (median(self.paces) if self.paces else PACE)

    def _left(self, job: Ticket) -> float:
        """Seconds, about, until a job that runs is done: what it usually takes, then more and more its own speed."""
        usual, elapsed = self._takes(job), time.monotonic() - job.begun
        if not job.done:
            return max(0.0, usual - elapsed)
        return (1 - job.done) * ((1 - job.done) * usual + job.done * (elapsed / job.done))

    def _wait(self, before: int, order: list[Ticket]) -> float:
        """Seconds, about, until one who has so many before them begins; a worker that is free takes the next job."""
        free = [0.0] * (self.at_once - len(self.running)) + [self._left(job) for job in self.running]
        for ticket in order[:before]:
            free.sort()
            free[0] += self._takes(ticket)
        return min(free)

    async def _turn(self, ticket: Ticket, tell: Tell) -> Worker:
        """Wait in line for a worker."""
        while True:
            order = _in_turn(self.line, self.running)
            before = order.index(ticket)
            if before == 0 and self.idle:
                self.line.remove(ticket)
                return self.idle.pop(0)
            tell(None, f"waiting: {before} before you, about {in_words(self._wait(before, order))}")
            await asyncio.sleep(ASKED)

    async def _with(
        self, worker: Worker, ticket: Ticket, name: str, folder: Path, tell: Tell, arguments: dict[str, Any]
    ) -> Any:
        """Do a job with a worker, which is idle again after that; one that had to be ended has a successor."""
        ticket.begun = time.monotonic()
        self.running.append(ticket)
        try:
            kind, answer = await asyncio.wait_for(self._asked(worker, ticket, name, folder, tell, arguments), LIMIT)
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
        finally:
            self.running.remove(ticket)
        self.idle.append(worker)
        if kind == "refused":
            raise InputError(answer)
        if kind == "broken":
            log.error("a job broke: %s\n%s", name, answer)
            raise InputError("this job broke; the server's messages tell why")
        self.paces.append(max(0.0, time.monotonic() - ticket.begun - START) / ticket.length)
        return answer

    async def _asked(
        self, worker: Worker, ticket: Ticket, name: str, folder: Path, tell: Tell, arguments: dict[str, Any]
    ) -> tuple[str, Any]:
        tell(None, "starting")
        threads = max(1, (os.cpu_count() or 1) // len(self.running))  # all cores for one who is alone
        worker.pipe.send((name, str(folder), arguments, threads))
        while True:
            kind, *content = await asyncio.get_running_loop().run_in_executor(self._listeners, worker.pipe.recv)
            if kind != "told":
                return kind, content[0]
            done, of, what = content
            if not of:
                tell(None, what)
                continue
            ticket.done = done / of
            tell(done / of, f"{what}, about {in_words(self._left(ticket))} left" if done else what)


def _in_turn(line: Iterable[Ticket], running: Iterable[Ticket]) -> list[Ticket]:
    """Those who wait, the next one first: addresses take turns, and in each of them its sessions.

    Jobs that run count as turns that were had; where turns are even, the first to come is the first.
    """
    had = Counter(job.visitor for job in running)
    by_address: dict[str, list[tuple[int, Ticket]]] = defaultdict(list)
    for ticket in line:
        by_address[ticket.visitor.address].append((had[ticket.visitor], ticket))
        had[ticket.visitor] += 1
    turns = Counter(job.visitor.address for job in running)
    ranked = [
        (turns[address] + place, ticket.arrived, ticket)
        for address, mine in by_address.items()
        for place, (_, ticket) in enumerate(sorted(mine, key=lambda one: (one[0], one[1].arrived)))
    ]
    return [ticket for *_, ticket in sorted(ranked, key=lambda one: one[:2])]
