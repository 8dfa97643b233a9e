"""Tar shards as webdataset reads them: files KEY.EXTENSION, those of a sample one after the other.

Written so that the same samples give the same bytes, and read at random: the headers of a shard are scanned once,
then any member is one seek away.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mssync.errors import InputError, written_whole


def add(archive: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    """Append a member without anything that depends on when, where or by whom it is written."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644  # time, user and group stay 0
    archive.addfile(header, content)


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    add(archive, name, io.BytesIO(content), len(content))


def npz(**arrays: Any) -> bytes:
    """The bytes of an .npz file; numpy dates its members 1980, so they depend on the arrays alone."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def create(path: Path) -> tarfile.TarFile:
    """A new, empty tar file at `path`."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def join(parts: Iterable[Path], target: Path) -> None:
    """Write the members of tar files, in this order, into one at `target`, which appears when it is complete."""
    with written_whole(target, ".tar") as temporary, create(temporary) as shard:
        for path in parts:
            with tarfile.open(path, "r:") as part:
                for member in part:
                    content = part.extractfile(member)
                    assert content is not None
                    add(shard, member.name, content, member.size)  # type: ignore[arg-type]


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the members of a tar file are: name -> (first byte, length).

    Raises InputError when it is missing or damaged.
    """
    try:
        state = path.stat()
        return _members(path, state.st_size, state.st_mtime_ns)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: missing or damaged ({error}); make this folder again") from error


@lru_cache(maxsize=4096)
def _members(path: Path, size: int, changed: int) -> dict[str, tuple[int, int]]:
    with tarfile.open(path, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


def read(path: Path, start: int, length: int) -> bytes:
    """Bytes of a file. It is opened anew each time: thousands of shards are more than may stay open."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def read_npz(path: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a member of a tar file. Raises InputError when there is no such member, or it is damaged."""
    start, length = locate(path, name)
    try:
        with np.load(io.BytesIO(read(path, start, length)), allow_pickle=False) as data:
            return dict(data)
    except Exception as error:  # whatever a damaged archive raises
        raise InputError(f"{path}: {name} is damaged; make this folder again") from error


def locate(path: Path, name: str) -> tuple[int, int]:
    """First byte and length of a member. Raises InputError when there is none of that name."""
    found = members(path).get(name)
    if found is None:
        raise InputError(f"{path}: no {name} in it; make this folder again")
    return found
