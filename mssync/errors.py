"""The one exception for mistakes of the user, and the checks of files that raise it.

Every `InputError` says in one line what is wrong and what to do, and names the file. The command line
prints that line and exits with code 2.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]
LONGEST_SHOWN = 200  # characters of a path in a message


class InputError(ValueError):
    """Something that the user gave cannot be used; the message is one line that says what and why."""


def as_path(given: object) -> Path:
    """A path as a Path, also an os.PathLike that holds bytes. Raises InputError: it is none."""
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"a file is given by its path here, not as {type(given).__name__}")
    return Path(os.fsdecode(given))


def input_file(path: PathLike) -> Path:
    """Return `path` as a Path after checking that it is a file with content that may be read.

    Raises InputError: no path, missing, a directory, not a regular file, no permission, empty.
    """
    path = as_path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory, not a file")
        if path.exists() and not path.is_file():  # reading from a pipe would wait forever
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes)")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {_reason(error)}") from None
    return path


def output_file(path: PathLike, suffix: str) -> Path:
    """Return `path` as a Path after checking that a file of that name can be made.

    Raises InputError: no path, wrong suffix, a directory, the folder is missing or may not be written to.
    """
    path = as_path(path)
    if path.suffix.lower() != suffix:
        raise InputError(f"the output {path} must end in {suffix}")
    if os.path.isdir(path):
        raise InputError(f"cannot write {path}: it is a directory; give the name of a file in it")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise InputError(f"cannot write {_short(path)}: {_reason(error)}") from None
    if os.path.isfile(path.parent) or not os.path.lexists(path.parent):
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: permission denied")
    return path


@contextmanager
def written_whole(path: PathLike, suffix: str) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; rename it on success, remove it on any failure.

    So `path` is never half written, and an interrupted run leaves nothing behind. The temporary file
    exists, empty, when the block starts: an unwritable folder is noticed before any work is done.

    Raises InputError: as `output_file`.
    """
    path = output_file(path, suffix)
    # Writers choose the format by the suffix, so the temporary name keeps it.
    temporary = path.with_name(f".mssync-{uuid.uuid4().hex[:12]}{suffix}")
    try:
        temporary.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from None
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:  # also KeyboardInterrupt and a closed generator
        temporary.unlink(missing_ok=True)
        raise


def _short(path: Path) -> str:
    """A path without the middle of a very long name."""
    name = str(path)
    return name if len(name) <= LONGEST_SHOWN else f"{name[:60]} … {name[-20:]}"


def _reason(error: Exception) -> str:
    """The words of an error without its number and file name: "permission denied"."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return words[:1].lower() + words[1:]
