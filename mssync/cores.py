"""Work on several cores: a thread a core, each with batches of its own.

PyTorch shares every operation out to all cores and waits for the last of them, thousands of times a second; whatever
else runs, an encoder, makes all wait. Batches that each stay on one core come to nearly twice the frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Cores:
    """Threads that compute on one core each: as many as PyTorch uses on a processor, one for another device.

    They begin with the first work, and wait for more until the program ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        cores = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.count, "mssync-core", use_one_core, (cores,))
        self._maker = ThreadPoolExecutor(1, "mssync-maker", use_one_core, (cores,))

    def submit(self, function: Callable[[], B]) -> Future[B]:
        """Do something as soon as a thread is free."""
        return self._threads.submit(function)

    def one_by_one(self, items: Iterable[A]) -> Iterator[A]:
        """The items, each made on one core when it is asked for, by a thread that does nothing else.

        For what is made of many small operations: shared out to all cores, they wait for whatever else runs there.
        """
        iterator = iter(items)
        while (found := self._maker.submit(next, iterator, self).result()) is not self:
            yield found  # type: ignore[misc]

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
        """Results of function(item), in order. Items are taken one by one in the caller's thread, at most one a thread
        and one more ahead. What goes wrong is raised here; closed, or interrupted, it waits for what is under way."""
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(function, item))
                if len(waiting) > self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()


def use_one_core(others: int) -> None:
    """Let this thread compute on one core, and threads that begin later on `others`, as before."""
    torch.get_num_threads()  # the first call in a thread sets its number: afterwards it would undo what follows
    torch.set_num_threads(1)
    back = Thread(target=torch.set_num_threads, args=(others,))  # sets the number for threads to come, and its own
    back.start()
    back.join()
