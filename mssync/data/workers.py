"""Doing a task for many items at once: by processes of this machine, or by Ray on many.

Items are handed out one at a time. A process that dies takes one item with it, not the run: the item is tried once
more and then given back with the reason.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from mssync.errors import InputError

Item = TypeVar("Item")
Task = Callable[[Item], None]
TRIES = 2  # a process may die of what another one does: too little memory


def in_processes(task: Task, items: Iterable[Item], workers: int) -> Iterator[tuple[Item, str | None]]:
    """Items as they are done, each with None, or with why it could not be: its process died, or took too long.

    What the task raises is raised here. task and items are sent to fresh processes (threads of libraries do not
    survive a fork), so they must pickle.
    """
    waiting = iter(items)
    again: deque[Item] = deque()
    tries: dict[Item, int] = {}
    crew = [_Worker(task) for _ in range(workers)]
    try:
        while True:
            for worker in crew:
                if worker.item is None:
                    worker.give(again.popleft() if again else next(waiting, None))
            busy = {worker.connection: worker for worker in crew if worker.item is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                item, worker.item = worker.item, None
                try:
                    error = worker.connection.recv()
                except (EOFError, OSError):
                    reason = worker.replace(task)
                    tries[item] = tries.get(item, 0) + 1
                    if tries[item] < TRIES and reason is DIED:
                        again.append(item)
                    else:
                        yield item, reason
                    continue
                if error is not None:
                    raise error
                yield item, None
    finally:
        for worker in crew:
            worker.stop()


DIED, LATE = "the process that worked on it died", "it took too long"


class _Worker:
    """A process that does one item at a time."""

    def __init__(self, task: Task) -> None:
        self._start(task)

    def _start(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.item: Any = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()  # or its end would not be noticed

    def give(self, item: Any) -> None:
        self.item = item
        if item is not None:
            with suppress(OSError):  # it died while idle; reading from it will tell
                self.connection.send(item)

    def replace(self, task: Task) -> str:
        """Start a process in the place of one that has ended; returns why it did."""
        self.process.join(5)
        reason = LATE if self.process.exitcode == -getattr(signal, "SIGALRM", 0) else DIED
        self.stop()
        self._start(task)
        return reason

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(task: Task, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            task(item)
            connection.send(None)
        except Exception as error:
            connection.send(error)


def end_after(seconds: int) -> None:
    """End this process so many seconds from now, whatever it hangs in; 0: never mind."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected until the block ends; None without an address.

    address: "local" starts Ray on this machine with so many workers, "auto" or HOST:PORT joins a cluster.
    Raises InputError when Ray is not installed, or there is no cluster at the address.
    """
    if address is None:
        yield None
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError('--ray needs Ray; install it with: pip install "mssync[ray]"')
    _check_address(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of what it will do one day
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":  # these are the caller's own processes; Ray would give them next to no time beside others
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    where = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: no Ray cluster there ({str(error).splitlines()[0]})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise InputError unless somebody answers at HOST:PORT: Ray would try for two minutes and then end the process."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if address in ("local", "auto"):
        return
    if not colon or not port.isdigit():
        raise InputError(f"--ray {address}: give local, auto, or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"--ray {address}: no Ray cluster there ({error.strerror or error})") from error


def on_ray(task: Task, items: Iterable[Item], ray: Any, workers: int | None) -> Iterator[tuple[Item, str | None]]:
    """As `in_processes`, by a connected Ray. workers: tasks at a time, two a core of the cluster unless given."""
    remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_quietly)
    limit = workers or max(1, 2 * int(ray.cluster_resources().get("CPU", 1)))
    waiting, shared = iter(items), ray.put(task)
    pending: dict[Any, Item] = {}
    while True:
        pending.update((remote.remote(shared, item), item) for item in islice(waiting, limit - len(pending)))
        if not pending:
            return
        done, _ = ray.wait(list(pending))
        item = pending.pop(done[0])
        try:
            ray.get(done[0])
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            yield item, DIED
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)) from None
        else:
            yield item, None


def _quietly(task: Task, item: Any) -> None:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # C++ libraries are talkative
    task(item)
