"""Jobs that need no models, for tests of the queue: `serve` takes the place of `mssync.app.work.serve`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mssync.app import work
from mssync.errors import InputError


class Threads:
    """What the queue says of them, for all to see."""

    def compute_with(self, threads: int) -> None:
        self.number = threads


def serve(pipe, model, device, precision) -> None:
    work.JOBS.update(copy=copy, wait=wait, die=die, refuse=refuse, fail=fail, animate=copy_picture)
    work.JOBS.update(threads=threads, dawdle=dawdle)
    work.listen(pipe, Threads())


def copy(tools, folder: Path, tell, *, file: str) -> dict:
    """What is in a file, in a file of its own; slow enough for others to come between."""
    for done in range(4):
        tell(done, 4, "copying")
        time.sleep(0.01)
    (folder / "copy.mp4").write_bytes(Path(file).read_bytes())
    return {"video": str(folder / "copy.mp4"), "says": "copied"}


def copy_picture(tools, folder: Path, tell, *, picture: str, speech: str, **options) -> dict:
    return copy(tools, folder, tell, file=picture)


def wait(tools, folder: Path, tell, *, seconds: float) -> dict:
    (folder / "half.mp4").write_bytes(b"half")
    tell(0, 0, "waiting on purpose")
    time.sleep(seconds)
    return {}


def die(tools, folder: Path, tell) -> dict:
    os._exit(3)


def refuse(tools, folder: Path, tell, *, file: str) -> dict:
    raise InputError(f"{file} is not to our taste")


def fail(tools, folder: Path, tell) -> dict:
    raise RuntimeError("a secret of the server")


def threads(tools, folder: Path, tell) -> dict:
    return {"threads": tools.number}


def dawdle(tools, folder: Path, tell, *, file: str) -> dict:
    return wait(tools, folder, tell, seconds=60)
