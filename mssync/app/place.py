"""The studio's private folder: visitors' uploads and results, each in a folder of its own under a name nobody guesses.

Files belong to the page (or client) that first used them. They go shortly after it is closed, and at the latest KEEP
seconds after their last use; all of them with the server. A server that was killed leaves its folder behind: the next
start on the machine clears it, which a lock tells from the folder of one that runs.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mssync.errors import InputError

PREFIX = "mssync-studio-"
LOCK = ".lock"
ALIAS = "/files"  # what visitors see in the place of the folder's path
KEEP = 900.0  # seconds that files stay after their last use
MAX_NAME = 80  # characters of an upload's name that are kept
MAX_BYTES = 4_000_000_000  # of all files together
OF_ADDRESS = MAX_BYTES // 2  # of the uploads from one address


class NoRoom(InputError):
    """A visitor's file is good, but there is no room for it."""


class Place:
    """The folder. Its methods are called from one thread, the server's."""

    def __init__(self) -> None:
        clear_abandoned()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()  # mode 0700
        self._lock = _locked(self.root / LOCK)
        self._owned: dict[str, set[Path]] = {}  # folders, by session
        self._busy: dict[Path, int] = {}  # jobs that use a folder
        self._sent: dict[Path, str] = {}  # addresses that uploads came from, by folder

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def new(self, session: str | None = None) -> Path:
        """An empty folder."""
        folder = self.root / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        if session is not None:
            self._owned.setdefault(session, set()).add(folder)
        return folder

    def upload(self, name: str, address: str) -> Path:
        """Where an upload of that name is to be written. Raises NoRoom: for anybody, or for more from this address."""
        if self.size(self._folders()) > MAX_BYTES:
            raise NoRoom("this server's folder is full; try again in some minutes")
        if self.size(folder for folder, sender in self._sent.items() if sender == address) > OF_ADDRESS:
            raise NoRoom("the files from your address take all the room that it has here; try again in some minutes")
        folder = self.new()
        self._sent[folder] = address
        return folder / safe_name(name)

    def given(self, path: Any, session: str) -> Path:
        """A file that a visitor names, now owned by the session. Raises InputError when it is not (any more) here."""
        found = self.find(str(path).replace(str(self.root), ALIAS, 1)) if path else None
        if found is None:
            raise InputError("this file is no longer here; upload it again")
        self._owned.setdefault(session, set()).add(found.parent)
        os.utime(found.parent)
        return found

    def find(self, alias: str) -> Path | None:
        """The file behind an alias such as /files/FOLDER/NAME; None where there is none."""
        match = re.fullmatch(re.escape(ALIAS) + r"/([\w-]+)/([^/\\\0]+)", alias)
        if match is None or match[2].startswith("."):
            return None
        path = self.root / match[1] / match[2]
        return path if path.is_file() and not path.is_symlink() else None

    @contextmanager
    def used(self, folders: Iterable[Path]) -> Iterator[None]:
        """Keep folders while a job waits and runs, whatever becomes of the page that they belong to."""
        held = list(folders)
        for folder in held:
            self._busy[folder] = self._busy.get(folder, 0) + 1
        try:
            yield
        finally:
            for folder in held:
                self._busy[folder] -= 1
                if not self._busy[folder]:
                    del self._busy[folder]
                    with suppress(OSError):
                        os.utime(folder)

    def leave(self, session: str) -> None:
        """A page was closed: remove its files."""
        for folder in self._owned.pop(session, ()):
            self.remove(folder)

    def remove(self, folder: Path) -> None:
        if folder not in self._busy:
            shutil.rmtree(folder, ignore_errors=True)
            self._sent.pop(folder, None)

    def sweep(self) -> None:
        """Remove what nobody used for KEEP seconds."""
        for folder in self._folders():
            with suppress(OSError):
                if folder.stat().st_mtime < time.time() - KEEP:
                    self.remove(folder)
        for session, folders in list(self._owned.items()):
            folders &= {folder for folder in folders if folder.exists()}
            if not folders:
                del self._owned[session]

    def size(self, folders: Iterable[Path]) -> int:
        """Bytes of all files in some folders."""
        total = 0
        for folder in folders:
            with suppress(OSError):
                total += sum(file.stat().st_size for file in folder.iterdir())
        return total

    def _folders(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.is_dir()]


def safe_name(name: str) -> str:
    """A file's name without anything that means something to a file system, a page or a player: letters, digits, . -"""
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, suffix = base.rpartition(".")
    if not dot:
        stem, suffix = base, ""
    stem = re.sub(r"[^\w.-]+", "_", stem).strip("._-")[:MAX_NAME] or "file"
    suffix = re.sub(r"\W+", "", suffix)[:8]
    return f"{stem}.{suffix}" if suffix else stem


def clear_abandoned() -> None:
    """Remove the folders of servers that were killed."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if root.is_symlink() or not root.is_dir() or (hasattr(os, "getuid") and root.stat().st_uid != os.getuid()):
            continue
        lock = _locked(root / LOCK) if (root / LOCK).exists() else None
        if lock is not None:
            shutil.rmtree(root, ignore_errors=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds a lock on a file until it is closed or its process ends; None where another holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: folders of killed servers stay until the system clears them
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
