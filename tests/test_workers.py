"""Workers: every item comes back once, whatever happens to the process that had it."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from mssync.data import workers
from mssync.errors import InputError


def note(item: int, folder: Path) -> None:
    """Leave a file; -1 dies, -2 dies the first time, -3 hangs, -4 raises."""
    (folder / f"{item}_{time.monotonic_ns()}").touch()
    if item == -1 or (item == -2 and len(list(folder.glob("-2_*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if item == -3:
        workers.end_after(1)
        time.sleep(60)
    if item == -4:
        raise OSError(28, "No space left on device")


def test_every_item_is_done_once(tmp_path: Path) -> None:
    done = dict(workers.in_processes(partial(note, folder=tmp_path), range(7), 3))
    assert done == dict.fromkeys(range(7))
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == [str(n) for n in range(7)]
    assert list(workers.in_processes(partial(note, folder=tmp_path), [], 2)) == []


def test_a_process_that_dies_takes_one_item_with_it(tmp_path: Path) -> None:
    done = dict(workers.in_processes(partial(note, folder=tmp_path), [0, -1, 1, -2, -3, 2], 2))
    assert done == {0: None, 1: None, 2: None, -2: None, -1: workers.DIED, -3: workers.LATE}
    assert len(list(tmp_path.glob("-1_*"))) == workers.TRIES
    assert len(list(tmp_path.glob("-3_*"))) == 1  # what hangs is not tried again


def test_errors_of_the_task_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        list(workers.in_processes(partial(note, folder=tmp_path), [0, -4, 1], 2))


def test_ray_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "mssync\[ray\]"'), workers.cluster("local", 1):
        pass


@pytest.mark.parametrize("address", ["cluster", "127.0.0.1:9", "ray://127.0.0.1:9"])
def test_no_cluster_there(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"--ray .*127|give local"), workers.cluster(address, 1):
        pass


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray")
    # as a cluster's machines have the package installed, these processes have this file
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with workers.cluster("local", 2) as connected:
        yield connected


@pytest.mark.slow
def test_ray_does_every_item_once(ray, tmp_path: Path) -> None:
    done = dict(workers.on_ray(partial(note, folder=tmp_path), [0, 1, -1, 2], ray, None))
    assert done == {0: None, 1: None, 2: None, -1: workers.DIED}
    assert len(list(tmp_path.glob("[012]_*"))) == 3
    with pytest.raises(OSError, match="No space left"):
        list(workers.on_ray(partial(note, folder=tmp_path), [-4], ray, 1))
