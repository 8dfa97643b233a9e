"""Threads of one core each: order, how far ahead, errors, and what they do to other threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from mssync.cores import Cores


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return Cores(torch.device("cpu"))


def test_results_come_in_order_and_items_are_taken_when_there_is_room(cores: Cores) -> None:
    taken: list[int] = []

    def items():
        for k in range(20):
            taken.append(k)
            yield k

    def slow_if_even(k: int) -> int:
        time.sleep(0.01 * (k % 2 == 0))
        return k

    results = cores.map(slow_if_even, items())
    assert not taken
    for k, found in enumerate(results):
        assert found == k
        assert len(taken) <= k + 1 + cores.count


def test_errors_are_raised_where_their_result_is_asked_for(cores: Cores) -> None:
    results = cores.map(lambda k: 1 // (2 - k), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_closed_it_waits_for_what_is_under_way(cores: Cores) -> None:
    done: list[int] = []

    def work(k: int) -> None:
        time.sleep(0.02)
        done.append(k)

    results = cores.map(work, range(100))
    next(results)
    results.close()
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count <= 1 + cores.count


def test_other_threads_keep_their_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threads = Cores(torch.device("cpu"))
        together = threading.Barrier(3)

        def number(_: int) -> int:
            together.wait(10)
            torch.rand(64, 64) @ torch.rand(64, 64)
            return torch.get_num_threads()

        assert list(threads.map(number, range(3))) == [1, 1, 1]
        assert torch.get_num_threads() == 3
        found: list[int] = []
        late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


def test_items_are_made_on_one_core_when_they_are_asked_for(cores: Cores) -> None:
    made: list[tuple[int, int, str]] = []

    def items():
        for k in range(3):
            made.append((k, torch.get_num_threads(), threading.current_thread().name))
            yield k
        raise ValueError("spoilt")

    found = cores.one_by_one(items())
    assert not made
    assert [next(found), next(found)] == [0, 1]
    assert len(made) == 2
    assert len({name for _, _, name in made}) == 1
    assert threading.current_thread().name not in {name for _, _, name in made}
    assert next(found) == 2
    with pytest.raises(ValueError, match="spoilt"):
        next(found)
    assert list(cores.one_by_one([])) == []


def test_another_device_has_one_thread() -> None:
    assert Cores(torch.device("meta")).count == 1
